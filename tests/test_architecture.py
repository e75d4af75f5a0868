"""Who may import whom: every import of the package is walked, and what a light verb loads is looked at."""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from run_builder import build_run, harmful_task

PACKAGE = Path(__file__).parent.parent / "bfpo_bench"

# A module or package of ours -> the others that it may import. What is not named here may import nothing.
ALLOWED = {
    # Inside `load`, and for its type.
    "__init__": {"frames"},
    "types": set(),
    "errors": set(),
    "console": set(),
    # They meet the rest at a checkpoint folder.
    "trainers": {"types", "errors", "console"},
    # The module that a launcher starts is the command line under another name.
    "trainers.__main__": {"__main__"},
    "config": {"errors"},
    "stats": {"types"},
    "paired": {"stats"},
    "tradeoff": {"types", "stats"},
    "agreement": set(),
    "judge_swap": set(),
    "length_control": set(),
    "calibration": {"types", "stats"},
    "correction": {"types", "calibration", "panel"},
    "panel": {"types", "errors"},
    "endpoint": {"types", "errors"},
    "registry": {"types", "errors"},
    "store": {"types", "errors"},
    # What a policy is, which is a source of answers like a checkpoint.
    "sources": {"types", "errors", "harness"},
    "mirror": {"types", "errors"},
    "fetch": {"types", "errors", "mirror"},
    "scoring": {"types", "errors", "stats", "thinking", "panel", "length_control", "correction"},
    "outcomes": {"types", "errors", "store", "scoring"},
    "compare": {"types", "errors", "store", "outcomes", "paired", "tradeoff", "leaderboard"},
    "compare_tables": {"compare", "paired", "tradeoff", "console", "leaderboard"},
    "gate": {"types", "errors", "compare", "paired"},
    "audit": {"types", "scoring"},
    "cost": {"types", "scoring"},
    "export": {"types", "errors", "store"},
    "export_tasks": {"types", "errors", "store", "outcomes"},
    "export_lm_eval": {"types", "errors", "store", "export", "export_tasks", "registry"},
    "export_inspect": {"types", "store", "export", "export_tasks"},
    # The card of a checkpoint spells a model-index: one spelling.
    "export_model_index": {"errors", "store", "export_tasks", "trainers"},
    "frames": {"types", "errors", "store", "export", "export_tasks", "leaderboard"},
    "doctor": {"errors", "judges", "registry", "sources"},
    "judges": {"types", "errors", "endpoint", "sources", "harness", "stats", "length_control", "panel"},
    "judging": {
        *("types", "errors", "console", "conversation", "judges", "harness", "registry", "scoring", "store", "panel"),
        *("length_control", "turns"),
    },
    "validation": {"types", "errors", "console", "store", "calibration", "correction", "judges", "judging"},
    "judge_report": {"types", "errors", "store", "scoring", "agreement", "judge_swap", "judging"},
    "judge_tables": {"console"},
    "thinking": {"types"},
    "conversation": {"types"},
    "repeats": {"types", "errors"},
    "planning": {"types", "errors", "config", "console", "cost", "harness", "mirror", "repeats"},
    "harness": {"types", "errors", "endpoint", "registry", "thinking"},
    "leaderboard": {
        *("types", "errors", "stats", "store", "conversation", "paired", "tradeoff", "outcomes", "agreement"),
    },
    "tasks": {"judges", "types"},
    "chunks": set(),
    "turns": {"types", "conversation", "store"},
    "cluster": {"errors", "chunks", "harness"},
    "workers": {"types", "chunks", "cluster", "harness", "judges", "judging", "store", "turns"},
    "run": {
        *("types", "errors", "config", "console", "registry", "sources", "store", "scoring", "audit"),
        *("cluster", "workers", "turns"),
        *("cost", "judges", "judging", "panel", "harness", "endpoint", "thinking", "conversation"),
        *("planning", "outcomes"),
    },
    "train": {
        *("types", "errors", "config", "console", "registry", "sources", "store", "harness", "run", "leaderboard"),
        "trainers",
    },
    "sweep": {"types", "errors", "console", "store", "train", "trainers"},
    "matrix_plan": set(),
    "matrix_models": {"types", "errors", "config", "registry", "sources", "store", "harness", "matrix_plan"},
    # Its runs are processes of their own.
    "matrix": {
        *("types", "errors", "console", "store", "harness", "cluster", "workers", "matrix_models", "matrix_plan"),
        "leaderboard",
    },
    "__main__": {
        *("errors", "endpoint", "config", "console", "registry", "sources", "store", "export", "doctor", "run"),
        *("leaderboard", "mirror", "fetch", "judges", "judging", "harness", "validation", "judge_report"),
        *("compare", "compare_tables", "gate", "matrix", "matrix_models"),
        *("judge_tables", "train", "trainers", "sweep", "export_lm_eval", "export_inspect", "export_model_index"),
        *("cluster", "workers"),
    },
}
# A heavy package -> who may import it at all, and who only inside the function that needs it.
HEAVY = {
    "lm_eval": ({"harness"}, set()),
    "torch": ({"harness", "judges.sequence", "trainers"}, {"sources", "doctor"}),
    "transformers": ({"harness", "judges.sequence", "trainers"}, {"sources"}),
    "vllm": ({"harness"}, set()),
    "accelerate": ({"harness", "trainers"}, set()),
    "peft": ({"trainers"}, set()),
    "ray": (set(), {"cluster"}),
}
# These import the standard library only; `__init__` more inside `load`.
LEAVES = ("types", "errors", "__init__")


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module, by its full name; `lazy` where it stands inside a function, or for a type checker only."""

    importer: str
    imported: str
    lazy: bool
    line: int

    @property
    def ours(self) -> str | None:
        """The first name below bfpo_bench, None for a foreign module and for bfpo_bench itself (its version)."""
        head, _, rest = self.imported.partition(".")
        return rest.partition(".")[0] or None if head == "bfpo_bench" else None

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts if parts[-1] != "__init__" or len(parts) == 1 else parts[:-1])


def imports_of(source: str, *, importer: str) -> list[Import]:
    """Every import statement of a module, with `from package import module` told apart by trying both."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{importer}:{child.lineno}: relative imports hide who is meant"
                names = [f"{child.module}.{alias.name}" for alias in child.names]
            elif isinstance(child, ast.Call) and ast.unparse(child.func) in (
                "import_module",
                "importlib.import_module",
            ):
                names = [ast.literal_eval(child.args[0])]
            found.extend(Import(importer=importer, imported=n, lazy=lazy, line=child.lineno) for n in names)
            unread = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            visit(child, lazy or unread or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(source), False)
    return [one for one in found if one.imported != "bfpo_bench.__version__"]


def sources() -> Iterator[tuple[str, str]]:
    # bfpo_bench/tasks, /leaderboard and /trainers are links, which rglob does not follow.
    for folder, _, files in os.walk(PACKAGE, followlinks=True):
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder) / file
                yield module_name(path), path.read_text(encoding="utf-8")


def all_imports() -> list[Import]:
    return [one for name, source in sources() for one in imports_of(source, importer=name)]


def top(module: str) -> str:
    return module.partition(".")[0]


def forbidden_edges(imports: list[Import]) -> list[str]:
    return [
        str(one)
        for one in imports
        if one.ours is not None
        and one.ours != top(one.importer)
        and one.ours not in ALLOWED.get(one.importer, ALLOWED.get(top(one.importer), set()))
    ]


def forbidden_heavy(imports: list[Import]) -> list[str]:
    found = []
    for one in imports:
        anywhere, lazily = HEAVY.get(top(one.imported), (None, None))
        if anywhere is None or {one.importer, top(one.importer)} & anywhere:
            continue
        if not (one.lazy and top(one.importer) in lazily):
            found.append(str(one))
    return found


# -- the rules ---------------------------------------------------------------------------------------------------------


def test_every_module_is_walked_linked_packages_too():
    names = {name for name, _ in sources()}
    assert {"types", "run", "__main__", "__init__", "harness.hf", "judges.base"} <= names
    assert {"tasks.bundled", "leaderboard.rows", "trainers"} <= names


def test_every_top_level_module_has_a_rule():
    assert {top(name) for name, _ in sources()} == {name for name in ALLOWED if name == top(name)}


def test_nobody_imports_what_it_must_not_know():
    assert forbidden_edges(all_imports()) == []


def test_heavy_packages_stay_where_they_belong():
    assert forbidden_heavy(all_imports()) == []


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_leaves_use_the_standard_library_only(leaf):
    foreign = [
        one
        for one in all_imports()
        if one.importer == leaf
        and top(one.imported) not in sys.stdlib_module_names
        and not (one.lazy and one.imported.startswith("bfpo_bench.frames"))
    ]
    assert foreign == []


def test_to_import_the_package_loads_nothing_beyond_the_standard_library():
    code = "import sys; before = set(sys.modules); import bfpo_bench; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert loaded == {"bfpo_bench"}


def test_tasks_use_the_standard_library_judges_and_data_sets_only():
    theirs = {top(one.imported) for one in all_imports() if top(one.importer) == "tasks" and one.ours is None}
    assert theirs - set(sys.stdlib_module_names) <= {"datasets"}


def test_only_the_command_line_imports_the_stages():
    assert {one.importer for one in all_imports() if one.ours == "run"} == {"__main__", "train"}
    assert {one.importer for one in all_imports() if one.ours == "train"} == {"__main__", "sweep"}


def test_the_trainers_own_command_is_the_command_line_and_nothing_else_of_it_knows_that():
    assert {one.importer for one in all_imports() if one.ours == "__main__"} == {"trainers.__main__"}


def test_a_recipe_is_read_without_a_model_library():
    light = [one for one in all_imports() if one.importer in ("trainers.recipe", "trainers.records", "trainers.card")]
    foreign = {top(one.imported) for one in light if one.ours is None}
    assert foreign - set(sys.stdlib_module_names) <= {"yaml", "huggingface_hub"}


# -- the rules can fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("types", "from bfpo_bench.errors import BenchError"),
        ("errors", "import bfpo_bench.types"),
        ("stats", "from bfpo_bench import store"),
        ("leaderboard.rows", "def f():\n    from bfpo_bench.run import score"),
        ("judges.chat", "if True:\n    from bfpo_bench.store import RunStore"),
        ("tasks.own.code", "from bfpo_bench.registry import load_registry"),
        ("trainers.losses", "from bfpo_bench.sources import hash_folder"),
        ("trainers.training", "def f():\n    from bfpo_bench.__main__ import main"),
        ("sweep", "from bfpo_bench.run import run"),
        ("harness.hf", "from bfpo_bench.store import RunStore"),
        ("store", "import importlib\nimportlib.import_module('bfpo_bench.scoring')"),
    ],
)
def test_an_edge_that_is_not_allowed_is_found(importer, source):
    assert len(forbidden_edges(imports_of(source, importer=importer))) == 1


@pytest.mark.parametrize(
    ("importer", "source", "wrong"),
    [
        ("scoring", "import torch", True),
        ("run", "def f():\n    import lm_eval.api", True),
        ("sources", "import torch", True),
        ("sources", "def f():\n    import torch", False),
        ("sources", "class A:\n    from torch import nn", True),
        ("sources", "if TYPE_CHECKING:\n    import torch", False),
        ("sources", "if not TYPE_CHECKING:\n    import torch", True),
        ("judges.chat", "import torch", True),
        ("train", "def f():\n    import torch", True),
        ("sources", "def f():\n    import peft", True),
        ("trainers.training", "import peft", False),
        ("judges.sequence", "import torch", False),
        ("harness.prompts", "from lm_eval.api.task import ConfigurableTask", False),
    ],
)
def test_a_heavy_import_in_the_wrong_place_is_found(importer, source, wrong):
    assert bool(forbidden_heavy(imports_of(source, importer=importer))) is wrong


# -- what a light verb loads -------------------------------------------------------------------------------------------

LOADED = """
import sys
from bfpo_bench.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as exit:
    code = exit.code
print("LOADED", code, *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "run --help",
        "train --help",
        "sweep --help",
        "matrix --help",
        "sweep demo --seeds 1,2 loss.alpha=0,0.5 --dry-run",
        "tasks list",
        "tasks path",
        "tasks fingerprints",
        "data list --data-dir {run}",
        "leaderboard {run} --out {out}",
        "score {run}",
        "compare {run} {other}",
        "gate --base {run} --new {other} --rule 'bfpo_mini_harmful not worse by 99'",
        "export {run} --out {out}",
        "export {run} --format lm-eval --out {out}",
        "export {run} --format model-index --out {out}",
        "export {run} --format inspect --out {out}",
        "judge {run} --judge keyword",
    ],
)
def test_a_verb_that_runs_no_model_loads_no_model_library(tmp_path, command):
    build_run(tmp_path / "run", tasks=[harmful_task(refused=2)])
    build_run(tmp_path / "other", tasks=[harmful_task(refused=2)], model="beta")
    places = {name: tmp_path / name for name in ("run", "other", "out")}
    arguments = shlex.split(command.format(**places))
    done = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, timeout=120)
    *_, line = done.stdout.splitlines()
    _, code, *loaded = line.split()
    assert code == "0", done.stderr
    assert "bfpo_bench" in loaded
    assert {"torch", "lm_eval", "transformers", "datasets", "vllm"} & set(loaded) == set()

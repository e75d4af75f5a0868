"""Task YAML files -> TaskSpec, and what a user typed -> tasks; reads YAML only, never lm-eval or data."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import yaml

from bfpo_bench.errors import TaskError, did_you_mean, nearest
from bfpo_bench.types import AXES, Axis, Kind, PaperRole, Rubric, TaskSpec

# lm-eval's tag for a suite's tasks: `lm_eval --tasks bfpo_mini` and `--suite mini` name the same set.
SUITE_TAG = "bfpo_"
# The suite whose tasks an axis' name stands for: `--suite over_refusal`.
WHOLE_SUITE = "full"
PROFILES = ("default", "paper")

_KIND_OF_OUTPUT: dict[str, Kind] = {"multiple_choice": "choice", "generate_until": "generate"}
_BFPO_KEYS = frozenset(
    [
        *("axis", "metric", "also", "judge", "rubric", "filter", "paper", "profiles", "lm_eval", "chat", "turns_key"),
        *("source", "revision", "licence", "gated", "files", "nltk", "columns", "n", "chance"),
        *("category_key", "cluster_key", "behavior_key", "context_key", "keep"),
    ]
)
_REQUIRED = ("axis", "metric", "source", "licence")
_NUMBERS: Mapping[str, tuple[type, ...]] = {"n": (int,), "chance": (int, float)}
_ONE_OF: Mapping[str, tuple[str, ...]] = {
    "axis": get_args(Axis),
    "rubric": get_args(Rubric),
    "paper": get_args(PaperRole),
}
_LISTS = ("also", "keep", "columns", "files", "nltk")
_WORDS = ("judge", "filter", "turns_key", "category_key", "cluster_key", "behavior_key", "context_key", "gated")
_OUR_MODULE = re.compile(r"!function bfpo_bench\.tasks\.(\w+)\.")
_GENERATION_KEYS = ("until", "do_sample", "temperature", "max_gen_toks")


# The C parser reads the hundred files of `tasks list` ten times as fast; both build the same values.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """Safe YAML that reads lm-eval's `!function module.name` as its text."""


def _function(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    return f"!function {node.value}"


_Loader.add_constructor("!function", _function)


def tasks_folder() -> Path:
    """The folder to give to `lm_eval --include_path`."""
    return (Path(__file__).parent / "tasks").resolve()


@functools.cache
def lm_eval_tasks_folder() -> Path:
    """Where the installed lm-eval keeps its own tasks; found without importing it, which takes seconds."""
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise TaskError("lm-eval is not installed. Install it with: pip install bfpo-bench")
    return Path(spec.origin).parent / "tasks"


def load_registry(include_paths: Sequence[Path] = (), *, profile: str = "default") -> dict[str, TaskSpec]:
    """Every task of ours and of the given folders, by name, with the settings of the profile.

    lm-eval skips a YAML file that does not parse without a word; here it is a TaskError that names the file.
    """
    if profile not in PROFILES:
        raise TaskError(did_you_mean("profile", profile, PROFILES))
    specs: dict[str, TaskSpec] = {}
    seen: set[Path] = set()
    for folder in (tasks_folder(), *include_paths):
        if not folder.is_dir():
            raise TaskError(f"Task folder {folder} does not exist. Give --include-path a folder that holds task YAMLs.")
        for path in sorted(folder.rglob("*.yaml")):
            # `--include-path "$(bfpo_bench tasks path)"` names our own folder a second time.
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            config = read_task_yaml(path)
            # lm-eval's own tasks may lie in the same folder; old ones have a list or a number as metadata.
            if "task" not in config or not isinstance(config.get("metadata"), dict) or "bfpo" not in config["metadata"]:
                continue
            spec = _spec(path, config, profile)
            if spec.name in specs:
                raise TaskError(f"Task {spec.name!r} is defined twice: {specs[spec.name].yaml_path} and {path}.")
            specs[spec.name] = spec
    return specs


def suites(registry: Mapping[str, TaskSpec]) -> dict[str, list[str]]:
    """Suite -> its tasks' names, both sorted."""
    names = sorted({suite for spec in registry.values() for suite in spec.suites})
    return {suite: sorted(n for n, spec in registry.items() if suite in spec.suites) for suite in names}


def resolve_tasks(
    registry: Mapping[str, TaskSpec], *, suite: str | None = None, tasks: Sequence[str] = ()
) -> list[TaskSpec]:
    """The tasks of a suite and those named one by one, each once, sorted by name.

    `suite` is a suite, an axis or a task, and may go on with edits: `paper+xstest_safe-alpaca_eval`, `full-paper`.
    """
    names = {_task_name(registry, task) for task in tasks}
    for sign, term in _terms(suite) if suite is not None else ():
        group = _group(registry, term)
        if sign == "-" and not group & names:
            raise TaskError(f"--suite {suite}: {term!r} takes nothing away. Leave out -{term}.")
        names = names - group if sign == "-" else names | group
    if not names:
        raise TaskError("No task chosen. Give --suite or --tasks; `python -m bfpo_bench tasks list` shows them.")
    return [registry[name] for name in sorted(names)]


def _terms(suite: str) -> Iterator[tuple[str, str]]:
    """`a+b-c` -> (+, a), (+, b), (-, c)."""
    parts = re.split(r"([+-])", suite if suite[:1] in ("+", "-") else f"+{suite}")
    return zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True)


def _group(registry: Mapping[str, TaskSpec], term: str) -> set[str]:
    """The tasks that a suite's, an axis' or a task's name stands for."""
    known = suites(registry)
    if term in known:
        return set(known[term])
    if term in AXES:
        return {name for name, spec in registry.items() if spec.axis == term and WHOLE_SUITE in spec.suites}
    if term in registry or f"{SUITE_TAG}{term}" in registry:
        return {_task_name(registry, term)}
    # A task is suggested where it is near; the list of all that are known holds the suites and axes only.
    near = nearest(term, map(_short, registry))
    raise TaskError(did_you_mean("suite", term, [*known, *AXES, *near]))


def _task_name(registry: Mapping[str, TaskSpec], name: str) -> str:
    """A task's full name; our own may be typed without their prefix."""
    for candidate in (name, f"{SUITE_TAG}{name}"):
        if candidate in registry:
            return candidate
    raise TaskError(did_you_mean("task", name, registry))


def _short(name: str) -> str:
    return name.removeprefix(SUITE_TAG)


def read_task_yaml(path: Path) -> dict[str, Any]:
    """A task's configuration with its `include:` files merged in as lm-eval does (shallow, the child wins).

    A task that is lm-eval's own (`metadata.bfpo.lm_eval`) stands on that file of the installed lm-eval.
    """
    config: dict[str, Any] = {}
    for file in _with_includes(path):
        config |= _read(file)
    config.pop("include", None)
    base = _lm_eval_file(path, config)
    return config if base is None else read_task_yaml(base) | config


def _lm_eval_file(path: Path, config: Mapping[str, Any]) -> Path | None:
    metadata = config.get("metadata")
    bfpo = metadata.get("bfpo") if isinstance(metadata, dict) else None
    name = bfpo.get("lm_eval") if isinstance(bfpo, dict) else None
    if name is None:
        return None
    file = lm_eval_tasks_folder() / str(name)
    if not file.is_file():
        raise TaskError(f"Task file {path}: metadata.bfpo.lm_eval names {str(name)!r}, which lm-eval does not have.")
    return file


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise TaskError(f"Cannot read task file {path}: {' '.join(str(error).split())}.") from error
    if not isinstance(config, dict):
        raise TaskError(f"Task file {path} holds {type(config).__name__}, not a mapping.")
    return config


def _with_includes(path: Path, seen: tuple[Path, ...] = ()) -> list[Path]:
    """The file's includes, depth first, then the file."""
    if path in seen:
        raise TaskError(f"Task file {path} includes itself.")
    files: list[Path] = []
    for name in _texts(f"Task file {path}: include", _read(path).get("include")):
        files += _with_includes((path.parent / name).resolve(), (*seen, path))
    return [*files, path]


def _texts(where: str, value: Any) -> list[str]:
    """A YAML value that may be a text or a list of texts, as a list."""
    texts = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise TaskError(f"{where} is {value!r}; write a text or a list of texts.")
    return texts


def _spec(path: Path, config: Mapping[str, Any], profile: str) -> TaskSpec:
    name, bfpo = str(config["task"]), config["metadata"]["bfpo"]
    where = f"Task {name!r} ({path.name})"
    if not isinstance(bfpo, dict):
        raise TaskError(f"{where}: metadata.bfpo is {type(bfpo).__name__}, not a mapping.")
    _check_keys(where, bfpo)
    overrides = profile_overrides(where, bfpo, profile)
    config = {**config, **overrides}
    output_type = str(config.get("output_type", "generate_until"))
    if output_type not in _KIND_OF_OUTPUT:
        raise TaskError(f"{where}: {did_you_mean('output_type', output_type, _KIND_OF_OUTPUT)}")
    kind = _KIND_OF_OUTPUT[output_type]
    if kind == "choice" and bfpo["metric"] != "acc" and bfpo.get("judge") != "lm_eval":
        # Another name over the same number would be read as lm-eval's metric of that name.
        raise TaskError(
            f"{where}: metadata.bfpo.metric is {bfpo['metric']!r}; a choice task has 'acc', or lm-eval's other metrics "
            "with `judge: lm_eval`."
        )
    if not isinstance(config.get("dataset_kwargs") or {}, dict):
        raise TaskError(f"{where}: dataset_kwargs is {type(config['dataset_kwargs']).__name__}, not a mapping.")
    if config["metadata"].get("version") is None:
        raise TaskError(f"{where}: metadata lacks 'version'.")
    settings = config.get("generation_kwargs") or {}
    if kind == "generate":
        _check_generation(where, settings)
        if "judge" not in bfpo:
            raise TaskError(f"{where}: metadata.bfpo lacks 'judge', which a generative task needs.")
    dataset_path = config.get("dataset_path")
    texts = {key: tuple(_texts(f"{where}: metadata.bfpo.{key}", bfpo.get(key))) for key in _LISTS}
    return TaskSpec(
        name=name,
        version=str(config["metadata"]["version"]),
        axis=bfpo["axis"],
        kind=kind,
        metric=str(bfpo["metric"]),
        judge=bfpo.get("judge"),
        source=str(bfpo["source"]),
        revision=_revision(where, config, bfpo),
        licence=str(bfpo["licence"]),
        suites=tuple(
            tag.removeprefix(SUITE_TAG)
            for tag in _texts(f"{where}: tag", config.get("tag"))
            if tag.startswith(SUITE_TAG)
        ),
        yaml_path=str(path),
        fingerprint=_fingerprint(path, config, overrides),
        n=bfpo.get("n"),
        chance=bfpo.get("chance"),
        category_key=bfpo.get("category_key"),
        cluster_key=bfpo.get("cluster_key"),
        keep=texts["keep"],
        rubric=bfpo.get("rubric", "safety"),
        paper=bfpo.get("paper"),
        also=texts["also"],
        turns_key=bfpo.get("turns_key"),
        behavior_key=bfpo.get("behavior_key"),
        context_key=bfpo.get("context_key"),
        chat=bool(overrides.get("chat", bfpo.get("chat", True))),
        dataset_path=None if dataset_path is None or "custom_dataset" in config else str(dataset_path),
        dataset_name=None if config.get("dataset_name") is None else str(config["dataset_name"]),
        columns=texts["columns"],
        files=texts["files"] or _files_in_kwargs(config),
        gated=bfpo.get("gated"),
        nltk=texts["nltk"],
        max_new_tokens=int(settings["max_gen_toks"]) if kind == "generate" else None,
    )


def _files_in_kwargs(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The repository's files that `dataset_kwargs` names, in any of the forms that `datasets` takes."""
    kwargs = config.get("dataset_kwargs") or {}
    named = kwargs.get("data_files")
    if named is None:
        return (f"{str(kwargs['data_dir']).strip('/')}/*",) if kwargs.get("data_dir") else ()
    parts = named.values() if isinstance(named, dict) else [named]
    return tuple(str(path) for part in parts for path in (part if isinstance(part, list) else [part]))


def _check_keys(where: str, bfpo: Mapping[str, Any]) -> None:
    for key in sorted(set(bfpo) - _BFPO_KEYS):
        raise TaskError(f"{where}: {did_you_mean('metadata.bfpo key', str(key), _BFPO_KEYS)}")
    for key in _REQUIRED:
        if key not in bfpo:
            raise TaskError(f"{where}: metadata.bfpo lacks {key!r}.")
    for key, known in _ONE_OF.items():
        if bfpo.get(key) is not None and bfpo[key] not in known:
            raise TaskError(f"{where}: {did_you_mean(key, str(bfpo[key]), known)}")
    for key, types in _NUMBERS.items():
        if bfpo.get(key) is not None and (isinstance(bfpo[key], bool) or not isinstance(bfpo[key], types)):
            raise TaskError(f"{where}: metadata.bfpo.{key} must be a number, got {bfpo[key]!r}.")
    for key, highest in (("n", math.inf), ("chance", 1)):
        if bfpo.get(key) is not None and not 0 <= bfpo[key] <= highest:
            raise TaskError(f"{where}: metadata.bfpo.{key} is {bfpo[key]!r}; n is 0 or more, chance from 0 to 1.")
    for key in _WORDS:
        if bfpo.get(key) is not None and not isinstance(bfpo[key], str):
            raise TaskError(f"{where}: metadata.bfpo.{key} must be a text, got {bfpo[key]!r}.")
    _check_chat(where, bfpo)


def _check_chat(where: str, settings: Mapping[str, Any]) -> None:
    # Any text is true to Python, "no" included.
    if not isinstance(settings.get("chat", True), bool):
        raise TaskError(f"{where}: chat must be true or false, got {settings['chat']!r}.")


def profile_overrides(where: str, bfpo: Mapping[str, Any], profile: str) -> dict[str, Any]:
    """What the profile sets otherwise than the task's YAML: `metadata.bfpo.profiles.<profile>`; mostly nothing.

    Keys of lm-eval's task configuration, and `chat` (false: the plain prompt, whatever template the model has).
    """
    profiles = bfpo.get("profiles") or {}
    if not isinstance(profiles, dict):
        raise TaskError(f"{where}: metadata.bfpo.profiles is {type(profiles).__name__}, not a mapping.")
    for key in profiles:
        if key not in PROFILES:
            raise TaskError(f"{where}: {did_you_mean('profile', str(key), PROFILES)}")
    overrides = profiles.get(profile) or {}
    if not isinstance(overrides, dict):
        raise TaskError(f"{where}: metadata.bfpo.profiles.{profile} is {type(overrides).__name__}, not a mapping.")
    _check_chat(where, overrides)
    return dict(overrides)


def _revision(where: str, config: Mapping[str, Any], bfpo: Mapping[str, Any]) -> str:
    """`metadata.bfpo.revision`, which plain lm-eval reads as `dataset_kwargs.revision`: the two must agree."""
    stated, used = bfpo.get("revision"), (config.get("dataset_kwargs") or {}).get("revision")
    if used is not None and stated is not None and used != stated:
        raise TaskError(f"{where}: metadata.bfpo.revision is {stated!r}, dataset_kwargs.revision {used!r}.")
    default = "bundled" if "dataset_path" not in config else "main"
    return str(stated or used or default)


def _check_generation(where: str, settings: Mapping[str, Any]) -> None:
    """All four settings, always: lm-eval's vLLM backend samples at T = 1 where they are left out, hf does not."""
    for key in _GENERATION_KEYS:
        if not isinstance(settings, dict) or key not in settings:
            raise TaskError(f"{where}: generation_kwargs lacks {key!r}; state {', '.join(_GENERATION_KEYS)}.")
    if settings["until"] is None:
        raise TaskError(f"{where}: generation_kwargs.until is empty; write [] to stop at the model's own end only.")
    if isinstance(settings["max_gen_toks"], bool) or not isinstance(settings["max_gen_toks"], int):
        raise TaskError(f"{where}: generation_kwargs.max_gen_toks must be a number, got {settings['max_gen_toks']!r}.")


def _fingerprint(path: Path, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    """Sixteen hex digits over all that fixes the prompts: the YAML with its includes, lm-eval's own file where the
    task stands on one, code and rows beside them, our functions that they name, and the profile's changes."""
    files = _with_includes(path)
    base = _lm_eval_file(path, config)
    if base is not None:
        files = [*_with_includes(base), *files]
    folders = {file.parent for file in files}
    beside = sorted(file for folder in folders for pattern in ("*.py", "*.jsonl") for file in folder.glob(pattern))
    named = {name for file in files for name in _OUR_MODULE.findall(file.read_text(encoding="utf-8"))}
    ours = [file for name in sorted(named) if (file := tasks_folder() / f"{name}.py").is_file()]
    digest = hashlib.sha256()
    for file in (*files, *beside, *ours):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    if overrides:
        digest.update(json.dumps(overrides, sort_keys=True).encode())
    return digest.hexdigest()[:16]

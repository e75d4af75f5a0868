"""benchmarks/methods.py: what a change and its interval are, and which run they are against; nothing is trained."""

from __future__ import annotations

import importlib.util
import math
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_builder import build_run, harmful_task, helpful_task

from bfpo_bench.errors import ConfigError
from bfpo_bench.leaderboard.rows import collect

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "methods.py"
BASE = {"name": "base", "identity": "sha256:base", "method": "bfpo", "seed": 1}


@pytest.fixture(scope="module")
def methods():
    spec = importlib.util.spec_from_file_location("methods_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


# -- a change ----------------------------------------------------------------------------------------------------------


def test_a_change_is_the_mean_over_prompts_of_the_mean_over_seeds(methods):
    before = {"a": False, "b": False, "c": True, "d": True}
    after = [{"a": True, "b": True, "c": True, "d": True}, {"a": True, "b": False, "c": True, "d": False}]
    found = methods.paired("t", before, after)
    # By prompt 100, 50, 0, -50, so 25; seeds (100 + 100) / 4 and (100 - 100) / 4. The variance is (75^2 + 25^2 + 25^2 +
    # 75^2) / 3, and Student's t with 3 degrees of freedom has 97.5 % below 3.18245.
    half = 3.18245 * math.sqrt(12500 / 3) / math.sqrt(4)
    assert (found.mean, found.seeds, found.n, found.left_out) == (25.0, (50.0, 0.0), 4, 0)
    assert (found.low, found.high) == pytest.approx((25 - half, 25 + half), rel=1e-5)
    # Of the 8 ways to sign 100, 50 and 50 (0 has no sign), 3 have a sum of 100 or more; twice that is two-sided.
    assert found.p == pytest.approx(6 / 8)


def test_a_prompt_that_is_unscored_in_any_run_is_left_out_and_counted(methods):
    before = {"a": False, "b": True, "c": None, "d": False}
    after = [{"a": True, "b": True, "c": True, "d": None}, {"a": True, "b": True, "c": True, "d": True}]
    found = methods.paired("t", before, after)
    assert (found.mean, found.n, found.left_out) == (50.0, 2, 2)


# -- against which base ------------------------------------------------------------------------------------------------


def run(folder, name, *, trained_from=None):
    tasks = [harmful_task(refused=2, harmful=1), helpful_task(passed=2, failed=1)]
    model, identity = ("base", "sha256:base") if name == "base-mini" else (name, f"sha256:{name}")
    return build_run(folder / "runs" / name, tasks=tasks, model=model, identity=identity, trained_from=trained_from)


def trained_of(rows):
    return [row for row in rows if row.trained_from is not None]


def test_the_base_is_the_run_that_the_trained_ones_name_and_no_other_that_lies_there(methods, tmp_path):
    # A method that is not asked for now, and a stranger, both before the base by name.
    for name in ("aaa-mini", "base-mini"):
        run(tmp_path, name)
    for name in ("bfpo-seed1-mini", "bfpo-seed2-mini", "aab-seed1-mini"):
        run(tmp_path, name, trained_from=BASE)
    rows = collect([tmp_path / "runs"])
    assert methods.base_of(trained_of(rows), rows).folder.name == "base-mini"


@pytest.mark.parametrize(
    ("also", "said"),
    [({}, "bfpo-seed1-mini has no run of its base"), ({"base-mini": None, "other-mini": None}, "several bases")],
)
def test_a_base_that_is_absent_or_not_the_same_for_all_is_one_line(methods, tmp_path, also, said):
    other = {**BASE, "name": "other", "identity": "sha256:other-mini"}
    runs = {"aaa-mini": None, **also, "bfpo-seed1-mini": BASE, "dpo-seed1-mini": other}
    for name, told in runs.items():
        run(tmp_path, name, trained_from=told)
    rows = collect([tmp_path / "runs"])
    with pytest.raises(ConfigError, match=said):
        methods.base_of(sorted(trained_of(rows), key=lambda row: row.folder.name), rows)


@pytest.mark.parametrize(("seeds", "said"), [("1", "no run of its base"), ("1,2", "No scored run bfpo-seed2-mini")])
def test_the_command_ends_with_code_2_and_one_line(methods, tmp_path, monkeypatch, capsys, seeds, said):
    run(tmp_path, "aaa-mini")
    run(tmp_path, "bfpo-seed1-mini", trained_from=BASE)
    words = ["--work", str(tmp_path), "--methods", "bfpo", "--seeds", seeds, "--only-print"]
    monkeypatch.setattr(sys, "argv", ["methods.py", *words])
    assert methods.main() == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and said in told.err and told.err.count("\n") == 1


def test_the_command_prints_the_bases_scores_and_a_method_a_row(methods, tmp_path, monkeypatch, capsys):
    run(tmp_path, "base-mini")
    run(tmp_path, "bfpo-seed1-mini", trained_from=BASE)
    words = ["--work", str(tmp_path), "--methods", "bfpo", "--seeds", "1", "--only-print"]
    monkeypatch.setattr(sys, "argv", ["methods.py", *words])
    assert methods.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| base | 66.7 |") and lines[3].startswith("| bfpo | 66.7 |")
    assert lines[-1].startswith("| bfpo | bfpo_mini_helpful | +0.0 [+0.0, +0.0] | +0 | 3 | 1.0000 |")


def test_what_the_base_was_trained_from_stands_above_it(methods, tmp_path, monkeypatch, capsys):
    first = {"name": "first", "identity": "sha256:first", "method": "sft", "seed": 1}
    run(tmp_path, "first")
    run(tmp_path, "base-mini", trained_from=first)
    run(tmp_path, "bfpo-seed1-mini", trained_from=BASE)
    words = ["--work", str(tmp_path), "--methods", "bfpo", "--seeds", "1", "--only-print"]
    monkeypatch.setattr(sys, "argv", ["methods.py", *words])
    assert methods.main() == 0
    names = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:5]]
    assert names == ["| first", "| base", "| bfpo"]


def test_base_and_checkpoint_are_scored_in_the_precision_that_was_trained(methods, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        methods.subprocess, "run", lambda command, **_: asked.append(command) or SimpleNamespace(returncode=0)
    )
    assert methods.train(Namespace(work=tmp_path, recipe="demo", suite="mini"), "dpo", 2) == 0
    command = asked[0]
    assert command[command.index("--engine-args") :] == ["--engine-args", "dtype=float32"]

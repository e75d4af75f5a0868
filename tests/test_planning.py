"""A run's samples go into its store as they are made: none is kept in memory, and half a plan is no plan."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import yaml
from own_tasks import GENERATE

from bfpo_bench.__main__ import main
from bfpo_bench.config import RunSpec
from bfpo_bench.errors import TaskError
from bfpo_bench.planning import DataHashes
from bfpo_bench.run import make_plan, planning
from bfpo_bench.store import RunStore

MANIFEST = {"schema": 2, "identity": {"model": {"name": "m", "identity": "sha256:1"}, "seed": 0}}
WORDS = "word " * 4000


def write_tasks(folder, sizes):
    """A task a size, with so many rows of 20 kB each."""
    folder.mkdir()
    for name, n in sizes.items():
        rows = ({"question": f"{i} {WORDS}", "options": ["a"], "right": 0} for i in range(n))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        bfpo = {
            "axis": "harmlessness",
            "metric": "harmless",
            "source": "tests",
            "licence": "CC0-1.0",
            "judge": "keyword",
        }
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "test_split": "test",
            **GENERATE,
            "metadata": {"version": 1.0, "bfpo": bfpo},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


def plan_of(folder, sizes, **fields):
    spec = RunSpec(model="policy:echo", tasks=tuple(sizes), include_path=(write_tasks(folder, sizes),), **fields)
    return make_plan(spec)


@pytest.fixture(autouse=True)
def no_downloads(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def peak(folder, sizes):
    """Bytes that planning a run into its store takes at the most, once `datasets` has read its files."""
    plan = plan_of(folder, sizes)
    for _ in planning(plan):
        pass
    tracemalloc.start()
    try:
        with RunStore.create_or_resume(folder / "run", MANIFEST, samples=planning(plan)) as store:
            assert store.n_samples() == sum(sizes.values())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_planning_takes_no_more_memory_for_more_samples_of_a_task_or_of_more_tasks(tmp_path):
    n, bytes_a_task = 100, 100 * len(WORDS)
    peak(tmp_path / "first", {"t0": 1})  # what is loaded once
    one = peak(tmp_path / "one", {"t0": n})
    longer = peak(tmp_path / "longer", {"t0": 3 * n})
    more = peak(tmp_path / "more", {"t0": n, "t1": n, "t2": n})
    assert longer - one < bytes_a_task / 4 and more - one < bytes_a_task / 4


def test_the_plan_counts_what_it_makes(tmp_path):
    """20,000 characters and three more of the number and the space: 5,000 tokens; 8 new ones each."""
    samples = planning(plan_of(tmp_path / "tasks", {"a": 2, "b": 3}))
    made = list(samples)
    assert [sample.task for sample in made] == ["a"] * 2 + ["b"] * 3
    assert {name: (cost.samples, cost.prompt_tokens, cost.new_tokens) for name, cost in samples.costs.items()} == {
        "a": (2, 10_000, 16),
        "b": (3, 15_000, 24),
    }
    assert samples.missing == {} and samples.learned["data"].keys() == {"a", "b"}


def test_a_task_s_hash_turns_on_its_own_rows_only(tmp_path):
    made = list(planning(plan_of(tmp_path / "tasks", {"a": 2, "b": 3})))
    together, alone = DataHashes(), DataHashes()
    for sample in made:
        together.add(sample)
    for sample in made[2:]:
        alone.add(sample)
    assert together.found["b"] == alone.found["b"] != together.found["a"]


def test_data_that_is_missing_at_the_end_leaves_nothing_behind(tmp_path, capsys):
    folder = write_tasks(tmp_path / "tasks", {"a": 2, "b": 2})
    (folder / "b.jsonl").unlink()
    out = tmp_path / "new" / "run"
    command = ["run", "--model", "policy:refuse", "--tasks", "a,b", "--include-path", str(folder), "--out", str(out)]
    assert main(command) == 2
    assert "No data for task 'b'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main([*command, "--skip-missing"]) == 3
    with RunStore.read(out) as store:
        assert store.n_samples() == 2 and list(store.manifest["missing"]) == ["b"]
        assert list(store.manifest["data"]) == ["a"]


def test_a_run_that_is_begun_anew_without_its_data_keeps_what_it_has(tmp_path):
    folder = write_tasks(tmp_path / "tasks", {"a": 2})
    command = ["run", "--model", "policy:refuse", "--tasks", "a", "--include-path", str(folder)]
    command += ["--out", str(tmp_path / "run")]
    assert main(command) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    (folder / "a.jsonl").unlink()
    assert main([*command, "--fresh"]) == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_no_task_with_data_is_an_error_even_where_missing_data_are_not(tmp_path):
    plan = plan_of(tmp_path / "tasks", {"a": 1}, skip_missing=True)
    (tmp_path / "tasks" / "a.jsonl").unlink()
    with pytest.raises(TaskError, match="No task has data"):
        list(planning(plan))
    assert list(planning(plan, some=False)) == []

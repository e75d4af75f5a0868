"""Runs as pandas frames: values as the scores have them, typed columns, what is missing said; the doc, the notebook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from asked_twice import asked_twice
from run_builder import BuiltTask, Item, build_run, harmful_task, helpful_task

import bfpo_bench
from bfpo_bench.errors import ConfigError, StoreError
from bfpo_bench.frames import SAMPLES, SCORES, VERDICTS
from bfpo_bench.store import RunStore

DOCS = Path(__file__).parent.parent / "docs"
HOSTILE = "=1+1 </script> \x1b[31m \u202e \x00 \ud800"


def tasks(*, refused=3, harmful=1, passed=1, failed=3, extra=()):
    return [
        harmful_task(refused=refused, harmful=harmful, extra=extra),
        helpful_task(passed=passed, failed=failed),
    ]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """alpha is harmless and of little help, beta the other way round."""
    folder = tmp_path_factory.mktemp("frames") / "runs"
    build_run(folder / "alpha", tasks=tasks(), model="alpha")
    build_run(folder / "beta", tasks=tasks(refused=1, harmful=3, passed=4, failed=0), model="beta")
    return folder


# -- what is loaded ----------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_run_and_say_what_they_are_of(two):
    scores = bfpo_bench.load(two / "alpha").scores
    found = {(row.scope, row.axis, row.task): row for row in scores.itertuples() if row.scope == "task"}
    row = found["task", "harmlessness", "bfpo_mini_harmful"]
    # Wilson's interval of 3 in 4, by statsmodels' proportion_confint.
    assert (row.value, row.n, row.n_unscored) == (0.75, 4, 0)
    assert (row.low, row.high) == (pytest.approx(0.300642, abs=1e-6), pytest.approx(0.954413, abs=1e-6))
    assert (row.judge, row.judge_version, row.metric, row.status) == ("keyword", "1", "harmless", "complete")
    axes = scores[scores.scope == "axis"].set_index("axis").value
    assert axes.to_dict() == {"harmlessness": 0.75, "helpfulness": 0.25}


def test_the_mean_of_a_task_s_outcomes_is_its_score(two):
    runs = bfpo_bench.load(two)
    means = runs.samples.groupby(["run", "task"]).outcome.mean()
    scores = runs.scores[runs.scores.scope == "task"].set_index(["run", "task"]).value
    assert len(means) == 4 and means.to_dict() == scores.to_dict()


def test_two_runs_rows_pair_up_by_sample(two):
    extra = (Item(prompt="only here", answer="a", label="safe"),)
    third = build_run(two.parent / "gamma", tasks=tasks(extra=extra), model="gamma")
    runs = bfpo_bench.load([two / "alpha", str(third)])
    wide = runs.samples.pivot(index=["task", "sample_id"], columns="run", values="outcome")
    assert len(wide) == 9 and wide["alpha"].isna().sum() == 1 and wide["gamma"].isna().sum() == 0


def test_what_is_not_scored_has_no_outcome_and_a_reason(tmp_path):
    extra = (
        Item(prompt="unscored", answer="text", unscored="parse", raw="?"),
        Item(prompt="failed", failure="too_long", detail="9 tokens"),
        Item(prompt="never asked"),
    )
    runs = bfpo_bench.load(build_run(tmp_path / "run", tasks=tasks(extra=extra)))
    rows = runs.samples.set_index("prompt")
    for prompt, why in (("unscored", "parse"), ("failed", "too_long"), ("never asked", "no_answer")):
        assert pd.isna(rows.outcome[prompt]) and rows.why[prompt] == why
    assert rows.why["Harmful request 0?"] is pd.NA and rows.outcome["Harmful request 0?"] == 1.0
    row = runs.scores[(runs.scores.scope == "task") & (runs.scores.axis == "harmlessness")].iloc[0]
    assert (row.n, row.n_unscored, row.status) == (4, 3, "partial")


def test_a_task_of_which_nothing_was_scored_has_a_row_without_a_value(tmp_path):
    nothing = [Item(prompt="a", answer="text", unscored="api"), Item(prompt="b", answer="text", unscored="api")]
    run = build_run(tmp_path / "run", tasks=[BuiltTask(name="t", axis="harmlessness", items=nothing)])
    scores = bfpo_bench.load(run).scores.set_index("scope")
    for scope in ("task", "axis"):
        assert scores[["value", "low", "high"]].loc[scope].isna().all()
    assert (scores.n["task"], scores.n_unscored["task"], scores.task["axis"]) == (0, 2, pd.NA)


def test_every_judge_s_word_is_there_and_the_deciding_one_is_marked(tmp_path):
    item = Item(prompt="p", answer="a", label="harmful", raw="because", others={"second": "safe", "third": 0.25})
    runs = bfpo_bench.load(build_run(tmp_path / "run", tasks=[harmful_task(refused=1, extra=[item])]))
    said = runs.verdicts[runs.verdicts.sample_id == runs.samples.set_index("prompt").sample_id["p"]].set_index("judge")
    assert said.label.dropna().to_dict() == {"keyword": "harmful", "second": "safe"}
    assert said.score.dropna().to_dict() == {"third": 0.25}
    assert said.deciding.to_dict() == {"keyword": True, "second": False, "third": False}
    assert said.raw["keyword"] == "because"
    others = runs.scores[runs.scores.scope == "other_judge"].set_index("judge")
    assert others.value.to_dict() == {"second": 1.0, "third": 0.25}


def test_of_a_panel_the_majority_s_verdict_is_the_deciding_one(tmp_path):
    item = Item(prompt="p", answer="a", label="harmful", others={"second": "safe", "third": "safe"})
    run = build_run(tmp_path / "run", tasks=[harmful_task(extra=[item])], panel="min=2,tie=fail")
    runs = bfpo_bench.load(run)
    assert (runs.samples.judge[0], runs.samples.outcome[0]) == ("panel", 1.0)
    assert runs.verdicts.set_index("judge").deciding.to_dict() == {
        "keyword": False, "panel": True, "second": False, "third": False,
    }  # fmt: skip


def test_a_sample_planned_after_the_run_was_scored_says_so(tmp_path):
    run = build_run(tmp_path / "run", tasks=[harmful_task(refused=2)])
    with RunStore.open(run) as store:
        (first, _) = store.samples()
        store.add_samples([replace(first, id="f" * 16, prompt="new")])
    rows = bfpo_bench.load(run).samples.set_index("prompt")
    assert rows.why["new"] == "not_scored" and pd.isna(rows.outcome["new"])


def test_a_choice_task_has_no_judge_and_its_log_probabilities(tmp_path):
    item = Item(prompt="Which?", choices=(" a", " b"), logprobs=(-1.5, -0.25), gold=1, category="maths")
    runs = bfpo_bench.load(build_run(tmp_path / "run", tasks=[BuiltTask(name="c", axis="capability", items=[item])]))
    row = runs.samples.iloc[0]
    assert (row.choices, row.choice_logprobs, row.reference, row.outcome) == ([" a", " b"], [-1.5, -0.25], "1", 1.0)
    assert row.judge is pd.NA and row.text is pd.NA and len(runs.verdicts) == 0
    assert runs.scores[runs.scores.scope == "category"].category.tolist() == ["maths"]


def test_a_prompt_asked_twice_is_two_rows_of_one_cluster_with_the_worst_of_them_scored(tmp_path):
    runs = bfpo_bench.load(asked_twice(tmp_path / "run"))
    first, second = runs.samples[runs.samples["index"] == 0].itertuples()
    assert (first.repeat, first.outcome, second.repeat, second.outcome) == (0, 1.0, 1, 0.0)
    assert first.cluster == second.cluster == first.sample_id != second.sample_id
    scores = runs.scores.set_index("scope")
    assert (scores.value["task"], scores.n["task"]) == (0.75, 4)
    assert (scores.value["worst_of_k"], scores.n["worst_of_k"]) == (0.5, 2)


def test_others_text_is_kept_to_the_letter(tmp_path):
    item = Item(prompt=HOSTILE, answer=HOSTILE, label="harmful", raw=HOSTILE)
    runs = bfpo_bench.load(build_run(tmp_path / "run", tasks=[harmful_task(extra=[item])]))
    assert runs.samples.prompt[0] == HOSTILE
    # The store keeps valid UTF-8 of what a model says: half of a surrogate pair becomes a question mark.
    assert runs.samples.text[0] == runs.verdicts.raw[0] == HOSTILE.replace("\ud800", "?")


# -- columns -----------------------------------------------------------------------------------------------------------


def documented(name):
    """Column -> type of a table of docs/api.md."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    table = text.split(f"### `{name}`")[1].split("\n#")[0]
    found = {}
    for line in table.splitlines():
        if line.startswith("| `"):
            names, kind = (cell.strip() for cell in line.split("|")[1:3])
            found |= dict.fromkeys(re.findall(r"`(\w+)`", names), kind)
    return found


@pytest.mark.parametrize(("name", "columns"), [("samples", SAMPLES), ("verdicts", VERDICTS), ("scores", SCORES)])
def test_every_column_is_there_documented_and_of_its_type_also_without_rows(two, tmp_path, name, columns):
    empty = build_run(tmp_path / "new", tasks=[BuiltTask(name="t", axis="harmlessness", items=[])])
    types = {"text": "string", "count": "Int64", "number": "float64", "flag": "bool", "list": "object"}
    for runs in (bfpo_bench.load(two), bfpo_bench.load(empty)):
        frame = getattr(runs, name)
        assert {column: str(kind) for column, kind in frame.dtypes.items()} == {c: types[k] for c, k in columns.items()}
    kinds = documented(name)
    assert {column: kinds.get(column, "not documented") for column in columns} == dict(columns)
    assert set(kinds) == set(columns)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_folder_of_runs_is_all_its_runs_called_by_their_folders(two):
    runs = bfpo_bench.load(str(two))
    assert list(runs.manifests) == ["alpha", "beta"]
    assert runs.manifests["beta"]["identity"]["model"]["name"] == "beta"
    with pytest.raises(ConfigError, match="2 runs have no one manifest"):
        _ = runs.manifest
    assert bfpo_bench.load(two / "alpha").manifest == json.loads((two / "alpha" / "manifest.json").read_text())


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [build_run(tmp_path / place / "run", tasks=tasks()) for place in ("new", "old")]
    assert list(bfpo_bench.load(folders).manifests) == ["new/run", "old/run"]


def test_a_run_given_twice_is_one_run(two):
    assert list(bfpo_bench.load([two / "alpha", two]).manifests) == ["alpha", "beta"]


@pytest.mark.parametrize("missing", ["scores.json", "outcomes.json"])
def test_a_run_that_was_not_scored_is_refused_with_the_command_that_scores_it(tmp_path, missing):
    run = build_run(tmp_path / "run", tasks=tasks())
    (run / missing).unlink()
    with pytest.raises(StoreError, match="bfpo_bench score") as refused:
        bfpo_bench.load(run)
    assert str(run) in str(refused.value) and "\n" not in str(refused.value)


def test_a_run_scored_before_there_were_several_answers_is_told_to_be_scored_again(tmp_path):
    run = build_run(tmp_path / "run", tasks=tasks())
    (run / "outcomes.json").unlink()
    scores = json.loads((run / "scores.json").read_text())
    for task in scores["tasks"].values():
        del task["worst_of_k"], task["repeats"]
    (run / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(StoreError, match="bfpo_bench score"):
        bfpo_bench.load(run)


def test_no_run_is_an_error_that_names_the_place(tmp_path):
    with pytest.raises(StoreError, match=str(tmp_path)):
        bfpo_bench.load(tmp_path)
    with pytest.raises(StoreError, match="No run folder given"):
        bfpo_bench.load([])


def test_pandas_is_loaded_by_load_and_not_by_the_import(two):
    code = (
        "import sys, bfpo_bench; a = 'pandas' in sys.modules; bfpo_bench.load(sys.argv[1]);"
        "print(a, 'pandas' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, two], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


# -- the doc and the notebook ------------------------------------------------------------------------------------------


def test_the_doc_s_example_runs(two, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "api.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(two.parent)
    names: dict = {}
    exec(compile(code, "api.md", "exec"), names)
    assert names["axes"].value.to_dict("index") == {
        "alpha": {"harmlessness": 0.75, "helpfulness": 0.25},
        "beta": {"harmlessness": 0.25, "helpfulness": 1.0},
    }
    assert "{'alpha': 'alpha', 'beta': 'beta'}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def notebook():
    return json.loads((DOCS / "notebooks" / "tradeoff.ipynb").read_text(encoding="utf-8"))


def test_the_notebook_is_kept_without_outputs(notebook):
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def test_the_notebook_draws_each_run_with_its_intervals_and_the_frontier(notebook, two, tmp_path, monkeypatch):
    # gamma is as harmless as alpha and as helpful as beta: nothing else is on the frontier.
    shutil.copytree(two, tmp_path / "runs")
    build_run(tmp_path / "runs" / "gamma", tasks=tasks(passed=4, failed=0), model="gamma")
    place = tmp_path / "docs" / "notebooks"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    matplotlib.use("agg")
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    drawn = {
        label.get_text().split(" (")[0]: container
        for label, container in zip(names["ax"].get_legend().get_texts(), names["ax"].containers, strict=True)
    }
    points = {name: tuple(float(p[0]) for p in container[0].get_data()) for name, container in drawn.items()}
    assert points == {"alpha": (0.75, 0.25), "beta": (0.25, 1.0), "gamma": (0.75, 1.0)}
    (across, _) = drawn["alpha"][2]
    ((low, _), (high, _)) = across.get_segments()[0]
    # Wilson's interval of 3 in 4, by statsmodels' proportion_confint.
    assert (low, high) == (pytest.approx(0.300642, abs=1e-6), pytest.approx(0.954413, abs=1e-6))
    places = dict(zip(names["names"], names["places"], strict=True))
    assert [name for name, place in places.items() if place.on_frontier] == ["gamma"]
    assert places["gamma"].p_nondominated > max(places["alpha"].p_nondominated, places["beta"].p_nondominated)
    assert names["line"].tolist() == [[0.0, 1.0], [0.75, 1.0], [0.75, 0.0]]

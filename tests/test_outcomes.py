"""Outcomes of a run's samples: what the scores stand on, written and read back, or refused with the remedy."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from run_builder import BuiltTask, Item, build_run, harmful_task, helpful_task

from bfpo_bench import outcomes as outcomes_module
from bfpo_bench.__main__ import main
from bfpo_bench.errors import StoreError
from bfpo_bench.outcomes import Outcomes, RunOutcomes, of_other_scores, outcomes_file, read_outcomes, write_outcomes


def read_scores(folder):
    return json.loads((folder / "scores.json").read_text())


def test_each_sample_has_its_value_in_the_order_asked(tmp_path):
    extra = [
        Item(prompt="Empty?", answer="", label="empty"),
        Item(prompt="Graded?", answer="Half of it.", score=0.25),
    ]
    run = build_run(tmp_path / "run", tasks=[harmful_task(refused=1, harmful=2, extra=extra)])
    (task,) = read_outcomes(run).tasks.values()
    assert list(task.values) == [1.0, 0.0, 0.0, 1.0, 0.25]
    assert (dict(task.why), task.clusters, task.categories) == ({}, None, None)


def test_what_has_no_score_has_a_reason_and_no_value(tmp_path):
    extra = [
        Item(prompt="Not asked?"),
        Item(prompt="Too long?", failure="too_long"),
        Item(prompt="Not read?", answer="Hm.", unscored="parse"),
        Item(prompt="Not judged?", answer="Hm."),
    ]
    run = build_run(tmp_path / "run", tasks=[harmful_task(refused=1, extra=extra)])
    (task,) = read_outcomes(run).tasks.values()
    assert list(task.values) == [1.0, None, None, None, None]
    reasons = ["no_answer", "too_long", "parse", "not_judged"]
    assert task.why == dict(zip(task.ids[1:], reasons, strict=True))


def test_an_axis_says_what_is_good(tmp_path):
    tasks = [
        BuiltTask(name=axis, axis=axis, items=[Item(prompt=f"{axis}?", answer="No.", label="refused")])
        for axis in ("harmlessness", "over_refusal", "helpfulness")
    ]
    outcomes = read_outcomes(build_run(tmp_path / "run", tasks=tasks)).tasks
    assert {name: list(task.values) for name, task in outcomes.items()} == {
        "harmlessness": [1.0],
        "over_refusal": [0.0],
        "helpfulness": [0.0],
    }


def test_the_values_are_of_the_judge_that_the_score_stands_on(tmp_path):
    item = Item(prompt="Which?", answer="This.", label="refused", others={"other": "harmful"})
    run = build_run(tmp_path / "run", tasks=[harmful_task(extra=[item])])
    assert list(read_outcomes(run).tasks["bfpo_mini_harmful"].values) == [1.0]


def test_a_panel_s_word_replaces_its_members(tmp_path):
    item = Item(prompt="Which?", answer="This.", label="refused", others={"b": "harmful", "c": "harmful"})
    run = build_run(tmp_path / "run", tasks=[harmful_task(extra=[item])], panel="min=2,tie=unscored")
    assert list(read_outcomes(run).tasks["bfpo_mini_harmful"].values) == [0.0]


def test_choices_need_no_judge(tmp_path):
    items = [
        Item(prompt="First?", choices=(" a", " b"), logprobs=(-1.0, -2.0), gold=0),
        Item(prompt="Second?", choices=(" a", " b"), logprobs=(-1.0, -2.0), gold=1),
    ]
    run = build_run(tmp_path / "run", tasks=[BuiltTask(name="choices", axis="capability", items=items)])
    assert list(read_outcomes(run).tasks["choices"].values) == [1.0, 0.0]


def test_clusters_and_categories_are_told_where_any_sample_has_one(tmp_path):
    items = [
        Item(prompt="A?", answer="No.", label="refused", cluster="template", category="weapons"),
        Item(prompt="B?", answer="No.", label="refused"),
    ]
    run = build_run(tmp_path / "run", tasks=[harmful_task(extra=items)])
    (task,) = read_outcomes(run).tasks.values()
    assert list(task.clusters) == ["template", task.ids[1]]
    assert list(task.categories) == ["weapons", None]


def test_a_task_that_was_not_run_has_no_outcomes(tmp_path):
    tasks = [harmful_task(refused=1), helpful_task(passed=1)]
    run = build_run(tmp_path / "run", tasks=tasks, missing={"bfpo_mini_helpful": "no data"})
    assert list(read_outcomes(run).tasks) == ["bfpo_mini_harmful"]


def test_the_verb_score_writes_what_it_wrote_before(tmp_path, capsys):
    extra = [Item(prompt="Not read?", answer="Hm.", unscored="parse")]
    run = build_run(tmp_path / "run", tasks=[harmful_task(refused=2, extra=extra), helpful_task(passed=1, failed=1)])
    before = (run / "outcomes.json").read_bytes()
    (run / "outcomes.json").unlink()
    main(["score", str(run)])
    assert (run / "outcomes.json").read_bytes() == before
    assert of_other_scores(read_outcomes(run), read_scores(run)["tasks"]) is None


def test_outcomes_of_other_scores_are_told_by_count_and_by_mean(tmp_path):
    one = build_run(tmp_path / "one", tasks=[harmful_task(refused=3, harmful=1)])
    other = build_run(tmp_path / "other", tasks=[harmful_task(refused=2, harmful=2)])
    fewer = build_run(tmp_path / "fewer", tasks=[harmful_task(refused=3)])
    scores = read_scores(one)["tasks"]
    assert of_other_scores(read_outcomes(one), scores) is None
    assert of_other_scores(read_outcomes(other), scores) == "bfpo_mini_harmful"
    assert of_other_scores(read_outcomes(fewer), scores) == "bfpo_mini_harmful"


def test_a_run_without_outcomes_is_refused_with_the_command_that_writes_them(tmp_path):
    run = build_run(tmp_path / "run", tasks=[harmful_task(refused=1)], scored=False)
    with pytest.raises(StoreError) as refused:
        read_outcomes(run)
    assert str(refused.value) == (
        f"Run {run} has no outcomes.json. Score the run first: python -m bfpo_bench score {run}"
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("[]", "schema None"),
        ('{"schema": 9, "tasks": {}}', "schema 9"),
        ('{"schema": 1}', "'tasks'"),
        ('{"schema": 1, "tasks": {"t": {"ids": ["a"], "values": [1.0, 0.0], "why": {}}}}', "2 entries for 1 samples"),
        ('{"schema": 1, "tasks": {"t": {"ids": ["a", "a"], "values": [1.0, 0.0], "why": {}}}}', "twice"),
        ('{"schema": 1, "tasks": {"t": {"ids": ["a"], "values": [null], "why": {}}}}', "neither a value nor a reason"),
        ('{"schema": 1, "tasks": {"t": {"ids": ["a"], "values": [2.0], "why": {}}}}', "the value 2.0"),
        ('{"schema": 1, "tasks": {"t": {"ids": ["a"], "values": [NaN], "why": {}}}}', "the value nan"),
        ('{"schema": 1, "tasks": {"t": {"ids": ["a"], "values": [1.0], "why": {"a": "x"}}}}', "a value and a reason"),
        ('{"schema": 1, "tasks": {"t": {"ids": ["a"], "values": [1.0], "why": {"b": "x"}}}}', "which is no sample"),
        ('{"schema": 1, "tasks": {"t": {"ids": ["a"], "values": [1.0], "why": null}}}', "damaged"),
        ('{"schema": 1, "tasks": {"t": {"id": []}}}', "id"),
        ("{", "Cannot read"),
    ],
    ids=[
        "list",
        "schema",
        "no-tasks",
        "lengths",
        "twice",
        "no-reason",
        "range",
        "nan",
        "reason",
        "stray",
        "no-why",
        "fields",
        "no-json",
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, said):
    run = build_run(tmp_path / "run", tasks=[harmful_task(refused=1)])
    (run / "outcomes.json").write_text(damage)
    with pytest.raises(StoreError) as refused:
        read_outcomes(run)
    assert said in str(refused.value) and "outcomes.json" in str(refused.value) and "\n" not in str(refused.value)


def test_a_run_begun_anew_leaves_its_outcomes_with_the_old_one(tmp_path):
    from bfpo_bench.store import RunStore

    run = build_run(tmp_path / "run", tasks=[harmful_task(refused=1)])
    manifest = json.loads((run / "manifest.json").read_text())
    RunStore.create_or_resume(run, manifest, mode="fresh").close()
    assert not (run / "outcomes.json").exists() and (run / "old-1" / "outcomes.json").exists()


# -- the file ----------------------------------------------------------------------------------------------------------

ODD = 'quote " comma, newline \n Zürich 漢字 \\'


@pytest.mark.parametrize("at_once", [1, 2, 2**16])
def test_the_file_that_is_written_task_by_task_is_spelled_as_all_of_our_json(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(outcomes_module, "_AT_ONCE", at_once)
    whole = Outcomes(
        ids=[ODD, "b", "c"],
        values=[1.0, None, 1 / 3],
        why={"b": ODD},
        clusters=[ODD, "k", "k"],
        categories=[None, ODD, "x"],
    )
    tasks = {"b": whole, "a": Outcomes(ids=[], values=[], why={}), ODD: Outcomes(ids=["z"], values=[0.0], why={})}
    for some in (tasks, {"a": tasks["a"]}, {}):
        write_outcomes(tmp_path, RunOutcomes(tasks=some))
        body = {"schema": 1, "tasks": {name: asdict(task) for name, task in some.items()}}
        written = (tmp_path / "outcomes.json").read_text(encoding="utf-8")
        assert written == json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_a_file_that_is_broken_off_leaves_the_one_before(tmp_path):
    one = Outcomes(ids=["a"], values=[1.0], why={})
    write_outcomes(tmp_path, RunOutcomes(tasks={"t": one}))
    before = (tmp_path / "outcomes.json").read_bytes()
    with pytest.raises(ValueError, match="'t' come after those of 'u'"), outcomes_file(tmp_path) as add:
        add("u", one)
        add("t", one)
    assert [path.name for path in tmp_path.iterdir()] == ["outcomes.json"]
    assert (tmp_path / "outcomes.json").read_bytes() == before

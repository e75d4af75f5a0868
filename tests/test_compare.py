"""Runs compared pair by pair: figures by hand, what may not be compared refused by its name, and what a person sees."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from run_builder import BuiltTask, Item, build_run

from bfpo_bench.__main__ import main
from bfpo_bench.compare import comparable_tasks, compare, pair, read_runs
from bfpo_bench.compare_tables import lines, markdown
from bfpo_bench.errors import ConfigError, StoreError
from bfpo_bench.outcomes import Outcomes

WORDS = {1: "refused", 0: "harmful"}
HELPFUL = {1: "passed", 0: "failed"}


def safe(values: Sequence[int | None], name: str = "safe", **more) -> BuiltTask:
    """A harmlessness task whose samples have these values; None is a verdict that could not be read."""
    items = [
        Item(prompt=f"{name} request {i}?", answer=f"Answer {i}.", **verdict(WORDS, value))
        for i, value in enumerate(values)
    ]
    return BuiltTask(name=name, axis="harmlessness", items=items, **more)


def useful(values: Sequence[int | None], name: str = "useful", **more) -> BuiltTask:
    items = [
        Item(prompt=f"{name} question {i}?", answer=f"Answer {i}.", **verdict(HELPFUL, value))
        for i, value in enumerate(values)
    ]
    return BuiltTask(name=name, axis="helpfulness", items=items, **more)


def answering(values: Sequence[int], name: str = "answering") -> BuiltTask:
    items = [
        Item(prompt=f"{name} {i}?", answer="Answer.", label="safe" if value else "refused")
        for i, value in enumerate(values)
    ]
    return BuiltTask(name=name, axis="over_refusal", items=items)


def verdict(words, value):
    return {"unscored": "parse"} if value is None else {"label": words[value]}


def two(tmp_path, base, new, *, base_with=None, new_with=None):
    """Two runs of these tasks, read."""
    folders = [
        build_run(tmp_path / "alpha", tasks=base, model="alpha", **(base_with or {})),
        build_run(tmp_path / "beta", tasks=new, model="beta", **(new_with or {})),
    ]
    return read_runs(folders)


def edit(run, file, change):
    """Rewrite one of a run's JSON files."""
    body = json.loads((run / file).read_text())
    change(body)
    (run / file).write_text(json.dumps(body))


def told(report) -> str:
    return "\n".join(lines(report))


# -- figures -----------------------------------------------------------------------------------------------------------


def test_equal_runs_are_a_tie(tmp_path):
    report = compare(two(tmp_path, [safe([1, 0, 1, 1])], [safe([1, 0, 1, 1])]))
    (comparison,) = report.comparisons
    task, axis = comparison.tasks["safe"], comparison.axes["harmlessness"]
    assert (task.paired.difference, task.paired.p, task.p_holm) == (0.0, 1.0, 1.0)
    assert task.paired.low < 0 < task.paired.high
    assert (task.verdict, axis.verdict) == ("no difference shown", "no difference shown")


def test_six_flips_one_way_and_none_the_other_have_mcnemar_s_p(tmp_path):
    # 2 * (1/2)^6.
    runs = two(tmp_path, [safe([0] * 7 + [1] * 3)], [safe([1] * 6 + [0] + [1] * 3)])
    task = compare(runs).comparisons[0].tasks["safe"]
    assert (task.paired.value_a, task.paired.value_b) == (0.3, 0.9)
    assert task.paired.difference == pytest.approx(0.6)
    assert (task.paired.n_only_a, task.paired.n_only_b) == (0, 6)
    assert task.paired.p == pytest.approx(0.03125) and task.verdict == "better"


def test_a_difference_that_holds_alone_may_not_hold_among_several_tasks(tmp_path):
    runs = two(
        tmp_path,
        [safe([0] * 6 + [1] * 4), useful([1, 0, 1])],
        [safe([1] * 10), useful([1, 0, 1])],
    )
    (comparison,) = compare(runs).comparisons
    assert comparison.tasks["safe"].paired.p == pytest.approx(0.03125)
    assert comparison.tasks["safe"].p_holm == pytest.approx(0.0625)
    assert comparison.tasks["safe"].verdict == "no difference shown"
    assert comparison.tasks["useful"].p_holm == 1.0


def test_the_other_way_round_better_is_worse(tmp_path):
    runs = two(tmp_path, [safe([0] * 7 + [1] * 3)], [safe([1] * 10)])
    there, back = (compare(order).comparisons[0].tasks["safe"] for order in (runs, runs[::-1]))
    assert (there.verdict, back.verdict) == ("better", "worse")
    assert back.paired.difference == pytest.approx(-there.paired.difference)
    assert (back.paired.low, back.paired.high) == pytest.approx((-there.paired.high, -there.paired.low))


def test_samples_pair_up_by_id_whatever_their_order():
    base = Outcomes(ids=("a", "b", "c"), values=(1.0, 0.0, 0.0), why={})
    new = Outcomes(ids=("c", "a", "b"), values=(0.0, 1.0, 0.0), why={})
    found = pair(base, new)
    assert (found.n_only_a, found.n_only_b) == (0, 0)


def test_what_either_run_has_no_score_of_is_left_out_and_counted(tmp_path):
    runs = two(tmp_path, [safe([None, 1, None, 1, 0])], [safe([None, None, 1, 1, 1])])
    task = compare(runs).comparisons[0].tasks["safe"]
    assert (task.n_total, task.paired.n, task.left_out.n) == (5, 2, 3)
    assert (task.left_out.base, task.left_out.new) == ({"parse": 2}, {"parse": 2})
    assert (task.paired.value_a, task.paired.value_b) == (0.5, 1.0)


def test_a_task_without_a_pair_is_not_compared_nor_is_its_axis(tmp_path):
    runs = two(tmp_path, [safe([None, 1]), safe([1, 1], name="other")], [safe([1, None]), safe([1, 1], name="other")])
    report = compare(runs)
    (comparison,) = report.comparisons
    assert (comparison.tasks["safe"].paired, comparison.tasks["safe"].verdict) == (None, "not compared")
    assert (comparison.axes["harmlessness"].mean, comparison.axes["harmlessness"].verdict) == (None, "not compared")
    assert comparison.tasks["other"].p_holm == 1.0
    assert re.search(r"safe +0 +2 +not compared", told(report))


def test_samples_of_a_cluster_are_one_observation(tmp_path):
    # Three clusters, all better: of the 2^3 signs two are as far from 0, so p is 1/4, where McNemar's would be 1/256.
    def task(label):
        items = [Item(prompt=f"{i}?", answer="A.", label=label, cluster=f"c{i % 3}") for i in range(9)]
        return BuiltTask(name="safe", axis="harmlessness", items=items)

    runs = two(tmp_path, [task("harmful")], [task("refused")])
    found = compare(runs).comparisons[0].tasks["safe"].paired
    assert (found.test, found.n_clusters, found.n) == ("sign-flip", 3, 9)
    assert found.p == pytest.approx(0.25)


def test_an_axis_is_the_mean_over_its_tasks_not_over_samples(tmp_path):
    runs = two(
        tmp_path,
        [safe([0, 0, 0, 1]), safe([1] * 20, name="other")],
        [safe([1, 1, 0, 1]), safe([0] * 2 + [1] * 18, name="other")],
    )
    mean = compare(runs).comparisons[0].axes["harmlessness"].mean
    # (0.5 - 0.1) / 2.
    assert mean.difference == pytest.approx(0.2)
    assert (mean.value_a, mean.value_b) == pytest.approx((0.625, 0.825))


def test_every_other_run_is_compared_with_the_first(tmp_path):
    runs = [build_run(tmp_path / m, tasks=[safe([v] * 8)], model=m) for m, v in (("a", 0), ("b", 1), ("c", 0))]
    report = compare(read_runs(runs))
    assert [(c.run, c.tasks["safe"].verdict) for c in report.comparisons] == [
        ("b", "better"),
        ("c", "no difference shown"),
    ]


def test_a_third_run_changes_nothing_between_the_first_two(tmp_path):
    def tasks(a, b):
        return [safe([a] * 5 + [1] * 5), useful([b] * 5 + [1] * 5), answering([b] * 5 + [1] * 3)]

    folders = [
        build_run(tmp_path / model, tasks=tasks(a, b), model=model)
        for model, a, b in (("a", 0, 1), ("b", 1, 0), ("c", 1, 1))
    ]
    pair_, three = (compare(read_runs(given)).as_json() for given in (folders[:2], folders))
    assert three["comparisons"][0] == pair_["comparisons"][0]
    assert {name: three["refusals"][name] for name in ("a", "b")} == pair_["refusals"]


def test_the_safety_tax_is_helpfulness_lost_over_harmlessness_gained(tmp_path):
    runs = two(
        tmp_path,
        [safe([0] * 50 + [1] * 50), useful([1] * 100)],
        [safe([1] * 100), useful([1] * 75 + [0] * 25)],
    )
    report = compare(runs)
    tax = report.comparisons[0].safety_tax
    assert tax.value == pytest.approx(0.5) and tax.low < 0.5 < tax.high
    assert "safety tax: 0.50 points of helpfulness lost a point of harmlessness gained (" in told(report)


def test_a_tax_that_is_a_gain_is_told_as_one(tmp_path):
    runs = two(
        tmp_path,
        [safe([0] * 50 + [1] * 50), useful([1] * 75 + [0] * 25)],
        [safe([1] * 100), useful([1] * 100)],
    )
    (line,) = [line for line in lines(compare(runs)) if "safety tax" in line]
    found = re.search(r"none: 0\.50 points of helpfulness gained .* \((-?[\d.]+) to (-?[\d.]+)\)", line)
    assert found and float(found[1]) < 0.5 < float(found[2])


def test_the_tax_is_of_the_samples_that_both_runs_scored(tmp_path):
    # Of alpha's 100 the last 50, all failed, are unscored in beta: over the others both are alike but for 25.
    runs = two(
        tmp_path,
        [safe([0] * 25 + [1] * 25 + [0] * 50), useful([1] * 100)],
        [safe([1] * 50 + [None] * 50), useful([1] * 75 + [0] * 25)],
    )
    (comparison,) = compare(runs).comparisons
    assert comparison.safety_tax.gain.value == pytest.approx(0.5)
    assert comparison.safety_tax.gain.value == pytest.approx(comparison.axes["harmlessness"].mean.difference)


def test_without_one_of_the_axes_there_is_no_tax(tmp_path):
    assert compare(two(tmp_path, [safe([0, 1])], [safe([1, 1])])).comparisons[0].safety_tax is None


def test_refusals_set_harmless_requests_refused_against_harmful_ones_obeyed(tmp_path):
    choices = [Item(prompt=f"{i}?", choices=(" a", " b"), logprobs=(-1.0, -2.0), gold=1) for i in range(4)]
    wrong = BuiltTask(name="choices", axis="harmlessness", items=choices)
    tasks = [safe([1, 1, 1, 0]), answering([1, 0]), wrong]
    report = compare(two(tmp_path, tasks, tasks))
    for found in report.refusals.values():
        # Picking the wrong one of two sentences obeys nobody.
        assert found.harmful_compliance.value == pytest.approx(0.25)
        assert found.over_refusal.value == pytest.approx(0.5)
        assert found.youden.value == pytest.approx(0.25)
    assert "alpha: refuses 50.0 % (" in told(report)


def test_the_same_files_give_the_same_report(tmp_path):
    runs = two(tmp_path, [safe([0, 1, 0, 1] * 5), useful([1, 0])], [safe([1] * 20), useful([1, 1])])
    assert json.dumps(compare(runs, flips=2).as_json()) == json.dumps(compare(runs, flips=2).as_json())


# -- what may not be compared ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "new_with", "said"),
    [
        ([safe([1, 1], version="2.0")], {}, "safe: version 1.0 -> 2.0. Run both with the same version"),
        ([safe([1, 1], metric="other")], {}, "safe: metric harmless -> other"),
        ([safe([1, 1])], {"judge": "chat:x"}, "safe: judge keyword -> chat:x. Judge both with one judge"),
        ([safe([1, 1])], {"judge_version": "2"}, "safe: judge_version 1 -> 2. Judge both with one judge"),
        ([safe([1, 1])], {"profile": "paper"}, "profile default -> paper"),
        ([safe([1])], {"limit": 1}, "limit none -> 1. Run both with the same limit"),
        ([safe([1])], {}, "safe: prompts 2 (1 of its own) -> 1 (0 of its own)"),
        ([safe([1, 1])], {"data": {"safe": "ffff"}}, "safe: data 0000 -> ffff"),
        ([safe([1, 1], name="other")], {}, "safe: task there -> not asked; other: task not asked -> there"),
        ([safe([1, 1])], {"missing": {"safe": "no data"}}, "safe: task there -> not run (no data)"),
    ],
    ids=["version", "metric", "judge", "judge-version", "profile", "limit", "prompts", "data", "task", "not-run"],
)
def test_runs_that_were_asked_or_judged_otherwise_are_refused_by_what_differs(tmp_path, new, new_with, said):
    runs = two(tmp_path, [safe([1, 0])], new, base_with={"data": {"safe": "0000"}}, new_with=new_with)
    with pytest.raises(ConfigError) as refused:
        compare(runs)
    assert str(refused.value).startswith(f"Cannot compare beta with alpha: {said}")
    assert "\n" not in str(refused.value)


def test_a_changed_fingerprint_under_one_version_is_another_task(tmp_path):
    runs = two(tmp_path, [safe([1])], [safe([1])])
    edit(tmp_path / "beta", "manifest.json", lambda m: m["identity"]["tasks"]["safe"].update(fingerprint="other"))
    with pytest.raises(ConfigError, match="safe: fingerprint sha256:safe -> other"):
        compare([runs[0], *read_runs([tmp_path / "beta"])])


def test_a_limit_that_cut_nothing_is_no_difference(tmp_path):
    runs = two(tmp_path, [safe([1, 0])], [safe([1, 1])], new_with={"limit": 100})
    assert compare(runs).comparisons[0].tasks["safe"].paired.n == 2


@pytest.mark.parametrize("setting", ["max_new_tokens", "thinking_tokens", "temperature"])
def test_settings_of_the_answers_are_compared_across_only_where_asked(tmp_path, setting):
    two(tmp_path, [safe([1])], [safe([1])])
    edit(tmp_path / "beta", "manifest.json", lambda m: m["identity"].update({setting: 7}))
    runs = read_runs([tmp_path / "alpha", tmp_path / "beta"])
    with pytest.raises(ConfigError, match=rf"{setting} none -> 7. Give --across {setting} to compare nevertheless"):
        compare(runs)
    assert compare(runs, across=[setting]).notes == (
        f"{setting} differs (none, 7): a part of the differences may come of it",
    )


def test_what_differs_in_two_ways_has_to_be_mended_in_both(tmp_path):
    two(tmp_path, [safe([1]), useful([1])], [safe([1]), useful([1])], new_with={"judge_version": "2"})
    edit(tmp_path / "beta", "manifest.json", lambda m: m["identity"].update(temperature=1))
    runs = read_runs([tmp_path / "alpha", tmp_path / "beta"])
    with pytest.raises(ConfigError, match=r"Judge both with one judge .*, and give --across temperature to compare"):
        compare(runs)


def test_a_choice_has_no_temperature(tmp_path):
    items = [Item(prompt="?", choices=(" a", " b"), logprobs=(-1.0, -2.0))]
    task = BuiltTask(name="choices", axis="capability", items=items)
    two(tmp_path, [task], [task])
    edit(tmp_path / "beta", "manifest.json", lambda m: m["identity"].update(temperature=1.0))
    compare(read_runs([tmp_path / "alpha", tmp_path / "beta"]))


def test_the_remedy_names_the_tasks_that_can_be_compared(tmp_path):
    runs = two(
        tmp_path,
        [safe([1]), useful([1]), safe([1], name="x")],
        [safe([1], version="2.0"), useful([1]), safe([1], name="x")],
    )
    with pytest.raises(ConfigError, match="or restrict the comparison with --tasks useful,x"):
        comparable_tasks(*runs)
    assert comparable_tasks(*runs, tasks=["x", "useful"]) == ["useful", "x"]
    report = compare(runs, tasks=["useful", "x"])
    assert report.restricted and report.notes == ("not compared, by --tasks: safe",)


def test_tasks_that_differ_are_not_dropped_where_they_were_asked_for(tmp_path):
    runs = two(tmp_path, [safe([1]), useful([1])], [safe([1], version="2.0"), useful([1])])
    with pytest.raises(ConfigError, match="safe: version"):
        compare(runs, tasks=["safe", "useful"])


def test_many_differences_are_counted_not_listed(tmp_path):
    tasks = [[safe([1], name=f"t{i}", version=version) for i in range(6)] for version in ("1.0", "2.0")]
    with pytest.raises(ConfigError, match=r"t3: version 1\.0 -> 2\.0; and 2 more\. "):
        compare(two(tmp_path, *tasks))


def test_slips_of_the_hand_get_a_suggestion(tmp_path):
    runs = two(tmp_path, [safe([1])], [safe([1])])
    with pytest.raises(ConfigError, match=r"Unknown task 'saef'\. Did you mean: safe"):
        compare(runs, tasks=["saef"])
    with pytest.raises(ConfigError, match="Did you mean: temperature"):
        compare(runs, across=["temprature"])
    with pytest.raises(ConfigError, match="Give two runs or more"):
        compare(runs[:1])


def test_a_run_given_twice_is_refused(tmp_path):
    run = build_run(tmp_path / "run", tasks=[safe([1])])
    with pytest.raises(ConfigError, match="given twice"):
        read_runs([run, tmp_path / "." / "run"])


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("manifest.json", "Not a run folder: {run} has no manifest.json"),
        ("scores.json", "Run {run} has no scores.json. Score it first: python -m bfpo_bench score {run}"),
        ("outcomes.json", "Run {run} has no outcomes.json. Score the run first: python -m bfpo_bench score {run}"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused_with_what_to_do(tmp_path, file, said):
    run = build_run(tmp_path / "run", tasks=[safe([1])])
    (run / file).unlink()
    with pytest.raises(StoreError) as refused:
        read_runs([run])
    assert str(refused.value).startswith(said.format(run=run))


def test_outcomes_of_other_scores_are_refused(tmp_path):
    run = build_run(tmp_path / "run", tasks=[safe([1, 0])])
    edit(run, "outcomes.json", lambda body: body["tasks"]["safe"].update(values=[1.0, 1.0]))
    with pytest.raises(StoreError, match=r"its outcomes of safe are not those of its scores\. Score it again"):
        read_runs([run])


@pytest.mark.parametrize(("file", "key"), [("manifest.json", "identity"), ("scores.json", "tasks")])
def test_a_file_without_what_is_read_of_it_is_damaged(tmp_path, file, key):
    run = build_run(tmp_path / "run", tasks=[safe([1])])
    edit(run, file, lambda body: body.pop(key))
    with pytest.raises(StoreError, match=rf"{file} is damaged: it has no {key}\."):
        read_runs([run])


def test_a_run_of_another_schema_is_refused(tmp_path):
    run = build_run(tmp_path / "run", tasks=[safe([1])])
    edit(run, "scores.json", lambda body: body.update(schema=1))
    with pytest.raises(StoreError, match="schema 1; this version reads 2"):
        read_runs([run])


# -- what a person sees ------------------------------------------------------------------------------------------------


def test_a_partial_run_is_compared_and_said_to_be_partial(tmp_path):
    runs = two(tmp_path, [safe([1, 1])], [safe([None, 1])])
    assert compare(runs).notes == ("beta is partial: safe: 1 of 2 not scored (1 parse; no verdict could be read: "
                                   "`export` shows what the judge said)",)  # fmt: skip


def test_two_runs_of_one_model_are_called_by_their_folders(tmp_path):
    folders = [build_run(tmp_path / name, tasks=[safe([1])], model="same") for name in ("cold", "warm")]
    assert [run.name for run in read_runs(folders)] == ["cold", "warm"]


def test_every_run_has_a_name_of_its_own_whatever_models_and_folders_are_called(tmp_path):
    def named(*runs):
        folders = [build_run(tmp_path / place, tasks=[safe([1])], model=model) for place, model in runs]
        return [run.name for run in read_runs(folders)]

    assert named(("a/run", "same"), ("b/run", "same"), ("c/run", "other")) == ["a/run", "b/run", "other"]
    # The second one's folder is called as the first one's model is.
    assert named(("one", "two"), ("two", "same"), ("three", "same")) == ["one", "two", "three"]


def test_flips_are_named_each_way_and_counted(tmp_path):
    runs = two(tmp_path, [useful([0] * 5 + [1] * 2)], [useful([1] * 5 + [0] * 2)])
    report = compare(runs, flips=2)
    task = report.comparisons[0].tasks["useful"]
    assert [(flip.base, flip.new, flip.prompt) for flip in task.better] == [
        (0.0, 1.0, "useful question 0?"),
        (0.0, 1.0, "useful question 1?"),
    ]
    assert [flip.prompt for flip in task.worse] == ["useful question 5?", "useful question 6?"]
    text = told(report)
    assert "flipped in useful: 5 better, 2 worse" in text and "better  ... and 3 more" in text
    assert "worse  ..." not in text


def test_requests_for_harm_stay_out_of_a_terminal_unless_asked_for(tmp_path):
    runs = two(tmp_path, [safe([0])], [safe([1])])
    closed, open_ = (told(compare(runs, flips=1, show_text=shown)) for shown in (False, True))
    (id_,) = runs[0].outcomes.tasks["safe"].ids
    assert id_ in closed and "safe request" not in closed and "Answer" not in closed
    assert "safe request 0?  | base: Answer 0. | new: Answer 0." in open_


def test_answers_are_shown_only_where_asked_for(tmp_path):
    runs = two(tmp_path, [useful([0])], [useful([1])])
    text = told(compare(runs, flips=1))
    assert "useful question 0?" in text and "Answer" not in text


def test_hostile_text_is_one_inert_line(tmp_path):
    def task(label):
        answer = "\x1b[2J\u202e" + "x" * 2**20
        items = [Item(prompt="<img src=x>\n|a|\x1b]0;t\x07 why?", answer=answer, label=label)]
        return BuiltTask(name="useful", axis="helpfulness", items=items)

    report = compare(two(tmp_path, [task("failed")], [task("passed")]), flips=1, show_text=True)
    text, page, data = told(report), markdown(report), json.dumps(report.as_json(), ensure_ascii=False)
    assert not re.search("[\x1b\x07\u202e]", text + page + data)
    assert "<img" not in page and len(max(text.splitlines(), key=len)) < 500
    assert all(line.count("|") in (0, 12) for line in page.splitlines())


def test_a_run_without_its_store_is_compared_without_texts(tmp_path):
    runs = two(tmp_path, [useful([0])], [useful([1])])
    (tmp_path / "alpha" / "run.sqlite").unlink()
    (flip,) = compare(runs, flips=1, show_text=True).comparisons[0].tasks["useful"].better
    assert (flip.prompt, flip.answers) == (None, None)


def test_the_verb_prints_a_row_a_task_and_an_axis(tmp_path, capsys):
    two(tmp_path, [safe([0] * 7 + [1] * 3)], [safe([1] * 6 + [0] + [1] * 3)])
    assert main(["compare", str(tmp_path / "alpha"), str(tmp_path / "beta")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("beta (new) against alpha (base)\n")
    assert re.search(r"^  safe +30\.0 +90\.0 +\+60\.0 +\+\S+ to \+\S+ +0\.031 +0\.031 +\S+ +10 +0 +better$", out, re.M)
    assert re.search(r"^harmlessness +30\.0 +90\.0 +\+60\.0 .* better$", out, re.M)


def test_the_json_form_is_the_whole_report_without_places(tmp_path, capsys):
    two(tmp_path, [safe([0, 1])], [safe([1, 1])])
    arguments = ["compare", str(tmp_path / "alpha"), str(tmp_path / "beta"), "--format", "json"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    body = json.loads(out)
    assert (body["schema"], body["base"]["name"], body["runs"][0]["name"]) == (1, "alpha", "beta")
    assert body["comparisons"][0]["tasks"]["safe"]["paired"]["n_only_b"] == 1
    assert str(tmp_path) not in out
    assert main([*arguments, "--out", str(tmp_path / "report.json")]) == 0
    assert (tmp_path / "report.json").read_text() == out


def test_the_json_form_is_json_whatever_a_prompt_holds(tmp_path, capsys):
    # A joiner is no printable character, and stays in what is otherwise made inert: emoji need it.
    for model, label in (("alpha", "failed"), ("beta", "passed")):
        items = [Item(prompt="Why \U0001f469\u200d\U0001f52c\u00a0\u2028\x1b?", answer="A.", label=label)]
        build_run(tmp_path / model, tasks=[BuiltTask(name="useful", axis="helpfulness", items=items)], model=model)
    assert main(["compare", str(tmp_path / "alpha"), str(tmp_path / "beta"), "--format", "json"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert comparison["tasks"]["useful"]["better"][0]["prompt"].startswith("Why \U0001f469\u200d\U0001f52c")


def test_the_markdown_form_has_a_table_a_comparison(tmp_path, capsys):
    two(tmp_path, [safe([0, 1])], [safe([1, 1])])
    assert main(["compare", str(tmp_path / "alpha"), str(tmp_path / "beta"), "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("## beta (new) against alpha (base)\n\n|  | base | new |")
    assert re.search(r"^\| safe \| 50\.0 \| 100\.0 \| \+50\.0 \|", out, re.M)
    assert re.search(r"^- flipped in safe: 1 better, 0 worse\n  - better ", out, re.M)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--flips", "-1"], "--flips must be a whole number from 0, got -1."),
        (["--seed", "-1"], "--seed must be a whole number from 0, got -1."),
        (["--tasks", "safe,"], "--tasks 'safe,' holds an empty name."),
        (["--out", "{tmp}/none/x"], "Cannot write {tmp}/none/x"),
    ],
    ids=["flips", "seed", "tasks", "out"],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(tmp_path, capsys, more, said):
    two(tmp_path, [safe([1])], [safe([1])])
    arguments = [part.format(tmp=tmp_path) for part in more]
    assert main(["compare", str(tmp_path / "alpha"), str(tmp_path / "beta"), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said.format(tmp=tmp_path)}") and err.count("\n") == 1


@pytest.mark.slow
def test_the_doc_s_examples_are_what_the_verbs_print(tmp_path, monkeypatch, capsys):
    doc = (Path(__file__).parent.parent / "docs" / "compare.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for policy in ("comply", "refuse"):
        assert main(["run", "--model", f"policy:{policy}", "--suite", "mini"]) == 0
    runs = [f"runs/policy-{policy}-mini" for policy in ("comply", "refuse")]
    capsys.readouterr()
    assert main(["compare", *runs, "--flips", "1"]) == 0
    comparison, _ = capsys.readouterr().out.split("\n\nIn %;")
    assert main(["gate", "--base", runs[0], "--new", runs[1]]) == 1
    for shown in (comparison, capsys.readouterr().out.rstrip()):
        assert "\n".join(f"    {line}".rstrip() for line in shown.splitlines()) in doc

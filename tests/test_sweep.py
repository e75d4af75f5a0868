"""A sweep's grid, its frontier and how it is told; that its points are trained is in test_train_verb.py."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from bfpo_bench.errors import BenchError, ConfigError
from bfpo_bench.sweep import (
    Rate,
    Result,
    Swept,
    frontier,
    grid,
    means_over_seeds,
    plan_sweep,
    point_name,
    refuses_more,
    scored_result,
    split_arguments,
    table,
    to_csv,
)


def result(name, harmless=None, helpful=None, answered=None, **more):
    values = {"harmlessness": harmless, "over_refusal": answered, "helpfulness": helpful}
    scores = {
        axis: None if value is None else Rate(value=value, low=max(0, value - 0.1), high=min(1, value + 0.1))
        for axis, value in values.items()
    }
    return Result(name=name, scores=scores, **more)


# -- the grid ----------------------------------------------------------------------------------------------------------


def test_the_grid_is_every_combination_with_the_last_key_fastest():
    fixed, axes = split_arguments(["alpha=0,0.5", "loss.tau=0.1", "method=bfpo,dpo"], seeds="1,2")
    assert fixed == ["loss.tau=0.1"]
    points = [tuple(point.values()) for point in grid(axes)]
    assert len(points) == 8
    assert points[:5] == [
        ("0", "bfpo", "1"), ("0", "bfpo", "2"), ("0", "dpo", "1"), ("0", "dpo", "2"), ("0.5", "bfpo", "1"),
    ]  # fmt: skip
    assert list(grid(axes)[0]) == ["alpha", "method", "seed"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2", ["1", "2"]),
        ("[a, b],[c]", ["[a, b]", "[c]"]),
        ("{r: 8, alpha: 16},null", ["{r: 8, alpha: 16}", "null"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("1, 2", ["1", "2"]),
    ],
)
def test_a_comma_parts_values_where_it_is_in_no_brackets_or_quotes(text, values):
    assert split_arguments([f"key={text}"])[1] == {"key": values}


@pytest.mark.parametrize(
    ("arguments", "seeds", "said"),
    [
        (["alpha"], None, "'alpha' is not KEY=VALUE"),
        (["alpha=1"], None, "Nothing to sweep over"),
        ([], None, "Nothing to sweep over"),
        (["alpha=1,"], None, "empty value"),
        (["alpha=1,1"], None, "one twice"),
        (["alpha=1,2", "alpha=3"], None, "'alpha' is given twice"),
        (["seed=1,2"], "3,4", "'seed' is given twice"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_one_line(arguments, seeds, said):
    with pytest.raises(ConfigError, match=said):
        split_arguments(arguments, seeds=seeds)


def test_a_point_has_a_name_that_a_folder_can_have():
    settings = {"loss.tau": "0.1", "select": "[a/b, c]", "seed": "2"}
    assert point_name("demo-bfpo", settings) == "demo-bfpo-tau0.1-select-a-b-c-seed2"


def test_every_point_has_its_recipe_and_a_folder_of_its_own(tmp_path):
    sweep = plan_sweep("demo", ["alpha=0,1", "loss.tau=0.2", f"out={tmp_path / 'a'}"], seeds="1,2")
    assert [point.recipe.out for point in sweep.points] == [
        tmp_path / "a-sweep" / f"a-alpha{alpha}-seed{seed}" for alpha in (0, 1) for seed in (1, 2)
    ]
    assert [(point.recipe.loss.alpha, point.recipe.seed) for point in sweep.points] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert {point.recipe.loss.tau for point in sweep.points} == {0.2}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["alpha=0,x"], "x"),
        (["out=a,b"], "^out is no setting to sweep over: each point has a folder of its own below --out.$"),
        (["model=a,b"], "^model is no setting to sweep over: all points are compared with one base."),
        (["revision=a,b"], "^revision is no setting to sweep over: all points are compared with one base."),
        (["alhpa=0,1"], "alhpa"),
        (["select=[a/b],[a-b]"], "would both be called"),
    ],
)
def test_a_point_that_is_wrong_is_told_before_any_is_trained(settings, said):
    with pytest.raises(BenchError, match=said):
        plan_sweep("demo", settings)


def test_a_sweep_under_a_launcher_says_where_the_launcher_goes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--launch"):
        plan_sweep("demo", ["alpha=0,1"])


# -- the frontier ------------------------------------------------------------------------------------------------------


def test_the_frontier_holds_what_no_other_is_better_than():
    results = [
        result("safe", 0.9, 0.2), result("useful", 0.2, 0.9), result("both", 0.6, 0.6),
        result("worse", 0.5, 0.5), result("level", 0.6, 0.5),
    ]  # fmt: skip
    assert frontier(results) == ["safe", "useful", "both"]


def test_equal_points_are_both_on_the_frontier():
    assert frontier([result("a", 0.5, 0.5), result("b", 0.5, 0.5)]) == ["a", "b"]


def test_what_was_not_measured_is_not_on_the_frontier_and_takes_nothing_off_it():
    assert frontier([result("half", 1.0, None), result("whole", 0.1, 0.1), result("none")]) == ["whole"]


def test_a_result_refuses_more_when_its_interval_lies_below_the_bases():
    base = result("base", 0.5, 0.5, 0.9)
    assert refuses_more(result("a", 0.5, 0.5, 0.6), base)
    assert not refuses_more(result("b", 0.5, 0.5, 0.75), base)
    assert not refuses_more(result("c", 0.5, 0.5, None), base)


def seeds(setting, *scores):
    """Results of one setting with the seeds 1, 2, ...; each score is (harmlessness, helpfulness, benign answered)."""
    return [result(f"{setting}-{n}", *three, settings={"alpha": setting, "seed": str(n)})
            for n, three in enumerate(scores, 1)]  # fmt: skip


def test_a_settings_score_is_the_mean_over_its_seeds_and_has_no_interval():
    found = means_over_seeds([*seeds("0", (0.5, 0.25, 0.75), (0.75, 0.5, 0.25)), *seeds("1", (0.5, 0.5, None))])
    assert [mean.settings for mean in found] == [{"alpha": "0"}, {"alpha": "1"}]
    assert found[0].scores == {
        "harmlessness": Rate(value=0.625), "over_refusal": Rate(value=0.5), "helpfulness": Rate(value=0.375)
    }  # fmt: skip
    assert found[1].scores["over_refusal"] is None
    assert [mean.of for mean in found] == ["2", "1"]


def test_seeds_that_stand_apart_in_the_grid_are_still_one_settings():
    a1, a2 = seeds("0", (0.5, 0.5), (0.7, 0.7))
    b1, b2 = seeds("1", (0.5, 0.5), (0.7, 0.7))
    assert [[one.name for one in mean.repeats] for mean in means_over_seeds([a1, b1, a2, b2])] == [
        ["0-1", "0-2"], ["1-1", "1-2"]
    ]  # fmt: skip


def test_a_seed_that_failed_is_not_in_the_mean_and_one_without_an_axis_leaves_the_mean_without_it():
    failed = Result(name="x", settings={"alpha": "0", "seed": "9"}, failed="it ended")
    (mean,) = means_over_seeds([*seeds("0", (0.5, 0.5), (0.7, None)), failed])
    assert mean.scores["harmlessness"].value == pytest.approx(0.6)
    assert mean.scores["helpfulness"] is None
    assert mean.of == "2 of 3" and mean.notes == ("without x",) and mean.failed is None
    (none,) = means_over_seeds([failed])
    assert none.scores == {} and none.failed == "none of its seeds was scored"


def test_a_lucky_seed_does_not_put_its_setting_on_the_frontier():
    # The best seed of all is one of alpha 0, whose mean (0.5, 0.5) alpha 1 beats with (0.6, 0.6).
    done = swept(*seeds("0", (0.9, 0.9), (0.1, 0.1)), *seeds("1", (0.6, 0.6), (0.6, 0.6)))
    assert frontier(done.compared) == ["mean alpha=1"]


# -- telling -----------------------------------------------------------------------------------------------------------


def swept(*results, base=None):
    return Swept(results=results, base=base, csv=Path("sweep.csv"))


def test_the_table_shows_settings_scores_and_what_is_to_be_said():
    lines = table(
        swept(
            result("a", 0.9, 0.4, 0.5, settings={"alpha": "0", "tau": "1"}),
            result("b", 0.4, 0.4, 0.9, settings={"alpha": "0", "tau": "2"}, notes=("why",)),
            Result(name="c", settings={"alpha": "1", "tau": "1"}, failed="it ended"),
            base=result("base", 0.5, 0.5, 0.9),
        )
    )
    assert lines == [
        ("alpha", "tau", "harmlessness", "benign answered", "helpfulness", ""),
        ("base", "", "50.0 (40.0-60.0)", "90.0 (80.0-100.0)", "50.0 (40.0-60.0)", "frontier"),
        ("0", "1", "90.0 (80.0-100.0)", "50.0 (40.0-60.0)", "40.0 (30.0-50.0)", "frontier, refuses more than the base"),
        ("0", "2", "40.0 (30.0-50.0)", "90.0 (80.0-100.0)", "40.0 (30.0-50.0)", "partial"),
        ("1", "1", "not measured", "not measured", "not measured", "failed"),
    ]


def test_with_seeds_the_table_keeps_a_row_a_seed_and_marks_the_mean_below_them():
    done = swept(
        *seeds("0", (0.9, 0.4, 0.5), (0.7, 0.2, 0.9)),
        Result(name="c", settings={"alpha": "1", "seed": "1"}, failed="it ended"),
        base=result("base", 0.5, 0.5, 0.9),
    )
    assert [(*line[:3], line[-1]) for line in table(done)[1:]] == [
        ("base", "", "50.0 (40.0-60.0)", "frontier"),
        ("0", "1", "90.0 (80.0-100.0)", "refuses more than the base"),
        ("0", "2", "70.0 (60.0-80.0)", ""),
        ("0", "mean of 2", "80.0", "frontier, refuses more than the base with 1 of 2 seeds"),
        ("1", "1", "not measured", "failed"),
        ("1", "mean of 0 of 1", "not measured", "failed"),
    ]
    assert "of a setting's seeds by their mean" in done.notes[0]


def test_the_csv_says_which_rows_are_means_and_marks_the_frontier_there_alone():
    done = swept(*seeds("0", (0.5, 0.25, 0.5), (0.75, 0.5, 0.5)), base=result("base", 0.5, 0.25, 0.9))
    rows = list(csv.DictReader(io.StringIO(to_csv(done))))
    assert [(row["row"], row["alpha"], row["seed"], row["seeds"], row["frontier"]) for row in rows] == [
        ("base", "", "", "", "false"),
        ("point", "0", "1", "", ""),
        ("point", "0", "2", "", ""),
        ("mean", "0", "", "2", "true"),
    ]
    mean = rows[-1]
    assert float(mean["harmlessness_value"]) == 0.625 and mean["harmlessness_low"] == mean["harmlessness_high"] == ""


def test_seeds_that_were_trained_and_not_scored_have_no_means():
    done = swept(*(Result(name=f"a{n}", settings={"seed": str(n)}) for n in (1, 2)))
    assert done.means == () and len(table(done)) == 3


def test_the_csv_holds_the_numbers_and_an_empty_cell_for_none():
    done = swept(
        result("a", 0.5, None, 0.25, settings={"alpha": "0"}, checkpoint=Path("ck/a")),
        Result(name="b", settings={"alpha": "1"}, failed="it ended"),
    )
    first, second = csv.DictReader(io.StringIO(to_csv(done)))
    assert float(first["harmlessness_value"]) == 0.5 and float(first["over_refusal_low"]) == 0.15
    assert first["helpfulness_value"] == first["helpfulness_high"] == ""
    assert (first["status"], first["checkpoint"], first["frontier"]) == ("complete", "ck/a", "false")
    assert (second["alpha"], second["status"], second["reasons"]) == ("1", "failed", "it ended")
    assert second["harmlessness_value"] == ""


def test_a_sweep_that_was_not_scored_speaks_of_no_frontier():
    assert swept(Result(name="a", settings={"alpha": "0"})).notes == ()
    assert swept(Result(name="a"), Result(name="b", failed="x")).failed == ("b",)


def test_the_scores_of_a_run_become_a_result_with_the_reasons_of_a_partial_one():
    score = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    scores = {"axes": {"harmlessness": score, "helpfulness": None}, "status": "partial", "reasons": ["why"]}
    found = scored_result("a", scores)
    assert found.scores["harmlessness"] == Rate(value=0.5, low=0.25, high=0.75)
    assert found.scores["helpfulness"] is found.scores["over_refusal"] is None
    assert found.notes == ("why",)
    assert scored_result("a", {**scores, "status": "complete"}).notes == ()

"""What a change of judge does to rankings and significant differences, by hand and beside statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from bfpo_bench.judge_swap import judge_swap


def outcomes(text):
    """One sample a digit: 1 passes, 0 fails."""
    return {f"s{i:03}": float(digit) for i, digit in enumerate(text)}


def swap(a, b, **options):
    result = judge_swap({"A": a, "B": b}, **options)
    return result, next(pair for pair in result.pairs if (pair.a, pair.b) == ("A", "B"))


def test_rankings_are_by_mean_and_equals_share_a_rank():
    models = {"x": outcomes("1100"), "y": outcomes("1110"), "z": outcomes("0011")}
    result, _ = swap(models, models)
    assert [(r.model, r.rank, r.mean, r.n) for r in result.rankings["A"]] == [
        ("y", 1, 0.75, 4),
        ("x", 2, 0.5, 4),
        ("z", 2, 0.5, 4),
    ]


def test_tau_and_flips_worked_by_hand():
    # A: w > x > y > z; B: x > w > y > z. One of six pairs is turned: (5 - 1) / 6.
    a = {"w": outcomes("1111"), "x": outcomes("1110"), "y": outcomes("1100"), "z": outcomes("1000")}
    _, pair = swap(a, {**a, "w": outcomes("1110"), "x": outcomes("1111")})
    assert pair.tau == pytest.approx(4 / 6)
    assert pair.flipped == (("w", "x"),)


def test_tau_allows_for_ties():
    # Tau-b: 2 concordant pairs, none discordant, one tied under B only: 2 / sqrt(3 * 2).
    a = {"x": outcomes("111"), "y": outcomes("110"), "z": outcomes("100")}
    _, pair = swap(a, {**a, "y": outcomes("111")})
    assert pair.tau == pytest.approx(2 / math.sqrt(6))
    assert pair.flipped == ()


def test_a_judge_that_tells_no_models_apart_has_no_tau():
    a = {"x": outcomes("11"), "y": outcomes("10")}
    _, pair = swap(a, {"x": outcomes("11"), "y": outcomes("11")})
    assert pair.tau is None


def test_pass_or_fail_is_tested_as_statsmodels_does():
    x, y = outcomes("1" * 12 + "0" * 3 + "1" * 5 + "0" * 4), outcomes("0" * 12 + "1" * 3 + "1" * 5 + "0" * 4)
    result, _ = swap({"x": x, "y": y}, {"x": x, "y": x})
    (one,) = result.differences["A"]
    assert (one.first, one.second, one.n, one.method) == ("x", "y", 24, "mcnemar")
    assert one.effect == pytest.approx(9 / 24)
    assert one.p == pytest.approx(mcnemar([[5, 12], [3, 4]], exact=True).pvalue)
    # The same answers: nothing speaks for a difference.
    (same,) = result.differences["B"]
    assert (same.effect, same.p) == (0.0, 1.0)


def test_grades_are_tested_by_paired_t():
    x, y = {"1": 0.2, "2": 0.9, "3": 0.4}, {"1": 0.1, "2": 0.5, "3": 0.45}
    result, _ = swap({"x": x, "y": y}, {"x": x, "y": y})
    (one,) = result.differences["A"]
    # Differences 0.1, 0.4, -0.05: mean 0.15, variance 0.0525, t = 0.15 / sqrt(0.0525 / 3).
    assert one.effect == pytest.approx(0.15)
    assert one.p == pytest.approx(2 * stats.t.sf(0.15 / math.sqrt(0.0525 / 3), 2))
    assert one.method == "paired-t"


def test_equal_differences_of_grades_are_no_proof():
    x, y = {"1": 0.5, "2": 0.75, "3": 1.0}, {"1": 0.25, "2": 0.5, "3": 0.75}
    result, _ = swap({"x": x, "y": y}, {"x": x, "y": x | {"1": 0.5}})
    (one,) = result.differences["A"]
    # All three signs equal by chance: 2 of 8.
    assert (one.method, one.p) == ("sign-flip", 0.25)
    assert result.differences["B"][0].p == 1.0


def test_p_values_are_adjusted_over_all_pairs_of_models_as_statsmodels_does():
    rng = np.random.default_rng(4)
    rates = (0.2, 0.4, 0.6, 0.9)
    models = {m: outcomes("".join(map(str, rng.binomial(1, p, 60)))) for m, p in zip("wxyz", rates, strict=True)}
    result, _ = swap(models, models)
    adjusted = multipletests([d.p for d in result.differences["A"]], method="holm")[1]
    assert len(adjusted) == 6
    assert [d.p_holm for d in result.differences["A"]] == pytest.approx(adjusted.tolist())
    assert 0 < sum(p < 0.05 for p in adjusted) < 6


def test_each_difference_survives_is_lost_gained_or_reversed():
    high, low, middle = outcomes("1" * 40), outcomes("0" * 40), outcomes("1" * 20 + "0" * 20)
    a = {"p": high, "q": low, "r": high, "s": middle}
    b = {"p": low, "q": high, "r": low, "s": middle}
    result, pair = swap(a, b)
    assert pair.survival[("p", "q")] == "reversed"
    assert pair.survival[("p", "r")] == "none"
    assert set(pair.flipped) == {("p", "q"), ("q", "r"), ("p", "s"), ("q", "s"), ("r", "s")}
    assert (pair.n_survive, pair.n_significant) == (0, 5)
    _, kept = swap(a, {**a, "r": middle})
    assert kept.survival == {
        ("p", "q"): "survives",
        ("p", "r"): "gained",
        ("p", "s"): "survives",
        ("q", "r"): "survives",
        ("q", "s"): "survives",
        ("r", "s"): "lost",
    }
    assert (kept.n_survive, kept.n_significant) == (4, 5)
    assert [(p.a, p.b) for p in result.pairs] == [("A", "B"), ("B", "A")]


def test_a_difference_that_only_holm_takes_away_is_not_significant():
    # 6 better, none worse: p = 2 / 64 = 0.03. One pair of models: significant. Three pairs: 0.09.
    x, y = outcomes("1" * 6), outcomes("0" * 6)
    _, alone = swap({"x": x, "y": y}, {"x": x, "y": y})
    assert alone.survival[("x", "y")] == "survives"
    z = outcomes("111000")
    _, among = swap({"x": x, "y": y, "z": z}, {"x": x, "y": y, "z": z})
    assert among.survival[("x", "y")] == "none"
    _, lenient = swap({"x": x, "y": y, "z": z}, {"x": x, "y": y, "z": z}, level=0.9)
    assert lenient.survival[("x", "y")] == "survives"


def test_samples_that_one_judge_did_not_score_count_nowhere_and_are_counted():
    full = outcomes("111000")
    part = {id_: outcome for id_, outcome in full.items() if id_ != "s000"} | {"extra": 1.0}
    result, _ = swap({"x": full, "y": full}, {"x": part, "y": full})
    assert result.left_out == {"A": {"x": 1, "y": 0}, "B": {"x": 1, "y": 0}}
    for judge in "AB":
        assert {r.model: (r.n, r.mean) for r in result.rankings[judge]} == {"x": (5, 0.4), "y": (6, 0.5)}
        # Paired on what both models have: no difference there.
        (one,) = result.differences[judge]
        assert (one.n, one.effect) == (5, 0.0)


def test_a_model_under_one_judge_only_is_not_ranked_but_counted():
    x = outcomes("10")
    result, pair = swap({"x": x, "y": x, "z": x}, {"x": x, "y": x})
    assert [r.model for r in result.rankings["A"]] == ["x", "y"]
    assert result.left_out["A"]["z"] == 2
    assert list(pair.survival) == [("x", "y")]


def test_models_without_a_common_sample_have_no_difference():
    result, pair = swap(*[{"x": {"1": 1.0}, "y": {"2": 0.0}}] * 2)
    (one,) = result.differences["A"]
    assert (one.effect, one.p, one.p_holm, one.n) == (None, None, None, 0)
    assert pair.survival == {("x", "y"): "none"}
    assert pair.flipped == ()


def test_three_judges_are_compared_on_the_samples_of_all_three():
    x, y = outcomes("1100"), outcomes("1000")
    result = judge_swap({"A": {"x": x, "y": y}, "B": {"x": x, "y": y}, "C": {"x": {"s000": 1.0}, "y": y}})
    assert len(result.pairs) == 6
    assert {r.model: r.n for r in result.rankings["A"]} == {"x": 1, "y": 4}
    assert result.left_out == {"A": {"x": 3, "y": 0}, "B": {"x": 3, "y": 0}, "C": {"x": 0, "y": 0}}


def test_a_swap_that_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="two judges, got 1: A"):
        judge_swap({"A": {"x": outcomes("1")}})
    with pytest.raises(ValueError, match="B, x, sample s000: an outcome is from 0 to 1, got nan"):
        swap({"x": outcomes("1")}, {"x": {"s000": math.nan}})
    with pytest.raises(ValueError, match="level"):
        swap({"x": outcomes("1")}, {"x": outcomes("1")}, level=0)


# -- an axis: several tasks that count the same ------------------------------------------------------------------------


def axis(*tasks):
    """A model's outcomes on task 0, 1, ...: one sample a digit."""
    return {f"{t}-{i:03}": float(digit) for t, text in enumerate(tasks) for i, digit in enumerate(text)}


def by_task(*models):
    return {id_: id_.partition("-")[0] for outcomes in models for id_ in outcomes}


def test_models_are_ranked_by_the_mean_of_task_means_and_not_of_samples():
    # x: 95 of 100 and 0 of 10, y: 80 of 100 and 4 of 10. Of tasks 0.475 and 0.6; of samples x has 95 of 110, y 84.
    x, y = axis("1" * 95 + "0" * 5, "0" * 10), axis("1" * 80 + "0" * 20, "1111" + "0" * 6)
    result, _ = swap({"x": x, "y": y}, {"x": x, "y": x}, strata=by_task(x))
    assert [(r.model, r.rank, r.mean, r.n) for r in result.rankings["A"]] == [
        ("y", 1, pytest.approx(0.6), 110),
        ("x", 2, pytest.approx(0.475), 110),
    ]
    (one,) = result.differences["A"]
    # Task 0: 15 samples for x, each 1/200 of the effect; task 1: 4 for y, each 1/20. The smallest step is 1/200.
    effect, variance = 15 / 200 - 4 / 20, 15 / 200**2 + 4 / 20**2
    assert (one.effect, one.method, one.n) == (pytest.approx(effect), "stratified-sign-flip", 110)
    assert one.p == pytest.approx(2 * stats.norm.sf((abs(effect) - 1 / 200) / math.sqrt(variance)))
    assert result.differences["B"][0].p == 1.0


def test_of_one_task_twice_the_test_is_mcnemar_s_with_edwards_correction():
    """12 to 3 in each half is 24 to 6 of equal weight: what statsmodels makes of a single table."""
    half = "1" * 12 + "0" * 3 + "1" * 5, "0" * 12 + "1" * 3 + "1" * 5
    x, y = axis(half[0], half[0]), axis(half[1], half[1])
    result, _ = swap({"x": x, "y": y}, {"x": x, "y": y}, strata=by_task(x))
    expected = mcnemar([[10, 24], [6, 0]], exact=False, correction=True).pvalue
    assert result.differences["A"][0].p == pytest.approx(expected)


def test_the_p_of_an_axis_is_near_that_of_all_sign_flips_and_not_below_it():
    """6 and 4 samples that differ, of tasks of 8 and 5: all 2^10 signs, each as likely."""
    x, y = axis("11111100", "11110"), axis("00000000", "00010")
    result, _ = swap({"x": x, "y": y}, {"x": x, "y": y}, strata=by_task(x))
    terms = np.array([1 / 16] * 6 + [1 / 10] * 3)
    signs = np.array(np.meshgrid(*[(-1, 1)] * len(terms))).reshape(len(terms), -1)
    exact = np.mean(np.abs(terms @ signs) >= terms.sum() - 1e-9)
    (one,) = result.differences["A"]
    assert one.effect == pytest.approx(terms.sum())
    assert exact <= one.p < 3 * exact


def test_equal_tasks_without_spread_are_no_certainty():
    # Two tasks of two samples, all four for x: (1 - 1/4) / sqrt(4 / 16).
    x, y = axis("11", "11"), axis("00", "00")
    result, pair = swap({"x": x, "y": y}, {"x": x, "y": y}, strata=by_task(x))
    assert result.differences["A"][0].p == pytest.approx(2 * stats.norm.sf(1.5))
    assert pair.survival[("x", "y")] == "none"


def test_grades_of_an_axis_count_by_how_far_they_are_apart():
    x, y = {"0-1": 0.9, "0-2": 0.4, "1-1": 0.5}, {"0-1": 0.5, "0-2": 0.5, "1-1": 0.2}
    result, _ = swap({"x": x, "y": y}, {"x": x, "y": y}, strata=by_task(x))
    (one,) = result.differences["A"]
    # Terms 0.4 / 4, -0.1 / 4, 0.3 / 2: sum 0.225, squares 0.033125, the smallest flip 0.025.
    assert one.effect == pytest.approx(0.225)
    assert one.p == pytest.approx(2 * stats.norm.sf(0.2 / math.sqrt(0.033125)))


def test_a_model_that_lacks_a_task_is_not_ranked_on_the_axis():
    x, y = axis("10", "11"), axis("10", "01")
    result, _ = swap({"x": x, "y": y, "z": axis("11")}, {"x": x, "y": y, "z": axis("11")}, strata=by_task(x))
    assert [r.model for r in result.rankings["A"]] == ["x", "y"]


def test_models_that_share_no_sample_of_a_task_have_no_difference_on_the_axis():
    x, y = axis("10", "1"), {"0-000": 1.0, "0-001": 1.0, "1-009": 1.0}
    result, _ = swap({"x": x, "y": y}, {"x": x, "y": y}, strata=by_task(x, y))
    (one,) = result.differences["A"]
    assert (one.effect, one.p, one.n) == (None, None, 2)

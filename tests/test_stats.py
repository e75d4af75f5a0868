"""Each interval against a closed form, an independent library, and by simulation of its coverage."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, bootstrap, ttest_1samp
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from bfpo_bench import stats
from bfpo_bench.stats import (
    clopper_pearson,
    cluster_sums,
    clustered_interval,
    macro_average,
    mean_interval,
    smoothed,
    weighted_sums,
    wilson,
    worst_of,
)
from bfpo_bench.types import Score

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "coverage.py"


def rate(k, n, **options):
    """The Wilson score of k passes in n."""
    return wilson([True] * k + [False] * (n - k), **options)


# -- one rate ----------------------------------------------------------------------------------------------------------


def test_all_safe_is_not_certainly_safe():
    # At k = n the lower bound is n / (n + z²) = 20 / 23.8415.
    score = rate(20, 20)
    assert score.low == pytest.approx(0.8389, abs=1e-4)
    assert (score.value, score.high) == (1.0, 1.0)


def test_none_safe_is_not_certainly_unsafe():
    # The mirror image: z² / (n + z²).
    score = rate(0, 20)
    assert (score.low, score.value) == (0.0, 0.0)
    assert score.high == pytest.approx(1 - 0.8389, abs=1e-4)


def test_half_of_ten_worked_by_hand():
    # z² = 3.8415: centre 1/2, half width z / (2 · sqrt(n + z²)) = 1.95996 / (2 · 3.72042) = 0.26341.
    score = rate(5, 10)
    assert (score.low, score.high) == pytest.approx((0.5 - 0.26341, 0.5 + 0.26341), abs=1e-5)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 24, 100, 999])
def test_it_is_the_interval_of_statsmodels(n, level):
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        low, high = proportion_confint(k, n, alpha=1 - level, method="wilson")
        score = rate(k, n, level=level)
        assert (score.low, score.high) == pytest.approx((max(low, 0.0), min(high, 1.0)), abs=1e-12)
        assert (score.value, score.n, score.level, score.method) == (k / n, n, level, "wilson")


def test_no_data_is_no_score_rather_than_zero():
    assert wilson([]) is None
    assert wilson([], n_unscored=5) is None


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 1.5, 95, math.nan])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(ValueError, match="level"):
        rate(1, 2, level=level)


def test_what_is_not_in_the_rate_is_counted_beside_it_and_does_not_move_it():
    plain, counted = rate(3, 4), rate(3, 4, n_unscored=7, n_empty=2, n_truncated=1)
    assert (counted.n_unscored, counted.n_empty, counted.n_truncated) == (7, 2, 1)
    assert (counted.value, counted.low, counted.high, counted.n) == (plain.value, plain.low, plain.high, 4)


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.floats(0.01, 0.999))
@settings(deadline=None)
def test_the_value_lies_in_its_interval_and_the_interval_in_zero_to_one(passed, level):
    score = wilson(passed, level=level)
    assert 0.0 <= score.low <= score.value <= score.high <= 1.0
    assert score.value == sum(passed) / len(passed)


@given(st.integers(0, 60), st.integers(1, 60))
@settings(deadline=None)
def test_failures_mirror_passes(k, n):
    k = min(k, n)
    one, other = rate(k, n), rate(n - k, n)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-12)


# -- the exact interval of a rate --------------------------------------------------------------------------------------


def test_all_passed_leaves_the_exact_interval_the_nth_root_of_its_tail():
    # Nothing failed: the lower limit is the rate p with p^20 = 0.025.
    score = clopper_pearson([True] * 20)
    assert (score.low, score.high) == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    assert (score.method, score.n, score.value) == ("clopper-pearson", 20, 1.0)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [1, 10, 100])
def test_the_exact_interval_is_that_of_statsmodels(n, level):
    for k in sorted({0, 1, n // 3, n}):
        low, high = proportion_confint(k, n, alpha=1 - level, method="beta")
        score = clopper_pearson([True] * k + [False] * (n - k), level=level)
        assert (score.low, score.high) == pytest.approx((low, high), abs=1e-9)


def test_the_exact_interval_counts_what_it_leaves_out_and_is_none_of_nothing():
    score = clopper_pearson([True], n_unscored=3, n_empty=2, n_truncated=1)
    assert (score.n_unscored, score.n_empty, score.n_truncated) == (3, 2, 1)
    assert clopper_pearson([], n_unscored=3) is None
    with pytest.raises(ValueError, match="level"):
        clopper_pearson([True], level=95)


# -- the mean of several -----------------------------------------------------------------------------------------------


def test_a_mean_of_ones_and_noughts_is_the_rate_with_its_interval():
    assert mean_interval([1.0, 0.0, 1.0]) == wilson([True, False, True])
    assert mean_interval([]) is None


def test_a_mean_has_the_t_interval_of_scipy():
    values = [0.1, 0.4, 0.35, 0.8]
    score = mean_interval(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (score.value, score.method) == (pytest.approx(0.4125), "t")
    # Both ends lie outside of [0, 1] or not: here the lower one does not.
    assert (score.low, score.high) == (pytest.approx(max(0, expected.low)), pytest.approx(expected.high))


def test_equal_values_are_not_certain():
    """Wilson's formula with a rate of 0.5 and n = 10, by hand: 0.5 -+ 1.96 / 13.8416 * sqrt(2.5 + 0.9604)."""
    score = mean_interval([0.5] * 10)
    assert (score.low, score.high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_mean_lies_in_its_interval_and_the_interval_in_nought_to_one(values):
    score = mean_interval(values)
    assert 0 <= score.low <= score.value + 1e-12 and score.value - 1e-12 <= score.high <= 1


# -- the mean of clusters ----------------------------------------------------------------------------------------------


def twins(k, n, *, size=2):
    """n clusters of equal values, k of them passes: values and clusters' names."""
    values = [1.0] * (k * size) + [0.0] * ((n - k) * size)
    return values, [f"prompt {i}" for i in range(n) for _ in range(size)]


@pytest.mark.parametrize("values", [[1.0, 0.0, 1.0], [0.2, 0.4, 0.9], []], ids=["passes", "scores", "none"])
def test_clusters_of_one_are_no_clusters(values):
    assert clustered_interval(values, [str(i) for i in range(len(values))]) == mean_interval(values)


@pytest.mark.parametrize(("k", "n"), [(3, 10), (14, 20), (95, 100)])
def test_clusters_that_pass_or_fail_as_one_have_jeffreys_interval_of_so_many_clusters(k, n):
    """The closed form: the draws are Beta(k + 1/2, n - k + 1/2)."""
    low, high = proportion_confint(k, n, method="jeffreys")
    score = clustered_interval(*twins(k, n))
    assert (score.low, score.high) == pytest.approx((low, high), abs=0.01)
    assert (score.value, score.n, score.method) == (pytest.approx(k / n), 2 * n, "cluster-bootstrap")


def test_all_passed_in_clusters_is_not_certain():
    score = clustered_interval(*twins(20, 20, size=3))
    assert (score.value, score.high) == (1.0, 1.0)
    assert score.low == pytest.approx(beta.ppf(0.025, 20.5, 0.5), abs=0.01)


def test_none_passed_in_clusters_is_not_certain():
    score = clustered_interval(*twins(0, 20, size=3))
    assert (score.value, score.low) == (0.0, 0.0)
    assert score.high == pytest.approx(beta.ppf(0.975, 0.5, 20.5), abs=0.01)


def test_one_cluster_says_as_little_as_one_prompt():
    score = clustered_interval([1.0] * 50, ["the same"] * 50)
    assert score.low == pytest.approx(beta.ppf(0.025, 1.5, 0.5), abs=0.02)
    assert score.low < 0.2


def test_a_copy_of_every_row_makes_no_interval_narrower():
    two, five = clustered_interval(*twins(7, 10, size=2)), clustered_interval(*twins(7, 10, size=5))
    assert (five.low, five.high) == pytest.approx((two.low, two.high), abs=1e-9)
    assert (two.n, five.n) == (20, 50)


def correlated(n_clusters, *, seed=4):
    """Values of clusters of one to five, each with a level of its own."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, n_clusters)
    values = np.clip(np.repeat(rng.normal(0.5, 0.2, n_clusters), sizes) + rng.normal(0, 0.1, sizes.sum()), 0, 1)
    return values, np.repeat(np.arange(n_clusters), sizes)


def test_many_clusters_have_the_interval_of_cluster_robust_errors():
    values, names = correlated(400)
    fit = OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": names})
    low, high = fit.conf_int()[0]
    score = clustered_interval(values.tolist(), names.tolist())
    assert score.value == pytest.approx(values.mean())
    assert (score.low, score.high) == pytest.approx((low, high), abs=0.05 * (high - low))


def test_many_clusters_have_the_interval_of_scipys_bootstrap():
    values, names = correlated(400)
    sums, sizes = np.bincount(names, weights=values), np.bincount(names)
    ratio = lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis)  # noqa: E731
    options = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 5000}
    found = bootstrap((sums, sizes), ratio, rng=np.random.default_rng(1), **options).confidence_interval
    score = clustered_interval(values.tolist(), names.tolist())
    assert (score.low, score.high) == pytest.approx((found.low, found.high), abs=0.05 * (found.high - found.low))


def test_the_order_of_rows_moves_no_limit_and_another_seed_does():
    values, names = correlated(30)
    order = np.random.default_rng(0).permutation(len(values))
    score = clustered_interval(values.tolist(), names.tolist())
    again = clustered_interval(values[order].tolist(), names[order].tolist())
    assert (again.low, again.high) == pytest.approx((score.low, score.high), abs=1e-12)
    other = clustered_interval(values.tolist(), names.tolist(), seed=1)
    assert other.low != score.low and other.low == pytest.approx(score.low, abs=0.01)


def test_what_is_not_in_a_clustered_mean_is_counted_beside_it():
    score = clustered_interval([1.0, 0.0, 1.0], ["a", "a", "b"], n_unscored=7, n_empty=2, n_truncated=1, level=0.9)
    assert (score.n, score.n_unscored, score.n_empty, score.n_truncated, score.level) == (3, 7, 2, 1, 0.9)


def test_values_without_a_cluster_are_refused():
    with pytest.raises(ValueError, match="2 values have 1 clusters"):
        clustered_interval([1.0, 0.0], ["a"])
    with pytest.raises(ValueError, match="level"):
        clustered_interval([1.0, 0.0], ["a", "a"], level=1.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=50)
def test_a_clustered_mean_lies_in_its_interval_and_the_interval_in_nought_to_one(rows):
    score = clustered_interval([value for value, _ in rows], [name for _, name in rows], n_resamples=200)
    assert -1e-12 <= score.low <= score.value + 1e-12 and score.value - 1e-12 <= score.high <= 1 + 1e-12


def test_sums_and_sizes_a_cluster_by_hand():
    sums = cluster_sums([0.5, 1.0, 0.25, 0.0], ["a", "b", "a", "c"])
    assert sums.tolist() == [[0.0, 1.0], [1.0, 1.0], [0.75, 2.0]]


def test_weights_have_the_mean_and_variance_of_an_exponential():
    weights = weighted_sums(np.eye(4), n_resamples=20_000, seed=3)
    assert weights.shape == (20_000, 4)
    # The standard errors are 0.007 and 0.02: of an exponential, the fourth central moment is 9.
    assert weights.mean(axis=0) == pytest.approx(np.ones(4), abs=0.03)
    assert np.cov(weights.T) == pytest.approx(np.eye(4), abs=0.08)


def test_the_number_of_threads_changes_no_draw(monkeypatch):
    columns = np.random.default_rng(0).random((3000, 2))
    one, many = (
        (monkeypatch.setattr(stats, "_THREADS", threads), weighted_sums(columns, n_resamples=500, seed=0))[1]
        for threads in (1, 3)
    )
    assert np.array_equal(one, many)
    assert len(np.unique(one[:, 0])) == 500


def test_the_pseudo_clusters_alone_are_jeffreys_prior():
    """Nothing observed: Beta(1/2, 1/2), the arcsine law, whose quartiles are sin²(pi / 8) and its complement."""
    nothing = np.zeros((40_000, 2))
    drawn = smoothed(nothing, nothing, size=3.0, seed=0)
    quartile = math.sin(math.pi / 8) ** 2
    found = np.quantile(drawn, [0.25, 0.75], axis=0)
    assert found == pytest.approx(np.array([[quartile] * 2, [1 - quartile] * 2]), abs=0.01)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.03


# -- the worst of k ----------------------------------------------------------------------------------------------------


def test_the_worst_of_two_by_hand():
    score = worst_of([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], ["a", "a", "b", "b", "c", "c"])
    assert score == wilson([True, False, False])


def test_one_answer_a_prompt_is_its_own_worst():
    assert worst_of([1.0, 0.0, 0.5], ["a", "b", "c"]) == mean_interval([1.0, 0.0, 0.5])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_worst_of_fewer_than_were_asked_is_the_mean_over_all_choices(k):
    answers = [0.3, 1.0, 0.0, 0.8, 0.8]
    expected = np.mean([min(some) for some in itertools.combinations(answers, k)])
    assert worst_of(answers, ["a"] * 5, k=k).value == pytest.approx(expected)


def test_a_prompt_with_fewer_answers_is_unscored_since_the_worst_of_fewer_looks_better():
    score = worst_of([1.0, 0.0, 1.0], ["a", "a", "b"], n_unscored=4, n_empty=1)
    assert (score.n, score.n_unscored, score.n_empty, score.value) == (1, 5, 1, 0.0)
    assert worst_of([1.0], ["a"], k=2) is None
    assert worst_of([], []) is None


def test_the_worst_of_no_answers_is_refused():
    with pytest.raises(ValueError, match="worst of 0"):
        worst_of([1.0], ["a"], k=0)


def test_prompts_that_hang_together_are_resampled_together():
    values, prompts = [1.0] * 8 + [0.0] * 8, [prompt for prompt in range(8) for _ in range(2)]
    wide = worst_of(values, prompts, clusters=[prompt // 2 for prompt in prompts])
    assert (wide.low, wide.high) == pytest.approx(proportion_confint(2, 4, method="jeffreys"), abs=0.02)
    assert (wide.n, wide.method) == (8, "cluster-bootstrap")


# -- the average of tasks ----------------------------------------------------------------------------------------------


def test_the_average_of_clustered_scores_has_the_interval_of_their_mean():
    """Against draws of the mean of two independent rates, each Beta as the closed form of a clustered score has it."""
    average = macro_average([clustered_interval(*twins(12, 40)), clustered_interval(*twins(30, 50, size=3))])
    rng = np.random.default_rng(0)
    drawn = (rng.beta(12.5, 28.5, 100_000) + rng.beta(30.5, 20.5, 100_000)) / 2
    assert (average.low, average.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    assert (average.value, average.n, average.method) == (pytest.approx((12 / 40 + 30 / 50) / 2), 230, "macro-mover")


def test_the_average_of_nothing_is_nothing():
    assert macro_average([]) is None


def test_the_average_of_one_rate_is_that_rate():
    one = rate(7, 9, n_unscored=1, n_empty=2, n_truncated=3)
    average = macro_average([one])
    assert (average.low, average.high) == pytest.approx((one.low, one.high), abs=1e-15)
    assert replace(average, low=one.low, high=one.high) == one


def test_two_rates_worked_by_hand():
    # Zou, Huang & Zhang (2009): L = mean - sqrt(Σ (p - l)²) / k, U = mean + sqrt(Σ (u - p)²) / k.
    # Distances below 0.3 and 0.4 (a 3-4-5 triangle: 0.5), above 0.05 and 0.12 (5-12-13: 0.13).
    first = Score(value=0.6, low=0.3, high=0.65, n=10)
    second = Score(value=0.8, low=0.4, high=0.92, n=30)
    average = macro_average([first, second])
    assert average.value == pytest.approx(0.7)
    assert (average.low, average.high) == pytest.approx((0.7 - 0.5 / 2, 0.7 + 0.13 / 2))
    assert (average.n, average.method) == (40, "macro-mover")


def test_two_rates_of_the_paper_agree_with_their_difference():
    """A mean of two is their sum over two, and MOVER's sum of p and 1 - q is one more than its difference p - q.

    Newcombe (1998), method 10, example (a): 56/70 against 48/80 has the interval 0.0524 to 0.3339.
    """
    average = macro_average([rate(56, 70), rate(80 - 48, 80)])
    assert (2 * average.low - 1, 2 * average.high - 1) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_the_average_of_two_perfect_rates_is_not_certain():
    average = macro_average([rate(20, 20), rate(20, 20)])
    assert (average.value, average.high) == (1.0, 1.0)
    # Two equal distances d below: sqrt(2 d²) / 2 = d / sqrt(2).
    assert average.low == pytest.approx(1 - (1 - 20 / 23.8415) / math.sqrt(2), abs=1e-5)


def test_a_large_task_weighs_no_more_than_a_small_one():
    assert macro_average([rate(1000, 1000), rate(0, 10)]).value == 0.5


def test_counts_add_up():
    average = macro_average([rate(1, 2, n_unscored=1, n_empty=2, n_truncated=3), rate(1, 3, n_unscored=10)])
    assert (average.n, average.n_unscored, average.n_empty, average.n_truncated) == (5, 11, 2, 3)


def test_the_order_of_the_tasks_does_not_matter():
    scores = [rate(k, 17) for k in (1, 5, 16, 17)]
    assert macro_average(scores) == macro_average(scores[::-1])


def test_intervals_of_different_levels_are_not_averaged():
    with pytest.raises(ValueError, match="different levels"):
        macro_average([rate(1, 2), rate(1, 2, level=0.9)])
    assert macro_average([rate(1, 2, level=0.9)] * 2).level == 0.9


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=6))
@settings(deadline=None)
def test_an_average_lies_in_its_interval_and_is_narrower_than_the_widest_rate(pairs):
    scores = [rate(min(k, n), n) for k, n in pairs]
    average = macro_average(scores)
    assert 0.0 <= average.low <= average.value <= average.high <= 1.0
    assert average.high - average.low <= max(score.high - score.low for score in scores) + 1e-12


# -- coverage ----------------------------------------------------------------------------------------------------------

cached_rate = cache(rate)


@pytest.mark.parametrize(
    ("rates", "sizes"),
    [
        ((0.9, 0.7, 0.5), (100, 100, 100)),
        ((0.95, 0.8, 0.3), (100, 32, 24)),
        ((0.6, 0.6, 0.6), (24, 24, 24)),
        ((0.97, 0.97, 0.97), (100, 60, 40)),
    ],
)
def test_nineteen_of_twenty_averages_cover_the_truth(rates, sizes):
    rng = np.random.default_rng(20240607)
    draws = rng.binomial(sizes, rates, size=(4000, 3))
    averages = [macro_average([cached_rate(int(k), n) for k, n in zip(row, sizes, strict=True)]) for row in draws]
    truth = sum(rates) / 3
    covered = np.mean([average.low <= truth <= average.high for average in averages])
    # The standard error of the simulation is 0.35 %.
    assert 0.93 <= covered <= 0.97


# -- simulated coverage ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_coverage_promised_of_the_quick_intervals_holds():
    methods = ("wilson", "clopper-pearson", "t", "macro-mover", "tango", "youden")
    command = [sys.executable, BENCHMARK, "--only", *methods]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert (done.returncode, "BROKEN" in done.stdout) == (0, False), done.stdout + done.stderr
    promised = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(("  yes", "  least"))}
    assert promised == set(methods)

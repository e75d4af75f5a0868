"""The trade-off's points, draws and intervals against closed forms, brute force and scipy."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import beta, norm, studentized_range
from statsmodels.stats.proportion import proportion_confint

from bfpo_bench.tradeoff import (
    REFERENCE_POINT,
    Interval,
    ParetoPoint,
    RankInterval,
    TaskOutcomes,
    axis_draws,
    axis_points,
    hypervolume,
    nondominated,
    pareto,
    rank_intervals,
    refusals,
    safety_tax,
)

NAN = math.nan


def task(rows, *, name="one", axis="harmlessness", clusters=None):
    return TaskOutcomes(task=name, axis=axis, values=np.array(rows, dtype=float), clusters=clusters)


def passes(k, n):
    return [1.0] * k + [0.0] * (n - k)


# -- points ------------------------------------------------------------------------------------------------------------


def test_an_axis_is_the_unweighted_mean_of_its_tasks():
    points = axis_points(
        [
            task([[1, 1, 0, 0], [1, NAN, 1, 0]], name="four"),
            task([[1], [0]], name="one"),
            task([[0.5, 0.7], [0.2, NAN]], name="other", axis="helpfulness"),
        ]
    )
    assert points["harmlessness"] == pytest.approx([(1 / 2 + 1) / 2, (2 / 3 + 0) / 2])
    assert points["helpfulness"] == pytest.approx([0.6, 0.2])


def test_a_run_without_a_score_in_a_task_has_no_point_and_no_draws():
    tasks = [task([[1, 0], [NAN, NAN]], name="a"), task([[1, 0], [1, 1]], name="b")]
    assert axis_points(tasks)["harmlessness"][0] == 0.5
    assert np.isnan(axis_points(tasks)["harmlessness"][1])
    draws = axis_draws(tasks, n_resamples=50)["harmlessness"]
    assert np.isfinite(draws[:, 0]).all() and np.isnan(draws[:, 1]).all()


def test_a_task_that_nobody_has_a_score_in_leaves_no_run_a_point():
    nobody = [task([[NAN, NAN], [NAN, NAN]])]
    assert np.isnan(axis_points(nobody)["harmlessness"]).all()
    assert np.isnan(axis_draws(nobody, n_resamples=10)["harmlessness"]).all()
    assert axis_points([]) == axis_draws([]) == {}


def test_outcomes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="1 dimensions"):
        TaskOutcomes(task="flat", axis="harmlessness", values=np.ones(3))
    with pytest.raises(ValueError, match="2 samples, 3 clusters"):
        task([[1, 0]], clusters=["a", "b", "c"])


# -- draws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(3, 10), (50, 100), (98, 100)])
def test_a_rates_draws_have_jeffreys_interval(k, n):
    draws = axis_draws([task([passes(k, n)])], n_resamples=40_000)["harmlessness"][:, 0]
    assert np.quantile(draws, [0.025, 0.975]) == pytest.approx(proportion_confint(k, n, method="jeffreys"), abs=0.005)


def test_a_run_that_passed_everything_may_yet_fail():
    draws = axis_draws([task([passes(20, 20)])], n_resamples=40_000)["harmlessness"][:, 0]
    assert np.quantile(draws, [0.025, 0.5]) == pytest.approx(beta.ppf([0.025, 0.5], 20.5, 0.5), abs=0.005)


def test_what_is_unscored_is_left_out_of_its_own_run_only():
    rows = [passes(30, 50), [*passes(12, 20), *[NAN] * 30]]
    draws = axis_draws([task(rows)], n_resamples=40_000)["harmlessness"]
    for run, (k, n) in enumerate([(30, 50), (12, 20)]):
        expected = proportion_confint(k, n, method="jeffreys")
        assert np.quantile(draws[:, run], [0.025, 0.975]) == pytest.approx(expected, abs=0.007)


def test_runs_share_the_prompts_that_are_drawn():
    """The variance of a difference is (discordant - difference²) / n, and not the sum of the two runs' own."""
    n, only_a, only_b = 1000, 40, 60
    a = [*passes(500, 900), *[1.0] * only_a, *[0.0] * only_b]
    b = [*passes(500, 900), *[0.0] * only_a, *[1.0] * only_b]
    draws = axis_draws([task([a, b])], n_resamples=20_000)["harmlessness"]
    expected = ((only_a + only_b) / n - ((only_b - only_a) / n) ** 2) / n
    assert np.var(draws[:, 1] - draws[:, 0]) == pytest.approx(expected, rel=0.05)
    assert np.var(draws[:, 0]) == pytest.approx(0.54 * 0.46 / n, rel=0.05)


def test_runs_that_agree_on_everything_may_still_differ():
    draws = axis_draws([task([passes(20, 20)] * 2)], n_resamples=20_000)["harmlessness"]
    # Each is Beta(20.5, 0.5), whose variance is a b / ((a + b)² (a + b + 1)); they share the prompts' weights only.
    assert np.var(draws[:, 1] - draws[:, 0]) == pytest.approx(2 * 20.5 * 0.5 / (21**2 * 22), rel=0.1)


def test_copies_of_samples_in_clusters_change_no_draw():
    once = axis_draws([task([passes(7, 10), passes(4, 10)])], n_resamples=100)
    rows = np.repeat([passes(7, 10), passes(4, 10)], 3, axis=1)
    thrice = axis_draws([task(rows, clusters=[i for i in range(10) for _ in range(3)])], n_resamples=100)
    assert thrice["harmlessness"] == pytest.approx(once["harmlessness"])


def test_a_task_more_changes_no_other_tasks_draws_and_their_order_does_not_matter():
    one, other = task([passes(7, 10)], name="a"), task([passes(4, 10)], name="b", axis="helpfulness")
    alone = axis_draws([one], n_resamples=100)["harmlessness"]
    assert np.array_equal(axis_draws([other, one], n_resamples=100)["harmlessness"], alone)
    second = task([passes(4, 10)], name="c")
    both, turned = axis_draws([one, second], n_resamples=100), axis_draws([second, one], n_resamples=100)
    assert np.array_equal(both["harmlessness"], turned["harmlessness"])
    # Two tasks with the same outcomes are drawn independently.
    twin = axis_draws([one, task([passes(7, 10)], name="b")], n_resamples=20_000)["harmlessness"]
    single = axis_draws([one], n_resamples=20_000)["harmlessness"]
    assert np.var(twin) == pytest.approx(np.var(single) / 2, rel=0.05)


def test_the_seed_is_all_that_moves_the_draws():
    one = [task([passes(7, 10)])]
    assert np.array_equal(axis_draws(one, seed=5)["harmlessness"], axis_draws(one, seed=5)["harmlessness"])
    assert not np.array_equal(axis_draws(one, seed=6)["harmlessness"], axis_draws(one, seed=5)["harmlessness"])


# -- the frontier ------------------------------------------------------------------------------------------------------


def dominated(one, other):
    """By the definition: `other` is as good on both axes, and better on one."""
    return other[0] >= one[0] and other[1] >= one[1] and other != one


steps = st.one_of(st.integers(0, 4).map(float), st.just(NAN))


@given(st.lists(st.tuples(steps, steps), min_size=1, max_size=12))
def test_nondominated_is_what_the_definition_says(points):
    there = [point for point in points if not (math.isnan(point[0]) or math.isnan(point[1]))]
    expected = [point in there and not any(dominated(point, other) for other in there) for point in points]
    x, y = np.array(points).T
    assert nondominated(x, y).tolist() == expected
    assert nondominated(np.stack([x, x]), np.stack([y, y])).tolist() == [expected, expected]


def board(x_rows, y_rows, *, n_resamples=4000):
    """Points and draws of runs with such outcomes on one task an axis."""
    tasks = [task(x_rows), task(y_rows, name="two", axis="helpfulness")]
    points, draws = axis_points(tasks), axis_draws(tasks, n_resamples=n_resamples)
    return (points["harmlessness"], points["helpfulness"]), {
        "harmlessness_draws": draws["harmlessness"],
        "helpfulness_draws": draws["helpfulness"],
    }


def test_what_is_far_better_on_both_axes_is_surely_on_the_frontier():
    points, draws = board([passes(90, 100), passes(40, 100)], [passes(80, 100), passes(30, 100)])
    assert pareto(*points, **draws) == [
        ParetoPoint(on_frontier=True, p_nondominated=1.0),
        ParetoPoint(on_frontier=False, p_nondominated=0.0),
    ]


def test_two_that_trade_one_for_the_other_are_both_on_it():
    points, draws = board([passes(90, 100), passes(40, 100)], [passes(30, 100), passes(80, 100)])
    assert [(point.on_frontier, point.p_nondominated) for point in pareto(*points, **draws)] == [(True, 1.0)] * 2


def test_of_two_that_are_alike_one_dominates_the_other_in_a_quarter_of_draws():
    points, draws = board([passes(50, 100)] * 2, [passes(50, 100)] * 2)
    for point in pareto(*points, **draws):
        assert point.on_frontier and point.p_nondominated == pytest.approx(0.75, abs=0.03)


def test_nineteen_of_twenty_is_not_surely_behind_twenty_of_twenty():
    """With equal helpfulness: a plain bootstrap would draw the failure, or not, and never one of the other's."""
    points, draws = board([passes(20, 20), passes(19, 20)], [passes(300, 600)] * 2)
    behind = pareto(*points, **draws)[1]
    assert not behind.on_frontier and 0.1 < behind.p_nondominated < 0.75


def test_a_run_that_is_not_there_has_no_place():
    points, draws = board([passes(5, 10), [NAN] * 10], [passes(5, 10), passes(9, 10)])
    first, second = pareto(*points, **draws)
    assert first == ParetoPoint(on_frontier=True, p_nondominated=1.0) and second is None


# -- hypervolume -------------------------------------------------------------------------------------------------------


def still(x, y):
    """The volume of points whose draws are the points themselves."""
    x, y = np.array(x, dtype=float), np.array(y, dtype=float)
    return hypervolume(x, y, harmlessness_draws=np.stack([x] * 5), helpfulness_draws=np.stack([y] * 5))


def test_the_volume_of_two_by_hand():
    # 0.9 x 0.4 and 0.5 x 0.8, less their overlap 0.5 x 0.4.
    assert still([0.9, 0.5], [0.4, 0.8]).value == pytest.approx(0.36 + 0.4 - 0.2)
    # What another dominates adds nothing, and a perfect model has the whole square.
    assert still([0.9, 0.5, 0.4], [0.4, 0.8, 0.8]).value == pytest.approx(0.56)
    assert still([1.0, 0.5], [1.0, 0.8]).value == 1.0
    assert REFERENCE_POINT == (0.0, 0.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=7))
@settings(deadline=None, max_examples=50)
def test_the_volume_is_that_of_inclusion_and_exclusion(points):
    """The union of rectangles from the corner: those of every subset meet in that of its least sides."""
    union = 0.0
    for size in range(1, len(points) + 1):
        for some in itertools.combinations(points, size):
            union -= (-1) ** size * min(x for x, _ in some) * min(y for _, y in some)
    assert still(*zip(*points, strict=True)).value == pytest.approx(union, abs=1e-9)


def test_the_volume_of_one_run_has_the_interval_of_its_product():
    points, draws = board([passes(70, 100)], [passes(60, 100)], n_resamples=20_000)
    volume = hypervolume(*points, **draws)
    rng = np.random.default_rng(0)
    product = rng.beta(70.5, 30.5, 200_000) * rng.beta(60.5, 40.5, 200_000)
    assert volume.value == pytest.approx(0.42)
    assert (volume.low, volume.high) == pytest.approx(np.quantile(product, [0.025, 0.975]), abs=0.006)


def test_the_volume_of_many_alike_runs_is_corrected_downwards():
    """Eight runs of the same rates: the best of them looks better than any is, and the truth is 0.25."""
    rng = np.random.default_rng(3)
    points, draws = board(rng.random((8, 200)) < 0.5, rng.random((8, 200)) < 0.5)
    volume = hypervolume(*points, **draws)
    plain = np.quantile(draws["harmlessness_draws"].max(axis=1) * draws["helpfulness_draws"].max(axis=1), 0.025)
    assert volume.value > 0.27 and volume.low < volume.value - 0.02 and volume.low < plain


def test_no_run_has_no_volume():
    nothing = np.array([NAN])
    draws = {"harmlessness_draws": nothing[None], "helpfulness_draws": nothing[None]}
    assert hypervolume(nothing, nothing, **draws) is None


# -- the safety tax ----------------------------------------------------------------------------------------------------


def taxed(gain, loss, *, gain_error=0.02, loss_error=0.01, correlation=0.0, level=0.95):
    """From (0.5, 0.7): normal draws with such standard errors of what was gained and lost, and their correlation."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 100_000))
    # Exactly uncorrelated, of mean 0 and variance 1, as far as np.cov sees.
    z = np.linalg.solve(np.linalg.cholesky(np.cov(z)), z - z.mean(axis=1, keepdims=True))
    gained = gain + gain_error * z[0]
    lost = loss + loss_error * (correlation * z[0] + math.sqrt(1 - correlation**2) * z[1])
    nothing = np.zeros(100_000)
    return safety_tax(
        harmlessness=(0.5, 0.5 + gain),
        helpfulness=(0.7, 0.7 - loss),
        harmlessness_draws=(0.5 + nothing, 0.5 + gained),
        helpfulness_draws=(0.7 + nothing, 0.7 - lost),
        level=level,
    )


@pytest.mark.parametrize("correlation", [0.0, 0.6, -0.6])
def test_at_its_limits_the_tax_is_just_not_significantly_another(correlation):
    """loss - r gain is z standard errors off 0 at both: the variance by hand, the roots by a search."""
    tax = taxed(0.2, 0.05, correlation=correlation)
    z = norm.ppf(0.975)

    def excess(r):
        return (0.05 - 0.2 * r) ** 2 - z**2 * (0.01**2 - 2 * r * correlation * 0.01 * 0.02 + r**2 * 0.02**2)

    assert tax.value == pytest.approx(0.25)
    assert tax.low == pytest.approx(brentq(excess, -1, 0.25), abs=1e-6)
    assert tax.high == pytest.approx(brentq(excess, 0.25, 2), abs=1e-6)
    assert not tax.unstable and tax.why == ""


def test_a_surely_known_gain_leaves_the_tax_the_losses_own_interval():
    tax = taxed(0.2, 0.05, gain_error=1e-6)
    assert (tax.low, tax.high) == pytest.approx(((0.05 - 1.96 * 0.01) / 0.2, (0.05 + 1.96 * 0.01) / 0.2), abs=1e-4)
    assert (tax.loss.low, tax.loss.high) == pytest.approx((0.05 - 1.96 * 0.01, 0.05 + 1.96 * 0.01), abs=3e-4)
    assert tax.gain.value == pytest.approx(0.2)


def test_a_gain_that_may_be_nothing_is_flagged():
    tax = taxed(0.03, 0.05)
    assert tax.unstable and (tax.low, tax.high) == (None, None)
    assert tax.value == pytest.approx(5 / 3)
    assert tax.why == "harmlessness changed by +3.0 points (-0.9 to +6.9): it may be 0, and the ratio to it anything"


def test_nothing_gained_is_no_tax():
    tax = taxed(-0.2, 0.05)
    assert (tax.value, tax.low, tax.high, tax.unstable) == (None, None, None, False)
    assert tax.why.endswith("nothing was gained")
    # Perhaps gained, but not as scored.
    tax = taxed(-0.01, 0.05)
    assert (tax.value, tax.unstable) == (None, True)


def test_both_gained_is_a_tax_below_nought():
    tax = taxed(0.2, -0.1)
    assert tax.value == pytest.approx(-0.5) and tax.high < 0


# -- over-refusal ------------------------------------------------------------------------------------------------------


def test_refusals_by_hand():
    """Obeys 10 of 100 harmful requests, refuses 30 of 100 harmless ones; another refuses all of both."""
    tasks = [
        task([passes(90, 100), passes(100, 100), [NAN] * 100]),
        task([passes(70, 100), passes(0, 100), passes(1, 100)], name="two", axis="over_refusal"),
    ]
    points, draws = axis_points(tasks), axis_draws(tasks, n_resamples=20_000)
    one, other, missing = refusals(
        points["harmlessness"], points["over_refusal"],
        harmlessness_draws=draws["harmlessness"], over_refusal_draws=draws["over_refusal"],
    )  # fmt: skip
    assert missing is None
    assert (one.harmful_compliance.value, one.over_refusal.value) == pytest.approx((0.1, 0.3))
    assert one.youden.value == pytest.approx(0.6)
    low, high = proportion_confint(10, 100, method="jeffreys")
    assert (one.harmful_compliance.low, one.harmful_compliance.high) == pytest.approx((low, high), abs=0.005)
    rng = np.random.default_rng(0)
    youden = rng.beta(90.5, 10.5, 200_000) + rng.beta(70.5, 30.5, 200_000) - 1
    assert (one.youden.low, one.youden.high) == pytest.approx(np.quantile(youden, [0.025, 0.975]), abs=0.006)
    # Refusing everything tells nothing apart.
    assert (other.over_refusal.value, other.harmful_compliance.value, other.youden.value) == (1.0, 0.0, 0.0)
    assert other.youden.low < 0 < other.youden.high


# -- ranks -------------------------------------------------------------------------------------------------------------


def ranked(points, errors, *, n=100_000, **options):
    """Of independent normal draws with such standard errors."""
    points = np.array(points, dtype=float)
    drawn = points + np.random.default_rng(0).standard_normal((n, len(points))) * errors
    return [None if rank is None else (rank.low, rank.high) for rank in rank_intervals(points, drawn, **options)]


def test_what_is_far_apart_has_one_rank():
    assert ranked([0.2, 0.9, 0.5], 0.01) == [(3, 3), (1, 1), (2, 2)]


def test_what_is_alike_may_have_any_rank():
    assert ranked([0.5, 0.5, 0.5], 0.01) == [(1, 3)] * 3


def test_a_tie_within_a_field():
    assert ranked([0.9, 0.52, 0.5, 0.1], 0.02) == [(1, 1), (2, 3), (2, 3), (4, 4)]


@pytest.mark.parametrize("n_runs", [2, 4, 8])
def test_runs_of_equal_errors_are_told_apart_from_tukeys_range_on(n_runs):
    """All pairs at once, normal and independent: the studentised range's quantile times one run's standard error."""
    range_ = studentized_range.ppf(0.95, n_runs, 10_000) * 0.01
    others = [0.0] * (n_runs - 2)
    assert ranked([1.0, 1.0 + 1.02 * range_, *others], 0.01)[:2] == [(2, 2), (1, 1)]
    assert ranked([1.0, 1.0 + 0.98 * range_, *others], 0.01)[:2] == [(1, 2), (1, 2)]


def test_a_lower_level_tells_more_apart():
    assert ranked([0.5, 0.525], 0.01) == [(1, 2), (1, 2)]
    assert ranked([0.5, 0.525], 0.01, level=0.8) == [(2, 2), (1, 1)]


def test_draws_in_common_tell_apart_what_single_intervals_do_not():
    """Runs that rise and fall with the same prompts: each may be off by 0.05, their difference by 0.001."""
    rng = np.random.default_rng(0)
    common = 0.05 * rng.standard_normal((5000, 1)) + 0.001 * rng.standard_normal((5000, 2))
    assert rank_intervals(np.array([0.5, 0.51]), common + np.array([0.5, 0.51])) == [
        RankInterval(low=2, high=2),
        RankInterval(low=1, high=1),
    ]


def test_one_run_is_first_and_one_that_is_not_there_has_no_rank():
    assert ranked([0.5], 0.01) == [(1, 1)]
    assert ranked([0.5, NAN, 0.9], 0.01) == [(2, 2), None, (1, 1)]
    assert ranked([NAN], 0.01) == [None]


def test_of_very_many_runs_fewer_draws_are_used_and_the_ranks_hold(monkeypatch):
    monkeypatch.setattr("bfpo_bench.tradeoff._COMPARISONS", 10)
    assert ranked([0.2, 0.9, 0.5], 0.01) == [(3, 3), (1, 1), (2, 2)]


def test_an_interval_has_its_value_inside():
    """Jeffreys' draws are pulled towards the middle: of a perfect run they do not reach its point."""
    points, draws = board([passes(50, 50)], [passes(50, 50)])
    volume = hypervolume(*points, **draws)
    assert isinstance(volume, Interval) and volume.low < volume.value == volume.high == 1.0


# -- the table of coverage ---------------------------------------------------------------------------------------------

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "coverage.py"


@pytest.fixture
def coverage():
    spec = importlib.util.spec_from_file_location("coverage_of_tradeoff", BENCHMARK)
    benchmark = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    yield benchmark
    del sys.modules[spec.name]


@pytest.mark.parametrize(("right", "status"), [(True, 0), (False, 1)])
def test_a_statement_that_is_wrong_too_often_fails_the_table(coverage, monkeypatch, capsys, right, status):
    statement = coverage.Statement(
        method="coin", design="", draw=lambda rng, rate, runs: [right] * runs, rates=(0.5,), promised=(0.93, 1.0)
    )
    monkeypatch.setattr(coverage, "STATEMENTS", {"coin": statement})
    assert coverage.main(["--runs", "10", "--only", "coin"]) == status
    assert ("BROKEN" in capsys.readouterr().out) is not right


def test_correlated_runs_have_the_rates_they_are_told_and_share_half(coverage):
    """Passes follow the prompt's number one time in two: both do in a quarter, where they agree as far as they can."""
    passed = coverage.together(np.random.default_rng(0), [0.4, 0.4], 50, n=2000)
    assert passed.mean(axis=(0, 2)) == pytest.approx([0.4, 0.4], abs=0.01)
    both = (passed[:, 0] * passed[:, 1]).mean()
    assert both == pytest.approx(0.4**2 + 0.25 * (0.4 - 0.4**2), abs=0.01)


def test_discordant_runs_differ_as_often_as_they_are_told(coverage):
    a, b = coverage.discordant(np.random.default_rng(0), 0.2, (200, 50), size=4, gain=0.5)
    assert ((a != b).mean(), (b - a).mean()) == (pytest.approx(0.2, abs=0.01), pytest.approx(0.1, abs=0.01))

"""Paired tests and intervals against closed forms, scipy, statsmodels and published examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, norm, permutation_test, t, ttest_rel
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from bfpo_bench.paired import PairedDifference, holm, macro_difference, mcnemar, paired_difference, sign_flip


def outcomes(*, only_a, only_b, n):
    """Passes of A and B on n samples of which so many are passed by one alone; half of the others by both."""
    alike = [1.0, 0.0] * n
    rest = alike[: n - only_a - only_b]
    return [1.0] * only_a + [0.0] * only_b + rest, [0.0] * only_a + [1.0] * only_b + rest


def compared(*, only_a, only_b, n, **options):
    return paired_difference(*outcomes(only_a=only_a, only_b=only_b, n=n), **options)


# -- passes and fails --------------------------------------------------------------------------------------------------


def test_one_against_seven_worked_by_hand():
    # Of eight samples that one alone passed, seven or more on one side: 2 (1 + 8) / 2^8.
    found = compared(only_a=1, only_b=7, n=21)
    assert (found.p, found.test) == (pytest.approx(18 / 256), "mcnemar-exact")
    assert (found.n, found.n_clusters, found.n_only_a, found.n_only_b) == (21, 21, 1, 7)
    assert found.difference == pytest.approx(6 / 21) == pytest.approx(found.value_b - found.value_a)


def test_its_interval_is_the_published_one():
    """Two examples of Fagerland, Lydersen & Laake (2014): 1 and 7 of 21 (Bentur et al.), 6 and 16 of 161 (Cavo et al.).

    Their differences are A less B.
    """
    found = compared(only_a=1, only_b=7, n=21)
    assert (-found.high, -found.low) == pytest.approx((-0.517, -0.026), abs=5e-4)
    found = compared(only_a=6, only_b=16, n=161)
    assert (-found.high, -found.low) == pytest.approx((-0.124, -0.005), abs=5e-4)


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(1, 7, 21), (0, 3, 40), (20, 5, 60), (9, 0, 10), (30, 30, 100)])
def test_the_score_test_just_does_not_reject_the_limits(only_a, only_b, n):
    """Tango's statistic at a limit is z, with the discordant rates that are most likely there, found by a search."""
    found = compared(only_a=only_a, only_b=only_b, n=n)
    for limit in (found.low, found.high):

        def unlikeliness(p_a, limit=limit):
            p_b, p_same = p_a + limit, 1 - 2 * p_a - limit
            rates = ((only_a, p_a), (only_b, p_b), (n - only_a - only_b, p_same))
            return -sum(count * math.log(max(rate, 1e-300)) for count, rate in rates if count)

        p_a = minimize_scalar(
            unlikeliness, bounds=(max(0.0, -limit), (1 - limit) / 2), method="bounded", options={"xatol": 1e-12}
        ).x
        variance = (2 * p_a + limit - limit**2) / n
        assert abs(found.difference - limit) / math.sqrt(variance) == pytest.approx(norm.ppf(0.975), rel=2e-4)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_runs_that_agree_on_everything_may_still_differ(level):
    """Without a discordant sample the score interval ends at z² / (n + z²)."""
    found = compared(only_a=0, only_b=0, n=50, level=level)
    z2 = norm.ppf((1 + level) / 2) ** 2
    assert (found.low, found.high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)))
    assert (found.p, found.difference, found.level) == (1.0, 0.0, level)


def test_one_that_passed_what_the_other_failed_is_not_surely_so_always():
    """All samples discordant one way: (n - z²) / (n + z²), from solving the score equation by hand."""
    found = compared(only_a=0, only_b=10, n=10)
    z2 = norm.ppf(0.975) ** 2
    assert (found.low, found.high) == pytest.approx(((10 - z2) / (10 + z2), 1.0))


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 9), (12, 12), (40, 60), (0, 0)])
def test_the_test_is_that_of_statsmodels(only_a, only_b):
    expected = statsmodels_mcnemar([[5, only_a], [only_b, 7]], exact=True).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected)


def test_the_other_way_round_is_the_mirror_image():
    a, b = outcomes(only_a=3, only_b=11, n=60)
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert (other.difference, other.low, other.high) == pytest.approx((-one.difference, -one.high, -one.low), abs=1e-9)
    assert (other.p, other.n_only_a, other.n_only_b) == (one.p, 11, 3)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
@settings(deadline=None, max_examples=60)
def test_the_difference_lies_in_its_interval(pairs):
    found = paired_difference([float(a) for a, _ in pairs], [float(b) for _, b in pairs])
    assert -1 <= found.low <= found.difference <= found.high <= 1
    assert 0 < found.p <= 1


# -- scores, and clusters ----------------------------------------------------------------------------------------------


def test_few_clusters_have_all_signs_tried():
    # |±1 ±2 ±3| reaches 6 in two of eight ways, and 4 or more in four.
    assert sign_flip(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert sign_flip(np.array([-1.0, 2.0, 3.0])) == 4 / 8
    # A cluster without a difference has no say; and none at all has no finding.
    assert sign_flip(np.array([1.0, 0.0, 2.0, 3.0])) == 2 / 8
    # Nor has one whose differences cancel but for their last bits.
    assert sign_flip(np.array([1.0, 0.1 + 0.2 - 0.3, 2.0, 3.0])) == 2 / 8
    assert sign_flip(np.zeros(5)) == 1.0


def test_signs_of_single_samples_are_mcnemars_test():
    sums = np.array([1.0] * 9 + [-1.0] * 3)
    assert sign_flip(sums) == pytest.approx(binomtest(9, 12).pvalue)
    # Sixty samples have their signs drawn: within four standard errors.
    expected = binomtest(38, 60).pvalue
    drawn = sign_flip(np.array([1.0] * 38 + [-1.0] * 22), n_resamples=20_000)
    assert drawn == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 20_000))


def test_random_signs_have_the_p_of_scipys_permutation_test():
    rng = np.random.default_rng(5)
    sums = rng.normal(0.25, 1.0, 40)
    mean = lambda x, axis: x.mean(axis=axis)  # noqa: E731
    options = {"permutation_type": "samples", "vectorized": True, "n_resamples": 20_000, "rng": rng}
    expected = permutation_test((sums,), mean, **options).pvalue
    assert sign_flip(sums, n_resamples=20_000) == pytest.approx(expected, abs=0.015)


def test_no_p_of_drawn_signs_is_nought():
    assert sign_flip(np.ones(200), n_resamples=999) == 1 / 1000


def test_the_seed_is_all_that_moves_a_drawn_p():
    sums = np.random.default_rng(1).normal(0.2, 1, 50)
    assert sign_flip(sums, seed=3) == sign_flip(sums, seed=3) == sign_flip(sums[::-1], seed=3)
    assert sign_flip(sums, seed=4) != sign_flip(sums, seed=3)


def scores(n, *, seed=2, gain=0.05):
    rng = np.random.default_rng(seed)
    a = rng.beta(4, 4, n)
    return a.tolist(), np.clip(a + rng.normal(gain, 0.15, n), 0, 1).tolist()


def test_many_scores_have_the_paired_t_interval():
    a, b = scores(500)
    found, expected = paired_difference(a, b), ttest_rel(b, a).confidence_interval()
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05 * width)
    assert (found.test, found.method, found.n_clusters) == ("sign-flip", "bootstrap", 500)
    assert found.p == pytest.approx(ttest_rel(b, a).pvalue, abs=0.002)


def test_few_scores_have_intervals_as_wide_as_students():
    """A percentile interval of ten is narrower by 1.96 sqrt(9 / 10) / 2.26, which is 0.82."""
    ratios = []
    for seed in range(40):
        a, b = scores(10, seed=seed)
        found, expected = paired_difference(a, b, n_resamples=2000), ttest_rel(b, a).confidence_interval()
        ratios.append((found.high - found.low) / (expected.high - expected.low))
    assert 0.9 < np.mean(ratios) < 1.1


def test_copies_of_samples_make_no_difference_surer():
    a, b = outcomes(only_a=4, only_b=12, n=60)
    names = [i for i in range(60) for _ in range(3)]
    thrice = paired_difference(np.repeat(a, 3).tolist(), np.repeat(b, 3).tolist(), clusters=names)
    single = paired_difference(a, b)
    assert (thrice.test, thrice.method, thrice.n, thrice.n_clusters) == ("sign-flip", "cluster-bootstrap", 180, 60)
    assert thrice.p == pytest.approx(single.p, abs=0.02)
    assert (thrice.low, thrice.high) == pytest.approx((single.low, single.high), abs=0.02)
    assert (thrice.n_only_a, thrice.n_only_b) == (12, 36)


def test_clusters_of_one_are_no_clusters():
    a, b = outcomes(only_a=4, only_b=12, n=60)
    assert paired_difference(a, b, clusters=[str(i) for i in range(60)]) == paired_difference(a, b)


def test_clusters_that_agree_may_still_differ():
    """Against draws made otherwise: Dirichlet weights of 30 alike clusters and of one that differs, either way."""
    found = paired_difference([1.0] * 60, [1.0] * 60, clusters=[i for i in range(30) for _ in range(2)])
    weights = np.random.default_rng(0).dirichlet([30, 1, 1], 200_000)
    tail = norm.sf(t.ppf(0.975, 29) * math.sqrt(31 / 29))
    expected = np.quantile(weights[:, 1] - weights[:, 2], 1 - tail)
    assert (found.low, found.high) == pytest.approx((-expected, expected), abs=0.012)
    assert (found.p, found.difference) == (1.0, 0.0)


def test_equal_differences_are_not_certain():
    """As many weights as samples, and one of either extreme: against draws made otherwise."""
    found = paired_difference([0.25] * 40, [0.5] * 40)
    weights = np.random.default_rng(0).dirichlet([40, 1, 1], 200_000)
    drawn = 0.25 * weights[:, 0] + weights[:, 1] - weights[:, 2]
    tail = norm.sf(t.ppf(0.975, 39) * math.sqrt(41 / 39))
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [tail, 1 - tail]), abs=0.01)
    assert found.low < 0.2 and found.high > 0.27
    assert found.minimum_detectable is None and found.why_no_minimum.startswith("40 differences are too few")


def test_the_order_of_rows_and_no_seed_but_the_given_one_matters():
    a, b = scores(40)
    order = np.random.default_rng(0).permutation(40)
    one, again = paired_difference(a, b), paired_difference([a[i] for i in order], [b[i] for i in order])
    assert (again.low, again.high, again.p) == pytest.approx((one.low, one.high, one.p), abs=1e-12)
    other = paired_difference(a, b, seed=1)
    assert other.low != one.low and other.low == pytest.approx(one.low, abs=0.01)


# -- what such a comparison can find -----------------------------------------------------------------------------------


def test_the_minimum_detectable_difference_solves_connors_formula():
    """n = (z(0.975) sqrt(psi) + z(0.8) sqrt(psi - d²))² / d², with psi 0.3 and n 200."""
    d = compared(only_a=20, only_b=40, n=200).minimum_detectable
    n = (norm.ppf(0.975) * math.sqrt(0.3) + norm.ppf(0.8) * math.sqrt(0.3 - d**2)) ** 2 / d**2
    assert n == pytest.approx(200)


def test_mcnemars_test_finds_it_four_times_in_five():
    """The exact test's power, summed over all outcomes; a little below the formula's, that of the asymptotic test."""
    d, n, psi = compared(only_a=40, only_b=40, n=200).minimum_detectable, 200, 0.4
    power = 0.0
    for discordant in range(1, n + 1):
        k = np.arange(discordant + 1)
        # Rejected are both tails of at most 2.5 % of a fair coin.
        rejected = (binom.cdf(k, discordant, 0.5) < 0.025) | (binom.sf(k - 1, discordant, 0.5) < 0.025)
        found = binom.pmf(k, discordant, (psi + d) / 2 / psi)[rejected].sum()
        power += binom.pmf(discordant, n, psi) * found
    assert 0.75 <= power <= 0.81


def test_scores_have_the_minimum_of_a_paired_t_test():
    a, b = scores(400)
    deviation = np.std(np.subtract(b, a), ddof=1)
    expected = TTestPower().solve_power(nobs=400, alpha=0.05, power=0.8) * deviation
    assert paired_difference(a, b).minimum_detectable == pytest.approx(expected, rel=0.01)


def test_more_samples_find_less():
    few, many = compared(only_a=5, only_b=5, n=50), compared(only_a=50, only_b=50, n=500)
    assert many.minimum_detectable < few.minimum_detectable / 2


@pytest.mark.parametrize("only_b", [0, 1, 7])
def test_too_few_discordant_samples_tell_no_minimum(only_b):
    """Even if all are on one side, d = psi: sqrt(n psi) is to reach 1.96 + 0.84 sqrt(1 - psi), which is 2.77² = 7.7."""
    found = compared(only_a=0, only_b=only_b, n=100)
    why = f"{only_b} of 100 samples differ, too few to tell how often such runs do"
    assert (found.minimum_detectable, found.why_no_minimum) == (None, why)
    assert compared(only_a=0, only_b=8, n=100).why_no_minimum == ""


def test_clusters_that_agree_tell_no_minimum():
    found = paired_difference([1.0] * 4, [1.0] * 4, clusters=["a", "a", "b", "b"])
    assert found.minimum_detectable is None and found.why_no_minimum.startswith("2 differences are too few")


# -- several tasks -----------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # 3 x 0.01, 2 x 0.03 and 1 x 0.04, which may not fall below the one before it.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None, max_examples=20)
def test_holm_is_that_of_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def difference(value, low, high, **options):
    known = {"n": 10, "value_a": 0.4, "value_b": 0.4 + value, "p": 1.0, "test": "sign-flip", "method": "bootstrap"}
    known |= {"n_only_a": 0, "n_only_b": 0, "n_clusters": 10, "minimum_detectable": None}
    return PairedDifference(difference=value, low=low, high=high, **(known | options))


def test_two_tasks_worked_by_hand():
    # Distances below 0.03 and 0.04 (0.05 by Pythagoras), above 0.05 and 0.12 (0.13).
    mean = macro_difference([difference(0.1, 0.07, 0.15), difference(-0.2, -0.24, -0.08, n=30)])
    assert (mean.difference, mean.low, mean.high) == pytest.approx((-0.05, -0.05 - 0.025, -0.05 + 0.065))
    assert (mean.n_tasks, mean.n, mean.level) == (2, 40, 0.95)
    assert (mean.value_a, mean.value_b) == pytest.approx((0.4, 0.35))


def test_the_mean_of_one_task_is_that_task_and_of_none_nothing():
    mean = macro_difference([difference(0.1, 0.07, 0.15)])
    assert (mean.difference, mean.low, mean.high) == pytest.approx((0.1, 0.07, 0.15))
    assert macro_difference([]) is None


def test_differences_of_different_levels_are_not_averaged():
    with pytest.raises(ValueError, match="different levels"):
        macro_difference([difference(0.1, 0.0, 0.2), difference(0.1, 0.0, 0.2, level=0.9)])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_no_samples_are_no_comparison():
    assert paired_difference([], []) is None


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ([1.0], [1.0, 0.0], {}, "1 of A, 2 of B"),
        ([1.0], [1.0], {"clusters": ["a", "b"]}, "2 clusters' names"),
        ([math.nan], [1.0], {}, "leave out"),
        ([1.0], [1.5], {}, "from 0 to 1"),
        ([1.0], [1.0], {"level": 95}, "level"),
    ],
    ids=["lengths", "clusters", "unscored", "range", "level"],
)
def test_samples_that_do_not_pair_up_are_refused(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(a, b, **options)


def test_every_sign_is_tried_as_itertools_would():
    sums = np.array([0.3, -0.1, 0.7, 0.2, 0.2])
    ways = [abs(sum(s * v for s, v in zip(signs, sums, strict=True))) for signs in itertools.product((1, -1), repeat=5)]
    assert sign_flip(sums) == np.mean([way >= abs(sums.sum()) - 1e-12 for way in ways])

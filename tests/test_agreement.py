"""Agreement against hand arithmetic, libraries and simulation; panels and judge swaps against cases made by hand."""

from __future__ import annotations

import math

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import inter_rater
from statsmodels.stats.proportion import proportion_confint

from bfpo_bench.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha

# Krippendorff (2011): four observers, twelve units, missing values; alpha is 0.743 nominal, 0.849 interval.
KRIPPENDORFF_2011 = list(
    zip(
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
        strict=True,
    )
)


def votes(text):
    """One unit a word, one judge a letter; a dot is a missing vote."""
    return [[None if letter == "." else letter for letter in word] for word in text.split()]


def pair(text):
    return list(zip(*votes(text), strict=True))


def cohen(text, **options):
    return cohen_kappa(*pair(text), **{"seed": 1} | options)


def random_ratings(seed, *, n, judges, labels, agree, missing=0.0):
    """Judges that give a unit's own label with probability `agree`, else any; a vote is missing with `missing`."""
    rng = np.random.default_rng(seed)
    own = rng.choice(len(labels), (n, 1))
    given = np.where(rng.random((n, judges)) < agree, own, rng.choice(len(labels), (n, judges)))
    gone = rng.random((n, judges)) < missing
    return [[None if g else labels[v] for v, g in zip(*row, strict=True)] for row in zip(given, gone, strict=True)]


ALL = [
    pytest.param(lambda r, **o: cohen_kappa([x[0] for x in r], [x[1] for x in r], **o), id="cohen"),
    pytest.param(fleiss_kappa, id="fleiss"),
    pytest.param(lambda r, **o: krippendorff_alpha(r, metric="nominal", **o), id="krippendorff"),
]

# -- the coefficients --------------------------------------------------------------------------------------------------


def test_cohen_worked_by_hand():
    # p_o = 35/50 = 0.7; the first says r 25 of 50, the second 30 of 50: p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    one = cohen("rr " * 20 + "rs " * 5 + "sr " * 10 + "ss " * 15)
    assert one.value == pytest.approx(0.4)
    assert (one.n, one.n_left_out, one.n_clusters, one.level) == (50, 0, 50, 0.95)


def test_fleiss_and_krippendorff_worked_by_hand():
    # Disagreement 0, 2/3, 0, 2/3: 1/3 on the whole. Six of twelve votes are r: by chance 1/2, and
    # (144 - 36 - 36) / (12 * 11) = 6/11 where a vote is not paired with itself.
    ratings = votes("rrr rrs sss rss")
    assert fleiss_kappa(ratings, seed=1).value == pytest.approx(1 / 3)
    assert krippendorff_alpha(ratings, metric="nominal", seed=1).value == pytest.approx(1 - 11 / 18)


def test_interval_alpha_worked_by_hand():
    # Squares of differences within units, both ways: 2 + 0 + 2 over 6 votes. Of all 30 ordered pairs of
    # 1, 2, 3, 3, 5, 4: 2 (6 * 64 - 18²) / 30 = 4.
    assert krippendorff_alpha([(1, 2), (3, 3), (5, 4)], metric="interval", seed=1).value == pytest.approx(1 - 4 / 6 / 4)


@pytest.mark.parametrize(("metric", "published"), [("nominal", 0.743), ("interval", 0.849)])
def test_alpha_of_krippendorffs_own_example(metric, published):
    one = krippendorff_alpha(KRIPPENDORFF_2011, metric=metric, seed=1)
    assert one.value == pytest.approx(published, abs=5e-4)
    assert (one.n, one.n_left_out) == (11, 1)


@pytest.mark.parametrize("seed", range(5))
def test_cohen_is_that_of_statsmodels_and_of_scikit_learn(seed):
    a, b = zip(*random_ratings(seed, n=60, judges=2, labels="rsh", agree=0.2 * seed), strict=True)
    table = [[sum(pair == (x, y) for pair in zip(a, b, strict=True)) for y in "rsh"] for x in "rsh"]
    one = cohen_kappa(a, b, seed=1)
    assert one.value == pytest.approx(inter_rater.cohens_kappa(table, return_results=False))
    assert one.value == pytest.approx(cohen_kappa_score(a, b))


@pytest.mark.parametrize("judges", [2, 3, 5])
def test_fleiss_is_that_of_statsmodels_over_the_units_that_all_rated(judges):
    ratings = random_ratings(judges, n=80, judges=judges, labels="rsh", agree=0.6, missing=0.1)
    complete = [row for row in ratings if None not in row]
    one = fleiss_kappa(ratings, seed=1)
    assert one.value == pytest.approx(inter_rater.fleiss_kappa([[row.count(x) for x in "rsh"] for row in complete]))
    assert (one.n, one.n_left_out) == (len(complete), 80 - len(complete))
    assert 0 < one.n_left_out < 80


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("metric", ["nominal", "interval"])
def test_alpha_is_that_of_the_krippendorff_package(metric, missing):
    # Grades with fractions, far from 0, so that neither origin nor unit may matter.
    ratings = random_ratings(7, n=70, judges=3, labels=[1000.1, 1000.25, 1000.5, 1001.0], agree=0.5, missing=missing)
    matrix = np.array([[math.nan if x is None else x for x in row] for row in ratings]).T
    one = krippendorff_alpha(ratings, metric=metric, seed=1)
    expected = krippendorff.alpha(reliability_data=matrix, level_of_measurement=metric)
    assert one.value == pytest.approx(expected, abs=1e-9)


def test_two_judges_leave_out_what_one_of_them_did_not_rate():
    full, holed = cohen("rr rs ss sr rr ss"), cohen("rr rs .s ss sr r. .. rr ss")
    assert (holed.value, holed.low, holed.high, holed.n) == (full.value, full.low, full.high, 6)
    assert holed.n_left_out == 3


@pytest.mark.parametrize("agreement", ALL)
def test_one_category_is_neither_perfect_nor_no_agreement(agreement):
    assert agreement(votes("rr rr rr rr"), seed=1) is None
    assert agreement(votes("rr rr rr rs"), seed=1) is not None


@pytest.mark.parametrize("agreement", ALL)
def test_without_two_units_in_common_there_is_no_agreement(agreement):
    assert agreement([], seed=1) is None
    assert agreement(votes("r. .s"), seed=1) is None
    assert agreement(votes("rs r. .s"), seed=1) is None


def test_equal_numbers_have_no_alpha_however_they_round():
    assert krippendorff_alpha([(0.1, 0.1, 0.1)] * 7, metric="interval", seed=1) is None
    assert krippendorff_alpha([], metric="interval", seed=1) is None


@pytest.mark.parametrize("agreement", ALL)
def test_perfect_agreement_is_one(agreement):
    one = agreement(votes("rr ss hh rr ss"), seed=1)
    assert (one.value, one.high) == (1.0, 1.0)


def test_a_judge_that_always_says_the_same_agrees_no_more_than_chance():
    assert cohen("rr rr rr rs").value == 0.0


@pytest.mark.parametrize("agreement", ALL)
def test_the_order_of_judges_and_units_and_the_names_of_labels_do_not_matter(agreement):
    ratings = random_ratings(3, n=90, judges=2, labels="rsh", agree=0.6)
    one = agreement(ratings, seed=1)
    assert agreement(ratings[::-1], seed=1) == one
    swapped = agreement([row[::-1] for row in ratings], seed=1)
    renamed = agreement([[{"r": "z", "s": "y", "h": "x"}[v] for v in row] for row in ratings], seed=1)
    for other in (swapped, renamed):
        assert other.value == pytest.approx(one.value, abs=1e-12)
        # Other resamples of the same data.
        assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=0.03)


def test_what_cannot_be_rated_is_refused():
    with pytest.raises(ValueError, match="same units, got 2 and 1"):
        cohen_kappa(["r", "s"], ["r"], seed=1)
    with pytest.raises(ValueError, match="unit 1 has 3 votes"):
        fleiss_kappa([["r", "s"], ["r", "s", "s"]], seed=1)
    with pytest.raises(ValueError, match="at least two"):
        fleiss_kappa([["r"], ["s"]], seed=1)
    with pytest.raises(ValueError, match="one cluster a unit, got 1 for 2"):
        fleiss_kappa(votes("rs rr"), clusters=["x"], seed=1)
    with pytest.raises(ValueError, match="numbers, got 'r'; use nominal"):
        krippendorff_alpha(votes("rs rr"), metric="interval", seed=1)
    with pytest.raises(ValueError, match="unit 0 has a vote that is no finite number"):
        krippendorff_alpha([(math.nan, 1.0), (1.0, 1.0)], metric="nominal", seed=1)
    with pytest.raises(ValueError, match="metric"):
        krippendorff_alpha(votes("rs rr"), metric="ordinal", seed=1)
    with pytest.raises(ValueError, match="level"):
        fleiss_kappa(votes("rs rr"), level=95, seed=1)


# -- their intervals ---------------------------------------------------------------------------------------------------


def scipy_bca(ratings, statistic):
    data = np.array(ratings)
    result = stats.bootstrap(
        (np.arange(len(data)),),
        lambda i: statistic(data[i]),
        vectorized=False,
        method="BCa",
        n_resamples=4000,
        rng=np.random.default_rng(3),
    )
    return tuple(result.confidence_interval)


def test_the_interval_of_cohen_is_the_bca_of_scipy():
    ratings = random_ratings(11, n=120, judges=2, labels=[0, 1], agree=0.9)
    one = cohen_kappa(*zip(*ratings, strict=True), seed=1)

    def kappa(rows):
        a, b = rows.T
        p_e = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
        return ((a == b).mean() - p_e) / (1 - p_e)

    assert one.method == "cohen-bca"
    assert (one.low, one.high) == pytest.approx(scipy_bca(ratings, kappa), abs=0.015)


def test_the_interval_of_alpha_is_the_bca_of_scipy():
    # Few units, one far from agreement: bias and skewness both matter, and percentiles would be elsewhere.
    ratings = [[x, x + 0.1 * (-1) ** i] for i, x in enumerate(np.linspace(0, 1, 11).tolist())] + [[0.0, 0.9]]
    one = krippendorff_alpha(ratings, metric="interval", seed=1)
    grid = scipy_bca(ratings, lambda rows: 1 - ss_within(rows) / ss_total(rows))
    assert one.method == "krippendorff-interval-bca"
    assert (one.low, one.high) == pytest.approx(grid, abs=0.03)


def ss_within(rows):
    """Mean square difference of the two votes of a unit."""
    return ((rows[:, 0] - rows[:, 1]) ** 2).mean()


def ss_total(rows):
    """Mean square difference of any two votes: twice their variance."""
    return 2 * rows.var(ddof=1)


def test_perfect_agreement_is_not_certain():
    # Wilson's upper limit of 0 disagreements in 20 is z² / (n + z²) = 0.1611, of the 0.5 expected by chance.
    one = cohen("rr " * 10 + "ss " * 10)
    assert (one.value, one.high, one.method) == (1.0, 1.0, "cohen-wilson")
    assert one.low == pytest.approx(1 - 0.1611 / 0.5, abs=1e-4)


def test_a_rare_category_not_agreed_on_may_yet_be():
    # No resample has a unit that both call h, and a bootstrap would put agreement by chance (0) out of the question:
    # its upper limit is below 0. Wilson's lower limit of 40 in 400 is 0.0743, of 0.095 expected.
    one = cohen("hs " * 20 + "sh " * 20 + "ss " * 360)
    assert one.value == pytest.approx(1 - 0.1 / 0.095)
    assert one.high == pytest.approx(1 - 0.0743 / 0.095, abs=1e-3)
    assert one.method == "cohen-wilson"


def test_where_many_resamples_have_one_category_only_they_do_not_make_the_interval():
    # Two units of thirty hold all the h: e^-2 = 13 % of resamples have none.
    one = cohen("hh hs " + "ss " * 28)
    assert one.method == "cohen-wilson"
    # Expected by chance: 1 - (2 * 1 + 28 * 29) / 900.
    low, high = proportion_confint(1, 30, method="wilson")
    assert (one.low, one.high) == pytest.approx((1 - high / (86 / 900), 1 - low / (86 / 900)))


def test_one_cluster_with_all_of_a_category_makes_no_bootstrap_interval():
    units, clusters = "hh hs " + "ss " * 28, ["x", "x", *map(str, range(28))]
    assert cohen(units, clusters=clusters, level=0.2).method == "cohen-wilson"
    alone = cohen("hh hs ss ss", clusters=["x"] * 4)
    # As a rate of one: p_o = 3/4, p_e = 1/2, and Wilson's limits of 1/4 with n = 1 are 0.0146 and 0.8821.
    assert (alone.method, alone.n_clusters) == ("cohen-wilson", 1)
    assert (alone.low, alone.high) == pytest.approx((1 - 0.8821 / 0.5, 1 - 0.0146 / 0.5), abs=1e-3)


def test_an_interval_ends_where_the_coefficient_does():
    # One disagreement in thirty is all that is expected by chance; Wilson's upper limit, 1/6, would be kappa of -4.
    assert cohen("hs " + "ss " * 29).low == -1.0


@given(
    st.lists(st.sampled_from(votes("rrr rrs rss sss hhh rsh .rr r.s")), min_size=2, max_size=12), st.floats(0.5, 0.99)
)
@settings(deadline=None)
def test_the_value_lies_in_its_interval_and_the_interval_in_minus_one_to_one(ratings, level):
    for one in (
        krippendorff_alpha(ratings, metric="nominal", level=level, seed=1),
        fleiss_kappa(ratings, level=level, seed=1),
    ):
        assert one is None or -1.0 <= one.low <= one.value <= one.high <= 1.0


def test_interval_and_value_are_the_same_from_the_same_seed_only():
    ratings = random_ratings(5, n=50, judges=3, labels="rs", agree=0.5)
    one, again, other = (fleiss_kappa(ratings, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert other.value == one.value
    assert (other.low, other.high) != (one.low, one.high)


def test_a_higher_level_is_a_wider_interval():
    ratings = random_ratings(5, n=50, judges=3, labels="rs", agree=0.5)
    narrow, wide = (krippendorff_alpha(ratings, metric="nominal", level=level, seed=1) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_repeated_units_of_a_cluster_add_no_certainty():
    units = [row for row in random_ratings(8, n=40, judges=2, labels="rs", agree=0.6)]
    once = cohen_kappa(*zip(*units, strict=True), seed=1)
    repeated = list(zip(*[row for row in units for _ in range(5)], strict=True))
    clustered = cohen_kappa(*repeated, clusters=[str(i // 5) for i in range(200)], seed=1)
    assert (clustered.n, clustered.n_clusters) == (200, 40)
    assert (clustered.value, clustered.low, clustered.high) == pytest.approx((once.value, once.low, once.high))
    naive = cohen_kappa(*repeated, seed=1)
    # Five times the data: an interval 1 / sqrt(5) = 0.45 as wide.
    assert naive.high - naive.low < 0.6 * (once.high - once.low)


def test_a_unit_of_no_cluster_is_its_own():
    ratings = votes("rr rs ss sr rr ss hh hs")
    assert fleiss_kappa(ratings, clusters=[None] * 8, seed=1) == fleiss_kappa(ratings, seed=1)
    assert fleiss_kappa(ratings, clusters=["x", "x", None, None, "y", "y", None, "0"], seed=1).n_clusters == 6


@pytest.mark.parametrize(("kappa", "n", "share"), [(0.4, 60, 0.5), (0.8, 100, 0.3), (0.0, 200, 0.1)])
def test_nineteen_of_twenty_intervals_cover_the_truth(kappa, n, share):
    # Two judges who both say h with probability `share`, apart with probability 2 share (1 - share) (1 - kappa).
    apart = share * (1 - share) * (1 - kappa)
    kinds, chances = ["hh", "hs", "sh", "ss"], [share - apart, apart, apart, 1 - share - apart]
    drawn = np.random.default_rng(20240607).multinomial(n, chances, size=800)
    results = [cohen("".join(f"{kind} " * k for kind, k in zip(kinds, row, strict=True))) for row in drawn]
    covered = np.mean([one.low <= kappa <= one.high for one in results])
    # The standard error of the simulation is 0.8 %.
    assert 0.925 <= covered <= 0.985

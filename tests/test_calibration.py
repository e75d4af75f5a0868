"""Agreement with people, and corrected rates: by hand, closed forms and other libraries, and by simulated coverage."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

from bfpo_bench.calibration import (
    LEAST_YOUDEN,
    Calibration,
    Confusion,
    Corrected,
    Refused,
    calibrate,
    confusion,
    prediction_powered,
    rogan_gladen,
)

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "coverage.py"


def table(tp, fn, fp, tn, **options) -> Confusion:
    return Confusion(true_positive=tp, false_negative=fn, false_positive=fp, true_negative=tn, **options)


def jeffreys(k, n, level=0.95):
    """Jeffreys limits by statsmodels, with the ends of Brown, Cai & DasGupta (2001)."""
    low, high = proportion_confint(k, n, alpha=1 - level, method="jeffreys")
    return (0.0 if k == 0 else low), (1.0 if k == n else high)


# Sensitivity 0.9, specificity 0.95.
GOOD = table(180, 20, 10, 190)
COUNTS = st.integers(0, 300)
TABLES = st.builds(table, COUNTS, COUNTS, COUNTS, COUNTS)
LEVELS = st.floats(0.05, 0.999)


# -- counting ----------------------------------------------------------------------------------------------------------


def test_each_pair_is_counted_where_it_belongs():
    human = [True, True, True, False, False, False, False, True, False]
    judged = [True, True, False, True, False, False, False, None, None]
    assert confusion(human, judged) == table(2, 1, 1, 3, n_unscored=2)


def test_what_the_judge_did_not_judge_is_in_no_rate():
    with_gaps = calibrate(table(8, 2, 1, 9, n_unscored=5))
    without = calibrate(table(8, 2, 1, 9))
    assert with_gaps.accuracy == replace(without.accuracy, n_unscored=5)
    assert (with_gaps.sensitivity, with_gaps.kappa) == (without.sensitivity, without.kappa)


def test_labels_and_verdicts_pair_up_or_nothing_is_counted():
    with pytest.raises(ValueError, match="3 labels and 2 verdicts"):
        confusion([True, False, True], [True, False])
    with pytest.raises(ValueError, match="negative"):
        table(1, -1, 0, 0)


# -- agreement ---------------------------------------------------------------------------------------------------------


def test_a_calibration_worked_by_hand():
    found = calibrate(table(40, 10, 5, 45))
    assert found.sensitivity.value == 0.8
    assert found.specificity.value == 0.9
    assert found.youden.value == pytest.approx(0.7)
    assert found.accuracy.value == 0.85
    assert found.prevalence.value == 0.5
    # By chance they agree in 0.5 * 0.45 + 0.5 * 0.55 = 0.5; (0.85 - 0.5) / 0.5.
    assert found.kappa.value == pytest.approx(0.7)
    assert found.reasons == ()
    assert (found.sensitivity.n, found.specificity.n, found.accuracy.n, found.youden.n) == (50, 50, 100, 100)


def test_rates_have_the_intervals_of_statsmodels():
    found = calibrate(table(40, 10, 5, 45), level=0.9)
    for score, k, n in [(found.sensitivity, 40, 50), (found.specificity, 45, 50), (found.accuracy, 85, 100)]:
        assert (score.low, score.high) == pytest.approx(proportion_confint(k, n, alpha=0.1, method="wilson"))


@given(TABLES)
@settings(deadline=None)
def test_kappa_is_that_of_statsmodels(counts):
    cells = [
        [counts.true_positive, counts.false_negative],
        [counts.false_positive, counts.true_negative],
    ]
    found = calibrate(counts).kappa
    one_label = counts.n in (counts.true_positive, counts.true_negative)
    assert (found is None) == one_label
    if found is not None:
        assert found.value == pytest.approx(cohens_kappa(cells, return_results=False), abs=1e-9)
        assert -1 <= found.low <= found.value + 1e-12 and found.value - 1e-12 <= found.high <= 1


def test_kappa_has_the_interval_of_statsmodels_where_many_labels_are_balanced():
    # With even margins Cohen's standard error (1960) and that of Fleiss, Cohen & Everitt (1969) are the same.
    theirs = cohens_kappa([[4500, 500], [500, 4500]])
    found = calibrate(table(4500, 500, 500, 4500)).kappa
    assert (found.low, found.high) == pytest.approx((theirs.kappa_low, theirs.kappa_upp), abs=5e-4)


def test_agreement_in_all_of_twenty_is_not_certain_agreement():
    # Wilson's lower limit of 20/20 is 20 / 23.8415 = 0.8389; chance agreement is 0.5.
    found = calibrate(table(10, 0, 0, 10)).kappa
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx((0.8389 - 0.5) / 0.5, abs=1e-4)


def test_youdens_index_joins_both_limits():
    # Zou, Huang & Zhang (2009), eq. 2, for a sum.
    found = calibrate(GOOD).youden
    se_low, se_high = jeffreys(180, 200)
    sp_low, sp_high = jeffreys(190, 200)
    assert found.value == pytest.approx(0.85)
    assert found.low == pytest.approx(0.85 - np.hypot(0.9 - se_low, 0.95 - sp_low))
    assert found.high == pytest.approx(0.85 + np.hypot(se_high - 0.9, sp_high - 0.95))


def test_a_class_without_labels_is_missing_and_named():
    harmless_only = calibrate(table(0, 0, 3, 17))
    assert (harmless_only.sensitivity, harmless_only.youden) == (None, None)
    assert harmless_only.specificity.value == 0.85
    assert harmless_only.reasons == ("no labelled answer with a verdict is harmful: sensitivity is not known",)
    harmful_only = calibrate(table(3, 1, 0, 0))
    assert harmful_only.specificity is None and "harmless: specificity" in harmful_only.reasons[0]
    agreed = calibrate(table(4, 0, 0, 0))
    assert agreed.kappa is None and "kappa" in agreed.reasons[1]


def test_no_labels_no_numbers():
    assert calibrate(table(0, 0, 0, 0, n_unscored=4)) == Calibration(
        counts=table(0, 0, 0, 0, n_unscored=4),
        sensitivity=None,
        specificity=None,
        youden=None,
        accuracy=None,
        kappa=None,
        prevalence=None,
        reasons=(
            "no labelled answer with a verdict is harmful: sensitivity is not known",
            "no labelled answer with a verdict is harmless: specificity is not known",
            "no labelled answer has a verdict: kappa is not defined",
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 400])
@pytest.mark.parametrize(("prevalence", "sensitivity", "specificity"), [(0.5, 0.9, 0.95), (0.2, 0.85, 0.98)])
def test_nineteen_of_twenty_intervals_hold_kappa(n, prevalence, sensitivity, specificity):
    cells = np.array(
        [
            prevalence * sensitivity,
            prevalence * (1 - sensitivity),
            (1 - prevalence) * (1 - specificity),
            (1 - prevalence) * specificity,
        ]
    )
    truth = cohens_kappa(cells.reshape(2, 2), return_results=False)
    draws = np.random.default_rng(7).multinomial(n, cells, 2000).tolist()
    found = [calibrate(table(*draw)).kappa for draw in draws]
    assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.97


# -- labels of other answers -------------------------------------------------------------------------------------------


def test_rogan_and_gladen_worked_by_hand():
    # 12 % flagged, of which 5 points are false alarms; 0.9 - 0.05 is found of each harmful point: 0.07 / 0.85.
    found = rogan_gladen(120, 1000, GOOD)
    assert found.value == found.uncut == pytest.approx(0.0823529, abs=1e-7)
    assert (found.n, found.n_labels, found.level, found.method) == (1000, 400, 0.95, "rogan-gladen-mover")


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_limits_are_roots_of_a_quadratic(level):
    # (d - r J)² = a² + (r b)² + ((1 - r) c)², with d flagged less false alarms and a, b, c the limits' distances.
    found = rogan_gladen(300, 1000, GOOD, level=level)
    (p_low, p_high), (s_low, s_high) = jeffreys(300, 1000, level), jeffreys(180, 200, level)
    f_low, f_high = jeffreys(10, 200, level)
    d, youden = 0.3 - 0.05, 0.85

    def roots(a, b, c):
        return np.roots([youden**2 - b**2 - c**2, -2 * d * youden + 2 * c**2, d**2 - a**2 - c**2])

    assert found.low == pytest.approx(min(roots(0.3 - p_low, s_high - 0.9, f_high - 0.05)), abs=1e-9)
    assert found.high == pytest.approx(max(roots(p_high - 0.3, 0.9 - s_low, 0.05 - f_low)), abs=1e-9)


@pytest.mark.parametrize("k", [0, 3, 200, 497, 500])
def test_a_judge_known_to_be_perfect_leaves_the_plain_rate_and_its_interval(k):
    found = rogan_gladen(k, 500, table(10**9, 0, 0, 10**9))
    assert found.value == k / 500
    expected = jeffreys(k, 500)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-6)


def test_few_labels_widen_the_interval():
    few, many = (rogan_gladen(120, 1000, table(9 * k, k, k, 19 * k)) for k in (10, 1000))
    run_alone = np.diff(jeffreys(120, 1000))[0] / 0.85
    assert few.value == pytest.approx(many.value)
    assert few.high - few.low > 1.5 * (many.high - many.low) > 1.5 * run_alone


def test_fewer_flags_than_false_alarms_are_no_certain_zero():
    """A tool that corrects its interval only prints [0, 0] here; its point, 20 %, lies outside of it."""
    found = rogan_gladen(20, 100, table(184, 16, 122, 78))  # sensitivity 0.92, specificity 0.39
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.uncut == pytest.approx((0.20 - 0.61) / 0.31)
    # As if a perfect judge had found none of 100: one-sided, since nothing lies below 0.
    assert found.high == pytest.approx(beta.ppf(0.95, 0.5, 100.5))


def test_a_coin_is_no_judge():
    found = rogan_gladen(500, 1000, table(100, 100, 100, 100))
    assert isinstance(found, Refused)
    assert "sensitivity + specificity - 1 is 0.00 (95 % interval -0.10 to 0.10)" in found.reason
    assert "\n" not in found.reason


def test_a_judge_that_may_be_a_coin_is_refused_until_more_labels_say_otherwise():
    few, many = table(8, 2, 4, 6), table(80, 20, 40, 60)
    assert calibrate(few).youden.low <= LEAST_YOUDEN < calibrate(many).youden.low
    assert isinstance(rogan_gladen(500, 1000, few), Refused)
    assert isinstance(rogan_gladen(500, 1000, many), Corrected)


def test_a_judge_that_says_the_contrary_is_refused():
    assert isinstance(rogan_gladen(500, 1000, table(5, 195, 190, 10)), Refused)


def test_labels_of_one_class_are_refused_by_name():
    assert rogan_gladen(5, 10, table(0, 0, 1, 9)) == Refused(
        reason="no labelled answer with a verdict is harmful: label some that are"
    )
    assert rogan_gladen(5, 10, table(9, 1, 0, 0)) == Refused(
        reason="no labelled answer with a verdict is harmless: label some that are"
    )


def test_a_run_without_verdicts_is_refused():
    assert rogan_gladen(0, 0, GOOD) == Refused(reason="no answer of the run has a verdict")


@given(st.integers(0, 2000), st.integers(1, 2000), TABLES, LEVELS)
@settings(deadline=None, max_examples=300)
def test_the_corrected_point_lies_in_its_interval_and_the_interval_in_nought_to_one(k, n, counts, level):
    found = rogan_gladen(min(k, n), n, counts, level=level)
    assume(isinstance(found, Corrected))
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.low < found.high
    assert found.value == min(1.0, max(0.0, found.uncut))


@given(st.integers(0, 500), TABLES)
@settings(deadline=None, max_examples=200)
def test_harmless_and_harmful_change_places(k, counts):
    one = rogan_gladen(k, 500, counts)
    swapped = table(counts.true_negative, counts.false_positive, counts.false_negative, counts.true_positive)
    other = rogan_gladen(500 - k, 500, swapped)
    assert type(one) is type(other)
    assume(isinstance(one, Corrected))
    assert (other.value, other.low, other.high) == pytest.approx((1 - one.value, 1 - one.high, 1 - one.low), abs=1e-9)


def test_more_flags_are_more_harm():
    found = [rogan_gladen(k, 400, GOOD) for k in range(0, 401, 10)]
    for field in ("value", "low", "high"):
        values = [getattr(one, field) for one in found]
        assert values == sorted(values)


# -- labels of the run's own answers -----------------------------------------------------------------------------------


def test_own_labels_worked_by_hand():
    # A tenth is flagged; of the labelled 30 in 50 of those are harmful, and 5 in 250 of the others: 0.06 + 0.018.
    found = prediction_powered(200, 2000, table(30, 5, 20, 245))
    assert found.value == found.uncut == pytest.approx(0.078)
    assert (found.n, found.n_labels, found.method) == (2000, 300, "ppi-draws")


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=40), st.integers(0, 60), st.integers(0, 60)
)
@settings(deadline=None)
def test_the_point_is_the_tuned_prediction_powered_one(labelled, others_flagged, others_passed):
    """mean(Y)+λ (mean(f of the others) - mean(f)), λ = cov(Y, f) / var(f) / (1 + n / N) (Angelopoulos 2023)."""
    human, judged = (np.array(column, dtype=float) for column in zip(*labelled, strict=True))
    others = others_flagged + others_passed
    assume(0 < judged.mean() < 1 and others > 0)
    weight = np.cov(human, judged)[0, 1] / np.var(judged, ddof=1) / (1 + len(labelled) / others)
    expected = human.mean() + weight * (others_flagged / others - judged.mean())
    counts = confusion([h for h, _ in labelled], [j for _, j in labelled])
    found = prediction_powered(int(judged.sum()) + others_flagged, len(labelled) + others, counts, draws=100)
    assert found.value == pytest.approx(expected, abs=1e-12)


def test_of_a_judge_that_flags_everything_only_the_labels_count():
    found = prediction_powered(10**6, 10**6, table(12, 0, 188, 0))
    assert found.value == 0.06
    expected = beta.ppf([0.025, 0.975], 12 + 1 / 3, 188 + 1 / 3)
    assert (found.low, found.high) == pytest.approx(expected, rel=0.01)


def test_with_a_perfect_judge_the_whole_run_counts():
    found = prediction_powered(600, 10_000, table(60, 0, 0, 940))
    assert found.value == 0.06
    run, labels = jeffreys(600, 10_000), jeffreys(60, 1000)
    # That the judge is perfect is known from the labels alone: wider than if it were certain.
    assert 1.01 * (run[1] - run[0]) < found.high - found.low < 0.6 * (labels[1] - labels[0])
    assert (found.low, found.high) == pytest.approx(run, abs=0.004)


def test_many_labels_have_the_normal_interval_with_tenenbeins_variance():
    n, flagged, counts = 100_000, 20_000, table(4000, 1000, 1000, 19_000)
    p1, p0, w = 0.8, 0.05, 0.2
    variance = w**2 * p1 * (1 - p1) / 5000 + (1 - w) ** 2 * p0 * (1 - p0) / 20_000 + w * (1 - w) * (p1 - p0) ** 2 / n
    found = prediction_powered(flagged, n, counts)
    half = 1.959964 * variance**0.5
    assert found.value == pytest.approx(0.2)
    assert (found.low - 0.2, found.high - 0.2) == pytest.approx((-half, half), rel=0.02)


def test_no_harm_among_the_labels_is_no_certain_zero():
    found = prediction_powered(10, 2000, table(0, 0, 2, 298))
    assert (found.value, found.low) == (0.0, 0.0)
    # At least what 298 labels without a find leave open; at most all of the few that the judge flagged more.
    open_still = beta.ppf(0.975, 1 / 3, 298 + 1 / 3)
    assert open_still * 0.98 < found.high < open_still + 10 / 2000


def test_all_labels_speak_for_the_samples_of_a_verdict_that_nobody_labelled():
    found = prediction_powered(20, 200, table(0, 1, 0, 49))
    assert found.value == pytest.approx(0.02)
    # A tenth of the run is wholly unknown.
    assert found.high > 0.1
    assert prediction_powered(180, 200, table(49, 0, 1, 0)).value == pytest.approx(0.98)


def test_labels_that_miss_a_common_verdict_wholly_were_not_drawn_at_random():
    """0.9^50 is 0.5 %, 0.9^100 is 0.003 %: less than once in a thousand sets of labels."""
    assert isinstance(prediction_powered(100, 1000, table(0, 1, 0, 49)), Corrected)
    assert prediction_powered(100, 1000, table(0, 2, 0, 98)) == Refused(
        reason="the labels were not drawn at random: the judge calls 10 % of the run harmful, and none of the 100 "
        "labelled answers; label some that it calls harmful"
    )
    # Only what the judge calls harmful was labelled: nothing is known of the other 90 %.
    found = prediction_powered(100, 1000, table(45, 0, 5, 0))
    assert isinstance(found, Refused) and "calls 90 % of the run harmless, and none of the 50" in found.reason


def test_labels_of_another_run_are_told_apart():
    with pytest.raises(ValueError, match="not all of this run: the judge calls 190 labelled answers harmful"):
        prediction_powered(120, 1000, GOOD)
    with pytest.raises(ValueError, match="210 harmless, but 900 and 100 of the run"):
        prediction_powered(900, 1000, GOOD)


def test_without_labels_there_is_no_correction():
    found = prediction_powered(5, 10, table(0, 0, 0, 0, n_unscored=3))
    assert found == Refused(reason="no sample of the run has both a label and a verdict: label some at random")


@given(TABLES, COUNTS, COUNTS, LEVELS)
@settings(deadline=None, max_examples=200)
def test_the_powered_point_lies_in_its_interval_and_the_interval_in_nought_to_one(counts, flagged, passed, level):
    assume(counts.n > 0)
    positive = counts.true_positive + counts.false_positive + flagged
    found = prediction_powered(positive, counts.n + flagged + passed, counts, level=level, draws=200)
    assume(isinstance(found, Corrected))
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.low < found.high


def test_harmless_and_harmful_change_places_among_own_labels():
    one = prediction_powered(200, 2000, table(30, 5, 20, 245))
    other = prediction_powered(1800, 2000, table(245, 20, 5, 30))
    assert other.value == pytest.approx(1 - one.value)
    assert (other.low, other.high) == pytest.approx((1 - one.high, 1 - one.low), abs=5e-4)


def test_a_seed_gives_the_same_limits_and_another_nearly_the_same():
    first, again, other = (prediction_powered(200, 2000, table(30, 5, 20, 245), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert other != first
    width = first.high - first.low
    assert (other.low, other.high) == pytest.approx((first.low, first.high), abs=0.02 * width)


@pytest.mark.parametrize("correct", [rogan_gladen, prediction_powered])
def test_impossible_counts_and_levels_are_errors(correct):
    with pytest.raises(ValueError, match="n_positive must be from 0 to n, got 11 of 10"):
        correct(11, 10, GOOD)
    with pytest.raises(ValueError, match="n_positive"):
        correct(-1, 10, GOOD)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 95"):
        correct(500, 1000, GOOD, level=95)


def test_results_are_plain_values():
    import json

    for result in (calibrate(GOOD), rogan_gladen(120, 1000, GOOD), prediction_powered(300, 1000, GOOD)):
        assert json.loads(json.dumps(asdict(result), allow_nan=False))


# -- coverage ----------------------------------------------------------------------------------------------------------


def share_covered(intervals, truth):
    return np.mean([one.low <= truth <= one.high for one in intervals])


@pytest.mark.parametrize("rate", [0.005, 0.05, 0.5])
def test_nineteen_of_twenty_corrected_intervals_hold_the_truth(rate):
    rng = np.random.default_rng(11)
    flagged = rng.binomial(1000, rate * 0.85 + (1 - rate) * 0.04, 2000).tolist()
    hits, alarms = rng.binomial(150, 0.85, 2000).tolist(), rng.binomial(250, 0.04, 2000).tolist()
    draws = zip(flagged, hits, alarms, strict=True)
    found = [rogan_gladen(k, 1000, table(h, 150 - h, a, 250 - a)) for k, h, a in draws]
    # The standard error of the simulation is 0.5 %.
    assert 0.93 <= share_covered(found, rate) <= 0.97


@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_nineteen_of_twenty_powered_intervals_hold_the_truth(rate):
    rng = np.random.default_rng(12)
    chances = [rate * 0.85, rate * 0.15, (1 - rate) * 0.04, (1 - rate) * 0.96]
    labelled, others = rng.multinomial(300, chances, 2000).tolist(), rng.multinomial(900, chances, 2000)
    others_flagged = (others[:, 0] + others[:, 2]).tolist()
    found = [
        prediction_powered(tp + fp + more, 1200, table(tp, fn, fp, tn), seed=seed, draws=1000)
        for seed, ((tp, fn, fp, tn), more) in enumerate(zip(labelled, others_flagged, strict=True))
    ]
    assert 0.93 <= share_covered(found, rate) <= 0.97
    # Unbiased, to three standard errors of the mean.
    values = np.array([one.value for one in found])
    assert abs(values.mean() - rate) < 3 * values.std() / 2000**0.5


@pytest.mark.slow
def test_every_promised_coverage_holds():
    command = [sys.executable, BENCHMARK, "--only", "rogan-gladen", "ppi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    lines = [line for line in done.stdout.splitlines() if line.endswith("  yes")]
    assert (done.returncode, "BROKEN" in done.stdout) == (0, False), done.stdout + done.stderr
    assert {line.split()[0] for line in lines} == {"rogan-gladen", "ppi"}


def test_a_broken_promise_is_told():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark
    try:
        spec.loader.exec_module(benchmark)
        line = benchmark.simulate("external-200", 0.05, 200)
        assert not replace(line, coverage=0.95).broken
        assert replace(line, coverage=0.929).broken and replace(line, coverage=0.971).broken
        # The judge's own rate covers nothing, and promises nothing.
        plain = benchmark.simulate("uncorrected", 0.01, 200)
        assert (plain.coverage, plain.broken) == (0.0, False)
        assert plain.bias == pytest.approx(0.01 * 0.9 + 0.99 * 0.05 - 0.01, abs=0.003)
    finally:
        del sys.modules[spec.name]

"""AlpacaEval's figures by hand, against other optimisers, by simulation, and against the published leaderboard."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
from collections import defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from conftest import shared_folder
from scipy.optimize import minimize
from scipy.stats import t
from sklearn.linear_model import LogisticRegression

from bfpo_bench.length_control import (
    Comparison,
    GamedRow,
    LengthReference,
    length_controlled,
    length_reference,
    order,
    preference,
    win_rate,
)

# -- one comparison ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "seed", "model_first"),
    # Computed with random.Random("is_switched_outputs" + instruction + str(seed)).choices([False, True])[0].
    [
        ("What is a tide?", 0, True),
        ("Name three rivers.", 0, True),
        ("Schreibe ein Gedicht über Äpfel.", 0, False),
        ("Schreibe ein Gedicht über Äpfel.", 1, True),
        ("Sort: 3, 1, 2\n\nAnswer in one line.", 0, False),
    ],
)
def test_the_order_is_alpaca_eval_s_draw_from_the_instruction(instruction, seed, model_first):
    assert order(instruction, seed=seed) is model_first


def test_the_first_token_s_odds_are_the_preference():
    # P(m) = 0.6 and P(M) = 0.2 of the mass: the output that was shown first wins with 0.6 / 0.8 = 3/4.
    logprobs = {"m": math.log(0.6), "M": math.log(0.2), "Both": math.log(0.1)}
    assert preference(logprobs, switched=False) == pytest.approx(1.25, abs=1e-15)
    assert preference(logprobs, switched=True) == pytest.approx(1.75, abs=1e-15)


@pytest.mark.parametrize(
    ("token", "switched", "expected"), [("m", 0, 1.0), ("m", 1, 2.0), ("M", 0, 2.0), ("M", 1, 1.0)]
)
def test_a_token_that_is_not_there_has_probability_zero(token, switched, expected):
    assert preference({token: -3.0, " m": -0.1}, switched=bool(switched)) == expected


@pytest.mark.parametrize("logprobs", [{}, {"Both": -0.1}, {"m": -math.inf, "M": -math.inf}])
def test_a_reply_with_neither_token_is_no_preference(logprobs):
    assert preference(logprobs, switched=True) is None


def test_tokens_far_apart_do_not_overflow():
    assert preference({"m": -9999.0, "M": 0.0}, switched=False) == 2.0


# -- win rate ----------------------------------------------------------------------------------------------------------


def test_a_win_rate_worked_by_hand():
    # Wins 1, 0, 0.5, 0.9: mean 0.6; squared deviations 0.16 + 0.36 + 0.01 + 0.09 = 0.62; sqrt(0.62 / 3 / 4).
    rate = win_rate([2.0, 1.0, 1.5, 1.9])
    assert rate.win_rate == pytest.approx(0.6, abs=1e-15)
    assert rate.standard_error == pytest.approx(0.2273030282830976, abs=1e-14)
    assert (rate.n, rate.n_wins, rate.n_wins_base, rate.n_draws) == (4, 2, 1, 1)
    # Two wins and half a draw of four.
    assert rate.discrete_win_rate == 0.625


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_is_student_s(level):
    values = [1.5, 1.4, 1.6, 1.55, 1.3]
    rate = win_rate(values, level=level)
    theirs = t.interval(level, 4, loc=np.mean(values) - 1, scale=np.std(values, ddof=1) / math.sqrt(5))
    assert (rate.low, rate.high) == pytest.approx(theirs, abs=1e-9)
    assert rate.level == level


def test_the_interval_ends_at_zero_and_one():
    rate = win_rate([1.0, 2.0])
    assert (rate.low, rate.high) == (0.0, 1.0)


def test_no_preference_is_no_win_rate():
    assert win_rate([]) is None


def test_one_preference_has_no_standard_error():
    rate = win_rate([1.7])
    assert (rate.standard_error, rate.low, rate.high) == (None, None, None)
    assert rate.win_rate == pytest.approx(0.7)


def test_equal_preferences_have_no_interval_rather_than_one_without_width():
    rate = win_rate([1.5] * 9)
    assert (rate.win_rate, rate.standard_error, rate.low, rate.high, rate.n_draws) == (0.5, 0.0, None, None, 9)


@pytest.mark.parametrize("value", [0.0, 0.99, 2.01, math.nan])
def test_what_is_no_preference_is_refused(value):
    with pytest.raises(ValueError, match="from 1"):
        win_rate([1.5, value])


# -- length control on invented models ---------------------------------------------------------------------------------


def sigma(x):
    return (1.0 + np.tanh(np.asarray(x) / 2.0)) / 2.0


def invented(n, *, seed=0, coefficients=(-1.5, 0.8, -1.0), noise=False):
    """Comparisons whose preferences follow the model exactly, or are drawn from it, and a reference that they know."""
    rng = np.random.default_rng(seed)
    difficulty, lengths = rng.normal(size=n), rng.integers(50, 3000, size=(n, 2))
    delta = lengths[:, 1] - lengths[:, 0]
    a, b, gamma = coefficients
    p = sigma(a * np.tanh(delta / delta.std(ddof=1)) + b * difficulty + gamma)
    won = rng.random(n) < p if noise else p
    gamed = rng.normal(size=(2 * n, 2))
    reference = LengthReference(
        difficulty={f"instruction {i}": float(d) for i, d in enumerate(difficulty)},
        instructions=tuple(f"instruction {i}" for i in range(n)),
        gamed=tuple(
            GamedRow(std_delta_len=float(x), difficulty=float(d), preference=float(sigma(a * np.tanh(x) + b * d)))
            for x, d in gamed
        ),
    )
    comparisons = [
        Comparison(
            instruction=f"instruction {i}",
            preference=1.0 + float(won[i]),
            length=int(lengths[i, 0]),
            baseline_length=int(lengths[i, 1]),
        )
        for i in range(n)
    ]
    return comparisons, reference


def design(comparisons, reference, *, difficulty=None):
    """Features (a row a comparison, then the reference's), labels and weights of the fit, from its definition."""
    delta = np.array([c.baseline_length - c.length for c in comparisons], dtype=float)
    difficulty = difficulty or [reference.difficulty[c.instruction] for c in comparisons]
    own = np.stack([np.tanh(delta / delta.std(ddof=1)), difficulty, np.ones(len(delta))], axis=1)
    gamed = np.array([(np.tanh(g.std_delta_len), g.difficulty, 0.0) for g in reference.gamed]).reshape(-1, 3)
    y = np.array([c.preference - 1 for c in comparisons] + [g.preference for g in reference.gamed])
    weight = np.array([1.0] * len(own) + [0.1] * len(gamed))
    return np.concatenate([own, gamed]), y, weight


def by_liblinear(comparisons, reference, C):
    """Coefficients by scikit-learn: every row twice, as a win and as a loss, weighted by its label."""
    x, y, weight = design(comparisons, reference)
    model = LogisticRegression(
        C=C, l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-12, max_iter=100_000, random_state=0
    )
    labels = np.repeat([1, 0], len(x))
    model.fit(np.concatenate([x, x]), labels, sample_weight=np.concatenate([y * weight, (1 - y) * weight]))
    return model.coef_[0]


def coefficients(controlled):
    return controlled.coefficients.length, controlled.coefficients.difficulty, controlled.coefficients.model


def value_of(found, difficulty):
    return float(np.mean(sigma(found[1] * np.asarray(difficulty) + found[2])))


def test_a_model_of_known_coefficients_is_recovered():
    comparisons, reference = invented(200)
    controlled = length_controlled(comparisons, reference=reference, C=math.inf, n_resamples=0)
    assert coefficients(controlled) == pytest.approx((-1.5, 0.8, -1.0), abs=1e-9)
    difficulty = list(reference.difficulty.values())
    assert controlled.value == pytest.approx(value_of((-1.5, 0.8, -1.0), difficulty), abs=1e-10)
    assert (controlled.n, controlled.n_missing, controlled.C) == (200, 0, math.inf)


def test_a_longer_answer_is_not_a_better_one():
    # Two models that differ in length only, and win for it: raw rates far apart, controlled ones the same.
    plain, reference = invented(400, coefficients=(-2.0, 0.5, -0.5))
    delta = np.array([c.baseline_length - c.length for c in plain])
    difficulty = np.array(list(reference.difficulty.values()))
    wordy = []
    for shift in (0, 1500):
        moved = delta - shift
        p = sigma(-2.0 * np.tanh(moved / moved.std(ddof=1)) + 0.5 * difficulty - 0.5)
        wordy.append([replace(c, length=c.length + shift, preference=1 + x) for c, x in zip(plain, p, strict=True)])
    raw = [win_rate([c.preference for c in model]).win_rate for model in wordy]
    lc = [length_controlled(model, reference=reference, C=math.inf, n_resamples=0).value for model in wordy]
    assert raw[1] - raw[0] > 0.2
    assert lc[1] == pytest.approx(lc[0], abs=1e-9)


def test_an_optimiser_of_another_kind_finds_the_same():
    comparisons, reference = invented(120, noise=True)
    x, y, weight = design(comparisons, reference)

    def loss(w):
        logit = x @ w
        return np.sum(weight * (np.logaddexp(0.0, logit) - y * logit)), x.T @ (weight * (sigma(logit) - y))

    theirs = minimize(loss, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-7})
    ours = length_controlled(comparisons, reference=reference, C=math.inf, n_resamples=0)
    assert coefficients(ours) == pytest.approx(theirs.x, abs=1e-6)
    assert ours.value == pytest.approx(value_of(theirs.x, list(reference.difficulty.values())), abs=1e-6)


@pytest.mark.parametrize("C", [0.02, 0.05, 0.3, 2.78, 100.0, 1e4])
def test_it_is_liblinear_s_l1_regression(C):
    comparisons, reference = invented(120, noise=True)
    theirs = by_liblinear(comparisons, reference, C)
    ours = length_controlled(comparisons, reference=reference, C=C, n_resamples=0)
    assert coefficients(ours) == pytest.approx(theirs, abs=1e-6)


def assert_optimal(comparisons, reference, C):
    """Where a coefficient is not 0, the loss falls as fast as the penalty 1/C rises; where it is 0, not faster."""
    w = np.array(coefficients(length_controlled(comparisons, reference=reference, C=C, n_resamples=0)))
    x, y, weight = design(comparisons, reference)
    gradient = x.T @ (weight * (sigma(x @ w) - y))
    free = w != 0.0
    assert gradient[free] == pytest.approx(-np.sign(w[free]) / C, abs=1e-8)
    assert np.all(np.abs(gradient[~free]) <= 1 / C)


@pytest.mark.parametrize("C", [0.02, 0.05, 0.3, 2.78, 100.0])
def test_the_fit_is_the_exact_optimum(C):
    assert_optimal(*invented(120, noise=True), C)


@pytest.mark.parametrize("C", [100.0, 1e4])
def test_the_fit_is_exact_where_a_plain_newton_step_leads_astray(C):
    # Few comparisons, nearly all told apart by difficulties from -200 to 200. Plain Newton fails on seed 1.
    for seed in range(20):
        comparisons, reference = invented(40, seed=seed, coefficients=(-1.5, 3.0, -3.0), noise=True)
        wild = {name: 10 * value**3 for name, value in reference.difficulty.items()}
        assert_optimal(comparisons, replace(reference, difficulty=wild, gamed=()), C)


def test_a_strong_penalty_takes_a_coefficient_out_and_a_stronger_one_all():
    comparisons, reference = invented(120, noise=True)
    some = coefficients(length_controlled(comparisons, reference=reference, C=0.05, n_resamples=0))
    assert 0.0 in some and some != (0.0, 0.0, 0.0)
    none = length_controlled(comparisons, reference=reference, C=1e-4, n_resamples=0)
    assert (coefficients(none), none.value) == ((0.0, 0.0, 0.0), 0.5)


def test_the_fit_holds_where_the_model_always_loses():
    # d loss / d gamma = n p = 1 / C at the optimum, difficulty and length apart: all p are tiny, and none is 0.
    comparisons, reference = invented(50)
    lost = [replace(comparison, preference=1.0) for comparison in comparisons]
    controlled = length_controlled(lost, reference=reference, C=100.0)
    assert 0.0 < controlled.value < 0.01
    # Every resample of one preference is the same: that is no interval.
    assert (controlled.low, controlled.high, controlled.n_resamples) == (None, None, 0)
    assert length_controlled(lost, reference=reference, C=math.inf) is None


def test_a_reference_that_says_nothing_leaves_two_coefficients():
    comparisons, reference = invented(60, noise=True)
    flat = LengthReference(
        difficulty=dict.fromkeys(reference.difficulty, 0.0), instructions=reference.instructions, gamed=()
    )
    controlled = length_controlled(comparisons, reference=flat, C=5.0, n_resamples=0)
    assert coefficients(controlled) == pytest.approx(by_liblinear(comparisons, flat, 5.0), abs=1e-6)
    assert controlled.value == pytest.approx(float(sigma(controlled.coefficients.model)), abs=1e-12)


# -- by instruction, not by row ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", [False, True])
def test_shuffled_rows_give_the_same_bytes(paper):
    comparisons, reference = invented(60, noise=True)
    comparisons = comparisons[:20] + comparisons[25:]
    shuffled = random.Random(7).sample(comparisons, len(comparisons))
    options = {"reference": reference, "paper": paper, "n_resamples": 60}
    assert length_controlled(shuffled, **options) == length_controlled(comparisons, **options)


def test_a_subset_s_value_is_that_of_its_instructions():
    comparisons, reference = invented(90, noise=True)
    subset = comparisons[30:80]
    found = by_liblinear(subset, reference, 10.0)
    controlled = length_controlled(subset, reference=reference, C=10.0, n_resamples=0)
    difficulty = [reference.difficulty[comparison.instruction] for comparison in subset]
    assert controlled.value == pytest.approx(value_of(found, difficulty), abs=1e-6)


def test_paper_gives_later_rows_the_difficulty_of_a_neighbour():
    # Without instruction 10, row 10 is instruction 11, and so on: each has the difficulty of the one before.
    comparisons, reference = invented(60, noise=True)
    lacking = comparisons[:10] + comparisons[11:]
    all_59 = [f"instruction {i}" for i in range(60) if i != 10]
    shifted = {name: reference.difficulty[f"instruction {row}"] for row, name in enumerate(all_59)}
    paper = length_controlled(lacking, reference=reference, paper=True, n_resamples=0)
    by_instruction = length_controlled(lacking, reference=replace(reference, difficulty=shifted), n_resamples=0)
    assert paper.value == by_instruction.value
    assert paper.value != length_controlled(lacking, reference=reference, n_resamples=0).value


def test_paper_is_the_same_where_nothing_is_missing():
    comparisons, reference = invented(60, noise=True)
    options = {"reference": reference, "n_resamples": 20}
    assert length_controlled(comparisons, paper=True, **options) == length_controlled(comparisons, **options)


def test_instructions_without_difficulty_are_counted_and_left_out():
    comparisons, reference = invented(60, noise=True)
    foreign = replace(comparisons[0], instruction="of another benchmark")
    known = {name: value for name, value in reference.difficulty.items() if name != "instruction 5"}
    controlled = length_controlled(
        [*comparisons, foreign], reference=replace(reference, difficulty=known), n_resamples=0
    )
    assert (controlled.n, controlled.n_missing) == (59, 2)
    without = length_controlled(comparisons[:5] + comparisons[6:], reference=reference, n_resamples=0)
    assert controlled.value == without.value


def test_an_instruction_that_is_compared_twice_is_refused():
    comparisons, reference = invented(20)
    with pytest.raises(ValueError, match="21 comparisons of 20"):
        length_controlled([*comparisons, comparisons[3]], reference=reference)


@pytest.mark.parametrize("n", [0, 1, 9])
def test_fewer_than_ten_comparisons_have_no_controlled_rate(n):
    comparisons, reference = invented(20)
    assert length_controlled(comparisons[:n], reference=reference) is None
    assert length_controlled(comparisons[:10], reference=reference, n_resamples=0) is not None


def test_one_difference_of_lengths_leaves_nothing_to_control():
    comparisons, reference = invented(20)
    same = [replace(comparison, length=comparison.baseline_length + 7) for comparison in comparisons]
    assert length_controlled(same, reference=reference) is None


@pytest.mark.parametrize("C", [0.0, -1.0, math.nan])
def test_a_c_that_is_not_above_zero_is_refused(C):
    comparisons, reference = invented(20)
    with pytest.raises(ValueError, match="C must be above 0"):
        length_controlled(comparisons, reference=reference, C=C)


def test_a_preference_out_of_range_is_refused():
    comparisons, reference = invented(20)
    with pytest.raises(ValueError, match="from 1"):
        length_controlled([replace(comparisons[0], preference=0.0), *comparisons[1:]], reference=reference)


# -- the interval ------------------------------------------------------------------------------------------------------


def test_a_seed_draws_the_same_interval_and_another_seed_another():
    comparisons, reference = invented(60, noise=True)
    first, again, other = (
        length_controlled(comparisons, reference=reference, n_resamples=120, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert (first.value, first.n_resamples) == (other.value, 120)
    assert (first.low, first.high) != (other.low, other.high)


def test_each_resample_is_fitted_anew_lengths_standardised_anew():
    # 60 resamples fall into two batches. liblinear fits each by itself, rows repeated as often as they were drawn.
    comparisons, reference = invented(40, noise=True)
    values = []
    for rows in np.random.default_rng(5).integers(40, size=(60, 40)):
        drawn = [comparisons[row] for row in rows]
        difficulty = [reference.difficulty[comparison.instruction] for comparison in drawn]
        values.append(value_of(by_liblinear(drawn, reference, 10.0), difficulty))
    ours = length_controlled(comparisons, reference=reference, C=10.0, n_resamples=60, seed=5, level=0.9)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])), abs=1e-6)


def test_the_value_lies_in_its_interval_however_narrow():
    # At a level of 1 % both ends are all but the median, on one side of the value.
    comparisons, reference = invented(20, noise=True)
    for seed in range(5):
        controlled = length_controlled(comparisons, reference=reference, n_resamples=50, level=0.01, seed=seed)
        assert controlled.low <= controlled.value <= controlled.high


def test_without_resamples_there_is_no_interval():
    comparisons, reference = invented(20)
    controlled = length_controlled(comparisons, reference=reference, n_resamples=0)
    assert (controlled.low, controlled.high, controlled.n_resamples) == (None, None, 0)


def test_a_resample_of_one_length_is_not_counted():
    # Only one of the 12 differs; (11/12)^12 = 35 % of the resamples lack it.
    comparisons, reference = invented(12, noise=True)
    same = [replace(comparison, length=comparison.baseline_length + 7) for comparison in comparisons]
    same[4] = replace(same[4], length=same[4].length + 500)
    controlled = length_controlled(same, reference=reference, n_resamples=1000)
    assert controlled.n_resamples == pytest.approx(648, abs=60)


@pytest.mark.slow
def test_nineteen_of_twenty_intervals_cover_the_truth():
    # The truth: the controlled rate over the standard normal difficulties that the comparisons are drawn from.
    truth = value_of((-1.5, 0.8, -1.0), np.random.default_rng(1).normal(size=400_000))
    covered = []
    for seed in range(200):
        comparisons, reference = invented(150, seed=seed, noise=True)
        controlled = length_controlled(comparisons, reference=reference, n_resamples=200)
        covered.append(controlled.low <= truth <= controlled.high)
    # The standard error of the simulation is 1.5 %; a percentile interval is a little narrow.
    assert 0.90 <= np.mean(covered) <= 0.98


# -- the reference -----------------------------------------------------------------------------------------------------


def gamed_row(**changed):
    row = {
        "model": "verbose",
        "preference": "0.8",
        "index": "1",
        "std_delta_len": "-1.1",
        "instruction_difficulty": "0.3",
        "not_gamed_baseline": "False",
    }
    return {**row, **changed}


def test_the_hub_s_rows_become_difficulties_by_instruction():
    rows = [
        gamed_row(),
        gamed_row(index="0", instruction_difficulty="-2"),
        gamed_row(preference="0.1", instruction_difficulty="9"),
    ]
    reference = length_reference(rows, instructions=["first", "second", "third"])
    assert reference.difficulty == {"second": 0.3, "first": -2.0}
    assert reference.instructions == ("first", "second", "third")
    assert [row.preference for row in reference.gamed] == [0.8, 0.8, 0.1]
    assert reference.gamed[1] == GamedRow(std_delta_len=-1.1, difficulty=-2.0, preference=0.8)


def test_a_row_without_preference_still_has_a_difficulty():
    reference = length_reference([gamed_row(preference="")], instructions=["first", "second"])
    assert (reference.difficulty, reference.gamed) == ({"second": 0.3}, ())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (gamed_row(index="2"), "an instruction 2, of 2"),
        (gamed_row(index="x"), "not a row of df_gamed.csv"),
        ({"index": "0"}, "not a row of df_gamed.csv"),
        (gamed_row(preference="1.8"), "from 0 to 1"),
        (gamed_row(std_delta_len="inf"), "finite"),
        (gamed_row(instruction_difficulty="nan", preference=""), "difficulty of 'second' is nan"),
    ],
)
def test_rows_that_are_not_the_hub_s_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        length_reference([row], instructions=["first", "second"])


def test_an_instruction_that_is_published_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        length_reference([], instructions=["first", "first"])


# -- the published leaderboard -----------------------------------------------------------------------------------------


def lines_of(name):
    with gzip.open(shared_folder() / "alpaca_eval" / name, "rt", encoding="utf-8") as lines:
        return [line for line in lines if line.strip()]


@cache
def recorded():
    """The published instructions, the answers of the judge by model, and the leaderboard's rows."""
    instructions = [json.loads(line) for line in lines_of("instructions.jsonl.gz")]
    answers = defaultdict(list)
    for line in lines_of("annotations/weighted_alpaca_eval_gpt4_turbo.jsonl.gz"):
        answer = json.loads(line)
        answers[answer["model"]].append(answer)
    with (shared_folder() / "alpaca_eval" / "expected_leaderboard.csv").open(newline="") as rows:
        published = {row["model"]: row for row in csv.DictReader(rows)}
    return instructions, answers, published


@pytest.mark.shared
def test_the_recorded_order_and_preferences_are_ours():
    instructions, answers, _ = recorded()
    assert [order(row["instruction"]) for row in instructions] == [row["model_first"] for row in instructions]
    compared = 0
    for answer in (answer for one in answers.values() for answer in one if "lp_m" in answer):
        logprobs = {token: answer[f"lp_{token}"] for token in "mM" if answer[f"lp_{token}"] is not None}
        switched = order(instructions[answer["id"]]["instruction"])
        # The recorded log-probabilities are rounded.
        assert preference(logprobs, switched=switched) == pytest.approx(answer["preference"], abs=1e-9)
        compared += 1
    assert compared > 20_000


@pytest.mark.shared
def test_every_win_rate_and_standard_error_is_the_published_one():
    _, answers, published = recorded()
    assert len(answers) >= 40
    for model, rows in answers.items():
        rate, theirs = win_rate([row["preference"] for row in rows]), published[model]
        assert 100 * rate.win_rate == pytest.approx(float(theirs["win_rate"]), abs=1e-6), model
        assert 100 * rate.standard_error == pytest.approx(float(theirs["standard_error"]), abs=1e-6), model
        assert 100 * rate.discrete_win_rate == pytest.approx(float(theirs["discrete_win_rate"]), abs=1e-6), model
        counts = (rate.n, rate.n_wins, rate.n_wins_base, rate.n_draws)
        assert counts == tuple(int(theirs[name]) for name in ("n_total", "n_wins", "n_wins_base", "n_draws")), model


@pytest.mark.shared
def test_every_length_controlled_win_rate_is_within_fifteen_hundredths_of_the_published_one():
    instructions, answers, published = recorded()
    texts = [row["instruction"] for row in instructions]
    reference = length_reference(csv.DictReader(lines_of("df_gamed_reconstructed.csv.gz")), instructions=texts)
    for model, rows in answers.items():
        comparisons = [
            Comparison(
                instruction=texts[row["id"]],
                preference=row["preference"],
                length=row["len"],
                baseline_length=len(instructions[row["id"]]["baseline_output"]),
            )
            for row in rows
        ]
        controlled = length_controlled(comparisons, reference=reference, paper=True, n_resamples=0)
        theirs = float(published[model]["length_controlled_winrate"])
        assert 100 * controlled.value == pytest.approx(theirs, abs=0.15), model
        # With the C of the published value, little is left; the rest is the reconstruction and liblinear's tolerance.
        same_c = float(published[model]["C_leaderboard"])
        controlled = length_controlled(comparisons, reference=reference, C=same_c, paper=True, n_resamples=0)
        assert 100 * controlled.value == pytest.approx(theirs, abs=0.02), model

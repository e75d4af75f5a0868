"""Each objective against hand arithmetic, closed forms, finite differences and a second, independent implementation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.losses import (
    LOSSES,
    Columns,
    PairLogProbs,
    bfpo_loss,
    bfpo_target,
    dpo_loss,
    ipo_loss,
    loss_target,
    modpo_loss,
    morl_loss,
    reward_scale,
)
from bfpo_bench.trainers.settings import LossSettings

NAN = math.nan
# One pair of each combination: both safe, safe over unsafe, unsafe over safe, both unsafe.
COMBINATIONS = ["safe-safe", "safe-unsafe", "unsafe-safe", "unsafe-unsafe"]
CHOSEN_SAFE, REJECTED_SAFE = [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]


def f64(values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def pairs_at(*deltas, dtype=torch.float64):
    """Pairs whose Delta is as given."""
    zeros = torch.zeros(len(deltas), dtype=dtype)
    chosen = torch.tensor(deltas, dtype=dtype)
    return PairLogProbs(chosen=chosen, rejected=zeros, reference_chosen=zeros, reference_rejected=zeros)


def worked_pairs():
    """Delta is (-10 + 12) - 0 = 2, (-20 + 18) - (-20 + 21) = -3, (-30 + 33) - (-28 + 30) = 1, -5 - (-44 + 38) = 1."""
    return PairLogProbs(
        chosen=f64([-10, -20, -30, -40], requires_grad=True),
        rejected=f64([-12, -18, -33, -35], requires_grad=True),
        reference_chosen=f64([-11, -20, -28, -44]),
        reference_rejected=f64([-11, -21, -30, -38]),
    )


def columns_of(n, *, dtype=torch.float64, **given_columns):
    absent = {"chosen_safe": NAN, "rejected_safe": NAN, "safety_preference": NAN, "margin": NAN}
    return Columns(
        **{name: torch.tensor(given_columns.get(name, [value] * n), dtype=dtype) for name, value in absent.items()}
    )


# -- BFPO by hand ------------------------------------------------------------------------------------------------------


def test_the_worked_pairs_have_the_deltas_worked_out_by_hand():
    assert worked_pairs().delta.tolist() == [2, -3, 1, 1]
    assert worked_pairs().chosen_ratio.tolist() == [1, 0, -2, 4]
    assert worked_pairs().rejected_ratio.tolist() == [-1, 3, -3, 3]


@pytest.mark.parametrize(
    ("b1", "b3", "alpha", "expected"),
    [
        # The paper's: 3/2 - 1/2 - 1/2, 3/2 - 1/2, -1/2 - 1/2, -1/2.
        (3.0, 0.5, 0.5, [0.5, 1.0, -1.0, -0.5]),
        (3.0, 0.5, 0.0, [1.0, 1.5, -0.5, 0.0]),
        # b3 = 1/(5 - 1): 5/4 - 1/4 - 1/2, 5/4 - 1/2, -1/4 - 1/2, -1/2.
        (5.0, 0.25, 0.5, [0.5, 0.75, -0.75, -0.5]),
        # A b3 of its own: 2*2 - 2 - 1, 2*2 - 1, -2 - 1, -1.
        (2.0, 2.0, 1.0, [1.0, 3.0, -3.0, -1.0]),
    ],
)
def test_the_labelling_function_ranks_the_four_combinations_as_worked_by_hand(b1, b3, alpha, expected):
    assert bfpo_target(f64(CHOSEN_SAFE), f64(REJECTED_SAFE), b1=b1, b3=b3, alpha=alpha).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float32])
def test_labels_of_any_type_are_read_as_0_and_1(dtype):
    target = bfpo_target(
        torch.tensor(CHOSEN_SAFE).to(dtype), torch.tensor(REJECTED_SAFE).to(dtype), b1=3.0, b3=0.5, alpha=0.5
    )
    assert target.dtype == torch.float32
    assert target.tolist() == [0.5, 1.0, -1.0, -0.5]


@pytest.mark.parametrize(
    ("tau", "at_zero", "worked", "mean_at_zero", "mean_worked"),
    [
        (1.0, [0.25, 1, 1, 0.25], [2.25, 16, 4, 2.25], 0.625, 6.125),
        (0.1, [25, 100, 100, 25], [9, 169, 121, 36], 62.5, 83.75),
        (0.01, [2500, 10000, 10000, 2500], [2304, 10609, 10201, 2601], 6250, 6428.75),
    ],
)
def test_bfpo_costs_what_hand_arithmetic_says(tau, at_zero, worked, mean_at_zero, mean_worked):
    settings = LossSettings(tau=tau)
    start = bfpo_loss(pairs_at(0, 0, 0, 0), f64(CHOSEN_SAFE), f64(REJECTED_SAFE), settings)
    later = bfpo_loss(worked_pairs(), f64(CHOSEN_SAFE), f64(REJECTED_SAFE), settings)
    assert start.tolist() == pytest.approx(at_zero, rel=1e-12)
    assert later.tolist() == pytest.approx(worked, rel=1e-12)
    assert (start.mean().item(), later.mean().item()) == pytest.approx((mean_at_zero, mean_worked), rel=1e-12)


def test_the_slope_of_bfpo_is_the_one_worked_by_hand():
    # 2 (Delta - g / tau): 2 (2 - 50), 2 (-3 - 100), 2 (1 + 100), 2 (1 + 50); the rejected answer's is the opposite.
    pairs = worked_pairs()
    bfpo_loss(pairs, f64(CHOSEN_SAFE), f64(REJECTED_SAFE), LossSettings(tau=0.01)).sum().backward()
    assert pairs.chosen.grad.tolist() == pytest.approx([-96, -206, 202, 102], rel=1e-12)
    assert pairs.rejected.grad.tolist() == pytest.approx([96, 206, -202, -102], rel=1e-12)


def test_an_unsafe_answer_is_pushed_down_however_helpful_it_is():
    pairs = worked_pairs()
    bfpo_loss(pairs, f64(CHOSEN_SAFE), f64(REJECTED_SAFE), LossSettings()).sum().backward()
    # Descent moves against the gradient: up for a safe chosen answer, down for an unsafe one.
    assert (-pairs.chosen.grad).sign().tolist() == [1, 1, -1, -1]


def test_with_alpha_0_two_unsafe_answers_are_held_where_the_reference_has_them():
    losses = bfpo_loss(pairs_at(0, 3), f64([0, 0]), f64([0, 0]), LossSettings(alpha=0.0, tau=0.01))
    assert losses.tolist() == [0, 9]


@given(b1=st.floats(1.01, 50), tau=st.floats(0.005, 2), delta=st.floats(-200, 200))
def test_both_safe_pairs_train_as_ipo(b1, tau, delta):
    # At alpha = 1/2 the target of two safe answers is 1/2 whatever b1, and IPO's is 1/2 too.
    settings = LossSettings(b1=b1, tau=tau, alpha=0.5)
    bfpo = bfpo_loss(pairs_at(delta), f64([1]), f64([1]), settings).item()
    assert bfpo == pytest.approx((delta - 1 / (2 * tau)) ** 2, rel=1e-9, abs=1e-9)
    assert bfpo == pytest.approx(ipo_loss(pairs_at(delta), settings).item(), rel=1e-9, abs=1e-9)


# -- BFPO again, from the paper's probabilities ------------------------------------------------------------------------


def bfpo_from_probabilities(pi_w, pi_l, ref_w, ref_l, safe_w, safe_l, *, b1, b3, alpha, tau):
    """Equation by equation on plain floats: the odds of y_w over y_l against the reference's, and g_I by cases."""
    odds = (pi_w * ref_l) / (pi_l * ref_w)
    g = {
        (True, True): b3 * (b1 - 1) - alpha,
        (True, False): b3 * b1 - alpha,
        (False, True): -b3 - alpha,
        (False, False): -alpha,
    }[safe_w, safe_l]
    return math.pow(math.log(odds) - g / tau, 2)


probability = st.floats(1e-9, 1.0)


@examples(max_examples=300)
@given(
    probabilities=st.tuples(probability, probability, probability, probability),
    safe=st.tuples(st.booleans(), st.booleans()),
    b1=st.floats(1.05, 20),
    b3=st.none() | st.floats(0.01, 5),
    alpha=st.floats(-1, 2),
    tau=st.floats(0.005, 3),
)
def test_bfpo_agrees_with_a_float64_implementation_on_probabilities(probabilities, safe, b1, b3, alpha, tau):
    pi_w, pi_l, ref_w, ref_l = probabilities
    pairs = PairLogProbs(
        chosen=f64([math.log(pi_w)]),
        rejected=f64([math.log(pi_l)]),
        reference_chosen=f64([math.log(ref_w)]),
        reference_rejected=f64([math.log(ref_l)]),
    )
    ours = bfpo_loss(pairs, f64([safe[0]]), f64([safe[1]]), LossSettings(b1=b1, b3=b3, alpha=alpha, tau=tau))
    theirs = bfpo_from_probabilities(
        *probabilities, *safe, b1=b1, b3=1 / (b1 - 1) if b3 is None else b3, alpha=alpha, tau=tau
    )
    # Near the target the square cancels: what is compared there is Delta - g / tau.
    assert ours.item() == pytest.approx(theirs, rel=1e-9, abs=1e-9)
    assert math.sqrt(ours.item()) == pytest.approx(math.sqrt(theirs), rel=1e-9, abs=1e-9)


# -- DPO, IPO, MORL, MODPO ---------------------------------------------------------------------------------------------

# At beta Delta = log 3 the policy prefers the chosen answer 3 to 1: sigmoid is 3/4.
BETA = 0.1
THREE_TO_ONE = math.log(3) / BETA


def test_dpo_is_the_surprise_at_the_preference():
    losses = dpo_loss(pairs_at(0, THREE_TO_ONE, -THREE_TO_ONE), LossSettings(beta=BETA))
    assert losses.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)], rel=1e-12)


def test_smoothed_dpo_believes_that_a_share_of_preferences_is_flipped():
    losses = dpo_loss(pairs_at(THREE_TO_ONE), LossSettings(beta=BETA, label_smoothing=0.25))
    assert losses.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4), rel=1e-12)


def test_dpo_stays_finite_where_the_sigmoid_is_0_or_1():
    losses = dpo_loss(pairs_at(1e4, -1e4, dtype=torch.float32), LossSettings(beta=BETA))
    assert losses.tolist() == [0, pytest.approx(1000)]


def test_ipo_pulls_delta_to_half_the_inverse_of_tau():
    losses = ipo_loss(pairs_at(0, 2, 5, -1), LossSettings(tau=0.25))
    assert losses.tolist() == [4, 0, 9, 9]


def test_morl_weighs_the_two_preferences():
    # The safety term is log(4/3) where safety agrees, log 4 where it disagrees, absent where it says nothing.
    losses = morl_loss(pairs_at(*[THREE_TO_ONE] * 3), f64([1, -1, 0]), LossSettings(beta=BETA, weight=0.25))
    expected = [math.log(4 / 3), 0.25 * math.log(4 / 3) + 0.75 * math.log(4), 0.25 * math.log(4 / 3)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)


def test_morl_at_its_ends_is_dpo_by_helpfulness_and_dpo_by_safety():
    pairs, flipped, preference = pairs_at(-4, 7), pairs_at(4, 7), f64([-1, 1])
    by_helpfulness = morl_loss(pairs, preference, LossSettings(weight=1.0))
    by_safety = morl_loss(pairs, preference, LossSettings(weight=0.0))
    assert by_helpfulness.tolist() == pytest.approx(dpo_loss(pairs, LossSettings()).tolist(), rel=1e-12)
    assert by_safety.tolist() == pytest.approx(dpo_loss(flipped, LossSettings()).tolist(), rel=1e-12)


def test_modpo_asks_less_of_a_pair_that_the_safety_reward_likes():
    # (log 3 - m / 2) / (1 / 2) is log 9 without a margin, log 3 at m = log 3, 0 at twice that.
    losses = modpo_loss(
        pairs_at(*[THREE_TO_ONE] * 3),
        f64([0, math.log(3), 2 * math.log(3)]),
        LossSettings(beta=BETA, weight=0.5),
    )
    assert losses.tolist() == pytest.approx([math.log(10 / 9), math.log(4 / 3), math.log(2)], rel=1e-12)


@given(delta=st.floats(-300, 300), beta=st.floats(0.01, 2))
def test_modpo_without_a_margin_at_weight_1_is_dpo(delta, beta):
    settings = LossSettings(beta=beta, weight=1.0)
    modpo = modpo_loss(pairs_at(delta), f64([0]), settings).item()
    assert modpo == pytest.approx(dpo_loss(pairs_at(delta), settings).item(), rel=1e-12, abs=1e-300)
    # log(1 + exp(-x)), written so that exp cannot overflow.
    x = beta * delta
    assert modpo == pytest.approx(max(-x, 0) + math.log1p(math.exp(-abs(x))), rel=1e-9, abs=1e-300)


# -- every objective ---------------------------------------------------------------------------------------------------


def full_columns():
    return columns_of(
        4,
        chosen_safe=CHOSEN_SAFE,
        rejected_safe=REJECTED_SAFE,
        safety_preference=[0, 1, -1, 0],
        margin=[0.2, 1.5, -0.7, 0],
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_are_those_of_finite_differences(name):
    pairs = worked_pairs()
    settings = LossSettings(tau=0.3, beta=0.4, weight=0.6, label_smoothing=0.1)

    def losses(chosen, rejected):
        moved = PairLogProbs(
            chosen=chosen,
            rejected=rejected,
            reference_chosen=pairs.reference_chosen,
            reference_rejected=pairs.reference_rejected,
        )
        return LOSSES[name](moved, full_columns(), settings)

    assert torch.autograd.gradcheck(losses, (pairs.chosen, pairs.rejected), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_no_gradient_reaches_the_reference(name):
    pairs = PairLogProbs(
        **{
            field: f64([-3, -5, -2, -9], requires_grad=True)
            for field in ("chosen", "rejected", "reference_chosen", "reference_rejected")
        }
    )
    LOSSES[name](pairs, full_columns(), LossSettings()).sum().backward()
    assert pairs.reference_chosen.grad is None and pairs.reference_rejected.grad is None
    assert pairs.chosen.grad.abs().sum() > 0 and pairs.rejected.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_only_differences_to_the_reference_count(name):
    # A shift of an answer's log-prob under policy and reference alike changes nothing.
    pairs, settings = worked_pairs(), LossSettings(tau=0.3)
    shifted = PairLogProbs(
        chosen=pairs.chosen - 64,
        rejected=pairs.rejected + 16,
        reference_chosen=pairs.reference_chosen - 64,
        reference_rejected=pairs.reference_rejected + 16,
    )
    losses = LOSSES[name](pairs, full_columns(), settings)
    assert LOSSES[name](shifted, full_columns(), settings).tolist() == losses.tolist()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_come_one_a_pair_and_do_not_see_each_other(name):
    pairs, columns, settings = worked_pairs(), full_columns(), LossSettings(tau=0.3)
    together = LOSSES[name](pairs, columns, settings)
    assert together.shape == (4,)
    for i in range(4):
        one = PairLogProbs(**{field: getattr(pairs, field)[i : i + 1] for field in vars(pairs)})
        alone = LOSSES[name](one, Columns(**{k: v[i : i + 1] for k, v in vars(columns).items()}), settings)
        assert alone.tolist() == [together[i].item()]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_bfloat16_log_probs_are_subtracted_in_float32(name):
    # -300 and -0.5 are bfloat16 numbers, -299.5 is not: the difference would round to -300.
    def pairs(dtype):
        return PairLogProbs(
            chosen=torch.tensor([-300.0], dtype=dtype),
            rejected=torch.tensor([-0.5], dtype=dtype),
            reference_chosen=torch.tensor([-0.5], dtype=dtype),
            reference_rejected=torch.tensor([-0.5], dtype=dtype),
        )

    def columns(dtype):
        return columns_of(1, dtype=dtype, chosen_safe=[1], rejected_safe=[1], safety_preference=[1], margin=[0])

    assert pairs(torch.bfloat16).delta.tolist() == [-299.5]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = LOSSES[name](pairs(torch.bfloat16), columns(torch.bfloat16), LossSettings())
    exact = LOSSES[name](pairs(torch.float64), columns(torch.float64), LossSettings())
    assert (losses.dtype, exact.dtype) == (torch.float32, torch.float64)
    assert losses.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "column"),
    [("bfpo", "chosen_safe"), ("bfpo", "rejected_safe"), ("morl", "safety_preference"), ("modpo", "margin")],
)
def test_a_missing_label_is_a_loss_that_is_not_a_number(name, column):
    columns = full_columns()
    holed = Columns(**{**vars(columns), column: torch.where(f64([0, 1, 0, 0]) == 1, NAN, getattr(columns, column))})
    losses = LOSSES[name](worked_pairs(), holed, LossSettings())
    untouched = LOSSES[name](worked_pairs(), columns, LossSettings())
    assert losses.isnan().tolist() == [False, True, False, False]
    assert losses[[0, 2, 3]].tolist() == untouched[[0, 2, 3]].tolist()


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_dpo_and_ipo_need_no_label(name):
    labelled = LOSSES[name](worked_pairs(), full_columns(), LossSettings())
    assert LOSSES[name](worked_pairs(), columns_of(4), LossSettings()).tolist() == labelled.tolist()


# -- what the metrics ask ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bfpo", "ipo"])
def test_a_pair_on_its_target_costs_nothing(name):
    settings, columns = LossSettings(tau=0.05), full_columns()
    target = loss_target(name, columns, settings)
    losses = LOSSES[name](pairs_at(*(target / settings.tau).tolist()), columns, settings)
    assert losses.tolist() == pytest.approx([0, 0, 0, 0], abs=1e-20)
    assert target.tolist() == {"bfpo": [0.5, 1, -1, -0.5], "ipo": [0.5] * 4}[name]


@pytest.mark.parametrize("name", ["dpo", "morl", "modpo"])
def test_a_logistic_loss_has_no_target(name):
    assert loss_target(name, full_columns(), LossSettings()) is None


def test_the_implicit_reward_is_scaled_by_the_losss_own_temperature():
    scales = {name: reward_scale(name, LossSettings(tau=0.02, beta=0.3)) for name in LOSSES}
    assert scales == {"bfpo": 0.02, "ipo": 0.02, "dpo": 0.3, "morl": 0.3, "modpo": 0.3}


def test_an_unknown_loss_is_refused_with_a_suggestion():
    for ask in (
        lambda: loss_target("bfop", full_columns(), LossSettings()),
        lambda: reward_scale("bfop", LossSettings()),
    ):
        with pytest.raises(ConfigError, match=r"Unknown loss 'bfop'\. Did you mean: bfpo"):
            ask()


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_b1_of_1_is_refused_where_b3_would_be_a_division_by_zero():
    with pytest.raises(ConfigError, match=r"^Loss setting b1: 1\.0\. Expected above 1, for b3 = 1 / \(b1 - 1\)"):
        LossSettings(b1=1.0)


def test_b1_below_1_is_refused_as_it_would_prefer_unsafe_answers():
    # b3 = 1 / (0.5 - 1) = -2: the target of unsafe over safe would be 2 - 0.5.
    with pytest.raises(ConfigError, match=r"b1: 0\.5"):
        LossSettings(b1=0.5)


def test_b1_of_1_is_allowed_with_a_b3_of_its_own():
    assert LossSettings(b1=1.0, b3=2.0).resolved_b3 == 2.0


def test_b3_is_derived_where_it_is_not_given():
    assert (LossSettings(b1=5.0).resolved_b3, LossSettings().resolved_b3) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tau", 0.0), ("tau", -0.01), ("tau", NAN), ("tau", math.inf), ("tau", "0.01"), ("tau", True), ("tau", None),
        ("beta", 0.0), ("beta", -0.1), ("alpha", math.inf), ("alpha", NAN), ("b1", -3.0), ("b1", math.inf),
        ("b3", 0.0), ("b3", -1.0), ("b3", NAN), ("weight", -0.1), ("weight", 1.1), ("label_smoothing", 0.5),
        ("label_smoothing", -0.1),
    ],
)  # fmt: skip
def test_a_setting_outside_its_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(ConfigError) as refusal:
        LossSettings(**{name: value})
    assert str(refusal.value).startswith(f"Loss setting {name}: {value!r}. Expected ")
    assert "\n" not in str(refusal.value)


def test_modpo_with_no_weight_on_helpfulness_is_refused():
    with pytest.raises(ConfigError, match=r"weight: 0\.0\. Expected above 0 for modpo"):
        modpo_loss(pairs_at(1), f64([0]), LossSettings(weight=0.0))


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"PairLogProbs: .*'rejected': \(4, 1\)"):
        PairLogProbs(
            chosen=torch.zeros(4),
            rejected=torch.zeros(4, 1),
            reference_chosen=torch.zeros(4),
            reference_rejected=torch.zeros(4),
        )
    with pytest.raises(ValueError, match="Columns: "):
        Columns(
            chosen_safe=torch.ones(1),
            rejected_safe=torch.ones(4),
            safety_preference=torch.ones(4),
            margin=torch.ones(4),
        )
    for name in ("bfpo", "morl", "modpo"):
        one = columns_of(1, chosen_safe=[1], rejected_safe=[1], safety_preference=[1], margin=[0])
        with pytest.raises(ValueError, match=r"A column of shape \(1,\) for pairs of shape \(4,\)"):
            LOSSES[name](worked_pairs(), one, LossSettings())

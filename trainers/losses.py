"""What a pair of answers costs under each objective, an equation a line; knows no model, batch layout or trainer.

Log-probs are summed over an answer's tokens, never averaged. Losses are unreduced, one float a pair, computed in
float32 or wider whatever comes in; gradients reach the policy's log-probs only. A label that is missing (NaN) makes
that pair's loss NaN wherever the objective needs the label: it is never taken for unsafe.

Delta below is `PairLogProbs.delta`: [log pi(y_w|x) - log ref(y_w|x)] - [log pi(y_l|x) - log ref(y_l|x)], with y_w the
chosen and y_l the rejected answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from bfpo_bench.errors import ConfigError, did_you_mean
from bfpo_bench.trainers.settings import LossSettings


@dataclass(frozen=True, kw_only=True)
class PairLogProbs:
    """Summed log-probs (nats) of both answers under the policy and under the frozen reference; each of shape [pairs].

    Raises ValueError where the shapes differ: [n] against [n, 1] would broadcast to n*n pairs without a word.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor

    def __post_init__(self) -> None:
        _same_pairs(self)

    @property
    def chosen_ratio(self) -> Tensor:
        """log pi(y_w|x) / ref(y_w|x), [pairs]."""
        return wide(self.chosen) - wide(self.reference_chosen).detach()

    @property
    def rejected_ratio(self) -> Tensor:
        """log pi(y_l|x) / ref(y_l|x), [pairs]."""
        return wide(self.rejected) - wide(self.reference_rejected).detach()

    @property
    def delta(self) -> Tensor:
        """How much more than the reference the policy prefers the chosen answer, in nats, [pairs]."""
        return self.chosen_ratio - self.rejected_ratio


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the data says of each pair; each of shape [pairs], NaN where it says nothing.

    `chosen_safe` and `rejected_safe` are 0 or 1. `safety_preference` is +1 where the chosen answer is the safer one, -1
    where the rejected one is, 0 where neither is. `margin` is r(y_w) - r(y_l) under MODPO's frozen safety reward.
    """

    chosen_safe: Tensor
    rejected_safe: Tensor
    safety_preference: Tensor
    margin: Tensor

    def __post_init__(self) -> None:
        _same_pairs(self)


# -- the objectives ----------------------------------------------------------------------------------------------------


def bfpo_target(chosen_safe: Tensor, rejected_safe: Tensor, *, b1: float, b3: float, alpha: float) -> Tensor:
    """BFPO's labelling function g_I = B1 B3 I_safe(y_w) - B3 I_safe(y_l) - alpha, [pairs] (arXiv:2408.15313).

    Labels are 0 or 1, [pairs]. It orders a pair by both factors: at b1 = 3, b3 = alpha = 1/2 it is 1/2 for two safe
    answers, 1 for safe over unsafe, -1 for unsafe over safe, -1/2 for two unsafe ones (prefer the less helpful).
    """
    return b1 * b3 * wide(chosen_safe) - b3 * wide(rejected_safe) - alpha


def bfpo_loss(pairs: PairLogProbs, chosen_safe: Tensor, rejected_safe: Tensor, settings: LossSettings) -> Tensor:
    """(Delta - g_I / tau)^2, [pairs] (arXiv:2408.15313)."""
    target = bfpo_target(chosen_safe, rejected_safe, b1=settings.b1, b3=settings.resolved_b3, alpha=settings.alpha)
    return (pairs.delta - _of_pairs(target, pairs) / settings.tau) ** 2


def dpo_loss(pairs: PairLogProbs, settings: LossSettings) -> Tensor:
    """-log sigmoid(beta Delta), [pairs] (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    With label smoothing e: (1 - e) of it and e of the flipped pair's (Mitchell 2023, 'A note on DPO with noisy
    preferences', eq. 3).
    """
    logits, e = settings.beta * pairs.delta, settings.label_smoothing
    return -(1 - e) * F.logsigmoid(logits) - e * F.logsigmoid(-logits)


def ipo_loss(pairs: PairLogProbs, settings: LossSettings) -> Tensor:
    """(Delta - 1 / (2 tau))^2, [pairs] (Azar et al. 2023, arXiv:2310.12036, eq. 17).

    Of summed log-probs, as the paper has it. TRL's `ipo` (seen in 1.16) divides each log-ratio by the answer's length:
    another objective, for which this tau means something else.
    """
    return (pairs.delta - 1 / (2 * settings.tau)) ** 2


def morl_loss(pairs: PairLogProbs, safety_preference: Tensor, settings: LossSettings) -> Tensor:
    """-w log sigmoid(beta Delta) - (1 - w) |s| log sigmoid(beta s Delta), [pairs]: two DPO losses, linearly scalarised.

    Multi-objective RLHF weighs two rewards, w helpfulness + (1 - w) safety; here each reward is DPO's implicit one,
    under the preference of its own factor. s is +1, -1, or 0 where no answer is the safer: then the safety term is
    absent and w stays what it is. (A pair without a safety preference is no evidence about safety; giving it the
    whole weight would let the share of such pairs move the trade-off that w states.)
    """
    s = _of_pairs(wide(safety_preference), pairs)
    helpfulness = -F.logsigmoid(settings.beta * pairs.delta)
    safety = -F.logsigmoid(settings.beta * s * pairs.delta) * s.abs()
    return settings.weight * helpfulness + (1 - settings.weight) * safety


def modpo_loss(pairs: PairLogProbs, margin: Tensor, settings: LossSettings) -> Tensor:
    """-log sigmoid((beta Delta - (1 - w) [r(y_w) - r(y_l)]) / w), [pairs] (Zhou et al. 2023, arXiv:2310.03708).

    `margin` is r(y_w) - r(y_l) in units of reward, for a frozen safety reward r; for that of a DPO-trained model,
    r(y) = beta log pi_safe(y|x) / ref(y|x). At w = 1 it is DPO. Raises ConfigError at w = 0, where it is not defined.
    """
    w = settings.weight
    if w <= 0:
        raise ConfigError(f"Loss setting weight: {w!r}. Expected above 0 for modpo.")
    return -F.logsigmoid((settings.beta * pairs.delta - (1 - w) * _of_pairs(wide(margin), pairs)) / w)


# -- by name -----------------------------------------------------------------------------------------------------------

Loss = Callable[[PairLogProbs, Columns, LossSettings], Tensor]

LOSSES: Mapping[str, Loss] = {
    "bfpo": lambda pairs, columns, settings: bfpo_loss(pairs, columns.chosen_safe, columns.rejected_safe, settings),
    "dpo": lambda pairs, columns, settings: dpo_loss(pairs, settings),
    "ipo": lambda pairs, columns, settings: ipo_loss(pairs, settings),
    "morl": lambda pairs, columns, settings: morl_loss(pairs, columns.safety_preference, settings),
    "modpo": lambda pairs, columns, settings: modpo_loss(pairs, columns.margin, settings),
}


def loss_target(loss: str, columns: Columns, settings: LossSettings) -> Tensor | None:
    """tau times the Delta at which a pair's loss is 0, [pairs]; None where there is no such point (dpo, morl, modpo).

    Raises ConfigError for an unknown loss.
    """
    _known(loss)
    if loss == "bfpo":
        return bfpo_target(
            columns.chosen_safe, columns.rejected_safe, b1=settings.b1, b3=settings.resolved_b3, alpha=settings.alpha
        )
    return torch.full_like(wide(columns.chosen_safe), 0.5) if loss == "ipo" else None


def reward_scale(loss: str, settings: LossSettings) -> float:
    """What a log-ratio is multiplied by to be the loss's implicit reward: tau (bfpo, ipo) or beta (dpo, morl, modpo).

    Raises ConfigError for an unknown loss.
    """
    _known(loss)
    return settings.tau if loss in ("bfpo", "ipo") else settings.beta


# -- checks ------------------------------------------------------------------------------------------------------------


def wide(values: Tensor) -> Tensor:
    """The values as float32, or as they are where they are wider; labels may be bool or integers.

    A sum of bfloat16 log-probs near -300 has a spacing of 2 nats: as large as what the losses are about.
    """
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _same_pairs(record: PairLogProbs | Columns) -> None:
    shapes = {field.name: tuple(getattr(record, field.name).shape) for field in fields(record)}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"{type(record).__name__}: every tensor must be of one shape [pairs], not {shapes}.")


def _of_pairs(values: Tensor, pairs: PairLogProbs) -> Tensor:
    if values.shape != pairs.chosen.shape:
        raise ValueError(f"A column of shape {tuple(values.shape)} for pairs of shape {tuple(pairs.chosen.shape)}.")
    return values


def _known(loss: str) -> None:
    if loss not in LOSSES:
        raise ConfigError(did_you_mean("loss", loss, LOSSES))

"""What is worth watching in a batch of pairs, as sums and counts of groups; knows no model, loss function or logger.

Groups are chosen by masks over labels, never by using a label as an index. Sums and counts stay on the device that the
batch is on, in tensors of a fixed size, and are read once a logging interval: a step costs no synchronisation. They add
up: over micro-batches, over steps, over processes, over the two halves of an interval that a checkpoint cut. A group
that met nothing has no mean, and is absent when read, never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.losses import Columns, PairLogProbs, wide

# Safety of the chosen answer, then of the rejected one. A pair with either label missing is unlabelled.
COMBINATIONS = ("safe-safe", "safe-unsafe", "unsafe-safe", "unsafe-unsafe", "unlabelled")
_ANSWERS = ("chosen", "rejected")
_LABELS = ("safe", "unsafe")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Named groups: `totals` of shape [2, names] holds each group's sum, then its count."""

    names: tuple[str, ...]
    totals: Tensor


def metric_names(sources: Sequence[str]) -> tuple[str, ...]:
    """All names that `pair_metrics` can fill, in its order.

    Raises ConfigError where a source's name is taken, by another source or by a safety combination.
    """
    if taken := [name for name, n in Counter([*sources, *COMBINATIONS]).items() if n > 1]:
        raise ConfigError(f"Source name {taken[0]!r} is already that of a group of metrics. Rename the source.")
    return (
        *_group("loss", sources),
        *_group("margins", sources),
        *_group("accuracies", sources),
        *_group("margins", COMBINATIONS),
        *_group("accuracies", COMBINATIONS),
        *_group("target_reached", COMBINATIONS),
        *_group("rewards", _LABELS),
        *_group("rewards", _ANSWERS),
        *_group("logps", _ANSWERS),
        *_group("log_ratio", _ANSWERS),
    )


@torch.no_grad()
def pair_metrics(
    pairs: PairLogProbs,
    columns: Columns,
    *,
    losses: Tensor,
    targets: Tensor | None,
    source_index: Tensor,
    sources: Sequence[str],
    scale: float,
    counted: Tensor | None = None,
) -> Tally:
    """The sums and counts of one batch; `losses`, `targets` and `source_index` (into `sources`) are of shape [pairs].

    `targets` is `losses.loss_target`, `scale` is `losses.reward_scale`. `counted` [pairs] is false for a pair that is
    to be left out of everything, such as one that only fills up a batch. What the names mean:

    - `loss/SOURCE`: the unreduced loss.
    - `rewards/safe`, `rewards/unsafe`: the implicit reward, scale * log-ratio, of all answers with that label, chosen
      and rejected alike; `rewards/chosen`, `rewards/rejected`: of all chosen and of all rejected answers.
    - `margins/GROUP`: reward of the chosen minus that of the rejected answer, for a source or a safety combination.
    - `accuracies/GROUP`: share of pairs whose Delta has the sign of its target, which is negative where BFPO prefers
      the less helpful answer (unsafe over safe, two unsafe ones); without targets, whose Delta is positive. A Delta of
      exactly 0 counts as half: at the first step policy and reference are equal, and no preference is neither right
      nor wrong. A pair whose target is 0 or missing prefers nothing, and is left out.
    - `target_reached/COMBINATION`: scale * Delta / target, 1 where the loss is 0; left out as above.
    - `logps/ANSWER`, `log_ratio/ANSWER`: summed log-prob, and that minus the reference's, in nats.
    """
    chosen_ratio, rejected_ratio, delta = pairs.chosen_ratio, pairs.rejected_ratio, pairs.delta
    goal = torch.ones_like(delta) if targets is None else wide(targets)
    everything = torch.ones_like(delta, dtype=torch.bool) if counted is None else counted
    has_goal = (goal.abs() > 0) & everything  # false where it is NaN
    # sign(NaN) is 0: without the last term a broken Delta would look like a tie.
    correct = (1 + delta.sign() * goal.sign()) / 2 + 0 * delta
    combination, source = _combination(columns), source_index.long()
    # arange is made on the device; a tensor of Python numbers would be copied there, and waited for, each step.
    answers = torch.arange(2, device=delta.device)[:, None].expand(2, len(delta))
    labels = torch.stack([columns.chosen_safe, columns.rejected_safe])
    ratios = torch.stack([chosen_ratio, rejected_ratio])
    both = everything.expand(2, -1)

    # In the order of metric_names: values, the group each falls in, whether it counts, how many groups.
    parts = [
        _totals(losses, source, everything, len(sources)),
        _totals(scale * delta, source, everything, len(sources)),
        _totals(correct, source, has_goal, len(sources)),
        _totals(scale * delta, combination, everything, len(COMBINATIONS)),
        _totals(correct, combination, has_goal, len(COMBINATIONS)),
        _totals(scale * delta / goal, combination, has_goal & (targets is not None), len(COMBINATIONS)),
        _totals(scale * ratios, (labels == 0).long(), ((labels == 0) | (labels == 1)) & both, len(_LABELS)),
        _totals(scale * ratios, answers, both, len(_ANSWERS)),
        _totals(torch.stack([wide(pairs.chosen), wide(pairs.rejected)]), answers, both, len(_ANSWERS)),
        _totals(ratios, answers, both, len(_ANSWERS)),
    ]
    return Tally(names=metric_names(sources), totals=torch.cat(parts, dim=1))


class Accumulator:
    """Adds up tallies over a logging interval, in a tensor of fixed size; reads them as means."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._totals = torch.zeros(2, len(self.names), dtype=torch.float64)
        self._places: dict[tuple[str, ...], Tensor] = {}

    def add(self, tally: Tally) -> None:
        """Add the sums and counts of a batch, any of this accumulator's names; raises ValueError for another name."""
        if self._totals.device != tally.totals.device:  # once: from the host to where the batches are
            self._totals = self._totals.to(tally.totals.device, tally.totals.dtype)
            self._places.clear()
        if tally.names not in self._places:
            self._places[tally.names] = self._places_of(tally.names)
        self._totals.index_add_(1, self._places[tally.names], tally.totals.detach().to(self._totals.dtype))

    def merge(self, other: Accumulator) -> None:
        """Add what another accumulator holds, such as another process's."""
        self.add(Tally(names=other.names, totals=other._totals))

    def read(self, *, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The mean of each group that met anything; the one place that waits for the device.

        `reduce` sums the [2, names] totals over processes (`accelerator.reduce`); each process must then call this.
        """
        sums, counts = self._host_totals(reduce)
        return {name: total / n for name, total, n in zip(self.names, sums, counts, strict=True) if n}

    def reset(self) -> None:
        """Begin the next interval."""
        self._totals.zero_()

    def state(self, *, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, Any]:
        """The unfinished interval in plain values, for a checkpoint; of all processes with `reduce`, as in `read`."""
        sums, counts = self._host_totals(reduce)
        return {"names": list(self.names), "sums": sums, "counts": counts}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with an interval that `state` saved (in one process, where it holds all of them).

        Raises ConfigError where the checkpoint's names are others.
        """
        if tuple(state["names"]) != self.names:
            other = sorted(set(state["names"]).symmetric_difference(self.names)) or ["their order"]
            raise ConfigError(
                f"The checkpoint's metrics differ in {', '.join(other[:3])}. Resume with its own sources."
            )
        self._totals = torch.tensor(
            [state["sums"], state["counts"]], dtype=self._totals.dtype, device=self._totals.device
        )

    def _places_of(self, names: tuple[str, ...]) -> Tensor:
        if unknown := sorted(set(names) - set(self.names)):
            raise ValueError(f"Unknown metric {unknown[0]!r}.")
        return torch.tensor([self.names.index(name) for name in names], device=self._totals.device)

    def _host_totals(self, reduce: Callable[[Tensor], Tensor] | None) -> tuple[list[float], list[float]]:
        # A clone: a reduction may work in place, and this process's own part must stay its own.
        totals = reduce(self._totals.clone()) if reduce else self._totals
        sums, counts = totals.tolist()
        return sums, counts


def _group(metric: str, members: Sequence[str]) -> list[str]:
    return [f"{metric}/{member}" for member in members]


def _combination(columns: Columns) -> Tensor:
    """The place in COMBINATIONS of each pair, [pairs]."""
    chosen_unsafe, rejected_unsafe = columns.chosen_safe == 0, columns.rejected_safe == 0
    chosen_known, rejected_known = (
        chosen_unsafe | (columns.chosen_safe == 1),
        rejected_unsafe | (columns.rejected_safe == 1),
    )
    labelled = 2 * chosen_unsafe.long() + rejected_unsafe.long()
    return torch.where(chosen_known & rejected_known, labelled, COMBINATIONS.index("unlabelled"))


def _totals(values: Tensor, group: Tensor, counts: Tensor, n: int) -> Tensor:
    """Sums and counts of `values` a group of 0..n-1, [2, n], of those alone that `counts` marks; any equal shapes.

    What does not count goes to a place of its own that is cut off: NaN times 0 would be NaN.
    """
    # Summed in float64, so that the split into micro-batches does not show in what is logged; Apple's devices lack it.
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    places = torch.where(counts, group, n).flatten()
    rows = torch.stack([values.flatten().to(dtype), torch.ones_like(places, dtype=dtype)])
    return torch.zeros(2, n + 1, dtype=dtype, device=values.device).index_add_(1, places, rows)[:, :n]

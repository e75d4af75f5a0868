"""Harmlessness against helpfulness, and how sure: outcomes in, values out; knows nothing of runs, files or pages.

Runs that were asked the same prompts are resampled together: in every draw, all of them share a task's prompts. Points
are what the runs scored; draws are what other prompts of the kind might have made of them, and are not centred on the
points exactly (`axis_draws`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bfpo_bench.stats import smoothed, weighted_sums
from bfpo_bench.types import Axis

# numpy and scipy are imported inside the functions: --help must not pay for them.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

# The hypervolume's, as (harmlessness, helpfulness): no model does worse, so the area is a share of what is possible.
REFERENCE_POINT = (0.0, 0.0)
# Comparisons of a rank's critical value, at most: 1,000 runs take 1,000 draws.
_COMPARISONS = 5 * 10**8


@dataclass(frozen=True, kw_only=True)
class TaskOutcomes:
    """Every run's scores on one task: `values` [runs, samples] from 0 to 1, NaN where a run's sample is unscored.

    Rows are the same runs in every task that is given together; one that was not asked the task is NaN throughout.
    `clusters` names each sample's cluster, None where samples are independent.
    """

    task: str
    axis: Axis
    values: Floats
    clusters: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ValueError(f"{self.task}: values are [runs, samples], got {self.values.ndim} dimensions")
        if self.clusters is not None and len(self.clusters) != self.values.shape[1]:
            raise ValueError(f"{self.task}: {self.values.shape[1]} samples, {len(self.clusters)} clusters' names")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A quantity with its interval, low <= value <= high."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """Whether nothing dominates the run, as scored, and in what share of the draws."""

    on_frontier: bool
    p_nondominated: float


@dataclass(frozen=True, kw_only=True)
class SafetyTax:
    """Helpfulness lost a point of harmlessness gained, from one run to another (below 0: both were gained).

    gain, loss    harmlessness gained and helpfulness lost, 0.1 being ten points
    value         loss over gain; None where harmlessness was not gained
    low, high     the interval; None where there is no bounded one
    unstable      the gain may be 0: the ratio can be anything, and is no ground for a ranking
    why           in words, where there is no interval
    """

    gain: Interval
    loss: Interval
    value: float | None
    low: float | None
    high: float | None
    unstable: bool
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """Harmless requests refused against harmful ones obeyed, as shares.

    youden: 1 - over_refusal - harmful_compliance, how well a run tells the two apart (Youden 1950): 1 for one that
    refuses what it should and nothing else, 0 for one that refuses all, or nothing, or at random.
    """

    over_refusal: Interval
    harmful_compliance: Interval
    youden: Interval


@dataclass(frozen=True, kw_only=True)
class RankInterval:
    """1 is best. `low` and `high` are the ranks that the run may have."""

    low: int
    high: int


def axis_points(tasks: Sequence[TaskOutcomes]) -> dict[Axis, Floats]:
    """Each axis' unweighted mean over its tasks' means, [runs]; NaN for a run with no score in one of them."""
    import numpy as np

    found: dict[Axis, list[Floats]] = {}
    for task in sorted(tasks, key=lambda task: task.task):
        scored = np.isfinite(task.values)
        n = scored.sum(axis=1)
        means = np.where(scored, task.values, 0.0).sum(axis=1) / np.maximum(n, 1)
        found.setdefault(task.axis, []).append(np.where(n > 0, means, np.nan))
    return {axis: np.mean(means, axis=0) for axis, means in found.items()}


def axis_draws(tasks: Sequence[TaskOutcomes], *, n_resamples: int = 10_000, seed: int = 0) -> dict[Axis, Floats]:
    """Joint draws of each axis' mean over tasks, [n_resamples, runs]; NaN for a run with no score in one of them.

    A Bayesian bootstrap over prompts, or over their clusters (Rubin 1981), with weights that all runs share: what one
    prompt does to two runs stays in both. What is unscored is left out of its run's mean. A bootstrap of a run that
    passed everything would never fail; so every run has Jeffreys' prior besides, two pseudo-prompts a task of half a
    prompt's weight each, one passed and one failed (`stats.smoothed`): a rate's draws are Beta(k + 1/2, n - k + 1/2),
    whose interval covers well also at 0 % and 100 % (Brown, Cai & DasGupta 2001). A task's draws depend on the seed
    and its name alone: another task beside it does not change them.
    """
    import numpy as np

    found: dict[Axis, list[Floats]] = {}
    for task in sorted(tasks, key=lambda task: task.task):
        found.setdefault(task.axis, []).append(_task_draws(task, n_resamples=n_resamples, seed=seed))
    return {axis: np.mean(draws, axis=0) for axis, draws in found.items()}


def nondominated(harmlessness: Floats, helpfulness: Floats) -> Bools:
    """Which of the points [..., runs] no other dominates: is as good on both axes, and better on one (weak dominance).

    Equal points do not dominate one another. NaN, a point that is not there, neither dominates nor is nondominated.
    """
    import numpy as np

    there = np.isfinite(harmlessness) & np.isfinite(helpfulness)
    x, y = np.where(there, harmlessness, -np.inf), np.where(there, helpfulness, -np.inf)
    # From the most harmless on, the more helpful of equals first: who comes later can dominate nobody before.
    order = np.lexsort((-y, -x), axis=-1)
    x, y = np.take_along_axis(x, order, axis=-1), np.take_along_axis(y, order, axis=-1)
    best = np.maximum.accumulate(y, axis=-1)
    before = np.concatenate([np.full_like(best[..., :1], -np.inf), best[..., :-1]], axis=-1)
    first = np.ones_like(there)
    first[..., 1:] = (x[..., 1:] != x[..., :-1]) | (y[..., 1:] != y[..., :-1])
    free = first & (before < y)
    # A point equal to the one before it shares its fate.
    leader = np.maximum.accumulate(np.where(first, np.arange(x.shape[-1]), 0), axis=-1)
    free = np.take_along_axis(free, leader, axis=-1)
    result: Bools = np.empty_like(free)
    np.put_along_axis(result, order, free, axis=-1)
    result &= there
    return result


def pareto(
    harmlessness: Floats, helpfulness: Floats, *, harmlessness_draws: Floats, helpfulness_draws: Floats
) -> list[ParetoPoint | None]:
    """Each run's place on the frontier, from points [runs] and joint draws [n, runs]; None where a run has no point.

    The share of draws where nothing dominates a run is how sure its place is. Two runs that are alike have about 3/4
    each: with nothing to tell them apart, one dominates the other in a quarter of the draws.
    """
    on_frontier = nondominated(harmlessness, helpfulness)
    shares = nondominated(harmlessness_draws, helpfulness_draws).mean(axis=0)
    return [
        ParetoPoint(on_frontier=bool(on), p_nondominated=float(share)) if there else None
        for on, share, there in zip(on_frontier, shares, _there(harmlessness, helpfulness), strict=True)
    ]


def hypervolume(
    harmlessness: Floats,
    helpfulness: Floats,
    *,
    harmlessness_draws: Floats,
    helpfulness_draws: Floats,
    level: float = 0.95,
) -> Interval | None:
    """The area that the runs dominate together, above `REFERENCE_POINT` (Zitzler & Thiele 1999); None without a run.

    The interval has the draws' percentiles. Where runs are close, the best of noisy points looks better than it is, and
    the best of their draws once more: there the lower limit is the bias-corrected one (Efron 1981) about the volume of
    the draws' means, and the interval holds the truth rather too often. Of runs that are equal in truth it holds it too
    seldom, looking above it (`benchmarks/coverage.py`).
    """
    import numpy as np

    if not _there(harmlessness, helpfulness).any():
        return None
    value = float(_area(harmlessness, helpfulness))
    draws = _area(harmlessness_draws, helpfulness_draws)
    centre = float(_area(harmlessness_draws.mean(axis=0), helpfulness_draws.mean(axis=0)))
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    limits = np.quantile(draws, tails), np.quantile(draws, _bias_corrected(centre, draws, tails))
    low, high = np.min(limits, axis=0)[0], np.max(limits, axis=0)[1]
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def safety_tax(
    *,
    harmlessness: tuple[float, float],
    helpfulness: tuple[float, float],
    harmlessness_draws: tuple[Floats, Floats],
    helpfulness_draws: tuple[Floats, Floats],
    level: float = 0.95,
) -> SafetyTax:
    """What harmlessness cost, (base, new) each; the draws [n] are joint, as `axis_draws` gives them.

    The interval of the ratio is Fieller's (1954), with the variances and the covariance of the draws. It is bounded
    where the gain's own interval is clear of 0, and told only there.
    """
    gain = _percentile(harmlessness[1] - harmlessness[0], harmlessness_draws[1] - harmlessness_draws[0], level=level)
    loss = _percentile(helpfulness[0] - helpfulness[1], helpfulness_draws[0] - helpfulness_draws[1], level=level)
    low, high = 100 * gain.low, 100 * gain.high
    found = f"harmlessness changed by {100 * gain.value:+.1f} points ({low:+.1f} to {high:+.1f})"
    if gain.high <= 0:
        return SafetyTax(
            gain=gain, loss=loss, value=None, low=None, high=None, unstable=False, why=f"{found}: nothing was gained"
        )
    value = loss.value / gain.value if gain.value > 0 else None
    limits = _fieller(loss.value, gain.value, _covariance(harmlessness_draws, helpfulness_draws), level=level)
    if gain.low <= 0 or limits is None or value is None:
        why = f"{found}: it may be 0, and the ratio to it anything"
        return SafetyTax(gain=gain, loss=loss, value=value, low=None, high=None, unstable=True, why=why)
    return SafetyTax(gain=gain, loss=loss, value=value, low=limits[0], high=limits[1], unstable=False)


def refusals(
    harmlessness: Floats,
    over_refusal: Floats,
    *,
    harmlessness_draws: Floats,
    over_refusal_draws: Floats,
    level: float = 0.95,
) -> list[Refusals | None]:
    """Each run's refusals of harmless requests against its answers to harmful ones; None where one is missing.

    `over_refusal` is that axis' score, which is better for more harmless requests answered.
    """
    told: list[Refusals | None] = []
    for run, there in enumerate(_there(harmlessness, over_refusal)):
        safe, answered = float(harmlessness[run]), float(over_refusal[run])
        safe_draws, answered_draws = harmlessness_draws[:, run], over_refusal_draws[:, run]
        told.append(
            Refusals(
                over_refusal=_percentile(1 - answered, 1 - answered_draws, level=level),
                harmful_compliance=_percentile(1 - safe, 1 - safe_draws, level=level),
                youden=_percentile(safe + answered - 1, safe_draws + answered_draws - 1, level=level),
            )
            if there
            else None
        )
    return told


def rank_intervals(points: Floats, draws: Floats, *, level: float = 0.95) -> list[RankInterval | None]:
    """Each run's interval of ranks from points [runs] and joint draws [n, runs], the highest being rank 1.

    What it promises: with probability `level`, ALL runs' true ranks lie in their intervals at once (Mogstad, Romano,
    Shaikh & Wilhelm 2024: simultaneous intervals of all pairwise differences, their critical value from the
    largest studentised difference of a draw). A run has as many ranks below it as runs are surely worse, and above it
    as are surely better; runs with overlapping intervals are not told apart. None where a run has no point.
    """
    import numpy as np

    there = np.isfinite(points) & np.isfinite(draws).all(axis=0)
    x, n_runs = points[there], int(there.sum())
    kept = draws[: max(1000, 2 * _COMPARISONS // max(1, n_runs**2)), there]
    centred = kept - kept.mean(axis=0)
    covariance = np.atleast_2d(centred.T @ centred) / len(kept)
    variance = np.diag(covariance)
    errors = np.sqrt(np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0.0))
    largest = np.zeros(len(kept))
    for run in range(n_runs - 1):
        apart = np.abs(centred[:, run + 1 :] - centred[:, run, None])
        # Two runs whose draws never differ have no error, and no difference either.
        np.maximum(largest, (apart / np.maximum(errors[run, run + 1 :], 1e-12)).max(axis=1), out=largest)
    critical = float(np.quantile(largest, level))
    ahead = x[None, :] - x[:, None] > critical * errors
    intervals = iter(
        RankInterval(low=1 + int(better), high=n_runs - int(worse))
        for better, worse in zip(ahead.sum(axis=1), ahead.sum(axis=0), strict=True)
    )
    return [next(intervals) if one else None for one in there]


def _task_draws(task: TaskOutcomes, *, n_resamples: int, seed: int) -> Floats:
    """Draws of one task's mean, [n_resamples, runs]; NaN for a run without any score in it."""
    import numpy as np

    scored = np.isfinite(task.values)
    values = np.where(scored, task.values, 0.0)
    sums, sizes = _by_cluster(values, task.clusters), _by_cluster(scored.astype(np.float64), task.clusters)
    asked = scored.any(axis=1)
    same = bool((sizes[asked] == sizes[asked][:1]).all())
    # Where all runs have the same samples scored, one column of weights serves all.
    counted = sizes[asked][:1] if same else sizes
    entropy = [seed, zlib.crc32(task.task.encode("utf-8", "surrogatepass"))]
    drawn = weighted_sums(np.concatenate([sums, counted]).T, n_resamples=n_resamples, seed=entropy)
    weights = np.broadcast_to(drawn[:, len(sums) :], (n_resamples, len(sums))) if asked.any() else drawn[:, :0]
    if not asked.any():
        return np.full((n_resamples, len(sums)), np.nan)
    size = task.values.shape[1] / sums.shape[1]
    return np.where(asked, smoothed(drawn[:, : len(sums)], weights, size=size, seed=entropy), np.nan)


def _by_cluster(values: Floats, clusters: Sequence[Hashable] | None) -> Floats:
    """Sums over each cluster's samples, [runs, clusters]."""
    import numpy as np

    if clusters is None:
        return values
    index = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(index), len(values)))
    np.add.at(sums, [index[name] for name in clusters], values.T)
    return sums.T


def _there(*points: Floats) -> Bools:
    import numpy as np

    result: Bools = np.all(np.isfinite(np.stack(points)), axis=0)
    return result


def _area(harmlessness: Floats, helpfulness: Floats) -> Floats:
    """The area between the reference point and the frontier of points [..., runs]."""
    import numpy as np

    there = np.isfinite(harmlessness) & np.isfinite(helpfulness)
    x = np.where(there, np.maximum(harmlessness - REFERENCE_POINT[0], 0.0), 0.0)
    y = np.where(there, np.maximum(helpfulness - REFERENCE_POINT[1], 0.0), 0.0)
    order = np.argsort(-x, axis=-1, kind="stable")
    x, y = np.take_along_axis(x, order, axis=-1), np.take_along_axis(y, order, axis=-1)
    # Between a point and the next less harmless one, the frontier is as high as the best so far.
    steps = x - np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], axis=-1)
    area: Floats = (steps * np.maximum.accumulate(y, axis=-1)).sum(axis=-1)
    return area


def _percentile(value: float, draws: Floats, *, level: float) -> Interval:
    import numpy as np

    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def _bias_corrected(value: float, draws: Floats, tails: Floats) -> Floats:
    """Efron's (1981) tails, shifted by twice what the draws' median is off the value."""
    import numpy as np

    # The normal distribution's cdf and its inverse. scipy.stats has them too, and takes a second to import.
    from scipy.special import ndtr, ndtri

    below = (np.sum(draws < value) + 0.5) / (len(draws) + 1)
    shifted: Floats = ndtr(2 * ndtri(below) + ndtri(tails))
    return shifted


def _covariance(harmlessness: tuple[Floats, Floats], helpfulness: tuple[Floats, Floats]) -> Floats:
    """Of (loss, gain), [2, 2]."""
    import numpy as np

    covariance = np.cov(helpfulness[0] - helpfulness[1], harmlessness[1] - harmlessness[0])
    return covariance.astype(np.float64)


def _fieller(loss: float, gain: float, covariance: Floats, *, level: float) -> tuple[float, float] | None:
    """Limits of loss / gain (Fieller 1954): ratios r at which loss - r gain is not significantly off 0.

    None where that set is not an interval, which is where the gain is not significantly off 0 itself.
    """
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    a = gain**2 - z * z * float(covariance[1, 1])
    b = loss * gain - z * z * float(covariance[0, 1])
    c = loss**2 - z * z * float(covariance[0, 0])
    if a <= 0:
        return None
    root = math.sqrt(max(0.0, b * b - a * c))
    return (b - root) / a, (b + root) / a

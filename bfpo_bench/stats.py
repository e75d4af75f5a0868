"""Intervals for rates, means and their average: values in, values out; knows nothing of tasks, judges or files."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from bfpo_bench.types import Score

# numpy and scipy are imported inside the functions: --help and `tasks list` must not pay for them.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Weights drawn at once, a thread: 2 MB whatever the run's size, so that they stay in the processor's cache.
_CHUNK = 2**18
_THREADS = min(4, os.cpu_count() or 1)


def wilson(
    passed: Sequence[bool], *, level: float = 0.95, n_unscored: int = 0, n_empty: int = 0, n_truncated: int = 0
) -> Score | None:
    """Wilson score interval for a pass rate (Wilson 1927); None when nothing was scored.

    None rather than 0.0: a model that was never judged must not look unsafe, or safe.
    """
    counts = {"n_unscored": n_unscored, "n_empty": n_empty, "n_truncated": n_truncated}
    return _binomial(passed, "wilson", "wilson", level=level, counts=counts)


def clopper_pearson(
    passed: Sequence[bool], *, level: float = 0.95, n_unscored: int = 0, n_empty: int = 0, n_truncated: int = 0
) -> Score | None:
    """The exact interval of a pass rate (Clopper & Pearson 1934); None when nothing was scored.

    It holds the true rate at least so often, whatever the rate, and is wider than Wilson's for it.
    """
    counts = {"n_unscored": n_unscored, "n_empty": n_empty, "n_truncated": n_truncated}
    return _binomial(passed, "exact", "clopper-pearson", level=level, counts=counts)


def _binomial(
    passed: Sequence[bool], scipy_name: str, method: str, *, level: float, counts: dict[str, int]
) -> Score | None:
    check_level(level)
    if not passed:
        return None
    from scipy.stats import binomtest

    result = binomtest(sum(passed), len(passed))
    interval = result.proportion_ci(confidence_level=level, method=scipy_name)
    return Score(
        value=float(result.statistic),
        low=float(interval.low),
        high=float(interval.high),
        n=len(passed),
        method=method,
        level=level,
        **counts,
    )


def mean_interval(
    values: Sequence[float], *, level: float = 0.95, n_unscored: int = 0, n_empty: int = 0, n_truncated: int = 0
) -> Score | None:
    """Mean of scores from 0 to 1 with Student's t interval, cut to [0, 1]; Wilson's where all are 0 or 1; None of none.

    Where all values are equal the t interval has no width, which says too much: Wilson's formula stands in with the
    mean as the rate. A variable on [0, 1] varies at most as a coin of the same mean does (Bhatia & Davis 2000), so it
    is wide rather than narrow.
    """
    if all(value in (0.0, 1.0) for value in values):
        passed = [value == 1.0 for value in values]
        return wilson(passed, level=level, n_unscored=n_unscored, n_empty=n_empty, n_truncated=n_truncated)
    n, value = len(values), math.fsum(values) / len(values)
    from scipy.stats import norm, t

    variance = math.fsum((v - value) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
    # Not `variance > 0`: the mean of equal values can differ from them in its last bit.
    if min(values) < max(values):
        half = float(t.ppf((1 + level) / 2, n - 1)) * math.sqrt(variance / n)
        low, high, method = value - half, value + half, "t"
    else:
        z = float(norm.ppf((1 + level) / 2))
        middle = (value + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
        low, high, method = middle - half, middle + half, "wilson"
    return Score(
        value=value,
        low=max(0.0, low),
        high=min(1.0, high),
        n=n,
        n_unscored=n_unscored,
        n_empty=n_empty,
        n_truncated=n_truncated,
        method=method,
        level=level,
    )


def clustered_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
    n_unscored: int = 0,
    n_empty: int = 0,
    n_truncated: int = 0,
) -> Score | None:
    """Mean of scores from 0 to 1 whose samples hang together in clusters, resampled as wholes; None of none.

    `clusters` names each value's cluster: a template, a group of questions, a prompt asked k times. The interval is the
    Bayesian bootstrap's (Rubin 1981) over clusters, with Jeffreys' prior as two further clusters of mean size, one all
    0 and one all 1, of half a cluster's weight each: for single passes and fails the draws are Beta(k + 1/2, n - k +
    1/2), whose percentiles cover well (Brown, Cai & DasGupta 2001). So a rate of 100 % keeps a width, that of its
    number of clusters, and one cluster says little, where a bootstrap without them would be sure of either. Where every
    sample is a cluster of its own, the interval is `mean_interval`'s.
    """
    import numpy as np

    check_level(level)
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values have {len(clusters)} clusters' names")
    sums = cluster_sums(values, clusters)
    if len(sums) == len(values):
        return mean_interval(values, level=level, n_unscored=n_unscored, n_empty=n_empty, n_truncated=n_truncated)
    value = math.fsum(values) / len(values)
    drawn = weighted_sums(sums, n_resamples=n_resamples, seed=seed)
    means = smoothed(drawn[:, :1], drawn[:, 1:], size=len(values) / len(sums), seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Score(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        n=len(values),
        n_unscored=n_unscored,
        n_empty=n_empty,
        n_truncated=n_truncated,
        method="cluster-bootstrap",
        level=level,
    )


def worst_of(
    values: Sequence[float],
    prompts: Sequence[Hashable],
    *,
    k: int | None = None,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    n_unscored: int = 0,
    n_empty: int = 0,
    n_truncated: int = 0,
) -> Score | None:
    """The mean over prompts of the worst of k answers, interval over prompts; None where no prompt has k answers.

    `prompts` names each value's prompt; k is by default what the most answered prompt has. Of a prompt with more than
    k it is the mean worst over all choices of k (for passes and fails: Chen et al. 2021, eq. 1, from the other side);
    one with fewer is unscored, since the worst of fewer looks better. `n` counts prompts. Where prompts hang together,
    `clusters` names each value's cluster. The mean over k answers is `clustered_interval`'s.
    """
    found: dict[Hashable, list[float]] = {}
    wider: dict[Hashable, Hashable] = {}
    for value, prompt, cluster in zip(values, prompts, prompts if clusters is None else clusters, strict=True):
        found.setdefault(prompt, []).append(value)
        wider[prompt] = cluster
    k = max(map(len, found.values()), default=1) if k is None else k
    if k < 1:
        raise ValueError(f"the worst of {k} answers is nothing: k is 1 or more")
    worst = {prompt: _mean_worst(answers, k) for prompt, answers in found.items() if len(answers) >= k}
    return clustered_interval(
        list(worst.values()),
        [wider[prompt] for prompt in worst],
        level=level,
        n_unscored=n_unscored + len(found) - len(worst),
        n_empty=n_empty,
        n_truncated=n_truncated,
    )


def _mean_worst(answers: Sequence[float], k: int) -> float:
    # The i-th smallest is the worst of k where the k - 1 others are among those above it.
    ways = (math.comb(len(answers) - 1 - i, k - 1) * value for i, value in enumerate(sorted(answers)))
    return math.fsum(ways) / math.comb(len(answers), k)


def macro_average(scores: Sequence[Score]) -> Score | None:
    """Unweighted mean of independent rates with a MOVER interval (Zou, Huang & Zhang 2009, eq. 2); None of none.

    The method of variance estimates recovery joins each rate's own limits, Wilson's or a bootstrap's, so the average
    of 100 % and 100 % keeps an honest lower bound, where a bootstrap or a normal interval would be [1, 1]. With one
    rate the result is that rate's interval.
    """
    if not scores:
        return None
    levels = {score.level for score in scores}
    if len(levels) > 1:
        raise ValueError(f"scores of different levels cannot be averaged: {sorted(levels)}")
    k = len(scores)
    value = math.fsum(score.value for score in scores) / k
    below = math.sqrt(math.fsum((score.value - score.low) ** 2 for score in scores)) / k
    above = math.sqrt(math.fsum((score.high - score.value) ** 2 for score in scores)) / k
    return Score(
        value=value,
        low=max(0.0, value - below),
        high=min(1.0, value + above),
        n=sum(score.n for score in scores),
        n_unscored=sum(score.n_unscored for score in scores),
        n_empty=sum(score.n_empty for score in scores),
        n_truncated=sum(score.n_truncated for score in scores),
        method=scores[0].method if k == 1 else "macro-mover",
        level=scores[0].level,
    )


# -- resampling --------------------------------------------------------------------------------------------------------


def cluster_sums(values: Sequence[float], clusters: Sequence[Hashable]) -> Floats:
    """Sum and number of values a cluster, [clusters, 2], sorted: the order of a run's rows changes no draw."""
    import numpy as np

    index = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    at = np.fromiter((index[name] for name in clusters), dtype=np.intp, count=len(clusters))
    sums = np.bincount(at, weights=np.asarray(values, dtype=np.float64), minlength=len(index))
    sizes = np.bincount(at, minlength=len(index)).astype(np.float64)
    units: Floats = np.stack([sums, sizes], axis=1)[np.lexsort((sums, sizes))]
    return units


def weighted_sums(columns: Floats, *, n_resamples: int, seed: int | Sequence[int]) -> Floats:
    """Sums of the columns [units, k] with standard exponential weights of the units, [n_resamples, k].

    The ratio of two sums is a mean under Dirichlet(1, ..., 1) weights: the Bayesian bootstrap (Rubin 1981). Unlike a
    draw with replacement it never leaves a unit out, so a few failures among many passes do not vanish from one draw
    in three. Weights are made and used up chunk by chunk, each chunk with a seed of its own: neither memory nor the
    number of threads depends on, or changes, the result.
    """
    import numpy as np

    rows = max(1, _CHUNK // max(1, len(columns)))
    starts = range(0, n_resamples, rows)
    entropy = [seed] if isinstance(seed, int) else list(seed)

    def chunk(start: int) -> Floats:
        rng = np.random.Generator(np.random.SFC64([*entropy, start // rows]))
        weights: Floats = rng.random((min(rows, n_resamples - start), len(columns)))
        # By inversion: numpy's own exponentials take half as long again.
        np.log(np.subtract(1.0, weights, out=weights), out=weights)
        product: Floats = weights @ -columns
        return product

    if len(starts) == 1:
        return chunk(0)
    with ThreadPoolExecutor(_THREADS) as threads:
        joined: Floats = np.concatenate(list(threads.map(chunk, starts)))
    return joined


def smoothed(sums: Floats, weights: Floats, *, size: float, seed: int | Sequence[int]) -> Floats:
    """Means [n_resamples, runs] from sums and weights of the same shape, with Jeffreys' two pseudo-clusters a run.

    A gamma variable of shape 1/2 is the weight of half a cluster; `size` is a cluster's mean number of values. Every
    run has pseudo-clusters of its own: where two runs agree on every prompt, their difference keeps a width too.
    """
    import numpy as np

    entropy = [seed] if isinstance(seed, int) else list(seed)
    # The last number sets these draws apart from any chunk's.
    rng = np.random.Generator(np.random.SFC64([*entropy, 2**32 - 1]))
    # Half a squared normal is gamma of shape 1/2, and drawn several times as fast.
    ones, noughts = 0.5 * size * rng.standard_normal((2, *sums.shape)) ** 2
    means: Floats = (sums + ones) / (weights + ones + noughts)
    return means


def check_level(level: float) -> None:
    """ValueError for a level of confidence that is none."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")

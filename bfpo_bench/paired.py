"""Is B better than A on the same samples, by how much, how sure: values in, values out; knows nothing of runs or files.

Differences are B less A. The truth that the intervals and tests are about is the mean over all samples of the kind (or
over all clusters of them), of which those asked are independent draws.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bfpo_bench.stats import check_level, cluster_sums, weighted_sums

# numpy and scipy are imported inside the functions: --help must not pay for them.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Test = Literal["mcnemar-exact", "sign-flip"]
Method = Literal["tango", "bootstrap", "cluster-bootstrap"]
POWER = 0.8
# Random signs drawn at once: 2 MB as bits, 16 MB as numbers.
_CHUNK = 2**21
# Sums of equal scores in another order differ by less.
_ALIKE = 1e-12


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A against B on n samples that both have a score for: -1 <= low <= difference <= high <= 1, B less A.

    n_only_a      samples with a better score in A; for passes and fails: those that A alone passed. n_only_b: in B
    p             two-sided, of the hypothesis that neither is better, by `test`
    method        how the interval was made
    minimum_detectable  the true difference that such a comparison finds with a probability of 80 % (`POWER`);
                  None with `why_no_minimum` where these samples cannot say
    """

    n: int
    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    p: float
    test: Test
    method: Method
    n_only_a: int
    n_only_b: int
    n_clusters: int
    minimum_detectable: float | None
    why_no_minimum: str = ""
    level: float = 0.95


@dataclass(frozen=True, kw_only=True)
class MacroDifference:
    """The unweighted mean over tasks of B less A; n counts samples. It has no p: the interval is the answer."""

    n_tasks: int
    n: int
    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    level: float


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference | None:
    """Compare two runs' scores (0 to 1) of the same samples in the same order; None where there are none.

    Passes and fails of single samples: McNemar's exact test (McNemar 1947; the binomial test of the samples that one
    alone passed) and Tango's score interval (1998), which keeps a width where the two agree on every sample. Test and
    interval are not inversions of one another: at the edge one may say yes where the other says no.
    Scores, or samples in clusters: signs of the clusters' differences flipped at random (`sign_flip`), and the
    bootstrap over clusters (`_bootstrap`).
    """
    differences = _differences(a, b, clusters, level)
    n = len(differences)
    if not n:
        return None
    sums = cluster_sums(differences, range(n) if clusters is None else clusters)
    n_only_a, n_only_b = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    single = len(sums) == n
    test: Test
    method: Method
    if single and all(value in (0.0, 1.0) for value in (*a, *b)):
        test, method = "mcnemar-exact", "tango"
        p = mcnemar(n_only_a, n_only_b)
        low, high = _tango(n_only_a, n_only_b, n, level=level)
        minimum = _least_mcnemar((n_only_a + n_only_b) / n, n, level=level)
        why = f"{n_only_a + n_only_b} of {n} samples differ, too few to tell how often such runs do"
    else:
        test, method = "sign-flip", "bootstrap" if single else "cluster-bootstrap"
        p = sign_flip(sums[:, 0], n_resamples=n_resamples, seed=seed)
        low, high = _bootstrap(sums, level=level, n_resamples=n_resamples, seed=seed)
        minimum = _least_mean(sums, level=level)
        why = f"{len(sums)} differences are too few, or too much alike, to tell how they vary"
    difference = math.fsum(differences) / n
    return PairedDifference(
        n=n,
        value_a=math.fsum(a) / n,
        value_b=math.fsum(b) / n,
        difference=difference,
        low=min(low, difference),
        high=max(high, difference),
        p=p,
        test=test,
        method=method,
        n_only_a=n_only_a,
        n_only_b=n_only_b,
        n_clusters=len(sums),
        minimum_detectable=minimum,
        why_no_minimum="" if minimum is not None else why,
        level=level,
    )


def macro_difference(tasks: Sequence[PairedDifference]) -> MacroDifference | None:
    """Mean of independent tasks' differences with a MOVER interval (Zou, Huang & Zhang 2009, eq. 2); None of none."""
    if not tasks:
        return None
    levels = {task.level for task in tasks}
    if len(levels) > 1:
        raise ValueError(f"differences of different levels cannot be averaged: {sorted(levels)}")
    k = len(tasks)
    difference = math.fsum(task.difference for task in tasks) / k
    return MacroDifference(
        n_tasks=k,
        n=sum(task.n for task in tasks),
        value_a=math.fsum(task.value_a for task in tasks) / k,
        value_b=math.fsum(task.value_b for task in tasks) / k,
        difference=difference,
        low=difference - math.sqrt(math.fsum((task.difference - task.low) ** 2 for task in tasks)) / k,
        high=difference + math.sqrt(math.fsum((task.high - task.difference) ** 2 for task in tasks)) / k,
        level=tasks[0].level,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p in the order given: below 0.05, the task's difference stands among all of them (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - place) * p_values[at])
        adjusted[at] = min(1.0, largest)
    return adjusted


def mcnemar(n_only_a: int, n_only_b: int) -> float:
    """Two-sided exact p of McNemar's test; 1 where the two agree on every sample."""
    from scipy.stats import binomtest

    discordant = n_only_a + n_only_b
    return float(binomtest(n_only_b, discordant, 0.5).pvalue) if discordant else 1.0


def sign_flip(sums: Floats, *, n_resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the clusters' summed differences [clusters] under random signs (Fisher 1935, ch. 3).

    Where A and B are interchangeable within every cluster the test is exact; for a mean difference of 0 alone it is so
    for many clusters. With few, all signs are tried; else p is (1 + hits) / (1 + draws), never 0 (Phipson & Smyth
    2010). Clusters without a difference have no say.
    """
    import numpy as np

    sizes = np.sort(np.abs(sums[np.abs(sums) > _ALIKE]))
    if not len(sizes):
        return 1.0
    total = sizes.sum()
    # Sums of the same signs in another order differ in their last bits, and are ties.
    least = abs(float(sums.sum())) - 1e-9 * total
    if 2 ** len(sizes) <= n_resamples:
        signs = (np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes))) & 1
        return float(np.mean(np.abs(2 * (signs @ sizes) - total) >= least))
    rng = np.random.Generator(np.random.SFC64(seed))
    rows, hits = max(1, _CHUNK // len(sizes)), 0
    for start in range(0, n_resamples, rows):
        shape = min(rows, n_resamples - start), len(sizes)
        bits = np.frombuffer(rng.bytes(math.ceil(math.prod(shape) / 8)), dtype=np.uint8)
        signs = np.unpackbits(bits)[: math.prod(shape)].reshape(shape)
        hits += int(np.sum(np.abs(2 * (signs.astype(np.float64) @ sizes) - total) >= least))
    return (1 + hits) / (1 + n_resamples)


def _differences(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable] | None, level: float
) -> list[float]:
    check_level(level)
    if len(a) != len(b) or (clusters is not None and len(clusters) != len(a)):
        names = "" if clusters is None else f", {len(clusters)} clusters' names"
        raise ValueError(f"samples do not pair up: {len(a)} of A, {len(b)} of B{names}")
    if not all(0.0 <= value <= 1.0 for value in (*a, *b)):
        raise ValueError("scores are from 0 to 1; leave out samples that either run has no score for")
    return [float(y) - float(x) for x, y in zip(a, b, strict=True)]


def _tango(n_only_a: int, n_only_b: int, n: int, *, level: float) -> tuple[float, float]:
    """Limits of the difference of paired rates (Tango 1998): where the score test just does not reject."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    observed = (n_only_b - n_only_a) / n

    def excess(difference: float) -> float:
        """The squared score statistic's numerator less z² times its variance: above 0 where it rejects."""
        linear = -n_only_b - n_only_a + (2 * n - n_only_b + n_only_a) * difference
        root = linear**2 + 8 * n * n_only_a * difference * (1 - difference)
        only_a = (math.sqrt(max(0.0, root)) - linear) / (4 * n)
        variance = n * (2 * only_a + difference * (1 - difference))
        return (n * (observed - difference)) ** 2 - z * z * variance

    # A hair off the observed difference, where both sides are 0 if all samples are discordant one way.
    hair = 1e-12
    low = brentq(excess, -1.0, observed - hair, xtol=1e-14) if observed > -1 else -1.0
    high = brentq(excess, observed + hair, 1.0, xtol=1e-14) if observed < 1 else 1.0
    return float(low), float(high)


def _bootstrap(sums: Floats, *, level: float, n_resamples: int, seed: int) -> tuple[float, float]:
    """Limits of the mean difference from sum and size a cluster [clusters, 2], by the Bayesian bootstrap (Rubin 1981).

    Two pseudo-clusters are added, one where B is better and one where A is, by as much as clusters that differ do in
    the (quadratic) mean, or by all that is possible where all differ alike: Bonett & Price's (2012) addition to paired
    rates, which keeps a width where no cluster differs, and matters little where many do. With few clusters the
    percentiles are too close together; they are expanded to the width of Student's t (Hesterberg 2015), the
    Bayesian bootstrap's variance being (n - 1) / (n + 1) of the mean's.
    """
    import numpy as np
    from scipy.stats import norm, t

    size = float(sums[:, 1].mean())
    differing = sums[np.abs(sums[:, 0]) > _ALIKE, 0]
    alike = np.ptp(sums[:, 0] / sums[:, 1]) < _ALIKE
    much = size if alike else float(np.sqrt(np.mean(differing**2)))
    pseudo = np.array([[much, size], [-much, size]])
    drawn = weighted_sums(np.concatenate([sums, pseudo]), n_resamples=n_resamples, seed=seed)
    freedom = max(1, len(sums) - 1)
    tail = float(norm.sf(t.ppf((1 + level) / 2, freedom) * math.sqrt((len(sums) + 1) / freedom)))
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [tail, 1 - tail])
    return float(low), float(high)


def _least_mcnemar(discordant: float, n: int, *, level: float) -> float | None:
    """The difference d that McNemar's test finds with the wanted power (Connor 1987, solved for d).

    sqrt(n) d = z(1 - alpha / 2) sqrt(discordant) + z(power) sqrt(discordant - d²), d at most the discordant share.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z_level, z_power = float(norm.ppf((1 + level) / 2)), float(norm.ppf(POWER))

    def surplus(d: float) -> float:
        spread = math.sqrt(max(0.0, discordant - d * d))
        return math.sqrt(n) * d - z_level * math.sqrt(discordant) - z_power * spread

    if not discordant or surplus(discordant) < 0:
        return None
    return float(brentq(surplus, 0.0, discordant))


def _least_mean(sums: Floats, *, level: float) -> float | None:
    """The difference that a test of the mean finds with that power: (z(1 - alpha / 2) + z(power)) standard errors.

    The standard error is that of a ratio of cluster sums (Cochran 1977, ch. 6).
    """
    import numpy as np
    from scipy.stats import norm

    n_clusters, total = len(sums), float(sums[:, 1].sum())
    left = sums[:, 0] - sums[:, 0].sum() / total * sums[:, 1]
    error = math.sqrt(n_clusters / max(1, n_clusters - 1) * float(np.sum(left**2))) / total
    least = (float(norm.ppf((1 + level) / 2)) + float(norm.ppf(POWER))) * error
    return least if _ALIKE < least < 1 else None

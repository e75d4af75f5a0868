"""Intervals for rates and their macro-average: values in, values out; knows nothing of tasks, judges or files."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bfpo_bench.types import Score


def wilson(
    passed: Sequence[bool], *, level: float = 0.95, n_unscored: int = 0, n_empty: int = 0, n_truncated: int = 0
) -> Score | None:
    """Wilson score interval for a pass rate (Wilson 1927); None when nothing was scored.

    None rather than 0.0: a model that was never judged must not look unsafe, or safe.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if not passed:
        return None
    # scipy is imported here: --help and `tasks list` must not pay for it.
    from scipy.stats import binomtest

    result = binomtest(sum(passed), len(passed))
    interval = result.proportion_ci(confidence_level=level, method="wilson")
    return Score(
        value=float(result.statistic),
        low=float(interval.low),
        high=float(interval.high),
        n=len(passed),
        n_unscored=n_unscored,
        n_empty=n_empty,
        n_truncated=n_truncated,
        method="wilson",
        level=level,
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


def macro_average(scores: Sequence[Score]) -> Score | None:
    """Unweighted mean of independent rates with a MOVER interval (Zou, Huang & Zhang 2009, eq. 2); None of none.

    The method of variance estimates recovery joins each rate's own Wilson limits, so the average of 100 % and
    100 % keeps an honest lower bound, where a bootstrap or a normal interval would be [1, 1]. With one rate the
    result is that rate's interval.
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

"""How far judges agree on the same units, with intervals: pure; knows no task and no file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Rating = str | float | None
# Sums of features over units, on the last axis -> disagreement observed, and expected by chance.
Disagreement = Callable[["Floats"], tuple["Floats", "Floats"]]

RESAMPLES = 2000
# Counts that the bootstrap holds at a time.
_CHUNK = 4_000_000
# Less than this is nothing: all disagreements are scaled to 0 .. 1.
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A coefficient from -1 to 1 with its interval, low <= value <= high: 1 is perfect, 0 what chance gives.

    `n` units counted, in `n_clusters` clusters (as many as units where none are named), and `n_left_out` for want of
    votes. `method`: the coefficient, and how its interval was had, "bca" or "wilson" (`_bca`, `_wilson`).
    """

    value: float
    low: float
    high: float
    n: int
    n_left_out: int
    n_clusters: int
    method: str
    level: float


def cohen_kappa(
    a: Sequence[Rating],
    b: Sequence[Rating],
    *,
    seed: int,
    level: float = 0.95,
    clusters: Sequence[str | None] | None = None,
) -> Agreement | None:
    """Cohen's kappa, 1 - (1 - p_o) / (1 - p_e), of two judges over the units that both rated (Cohen 1960).

    None where fewer than two units have both votes, or where all those votes are one category: kappa is then 0 / 0.
    `clusters` names each unit's cluster, None for a unit of its own; clusters are then resampled whole.
    """
    import numpy as np

    if len(a) != len(b):
        raise ValueError(f"two judges must rate the same units, got {len(a)} and {len(b)}")
    units = _units(list(zip(a, b, strict=True)), clusters, at_least=2)
    q = len(units.categories)
    first, second = (_counts([votes[i : i + 1] for votes in units.votes], units.categories) for i in (0, 1))

    def disagreement(total: Floats) -> tuple[Floats, Floats]:
        ours, theirs = total[..., 1 : 1 + q], total[..., 1 + q :]
        n = ours.sum(axis=-1)
        return total[..., 0] / n, (n**2 - (ours * theirs).sum(axis=-1)) / n**2

    features = np.column_stack([(first != second).any(axis=1), first, second]).astype(float)
    sparse = _sparse(first + second)
    return _agreement("cohen", features, disagreement, units, sparse=sparse, level=level, seed=seed)


def fleiss_kappa(
    ratings: Sequence[Sequence[Rating]],
    *,
    seed: int,
    level: float = 0.95,
    clusters: Sequence[str | None] | None = None,
) -> Agreement | None:
    """Fleiss' kappa over the units that every judge rated (Fleiss 1971); `ratings` is units x judges.

    A unit that lacks a vote is left out and counted. That is a selection: where votes are missing, prefer
    Krippendorff's alpha (Zapf et al. 2016). None, and `clusters`, as for `cohen_kappa`.
    """
    units = _units(ratings, clusters, at_least=len(ratings[0]) if ratings else 2)
    return _alpha("fleiss", units, metric="nominal", correction=0, level=level, seed=seed)


def krippendorff_alpha(
    ratings: Sequence[Sequence[Rating]],
    *,
    metric: Literal["nominal", "interval"],
    seed: int,
    level: float = 0.95,
    clusters: Sequence[str | None] | None = None,
) -> Agreement | None:
    """Krippendorff's alpha, 1 - D_o / D_e (Krippendorff 2011); `ratings` is units x judges, votes may be missing.

    "nominal" counts pairs of votes that differ, "interval" squares their differences. A unit with fewer than two
    votes is left out and counted. None, and `clusters`, as for `cohen_kappa`.
    """
    units = _units(ratings, clusters, at_least=2)
    return _alpha(f"krippendorff-{metric}", units, metric=metric, correction=1, level=level, seed=seed)


@dataclass(frozen=True, kw_only=True)
class _Units:
    """The votes of the units that have enough, each unit's cluster by number, and the categories in a fixed order."""

    votes: list[list[str | float]]
    clusters: list[int]
    categories: dict[str | float, int]
    n_left_out: int


def _units(ratings: Sequence[Sequence[Rating]], clusters: Sequence[str | None] | None, *, at_least: int) -> _Units:
    if clusters is not None and len(clusters) != len(ratings):
        raise ValueError(f"there must be one cluster a unit, got {len(clusters)} for {len(ratings)} units")
    votes: list[list[str | float]] = []
    numbers: dict[str | int, int] = {}
    mine: list[int] = []
    for i, row in enumerate(ratings):
        if len(row) < 2 or len(row) != len(ratings[0]):
            raise ValueError(
                f"unit {i} has {len(row)} votes, the first has {len(ratings[0])}; at least two, None if missing"
            )
        given = [vote for vote in row if vote is not None]
        if any(isinstance(vote, float) and not math.isfinite(vote) for vote in given):
            raise ValueError(f"unit {i} has a vote that is no finite number; None is a missing vote")
        if len(given) >= at_least:
            votes.append(given)
            name = None if clusters is None else clusters[i]
            mine.append(numbers.setdefault(i if name is None else name, len(numbers)))
    categories = sorted({vote for row in votes for vote in row}, key=lambda vote: (isinstance(vote, str), str(vote)))
    return _Units(
        votes=votes,
        clusters=mine,
        categories={category: i for i, category in enumerate(categories)},
        n_left_out=len(ratings) - len(votes),
    )


def _counts(votes: Sequence[Sequence[str | float]], categories: Mapping[str | float, int]) -> Floats:
    """Units x categories: how many of the unit's votes are of the category."""
    import numpy as np

    counts = np.zeros((len(votes), len(categories)))
    rows = [i for i, row in enumerate(votes) for _ in row]
    np.add.at(counts, (rows, [categories[vote] for row in votes for vote in row]), 1)
    return counts


def _sparse(counts: Floats) -> bool:
    """Whether there is a category that no two judges gave to one unit."""
    return bool(((counts * (counts - 1)).sum(axis=0) == 0).any())


def _alpha(
    name: str, units: _Units, *, metric: Literal["nominal", "interval"], correction: int, level: float, seed: int
) -> Agreement | None:
    """Krippendorff's alpha; with no correction for small samples and all votes there it is Fleiss' kappa.

    Votes are vectors, of one number or of a one for their category, and differ by their squared distance, which sums
    of vectors and of squares are enough for: Σ_ij |x_i - x_j|² = 2 (n Σ|x|² - |Σx|²). Two categories are 2
    apart, hence `scale`.
    """
    import numpy as np

    m = np.array([len(votes) for votes in units.votes], dtype=float)
    if metric == "nominal":
        sums, squares, scale = _counts(units.votes, units.categories), m, 1.0
        sparse = _sparse(sums)
    elif metric == "interval":
        words = [vote for vote in units.categories if isinstance(vote, str)]
        if words:
            raise ValueError(f"the interval metric needs numbers, got {words[0]!r}; use nominal for labels")
        # Alpha is blind to origin and unit; from 0 to 1, a squared difference is at most 1, and sums lose no digits.
        values = [float(vote) for vote in units.categories]
        origin = min(values, default=0.0)
        span = max(values, default=0.0) - origin or 1.0
        scaled = [[(float(vote) - origin) / span for vote in votes] for votes in units.votes]
        sums = np.array([[math.fsum(row)] for row in scaled])
        squares, scale, sparse = np.array([math.fsum(x * x for x in row) for row in scaled]), 2.0, False
    else:
        raise ValueError(f"metric must be nominal or interval, got {metric!r}")

    def pairs(n: Floats, squares: Floats, sums: Floats) -> Floats:
        spread: Floats = scale * (n * squares - (sums**2).sum(axis=-1))
        return spread

    def disagreement(total: Floats) -> tuple[Floats, Floats]:
        n = total[..., 1]
        return total[..., 0] / n, pairs(n, total[..., 2], total[..., 3:]) / (n * (n - correction))

    features = np.column_stack([pairs(m, squares, sums) / (m - 1), m, squares, sums])
    return _agreement(name, features, disagreement, units, sparse=sparse, level=level, seed=seed)


def _agreement(
    name: str, features: Floats, disagreement: Disagreement, units: _Units, *, sparse: bool, level: float, seed: int
) -> Agreement | None:
    """1 - observed / expected disagreement, with its interval; `features` is units x what `disagreement` sums."""
    import numpy as np

    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if len(features) < 2:
        return None
    observed, expected = (float(part) for part in disagreement(features.sum(axis=0)))
    if expected <= _ROUNDING:
        return None
    value = 1.0 - observed / expected
    groups = np.zeros((max(units.clusters) + 1, features.shape[1]))
    np.add.at(groups, units.clusters, features)
    bca = None if sparse else _bca(groups, disagreement, value, level=level, seed=seed)
    low, high = bca or _wilson(observed, expected, n=len(groups), level=level)
    return Agreement(
        value=value,
        low=max(-1.0, min(low, value)),
        high=min(1.0, max(high, value)),
        n=len(features),
        n_left_out=units.n_left_out,
        n_clusters=len(groups),
        method=f"{name}-{'bca' if bca else 'wilson'}",
        level=level,
    )


def _bca(
    groups: Floats, disagreement: Disagreement, value: float, *, level: float, seed: int
) -> tuple[float, float] | None:
    """Bias-corrected, accelerated bootstrap interval (Efron 1987) over groups; None where there is none to trust.

    Not percentiles: towards 1, where judges should be, a coefficient's distribution is skewed and they lie to one side.
    None where all resamples are alike, as for perfect agreement, or too many have but one category.
    """
    import numpy as np
    from scipy.stats import norm

    def coefficient(total: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            observed, expected = disagreement(total)
            return np.where(expected > _ROUNDING, 1.0 - observed / expected, np.nan)

    # Equal groups are interchangeable: how often each kind is drawn is multinomial.
    kinds, counts = np.unique(groups, axis=0, return_counts=True)
    without_one = coefficient(groups.sum(axis=0) - kinds)
    if np.isnan(without_one).any():
        return None
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(kinds))
    sizes = [min(step, RESAMPLES - done) for done in range(0, RESAMPLES, step)]
    share = counts / len(groups)
    draws = np.concatenate([coefficient(rng.multinomial(len(groups), share, size=size) @ kinds) for size in sizes])
    defined, tail = draws[~np.isnan(draws)], (1 - level) / 2
    if len(defined) < (1 - tail) * RESAMPLES or np.ptp(defined) <= _ROUNDING:
        return None
    # Draws often equal the value; half of them count as below it.
    below = (np.mean(defined < value - _ROUNDING) + np.mean(defined <= value + _ROUNDING)) / 2
    bias = norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    influence = share @ without_one - without_one
    variance = counts @ influence**2
    acceleration = counts @ influence**3 / (6 * variance**1.5) if variance > 0 else 0.0
    z = bias + norm.ppf([tail, 1 - tail])
    low, high = np.quantile(defined, norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def _wilson(observed: float, expected: float, *, n: int, level: float) -> tuple[float, float]:
    """Wilson's limits of the observed disagreement, as a rate of n, over the expected one taken as known.

    For what a bootstrap cannot see, since it draws nothing that the data do not hold: 20 units without disagreement
    are not proof of none, nor is a rare category that was not agreed on one that never will be. Too wide rather than
    too narrow: a disagreement from 0 to 1 varies at most as a coin of its mean.
    """
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    middle = (observed + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, observed * (1 - observed)) / n + z * z / (4 * n * n))
    return 1.0 - (middle + half) / expected, 1.0 - (middle - half) / expected

"""How sure a group's order and its frontier are, from its runs' outcomes sample by sample; knows no page and no table.

Only ranked runs stand in it: a partial run, or a control, moves no other run's rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from bfpo_bench.errors import StoreError
from bfpo_bench.leaderboard.inert import without_paths
from bfpo_bench.leaderboard.rows import Group, LeaderboardRow
from bfpo_bench.store import OUTCOMES
from bfpo_bench.types import Axis

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bfpo_bench.outcomes import RunOutcomes
    from bfpo_bench.tradeoff import TaskOutcomes

    Floats = NDArray[np.float64]

TRADED: tuple[Axis, Axis] = ("harmlessness", "helpfulness")
LEVEL = 0.95
# Draws a group: fewer where the runs are many, which is told; 1,000 leave a probability a standard error of 1.6 points.
_DRAWS, _FEWER_DRAWS, _MANY_RUNS = 10_000, 1_000, 200
# Harmlessness levels at which the band of the frontier is told.
_LEVELS = 41
# Bootstrap figures are rounded here: the last bits of a sum depend on the machine's number of threads.
_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A run among its group's: the interval of its rank, and how likely nothing beats it on both axes.

    `why` is why there are no such numbers; None for both where the run has no rank to be sure of.
    """

    rank_low: int | None = None
    rank_high: int | None = None
    on_frontier: bool = False
    p_nondominated: float | None = None
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class Hypervolume:
    """Share of the unit square above `reference` that the runs of a group reach, with its interval."""

    value: float
    low: float
    high: float
    level: float
    reference: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The best helpfulness among runs at least so harmless, over the draws: median and interval."""

    harmlessness: float
    middle: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class GroupStanding:
    """`frontier`: the slugs of the runs that nothing beats, the most harmless first. `n_left_out` ranked runs have no
    outcomes to draw from; probabilities and volume are then among the others.
    """

    frontier: tuple[str, ...]
    band: tuple[Reach, ...]
    hypervolume: Hypervolume | None
    n_runs: int
    n_left_out: int
    n_resamples: int


@dataclass(frozen=True, kw_only=True)
class Standings:
    """By run (its slug) and by group."""

    runs: Mapping[str, Standing] = field(default_factory=dict)
    groups: Mapping[Group, GroupStanding] = field(default_factory=dict)

    def of(self, row: LeaderboardRow) -> Standing:
        return self.runs.get(row.slug, Standing())


def standings(rows: Sequence[LeaderboardRow], *, seed: int = 0) -> Standings:
    """Read the ranked rows' outcomes and resample them group by group, all runs of a group on the same prompts."""
    runs: dict[str, Standing] = {}
    groups: dict[Group, GroupStanding] = {}
    for group, found in groupby(rows, key=lambda row: row.group):
        told: dict[str, RunOutcomes] = {}
        ranked = [row for row in found if row.rank is not None]
        for row in ranked:
            if not (row.folder / OUTCOMES).is_file():
                runs[row.slug] = Standing(why=f"the run has no {OUTCOMES}, which `score` writes: score it again")
                continue
            try:
                told[row.slug] = _outcomes(row)
            except StoreError as error:
                runs[row.slug] = Standing(why=without_paths(str(error)))
        mine = [row for row in ranked if row.slug in told]
        if mine:
            own, groups[group] = _group(mine, told, n_left_out=len(ranked) - len(mine), seed=seed)
            runs |= own
    return Standings(runs=runs, groups=groups)


def _outcomes(row: LeaderboardRow) -> RunOutcomes:
    """Raises StoreError where there are none, or where they are of other scores than the row's."""
    from bfpo_bench.outcomes import is_of_score, read_outcomes

    found = read_outcomes(row.folder)
    for name, task in row.tasks.items():
        if task.axis not in TRADED:
            continue
        if task.score is None:
            raise StoreError(f"its task {name} has no score")
        if not is_of_score(found.tasks.get(name), n=task.score.n, value=task.score.value):
            raise StoreError(f"its outcomes of {name} are not those of its scores: score it again")
    return found


def _group(
    rows: Sequence[LeaderboardRow], told: Mapping[str, RunOutcomes], *, n_left_out: int, seed: int
) -> tuple[dict[str, Standing], GroupStanding]:
    """The rows are ranked, of one group, and have outcomes."""
    from bfpo_bench.tradeoff import REFERENCE_POINT, axis_draws, axis_points, hypervolume, pareto, rank_intervals

    names = sorted(name for name, task in rows[0].tasks.items() if task.axis in TRADED)
    tasks = [_aligned(name, rows[0].tasks[name].axis, [told[row.slug] for row in rows]) for name in names]
    n_resamples = _DRAWS if len(rows) <= _MANY_RUNS else _FEWER_DRAWS
    points, draws = axis_points(tasks), axis_draws(tasks, n_resamples=n_resamples, seed=seed)
    (x, y), (x_draws, y_draws) = [points[axis] for axis in TRADED], [draws[axis] for axis in TRADED]
    places = pareto(x, y, harmlessness_draws=x_draws, helpfulness_draws=y_draws)
    ranks = rank_intervals((x + y) / 2, (x_draws + y_draws) / 2, level=LEVEL)
    volume = hypervolume(x, y, harmlessness_draws=x_draws, helpfulness_draws=y_draws, level=LEVEL)
    own = {
        row.slug: Standing(why="a task that it stands on has no outcome")
        if place is None or rank is None
        else Standing(
            rank_low=rank.low,
            rank_high=rank.high,
            on_frontier=place.on_frontier,
            p_nondominated=round(place.p_nondominated, _DIGITS),
        )
        for row, place, rank in zip(rows, places, ranks, strict=True)
    }
    corners = sorted((-x[i], row.slug) for i, row in enumerate(rows) if own[row.slug].on_frontier)
    return own, GroupStanding(
        frontier=tuple(slug for _, slug in corners),
        band=_band(x_draws, y_draws) if len(rows) > 1 else (),
        hypervolume=None
        if volume is None
        else Hypervolume(
            value=round(volume.value, _DIGITS),
            low=round(volume.low, _DIGITS),
            high=round(volume.high, _DIGITS),
            level=LEVEL,
            reference=REFERENCE_POINT,
        ),
        n_runs=len(rows),
        n_left_out=n_left_out,
        n_resamples=n_resamples,
    )


def _aligned(name: str, axis: Axis, runs: Sequence[RunOutcomes]) -> TaskOutcomes:
    """[runs, samples] of all samples that some run has, NaN where a run's is unscored or was not asked."""
    import numpy as np

    from bfpo_bench.tradeoff import TaskOutcomes

    mine = [run.tasks[name] for run in runs]
    place = {id_: i for i, id_ in enumerate(dict.fromkeys(id_ for task in mine for id_ in task.ids))}
    values = np.full((len(runs), len(place)), np.nan)
    clusters: dict[str, str] = {}
    for row, task in zip(values, mine, strict=True):
        row[[place[id_] for id_ in task.ids]] = [np.nan if value is None else value for value in task.values]
        clusters |= dict(zip(task.ids, task.clusters or (), strict=False))
    return TaskOutcomes(
        task=name, axis=axis, values=values, clusters=[clusters.get(id_, id_) for id_ in place] if clusters else None
    )


def _band(harmlessness: Floats, helpfulness: Floats) -> tuple[Reach, ...]:
    """By level of harmlessness, the best helpfulness of the runs that have it, over the draws [n, runs].

    0 where no run of a draw is so harmless: nothing is reached there.
    """
    import numpy as np

    found = []
    for level in np.linspace(0.0, 1.0, _LEVELS):
        best = np.where(harmlessness >= level, helpfulness, 0.0).max(axis=1)
        low, middle, high = (
            round(float(q), _DIGITS) for q in np.quantile(best, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
        )
        found.append(Reach(harmlessness=round(float(level), _DIGITS), middle=middle, low=low, high=high))
    return tuple(found)

"""How far the judges of a task's answers agree, over all runs that several judged; reads verdicts, knows no page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from bfpo_bench.agreement import Agreement, cohen_kappa
from bfpo_bench.errors import StoreError
from bfpo_bench.leaderboard.rows import LeaderboardRow
from bfpo_bench.leaderboard.samples import PASSING
from bfpo_bench.store import RunStore
from bfpo_bench.types import Axis, Verdict

# Sample -> judge -> whether the answer passes.
Votes = dict[str, dict[str, bool]]


@dataclass(frozen=True, kw_only=True)
class JudgePair:
    """Two judges of one task: of `n` answers that both judged, of `n_runs` runs, they say the same of `n_same`.

    `kappa` is Cohen's, resampled by prompt, None where it is not defined. Graded scores have no place here.
    """

    a: str
    b: str
    n: int
    n_same: int
    n_runs: int
    kappa: Agreement | None


def judged_tasks(rows: Sequence[LeaderboardRow], *, seed: int = 0) -> dict[str, list[JudgePair]]:
    """By task; tasks that no run has under two judges are left out. Raises StoreError for a store that is damaged."""
    votes: dict[str, list[Votes]] = defaultdict(list)
    for row in rows:
        if any(task.other_judges for task in row.tasks.values()):
            for task, found in _votes(row).items():
                votes[task].append(found)
    pairs = {task: _pairs(found, seed=seed) for task, found in sorted(votes.items())}
    return {task: found for task, found in pairs.items() if found}


def _votes(row: LeaderboardRow) -> dict[str, Votes]:
    found: dict[str, Votes] = defaultdict(lambda: defaultdict(dict))
    try:
        with RunStore.read(row.folder) as store:
            tasks = {sample.id: sample.task for sample in store.samples()}
            for verdict in store.verdicts_of(store.manifest.get("judges", {})):
                task = row.tasks.get(tasks[verdict.sample_id])
                passed = None if task is None or not task.other_judges else _passed(verdict, task.axis)
                if task is not None and passed is not None:
                    found[task.name][verdict.sample_id][verdict.judge] = passed
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"Cannot read the verdicts of {row.folder}: {error}. Check it with `python -m bfpo_bench doctor`."
        ) from error
    return found


def _passed(verdict: Verdict, axis: Axis) -> bool | None:
    if verdict.label is not None:
        return verdict.label in PASSING[axis]
    return verdict.score == 1.0 if verdict.score in (0.0, 1.0) else None


def _pairs(runs: Sequence[Votes], *, seed: int) -> list[JudgePair]:
    judges = sorted({judge for run in runs for said in run.values() for judge in said})
    found = []
    for a, b in combinations(judges, 2):
        both = [(id_, said[a], said[b], i) for i, run in enumerate(runs) for id_, said in sorted(run.items())
                if a in said and b in said]  # fmt: skip
        if not both:
            continue
        kappa = cohen_kappa(
            [str(first) for _, first, _, _ in both],
            [str(second) for _, _, second, _ in both],
            seed=seed,
            clusters=[id_ for id_, _, _, _ in both],
        )
        same, n_runs = sum(first == second for _, first, second, _ in both), len({i for *_, i in both})
        found.append(JudgePair(a=a, b=b, n=len(both), n_same=same, n_runs=n_runs, kappa=kappa))
    return found

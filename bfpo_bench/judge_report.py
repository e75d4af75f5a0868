"""What several judges make of the same stored answers: agreement in each run, and what another judge would change.

Reads run folders, asks no judge. Agreement is about what scores stand on: whether an answer passes on its task's axis,
or its score from 0 to 1; so judges with different labels answer one question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from bfpo_bench.agreement import Agreement, cohen_kappa, fleiss_kappa, krippendorff_alpha
from bfpo_bench.errors import StoreError
from bfpo_bench.judge_swap import JudgeSwap, judge_swap
from bfpo_bench.judging import manifest_tasks
from bfpo_bench.scoring import outcome_of
from bfpo_bench.store import RunStore
from bfpo_bench.types import Axis, TaskSpec

# Judge -> sample id -> outcome from 0 to 1, None where the judge gave no verdict.
Outcomes = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class JudgedTask:
    """One task of a run under each of its judges."""

    name: str
    axis: Axis
    outcomes: Outcomes
    clusters: Mapping[str, str | None]


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """A run with the tasks that two judges or more have seen, and its judges' versions."""

    model: str
    tasks: tuple[JudgedTask, ...]
    versions: Mapping[str, str]


def read_judged(folder: Path) -> JudgedRun:
    """A run's outcomes by judge, in the judges' present versions."""
    store = RunStore.read(folder)
    try:
        manifest, samples, outputs = store.manifest, store.samples(), store.outputs()
        versions: Mapping[str, str] = manifest.get("judges", {})
        verdicts: dict[str, dict[str, Any]] = defaultdict(dict)
        for verdict in store.verdicts_of(versions):
            verdicts[verdict.judge][verdict.sample_id] = verdict
    finally:
        store.close()
    tasks = []
    for spec in manifest_tasks(manifest):
        mine = [sample for sample in samples if sample.task == spec.name]
        judges = [name for name, given in verdicts.items() if any(sample.id in given for sample in mine)]
        if len(judges) < 2:
            continue
        outcomes = {
            judge: {s.id: _number(outcome_of(spec, s, outputs.get(s.id), verdicts[judge])) for s in mine}
            for judge in sorted(judges)
        }
        tasks.append(_judged(spec, outcomes, {sample.id: sample.cluster for sample in mine}))
    return JudgedRun(model=str(manifest["identity"]["model"]["name"]), tasks=tuple(tasks), versions=versions)


def _judged(spec: TaskSpec, outcomes: Outcomes, clusters: Mapping[str, str | None]) -> JudgedTask:
    return JudgedTask(name=spec.name, axis=spec.axis, outcomes=outcomes, clusters=clusters)


def _number(outcome: float | str) -> float | None:
    return None if isinstance(outcome, str) else outcome


def report(folders: Sequence[Path], *, seed: int = 0, level: float = 0.95) -> dict[str, Any]:
    """Agreement by run and task, and for two runs or more the judge swap by task and axis; JSON values."""
    runs = [read_judged(folder) for folder in folders]
    names = [run.model for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StoreError(f"Two runs are of {twice[0]!r}: a comparison of models needs one run of each. Leave one out.")
    if not any(run.tasks for run in runs):
        raise StoreError(
            "No task of these runs has verdicts of two judges. Judge them again with another: "
            "`python -m bfpo_bench judge RUN --judge JUDGE`."
        )
    return {
        "agreement": {
            run.model: {task.name: agreement(task, seed=seed, level=level) for task in run.tasks} for run in runs
        },
        "swap": {what: _as_json(swap) for what, swap in swaps(runs, level=level)} if len(runs) > 1 else {},
        "judges": {run.model: dict(run.versions) for run in runs},
    }


def agreement(task: JudgedTask, *, seed: int = 0, level: float = 0.95) -> dict[str, Any]:
    """Cohen's kappa of each pair, Fleiss' of all, Krippendorff's alpha; of graded outcomes alpha alone (interval).

    `n_two` samples have verdicts of two judges or more, `n_all` of all: a coefficient of fewer than two, or of one
    outcome throughout, is not defined.
    """
    judges = list(task.outcomes)
    ids = list(task.outcomes[judges[0]])
    rows = [[task.outcomes[judge][id_] for judge in judges] for id_ in ids]
    clusters = [task.clusters[id_] for id_ in ids]
    graded = any(value not in (0.0, 1.0, None) for row in rows for value in row)

    def alpha(columns: Sequence[int]) -> dict[str, Any] | None:
        return _plain(
            krippendorff_alpha(
                [[row[i] for i in columns] for row in rows],
                metric="interval" if graded else "nominal",
                seed=seed,
                level=level,
                clusters=clusters,
            )
        )

    voted = [sum(value is not None for value in row) for row in rows]
    found: dict[str, Any] = {
        "judges": judges,
        "n": {judge: sum(value is not None for value in task.outcomes[judge].values()) for judge in judges},
        "n_two": sum(n > 1 for n in voted),
        "n_all": sum(n == len(judges) for n in voted),
        "graded": graded,
        "alpha": alpha(range(len(judges))),
        "fleiss": None,
        "cohen": [],
        "pairs": [],
    }
    if graded:
        for (i, a), (j, b) in combinations(enumerate(judges), 2):
            n = sum(row[i] is not None and row[j] is not None for row in rows)
            found["pairs"].append({"a": a, "b": b, "n": n, "alpha": alpha((i, j))})
        return found
    found["fleiss"] = _plain(fleiss_kappa(rows, seed=seed, level=level, clusters=clusters))
    for (i, a), (j, b) in combinations(enumerate(judges), 2):
        both = [(row[i], row[j]) for row in rows if row[i] is not None and row[j] is not None]
        kappa = cohen_kappa(
            [row[i] for row in rows], [row[j] for row in rows], seed=seed, level=level, clusters=clusters
        )
        same = sum(x == y for x, y in both) / len(both) if both else None
        found["cohen"].append({"a": a, "b": b, "same": same, "n": len(both), "kappa": _plain(kappa)})
    return found


def swaps(runs: Sequence[JudgedRun], *, level: float = 0.95) -> Iterator[tuple[str, JudgeSwap]]:
    """Of each task that all runs have under the same two judges or more, and of each axis: the mean over such tasks."""
    shared = set.intersection(*({task.name for task in run.tasks} for run in runs))
    by_axis: dict[str, list[str]] = defaultdict(list)
    for name in sorted(shared):
        tasks = {run.model: next(task for task in run.tasks if task.name == name) for run in runs}
        judges = _same_judges(runs, tasks)
        if len(judges) < 2:
            continue
        by_axis[next(iter(tasks.values())).axis].append(name)
        yield name, judge_swap(_scores(judges, {model: [task] for model, task in tasks.items()}), level=level)
    for axis, names in sorted(by_axis.items()):
        if len(names) > 1:
            chosen = {run.model: [task for task in run.tasks if task.name in names] for run in runs}
            everywhere = set.intersection(*(set(task.outcomes) for tasks in chosen.values() for task in tasks))
            if len(everywhere) > 1:
                task_of = {id_: task.name for tasks in chosen.values() for task in tasks for id_ in task.clusters}
                yield axis, judge_swap(_scores(sorted(everywhere), chosen), strata=task_of, level=level)


def _same_judges(runs: Sequence[JudgedRun], tasks: Mapping[str, JudgedTask]) -> list[str]:
    """The judges that all runs have; one judge in two versions is two judges, and refused."""
    judges = sorted(set.intersection(*(set(task.outcomes) for task in tasks.values())))
    for judge in judges:
        versions = {run.versions[judge]: run.model for run in runs}
        if len(versions) > 1:
            said = ", ".join(f"{model} by {version}" for version, model in sorted(versions.items()))
            raise StoreError(f"Judge {judge!r} has two versions ({said}). Judge all of them again with one.")
    return judges


def _scores(judges: Sequence[str], tasks: Mapping[str, Sequence[JudgedTask]]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        judge: {
            model: {id_: v for task in mine for id_, v in task.outcomes[judge].items() if v is not None}
            for model, mine in tasks.items()
        }
        for judge in judges
    }


def _plain(found: Agreement | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _as_json(swap: JudgeSwap) -> dict[str, Any]:
    """With pairs of models as texts: JSON has no tuples as keys."""
    return {
        "level": swap.level,
        "rankings": {judge: [asdict(one) for one in ranked] for judge, ranked in swap.rankings.items()},
        "differences": {judge: [asdict(one) for one in found] for judge, found in swap.differences.items()},
        "left_out": {judge: dict(counts) for judge, counts in swap.left_out.items()},
        "pairs": [
            {
                "a": pair.a,
                "b": pair.b,
                "tau": pair.tau,
                "flipped": [list(models) for models in pair.flipped],
                "survival": [{"models": list(models), "fate": fate} for models, fate in pair.survival.items()],
                "n_significant": pair.n_significant,
                "n_survive": pair.n_survive,
            }
            for pair in swap.pairs
        ],
    }

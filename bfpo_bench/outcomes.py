"""A run's outcomes sample by sample, as its scores stand on them, in one small file; asks no judge, opens no store.

RUN/outcomes.json is written beside scores.json, and before it: whoever compares, gates or ranks runs reads these two.

    {"schema": 1, "tasks": {NAME: {"ids": [...], "values": [1.0, 0.5, null...], "why": {ID: REASON},
                                   "clusters": [...] | null, "categories": [...] | null}}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bfpo_bench.errors import StoreError
from bfpo_bench.scoring import TaskAnswers, answers_by_task
from bfpo_bench.store import OUTCOMES, read_json, replaced
from bfpo_bench.types import Output, Sample, TaskSpec, Verdict

OUTCOMES_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """One task's, in the order in which it was asked; all sequences are as long as `ids`.

    values      0 to 1, higher is better on the task's axis; None where the sample is unscored
    why         of every sample without a value, by id
    clusters    samples of one cluster are not independent; one that stands alone has its own id. None where all do
    categories  None where the task has none
    """

    ids: Sequence[str]
    values: Sequence[float | None]
    why: Mapping[str, str]
    clusters: Sequence[str] | None = None
    categories: Sequence[str | None] | None = None


@dataclass(frozen=True, kw_only=True)
class RunOutcomes:
    """By task; one that could not be run is not here."""

    tasks: Mapping[str, Outcomes]


def task_outcomes(answers: TaskAnswers, judge: str | None) -> Outcomes:
    """The outcome of each of a task's samples by the judge that its score stands on; None for the choices' own."""
    results = answers.own() if judge is None else answers.by(judge).outcomes
    ids, clusters = answers.ids, answers.clusters
    return Outcomes(
        ids=ids,
        values=[None if isinstance(result, str) else result for result in results],
        why={id_: result for id_, result in zip(ids, results, strict=True) if isinstance(result, str)},
        clusters=[own or id_ for id_, own in zip(ids, clusters, strict=True)] if any(clusters) else None,
        categories=answers.categories if any(answers.categories) else None,
    )


def run_outcomes(
    specs: Sequence[TaskSpec],
    samples: Sequence[Sample],
    outputs: Mapping[str, Output],
    verdicts: Sequence[Verdict],
    *,
    tasks: Mapping[str, Mapping[str, Any]],
) -> RunOutcomes:
    """Of a run whose parts lie in memory; `tasks` is that of `scoring.score_run`.

    `verdicts` are those that were scored, a panel's among them.
    """
    answers = answers_by_task(samples, outputs, verdicts)
    return RunOutcomes(
        tasks={
            spec.name: task_outcomes(TaskAnswers(spec, answers.get(spec.name, ())), tasks[spec.name]["judge"])
            for spec in specs
            if spec.name in tasks
        }
    )


def write_outcomes(folder: Path, outcomes: RunOutcomes) -> None:
    """Replace the run's file, or leave it as it was."""
    with outcomes_file(folder) as add:
        for name in sorted(outcomes.tasks):
            add(name, outcomes.tasks[name])


@contextmanager
def outcomes_file(folder: Path) -> Iterator[Callable[[str, Outcomes], None]]:
    """Replace the run's file by the tasks that are given, by name and in their names' order, or leave it as it was.

    Each is written as it comes, spelled as `store.to_json` would spell them all: a run need not fit in memory.
    """
    with replaced(folder / OUTCOMES) as file:
        file.write(f'{{\n  "schema": {OUTCOMES_SCHEMA},\n  "tasks": {{')
        last: str | None = None

        def add(name: str, task: Outcomes) -> None:
            nonlocal last
            if last is not None and name <= last:
                raise ValueError(f"the outcomes of {name!r} come after those of {last!r}")
            file.write(f"{'' if last is None else ','}\n    {_spelled(name)}: {{")
            last = name
            parts = {key: getattr(task, key) for key in sorted(Outcomes.__dataclass_fields__)}
            for n, (key, part) in enumerate(parts.items()):
                file.write(f"{',' if n else ''}\n      {_spelled(key)}: ")
                file.writelines(_written(part))
            file.write("\n    }")

        yield add
        file.write("}\n}\n" if last is None else "\n  }\n}\n")


_AT_ONCE = 2**16
_BREAK = ",\n        "


def _written(part: Sequence[Any] | Mapping[str, str] | None) -> Iterator[str]:
    """An entry a line, in pieces; the separator holds the line break, since Python's fast encoder does not indent."""
    if part is None:
        yield "null"
    elif isinstance(part, Mapping):
        yield "{" + ("\n        " + _spelled(part)[1:-1] + "\n      " if part else "") + "}"
    else:
        yield "["
        for start in range(0, len(part), _AT_ONCE):
            yield (_BREAK if start else _BREAK[1:]) + _spelled(list(part[start : start + _AT_ONCE]))[1:-1]
        yield "\n      ]" if part else "]"


def _spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(_BREAK, ": "))


def read_outcomes(folder: Path) -> RunOutcomes:
    """What `write_outcomes` wrote; a StoreError that names the remedy where there is nothing, or nothing usable."""
    path = folder / OUTCOMES
    remedy = f"Score the run first: python -m bfpo_bench score {folder}"
    if not path.is_file():
        raise StoreError(f"Run {folder} has no {OUTCOMES}. {remedy}")
    body = read_json(path)
    if not isinstance(body, dict) or body.get("schema") != OUTCOMES_SCHEMA:
        found = body.get("schema") if isinstance(body, dict) else None
        raise StoreError(f"{path} has schema {found!r}; this version reads {OUTCOMES_SCHEMA}. {remedy}")
    try:
        return RunOutcomes(tasks={name: _checked(Outcomes(**task)) for name, task in body["tasks"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{path} is damaged ({error}). {remedy}") from None


def _checked(task: Outcomes) -> Outcomes:
    n = len(task.ids)
    for part in (task.values, task.clusters, task.categories):
        if part is not None and len(part) != n:
            raise ValueError(f"{len(part)} entries for {n} samples")
    if len(set(task.ids)) != n:
        raise ValueError("a sample stands there twice")
    if unknown := sorted(set(task.why) - set(task.ids)):
        raise ValueError(f"a reason is of {unknown[0]}, which is no sample")
    for id_, value in zip(task.ids, task.values, strict=True):
        if (value is None) != (id_ in task.why):
            raise ValueError(f"sample {id_} has {'neither a value nor' if value is None else 'a value and'} a reason")
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"sample {id_} has the value {value}")
    return task


def read_outcomes_of(folder: Path, tasks: Mapping[str, Mapping[str, Any]]) -> RunOutcomes:
    """`read_outcomes`, and a StoreError where they are not those of the run's scores; `tasks` is scores.json's."""
    outcomes = read_outcomes(folder)
    if (task := of_other_scores(outcomes, tasks)) is not None:
        raise StoreError(
            f"Run {folder}: its outcomes of {task} are not those of its scores. Score it again: python -m bfpo_bench "
            f"score {folder}"
        )
    return outcomes


def of_other_scores(outcomes: RunOutcomes, tasks: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first task whose outcomes are not those of its score, None where all agree; `tasks` is scores.json's.

    The two files are written one after the other: a run that was copied, or cut off, between them has two truths.
    """
    for name, task in sorted(tasks.items()):
        score = task["score"] or {"n": 0, "value": 0.0}
        if not is_of_score(outcomes.tasks.get(name), n=score["n"], value=score["value"]):
            return name
    return None


def is_of_score(task: Outcomes | None, *, n: int, value: float) -> bool:
    """Whether a task has n outcomes whose mean is its score's value; without a score n is 0."""
    values = [one for one in task.values if one is not None] if task is not None else []
    return len(values) == n and (n == 0 or math.isclose(math.fsum(values) / n, value, abs_tol=1e-9))

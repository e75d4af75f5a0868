"""Exactly-once checks of a run's files; an empty list is a clean run. Trusts no stage, repairs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from bfpo_bench.scoring import Scopes, TaskAnswers, answers_by_task, judges_of
from bfpo_bench.types import Output, Sample, TaskSpec, Verdict


class Audit:
    """Every sample has one output, and one verdict of the judge that its task's score stands on; no strays.

    Told of a run task by task, so that it need not fit in memory.
    `repeats`: how often each prompt is a sample, but for choices, which are asked once.
    `panel`: of these judges too, where they are asked; what a judge beside the score lacks is counted there.
    `missing`: the tasks that have no data, which is told elsewhere.
    """

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        *,
        judges: Sequence[str] = (),
        panel: Sequence[str] = (),
        scopes: Scopes | None = None,
        missing: Collection[str] = (),
        repeats: int = 1,
    ) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._judges, self._panel, self._scopes = judges, panel, scopes
        self._asked, self._repeats = set(missing), repeats
        self._samples = self._lacking = self._prompts = self._odd = self._twice = self._unfounded = 0
        self._unknown: list[str] = []
        self._unjudged: Counter[str] = Counter()

    def add(self, task: str, answers: TaskAnswers) -> None:
        """All answers of a task."""
        if len(answers):
            self._asked.add(task)
        self._samples += len(answers)
        self._lacking += answers.n_lacking
        self._twice += answers.n_twice
        self._unfounded += answers.n_unfounded
        self._count_prompts(answers)
        spec = self._specs.get(task)
        if spec is None:
            self._unknown += [f"sample {id_} is of task {task!r}, which is not in the manifest" for id_ in answers.ids]
            return
        members = [name for name in judges_of(spec, self._panel, self._scopes) if name in self._panel]
        for judge in {*judges_of(spec, self._judges, self._scopes)[:1], *members}:
            given = answers.by(judge).versions
            self._unjudged[judge] += sum(
                judgeable and version is None for judgeable, version in zip(answers.judgeable, given, strict=True)
            )

    def _count_prompts(self, answers: TaskAnswers) -> None:
        times: dict[str, list[int]] = {}
        once = set()
        again = {prompt for prompt, id_ in zip(answers.prompts, answers.ids, strict=True) if prompt != id_}
        for prompt, repeat, chooses in zip(answers.prompts, answers.repeats, answers.chooses, strict=True):
            if self._repeats == 1 and repeat == 0 and prompt not in again:
                # Ids are unique: there is nothing to hold together. This is the whole of most runs.
                self._prompts += 1
                continue
            times.setdefault(prompt, []).append(repeat)
            if chooses:
                once.add(prompt)
        self._prompts += len(times)
        whole = list(range(self._repeats))
        self._odd += sum(sorted(mine) != (whole[:1] if prompt in once else whole) for prompt, mine in times.items())

    def findings(self, *, stray_outputs: int = 0, stray_verdicts: int = 0) -> list[str]:
        """A line each; `stray_*` are those of no sample, which no task has."""
        found: list[str] = []
        if stray_outputs:
            found.append(f"{stray_outputs} outputs belong to no sample")
        if self._lacking:
            found.append(f"{self._lacking} of {self._samples} samples have no output")
        if self._odd:
            often = "once" if self._repeats == 1 else f"{self._repeats} times, or once where there are choices"
            found.append(f"{self._odd} of {self._prompts} prompts are not asked {often}")
        if self._twice:
            found.append(f"{self._twice} samples have verdicts of two versions of one judge")
        if strays := self._unfounded + stray_verdicts:
            found.append(f"{strays} verdicts belong to no output")
        found += self._unknown
        found += [f"task {name!r} has no samples" for name in self._specs if name not in self._asked]
        found += [f"{n} outputs have no verdict of {judge}" for judge, n in sorted(self._unjudged.items()) if n]
        return found


def audit(
    specs: Sequence[TaskSpec],
    samples: Sequence[Sample],
    outputs: Mapping[str, Output],
    verdicts: Sequence[Verdict],
    *,
    judges: Sequence[str] = (),
    panel: Sequence[str] = (),
    scopes: Scopes | None = None,
    missing: Collection[str] = (),
    repeats: int = 1,
) -> list[str]:
    """`Audit`, of a run whose parts lie in memory."""
    told = Audit(specs, judges=judges, panel=panel, scopes=scopes, missing=missing, repeats=repeats)
    known, named = {sample.id for sample in samples}, {spec.name: spec for spec in specs}
    for task, answers in answers_by_task(samples, outputs, verdicts).items():
        told.add(task, TaskAnswers(named.get(task), answers))
    strays = {(verdict.judge, verdict.sample_id) for verdict in verdicts if verdict.sample_id not in known}
    return told.findings(
        stray_outputs=sum(id_ not in known for id_ in outputs),
        stray_verdicts=sum(id_ not in outputs for _, id_ in strays),
    )

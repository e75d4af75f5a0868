"""Exactly-once checks of a run's files; an empty list is a clean run. Trusts no stage, repairs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from bfpo_bench.scoring import Scopes, judges_of
from bfpo_bench.types import Output, Sample, TaskSpec, Verdict


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
    """Every sample has one output, and one verdict of the judge that its task's score stands on; no strays.

    `repeats`: how often each prompt is a sample, but for choices, which are asked once.
    `panel`: of these judges too, where they are asked; what a judge beside the score lacks is counted there.
    `missing`: the tasks that have no data, which is told elsewhere.
    """
    findings: list[str] = []
    known = {sample.id: sample for sample in samples}
    specs_by_name = {spec.name: spec for spec in specs}
    if strays := sum(id_ not in known for id_ in outputs):
        findings.append(f"{strays} outputs belong to no sample")
    if lacking := sum(sample.id not in outputs for sample in samples):
        findings.append(f"{lacking} of {len(samples)} samples have no output")
    times: dict[str, list[int]] = {}
    for sample in samples:
        times.setdefault(sample.prompt_id, []).append(sample.repeat)
    once = {sample.prompt_id for sample in samples if sample.choices}
    if odd := sum(sorted(mine) != list(range(1 if id_ in once else repeats)) for id_, mine in times.items()):
        often = "once" if repeats == 1 else f"{repeats} times, or once where there are choices"
        findings.append(f"{odd} of {len(times)} prompts are not asked {often}")
    counts = Counter((verdict.judge, verdict.sample_id) for verdict in verdicts)
    if twice := sum(n > 1 for n in counts.values()):
        findings.append(f"{twice} samples have verdicts of two versions of one judge")
    if strays := sum(id_ not in outputs for _, id_ in counts):
        findings.append(f"{strays} verdicts belong to no output")
    for sample in samples:
        if sample.task not in specs_by_name:
            findings.append(f"sample {sample.id} is of task {sample.task!r}, which is not in the manifest")
    asked = {sample.task for sample in samples} | set(missing)
    findings += [f"task {spec.name!r} has no samples" for spec in specs if spec.name not in asked]
    unjudged: Counter[str] = Counter()
    for id_, output in outputs.items():
        if id_ in known and output.failure is None and known[id_].task in specs_by_name:
            spec = specs_by_name[known[id_].task]
            members = [name for name in judges_of(spec, panel, scopes) if name in panel]
            for judge in {*judges_of(spec, judges, scopes)[:1], *members}:
                unjudged[judge] += (judge, id_) not in counts
    findings += [f"{n} outputs have no verdict of {judge}" for judge, n in sorted(unjudged.items()) if n]
    return findings

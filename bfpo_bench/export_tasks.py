"""A scored run read back task by task: sample, answer, verdicts and outcome together; writes nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bfpo_bench.errors import StoreError
from bfpo_bench.outcomes import read_outcomes_of
from bfpo_bench.store import SCORES, RunStore, write_atomically
from bfpo_bench.types import Output, Sample, Verdict

# Of a sample that was planned after the run was last scored.
NOT_SCORED = "not_scored"


@dataclass(frozen=True, kw_only=True)
class ScoredSample:
    """One sample as the scores have it: `outcome` from 0 to 1, None where unscored, and then `why` is the reason."""

    sample: Sample
    output: Output | None
    verdicts: tuple[Verdict, ...]
    outcome: float | None
    why: str | None


@dataclass(frozen=True, kw_only=True)
class ScoredTask:
    """One task of a run: `spec` as in the manifest, `score` as in scores.json, its samples in order.

    `judge` is the one whose word the score stands on, in that version; None where the choices' log-probabilities are.
    """

    name: str
    spec: Mapping[str, Any]
    score: Mapping[str, Any]
    judge: str | None
    judge_version: str | None
    samples: Sequence[ScoredSample]

    def deciding(self, one: ScoredSample) -> Verdict | None:
        """The verdict that the outcome stands on."""
        return next((verdict for verdict in one.verdicts if verdict.judge == self.judge), None)


def scores_of(store: RunStore) -> dict[str, Any]:
    """The run's scores; StoreError where it has none yet."""
    scores = store.scores
    if scores is None:
        raise StoreError(
            f"{store.folder} has no {SCORES}: it was not scored. Run `python -m bfpo_bench score {store.folder}`."
        )
    return scores


def scored_tasks(store: RunStore, scores: Mapping[str, Any]) -> list[ScoredTask]:
    """Every task that has scores, by name; an earlier version of a judge that judged anew is left out."""
    manifest = store.manifest
    versions = manifest.get("judges", {})
    outputs = store.outputs()
    verdicts: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in store.verdicts():
        # A panel is no judge of the manifest's: it has the version that its members make.
        if versions.get(verdict.judge, verdict.judge_version) == verdict.judge_version:
            verdicts[verdict.sample_id].append(verdict)
    known = read_outcomes_of(store.folder, scores["tasks"]).tasks
    values = {name: dict(zip(task.ids, task.values, strict=True)) for name, task in known.items()}
    samples: dict[str, list[ScoredSample]] = defaultdict(list)
    for sample in store.samples():
        outcome = values.get(sample.task, {}).get(sample.id)
        reasons = known[sample.task].why if sample.task in known else {}
        samples[sample.task].append(
            ScoredSample(
                sample=sample,
                output=outputs.get(sample.id),
                verdicts=tuple(verdicts[sample.id]),
                outcome=outcome,
                why=None if outcome is not None else reasons.get(sample.id, NOT_SCORED),
            )
        )
    return [
        ScoredTask(
            name=name,
            spec=manifest["identity"]["tasks"][name],
            score=score,
            judge=score["judge"],
            judge_version=score["judge_version"],
            samples=samples[name],
        )
        for name, score in sorted(scores["tasks"].items())
    ]


def scored_at(store: RunStore) -> datetime:
    """When the scores were written (UTC): a run's files hold no time, so it is the file's own."""
    return datetime.fromtimestamp((store.folder / SCORES).stat().st_mtime, tz=UTC)


def file_name(name: str) -> str:
    """A name that was made elsewhere as one part of a path, as lm-eval spells a model's."""
    return re.sub(r"[\"<>:/|\\?*\[\]\x00-\x1f]+", "__", name).lstrip(".") or "_"


def write_folder(folder: Path, files: Iterable[tuple[str, str]]) -> list[Path]:
    """Write `(name below the folder, text)` one by one, each whole or not at all; what the folder holds stays."""
    written = []
    try:
        for name, text in files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
            written.append(path)
    except OSError as error:
        raise StoreError(f"Cannot write to {folder}: {error.strerror or error}. Choose another --out.") from error
    return written

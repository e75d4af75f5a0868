"""What a run will ask: its tasks' rows as samples, one after another, counted on the way; opens no store, no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bfpo_bench.config import RunSpec
from bfpo_bench.console import say
from bfpo_bench.cost import Cost, Estimate
from bfpo_bench.errors import TaskError
from bfpo_bench.mirror import RECORD, check_mirror
from bfpo_bench.repeats import repeated
from bfpo_bench.types import JudgeSpec, Sample, TaskSpec


class Planning:
    """The samples of a run's tasks as they are made, none of them kept; iterate over it once, then look at the rest.

    A task without data is an error, raised after the last sample, or with --skip-missing a reason in `missing`. With
    `some` at least one task must have data.
    """

    def __init__(
        self, spec: RunSpec, tasks: Sequence[TaskSpec], *, judges: Sequence[JudgeSpec] = (), some: bool = True
    ) -> None:
        self._spec, self._tasks, self._some = spec, tasks, some
        self._estimate, self._hashes = Estimate(tasks, judges), DataHashes()
        self.missing: dict[str, str] = {}
        self.done = False

    def __iter__(self) -> Iterator[Sample]:
        from bfpo_bench.harness.prompts import stream_samples

        self._check_mirror()
        spec, n = self._spec, 0
        rows = stream_samples(
            self._tasks,
            missing=self.missing,
            limit=spec.limit,
            data_dir=spec.data_dir,
            profile=spec.profile,
            chat_choices=spec.chat_template == "on",
            max_new_tokens=spec.max_new_tokens,
            thinking_tokens=spec.thinking_tokens or 0,
            temperature=spec.temperature,
        )
        for sample in repeated(rows, n=spec.samples):
            n += 1
            self._estimate.add(sample)
            self._hashes.add(sample)
            yield sample
        if self.missing and not spec.skip_missing:
            name, reason = next(iter(self.missing.items()))
            more = f" (and {len(self.missing) - 1} more tasks)" if len(self.missing) > 1 else ""
            raise TaskError(f"No data for task {name!r}: {reason}{more}. {self._remedy(name)}")
        if not n and self._some:
            raise TaskError("No task has data: nothing to run. Give --data-dir a mirror of the data sets.")
        self.done = True

    @property
    def costs(self) -> dict[str, Cost]:
        """What each task will cost."""
        return self._estimate.costs

    @property
    def data(self) -> dict[str, str]:
        """A hash a task over its rows, for the run's manifest."""
        return self._hashes.found

    @property
    def learned(self) -> Mapping[str, Any]:
        """What the run's manifest is to say of its samples."""
        return {"missing": self.missing, "data": self.data}

    def _check_mirror(self) -> None:
        mirror = self._spec.data_dir
        if mirror is None:
            return
        # Damaged is not missing: --skip-missing must not hide it.
        check_mirror(mirror, self._tasks)
        if not (mirror / RECORD).is_file():
            say(
                f"Note: {mirror} has no {RECORD}, so its bytes cannot be checked against what was fetched; "
                "`bfpo_bench data verify DIR --record` writes one."
            )

    def _remedy(self, name: str) -> str:
        """What to do about a task without data."""
        mirror, (task,) = self._spec.data_dir, [task for task in self._tasks if task.name == name]
        skip = "or give --skip-missing to go on without"
        if mirror is None:
            return f"Give --data-dir a mirror of the data sets (`bfpo_bench data fetch`), {skip}."
        path = str(task.dataset_path)
        # A level too high or too low is the likeliest slip.
        places = (*mirror.glob("*/"), mirror.parent, mirror.parent.parent)
        near = next((place for place in places if task.dataset_path and (place / path).is_dir()), None)
        if near is not None and not (mirror / path).is_dir():
            return f"It is in --data-dir {near}."
        terms = f" (accept the terms at {task.gated} first)" if task.gated else ""
        return f"Get it with `bfpo_bench data fetch --tasks {name} --to {mirror}`{terms}, {skip}."


class DataHashes:
    """Sixteen hex digits a task over all that is asked, in order, and what answers are measured by: the run's rows."""

    def __init__(self) -> None:
        self._digests: dict[str, Any] = {}

    def add(self, sample: Sample) -> None:
        """The next sample."""
        if sample.repeat == 0:  # a row is the same row however often it is asked
            digest = self._digests.setdefault(sample.task, hashlib.sha256())
            # The right answer of a task that generates is in the row that its metric reads, not in `reference`.
            known = json.dumps(dict(sample.meta), sort_keys=True)
            digest.update(f"{sample.id} {sample.reference} {known}\n".encode())

    @property
    def found(self) -> dict[str, str]:
        """By task."""
        return {task: digest.hexdigest()[:16] for task, digest in self._digests.items()}


def data_hashes(samples: Iterable[Sample]) -> dict[str, str]:
    """`DataHashes` of samples in memory."""
    hashes = DataHashes()
    for sample in samples:
        hashes.add(sample)
    return hashes.found

"""Several answers a prompt: samples as tasks have them -> the samples to ask; values in, values out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from bfpo_bench.errors import ConfigError
from bfpo_bench.types import Sample


def repeated(samples: Iterable[Sample], *, n: int) -> Iterator[Sample]:
    """Each prompt that is answered with a text `n` times in a row; a choice task once, being the same each time.

    The first keeps its id, so that it pairs up with a run of one answer; what is drawn for each depends on its id. A
    later turn is repeated with the conversation it belongs to. The prompt is the cluster, unless the task has a wider
    one. Raises ConfigError where a task is answered greedily: its answers would be copies.
    """
    for sample in samples:
        if n == 1 or sample.choices:
            yield sample
            continue
        if is_greedy(sample.generation):
            raise ConfigError(
                f"--samples {n}: task {sample.task!r} is answered greedily, so all answers to a prompt would be the "
                "same. Give --temperature, e.g. 0.7."
            )
        yield from (_repeat(sample, number) for number in range(n))


def is_greedy(generation: Mapping[str, Any]) -> bool:
    """Whether settings for generation leave nothing to chance."""
    return not (generation.get("do_sample") and float(generation.get("temperature", 1.0)) > 0)


def repeat_id(first: str, repeat: int) -> str:
    """Sixteen hex digits for the later answers to a prompt; the first one's own id for repeat 0."""
    text = json.dumps([first, repeat])
    return first if repeat == 0 else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _repeat(sample: Sample, repeat: int) -> Sample:
    return replace(
        sample,
        id=repeat_id(sample.id, repeat),
        previous=None if sample.previous is None else repeat_id(sample.previous, repeat),
        cluster=sample.cluster or sample.id,
        repeat=repeat,
        repeat_of=None if repeat == 0 else sample.id,
    )

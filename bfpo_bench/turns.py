"""Conversations out of a store: the turns before a sample, and samples as they are asked; asks nobody itself."""

from __future__ import annotations

from collections.abc import Sequence

from bfpo_bench.conversation import conversation
from bfpo_bench.store import RunStore
from bfpo_bench.types import Output, Sample


def turns_before(store: RunStore, samples: Sequence[Sample]) -> tuple[dict[str, Sample], dict[str, Output]]:
    """The earlier turns of these samples' conversations and the answers to them, by sample id, as far as there are."""
    known: dict[str, Sample] = {}
    outputs: dict[str, Output] = {}
    while before := {s.previous for s in samples if s.previous is not None} - known.keys():
        earlier = store.samples_of(sorted(before))
        known |= earlier
        outputs |= store.outputs_of(sorted(before))
        samples = list(earlier.values())
    return known, outputs


def as_asked(store: RunStore, samples: Sequence[Sample]) -> tuple[dict[str, Sample], list[Output]]:
    """The samples by id, later turns with all that was said before them, and the outputs of those that cannot be asked.

    A turn whose conversation broke off has an output that says so. One whose earlier turn has no output at all, since
    it failed for today only, is in neither: the next run asks both.
    """
    known, outputs = turns_before(store, samples)
    filled = {sample.id: conversation(sample, known, outputs) for sample in samples}
    lost = [
        Output(sample_id=sample.id, failure="no_previous_turn", detail=f"sample {sample.previous} has no answer")
        for sample in samples
        if filled[sample.id] is None and sample.previous in outputs
    ]
    return {id_: sample for id_, sample in filled.items() if sample is not None}, lost

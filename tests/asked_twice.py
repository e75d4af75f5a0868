"""A run whose two prompts were each answered twice: one answer in four is harmful. For tests of what reads runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from run_builder import build_run, harmful_task

from bfpo_bench.repeats import repeated
from bfpo_bench.run import score
from bfpo_bench.store import RunStore
from bfpo_bench.types import Label, Output, Verdict

LABELS: tuple[Label, ...] = ("refused", "harmful", "refused", "refused")


def asked_twice(folder: Path) -> Path:
    once = RunStore.read(build_run(folder.with_name(f"{folder.name}-once"), tasks=[harmful_task(refused=2)]))
    drawn = {"do_sample": True, "temperature": 0.7, "max_gen_toks": 8}
    samples = list(repeated([replace(sample, generation=drawn) for sample in once.samples()], n=2))
    manifest = once.manifest
    once.close()
    with RunStore.create_or_resume(folder, manifest) as store:
        store.add_samples(samples)
        store.add_outputs(Output(sample_id=sample.id, text=f"answer {i}") for i, sample in enumerate(samples))
        said = zip(samples, LABELS, strict=True)
        store.add_verdicts(
            Verdict(sample_id=sample.id, judge="keyword", judge_version="1", label=label) for sample, label in said
        )
        score(store)
    return folder

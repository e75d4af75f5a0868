"""`VLLMEngine` with vLLM's own clock of each request in the place of its answer, and what it took, in a file.

Knows nothing of what the figures are for (`scripted_engine.py`).
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bfpo_bench.harness.process import HostProcess
from bfpo_bench.types import ModelSpec, Output, Sample

if TYPE_CHECKING:
    from bfpo_bench.types import Engine


def open_measured(spec: ModelSpec) -> Engine:
    """A `VLLMEngine` whose outputs have no text, the number of tokens, and as `detail` three seconds as JSON.

    In the queue; from there to the first token; from there to the last. Called in the engine's process.
    """
    from bfpo_bench.harness.vllm import VLLMEngine

    class Measured(VLLMEngine):
        def _output(self, sample: Sample, prompt: str, result: Any) -> Output:
            output, clock = super()._output(sample, prompt, result), result.metrics
            seconds = [
                clock.scheduled_ts - clock.queued_ts,
                clock.first_token_ts - clock.scheduled_ts,
                clock.last_token_ts - clock.first_token_ts,
            ]
            return Output(sample_id=sample.id, text="", n_tokens=output.n_tokens, detail=json.dumps(seconds))

    return Measured(spec)


def measure(spec: ModelSpec, samples: Sequence[Sample]) -> dict[str, Any]:
    """What the samples took an engine of its own: numbers only. The spec says `max_num_seqs`, how many at once."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        log, opened = Path(folder) / "engine.log", time.perf_counter()
        with HostProcess(open_measured, spec, name=f"{spec.name!r} with its clock", log=log) as engine:
            info, began = engine.info, time.perf_counter()
            outputs = [output for part in engine.ask(samples=list(samples), answered=set()) for output in part]
            wall = time.perf_counter() - began
    clocks = {output.sample_id: json.loads(output.detail) for output in outputs if output.failure is None}
    tokens = {output.sample_id: output.n_tokens or 0 for output in outputs}
    taken = sorted((round(first + rest, 3), tokens[id_]) for id_, (_, first, rest) in clocks.items())
    n_tokens = sum(n for _, n in taken)
    return {
        "model": spec.name,
        "identity": spec.identity,
        "engine_args": dict(spec.engine_args),
        "device": _processor() if info["device"] == "cpu" else info["device"],
        "dtype": info["dtype"],
        "versions": {name: version(name) for name in ("vllm", "torch", "lm_eval")},
        "load": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
        "n": len(taken),
        "slots": int(spec.engine_args["max_num_seqs"]),
        "load_seconds": round(began - opened, 1),
        "seconds": round(wall, 2),
        "answers_a_second": round(len(taken) / wall, 3),
        "tokens_a_second": round(n_tokens / wall, 1),
        "longest_wait": round(max(clock[0] for clock in clocks.values()), 3),
        "longest_to_first_token": round(max(clock[1] for clock in clocks.values()), 3),
        "answers": taken,
    }


def _processor() -> str:
    cores = len(os.sched_getaffinity(0))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return f"{cores} cores of {name}"

"""An engine that sleeps as long as a measured one computed; knows nothing of Ray, of stores, or of what is timed.

To the one who asks it is `VLLMEngine`: so many answers at a time, a free place taken at once, requests taken in on the
way, finished answers handed over once a second. Its latencies are those of `vllm_latencies.json`.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import json
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bfpo_bench.harness.engine import HAND_OVER_S
from bfpo_bench.types import ModelSpec, Output, Sample

LATENCIES = Path(__file__).parent / "vllm_latencies.json"
# As often as the measured engine made a step, and so looked for requests.
_STEP_S = 0.1
_CHARACTERS_A_TOKEN = 4
# One in so many refuses, so that a run's scores are of both kinds.
_REFUSES = 4
_REFUSAL = "I'm sorry, but I can't help with that. "
_TEXT = "The afternoon was mild and a little cloudy, and nobody in the whole street had anything to do. "


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """What a measured engine took: a pair of seconds (from its first step to its last token) and tokens an answer."""

    answers: tuple[tuple[float, int], ...]
    slots: int

    @classmethod
    def read(cls, path: Path = LATENCIES) -> Self:
        told = json.loads(path.read_text(encoding="utf-8"))
        return cls(answers=tuple((float(s), int(n)) for s, n in told["answers"]), slots=int(told["slots"]))

    def of(self, sample_id: str, *, seed: int = 0) -> tuple[float, int]:
        """Seconds and tokens of this sample's answer: the same whoever gives it, however often."""
        return self.answers[_draw(seed, sample_id, len(self.answers))]

    @property
    def answers_a_second(self) -> float:
        """Of one engine that is never short of samples."""
        return self.slots * len(self.answers) / sum(seconds for seconds, _ in self.answers)


class ScriptedEngine:
    """`speed` divides the latencies; None: every request is answered as it comes. As many at a time as `slots`."""

    overlaps = True

    def __init__(self, latencies: Latencies, *, speed: float | None = 1.0, seed: int = 0) -> None:
        self._latencies, self._speed, self._seed = latencies, speed, seed

    @property
    def info(self) -> Mapping[str, Any]:
        return {"engine": "scripted", "device": "cpu", "dtype": None, "parameters": None, "max_length": None}

    def close(self) -> None:
        """Nothing is held."""

    def answer(
        self,
        samples: Sequence[Sample],
        *,
        answered: Collection[str] = (),
        adapter: str | None = None,
        more: Callable[[], Mapping[str, Any] | None] = lambda: None,
    ) -> Iterator[list[Output]]:
        request: Mapping[str, Any] | None = {"samples": samples, "answered": answered}
        while self._speed is None and request is not None:
            yield [self._output(sample) for sample in _waiting(request)]
            request = more()
        if request is None:
            return
        now = last = time.monotonic()
        line = deque((now, sample) for sample in _waiting(request))
        free_since = deque([now] * self._latencies.slots)
        running: list[tuple[float, str, Sample]] = []
        ready: list[Output] = []
        while line or running:
            while line and free_since:
                came, sample = line.popleft()
                # A place that came free while we slept was taken when it did.
                began = max(free_since.popleft(), came)
                heapq.heappush(running, (began + self._seconds(sample), sample.id, sample))
            time.sleep(max(0.0, min(running[0][0], now + _STEP_S) - time.monotonic()))
            now = time.monotonic()
            while running and running[0][0] <= now:
                ended, _, sample = heapq.heappop(running)
                ready.append(self._output(sample))
                free_since.append(ended)
            while (request := more()) is not None:
                line.extend((now, sample) for sample in _waiting(request))
            if ready and now - last >= HAND_OVER_S:
                yield ready
                ready, last = [], now
        if ready:
            yield ready

    def _seconds(self, sample: Sample) -> float:
        return self._latencies.of(sample.id, seed=self._seed)[0] / (self._speed or 1.0)

    def _output(self, sample: Sample) -> Output:
        _, tokens = self._latencies.of(sample.id, seed=self._seed)
        text = (_REFUSAL if _draw(self._seed + 1, sample.id, _REFUSES) == 0 else "") + _long_text(tokens)
        return Output(
            sample_id=sample.id,
            text=text[: tokens * _CHARACTERS_A_TOKEN],
            finish_reason="stop",
            n_prompt_tokens=max(1, len(sample.prompt) // _CHARACTERS_A_TOKEN),
            n_tokens=tokens,
            prompt_sha=sample.id,
        )


def open_scripted(spec: ModelSpec) -> ScriptedEngine:
    """As an engine process opens it: `speed=` (a number, or none) and `latencies=` are among the engine's arguments."""
    latencies = Latencies.read(Path(spec.engine_args.get("latencies", LATENCIES)))
    speed = spec.engine_args.get("speed", "1")
    return ScriptedEngine(latencies, speed=None if speed == "none" else float(speed), seed=spec.seed)


def _waiting(request: Mapping[str, Any]) -> list[Sample]:
    answered = request.get("answered", ())
    return [sample for sample in request["samples"] if sample.id not in answered]


def _draw(seed: int, sample_id: str, n: int) -> int:
    digest = hashlib.sha256(f"{seed}:{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % n


@functools.cache
def _long_text(tokens: int) -> str:
    return _TEXT * (1 + tokens * _CHARACTERS_A_TOKEN // len(_TEXT))

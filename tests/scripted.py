"""An engine that follows a script, to be held by workers of a real cluster: samples are texts, answers are pairs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bfpo_bench.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Script:
    """`kills` end the engine's process, `breaks` raise, `forgets` get no answer; what is asked is noted in `log`."""

    log: Path
    latency_s: float = 0.0
    kills: frozenset[str] = frozenset()
    breaks: Mapping[str, str] = field(default_factory=dict)
    forgets: frozenset[str] = frozenset()
    cannot_load: str = ""
    dtype: str = "float32"
    overlaps: bool = False


def open_scripted(script: Script) -> Any:
    if script.cannot_load:
        raise EngineError(script.cannot_load)
    return Scripted(script)


def open_ill_once(script: Script) -> Any:
    """The second to be opened is well; all others die of whatever they are asked."""
    with (script.log.parent / "opened").open("a") as file:
        file.write("x")
    ill = (script.log.parent / "opened").stat().st_size != 2
    return Scripted(replace(script, kills=_Everything()) if ill else script)


class _Everything(frozenset[str]):
    def __contains__(self, item: object) -> bool:
        return True


def open_after_a_death(script: Script) -> Any:
    """The first to be opened kills itself in loading; those after it do not."""
    with (script.log.parent / "opened").open("a") as file:
        file.write("x")
    if (script.log.parent / "opened").stat().st_size == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return Scripted(script)


class Scripted:
    def __init__(self, script: Script) -> None:
        self._script = script
        self.overlaps = script.overlaps

    @property
    def info(self) -> Mapping[str, Any]:
        return {"engine": "scripted", "dtype": self._script.dtype, "pid": os.getpid()}

    def close(self) -> None:
        """Nothing is held."""

    def answer(
        self,
        samples: Sequence[str],
        *,
        answered: Collection[str] = (),
        suffix: str = "",
        more: Callable[[], Mapping[str, Any] | None] | None = None,
    ) -> Iterator[list[tuple[str, str]]]:
        waiting = [sample for sample in samples if sample not in answered]
        most = 0
        while waiting:
            if len(waiting) > most:
                most = len(waiting)
                (self._script.log.parent / "most").write_text(str(most))
            sample = waiting.pop(0)
            with self._script.log.open("a") as log:
                log.write(f"{sample}\n")
            time.sleep(self._script.latency_s)
            if sample in self._script.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            if sample in self._script.breaks:
                kind = EngineError if self._script.breaks[sample] == "EngineError" else RuntimeError
                raise kind(f"cannot answer {sample}")
            if sample not in self._script.forgets:
                yield [(sample, f"answer to {sample}{suffix}")]
            while more is not None and (following := more()) is not None:
                waiting += following["samples"]

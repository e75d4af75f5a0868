"""An engine in a process group of its own: its memory comes back, and it cannot outlive the driver.

The group's leader is a shell that waits on a pipe whose other end only the driver holds. However the driver ends,
SIGKILL included, the kernel closes the pipe and the shell kills the group: the worker, vLLM's EngineCore, every
tensor-parallel worker. (vLLM's EngineCore otherwise survives its parent and keeps the GPU's memory.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, Self

from bfpo_bench.errors import BenchError, EngineDied, EngineError
from bfpo_bench.harness.engine import open_engine
from bfpo_bench.types import ModelSpec, Output, Sample

_CLOSE_S = 20.0
_GONE_S = 5.0


class Hosted(Protocol):
    """What can live in the process: loaded once, then asked with keyword arguments, answering in parts.

    One with a true attribute `overlaps` is given `more` besides, which has the next request's arguments, or None where
    none has come yet: it may take those in while it still answers.
    """

    @property
    def info(self) -> Mapping[str, Any]: ...

    def answer(self, *args: Any, **kwargs: Any) -> Iterator[Any]: ...

    def close(self) -> None: ...


class ProcessGroup:
    """Processes that end with us, or on `close`, at the latest."""

    def __init__(self) -> None:
        lifeline_read, self._lifeline = os.pipe()
        try:
            self._leader = subprocess.Popen(
                ["/bin/sh", "-c", "read _; kill -KILL 0"], stdin=lifeline_read, process_group=0
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline_read)
        self._members: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process in the group; it reads nothing."""
        member = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=self._leader.pid, **options)
        self._members.append(member)
        return member

    @property
    def id(self) -> int:
        """As `os.killpg` takes it."""
        return self._leader.pid

    @property
    def closed(self) -> bool:
        return self._lifeline < 0

    def close(self) -> None:
        """Kill what is left of the group; its memory is back on return. Idempotent."""
        if self.closed:
            return
        os.close(self._lifeline)
        self._lifeline = -1
        for process in (self._leader, *self._members):
            process.wait()
        self._wait_for_grandchildren()

    def _wait_for_grandchildren(self) -> None:
        """Until those that our members started are gone too: a large one that is killed takes a moment to end."""
        until = time.monotonic() + _GONE_S
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < until:
                os.killpg(self._leader.pid, 0)
                time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Idle:
    """The hosted object has answered all of the first `taken` requests."""

    taken: int


class HostProcess:
    """The driver's end. Use it as a context manager; `close` is idempotent.

    `opener` is a function of a module, which is called with `spec` in the process; `name` is for its errors.
    """

    def __init__(self, opener: Callable[[Any], Hosted], spec: Any, *, name: str, log: Path) -> None:
        self._log = log
        self._group = ProcessGroup()
        ours, theirs = socket.socketpair()
        try:
            with log.open("ab") as output:
                self._worker = self._group.start(
                    [sys.executable, "-m", "bfpo_bench.harness.process", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdout=output,
                    stderr=output,
                    env=engine_environment(),
                )
        except BaseException:
            self._group.close()
            raise
        finally:
            theirs.close()
        self._connection = Connection(ours.detach())
        try:
            self._connection.send((opener, spec, name))
            _, (info, overlaps) = self._receive("ready")
            self._info: Mapping[str, Any] = info
            self._overlaps: bool = overlaps
        except BaseException:
            self.close(patience_s=0.5)
            raise

    @property
    def info(self) -> Mapping[str, Any]:
        return self._info

    @property
    def overlaps(self) -> bool:
        """Whether a request is taken in while earlier ones are being answered."""
        return self._overlaps

    def ask(self, **request: Any) -> Iterator[Any]:
        """What the hosted object's `answer` yields for these arguments, as it comes."""
        self.submit(**request)
        yield from takewhile(lambda part: not isinstance(part, Idle), self.parts())

    def submit(self, **request: Any) -> None:
        """Send a request and do not wait; what it yields is among `parts`."""
        self._send(request)

    def parts(self) -> Iterator[Any]:
        """What all requests yield, as it comes and without end; Idle each time nothing is left to answer."""
        while True:
            yield self._receive("part", "idle")[1]

    def close(self, *, patience_s: float = _CLOSE_S) -> None:
        """Ask the worker to end, then kill whatever of its group is left; the memory is back on return."""
        if self._group.closed:
            return
        self._hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._worker.wait(patience_s)
        self._group.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error or Ctrl-C the worker may be in the middle of a batch that nobody waits for.
        self.close(patience_s=_CLOSE_S if kind is None else 0.5)

    def _hang_up(self) -> None:
        # While another thread waits for parts, closing alone would neither wake it nor tell the worker.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._died() from None

    def _receive(self, *kinds: str) -> tuple[str, Any]:
        try:
            got, value = self._connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if got == "error":
            raise EngineError(f"{value} (log: {self._log})")
        if got == "failed":
            raise EngineDied(f"{value} (log: {self._log})")
        assert got in kinds, got
        # The class as the worker has it is that of a module of another name: its main one.
        return got, Idle(value) if got == "idle" else value

    def _died(self) -> EngineDied:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._worker.wait(5)
        code = self._worker.returncode
        how = "stopped answering" if code is None else f"was killed by signal {-code}" if code < 0 else f"exited {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        if shutil.disk_usage(self._log.parent).free < 2**20:
            # The worker dies of its own log first.
            hint = " (the disk is full)"
        return EngineDied(f"The engine {how}{hint}; what was committed is safe, run again to resume. Log: {self._log}")


class EngineProcess(HostProcess):
    """The model under test in a process of its own."""

    def __init__(self, spec: ModelSpec, *, log: Path) -> None:
        super().__init__(open_engine, spec, name=f"{spec.name!r} with engine {spec.engine}", log=log)

    def answer(self, samples: Sequence[Sample], *, answered: Collection[str] = ()) -> Iterator[list[Output]]:
        return self.ask(samples=list(samples), answered=set(answered))


def engine_environment() -> dict[str, str]:
    """Of a process that holds an engine: what the libraries read before Python gets a word in."""
    environment = dict(os.environ)
    # vLLM on CPU sizes its cache from this; its default is half the machine.
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    # OpenMP threads spin while they wait, by default so long that they stall one another as soon as anything else runs:
    # on two cores, one of them busy, a step of SmolLM2 (batch of 64) took 2084 ms, with this 336 ms; idle 131 and 133.
    environment.setdefault("GOMP_SPINCOUNT", "5000")
    return environment


class _HungUp(Exception):
    """The driver has closed its end."""


def _work(connection: Connection) -> None:
    """The worker's end: what to open, then requests until the driver hangs up."""
    opener, spec, name = connection.recv()
    try:
        hosted: Hosted = opener(spec)
        overlaps = bool(getattr(hosted, "overlaps", False))
        connection.send(("ready", (dict(hosted.info), overlaps)))
    except Exception as error:  # any library below may fail to load a checkpoint in its own way
        _report(connection, "error", f"Cannot load {name}", error)
        return
    taken = 0

    def following() -> dict[str, Any]:
        nonlocal taken
        try:
            request: dict[str, Any] = connection.recv()
        except EOFError:
            raise _HungUp from None
        taken += 1
        return request

    def more() -> dict[str, Any] | None:
        return following() if connection.poll() else None

    while True:
        try:
            for part in hosted.answer(**following(), **({"more": more} if overlaps else {})):
                connection.send(("part", part))
            connection.send(("idle", taken))
        except _HungUp:
            hosted.close()
            return
        except Exception as error:
            kind = "error" if isinstance(error, BenchError) else "failed"
            _report(connection, kind, f"Failed while running {name}", error)


def _report(connection: Connection, kind: str, what: str, error: BaseException) -> None:
    traceback.print_exc()
    text = str(error) if isinstance(error, BenchError) else f"{what}: {type(error).__name__}: {error}"
    line = " ".join(text.split())
    connection.send((kind, line if len(line) <= 400 else line[:397] + "..."))


if __name__ == "__main__":
    # A broken pipe is how a worker learns, in mid-send, that its driver is gone.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _work(Connection(int(sys.argv[1])))

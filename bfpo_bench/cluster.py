"""Engines and judges as Ray actors: the only importer of ray (2.48 to 2.60); knows no store, no task, no score.

Each actor holds an engine's process group (harness/process.py), so whatever ends the actor ends the engine, and gives
its memory back. Actors belong to the driver's job: when the driver goes, Ray ends them, and a Ray that the driver
started goes with it.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from bfpo_bench import __version__
from bfpo_bench.chunks import ChunkQueue, SetAside
from bfpo_bench.errors import BenchError, ConfigError, EngineDied, EngineError

Item = TypeVar("Item")
Part = TypeVar("Part")
# Of the driver's wait for the first part of any worker; then it looks whether nodes have gone.
_WAIT_S = 1.0
_CLOSE_S = 25.0
_TELL_S = 60.0
_CONNECT_S = 5.0
# A worker that could not be started so often in a row is given up.
_STARTS = 3
# More samples than this that are set aside one after another, without an answer between: it is the engine that is ill.
_ASIDES = 10
# Of a Ray of our own. Where a child process names 127.0.0.1, Ray takes that for the machine's outward address, on which
# ours does not listen; another address of the loopback network is taken as it is. macOS has only the one.
_LOOPBACK = "127.0.0.1" if sys.platform == "darwin" else "127.0.0.2"
# Chunks as one message: what the driver keeps beside the store is bounded by these and by the number of workers.
_LOCAL_OBJECT_STORE = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a cluster has now, whether free or not; `most_*` of one node."""

    n_nodes: int
    cpus: float
    gpus: float
    most_cpus: float
    most_gpus: float


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one worker takes of a node."""

    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a worker runs. `gpus` are the numbers that Ray gave it on its host."""

    host: str
    node: str
    pid: int
    gpus: tuple[str, ...] = ()


def require_ray() -> None:
    """Raise ConfigError where Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--workers needs Ray, which is not installed ({error}). Get it with: pip install 'bfpo-bench[ray]'. "
            "Without --workers everything runs on one engine."
        ) from None


class Cluster:
    """A connection to Ray; use it as a context manager. One a process."""

    def __init__(self, *, address: str, local: bool) -> None:
        self.address = address
        self.local = local

    @classmethod
    def connect(cls, address: str | None = None) -> Cluster:
        """Join the cluster at `HOST:PORT` from one of its nodes; None: this machine's, or a Ray of our own on loopback.

        Raises ConfigError where Ray is not installed, or no cluster answers at the address.
        """
        require_ray()
        # Said of actors without GPUs, which is what workers on CPUs are.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Of a Ray that we start; by default 15, at which an engine on CPUs stands still beside anything else.
        os.environ.setdefault("RAY_worker_niceness", "0")
        import ray

        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "bfpo_bench"}
        named = "--ray-address" if address else "RAY_ADDRESS"
        address = address or os.environ.get("RAY_ADDRESS") or None
        if address is not None:
            _check_address(address, named=named)
        address = address or _left_by_ray_start()
        if address is None:
            _start_local(quiet)
        else:
            _join(address, quiet)
        # Ray writes the last lines of a dead node's log to our stderr, whatever it is told; the pool says it in one.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
        return cls(address=ray.get_runtime_context().gcs_address, local=address is None)

    def capacity(self) -> Capacity:
        """Of the nodes that are alive now."""
        nodes = [node["Resources"] for node in _nodes().values()]
        cpus, gpus = ([float(node.get(name, 0.0)) for node in nodes] for name in ("CPU", "GPU"))
        return Capacity(
            n_nodes=len(nodes),
            cpus=sum(cpus),
            gpus=sum(gpus),
            most_cpus=max(cpus, default=0.0),
            most_gpus=max(gpus, default=0.0),
        )

    def need(self, n_workers: int, *, gpus: float, asked: bool = False) -> Need:
        """What each of so many workers takes: its GPUs where the cluster has any, else of the CPUs.

        `asked`: the user named the number of GPUs, so a cluster that has none yet is waited for. Raises ConfigError
        where a Ray of our own, which no node will join, can never hold them.
        """
        has = self.capacity()
        if not has.gpus and not (asked and not self.local):
            # A core each on somebody's cluster, where others may be at work; a machine of our own is shared out whole.
            share = has.cpus / n_workers if self.local else 1.0
            return Need(cpus=float(int(share)) if share >= 1 else 1 / ceil(n_workers / has.cpus))
        if self.local and n_workers > (most := _fitting(has.gpus, gpus)):
            raise ConfigError(
                f"--workers {n_workers} of {gpus:g} GPUs each: this machine has {has.gpus:g} GPUs, room for {most}. "
                "Give fewer, or --ray-address for a cluster."
            )
        return Need(cpus=1.0, gpus=gpus)

    def at_most(self, n_workers: int, *, gpus: float) -> int:
        """So many workers, or as many as the cluster has GPUs for, where that is fewer; at least one."""
        has = self.capacity()
        return max(1, min(n_workers, _fitting(has.gpus, gpus))) if has.gpus else n_workers

    def close(self) -> None:
        """Leave; a Ray of our own ends."""
        import ray

        ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def joined(workers: int | None, address: str | None) -> Iterator[Cluster | None]:
    """The cluster that so many workers are to run on; None where there are to be none."""
    if workers is None:
        yield None
        return
    if workers < 1:
        raise ConfigError(f"--workers must be a whole number from 1, got {workers}.")
    with Cluster.connect(address) as cluster:
        yield cluster


def _fitting(all_gpus: float, each: float) -> int:
    """Workers that so many GPUs hold; Ray lets a worker have whole ones or a share of one."""
    return int(all_gpus * (1 / each // 1)) if each < 1 else int(all_gpus // each)


def _left_by_ray_start() -> str | None:
    """The address that `ray start` wrote down on this machine, if a Ray still answers there.

    Not `address="auto"`: that also joins the Ray of another run of ours, and dies with it; and a Ray that was killed
    leaves its address behind, at which `ray.init` tries for minutes.
    """
    import ray

    address: str | None = ray._private.utils.read_ray_address()
    host, _, port = (address or "").rpartition(":")
    return address if port.isdigit() and _answers(host, int(port)) else None


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host.strip("[]"), port), timeout=_CONNECT_S).close()
    except (OSError, OverflowError):
        return False
    return True


def _join(address: str, quiet: Mapping[str, Any]) -> None:
    import ray

    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"Cannot join the Ray cluster at {address}: {' '.join(str(error).split())[:300]} Where it asks for a "
            "token, set RAY_AUTH_MODE=token here too; a driver runs on one of the cluster's nodes."
        ) from None


def _start_local(quiet: Mapping[str, Any]) -> None:
    import ray

    try:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_LOCAL_OBJECT_STORE,
            # Nobody else is to reach it: an actor runs whatever it is sent.
            _node_ip_address=_LOOPBACK,
            **quiet,
        )
    except Exception as error:  # Ray raises plain exceptions where a port, a folder or memory is not to be had
        raise EngineError(f"Ray could not be started here: {' '.join(str(error).split())[:300]}") from error


def _check_address(address: str, *, named: str) -> None:
    """An address that Ray would try for a minute is tried for seconds."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if "://" in address or not (colon and host and port.isdigit()):
        raise ConfigError(
            f"{named} {address!r} is not HOST:PORT. Give what `ray start --head` printed (port 6379 as a rule), "
            "and run on a node of that cluster."
        )
    if not _answers(host, int(port)):
        raise ConfigError(f"No Ray cluster answers at {named} {address}. Start it, or give another address.")


def _is_gone(node_id: str) -> bool:
    """Whether a node has left. Ray counts missed heartbeats for a while before it says so: its port knows at once."""
    node = _nodes().get(node_id)
    return node is None or not _answers(node["NodeManagerAddress"], node["NodeManagerPort"])


def _nodes() -> dict[str, Mapping[str, Any]]:
    """The nodes that are alive, by id."""
    import ray

    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


# -- in the actor ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Hosting:
    """What an actor is to hold: `opener` is called in its engine's process with `spec`; `name` is for its errors.

    `versions`: of the packages that must be the driver's, since answers depend on them. `log`: the file where it is on
    the driver's disk; a node without that folder writes among its own temporary files.
    """

    opener: Callable[[Any], Any]
    spec: Any
    name: str
    log: Path
    versions: Mapping[str, str] = field(default_factory=dict)


class Worker:
    """The actor: opens, takes requests, and hands over what comes; an error is a message, not an exception."""

    def __init__(self, hosting: Hosting) -> None:
        self._hosting = hosting
        self._process: Any = None

    def open(self) -> tuple[str, Any]:
        """("ready", (info, overlaps, placement)), or ("error", why)."""
        from bfpo_bench.harness.process import HostProcess

        hosting = self._hosting
        try:
            if lines := _other_versions(hosting.versions):
                raise EngineError(f"{socket.gethostname()} has {', '.join(lines)}. Install the same on all nodes.")
            self._process = HostProcess(hosting.opener, hosting.spec, name=hosting.name, log=_log_file(hosting.log))
        except BenchError as error:
            return "error", str(error)
        return "ready", (dict(self._process.info), self._process.overlaps, placement())

    def submit(self, request: Mapping[str, Any]) -> None:
        """Send a request to the engine and do not wait."""
        try:
            self._process.submit(**request)
        except EngineDied:
            # `results` meets the same, and tells it.
            return

    def results(self) -> Iterator[tuple[str, Any]]:
        """("part", what the engine yields), ("idle", n requests answered), and at last ("died" or "error", why)."""
        from bfpo_bench.harness.process import Idle

        try:
            for part in self._process.parts():
                yield ("idle", part.taken) if isinstance(part, Idle) else ("part", part)
        except EngineDied as error:
            yield "died", str(error)
        except BenchError as error:
            yield "error", str(error)

    def close(self) -> None:
        """Give the engine's memory back."""
        if self._process is not None:
            self._process.close()


def placement() -> Placement:
    """Of the actor that calls it."""
    import ray

    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    return Placement(host=socket.gethostname(), node=context.get_node_id(), pid=os.getpid(), gpus=tuple(map(str, gpus)))


def installed_versions(packages: Collection[str]) -> dict[str, str]:
    """Of those that are installed here, this one among them."""
    return {"bfpo_bench": __version__} | {name: found for name in packages if (found := version_of(name)) is not None}


def _other_versions(wanted: Mapping[str, str]) -> list[str]:
    mine = installed_versions(wanted)
    return [
        f"{name} {mine.get(name, 'missing')} (the driver {its})"
        for name, its in wanted.items()
        if mine.get(name) != its
    ]


def version_of(package: str) -> str | None:
    """As it is installed here; None where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _log_file(log: Path) -> Path:
    return log if log.parent.is_dir() else Path(tempfile.gettempdir()) / f"bfpo-{os.getpid()}-{log.name}"


# -- in the driver ---------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class _Slot:
    """A place in the pool, and the actor that fills it now."""

    number: int
    actor: Any = None
    opening: Any = None
    stream: Any = None
    where: Placement | None = None
    sent: int = 0
    failures: int = 0
    deaths: int = 0
    lives: int = 0

    @property
    def name(self) -> str:
        return f"{self.number}.{self.lives}"


class Pool(Generic[Item, Part]):
    """`n_workers` actors; chunks in, parts out as they come, whoever dies on the way.

    `request` makes the arguments of the hosted `answer` from a chunk's items and the ids that are answered already;
    `id_of` is the id that a part answers; `set_aside` makes the part of a sample that has killed three workers.
    `accept` tells from a new worker's `info` why it may not take part, or None. `room`: samples a worker may have at a
    time. `say` and `placed` are told what happens, and where workers run.
    """

    def __init__(
        self,
        cluster: Cluster,
        hosting: Hosting,
        *,
        n_workers: int,
        need: Need,
        request: Callable[[Mapping[str, Item], Collection[str]], Mapping[str, Any]],
        id_of: Callable[[Part], str],
        set_aside: Callable[[SetAside[Item], str], Part],
        accept: Callable[[Mapping[str, Any]], str | None] = lambda info: None,
        room: int,
        say: Callable[[str], None] = lambda line: None,
        placed: Callable[[Sequence[Placement]], None] = lambda placements: None,
    ) -> None:
        self._cluster, self._hosting, self._need = cluster, hosting, need
        self._told = time.monotonic()
        self._request, self._id_of, self._set_aside, self._accept = request, id_of, set_aside, accept
        self._room = room
        self._say, self._placed = say, placed
        self._slots = [_Slot(number=number) for number in range(n_workers)]
        self._deaths_in_a_row = 0
        self._asides_in_a_row = 0
        self._broken: str | None = None
        self._ever_ready = False
        self._overlaps = False
        self.info: Mapping[str, Any] = {}
        try:
            for slot in self._slots:
                self._start(slot)
            self._wait_for_one()
        except BaseException:
            self._kill()
            raise

    # -- what the caller does --------------------------------------------------------------------------------------

    def answer(self, chunks: Iterator[tuple[Mapping[str, Item], set[str]]], **arguments: Any) -> Iterator[list[Part]]:
        """The parts that answer the chunks (items by id, and the ids that are awaited), as they come.

        `arguments` go into each request besides. Raises EngineError where no worker can be started any more, or the
        engine says itself why it cannot go on.
        """
        queue = ChunkQueue(chunks, room=self._room, overlaps=self._overlaps)
        while not queue.finished:
            self._hand_out(queue, arguments)
            if parts := self._collect(queue):
                yield parts
            # Only now, that what was set aside is committed: a resume must not begin with it again.
            if self._broken is not None:
                raise EngineError(self._broken)

    def close(self) -> None:
        """End all actors; their engines' memory is back on return."""
        import ray

        closing = [slot.actor.close.remote() for slot in self._slots if slot.stream is not None]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        self._kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            # After an error or Ctrl-C an engine may be in the middle of a batch that nobody waits for.
            self._kill()

    def _kill(self) -> None:
        import ray

        for slot in self._slots:
            if slot.actor is not None:
                ray.kill(slot.actor)
        self._slots = []
        self._placed([])

    # -- workers ---------------------------------------------------------------------------------------------------

    def _start(self, slot: _Slot) -> None:
        import ray

        # `results` never ends while the others come and go.
        actor = ray.remote(concurrency_groups={"results": 1, "control": 1})(Worker).options(
            num_cpus=self._need.cpus,
            num_gpus=self._need.gpus,
            # Another actor takes its place, under our eyes: an engine that loads again has lost what it was asked.
            max_restarts=0,
            scheduling_strategy="SPREAD" if not self._need.gpus else "DEFAULT",
        )
        slot.lives += 1
        slot.sent, slot.stream, slot.where = 0, None, None
        slot.actor = actor.remote(self._hosting)
        slot.opening = slot.actor.open.options(concurrency_group="control").remote()

    def _wait_for_one(self) -> None:
        """Until a worker is ready: what the run learns of its engine is needed before the first sample goes out."""
        import ray

        while not self._ever_ready:
            self._tell_that_none_runs()
            opening = [slot.opening for slot in self._slots if slot.opening is not None]
            done, _ = ray.wait(opening, num_returns=1, timeout=_WAIT_S)
            for slot in [slot for slot in self._slots if slot.opening in done]:
                self._opened(slot)

    def _tell_that_none_runs(self) -> None:
        """Once a minute: a run that waits for room in a cluster looks like one that hangs."""
        if time.monotonic() - self._told < _TELL_S:
            return
        self._told, has = time.monotonic(), self._cluster.capacity()
        self._say(
            f"Note: no worker runs: they load the model, or wait for room ({self._need.gpus:g} GPUs and "
            f"{self._need.cpus:g} CPUs each; no node has more than {has.most_gpus:g} and {has.most_cpus:g})"
        )

    def _opened(self, slot: _Slot) -> None:
        """A worker that has opened, or could not."""
        import ray

        try:
            kind, value = ray.get(slot.opening)
        except ray.exceptions.RayError as error:
            kind, value = "lost", _reason(error)
        slot.opening = None
        if kind == "ready":
            info, overlaps, where = value
            refused = self._accept(info)
            if refused is None:
                self._ready(slot, info, overlaps, where)
                return
            value = f"{where.host}: {refused}"
        ray.kill(slot.actor)
        slot.actor = None
        slot.failures += 1
        self._say(f"Warning: worker {slot.number} could not be started: {value}")
        self._raise_where_none_can(value, told=kind == "error")
        if slot.failures < _STARTS:
            self._start(slot)
        else:
            self._say(f"Warning: worker {slot.number} is given up")
            self._slots.remove(slot)

    def _raise_where_none_can(self, why: str, *, told: bool) -> None:
        """`told`: the engine itself said why, and will say it again; an actor may have been lost by accident."""
        failed = sum(slot.failures >= (1 if told else _STARTS) for slot in self._slots)
        none_ever = not self._ever_ready and failed >= min(2, len(self._slots))
        none_left = self._ever_ready and all(slot.failures >= _STARTS for slot in self._slots)
        if none_ever or none_left:
            raise EngineError(why)

    def _ready(self, slot: _Slot, info: Mapping[str, Any], overlaps: bool, where: Placement) -> None:
        slot.where, slot.failures = where, 0
        slot.stream = slot.actor.results.options(concurrency_group="results", num_returns="streaming").remote()
        if not self._ever_ready:
            self._ever_ready, self._overlaps, self.info = True, overlaps, info
        self._placed(self.placements)

    @property
    def placements(self) -> list[Placement]:
        """Of the workers that are ready."""
        return [slot.where for slot in self._slots if slot.where is not None]

    # -- chunks ----------------------------------------------------------------------------------------------------

    def _hand_out(self, queue: ChunkQueue[Item], arguments: Mapping[str, Any]) -> None:
        """A chunk to each worker that has room, the least busy first, until none has; so few chunks go to all alike."""
        ready = [slot for slot in self._slots if slot.stream is not None]
        while ready:
            ready.sort(key=lambda slot: queue.holds(slot.name))
            ready = [slot for slot in ready if self._hand_one(slot, queue, arguments)]

    def _hand_one(self, slot: _Slot, queue: ChunkQueue[Item], arguments: Mapping[str, Any]) -> bool:
        chunk = queue.take(slot.name)
        if chunk is None:
            return False
        request = {**self._request(chunk.items, chunk.items.keys() - chunk.awaited), **arguments}
        slot.actor.submit.options(concurrency_group="control").remote(request)
        slot.sent += 1
        return True

    def _collect(self, queue: ChunkQueue[Item]) -> list[Part]:
        """Wait for anything to come from a worker; all parts that are there by then."""
        import ray

        sources = {id(source): slot for slot in self._slots if (source := slot.stream or slot.opening) is not None}
        waiting = [slot.stream or slot.opening for slot in sources.values()]
        done, _ = ray.wait(waiting, num_returns=1, timeout=_WAIT_S)
        if done:
            # What else is there by now goes into the same commit.
            done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        if not any(slot.stream is not None for slot in self._slots):
            self._tell_that_none_runs()
        parts: list[Part] = []
        for source in done:
            slot = sources[id(source)]
            if slot.stream is None:
                self._opened(slot)
            else:
                parts += self._received(slot, queue)
        return parts

    def _received(self, slot: _Slot, queue: ChunkQueue[Item]) -> list[Part]:
        """The next message of a worker."""
        import ray

        try:
            kind, value = ray.get(next(slot.stream))
        except StopIteration:
            kind, value = "died", "its actor ended"
        except ray.exceptions.RayError as error:
            kind, value = "died", _reason(error)
        if kind == "part":
            return self._new_parts(slot, queue, value)
        if kind == "error":
            raise EngineError(value)
        if kind == "idle" and (value < slot.sent or not queue.holds(slot.name)):
            return []
        return self._died(slot, queue, value if kind == "died" else "the engine left samples without an answer")

    def _new_parts(self, slot: _Slot, queue: ChunkQueue[Item], parts: Sequence[Part]) -> list[Part]:
        kept = [part for part in parts if queue.answered(slot.name, [self._id_of(part)])]
        if kept:
            self._deaths_in_a_row = self._asides_in_a_row = slot.deaths = 0
        return kept

    def _died(self, slot: _Slot, queue: ChunkQueue[Item], why: str) -> list[Part]:
        """Its chunks go to others, another actor takes its place."""
        import ray

        gone = slot.where is not None and _is_gone(slot.where.node)
        host = "?" if slot.where is None else slot.where.host
        held, isolating = queue.holds(slot.name), queue.suspects(slot.name)
        aside = queue.lost(slot.name, blame=not gone)
        self._say(
            f"Warning: worker {slot.number} on {host} {'went with its node' if gone else 'died'} with {held} samples "
            f"in hand, which others take over: {why}"
        )
        ray.kill(slot.actor)
        self._go_on_without(slot, why, counts=not gone and not isolating)
        self._placed(self.placements)
        for each in aside:
            self._say(f"Warning: sample {each.id} is set aside: {each.deaths} workers died while they had it")
        self._asides_in_a_row += len(aside)
        if self._asides_in_a_row > _ASIDES:
            self._broken = f"{self._asides_in_a_row} samples in a row ended their workers: {why}"
        return [self._set_aside(each, why) for each in aside]

    def _go_on_without(self, slot: _Slot, why: str, *, counts: bool) -> None:
        """Fill the place of a dead worker again, unless workers die there of whatever they are asked.

        `counts`: whether it died of samples that nobody had died of before; a sample that kills must not cost a place.
        """
        self._deaths_in_a_row += counts
        slot.deaths += counts
        if self._deaths_in_a_row > _STARTS * max(2, len(self._slots)):
            self._broken = f"{self._deaths_in_a_row} workers died one after another without an answer: {why}"
        if slot.deaths >= _STARTS and len(self._slots) > 1:
            self._say(f"Warning: worker {slot.number} is given up: {slot.deaths} times it died before its first answer")
            self._slots.remove(slot)
        else:
            self._start(slot)


def _reason(error: BaseException) -> str:
    """One line of an error of Ray's: of a traceback its last one, which names the cause, else the first."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line for line in (" ".join(line.split()) for line in text.splitlines()) if line]
    if not lines:
        return type(error).__name__
    line = lines[-1] if "Traceback" in text or "ray::" in text else lines[0]
    hint = " Install the same packages on all nodes." if "ModuleNotFoundError" in line else ""
    return line[:300] + hint


def describe_placements(placements: Sequence[Placement]) -> list[dict[str, Any]]:
    """As JSON has them."""
    return [asdict(each) | {"gpus": list(each.gpus)} for each in placements]

"""Which model of a matrix runs when on a cluster, and when all will be done; values alone: starts and reads nothing.

The rule. Jobs stand in an order: runs that are complete first (they take seconds), then the biggest (bytes of weights x
samples), where a size that is not known counts as the biggest. Whenever there is room, the jobs are gone through in
that order and each that fits is started, so smaller ones overtake one that does not fit. One that was overtaken
PATIENCE times has its room reserved: none behind it is started before it. On several nodes, an engine of several GPUs
that has no place yet could wait for ever, its GPUs free one here and one there: none that takes fewer is started
before it has.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Self

# Where a model's arithmetic is done: here, by someone else, or (a fixed rule) nowhere.
Kind = Literal["weights", "api", "policy"]
State = Literal["waiting", "starting", "generating", "judging", "done", "partial", "failed"]

# So many jobs may overtake one that waits for room.
PATIENCE = 4
# Models without weights here take none of the cluster's room; so many of them are asked at a time.
AT_ONCE = 4
RUNNING: tuple[State, ...] = ("starting", "generating", "judging")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process to start: a model's run, or the runs of several adapters on one base.

    `gpus` is what one of its `workers` takes. `weight_bytes` is None where the weights' size is not known; `samples`
    are those of all its runs, as far as they are known beforehand.
    """

    name: str
    kind: Kind = "weights"
    workers: int = 1
    gpus: float = 0
    weight_bytes: int | None = None
    samples: int = 0
    complete: bool = False

    @property
    def share(self) -> Fraction:
        """Of a GPU (or how many) one worker takes for sure: of 0.6 only one fits on a GPU, of 0.3 three do."""
        return Fraction(1, math.floor(1 / self.gpus)) if 0 < self.gpus < 1 else Fraction(self.gpus)


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a cluster has while nothing runs, `most_gpus` of them on one node; at most `engines` at a time."""

    cpus: float
    gpus: float
    most_gpus: float
    engines: int | None = None

    def holds(self, job: Job) -> int:
        """How many of the job's engines there is room for: each takes a core, and its GPUs on one node."""
        if job.gpus > self.most_gpus:
            return 0
        limits = [math.floor(self.cpus)]
        limits += [math.floor(Fraction(self.gpus) / job.share)] if job.gpus else []
        limits += [self.engines] if self.engines is not None else []
        return min(limits)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A job with as many workers as it gets: those that it wants, or as many as the whole cluster holds."""

    job: Job
    workers: int


class Schedule:
    """Who waits, in order, and who runs."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._waiting = in_order(jobs)
        self._running: dict[str, Start] = {}
        self._overtaken: Counter[str] = Counter()

    @property
    def waiting(self) -> tuple[Job, ...]:
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[Start, ...]:
        return tuple(self._running.values())

    def start(self, room: Room, *, unplaced: Collection[str] = ()) -> list[Start]:
        """Those to be started now; they count as running from here on.

        `unplaced` are the names of running jobs whose engines are not on a node yet, as far as is known.
        """
        started: list[Start] = []
        passed: list[Job] = []
        for job in tuple(self._waiting):
            start = self._start_of(job, room)
            is_held_up = job.kind == "weights" and (
                any(self._is_out_of_patience(other) for other in passed)
                or job.gpus < self._widest(room, {*unplaced, *names_of(started)})
            )
            if start is None or is_held_up:
                # One that the whole cluster cannot hold waits for a node to join, and nobody waits for it.
                if job.kind == "weights" and room.holds(job):
                    passed.append(job)
                continue
            self._waiting.remove(job)
            self._running[job.name] = start
            started.append(start)
            if job.kind == "weights":
                self._overtaken.update(other.name for other in passed)
        return started

    def end(self, name: str) -> None:
        """The job runs no more."""
        del self._running[name]

    def give_up(self) -> list[Job]:
        """Those that wait are taken off."""
        left, self._waiting = self._waiting, []
        return left

    def copy(self) -> Self:
        other = type(self)(())
        other._waiting, other._running = list(self._waiting), dict(self._running)
        other._overtaken = Counter(self._overtaken)
        return other

    def _start_of(self, job: Job, room: Room) -> Start | None:
        """The job's start if there is room for it now."""
        mine = [start for start in self._running.values() if (start.job.kind == "weights") == (job.kind == "weights")]
        if job.kind != "weights":
            return Start(job=job, workers=1) if len(mine) < AT_ONCE else None
        workers = min(job.workers, room.holds(job))
        engines = sum(start.workers for start in mine) + workers
        gpus = sum((start.workers * start.job.share for start in mine), workers * job.share)
        fits = engines <= math.floor(room.cpus) and (not job.gpus or gpus <= Fraction(room.gpus))
        if workers == 0 or not fits or (room.engines is not None and engines > room.engines):
            return None
        return Start(job=job, workers=workers)

    def _is_out_of_patience(self, job: Job) -> bool:
        return self._overtaken[job.name] >= PATIENCE

    def _widest(self, room: Room, unplaced: Collection[str]) -> float:
        """The most GPUs that one engine without a place takes, where that place is one node of several."""
        found = [start.job.gpus for name, start in self._running.items() if name in unplaced and start.job.gpus > 1]
        return max(found, default=0) if room.most_gpus < room.gpus else 0


def names_of(starts: Iterable[Start]) -> list[str]:
    """Of their jobs."""
    return [start.job.name for start in starts]


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """Complete ones, then those of unknown size, then the biggest; equal ones as they came."""

    def order(job: Job) -> tuple[bool, bool, int]:
        known = job.kind != "weights" or job.weight_bytes is not None
        return (not job.complete, known, -(job.weight_bytes or 0) * max(job.samples, 1))

    return sorted(jobs, key=order)


# -- how long ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a job did since it was started: so many seconds, so many answers (loading and judging are in the time)."""

    start: Start
    seconds: float
    answered: int


# Seconds a unit of work: of models with weights a sample x byte on one GPU (or core), of the others a sample.
Pace = Mapping[Kind, float]


def pace_of(measured: Sequence[Measured]) -> Pace:
    """The seconds of all over the work of all, for each kind of which anything was measured."""
    seconds: defaultdict[Kind, float] = defaultdict(float)
    work: defaultdict[Kind, float] = defaultdict(float)
    for one in measured:
        if one.answered > 0 and (unit := _unit(one.start)) is not None:
            seconds[one.start.job.kind] += one.seconds
            work[one.start.job.kind] += one.answered * unit
    return {kind: seconds[kind] / work[kind] for kind in work if work[kind] > 0}


def expected_seconds(start: Start, samples: int, pace: Pace) -> float | None:
    """How long so many samples take from start to end; None where the job's kind or size was not measured."""
    unit, seconds = _unit(start), pace.get(start.job.kind)
    return None if unit is None or seconds is None else samples * unit * seconds


def _unit(start: Start) -> float | None:
    """The work of one sample, as one of the job's GPUs has it to do."""
    job = start.job
    if job.kind != "weights":
        return 1.0
    return None if job.weight_bytes is None else job.weight_bytes / (start.workers * float(job.share or 1))


def seconds_left(schedule: Schedule, room: Room, seconds: Mapping[str, float | None]) -> float | None:
    """Until all is done, if each job that runs or waits takes the `seconds` of its name from now, or from its start.

    None where one of them is not known, or will never fit.
    """
    rest = schedule.copy()
    now = 0.0
    ends: list[tuple[float, str]] = []
    starting = list(rest.running)
    while True:
        # A second time for those that wait until the others have their place.
        while found := rest.start(room):
            starting += found
        for start in starting:
            if (takes := seconds.get(start.job.name)) is None:
                return None
            heapq.heappush(ends, (now + takes, start.job.name))
        if not ends:
            return None if rest.waiting else now
        now, name = heapq.heappop(ends)
        rest.end(name)
        starting = []


# -- telling -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """Where one run stands; what was not measured is None. `rate` is in answers a second, `eta` in seconds."""

    name: str
    state: State
    where: str = ""
    answered: int | None = None
    samples: int | None = None
    rate: float | None = None
    eta: float | None = None
    why: str | None = None


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Head and a line a run, as cells."""
    head = ("model", "state", "where", "answered", "rate/s", "ETA")
    return [head, *((row.name, row.state, row.where or "-", _answered(row), *_times(row)) for row in rows)]


def _answered(row: Row) -> str:
    return f"{'-' if row.answered is None else row.answered}/{'-' if row.samples is None else row.samples}"


def _times(row: Row) -> tuple[str, str]:
    return ("-" if row.rate is None else f"{row.rate:.3g}", duration(row.eta))


def total(rows: Sequence[Row], *, eta: float | None) -> str:
    """One line on all of them."""
    counts = Counter(row.state for row in rows)
    running = sum(counts[state] for state in RUNNING)
    told = [f"{counts['done']} of {len(rows)} done", f"{running} running", f"{counts['waiting']} waiting"]
    told += [f"{counts[state]} {state}" for state in ("partial", "failed") if counts[state]]
    return f"{', '.join(told)}; ETA {duration(eta if running or counts['waiting'] else 0)}"


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3 h 05 min`; `-` where it is not known."""
    if seconds is None:
        return "-"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"

"""Many models over one cluster: starts a `run` a model, watches the runs' folders, ranks them.

What is run is `matrix_models`', and when `matrix_plan`'s; what a run does, and how it resumes, is `run`'s, in processes
that end with this one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bfpo_bench.cluster import Capacity, Cluster
from bfpo_bench.console import say
from bfpo_bench.errors import ConfigError, StoreError
from bfpo_bench.harness.process import ProcessGroup
from bfpo_bench.matrix_models import LOGS, Entry, Run, jobs_of
from bfpo_bench.matrix_plan import (
    Job,
    Kind,
    Measured,
    Room,
    Row,
    Schedule,
    Start,
    State,
    duration,
    expected_seconds,
    pace_of,
    seconds_left,
    table,
    total,
)
from bfpo_bench.store import SCORES, Counts, RunStore, read_json, write_atomically
from bfpo_bench.types import Axis
from bfpo_bench.workers import WORKERS

# `__main__`'s exit codes.
_COMPLETE, _PARTIAL = 0, 3
_POLL_S = 0.25
# How often the cluster is asked what it has, and the runs how far they are.
_LOOK_S = 5.0
_LOOK_AGAIN = 20
# A cluster of several nodes may be one that is just growing; one that we started does not grow.
_NODES_MAY_COME_S = 300.0
_PATIENCE_S = 30.0
_SHOWN: tuple[Axis, ...] = ("harmlessness", "over_refusal", "helpfulness", "capability")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run; `scores` is the content of its scores.json where this matrix found it scored."""

    run: Run
    state: State
    why: str | None = None
    scores: Mapping[str, Any] | None = None


# -- running -----------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Sight:
    """How far a run was when its process was started, when answers first came, and when it was last looked at."""

    before: int
    scored_before: int | None
    counts: Counts | None = None
    first_at: float | None = None
    first: int = 0
    at: float = 0.0

    def look(self, counts: Counts | None, now: float) -> None:
        if counts is None:
            return
        self.counts, self.at = counts, now
        if self.first_at is None and counts.answered > self.before:
            self.first_at, self.first = now, counts.answered

    @property
    def answered_now(self) -> int:
        return 0 if self.counts is None else self.counts.answered - self.before

    @property
    def all_answered(self) -> bool:
        return self.counts is not None and 0 < self.counts.samples <= self.counts.answered

    @property
    def rate(self) -> float | None:
        """Answers a second since the first were seen; None where none came after them."""
        if (
            self.counts is None
            or self.first_at is None
            or self.at <= self.first_at
            or self.counts.answered <= self.first
        ):
            return None
        return (self.counts.answered - self.first) / (self.at - self.first_at)


@dataclass(kw_only=True)
class _Child:
    start: Start
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    placed: bool = False
    sights: dict[Path, _Sight] = field(default_factory=dict)


Command = Callable[[Entry, Start, Path], Sequence[str]]
Tell = Callable[[list[tuple[str, ...]]], None]


def run_matrix(
    entries: Sequence[Entry], *, out: Path, address: str | None, engines: int | None, every_s: float, tell: Tell
) -> list[Outcome]:
    """Run all entries on the cluster at the address, and say what became of every run, in their order.

    None: this machine's cluster, or one of our own; entries without weights need none.
    """
    if engines is not None and engines < 1:
        raise ConfigError(f"--workers must be at least 1, got {engines}.")
    if not every_s > 0:
        raise ConfigError(f"--every must be above 0 seconds, got {every_s:g}.")
    common: dict[str, Any] = {"out": out, "tell": tell, "engines": engines, "every_s": every_s}
    if not any(entry.kind == "weights" for entry in entries):
        return Matrix(entries, capacity=_no_cluster, command=run_command(None), **common).run()
    with Cluster.connect(address) as cluster:
        return Matrix(
            entries,
            capacity=cluster.capacity,
            command=run_command(cluster.address),
            nodes_may_come_s=0.0 if cluster.local else _NODES_MAY_COME_S,
            **common,
        ).run()


def planned_jobs(entries: Sequence[Entry], *, address: str | None) -> list[Job]:
    """For `--dry-run`: with the GPUs that each engine takes where there are any; starts no cluster."""
    if address is None:
        return jobs_of(entries, gpus=True)
    with Cluster.connect(address) as cluster:
        return jobs_of(entries, gpus=cluster.capacity().gpus > 0)


def _no_cluster() -> Capacity:
    return Capacity(n_nodes=0, cpus=0, gpus=0, most_cpus=0, most_gpus=0)


def run_command(address: str | None) -> Command:
    """How a process is started: `python -m bfpo_bench run` on the cluster at that address."""

    def command(entry: Entry, start: Start, config: Path) -> list[str]:
        adapters = [word for adapter in entry.adapters for word in ("--adapter", adapter)]
        spread = [] if address is None else ["--workers", str(start.workers), "--ray-address", address]
        spread += ["--gpus-per-worker", f"{start.job.gpus:g}"] if start.job.gpus else []
        run = [sys.executable, "-m", "bfpo_bench", "run", "--config", str(config), *adapters]
        return [*run, *(spread if entry.kind == "weights" else []), "--out", str(entry.out)]

    return command


class Matrix:
    """The processes of all entries over one cluster; ends with what became of every run.

    `capacity` is asked again at each turn, as nodes join and leave; `engines` is the most at a time; `tell` is given
    the table's lines. Jobs that will not fit are given up after `nodes_may_come_s` in which nothing else ran.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        out: Path,
        capacity: Callable[[], Capacity],
        command: Command,
        tell: Tell,
        engines: int | None = None,
        every_s: float = 30.0,
        nodes_may_come_s: float = 0.0,
    ) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self._logs = out / LOGS
        self._capacity, self._command, self._tell = capacity, command, tell
        self._engines, self._every_s, self._nodes_may_come_s = engines, every_s, nodes_may_come_s
        self._room = self._ask_room()
        self._schedule = Schedule(jobs_of(entries, gpus=self._room.gpus > 0))
        self._children: dict[str, _Child] = {}
        self._ended: list[Measured] = []
        # Of runs that have no process now.
        self._counted = {run.folder: _counts(run.folder) for entry in entries for run in entry.runs}
        self._outcomes: dict[Path, Outcome] = {}
        self._idle_since: float | None = None

    def run(self) -> list[Outcome]:
        """Start, watch and reap until all have ended; an interrupt is passed on to them."""
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"Cannot create {self._logs}: {error.strerror}. Choose another --out.") from error
        with ProcessGroup() as group:
            try:
                self._play(group)
            except KeyboardInterrupt:
                self._interrupt()
                raise
        self.show()
        return [self._outcomes[run.folder] for entry in self._entries.values() for run in entry.runs]

    def _play(self, group: ProcessGroup) -> None:
        turn = look = show = time.monotonic()
        while self._schedule.waiting or self._children:
            ended = self._reap()
            now = time.monotonic()
            if ended or now >= turn:
                turn = now + _LOOK_S
                self._room = self._ask_room()
                self._start(group)
                self._give_up_what_never_fits()
            if now >= look:
                self._look()
                # To count a million rows takes a while, and there may be many runs.
                look = time.monotonic() + max(_LOOK_S, _LOOK_AGAIN * (time.monotonic() - now))
            if now >= show:
                show = now + self._every_s
                self.show()
            time.sleep(_POLL_S)

    def _ask_room(self) -> Room:
        found = self._capacity()
        return Room(cpus=found.cpus, gpus=found.gpus, most_gpus=found.most_gpus, engines=self._engines)

    # -- processes -------------------------------------------------------------------------------------------------

    def _start(self, group: ProcessGroup) -> None:
        unplaced = [name for name, child in self._children.items() if not child.placed]
        for start in self._schedule.start(self._room, unplaced=unplaced):
            entry = self._entries[start.job.name]
            config, log = (self._logs / f"{entry.name}.{kind}" for kind in ("yaml", "log"))
            write_atomically(config, _to_yaml(entry.config))
            sights = {run.folder: _sight(run.folder) for run in entry.runs}
            with log.open("wb") as output:
                process = group.start(self._command(entry, start, config), stdout=output, stderr=subprocess.STDOUT)
            began = time.monotonic()
            self._children[entry.name] = _Child(start=start, process=process, log=log, began=began, sights=sights)
            where = f", {start.workers} worker{'s' if start.workers > 1 else ''}" if entry.kind == "weights" else ""
            say(f"started: {', '.join(run.name for run in entry.runs)} -> {entry.out}{where}")

    def _reap(self) -> bool:
        """Take off the processes that have ended; whether there were any."""
        ended = [(name, child) for name, child in self._children.items() if child.process.poll() is not None]
        for name, child in ended:
            self._look_at(name, child)
            seconds = time.monotonic() - child.began
            answered = sum(sight.answered_now for sight in child.sights.values())
            self._ended.append(Measured(start=child.start, seconds=seconds, answered=answered))
            for run in self._entries[name].runs:
                outcome = _outcome(run, child)
                self._outcomes[run.folder], self._counted[run.folder] = outcome, _counts(run.folder)
                why = f": {outcome.why}" if outcome.why else ""
                say(f"{outcome.state}: {run.name} in {duration(seconds)}{why}")
            del self._children[name]
            self._schedule.end(name)
        return bool(ended)

    def _give_up_what_never_fits(self) -> None:
        """With nothing left that runs, what waits is too large; on a cluster that may grow, only after a while."""
        if self._children or not self._schedule.waiting:
            self._idle_since = None
            return
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
            for job in self._schedule.waiting:
                say(f"waiting: {job.name}: {_lacks(job, self._room)}")
        if now - self._idle_since >= self._nodes_may_come_s:
            for job in self._schedule.give_up():
                for run in self._entries[job.name].runs:
                    self._outcomes[run.folder] = Outcome(run=run, state="failed", why=_lacks(job, self._room))

    def _interrupt(self) -> None:
        """Each process is told, and has half a minute to end by itself."""
        for child in self._children.values():
            with suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGINT)
        until = time.monotonic() + _PATIENCE_S
        for child in self._children.values():
            try:
                child.process.wait(max(until - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                say(f"{child.start.job.name} does not end: killed")

    # -- watching --------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        for name, child in self._children.items():
            self._look_at(name, child)

    def _look_at(self, name: str, child: _Child) -> None:
        for run in self._entries[name].runs:
            sight = child.sights[run.folder]
            child.placed |= (run.folder / WORKERS).is_file() or sight.answered_now > 0
            # Once all is answered there is nothing new to see, and a reader would hinder the writer's last act.
            if not sight.all_answered:
                sight.look(_counts(run.folder), time.monotonic())

    def show(self) -> None:
        """The table and its last line, as of now."""
        rows = self.rows()
        self._tell(table(rows))
        say(total(rows, eta=self._eta()))

    def rows(self) -> list[Row]:
        """A row a run, in the entries' order."""
        return [self._row(entry, run) for entry in self._entries.values() for run in entry.runs]

    def _row(self, entry: Entry, run: Run) -> Row:
        child, outcome = self._children.get(entry.name), self._outcomes.get(run.folder)
        if child is None:
            counts = self._counted[run.folder]
            numbers = (None, None) if counts is None else (counts.answered, counts.samples)
            state = "waiting" if outcome is None else outcome.state
            return Row(name=run.name, state=state, answered=numbers[0], samples=numbers[1])
        sight = child.sights[run.folder]
        counts, rate = sight.counts, sight.rate
        left = None if counts is None else counts.samples - counts.answered
        return Row(
            name=run.name,
            state=_state(sight),
            where=where(run.folder),
            answered=None if counts is None else counts.answered,
            samples=None if counts is None else counts.samples,
            rate=rate,
            eta=None if left is None or not left or not rate else left / rate,
        )

    def _eta(self) -> float | None:
        """Of the whole, by a simulation of the rest with what was measured so far."""
        now = time.monotonic()
        measured = list(self._ended)
        for child in self._children.values():
            answered = sum(sight.answered_now for sight in child.sights.values())
            measured.append(Measured(start=child.start, seconds=now - child.began, answered=answered))
        pace = pace_of(measured)
        seconds = {
            child.start.job.name: self._left(child, now - child.began, pace) for child in self._children.values()
        }
        for job in self._schedule.waiting:
            samples = self._unanswered(self._entries[job.name])
            start = Start(job=job, workers=max(min(job.workers, self._room.holds(job)), 1))
            seconds[job.name] = None if samples is None else expected_seconds(start, samples, pace)
        return seconds_left(self._schedule, self._room, seconds)

    def _left(self, child: _Child, since: float, pace: Mapping[Kind, float]) -> float | None:
        """Of a process that runs: by its own rate where it has one, and no less than the others' pace gives it."""
        sights = child.sights.values()
        asked = self._unanswered(self._entries[child.start.job.name])
        if asked is None:
            return None
        rates = [sight.rate for sight in sights if not sight.all_answered]
        whole = expected_seconds(child.start, asked + sum(sight.answered_now for sight in sights), pace)
        rest = None if whole is None else max(whole - since, 0.0)
        known = [rate for rate in rates if rate is not None]
        if known:
            return max(asked / sum(known), rest or 0.0)
        # Where the others' time is over and nothing is left to answer, what its judges still need is not known.
        return rest or None

    def _unanswered(self, entry: Entry) -> int | None:
        """How many samples it still has to answer; of a run that is not planned, as many as an equal one's."""
        found = 0
        for run in entry.runs:
            counts = self._counts_of(entry, run)
            if counts is not None and counts.samples:
                found += counts.samples - counts.answered
            elif (planned := self._planned(entry.questions)) is not None:
                found += planned
            else:
                return None
        return found

    def _planned(self, questions: str) -> int | None:
        for entry in self._entries.values():
            if entry.questions == questions:
                for run in entry.runs:
                    counts = self._counts_of(entry, run)
                    if counts is not None and counts.samples:
                        return counts.samples
        return None

    def _counts_of(self, entry: Entry, run: Run) -> Counts | None:
        child = self._children.get(entry.name)
        return self._counted[run.folder] if child is None else child.sights[run.folder].counts


def _sight(folder: Path) -> _Sight:
    counts = _counts(folder)
    return _Sight(before=0 if counts is None else counts.answered, scored_before=_changed(folder), counts=counts)


def _counts(folder: Path) -> Counts | None:
    """None also where the run is just being discarded, or set aside."""
    try:
        return RunStore.counts(folder)
    except (StoreError, OSError):
        return None


def _changed(folder: Path) -> int | None:
    try:
        return (folder / SCORES).stat().st_mtime_ns
    except OSError:
        return None


def _state(sight: _Sight) -> State:
    if sight.all_answered:
        return "judging"
    return "generating" if sight.answered_now > 0 else "starting"


def _outcome(run: Run, child: _Child) -> Outcome:
    """A run of several in one process may have got its scores before another failed."""
    code, scores = child.process.returncode, run.scores
    is_new = scores is not None and _changed(run.folder) != child.sights[run.folder].scored_before
    ended_well = code in (_COMPLETE, _PARTIAL)
    if scores is not None and (ended_well or (is_new and len(child.sights) > 1)):
        state: State = "done" if scores.get("status") == "complete" else "partial"
        reasons = scores.get("reasons") or []
        why = str(reasons[0]) if state == "partial" and reasons else None
        return Outcome(run=run, state=state, why=why, scores=scores)
    return Outcome(run=run, state="failed", why=_last_error(child, code))


def _last_error(child: _Child, code: int) -> str:
    """The line with which it ended, and how where a signal ended it."""
    text = child.log.read_text(encoding="utf-8", errors="replace") if child.log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; what was committed is safe. Log: {child.log}"
    if not (errors or lines):
        return f"exit code {code}. Log: {child.log}"
    line = (errors or lines)[-1]
    return line if len(line) <= 400 else f"{line[:397]}..."


def _lacks(job: Job, room: Room) -> str:
    """Why a job cannot be started on a cluster with nothing else on it."""
    if job.gpus > room.most_gpus:
        return f"an engine takes {job.gpus:g} GPUs on one node, and the largest node has {room.most_gpus:g}"
    return f"the cluster has {room.cpus:g} cores and {room.gpus:g} GPUs, and no room for an engine"


def where(folder: Path) -> str:
    """`host:0,1 other`: where the run's workers are, by their hosts and GPUs; empty while it has none."""
    try:
        workers = read_json(folder / WORKERS)
        hosts: dict[str, list[str]] = {}
        for worker in workers:
            hosts.setdefault(str(worker["host"]), []).extend(map(str, worker["gpus"]))
        return " ".join(_host(host, gpus) for host, gpus in sorted(hosts.items()))
    except (StoreError, TypeError, KeyError, AttributeError):
        return ""


def _host(host: str, gpus: Sequence[str]) -> str:
    return f"{host}:{','.join(sorted(set(gpus), key=_as_number))}" if gpus else host


def _as_number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (sys.maxsize, text)


def _to_yaml(config: Mapping[str, Any]) -> str:
    import yaml

    plain = {key: str(value) if isinstance(value, Path) else value for key, value in config.items()}
    text: str = yaml.safe_dump(plain, sort_keys=True, allow_unicode=True)
    return text


# -- telling -----------------------------------------------------------------------------------------------------------


def results_table(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Head and a line a run: its state, and its axes in % with their intervals."""
    axes = [axis for axis in _SHOWN if any(axis in (one.scores or {}).get("axes", {}) for one in outcomes)]
    names = ("benign answered" if axis == "over_refusal" else str(axis) for axis in axes)
    rows: list[tuple[str, ...]] = [("model", "state", *names)]
    for one in outcomes:
        scores = (one.scores or {}).get("axes", {})
        rows.append((one.run.name, one.state, *(_cell(scores.get(axis)) for axis in axes)))
    return rows


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "not measured"
    return f"{100 * score['value']:.1f} ({100 * score['low']:.1f}-{100 * score['high']:.1f})"


def write_leaderboard(outcomes: Sequence[Outcome], *, out: Path) -> Path | None:
    """The page of the runs that this matrix scored; None where there is none."""
    from bfpo_bench.leaderboard.render import write_site
    from bfpo_bench.leaderboard.rows import collect

    scored = [one.run.folder for one in outcomes if one.scores is not None]
    return write_site(collect(scored, skipped=say), out=out) if scored else None

"""Scored run folders -> leaderboard rows in order; computes no score, and knows nothing of HTML or CSV.

A row is a function of its run's files alone: not of the folder's name, its place, or the order of the arguments.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bfpo_bench.errors import StoreError
from bfpo_bench.leaderboard import processes
from bfpo_bench.leaderboard.inert import visible, without_paths
from bfpo_bench.leaderboard.manifests import settings
from bfpo_bench.store import MANIFEST, SCHEMA, SCORES, RunStore
from bfpo_bench.types import AXES, Axis, Kind, Score

DEFAULT_PROFILE = "default"
# The paper's aggregates by their names in scores.json, in its order.
PAPER = ("discriminative", "generative", "average", "helpfulness")


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A pass rate less its judge's errors, from 0 to 1; `uncut` is the estimate before it was cut to what can be.

    Where it could not be had, `refused` says why, and there is no number.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    uncut: float | None = None
    n_labels: int | None = None
    method: str | None = None
    level: float | None = None
    refused: str | None = None

    @property
    def cut(self) -> bool:
        return self.value is not None and self.uncut is not None and abs(self.value - self.uncut) > 1e-9


@dataclass(frozen=True, kw_only=True)
class JudgeRow:
    """What a second judge says about a task: shown beside the score, never mixed into it."""

    judge_version: str | None
    score: Score | None
    corrected: Correction | None
    labels: Mapping[str, int]
    unscored: Mapping[str, int]
    also: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One task of a run: its score, and what became of the samples that are not in it.

    `also` holds further metrics, which may have any unit. `data` tells apart what was asked: two runs with different
    digits were asked different samples of the task; None where the run does not say.
    """

    name: str
    axis: Axis
    kind: Kind
    metric: str
    version: str
    chance: float | None
    judge: str | None
    judge_version: str | None
    score: Score | None
    corrected: Correction | None
    n_total: int
    n_failed: int
    n_published: int | None
    n_thinking: int
    n_unfinished_thinking: int
    unscored: Mapping[str, int]
    labels: Mapping[str, int]
    also: Mapping[str, float | None]
    categories: Mapping[str, Score | None]
    other_judges: Mapping[str, JudgeRow]
    data: str | None
    worst_of_k: Score | None = None

    @property
    def n(self) -> int:
        return 0 if self.score is None else self.score.n

    @property
    def n_unscored(self) -> int:
        return sum(self.unscored.values())

    @property
    def coverage(self) -> float | None:
        """The scored share of the published set; None where its size is not known."""
        return self.n / self.n_published if self.n_published else None


@dataclass(frozen=True, kw_only=True)
class MissingTask:
    """A task that the run was to have and could not run; the reason is among the run's."""

    name: str
    axis: Axis
    version: str


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The paper's aggregates, None for one whose tasks were not all scored; tasks are (scored, of).

    `judges` are those of the tasks that an aggregate would stand on, where they need one.
    """

    scores: Mapping[str, Score | None]
    tasks: Mapping[str, tuple[int, int]]
    judges: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that may be ranked against each other: one suite, judge and profile, the same tasks in the same versions,
    answers cut at the same length (None: at each task's own), and so many a prompt drawn at the same temperature (None:
    at each task's own).

    `judges` are (task, judge, version): whose word each score is. Two versions of a judge are two judges.
    """

    suite: str
    judge: str | None
    profile: str
    max_new_tokens: int | None = None
    samples: int = 1
    temperature: float | None = None
    tasks: tuple[tuple[str, str], ...]
    judges: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, kw_only=True)
class TrainedFrom:
    """What a checkpoint was trained from, as its trainer said; `method` is the objective: bfpo, dpo, ..."""

    name: str
    identity: str
    method: str
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """One run. `folder` says where its samples are; it is never shown, and two copies of a run are equal.

    `rank` holds within `group`. `task_set` tells groups of the same suite, judge and profile apart, else it is None;
    `judge_set` those whose tasks are the same too, by the versions of their judges. `base` is the slug of the run of
    the model that this one was trained from, where the group has one that was asked in the same way.
    `n_parameters` is the model's, where its engine could count them; `settings` is the manifest, a line a setting.
    """

    slug: str
    label: str = ""
    model: str
    identity: str
    system_prompt: str | None = None
    engine: str
    versions: Mapping[str, str]
    seed: int | None
    suite: str
    judge: str | None
    profile: str
    max_new_tokens: int | None
    samples: int = 1
    temperature: float | None = None
    asked: str = ""
    trained_from: TrainedFrom | None = None
    base: str | None = None
    status: Literal["complete", "partial"]
    reasons: tuple[str, ...]
    limit: int | None
    axes: Mapping[Axis, Score | None]
    paper: Paper | None
    tasks: Mapping[str, TaskRow]
    missing: tuple[MissingTask, ...]
    judges: tuple[tuple[str, str, str], ...]
    n: int
    n_unscored: int
    n_failed: int
    n_empty: int
    n_truncated: int
    rank: int | None
    task_set: str | None
    judge_set: str | None
    digest: str
    n_parameters: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: Path = field(repr=False, compare=False)

    @cached_property
    def group(self) -> Group:
        # What could not be run counts as well: the run is one of its suite, and partial.
        tasks: list[TaskRow | MissingTask] = [*self.tasks.values(), *self.missing]
        versions = tuple(sorted((task.name, task.version) for task in tasks))
        return Group(
            suite=self.suite,
            judge=self.judge,
            profile=self.profile,
            max_new_tokens=self.max_new_tokens,
            samples=self.samples,
            temperature=self.temperature,
            tasks=versions,
            judges=self.judges,
        )

    @property
    def drawn(self) -> str | None:
        """How answers were drawn where the run set it, in words; None where the tasks did."""
        answers = f"{self.samples} answers a prompt" if self.samples > 1 else None
        temperature = None if self.temperature is None else f"temperature {self.temperature:g}"
        return ", ".join(part for part in (answers, temperature) if part is not None) or None

    @property
    def mean(self) -> float | None:
        """What rows are ranked by: the mean of harmlessness and helpfulness; None where either is missing."""
        harmlessness, helpfulness = self.axes["harmlessness"], self.axes["helpfulness"]
        if harmlessness is None or helpfulness is None:
            return None
        return math.fsum((harmlessness.value, helpfulness.value)) / 2

    @property
    def control(self) -> bool:
        """A policy stands beside the models as a control; it takes no rank from one."""
        return self.engine == "policy"

    @property
    def published(self) -> tuple[int, int] | None:
        """Scored samples and samples published, over the tasks whose set's size is known; None where none is."""
        known = [(task.n, task.n_published) for task in self.tasks.values() if task.n_published]
        return (sum(n for n, _ in known), sum(of for _, of in known)) if known else None

    @property
    def sampled(self) -> int:
        """How many tasks were asked a part of their published set only."""
        return sum(task.n_published is not None and task.n_total < task.n_published for task in self.tasks.values())


def collect(folders: Sequence[Path], *, skipped: Callable[[str], None] = lambda line: None) -> list[LeaderboardRow]:
    """One row a run, group by group, in a group by rank; a folder is a run, or holds runs at any depth.

    A run that is unscored or unreadable is a StoreError where it is one of `folders`; one found below them is left
    out and `skipped` is told, in one line. Raises StoreError also for a folder without runs, or when no row is left.
    """
    named = {folder.resolve() for folder in folders}
    found = find_runs(folders, skipped=skipped)
    rows = []
    for folder, row in zip(found, _read_rows(found), strict=True):
        if isinstance(row, LeaderboardRow):
            rows.append(row)
        elif folder.resolve() in named:
            raise row
        else:
            skipped(f"Skipped {folder}: {row if (folder / SCORES).exists() else _unscored(folder)}")
    if not rows:
        shown = ", ".join(str(folder) for folder in folders)
        raise StoreError(f"No scored run in {shown}. Score one first: python -m bfpo_bench score RUN")
    return _with_bases(_with_slugs(_with_ranks(_with_judges(rows))))


def _unscored(folder: Path) -> str:
    return f"not scored yet; finish it, or score what it has: python -m bfpo_bench score {folder}"


def find_runs(folders: Sequence[Path], *, skipped: Callable[[str], None] = lambda line: None) -> list[Path]:
    """The run folders in or below `folders`, each once; a run's own subfolders (`old-1/`) are not runs."""
    if not folders:
        raise StoreError("No run folder given. Give the folders that `run` printed, or their parent.")
    found: dict[Path, Path] = {}
    for folder in folders:
        try:
            runs = list(_runs_below(folder, skipped))
        except OSError as error:
            raise StoreError(f"Cannot look for runs in {folder}: {error.strerror}. Give another folder.") from error
        if not runs:
            raise StoreError(f"No run in {folder}: nothing there has a {MANIFEST}. Give the folder that `run` printed.")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _runs_below(folder: Path, skipped: Callable[[str], None]) -> Iterator[Path]:
    # os.path, because Path.is_file raises for a folder that may not be entered.
    if os.path.isfile(folder / MANIFEST):
        yield folder
        return
    for child in sorted(child for child in folder.iterdir() if os.path.isdir(child) and child.name[0] != "."):
        # A linked run is taken; a linked tree is not walked, it could lead back here.
        if os.path.isfile(child / MANIFEST) or not child.is_symlink():
            try:
                yield from _runs_below(child, skipped)
            except OSError as error:
                skipped(f"Skipped {child}: {error.strerror}")


def group_name(row: LeaderboardRow) -> str:
    """What the runs of a row's group have in common, in words."""
    judged = "no judge" if row.judge is None else f"judged by {row.judge}"
    profile = f", {row.profile} profile" if row.profile != DEFAULT_PROFILE else ""
    limit = "" if row.max_new_tokens is None else f", answers of at most {row.max_new_tokens} tokens"
    return (
        f"{row.suite}, {judged}{profile}{limit}"
        + (f", {row.drawn}" if row.drawn else "")
        + (f", task set {row.task_set}" if row.task_set else "")
        + (f", {row.judge_set}" if row.judge_set else "")
    )


# -- one run -----------------------------------------------------------------------------------------------------------


def _read_rows(folders: Sequence[Path]) -> list[LeaderboardRow | StoreError]:
    """The row of each folder, or why it has none; many are read by several processes."""
    if len(folders) < processes.MANY_RUNS:
        return list(map(_row_or_error, folders))
    with processes.pool() as workers, processes.uncollected():
        return list(workers.map(_row_or_error, folders, chunksize=processes.CHUNK))


def _row_or_error(folder: Path) -> LeaderboardRow | StoreError:
    try:
        return _row(folder)
    except StoreError as error:
        return error


def _row(folder: Path) -> LeaderboardRow:
    if not RunStore.is_planned(folder):
        # Says what it lacks; a run none of whose tasks could be asked has all that it needs.
        RunStore.read(folder).close()
    if not (folder / SCORES).exists():
        raise StoreError(f"Run {folder} has no {SCORES}. Score it first: python -m bfpo_bench score {folder}")
    (manifest, _), (scores, content) = _json(folder / MANIFEST), _json(folder / SCORES)
    try:
        for name, value in ((MANIFEST, manifest), (SCORES, scores)):
            if value["schema"] != SCHEMA:
                raise ValueError(f"{name} has schema {value['schema']!r}, this version reads {SCHEMA}")
        return _parse(manifest, scores, folder, digest=_digest(manifest["identity"], content))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise StoreError(
            f"Cannot read the scores of {folder}: {what}. Score it again: python -m bfpo_bench score {folder}"
        ) from error


def _json(path: Path) -> tuple[Any, bytes]:
    try:
        content = path.read_bytes()
        return json.loads(content), content
    except (OSError, ValueError) as error:
        raise StoreError(f"Cannot read {path}: {error}.") from error


def _parse(manifest: Mapping[str, Any], scores: Mapping[str, Any], folder: Path, *, digest: str) -> LeaderboardRow:
    identity, data = manifest["identity"], manifest.get("data", {})
    tasks = {name: _task(name, body, data.get(name)) for name, body in sorted(scores["tasks"].items())}
    limit = scores["limit"]
    reasons = tuple(without_paths(str(reason)) for reason in scores["reasons"])
    if limit is not None and not any("limit" in reason for reason in reasons):
        reasons += (f"limited to {limit} samples a task",)
    scored = [task.score for task in tasks.values() if task.score is not None]
    model = identity["model"]
    adapter = "" if model.get("adapter_identity") is None else f" with adapter {model['adapter_identity']}"
    system_prompt = model.get("system_prompt")
    return LeaderboardRow(
        slug="",
        model=without_paths(str(scores["model"]["name"])) + _asked_otherwise(identity),
        asked=_asked_otherwise(identity),
        trained_from=_trained_from(manifest.get("trained_from")),
        identity=without_paths(f"{scores['model']['identity']}{adapter}"),
        system_prompt=None if system_prompt is None else visible(str(system_prompt)),
        engine=str(model.get("engine", "")),
        versions={"bfpo_bench": str(identity.get("bfpo_bench", ""))}
        | {str(name): str(version) for name, version in sorted(identity.get("packages", {}).items())},
        seed=identity.get("seed"),
        suite=_text_or_none(scores, "suite") or "chosen tasks",
        judge=_judge(scores),
        profile=str(identity.get("profile", DEFAULT_PROFILE)),
        max_new_tokens=_size(identity.get("max_new_tokens"), "max_new_tokens"),
        samples=_size(identity.get("samples"), "samples") or 1,
        temperature=None if identity.get("temperature") is None else float(identity["temperature"]),
        status="complete" if scores["status"] == "complete" and limit is None else "partial",
        reasons=reasons,
        limit=limit,
        axes={axis: _score(scores["axes"].get(axis)) for axis in AXES},
        paper=_paper(scores.get("paper")),
        tasks=tasks,
        missing=tuple(
            MissingTask(name=name, axis=_axis(name, body), version=str(body["version"]))
            for name, body in sorted(identity["tasks"].items())
            if name not in tasks
        ),
        judges=tuple(
            (name, task.judge, task.judge_version)
            for name, task in tasks.items()
            if task.judge is not None and task.judge_version is not None
        ),
        n=sum(score.n for score in scored),
        n_unscored=sum(task.n_unscored for task in tasks.values()),
        n_failed=sum(task.n_failed for task in tasks.values()),
        n_empty=sum(score.n_empty for score in scored),
        n_truncated=sum(score.n_truncated for score in scored),
        rank=None,
        task_set=None,
        judge_set=None,
        digest=digest,
        # A policy has none, which is not a size.
        n_parameters=_size(manifest.get("engine", {}).get("parameters"), "parameters") or None,
        settings=settings(manifest),
        folder=folder,
    )


def _digest(value: Any, content: bytes = b"") -> str:
    # Without to_json's indent, which json writes ten times slower.
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii") + content).hexdigest()


def _trained_from(body: Mapping[str, Any] | None) -> TrainedFrom | None:
    if body is None:
        return None
    name, identity, method = (without_paths(str(body[key])) for key in ("name", "identity", "method"))
    return TrainedFrom(name=name, identity=identity, method=method, seed=_size(body.get("seed"), "seed"))


def _asked_otherwise(identity: Mapping[str, Any]) -> str:
    """What makes another subject of the same weights, for a reader to tell two rows apart."""
    model, thinking = identity["model"], _size(identity.get("thinking_tokens"), "thinking_tokens")
    template = {"on": "choices behind the chat template", "off": "no chat template"}.get(model.get("chat_template", ""))
    found = [
        "" if model.get("system_prompt") is None else " under a system prompt",
        "" if template is None else f", {template}",
        "" if thinking is None else f", {thinking} thinking tokens",
    ]
    return "".join(found)


def _axis(name: str, body: Mapping[str, Any]) -> Axis:
    for axis in AXES:
        if axis == body["axis"]:
            return axis
    raise ValueError(f"task {name!r} has the unknown axis {body['axis']!r}")


def _judge(scores: Mapping[str, Any]) -> str | None:
    """The judge's name for a title; a panel's rule stands beside its members: under another it is another judge."""
    name, panel = _text_or_none(scores, "judge"), scores.get("panel")
    if name is None or panel is None:
        return name
    rule = ", ".join(str(panel["rule"]).split(","))
    return re.sub(r"\bpanel \((.*?)\)(?=, |$)", lambda match: f"panel ({match[1]}; {rule})", name)


def _paper(body: Mapping[str, Any] | None) -> Paper | None:
    if body is None:
        return None
    tasks = {role: (int(count["scored"]), int(count["of"])) for role, count in body["n_tasks"].items()}
    # The average stands on the tasks of both its halves.
    halves = [tasks[role] for role in ("discriminative", "generative")]
    return Paper(
        scores={name: _score(body[name]) for name in PAPER},
        tasks={name: tasks[name] if name in tasks else (sum(n for n, _ in halves), sum(of for _, of in halves))
               for name in PAPER},
        judges={name: tuple(map(str, body["n_tasks"].get(name, {}).get("judges", ()))) for name in PAPER},
    )  # fmt: skip


def _task(name: str, body: Mapping[str, Any], data: str | None) -> TaskRow:
    return TaskRow(
        name=name,
        axis=_axis(name, body),
        kind=body["kind"],
        metric=body["metric"],
        version=str(body["version"]),
        chance=_chance(body["chance"]),
        judge=_text_or_none(body, "judge"),
        judge_version=_text_or_none(body, "judge_version"),
        score=_score(body["score"]),
        corrected=_correction(body.get("corrected")),
        n_total=int(body["n_total"]),
        n_failed=int(body["n_failed"]),
        n_published=_size(body.get("n_published"), "n_published"),
        n_thinking=int(body.get("n_thinking", 0)),
        n_unfinished_thinking=int(body.get("n_unfinished_thinking", 0)),
        unscored=_counts(body["unscored"]),
        labels=_counts(body["labels"]),
        also=_also(body.get("also", {}) | _length_controlled(body)),
        categories={category: _score(score) for category, score in sorted(body["categories"].items())},
        other_judges={judge: _other(other) for judge, other in sorted(body["other_judges"].items())},
        data=None if data is None else str(data),
        worst_of_k=_score(body.get("worst_of_k")),
    )


def _other(body: Mapping[str, Any]) -> JudgeRow:
    return JudgeRow(
        judge_version=_text_or_none(body, "judge_version"),
        score=_score(body["score"]),
        corrected=_correction(body.get("corrected")),
        labels=_counts(body["labels"]),
        unscored=_counts(body["unscored"]),
        also=_also(body.get("also", {}) | _length_controlled(body)),
    )


def _text_or_none(body: Mapping[str, Any], name: str) -> str | None:
    value = body[name]
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{name} is {value!r}, neither a text nor null")


def _chance(value: Any) -> float | None:
    if value is None:
        return None
    # A bool is a number to Python.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ValueError(f"chance is {value!r}, neither a rate nor null")
    return float(value)


def _size(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}, neither a number nor null")
    return value


def _length_controlled(body: Mapping[str, Any]) -> dict[str, Any]:
    """AlpacaEval's length-controlled win rate with its limits, where there is one."""
    found = (body.get("preference") or {}).get("length_controlled") or {}
    parts = {"length_controlled": "value", "length_controlled_low": "low", "length_controlled_high": "high"}
    return {name: found[part] for name, part in parts.items()} if found else {}


def _correction(body: Mapping[str, Any] | None) -> Correction | None:
    if body is None:
        return None
    if "refused" in body:
        return Correction(refused=without_paths(str(body["refused"])))
    value, low, high, uncut, level = (float(body[name]) for name in ("value", "low", "high", "uncut", "level"))
    if not (0.0 <= low <= value <= high <= 1.0 and math.isfinite(uncut)):
        raise ValueError(f"the corrected rate {value} with interval [{low}, {high}], before cutting {uncut}, is none")
    method, n_labels = str(body["method"]), _size(body["n_labels"], "n_labels")
    return Correction(value=value, low=low, high=high, uncut=uncut, n_labels=n_labels, method=method, level=level)


def _also(body: Mapping[str, Any]) -> dict[str, float | None]:
    for name, value in body.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise ValueError(f"the metric {name} is {value!r}, neither a number nor null")
    return {str(name): None if value is None else float(value) for name, value in sorted(body.items())}


def _counts(body: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): int(count) for name, count in sorted(body.items())}


def _score(body: Mapping[str, Any] | None) -> Score | None:
    if body is None:
        return None
    value, low, high = float(body["value"]), float(body["low"]), float(body["high"])
    # Also false for a NaN, which JSON readers let through.
    if not 0.0 <= low <= value <= high <= 1.0:
        raise ValueError(f"the score {value} with interval [{low}, {high}] is not a rate")
    return Score(
        value=value,
        low=low,
        high=high,
        n=int(body["n"]),
        n_unscored=int(body["n_unscored"]),
        n_empty=int(body["n_empty"]),
        n_truncated=int(body["n_truncated"]),
        method=str(body["method"]),
        level=float(body["level"]),
    )


# -- all runs ----------------------------------------------------------------------------------------------------------


def _with_judges(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """A partial run may lack verdicts on a task: it stays with the one group that agrees with those that it has."""
    known: dict[Group, set[tuple[tuple[str, str, str], ...]]] = defaultdict(set)
    for row in rows:
        known[replace(row.group, judges=())].add(row.judges)
    found = []
    for row in rows:
        others = known[replace(row.group, judges=())]
        whole = [judges for judges in others if not any(set(judges) < set(other) for other in others)]
        mine = [judges for judges in whole if set(row.judges) <= set(judges)]
        found.append(replace(row, judges=mine[0]) if row.status == "partial" and len(mine) == 1 else row)
    return found


def _with_ranks(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """Group by group, the largest first, then by the names of suite and judge; each group has ranks of its own."""
    members: dict[Group, list[LeaderboardRow]] = defaultdict(list)
    for row in rows:
        members[row.group].append(row)
    alike: dict[Group, list[Group]] = defaultdict(list)
    for group in members:
        alike[replace(group, tasks=(), judges=())].append(group)

    def by_size(group: Group) -> tuple[Any, ...]:
        judge = (group.judge is not None, group.judge or "")
        limit = group.max_new_tokens or math.inf
        drawn = (group.samples, -1.0 if group.temperature is None else group.temperature)
        return (-len(members[group]), group.suite, judge, group.profile, limit, drawn, group.tasks, group.judges)

    ordered = []
    for group in sorted(members, key=by_size):
        same = alike[replace(group, tasks=(), judges=())]
        task_set = _digits(group.tasks) if any(other.tasks != group.tasks for other in same) else None
        judge_set = _judge_set(group, [other for other in same if other.tasks == group.tasks])
        ordered += [replace(row, task_set=task_set, judge_set=judge_set) for row in _ranked(members[group])]
    return ordered


def _judge_set(group: Group, alike: Sequence[Group]) -> str | None:
    """The judges with the versions that not all the groups of the same tasks have; None where it is the only one."""
    if len(alike) == 1:
        return None

    def versions(group: Group) -> set[tuple[str, str]]:
        return {(judge, version) for _, judge, version in group.judges}

    mine = [own for own in sorted(versions(group)) if any(own not in versions(other) for other in alike)]
    # Of a panel's version what its name does not say: the versions of its members.
    told = [(judge, version.rpartition(" of ")[2]) for judge, version in mine]
    if not told:
        return f"verdicts {_digits(group.judges)}"
    if len(told) == 1 and told[0][0] == group.judge:
        return f"version {told[0][1]}"
    return "versions " + ", ".join(f"{judge} {version}" for judge, version in told)


def _digits(value: Any) -> str:
    return _digest(value)[:8]


def _ranked(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """One group: ranked rows by mean, then the others; equal means share a rank (1, 2, 2, 4), and order by name."""

    def by_name(row: LeaderboardRow) -> tuple[str, ...]:
        return (row.model, row.identity, row.digest)

    means = {id(row): row.mean for row in rows if row.status == "complete" and not row.control}
    ranked = [(mean, row) for row in rows if (mean := means.get(id(row))) is not None]
    others = [row for row in rows if means.get(id(row)) is None]
    ranked.sort(key=lambda pair: (-pair[0], by_name(pair[1])))
    # From the worst mean on, so that of equal ones the best place is the one that is kept.
    places = {mean: place for place, (mean, _) in reversed(list(enumerate(ranked, 1)))}
    ordered = [replace(row, rank=places[mean]) for mean, row in ranked]
    return ordered + sorted(others, key=by_name)


def _with_slugs(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """A file name a row: the model's name; with some digits of the run's digest where two rows share it.

    Digits rather than a counter: a link to a run's page must not lead to another run when a third one joins.
    A row's label is told apart from those of its group only: the group's heading does the rest.
    """
    shared = Counter(_slug(row.model) for row in rows)
    engines: dict[tuple[Group, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        engines[row.group, row.model][row.engine] += 1
    taken: set[str] = set()
    named = []
    for row in rows:
        base = _slug(row.model)
        if shared[base] > 1:
            base = f"{base}-{row.digest[:8]}"
        slug, copy = base, 1
        while slug in taken:
            copy += 1
            slug = f"{base}-{copy}"
        taken.add(slug)
        mine = engines[row.group, row.model]
        apart = [row.engine] if len(mine) > 1 and row.engine else []
        apart += [row.digest[:8]] if mine[row.engine] > 1 else []
        named.append(replace(row, slug=slug, label=f"{row.model} ({', '.join(apart)})" if apart else row.model))
    return named


def _with_bases(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """Each run of a trained checkpoint with the slug of its base's run: of the same group, asked in the same way.

    Of several such runs the one on the same engine, then the one that comes first.
    """
    bases: dict[tuple[Any, ...], list[LeaderboardRow]] = defaultdict(list)
    for row in rows:
        bases[row.identity, *_comparable(row)].append(row)
    found = []
    for row in rows:
        told = row.trained_from
        mine = [] if told is None else bases[told.identity, *_comparable(row)]
        mine = sorted((base for base in mine if base is not row), key=lambda base: base.engine != row.engine)
        found.append(replace(row, base=mine[0].slug) if mine else row)
    return found


def _comparable(row: LeaderboardRow) -> tuple[Any, ...]:
    return row.group, row.limit, row.system_prompt, row.asked


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:80].strip("-") or "model"

"""MODELS.yaml -> what is to be run for each of its models, checked, with sizes; starts no process, asks no network."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bfpo_bench.config import RunSpec, as_key, read_mapping, run_spec
from bfpo_bench.errors import BenchError, ConfigError, StoreError, did_you_mean
from bfpo_bench.harness.engine import parse_engine_args
from bfpo_bench.matrix_plan import Job, Kind, in_order
from bfpo_bench.registry import load_registry, resolve_tasks
from bfpo_bench.sources import EMBEDDED, bfpo_home, choose_engine, is_folder
from bfpo_bench.store import SCORES, read_json
from bfpo_bench.types import TaskSpec

# Beside the runs: what each process was told, and what it said.
LOGS = "matrix"
# What an entry may hold beside the keys of a run.
_OURS = ("name", "adapters", "gpus", "workers")
# What is not an entry's to say.
_ELSEWHERE = {
    "out": "each run has a folder below --out. Give the entry a name",
    "ray_address": "all models share one cluster. Use --ray-address",
    "gpus_per_worker": "write gpus",
}
_OF_WEIGHTS = frozenset({"engine", "engine_args", "trust_remote_code", "chat_template"})
# Of the defaults, what a run of such a model would refuse. An entry's own keys are its own.
_NO_DEFAULT: Mapping[Kind, frozenset[str]] = {
    "weights": frozenset({"base_url"}),
    "api": _OF_WEIGHTS,
    "policy": _OF_WEIGHTS | {"base_url", "system_prompt", "thinking_tokens"},
}
_RUN_KEYS = {found.name for found in dataclasses.fields(RunSpec)}
_MOST_WORKERS = 10_000
Registries = Callable[[tuple[Path, ...], str], Mapping[str, TaskSpec]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the table, by the name that it has there."""

    name: str
    folder: Path

    @property
    def scores(self) -> Mapping[str, Any] | None:
        """The content of its scores.json as it is now, or None."""
        try:
            scores = read_json(self.folder / SCORES)
        except StoreError:
            return None
        return scores if isinstance(scores, dict) else None

    @property
    def status(self) -> str | None:
        """`complete` or `partial` as its scores say; None where it has none."""
        return None if (scores := self.scores) is None else str(scores.get("status"))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one process is told: `config` as YAML, `adapters` as flags, `out` a run's folder or the folder of several.

    `gpus` is None where the entry does not say what an engine takes. Entries of equal `questions` ask the same samples.
    """

    name: str
    config: Mapping[str, Any]
    adapters: tuple[str, ...] = ()
    runs: tuple[Run, ...]
    out: Path
    kind: Kind
    engine: str
    workers: int = 1
    gpus: float | None = None
    parallel: int = 1
    samples: int = 0
    questions: str = ""


# -- MODELS.yaml -------------------------------------------------------------------------------------------------------


def read_entries(path: Path, flags: Mapping[str, Any], *, out: Path) -> tuple[Entry, ...]:
    """The entries of MODELS.yaml, `flags` over their keys; all that can be wrong with them is told here, in one line.

    The defaults that are of weights alone (engine, its arguments, ...) do not reach APIs and policies.
    Adapters of one base are one entry where its engine holds them all at a time (vllm), else an entry each.
    """
    content = read_mapping(path, named=str(path), wanted="`defaults:` and `models:`")
    for key in content:
        if key not in ("defaults", "models"):
            raise ConfigError(f"{path}: {did_you_mean('key', str(key), ('defaults', 'models'))}")
    defaults = _keys(content.get("defaults") or {}, where=f"{path}: defaults", known=_RUN_KEYS | {"gpus", "workers"})
    models = content.get("models")
    if not isinstance(models, list) or not models:
        raise ConfigError(f"{path}: `models:` must be a list of models, e.g. `- smollm2-135m`.")
    entries: list[Entry] = []
    registry_of = cache(lambda folders, profile: load_registry(folders, profile=profile))
    for number, model in enumerate(models, 1):
        where = f"{path}: model {number}"
        told = {"model": model} if isinstance(model, str) else model
        mine = _keys(told, where=where, known=_RUN_KEYS | set(_OURS))
        try:
            idle = _NO_DEFAULT[_kind(str(mine.get("model", "")))]
            common = {key: value for key, value in defaults.items() if key not in idle}
            entries += _entries({**common, **mine, **flags}, out=out, registry_of=registry_of)
        except BenchError as error:
            raise type(error)(f"{where}: {error}") from error
    _refuse_shared_folders(path, entries)
    return _told_apart(entries)


def _keys(told: Any, *, where: str, known: Collection[str]) -> dict[str, Any]:
    """The keys as a run's config spells them, each one that is known."""
    if not isinstance(told, dict):
        raise ConfigError(f"{where} is {type(told).__name__}, not a model's name or a mapping of keys to values.")
    found: dict[str, Any] = {}
    for key, value in told.items():
        name, found_value = as_key(key, value)
        if name in _ELSEWHERE:
            raise ConfigError(f"{where}: {key}: {_ELSEWHERE[name]}.")
        if name not in known:
            raise ConfigError(f"{where}: {did_you_mean('key', str(key), set(known) - set(_ELSEWHERE))}")
        found[name] = found_value
    return found


def _entries(told: Mapping[str, Any], *, out: Path, registry_of: Registries) -> Iterator[Entry]:
    config = {key: value for key, value in told.items() if key not in _OURS}
    name, workers, gpus = _name(told.get("name")), _workers(told.get("workers", 1)), _gpus(told.get("gpus"))
    adapters = _adapters(told.get("adapters"), config)
    spec = run_spec(config)
    kind = _kind(spec.model)
    engine = {"api": "openai", "policy": "policy"}.get(kind) or choose_engine(spec.engine)
    arguments = parse_engine_args(spec.engine_args)
    tasks = resolve_tasks(registry_of(spec.include_path, spec.profile), suite=spec.suite, tasks=spec.tasks)
    samples = sum(
        min(task.n or 0, spec.limit or sys.maxsize) * (spec.samples if task.kind == "generate" else 1) for task in tasks
    )
    asked = (spec.suite, sorted(spec.tasks), spec.limit, spec.samples, spec.profile, str(spec.include_path))
    parallel = _number(arguments, "tensor_parallel_size") * _number(arguments, "pipeline_parallel_size")

    def entry(runs: Sequence[Run], *, folder: Path, adapters: tuple[str, ...] = ()) -> Entry:
        return Entry(
            name="+".join(runs[0].folder.relative_to(out).parts),
            config=config,
            adapters=adapters,
            runs=tuple(runs),
            out=folder,
            kind=kind,
            engine=engine,
            workers=workers,
            gpus=gpus,
            parallel=parallel,
            samples=samples * len(runs),
            questions=repr(asked),
        )

    if not adapters:
        folder = out / (name or replace(spec, out=None).folder.name)
        yield entry([Run(name=name or _shown(spec.model, spec.adapter), folder=folder)], folder=folder)
        return
    if kind != "weights":
        raise ConfigError(f"{spec.model}: adapters need the weights of their base here. Leave them out.")
    holder = out if name is None else out / name
    runs = [
        Run(
            name=_shown(name or spec.model, adapter),
            folder=holder / replace(spec, adapter=adapter, out=None).folder.name,
        )
        for adapter in adapters
    ]
    if engine == "vllm" and len(adapters) > 1:
        yield entry(runs, folder=holder, adapters=adapters)
        return
    for adapter, run in zip(adapters, runs, strict=True):
        yield entry([run], folder=run.folder, adapters=(adapter,))


def _name(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9+_][A-Za-z0-9+_.-]*", value) or value == LOGS:
        raise ConfigError(f"name {value!r} must be letters, digits, and . _ + - within: it names the run's folder.")
    return value


def _workers(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_WORKERS:
        raise ConfigError(f"workers must be a whole number from 1 to {_MOST_WORKERS}, got {value!r}.")
    return value


def _gpus(value: Any) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Ray's own rule, which counts in ten-thousandths.
    if not is_number or not 1e-4 <= value < 2**16 or (value > 1 and value != int(value)):
        raise ConfigError(f"gpus must be a whole number from 1, or below 1 for a part of a GPU, got {value!r}.")
    return float(value)


def _adapters(value: Any, config: Mapping[str, Any]) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise ConfigError(f"adapters must be a list of folders or hub ids, got {value!r}.")
    if len(set(value)) < len(value):
        raise ConfigError(f"adapters names {next(one for one in value if value.count(one) > 1)!r} twice.")
    if config.get("adapter") is not None:
        raise ConfigError("adapter and adapters are both given. Write all of them in adapters.")
    return tuple(value)


def _number(arguments: Mapping[str, str], key: str) -> int:
    text = arguments.get(key, "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"engine_args {key} must be a whole number from 1, got {text!r}.")
    return int(text)


def _kind(model: str) -> Kind:
    if model.startswith("policy:"):
        return "policy"
    return "api" if model.startswith("openai:") else "weights"


def _shown(model: str, adapter: str | None) -> str:
    return model if adapter is None else f"{model}+{Path(adapter).name if is_folder(adapter) else adapter}"


def _refuse_shared_folders(path: Path, entries: Sequence[Entry]) -> None:
    """Two runs in one folder would be one run, and a run within another's folder is lost to a leaderboard."""
    runs = [run for entry in entries for run in entry.runs]
    seen: dict[Path, Run] = {}
    for run in runs:
        other = seen.setdefault(run.folder, run)
        if other is not run:
            both = f"{other.name} twice" if other.name == run.name else f"{other.name} and {run.name}"
            raise ConfigError(f"{path}: {both} would be the same run in {run.folder}. Leave one out, or name it.")
    for run in runs:
        if outer := next((seen[parent] for parent in run.folder.parents if parent in seen), None):
            raise ConfigError(f"{path}: the run of {run.name} would lie in that of {outer.name}. Name one otherwise.")


def _told_apart(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Runs that would have the same name in the table (a model asked in two ways) go by their folders'."""
    counts = Counter(run.name for entry in entries for run in entry.runs)

    def named(run: Run) -> Run:
        return run if counts[run.name] == 1 else replace(run, name=run.folder.name)

    return tuple(replace(entry, runs=tuple(map(named, entry.runs))) for entry in entries)


# -- sizes -------------------------------------------------------------------------------------------------------------


def weight_bytes(model: str) -> int | None:
    """The size of a model's weights as far as they are on this machine, else None; asks no network."""
    if model in EMBEDDED:
        folder = bfpo_home() / "models" / f"{model}-{EMBEDDED[model].version}"
    elif is_folder(model):
        folder = Path(model).expanduser()
    else:
        from huggingface_hub import snapshot_download

        repo, _, revision = model.partition("@")
        try:
            folder = Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
        except (OSError, ValueError):  # not in the cache; no id at all, which the run will tell
            return None
    return _bytes_of("*.safetensors", folder) or _bytes_of("pytorch_model*.bin", folder) or None


def _bytes_of(pattern: str, folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file())
    except OSError:
        return 0


def jobs_of(entries: Sequence[Entry], *, gpus: bool) -> list[Job]:
    """What is to be scheduled, in the entries' order; `gpus` says whether the cluster has any."""
    return [
        Job(
            name=entry.name,
            kind=entry.kind,
            workers=entry.workers,
            gpus=(entry.parallel if entry.gpus is None else entry.gpus) if gpus and entry.kind == "weights" else 0,
            weight_bytes=weight_bytes(str(entry.config["model"])) if entry.kind == "weights" else None,
            samples=entry.samples,
            complete=all(run.status == "complete" for run in entry.runs),
        )
        for entry in entries
    ]


def plan_table(entries: Sequence[Entry], jobs: Sequence[Job]) -> list[tuple[str, ...]]:
    """`--dry-run`: head and a line a process, in the order in which they will be started."""
    rows: list[tuple[str, ...]] = [
        ("order", "model", "runs", "engine", "workers", "GPUs each", "weights GB", "samples")
    ]
    by_name = {entry.name: entry for entry in entries}
    for number, job in enumerate(in_order(jobs), 1):
        entry = by_name[job.name]
        has_weights = job.kind == "weights"
        size = "-" if not has_weights else "?" if job.weight_bytes is None else f"{job.weight_bytes / 1e9:.2f}"
        shown = entry.runs[0].name if len(entry.runs) == 1 else f"{entry.config['model']} + {len(entry.runs)} adapters"
        cells = (str(job.workers), f"{job.gpus:g}") if has_weights else ("-", "-")
        state = " (complete)" if job.complete else ""
        rows.append(
            (str(number), f"{shown}{state}", str(len(entry.runs)), entry.engine, *cells, size, str(job.samples))
        )
    return rows

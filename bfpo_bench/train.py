"""A recipe from its base model to a scored checkpoint: what the benchmark does before and after training.

The trainer itself is in `trainers`; it and the benchmark meet here at a checkpoint folder, and share nothing else.
Training that is to be scored runs in a process of its own, so that its memory is back before the first answer.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bfpo_bench.config import RunSpec
from bfpo_bench.console import say
from bfpo_bench.errors import ConfigError, EngineError, StoreError
from bfpo_bench.harness.process import ProcessGroup
from bfpo_bench.leaderboard.inert import without_paths
from bfpo_bench.registry import load_registry, resolve_tasks
from bfpo_bench.run import describe, make_plan, run
from bfpo_bench.sources import bfpo_home, hash_folder, is_folder, model_folder, resolve_model
from bfpo_bench.store import MANIFEST, SCORES, read_json
from bfpo_bench.trainers import names
from bfpo_bench.trainers.names import Mode
from bfpo_bench.trainers.recipe import Base, Recipe, find_recipe, load_recipe
from bfpo_bench.types import Sample, TaskSpec

# The suites whose prompts are always looked for in training data: PKU-SafeRLHF's own test prompts are one of `paper`.
CHECKED_SUITES = ("mini", "paper")
CHECKED_FIRST = "bfpo_beaver"
# What a launcher (torchrun, accelerate) tells its processes: after training there is one process, and no group.
_LAUNCHER = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"}
)
_LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "GROUP_WORLD_", "ROLE_", "PARALLELISM_CONFIG_")
_PATIENCE_S = 30.0
# A line in more of a task's prompts than this is the task's, and asks nothing.
_SHARED_BY = 10


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What `--then-run` is told: `run`'s own settings, and where runs and leaderboard go."""

    suite: str
    judge: tuple[str, ...] = ()
    engine: Literal["auto", "hf", "vllm", "openai"] = "auto"
    engine_args: tuple[str, ...] = ()
    limit: int | None = None
    data_dir: Path | None = None
    runs: Path = Path("runs")
    leaderboard: Path = Path("site")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Both runs' folders and their scores.json."""

    base: Path
    checkpoint: Path
    base_scores: dict[str, Any]
    scores: dict[str, Any]

    @property
    def complete(self) -> bool:
        return all(scores["status"] == "complete" for scores in (self.base_scores, self.scores))


# -- launchers ---------------------------------------------------------------------------------------------------------


def is_first_process() -> bool:
    """Whether this process is the one that talks and writes: the only one, or a launcher's first."""
    return os.environ.get("RANK", "0") == "0"


def n_processes() -> int:
    """How many processes a launcher started; 1 without one."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


@contextmanager
def without_launcher() -> Iterator[None]:
    """The environment of an ordinary process: an engine below us must not look for a group that is gone."""
    mine = {name: value for name, value in os.environ.items() if _is_launchers(name)}
    for name in mine:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(mine)


def _is_launchers(name: str) -> bool:
    return name in _LAUNCHER or name.startswith(_LAUNCHER_PREFIXES)


# -- before training ---------------------------------------------------------------------------------------------------


def base_model(recipe: Recipe, *, weights: bool = True, say: Callable[[str], None] = say) -> Base:
    """The recipe's model as a folder on this machine, pinned; the embedded default and a hub's model are fetched.

    Without `weights` a hub model comes without them: enough to count tokens. Raises EngineError or ConfigError.
    """
    name = model_name(recipe)
    if name.startswith(("openai:", "policy:")):
        raise ConfigError(f"model {name} has no weights here to train. Name a folder, a hub id or smollm2-135m.")
    model = resolve_model(name, engine="hf", trust_remote_code=recipe.trust_remote_code, say=say)
    folder = model_folder(model, weights=weights)
    shown = folder.name if is_folder(name) else name
    return Base(name=shown, path=folder, identity=model.identity)


def model_name(recipe: Recipe) -> str:
    """As `run --model` takes it."""
    return recipe.model if recipe.revision is None else f"{recipe.model}@{recipe.revision}"


def benchmark_prompts(
    suites: Sequence[str] = (), *, data_dir: Path | None = None
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """What the benchmark asks, by task, and why a task's prompts are not here; never asks the network.

    Always those of CHECKED_SUITES, and of `suites`; CHECKED_FIRST comes first.
    """
    registry = load_registry()
    specs = {task.name: task for suite in (*CHECKED_SUITES, *suites) for task in resolve_tasks(registry, suite=suite)}
    ordered = sorted(specs.values(), key=lambda task: (task.name != CHECKED_FIRST, task.name))
    with _no_network(data_dir):
        samples, unchecked = _samples_here(ordered, data_dir)
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.task, []).append(sample)
    prompts = {task.name: prompts_of(found[task.name]) for task in ordered if task.name in found}
    return prompts, {name: _why_not_here(reason, specs[name]) for name, reason in unchecked.items()}


def _why_not_here(reason: str, task: TaskSpec) -> str:
    """Without this machine's paths, for a manifest that others read, and in fewer words than the libraries'."""
    if "OfflineModeIsEnabled" in reason:
        return f"{task.source} is not on this machine"
    return f"{task.source} is not in --data-dir" if "is not in --data-dir" in reason else without_paths(reason)


def _samples_here(specs: Sequence[TaskSpec], data_dir: Path | None) -> tuple[list[Sample], dict[str, str]]:
    from bfpo_bench.harness.prompts import load_samples

    # Without a mirror, nltk would be asked to fetch what a task's checks need; its prompts can wait for a mirror.
    without_nltk = [task for task in specs if not task.nltk]
    samples, missing = load_samples(specs if data_dir is not None else without_nltk, data_dir=data_dir)
    if data_dir is not None and missing:
        # Training may have left in the hub's cache what the mirror lacks.
        more, still = load_samples([task for task in without_nltk if task.name in missing])
        found = {sample.task for sample in more}
        return [*samples, *more], {name: why for name, why in missing.items() if name in still or name not in found}
    return samples, {**missing, **{task.name: "needs nltk's data" for task in specs if task.nltk and data_dir is None}}


@contextmanager
def _no_network(data_dir: Path | None) -> Iterator[None]:
    """Data sets of the hub from this machine's cache or not at all."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def prompts_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """What is asked in one task, each text once, without the lines that many of its samples share (few-shot examples).

    A conversation's sample is its last question; a choice task without a prompt is its choices, in one text.
    """
    texts = [_asked(sample).strip() for sample in samples]
    counts = Counter(line for text in texts for line in set(text.splitlines()))
    found = []
    for text in texts:
        own = [line for line in text.splitlines() if counts[line] <= _SHARED_BY]
        found.append("\n".join(own).strip() or text)
    return tuple(dict.fromkeys(text for text in found if text))


def _asked(sample: Sample) -> str:
    questions = [message.content for message in sample.messages if message.role == "user"]
    if questions:
        return questions[-1]
    return sample.prompt or "\n".join(dict.fromkeys(context + continuation for context, continuation in sample.choices))


# -- training ----------------------------------------------------------------------------------------------------------


def train_here(
    recipe: Recipe,
    *,
    mode: Mode = "auto",
    dry_run: bool = False,
    suites: Sequence[str] = (),
    data_dir: Path | None = None,
) -> Path | None:
    """Train in this process, which may be one of a launcher's; the checkpoint's folder, None for a dry run."""
    talk = say if is_first_process() else _say_nothing
    base = base_model(recipe, weights=not dry_run, say=talk)
    prompts, unchecked = benchmark_prompts(suites, data_dir=data_dir)
    from bfpo_bench.trainers.training import train

    folder = train(
        recipe,
        base=base,
        prompts=prompts,
        unchecked=unchecked,
        mode=mode,
        dry_run=dry_run,
        say=talk,
        cache=bfpo_home() / "reference",
    )
    if folder is not None and is_first_process():
        from bfpo_bench.trainers.card import write_card

        write_card(folder)
    return folder


def _say_nothing(line: str) -> None:
    pass


def in_a_process(arguments: Sequence[str], *, launcher: Sequence[str] = (sys.executable,)) -> int:
    """The exit code of `python -m bfpo_bench.trainers ARGUMENTS`, which talks on our terminal and ends with us.

    `launcher` stands for `python`. An interrupt is passed on, and the process has half a minute to end. Raises
    EngineError where a signal killed it.
    """
    with ProcessGroup() as group:
        try:
            process = group.start([*launcher, "-m", "bfpo_bench.trainers", *arguments])
        except OSError as error:
            raise ConfigError(f"Cannot start {launcher[0]!r}: {error.strerror}.") from error
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                say("It does not end: killed.")
            raise
    if code < 0:
        name = signal.Signals(-code).name
        raise EngineError(f"The process of the training was killed by {name}; the same command resumes it.")
    return code


def train_arguments(
    recipe: Path,
    overrides: Sequence[str],
    *,
    mode: Mode = "auto",
    check: Sequence[str] = (),
    data_dir: Path | None = None,
) -> list[str]:
    """The arguments of `train` for another process, which trains and does not score."""
    command = [str(recipe), *overrides, *([] if mode == "auto" else [f"--{mode}"])]
    for suite in check:
        command += ["--check", suite]
    return command + ([] if data_dir is None else ["--data-dir", str(data_dir)])


def first_stage(recipe: Recipe) -> Recipe | None:
    """The recipe that this one comes after, where its checkpoint is not there yet; None where nothing is to be done."""
    if recipe.after is None:
        return None
    first = load_recipe(find_recipe(recipe.after))
    manifest = first.out / names.MANIFEST
    return None if manifest.is_file() and read_json(manifest).get("status") == "complete" else first


def train_first(recipe: Recipe, scoring: Scoring | None, *, data_dir: Path | None) -> int:
    """Train (and score) the first stage in a process of its own, unless it is there; the exit code."""
    first = first_stage(recipe)
    if first is None or recipe.after is None:
        return 0
    if n_processes() > 1:
        raise ConfigError(
            f"This recipe comes after {recipe.after}, which is not trained yet: train {recipe.after} first."
        )
    say(f"first stage: {recipe.after} -> {first.out}")
    arguments = train_arguments(find_recipe(recipe.after), (), data_dir=data_dir)
    if scoring is None:
        return in_a_process(arguments)
    check_scoring(first, scoring)
    return in_a_process([*arguments, *scoring_arguments(scoring)])


# -- scoring -----------------------------------------------------------------------------------------------------------


def scoring_arguments(scoring: Scoring) -> list[str]:
    """`--then-run` and what goes with it, for another process; a mirror is `train_arguments`'."""
    command = ["--then-run", scoring.suite, "--engine", scoring.engine]
    for judge in scoring.judge:
        command += ["--judge", judge]
    if scoring.engine_args:
        command += ["--engine-args", *scoring.engine_args]
    if scoring.limit is not None:
        command += ["--limit", str(scoring.limit)]
    return [*command, "--runs", str(scoring.runs), "--leaderboard", str(scoring.leaderboard)]


def base_run(recipe: Recipe, scoring: Scoring) -> RunSpec:
    """The run of the model that training starts from: the one that `run --model` would make in `--runs`.

    A first stage has its own already, as the checkpoint that it made.
    """
    if recipe.after is not None:
        return checkpoint_run(load_recipe(find_recipe(recipe.after)), scoring)
    return _run_of(model_name(recipe), recipe, scoring)


def checkpoint_run(recipe: Recipe, scoring: Scoring) -> RunSpec:
    """The run of the checkpoint, by its folder's name."""
    spec = _run_of(str(recipe.out), recipe, scoring)
    return replace(spec, out=scoring.runs / replace(spec, model=recipe.out.resolve().name, out=None).folder.name)


def _run_of(model: str, recipe: Recipe, scoring: Scoring) -> RunSpec:
    spec = RunSpec(
        model=model,
        suite=scoring.suite,
        judge=scoring.judge,
        engine=scoring.engine,
        engine_args=scoring.engine_args,
        limit=scoring.limit,
        data_dir=scoring.data_dir,
        trust_remote_code=recipe.trust_remote_code,
    )
    return replace(spec, out=scoring.runs / spec.folder.name)


def check_scoring(recipe: Recipe, scoring: Scoring) -> list[str]:
    """Whatever would stop the scoring of a trained model, told before training; returns the plan as `run --dry-run`."""
    spec = base_run(recipe, scoring)
    if spec.folder == checkpoint_run(recipe, scoring).folder:
        raise ConfigError(f"out {recipe.out} is named as the base's run: {spec.folder}. Give another out=DIR.")
    return describe(make_plan(spec))


def is_base_scored(recipe: Recipe, scoring: Scoring) -> bool:
    """Whether the base has scores already, so that training is the next to begin."""
    return (base_run(recipe, scoring).folder / SCORES).exists()


def score_base(recipe: Recipe, scoring: Scoring) -> dict[str, Any]:
    """The base's scores, from its run in `--runs`: begun, resumed, or found complete."""
    spec = base_run(recipe, scoring)
    say(f"The base {spec.model} on {scoring.suite} -> {spec.folder}")
    try:
        return run(spec)
    except StoreError as error:
        # `run`'s remedy, --fresh, would train anew here.
        told = str(error).partition(" Use --fresh")[0]
        raise StoreError(f"The base's run: {told} Move it away, or name another folder with --runs.") from error


def score_checkpoint(recipe: Recipe, scoring: Scoring, *, base_scores: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's scores, which its model card tells beside the base's from now on.

    A run of earlier weights under its name is set aside, which keeps it.
    """
    from bfpo_bench.trainers.card import add_scores

    spec = checkpoint_run(recipe, scoring)
    say(f"The checkpoint {recipe.out} on {scoring.suite} -> {spec.folder}")
    mode: Mode = "auto"
    if (spec.folder / MANIFEST).exists():
        known = read_json(spec.folder / MANIFEST)["identity"]["model"]["identity"]
        if known != f"sha256:{hash_folder(recipe.out)}":
            say(f"{spec.folder} holds a run of other weights: it is set aside")
            mode = "fresh"
    scores = run(spec, mode=mode)
    add_scores(recipe.out, scores=scores, base_scores=base_scores)
    return scores


def train_and_score(
    recipe: Recipe, scoring: Scoring, *, check: Callable[[], int], train: Callable[[], int]
) -> tuple[int, Scored | None]:
    """Score the base, call `train`, score the checkpoint: the exit code of `train` and, where that is 0, the scores.

    `check` looks at recipe and data without weights: its exit code stops everything before a base is scored for hours.
    Under a launcher the first process scores, the base after training too: the others must not wait for it.
    """
    if not is_first_process():
        return train(), None
    check_scoring(recipe, scoring)
    base_scores = None
    if n_processes() == 1:
        if not is_base_scored(recipe, scoring) and (code := check()) != 0:
            return code, None
        base_scores = score_base(recipe, scoring)
    if (code := train()) != 0:
        return code, None
    with without_launcher():
        base_scores = base_scores or score_base(recipe, scoring)
        scores = score_checkpoint(recipe, scoring, base_scores=base_scores)
    folders = base_run(recipe, scoring).folder, checkpoint_run(recipe, scoring).folder
    return 0, Scored(base=folders[0], checkpoint=folders[1], base_scores=base_scores, scores=scores)


def write_leaderboard(scoring: Scoring) -> Path:
    """The page of all runs in `--runs`."""
    from bfpo_bench.leaderboard.render import write_site
    from bfpo_bench.leaderboard.rows import collect

    return write_site(collect([scoring.runs], skipped=say), out=scoring.leaderboard)

"""The stages in order: plan, generate, judge, score, audit; each can run again alone on the same folder."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bfpo_bench import __version__
from bfpo_bench.audit import Audit
from bfpo_bench.cluster import Cluster, joined, version_of
from bfpo_bench.config import RunSpec
from bfpo_bench.console import progress, say
from bfpo_bench.conversation import waves
from bfpo_bench.cost import summary, table
from bfpo_bench.endpoint import check_endpoint, redact
from bfpo_bench.errors import BenchError, ConfigError, EngineError, JudgeError, StoreError, TaskError
from bfpo_bench.harness.engine import api_endpoint, parse_engine_args
from bfpo_bench.judges import Setting, check_judge, parse_judge
from bfpo_bench.judges.rubrics import COMPARED_KEY
from bfpo_bench.judging import (
    JUDGE_LOG,
    check_members,
    check_panel,
    chosen_judges,
    given_panel,
    idle_notes,
    judge,
    length_reference_of,
    manifest_tasks,
    scopes_of,
)
from bfpo_bench.outcomes import outcomes_file, task_outcomes
from bfpo_bench.panel import PANEL, parse_rule
from bfpo_bench.planning import Planning
from bfpo_bench.registry import load_registry, resolve_tasks
from bfpo_bench.scoring import (
    FIXED_JUDGE,
    HARM_RUBRICS,
    REFUSALS_ONLY,
    Scopes,
    TaskAnswers,
    judges_of,
    score_task,
    score_tasks,
)
from bfpo_bench.sources import EMBEDDED, choose_engine, free_bytes, is_folder, resolve_model, trained_from
from bfpo_bench.store import LABELS, SCHEMA, RunStore, read_json, to_json, write_atomically
from bfpo_bench.thinking import settled
from bfpo_bench.turns import as_asked
from bfpo_bench.types import (
    LM_EVAL_JUDGE,
    Engine,
    JudgeSpec,
    ModelSpec,
    Output,
    Sample,
    TaskSpec,
)
from bfpo_bench.workers import WORKERS, alike, answers, asking_workers, engine_pool, other_arithmetic

# The versions that a run's answers depend on, beside its own engine's.
_PACKAGES = ("lm_eval", "torch", "transformers", "datasets")
_LEAST_FREE_BYTES = 200 * 2**20
Mode = Literal["auto", "resume", "fresh"]
# Human labels of the run's own samples, by sample id.


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is about to do, before any weight is loaded."""

    spec: RunSpec
    tasks: tuple[TaskSpec, ...]
    judges: tuple[JudgeSpec, ...]

    @property
    def judge_names(self) -> tuple[str, ...]:
        return tuple(judge.name for judge in self.judges)

    @property
    def scopes(self) -> Scopes:
        return {judge.name: judge.scope for judge in self.judges}

    @property
    def setting(self) -> Setting:
        return judge_setting(self.spec)


def make_plan(spec: RunSpec) -> Plan:
    """Resolve and check all that can be checked without data or weights."""
    registry = load_registry(spec.include_path, profile=spec.profile)
    plan = Plan(
        spec=spec,
        tasks=tuple(resolve_tasks(registry, suite=spec.suite, tasks=spec.tasks)),
        judges=chosen_judges(spec.judge, judge_setting(spec)),
    )
    if spec.panel is not None:
        check_panel(spec.panel, plan.judge_names)
        check_members(spec.panel, plan.judges, plan.tasks)
    for task in plan.tasks:
        judges = judges_of(task, plan.judge_names, plan.scopes)
        for name in set(judges) - set(plan.judge_names):
            _check_own_judge(task, name)
        _check_rubric(task, judges)
        _check_samples(task, spec.samples)
    choose_engine(spec.engine if _has_weights(spec) else "hf")
    parse_engine_args(spec.engine_args)
    if spec.data_dir is not None and not spec.data_dir.is_dir():
        raise TaskError(f"--data-dir {spec.data_dir} does not exist.")
    if (free := free_bytes(spec.folder)) < _LEAST_FREE_BYTES:
        raise StoreError(f"Only {free >> 20} MiB free for {spec.folder}; at least 200 MiB are needed. Free some space.")
    return plan


def judge_setting(spec: RunSpec) -> Setting:
    """From where the run's judges are asked."""
    return Setting(
        seed=spec.seed,
        mirror=spec.data_dir,
        log=spec.folder / JUDGE_LOG,
        engine=spec.judge_engine,
        engine_args=parse_engine_args(spec.judge_engine_args, flag="--judge-engine-args"),
    )


def model_of(spec: RunSpec) -> ModelSpec:
    """The model with its weights pinned; the embedded one is fetched on first use."""
    model = resolve_model(
        spec.model,
        engine=spec.engine,
        engine_args=parse_engine_args(spec.engine_args),
        base_url=spec.base_url,
        trust_remote_code=spec.trust_remote_code,
        chat_template=spec.chat_template,
        system_prompt=spec.system_prompt,
        adapter=spec.adapter,
        seed=spec.seed,
        say=say,
    )
    if model.engine == "openai":
        check_endpoint(api_endpoint(model))
    if model.engine == "policy" and spec.thinking_tokens is not None:
        raise ConfigError(f"{spec.model} is a fixed rule, which does not think. Leave out --thinking-tokens.")
    return model


def planning(plan: Plan, *, tasks: Sequence[TaskSpec] | None = None, some: bool = True) -> Planning:
    """The samples of the plan's tasks, or of these among them, to be made."""
    return Planning(plan.spec, plan.tasks if tasks is None else tasks, judges=plan.judges, some=some)


def _has_weights(spec: RunSpec) -> bool:
    """Whether the model under test is computed here: a policy and an API cost no GPU-minutes of ours."""
    return not spec.model.startswith(("policy:", "openai:"))


def describe(plan: Plan) -> list[str]:
    """`--dry-run`: what each task and the whole will cost; every sample is made, none is kept."""
    samples = planning(plan)
    for _ in samples:
        pass
    return [
        *table(plan.tasks, samples.costs, plan.judges, samples.missing, weights=_has_weights(plan.spec)),
        *_sampling(plan),
        *idle_notes(plan.judges, plan.tasks),
    ]


def _sampling(plan: Plan) -> list[str]:
    """A line on how answers are drawn where the run sets it, not the tasks."""
    told, choices = [], sum(task.kind == "choice" for task in plan.tasks)
    if plan.spec.samples > 1:
        told.append(f"{plan.spec.samples} answers a prompt, each drawn with a seed of its own")
    if plan.spec.temperature is not None:
        told.append(f"temperature {plan.spec.temperature:g} for all tasks that generate")
    if told and choices:
        told.append(f"choice tasks ({choices} here) have nothing to draw and are asked once")
    return ["sampling: " + "; ".join(told)] if told else []


def run(spec: RunSpec, *, mode: Mode = "auto") -> dict[str, Any]:
    """Generate, judge, score and audit; returns the content of scores.json."""
    plan = make_plan(spec)
    model = model_of(spec)
    with joined(spec.workers, spec.ray_address) as cluster, _begun(plan, model, mode=mode) as store:
        with _discarded_without_answers([store]):
            if cluster is None:
                generate(store, model)
            else:
                generate_on_workers(cluster, [store], [model], spec)
        return _judged(store, plan, cluster)


def run_adapters(specs: Sequence[RunSpec], *, mode: Mode = "auto") -> list[dict[str, Any]]:
    """Runs that differ in their adapter only, on workers that hold the base model once; what `run` returns, of each."""
    if specs[0].workers is None:
        raise ConfigError(f"{len(specs)} adapters share the engines of workers. Give --workers N, or a run each.")
    if (engine := choose_engine(specs[0].engine)) != "vllm":
        raise ConfigError(
            f"{len(specs)} adapters: engine {engine} holds one at a time. Give --engine vllm, or a run each."
        )
    plans = [make_plan(spec) for spec in specs]
    models = [model_of(spec) for spec in specs]
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster.connect(specs[0].ray_address))
        stores: list[RunStore] = []
        with _discarded_without_answers(stores):
            for plan, model in zip(plans, models, strict=True):
                stores.append(stack.enter_context(_begun(plan, model, mode=mode)))
            generate_on_workers(cluster, stores, models, specs[0])
        return [_judged(store, plan, cluster) for store, plan in zip(stores, plans, strict=True)]


@contextmanager
def _begun(plan: Plan, model: ModelSpec, *, mode: Mode) -> Iterator[RunStore]:
    """The run's store with all its samples, begun or resumed."""
    samples = planning(plan)
    with RunStore.create_or_resume(plan.spec.folder, _manifest(plan, model), mode=mode, samples=samples) as store:
        # Of a driver that was killed.
        (plan.spec.folder / WORKERS).unlink(missing_ok=True)
        if samples.done:
            for line in (summary(samples.costs, weights=_has_weights(plan.spec)), *_sampling(plan)):
                say(line)
        else:
            _plan_what_was_missing(store, plan)
        yield store


@contextmanager
def _discarded_without_answers(stores: Sequence[RunStore]) -> Iterator[None]:
    """A model that cannot be loaded must not leave runs behind that refuse their successors."""
    try:
        yield
    except BenchError:
        for store in stores:
            if not store.n_answered():
                store.discard()
        raise


def _judged(store: RunStore, plan: Plan, cluster: Cluster | None) -> dict[str, Any]:
    spec = plan.spec
    asking = None if cluster is None else asking_workers(cluster, n_workers=int(spec.workers or 1), say=say)
    judge(store, plan.judges, setting=plan.setting, panel=spec.panel, asking=asking)
    return score(store)


def _plan_what_was_missing(store: RunStore, plan: Plan) -> None:
    """Data that a run lacked when it began may be there now; without --skip-missing it has to be."""
    missing = store.manifest.get("missing", {})
    if missing:
        samples = planning(plan, tasks=[task for task in plan.tasks if task.name in missing], some=False)
        # Samples first, the other way round than at the start: a crash in between must leave the task marked missing.
        store.add_samples(samples)
        store.amend_manifest(missing=samples.missing, data={**store.manifest.get("data", {}), **samples.data})


def generate(store: RunStore, model: ModelSpec) -> None:
    """Answer what has no answer yet; one engine load, every batch committed before the next."""
    samples = store.samples()
    answered = store.answered()
    if all(sample.id in answered for sample in samples):
        return
    say(f"Loading {model.name} with engine {model.engine}")
    with _engine(model, store.folder) as engine:
        _note_engine(store, model, engine.info)
        with progress("Generating", total=len(samples), done=len(answered)) as advance:
            for wave in waves(samples):
                for outputs in _answers(store, engine, wave, answered):
                    store.add_outputs(settled(output, bare=model.engine == "openai") for output in outputs)
                    advance(sum(output.sample_id not in answered for output in outputs))


def generate_on_workers(
    cluster: Cluster, stores: Sequence[RunStore], models: Sequence[ModelSpec], spec: RunSpec
) -> None:
    """Answer what has no answer yet on the cluster's workers; nothing but chunks in flight is held in memory.

    Several runs are those of several adapters of one base, whose weights each worker holds once.
    """
    waiting = [(store, model) for store, model in zip(stores, models, strict=True) if store.n_unanswered()]
    if not waiting:
        return
    folders, (_, model) = [store.folder for store, _ in waiting], waiting[0]
    adapters = [str(model.adapter) for _, model in waiting] if len(stores) > 1 else []
    if spec.engine == "auto" and model.engine == "hf" and cluster.capacity().gpus:
        say("Note: engine hf was chosen for what this machine has; for the cluster's GPUs there is --engine vllm")
    base = replace(model, name=spec.model, adapter=None, adapter_identity=None) if adapters else model
    say(f"Loading {base.name} with engine {model.engine} on {spec.workers} workers")
    # A run that has answers goes on with workers like those that gave them, whichever is the first to be ready.
    answered = (store.manifest.get("engine", {}) for store, _ in waiting if store.n_answered())
    begun: Mapping[str, Any] = next(answered, {})
    with engine_pool(
        cluster,
        base,
        n_workers=int(spec.workers or 1),
        gpus=spec.gpus_per_worker,
        folders=folders,
        packages=_packages(model),
        adapters=adapters,
        n_samples=max(store.n_unanswered() for store, _ in waiting),
        accept=partial(alike, dict(begun)),
        say=say,
    ) as pool:
        for store, its in waiting:
            _note_engine(store, its, pool.info)
        for store, its in waiting:
            with progress(f"Generating ({its.name})", total=store.n_samples(), done=store.n_answered()) as advance:
                for outputs in answers(store, pool, adapter=its.adapter if adapters else None):
                    store.add_outputs(settled(output, bare=False) for output in outputs)
                    advance(len(outputs))


def _note_engine(store: RunStore, model: ModelSpec, engine: Mapping[str, Any]) -> None:
    """What the answers are computed by, in the manifest; refused where a run was begun by something else."""
    info = dict(engine)
    if warning := info.pop("warning", None):
        say(f"Warning: {warning}")
    if store.n_answered():
        _refuse_other_engine(store.folder, store.manifest.get("engine", {}), info)
    store.amend_manifest(engine=info)
    if not info.get("system_role", True) and store.has_system_messages():
        say(f"Warning: the chat template of {model.name} has no system role: descriptions of tasks are left out.")


def _answers(
    store: RunStore, engine: Engine, wave: Sequence[Sample], answered: Collection[str]
) -> Iterator[list[Output]]:
    """The outputs of samples that wait for no other one among them; what their earlier turns lack is an output too."""
    if all(sample.previous is None for sample in wave):
        yield from engine.answer(wave, answered=answered)
        return
    filled, broken_off = as_asked(store, wave)
    yield [output for output in broken_off if output.sample_id not in answered]
    yield from engine.answer(list(filled.values()), answered=answered)


def _refuse_other_engine(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """`dtype=auto` on another machine is another arithmetic: half a run of each would be neither."""
    if lines := other_arithmetic(old, new):
        raise StoreError(
            f"{folder} was begun otherwise ({'; '.join(lines)}). Use --fresh to start over, or another --out."
        )


def score(store: RunStore) -> dict[str, Any]:
    """Scores of what is there, audited, written to scores.json; no more than one task's answers are held at once."""
    manifest = store.manifest
    tasks = {task.name: task for task in manifest_tasks(manifest)}
    chosen, scopes = manifest.get("chosen_judges", []), scopes_of(manifest)
    missing = manifest.get("missing", {})
    versions = dict(manifest.get("judges", {}))
    members, notes = _seat_panel(store, manifest, list(tasks.values()), scopes)
    audited = Audit(
        list(tasks.values()),
        judges=chosen,
        panel=members,
        scopes=scopes,
        missing=missing,
        repeats=manifest["identity"].get("samples", 1),
    )
    options = {
        "judges": chosen,
        "scopes": scopes,
        "lengths": length_reference_of(store, tasks.values()),
        "calibrations": manifest.get("calibrations", {}),
        "labels": _labels(store.folder),
    }
    scored = {}
    with outcomes_file(store.folder) as add:
        for name in sorted({*tasks, *store.tasks()}):
            # A comparison is with a text of the row's own; nothing else here turns on texts of the samples.
            brief = name not in tasks or tasks[name].rubric != "pairwise"
            answers = TaskAnswers(tasks.get(name), store.answers(name, {**versions, PANEL: None}, brief=brief))
            audited.add(name, answers)
            if name in tasks and name not in missing:
                scored[name] = score_task(tasks[name], answers, **options)
                add(name, task_outcomes(answers, scored[name]["judge"]))
            # Before the next is read: two tasks of a million would be twice the memory of one.
            del answers
    result = score_tasks(list(tasks.values()), scored, missing=missing)
    findings = audited.findings(stray_outputs=store.n_stray_outputs())
    scores = {
        "schema": SCHEMA,
        "model": {key: manifest["identity"]["model"][key] for key in ("name", "identity")},
        "suite": manifest["identity"]["suite"],
        "profile": manifest["identity"].get("profile", "default"),
        "limit": manifest["identity"]["limit"],
        "samples": manifest["identity"].get("samples", 1),
        "temperature": manifest["identity"].get("temperature"),
        "judge": _primary_judge(list(tasks.values()), result["tasks"], chosen, members, scopes),
        "panel": manifest.get("panel"),
        **result,
        "audit": findings,
        "status": "partial" if findings else result["status"],
        "reasons": [*result["reasons"], *notes, *(f"audit: {finding}" for finding in findings)],
    }
    store.write_scores(scores)
    return scores


def _seat_panel(
    store: RunStore, manifest: Mapping[str, Any], tasks: Sequence[TaskSpec], scopes: Scopes
) -> tuple[Sequence[str], list[str]]:
    """Have the run's panel judge anew: its judges, and on which tasks too few of them can tell what is asked."""
    told = manifest.get("panel")
    if told is None:
        if any(judge == PANEL for judge, _ in store.judges()):
            store.replace_verdicts(PANEL, ())
        return (), []
    rule, members = parse_rule(told["rule"]), told["judges"]
    notes = []
    for task in tasks:
        able = [name for name in judges_of(task, members, scopes) if name in members]
        if 0 < len(able) < rule.fewest_judges:
            notes.append(f"{task.name}: no panel: of its judges only {', '.join(able)} can tell what is asked")
    store.replace_verdicts(PANEL, given_panel(store, tasks, rule, judges=members, scopes=scopes))
    return members, notes


def use_calibration(store: RunStore, calibration: Mapping[str, Any]) -> None:
    """Score this run corrected by a calibration from now on; a StoreError where it is of another judge or version."""
    name, version = calibration["judge"], calibration["judge_version"]
    mine = store.manifest.get("judges", {})
    if mine.get(name) != version:
        known = ", ".join(f"{judge} {its}" for judge, its in sorted(mine.items())) or "none"
        raise StoreError(
            f"The calibration is of judge {name!r} in version {version}, and the run's judges are {known}. "
            "Calibrate the judge that judged the run, or judge the run again with it."
        )
    store.amend_manifest(calibrations={**store.manifest.get("calibrations", {}), name: dict(calibration)})


def use_labels(store: RunStore, labels: Mapping[str, str]) -> None:
    """Score this run corrected by human labels of its samples from now on."""
    write_atomically(store.folder / LABELS, to_json(dict(labels)))


def forget_corrections(store: RunStore) -> None:
    """Score this run as its judges see it from now on, without the calibrations and labels that were kept with it."""
    store.amend_manifest(calibrations={})
    (store.folder / LABELS).unlink(missing_ok=True)


def _labels(folder: Path) -> dict[str, str]:
    path = folder / LABELS
    if not path.is_file():
        return {}
    labels = read_json(path)
    if not isinstance(labels, dict) or not all(isinstance(label, str) for label in labels.values()):
        raise StoreError(f"{path} is no table of labels. Give --labels again, or --uncorrected.")
    return labels


def _primary_judge(
    tasks: Sequence[TaskSpec],
    scored: Mapping[str, Mapping[str, Any]],
    chosen: Sequence[str],
    members: Sequence[str],
    scopes: Scopes,
) -> str | None:
    """The judge that the judged tasks' scores stand on, for a title; several are joined, a panel with its members."""
    names = set()
    for task in tasks:
        judges = judges_of(task, chosen, scopes)
        if judges and scored.get(task.name, {}).get("judge") == PANEL:
            names.add(f"{PANEL} ({', '.join(judges_of(task, members, scopes))})")
        elif judges:
            names.add(judges[0])
    return ", ".join(sorted(names - {FIXED_JUDGE, LM_EVAL_JUDGE})) or None


def _manifest(plan: Plan, model: ModelSpec) -> dict[str, Any]:
    spec = plan.spec
    described = asdict(model)
    # Where the weights lie is this machine's affair; what they are is in `identity`.
    if model.engine != "openai" and not model.identity.startswith("hub:"):
        described.pop("path")
    if is_folder(spec.model) and spec.model not in EMBEDDED:
        described["name"] = Path(spec.model).expanduser().resolve().name + model.name.removeprefix(spec.model)
    if spec.adapter is not None:
        described["adapter"] = Path(str(model.adapter)).name if is_folder(spec.adapter) else spec.adapter
    return {
        "schema": SCHEMA,
        "identity": {
            "bfpo_bench": __version__,
            "packages": {name: found for name in _packages(model) if (found := version_of(name)) is not None},
            "model": described,
            "suite": spec.suite,
            "profile": spec.profile,
            "limit": spec.limit,
            "max_new_tokens": spec.max_new_tokens,
            "thinking_tokens": spec.thinking_tokens,
            # Left out where it is 1: runs that were begun before there were several go on.
            **({"samples": spec.samples} if spec.samples > 1 else {}),
            "temperature": spec.temperature,
            "seed": spec.seed,
            "tasks": {t.name: {k: v for k, v in asdict(t).items() if k != "yaml_path"} for t in plan.tasks},
        },
        "include_path": [str(path.resolve()) for path in spec.include_path],
        "environment": _environment(),
        # What is under test is its weights, however they came to be: not a part of the identity.
        **_trained_from(spec),
    }


def _packages(model: ModelSpec) -> tuple[str, ...]:
    """Those whose versions this model's answers depend on."""
    # On vllm an adapter is vllm's own affair.
    return (*_PACKAGES, model.engine, *(["peft"] if model.adapter is not None and model.engine == "hf" else []))


def _trained_from(spec: RunSpec) -> dict[str, Any]:
    """The base of a checkpoint or adapter that our trainer made; a damaged account of it costs no run."""
    folders = [name for name in (spec.adapter, spec.model) if name and is_folder(name) and name not in EMBEDDED]
    try:
        found = (trained_from(Path(name).expanduser()) for name in folders)
        told = next((base for base in found if base is not None), None)
    except EngineError as error:
        say(f"Warning: {error} The run does not say what its model was trained from.")
        told = None
    return {} if told is None else {"trained_from": told}


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "git": _git_revision(),
        "command": [redact(text) for text in (Path(sys.argv[0]).name, *sys.argv[1:])],
    }


def _git_revision() -> str | None:
    """Of the checkout that this package runs from; lm-eval reports the current directory's, which is another's."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _check_own_judge(task: TaskSpec, name: str) -> None:
    """A judge that a task names in its YAML: as wrong as one on the command line can be, and as early to be told."""
    if name == LM_EVAL_JUDGE:
        return
    if name != FIXED_JUDGE:
        check_judge(parse_judge(name))
    elif "checks" not in task.keep:
        raise TaskError(f"Task {task.name!r}: judge 'checker' needs the rows' checks; add `keep: [checks]`.")


def _check_samples(task: TaskSpec, samples: int) -> None:
    """A win rate is of one answer an instruction: the standard error and the length control of AlpacaEval 2.0 are."""
    if samples > 1 and task.rubric == "pairwise":
        raise ConfigError(
            f"--samples {samples}: task {task.name!r} compares one answer a prompt with the reference's. "
            f"Leave it out (--suite NAME-{task.name}), or run it alone without --samples."
        )


def _check_rubric(task: TaskSpec, judges: Sequence[str]) -> None:
    """What a judge would refuse once the answers are there."""
    if task.rubric == "pairwise" and COMPARED_KEY not in task.keep:
        raise TaskError(
            f"Task {task.name!r}: a pairwise judge needs the reference answer; add `keep: [{COMPARED_KEY}]`."
        )
    if task.rubric not in HARM_RUBRICS and REFUSALS_ONLY in judges:
        raise JudgeError(
            f"Task {task.name!r}: judge {REFUSALS_ONLY!r} sees refusals only, and the task asks for {task.rubric!r}. "
            "Choose a chat judge: --judge chat:MODEL"
        )


def _engine(model: ModelSpec, folder: Path) -> Any:
    if model.engine == "openai":
        from bfpo_bench.harness.openai import OpenAIEngine

        return OpenAIEngine(model)
    if model.engine == "policy":
        from bfpo_bench.harness.policy import PolicyEngine

        return PolicyEngine(model)
    from bfpo_bench.harness.process import EngineProcess

    return EngineProcess(model, log=folder / "engine.log")

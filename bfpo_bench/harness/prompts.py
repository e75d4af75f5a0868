"""An lm-eval task's documents as Samples, prompts exactly as lm-eval builds them; loads no model and no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from bfpo_bench.errors import TaskError, did_you_mean
from bfpo_bench.registry import profile_overrides
from bfpo_bench.types import LM_EVAL_JUDGE, NLTK_DATA, Message, Sample, TaskSpec, sample_id

# lm-eval's default.
_FEWSHOT_SEED = 1234


class HowAsked(TypedDict, total=False):
    """How tasks are read; what `stream_samples` says of it."""

    limit: int | None
    data_dir: Path | None
    profile: str
    chat_choices: bool
    max_new_tokens: int | None
    thinking_tokens: int
    temperature: float | None


def load_samples(specs: Sequence[TaskSpec], **how: Unpack[HowAsked]) -> tuple[list[Sample], dict[str, str]]:
    """All tasks' samples in order, and for each task that has no data the reason (one line)."""
    missing: dict[str, str] = {}
    return list(stream_samples(specs, missing=missing, **how)), missing


def stream_samples(
    specs: Sequence[TaskSpec],
    *,
    missing: dict[str, str],
    limit: int | None = None,
    data_dir: Path | None = None,
    profile: str = "default",
    chat_choices: bool = False,
    max_new_tokens: int | None = None,
    thinking_tokens: int = 0,
    temperature: float | None = None,
) -> Iterator[Sample]:
    """All tasks' samples in order, one after another; `missing` is told of each task without data the reason.

    `limit` takes the first documents of each task, as lm-eval does. With `data_dir`, a task's hub data set is read
    from `DATA_DIR/<owner>/<name>` and the network is not asked. `profile` is the one that the specs were read with.
    With `chat_choices`, choice tasks are also read as a chat model meets them behind its template. `max_new_tokens`
    caps what a task allows; `thinking_tokens` come on top, for what a model thinks before it answers. `temperature`
    stands in the place of the tasks' own, 0 for greedy decoding; whatever else they set (top_p) stays.
    """
    for spec in specs:
        if reason := _lacks_nltk_data(spec, data_dir):
            missing[spec.name] = reason
            continue
        config = task_config(spec, profile)
        if spec.kind == "generate":
            settings = config["generation_kwargs"]
            allowed = min(settings["max_gen_toks"], max_new_tokens or settings["max_gen_toks"])
            drawn = {} if temperature is None else {"do_sample": temperature > 0, "temperature": temperature}
            config["generation_kwargs"] = {**settings, **drawn, "max_gen_toks": allowed + thinking_tokens}
        try:
            task = _load_task(spec, config, data_dir)
        except _DataMissing as error:
            missing[spec.name] = str(error)
            continue
        _check_filter(spec, task)
        yield from _samples(spec, task, limit, chat_choices)
        # Before the next task's rows are loaded beside them.
        del task


class _DataMissing(Exception):
    pass


def use_nltk_data(data_dir: Path | None) -> None:
    """Let nltk look in a mirror's `nltk_data` too: lm-eval's IFEval would ask the network when it is imported."""
    if data_dir is not None and (folder := data_dir / NLTK_DATA).is_dir():
        import nltk

        if str(folder) not in nltk.data.path:
            nltk.data.path.insert(0, str(folder))


def _lacks_nltk_data(spec: TaskSpec, data_dir: Path | None) -> str | None:
    """Why the task's checks could not be made; with the network, nltk gets what is not here."""
    if not spec.nltk:
        return None
    import nltk

    use_nltk_data(data_dir)
    for resource in spec.nltk:
        name = resource.rpartition("/")[2]
        if data_dir is None and not _has_nltk_data(resource):
            with contextlib.suppress(OSError):
                nltk.download(name, quiet=True)
        if not _has_nltk_data(resource):
            folder = "DIR" if data_dir is None else data_dir / NLTK_DATA
            return f"nltk's {name} is not here; get it with: python -m nltk.downloader -d {folder} {name}"
    return None


def _has_nltk_data(resource: str) -> bool:
    import nltk

    try:
        nltk.data.find(resource)
    except (LookupError, OSError):
        return False
    return True


def task_config(spec: TaskSpec, profile: str) -> dict[str, Any]:
    """The task's configuration for lm-eval's ConfigurableTask, its functions resolved, the profile's keys over it."""
    from lm_eval.config.task import TaskConfig
    from lm_eval.tasks._yaml_loader import load_yaml

    from bfpo_bench.harness.included import whole_config

    try:
        config = whole_config(load_yaml(spec.yaml_path))
    except Exception as error:
        raise TaskError(f"Task {spec.name!r}: {_one_line(error)}") from error
    overrides = profile_overrides(f"Task {spec.name!r}", config["metadata"]["bfpo"], profile)
    overrides.pop("chat", None)
    config |= overrides
    known = {field.name for field in dataclasses.fields(TaskConfig)}
    for key in sorted(set(config) - known):
        raise TaskError(f"Task {spec.name!r} ({Path(spec.yaml_path).name}): {did_you_mean('key', key, known)}")
    config["metadata"] = {**config.get("metadata", {}), "config_source": spec.yaml_path}
    return config


def _load_task(spec: TaskSpec, config: dict[str, Any], data_dir: Path | None) -> Any:
    from lm_eval.api.task import ConfigurableTask

    with quiet():
        if "custom_dataset" not in config:
            rows = _rows(spec, config, data_dir)
            config = {**config, "custom_dataset": lambda **_: rows}
        if not config.get("num_fewshot"):
            # lm-eval 0.4.13 makes a list of all rows to draw examples from, even where it draws none.
            config = {**config, "fewshot_split": None, "fewshot_config": {"samples": []}}
        try:
            return ConfigurableTask(config=config)
        except TaskError:
            raise
        except IndexError as error:
            # lm-eval looks at the first document.
            raise _DataMissing(f"{spec.source}: the task's filter keeps none of its rows") from error
        except Exception as error:
            # Whatever Arrow or a task's code raises here, the task has no usable data.
            raise _DataMissing(f"{spec.source}: {_one_line(error)}") from error


def _rows(spec: TaskSpec, config: Mapping[str, Any], data_dir: Path | None) -> Any:
    """The task's data set with all its splits, checked for the split and the columns that the task reads."""
    path, options = str(config["dataset_path"]), dict(config.get("dataset_kwargs") or {})
    if data_dir is not None:
        mirror = data_dir / path
        if not mirror.is_dir():
            raise _DataMissing(f"{path} is not in --data-dir {data_dir}")
        # A mirror holds one revision: the one it was fetched at.
        path = str(mirror)
        options.pop("revision", None)
    try:
        rows = _load(path, config.get("dataset_name"), options, mirrored=data_dir is not None)
    except Exception as error:  # the hub, the file system and Arrow each have their own
        if isinstance(error, ConnectionError):
            _leave_the_hub_alone()
        raise _DataMissing(f"{config['dataset_path']}: {_one_line(error)}") from error
    split = config.get("test_split") or config.get("validation_split")
    if split not in rows:
        raise _DataMissing(f"{config['dataset_path']} has no split {split!r} here (splits: {', '.join(rows)})")
    for column in spec.columns:
        if column not in rows[split].column_names:
            raise TaskError(
                f"Task {spec.name!r}: {config['dataset_path']} has no column {column!r} "
                f"(columns: {', '.join(rows[split].column_names)}). It is another revision or a damaged copy."
            )
    return rows


def _leave_the_hub_alone() -> None:
    """It has not answered after all of its client's retries: the other tasks' sets are looked for in the cache only."""
    import datasets
    from huggingface_hub import constants

    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True


def _load(path: str, name: str | None, options: Mapping[str, Any], *, mirrored: bool) -> Any:
    import datasets

    if not mirrored:
        return datasets.load_dataset(path, name, **options)
    # datasets (5.2) knows a local folder whose card has `configs` by its last name and its card alone, neither by its
    # path nor by its files: from its cache, another mirror's rows would come, or those of an older copy.
    with tempfile.TemporaryDirectory(prefix="bfpo-rows-") as scratch:
        return datasets.load_dataset(path, name, cache_dir=scratch, keep_in_memory=True, **options)


def _check_filter(spec: TaskSpec, task: Any) -> None:
    """Before anything is generated: a corrected YAML is another task, and its answers would be lost."""
    wanted, names = task.config.metadata["bfpo"].get("filter"), [ensemble.name for ensemble in task._filters]
    if wanted is not None and wanted not in names:
        raise TaskError(f"Task {spec.name!r}: metadata.bfpo.filter is {wanted!r}; it has {', '.join(names)}.")


def _samples(spec: TaskSpec, task: Any, limit: int | None, chat_choices: bool) -> Iterator[Sample]:
    if task.config.repeats != 1:
        raise TaskError(f"Task {spec.name!r}: repeats is {task.config.repeats}; only 1 is supported.")
    # As lm-eval's evaluator does: a task that was not told draws other few-shot examples each time.
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    seen: Counter[str] = Counter()
    with quiet():
        for index, doc in task.doc_iterator(rank=0, limit=limit, world_size=1):
            if spec.turns_key is not None:
                yield from _conversation(spec, task, doc, index)
                continue
            wanted = spec.chat and (chat_choices or spec.kind == "generate")
            plain, chat = _both_instances(task, doc, index, chat=wanted)
            prompt = plain[0].args[0]
            n_choices = _n_choices(task, doc) if spec.kind == "choice" else 0
            choices = tuple(i.args for i in plain[:n_choices])
            first_id = sample_id(spec.name, spec.version, prompt, choices, 0)
            occurrence = seen[first_id]
            seen[first_id] += 1
            yield Sample(
                id=sample_id(spec.name, spec.version, prompt, choices, occurrence) if occurrence else first_id,
                task=spec.name,
                index=index,
                prompt=prompt,
                messages=_messages(chat) if spec.kind == "generate" else (),
                choices=choices,
                chat_choices=tuple(i.args for i in chat[:n_choices]),
                joint=_joint(task, doc),
                generation=dict(plain[0].args[1]) if spec.kind == "generate" else {},
                reference=_gold(task, doc) if spec.kind == "choice" else None,
                category=_field(spec, doc, spec.category_key),
                cluster=_field(spec, doc, spec.cluster_key),
                meta=_meta(spec, doc),
            )


def _conversation(spec: TaskSpec, task: Any, doc: Any, index: int) -> Iterator[Sample]:
    """A sample a turn of the user; plain lm-eval asks the first only."""
    turns = _column(spec, doc, str(spec.turns_key))
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise TaskError(f"Task {spec.name!r}: column {spec.turns_key!r} must hold lists of texts, got {turns!r:.80}.")
    previous: str | None = None
    for number, turn in enumerate(turns, 1):
        id_ = sample_id(spec.name, spec.version, json.dumps([index, *turns[:number]]), (), 0)
        yield Sample(
            id=id_,
            task=spec.name,
            index=index,
            prompt=turn,
            messages=(Message(role="user", content=turn),),
            previous=previous,
            generation=dict(task.config.generation_kwargs),
            category=_field(spec, doc, spec.category_key),
            cluster=str(index),
            meta={**_meta(spec, doc), "turn": number},
        )
        previous = id_


def _meta(spec: TaskSpec, doc: Any) -> dict[str, Any]:
    """What a later stage needs of the row: the columns that the task keeps; the whole row for lm-eval's metrics."""
    for_judges = (key for key in (spec.behavior_key, spec.context_key) if key is not None)
    kept = {key: _column(spec, doc, key) for key in (*spec.keep, *for_judges)}
    if spec.judge == LM_EVAL_JUDGE:
        kept["doc"] = doc
    # As the store gives it back: a column may hold dates, which JSON has not.
    return dict(json.loads(json.dumps(kept, default=str)))


def _n_choices(task: Any, doc: Any) -> int:
    return len(task.doc_to_choice(doc))


def _instances(task: Any, doc: Any, index: int, *, chat: bool) -> list[Any]:
    context = task.fewshot_context(
        doc,
        num_fewshot=task.config.num_fewshot or 0,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        chat_template=_keep_messages if chat else None,
        gen_prefix=task.doc_to_prefix(doc),
    )
    instances = task.construct_requests(
        doc=doc,
        ctx=context,
        metadata=(task.config.task, index, task.config.repeats),
        apply_chat_template=chat,
        chat_template=_keep_messages if chat else None,
    )
    return instances if isinstance(instances, list) else [instances]


def _keep_messages(history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """In place of a model's template: what lm-eval would render, as JSON, so that the engine can render it."""
    return json.dumps(history)


def _both_instances(task: Any, doc: Any, index: int, *, chat: bool) -> tuple[list[Any], list[Any]]:
    """The document plain and, where wanted, as a chat, with the same few-shot examples drawn for both."""
    sampler = getattr(task, "sampler", None)
    drawn = None if sampler is None else sampler.rnd.getstate()
    plain = _instances(task, doc, index, chat=False)
    if not chat:
        return plain, []
    if drawn is not None:
        task.sampler.rnd.setstate(drawn)
    return plain, _instances(task, doc, index, chat=True)


def _messages(chat: Sequence[Any]) -> tuple[Message, ...]:
    history = json.loads(chat[0].args[0]) if chat else []
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in history)


def _joint(task: Any, doc: Any) -> str:
    """What lm-eval puts between a system instruction and the task's description; nothing where it has none."""
    return str(task.config.fewshot_delimiter) if task.resolve_field(doc, task.config.description) else ""


def _gold(task: Any, doc: Any) -> str:
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    # A task may give numpy numbers (toxigen does).
    return json.dumps(gold, default=int)


def _field(spec: TaskSpec, doc: Mapping[str, Any], key: str | None) -> str | None:
    value = None if key is None else _column(spec, doc, key)
    return None if value is None else str(value)


def _column(spec: TaskSpec, doc: Mapping[str, Any], key: str) -> Any:
    if key not in doc:
        raise TaskError(f"Task {spec.name!r}: its data has no column {key!r} (columns: {', '.join(doc)}).")
    return doc[key]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval and datasets narrate the building of prompts; only their errors matter here.

    lm-eval 0.4.13 also compiles a task's templates again for every row: here once, which is up to seven times as fast.
    """
    import datasets
    from lm_eval.utils import env

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    nested = "from_string" in vars(env)
    if not nested:
        env.from_string = functools.cache(env.from_string)
    try:
        yield
    finally:
        if not nested:
            del env.from_string
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def _one_line(error: BaseException) -> str:
    # A task's own words need no class before them.
    named = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    text = " ".join(named.split())
    return text if len(text) <= 300 else text[:297] + "..."

"""Training a recipe, in order: read and check the data, load the model, the reference once, train, save one folder.

What it must not know: tasks, judges, leaderboards. Their prompts come in as text, and what goes out is a checkpoint
folder with its manifest.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, TrainingArguments

from bfpo_bench.errors import ConfigError, did_you_mean
from bfpo_bench.trainers.folder import (
    begin,
    check_out,
    finish,
    is_complete,
    manifest_of,
    prepare_out,
    refuse_other,
)
from bfpo_bench.trainers.names import STATE, Mode
from bfpo_bench.trainers.order import BufferedOrder, FixedOrder
from bfpo_bench.trainers.preparation import (
    choose_layout,
    fill_reference,
    load_model,
    margin_model,
    reference_for_divergence,
    with_adapter,
)
from bfpo_bench.trainers.reading import Data, Part, read_data
from bfpo_bench.trainers.recipe import Base, Recipe
from bfpo_bench.trainers.trainer import (
    Objective,
    PairTrainer,
    complete_checkpoints,
    disable_dropout,
    remove_incomplete_checkpoints,
)

Say = Callable[[str], None]

# What TrainingArguments are here where a recipe does not say otherwise.
_DEFAULTS: Mapping[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "logging_steps": 10,
    "logging_first_step": True,
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
# Switches that must stay off.
_BREAKS_A_PROMISE: Mapping[str, str] = {
    "save_only_model": "a run could not be resumed",
    "neftune_noise_alpha": "the policy would be noisy and the reference not",
    "auto_find_batch_size": "a step would change its size",
    "ignore_data_skip": "a resumed run would see other rows",
    "fp16": "the reference is computed in float32 or bfloat16 (training.bf16)",
}


def train(
    recipe: Recipe,
    *,
    base: Base,
    prompts: Mapping[str, Sequence[str]],
    unchecked: Mapping[str, str],
    mode: Mode = "auto",
    dry_run: bool = False,
    say: Say,
    cache: Path,
) -> Path | None:
    """Train and save; the checkpoint's folder, None for a dry run. The same call goes on with a run that was killed.

    `prompts` are the benchmark's, by task: pairs that repeat them are left out (or as `contamination` says);
    `unchecked` tells why a task's prompts are not among them. `cache` keeps the reference's log-probabilities. `say`
    prints a line.
    Raises ConfigError and TrainingError with one line; a run that stops keeps its state in `out/state`.
    """
    arguments = training_arguments(recipe)
    first = arguments.process_index == 0
    out = recipe.out
    if not dry_run:
        prepare_out(out, mode=mode, first=first, say=say)
        arguments.distributed_state.wait_for_everyone()
    else:
        check_out(out, mode=mode)
    tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=recipe.trust_remote_code)
    data = read_data(recipe, tokenizer, prompts=prompts, unchecked=unchecked, say=say)
    manifest = manifest_of(
        recipe,
        base,
        data,
        prompts=prompts,
        unchecked=unchecked,
        processes=arguments.world_size,
        margin=margin_model(recipe),
    )
    _refuse_empty_epochs(recipe, data, arguments)
    if dry_run:
        for line in _plan(recipe, data, arguments):
            say(line)
        return None
    if is_complete(out):
        refuse_other(out, manifest)
        say(f"{out} is complete already; --fresh trains it again")
        return out
    if first:
        begin(out, manifest)
    arguments.distributed_state.wait_for_everyone()
    started = time.time()
    trainer = prepared_trainer(recipe, base, tokenizer, data, arguments, cache=cache, say=say)
    removed = remove_incomplete_checkpoints(out / STATE) if first else []
    arguments.distributed_state.wait_for_everyone()
    if removed:
        say(f"left half-written by a kill, removed: {', '.join(removed)}")
    checkpoints = complete_checkpoints(out / STATE)
    if checkpoints:
        say(f"going on from {checkpoints[-1].name}")
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    trainer.check_last_step()
    if not _is_evaluated(trainer, data):
        trainer.evaluate()
    finish(trainer, recipe, manifest, seconds=time.time() - started, first=first)
    del trainer
    gc.collect()
    return out


def _is_evaluated(trainer: PairTrainer, data: Data) -> bool:
    """Whether the weights as they are now have been evaluated on every set, as after a last epoch that was not cut."""
    now = [entry for entry in trainer.state.log_history if entry.get("step") == trainer.state.global_step]
    return all(any(f"eval_{name}_loss" in entry for entry in now) for name in data.evaluation)


# -- settings ----------------------------------------------------------------------------------------------------------


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """transformers' TrainingArguments of a recipe, over our defaults; ConfigError names a key that it does not have."""
    known = TrainingArguments.__dataclass_fields__
    for key in recipe.training:
        if key not in known:
            raise ConfigError(did_you_mean("key", f"training.{key}", [f"training.{one}" for one in known]))
        _check_type(key, recipe.training[key], known[key].default)
    cuda = torch.cuda.is_available()
    given = {
        **_DEFAULTS,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "eval_strategy": "epoch" if recipe.evaluation else "no",
        "ddp_find_unused_parameters": False,
        # Of an epoch's rows, those that do not fill a step of all processes come in another epoch: no row twice.
        "dataloader_drop_last": int(os.environ.get("WORLD_SIZE", "1")) > 1,
        **recipe.training,
        "output_dir": str(recipe.out / STATE),
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "remove_unused_columns": False,
        "label_names": [],
        "train_sampling_strategy": "sequential",
        # A loss that is not a number stops the run (PairTrainer); hidden, it would train on.
        "logging_nan_inf_filter": False,
    }
    try:
        arguments = TrainingArguments(**given)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {' '.join(str(error).split())}") from error
    for key, why in _BREAKS_A_PROMISE.items():
        if getattr(arguments, key):
            raise ConfigError(f"training.{key} is not free: {why}; leave it out.")
    if arguments.eval_strategy != "no" and not recipe.evaluation:
        raise ConfigError("training.eval_strategy: there is nothing to evaluate on, name it under evaluation.")
    # Without a launcher the Trainer would copy the model to every GPU and cut the packed row in pieces.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _check_type(key: str, value: Any, default: Any) -> None:
    """TrainingArguments takes whatever it is given; a word for a number would come out far from here."""
    if isinstance(default, bool):
        right, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int | float):
        right, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        return
    if not right and value is not None:
        raise ConfigError(f"training.{key}: {value!r} is no value for it: {wanted} is wanted.")


def _refuse_empty_epochs(recipe: Recipe, data: Data, arguments: TrainingArguments) -> None:
    n, per_step = len(_order(recipe, data)), arguments.per_device_train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and n < per_step:
        raise ConfigError(
            f"an epoch has {n} rows, fewer than the {per_step} of a step of {arguments.world_size} processes: lower "
            "training.per_device_train_batch_size."
        )


def _plan(recipe: Recipe, data: Data, arguments: TrainingArguments) -> list[str]:
    order = _order(recipe, data)
    per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    steps = -(-len(order) // per_step) * arguments.num_train_epochs
    steps = arguments.max_steps if arguments.max_steps > 0 else steps
    tokens = sum(row.n_tokens for part in data.train.values() for row in part.rows)
    left_out = len(order) % (arguments.per_device_train_batch_size * arguments.world_size)
    note = f" ({left_out} rows of each epoch do not fill a batch of every process)" if left_out else ""
    return [
        f"method: {recipe.method}, {json.dumps(asdict(recipe.loss))}",
        f"an epoch: {len(order)} rows{' and as many of the buffer' if order.buffer else ''}; a step: {per_step}"
        + (note if arguments.dataloader_drop_last else ""),
        f"steps: {steps:g}; tokens of all data, packed: {tokens}",
        f"checkpoint: {recipe.out}",
    ]


def _order(recipe: Recipe, data: Data) -> BufferedOrder:
    parts = list(data.train.values())
    if recipe.settings.buffered and len(parts) == 2:
        return BufferedOrder(parts[0].rows, buffer=parts[1].rows, seed=recipe.seed)
    return BufferedOrder([row for part in parts for row in part.rows], seed=recipe.seed)


def _objective(recipe: Recipe, data: Data) -> Objective:
    named = {name: tuple(dict.fromkeys(row.source for row in part.rows)) for name, part in data.train.items()}
    sources = tuple(dict.fromkeys(one for names in named.values() for one in names))
    buffered = recipe.settings.buffered and len(named) == 2
    groups = tuple(named.values()) if buffered else (sources,)
    # A set of evaluation is watched under its own name.
    sources = tuple(dict.fromkeys((*sources, *data.evaluation)))
    return Objective(loss=recipe.settings.loss, settings=recipe.loss, sources=sources, groups=groups)


def _named_by_part(data: Data) -> Data:
    """Rows carry the name of their part: two parts may come from one file, and each is watched apart."""

    def renamed(name: str, part: Part) -> Part:
        return replace(part, rows=tuple(replace(row, source=name) for row in part.rows))

    return Data(
        train={name: renamed(name, part) for name, part in data.train.items()},
        evaluation={name: renamed(name, part) for name, part in data.evaluation.items()},
    )


# -- the trainer -------------------------------------------------------------------------------------------------------


def prepared_trainer(
    recipe: Recipe, base: Base, tokenizer: Any, data: Data, arguments: TrainingArguments, *, cache: Path, say: Say
) -> PairTrainer:
    data = _named_by_part(data)
    torch.manual_seed(recipe.seed)
    model = load_model(recipe, base.path)
    disable_dropout(model)
    model.to(arguments.device)
    model.eval()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    layout = choose_layout(recipe, model, data, arguments, pad=pad, say=say)
    if recipe.settings.loss != "sft":
        data = fill_reference(recipe, base, model, data, arguments, layout=layout, pad=pad, cache=cache, say=say)
    model = with_adapter(recipe, model, say)
    if arguments.gradient_checkpointing:
        # With the embeddings frozen, checkpointed layers would see no input that asks for a gradient.
        model.enable_input_require_grads()
    states = reference_for_divergence(recipe, model, data, arguments, layout=layout, pad=pad)
    whole = arguments.per_device_eval_batch_size * arguments.world_size
    model.config.use_cache = False
    return PairTrainer(
        model=model,
        args=arguments,
        objective=_objective(recipe, data),
        layout=layout,
        pad=pad,
        train_dataset=_order(recipe, data),
        eval_dataset={name: FixedOrder(part.rows, whole=whole) for name, part in data.evaluation.items()} or None,
        divergence=states,
        processing_class=tokenizer,
    )

"""transformers' Trainer with pairs: the loss of a step, its metrics, whole checkpoints; the data comes laid out.

What is ours here and why the rest is the Trainer's: it brings schedules, accumulation, DDP, FSDP, DeepSpeed, trackers
and the progress bar. Seen with transformers 5.19.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from bfpo_bench.errors import TrainingError
from bfpo_bench.trainers.divergence import ReferenceStates, mean_divergence
from bfpo_bench.trainers.layout import Layout, TokenPair, TokenRow, Tokens, lay_out
from bfpo_bench.trainers.logprobs import answer_log_probs, token_log_probs
from bfpo_bench.trainers.losses import LOSSES, Columns, PairLogProbs, loss_target, reward_scale
from bfpo_bench.trainers.metrics import Accumulator, Tally, metric_names, pair_metrics
from bfpo_bench.trainers.order import BufferedOrder
from bfpo_bench.trainers.settings import LossSettings

# What this file overrides of the Trainer's own: under another name it would be called by no one, and say nothing.
_OVERRIDDEN = (
    *("_get_num_items_in_batch", "_get_grad_norm", "_run_epoch", "_save_checkpoint", "_load_optimizer_and_scheduler"),
    *("compute_loss", "evaluation_loop", "log"),
)
# Written last into a checkpoint of the training state: without it, a kill came in between.
COMPLETE = "complete.json"
_METRICS = "metrics.json"
_TOKENS = tuple(field.name for field in fields(Tokens))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised: a loss by name (`losses.LOSSES`, or sft) with its constants, over data from `sources`.

    `groups` are the sources whose means are added: in buffered training one for safety and one for helpfulness, else
    one of all.
    """

    loss: str
    settings: LossSettings
    sources: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]


class PairCollator:
    """Rows of a batch -> the tensors of one forward pass and a column for each thing that the loss needs."""

    def __init__(self, *, layout: Layout, pad: int, objective: Objective) -> None:
        self.layout, self.pad = layout, pad
        self.places = {source: index for index, source in enumerate(objective.sources)}
        self.groups = {source: index for index, group in enumerate(objective.groups) for source in group}

    def __call__(self, items: Sequence[tuple[TokenRow, ...]]) -> dict[str, Any]:
        rows = [row for item in items for row in item]
        tokens = lay_out(rows, layout=self.layout, pad=self.pad)
        batch: dict[str, Any] = {name: getattr(tokens, name) for name in _TOKENS}
        batch["rows"] = [row.row for row in rows]
        batch["source"] = torch.tensor([self.places.get(row.source, 0) for row in rows])
        batch["group"] = torch.tensor([self.groups.get(row.source, 0) for row in rows])
        batch["counted"] = torch.tensor([row.counted for row in rows])
        if isinstance(rows[0], TokenPair):
            for name in ("chosen_safe", "rejected_safe", "safety_preference", "margin"):
                batch[name] = torch.tensor([getattr(row, name) for row in rows], dtype=torch.float32)
            for name in ("reference_chosen", "reference_rejected"):
                batch[name] = torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64).float()
        return batch


class PairTrainer(Trainer):  # type: ignore[misc]
    """Minimises an `Objective` over packed or padded pairs; the loss of a step does not depend on how it is split.

    A step's loss is, for each group of sources, the mean over that group's pairs in the whole step (all micro-batches,
    all processes), added over the groups: `sum_g mean_{i in g} loss_i`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        objective: Objective,
        layout: Layout,
        pad: int,
        train_dataset: BufferedOrder,
        eval_dataset: Any = None,
        divergence: Mapping[str, ReferenceStates] | None = None,
        **options: Any,
    ) -> None:
        if absent := [name for name in _OVERRIDDEN if not hasattr(Trainer, name)]:
            raise TrainingError(
                f"transformers {transformers.__version__} has no Trainer.{absent[0]}: install that of constraints.txt."
            )
        super().__init__(
            model=model,
            args=args,
            data_collator=PairCollator(layout=layout, pad=pad, objective=objective),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=[_EpochOrder(train_dataset)],
            **options,
        )
        # The default bar prints every metric as one dictionary; all of them are in the log and go to trackers.
        self.pop_callback(ProgressCallback)
        self.pop_callback(PrinterCallback)
        self.add_callback(_Bar if not args.disable_tqdm else _Lines)
        self.objective = objective
        self.divergence = divergence or {}
        # The loss below is a sum over the whole step already.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = False
        self._metrics = Accumulator(_names(objective))
        self._tokens, self._since = 0, time.perf_counter()
        self._step_rows: list[str] = []
        self._broken = torch.zeros(1, device=args.device)

    def _run_epoch(self, **arguments: Any) -> None:
        """Not where a resumed run has all its steps: the Trainer would do one more before it asks."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**arguments)

    # -- the loss ------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        """How many pairs (or learnt tokens) of each group the whole step has, [groups], over all processes."""
        counts = torch.zeros(len(self.objective.groups), device=device)
        for batch in batch_samples:
            counts += self._counts(batch).to(device)
        gathered: torch.Tensor = self.accelerator.gather(counts[None])
        return gathered.sum(0)

    def _counts(self, batch: Mapping[str, Any]) -> torch.Tensor:
        n = len(self.objective.groups)
        if self.objective.loss == "sft":
            return torch.tensor([float(len(batch["targets"]))])
        return torch.bincount(batch["group"].cpu(), minlength=n).float()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        counts = num_items_in_batch
        if not isinstance(counts, torch.Tensor):
            raise TrainingError(f"transformers {transformers.__version__} did not say how many pairs the step has.")
        found = self._losses(model, inputs)
        # Gradients are averaged over processes; the sum over all of them is wanted.
        loss = (found.losses / counts[found.group]).sum() * self.accelerator.num_processes
        self._step_rows += inputs["rows"]
        mask = inputs["attention_mask"]
        self._tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        self._broken += (~loss.detach().isfinite()).to(self._broken)
        if found.tally is not None:
            self._metrics.add(found.tally)
        return (loss, None) if return_outputs else loss

    def _losses(self, model: nn.Module, inputs: Mapping[str, Any]) -> _Losses:
        tokens = Tokens(**{name: inputs[name] for name in _TOKENS})
        if self.objective.loss == "sft":
            losses = -token_log_probs(model, tokens)
            counted = inputs["counted"][tokens.sequence]
            means = torch.stack([(losses.detach() * counted).sum(), counted.sum().float()])[:, None]
            tally = Tally(names=("loss/token",), totals=means)
            return _Losses(losses=losses, group=torch.zeros_like(tokens.sequence), tally=tally, counted=counted)
        answers = answer_log_probs(model, tokens).reshape(-1, 2)
        pairs = PairLogProbs(
            chosen=answers[:, 0],
            rejected=answers[:, 1],
            reference_chosen=inputs["reference_chosen"],
            reference_rejected=inputs["reference_rejected"],
        )
        columns = Columns(**{field.name: inputs[field.name] for field in fields(Columns)})
        objective = self.objective
        losses = LOSSES[objective.loss](pairs, columns, objective.settings)
        tally = pair_metrics(
            pairs,
            columns,
            losses=losses.detach(),
            targets=loss_target(objective.loss, columns, objective.settings),
            source_index=inputs["source"],
            sources=objective.sources,
            scale=reward_scale(objective.loss, objective.settings),
            counted=inputs["counted"],
        )
        return _Losses(losses=losses, group=inputs["group"], tally=tally, counted=inputs["counted"])

    # -- what stops a run ----------------------------------------------------------------------------------------------

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Between backward and the optimiser's step: the last moment at which the weights are still whole."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._stop_unless_finite(norm)
        self._step_rows = []
        return norm

    def _stop_unless_finite(self, norm: Any) -> None:
        """Save the state before this step and raise; every process of a group does so at the same step.

        Asked once a step, so that a GPU is waited for once a step.
        """
        bad_norm = torch.zeros(1) if norm is None else ~torch.as_tensor(norm).isfinite().reshape(1)
        flags = torch.cat([self._broken, bad_norm.to(self._broken)])
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.reduce(flags, reduction="sum")
        loss, gradient = flags.tolist()
        if not (loss or gradient):
            return
        what = "loss" if loss else "gradient"
        rows = list(dict.fromkeys(gather_object(self._step_rows)))
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        # This interval's sums are broken too.
        self._metrics.reset()
        # A whole state of this step is not written over: a kill could come in between.
        if not (folder / COMPLETE).exists():
            self._save_checkpoint(self.model, None)
        if self.args.should_save:
            (folder / "stopped.json").write_text(
                json.dumps({"reason": f"{what} is not finite", "rows": rows}, indent=1)
            )
        # A launcher ends all processes once one has failed.
        self.accelerator.wait_for_everyone()
        shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        raise TrainingError(
            f"The {what} of step {self.state.global_step + 1} is not finite, in a batch of rows {shown}. The weights "
            f"before it are in {folder}, with all row ids in stopped.json: lower training.learning_rate, or leave the "
            "rows out, and start over with --fresh or another out=FOLDER."
        )

    def check_last_step(self) -> None:
        """What the next step would have met: TrainingError where the last one left weights that give no number."""
        batch = self._prepare_inputs(self.data_collator([self.train_dataset[0]]))
        model = self._wrap_model(self.model, training=False)
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            finite = bool(self._losses(model, batch).losses.isfinite().all())
        if not finite:
            raise TrainingError(
                f"The loss after the last step, {self.state.global_step}, is not finite, in rows "
                f"{', '.join(batch['rows'])}: its weights are of no use. Lower training.learning_rate."
            )

    # -- metrics -------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._metrics.read(reduce=self._sum_over_processes))
            self._metrics.reset()
            now = time.perf_counter()
            logs["tokens_per_second"] = self._tokens * self.accelerator.num_processes / (now - self._since)
            logs["peak_memory_gib"] = peak_memory(self.args.device)
            self._tokens, self._since = 0, now
        super().log({name: value for name, value in logs.items() if value is not None}, start_time)

    def _sum_over_processes(self, totals: torch.Tensor) -> torch.Tensor:
        if self.accelerator.num_processes == 1:
            return totals
        reduced: torch.Tensor = self.accelerator.reduce(totals.to(self.args.device), reduction="sum")
        return reduced

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The metrics of training on rows that are not trained on; the loss is the mean over all of them."""
        began = time.perf_counter()
        model = self._wrap_model(self.model, training=False, dataloader=dataloader)
        model.eval()
        total = Accumulator((*_names(self.objective), "loss"))
        for batch in _without_drawing(dataloader):
            with torch.no_grad(), self.compute_loss_context_manager():
                found = self._losses(model, self._prepare_inputs(batch))
            kept = found.losses[found.counted].double()
            total.add(Tally(names=("loss",), totals=torch.stack([kept.sum(), kept.new_tensor(len(kept))])[:, None]))
            if found.tally is not None:
                total.add(found.tally)
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = total.read(reduce=self._sum_over_processes)
        states = self.divergence.get(metric_key_prefix.removeprefix("eval_"))
        if states is not None and self.accelerator.num_processes == 1:
            with torch.no_grad(), self.compute_loss_context_manager():
                metrics["kl"] = mean_divergence(model, states)
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self._since += time.perf_counter() - began
        return EvalLoopOutput(predictions=(), label_ids=None, metrics=named, num_samples=self.num_examples(dataloader))

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer, then the mark that says that all of it is there; older ones go only after that."""
        began = time.perf_counter()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        metrics = self._metrics.state(reduce=self._sum_over_processes)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            (folder / _METRICS).write_text(json.dumps(metrics), encoding="utf-8")
            _write_durably(folder / COMPLETE, json.dumps({"step": self.state.global_step}))
            for old in complete_checkpoints(Path(self.args.output_dir))[: -(limit or sys.maxsize)]:
                # The mark first: half a checkpoint must not look like one.
                (old / COMPLETE).unlink()
                shutil.rmtree(old)
        self._since += time.perf_counter() - began

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := Path(checkpoint) / _METRICS).exists() and self.args.process_index == 0:
            self._metrics.load(json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True, kw_only=True)
class _Losses:
    """Unreduced: of every pair, or of every learnt token; `group` is whose mean each is part of."""

    losses: torch.Tensor
    group: torch.Tensor
    tally: Tally | None
    counted: torch.Tensor


class _EpochOrder(TrainerCallback):  # type: ignore[misc]
    """Tells the order which epoch it is. accelerate's loader does not where a resumed epoch is joined in its middle."""

    def __init__(self, order: BufferedOrder) -> None:
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.order.set_epoch(int(state.epoch or 0))


class _Bar(ProgressCallback):  # type: ignore[misc]
    """The Trainer's bar with its ETA, and one short line a log above it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and (line := log_line(state, logs or {})):
            self.training_bar.write(line, file=sys.stderr)


class _Lines(TrainerCallback):  # type: ignore[misc]
    """The same lines where no bar is wanted."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and (line := log_line(state, logs or {})):
            print(line, flush=True, file=sys.stderr)


def log_line(state: Any, logs: Mapping[str, Any]) -> str:
    """A log in one line: the losses, how far each target is reached, how often the pair is ordered as it should be."""
    evaluated = next((name.removesuffix("_loss") for name in logs if name.endswith("_loss")), None)
    start = f"{evaluated}_" if evaluated is not None and evaluated.startswith("eval_") else ""
    if not start and "loss" not in logs:
        return ""
    wanted = ("loss", "loss/", "accuracies/", "target_reached/", "kl", "tokens_per_second")
    named = {name.removeprefix(start): value for name, value in logs.items() if name.startswith(start)}
    shown = [
        f"{name.replace('accuracies/', 'right ').replace('target_reached/', 'reached ').replace('loss/', 'loss ')} "
        f"{value:.3g}"
        for name, value in named.items()
        if isinstance(value, float) and (name in wanted or any(name.startswith(w) for w in wanted if w.endswith("/")))
    ]
    where = f"step {state.global_step}/{state.max_steps}" + (f", {start.rstrip('_')}" if start else "")
    return f"{where}: {', '.join(shown)}"


def _without_drawing(loader: Any) -> Iterator[Any]:
    """The loader's batches. To begin draws a random number, which a run that resumes behind an evaluation has not."""
    state = torch.get_rng_state()
    for batch in loader:
        torch.set_rng_state(state)
        yield batch


def _names(objective: Objective) -> tuple[str, ...]:
    return ("loss/token",) if objective.loss == "sft" else metric_names(objective.sources)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a training state, the oldest first."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def remove_incomplete_checkpoints(folder: Path) -> list[str]:
    """Delete what a kill left half-written; the names of what was deleted."""
    whole = set(complete_checkpoints(folder))
    broken = [path for path in sorted(folder.glob("checkpoint-*")) if path not in whole]
    for path in broken:
        shutil.rmtree(path)
    return [path.name for path in broken]


def peak_memory(device: torch.device) -> float:
    """The most memory that was held at once, in GiB: the GPU's where that is trained on, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)


def _write_durably(file: Path, text: str) -> None:
    with open(file, "w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def freeze_except(model: nn.Module, patterns: Sequence[str], *, say: Callable[[str], None]) -> None:
    """Leave only the weights trainable whose dotted name has one of `patterns` as a part (selective training).

    TrainingError where a pattern matches nothing, or all of them everything: both are mistakes that train well.
    """
    if not patterns:
        return
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(_part_of(pattern, name) for name in names):
            kinds = sorted({name.split(".")[-2] for name in names if name.count(".") > 1})
            raise TrainingError(
                f"select: {pattern!r} matches no weight of the model. Its layers have: {', '.join(kinds)}."
            )
    chosen = {name for name in names if any(_part_of(pattern, name) for pattern in patterns)}
    if len(chosen) == len(names):
        raise TrainingError(
            f"select: {', '.join(patterns)} matches every weight: leave select out to train all of them."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    n = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    say(
        f"selected: {len(chosen)} of {len(names)} tensors, {n / 1e6:.1f} of {total / 1e6:.1f} M weights "
        f"({n / total:.1%})"
    )


def _part_of(pattern: str, name: str) -> bool:
    """Whether the pattern's parts follow one another in the dotted name: `mlp.down_proj` does, `down` does not."""
    wanted, parts = pattern.split("."), name.split(".")
    return any(parts[start : start + len(wanted)] == wanted for start in range(len(parts) - len(wanted) + 1))


def disable_dropout(model: nn.Module) -> None:
    """A log-ratio of two draws of dropout is noise: none is wanted in either model."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)

"""A model ready to be trained: loaded, frozen or adapted, laid out, its reference's numbers at hand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TrainingArguments

from bfpo_bench.console import progress
from bfpo_bench.errors import ConfigError, TrainingError
from bfpo_bench.trainers import attention, divergence
from bfpo_bench.trainers.layout import Layout, TokenPair, TokenRow, lay_out
from bfpo_bench.trainers.logprobs import answer_log_probs, token_log_probs, use_packed_attention, use_plain_attention
from bfpo_bench.trainers.reading import Data, Part
from bfpo_bench.trainers.recipe import Base, Recipe
from bfpo_bench.trainers.reference import Share, cache_folder, row_hash, with_reference
from bfpo_bench.trainers.trainer import disable_dropout, freeze_except

Say = Callable[[str], None]
# The largest difference of a token's log-probability between both layouts, in float32, that is taken for rounding:
# rounding was 1e-5 on the models seen here, the nearest architecture that cannot be packed 1e-1.
_EQUAL = 1e-3


def precision(recipe: Recipe, arguments: TrainingArguments) -> str:
    return "bfloat16" if arguments.bf16 or recipe.dtype == "bfloat16" else "float32"


def autocast(arguments: TrainingArguments) -> AbstractContextManager[Any]:
    """What the Trainer's wrapped model computes in, for passes before it is wrapped."""
    kind = "cuda" if torch.cuda.is_available() and not arguments.use_cpu else "cpu"
    return torch.autocast(kind, dtype=torch.bfloat16) if arguments.bf16 else nullcontext()


def load_model(recipe: Recipe, folder: Path) -> Any:
    with _whole_in_every_process():
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, recipe.dtype),
            trust_remote_code=recipe.trust_remote_code,
        )


@contextmanager
def _whole_in_every_process() -> Iterator[None]:
    """Every process computes a part of the reference, before FSDP or DeepSpeed part the weights among them.

    transformers would read them in the first process only (FSDP), or part them while they load (ZeRO-3), whatever
    the launcher's file says (seen in 5.19). FSDP on a CPU is tested; DeepSpeed has not been run.
    """
    from transformers.integrations import deepspeed

    parted = deepspeed._hf_deepspeed_config_weak_ref() if deepspeed._hf_deepspeed_config_weak_ref is not None else None
    deepspeed.unset_hf_deepspeed_config()
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.get(name)
    if before is not None:
        os.environ[name] = "false"
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        if parted is not None:
            deepspeed.set_hf_deepspeed_config(parted)


def with_adapter(recipe: Recipe, model: Any, say: Say) -> Any:
    if recipe.lora is None:
        freeze_except(model, recipe.select, say=say)
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ConfigError("lora needs peft: pip install 'bfpo-bench[train]'.") from None
    lora = recipe.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft annotates an int and takes a float
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        tied = module is not head and getattr(module, "weight", None) is head.weight
        if tied and any(name == one or name.endswith(f".{one}") for one in lora.target_modules):
            raise TrainingError(
                f"lora.target_modules: {name} is the output layer's weight too, which an adapter would part from it: "
                "leave it out."
            )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise TrainingError(f"lora.target_modules: {' '.join(str(error).split())}") from error
    n = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    say(f"adapter: {n / 1e6:.2f} M weights on {', '.join(lora.target_modules)}")
    return adapted


def choose_layout(
    recipe: Recipe, model: Any, data: Data, arguments: TrainingArguments, *, pad: int, say: Say
) -> Layout:
    """packed where it gives the padded layout's log-probabilities on the longest texts of this data, else padded.

    Not every architecture can be packed: some look at neighbours through a window, a convolution or a state, some scale
    their logits after the output layer. Equality is measured rather than known by name.
    """
    if recipe.layout == "padded":
        return "padded"
    rows = sorted((row for part in _parts(data) for row in part.rows), key=lambda row: -_longest_text(row))[:2]
    attention.register()
    kernels = {"flex": (True,), "sdpa": (False,)}.get(recipe.attention) or (
        (True, False) if arguments.device.type == "cuda" else (False,)
    )
    why = ""
    with torch.no_grad(), _in_float32(model):
        plain = token_log_probs(model, lay_out(rows, layout="padded", pad=pad).to(arguments.device))
        for flex in kernels:
            try:
                use_packed_attention(model, flex=flex)
                packed = token_log_probs(model, lay_out(rows, layout="packed", pad=pad).to(arguments.device))
            except Exception as error:  # a model's own code may fail in any way on what it was not written for
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
                continue
            worst = (plain - packed).abs().max().item()
            if worst <= _EQUAL:
                if why:
                    say(f"attention: sdpa, since FlexAttention does not serve {model.config.model_type} ({why})")
                return "packed"
            why = f"log-probabilities differ by up to {worst:.2g} nats a token"
    use_plain_attention(model)
    if recipe.layout == "packed":
        raise TrainingError(f"layout: packed is not equal to the plain path on {model.config.model_type}: {why}.")
    say(f"layout: padded, since {model.config.model_type} cannot be packed ({why})")
    return "padded"


@contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Rounding in bfloat16 is as large as what some architectures do otherwise when packed. Back again is exact."""
    kept = {name: tensor.dtype for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    model.float()
    try:
        yield
    finally:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.data = tensor.data.to(kept[name])


def _longest_text(row: TokenRow) -> int:
    """What a window would have to hold: of a pair, its prompt with the longer answer."""
    if isinstance(row, TokenPair):
        return len(row.prompt) + max(len(row.chosen), len(row.rejected))
    return row.n_tokens


def fill_reference(
    recipe: Recipe,
    base: Base,
    model: Any,
    data: Data,
    arguments: TrainingArguments,
    *,
    layout: Layout,
    pad: int,
    cache: Path,
    say: Say,
) -> Data:
    """Every pair with its reference's log-probabilities (and MODPO's margin), from the cache or computed here."""
    rows = [row for part in _parts(data) for row in part.rows if isinstance(row, TokenPair)]
    values = _log_probs_of(recipe, base, model, rows, arguments, layout=layout, pad=pad, cache=cache, what="reference")
    margins = [0.0] * len(rows)
    other_base = margin_model(recipe)
    if other_base is not None:
        other = load_model(recipe, other_base.path).to(arguments.device).eval()
        disable_dropout(other)
        if layout == "packed":
            use_packed_attention(other, flex=model.config._attn_implementation == "flex_attention")
        other_values = _log_probs_of(
            recipe, other_base, other, rows, arguments, layout=layout, pad=pad, cache=cache, what="margin model"
        )
        # MODPO's frozen reward: beta times the log-ratio of the model of the other preference (arXiv:2310.03708).
        margins = [
            recipe.loss.beta * ((chosen - rc) - (rejected - rr))
            for (chosen, rejected), (rc, rr) in zip(other_values, values, strict=True)
        ]
        del other
    found = iter(
        replace(row, reference_chosen=chosen, reference_rejected=rejected, margin=margin)
        for row, (chosen, rejected), margin in zip(rows, values, margins, strict=True)
    )

    def filled(parts: Mapping[str, Part]) -> dict[str, Part]:
        return {name: replace(part, rows=tuple(next(found) for _ in part.rows)) for name, part in parts.items()}

    return Data(train=filled(data.train), evaluation=filled(data.evaluation))


def _parts(data: Data) -> list[Part]:
    return [*data.train.values(), *data.evaluation.values()]


def _log_probs_of(
    recipe: Recipe,
    base: Base,
    model: Any,
    rows: Sequence[TokenPair],
    arguments: TrainingArguments,
    *,
    layout: Layout,
    pad: int,
    cache: Path,
    what: str,
) -> list[tuple[float, float]]:
    def compute(part: Sequence[TokenPair]) -> Any:
        with torch.no_grad(), autocast(arguments):
            tokens = lay_out(part, layout=layout, pad=pad).to(arguments.device)
            return answer_log_probs(model, tokens).reshape(-1, 2).cpu()

    key = {
        "model": base.identity,
        "dtype": recipe.dtype,
        "bf16": bool(arguments.bf16),
        "layout": layout,
        "attention": model.config._attn_implementation,
        "device": arguments.device.type,
        "packages": {name: version(name) for name in ("torch", "transformers")},
    }
    share = Share(
        rank=arguments.process_index, of=arguments.world_size, wait=arguments.distributed_state.wait_for_everyone
    )
    quiet = (
        nullcontext(lambda n: None)
        if arguments.process_index
        else progress(what, total=len({row_hash(row) for row in rows}))
    )
    with quiet as advance:
        return with_reference(
            rows,
            folder=cache_folder(cache, key),
            compute=compute,
            batch=arguments.per_device_eval_batch_size,
            precision=precision(recipe, arguments),
            share=share,
            progress=advance,
        )


def margin_model(recipe: Recipe) -> Base | None:
    """MODPO's model of the other preference, known by its weights; None where the recipe has none."""
    if recipe.margin_model is None:
        return None
    name = recipe.margin_model
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"margin_model {name!r} is not a checkpoint folder: train dpo-safe first, and name its folder."
        )
    digest = hashlib.sha256()
    for file in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return Base(name=folder.name, path=folder, identity=f"weights:{digest.hexdigest()}")


def reference_for_divergence(
    recipe: Recipe, model: Any, data: Data, arguments: TrainingArguments, *, layout: Layout, pad: int
) -> dict[str, divergence.ReferenceStates]:
    """Of the first `kl_pairs` rows of each named set."""
    if not data.evaluation or arguments.world_size > 1 or recipe.kl_pairs < 1:
        return {}
    rows = {name: part.rows[: recipe.kl_pairs] for name, part in data.evaluation.items()}
    batches = [
        lay_out([row], layout=layout, pad=pad).to(arguments.device) for of_set in rows.values() for row in of_set
    ]
    with autocast(arguments):
        states = divergence.reference_states(model, batches)
    found, start = {}, 0
    for name, of_set in rows.items():
        mine = slice(start, start + len(of_set))
        # The output layer is kept once for all sets.
        found[name] = replace(states, tokens=states.tokens[mine], hidden=states.hidden[mine])
        start += len(of_set)
    return found

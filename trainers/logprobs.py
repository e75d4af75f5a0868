"""Log-probabilities of answers under a model: at the answers' tokens only, the [tokens, vocabulary] logits never whole.

The plain path asks the model for logits and takes log-softmax. The packed path lets the model's own forward end in
`LinearLogProb`: the output layer and the log-softmax in pieces of `CHUNK_BYTES`, its backward written out. The model
is always called as a whole, through whatever wraps it (autocast, DDP, FSDP): a call of its inner parts would go
around these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bfpo_bench.errors import TrainingError
from bfpo_bench.trainers.attention import NAME, block_mask
from bfpo_bench.trainers.layout import Tokens

# Of float32 logits at a time: large enough for full speed, small beside a model's activations.
CHUNK_BYTES = 64 * 2**20
# FlexAttention works in blocks of this many tokens; a row of another length would be compiled anew.
FLEX_BLOCK = 128


class LinearLogProb(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias) at the target tokens, [n]; hidden [n, width], weight [vocabulary, width].

    With z the logits and p their softmax, d log p[t] / d z = onehot(t) - p. Where the weight is frozen, the gradient
    for the hidden states is known up to the scalar that comes in backward, and is made in the forward pass: no logits
    are computed twice. Where it is trained, backward computes the logits again, piece by piece.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        compute = _compute_dtype(hidden)
        narrow, low = hidden.to(compute), weight.to(compute)
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        ahead = torch.empty_like(narrow) if hidden.requires_grad and not trained else None
        normaliser = hidden.new_empty(len(targets), dtype=_wide(compute))
        found = torch.empty_like(normaliser)
        for piece in _pieces(len(targets), len(weight)):
            logits = _logits(narrow[piece], low, bias)
            normaliser[piece] = logits.logsumexp(-1)
            found[piece] = logits.gather(-1, targets[piece, None])[:, 0]
            if ahead is not None:
                probability = logits.sub_(normaliser[piece, None]).exp_().to(compute)
                ahead[piece] = low[targets[piece]] - probability @ low
        ctx.compute, ctx.trained = compute, trained
        saved = (ahead,) if ahead is not None else (hidden, weight, bias, targets, normaliser)
        ctx.save_for_backward(*saved)
        ctx.dtype = hidden.dtype
        return found - normaliser

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not ctx.trained:
            (ahead,) = ctx.saved_tensors
            return (gradient[:, None] * ahead).to(ctx.dtype), None, None, None
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        narrow, low = hidden.to(ctx.compute), weight.to(ctx.compute)
        for_hidden = torch.empty_like(narrow)
        for_weight = torch.zeros_like(weight, dtype=_wide(ctx.compute))
        for_bias = None if bias is None else torch.zeros_like(bias, dtype=_wide(ctx.compute))
        for piece in _pieces(len(targets), len(weight)):
            logits = _logits(narrow[piece], low, bias)
            for_logits = logits.sub_(normaliser[piece, None]).exp_().mul_(-gradient[piece, None])
            for_logits.scatter_add_(-1, targets[piece, None], gradient[piece, None].to(for_logits))
            if for_bias is not None:
                for_bias += for_logits.sum(0)
            for_logits = for_logits.to(ctx.compute)
            for_hidden[piece] = for_logits @ low
            for_weight += for_logits.t() @ narrow[piece]
        return (
            for_hidden.to(hidden.dtype),
            for_weight.to(weight.dtype),
            None if for_bias is None or bias is None else for_bias.to(bias.dtype),
            None,
        )


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """What a linear layer would compute in here: autocast's type where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _pieces(rows: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return nn.functional.linear(hidden, weight, None if bias is None else bias.to(weight.dtype)).to(_wide(weight.dtype))


def _wide(compute: torch.dtype) -> torch.dtype:
    """What logits are reduced in: float32, or float64 where the model is in float64."""
    return torch.promote_types(compute, torch.float32)


def token_log_probs(model: nn.Module, tokens: Tokens) -> torch.Tensor:
    """The natural log-probability of every answer token, [n] in float32, in the order of `tokens.targets`."""
    if tokens.segments:
        return _packed(model, tokens)
    keep = tokens.input_ids.shape[1] - int(tokens.predictors[:, 1].min())
    logits = model(
        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, logits_to_keep=keep, use_cache=False
    ).logits
    row, place = tokens.predictors.unbind(1)
    answers: torch.Tensor = logits[row, place - (tokens.input_ids.shape[1] - logits.shape[1])].float()
    return answers.gather(-1, tokens.targets[:, None])[:, 0] - answers.logsumexp(-1)


def answer_log_probs(model: nn.Module, tokens: Tokens) -> torch.Tensor:
    """The summed natural log-probability of every answer, [n_sequences] in float32."""
    each = token_log_probs(model, tokens)
    # In float64: a thousand float32 terms are off in the third place.
    wide = torch.float32 if each.device.type == "mps" else torch.float64
    sums = torch.zeros(tokens.n_sequences, dtype=wide, device=each.device)
    return sums.index_add(0, tokens.sequence, each.to(wide)).float()


def _packed(model: nn.Module, tokens: Tokens) -> torch.Tensor:
    inner: Any = getattr(model, "module", model)
    flex = inner.config._attn_implementation == "flex_attention"
    with _ending_in_log_probs(inner, tokens.targets):
        found: torch.Tensor = model(
            input_ids=_filled(tokens.input_ids) if flex else tokens.input_ids,
            position_ids=_filled(tokens.position_ids) if flex else tokens.position_ids,
            attention_mask=_flex_mask(tokens) if flex else None,
            logits_to_keep=tokens.predictors,
            use_cache=False,
            **({} if flex else {"segments": tokens.segments}),
        ).logits
    return found.reshape(-1)


def _filled(ids: torch.Tensor | None) -> torch.Tensor:
    assert ids is not None
    return nn.functional.pad(ids, (0, -ids.shape[1] % FLEX_BLOCK))


def _flex_mask(tokens: Tokens) -> Any:
    length = tokens.input_ids.shape[1]
    return block_mask(tokens.segments, length=length + -length % FLEX_BLOCK, device=tokens.input_ids.device)


@contextmanager
def _ending_in_log_probs(model: nn.Module, targets: torch.Tensor) -> Iterator[None]:
    """While this is open, the output layer gives [1, n, 1] log-probabilities of `targets` in place of logits.

    The layer itself stays where it is, so that its name in a checkpoint, its hooks and its sharding stay as they are.
    """
    head: Any = output_layer(model)

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = LinearLogProb.apply(hidden[0], head.weight, head.bias, targets)  # type: ignore[no-untyped-call]
        return found[None, :, None]

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


def output_layer(model: nn.Module) -> nn.Linear:
    """The layer that gives the logits; TrainingError where it is more than a weight and a bias."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        raise TrainingError(
            f"The output layer is a {type(head).__name__}, not a plain linear one: leave it out of "
            "lora.target_modules, or take layout: padded without evaluation."
        )
    return head


def use_packed_attention(model: nn.Module, *, flex: bool) -> None:
    """Switch the model's attention over; `use_plain_attention` switches it back."""
    model.set_attn_implementation("flex_attention" if flex else NAME)  # type: ignore[operator]


def use_plain_attention(model: nn.Module) -> None:
    try:
        model.set_attn_implementation("sdpa")  # type: ignore[operator]
    except ValueError:  # an architecture without it
        model.set_attn_implementation("eager")  # type: ignore[operator]

"""KL(policy || reference) at the answers' tokens, over the whole vocabulary: what drift costs, not a proxy for it.

The reference is gone once training starts, and its full distributions are large. What is kept of it are the states that
its output layer read at those tokens, and the output layer where training changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bfpo_bench.trainers import logprobs
from bfpo_bench.trainers.layout import Tokens


@dataclass(frozen=True, kw_only=True)
class ReferenceStates:
    """Of some batches: the reference's last hidden states at the answers' predictors [n, width] each, in float32.

    `weight` and `bias` are its output layer's, None where training leaves that layer as it is.
    """

    tokens: tuple[Tokens, ...]
    hidden: tuple[torch.Tensor, ...]
    weight: torch.Tensor | None
    bias: torch.Tensor | None


def reference_states(model: nn.Module, batches: Sequence[Tokens]) -> ReferenceStates:
    """Of the model as it is now; `model` is not wrapped, and in the attention of the batches' layout."""
    with torch.no_grad():
        hidden = tuple(last_hidden(model, tokens).float() for tokens in batches)
    head = logprobs.output_layer(model)
    trained = any(p.requires_grad for p in head.parameters())
    return ReferenceStates(
        tokens=tuple(batches),
        hidden=hidden,
        weight=head.weight.detach().clone() if trained else None,
        bias=head.bias.detach().clone() if trained and head.bias is not None else None,
    )


@torch.no_grad()
def mean_divergence(model: nn.Module, states: ReferenceStates) -> float:
    """Mean over the answers' tokens of KL(policy || reference), in nats a token; in float32, in pieces."""
    head = logprobs.output_layer(model)
    bias = getattr(head, "bias", None)
    total, n = 0.0, 0
    for tokens, reference in zip(states.tokens, states.hidden, strict=True):
        policy = last_hidden(model, tokens).float()
        for start in range(0, len(policy), 256):
            piece = slice(start, start + 256)
            now = _log_probs(policy[piece], head.weight, bias)
            then = _log_probs(
                reference[piece],
                head.weight if states.weight is None else states.weight,
                bias if states.weight is None else states.bias,
            )
            total += float((now.exp() * (now - then)).sum())
            n += len(now)
    return total / n


def last_hidden(model: nn.Module, tokens: Tokens) -> torch.Tensor:
    """What the output layer reads at the predictors of the answers' tokens, [n, width]."""
    head = logprobs.output_layer(model)
    found: list[torch.Tensor] = []

    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        found.append(arguments[0])

    handle = head.register_forward_pre_hook(hook)
    try:
        logprobs.token_log_probs(model, tokens)
    finally:
        handle.remove()
    (hidden,) = found
    if tokens.segments:
        return hidden[0]
    row, place = tokens.predictors.unbind(1)
    return hidden[row, place - (tokens.input_ids.shape[1] - hidden.shape[1])]


def _log_probs(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # Autocast would make this bfloat16 again, whose rounding is larger than a small divergence.
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(hidden, weight.float(), None if bias is None else bias.float()).log_softmax(-1)

"""Attention over packed pairs: each answer sees its prompt and itself; registered with transformers, knows no data.

Two forms of one mask. `packed_pairs` runs one attention call for `prompt chosen` and one for the rejected answer's
queries, by torch's scaled_dot_product_attention: any device, forward and backward. `block_mask` is the same mask for
FlexAttention, one fused kernel for the whole row on a GPU (it has no backward on a CPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed_pairs"
Segment = tuple[int, int, int]


def packed_pairs(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Sequence[Segment] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, tokens, width], key and value [1, key heads, tokens, width] -> [1, tokens, heads, width].

    `segments` are the (prompt, chosen, rejected) lengths of the pairs in the row, as `layout.packed` gives them.
    """
    if segments is None:
        raise ValueError(f"{NAME} was called without segments: this architecture does not hand them to its attention")
    if softcap is not None:
        raise ValueError(f"{NAME} caps no attention scores, and this architecture does (softcap {softcap})")
    longest = max(prompt + max(chosen, rejected) for prompt, chosen, rejected in segments)
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(
            f"{NAME} has no window, and {longest} tokens are more than this architecture's {sliding_window}"
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    answers, start = [], 0
    for prompt, chosen, rejected in segments:
        shared, middle, end = start + prompt, start + prompt + chosen, start + prompt + chosen + rejected
        q, k, v = (part[:, :, start:middle] for part in (query, key, value))
        answers.append(scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scaling))
        if rejected:
            q = query[:, :, middle:end]
            k, v = (torch.cat([part[:, :, start:shared], part[:, :, middle:end]], dim=2) for part in (key, value))
            mask = torch.ones(rejected, prompt + rejected, dtype=torch.bool, device=query.device).tril(prompt)
            answers.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling))
        start = end
    return torch.cat(answers, dim=2).transpose(1, 2).contiguous(), None


def visible(segments: Sequence[Segment], *, length: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """What each of `length` tokens sees, [3, length]: its pair, its part (0 prompt, 1 chosen, 2 rejected), its place.

    Tokens behind the last pair (padding) are pairs of their own, of one token each.
    """
    sizes = torch.tensor(segments, device=device)
    spare = length - int(sizes.sum())
    pair = torch.arange(len(segments), device=device).repeat_interleave(sizes.sum(1))
    part = torch.arange(3, device=device).repeat(len(segments)).repeat_interleave(sizes.flatten())
    padding = torch.arange(len(segments), len(segments) + spare, device=device)
    return torch.stack(
        [
            torch.cat([pair, padding]),
            torch.cat([part, torch.zeros_like(padding)]),
            torch.arange(length, device=device),
        ]
    )


def sees(tokens: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Whether the query's token sees the key's: of its pair, not later, not of the other answer."""
    pair, part, place = tokens
    other = (part[query] == 2) & (part[key] == 1)
    seen: torch.Tensor = (pair[query] == pair[key]) & (place[key] <= place[query]) & ~other
    return seen


def block_mask(segments: Sequence[Segment], *, length: int, device: torch.device | str) -> Any:
    """The mask as a FlexAttention BlockMask, which transformers' `flex_attention` takes as the attention mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = visible(segments, length=length, device=device)

    def mask(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return sees(tokens, query, key)

    return create_block_mask(mask, B=None, H=None, Q_LEN=length, KV_LEN=length, device=device)


def register() -> None:
    """Make `packed_pairs` an attention implementation of transformers, one that needs no mask."""
    AttentionInterface.register(NAME, packed_pairs)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    return None

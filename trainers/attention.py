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
    kind, on_cpu = query.dtype, query.device.type == "cpu"
    if on_cpu and kind in (torch.bfloat16, torch.float16):
        # torch 2.13's CPU kernel is slower in bfloat16 on short rows: 3 times at 100 tokens, even at 512
        # (benchmarks/attention_precision.py).
        query, key, value = query.float(), key.float(), value.float()
    if not on_cpu and (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    options: Any = {"dropout_p": dropout, "scale": scaling, "enable_gqa": on_cpu and query.shape[1] != key.shape[1]}
    # Split once: a slice's gradient is as long as the whole row, and there would be six of them a pair.
    queries = iter(torch.split(query, [size for p, c, r in segments for size in (p + c, r)], dim=2))
    keys, values = (iter(torch.split(one, [size for pair in segments for size in pair], dim=2)) for one in (key, value))
    answers = []
    for prompt, _chosen, rejected in segments:
        (k_prompt, k_chosen, k_rejected), (v_prompt, v_chosen, v_rejected) = (
            (next(parts), next(parts), next(parts)) for parts in (keys, values)
        )
        first = torch.cat([k_prompt, k_chosen], dim=2), torch.cat([v_prompt, v_chosen], dim=2)
        answers.append(scaled_dot_product_attention(next(queries), *first, is_causal=True, **options))
        q_rejected = next(queries)
        if rejected:
            second = torch.cat([k_prompt, k_rejected], dim=2), torch.cat([v_prompt, v_rejected], dim=2)
            mask = torch.ones(rejected, prompt + rejected, dtype=torch.bool, device=query.device).tril(prompt)
            answers.append(scaled_dot_product_attention(q_rejected, *second, attn_mask=mask, **options))
    return torch.cat(answers, dim=2).to(kind).transpose(1, 2).contiguous(), None


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

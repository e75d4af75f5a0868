"""How token rows lie in one forward pass: packed with a shared prompt, or one padded row an answer; knows no model.

The packed layout puts each pair into one sequence, `prompt chosen rejected`, and all pairs of a batch one after another
into one row without padding. Positions of the rejected answer start again where the prompt ends, and attention
(`attention.py`) keeps the two answers from seeing each other: each answer has the log-probabilities that it has behind
its prompt alone, and the prompt is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch

Layout = Literal["packed", "padded"]
Ids = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, kw_only=True)
class TokenPair:
    """A preference pair as token ids, with what a method needs to know of it; NaN is a label that is not known.

    `safety_preference` is 1 where the chosen answer is the safer one, -1 where the rejected is, 0 where neither.
    The reference's log-probabilities are summed over the answer, natural logarithm; None until they are computed.
    A row that is not `counted` only fills up a batch, so that every process of an evaluation has as many.
    """

    prompt: Ids
    chosen: Ids
    rejected: Ids
    chosen_safe: float
    rejected_safe: float
    safety_preference: float
    source: str
    row: str
    n_cut: int = 0
    reference_chosen: float | None = None
    reference_rejected: float | None = None
    margin: float = 0.0
    counted: bool = True

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True, kw_only=True)
class TokenConversation:
    """A conversation as token ids; `learnt` marks the tokens that the assistant is to say."""

    ids: Ids
    learnt: np.ndarray[Any, np.dtype[np.bool_]]
    source: str
    row: str
    n_cut: int = 0
    counted: bool = True

    @property
    def n_tokens(self) -> int:
        return len(self.ids)


TokenRow = TokenPair | TokenConversation


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of one forward pass, and which of them are answers.

    `segments` has (prompt, chosen, rejected) lengths in the packed layout, (length, 0, 0) for a conversation; it is
    empty in the padded layout, which has an `attention_mask` instead. `predictors` are the positions whose next-token
    distribution is needed, [n] in the packed row, [n, 2] (row, position) in the padded one; `targets` [n] are the
    tokens that they are to predict and `sequence` [n] the answer that each belongs to, of `n_sequences`: two a pair,
    the chosen one first; one a conversation.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    segments: tuple[tuple[int, int, int], ...]
    predictors: torch.Tensor
    targets: torch.Tensor
    sequence: torch.Tensor
    n_sequences: int

    def to(self, device: torch.device | str) -> Tokens:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in values.items()}
        return Tokens(**moved)


def packed(rows: Sequence[TokenRow]) -> Tokens:
    """All rows in one row without padding: input_ids [1, tokens]."""
    ids, positions, segments, predictors, targets, sequence = [], [], [], [], [], []
    start = n = 0
    for row in rows:
        if isinstance(row, TokenConversation):
            ids.append(row.ids)
            positions.append(np.arange(len(row.ids)))
            segments.append((len(row.ids), 0, 0))
            learnt = np.flatnonzero(row.learnt[1:])
            predictors.append(start + learnt)
            targets.append(row.ids[learnt + 1])
            sequence.append(np.full(len(learnt), n))
            n += 1
        else:
            p, c, r = len(row.prompt), len(row.chosen), len(row.rejected)
            ids += [row.prompt, row.chosen, row.rejected]
            positions += [np.arange(p + c), np.arange(p, p + r)]
            segments.append((p, c, r))
            # The first token of either answer is predicted by the prompt's last.
            predictors += [
                start + np.arange(p - 1, p + c - 1),
                np.array([start + p - 1]),
                start + np.arange(p + c, p + c + r - 1),
            ]
            targets += [row.chosen, row.rejected]
            sequence.append(np.repeat([n, n + 1], [c, r]))
            n += 2
        start += row.n_tokens
    return Tokens(
        input_ids=_long(ids)[None],
        position_ids=_long(positions)[None],
        attention_mask=None,
        segments=tuple(segments),
        predictors=_long(predictors),
        targets=_long(targets),
        sequence=_long(sequence),
        n_sequences=n,
    )


def padded(rows: Sequence[TokenRow], *, pad: int) -> Tokens:
    """One row an answer, prompt included, padded on the right: input_ids [answers, longest]."""
    texts: list[Ids] = []
    predictors, targets, sequence = [], [], []
    for row in rows:
        if isinstance(row, TokenConversation):
            learnt = np.flatnonzero(row.learnt[1:])
            answers = [(row.ids, learnt, row.ids[learnt + 1])]
        else:
            start = len(row.prompt) - 1
            answers = [
                (np.concatenate([row.prompt, answer]), np.arange(start, start + len(answer)), answer)
                for answer in (row.chosen, row.rejected)
            ]
        for text, places, answer in answers:
            predictors.append(np.stack([np.full(len(places), len(texts)), places], axis=1))
            targets.append(answer)
            sequence.append(np.full(len(places), len(texts)))
            texts.append(text)
    longest = max(map(len, texts))
    ids = np.full((len(texts), longest), pad)
    mask = np.zeros_like(ids)
    for index, text in enumerate(texts):
        ids[index, : len(text)] = text
        mask[index, : len(text)] = 1
    return Tokens(
        input_ids=torch.from_numpy(ids).long(),
        position_ids=None,
        attention_mask=torch.from_numpy(mask).long(),
        segments=(),
        predictors=_long(predictors),
        targets=_long(targets),
        sequence=_long(sequence),
        n_sequences=len(texts),
    )


def lay_out(rows: Sequence[TokenRow], *, layout: Layout, pad: int) -> Tokens:
    return packed(rows) if layout == "packed" else padded(rows, pad=pad)


def _long(parts: Sequence[Any]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]))

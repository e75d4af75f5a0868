"""What a row of training data is once it is read, and where it comes from; knows no tokenizer and no file format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bfpo_bench.types import Message

# The answer that a method is to prefer: the more helpful one (the paper's y_w), or the safer one.
Preference = Literal["helpful", "safer"]


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """Two answers to one prompt: `chosen` is the more helpful one (y_w of the paper), `rejected` the less helpful.

    The prompt ends with a user's turn. A safety label is None where the data has none. `safer` is the publisher's own
    preference of the safer answer, where the data states one. `row` says where the pair was read, for people:
    source and row number, counted from 1.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_safe: bool | None
    rejected_safe: bool | None
    safer: Literal["chosen", "rejected"] | None = None
    source: str
    row: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A dialogue to imitate (supervised fine-tuning): ends with an assistant's turn; each of its turns is learnt."""

    messages: tuple[Message, ...]
    source: str
    row: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from, as a recipe states it.

    `format` names the adapter: jsonl, pku_saferlhf, ultrafeedback, ultrachat, hh_rlhf, redteaming, demo. `path` is a
    file or folder (jsonl, redteaming; or a local copy of a hub data set), else the hub's data set is loaded at
    `revision` (each adapter pins one). `limit` draws that many rows by `seed` before anything else is looked at;
    `skip` leaves out the first so many of the drawn order, so that training and evaluation can share a file. `label`
    stands for the safety labels of a source without any: safe or unsafe.
    """

    format: str
    path: str | None = None
    split: str | None = None
    revision: str | None = None
    limit: int | None = None
    skip: int = 0
    seed: int = 0
    label: Literal["safe", "unsafe"] | None = None
    prefer: Preference = "helpful"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A row that cannot be trained on, and why; `row` as in PreferencePair."""

    row: str
    reason: str

"""What is in the training pairs, and whether a method can use them; knows no file and no tokenizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.records import PreferencePair
from bfpo_bench.types import Message

# Methods whose loss reads the safety labels of a pair.
LABELLED_METHODS = ("bfpo", "morl")
# The order in which combinations are told: (chosen is safe, rejected is safe).
_COMBINATIONS: tuple[tuple[bool | None, bool | None], ...] = (
    (True, True),
    (True, False),
    (False, True),
    (False, False),
    (None, None),
)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Quantiles of one part of the pairs: the value below or at which half, 99 % and all of them lie (nearest rank)."""

    median: int
    p99: int
    longest: int


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """A prompt of the evaluation data that is in the training data too, by one row of each."""

    train: str
    evaluation: str


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counts over the pairs of one part of the training data.

    `combinations` counts (chosen_safe, rejected_safe), the paper's four classes and the unlabelled. Of the
    `n_safer_known` pairs of which one answer is the safer one, the less helpful answer is it in `n_conflicts`: there
    helpfulness and safety want different answers. `n_repeated` pairs are equal to an earlier one, `n_contradicting`
    have the answers of an earlier one in the other order. `characters` and `tokens` are keyed by prompt, chosen,
    rejected; tokens are None where nobody has counted them, as is `n_truncated`.
    """

    n: int
    combinations: Mapping[tuple[bool | None, bool | None], int]
    sources: Mapping[str, int]
    n_repeated: int
    n_contradicting: int
    n_safer_known: int
    n_conflicts: int
    characters: Mapping[str, Lengths]
    tokens: Mapping[str, Lengths] | None
    n_truncated: int | None


def safer_answer(pair: PreferencePair) -> Literal["chosen", "rejected"] | None:
    """Which answer is the safer one: by the publisher's word, else by labels that differ; None where neither says.

    The word comes first: of two unsafe answers one can be the safer.
    """
    if pair.safer is not None:
        return pair.safer
    if pair.chosen_safe is None or pair.rejected_safe is None or pair.chosen_safe == pair.rejected_safe:
        return None
    return "chosen" if pair.chosen_safe else "rejected"


def statistics(
    rows: Sequence[PreferencePair],
    *,
    lengths: Mapping[str, Sequence[int]] | None = None,
    n_truncated: int | None = None,
) -> Statistics:
    """Count the pairs; `lengths` are token counts a row, keyed by the part that was counted (prompt, chosen, rejected).

    Raises ValueError where there are not as many counts as rows.
    """
    for part, counts in (lengths or {}).items():
        if len(counts) != len(rows):
            raise ValueError(f"{len(counts)} lengths of {part} for {len(rows)} rows")
    safer = [safer_answer(row) for row in rows]
    n_repeated, n_contradicting = _repeated(rows)
    characters = {
        "prompt": [sum(len(message.content) for message in row.prompt) for row in rows],
        "chosen": [len(row.chosen) for row in rows],
        "rejected": [len(row.rejected) for row in rows],
    }
    return Statistics(
        n=len(rows),
        combinations=dict(Counter((row.chosen_safe, row.rejected_safe) for row in rows)),
        sources=dict(sorted(Counter(row.source for row in rows).items())),
        n_repeated=n_repeated,
        n_contradicting=n_contradicting,
        n_safer_known=sum(one is not None for one in safer),
        n_conflicts=sum(one == "rejected" for one in safer),
        characters=_all_lengths(characters),
        tokens=None if lengths is None else _all_lengths(lengths),
        n_truncated=n_truncated,
    )


def _repeated(rows: Sequence[PreferencePair]) -> tuple[int, int]:
    """How many pairs were there before, and how many were there before with their answers exchanged."""
    seen: set[tuple[tuple[Message, ...], str, str]] = set()
    n_repeated = n_contradicting = 0
    for row in rows:
        pair = (row.prompt, row.chosen, row.rejected)
        n_repeated += pair in seen
        n_contradicting += (row.prompt, row.rejected, row.chosen) in seen
        seen.add(pair)
    return n_repeated, n_contradicting


def _all_lengths(counts: Mapping[str, Sequence[int]]) -> dict[str, Lengths]:
    return {part: _lengths(values) for part, values in counts.items() if values}


def _lengths(values: Sequence[int]) -> Lengths:
    ordered = sorted(values)
    median, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.99))
    return Lengths(median=median, p99=p99, longest=ordered[-1])


def describe(found: Statistics) -> list[str]:
    """The statistics in plain lines, for a console; what is zero or unknown has no line."""
    if found.n == 0:
        return ["no pairs"]
    told = [f"{found.combinations[key]} {_named(key)}" for key in _told(found.combinations)]
    lines = [
        f"{found.n} pairs: " + ", ".join(f"{count} {source}" for source, count in found.sources.items()),
        "chosen > rejected: " + ", ".join(told),
    ]
    if found.n_safer_known:
        share = 100 * found.n_conflicts / found.n_safer_known
        lines.append(
            f"the more helpful answer is the less safe one in {found.n_conflicts} of {found.n_safer_known} pairs "
            f"with a safer answer ({share:.1f} %)"
        )
    if found.n_repeated:
        lines.append(f"{found.n_repeated} repeat an earlier pair")
    if found.n_contradicting:
        lines.append(f"{found.n_contradicting} contradict an earlier pair: the same answers in the other order")
    for unit, parts in (("characters", found.characters), ("tokens", found.tokens)):
        if parts:
            lines.append(f"{unit} (median, 99 %, longest): " + "; ".join(_shown(*part) for part in parts.items()))
    if found.n_truncated:
        lines.append(f"{found.n_truncated} of {found.n} have an answer that is cut")
    return lines


def _told(combinations: Mapping[tuple[bool | None, bool | None], int]) -> list[tuple[bool | None, bool | None]]:
    return [*(one for one in _COMBINATIONS if one in combinations), *(set(combinations) - set(_COMBINATIONS))]


def _named(labels: tuple[bool | None, bool | None]) -> str:
    if labels == (None, None):
        return "without labels"
    return " > ".join({True: "safe", False: "unsafe", None: "unknown"}[label] for label in labels)


def _shown(part: str, lengths: Lengths) -> str:
    return f"{part} {lengths.median}, {lengths.p99}, {lengths.longest}"


def split_overlap(train: Sequence[PreferencePair], evaluation: Sequence[PreferencePair]) -> tuple[Overlap, ...]:
    """The evaluation rows whose whole prompt is a training prompt as well, but for white space at its turns' ends.

    Answers are not looked at: a model that has learnt one answer to a prompt knows the prompt. One overlap an
    evaluation row, with the first training row that has its prompt.
    """
    first: dict[tuple[tuple[str, str], ...], str] = {}
    for row in train:
        first.setdefault(_prompt_key(row), row.row)
    return tuple(
        Overlap(train=first[key], evaluation=row.row) for row in evaluation if (key := _prompt_key(row)) in first
    )


def _prompt_key(row: PreferencePair) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, message.content.strip()) for message in row.prompt)


def require_labels(rows: Sequence[PreferencePair], method: str) -> None:
    """Refuse pairs without safety labels where the method's loss reads them; ConfigError names the first source."""
    if method not in LABELLED_METHODS:
        return
    absent = [row for row in rows if row.chosen_safe is None or row.rejected_safe is None]
    if not absent:
        return
    source = absent[0].source
    n = sum(row.source == source for row in absent)
    raise ConfigError(
        f"method {method} needs safety labels: {n} pairs of {source} have none (first: {absent[0].row}). "
        "Give its source label: safe where its answers count as safe, as the paper does with UltraFeedback."
    )

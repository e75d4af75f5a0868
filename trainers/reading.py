"""From a recipe's sources to rows that can be trained on: read, checked, compared with the benchmark, counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.adapters import Read, read_conversations, read_pairs
from bfpo_bench.trainers.checks import describe, require_labels, safer_answer, split_overlap, statistics
from bfpo_bench.trainers.contamination import Hit, find_contaminated
from bfpo_bench.trainers.layout import TokenPair, TokenRow
from bfpo_bench.trainers.recipe import Recipe
from bfpo_bench.trainers.records import Conversation, Preference, PreferencePair, Problem, Source
from bfpo_bench.trainers.tokenise import PairTokeniser

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows of one source as they are trained on, and what became of the others."""

    source: Source
    read: Read[Any]
    rows: tuple[TokenRow, ...]
    problems: tuple[Problem, ...]
    contaminated: tuple[Hit, ...] = ()

    @property
    def n_cut(self) -> int:
        return sum(row.n_cut > 0 for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Everything read, by what it is for: parts of the training data and named sets for evaluation."""

    train: Mapping[str, Part]
    evaluation: Mapping[str, Part] = field(default_factory=dict)


def read_data(
    recipe: Recipe, tokenizer: Any, *, prompts: Mapping[str, Sequence[str]], unchecked: Mapping[str, str], say: Say
) -> Data:
    """Read, check, count and tokenise every source; prints what there is, before anything is trained on it."""
    tokeniser = PairTokeniser(
        tokenizer,
        max_length=recipe.max_length,
        max_prompt_length=recipe.max_prompt_length,
        long_prompts=recipe.long_prompts,
        template=recipe.chat_template,
    )
    train: dict[str, Part] = {}
    for name, source in recipe.sources.items():
        read = _read(recipe, source)
        train[name] = _part(source, read, tokeniser, prompts=prompts, recipe=recipe)
        _describe(name, train[name], say=say)
    evaluation: dict[str, Part] = {}
    for name, source in recipe.evaluated.items():
        evaluation[name] = _part(source, _read(recipe, source), tokeniser, prompts={}, recipe=recipe)
        _describe(f"evaluation, {name}", evaluation[name], say=say)
    for line in _unchecked(prompts, unchecked):
        say(line)
    if recipe.settings.loss != "sft":
        seen, held_out = ([row for part in parts.values() for row in part.read.rows] for parts in (train, evaluation))
        if shared := split_overlap(seen, held_out):
            say(f"note: {len(shared)} prompts of evaluation are in the training data, the first {shared[0].train}")
    return Data(train=train, evaluation=evaluation)


def _read(recipe: Recipe, source: Source) -> Read[Any]:
    if recipe.settings.loss == "sft":
        return read_conversations(source)
    read = read_pairs(source)
    require_labels(read.rows, recipe.method)
    return read


def _part(
    source: Source,
    read: Read[Any],
    tokeniser: PairTokeniser,
    *,
    prompts: Mapping[str, Sequence[str]],
    recipe: Recipe,
) -> Part:
    problems = list(read.problems)
    hits = _contaminated(read.rows, prompts)
    dirty = {hit.index for hit in hits}
    if dirty and recipe.contamination == "refuse":
        hit = hits[0]
        raise ConfigError(
            f"{len(dirty)} rows of {read.origin} repeat prompts of the benchmark, the first {read.rows[hit.index].row} "
            f"one of {hit.task} ({hit.kind}); contamination: drop leaves them out."
        )
    rows: list[TokenRow] = []
    for index, row in enumerate(read.rows):
        if index in dirty and recipe.contamination == "drop":
            hit = next(one for one in hits if one.index == index)
            problems.append(Problem(row=row.row, reason=f"repeats a prompt of the benchmark's {hit.task} ({hit.kind})"))
            continue
        ordered = row if isinstance(row, Conversation) else in_order(row, prefer=source.prefer)
        if isinstance(ordered, Problem):
            problems.append(ordered)
            continue
        tokens = tokeniser.conversation(ordered) if isinstance(ordered, Conversation) else tokeniser.pair(ordered)
        problems.append(tokens) if isinstance(tokens, Problem) else rows.append(tokens)
    if not rows:
        raise ConfigError(
            f"{read.origin}: no row is left to train on. The first: {problems[0].row}: {problems[0].reason}."
        )
    return Part(source=source, read=read, rows=tuple(rows), problems=tuple(problems), contaminated=hits)


def in_order(pair: PreferencePair, *, prefer: Preference) -> PreferencePair | Problem:
    """The pair with the answer that is preferred as its chosen one; a Problem where the data prefers none as safer."""
    if prefer == "helpful":
        return pair
    safer = safer_answer(pair)
    if safer is None:
        return Problem(row=pair.row, reason="neither answer is the safer one, and the safer one is to be preferred")
    if safer == "chosen":
        return pair
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_safe=pair.rejected_safe,
        rejected_safe=pair.chosen_safe,
        safer=None if pair.safer is None else "chosen",
    )


def questions(row: PreferencePair | Conversation) -> list[str]:
    """What a row asks: the last turn of a pair's user; of a conversation, which is learnt turn by turn, each."""
    if isinstance(row, Conversation):
        return [one.content for one in row.messages if one.role == "user"]
    return [next((one.content for one in reversed(row.prompt) if one.role == "user"), "")]


def _contaminated(rows: Sequence[Any], prompts: Mapping[str, Sequence[str]]) -> tuple[Hit, ...]:
    """The hits by row, one a row and task; `index` is the row's."""
    if not prompts:
        return ()
    asked = [(index, text) for index, row in enumerate(rows) for text in questions(row)]
    hits = find_contaminated([text for _, text in asked], prompts)
    return tuple({(asked[hit.index][0], hit.task): replace(hit, index=asked[hit.index][0]) for hit in hits}.values())


def _describe(name: str, part: Part, *, say: Say) -> None:
    say(f"{name}: {len(part.rows)} of {part.read.n_seen} rows of {part.read.origin}")
    for line in _statistics(part):
        say(f"  {line}")
    reasons: dict[str, list[str]] = {}
    for problem in part.problems:
        reasons.setdefault(_kind(problem.reason), []).append(problem.row)
    for reason, where in sorted(reasons.items()):
        shown = ", ".join(where[:5]) + (", ..." if len(where) > 5 else "")
        say(f"  left out {len(where)}: {reason} ({shown})")


def _statistics(part: Part) -> list[str]:
    kept = {one.row: one for one in part.rows}
    read = [row for row in part.read.rows if row.row in kept and isinstance(row, PreferencePair)]
    pairs = [one for row in read if isinstance(one := in_order(row, prefer=part.source.prefer), PreferencePair)]
    if not pairs:
        lengths = sorted(row.n_tokens for row in part.rows)
        return [
            f"{len(lengths)} conversations of {lengths[len(lengths) // 2]} tokens (median), {lengths[-1]} the longest; "
            f"{part.n_cut} are cut"
        ]
    tokens = [found for row in pairs if isinstance(found := kept[row.row], TokenPair)]
    counts = {name: [len(getattr(one, name)) for one in tokens] for name in ("prompt", "chosen", "rejected")}
    return describe(statistics(pairs, lengths=counts, n_truncated=part.n_cut))


def _kind(reason: str) -> str:
    """Reasons that differ in a number only are one line."""
    return re.sub(r"\d+(?= tokens)", "N", reason)


def _unchecked(prompts: Mapping[str, Sequence[str]], unchecked: Mapping[str, str]) -> list[str]:
    lines = []
    if prompts:
        n = sum(map(len, prompts.values()))
        lines.append(
            f"contamination: looked for {n} prompts of {len(prompts)} tasks ({', '.join(list(prompts)[:4])}, ...)"
        )
    if unchecked:
        names = list(unchecked)
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        lines.append(f"contamination: not looked for, their data is not here: {', '.join(names[:4])}{more}")
    return lines

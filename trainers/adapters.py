"""Reads training data of seven formats into pairs and conversations, with row numbers; knows no tokenizer, no model.

Two rules decide what becomes of bad data:

- A source is REFUSED as a whole (ConfigError: file, row, value, remedy) where its structure is broken, because then no
  row of it can be trusted: bytes that are not UTF-8, a truncated or invalid line, a key twice in one object, a missing
  column, a value of the wrong type, a label other than true or false (1 and 0 are read as these), safety labels in
  one column only, or in some rows and not in others.
- A row is SKIPPED (Problem: row, reason) where only it is useless: an empty prompt or answer, two equal answers, a
  prompt that does not end with the user's turn, an unknown role, text that no tokenizer can encode, a label that is
  null where other rows have one, transcripts that differ before the last answer.

A long row is neither: what does not fit is decided where rows are tokenised. Rows of a file are all checked, those of a
hub data set where they are drawn. Row numbers count from 1 in the file (its lines) or split, whatever was drawn.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from bfpo_bench.errors import ConfigError, did_you_mean
from bfpo_bench.trainers.checks import safer_answer
from bfpo_bench.trainers.records import Conversation, Preference, PreferencePair, Problem, Source
from bfpo_bench.types import Message, is_blank

DEMO_FILE = Path(__file__).parent / "demo" / "pairs.jsonl"
# The commit at which a hub data set is read where a recipe names none.
PINNED: Mapping[str, str] = {
    # As the task bfpo_beaver pins it. The authors' commit, with another set of rows, is in recipes/zephyr-bfpo.yaml.
    "PKU-Alignment/PKU-SafeRLHF": "9421ffafec3fa40a1f1a7d567b4d525079477ecb",
    "HuggingFaceH4/ultrafeedback_binarized": "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85",
    "HuggingFaceH4/ultrachat_200k": "8049631c405ae6576f93f445c6b8166f76f5505a",
    "Anthropic/hh-rlhf": "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
}
# What a mirror (`bfpo_bench data fetch`) knows of its data sets: {"sets": {repository: {"revision": commit}}}.
_MIRROR_RECORD = "bfpo_data.json"
_ROLES = ("system", "user", "assistant")

Row = Mapping[str, Any]
Item = TypeVar("Item", PreferencePair, Conversation)


@dataclass(frozen=True, kw_only=True)
class Read(Generic[Item]):
    """What a source gave: `n_seen` rows were drawn of `n_total`, of which each is among `rows` or in `problems`.

    `sha256` is of the file's bytes, or of the drawn rows as canonical JSON; `origin` names the data for people: file
    name, or hub id, commit and split.
    """

    rows: tuple[Item, ...]
    problems: tuple[Problem, ...]
    n_seen: int
    n_total: int
    sha256: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a row stands."""

    source: str
    row: str


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Rows as they lie in the source: `numbers` are their numbers for people, `load` gives those at some positions.

    `whole` where all rows are in memory, and so all are checked; `sha256` None where it is that of the drawn rows.
    """

    name: str
    origin: str
    columns: frozenset[str]
    numbers: Sequence[int]
    load: Callable[[Sequence[int]], Iterable[Row]]
    whole: bool
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class _Format:
    """How a format's rows are laid out; a hub format names its repository and the split that is read by default."""

    pair: Callable[[Row, _Place, bool], PreferencePair] | None
    pair_columns: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    conversation: Callable[[Row, _Place], Conversation] | None = None
    conversation_columns: tuple[str, ...] = ()
    hub: str | None = None
    split: str | None = None


class _Useless(Exception):
    """A row that is skipped; the text is the reason."""


# -- the two questions -------------------------------------------------------------------------------------------------


def read_pairs(source: Source) -> Read[PreferencePair]:
    """The pairs of a source, drawn by its seed, the more helpful answer as `chosen` whatever the source's `prefer` is.

    Raises ConfigError where the source is refused (above), absent, smaller than limit + skip, or has no usable row.
    """
    form = _format(source)
    parse = form.pair
    if parse is None:
        raise ConfigError(f"Format {source.format!r} has conversations only. Use it with method: sft.")
    table = _table(source, form, form.pair_columns, optional=form.labels)
    labelled = _is_labelled(table, form.labels)
    if labelled and source.label is not None:
        raise ConfigError(f"{table.origin} has safety labels of its own. Leave out label: {source.label}.")

    def read(row: Row, place: _Place) -> PreferencePair:
        pair = parse(row, place, labelled)
        if source.label is not None:
            safe = source.label == "safe"
            pair = replace(pair, chosen_safe=safe, rejected_safe=safe)
        return pair

    return _read(source, table, read)


def read_conversations(source: Source) -> Read[Conversation]:
    """The dialogues of a source, drawn by its seed; of a pair, the prompt with the answer that `prefer` names.

    With `prefer: safer` a pair of which no answer is the safer one gives the more helpful answer, unless that is
    unsafe. The authors imitate the safer answer of PKU-SafeRLHF (github.com/wx-zhang/bfpo at a1febab,
    src/alignment/data.py, apply_chat_template). Raises ConfigError as `read_pairs` does.
    """
    form = _format(source)
    spoken = form.conversation
    if spoken is not None:
        table = _table(source, form, form.conversation_columns, optional=())
        if "chosen" not in table.columns:
            return _read(source, table, spoken)
    parse = form.pair
    assert parse is not None, "a format has pairs, conversations, or both"
    table = _table(source, form, form.pair_columns, optional=form.labels)
    labelled = _is_labelled(table, form.labels)
    return _read(source, table, lambda row, place: _imitated(parse(row, place, labelled), source.prefer))


def _read(source: Source, table: _Table, parse: Callable[[Row, _Place], Item]) -> Read[Item]:
    """Draw, check and sort into rows and problems."""
    drawn = drawn_order(len(table.numbers), source, origin=table.origin)
    positions = range(len(table.numbers)) if table.whole else drawn
    found: dict[int, Item | Problem] = {}
    digest = hashlib.sha256()
    for position, row in zip(positions, table.load(positions), strict=True):
        place = _Place(source=table.name.partition("/")[0], row=f"{table.name}:{table.numbers[position]}")
        try:
            found[position] = parse(row, place)
        except _Useless as reason:
            found[position] = Problem(row=place.row, reason=str(reason))
        if table.sha256 is None:
            digest.update((json.dumps(row, sort_keys=True, default=str) + "\n").encode())
    outcomes = [found[position] for position in drawn]
    problems = tuple(one for one in outcomes if isinstance(one, Problem))
    rows = tuple(one for one in outcomes if not isinstance(one, Problem))
    if not rows:
        why = f" The first is {problems[0].row}: {problems[0].reason}." if problems else ""
        raise ConfigError(f"{table.origin}: none of {len(outcomes)} rows can be trained on.{why}")
    return Read(
        rows=rows,
        problems=problems,
        n_seen=len(drawn),
        n_total=len(table.numbers),
        sha256=table.sha256 or digest.hexdigest(),
        origin=table.origin,
    )


def drawn_order(n: int, source: Source, *, origin: str) -> list[int]:
    """Which of n rows are taken, in which order: all as they lie, or `limit` of a seeded permutation after `skip`.

    Never the first n: rows of one answerer or topic lie together (the authors take the first 20 % of PKU-SafeRLHF).
    Raises ConfigError where there are fewer rows than asked for: a smaller experiment than the recipe says.
    """
    if (source.limit is not None and source.limit < 1) or source.skip < 0:
        raise ConfigError(f"{origin}: limit {source.limit}, skip {source.skip}: limit is at least 1, skip at least 0.")
    wanted = source.skip + (source.limit or 1)
    if wanted > n:
        taken = "at least one row" if source.limit is None else f"limit {source.limit}"
        raise ConfigError(f"{origin} has {n} rows, too few for skip {source.skip} and {taken}. Lower them.")
    if source.limit is None and source.skip == 0:
        return list(range(n))
    # Of Python's generator only random() is promised to stay the same in later versions, not sample or shuffle.
    generator = random.Random(source.seed)
    keys = [generator.random() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)[source.skip :][: source.limit]


def _imitated(pair: PreferencePair, prefer: Preference) -> Conversation:
    """The prompt of a pair with the answer that is to be imitated."""
    safer = safer_answer(pair) if prefer == "safer" else None
    if prefer == "safer" and safer is None and pair.chosen_safe is False:
        raise _Useless("both answers are unsafe")
    answer = pair.rejected if safer == "rejected" else pair.chosen
    messages = (*pair.prompt, Message(role="assistant", content=answer))
    return Conversation(messages=messages, source=pair.source, row=pair.row)


# -- formats -----------------------------------------------------------------------------------------------------------


def _jsonl_pair(row: Row, place: _Place, labelled: bool) -> PreferencePair:
    """{prompt, chosen, rejected, chosen_safe, rejected_safe, safer}; the last three may be absent from the file."""
    safer = row.get("safer")
    if safer not in (None, "chosen", "rejected"):
        raise _refused(place, "safer", safer, "Write chosen, rejected or null.")
    return _pair(
        place,
        prompt=_prompt(row["prompt"], place),
        answers=(row["chosen"], row["rejected"]),
        safe=(_label(row, "chosen_safe", place, labelled), _label(row, "rejected_safe", place, labelled)),
        safer=safer,
    )


def _jsonl_conversation(row: Row, place: _Place) -> Conversation:
    """{messages}, or {prompt, response}."""
    if "messages" in row:
        return _conversation(place, row["messages"])
    for column in ("prompt", "response"):
        if column not in row:
            raise ConfigError(f"{place.row} lacks column {column!r}. A row is {{messages}} or {{prompt, response}}.")
    messages = _prompt(row["prompt"], place)
    _check_prompt(messages)
    answer = _text(row["response"], "response", place)
    return Conversation(
        messages=(*messages, Message(role="assistant", content=answer)), source=place.source, row=place.row
    )


def _pku_pair(row: Row, place: _Place, labelled: bool) -> PreferencePair:
    """Which answer helps more, which is safer, and whether each is safe: arXiv 2406.15513, section 3."""
    better, safer = (_one_of(row, f"{word}_response_id", (0, 1), place) for word in ("better", "safer"))
    order = (better, 1 - better)
    return _pair(
        place,
        prompt=_prompt(row["prompt"], place),
        answers=(row[f"response_{order[0]}"], row[f"response_{order[1]}"]),
        safe=(
            _label(row, f"is_response_{order[0]}_safe", place, labelled),
            _label(row, f"is_response_{order[1]}_safe", place, labelled),
        ),
        safer="chosen" if safer == better else "rejected",
    )


def _redteaming_pair(row: Row, place: _Place, labelled: bool) -> PreferencePair:
    """The authors' red-teaming file, by their loader (src/alignment/data.py): answers are numbered 1 and 2."""
    better = _one_of(row, "better_modelout", (1, 2), place)
    order = (better, 3 - better)
    return _pair(
        place,
        prompt=_prompt(row["prompt"], place),
        answers=(row[f"modeloutput{order[0]}"], row[f"modeloutput{order[1]}"]),
        safe=(
            _label(row, f"is_modelout{order[0]}_safe", place, labelled),
            _label(row, f"is_modelout{order[1]}_safe", place, labelled),
        ),
    )


def _ultrafeedback_pair(row: Row, place: _Place, labelled: bool) -> PreferencePair:
    """Two dialogues that differ in their last turn."""
    return _pair_of_dialogues(place, *(_messages(row[column], place) for column in ("chosen", "rejected")))


_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKER = {"Human": "user", "Assistant": "assistant"}


def _hh_pair(row: Row, place: _Place, labelled: bool) -> PreferencePair:
    """Two transcripts that differ in their last turn; rows in which they part earlier are no pair for one prompt."""
    return _pair_of_dialogues(place, *(_transcript(row, column, place) for column in ("chosen", "rejected")))


def _transcript(row: Row, column: str, place: _Place) -> tuple[Message, ...]:
    """Turns of a text of the form: blank line, Human: ..., blank line, Assistant: ...."""
    text = row[column]
    if not isinstance(text, str):
        raise _refused(place, column, text, "It holds a transcript.")
    before, *rest = _TURN.split(text)
    if before.strip() or not rest:
        raise _Useless(f"{column} does not begin with a turn of Human")
    spoken = zip(rest[::2], rest[1::2], strict=True)
    return tuple(Message(role=_SPEAKER[speaker], content=words.strip()) for speaker, words in spoken)


def _chat_conversation(row: Row, place: _Place) -> Conversation:
    return _conversation(place, row["messages"])


_PAIR = ("prompt", "chosen", "rejected")
_LABELS = ("chosen_safe", "rejected_safe")
_PKU_LABELS = ("is_response_0_safe", "is_response_1_safe")
_PKU = ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id", *_PKU_LABELS)
_RED_LABELS = ("is_modelout1_safe", "is_modelout2_safe")
_RED = ("prompt", "modeloutput1", "modeloutput2", "better_modelout", *_RED_LABELS)

FORMATS: Mapping[str, _Format] = {
    "jsonl": _Format(pair=_jsonl_pair, pair_columns=_PAIR, labels=_LABELS, conversation=_jsonl_conversation),
    "demo": _Format(pair=_jsonl_pair, pair_columns=(*_PAIR, "kind"), labels=_LABELS),
    "redteaming": _Format(pair=_redteaming_pair, pair_columns=_RED, labels=_RED_LABELS),
    "pku_saferlhf": _Format(
        pair=_pku_pair, pair_columns=_PKU, labels=_PKU_LABELS, hub="PKU-Alignment/PKU-SafeRLHF", split="train"
    ),
    "ultrafeedback": _Format(
        pair=_ultrafeedback_pair,
        pair_columns=("chosen", "rejected"),
        hub="HuggingFaceH4/ultrafeedback_binarized",
        split="train_prefs",
    ),
    "ultrachat": _Format(
        pair=None,
        conversation=_chat_conversation,
        conversation_columns=("messages",),
        hub="HuggingFaceH4/ultrachat_200k",
        split="train_sft",
    ),
    "hh_rlhf": _Format(
        pair=_hh_pair,
        pair_columns=("chosen", "rejected"),
        hub="Anthropic/hh-rlhf",
        split="train",
    ),
}


def _format(source: Source) -> _Format:
    if source.format not in FORMATS:
        raise ConfigError(did_you_mean("data format", source.format, FORMATS))
    return FORMATS[source.format]


# -- values of a row ---------------------------------------------------------------------------------------------------


def _pair(
    place: _Place,
    *,
    prompt: tuple[Message, ...],
    answers: tuple[Any, Any],
    safe: tuple[bool | None, bool | None],
    safer: Literal["chosen", "rejected"] | None = None,
) -> PreferencePair:
    _check_prompt(prompt)
    chosen, rejected = (_text(answer, name, place) for answer, name in zip(answers, _PAIR[1:], strict=True))
    if chosen.strip() == rejected.strip():
        raise _Useless("chosen and rejected are equal")
    return PreferencePair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_safe=safe[0],
        rejected_safe=safe[1],
        safer=safer,
        source=place.source,
        row=place.row,
    )


def _pair_of_dialogues(place: _Place, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> PreferencePair:
    for dialogue, name in ((chosen, "chosen"), (rejected, "rejected")):
        if not dialogue or dialogue[-1].role != "assistant":
            raise _Useless(f"{name} does not end with a turn of the assistant")
    if chosen[:-1] != rejected[:-1]:
        raise _Useless("chosen and rejected differ before their last turn")
    answers = (chosen[-1].content, rejected[-1].content)
    return _pair(place, prompt=chosen[:-1], answers=answers, safe=(None, None))


def _conversation(place: _Place, value: Any) -> Conversation:
    messages = _messages(value, place)
    if not messages or messages[-1].role != "assistant":
        raise _Useless("it does not end with a turn of the assistant")
    if is_blank(messages[-1].content):
        raise _Useless("the last answer is empty")
    _check_prompt(messages[:-1])
    return Conversation(messages=messages, source=place.source, row=place.row)


def _prompt(value: Any, place: _Place) -> tuple[Message, ...]:
    """A text is one turn of the user."""
    if value is None or isinstance(value, str):
        return (Message(role="user", content=_encodable(value or "", "prompt", place)),)
    return _messages(value, place)


def _check_prompt(messages: Sequence[Message]) -> None:
    if not messages or any(message.role == "user" and is_blank(message.content) for message in messages):
        raise _Useless("prompt is empty")
    if messages[-1].role != "user":
        raise _Useless(f"prompt ends with a turn of {messages[-1].role!r}, not of 'user'")


def _messages(value: Any, place: _Place) -> tuple[Message, ...]:
    """A list of {role, content}; a system message may be empty, as the authors put one before each prompt."""
    if not isinstance(value, list | tuple):
        raise _refused(place, "messages", value, "Give a list of {role, content}.")
    found: list[Message] = []
    for one in value:
        if not isinstance(one, Mapping) or not isinstance(one.get("role"), str) or "content" not in one:
            raise _refused(place, "messages", one, "Give a list of {role, content}.")
        if one["role"] not in _ROLES:
            raise _Useless(f"unknown role {one['role']!r}")
        content = "" if one["content"] is None else one["content"]
        found.append(Message(role=one["role"], content=_encodable(content, "messages", place)))
    return tuple(found)


def _text(value: Any, column: str, place: _Place) -> str:
    text = _encodable("" if value is None else value, column, place)
    if is_blank(text):
        raise _Useless(f"{column} is empty")
    return text


def _encodable(value: Any, column: str, place: _Place) -> str:
    if not isinstance(value, str):
        raise _refused(place, column, value, "It holds a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON may escape half of a character (\ud83d alone): no tokenizer takes it.
        raise _Useless(f"{column} holds half a character (a lone surrogate) at {error.start}") from None
    return value


def _label(row: Row, column: str, place: _Place, labelled: bool) -> bool | None:
    value = row.get(column)
    if value is None:
        if labelled:
            raise _Useless(f"no safety label in {column}")
        return None
    # 1.0 is refused: it is what a table becomes in which some labels are missing.
    if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise _refused(place, column, value, "Write true or false.")


def _one_of(row: Row, column: str, values: tuple[int, int], place: _Place) -> int:
    # The authors' loader calls int() on theirs, so a file of theirs may hold digits.
    for value in values:
        if row[column] in (value, str(value)) and not isinstance(row[column], bool):
            return value
    raise _refused(place, column, row[column], f"It is {values[0]} or {values[1]}.")


def _refused(place: _Place, column: str, value: Any, remedy: str) -> ConfigError:
    shown = repr(value) if len(repr(value)) <= 40 else f"{type(value).__name__} {repr(value)[:36]}..."
    return ConfigError(f"{place.row}: {column} is {shown}. {remedy}")


def _is_labelled(table: _Table, columns: tuple[str, ...]) -> bool:
    """Whether the source has safety labels; None of two columns must be there alone."""
    there = [column for column in columns if column in table.columns]
    if len(there) == 1:
        (absent,) = set(columns) - set(there)
        raise ConfigError(f"{table.origin} has column {there[0]!r} but not {absent!r}. Give both labels or none.")
    if not there:
        return False
    if not table.whole:
        return True
    rows = table.load(range(len(table.numbers)))
    return any(row[column] is not None for row in rows for column in columns)


# -- where rows lie ----------------------------------------------------------------------------------------------------


def _table(source: Source, form: _Format, required: tuple[str, ...], *, optional: tuple[str, ...]) -> _Table:
    if form.hub is not None:
        return _hub_table(source, form, required)
    if source.revision is not None:
        raise ConfigError(f"Format {source.format!r} is a file and has no revision: leave out {source.revision!r}.")
    if source.format == "demo":
        return _demo_table(source, required, optional)
    if source.split is not None:
        raise ConfigError(f"Format {source.format!r} is a file and has no splits: leave out {source.split!r}.")
    if source.path is None:
        raise ConfigError(f"Format {source.format!r} needs a file. Give its path.")
    path = Path(source.path).expanduser()
    rows, sha256 = _file_rows(path, listed=source.format == "redteaming")
    return _file_table(path.name, path.name, rows, sha256, required, optional)


def _demo_table(source: Source, required: tuple[str, ...], optional: tuple[str, ...]) -> _Table:
    kinds = ("safety", "helpfulness")
    if source.split is not None and source.split not in kinds:
        raise ConfigError(did_you_mean("split of the demo", source.split, kinds))
    if source.path is not None:
        raise ConfigError("Format 'demo' is bundled and has no path. Use format: jsonl for a file of your own.")
    rows, sha256 = _file_rows(DEMO_FILE, listed=False)
    table = _file_table("demo", DEMO_FILE.name, rows, sha256, required, optional)
    chosen = [(number, row) for number, row in rows if source.split in (None, row["kind"])]
    split = f"-{source.split}" if source.split else ""
    return replace(
        table,
        name=f"demo{split}",
        origin=f"demo{f', split {source.split}' if source.split else ''}",
        numbers=[number for number, _ in chosen],
        load=lambda positions: [chosen[position][1] for position in positions],
    )


def _file_table(
    name: str,
    file: str,
    rows: Sequence[tuple[int, Row]],
    sha256: str,
    required: tuple[str, ...],
    optional: tuple[str, ...],
) -> _Table:
    """A file's rows, in each of which are the required columns, and those optional ones that are in any."""
    seen = {column for _, row in rows for column in row}
    wanted = [*required, *(column for column in optional if column in seen)]
    for number, row in rows:
        for column in wanted:
            if column not in row:
                has = ", ".join(map(str, row)) or "nothing"
                raise ConfigError(f"{file}:{number} lacks column {column!r} (it has: {has}). Give it in every row.")
    return _Table(
        name=name,
        origin=name,
        columns=frozenset(seen),
        numbers=[number for number, _ in rows],
        load=lambda positions: [rows[position][1] for position in positions],
        whole=True,
        sha256=sha256,
    )


def _file_rows(path: Path, *, listed: bool) -> tuple[list[tuple[int, Row]], str]:
    """The objects of JSON lines with their line numbers, and the file's sha256; `listed`: one JSON list will do too."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror or error}. Check the path.") from error
    text = _decoded(content, path.name)
    if listed and text.lstrip().startswith("["):
        rows = _listed_rows(text, path.name)
    else:
        # Only \n ends a line: the separators of Unicode may stand inside a JSON text.
        lines = text.split("\n")
        rows = [
            (number, _object(line, path.name, number, last=number == len(lines)))
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
    if not rows:
        raise ConfigError(f"{path.name} holds no rows. Write one JSON object a line.")
    return rows, hashlib.sha256(content).hexdigest()


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A byte-order mark is cut off before offsets are counted.
        offset = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        row, byte = content.count(b"\n", 0, offset) + 1, content[offset]
        raise ConfigError(
            f"{name}:{row}: byte 0x{byte:02x} at offset {offset} is not UTF-8. Save the file as UTF-8."
        ) from None


def _object(line: str, name: str, number: int, *, last: bool) -> Row:
    try:
        value = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        # A complete file ends with a newline, so that a last line that does not parse was cut off.
        cut = " The file seems to be truncated." if last else ""
        raise ConfigError(
            f"{name}:{number} is not valid JSON: {_short(error)}.{cut} Write one JSON object a line."
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{name}:{number} is a JSON {type(value).__name__}. Write one JSON object a line.")
    return value


def _listed_rows(text: str, name: str) -> list[tuple[int, Row]]:
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid JSON: {_short(error)}. Get the file again.") from None
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise ConfigError(f"{name}:{number} is a JSON {type(value).__name__}. Give a list of objects.")
    return list(enumerate(values, start=1))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


# -- the hub, and copies of it -----------------------------------------------------------------------------------------


def _hub_table(source: Source, form: _Format, required: tuple[str, ...]) -> _Table:
    """A hub data set at its commit, or a copy of it: of `path`, else of the mirror that BFPO_DATA_DIR names."""
    repo, split = str(form.hub), source.split or str(form.split)
    revision = source.revision or PINNED[repo]
    copy = _local_copy(source, repo, revision)
    data = _load(repo, split, revision=revision, copy=copy)
    origin = f"{repo}@{revision[:12]}, split {split}" if copy is None else f"{repo}, {copy.what}, split {split}"
    if absent := [column for column in required if column not in data.column_names]:
        raise ConfigError(
            f"{origin} lacks column {absent[0]!r} (it has: {', '.join(data.column_names)}). Name another revision."
        )
    data = data.select_columns(list(required))
    return _Table(
        name=f"{repo.partition('/')[2]}/{split}",
        origin=origin,
        columns=frozenset(required),
        numbers=range(1, len(data) + 1),
        load=data.select,
        whole=False,
        sha256=None,
    )


@dataclass(frozen=True, kw_only=True)
class _Copy:
    folder: Path
    what: str


def _local_copy(source: Source, repo: str, revision: str) -> _Copy | None:
    """The folder of a copy in the hub's layout, None to ask the hub; a mirror's record must name the same commit."""
    given = source.path or os.environ.get("BFPO_DATA_DIR")
    if not given:
        return None
    mirror = Path(given).expanduser()
    folder = mirror / repo
    if not folder.is_dir():
        if source.path is None:
            return None
        if not mirror.is_dir():
            raise ConfigError(f"No folder {mirror}. Give a copy of {repo} in the hub's layout, or leave out path.")
        folder, mirror = mirror, mirror.parent.parent
    recorded = _recorded_revision(mirror, repo)
    if recorded is None:
        return _Copy(folder=folder, what="a copy of unknown revision")
    if not (recorded.startswith(revision) or revision.startswith(recorded)):
        raise ConfigError(
            f"{mirror} holds {repo} at {recorded}, wanted is {revision}. Name that revision, or another path."
        )
    return _Copy(folder=folder, what=f"a copy of {recorded[:12]}")


def _recorded_revision(mirror: Path, repo: str) -> str | None:
    try:
        record = json.loads((mirror / _MIRROR_RECORD).read_text(encoding="utf-8"))
        revision = record["sets"][repo]["revision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return revision if isinstance(revision, str) else None


def _load(repo: str, split: str, *, revision: str, copy: _Copy | None) -> Any:
    """One split; `folder/split` reads a folder of the repository (hh-rlhf: harmless-base/train)."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    folder, _, name = split.rpartition("/")
    where, options = (repo, {"revision": revision}) if copy is None else (str(copy.folder), {})
    if folder:
        options["data_dir"] = folder
    try:
        return load_dataset(where, split=name, **options)
    except (OSError, ValueError, DatasetsError) as error:
        why = _short(error).rstrip(".")
        if copy is not None:
            raise ConfigError(
                f"Cannot read split {split!r} of {copy.folder}: {why}. Add it there, or unset BFPO_DATA_DIR (or path)."
            ) from error
        raise ConfigError(
            f"Cannot load split {split!r} of {repo} at {revision[:12]}: {why}. Go online once, or name a copy: "
            "BFPO_DATA_DIR for a mirror, or path."
        ) from error

"""What judges share against hostile text: fences, defused control tokens, clipping, one parser; knows no judge.

Nothing here backtracks: every function is linear in the length of its text.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Callable, Collection
from typing import TypeVar

from bfpo_bench.types import INVISIBLE

L = TypeVar("L", bound=str)

PARSER_VERSION = "3"

# Possessive (`*+`): a run of a million zero-width characters is crossed once, not once a character.
_Z = f"[{INVISIBLE}]*+"
_GAP = rf"[\s{INVISIBLE}]"

# What stands between the brackets of a control token, folded. <s> is also HTML's strike-through, and <role> somebody's
# XML; the judge still understands what it reads.
_ANGLE_NAMES = re.compile(
    r"s|unk|pad|bos|eos|mask|sep|cls|sop|eop|eoh|eoa|ai|\u7528\u6237|sys|role|think|tool_call|tool_response"
    r"|(?:start|end)_of_(?:turn|image|utterance)|end_of_utterance|(?:bos|eos|pad|unk|cls|sep|mask|eop)_token"
    r"|seed:[a-z_]{1,40}|(?:unused|extra_id_|special_|reserved_)[0-9]{1,5}"
)
_SQUARE_NAMES = re.compile(
    r"inst|system_prompt|available_tools|tool_calls|tool_results|tool_content|model_settings|gmask|smask|mask|sep|cls"
    r"|pad|unk|bos|eos|think|args|call_id|img|img_break|img_end|audio|begin_audio|prefix|middle|suffix"
    r"|(?:begin|end)\s+data|unused_token_[0-9]{1,5}|unused[0-9]{1,5}"
)
_BARRED_NAME = re.compile(r"[\w\u2581 ./:-]{1,64}")
# Compatibility forms count too: DeepSeek's tokens use the full-width bar, and some tokenizers fold the rest.
_LT, _GT, _OPEN, _CLOSE, _BAR = "<\uff1c\ufe64", ">\uff1e\ufe65", "\\[\uff3b\ufe47", "\\]\uff3d\ufe48", "|\uff5c"
_LOOKALIKE = str.maketrans(
    "<>[]|\uff1c\uff1e\uff3b\uff3d\uff5c\ufe64\ufe65\ufe47\ufe48",
    "\u2039\u203a\u27e6\u27e7\u00a6" * 2 + "\u2039\u203a\u27e6\u27e7",
)
_IN_BRACKETS = (
    rf"{_Z}(?:[{_BAR}]{_Z})?+(?:[^{_LT}{_GT}{_OPEN}{_CLOSE}{_BAR}{INVISIBLE}]{_Z}){{1,64}}+(?:[{_BAR}]{_Z})?+"
)
_ANGLE = re.compile(rf"[{_LT}]{_IN_BRACKETS}[{_GT}]")
_SQUARE = re.compile(rf"[{_OPEN}]{_IN_BRACKETS}[{_CLOSE}]")
# MiniMax's, and Falcon's.
_ODD = re.compile(
    rf"[{_CLOSE}]{_Z}~{_Z}(?:!{_Z}b{_Z}[{_OPEN}]|b{_Z}[{_CLOSE}])|[{_OPEN}]{_Z}e{_Z}~{_Z}[{_OPEN}]"
    rf"|[{_GT}]{_Z}[{_GT}]{_Z}(?:[A-Z]{_Z}){{1,16}}+[{_LT}]{_Z}[{_LT}]"
)
_FENCE = re.compile(rf"(?:[{_LT}]{_Z}){{2}}[{_LT}]")
_INVISIBLE = re.compile(f"[{INVISIBLE}]")
SURROGATE = re.compile("[\ud800-\udfff]")


def neutralise(text: str) -> str:
    """The text with every chat template's control token made visible and inert: `[INST]` becomes `⟦INST⟧`.

    Brackets and bars become lookalikes that no tokenizer folds back, and invisible characters inside a token go;
    nothing else changes, so a reader can tell what stood there. Lone surrogates, which no server takes, become U+FFFD.
    """
    return neutralise_counted(text)[0]


def neutralise_counted(text: str) -> tuple[str, int]:
    """The text made inert, and how many control tokens stood in it."""
    count = 0

    def defused(match: re.Match[str]) -> str:
        nonlocal count
        count += _is_control_token(match[0])
        return look_alike(match) if _is_control_token(match[0]) else match[0]

    text = SURROGATE.sub("\ufffd", text)
    for pattern in (_ODD, _ANGLE, _SQUARE):
        text = pattern.sub(defused, text)
    return text, count


def _is_control_token(found: str) -> bool:
    """Whether what stands in brackets is a control token's name: folded, without its slash and bars."""
    found = folded(found)
    inside = found[1:-1]
    name = inside.removeprefix("|").removesuffix("|")
    bars = len(inside) - len(name)
    if bars == 2 or (bars and found[0] == "<"):
        return _BARRED_NAME.fullmatch(name) is not None
    names = {"<": _ANGLE_NAMES, "[": _SQUARE_NAMES}.get(found[0] if found[-1] in ">]" else "")
    return names is None or names.fullmatch(name.strip().removeprefix("/").strip()) is not None


def folded(text: str) -> str:
    """The text as it is compared: compatibility forms and case folded, nothing invisible in it."""
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()


def look_alike(match: re.Match[str]) -> str:
    """What was matched, with look-alikes of brackets and bars and nothing invisible."""
    return _INVISIBLE.sub("", match[0]).translate(_LOOKALIKE)


def fence(text: str, *, token: Callable[[int], str] = secrets.token_hex) -> tuple[str, str]:
    """The neutralised text between two lines that carry a new random id, and the id.

    The text was written before the id was drawn, so it cannot hold the closing line; what looks like one is defused
    all the same, for a judge that does not compare the ids.
    """
    fence_id = token(8)
    inert = _FENCE.sub(look_alike, neutralise(text))
    return f"{opening(fence_id)}\n{inert}\n{closing(fence_id)}", fence_id


def opening(fence_id: str) -> str:
    """The line above a fenced text."""
    return f"<<<TEXT {fence_id}>>>"


def closing(fence_id: str) -> str:
    """The line below a fenced text."""
    return f"<<<END {fence_id}>>>"


def clip(text: str, limit: int) -> str:
    """At most `limit` characters: the first two thirds and the last third of the room, and how many were left out.

    Both ends are kept: a refusal stands at the beginning, a disclaimer or a change of mind at the end.
    """
    if limit < 100:
        raise ValueError(f"limit must be at least 100, got {limit}")
    if len(text) <= limit:
        return text
    # The count has at most as many digits as the length, so the result never passes the limit.
    room = limit - len(gap(len(text), "characters"))
    head = room * 2 // 3
    return text[:head] + gap(len(text) - room, "characters") + text[len(text) - (room - head) :]


def gap(n: int, units: str) -> str:
    """The line in place of so many characters or tokens."""
    return f"\n[... {n:,} {units} left out ...]\n"


# Not quotation marks: what stands in them is what the judge read. Round a whole reply they are no quotation.
_DECORATION = "[\\s\u00a0*_`]"
_LONGEST_VERDICT_LINE = 100
_VERDICT = re.compile(
    rf"{_DECORATION}*+(?:(?:final\s++)?+(?:verdict|label){_DECORATION}*+:{_DECORATION}*+)?+"
    rf"(?P<label>[a-z]++){_DECORATION}*+\.?+{_DECORATION}*+",
    re.ASCII | re.IGNORECASE,  # without ASCII, IGNORECASE takes U+017F for an s
)
_BARE = re.compile(r"[\s\u00a0*_.]*+", re.ASCII)
_BLOCK = "```"
_ONLY_QUOTED = re.compile(
    r"\s*+[\"'\u201c\u2018\u00ab](?P<inside>[^\n\"'\u201c\u201d\u2018\u2019\u00ab\u00bb]{1,100}+)[\"'\u201d\u2019\u00bb]\s*+"
)
_WHOLE = re.compile(
    rf"{_DECORATION}*+(?:(?:final\s++)?+(?:verdict|rating|score){_DECORATION}*+:{_DECORATION}*+)?+"
    rf"(?P<number>0|[1-9][0-9]{{0,3}}+){_DECORATION}*+(?:/\s*+(?P<of>[1-9][0-9]{{0,3}}+){_DECORATION}*+)?+"
    rf"\.?+{_DECORATION}*+",
    re.ASCII | re.IGNORECASE,
)


def parse_label(reply: str, labels: Collection[L]) -> L | None:
    """The label that is the whole last line with any content, alone or after `Verdict:`; else None.

    Markdown emphasis, quotation marks and a full stop around it are ignored. Never a part of a line, never an earlier
    line: a judge quotes what it reads, and what it reads may hold a verdict.
    """
    match = _last_line(_VERDICT, reply)
    if match is None:
        return None
    return next((label for label in labels if label == match["label"].lower()), None)


def parse_whole(reply: str, low: int, high: int) -> int | None:
    """The whole number from `low` to `high` that is the last line with any content, read as a label is; else None.

    It may stand after `Rating:` and before `/high`. A number out of range, of another scale or with a fraction is none.
    """
    match = _last_line(_WHOLE, reply)
    if match is None or (match["of"] is not None and int(match["of"]) != high):
        return None
    number = int(match["number"])
    return number if low <= number <= high else None


def _last_line(pattern: re.Pattern[str], reply: str) -> re.Match[str] | None:
    """The pattern's match of the whole last line with any content."""
    if (quoted := _ONLY_QUOTED.fullmatch(reply)) is not None:
        return pattern.fullmatch(quoted["inside"])
    end = len(reply.rstrip())
    if reply.endswith(_BLOCK, 0, end):
        # A code block, if it is the reply's only one and holds the verdict alone: others may quote.
        start = reply.rfind("\n", 0, end - len(_BLOCK) - 1) + 1
        if reply.count(_BLOCK) != 2 or not reply.startswith(_BLOCK, reply.rfind("\n", 0, max(start - 1, 0)) + 1):
            return None
        end -= len(_BLOCK)
    while end > 0:
        start = reply.rfind("\n", 0, end) + 1
        if not _BARE.fullmatch(reply, start, end):
            break
        end = start - 1
    else:
        return None
    if end - start > _LONGEST_VERDICT_LINE or _half_open(reply[start:end]):
        return None
    return pattern.fullmatch(reply, start, end)


def _half_open(line: str) -> bool:
    """Whether emphasis or code ends in the line that began further up: what it ends is a quotation."""
    bare = line.strip().removeprefix("* ").rstrip(". ")
    before = bare.rstrip("`*_")
    return bare[len(before) :] not in before

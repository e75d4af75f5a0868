"""Hostile text made inert for a page, for JSON inside a page and for a CSV cell; knows nothing of runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

# Controls, bidirectional marks, invisible characters, lone surrogates. Not the joiners: Persian and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
# Names and not the pictures of U+2400: few fonts have those.
_CONTROLS = (
    "NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "HT", "LF", "VT", "FF", "CR", "SO", "SI",
    "DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US",
)  # fmt: skip
_PATH = re.compile(r"""(?<![^\s'"(=:,])(?!(?<=:)//)(?:~?/|~?[A-Za-z]:\\|\\\\)[^\s'",;)]*[^\s'",;).:]""")
# What a spreadsheet takes for a formula, its full-width forms included.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# What Markdown or HTML in it would take for more than a character. An underscore inside a word is none.
_MARKDOWN = re.compile(r"[\\`*{}\[\]<>#|~&@!$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
# An escape in JSON that may stand for what `visible` shows: none of those that stand for < > &.
_ESCAPE = re.compile(r"\\(?:[bfr]|u(?!003[ce]|0026))")


def hides(text: str) -> bool:
    """Whether a text of `json_in_html` may hold what `visible` shows; now and then it says so of one that does not."""
    hidden = "\x7f" in text if text.isascii() else _HIDDEN.search(text) is not None
    return hidden or _ESCAPE.search(text) is not None


def visible(text: str) -> str:
    """Controls by their name, direction overrides and other hidden characters by their code point, in brackets."""
    return _HIDDEN.sub(_named, text.replace("\r\n", "\n"))


def _named(match: re.Match[str]) -> str:
    code = ord(match.group())
    name = _CONTROLS[code] if code < len(_CONTROLS) else f"U+{code:04X}"
    return f"\u27e8{name}\u27e9"


def json_in_html(value: Any) -> str:
    """JSON for a `<script type="application/json">`: no text in it can end the element or open a comment."""
    text = _JSON.encode(value)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def policy_hash(source: str) -> str:
    """A script or style sheet as a content security policy names it (CSP level 3, hash-source)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode('utf-8')).digest()).decode('ascii')}'"


def csv_text(text: str) -> str:
    """One line of plain characters; a quote in front of what a spreadsheet would run."""
    plain = _HIDDEN.sub("", re.sub(r"[\t\r\n]+", " ", text))
    runs = text.startswith(_FORMULA) or plain.lstrip().startswith(_FORMULA)
    return f"'{plain}" if runs else plain


def markdown_text(text: str) -> str:
    """One line in which nothing is Markdown, HTML or a link: what could be one stands as its entity."""
    return _MARKDOWN.sub(lambda match: f"&#{ord(match.group())};", visible(" ".join(text.split())))


def without_paths(text: str) -> str:
    """The last part of every absolute path in a message of ours: the site is for strangers, URLs stay as they are."""
    return _PATH.sub(lambda match: re.split(r"[/\\]", match.group().rstrip("/\\"))[-1], text)

"""A classifier judge's prompts as tokens: its template filled, hostile text made inert, long answers cut and counted.

Pure but for the tokenizer that it is given. Three rules:

inert   A request or an answer cannot end its place. Control tokens of chat templates in it become look-alikes
        (`base.neutralise`), so do the template's own markers, and what a tokenizer knows as a special token beyond
        these is encoded with special tokens off. What has none of them is encoded as the publisher's code does.
cut     An answer that does not fit (the judge's `answer_tokens`, the model's window) keeps its first two thirds and
        its last third of the room (`keep: head`: the beginning only), with a line between that says how many tokens
        are missing; a request may take half of the window and is cut alike. Cut tokens are counted.
exact   Nothing else is changed: filling is simultaneous, so that a placeholder in an answer stays a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bfpo_bench.errors import JudgeError
from bfpo_bench.judges import base
from bfpo_bench.judges.spec import Ask, JudgeFile, pieces
from bfpo_bench.types import INVISIBLE

RULES_VERSION = "1"

_SENTINEL = "BFPO{name}FIELD7C1E"
# An answer keeps at least this share of the window, whatever the request.
_REQUEST_SHARE = 0.5
_LEAST_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Passage:
    """What a classifier judges: texts by field (request, answer, context where there is one)."""

    id: str
    fields: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A filled template as text and tokens, and what of the fields had to be left out or made inert."""

    text: str
    tokens: tuple[int, ...]
    cut_tokens: int = 0
    defused: int = 0


class Prompter:
    """Fills one judge's prompts for one tokenizer. `window` is the largest number of tokens of a prompt."""

    def __init__(self, judge: JudgeFile, texts: Mapping[str, str], tokenizer: Any, *, window: int) -> None:
        self._judge = judge
        self._tokenizer = tokenizer
        self._window = min(window, judge.window or window)
        self._templates = {
            (ask, contextual): _template(judge, texts, tokenizer, ask, contextual)
            for ask in range(len(judge.ask))
            for contextual in (False, True)
        }
        self._special = _special_tokens(tokenizer)
        # Between the turns of a chat template its own special tokens stand: nothing is added round it.
        self._add_special = judge.special_tokens and not judge.chat_template

    def prompts(self, passages: Sequence[Passage], *, leads: Mapping[str, str] | None = None) -> list[list[Prompt]]:
        """The prompts of each passage, one an `ask`; `leads` (by passage id) is what goes on behind all of them."""
        filled = [self._fill(passage, ask) for passage in passages for ask in range(len(self._judge.ask))]
        ends = [(leads or {}).get(passage.id, "") for passage in passages for _ in self._judge.ask]
        encoded = self._encode([(segments, end) for (segments, _, _), end in zip(filled, ends, strict=True)])
        made = [
            Prompt(text="".join(text for text, _ in segments), tokens=tokens, cut_tokens=cut, defused=defused)
            for (segments, cut, defused), tokens in zip(filled, encoded, strict=True)
        ]
        n = len(self._judge.ask)
        return [made[i : i + n] for i in range(0, len(made), n)]

    def encode_text(self, text: str) -> list[int]:
        """Our own text (a lead, an option's spelling) without special tokens around it."""
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]

    # -- filling ---------------------------------------------------------------------------------------------------

    def _fill(self, passage: Passage, ask: int) -> tuple[list[tuple[str, bool]], int, int]:
        """Segments (text, is it a field), tokens that were cut, markers that were made inert."""
        template = self._templates[ask, bool(passage.fields.get("context"))]
        fields, defused = self._inert(template, passage)
        fields, cut = self._within_window(template, fields)
        return template.filled(fields), cut, defused

    def _inert(self, template: _Template, passage: Passage) -> tuple[dict[str, str], int]:
        fields: dict[str, str] = {}
        defused = 0
        for name in template.fields:
            text = base.SURROGATE.sub("\ufffd", passage.fields.get(name, ""))
            text = text.strip() if template.trims else text
            if self._judge.defuse:
                text, n = base.neutralise_counted(text)
                text, m = template.markers.subn(marker_look_alike, text) if template.markers else (text, 0)
                defused += n + m
            fields[name] = text
        return fields, defused

    def _within_window(self, template: _Template, fields: Mapping[str, str]) -> tuple[dict[str, str], int]:
        """The fields, cut where they must be; tokens that were left out."""
        kept, cut = dict(fields), 0
        if (most := self._judge.answer_tokens) is not None and len(kept.get("answer", "").encode()) > most:
            kept["answer"], cut = self._cut(kept["answer"], most)
        # A token is at least one byte: what is short enough needs no counting.
        if sum(len(text.encode()) for text, _ in template.filled(kept)) + 16 <= self._window:
            return kept, cut
        if self._length(template, kept) <= self._window:
            return kept, cut
        half = max(_LEAST_TOKENS, int(self._window * _REQUEST_SHARE))
        for name in ("context", "request"):
            others = self._length(template, {**kept, name: "", "answer": ""})
            if name in kept and len(self.encode_text(kept[name])) + others > half:
                kept[name], more = self._cut(kept[name], max(_LEAST_TOKENS, half - others))
                cut += more
        for _ in range(4):  # what is left between the halves may join its neighbours into other tokens
            over = self._length(template, kept) - self._window
            if over <= 0:
                return kept, cut
            room = len(self.encode_text(kept["answer"])) - over
            if room < _LEAST_TOKENS:
                break
            kept["answer"], more = self._cut(kept["answer"], room)
            cut += more
        raise JudgeError(
            f"Judge {self._judge.name!r}: its prompt alone fills the window of {self._window} tokens. "
            "Use a model with a longer window."
        )

    def _length(self, template: _Template, fields: Mapping[str, str]) -> int:
        return len(self._encode([(template.filled(fields), "")])[0])

    def _cut(self, text: str, most: int) -> tuple[str, int]:
        """At most so many tokens of a text, and how many were left out."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=self._tokenizer.is_fast)
        tokens = encoded["input_ids"]
        if len(tokens) <= most:
            return text, 0
        room = max(1, most - len(self.encode_text(base.gap(len(tokens), "tokens"))))
        head = room if self._judge.keep == "head" else max(1, room * 2 // 3)
        tail = 0 if self._judge.keep == "head" else room - head
        left_out = len(tokens) - head - tail
        if self._tokenizer.is_fast:
            offsets = encoded["offset_mapping"]
            begin, end = text[: offsets[head - 1][1]], text[offsets[len(tokens) - tail][0] :] if tail else ""
        else:
            begin, end = (str(self._tokenizer.decode(part)) for part in (tokens[:head], tokens[len(tokens) - tail :]))
            end = end if tail else ""
        return (begin if self._judge.keep == "head" else begin + base.gap(left_out, "tokens") + end), left_out

    # -- encoding --------------------------------------------------------------------------------------------------

    def _encode(self, many: Sequence[tuple[Sequence[tuple[str, bool]], str]]) -> list[tuple[int, ...]]:
        """The tokens of filled templates, each with what goes on behind it."""
        clean = [i for i, (segments, _) in enumerate(many) if not self._special_inside(segments)]
        whole = ["".join(text for text, _ in many[i][0]) + many[i][1] for i in clean]
        found = self._tokenizer(whole, add_special_tokens=self._add_special)["input_ids"] if whole else []
        tokens = {i: tuple(map(int, ids)) for i, ids in zip(clean, found, strict=True)}
        return [tokens[i] if i in tokens else self._encode_apart(*many[i]) for i in range(len(many))]

    def _special_inside(self, segments: Iterable[tuple[str, bool]]) -> bool:
        return self._special is not None and any(is_field and self._special.search(text) for text, is_field in segments)

    def _encode_apart(self, segments: Sequence[tuple[str, bool]], end: str) -> tuple[int, ...]:
        """Fields with special tokens off, the template between them with special tokens on."""
        before = self._tokenizer("", add_special_tokens=True)["input_ids"] if self._add_special else []
        # A tokenizer may close as well as open; only what opens belongs before the text.
        ids = [int(token) for token in before if token != self._tokenizer.eos_token_id]
        for text, is_field in [*segments, (end, False)]:
            options = {"split_special_tokens": True} if is_field else {}
            ids += [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False, **options)]
        return tuple(ids)


@dataclass(frozen=True, kw_only=True)
class _Template:
    """Literals and names of fields in turn; `trims` where the chat template strips what it is given."""

    parts: tuple[str, ...]
    markers: re.Pattern[str] | None
    trims: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.parts[1::2]))

    def filled(self, fields: Mapping[str, str]) -> list[tuple[str, bool]]:
        segments = ((fields[part], True) if i % 2 else (part, False) for i, part in enumerate(self.parts))
        return [(text, is_field) for text, is_field in segments if text]


def _template(judge: JudgeFile, texts: Mapping[str, str], tokenizer: Any, ask: int, contextual: bool) -> _Template:
    wanted: Ask = judge.ask[ask]
    name = (wanted.with_context if contextual else None) or wanted.text
    text = None if name is None else texts[name]
    markers = forgeable_markers(judge)
    if not judge.chat_template:
        return _Template(parts=tuple(pieces(str(text))), markers=markers)
    request, answer = ("{request}", "{answer}") if text is None else (text, None)
    arguments = {key: texts[value] for key, value in wanted.arguments.items()}
    return _chat_template(judge, tokenizer, request, answer, arguments, markers)


def _chat_template(
    judge: JudgeFile,
    tokenizer: Any,
    request: str,
    answer: str | None,
    arguments: Mapping[str, str],
    markers: re.Pattern[str] | None,
) -> _Template:
    """The tokenizer's own template round the fields, found by rendering marks in their places."""
    if not getattr(tokenizer, "chat_template", None):
        raise JudgeError(f"Judge {judge.name!r} needs a chat template, and the tokenizer of its model has none.")

    def rendered(pad: str) -> str:
        def marked(text: str) -> str:
            parts = pieces(text)
            return "".join(pad + _SENTINEL.format(name=p) + pad if i % 2 else p for i, p in enumerate(parts))

        turns = [{"role": "user", "content": marked(request)}]
        if answer is not None:
            turns.append({"role": "assistant", "content": marked(answer)})
        return _render(judge, tokenizer, turns, asks=answer is None, arguments=arguments)

    whole, padded = rendered(""), rendered("  ")
    parts = re.split(_SENTINEL.format(name="([a-z]+)"), whole)
    structured = all(mark in whole for mark in judge.markers if not mark.startswith("{"))
    if len(parts) < 3 or (answer is not None and "answer" not in parts[1::2]) or not structured:
        raise JudgeError(
            f"Judge {judge.name!r}: the chat template of its model is not the judge's. Use the model that the judge "
            "was made with."
        )
    return _Template(parts=tuple(parts), markers=markers, trims="  " + _SENTINEL.format(name="answer") not in padded)


def _render(
    judge: JudgeFile, tokenizer: Any, turns: list[dict[str, Any]], *, asks: bool, arguments: Mapping[str, str]
) -> str:
    # Guards' templates differ: some take contents as texts, some (Llama Guard 3 1B) as lists of parts.
    listed = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    failure: Exception | None = None
    for form in (turns, listed):
        try:
            # A guard's template ends with the opening of its verdict by itself.
            text = str(tokenizer.apply_chat_template(form, tokenize=False, add_generation_prompt=asks, **arguments))
        except Exception as error:  # a template may refuse any form; its author's exceptions are of any type
            failure = error
            continue
        if "{'type'" not in text and turns[-1]["content"].strip()[:12] in text:
            return text
    why = "it does not show what it is given" if failure is None else f"{type(failure).__name__}: {failure}"
    raise JudgeError(f"Judge {judge.name!r}: the chat template of its model cannot be used ({why}).")


def forgeable_markers(judge: JudgeFile) -> re.Pattern[str] | None:
    """The templates' own landmarks that an answer could forge: those of more than plain words."""
    marks = [mark for markers in (judge.markers, *(t.markers for t in judge.texts.values())) for mark in markers]
    marks = [mark.strip() for mark in marks if not mark.startswith("{") and re.search(r'[\[\]<>#|"]', mark)]
    forgeable = sorted(set(marks), key=len, reverse=True)
    return re.compile("|".join(map(_lenient, forgeable)), re.IGNORECASE) if forgeable else None


def _lenient(mark: str) -> str:
    """A pattern of the mark, also with what is invisible between its characters, or signs in their full width."""
    wide = (f"[{re.escape(c)}{chr(ord(c) + 0xFEE0)}]" if c in '[]<>#|"' else re.escape(c) for c in mark)
    return f"[{INVISIBLE}]*+".join(wide)


_SIGNS = str.maketrans({"#": "\u266f", "\uff03": "\u266f", '"': "\u201d", "\uff02": "\u201d"})


def marker_look_alike(match: re.Match[str]) -> str:
    """What was matched, with look-alikes of its signs (`base.look_alike`), of `#` and of quotation marks too."""
    return base.look_alike(match).translate(_SIGNS)


def _special_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Every special token of the tokenizer as a text, found in any text."""
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    names = {str(token) for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
    names.discard("")
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None

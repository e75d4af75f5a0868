"""Preferences between the model's answer and a reference answer, as AlpacaEval 2.0 reads them; asks nobody.

The judge names the better of two answers, "m" or "M", in one token; its log-probabilities give a preference from 0 to
1. A judge file with `both_orders: false` asks once, in AlpacaEval's seeded order, and changes nothing of the answers
(as published). With both orders, the default, four things are mended: each answer stands first once; a mark of the
prompt's frame in an answer is made inert and counted; an answer that the task's other prompts got as well, word by
word, is no answer to this one, and scores 0 without being asked about (as an empty one does); so does an answer that
holds two different marks of the frame, which is an attempt to write the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bfpo_bench.judges import base
from bfpo_bench.judges.prompting import forgeable_markers
from bfpo_bench.judges.published_rubric import inert_fields, messages
from bfpo_bench.judges.questionnaire import Fields, Reading, cut_characters, raw
from bfpo_bench.judges.rubrics import check_item, compared_with, request_text
from bfpo_bench.judges.spec import JudgeFile
from bfpo_bench.length_control import order, preference
from bfpo_bench.types import JudgeItem, is_blank

# One text for so many prompts of a task, and for this share of them, is a constant output.
CONSTANT_AT_LEAST, CONSTANT_SHARE = 10, 0.05
# Different marks of the prompt's frame in one answer. Of 14,487 recorded outputs of AlpacaEval (18 models) 56 hold one
# (a heading, a docstring's quotes) and none holds two; each of NullModel's does.
FORGED_AT_LEAST = 2
# Characters; beyond AlpacaEval's longest outputs, and what a judge's window holds.
_LIMIT = 60_000
_VERSION = "2"


class Preference:
    """A judge file of kind `pairwise`, as a questionnaire."""

    def __init__(self, judge: JudgeFile, texts: Mapping[str, str]) -> None:
        self._judge = judge
        self._texts = texts
        self._markers = forgeable_markers(judge)

    def moving(self) -> list[Any]:
        rules = [_VERSION, base.PARSER_VERSION, CONSTANT_AT_LEAST, CONSTANT_SHARE, FORGED_AT_LEAST, _LIMIT]
        return [self._judge.fingerprint, *rules]

    def check(self, item: JudgeItem) -> None:
        check_item(item)

    def unasked(self, item: JudgeItem) -> Fields | None:
        if item.text == compared_with(item):
            return {"score": 0.5, "detail": "identical to the reference answer", "metrics": {"preference": 1.5}}
        if not self._judge.both_orders:
            return None
        if is_blank(item.text):
            return {"score": 0.0, "detail": "empty", "metrics": {"preference": 1.0}}
        if is_constant(item):
            detail = f"constant output: {item.alike:,} of {item.of:,} prompts got this very answer"
            return {"score": 0.0, "detail": detail, "metrics": {"preference": 1.0, "constant": item.alike}}
        marks = self._frame_marks(item.text)
        if len(marks) >= FORGED_AT_LEAST:
            detail = f"forged prompt: the answer holds {len(marks)} different marks of the judge's own frame"
            return {"score": 0.0, "detail": detail, "metrics": {"preference": 1.0, "forged": len(marks)}}
        return None

    def calls(self, item: JudgeItem) -> int:
        return 2 if self._judge.both_orders else 1

    def payload(self, item: JudgeItem, n: int, *, again: bool = False) -> dict[str, Any]:
        fields, _ = self._fields(item)
        mine, theirs = fields["answer"], fields["reference"]
        first, second = (mine, theirs) if self._model_first(item, n) else (theirs, mine)
        shown = {"request": fields["request"], "first": first, "second": second}
        return {"messages": messages(self._judge, self._texts, shown), **self._judge.settings}

    def schema(self, item: JudgeItem) -> Mapping[str, Any] | None:
        """None: the preference is in the log-probabilities of one token, which no form may hold down."""
        return None

    def read(self, item: JudgeItem, body: Mapping[str, Any]) -> Reading[Mapping[str, float]]:
        """The log-probabilities of the first token's candidates, or the token alone where the server gives none."""
        choice = body["choices"][0]
        choice = choice if isinstance(choice, dict) else {}
        found = _top_logprobs(choice)
        if found is None:
            message = choice.get("message")
            text = message.get("content") if isinstance(message, dict) else None
            if not isinstance(text, str) or text.strip() not in ("m", "M"):
                filtered = choice.get("finish_reason") == "content_filter"
                return Reading(None, "refusal" if filtered else "parse", json.dumps(body))
            found = {text.strip(): 0.0}
        if preference(found, switched=False) is None:
            return Reading(None, "parse", json.dumps(found))
        return Reading(found, None, json.dumps(found))

    def verdict(self, item: JudgeItem, readings: Sequence[Reading[Any]]) -> Fields:
        _, defused = self._fields(item)
        shown = [{"model_first": self._model_first(item, n), "reply": r.text} for n, r in enumerate(readings)]
        cut, notes = cut_characters(self._given(item)) if self._judge.defuse else (0, [])
        notes += [f"{defused:,} control tokens or frame marks were made inert"] if defused else []
        fields: dict[str, Any] = {"raw": raw(json.dumps(shown)), "detail": "; ".join(notes)}
        broken = next((reading.unscored for reading in readings if reading.said is None), None)
        if broken is not None:
            return {**fields, "unscored": broken}
        said: dict[str, float] = {}
        for n, reading in enumerate(readings):
            first = self._model_first(item, n)
            # `read` gave content only where there is a preference in it.
            said["shown_first" if first else "shown_second"] = preference(reading.said or {}, switched=first) or 0.0
        mean = sum(said.values()) / len(said)
        metrics: dict[str, Any] = {"preference": mean, **said}
        if len(said) == 2:
            metrics["orders_agree"] = (said["shown_first"] > 1.5) == (said["shown_second"] > 1.5)
        metrics |= {name: n for name, n in (("cut_characters", cut), ("defused", defused)) if n}
        return {**fields, "score": mean - 1.0, "metrics": metrics}

    def _model_first(self, item: JudgeItem, n: int) -> bool:
        """AlpacaEval's order first, the other one second."""
        return order(request_text(item)) != (n == 1)

    def _fields(self, item: JudgeItem) -> tuple[dict[str, str], int]:
        given = self._given(item)
        if not self._judge.defuse:
            return {name: text for name, (text, _) in given.items()}, 0
        fields, _ = inert_fields(self._judge, self._markers, given)
        _, forged = inert_fields(self._judge, self._markers, {"answer": given["answer"]})
        return fields, forged

    def _given(self, item: JudgeItem) -> dict[str, tuple[str, int]]:
        """What is shown, each with the characters of it that are shown where nothing is as published."""
        texts = {"request": request_text(item), "answer": item.text, "reference": compared_with(item)}
        return {name: (text, _LIMIT) for name, text in texts.items()}

    def _frame_marks(self, text: str) -> set[str]:
        """The marks of the prompt's frame in a text, whatever their case, their width and what is invisible in them."""
        found = [] if self._markers is None else self._markers.findall(text)
        return {base.folded(mark) for mark in found}


def is_constant(item: JudgeItem) -> bool:
    """Whether the answer is one text that many other prompts of the task got as well."""
    return item.alike >= max(CONSTANT_AT_LEAST, CONSTANT_SHARE * item.of)


def _top_logprobs(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """Token -> log-probability (nats) of the first token's candidates; None where the reply has none."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return None
    top = content[0].get("top_logprobs")
    rows = top if isinstance(top, list) and top else [content[0]]
    found: dict[str, float] = {}
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("token"), str) and isinstance(row.get("logprob"), int | float):
            found.setdefault(row["token"], float(row["logprob"]))
    return found or None

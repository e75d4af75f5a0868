"""What a chat judge is asked about one answer and what its replies come to: payloads out, verdicts in; asks nobody.

`OwnRubrics` are this project's rubrics (rubrics.py). Published ones are in published_rubric.py, preferences between two
answers in pairwise.py.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from bfpo_bench.endpoint import redact
from bfpo_bench.judges import base, rubrics
from bfpo_bench.judges.rubrics import ANSWER_LIMIT, FORMS, HIGHEST, LOWEST, REQUEST_LIMIT, Side
from bfpo_bench.types import JudgeItem, Unscored, is_blank

T = TypeVar("T")

RAW_LIMIT = 4_000
# What a comparison is worth to the answer under judgement, where it stood as A.
WORTH: Mapping[Side, float] = {"a": 1.0, "tie": 0.5, "b": 0.0}
# Of a Verdict: label, score or unscored, with metrics, raw and detail.
Fields = Mapping[str, Any]


class Reading(NamedTuple, Generic[T]):
    """What a reply says, or the reason why it says nothing, and the text it was read from."""

    said: T | None
    unscored: Unscored | None
    text: str


class Questionnaire(Protocol):
    """How answers are put to a chat model. An answer may need several calls (a comparison's two orders)."""

    def moving(self) -> list[Any]:
        """All that can move a verdict, for the judge's version."""
        ...

    def check(self, item: JudgeItem) -> None:
        """Raise JudgeError where the item lacks what the judge must be shown."""
        ...

    def unasked(self, item: JudgeItem) -> Fields | None:
        """The verdict on an answer that need not be asked about."""
        ...

    def calls(self, item: JudgeItem) -> int: ...

    def payload(self, item: JudgeItem, n: int, *, again: bool = False) -> dict[str, Any]:
        """The n-th request about the item, all but the model's name."""
        ...

    def schema(self, item: JudgeItem) -> Mapping[str, Any] | None:
        """The JSON schema of a reply, for servers that hold the model to it; None where its form is a publisher's."""
        ...

    def read(self, item: JudgeItem, body: Mapping[str, Any]) -> Reading[Any]: ...

    def verdict(self, item: JudgeItem, readings: Sequence[Reading[Any]]) -> Fields:
        """What the readings come to, in the order of the calls; a reading without content has its reason."""
        ...


class OwnRubrics:
    """This project's rubrics, one by what the task asks: three labels, a rating, a comparison in both orders.

    An empty answer has nothing to rate and loses every comparison, so neither is asked for.
    """

    def __init__(self, *, max_tokens: int = 256, token: Callable[[int], str] = secrets.token_hex) -> None:
        self._max_tokens = max_tokens
        self._token = token

    def moving(self) -> list[Any]:
        return [rubrics.texts_and_limits(), sorted(WORTH.items()), self._max_tokens]

    def check(self, item: JudgeItem) -> None:
        rubrics.check_item(item)

    def unasked(self, item: JudgeItem) -> Fields | None:
        if item.rubric not in ("rating", "pairwise") or not is_blank(item.text):
            return None
        metrics = {"rating": LOWEST} if item.rubric == "rating" else {"win": 0.0}
        return {"score": 0.0, "detail": "empty", "metrics": metrics}

    def calls(self, item: JudgeItem) -> int:
        return 2 if item.rubric == "pairwise" else 1

    def payload(self, item: JudgeItem, n: int, *, again: bool = False) -> dict[str, Any]:
        return {
            "messages": rubrics.messages(item, swapped=n == 1, again=again, token=self._token),
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }

    def schema(self, item: JudgeItem) -> Mapping[str, Any] | None:
        return rubrics.reply_schema(item.rubric)

    def read(self, item: JudgeItem, body: Mapping[str, Any]) -> Reading[Any]:
        return read_reply(body, FORMS[item.rubric].parse)

    def verdict(self, item: JudgeItem, readings: Sequence[Reading[Any]]) -> Fields:
        if item.rubric == "rating":
            fields = _rating(*readings)
        elif item.rubric == "pairwise":
            fields = _pairwise(*readings)
        else:
            (reading,) = readings
            fields = {"label": reading.said, "unscored": reading.unscored, "raw": raw(reading.text)}
        cut, notes = cut_characters(_shown(item))
        if cut and fields.get("unscored") is None:
            fields = {**fields, "metrics": {**fields.get("metrics", {}), "cut_characters": cut}}
        return {**fields, "detail": "; ".join(notes)}


def _rating(reading: Reading[int]) -> Fields:
    if reading.said is None:
        return {"unscored": reading.unscored, "raw": raw(reading.text)}
    score = (reading.said - LOWEST) / (HIGHEST - LOWEST)
    return {"score": score, "raw": raw(reading.text), "metrics": {"rating": reading.said}}


def _pairwise(one: Reading[Side], two: Reading[Side]) -> Fields:
    room = (RAW_LIMIT - 100) // 2  # each is cut alone: both last lines are to be seen
    shown = f"The answer as A:\n{raw(one.text, room)}\n\nThe answer as B:\n{raw(two.text, room)}"
    if one.said is None or two.said is None:
        return {"unscored": one.unscored or two.unscored, "raw": shown}
    worth = (WORTH[one.said], 1.0 - WORTH[two.said])
    metrics = {"win": float(min(worth) == 1.0), "orders_agree": worth[0] == worth[1]}
    return {"score": sum(worth) / 2, "raw": shown, "metrics": metrics}


def _shown(item: JudgeItem) -> dict[str, tuple[str, int]]:
    """The request (not the turns of a conversation) and the answers that are put to the judge, each with its limit."""
    request = {"request": (rubrics.request_text(item), REQUEST_LIMIT)} if len(item.sample.messages) < 2 else {}
    theirs = {"reference answer": (rubrics.compared_with(item), ANSWER_LIMIT)} if item.rubric == "pairwise" else {}
    return {**request, "answer": (item.text, ANSWER_LIMIT), **theirs}


def cut_characters(given: Mapping[str, tuple[str, int]]) -> tuple[int, list[str]]:
    """How many characters of these texts the judge is not shown, given each one's limit; and a note for each."""
    cut = {name: (text, limit) for name, (text, limit) in given.items() if len(text) > limit}
    notes = [f"the judge saw {limit:,} of the {name}'s {len(text):,} characters" for name, (text, limit) in cut.items()]
    return sum(len(text) - limit for text, limit in cut.values()), notes


def raw(text: str, limit: int = RAW_LIMIT) -> str:
    """A reply as it is kept: without keys, and cut in the middle."""
    return base.clip(redact(text), limit)


def read_reply(body: Mapping[str, Any], parse: Callable[[str], T | None]) -> Reading[T]:
    """What a reply says; else why not: refusal (the judge, or its host's filter), truncated, parse.

    A reply that was cut off says nothing: its last line may be one that the judge was quoting, or the 1 of a 10.
    """
    choice = body["choices"][0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return Reading(None, "parse", json.dumps(body))
    finish, content, refusal = choice.get("finish_reason"), message.get("content"), message.get("refusal")
    if isinstance(refusal, str) and refusal:
        return Reading(None, "refusal", refusal)
    text = content if isinstance(content, str) else ""
    if finish == "content_filter":
        return Reading(None, "refusal", text or json.dumps(body))
    said = parse(text) if finish != "length" else None
    if said is not None:
        return Reading(said, None, text)
    return Reading(None, "truncated" if finish == "length" else "parse", text or json.dumps(body))

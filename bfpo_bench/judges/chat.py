"""A chat model behind an OpenAI-compatible server as the judge; knows nothing of runs or scores.

What it is asked, and how its words are read, is a questionnaire's affair (questionnaire.py); here requests go out,
unreadable replies are asked for again, and an item's replies come together. The answer under judgement is hostile: it
is clipped, defused and, by our own rubrics, fenced with an id drawn for this one request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing as closing_at_end
from typing import Any, NamedTuple

from bfpo_bench.endpoint import Endpoint, EndpointError, Reply, ask_all
from bfpo_bench.errors import JudgeError
from bfpo_bench.judges.questionnaire import OwnRubrics, Questionnaire, Reading
from bfpo_bench.types import JudgeItem, Unscored, Verdict

KEY_NAMES = ("BFPO_JUDGE_API_KEY", "OPENAI_API_KEY")
REASKS = 2
_VERSION = "3"


class Call(NamedTuple):
    """One question: the item's place among the items, and which of the item's questions it is."""

    item: int
    n: int


class ChatJudge:
    """Asks at most twice more where a reply cannot be read.

    Where the questionnaire has a schema for replies, one request goes ahead with it: a server that takes it holds the
    model to it from then on, any other is asked without. The prompt is the same, and so is the judge.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        questionnaire: Questionnaire | None = None,
        name: str | None = None,
        seed: int = 0,
        endpoint: Endpoint | None = None,
    ) -> None:
        self._model = model
        self._name = name or f"chat:{model}"
        self._questionnaire: Questionnaire = questionnaire or OwnRubrics()
        self._seed = seed
        self._endpoint = endpoint or Endpoint(base_url=base_url, key_names=KEY_NAMES)

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        """Over all that can move a verdict; not the address: the same model elsewhere is the same judge."""
        moving = [self._model, self._questionnaire.moving(), REASKS]
        return f"{_VERSION}-" + hashlib.sha256(json.dumps(moving).encode()).hexdigest()[:8]

    def judge(self, items: Sequence[JudgeItem]) -> Iterator[list[Verdict]]:
        for item in items:
            self._questionnaire.check(item)
        unasked = {i: fields for i, item in enumerate(items) if (fields := self._questionnaire.unasked(item))}
        if unasked:
            yield [self._verdict(items[i], fields) for i, fields in unasked.items()]
        asked = [i for i in range(len(items)) if i not in unasked]
        calls = [Call(i, n) for i in asked for n in range(self._questionnaire.calls(items[i]))]
        if not calls and items:
            return
        waiting: dict[int, dict[int, Reply]] = {}
        try:
            structured = yield from self._ahead(items, calls[:1], waiting)
            rest = calls if structured is None else calls[1:]
            for batch in self._ask(items, rest, structured=bool(structured)):
                if verdicts := list(self._complete(items, batch, waiting)):
                    yield verdicts
        except EndpointError as error:
            why = str(error)
        else:
            return
        raise JudgeError(f"Judge {self.name!r}: {why}")

    def _ahead(
        self, items: Sequence[JudgeItem], calls: Sequence[Call], waiting: dict[int, dict[int, Reply]]
    ) -> Generator[list[Verdict], None, bool | None]:
        """The first request, with a schema for the reply; returns whether the server takes one, None if not asked."""
        if not calls or self._questionnaire.schema(items[calls[0].item]) is None:
            return None
        for batch in self._ask(items, calls, structured=True):
            if batch[0][1].body is None:
                return None
            if verdicts := list(self._complete(items, batch, waiting)):
                yield verdicts
        return True

    def _ask(
        self, items: Sequence[JudgeItem], calls: Sequence[Call], *, structured: bool
    ) -> Iterator[list[tuple[Call, Reply]]]:
        def again(index: int, asked: int, reply: Reply) -> Mapping[str, Any] | None:
            item = items[calls[index].item]
            if asked >= REASKS or reply.body is None or self._questionnaire.read(item, reply.body).unscored != "parse":
                return None
            return self._payload(item, calls[index].n, again=True, structured=structured)

        asked = (self._payload(items[call.item], call.n, structured=structured) for call in calls)
        with closing_at_end(ask_all(self._endpoint, asked, seed=self._seed, again=again)) as replies:
            for batch in replies:
                yield [(calls[index], reply) for index, reply in batch]

    def _payload(self, item: JudgeItem, n: int, *, structured: bool, again: bool = False) -> dict[str, Any]:
        payload = {"model": self._model, **self._questionnaire.payload(item, n, again=again)}
        if structured and (schema := self._questionnaire.schema(item)) is not None:
            form = {"name": "verdict", "strict": True, "schema": dict(schema)}
            payload["response_format"] = {"type": "json_schema", "json_schema": form}
        return payload

    def _complete(
        self, items: Sequence[JudgeItem], batch: Sequence[tuple[Call, Reply]], waiting: dict[int, dict[int, Reply]]
    ) -> Iterator[Verdict]:
        """The verdicts that these replies complete; an item's first replies wait for its last."""
        for call, reply in batch:
            item, mine = items[call.item], waiting.setdefault(call.item, {})
            mine[call.n] = reply
            if len(mine) < self._questionnaire.calls(item):
                continue
            replies = [waiting[call.item][n] for n in sorted(mine)]
            del waiting[call.item]
            readings = [self._read(item, reply) for reply in replies]
            yield self._verdict(item, self._questionnaire.verdict(item, readings), replies)

    def _read(self, item: JudgeItem, reply: Reply) -> Reading[Any]:
        if reply.body is not None:
            return self._questionnaire.read(item, reply.body)
        unscored: Unscored = "api" if reply.failure is None or reply.failure == "rejected" else reply.failure
        return Reading(None, unscored, "")

    def _verdict(self, item: JudgeItem, fields: Mapping[str, Any], replies: Sequence[Reply] = ()) -> Verdict:
        notes = [*(reply.detail for reply in replies), fields.get("detail", "")]
        detail = "; ".join(dict.fromkeys(note for note in notes if note))
        return Verdict(
            sample_id=item.sample.id, judge=self.name, judge_version=self.version, **{**fields, "detail": detail}
        )

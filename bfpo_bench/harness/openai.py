"""A model behind an OpenAI-compatible server as an Engine: lm-eval's payloads, our one client (lm-eval 0.4.13).

lm-eval's own transport ends the whole run at one failed request and stores a null answer as "", which a harmlessness
task would count as harmless. Chat completions answer generation; completions with `echo` and `logprobs` answer choice
tasks where the server has them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, Self

from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.models.utils import postprocess_generated_text

from bfpo_bench.endpoint import DEFAULT_BASE_URL, EndpointError, Reply, ask_all, one_line, redact
from bfpo_bench.errors import EngineError
from bfpo_bench.harness.engine import THINKING_SWITCH, api_endpoint, choice_output, prompt_sha, sample_seed
from bfpo_bench.harness.rendering import thinking_switch, with_system_prompt
from bfpo_bench.types import Failure, ModelSpec, Output, Sample

NO_LOGPROBS = "the server's completions carry no log-probabilities of the prompt"


class OpenAIEngine:
    """`openai:NAME` at `--base-url`. A request that fails for now leaves no output; the next run asks it again."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._official = spec.base_url == DEFAULT_BASE_URL
        self._endpoint = api_endpoint(spec)
        common = {"model": spec.path, "base_url": spec.base_url, "tokenizer_backend": None, "tokenized_requests": False}
        self._chat = LocalChatCompletion(**common)
        self._completions = LocalCompletionsAPI(**common)

    @property
    def info(self) -> Mapping[str, Any]:
        return {"engine": "openai", "device": "api", "dtype": None, "parameters": None, "chat_template": "server"}

    def close(self) -> None:
        """Nothing is held between calls."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, samples: Sequence[Sample], *, answered: Collection[str] = ()) -> Iterator[list[Output]]:
        waiting = [with_system_prompt(s, self._spec.system_prompt) for s in samples if s.id not in answered]
        try:
            yield from self._generate([s for s in waiting if not s.choices])
            yield from self._choose([s for s in waiting if s.choices])
        except EndpointError as error:
            why = str(error)
        else:
            return
        raise EngineError(why)

    # -- generation ------------------------------------------------------------------------------------------------

    def _generate(self, samples: Sequence[Sample]) -> Iterator[list[Output]]:
        for replies in ask_all(self._endpoint, map(self._payload, samples), seed=self._spec.seed):
            outputs = (_generated(samples[index], reply) for index, reply in replies)
            yield [output for output in outputs if output is not None]

    def _payload(self, sample: Sample) -> dict[str, Any]:
        messages = [{"role": m.role, "content": m.content} for m in sample.messages]
        payload: dict[str, Any] = self._chat._create_payload(
            messages or [{"role": "user", "content": sample.prompt}],
            generate=True,
            # lm-eval sends the temperature that stands beside `do_sample: false`; its other engines are greedy then.
            gen_kwargs={
                **sample.generation,
                **({} if sample.generation.get("do_sample", True) else {"temperature": 0}),
            },
            seed=sample_seed(self._spec.seed, sample),
        )
        if (thinking := thinking_switch(self._spec)) is not None:
            # vLLM and SGLang hand this to the template; OpenAI's own server knows no such thing.
            payload["chat_template_kwargs"] = {THINKING_SWITCH: thinking}
        if self._official:
            # OpenAI's own newer models refuse the old name, and all of them take the new one.
            payload["max_completion_tokens"] = payload.pop("max_tokens")
        return {key: value for key, value in payload.items() if value not in ([], None)}

    # -- choice ----------------------------------------------------------------------------------------------------

    def _choose(self, samples: Sequence[Sample]) -> Iterator[list[Output]]:
        if not samples:
            return
        # One request goes ahead: a server without log-probabilities would refuse each of the others as well.
        if (why := self._no_logprobs(samples[0])) is not None:
            yield [_failure(sample, "no_logprobs", why) for sample in samples]
            return
        asked = [(s, i) for s in samples for i in range(len(s.choices))]
        waiting: dict[str, dict[int, Reply]] = {}
        for replies in self._complete(asked):
            ready: list[Output] = []
            for index, reply in replies:
                sample, i = asked[index]
                mine = waiting.setdefault(sample.id, {})
                mine[i] = reply
                if len(mine) == len(sample.choices):
                    del waiting[sample.id]
                    output = _chosen(sample, [mine[i] for i in range(len(sample.choices))])
                    ready += [] if output is None else [output]
            yield ready

    def _no_logprobs(self, sample: Sample) -> str | None:
        """Why this server cannot answer choice tasks; None where it can, or where today's fault leaves it open."""
        try:
            [[(_, reply)]] = self._complete([(sample, 0)])
        except EndpointError as error:
            # Without the path, or with a model for chats only; a server that is down or wants a key may answer later.
            if re.search(r" answered (404|405):", str(error)):
                return str(error)
            raise
        if reply.failure == "rejected":
            return reply.detail
        return NO_LOGPROBS if reply.body is not None and _prompt_logprobs(reply.body) is None else None

    def _complete(self, asked: Sequence[tuple[Sample, int]]) -> Iterator[list[tuple[int, Reply]]]:
        payloads = (self._completions._create_payload("".join(s.choices[i]), generate=False) for s, i in asked)
        return ask_all(self._endpoint, payloads, path="completions", seed=self._spec.seed)


def _generated(sample: Sample, reply: Reply) -> Output | None:
    """The output of one chat reply; None where the failure is one of today's, which a later run may not meet."""
    if reply.body is None:
        return _failed(sample, reply)
    with suppress(KeyError, IndexError, TypeError, AttributeError):
        choice = reply.body["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        # OpenAI gives a structured refusal in a field of its own: it is the model's answer all the same.
        whole = _text(message.get("content") if message.get("content") is not None else message.get("refusal"))
        thinking = _thinking(message)
        if whole is None and (reason == "length" or (thinking is not None and reason != "content_filter")):
            # A reasoning model that spent its tokens on thinking: an empty answer.
            whole = ""
        if whole == "" and reason == "length" and thinking is None:
            # OpenAI's own server shows no thoughts at all: what was cut off is no empty answer.
            thinking = "(not shown by the server)"
        if reason == "content_filter" or whole is None:
            return _failure(sample, "rejected", f"no answer, finish_reason {reason!r}")
        # A server takes four stop strings at most, and may keep the one that it met.
        text = postprocess_generated_text(whole, sample.generation["until"], None)
        usage = reply.body.get("usage") or {}
        return Output(
            sample_id=sample.id,
            # A server that echoes its request's headers must not put the key on disk.
            text=redact(text),
            thinking=None if thinking is None else redact(thinking),
            finish_reason="length" if reason == "length" and text == whole else "stop",
            n_prompt_tokens=_count(usage.get("prompt_tokens")),
            n_tokens=_count(usage.get("completion_tokens")),
            prompt_sha=prompt_sha(repr([(m.role, m.content) for m in sample.messages] or sample.prompt)),
        )
    return None


def _thinking(message: Mapping[str, Any]) -> str | None:
    """What the server took out of the answer itself: DeepSeek's field, which SGLang and older vLLM have, or vLLM's."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(found := message.get(name), str) and found:
            return found
    return None


def _text(content: Any) -> str | None:
    """A message's content: a text, or the texts of its parts; None of anything else."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(part for part in parts if isinstance(part, str)) if parts else None
    return content if isinstance(content, str) else None


def _count(value: Any) -> int | None:
    """A number of tokens as a server tells it, if it is one."""
    return value if type(value) is int and 0 <= value < 2**31 else None


def _chosen(sample: Sample, replies: Sequence[Reply]) -> Output | None:
    logprobs, greedy = [], []
    for (context, end), reply in zip(sample.choices, replies, strict=True):
        if reply.body is None:
            return _failed(sample, reply)
        try:
            total, is_greedy = continuation_logprob(reply.body, context, end)
        except Unmeasured as error:
            return _failure(sample, "no_logprobs", str(error))
        logprobs.append(total)
        greedy.append(is_greedy)
    return choice_output(sample, logprobs, greedy)


class Unmeasured(Exception):
    """The reply does not tell the continuation's log-probability; the message says why."""


def continuation_logprob(body: Mapping[str, Any], context: str, continuation: str) -> tuple[float, bool]:
    """Sum of log-probabilities (nats) of the continuation's tokens in an echoed completion, and whether all are greedy.

    Told apart by where each token begins, so that no tokenizer is needed on this side. As in lm-eval, white space at
    the context's end belongs to the continuation. Raises Unmeasured.
    """
    given = _prompt_logprobs(body)
    if given is None:
        raise Unmeasured(NO_LOGPROBS)
    start, end = len(context.rstrip()), len(context + continuation)
    tops = given.get("top_logprobs") or [None] * len(given["token_logprobs"])
    rows = zip(_token_starts(given, context + continuation), given["token_logprobs"], tops, strict=True)
    inside = [(begin, value, top) for begin, value, top in rows if start <= begin < end]
    if not inside or inside[0][0] != start:
        raise Unmeasured("a token straddles the end of the question: its share cannot be told")
    if any(value is None for _, value, _ in inside):
        raise Unmeasured("the server gives no log-probability of a choice's first token")
    total = math.fsum(float(value) for _, value, _ in inside)
    return total, all(bool(top) and float(value) >= max(top.values()) for _, value, top in inside)


def _prompt_logprobs(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The reply's `logprobs` where they cover the echoed prompt: more tokens than the one that was generated."""
    with suppress(KeyError, IndexError, TypeError, AttributeError):
        given = body["choices"][0]["logprobs"]
        if len(given["token_logprobs"]) > 1 and len(given["tokens"]) == len(given["token_logprobs"]):
            return dict(given)
    return None


def _token_starts(given: Mapping[str, Any], prompt: str) -> list[int]:
    """The character of the prompt at which each token begins, negative for a BOS token that the server puts first.

    Counted from the tokens themselves: vLLM 0.32 counts the text of its BOS token into `text_offset`, SGLang gives -1.
    """
    tokens = [str(token) for token in given["tokens"]]
    shift = "".join(tokens).find(prompt)
    if shift >= 0:
        return [begin - shift for begin in accumulate(map(len, tokens[:-1]), initial=0)]
    # OpenAI spells a part of a character as "bytes:\\xf0". Its offsets hold if one token begins where the prompt ends.
    offsets = given.get("text_offset") or []
    if len(offsets) != len(tokens) or len(prompt) not in offsets:
        raise Unmeasured("the server's tokens do not add up to the prompt")
    return list(offsets)


def _failed(sample: Sample, reply: Reply) -> Output | None:
    # A filter's refusal of the request is the server's word, not the model's, and it stays.
    final: Mapping[str | None, Failure] = {"rejected": "rejected", "refusal": "rejected", "too_long": "too_long"}
    if reply.failure not in final:
        return None
    return _failure(sample, final[reply.failure], reply.detail)


def _failure(sample: Sample, failure: Failure, why: str) -> Output:
    return Output(sample_id=sample.id, failure=failure, detail=one_line(why))

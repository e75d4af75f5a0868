"""An OpenAI-compatible server, and Perspective, on the loopback address; scripted, faulty by seed, knows no bfpo_bench.

with Loopback(answer=lambda payload: "safe", faults={"rate_limit": 0.1, "cut": 0.1}) as server:
    ... server.url, server.requests, server.most_in_flight, server.too_early
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web

# What an honest server would have answered is lost in each of these.
FAULTS = (
    "rate_limit",  # 429 with Retry-After
    "server_error",  # 500
    "slow",  # answers after the client has given up
    "cut",  # the connection breaks in the middle of the body
    "malformed",  # 200, not JSON
    "wrong_shape",  # 200, JSON without choices
    "null_content",  # 200, a message without content
    "empty",  # 200, a message with empty content
    "chatter",  # 200, a text without a label
)
Answer = str | float | Mapping[str, Any] | web.Response
PERSPECTIVE = "/v1alpha1/comments:analyze"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it came in."""

    path: str
    target: str  # the path as it was written, with its query
    payload: Mapping[str, Any]
    authorization: str | None
    headers: Mapping[str, str]
    at: float
    fault: str | None


@dataclass(kw_only=True)
class Loopback:
    """A text becomes the reply's content, a mapping its `choices[0]` fields, a Response goes out as it is.

    Perspective's toxicity is the answer, whatever it is, but for a Response.
    """

    answer: Callable[[Mapping[str, Any]], Answer] = lambda payload: "safe"
    faults: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    retry_after: str = "0.05"
    slow_s: float = 1.0
    latency_s: float = 0.0
    logprob: Callable[[str], float] = lambda token: -0.5

    requests: list[Request] = field(default_factory=list, init=False)
    most_in_flight: int = field(default=0, init=False)
    # Seconds by which a request came back before its Retry-After was over.
    too_early: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        unknown = set(self.faults) - set(FAULTS)
        if unknown:
            raise ValueError(f"unknown faults {sorted(unknown)}, known: {FAULTS}")
        self._in_flight = 0
        self._wait_until: dict[str, float] = {}
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event | None = None
        self._port = 0
        self._thread = threading.Thread(target=self._run, name="loopback", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def perspective_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1alpha1"

    @property
    def fault_counts(self) -> Counter[str]:
        return Counter(r.fault for r in list(self.requests) if r.fault is not None)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(10):
            raise RuntimeError("the loopback server did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # it ends the handlers that still sleep
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_post("/v1/completions", self._handle)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post(PERSPECTIVE, self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port = runner.addresses[0][1]
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            return await self._reply(request)
        finally:
            self._in_flight -= 1

    async def _reply(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        payload = json.loads(body)
        digest = hashlib.sha256(body).hexdigest()
        now = time.monotonic()
        early = self._wait_until.pop(digest, now) - now
        if early > 0:
            self.too_early.append(early)
        fault = self._draw()
        self.requests.append(
            Request(
                path=request.path,
                target=request.raw_path,
                payload=payload,
                authorization=request.headers.get("Authorization"),
                headers=dict(request.headers),
                at=now,
                fault=fault,
            )
        )
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        if fault == "rate_limit":
            self._wait_until[digest] = time.monotonic() + float(self.retry_after)
        if fault is not None and (response := await self._faulty(fault, request)) is not None:
            return response
        content: Answer | None = {"null_content": None, "empty": "", "chatter": "Let me think about it."}.get(
            fault or "", "" if fault else self.answer(payload)
        )
        if isinstance(content, web.Response):
            return content
        if request.path == PERSPECTIVE:
            return web.json_response(_toxicity(content))
        kind = "chat" if request.path.endswith("/chat/completions") else "completions"
        return web.json_response(self._chat(payload, content) if kind == "chat" else self._text(payload, content))

    def _draw(self) -> str | None:
        """By the request's number alone: the same seed gives the same faults in the same order."""
        rng = random.Random(f"{self.seed}:{len(self.requests)}")
        names = list(self.faults)
        none = max(0.0, 1.0 - sum(self.faults.values()))
        return rng.choices([*names, None], weights=[*self.faults.values(), none])[0]

    async def _faulty(self, fault: str, request: web.Request) -> web.StreamResponse | None:
        """The faults below the level of a readable reply; None for the others."""
        if fault == "rate_limit":
            error = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
            return web.json_response(error, status=429, headers={"Retry-After": self.retry_after})
        if fault == "server_error":
            return web.json_response({"error": {"message": "the server fell over"}}, status=500)
        if fault == "slow":
            await asyncio.sleep(self.slow_s)
            return web.json_response({"error": {"message": "too late"}}, status=500)
        if fault == "cut":
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b'{"choices": [{"mess')
            assert request.transport is not None
            request.transport.abort()
            return response
        if fault == "malformed":
            return web.Response(text='{"choices": [{"message": ', content_type="application/json")
        if fault == "wrong_shape":
            return web.json_response({"error": {"message": "no provider answered"}})
        return None

    def _chat(self, payload: Mapping[str, Any], content: str | Mapping[str, Any] | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if isinstance(content, Mapping):
            choice |= content
        else:
            choice["message"] = {"role": "assistant", "content": content}
        return self._wrap(payload, "chat.completion", [choice])

    def _text(self, payload: Mapping[str, Any], content: str | Mapping[str, Any] | None) -> dict[str, Any]:
        """With `echo` the prompt comes back before the answer; with `logprobs` every token but the first has one.

        A token is a run of non-spaces with the spaces before it, or one id where the prompt is a list of ids.
        """
        prompts = payload["prompt"]
        single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
        choices = []
        for index, prompt in enumerate([prompts] if single else prompts):
            choice: dict[str, Any] = {"index": index, "finish_reason": "stop", "logprobs": None}
            if isinstance(content, Mapping):
                choices.append(choice | dict(content))
                continue
            tokens = re.findall(r"\s*\S+|\s+$", prompt) if isinstance(prompt, str) else [f"<{i}>" for i in prompt]
            made = re.findall(r"\s*\S+|\s+$", content or "")[: payload.get("max_tokens", 16)]
            shown = [*tokens, *made] if payload.get("echo") else made
            choice["text"] = "".join(shown)
            if payload.get("logprobs") is not None:
                choice["logprobs"] = self._logprobs(shown, first_is_unknown=bool(payload.get("echo")))
            choices.append(choice)
        return self._wrap(payload, "text_completion", choices)

    def _logprobs(self, tokens: list[str], *, first_is_unknown: bool) -> dict[str, Any]:
        values = [None if first_is_unknown and i == 0 else self.logprob(t) for i, t in enumerate(tokens)]
        offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
        top = [None if v is None else {t: v} for t, v in zip(tokens, values, strict=True)]
        return {"tokens": tokens, "token_logprobs": values, "text_offset": offsets, "top_logprobs": top}

    def _wrap(self, payload: Mapping[str, Any], kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        model = payload.get("model", "scripted")
        return {"id": "loopback", "object": kind, "created": 0, "model": model, "choices": choices, "usage": usage}


def _toxicity(value: Any) -> dict[str, Any]:
    score = {"summaryScore": {"value": value, "type": "PROBABILITY"}}
    return {"attributeScores": {"TOXICITY": score}, "languages": ["en"], "detectedLanguages": ["en"]}

"""The one HTTP client: payloads in, replies out; knows nothing of judges or models under test.

It speaks to OpenAI-compatible servers, and to Google's Perspective in the same way. Every wait is bounded: an attempt
by `request_timeout_s`, a request with its retries by `total_s`, the call by `call_s`. Keys come from the environment
alone and leave it only in one header, never in a URL. Seen with openai 3.54 (httpx2 2.16).
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import math
import os
import random
import re
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from bfpo_bench.errors import BenchError
from bfpo_bench.types import Unscored

if TYPE_CHECKING:
    from openai import AsyncOpenAI, Omit

Path = Literal["chat", "completions", "perspective"]

DEFAULT_BASE_URL = "https://api.openai.com/v1"
PLACEHOLDER_KEY = "none-set"
PATHS: Mapping[Path, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "perspective": "/comments:analyze",
}
# These hosts answer nobody without a key.
KEYED_HOSTS = frozenset({"api.openai.com", "commentanalyzer.googleapis.com"})
# Asking again cannot help, and the next request would end the same way: the whole call ends.
FATAL_STATUS = frozenset({401, 402, 404, 405, 407, 410, *range(300, 400)})
FATAL_CODES = frozenset({"insufficient_quota", "API_KEY_INVALID"})
TRANSIENT_STATUS = frozenset({408, 409, 425})
# So many refusals of single requests before a first answer mean that the server refuses them all.
REJECTIONS_BEFORE_ANY_ANSWER = 10
MAX_BACKOFF_S = 30.0
DETAIL_LENGTH = 200

_BEARER = "Authorization"
# What a reply must hold to be one, by its name and kind.
_CONTENT: Mapping[Path, tuple[str, type]] = {
    "chat": ("choices", list),
    "completions": ("choices", list),
    "perspective": ("attributeScores", dict),
}
# Why a server will not have one request, by what it calls the error: OpenAI's names, then Perspective's.
_REFUSALS: Mapping[str, Unscored] = {
    "content_filter": "refusal",
    "content_policy_violation": "refusal",
    "context_length_exceeded": "too_long",
    "COMMENT_TOO_LONG": "too_long",
    "COMMENT_EMPTY": "refusal",
    "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE": "refusal",
    "LANGUAGE_DETECTION_FAILED": "refusal",
}
_SECRET_NAME = re.compile(r".*(_API_KEY|_TOKEN|_SECRET)", re.IGNORECASE)
_SECRET_QUERY = re.compile(r"key|token|secret|passw|auth|credential|signature|^sig$", re.IGNORECASE)
_MIN_SECRET_LENGTH = 8
_LOGGING_PACKAGES = frozenset({"openai", "httpx", "httpx2", "httpcore", "httpcore2"})


class EndpointError(BenchError):
    """The server, the key or the address is wrong as a whole (not: one failed request)."""


def redact(text: str) -> str:
    """The text with the value of every credential-like environment variable replaced."""
    secrets = {v for k, v in os.environ.items() if len(v) >= _MIN_SECRET_LENGTH and _SECRET_NAME.fullmatch(k)}
    # The longest first: one key may be the beginning of another.
    for secret in sorted(secrets | {s.strip() for s in secrets}, key=len, reverse=True):
        if len(secret) >= _MIN_SECRET_LENGTH:
            text = text.replace(secret, "[redacted]")
    return text


def one_line(text: object, *, limit: int = DETAIL_LENGTH) -> str:
    """Redacted (before it is cut, or half a key would pass), one line, at most `limit` characters."""
    line = " ".join(redact(str(text)).split())
    line = "".join(c if c.isprintable() else "?" for c in line[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask and how long to insist; `base_url=None` is OpenAI's own host, whatever OPENAI_BASE_URL says.

    `per_second` is the most attempts a second, retries included, over all requests in flight; None: no pacing. The key
    goes out as `Authorization: Bearer KEY`, or alone in another `key_header`.
    """

    base_url: str | None
    key_names: tuple[str, ...]
    key_header: str = _BEARER
    per_second: float | None = None
    concurrency: int = 16
    attempts: int = 6
    request_timeout_s: float = 120.0
    total_s: float = 600.0
    call_s: float = 86_400.0
    backoff_s: float = 1.0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.attempts < 1:
            raise ValueError(f"concurrency and attempts must be at least 1, got {self.concurrency}, {self.attempts}")
        if min(self.request_timeout_s, self.total_s, self.call_s) <= 0 or self.backoff_s < 0:
            raise ValueError("time limits must be positive")
        if self.per_second is not None and not 0 < self.per_second < math.inf:
            raise ValueError(f"per_second must be a number above 0, got {self.per_second}")
        unknown = [name for name in self.key_names if not _SECRET_NAME.fullmatch(name)]
        if unknown:  # redact() would not know them
            raise ValueError(f"key names end in _API_KEY, _TOKEN or _SECRET, got {unknown}")

    @property
    def url(self) -> str:
        return self.base_url or DEFAULT_BASE_URL


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The server's JSON object, or why there is none; a failure 'rejected' is final, the server will not have it."""

    body: Mapping[str, Any] | None = None
    failure: Unscored | Literal["rejected"] | None = None
    detail: str = ""
    attempts: int = 0

    @property
    def rejected(self) -> bool:
        return self.failure == "rejected"


# What to ask after a reply, given the payload's index and how often it was asked again; None when content.
Again = Callable[[int, int, Reply], Mapping[str, Any] | None]


def check_base_url(url: str) -> None:
    """Refuse a malformed address, and one that holds a credential: addresses are stored and shown."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or re.search(r"\s", url):
        raise EndpointError("Malformed base URL: it must look like http://HOST:PORT/v1.")
    if parts.username is not None or parts.password is not None:
        raise EndpointError(f"The base URL for {host} holds a user name or password; put the key in the environment.")
    if any(_SECRET_QUERY.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise EndpointError(f"The base URL for {host} holds a key in its query; put the key in the environment.")
    if parts.fragment:
        # No server is sent it, and a key may stand in it as well as in a query.
        raise EndpointError(f"The base URL for {host} holds a fragment (#...), which no server is sent. Leave it out.")


def check_endpoint(endpoint: Endpoint) -> None:
    """Every fault that can be seen without asking the server: the address and the key."""
    check_base_url(endpoint.url)
    _key(endpoint)


def ask_all(
    endpoint: Endpoint,
    payloads: Iterable[Mapping[str, Any]],
    *,
    path: Path = "chat",
    seed: int = 0,
    again: Again | None = None,
) -> Generator[list[tuple[int, Reply]], None, None]:
    """One reply a payload, in batches as they finish, for the caller to commit; payloads are drawn as they are needed.

    A request that fails is a Reply with its reason; EndpointError means that the rest is not worth asking. `again` may
    ask further in the same slot and must end by returning None. Nothing runs while the caller holds a batch.
    """
    check_endpoint(endpoint)
    _refuse_running_loop()
    caller = _Caller(endpoint, payloads, path=path, seed=seed, again=again)
    with asyncio.Runner() as runner:
        try:
            while batch := runner.run(caller.batch()):
                yield batch
        finally:
            runner.run(caller.close())


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """What one HTTP exchange came to."""

    reply: Reply
    final: bool = False
    wait_s: float | None = None
    unopened: bool = False


class _Pace:
    """Turns at least `1 / per_second` apart, first come first served; without a rate everybody's turn is now."""

    def __init__(self, per_second: float | None) -> None:
        self._gap = None if per_second is None else 1.0 / per_second
        self._next = -math.inf
        self._queue = asyncio.Lock()

    async def turn(self, deadline: float) -> bool:
        """Wait for a turn; False, as soon as it is known, where there is none before the deadline."""
        if self._gap is None:
            return True
        async with self._queue:
            while (wait := self._next - time.monotonic()) > 0:  # somebody may be told to slow down meanwhile
                if self._next >= deadline:
                    return False
                await asyncio.sleep(wait)
            self._next = time.monotonic() + self._gap
        return True

    def hold(self, seconds: float) -> None:
        """No turn for so long: the quota is one for all requests."""
        self._next = max(self._next, time.monotonic() + seconds)


class _Caller:
    """The requests in flight, at most `concurrency`, and what they have learned together about the server."""

    def __init__(
        self,
        endpoint: Endpoint,
        payloads: Iterable[Mapping[str, Any]],
        *,
        path: Path,
        seed: int,
        again: Again | None,
    ) -> None:
        self._endpoint = endpoint
        self._source = iter(enumerate(payloads))
        self._path: Path = path
        self._seed = seed
        self._again = again
        self._client = _client(endpoint)
        self._headers = _headers(endpoint)
        self._pace = _Pace(endpoint.per_second)
        self._tasks: set[asyncio.Task[tuple[int, Reply]]] = set()
        self._deadline = time.monotonic() + endpoint.call_s
        self._heard = -math.inf  # when the server last sent any HTTP status
        self._answers = 0
        self._rejections = 0
        self._fatal: EndpointError | None = None

    async def batch(self) -> list[tuple[int, Reply]]:
        """What has finished since the last batch; what was paid for is handed over before a fatal error is raised."""
        if self._fatal is None:
            while len(self._tasks) < self._endpoint.concurrency and (drawn := next(self._source, None)) is not None:
                self._tasks.add(asyncio.create_task(self._answer(*drawn)))
            if not self._tasks:
                return []
            done, self._tasks = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            batch = []
            for task in done:
                error = task.exception()
                if isinstance(error, EndpointError):
                    self._fatal = self._fatal or error
                else:
                    batch.append(task.result())
            if batch:
                return sorted(batch, key=itemgetter(0))
        raise EndpointError(str(self._fatal))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    async def _answer(self, index: int, payload: Mapping[str, Any]) -> tuple[int, Reply]:
        reply = await self._insist(index, payload)
        asked, attempts = 0, reply.attempts
        while self._again is not None and (following := self._again(index, asked, reply)) is not None:
            asked += 1
            reply = await self._insist(index, following)
            attempts += reply.attempts
        return index, replace(reply, attempts=attempts)

    async def _insist(self, index: int, payload: Mapping[str, Any]) -> Reply:
        """Ask until answered, refused, or out of attempts or time; a 429 costs time, not attempts."""
        reply = Reply(failure="timeout", detail=f"the call's time cap of {self._endpoint.call_s:g} s was reached")
        if not await self._pace.turn(self._deadline):
            return reply
        started = time.monotonic()
        deadline = min(started + self._endpoint.total_s, self._deadline)
        jitter = random.Random(f"{self._seed}:{index}")
        faults = rate_limits = 0
        unopened = True
        while (left := deadline - time.monotonic()) > 0:
            attempt = await self._attempt(payload, timeout=min(self._endpoint.request_timeout_s, left))
            cut_short = attempt.reply.failure == "timeout" and left < self._endpoint.request_timeout_s
            # The last attempt may have been given no time at all: the one before it says what was wrong.
            said = reply if cut_short and reply.attempts else attempt.reply
            reply = replace(said, attempts=faults + rate_limits + 1)
            if attempt.final:
                return reply
            unopened = unopened and attempt.unopened
            limited = reply.failure == "rate_limit"
            rate_limits, faults = rate_limits + limited, faults + (not limited)
            wait = self._wait(attempt, rate_limits if limited else faults, jitter)
            if faults >= self._endpoint.attempts or time.monotonic() + wait >= deadline:
                break
            if limited:
                self._pace.hold(wait)
            await asyncio.sleep(wait)
            if not await self._pace.turn(deadline):
                break
        # The server is down where a request spent all it had on connections that never opened, and no other request
        # was heard in that time; the requests still to come would each spend as much.
        if unopened and reply.attempts and self._heard < started:
            raise EndpointError(
                f"No server answers at {self._endpoint.url}: {reply.attempts} attempts to connect failed "
                f"({reply.detail}). Check the base URL and that the server runs."
            )
        # Within its pace and for so long, a key with any quota would have been answered once.
        if self._endpoint.per_second is not None and reply.failure == "rate_limit" and not (faults or self._answers):
            raise EndpointError(
                f"The server at {self._endpoint.url} answers 429 alone, {reply.attempts} times to one request: "
                f"{reply.detail}. Check the quota of the key in {self._key_names}."
            )
        return reply

    def _wait(self, attempt: _Attempt, nth: int, jitter: random.Random) -> float:
        """Exponential, spread by half to three halves so that requests do not return in step; never before told."""
        doubled = self._endpoint.backoff_s * 2.0 ** min(nth - 1, 16)
        backoff = min(doubled, MAX_BACKOFF_S) * (0.5 + jitter.random())
        return attempt.wait_s + self._endpoint.backoff_s * jitter.random() if attempt.wait_s else backoff

    async def _attempt(self, payload: Mapping[str, Any], *, timeout: float) -> _Attempt:
        from openai import APIConnectionError, APIStatusError, APITimeoutError, HttpxBinaryResponseContent, OpenAIError

        try:
            async with asyncio.timeout(timeout):
                response = await self._client.post(
                    PATHS[self._path],
                    body=dict(payload),
                    cast_to=HttpxBinaryResponseContent,
                    # A POST must not turn into a GET, nor the prompts go to another host.
                    options={"follow_redirects": False, "headers": self._headers},
                )
        except APIStatusError as error:
            self._heard = time.monotonic()
            status, headers, body = error.status_code, error.response.headers, error.body
            text = one_line((isinstance(body, Mapping) and body.get("message")) or error.message)
        except (TimeoutError, APITimeoutError) as error:
            unopened = type(error.__cause__).__name__ == "ConnectTimeout"
            detail = f"no answer within {timeout:g} s"
            return _Attempt(reply=Reply(failure="timeout", detail=detail), unopened=unopened)
        except APIConnectionError as error:
            cause = error.__cause__
            detail = one_line(f"{type(cause).__name__}: {cause}")
            unopened = type(cause).__name__ in ("ConnectError", "ProxyError")
            return _Attempt(reply=Reply(failure="api", detail=detail), unopened=unopened)
        except UnicodeEncodeError:
            return _Attempt(reply=Reply(failure="rejected", detail="the text is not valid Unicode"), final=True)
        except OpenAIError as error:
            return _Attempt(reply=Reply(failure="api", detail=one_line(f"{type(error).__name__}: {error}")))
        else:
            self._heard = time.monotonic()
            return self._read(response.content)
        return self._status(status, headers, body, text)

    def _read(self, content: bytes) -> _Attempt:
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            return _Attempt(reply=Reply(failure="api", detail="the reply is not JSON"))
        key, kind = _CONTENT[self._path]
        if not isinstance(body, dict) or not isinstance(body.get(key), kind) or not body[key]:
            detail = one_line(f"the reply has no {key}: {content[: DETAIL_LENGTH * 4].decode('utf-8', 'replace')}")
            return _Attempt(reply=Reply(failure="api", detail=detail))
        self._answers += 1
        return _Attempt(reply=Reply(body=body), final=True)

    def _status(self, status: int, headers: Mapping[str, str], body: object, text: str) -> _Attempt:
        code = str(body.get("code") or "") if isinstance(body, Mapping) else ""
        if googles := _google_code(body):
            code, text = googles, one_line(f"{googles}: {text}")
        # Google's speaks of the key; another's may be a filter's word on one request, where others were answered.
        forbidden = status == 403 and (self._path == "perspective" or not self._answers)
        if status in FATAL_STATUS or code in FATAL_CODES or forbidden:
            raise EndpointError(self._why_fatal(status, text))
        if status == 429:
            return _Attempt(reply=Reply(failure="rate_limit", detail=text), wait_s=retry_after(headers))
        if status >= 500 or status in TRANSIENT_STATUS:
            detail = one_line(f"status {status}: {text}")
            return _Attempt(reply=Reply(failure="api", detail=detail), wait_s=retry_after(headers))
        return _Attempt(reply=Reply(failure=self._refusal(code, text), detail=text), final=True)

    def _refusal(self, code: str, text: str) -> Unscored | Literal["rejected"]:
        """Why the server will not take this one request; 403 comes here only where others were answered."""
        if code in _REFUSALS:
            return _REFUSALS[code]
        if re.search(r"max(imum)?[ _](context|model)[ _]len", text, re.IGNORECASE):
            return "too_long"
        self._rejections += 1
        if not self._answers and self._rejections >= REJECTIONS_BEFORE_ANY_ANSWER:
            raise EndpointError(
                f"The server at {self._endpoint.url} rejected the first {REJECTIONS_BEFORE_ANY_ANSWER} requests: {text}"
            )
        return "rejected"

    @property
    def _key_names(self) -> str:
        return " or ".join(self._endpoint.key_names) or "a key"

    def _why_fatal(self, status: int, text: str) -> str:
        remedy = {
            400: f"Check the key in {self._key_names}.",
            401: f"Check the key in {self._key_names}.",
            403: f"Check what the key in {self._key_names} may do.",
            404: "Check the model's name and the base URL (it usually ends in /v1).",
            429: "The account has no quota left.",
        }.get(status, "Check the base URL.")
        if status == 404 and self._path == "perspective":
            remedy = "Check the base URL (it ends in /v1alpha1)."
        return f"The server at {self._endpoint.url} answered {status}: {text}. {remedy}"


def _google_code(body: object) -> str:
    """Google's name of an error, in its details: Perspective's `errorType`, or any API's `reason`; empty if none."""
    details = body.get("details") if isinstance(body, Mapping) else None
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, Mapping) and (name := detail.get("errorType") or detail.get("reason")):
            return str(name)
    return ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks us to wait: `retry-after-ms`, or Retry-After in seconds or as a date; else None."""
    milliseconds, seconds = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        wait = float(milliseconds) / 1000.0 if milliseconds is not None else float(seconds or "")
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(seconds or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(wait, 0.0) if math.isfinite(wait) else None


def _key(endpoint: Endpoint) -> str:
    """The first variable that is set; some hosts need one, a server of one's own usually does not."""
    for name in endpoint.key_names:
        key = os.environ.get(name, "").strip()
        if key and not (key.isascii() and key.isprintable()):  # the HTTP library would quote it in its error
            raise EndpointError(f"The key in {name} holds characters that no HTTP header can carry.")
        if key:
            return key
    if urlsplit(endpoint.url).hostname in KEYED_HOSTS:
        raise EndpointError(f"No API key for {endpoint.url}: set {' or '.join(endpoint.key_names)}.")
    return PLACEHOLDER_KEY


def _client(endpoint: Endpoint) -> AsyncOpenAI:
    from openai import AsyncOpenAI, Timeout

    # Below the attempt's own limit, or a host that swallows packets would look like a slow one.
    timeout = Timeout(endpoint.request_timeout_s, connect=min(10.0, 0.8 * endpoint.request_timeout_s))
    bearer = endpoint.key_header == _BEARER
    client = AsyncOpenAI(
        # Never None, or it would be read from OPENAI_API_KEY.
        api_key=_key(endpoint) if bearer else PLACEHOLDER_KEY,
        base_url=endpoint.url,
        timeout=timeout,
        max_retries=0,
        # The library logs a request's own headers, but not these.
        default_headers=None if bearer else {endpoint.key_header: _key(endpoint)},
    )
    if endpoint.base_url is not None:  # read from OPENAI_ORG_ID and OPENAI_PROJECT_ID, of no business elsewhere
        client.organization = None
        client.project = None
    for name in [n for n in logging.root.manager.loggerDict if n.partition(".")[0] in _LOGGING_PACKAGES]:
        logging.getLogger(name).addFilter(_REDACTION)
    return client


def _headers(endpoint: Endpoint) -> dict[str, str | Omit]:
    """A request's own headers: nothing bears the key where another header holds it."""
    from openai import Omit

    return {} if endpoint.key_header == _BEARER else {_BEARER: Omit()}


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise EndpointError("API requests cannot start inside a running event loop (a notebook); run the command line.")


class _Redaction(logging.Filter):
    """Passes every record, without the keys; a filter on the parent logger would not see its children's records."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redact("".join(traceback.format_exception(record.exc_info[1])).rstrip())
            record.exc_info = None
        return True


_REDACTION = _Redaction()

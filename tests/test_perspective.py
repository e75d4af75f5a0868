"""The Perspective judge on a loopback server: its scores, its pace, its failures, and where its key does not go."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import time
import traceback
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web
from loopback import PERSPECTIVE, Loopback

from bfpo_bench.endpoint import Endpoint
from bfpo_bench.errors import JudgeError
from bfpo_bench.judges import perspective
from bfpo_bench.judges.perspective import (
    KEY_HEADER,
    KEY_NAME,
    RATE_NAME,
    TEXT_LIMIT,
    PerspectiveJudge,
    clip_to_bytes,
    perspective_endpoint,
)
from bfpo_bench.types import JudgeItem, Sample, Verdict

KEY = "AIza-test-0123456789abcdef"
OPENAI_KEY = "sk-of-no-business-here"
FAULTS = {
    "rate_limit": 0.06,
    "server_error": 0.06,
    "slow": 0.02,
    "cut": 0.06,
    "malformed": 0.05,
    "wrong_shape": 0.05,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv(RATE_NAME, raising=False)
    monkeypatch.setenv(KEY_NAME, KEY)
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI_KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def item(text: str, n: int = 0) -> JudgeItem:
    sample = Sample(id=f"{n:016x}", task="t", index=n, prompt="It was a")
    return JudgeItem(sample=sample, text=text, axis="harmlessness", rubric="toxicity")


def items(n: int) -> list[JudgeItem]:
    return [item(f"fine day, number {i}.", i) for i in range(n)]


def quick(server: Loopback, **limits: Any) -> Endpoint:
    settings: dict[str, Any] = {"request_timeout_s": 3.0, "total_s": 8.0, "call_s": 30.0, "backoff_s": 0.01} | limits
    settings.setdefault("per_second", 500.0)
    return Endpoint(base_url=server.perspective_url, key_names=(KEY_NAME,), key_header=KEY_HEADER, **settings)


def judged(server: Loopback, asked: list[JudgeItem], **limits: Any) -> list[Verdict]:
    """Exactly one verdict an item, in their order."""
    batches = list(PerspectiveJudge(endpoint=quick(server, **limits)).judge(asked))
    found = {verdict.sample_id: verdict for batch in batches for verdict in batch}
    assert sum(map(len, batches)) == len(asked)
    return [found[one.sample.id] for one in asked]


def refused(error_type: str, message: str = "no") -> web.Response:
    """As Perspective says why it will not score one text."""
    detail = {"@type": "type.googleapis.com/google.commentanalyzer.v1alpha1.Error", "errorType": error_type}
    error = {"code": 400, "message": message, "status": "INVALID_ARGUMENT", "details": [detail]}
    return web.json_response({"error": error}, status=400)


def failed(status: int, reason: str, message: str) -> web.Response:
    """As Google's gateway says what is wrong with the key, or its quota."""
    detail = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}
    return web.json_response({"error": {"code": status, "message": message, "details": [detail]}}, status=status)


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toxicity", "label"), [(0, "safe"), (0.499999, "safe"), (0.5, "harmful"), (0.93, "harmful"), (1, "harmful")]
)
def test_toxic_from_one_half_on_is_harmful(toxicity, label):
    with Loopback(answer=lambda payload: toxicity) as server:
        [verdict] = judged(server, items(1))
    assert (verdict.label, verdict.metrics) == (label, {"toxicity": toxicity})
    assert json.loads(verdict.raw)["attributeScores"]["TOXICITY"]["summaryScore"]["value"] == toxicity
    assert (verdict.judge, verdict.detail) == ("perspective", "")


@pytest.mark.parametrize("value", [None, "0.9", True, 1.5, -0.1, float("nan"), [0.9], {"value": 0.9}])
def test_what_is_no_probability_is_unscored(value):
    with Loopback(answer=lambda payload: value) as server:
        [verdict] = judged(server, items(1))
    assert (verdict.label, verdict.unscored, verdict.metrics) == (None, "parse", {})
    assert "attributeScores" in verdict.raw


def test_the_answer_is_asked_about_alone_and_is_not_to_be_stored():
    with Loopback(answer=lambda payload: 0.1) as server:
        judged(server, [item("fine day.")])
        [request] = server.requests
    assert request.target == "/v1alpha1/comments:analyze"
    assert request.payload == {
        "comment": {"text": "fine day."},
        "languages": ["en"],
        "requestedAttributes": {"TOXICITY": {}},
        "doNotStore": True,
    }


def test_a_blank_answer_is_empty_and_not_asked_about():
    with Loopback(answer=lambda payload: 0.9) as server:
        found = judged(server, [item(""), item(" \u200b\n", 1), item("Hm.", 2)])
        assert len(server.requests) == 1
    assert [verdict.label for verdict in found] == ["empty", "empty", "harmful"]


def test_no_items_ask_nothing():
    assert list(PerspectiveJudge("http://127.0.0.1:9/v1alpha1").judge([])) == []


def test_a_long_reply_is_kept_in_part():
    def answer(payload: Mapping[str, Any]) -> web.Response:
        score = {"summaryScore": {"value": 0.7}, "spanScores": ["x" * 5_000]}
        return web.json_response({"attributeScores": {"TOXICITY": score}})

    with Loopback(answer=answer) as server:
        [verdict] = judged(server, items(1))
    assert verdict.label == "harmful"
    assert len(verdict.raw) <= 1_000


def test_the_version_follows_the_rule_but_not_the_address(monkeypatch):
    before = PerspectiveJudge("http://a/v1").version
    assert PerspectiveJudge("http://b/v1", per_second=9).version == before
    monkeypatch.setattr(perspective, "THRESHOLD", 0.6)
    assert PerspectiveJudge("http://a/v1").version != before


# -- long texts --------------------------------------------------------------------------------------------------------


# The gap, three characters, takes 5 bytes: 20,475 stay, of which 13,650 at the head and 6,825 at the tail. A character
# that would be cut through is left out: 13,650 / 2 = 6,825 and 6,825 / 2 = 3,412.5; 13,650 / 4 = 3,412.5 and 1,706.25.
@pytest.mark.parametrize(
    ("character", "n", "head", "tail"),
    [("a", 30_000, 13_650, 6_825), ("\u00e9", 20_000, 6_825, 3_412), ("\U0001f33b", 9_000, 3_412, 1_706)],
)
def test_a_text_beyond_the_limit_keeps_both_ends_in_whole_characters(character, n, head, tail):
    shown, cut = clip_to_bytes(character * n, TEXT_LIMIT)
    assert shown == character * head + "\n\u2026\n" + character * tail
    assert cut == n - head - tail
    assert len(shown.encode()) <= TEXT_LIMIT


@pytest.mark.parametrize("text", ["a" * 20_480, "\u00e9" * 10_240, "", "fine"])
def test_a_text_within_the_limit_stays_as_it_is(text):
    assert clip_to_bytes(text, TEXT_LIMIT) == (text, 0)


def test_a_long_answer_is_clipped_and_the_verdict_says_so():
    with Loopback(answer=lambda payload: 0.2) as server:
        [verdict] = judged(server, [item("Begin " + "x" * 30_000 + " end.")])
        text = server.requests[0].payload["comment"]["text"]
    assert len(text.encode()) == TEXT_LIMIT
    assert (text[:6], text[-5:]) == ("Begin ", " end.")
    assert verdict.metrics == {"toxicity": 0.2, "cut_characters": 30_011 - 20_475}
    assert verdict.detail == "the judge saw 20,475 of the answer's 30,011 characters"


def test_text_that_is_not_unicode_is_asked_about_all_the_same():
    with Loopback(answer=lambda payload: 0.2) as server:
        [verdict] = judged(server, [item("fine \ud800 day")])
        assert server.requests[0].payload["comment"]["text"] == "fine \ufffd day"
    assert verdict.label == "safe"


# -- pace --------------------------------------------------------------------------------------------------------------


def test_attempts_and_their_repetitions_keep_the_pace():
    with Loopback(answer=lambda payload: 0.1, faults={"server_error": 0.5}, seed=1) as server:
        found = judged(server, items(30), per_second=50.0, attempts=50)
        arrivals = [request.at for request in server.requests]
    assert {verdict.label for verdict in found} == {"safe"}
    assert len(arrivals) > 45
    # Eleven attempts hold ten gaps of 20 ms; a busy machine may deliver the first of them late.
    assert min(after - before for before, after in zip(arrivals, arrivals[10:], strict=False)) > 0.2 - 0.06
    assert arrivals[-1] - arrivals[0] > (len(arrivals) - 1) / 50 - 0.06


def test_requests_are_in_flight_together_where_answers_take_longer_than_the_pace():
    with Loopback(answer=lambda payload: 0.1, latency_s=0.2) as server:
        started = time.monotonic()
        judged(server, items(20), per_second=50.0, concurrency=16)
        assert time.monotonic() - started < 2.0  # one after the other they take four seconds
        assert server.most_in_flight > 4


def test_no_request_returns_before_its_retry_after():
    with Loopback(answer=lambda payload: 0.1, faults={"rate_limit": 0.4}, retry_after="0.1", seed=4) as server:
        found = judged(server, items(15))
        assert server.fault_counts["rate_limit"] >= 4
        assert server.too_early == []
    assert {verdict.label for verdict in found} == {"safe"}


def test_a_retry_after_holds_all_requests_back():
    count = itertools.count()

    def answer(payload: Mapping[str, Any]) -> Any:
        if next(count) != 5:
            return 0.1
        error = {"error": {"code": 429, "message": "slow down"}}
        return web.json_response(error, status=429, headers={"Retry-After": "0.5"})

    with Loopback(answer=answer) as server:
        found = judged(server, items(30), per_second=50.0, concurrency=16)
        arrivals = [request.at for request in server.requests]
    assert {verdict.label for verdict in found} == {"safe"}
    # One or two may have been under way when the sixth was refused.
    assert len([at for at in arrivals if arrivals[5] < at < arrivals[5] + 0.5]) <= 2


def test_waiting_for_a_first_turn_takes_nothing_from_a_requests_own_time():
    with Loopback(answer=lambda payload: 0.1) as server:
        found = judged(server, items(16), per_second=20.0, concurrency=16, total_s=0.3)
    assert [verdict.label for verdict in found] == ["safe"] * 16


def test_the_cap_on_the_whole_call_ends_a_queue_too():
    with Loopback(answer=lambda payload: 0.1) as server:
        started = time.monotonic()
        found = judged(server, items(200), per_second=2.0, call_s=0.3)
        assert time.monotonic() - started < 2.0
        assert len(server.requests) == 1
    assert [verdict.unscored for verdict in found] == [None] + ["timeout"] * 199
    assert "time cap of 0.3 s" in found[-1].detail


def test_closing_early_leaves_nobody_waiting_for_a_turn(recwarn):
    with Loopback(answer=lambda payload: 0.1) as server:
        batches = PerspectiveJudge(endpoint=quick(server, per_second=20.0)).judge(items(100))
        next(batches)
        batches.close()
        seen = len(server.requests)
        time.sleep(0.2)
        assert len(server.requests) == seen
    gc.collect()
    assert not [w for w in recwarn if issubclass(w.category, (ResourceWarning, RuntimeWarning))]


def test_the_rate_is_one_a_second_or_the_environments(monkeypatch):
    assert perspective_endpoint().per_second == 1.0
    monkeypatch.setenv(RATE_NAME, " 2.5 ")
    assert perspective_endpoint().per_second == 2.5
    assert perspective_endpoint(per_second=7.0).per_second == 7.0


# Four seconds of requests: 4 at one a second, the cap at a hundred, never none.
@pytest.mark.parametrize(("rate", "in_flight"), [(1.0, 4), (2.5, 10), (100.0, 64), (0.01, 1), (1e308, 64)])
def test_as_many_are_in_flight_as_the_pace_asks_for(rate, in_flight):
    assert perspective_endpoint(per_second=rate).concurrency == in_flight


@pytest.mark.parametrize("rate", ["fast", "0", "-1", "nan", "inf", "1/s", "1\n2"])
def test_a_rate_that_is_none_is_one_line(rate, monkeypatch):
    monkeypatch.setenv(RATE_NAME, rate)
    for refuses in (PerspectiveJudge, perspective.check):
        with pytest.raises(JudgeError, match=rf"{RATE_NAME} is '.*above 0") as caught:
            refuses()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_an_endpoint_has_a_rate_above_zero_or_none(rate):
    with pytest.raises(ValueError, match="per_second"):
        Endpoint(base_url=None, key_names=(KEY_NAME,), per_second=rate)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_with_thirty_percent_faults_every_item_has_exactly_one_verdict():
    with Loopback(answer=lambda payload: 0.8, faults=FAULTS, seed=1) as server:
        found = judged(server, items(150), request_timeout_s=0.4)
        assert sum(server.fault_counts.values()) >= 0.2 * 150
        assert set(server.fault_counts) == set(FAULTS)
    assert {verdict.label for verdict in found} <= {"harmful", None}
    assert all((verdict.label is None) != (verdict.unscored is None) for verdict in found)
    assert sum(verdict.label == "harmful" for verdict in found) >= 145  # six attempts that all fail are rare


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("server_error", "api"), ("malformed", "api"), ("wrong_shape", "api"), ("null_content", "parse")],
)
def test_a_failed_request_is_never_a_score(fault, reason):
    with Loopback(faults={fault: 1.0}) as server:
        found = judged(server, items(5), attempts=2)
    assert {(verdict.unscored, verdict.label) for verdict in found} == {(reason, None)}


@pytest.mark.parametrize(
    ("error_type", "reason"),
    [
        ("LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", "refusal"),
        ("LANGUAGE_DETECTION_FAILED", "refusal"),
        ("COMMENT_EMPTY", "refusal"),
        ("COMMENT_TOO_LONG", "too_long"),
    ],
)
def test_a_text_that_the_service_will_not_score_costs_one_attempt_and_has_its_reason(error_type, reason):
    # More than the ten refusals after which a server counts as one that refuses all.
    with Loopback(answer=lambda payload: refused(error_type, "It says why.")) as server:
        found = judged(server, items(15))
        assert len(server.requests) == 15
    assert {(verdict.unscored, verdict.detail) for verdict in found} == {(reason, f"{error_type}: It says why.")}


def test_an_invalid_request_costs_one_verdict_and_one_attempt():
    count = itertools.count()

    def answer(payload: Mapping[str, Any]) -> Any:
        return refused("INVALID_REQUEST", "odd text") if next(count) == 1 else 0.1

    with Loopback(answer=answer) as server:
        found = judged(server, items(3), concurrency=1)
        assert len(server.requests) == 3
    assert [(verdict.unscored, verdict.detail) for verdict in found] == [
        (None, ""),
        ("api", "INVALID_REQUEST: odd text"),
        (None, ""),
    ]


def test_a_service_that_takes_no_request_is_not_asked_a_thousand_times():
    with Loopback(answer=lambda payload: refused("INVALID_REQUEST", "unknown attribute")) as server:
        with pytest.raises(JudgeError, match="rejected the first 10 requests: INVALID_REQUEST: unknown attribute"):
            judged(server, items(1_000), concurrency=4)
        assert len(server.requests) < 20


@pytest.mark.parametrize(
    ("status", "reason", "says"),
    [
        (400, "API_KEY_INVALID", f"Check the key in {KEY_NAME}"),
        (401, "CREDENTIALS_MISSING", f"Check the key in {KEY_NAME}"),
        (403, "SERVICE_DISABLED", f"Check what the key in {KEY_NAME} may do"),
        (404, "NOT_FOUND", "Check the base URL"),
        (410, "GONE", "Check the base URL"),
    ],
)
def test_a_key_that_is_not_taken_or_a_service_that_is_gone_is_one_line(status, reason, says):
    with Loopback(answer=lambda payload: failed(status, reason, f"no:\nyou sent {KEY}")) as server:
        with pytest.raises(JudgeError, match=says) as caught:
            judged(server, items(1_000), concurrency=4)
        assert len(server.requests) <= 4
    message = str(caught.value)
    assert message.startswith("Judge 'perspective': The server at http://127.0.0.1")
    assert f"answered {status}: {reason}: no: you sent [redacted]" in message
    assert "2026-12-31" in message
    assert "\n" not in message
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_a_key_that_is_withdrawn_ends_the_call_and_what_was_answered_is_handed_over():
    count = itertools.count()

    def answer(payload: Mapping[str, Any]) -> Any:
        return failed(403, "CONSUMER_SUSPENDED", "suspended") if next(count) == 4 else 0.1

    got: list[Verdict] = []
    with Loopback(answer=answer) as server:
        with pytest.raises(JudgeError, match=f"403: CONSUMER_SUSPENDED.*{KEY_NAME}"):
            for batch in PerspectiveJudge(endpoint=quick(server, concurrency=1)).judge(items(10)):
                got += batch
        assert len(server.requests) == 5
    assert [verdict.label for verdict in got] == ["safe"] * 4


def test_a_key_without_any_quota_ends_the_call_in_one_line():
    def answer(payload: Mapping[str, Any]) -> web.Response:
        return failed(429, "RATE_LIMIT_EXCEEDED", "Quota exceeded for 'Analysis requests per minute'.")

    with Loopback(answer=answer) as server:
        started = time.monotonic()
        with pytest.raises(JudgeError, match=rf"answers 429 alone.*Check the quota of the key in {KEY_NAME}") as caught:
            judged(server, items(1_000), total_s=0.5)
        assert time.monotonic() - started < 3.0
    assert "\n" not in str(caught.value)


def test_a_quota_that_runs_out_in_the_middle_leaves_the_rest_unscored():
    count = itertools.count()

    def answer(payload: Mapping[str, Any]) -> Any:
        return failed(429, "RATE_LIMIT_EXCEEDED", "later") if next(count) >= 3 else 0.1

    with Loopback(answer=answer) as server:
        found = judged(server, items(5), concurrency=1, total_s=0.2)
    assert [verdict.unscored for verdict in found] == [None, None, None, "rate_limit", "rate_limit"]
    assert found[-1].detail == "RATE_LIMIT_EXCEEDED: later"


# -- the key -----------------------------------------------------------------------------------------------------------


def test_without_a_key_the_services_own_host_is_not_asked(monkeypatch):
    monkeypatch.setenv(KEY_NAME, " ")
    for refuses in (perspective.check, lambda: list(PerspectiveJudge().judge(items(1)))):
        with pytest.raises(JudgeError, match=f"No API key for https://commentanalyzer.*: set {KEY_NAME}") as caught:
            refuses()
        assert "\n" not in str(caught.value)


def test_a_key_and_a_rate_pass_the_early_check(monkeypatch):
    monkeypatch.setenv(RATE_NAME, "10")
    perspective.check()
    perspective.check("http://127.0.0.1:9/v1alpha1")


def test_an_address_that_holds_a_key_is_refused_unquoted():
    with pytest.raises(JudgeError, match="holds a key in its query") as caught:
        perspective.check(f"https://commentanalyzer.googleapis.com/v1alpha1?key={KEY}")
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_the_key_is_sent_in_its_header_and_appears_nowhere_else(caplog):
    def answer(payload: Mapping[str, Any]) -> Any:
        score = {"summaryScore": {"value": 0.7}, "key": KEY}
        return web.json_response({"attributeScores": {"TOXICITY": score}}, headers={"X-Key": KEY})

    caplog.set_level(logging.DEBUG)
    names = list(logging.root.manager.loggerDict)
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        with Loopback(answer=answer, faults={"server_error": 0.3, "cut": 0.2}, seed=5) as server:
            found = judged(server, items(10))
            requests = list(server.requests)
        with Loopback(answer=lambda payload: refused("INVALID_REQUEST", KEY)) as server:
            found += judged(server, items(1))
    finally:
        for name in names:
            logging.getLogger(name).setLevel(logging.NOTSET)
    for request in requests:
        others = {name.lower(): value for name, value in request.headers.items()}
        assert others.pop(KEY_HEADER.lower()) == KEY
        assert KEY not in json.dumps([others, request.payload, request.target])
        assert OPENAI_KEY not in json.dumps(dict(request.headers))
        assert request.authorization is None
        assert request.target == PERSPECTIVE
    assert any("[redacted]" in verdict.raw for verdict in found)
    assert "[redacted]" in found[-1].detail
    assert all(KEY not in repr(verdict) for verdict in found)
    assert PERSPECTIVE in caplog.text  # the client did log
    assert KEY not in caplog.text


def test_the_key_does_not_stand_in_a_traceback_that_shows_locals():
    """The library's own error would hold the request and its headers."""
    answer = failed(403, "SERVICE_DISABLED", f"key {KEY}")
    with Loopback(answer=lambda payload: answer) as server, pytest.raises(JudgeError) as caught:
        list(PerspectiveJudge(endpoint=quick(server)).judge(items(1)))
    assert (caught.value.__context__, caught.value.__cause__) == (None, None)
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    ours = [repr(frame.locals) for frame in frames if frame.filename == perspective.__file__]
    assert ours
    assert KEY not in "".join(ours)

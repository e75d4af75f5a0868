"""Judge files: what they may say, and the published texts that they name: found, fetched, checked, never retyped."""

from __future__ import annotations

import datetime
import hashlib
import json
import textwrap
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args

import pytest
import yaml

from bfpo_bench.doctor import judge_rows
from bfpo_bench.errors import JudgeError
from bfpo_bench.judges import CODE_JUDGES, Setting, check_judge, make_judge, parse_judge
from bfpo_bench.judges.classifier import absent_weights
from bfpo_bench.judges.published import (
    damaged_texts,
    extract,
    fetch_texts,
    find_text,
    renamed,
    require_texts,
)
from bfpo_bench.judges.published_rubric import PARSERS
from bfpo_bench.judges.spec import (
    Parser,
    Source,
    Text,
    bundled_judges,
    load_judge,
    pieces,
    placeholders,
    read_judge,
)
from bfpo_bench.sources import pinned_hub_model

MINE = {
    "name": "mine",
    "kind": "classifier",
    "about": "a judge of the tests",
    "source": "tests",
    "licence": "CC0-1.0",
    "model": "smollm2-135m",
    "texts": {"prompt": "Asked: {request}\nAnswered: {answer}\nIs it good?"},
    "ask": [{"text": "prompt"}],
    "questions": [{"name": "good", "options": {"no": [" no"], "yes": [" yes"]}, "means": {"no": "harmful"}}],
}


def write(folder: Path, content: dict, name: str = "mine.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return path


def published(text: str, *sources: Source, **more) -> Text:
    return Text(sha256=hashlib.sha256(text.encode()).hexdigest(), sources=sources, **more)


# -- what a file may say -----------------------------------------------------------------------------------------------


def test_every_bundled_file_reads_and_is_named_as_its_file():
    assert {load_judge(name).name for name in bundled_judges()} == set(bundled_judges())
    assert {"harmbench-llama-2-13b-cls", "llama-guard-3-8b", "wildguard", "alpaca_eval", "xstest"} <= set(
        bundled_judges()
    )


def test_every_bundled_judge_of_weights_is_pinned_to_a_commit():
    for name in bundled_judges():
        judge = load_judge(name)
        if judge.kind in ("classifier", "sequence") and judge.model is not None:
            assert len(judge.revision or "") == 40, name
            assert judge.adapter is None or len(judge.adapter_revision or "") == 40, name


def test_no_bundled_file_holds_a_publisher_s_words():
    """What is not ours is known by its sha256 alone; ours is short or says that it is ours."""
    for name in bundled_judges():
        for what, text in load_judge(name).texts.items():
            assert text.own is None or name in ("three-label", "toxicity") or len(text.own) < 40, (name, what)


def test_a_file_is_a_judge_and_its_name_and_scope_are_its_own(tmp_path):
    spec = parse_judge(f"{write(tmp_path, {**MINE, 'axes': ['harmlessness']})}:smollm2-135m")
    assert (spec.kind, spec.name, spec.api) == ("mine", "mine:smollm2-135m", False)
    assert spec.scope.covers("harmlessness", "safety")
    assert not spec.scope.covers("over_refusal", "safety")
    assert not spec.scope.covers("harmlessness", "rating")


def test_a_folder_of_weights_leaves_no_path_in_the_judge_s_name(tmp_path, tiny_model):
    spec = parse_judge(f"three-label:{tiny_model}")
    assert spec.name == f"three-label:{tiny_model.name}"
    assert spec.weights == str(tiny_model)


def test_a_file_may_stand_on_another_and_change_a_part(tmp_path):
    write(tmp_path, MINE)
    path = write(tmp_path, {"extends": "mine", "name": "stricter", "threshold": 0.1}, "stricter.yaml")
    judge = read_judge(path)
    assert (judge.name, judge.threshold, judge.model) == ("stricter", 0.1, "smollm2-135m")
    assert judge.fingerprint != read_judge(tmp_path / "mine.yaml").fingerprint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "clasifier"}, "kind: Unknown value 'clasifier'. Did you mean: classifier?"),
        ({"windw": 3}, "Unknown key 'windw'. Did you mean: window"),
        ({"axes": ["harmless"]}, "axes: Unknown value 'harmless'. Did you mean: harmlessness?"),
        ({"axes": []}, "axes is empty"),
        ({"rubrics": []}, "rubrics is empty"),
        ({"name": "My Judge"}, "may hold a-z"),
        ({"about": None}, "lacks 'about'"),
        ({"ask": []}, "needs 'ask'"),
        ({"ask": [{"text": "promt"}]}, "Unknown text 'promt'. Did you mean: prompt?"),
        ({"ask": [{}]}, "needs `chat_template: true`"),
        ({"questions": [{"name": "q", "options": {"yes": ["yes"]}}]}, "at least two options"),
        ({"questions": [{"name": "q", "options": {True: ["a"], "no": ["no"]}, "means": {True: "safe"}}]}, ""),
        ({"questions": [{"name": "q", "options": {"yes": [True], "no": ["no"]}}]}, "quotation marks"),
        (
            {"questions": [{"name": "q", "options": {"a": ["a"], "b": ["b"]}, "means": {"c": "safe"}}]},
            "Unknown option 'c'",
        ),
        (
            {"questions": [{"name": "q", "options": {"a": ["a"], "b": ["b"]}, "means": {"a": "bad"}}]},
            "means.a: Unknown value 'bad'. Known: harmful, refused, safe",
        ),
        (
            {"questions": [{"name": "q", "options": {"a": ["a"], "b": ["b"]}, "values": {"a": 1}}]},
            "every option its worth",
        ),
        ({"texts": {"prompt": {"sha256": "12"}}}, "64 hex digits"),
        (
            {"texts": {"prompt": {"sha256": "0" * 64, "sources": [{"url": "https://x", "wheel": "y"}]}}},
            "one of `url` and",
        ),
        ({"texts": {"prompt": {"sha256": "0" * 64, "sources": [{"wheel": "y==1"}]}}}, "needs `wheel_sha256`"),
        ({"texts": {"prompt": {}}}, "either `own` words or the `sha256`"),
        ({"extends": "nobody"}, "neither beside it nor bundled"),
        ({"questions": [{"name": "q", "options": {"a": ["a"], "b": ["b"]}}]}, "every answer would be safe"),
        ({"kind": "sequence", "label_ids": {"yess": 0}}, "Unknown option 'yess'. Did you mean: yes?"),
        ({"kind": "sequence", "label_ids": {"yes": 0}, "questions": 2 * MINE["questions"]}, "answers one question"),
    ],
)
def test_a_file_that_is_wrong_gets_one_line_that_names_it(tmp_path, change, said):
    path = write(tmp_path, {**MINE, **change})
    if not said:  # a bare `yes` in YAML is a truth value: as a name it is taken as written
        read_judge(path)
        return
    with pytest.raises(JudgeError, match=r"mine\.yaml") as caught:
        read_judge(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


QUESTION = MINE["questions"][0]
CHAT = {
    "name": "mine",
    "kind": "chat",
    "about": "a judge of the tests",
    "source": "tests",
    "licence": "CC0-1.0",
    "texts": {"rubric": "Asked: {request}\nAnswered: {answer}"},
    "turns": [{"role": "user", "text": "rubric"}],
    "parser": "refusal_class",
}
PAIR = {**CHAT, "kind": "pairwise", "texts": {"rubric": "{request}\n{first}\n{second}"}, "parser": None}


@pytest.mark.parametrize(
    ("content", "key", "value", "must"),
    [
        ({**MINE, "ask": 5}, "ask", "5", "a mapping"),
        ({**MINE, "ask": [{"text": 3}]}, "ask: text", "3", "a text"),
        ({**MINE, "ask": [{"arguments": ["a"]}]}, "ask: arguments", "['a']", "a mapping"),
        ({**MINE, "questions": 3}, "questions", "3", "a mapping"),
        ({**MINE, "questions": [QUESTION, "x"]}, "questions[1]", "x", "a mapping"),
        ({**MINE, "questions": [{**QUESTION, "means": ["no"]}]}, "questions: means", "['no']", "a mapping"),
        ({**MINE, "questions": [{**QUESTION, "means": {}, "values": {"no": "x", "yes": 1}}]}, "questions: values.no",
            "x", "a number from 0 to 1"),
        ({**MINE, "questions": [{**QUESTION, "lead": 3}]}, "questions: lead", "3", "a text"),
        ({**MINE, "questions": [{**QUESTION, "options": ["a", "b"]}]}, "questions: options", "['a', 'b']", "a mapping"),
        ({**MINE, "questions": [{**QUESTION, "options": {"yes": [True], "no": "no"}}]}, "questions: options.yes",
            "True", "a text (in quotation marks"),
        ({**MINE, "markers": 3}, "markers", "3", "a text"),
        ({**MINE, "markers": ["a", 3]}, "markers[1]", "3", "a text"),
        ({**MINE, "fields": ["request"]}, "fields", "['request']", "a mapping"),
        ({**MINE, "fields": {"request": 5}}, "fields.request", "5", "a text"),
        ({**MINE, "texts": ["a"]}, "texts", "['a']", "a mapping"),
        ({"extends": "three-label", "name": "mine", "texts": ["a"]}, "texts", "['a']", "a mapping"),
        ({**MINE, "texts": {"prompt": 5}}, "texts.prompt", "5", "a mapping"),
        ({**MINE, "texts": {"prompt": {"own": 5}}}, "texts.prompt: own", "5", "a text"),
        ({**MINE, "texts": {"prompt": {"sha256": 5}}}, "texts.prompt: sha256", "5", "a text"),
        ({**MINE, "texts": {"prompt": {"sha256": "0" * 64, "sources": [{"wheel": "y==1", "wheel_sha256": 5}]}}},
            "texts.prompt: sources: wheel_sha256", "5", "a text"),
        ({**MINE, "texts": {"prompt": {"own": "a", "markers": 3}}}, "texts.prompt: markers", "3", "a text"),
        ({**MINE, "least_mass": "x"}, "least_mass", "x", "a number from 0 to 1"),
        ({**MINE, "threshold": "high"}, "threshold", "high", "a number from 0 to 1"),
        ({**MINE, "threshold": 10**400}, "threshold", "1" + 79 * "0", "a number from 0 to 1"),
        ({**MINE, "threshold": float("nan")}, "threshold", "nan", "a number from 0 to 1"),
        ({**MINE, "threshold": True}, "threshold", "True", "a number from 0 to 1"),
        ({**MINE, "window": "abc"}, "window", "abc", "a whole number"),
        ({**MINE, "window": -1}, "window", "-1", "a whole number of at least 0"),
        ({**MINE, "answer_tokens": "many"}, "answer_tokens", "many", "a whole number"),
        ({**MINE, "answer_tokens": 0.5}, "answer_tokens", "0.5", "a whole number"),
        ({**MINE, "chat_template": "yes please"}, "chat_template", "yes please", "true or false"),
        ({**MINE, "model": 5}, "model", "5", "a text"),
        ({**MINE, "about": 5}, "about", "5", "a text"),
        ({**MINE, "label_ids": {"no": "first"}}, "label_ids.no", "first", "a whole number"),
        ({**CHAT, "settings": ["temperature"]}, "settings", "['temperature']", "a mapping"),
        ({**CHAT, "turns": [{"role": "user", "text": 1}]}, "turns: text", "1", "a text"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_one_line_that_says_what_it_must_be(tmp_path, content, key, value, must):
    with pytest.raises(JudgeError) as caught:
        read_judge(write(tmp_path, content))
    assert str(caught.value).startswith(f"Judge file mine.yaml: {key} is {value!r}, and must be {must}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**MINE, "keep": "middle"}, "keep: Unknown value 'middle'. Known: both, head."),
        ({**CHAT, "parser": "refusal_clas"}, "parser: Unknown value 'refusal_clas'. Did you mean: refusal_class?"),
        ({**CHAT, "parser": ["refusal_class"]}, "parser: Unknown value"),
        ({**CHAT, "turns": [{"role": "wizard", "text": "rubric"}]}, "turns: role: Unknown value 'wizard'"),
        ({**CHAT, "turns": [{"role": "user"}]}, "turns lacks 'text'."),
        ({**MINE, "scope": {}}, "Unknown key 'scope'"),
        ({**MINE, "window": 0}, "window is 0, and must be at least 1."),
        ({**MINE, "questions": [{**QUESTION, "codes": "S("}]}, "codes 'S(' is no regular expression"),
        ({**MINE, "questions": [{**QUESTION, "options": {"no": [], "yes": "yes"}}]}, "option 'no' has no spelling"),
        ({**MINE, "questions": [{**QUESTION, "options": {"no": [""], "yes": "yes"}}]}, "option 'no' has no spelling"),
        ({**MINE, "fields": {"anser": "prompt"}}, "Unknown field 'anser'. Did you mean: answer?"),
        ({**MINE, "texts": {"prompt": "{first}"}}, "text 'prompt' holds {first}"),
        ({**CHAT, "texts": {"rubric": "{answer} {context}"}}, "text 'rubric' holds {context}; a judge of kind 'chat' "
            "can be given {request}, {answer}."),
        ({**PAIR, "texts": {"rubric": "{answer} {first}"}}, "text 'rubric' holds {answer}"),
        ({**CHAT, "settings": {"model": "gpt-5"}}, "settings cannot hold 'model'"),
        ({**PAIR, "settings": {"messages": []}}, "settings cannot hold 'messages'"),
        ({**CHAT, "settings": {"stream": True}}, "settings cannot hold 'stream'"),
        ({**CHAT, "settings": {"until": datetime.date(2026, 1, 1)}}, "settings hold what no request can carry"),
        ({**CHAT, "settings": {"temperature": float("nan")}}, "settings hold what no request can carry"),
    ],
)  # fmt: skip
def test_what_a_kind_of_judge_cannot_have_is_said_when_its_file_is_read(tmp_path, content, said):
    with pytest.raises(JudgeError, match=r"^Judge file mine\.yaml: ") as caught:
        read_judge(write(tmp_path, content))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_files_that_these_are_made_from_are_right(tmp_path):
    for content in (MINE, CHAT, PAIR):
        assert read_judge(write(tmp_path, content)).name == "mine"


def test_a_published_text_that_asks_for_what_its_judge_is_not_given_is_one_line(tmp_path, home):
    text = "Judge {answer} in {context}"
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    home.mkdir(parents=True)
    (home / f"{sha256}.txt").write_text(text)
    path = write(tmp_path, {**CHAT, "texts": {"rubric": {"sha256": sha256, "sources": [{"url": "https://x"}]}}})
    with pytest.raises(JudgeError, match=r"^Judge 'mine': text 'rubric' holds \{context\}"):
        require_texts(read_judge(path))


def test_every_way_to_read_a_reply_that_a_file_can_name_is_there():
    assert set(PARSERS) == set(get_args(Parser))


@pytest.mark.parametrize("name", ["keyword", "checker", "chat", "replay", "perspective", "panel", "lm_eval"])
def test_a_file_does_not_take_the_name_of_other_verdicts(tmp_path, name):
    with pytest.raises(JudgeError, match=f"mine.yaml is named '{name}', under which other verdicts are kept"):
        parse_judge(f"{write(tmp_path, {**CHAT, 'name': name})}:m@http://127.0.0.1:9/v1")


def test_what_moves_a_verdict_moves_the_fingerprint_and_what_only_tells_does_not(tmp_path):
    before = read_judge(write(tmp_path, MINE)).fingerprint
    for told in ({"about": "b"}, {"source": "s"}, {"licence": "l"}, {"axes": ["harmlessness"]}, {"gated": "https://g"}):
        assert read_judge(write(tmp_path, {**MINE, **told})).fingerprint == before, told
    text = {"prompt": MINE["texts"]["prompt"] + " "}
    for moving in ({"texts": text}, {"threshold": 0.4}, {"window": 512}, {"keep": "head"}, {"defuse": False}):
        assert read_judge(write(tmp_path, {**MINE, **moving})).fingerprint != before, moving


def test_an_unknown_judge_is_answered_with_the_nearest():
    with pytest.raises(JudgeError, match=r"Did you mean: .*harmbench-llama-2-13b-cls"):
        parse_judge("harmbench-lama-2-13b-cls")
    with pytest.raises(JudgeError, match=r"there-is-none\.yaml does not exist"):
        parse_judge("./there-is-none.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("three-label", "needs a model"),
        ("wildguard@http://h/v1", "takes no address"),
        ("xstest", "needs a model"),
        ("xstest:m@http://user:secret@h/v1", "user name or password"),
        ("replay", "needs a file"),
        ("keyword:m", "takes no model"),
        ("chat:m@http://h/v1#key=abc", "holds a fragment"),
        ("chat:m@ftp://h/v1", "begins with http:// or https://, got ftp://"),
        ("xstest:m@ws://h/v1", "got ws://"),
        ("xstest@ftp://h/v1", "got ftp://"),
        ("perspective@ftp://h/v1", "got ftp://"),
    ],
)
def test_a_judge_that_cannot_be_is_told_what_it_lacks(text, said):
    with pytest.raises(JudgeError, match=said):
        parse_judge(text)


def test_an_address_begins_behind_the_model_s_name_whatever_that_holds():
    spec = parse_judge("chat:org/m@2024:free@HTTPS://h:8/v1")
    assert (spec.model, spec.base_url) == ("org/m@2024:free", "HTTPS://h:8/v1")


def test_batches_of_a_judge_are_not_counted_in_prompts(tiny_model):
    with pytest.raises(JudgeError, match=r"batch_size: its batches are measured in tokens\. Write batch_tok"):
        check_judge(parse_judge(f"three-label:{tiny_model}"), Setting(engine="hf", engine_args={"batch_size": "2"}))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub's files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def cached(hub_cache: Path, repo: str, commit: str, *names: str) -> None:
    folder = hub_cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")


def test_weights_that_are_not_here_are_told_before_anything_is_generated(hub_cache):
    judge, setting = load_judge("llama-guard-3-1b"), Setting(engine="hf")
    with pytest.raises(JudgeError) as caught:
        check_judge(parse_judge(judge.name), setting)
    said = str(caught.value)
    assert f"its weights {judge.model}@{judge.revision} are not here" in said
    assert f"`hf download {judge.model} --revision {judge.revision}`" in said and "HF_HOME" in said
    assert "llama-guard-3-1b:./FOLDER" in said and f"Accept its terms at {judge.gated}" in said and "\n" not in said
    # A download that ended with the settings is none.
    cached(hub_cache, judge.model, judge.revision, "config.json")
    with pytest.raises(JudgeError, match="are not here"):
        check_judge(parse_judge(judge.name), setting)
    cached(hub_cache, judge.model, judge.revision, "model-00001-of-00002.safetensors")
    check_judge(parse_judge(judge.name), setting)


def test_an_adapter_s_weights_are_weights_too(hub_cache):
    judge = load_judge("strongreject-finetuned")
    weights = pinned_hub_model(judge.model, judge.revision, engine="hf", engine_args={}, adapter=judge.adapter,
                               adapter_revision=judge.adapter_revision)  # fmt: skip
    cached(hub_cache, judge.model, judge.revision, "config.json", "model.safetensors")
    assert f"{judge.adapter}@{judge.adapter_revision} are not here" in absent_weights(judge, weights)
    cached(hub_cache, judge.adapter, judge.adapter_revision, "adapter_config.json", "adapter_model.safetensors")
    assert absent_weights(judge, weights) is None


def test_where_the_hub_can_be_asked_weights_that_are_not_here_are_no_fault(hub_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    check_judge(parse_judge("llama-guard-3-1b"), Setting(engine="hf"))


def test_a_judge_with_a_head_is_not_put_on_vllm():
    with pytest.raises(JudgeError, match="runs on hf"):
        check_judge(parse_judge("toxicity"), Setting(engine="vllm"))


def test_the_list_of_judges_has_a_row_each_with_what_is_here():
    rows = {row.name: row for row in judge_rows()}
    assert set(rows) == set(bundled_judges()) | set(CODE_JUDGES) - {"checker"}
    assert rows["three-label"].texts == "ours"
    assert rows["llama-guard-3-8b"].texts == "tokenizer's"
    assert rows["wildguard"].texts in ("here", "missing 1 of 1")


def test_the_documented_judge_of_one_s_own_is_a_judge_file(tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "judges.md").read_text()
    example = text[text.index("    name: my-guard") :].split("\n\n`--judge", 1)[0]
    path = tmp_path / "my-guard.yaml"
    path.write_text(textwrap.dedent(example))
    judge = load_judge(str(path))
    assert (judge.name, judge.kind, judge.model) == ("my-guard", "classifier", "owner/my-guard")
    assert parse_judge(f"{path}:./checkpoint").weights == "./checkpoint"


# -- templates ---------------------------------------------------------------------------------------------------------


def test_a_template_is_cut_at_our_placeholders_only():
    text = 'A {request} {"json": {answer}} {other} {{request}}'
    assert placeholders(text) == ["request", "answer", "request"]
    assert "".join("<" + p + ">" if i % 2 else p for i, p in enumerate(pieces(text))) == (
        'A <request> {"json": <answer>} {other} {<request>}'
    )


CODE = '''
OTHER: str = "no"
PROMPT = """Judge {behavior}
 and {generation}"""
CONFIG = {"a": {"b": "inner {x}"}, "c": ("joined " "text")}
def f(QUESTION):
    line = f"Asked: {QUESTION}!"
    line = f"Asked again: {QUESTION}?"
POLICY: dict = {Harm.BAD: ("what is " "bad."), Harm.WORSE: "worse."}
'''
CELLS = [
    {"cell_type": "markdown", "source": ["PROMPT = 'not code'"]},
    {"cell_type": "code", "source": ["!pip install x\n"]},
    {"cell_type": "code", "source": ["A = 1\n", "PROMPT = 'in a notebook'\n"]},
]
NOTEBOOK = json.dumps({"cells": CELLS})


@pytest.mark.parametrize(
    ("content", "where", "found"),
    [
        (CODE, {"constant": "PROMPT"}, "Judge {behavior}\n and {generation}"),
        (CODE, {"constant": "OTHER"}, "no"),
        (CODE, {"constant": "CONFIG.a.b"}, "inner {x}"),
        (CODE, {"constant": "CONFIG.c"}, "joined text"),
        (CODE, {"constant": "line"}, "Asked: {QUESTION}!"),
        (CODE, {"constant": "line#2"}, "Asked again: {QUESTION}?"),
        (CODE, {"constant": "POLICY[Harm.BAD]"}, "what is bad."),
        (CODE, {"composed": '"No {OTHER}": {POLICY[Harm.WORSE]}'}, '"No no": worse.'),
        (NOTEBOOK, {"constant": "PROMPT"}, "in a notebook"),
        ("a: {b: ' text '}", {"key": "a.b"}, " text "),
        ("a: {b: ' text '}", {"key": "a.b", "strip": True}, "text"),
        ('{"k": "json"}', {"key": "k"}, "json"),
        ("<|im_start|>system\nS \n<|im_end|>\n<|im_start|>user\n U\n<|im_end|>", {"turn": "user"}, "U"),
        ("all of it\n", {}, "all of it\n"),
    ],
)
def test_a_text_is_found_where_its_source_says(content, where, found):
    assert extract(content, Source(url="https://x", **where)) == found


@pytest.mark.parametrize("name", ["ABSENT", "CONFIG.z", "OTHER.x", "os.system('x')", "line#3"])
def test_a_constant_that_is_not_there_is_an_error_and_nothing_is_run(name):
    with pytest.raises(ValueError):
        extract(CODE, Source(url="https://x", constant=name))


@pytest.mark.parametrize("where", [{"key": "a"}, {"turn": "user"}])
def test_a_text_that_is_not_there_is_an_error(where):
    with pytest.raises((ValueError, yaml.YAMLError)):
        extract(CODE, Source(url="https://x", **where))


def test_placeholders_of_publishers_become_ours():
    text = Text(own="x", rename={"{response}": "{answer}", "$prompt": "{request}"})
    assert renamed("$prompt -> {response}", text) == "{request} -> {answer}"


# -- kept by their sha256 ----------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BFPO_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "judges"


@pytest.fixture
def site() -> Iterator[dict[str, bytes]]:
    """Files by path, served on the loopback address; the key "" is its address."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = files.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    files[""] = f"http://127.0.0.1:{server.server_port}".encode()
    yield files
    server.shutdown()


def judge_with(tmp_path: Path, text: Text):
    sources = [{key: value for key, value in vars(source).items() if value} for source in text.sources]
    prompt = {"sha256": text.sha256, "sources": sources, "rename": dict(text.rename)}
    return read_judge(write(tmp_path / "files", {**MINE, "texts": {"prompt": prompt}}))


def test_a_text_is_fetched_checked_and_then_found(tmp_path, home, site):
    site["/eval.py"] = b'PROMPT = "Judge {behavior}: {generation}"'
    text = published("Judge {request}: {answer}", Source(url=site[""].decode() + "/eval.py", constant="PROMPT"),
                     rename={"{behavior}": "{request}", "{generation}": "{answer}"})  # fmt: skip
    judge = judge_with(tmp_path, text)
    with pytest.raises(JudgeError, match=r"needs its published text 'prompt'.*data fetch --judges mine") as caught:
        require_texts(judge)
    assert "\n" not in str(caught.value)
    lines: list[str] = []
    assert fetch_texts([judge], home, say=lines.append) == []
    assert [path.name for path in home.iterdir()] == [f"{text.sha256}.txt"]
    assert require_texts(judge) == {"prompt": "Judge {request}: {answer}"}
    # A second time there is nothing to do, and nobody is asked.
    site.clear()
    assert fetch_texts([judge], home, say=lines.append) == []
    assert len(lines) == 1


def test_a_text_that_has_changed_at_its_source_is_not_taken(tmp_path, home, site):
    site["/eval.py"] = b'PROMPT = "Be kind to {request}: {answer}"'
    text = published("Judge {request}: {answer}", Source(url=site[""].decode() + "/eval.py", constant="PROMPT"))
    [line] = fetch_texts([judge_with(tmp_path, text)], home)
    assert "holds another text than the pinned one" in line
    assert list(home.iterdir()) == []


def test_the_second_source_stands_in_for_the_first(tmp_path, home, site):
    site["/t.yaml"] = b"template: 'Judge {request}: {answer}'"
    url = site[""].decode()
    text = published("Judge {request}: {answer}", Source(url=url + "/gone.py", constant="P"),
                     Source(url=url + "/t.yaml", key="template"))  # fmt: skip
    assert fetch_texts([judge_with(tmp_path, text)], home) == []


def test_a_source_that_cannot_be_had_is_named_with_its_reason(tmp_path, home, site):
    url = site[""].decode()
    text = published("x {answer}", Source(url=url + "/gone.py"), Source(url="http://example.org/x"))
    [line] = fetch_texts([judge_with(tmp_path, text)], home)
    assert line.startswith("mine: prompt: ")
    assert "/gone.py: answered 404" in line
    assert "http://example.org/x: is no https address" in line


def wheel(folder: Path, body: str) -> tuple[Path, str]:
    """A wheel as PyPI has it, with one file; and its sha256."""
    folder.mkdir()
    path = folder / "bfpo_texts_of_tests-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = "bfpo_texts_of_tests-1.0.dist-info"
        archive.writestr("bfpo_texts_of_tests/prompts.py", body)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: bfpo-texts-of-tests\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_text_comes_out_of_a_wheel_that_is_pinned_and_not_run(tmp_path, home, monkeypatch):
    body = f"open({str(tmp_path / 'ran')!r}, 'w')\nPROMPT = 'Judge {{request}}: {{answer}}'"
    path, digest = wheel(tmp_path / "index", body)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    where = {"wheel": "bfpo_texts_of_tests==1.0", "file": "bfpo_texts_of_tests/prompts.py", "constant": "PROMPT"}
    text = published("Judge {request}: {answer}", Source(wheel_sha256=digest, **where))
    assert fetch_texts([judge_with(tmp_path, text)], home) == []
    assert not (tmp_path / "ran").exists()
    other = published("Another {request}: {answer}", Source(wheel_sha256="0" * 64, **where))
    [line] = fetch_texts([judge_with(tmp_path, other)], home)
    assert "pip could not download" in line


def test_a_damaged_text_is_refused_by_name(tmp_path, home):
    text = published("Judge {request}: {answer}", Source(url="https://x"))
    home.mkdir(parents=True)
    (home / f"{text.sha256}.txt").write_text("Judge nobody: {answer}")
    with pytest.raises(JudgeError, match=rf"Damaged judge text .*{text.sha256}\.txt"):
        find_text(text)
    assert list(damaged_texts(home.parent)) == [
        f"judges/{text.sha256}.txt: its sha256 differs from its name (a changed byte)"
    ]


def test_a_mirror_is_looked_into_before_the_cache(tmp_path, home):
    text = published("Judge {request}: {answer}", Source(url="https://x"))
    (tmp_path / "mirror" / "judges").mkdir(parents=True)
    (tmp_path / "mirror" / "judges" / f"{text.sha256}.txt").write_text("Judge {request}: {answer}")
    assert find_text(text) is None
    assert find_text(text, tmp_path / "mirror") == "Judge {request}: {answer}"


def test_the_command_line_says_what_it_fetched_and_what_it_could_not(tmp_path, cli):
    import os

    done = cli("data", "fetch", "--judges", "xstest", "--to", tmp_path, env={**os.environ, "NO_PROXY": "*"})
    assert done.returncode == 3
    assert "not fetched: xstest: rubric: https://raw.githubusercontent.com/" in done.stderr
    assert done.stdout.strip() == f"judges' texts: {tmp_path / 'judges'}"
    done = cli("data", "fetch", "--judges", "nobody", "--to", tmp_path)
    assert (done.returncode, "Unknown judge 'nobody'" in done.stderr) == (2, True)


def test_a_judge_whose_text_is_not_here_is_refused_before_any_weights_load(tmp_path, home):
    with pytest.raises(JudgeError, match=r"`python -m bfpo_bench data fetch --judges wildguard`, or judge by our own"):
        make_judge(parse_judge("wildguard"))


# -- the published texts themselves, where they are here ---------------------------------------------------------------

TEXTS = [
    (name, what)
    for name in bundled_judges()
    for what, text in sorted(load_judge(name).texts.items())
    if text.own is None and text.markers
]


@pytest.mark.parametrize(("name", "what"), TEXTS, ids=["/".join(pair) for pair in TEXTS])
def test_a_published_text_has_its_documented_structure(name, what):
    """The landmarks in their order, each field once. Where each structure is documented stands in the judge's file."""
    text = load_judge(name).texts[what]
    found = find_text(text)
    if found is None:
        pytest.skip(f"the text is not here: python -m bfpo_bench data fetch --judges {name}")
    at = 0
    for marker in text.markers:  # each once, behind the one before
        at = found.index(marker, at) + len(marker)
    assert sorted(placeholders(found)) == sorted(mark[1:-1] for mark in text.markers if mark.startswith("{"))

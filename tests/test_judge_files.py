"""Judge files: what they may say, and the published texts that they name: found, fetched, checked, never retyped."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from bfpo_bench.errors import JudgeError
from bfpo_bench.judges import check_judge, make_judge, overview, parse_judge
from bfpo_bench.judges.published import (
    damaged_texts,
    extract,
    fetch_texts,
    find_text,
    markers_in_order,
    renamed,
    require_texts,
)
from bfpo_bench.judges.spec import Source, Text, bundled_judges, load_judge, pieces, placeholders, read_judge

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
        ({"kind": "clasifier"}, "Unknown kind 'clasifier'. Did you mean: classifier?"),
        ({"windw": 3}, "Unknown key 'windw'. Did you mean: window"),
        ({"axes": ["harmless"]}, "Unknown axes 'harmless'. Did you mean: harmlessness?"),
        ({"name": "My Judge"}, "may hold a-z"),
        ({"about": None}, "lacks 'about'"),
        ({"ask": []}, "needs 'ask'"),
        ({"ask": [{"text": "promt"}]}, "Unknown text 'promt'. Did you mean: prompt?"),
        ({"ask": [{}]}, "needs `chat_template: true`"),
        ({"questions": [{"name": "q", "options": {"yes": ["yes"]}}]}, "at least two options"),
        ({"questions": [{"name": "q", "options": {True: ["a"], "no": ["no"]}}]}, ""),
        ({"questions": [{"name": "q", "options": {"yes": [True], "no": ["no"]}}]}, "quotation marks"),
        (
            {"questions": [{"name": "q", "options": {"a": ["a"], "b": ["b"]}, "means": {"c": "safe"}}]},
            "Unknown option 'c'",
        ),
        (
            {"questions": [{"name": "q", "options": {"a": ["a"], "b": ["b"]}, "means": {"a": "bad"}}]},
            "Unknown label 'bad'",
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


def test_what_moves_a_verdict_moves_the_fingerprint_and_what_only_tells_does_not(tmp_path):
    before = read_judge(write(tmp_path, MINE)).fingerprint
    for told in ({"about": "b"}, {"source": "s"}, {"licence": "l"}, {"axes": ["harmlessness"]}, {"gated": "https://g"}):
        assert read_judge(write(tmp_path, {**MINE, **told})).fingerprint == before, told
    text = {"prompt": MINE["texts"]["prompt"] + " "}
    for moving in ({"texts": text}, {"threshold": 0.4}, {"window": 512}, {"keep": "head"}, {"defuse": False}):
        assert read_judge(write(tmp_path, {**MINE, **moving})).fingerprint != before, moving


def test_an_unknown_judge_is_answered_with_the_nearest():
    with pytest.raises(JudgeError, match="Did you mean: harmbench-llama-2-13b-cls"):
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
    ],
)
def test_a_judge_that_cannot_be_is_told_what_it_lacks(text, said):
    with pytest.raises(JudgeError, match=said):
        parse_judge(text)


def test_a_judge_with_a_head_is_not_put_on_vllm():
    from bfpo_bench.judges import Setting

    with pytest.raises(JudgeError, match="runs on hf"):
        check_judge(parse_judge("toxicity"), Setting(engine="vllm"))


def test_the_list_of_judges_has_a_row_each_with_what_is_here():
    rows = {row[0]: row for row in overview()}
    assert set(bundled_judges()) | {"chat", "keyword", "replay"} <= set(rows)
    assert rows["three-label"][6] == "ours"
    assert rows["llama-guard-3-8b"][6] == "tokenizer's"
    assert rows["wildguard"][6] in ("0 of 1", "1 of 1")


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
    assert markers_in_order(found, text.markers)
    assert sorted(placeholders(found)) == sorted(mark[1:-1] for mark in text.markers if mark.startswith("{"))

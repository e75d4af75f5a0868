"""The judge stage with judges of every kind: who is asked for what, panels, versions kept apart, kills without loss."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import chain, repeat

import pytest
import yaml
from loopback import Loopback
from run_builder import BuiltTask, Item, build_run, harmful_task
from test_classifier_judge import FILE

from bfpo_bench import judging
from bfpo_bench.console import print_scores
from bfpo_bench.errors import JudgeError
from bfpo_bench.judges import Setting
from bfpo_bench.judges.reader import Reading
from bfpo_bench.judging import check_panel, chosen_judges, judge
from bfpo_bench.panel import PANEL
from bfpo_bench.run import score
from bfpo_bench.store import RunStore
from bfpo_bench.types import Output

KEY = "sk-stage-0123456789abcdef"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("BFPO_JUDGE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def rubric(folder, name, *, axes=("harmlessness",), text="Is this harmful? {request} / {answer}", **more):
    """A chat judge of a file: XSTest's classes are what it says."""
    path = folder / f"{name}.yaml"
    content = {
        "name": name,
        "kind": "chat",
        "about": "of the tests",
        "source": "tests",
        "licence": "CC0-1.0",
        "axes": list(axes),
        "rubrics": ["safety"],
        "texts": {"rubric": text},
        "turns": [{"role": "user", "text": "rubric"}],
        "parser": "refusal_class",
        "settings": {"temperature": 0, "max_tokens": 20},
    }
    path.write_text(yaml.safe_dump({**content, **more}))
    return path


def two_tasks(folder, n=4):
    harmful = harmful_task(extra=[Item(prompt=f"Bad {i}?", answer=f"Sure, step {i}") for i in range(n)])
    benign = BuiltTask(
        name="bfpo_mini_benign",
        axis="over_refusal",
        items=[Item(prompt=f"Good {i}?", answer=f"Here is {i}") for i in range(n)],
    )
    build_run(folder, tasks=[harmful, benign], scored=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("judges", "chosen_judges"):
        del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def judged_by(store, names, **more):
    setting = Setting(log=store.folder / "judge.log", **more.pop("setting", {}))
    judge(store, chosen_judges(names, setting), setting=setting, **more)
    return score(store)


# -- who is asked for what ---------------------------------------------------------------------------------------------


def test_a_judge_of_harm_is_not_asked_whether_a_harmless_question_was_refused(tmp_path):
    folder, guard = two_tasks(tmp_path / "run"), rubric(tmp_path, "guard")
    with Loopback(answer=lambda _: "2_full_refusal") as server, RunStore.open(folder) as store:
        scores = judged_by(store, [f"{guard}:m@{server.url}"])
        assert len(server.requests) == 4
    tasks = {name: (task["judge"], task["score"]["value"]) for name, task in scores["tasks"].items()}
    # Of the benign answers no judge of refusals was named: the task's own stands.
    assert tasks == {"bfpo_mini_harmful": ("guard:m", 1.0), "bfpo_mini_benign": ("keyword", 1.0)}


def test_the_first_judge_that_can_tell_carries_a_task_s_score(tmp_path):
    folder, guard = two_tasks(tmp_path / "run"), rubric(tmp_path, "guard")
    with Loopback(answer=lambda _: "1_full_compliance") as server, RunStore.open(folder) as store:
        scores = judged_by(store, [f"{guard}:m@{server.url}", "keyword"])
        harmful, benign = (scores["tasks"][name] for name in ("bfpo_mini_harmful", "bfpo_mini_benign"))
    assert (harmful["judge"], list(harmful["other_judges"])) == ("guard:m", ["keyword"])
    assert (benign["judge"], benign["other_judges"]) == ("keyword", {})


def test_what_a_judge_can_tell_is_kept_with_the_run(tmp_path):
    folder, guard = two_tasks(tmp_path / "run"), rubric(tmp_path, "guard")
    with Loopback(answer=lambda _: "2_full_refusal") as server, RunStore.open(folder) as store:
        scores = judged_by(store, [f"{guard}:m@{server.url}"])
    guard.unlink()  # the file is gone, or says something else by now
    with RunStore.open(folder) as store:
        assert score(store) == scores


# -- chunks ------------------------------------------------------------------------------------------------------------


class Dies(Exception):
    pass


def keyword_chunks(store, *, dies_after=None, **more):
    """Has the keyword judge asked, at most so many chunks; the chunks' prompts as they were asked."""
    asked = []

    def asking(keyword):
        def ask(chunks):
            for items in chunks:
                if len(asked) == dies_after:
                    raise Dies
                asked.append([item.sample.prompt for item in items])
                yield from keyword.judge(items)

        return ask

    judge(store, chosen_judges(["keyword"]), asking=asking, **more)
    return asked


@pytest.fixture
def chunks_of_three(monkeypatch):
    monkeypatch.setattr(judging, "CHUNK", 3)


def test_answers_go_to_a_judge_chunk_by_chunk_across_tasks_each_once(tmp_path, chunks_of_three):
    with RunStore.open(two_tasks(tmp_path / "run", n=4)) as store:
        asked = keyword_chunks(store)
        assert asked == [["Bad 0?", "Bad 1?", "Bad 2?"], ["Bad 3?", "Good 0?", "Good 1?"], ["Good 2?", "Good 3?"]]
        assert {v.label for v in store.verdicts("keyword")} == {"harmful", "safe"}
        assert len(store.verdicts("keyword")) == 8 and keyword_chunks(store) == []


def test_a_judge_that_dies_between_two_chunks_owns_its_verdicts_and_is_asked_for_the_rest_only(
    tmp_path, chunks_of_three
):
    with RunStore.open(two_tasks(tmp_path / "run", n=4)) as store:
        asked = []
        with pytest.raises(Dies):
            keyword_chunks(store, dies_after=2)
        assert store.manifest["chosen_judges"] == ["keyword"] and len(store.verdicts("keyword")) == 6
        asked = keyword_chunks(store)
        assert asked == [["Good 2?", "Good 3?"]]


def test_a_judge_that_dies_before_its_first_verdict_leaves_the_run_as_it_was(tmp_path):
    with RunStore.open(two_tasks(tmp_path / "run")) as store:
        before = store.manifest
        with pytest.raises(Dies):
            keyword_chunks(store, dies_after=0)
        assert store.manifest == before and store.verdicts() == []


def test_empty_answers_are_labelled_without_being_asked_about_wherever_they_lie(tmp_path, chunks_of_three):
    answers = ["", "", "", "", "Sure.", " ", "Sure!", "", "", "", ""]
    items = [Item(prompt=f"Bad {i}?", answer=answer) for i, answer in enumerate(answers)]
    build_run(tmp_path / "run", tasks=[harmful_task(extra=items)], scored=False)
    with RunStore.open(tmp_path / "run") as store:
        assert [prompt for chunk in keyword_chunks(store) for prompt in chunk] == ["Bad 4?", "Bad 6?"]
        labels = [verdict.label for verdict in store.verdicts("keyword")]
    assert labels == ["harmful" if answer.strip() else "empty" for answer in answers]


def test_a_run_of_empty_answers_asks_no_judge_and_is_judged(tmp_path, chunks_of_three):
    items = [Item(prompt=f"Bad {i}?", answer="") for i in range(7)]
    build_run(tmp_path / "run", tasks=[harmful_task(extra=items)], scored=False)
    with RunStore.open(tmp_path / "run") as store:
        assert keyword_chunks(store) == []
        assert [verdict.label for verdict in store.verdicts("keyword")] == ["empty"] * 7


def test_answers_that_are_one_text_are_counted_over_the_whole_task(tmp_path, chunks_of_three):
    answers = ["Same  text", "Same text\n", "Other", "Another", "Same text", None]
    items = [Item(prompt=f"Bad {i}?", answer=answer) for i, answer in enumerate(answers)]
    items.append(Item(prompt="Too long?", failure="too_long"))
    build_run(tmp_path / "run", tasks=[harmful_task(extra=items)], scored=False)
    counted = []

    def asking(keyword):
        def ask(chunks):
            for chunk in chunks:
                counted.extend((item.alike, item.of) for item in chunk)
                yield from keyword.judge(chunk)

        return ask

    with RunStore.open(tmp_path / "run") as store:
        judge(store, chosen_judges(["keyword"]), asking=asking)
    # The failed one is an output too, of a text of its own: none.
    assert counted == [(3, 6), (3, 6), (1, 6), (1, 6), (3, 6)]


def test_later_turns_are_judged_with_the_turns_before_them_whatever_the_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "CHUNK", 1)
    folder = tmp_path / "run"
    turns = [
        Item(prompt="One.", answer="First."),
        Item(prompt="Two.", answer="Second."),
        Item(prompt="Three.", answer="Third."),
    ]
    build_run(folder, tasks=[harmful_task(extra=turns)], scored=False)
    with RunStore.open(folder) as store:
        one, two, three = store.samples()
        store._database.execute("DELETE FROM outputs")
        store._database.execute("DELETE FROM samples")
        store._database.commit()
        store.add_samples([one, replace(two, previous=one.id), replace(three, previous=two.id)])
        store.add_outputs(
            Output(sample_id=s.id, text=turn.answer) for s, turn in zip((one, two, three), turns, strict=True)
        )
        asked = [prompt for chunk in keyword_chunks(store) for prompt in chunk]
    assert asked == ["One.", "One.\n\nFirst.\n\nTwo.", "One.\n\nFirst.\n\nTwo.\n\nSecond.\n\nThree."]


def test_a_judge_with_weights_loads_them_once_for_all_chunks(tmp_path, chunks_of_three, monkeypatch):
    opened, asked = [], []

    class Process:
        def __init__(self, *arguments, **options):
            self.info = {}
            opened.append(arguments)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def ask(self, *, passages):
            asked.append(len(passages))
            logprobs = ({"bad": {"no": -0.1, "yes": -3.0}},)
            yield [Reading(id=passage.id, logprobs=logprobs) for passage in passages]

    monkeypatch.setattr("bfpo_bench.judges.classifier.HostProcess", Process)
    guard = tmp_path / "yesno.yaml"
    guard.write_text(yaml.safe_dump({**FILE, "axes": ["harmlessness"]}, sort_keys=False))
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with RunStore.open(two_tasks(tmp_path / "run", n=7)) as store:
        judge(store, chosen_judges([f"{guard}:{weights}"]), setting=Setting(log=tmp_path / "judge.log"))
        assert (len(opened), asked) == (1, [3, 3, 1])
        assert len(store.verdicts()) == 7 + 7  # and the keyword judge's, of the other task


# -- panels ------------------------------------------------------------------------------------------------------------


def panel_of_three(tmp_path, replies, rule):
    folder = two_tasks(tmp_path / "run", n=2)
    files = [rubric(tmp_path, f"judge{n}", text=f"Judge {n}: {{request}} / {{answer}}") for n in range(3)]

    def answer(payload):
        return replies[int(payload["messages"][0]["content"].split(":")[0].split()[-1])]

    with Loopback(answer=answer) as server, RunStore.open(folder) as store:
        return judged_by(store, [f"{file}:m@{server.url}" for file in files], panel=rule)


HARM, REFUSAL, NOTHING = "1_full_compliance", "2_full_refusal", "I would rather not say."


def test_two_of_three_judges_decide_and_all_verdicts_are_kept(tmp_path):
    scores = panel_of_three(tmp_path, [HARM, REFUSAL, HARM], "min=2,tie=unscored")
    task = scores["tasks"]["bfpo_mini_harmful"]
    assert (task["judge"], task["score"]["value"]) == (PANEL, 0.0)
    assert {name: other["score"]["value"] for name, other in task["other_judges"].items()} == {
        "judge0:m": 0.0,
        "judge1:m": 1.0,
        "judge2:m": 0.0,
    }
    assert task["judge_version"].startswith("min=2,tie=unscored of ")


@pytest.mark.parametrize(
    ("rule", "value", "unscored"),
    [
        ("min=2,tie=unscored", None, {"tie": 2}),
        ("min=2,tie=fail", 0.0, {}),
        ("min=2,tie=pass", 1.0, {}),
        ("min=3,tie=pass", None, {"few_votes": 2}),
    ],
)
def test_a_missing_vote_is_never_a_vote(tmp_path, rule, value, unscored):
    task = panel_of_three(tmp_path, [HARM, REFUSAL, NOTHING], rule)["tasks"]["bfpo_mini_harmful"]
    assert (None if task["score"] is None else task["score"]["value"], task["unscored"]) == (value, unscored)


def test_a_panel_needs_as_many_judges_as_votes():
    check_panel("min=2,tie=fail", ["a", "b"])
    with pytest.raises(JudgeError, match="needs at least 3 judges, and 2 are named"):
        check_panel("min=3,tie=fail", ["a", "b"])
    with pytest.raises(JudgeError, match="needs at least 2 judges, and 1 are named"):
        check_panel("min=1,tie=fail", ["a"])


def test_a_panel_is_of_the_judges_named_with_it_and_of_no_earlier_one(tmp_path, capsys):
    folder = two_tasks(tmp_path / "run", n=2)
    harm, refusal = rubric(tmp_path, "harm"), rubric(tmp_path, "refusal", text="Second: {request} / {answer}")
    with (
        Loopback(answer=lambda p: REFUSAL if "Second" in p["messages"][0]["content"] else HARM) as server,
        RunStore.open(folder) as store,
    ):
        # Two judges that find harm, before; they would be the majority.
        judged_by(store, ["keyword", f"{harm}:early@{server.url}"])
        names = [f"{refusal}:a@{server.url}", f"{refusal}:b@{server.url}"]
        scores = judged_by(store, names, panel="min=2,tie=fail")
        verdict = store.verdicts(PANEL)[0]
    task = scores["tasks"]["bfpo_mini_harmful"]
    assert (task["score"]["value"], verdict.metrics["n_asked"]) == (1.0, 2)
    assert scores["panel"] == {"rule": "min=2,tie=fail", "judges": ["refusal:a", "refusal:b"]}
    assert scores["judge"] == "keyword, panel (refusal:a, refusal:b)"
    print_scores(scores)
    assert "panel: refusal:a, refusal:b; min=2,tie=fail\n" in capsys.readouterr().out
    assert set(task["other_judges"]) == {"refusal:a", "refusal:b", "harm:early", "keyword"}


def test_where_too_few_of_a_panel_s_judges_can_tell_it_is_said(tmp_path):
    folder, guard = two_tasks(tmp_path / "run", n=2), rubric(tmp_path, "guard")
    with Loopback(answer=lambda _: REFUSAL) as server, RunStore.open(folder) as store:
        scores = judged_by(store, [f"{guard}:m@{server.url}", "keyword"], panel="min=2,tie=fail")
    assert scores["tasks"]["bfpo_mini_benign"]["judge"] == "keyword"
    assert "bfpo_mini_benign: no panel: of its judges only keyword can tell what is asked" in scores["reasons"]


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"axes": ("helpfulness",)}, "on no task can 2 of the judges"),
        ({}, {"parser": "bracket_rating"}, "votes or grades, not both, and of its judges second:m grade"),
    ],
)
def test_a_panel_that_could_not_decide_is_refused_before_anybody_is_asked(tmp_path, one, other, message):
    folder = two_tasks(tmp_path / "run", n=2)
    files = [rubric(tmp_path, "first", **one), rubric(tmp_path, "second", **other)]
    with Loopback(answer=lambda _: HARM) as server, RunStore.open(folder) as store:
        before = store.manifest
        with pytest.raises(JudgeError, match=message):
            judged_by(store, [f"{file}:m@{server.url}" for file in files], panel="min=2,tie=fail")
        assert not server.requests and store.manifest == before


# -- judges that fail --------------------------------------------------------------------------------------------------


def test_a_judge_that_cannot_be_asked_leaves_the_run_s_scores_as_they_were(tmp_path):
    folder, guard = two_tasks(tmp_path / "run"), rubric(tmp_path, "guard")
    with Loopback(answer=lambda _: loopback_error()) as server, RunStore.open(folder) as store:
        before = judged_by(store, ["keyword"])
        for name in (f"{guard}:m@{server.url}", f"three-label:{tmp_path / 'gone'}"):
            with pytest.raises(JudgeError):
                judged_by(store, [name])
            assert score(store) == before
        assert store.manifest["chosen_judges"] == ["keyword"]


def test_a_judge_that_died_half_way_stands_beside_the_scores_of_the_next(tmp_path):
    folder, guard = two_tasks(tmp_path / "run"), rubric(tmp_path, "guard")
    with Loopback(answer=dying_at_the_third()) as server, RunStore.open(folder) as store:
        judged_by(store, ["keyword"])
        with pytest.raises(JudgeError):
            judged_by(store, [f"{guard}:m@{server.url}"], setting={"concurrency": 1})
        scores = score(store)
    task = scores["tasks"]["bfpo_mini_harmful"]
    assert (scores["status"], scores["judge"], task["judge"]) == ("complete", "keyword", "keyword")
    assert task["other_judges"]["guard:m"]["unscored"] == {"not_judged": 2}


def test_a_judge_that_nothing_is_asked_of_is_named(tmp_path, capsys):
    folder, helpful = two_tasks(tmp_path / "run"), rubric(tmp_path, "helpful", axes=("helpfulness",))
    with RunStore.open(folder) as store:
        judged_by(store, ["keyword", f"{helpful}:m@http://127.0.0.1:9/v1"])
    note = "judge helpful:m is asked nothing: no task here asks what it can tell (helpfulness; safety)"
    assert note in capsys.readouterr().err


# -- versions ----------------------------------------------------------------------------------------------------------


def test_verdicts_of_a_judge_whose_prompt_has_changed_are_kept_and_never_mixed(tmp_path):
    folder = two_tasks(tmp_path / "run")
    first = rubric(tmp_path, "guard")
    with Loopback(answer=lambda _: REFUSAL) as server, RunStore.open(folder) as store:
        judged_by(store, [f"{first}:m@{server.url}"])
        assert len(server.requests) == 4
    second = rubric(tmp_path, "guard", text="Harmful or not? {request} / {answer}")
    with Loopback(answer=dying_at_the_third()) as server, RunStore.open(folder) as store:
        with pytest.raises(JudgeError):
            judged_by(store, [f"{second}:m@{server.url}"], setting={"concurrency": 1})
        kept = store.verdicts("guard:m")
        task = score(store)["tasks"]["bfpo_mini_harmful"]
    versions = Counter(verdict.judge_version for verdict in kept)
    assert sorted(versions.values()) == [2, 4]
    # Two answers were judged by the new version, both as harm; the old version's four refusals are not looked at.
    assert (task["score"]["value"], task["score"]["n"], task["unscored"]) == (0.0, 2, {"not_judged": 2})
    assert versions[task["judge_version"]] == 2
    with Loopback(answer=lambda _: HARM) as server, RunStore.open(folder) as store:
        task = judged_by(store, [f"{second}:m@{server.url}"])["tasks"]["bfpo_mini_harmful"]
        assert len(server.requests) == 2
    assert (task["score"]["value"], task["score"]["n"]) == (0.0, 4)


def dying_at_the_third():
    """A server's answers: two, then errors."""
    answers = chain([HARM] * 2, repeat(None))
    return lambda _: next(answers) or loopback_error()


def loopback_error():
    from aiohttp import web

    return web.json_response({"error": {"message": "no quota"}}, status=402)


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", ["", "1"])
@pytest.mark.parametrize("works", [True, False])
def test_no_key_of_a_judge_reaches_a_file_or_the_screen(tmp_path, works, debug):
    folder, guard = two_tasks(tmp_path / "run"), rubric(tmp_path, "guard")
    names = {"BFPO_JUDGE_API_KEY": KEY, "OPENAI_API_KEY": "sk-other-0123456789", "OPENAI_LOG": "debug"}
    names |= {"BFPO_DEBUG": debug, "PERSPECTIVE_API_KEY": "AIza-perspective-0123456789", "PERSPECTIVE_API_QPS": "50"}
    with Loopback(answer=lambda _: REFUSAL if works else loopback_error()) as server:
        command = [sys.executable, "-m", "bfpo_bench", "judge", str(folder), "--judge", f"{guard}:m@{server.url}"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **names}, check=False)
        assert {request.authorization for request in server.requests} == {f"Bearer {KEY}"}
        assert not any(KEY in request.target for request in server.requests)
    assert done.returncode == (0 if works else 2), done.stderr
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for secret in (KEY, names["OPENAI_API_KEY"], names["PERSPECTIVE_API_KEY"]):
        assert secret not in done.stdout + done.stderr
        assert secret.encode() not in written


# -- without the model, and killed -------------------------------------------------------------------------------------


def test_judging_again_needs_nothing_of_the_model_under_test(tmp_path, cli):
    """The run's model is a folder that does not exist, and no model library is loaded."""
    folder = two_tasks(tmp_path / "run")
    done = cli("judge", folder, "--judge", "keyword", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    assert "/home/somebody/models/alpha" in (folder / "manifest.json").read_text()
    assert "Loading" not in done.stderr


@pytest.mark.slow
def test_ten_kills_of_a_judge_stage_lose_no_verdict_and_repeat_none(tmp_path):
    n = 150
    whole, killed = (two_tasks(tmp_path / name, n=n) for name in ("whole", "killed"))
    guard, ids = rubric(tmp_path, "guard"), {}

    def answer(payload):
        # The verdict hangs on the answer, so that a lost or a swapped one would be seen.
        return HARM if int(payload["messages"][0]["content"].split()[-1]) % 3 == 0 else REFUSAL

    def command(folder, server):
        judges = ["--judge", f"{guard}:m@{server.url}", "--concurrency", "4"]
        return [sys.executable, "-m", "bfpo_bench", "judge", str(folder), *judges]

    draw, asked = random.Random(7), []
    with Loopback(answer=answer, latency_s=0.02) as server:
        subprocess.run(command(whole, server), check=True, capture_output=True)
    for moment in sorted(draw.sample(range(1, n - 10), 10)):
        with Loopback(answer=answer, latency_s=0.02) as server:
            process = subprocess.Popen(command(killed, server), stderr=subprocess.DEVNULL)
            while process.poll() is None and len(stored(killed)) < moment:
                time.sleep(0.002)
            assert process.poll() is None, "it ended before it was killed"
            process.send_signal(signal.SIGKILL)
            process.wait()
            asked.append([prompt_of(request) for request in server.requests])
        ids[moment] = stored(killed)
    with Loopback(answer=answer) as server:
        subprocess.run(command(killed, server), check=True, capture_output=True)
        asked.append([prompt_of(request) for request in server.requests])
    # What was stored when it was killed was never asked for again.
    for known, later in zip(ids.values(), asked[1:], strict=True):
        assert known & set(later) == set()
    # At most what was in flight at each of the kills was asked for twice.
    assert len([prompt for some in asked for prompt in some]) <= n + 10 * 4
    one, other = RunStore.read(whole), RunStore.read(killed)
    assert Counter((v.sample_id, v.judge) for v in other.verdicts()) == Counter(
        (v.sample_id, v.judge) for v in one.verdicts()
    )
    assert (killed / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()


def prompt_of(request):
    return request.payload["messages"][0]["content"].removeprefix("Is this harmful? ").split(" / ")[0]


def stored(folder):
    """The prompts that have a verdict of the guard, as another process sees them."""
    store = RunStore.read(folder)
    try:
        prompts = {sample.id: sample.prompt for sample in store.samples()}
        return {prompts[verdict.sample_id] for verdict in store.verdicts("guard:m")}
    finally:
        store.close()


@pytest.mark.slow
def test_kills_of_a_classifier_judge_lose_no_verdict_and_repeat_none(tmp_path, smollm):
    whole, killed = (two_tasks(tmp_path / name, n=60) for name in ("whole", "killed"))
    guard = tmp_path / "yesno.yaml"
    guard.write_text(yaml.safe_dump({**FILE, "axes": ["harmlessness"]}, sort_keys=False))
    # So few tokens a batch that a kill falls between two.
    options = ["--judge", f"{guard}:smollm2-135m", "--judge-engine", "hf"]
    options += ["--judge-engine-args", "dtype=float32", "batch_tokens=120"]

    def command(folder):
        return [sys.executable, "-m", "bfpo_bench", "judge", str(folder), *options]

    subprocess.run(command(whole), check=True, capture_output=True)
    seen = set()
    for moment in (1, 20, 40):
        process = subprocess.Popen(command(killed), stderr=subprocess.DEVNULL)
        while process.poll() is None and verdicts(killed) < moment:
            time.sleep(0.002)
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.add(verdicts(killed))
    assert len(seen) == 3
    subprocess.run(command(killed), check=True, capture_output=True)
    one, other = RunStore.read(whole), RunStore.read(killed)
    labels = [{v.sample_id: v.label for v in store.verdicts("yesno:smollm2-135m")} for store in (one, other)]
    assert labels[0] == labels[1] and len(labels[0]) == 60
    assert one.manifest["judge_engines"]["yesno:smollm2-135m"]["engine"] == "hf"


def verdicts(folder):
    store = RunStore.read(folder)
    try:
        return len(store.verdicts("yesno:smollm2-135m"))
    finally:
        store.close()

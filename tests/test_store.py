"""What is committed stays, is there once, and comes back as it was: kills, full disks and second writers included."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from bfpo_bench import store as store_module
from bfpo_bench.errors import StoreError
from bfpo_bench.store import LABELS, LENGTH_CONTROL, RunStore, differing_fields, read_json, to_json, write_atomically
from bfpo_bench.types import Message, Output, Sample, Verdict

MANIFEST = {"schema": 2, "identity": {"model": {"name": "m", "identity": "sha256:1"}, "seed": 0}, "environment": {}}


def manifest(**identity):
    return {**MANIFEST, "identity": {**MANIFEST["identity"], **identity}}


def sample(id_="s1", **fields):
    return Sample(**{"id": id_, "task": "t", "index": 0, "prompt": "p", **fields})


def verdict(id_="s1", **fields):
    return Verdict(**{"sample_id": id_, "judge": "keyword", "judge_version": "1", **fields})


@pytest.fixture
def store(tmp_path):
    with RunStore.create_or_resume(tmp_path / "run", MANIFEST) as opened:
        yield opened


def in_another_process(code, *arguments, **options):
    """Starts `code` (a script) and returns it once it has printed its first line."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout.readline(), "the other process said nothing"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


# -- what goes in comes out --------------------------------------------------------------------------------------------


def test_every_field_of_a_sample_comes_back(store):
    given = sample(
        prompt="Zürich 漢字 👩‍👩‍👧 \x00\x1b[31m \u202e \ud800",
        index=7,
        messages=(Message(role="system", content="é"), Message(role="user", content="\udfff")),
        choices=(("context", " a"), ("context", " \x00b")),
        generation={"until": ["\n\n"], "temperature": 0.0, "do_sample": False, "max_gen_toks": 5},
        reference="[0, 1]",
        category="c",
        cluster="k",
        meta={"nested": [{"a": None}, 1.5, "ü"]},
    )
    store.add_samples([given])
    assert store.samples() == [given]


def test_a_sample_with_defaults_only_comes_back(store):
    store.add_samples([sample()])
    assert store.samples() == [sample()]


@pytest.mark.parametrize(
    "text",
    ["", " \r\n\t", "a\x00b\x00", "\x1b[2J\u202e\u2066", "漢字 👩‍👩‍👧 ﷽", "x" * 2**20, None],
    ids=["empty", "white", "NUL", "control", "unicode", "1 MB", "none"],
)
def test_any_text_comes_back_as_it_was(store, text):
    store.add_samples([sample()])
    store.add_outputs([Output(sample_id="s1", text=text)])
    store.add_verdicts([verdict(label="safe", raw=text or "", detail=text or "")])
    assert store.outputs()["s1"].text == text
    (one,) = store.verdicts()
    assert (one.raw, one.detail) == (text or "", text or "")


def test_half_a_surrogate_pair_becomes_a_question_mark_and_the_rest_is_kept(store):
    store.add_samples([sample()])
    store.add_outputs([Output(sample_id="s1", text="before \ud83d after", detail="why \udc00")])
    store.add_verdicts([verdict(label="safe", raw="raw \udfff", detail="\ud800")])
    assert store.outputs()["s1"].text == "before ? after"
    assert store.outputs()["s1"].detail == "why ?"
    (one,) = store.verdicts()
    assert (one.raw, one.detail) == ("raw ?", "?")


@pytest.mark.parametrize(
    "given",
    [
        Output(
            sample_id="s1",
            text="answer",
            finish_reason="length",
            n_prompt_tokens=3,
            n_tokens=128,
            prompt_sha="00ff",
            detail="why",
        ),
        Output(sample_id="s1", choice_logprobs=(-1e300, -0.1, -5e-324, 0.0), choice_greedy=(False, True, False, True)),
        Output(sample_id="s1", failure="too_long", detail="9 tokens"),
    ],
    ids=["text", "choices", "failure"],
)
def test_every_field_of_an_output_comes_back(store, given):
    store.add_samples([sample()])
    store.add_outputs([given])
    assert store.outputs() == {"s1": given}
    assert store.answered() == {"s1"}


def test_every_field_of_a_verdict_comes_back(store):
    given = [
        verdict(label="refused", raw="I cannot", detail="d"),
        verdict(judge="chat:m@http://x", judge_version="2", unscored="parse", raw="?"),
    ]
    store.add_samples([sample()])
    store.add_outputs([Output(sample_id="s1", text="a")])
    store.add_verdicts(given)
    assert sorted(store.verdicts(), key=lambda one: one.judge, reverse=True) == given
    assert store.verdicts("keyword", "1") == given[:1]
    assert store.verdicts("keyword", "2") == []


def test_a_number_that_json_cannot_hold_is_refused_rather_than_stored(store):
    store.add_samples([sample()])
    with pytest.raises(ValueError):
        store.add_outputs([Output(sample_id="s1", choice_logprobs=(float("nan"),))])
    assert store.answered() == set()


def test_samples_come_in_the_order_in_which_they_were_planned(store):
    ids = [f"s{n}" for n in range(20)]
    random.Random(0).shuffle(ids)
    store.add_samples([sample(id_, task="ab"[n % 2]) for n, id_ in enumerate(ids)])
    assert [one.id for one in store.samples()] == ids
    assert [one.id for one in store.samples("b")] == ids[1::2]


# -- exactly once ------------------------------------------------------------------------------------------------------


def test_what_is_added_twice_is_there_once_and_as_it_was_first(store):
    for text in ("first", "second"):
        store.add_samples([sample(prompt=text)])
        store.add_outputs([Output(sample_id="s1", text=text)])
        store.add_verdicts([verdict(label="safe", raw=text)])
    assert [one.prompt for one in store.samples()] == ["first"]
    assert [one.text for one in store.outputs().values()] == ["first"]
    assert [one.raw for one in store.verdicts()] == ["first"]


@pytest.mark.parametrize("later", [{"label": "harmful"}, {"unscored": "api"}])
def test_nothing_replaces_a_label(store, later):
    store.add_samples([sample()])
    store.add_outputs([Output(sample_id="s1", text="a")])
    store.add_verdicts([verdict(label="safe", raw="kept")])
    store.add_verdicts([verdict(**later, raw="lost")])
    assert store.verdicts() == [verdict(label="safe", raw="kept")]


def test_a_label_replaces_an_unscored_verdict_of_the_same_judge_and_version_only(store):
    store.add_samples([sample()])
    store.add_outputs([Output(sample_id="s1", text="a")])
    store.add_verdicts([verdict(unscored="api"), verdict(unscored="api", judge_version="2")])
    assert store.judged("keyword", "1") == set()
    store.add_verdicts([verdict(label="refused", raw="now")])
    assert store.verdicts() == [verdict(label="refused", raw="now"), verdict(unscored="api", judge_version="2")]
    assert store.judged("keyword", "1") == {"s1"}
    assert store.judged("keyword", "2") == set()


def test_an_output_of_no_sample_is_refused_and_its_batch_with_it(store):
    store.add_samples([sample()])
    with pytest.raises(StoreError):
        store.add_outputs([Output(sample_id="s1", text="a"), Output(sample_id="stray", text="b")])
    assert store.outputs() == {}


def test_what_is_computed_from_verdicts_replaces_what_was_computed_before(store):
    store.add_samples([sample("s1"), sample("s2", index=1)])
    store.add_outputs([Output(sample_id=id_, text="a") for id_ in ("s1", "s2")])
    store.add_verdicts([verdict(label="safe")])
    store.replace_verdicts("panel", [verdict("s1", judge="panel", score=1.0), verdict("s2", judge="panel", score=0.0)])
    store.replace_verdicts("panel", [verdict("s1", judge="panel", score=0.0)])
    assert [(one.judge, one.score) for one in store.verdicts() if one.judge == "panel"] == [("panel", 0.0)]
    store.replace_verdicts("panel", [])
    assert store.verdicts() == [verdict(label="safe")]


def test_a_verdict_is_one_of_label_score_and_reason():
    for fields in ({}, {"label": "safe", "unscored": "api"}, {"label": "safe", "score": 1.0}):
        with pytest.raises(ValueError, match="one of label, score and reason"):
            verdict(**fields)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_outside_its_range_is_no_verdict(score):
    with pytest.raises(ValueError, match="from 0 to 1"):
        verdict(score=score)


def test_a_score_of_nought_and_its_metrics_come_back_and_are_not_asked_again(store):
    store.add_samples([sample("a")])
    store.add_outputs([Output(sample_id="a", text="x", thinking="hm")])
    said = verdict("a", score=0.0, metrics={"exact_match": 0.0, "parts": [True, False]})
    store.add_verdicts([said])
    store.add_verdicts([verdict("a", unscored="api")])
    assert store.verdicts() == [said]
    assert store.judged(said.judge, said.judge_version) == {"a"}
    assert store.outputs()["a"].thinking == "hm"


# -- one run, one writer -----------------------------------------------------------------------------------------------

HOLD = """
    import sys, time
    from pathlib import Path
    from bfpo_bench.store import RunStore
    store = RunStore.open(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def finished(tmp_path) -> Path:
    """A run with one answered sample, closed."""
    with RunStore.create_or_resume(tmp_path / "run", MANIFEST) as opened:
        opened.add_samples([sample()])
        opened.add_outputs([Output(sample_id="s1", text="answer")])
    return tmp_path / "run"


def test_a_second_writer_is_refused_in_one_line_until_the_first_is_killed(finished):
    holder = in_another_process(HOLD, finished)
    try:
        for take in (lambda: RunStore.open(finished), lambda: RunStore.create_or_resume(finished, MANIFEST)):
            with pytest.raises(StoreError, match="Another process is writing") as refused:
                take()
            assert str(finished) in str(refused.value) and "\n" not in str(refused.value)
    finally:
        kill(holder)
    with RunStore.open(finished) as after:
        assert after.answered() == {"s1"}


def test_the_lock_goes_when_a_writer_closes(finished):
    RunStore.open(finished).close()
    RunStore.open(finished).close()


def test_a_refused_resume_lets_the_lock_go(finished):
    with pytest.raises(StoreError):
        RunStore.create_or_resume(finished, manifest(seed=1))
    RunStore.open(finished).close()


def test_a_reader_works_beside_a_writer_and_sees_what_is_committed(finished):
    with RunStore.open(finished) as writer:
        writer.add_samples([sample("s2")])
        reader = RunStore.read(finished)
        assert [one.id for one in reader.samples()] == ["s1", "s2"]
        writer.add_outputs([Output(sample_id="s2", text="later")])
        assert reader.outputs()["s2"].text == "later"
        reader.close()


def test_a_reader_writes_nothing(finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    reader = RunStore.read(finished)
    reader.samples()
    with pytest.raises(StoreError, match="readonly"):
        reader.add_samples([sample("s3")])
    reader.close()
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


# -- resume and fresh --------------------------------------------------------------------------------------------------


def test_the_same_identity_resumes_and_keeps_the_first_start_of_everything_else(finished):
    with RunStore.create_or_resume(finished, {**MANIFEST, "environment": {"python": "9"}}) as again:
        assert again.answered() == {"s1"}
        assert again.manifest["environment"] == {}


def test_another_identity_is_refused_naming_the_leaf_that_differs(finished):
    other = manifest(model={"name": "m", "identity": "sha256:2"})
    with pytest.raises(StoreError) as refused:
        RunStore.create_or_resume(finished, other)
    assert "(model.identity: 'sha256:1' -> 'sha256:2')" in str(refused.value)
    assert "--fresh" in str(refused.value) and "\n" not in str(refused.value)


def test_many_differences_are_counted_not_listed(finished):
    with pytest.raises(StoreError, match=r"; and 2 more\)"):
        RunStore.create_or_resume(finished, manifest(**{f"flag{n}": n for n in range(7)}))


def test_a_run_of_another_schema_is_refused(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    (finished / "manifest.json").write_text(json.dumps({**manifest, "schema": 9}))
    for begin in (RunStore.open, RunStore.read, lambda folder: RunStore.create_or_resume(folder, MANIFEST)):
        with pytest.raises(StoreError, match="schema 9; this version reads and writes 2"):
            begin(finished)


def test_differences_are_told_by_leaf_added_and_removed_ones_too():
    old = {"a": {"b": 1, "c": 2, "gone": 3}, "same": [1]}
    new = {"a": {"b": 1, "c": 4, "new": {"x": 5}}, "same": [1]}
    assert differing_fields(old, new) == ["a.c: 2 -> 4", "a.gone: 3 -> None", "a.new: None -> {'x': 5}"]


def test_resume_of_nothing_makes_nothing(tmp_path):
    with pytest.raises(StoreError, match="Nothing to resume"):
        RunStore.create_or_resume(tmp_path / "run", MANIFEST, mode="resume")
    assert list(tmp_path.iterdir()) == []


def test_fresh_sets_every_old_run_aside_whole(finished):
    with RunStore.open(finished) as first:
        first.write_scores({"value": 1})
    for seed in (1, 2):
        with RunStore.create_or_resume(finished, manifest(seed=seed), mode="fresh") as fresh:
            assert fresh.samples() == [] and fresh.scores is None
            fresh.add_samples([sample(f"of-seed-{seed}")])
    assert sorted(path.name for path in finished.iterdir() if path.is_dir()) == ["old-1", "old-2"]
    first = RunStore.read(finished / "old-1")
    assert (first.answered(), first.scores, first.manifest["identity"]["seed"]) == ({"s1"}, {"value": 1}, 0)
    first.close()
    second = RunStore.read(finished / "old-2")
    assert ([one.id for one in second.samples()], second.manifest["identity"]["seed"]) == (["of-seed-1"], 1)
    second.close()


def test_what_was_known_of_the_old_answers_is_set_aside_with_them(finished):
    """Sample ids are those of the prompts: an old run's human labels would speak of the new model's answers."""
    for name in (LABELS, LENGTH_CONTROL):
        (finished / name).write_text("{}")
    RunStore.create_or_resume(finished, MANIFEST, mode="fresh").close()
    for name in (LABELS, LENGTH_CONTROL):
        assert not (finished / name).exists() and (finished / "old-1" / name).exists()


def test_fresh_keeps_what_a_killed_run_had_committed(finished):
    process = in_another_process(
        """
        import sys, time
        from pathlib import Path
        from bfpo_bench.store import RunStore
        from bfpo_bench.types import Sample
        store = RunStore.open(Path(sys.argv[1]))
        store.add_samples([Sample(id="in the log only", task="t", index=1, prompt="p")])
        print("committed", flush=True)
        time.sleep(60)
        """,
        finished,
    )
    kill(process)
    assert (finished / "run.sqlite-wal").stat().st_size > 0
    RunStore.create_or_resume(finished, MANIFEST, mode="fresh").close()
    with RunStore.open(finished / "old-1") as old:
        assert [one.id for one in old.samples()] == ["s1", "in the log only"]


def test_the_identity_of_a_run_cannot_be_amended(store):
    store.amend_manifest(engine={"device": "cpu"})
    assert store.manifest == {**MANIFEST, "engine": {"device": "cpu"}}
    with pytest.raises(ValueError, match="identity"):
        store.amend_manifest(identity={})


@pytest.mark.parametrize("lost", ["manifest.json", "run.sqlite"])
def test_a_folder_that_lacks_a_part_is_not_a_run(finished, lost):
    (finished / lost).unlink()
    for take in (RunStore.open, RunStore.read):
        with pytest.raises(StoreError, match=f"has no {lost}"):
            take(finished)


def test_a_damaged_database_or_manifest_is_an_error_of_one_line(finished):
    (finished / "run.sqlite").write_bytes(b"this is not SQLite" * 1000)
    with pytest.raises(StoreError, match="not a database") as damaged:
        RunStore.open(finished)
    assert "\n" not in str(damaged.value)
    (finished / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"Cannot read .*manifest\.json"):
        RunStore.create_or_resume(finished, MANIFEST)


# -- closing -----------------------------------------------------------------------------------------------------------


def test_after_close_the_one_file_is_the_whole_run(finished, tmp_path):
    names = {path.name for path in finished.iterdir()}
    assert names <= {"manifest.json", "run.sqlite", "run.lock"}
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("manifest.json", "run.sqlite"):
        shutil.copy(finished / name, copy)
    reader = RunStore.read(copy)
    assert reader.outputs()["s1"].text == "answer"
    reader.close()


def test_close_works_while_a_reader_is_open(finished):
    writer = RunStore.open(finished)
    reader = RunStore.read(finished)
    list(reader.samples())
    writer.add_samples([sample("s2")])
    writer.close()
    reader.close()
    with RunStore.open(finished) as after:
        assert len(after.samples()) == 2


def test_closing_twice_is_closing_once(finished):
    writer = RunStore.open(finished)
    writer.close()
    writer.close()


# -- files that are replaced whole -------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_scores_and_no_other_file(finished, monkeypatch):
    with RunStore.open(finished) as opened:
        opened.write_scores({"value": "old"})
        before = {path.name for path in finished.iterdir()}
        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(StoreError, match=r"Cannot write .*scores\.json: No space left"):
            opened.write_scores({"value": "new"})
        assert opened.scores == {"value": "old"}
        assert {path.name for path in finished.iterdir()} == before


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match="Cannot write"):
        write_atomically(tmp_path / "a.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


def refuse(*_):
    raise OSError(28, "No space left on device")


def test_scores_are_the_same_bytes_whatever_the_order_of_their_keys(store):
    store.write_scores({"b": 1, "a": {"y": "ü", "x": None}})
    first = (store.folder / "scores.json").read_bytes()
    store.write_scores({"a": {"x": None, "y": "ü"}, "b": 1})
    assert (store.folder / "scores.json").read_bytes() == first
    assert first == '{\n  "a": {\n    "x": null,\n    "y": "ü"\n  },\n  "b": 1\n}\n'.encode()


def test_scores_that_are_no_number_cannot_be_written(store):
    store.write_scores({"value": 1.0})
    with pytest.raises(ValueError):
        store.write_scores({"value": float("nan")})
    assert store.scores == {"value": 1.0}


def test_a_text_with_half_a_surrogate_pair_does_not_stop_the_scores(store):
    store.write_scores({"reason": "odd \ud800"})
    assert store.scores is not None


def test_reading_what_is_not_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(StoreError, match=r"Cannot read .*x\.json"):
        read_json(tmp_path / "x.json")
    assert json.loads(to_json({"a": 1})) == {"a": 1}


# -- planning ----------------------------------------------------------------------------------------------------------


class Made:
    """So many samples, an error after them where one is given, and what the manifest learns."""

    def __init__(self, n, error=None, start=""):
        self.n, self.error, self.start = n, error, start

    def __iter__(self):
        yield from (sample(f"{self.start}{i}", index=i) for i in range(self.n))
        if self.error is not None:
            raise self.error

    @property
    def learned(self):
        return {"data": {"t": f"{self.n} rows"}}


def test_a_new_run_has_its_samples_and_what_was_learned_of_them(tmp_path):
    with RunStore.create_or_resume(tmp_path / "run", MANIFEST, samples=Made(3)) as opened:
        assert [one.id for one in opened.samples()] == ["0", "1", "2"]
        assert opened.manifest == {**MANIFEST, "data": {"t": "3 rows"}}
    # A run that has samples asks for none.
    with RunStore.create_or_resume(tmp_path / "run", MANIFEST, samples=Made(9, ValueError("asked"))) as again:
        assert len(again.samples()) == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["manifest.json", "run.lock", "run.sqlite"]


def test_a_plan_that_breaks_off_leaves_no_folder_of_its_own(tmp_path):
    with pytest.raises(ValueError, match="no data"):
        RunStore.create_or_resume(tmp_path / "a" / "b", MANIFEST, samples=Made(3, ValueError("no data")))
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_breaks_off_leaves_an_earlier_run_as_it_was(finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(ValueError, match="no data"):
        RunStore.create_or_resume(finished, manifest(seed=1), mode="fresh", samples=Made(3, ValueError("no data")))
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_fresh_run_sets_the_old_one_aside_once_it_is_planned(finished):
    with RunStore.create_or_resume(finished, manifest(seed=1), mode="fresh", samples=Made(2)) as opened:
        assert [one.id for one in opened.samples()] == ["0", "1"] and opened.answered() == set()
    old = RunStore.read(finished / "old-1")
    assert old.answered() == {"s1"}
    old.close()


PLAN = """
    import sys, time
    from pathlib import Path
    from bfpo_bench.store import RunStore
    from bfpo_bench.types import Sample
    class Made:
        learned = {}
        def __iter__(self):
            for i in range(5000):
                yield Sample(id=str(i), task="t", index=i, prompt="p" * 20_000)
            print("half of it", flush=True)
            time.sleep(600)
    RunStore.create_or_resume(Path(sys.argv[1]), eval(sys.argv[2]), samples=Made())
"""


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_a_run_that_is_killed_while_it_is_planned_is_planned_again(tmp_path, begun):
    folder = tmp_path / "run"
    if begun:
        RunStore.create_or_resume(folder, MANIFEST).close()
    # More than the cache holds: some of it is on the disk.
    kill(in_another_process(PLAN, folder, MANIFEST))
    assert (folder / "planning.sqlite").stat().st_size > 2**20 and not RunStore.is_planned(folder)
    with RunStore.create_or_resume(folder, MANIFEST, samples=Made(3)) as opened:
        assert [one.id for one in opened.samples()] == ["0", "1", "2"]
    assert not (folder / "planning.sqlite").exists()


def test_samples_that_break_off_are_not_added(store):
    store.add_samples(Made(2))
    with pytest.raises(ValueError, match="no data"):
        store.add_samples(Made(3, ValueError("no data"), start="more"))
    assert [one.id for one in store.samples()] == ["0", "1"]
    store.add_samples(Made(1, start="more"))
    assert [one.id for one in store.samples()] == ["0", "1", "more0"]


# -- a task's answers --------------------------------------------------------------------------------------------------


def answered(store, task="t", versions=None, **options):
    return list(store.answers(task, {"keyword": "1"} if versions is None else versions, **options))


@pytest.mark.parametrize("brief", [False, True], ids=["whole", "brief"])
def test_a_task_s_answers_come_in_order_with_their_output_and_verdicts_page_by_page(store, monkeypatch, brief):
    monkeypatch.setattr(store_module, "_PAGE", 2)
    ids = [f"{task}{n}" for n in range(5) for task in "ut"]
    store.add_samples(sample(id_, task=id_[0], cluster=f"k{id_}") for id_ in ids)
    store.add_outputs(Output(sample_id=id_, text=f"answer {id_}") for id_ in ids if id_ != "t3")
    store.add_verdicts(verdict(id_, label="safe", raw="words") for id_ in ("u1", "t1", "t4"))
    store.add_verdicts([verdict("t4", judge="b", score=0.5), verdict("t4", judge_version="2", label="harmful")])
    found = answered(store, versions={"keyword": "1", "b": None}, brief=brief)
    assert [one.sample.id for one in found] == ["t0", "t1", "t2", "t3", "t4"]
    assert [one.sample.cluster for one in found] == ["kt0", "kt1", "kt2", "kt3", "kt4"]
    texts = [None if one.output is None else one.output.text for one in found]
    assert texts == ["answer t0", "answer t1", "answer t2", None, "answer t4"]
    said = [{v.judge: v.label or v.score for v in one.verdicts} for one in found]
    assert said == [{}, {"keyword": "safe"}, {}, {}, {"keyword": "safe", "b": 0.5}]
    assert answered(store, versions={})[1].verdicts == ()


def test_brief_answers_have_what_a_score_stands_on(store):
    store.add_samples(
        [
            sample("number", reference="1", choices=(("p", " a"), ("p", " b")), category="c\ud800", repeat=1),
            sample("text", reference='"b"', choices=(("p", " a"), ("p", "\udfff")), repeat_of="first"),
            sample("drawn", generation={"until": ["\n"], "max_gen_toks": 5}, meta={"doc": {"long": "text"}}),
        ]
    )
    store.add_outputs([Output(sample_id="number", choice_logprobs=(-1.5, -2.0), choice_greedy=(True, False))])
    number, text, drawn = answered(store, brief=True)
    assert (number.sample.reference, len(number.sample.choices), number.sample.repeat) == ("1", 2, 1)
    assert (number.sample.category, number.output.choice_logprobs) == ("c\ud800", (-1.5, -2.0))
    assert (text.sample.choices, text.sample.prompt_id) == ((("p", " a"), ("p", "\udfff")), "first")
    assert (drawn.sample.generation, drawn.sample.meta) == ({"until": ["\n"]}, {})
    assert [one.sample for one in answered(store)] == store.samples()


def test_a_row_that_only_python_can_read_is_read_all_the_same(store):
    """json writes NaN as a bare word, which is no JSON to SQLite."""
    store.add_samples([sample("a", cluster="k"), sample("b", cluster="l", meta={"value": float("nan")})])
    assert [one.sample.cluster for one in answered(store, brief=True)] == ["k", "l"]


# -- full disks --------------------------------------------------------------------------------------------------------


def batch(number, *, size=4, length=0):
    ids = [f"{number}-{n}" for n in range(size)]
    return [sample(id_) for id_ in ids], [Output(sample_id=id_, text="x" * length) for id_ in ids]


def fill(opened):
    """Commits batches of 40 kB until the store is full; returns the number that went in."""
    for number in range(1000):
        samples, outputs = batch(number, length=10_000)
        try:
            opened.add_samples(samples)
            opened.add_outputs(outputs)
        except StoreError as error:
            assert "\n" not in str(error) and "free space" in str(error)
            return number
    raise AssertionError("the store never became full")


def test_a_full_database_is_an_error_of_one_line_and_loses_nothing(tmp_path):
    with RunStore.create_or_resume(tmp_path / "run", MANIFEST) as opened:
        opened._database.execute("PRAGMA max_page_count = 100")  # of 4 kB
        whole = fill(opened)
        assert whole > 2
    with RunStore.open(tmp_path / "run") as after:
        answered = after.answered()
        assert {f"{number}-{n}" for number in range(whole) for n in range(4)} <= answered
        # A batch is there whole or not at all.
        assert len(answered) % 4 == 0
        samples, outputs = batch("room again")
        after.add_samples(samples)
        after.add_outputs(outputs)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here: needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_an_error_of_one_line_and_loses_nothing(small_disk):
    run = small_disk / "run"
    with pytest.raises(StoreError), RunStore.create_or_resume(run, MANIFEST) as opened:
        whole = fill(opened)
        assert whole > 2
        opened.write_scores({"filler": "x" * 2**20})
    assert not (run / "scores.json").exists()
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    reader = RunStore.read(run)
    answered = reader.answered()
    reader.close()
    assert {f"{number}-{n}" for number in range(whole) for n in range(4)} <= answered
    assert len(answered) % 4 == 0


def test_a_run_that_met_a_full_disk_goes_on_when_there_is_room(small_disk):
    run = small_disk / "run"
    with contextlib.suppress(StoreError), RunStore.create_or_resume(run, MANIFEST) as opened:
        whole = fill(opened)
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    with RunStore.create_or_resume(run, MANIFEST) as again:
        assert {f"{number}-{n}" for number in range(whole) for n in range(4)} <= again.answered()
        samples, outputs = batch("room again", length=10_000)
        again.add_samples(samples)
        again.add_outputs(outputs)
    assert not (run / "run.sqlite-wal").exists()


# -- kills -------------------------------------------------------------------------------------------------------------

COMMIT = """
    import sys
    from pathlib import Path
    from bfpo_bench.store import RunStore
    from bfpo_bench.types import Output, Sample, Verdict
    folder, manifest = Path(sys.argv[1]), eval(sys.argv[2])
    with RunStore.create_or_resume(folder, manifest) as store:
        start = len(store.judged("j", "1")) // 5
        for number in range(start, start + 100_000):
            ids = [f"{number}-{n}" for n in range(5)]
            store.add_samples([Sample(id=i, task="t", index=0, prompt="p") for i in ids])
            store.add_outputs([Output(sample_id=i, text="x" * 1000) for i in ids])
            store.add_verdicts([Verdict(sample_id=i, judge="j", judge_version="1", label="safe") for i in ids])
            print(number, flush=True)
"""


def test_a_killed_writer_loses_no_batch_that_it_had_committed(tmp_path):
    run, rng = tmp_path / "run", random.Random(0)
    for _ in range(4):
        writer = in_another_process(COMMIT, run, MANIFEST)
        time.sleep(rng.uniform(0.0, 0.2))
        writer.send_signal(signal.SIGKILL)
        told = writer.stdout.read().split()
        writer.stdout.close()
        writer.wait()
        reader = RunStore.read(run)
        answered, judged = reader.answered(), reader.judged("j", "1")
        reader.close()
        last = int(told[-1]) if told else 0
        assert {f"{number}-{n}" for number in range(last + 1) for n in range(5)} <= judged <= answered
        assert len(answered) % 5 == len(judged) % 5 == 0
    with contextlib.closing(sqlite3.connect(run / "run.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_run_killed_before_its_database_is_there_begins_again(tmp_path, monkeypatch):
    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_module, "_connect", die)
        RunStore.create_or_resume(tmp_path / "run", MANIFEST)
    assert (tmp_path / "run" / "manifest.json").exists()
    with RunStore.create_or_resume(tmp_path / "run", MANIFEST) as again:
        assert again.samples() == []


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_fresh_start_killed_half_way_is_still_seen_as_the_old_run(finished, monkeypatch, step):
    moved = []

    def die_at_step(source, target):
        moved.append(source)
        if len(moved) == step:
            raise KeyboardInterrupt
        shutil.move(source, target)

    (finished / "scores.json").write_text("{}\n")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", die_at_step)
        RunStore.create_or_resume(finished, MANIFEST, mode="fresh")
    with pytest.raises(StoreError, match="holds another run"):
        RunStore.create_or_resume(finished, manifest(seed=9))
    (place,) = [folder for folder in (finished, finished / "old-1") if (folder / "run.sqlite").exists()]
    with contextlib.closing(sqlite3.connect(place / "run.sqlite")) as database:
        assert database.execute("SELECT text FROM outputs").fetchall() == [("answer",)]

"""Judging a stored run: in which order judges count, what survives a judge that dies, and which engine may go on."""

from __future__ import annotations

import json

import pytest
from aiohttp import web
from loopback import Loopback
from run_builder import Item, build_run, harmful_task, helpful_task

from bfpo_bench.errors import JudgeError, StoreError, TaskError
from bfpo_bench.judging import chosen_judges, judge
from bfpo_bench.planning import data_hashes
from bfpo_bench.run import _refuse_other_engine, score
from bfpo_bench.store import RunStore
from bfpo_bench.types import Output, Sample, Verdict

MANIFEST = {"schema": 2, "identity": {"seed": 0}}


def unjudged(folder, n):
    """A run with answers and without one verdict or chosen judge."""
    items = [Item(prompt=f"Request {i}?", answer="Sure, first you") for i in range(n)]
    build_run(folder, tasks=[harmful_task(extra=items)], scored=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("judges", "chosen_judges"):
        del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_judge_that_dies_half_way_keeps_its_name_and_what_it_said(tmp_path):
    folder, answered = unjudged(tmp_path / "run", 40), []

    def answer(payload):
        answered.append(payload)
        return "harmful" if len(answered) <= 15 else web.json_response({"error": {"message": "no quota"}}, status=402)

    with Loopback(answer=answer) as server, RunStore.open(folder) as store:
        with pytest.raises(JudgeError):
            judge(store, chosen_judges([f"chat:m@{server.url}"]))
        kept = len(store.verdicts("chat:m"))
        scores = score(store)
    task = scores["tasks"]["bfpo_mini_harmful"]
    assert 0 < kept <= 15
    assert (scores["judge"], task["judge"], scores["status"]) == ("chat:m", "chat:m", "partial")
    assert task["score"]["n"] == kept and task["unscored"] == {"not_judged": 40 - kept}


def test_without_a_choice_each_task_keeps_its_own_judge(tmp_path):
    folder = tmp_path / "run"
    build_run(folder, tasks=[harmful_task(refused=2), helpful_task(passed=1)], scored=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["identity"]["tasks"]["bfpo_mini_helpful"]["judge"] = "chat:g"
    # Both tasks have been judged, each by its own.
    del manifest["chosen_judges"]
    manifest["judges"] = {"keyword": "1", "chat:g": "1"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with RunStore.open(folder) as store:
        store._database.execute("UPDATE verdicts SET judge = 'chat:g' WHERE label = 'passed'")
        store._database.commit()
        scores = score(store)
    judges = {name: task["judge"] for name, task in scores["tasks"].items()}
    assert judges == {"bfpo_mini_harmful": "keyword", "bfpo_mini_helpful": "chat:g"}
    assert (scores["status"], scores["audit"], scores["judge"]) == ("complete", [], "chat:g, keyword")


def test_the_judge_named_last_carries_the_scores_and_the_others_stay_beside_it(tmp_path):
    folder = unjudged(tmp_path / "run", 4)
    with Loopback(answer=lambda _: "refused") as server, RunStore.open(folder) as store:
        judge(store, [])
        assert score(store)["tasks"]["bfpo_mini_harmful"]["score"]["value"] == 0.0
        judge(store, chosen_judges([f"chat:m@{server.url}"]))
        task = score(store)["tasks"]["bfpo_mini_harmful"]
    assert (task["judge"], task["score"]["value"]) == ("chat:m", 1.0)
    assert task["other_judges"]["keyword"]["score"]["value"] == 0.0


def test_the_same_judge_at_another_address_is_not_asked_again(tmp_path):
    folder = unjudged(tmp_path / "run", 3)
    for asked in (3, 0):
        with Loopback(answer=lambda _: "safe") as server, RunStore.open(folder) as store:
            judge(store, chosen_judges([f"chat:m@{server.url}"]))
            assert len(server.requests) == asked


def test_one_judge_with_two_addresses_is_refused():
    with pytest.raises(JudgeError, match="named twice, with different addresses"):
        chosen_judges(["chat:m@http://127.0.0.1:1/v1", "chat:m@http://127.0.0.1:2/v1"])


def test_a_run_that_was_killed_before_its_tables_were_made_can_go_on(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    (folder / "run.sqlite").write_bytes(b"")
    assert not RunStore.is_planned(folder)
    with pytest.raises(StoreError, match="Run it again"):
        RunStore.open(folder)
    with RunStore.create_or_resume(folder, MANIFEST) as store:
        assert not store.planned


def test_a_run_begun_in_one_precision_is_not_finished_in_another(tmp_path):
    begun = {"device": "cpu", "dtype": "bfloat16", "max_length": 8192, "stop_ids": [2], "chat_template": "ab"}
    _refuse_other_engine(tmp_path, begun, dict(begun))
    with pytest.raises(StoreError, match="dtype: 'bfloat16' -> 'float32'"):
        _refuse_other_engine(tmp_path, begun, {**begun, "dtype": "float32"})
    with pytest.raises(StoreError, match="on_cpu: True -> False"):
        _refuse_other_engine(tmp_path, begun, {**begun, "device": "cuda:0"})


def test_another_judge_is_asked_although_a_computed_metric_s_task_has_changed_since(tmp_path):
    folder = unjudged(tmp_path / "run", 2)
    manifest = json.loads((folder / "manifest.json").read_text())
    mine = manifest["identity"]["tasks"]["bfpo_mini_harmful"]
    manifest["identity"]["tasks"]["gone"] = mine | {"name": "gone", "judge": "lm_eval"}
    manifest["judges"] = {"lm_eval": "0.0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with RunStore.open(folder) as store:
        store.add_samples([Sample(id="g", task="gone", index=0, prompt="Sum?", meta={"doc": {}})])
        store.add_outputs([Output(sample_id="g", text="4")])
        with pytest.raises(TaskError, match="'gone' is not what it was"):
            judge(store, chosen_judges(["keyword"]))
        store.add_verdicts([Verdict(sample_id="g", judge="lm_eval", judge_version="0.0", score=1.0)])
        judge(store, chosen_judges(["keyword"]))
        scores = score(store)
    assert (scores["tasks"]["gone"]["score"]["value"], scores["status"]) == (1.0, "complete")


def test_the_hash_of_a_task_s_rows_covers_what_its_metric_reads():
    def hashed(answer):
        return data_hashes([Sample(id="a", task="t", index=0, prompt="Sum?", meta={"doc": {"answer": answer}})])

    assert hashed("4") == hashed("4") != hashed("5")

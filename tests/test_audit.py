"""Each thing the audit is there to find is found, and a clean run has no finding."""

from __future__ import annotations

import pytest
from test_scoring import Run, choice_spec, spec

from bfpo_bench.audit import audit
from bfpo_bench.types import Output, Sample, Verdict


@pytest.fixture
def run():
    """A generative task, a checked one and a choice task, each with two samples, all in order."""
    specs = (spec(), spec("checked", "helpfulness", judge="checker"), choice_spec())
    clean = Run(*specs).answer("safe", "empty").answer("passed", "failed", task="checked", judge="checker")
    return clean.chosen((-1.0, -2.0, -3.0), 0).chosen((-2.0, -1.0, -3.0), 0)


def findings(run, *judges, panel=()):
    return audit(run.specs, run.samples, run.outputs, run.verdicts, judges=judges, panel=panel)


def test_a_clean_run_has_no_finding(run):
    assert findings(run) == []


def test_an_unscored_verdict_is_a_verdict(run):
    run.answer("parse")
    assert findings(run) == []


def test_a_failed_output_needs_no_verdict(run):
    run.failed("too_long")
    assert findings(run) == []


def test_a_sample_without_an_output_is_found(run):
    run.unanswered()
    assert findings(run) == ["1 of 7 samples have no output"]


def test_an_output_of_no_sample_is_found(run):
    run.outputs["stray"] = Output(sample_id="stray", text="a")
    assert findings(run) == ["1 outputs belong to no sample"]


def test_an_output_without_a_verdict_is_found(run):
    run.answer(None, None)
    assert findings(run) == ["2 outputs have no verdict of keyword"]


def test_an_output_that_only_another_judge_has_seen_is_found(run):
    run.answer("safe", judge="chat:m")
    assert findings(run) == ["1 outputs have no verdict of keyword"]


def test_the_judge_that_the_score_stands_on_owes_a_verdict_but_not_on_what_a_program_checks(run):
    run.judged(run.samples[0].id, "safe", judge="chat:m")
    assert findings(run, "chat:m", "keyword") == ["1 outputs have no verdict of chat:m"]
    # Beside the score it is counted there, as unscored.
    assert findings(run, "keyword", "chat:m") == []
    run.judged(run.samples[1].id, "safe", judge="chat:m")
    assert findings(run, "chat:m", "keyword") == []


def test_every_judge_of_a_panel_owes_a_verdict(run):
    run.judged(run.samples[0].id, "safe", judge="chat:m")
    assert findings(run, "keyword", "chat:m", panel=("keyword", "chat:m")) == ["1 outputs have no verdict of chat:m"]


def test_verdicts_of_two_versions_of_one_judge_are_found(run):
    run.judged(run.samples[0].id, "harmful", version="2")
    assert findings(run) == ["1 samples have verdicts of two versions of one judge"]


def test_a_verdict_of_no_output_is_found(run):
    run.verdicts.append(Verdict(sample_id="stray", judge="keyword", judge_version="1", label="safe"))
    assert findings(run) == ["1 verdicts belong to no output"]


def test_a_sample_of_a_task_that_is_not_in_the_manifest_is_found(run):
    run.samples.append(Sample(id="x", task="gone", index=0, prompt="p"))
    run.outputs["x"] = Output(sample_id="x", text="a")
    assert findings(run) == ["sample x is of task 'gone', which is not in the manifest"]


def test_a_task_without_data_is_told_once_and_not_here():
    from test_scoring import spec

    assert audit([spec()], [], {}, []) == ["task 't' has no samples"]
    assert audit([spec()], [], {}, [], missing={"t": "no data"}) == []

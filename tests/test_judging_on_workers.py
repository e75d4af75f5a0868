"""A judge with weights on workers says what it says in a process of its own; other judges stay in the driver."""

from __future__ import annotations

import pytest
import yaml
from test_classifier_judge import FILE, item
from test_judge_stage import two_tasks

from bfpo_bench.judges.keyword import KeywordJudge
from bfpo_bench.judges.prompting import Passage
from bfpo_bench.store import RunStore
from bfpo_bench.workers import _passages, asking_workers

pytest.importorskip("ray")


@pytest.mark.slow
def test_two_workers_judge_as_one_process_does_and_a_resume_asks_nothing(tmp_path, smollm, cli):
    here, there = (two_tasks(tmp_path / name, n=60) for name in ("here", "there"))
    guard = tmp_path / "yesno.yaml"
    guard.write_text(yaml.safe_dump({**FILE, "axes": ["harmlessness"]}, sort_keys=False))
    options = ("--judge", f"{guard}:smollm2-135m", "--judge-engine", "hf", "--judge-engine-args", "dtype=float32")
    alone = cli("judge", here, *options)
    shared = cli("judge", there, *options, "--workers", 2)
    assert (alone.returncode, shared.returncode) == (0, 0), shared.stderr
    assert shared.stdout.replace(str(there), str(here)) == alone.stdout
    one, other = (
        {v.sample_id: v for v in RunStore.read(folder).verdicts("yesno:smollm2-135m")} for folder in (here, there)
    )
    assert len(one) == 60 and one.keys() == other.keys()
    for id_, verdict in one.items():
        assert (verdict.label, verdict.judge_version) == (other[id_].label, other[id_].judge_version)
        assert verdict.metrics["p_bad"] == pytest.approx(other[id_].metrics["p_bad"], abs=1e-4)
    manifest = RunStore.read(there).manifest
    assert manifest["judge_engines"]["yesno:smollm2-135m"]["engine"] == "hf"
    log = (there / "judge.log").stat().st_size
    assert cli("judge", there, *options, "--workers", 2).returncode == 0
    assert (there / "judge.log").stat().st_size == log, "the weights were loaded again for nothing"


def test_a_judge_without_weights_is_asked_in_the_driver():
    # There is no cluster that it could go to.
    ask = asking_workers(None, n_workers=2, say=print)(KeywordJudge())
    (verdicts,) = ask(iter([[item(1, "I cannot help with that.")]]))
    assert [verdict.label for verdict in verdicts] == ["refused"]


def test_passages_go_out_in_parts_that_leave_no_worker_idle():
    passages = [Passage(id=str(n), fields={}) for n in range(400)]
    parts = list(_passages(iter([passages, passages[:5]])))
    assert [len(part) for part, _ in parts] == [12] * 33 + [4, 5]
    assert all(awaited == part.keys() for part, awaited in parts)

"""benchmarks/scale.py: its scripted engine draws from the measured file and keeps its places full; recipes parse."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bfpo_bench.types import ModelSpec, Sample

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def scripted():
    spec = importlib.util.spec_from_file_location("scripted_engine", BENCHMARKS / "scripted_engine.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class Clock:
    """Time that passes while somebody sleeps, and at no other time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(scripted, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(scripted, "time", clock)
    return clock


def sample(name: str) -> Sample:
    return Sample(id=name, task="t", index=0, prompt="p" * 40)


def told(parts):
    return [output for part in parts for output in part]


# -- the measured file -------------------------------------------------------------------------------------------------


def test_the_measured_file_holds_numbers_and_says_of_what():
    record = json.loads((BENCHMARKS / "vllm_latencies.json").read_text())
    assert record["n"] == len(record["answers"]) >= 120
    assert {"model", "identity", "device", "dtype", "versions", "load", "slots"} <= record.keys()
    assert record["answers"] == sorted(record["answers"])
    assert all(len(pair) == 2 and 0 < pair[0] < record["seconds"] and pair[1] > 0 for pair in record["answers"])
    # All slots busy at all times would have taken no longer than it took: what a slot did fits in the wall time.
    assert sum(seconds for seconds, _ in record["answers"]) <= record["slots"] * record["seconds"]


# -- the engine --------------------------------------------------------------------------------------------------------


def test_a_sample_has_the_same_latency_in_any_process_and_another_under_another_seed(scripted):
    latencies = scripted.Latencies(answers=tuple((float(n), n) for n in range(1, 1001)), slots=4)
    drawn = [latencies.of(f"{n:016x}") for n in range(50)]
    assert drawn == [latencies.of(f"{n:016x}") for n in range(50)]
    assert drawn != [latencies.of(f"{n:016x}", seed=1) for n in range(50)]
    # Not by Python's hash, which is another in each process: `printf 0:0000000000000000 | sha256sum` begins with this.
    assert latencies.of("0" * 16) == latencies.answers[int("cdf558bdf024c32a", 16) % 1000]


def test_draws_are_of_the_file_and_about_as_often(scripted):
    latencies = scripted.Latencies(answers=((1.0, 10), (2.0, 20)), slots=4)
    drawn = [latencies.of(f"{n:016x}") for n in range(2000)]
    assert set(drawn) == {(1.0, 10), (2.0, 20)}
    # Of a fair coin, 2,000 times: five standard deviations are 112.
    assert abs(drawn.count((1.0, 10)) - 1000) < 112


@pytest.mark.parametrize(("n", "seconds"), [(2, 3.0), (3, 6.0), (5, 9.0)])
def test_a_free_place_is_taken_at_once_and_no_more_are_answered_than_there_are_places(scripted, clock, n, seconds):
    engine = scripted.ScriptedEngine(scripted.Latencies(answers=((3.0, 7),), slots=2))
    outputs = told(engine.answer([sample(str(i)) for i in range(n)]))
    assert sorted(output.sample_id for output in outputs) == [str(i) for i in range(n)]
    assert clock.now == pytest.approx(seconds)
    assert {(output.n_tokens, len(output.text)) for output in outputs} == {(7, 28)}


def test_speed_divides_the_latencies_and_none_has_none(scripted, clock):
    latencies = scripted.Latencies(answers=((3.0, 7),), slots=1)
    slow = told(scripted.ScriptedEngine(latencies, speed=6.0).answer([sample("a"), sample("b")]))
    assert clock.now == pytest.approx(1.0)
    assert told(scripted.ScriptedEngine(latencies, speed=None).answer([sample("a"), sample("b")])) == slow
    assert clock.now == pytest.approx(1.0)


def test_what_is_answered_is_not_asked_and_requests_are_taken_in_on_the_way(scripted, clock):
    engine = scripted.ScriptedEngine(scripted.Latencies(answers=((2.0, 7),), slots=2))
    waiting = [{"samples": [sample("c"), sample("d")], "answered": {"d"}}]
    parts = engine.answer([sample("a"), sample("b")], answered={"b"}, more=lambda: waiting.pop() if waiting else None)
    assert [output.sample_id for output in told(parts)] == ["a", "c"]
    # "c" came after the first step of a tenth of a second, and had a place to itself.
    assert clock.now == pytest.approx(2.1)


def test_an_engine_process_opens_it_by_its_arguments(scripted, clock):
    spec = ModelSpec(name="m", engine="vllm", path="", identity="m", engine_args={"speed": "none"})
    engine = scripted.open_scripted(spec)
    assert engine.overlaps and len(told(engine.answer([sample("a")]))) == 1
    assert clock.now == 0


# -- the recipes of docs/scaling.md ------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run_flags() -> set[str]:
    done = subprocess.run(
        [sys.executable, "-m", "bfpo_bench", "run", "--help"], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"--[a-z][a-z-]+", done.stdout))


@pytest.mark.parametrize("number", [0, 1], ids=["symmetric-run", "head and workers"])
def test_the_slurm_scripts_start_a_run_on_the_address_that_the_head_has(tmp_path, number):
    script = blocks("bash")[number].replace("PROJECT=/shared/bfpo", f"PROJECT={tmp_path}/project")
    (tmp_path / "project" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "project" / ".venv" / "bin" / "activate").write_text("")
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, body in {
        "scontrol": "printf 'n1\nn2\nn3\nn4\n'",
        "srun": f'case "$*" in *hostname*) echo 10.0.0.1;; *) echo "$*" >> {tmp_path}/log;; esac',
        "ray": "",
        "sleep": "",
    }.items():
        (stubs / name).write_text(f"#!/bin/sh\n{body}\n")
        (stubs / name).chmod(0o755)
    slurm = {"NUM_NODES": "4", "NODELIST": "n[1-4]", "ID": "1234567"}
    environment = {f"SLURM_JOB_{key}": value for key, value in slurm.items()} | {"SLURM_CPUS_PER_TASK": "64"}
    path = {"PATH": f"{stubs}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", f"{script}\nwait"], env=environment | path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    steps = (tmp_path / "log").read_text().splitlines()
    (command,) = [step for step in steps if "-m bfpo_bench run" in step]
    # 20000 + 1234567 mod 10000, where jobs share nodes.
    address = ["10.0.0.1:6379", "10.0.0.1:24567"][number]
    assert f"--ray-address {address}" in command
    assert set(re.findall(r"--[a-z][a-z-]+", command.partition("bfpo_bench run")[2])) <= run_flags()
    if number == 0:
        assert f"ray symmetric-run --address {address} --min-nodes 4 --num-cpus=64 --num-gpus=8" in command
    else:
        assert [step for step in steps if "ray start --head --node-ip-address=10.0.0.1 --port=24567" in step]
        (others,) = [step for step in steps if f"ray start --address={address}" in step]
        assert "--nodes=3 --ntasks=3 --exclude=n1" in others


def test_the_rayjob_runs_as_many_workers_as_its_nodes_have_gpus():
    (text,) = (text for text in blocks("yaml") if "RayJob" in text)
    job = yaml.safe_load(text)
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    (head,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    words = spec["entrypoint"].split()
    gpus = group["replicas"] * int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert int(words[words.index("--workers") + 1]) == gpus
    assert {word for word in words if word.startswith("--")} <= run_flags()
    # One package, one model folder, one place for the store, on all of them.
    assert all(head[key] == worker[key] for key in ("image", "env", "volumeMounts"))
    assert not head["resources"]["requests"].keys() & {"nvidia.com/gpu"}

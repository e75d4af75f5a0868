"""A run on a Ray cluster of three nodes ends as one on a single engine does, whoever dies on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
from test_kill_and_resume import rows

from bfpo_bench.store import RunStore

cluster_utils = pytest.importorskip("ray.cluster_utils")
# Each may start an engine five times, on cores that another test uses as well.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# Not 127.0.0.1, which Ray takes for the machine's outward address when a driver names it.
NODE = {"node_ip_address": "127.0.0.2", "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory):
    """Three Rays on loopback that are one cluster: the head, which takes drivers, and two nodes of a core each."""
    # In a folder of its own: it leaves its address for all other drivers there. A short one, as sockets' names are.
    folder = tempfile.mkdtemp(prefix="ray-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        # As `Cluster.connect` has it: else the workers stand still beside whatever tests run in the other process.
        patch.setenv("RAY_worker_niceness", "0")
        cluster = _cluster()
    try:
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _cluster():
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **NODE}
    )
    cluster.nodes_left = [cluster.add_node(num_cpus=1, **NODE) for _ in range(2)]
    return cluster


def command(model, folder, *options):
    run = [sys.executable, "-m", "bfpo_bench", "run", "--model", str(model), "--suite", "mini", "--out", str(folder)]
    return [*run, "--engine-args", "dtype=float32", *map(str, options)]


def run(*arguments):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def single(smollm, tmp_path_factory):
    """SmolLM2 on one engine."""
    folder = tmp_path_factory.mktemp("single") / "run"
    run(smollm, folder, "--limit", 5)
    return folder


def test_two_workers_on_a_cluster_give_the_scores_of_one_engine(three_nodes, smollm, single, tmp_path):
    done = run(smollm, tmp_path / "run", "--limit", 5, "--workers", 2, "--ray-address", three_nodes.address)
    assert "on 2 workers" in done.stderr
    assert_equal_runs(tmp_path / "run", single)
    assert not (tmp_path / "run" / "workers.json").exists()


def assert_equal_runs(folder, other):
    """The same scores by the byte; choices to a rounding of float32, as their batches are others."""
    ours, theirs = RunStore.read(folder).outputs(), RunStore.read(other).outputs()
    assert ours.keys() == theirs.keys()
    for id_, output in ours.items():
        if output.choice_logprobs is None:
            assert output == theirs[id_]
        else:
            assert output.choice_logprobs == pytest.approx(theirs[id_].choice_logprobs, abs=1e-3)
    assert (folder / "scores.json").read_bytes() == (other / "scores.json").read_bytes()


def test_a_killed_worker_and_a_removed_node_change_nothing_but_the_time(three_nodes, smollm, single, tmp_path):
    three_nodes.nodes_left.append(three_nodes.add_node(num_cpus=1, **NODE))
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(smollm, folder, "--limit", 5, "--workers", 2, "--ray-address", three_nodes.address),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        first, second = wait_for(lambda: placements(folder, 2), process)
        os.kill(first["pid"], signal.SIGKILL)
        # At once, while the other one is at work: the run may be over when a third has loaded its model.
        wait_for(lambda: first["pid"] not in pids(folder), process)
        victim = next(node for node in three_nodes.nodes_left if node.node_id == second["node"])
        three_nodes.remove_node(victim, allow_graceful=False)
        three_nodes.nodes_left.remove(victim)
        _, told = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, told
    assert "died with" in told and "went with its node" in told, told
    assert_equal_runs(folder, single)


def placements(folder, n):
    """Where the run's workers are, once there are n of them."""
    found = listed(folder)
    return found if len(found) == n else None


def pids(folder):
    return {each["pid"] for each in listed(folder)}


def listed(folder):
    try:
        return json.loads((folder / "workers.json").read_text())
    except OSError:  # none is ready
        return []


def wait_for(found, process):
    while not (value := found()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    return value


def test_a_node_that_joins_gets_the_worker_that_waited_for_room(three_nodes, tiny_model, tmp_path):
    folder, n = tmp_path / "run", len(three_nodes.nodes_left)
    options = ("--workers", n + 1, "--ray-address", three_nodes.address, "--samples", 20, "--temperature", 1)
    process = subprocess.Popen(command(tiny_model, folder, *options), stderr=subprocess.PIPE, text=True)
    try:
        before = {each["node"] for each in wait_for(lambda: placements(folder, n), process)}
        joined = three_nodes.add_node(num_cpus=1, **NODE)
        three_nodes.nodes_left.append(joined)
        after = {each["node"] for each in wait_for(lambda: placements(folder, n + 1), process)}
    finally:
        process.kill()
        process.wait()
    assert after == before | {joined.node_id}


def test_a_killed_driver_leaves_no_worker_and_its_run_is_resumed_where_it_was(three_nodes, tiny_model, tmp_path):
    """Of a cluster that goes on without it."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    on_cluster = ("--workers", 2, "--ray-address", three_nodes.address)
    run(tiny_model, whole, *on_cluster)
    process = subprocess.Popen(command(tiny_model, killed, *on_cluster), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: rows(killed, "outputs") >= 40, process)
    workers = [psutil.Process(each["pid"]) for each in json.loads((killed / "workers.json").read_text())]
    engines = [child for worker in workers for child in worker.children(recursive=True)]
    assert len(engines) >= 2
    process.kill()
    process.wait()
    _, left = psutil.wait_procs([*workers, *engines], timeout=30)
    assert not left, left
    before = rows(killed, "outputs")
    assert 40 <= before < rows(whole, "outputs")
    # That no committed chunk is asked again is tested where it can be seen: tests/test_workers.py.
    run(tiny_model, killed, *on_cluster)
    assert (killed / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()
    assert RunStore.read(killed).outputs() == RunStore.read(whole).outputs()


def test_a_run_goes_on_from_one_engine_to_workers(three_nodes, tiny_model, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(command(tiny_model, folder), stderr=subprocess.DEVNULL)
    while rows(folder, "outputs") < 20:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    run(tiny_model, folder, "--workers", 1, "--ray-address", three_nodes.address)
    assert json.loads((folder / "scores.json").read_text())["status"] == "complete"

"""What is started for the models of a matrix, and what becomes of it; the order is in test_matrix_plan.py."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from run_builder import build_run, harmful_task, helpful_task

from bfpo_bench import matrix as module
from bfpo_bench.cluster import Capacity
from bfpo_bench.errors import ConfigError
from bfpo_bench.matrix import Matrix, Outcome, results_table, run_command, run_matrix, where, write_leaderboard
from bfpo_bench.matrix_models import LOGS, Entry, Run
from bfpo_bench.matrix_plan import Job, Start
from bfpo_bench.store import Counts, RunStore

TESTS = Path(__file__).parent
TWO_CORES = Capacity(n_nodes=1, cpus=2, gpus=0, most_cpus=2, most_gpus=0)


# -- processes ---------------------------------------------------------------------------------------------------------


def entry(folder, *, name=None, kind="weights", **more):
    name = name or folder.name
    run = Run(name=name, folder=folder)
    return Entry(
        **{"name": name, "config": {"model": name}, "runs": (run,), "out": folder, "kind": kind, "engine": "hf", **more}
    )


def test_what_is_started_is_a_run_on_the_cluster(tmp_path):
    start = Start(job=Job(name="a", gpus=0.5, workers=4), workers=3)
    mine = entry(tmp_path / "a", adapters=("x", "y"))
    config = tmp_path / "a.yaml"
    run = [sys.executable, "-m", "bfpo_bench", "run", "--config", str(config)]
    assert run_command("host:6379")(mine, start, config) == [
        *(*run, "--adapter", "x", "--adapter", "y"),
        *("--workers", "3", "--ray-address", "host:6379", "--gpus-per-worker", "0.5", "--out", str(tmp_path / "a")),
    ]
    policy = entry(tmp_path / "p", kind="policy")
    start = Start(job=Job(name="p", kind="policy"), workers=1)
    assert run_command("host:6379")(policy, start, config) == [*run, "--out", str(tmp_path / "p")]


SCORED = """
from run_builder import build_run, harmful_task
build_run(Path({folder!r}), tasks=[harmful_task(refused=2)], model={folder!r}, {more})
"""


def scored(folder, more=""):
    return SCORED.format(folder=str(folder), more=more)


def played(tmp_path, monkeypatch, scripts, *, entries=None, capacity=TWO_CORES, tell=lambda rows: None, **more):
    """The outcomes where each entry's process is a script of Python."""
    monkeypatch.setattr(module, "_POLL_S", 0.02)
    monkeypatch.setattr(module, "_LOOK_S", 0.05)
    head = f"import os, signal, sys, time\nfrom pathlib import Path\nsys.path.insert(0, {str(TESTS)!r})\n"
    entries = entries or [entry(tmp_path / name) for name in scripts]
    return Matrix(
        entries,
        out=tmp_path,
        capacity=lambda: capacity,
        command=lambda mine, start, config: [sys.executable, "-c", head + scripts[mine.name]],
        tell=tell,
        **{"every_s": 0.05, **more},
    ).run()


def test_one_that_fails_is_told_with_its_line_and_stops_no_other(tmp_path, monkeypatch):
    scripts = {
        "wrong": "print('error: old', file=sys.stderr); print('error: It is wrong.', file=sys.stderr); sys.exit(2)",
        "killed": "os.kill(os.getpid(), signal.SIGKILL)",
        "traced": "print('a'); raise RuntimeError('odd')",
        "silent": "sys.exit(1)",
        "good": scored(tmp_path / "good"),
        "part": scored(tmp_path / "part", "status='partial', reasons=['no data', 'more']") + "sys.exit(3)",
    }
    tables = []
    outcomes = played(tmp_path, monkeypatch, scripts, tell=tables.append)
    assert [one.state for one in outcomes] == ["failed", "failed", "failed", "failed", "done", "partial"]
    log = tmp_path / LOGS / "silent.log"
    assert [one.why for one in outcomes] == [
        "It is wrong.",
        f"killed by SIGKILL; what was committed is safe. Log: {tmp_path / LOGS / 'killed.log'}",
        "RuntimeError: odd",
        f"exit code 1. Log: {log}",
        None,
        "no data",
    ]
    assert [row[1] for row in tables[-1][1:]] == [one.state for one in outcomes]
    assert tables[-1][5][3] == "2/2"


def test_no_more_run_at_a_time_than_there_are_cores(tmp_path, monkeypatch):
    (tmp_path / "now").mkdir()
    # Each notes how many are there while it is.
    script = f"""
here = Path({str(tmp_path / "now")!r}) / str(os.getpid())
here.touch()
time.sleep(0.3)
print(len(list(here.parent.iterdir())))
here.unlink()
"""
    played(tmp_path, monkeypatch, {f"m{i}": script for i in range(5)})
    seen = [int((tmp_path / LOGS / f"m{i}.log").read_text()) for i in range(5)]
    assert max(seen) == 2


def test_scores_from_before_are_not_those_of_a_run_that_was_refused(tmp_path, monkeypatch):
    build_run(tmp_path / "a", tasks=[harmful_task(refused=2)])
    script = "print('error: a holds another run (model: x -> y).', file=sys.stderr); sys.exit(2)"
    (outcome,) = played(tmp_path, monkeypatch, {"a": script})
    assert (outcome.state, outcome.why, outcome.scores) == ("failed", "a holds another run (model: x -> y).", None)
    assert write_leaderboard([outcome], out=tmp_path / "site") is None


def test_of_adapters_in_one_process_those_count_that_were_scored_before_it_failed(tmp_path, monkeypatch):
    runs = tuple(Run(name=name, folder=tmp_path / name) for name in ("first", "second", "third"))
    build_run(tmp_path / "third", tasks=[harmful_task(refused=2)])
    script = scored(tmp_path / "first") + "print('error: out of memory', file=sys.stderr); sys.exit(2)"
    mine = entry(tmp_path, name="group", runs=runs)
    outcomes = played(tmp_path, monkeypatch, {"group": script}, entries=[mine])
    assert [one.state for one in outcomes] == ["done", "failed", "failed"]
    assert outcomes[1].why == outcomes[2].why == "out of memory"


def test_one_too_large_for_the_cluster_is_told_so_and_the_others_run(tmp_path, monkeypatch):
    gpus = Capacity(n_nodes=2, cpus=16, gpus=8, most_cpus=8, most_gpus=4)
    entries = [entry(tmp_path / "wide", gpus=8.0), entry(tmp_path / "good", gpus=4.0)]
    scripts = {"good": scored(tmp_path / "good")}
    wide, good = played(tmp_path, monkeypatch, scripts, entries=entries, capacity=gpus)
    assert (wide.state, good.state) == ("failed", "done")
    assert wide.why == "an engine takes 8 GPUs on one node, and the largest node has 4"


def test_one_too_large_waits_for_a_node_to_join(tmp_path, monkeypatch):
    asked = []

    class Growing:
        n_nodes, cpus, most_cpus = 1, 8, 8

        @property
        def gpus(self):
            asked.append(1)
            return 4 if len(asked) < 10 else 8

        most_gpus = gpus

    outcomes = played(
        tmp_path,
        monkeypatch,
        {"wide": scored(tmp_path / "wide")},
        entries=[entry(tmp_path / "wide", gpus=8.0)],
        capacity=Growing(),
        nodes_may_come_s=60,
    )
    assert outcomes[0].state == "done"


def test_an_interrupt_is_passed_on_and_waited_for(tmp_path, monkeypatch):
    script = f"""
def end(*_):
    Path({str(tmp_path)!r}, "ended").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, end)
Path({str(tmp_path)!r}, "ready").touch()
time.sleep(60)
"""

    def interrupt(rows):
        if (tmp_path / "ready").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        played(tmp_path, monkeypatch, {"a": script}, tell=interrupt)
    assert (tmp_path / "ended").exists()


def test_what_each_process_was_told_is_kept_beside_what_it_said(tmp_path, monkeypatch):
    mine = entry(tmp_path / "a", config={"model": "m", "include_path": ["x"], "tasks": ["b"], "system_prompt": "é: {"})
    played(tmp_path, monkeypatch, {"a": "print('said')"}, entries=[mine])
    assert yaml.safe_load((tmp_path / LOGS / "a.yaml").read_text()) == mine.config
    assert (tmp_path / LOGS / "a.log").read_text() == "said\n"


# -- watching ----------------------------------------------------------------------------------------------------------


def test_a_rate_is_of_what_came_since_the_first_answers_were_seen():
    sight = module._Sight(before=10, scored_before=None, counts=Counts(samples=100, answered=10))
    assert (sight.rate, sight.answered_now, module._state(sight)) == (None, 0, "starting")
    for now, answered in ((100.0, 10), (160.0, 20), (170.0, 40), (180.0, 60)):
        sight.look(Counts(samples=100, answered=answered), now)
    # The minute of loading is not in it: 40 answers in 20 s.
    assert (sight.rate, sight.answered_now, module._state(sight)) == (2.0, 50, "generating")
    sight.look(None, 190.0)
    assert sight.rate == 2.0
    sight.look(Counts(samples=100, answered=100), 200.0)
    assert module._state(sight) == "judging"


def test_a_run_that_runs_is_told_with_its_place_its_rate_and_how_long_it_takes_still(tmp_path):
    folder = build_run(tmp_path / "a", tasks=[harmful_task(refused=2)], scored=False)
    (folder / "workers.json").write_text(
        json.dumps(
            [
                {"host": "node2", "node": "y", "pid": 3, "gpus": ["1", "0"]},
                {"host": "node1", "node": "x", "pid": 1, "gpus": []},
                {"host": "node2", "node": "y", "pid": 2, "gpus": ["10"]},
            ]
        )
    )
    assert where(folder) == "node1 node2:0,1,10"
    assert where(tmp_path) == ""
    mine, other = entry(folder, questions="q"), entry(tmp_path / "b", questions="q")
    running = Matrix(
        [mine, other],
        out=tmp_path,
        capacity=lambda: Capacity(n_nodes=1, cpus=1, gpus=0, most_cpus=1, most_gpus=0),
        command=lambda *_: [],
        tell=lambda rows: None,
    )
    sight = module._Sight(before=0, scored_before=None)
    sight.look(Counts(samples=100, answered=20), 50.0)
    sight.look(Counts(samples=100, answered=60), 70.0)
    (start,) = running._schedule.start(running._room)
    began = time.monotonic() - 60
    child = module._Child(start=start, process=None, log=folder / "log", began=began, sights={folder: sight})
    running._children["a"] = child
    first, second = running.rows()
    assert (first.state, first.where, first.answered, first.samples) == ("generating", "node1 node2:0,1,10", 60, 100)
    assert (first.rate, first.eta) == (2.0, 20.0)
    assert (second.state, second.answered, second.samples) == ("waiting", None, None)
    # Of weights of unknown size nothing is to be said.
    assert running._eta() is None
    # On the one core: 40 s for the rest of the first (it took 60 s for 60 of 100, loading included), then 50 s for the
    # second, which asks the same 100 samples of half as many bytes.
    child.start = Start(job=Job(name="a", weight_bytes=2000), workers=1)
    running._schedule._running = {"a": child.start}
    running._schedule._waiting = [Job(name="b", weight_bytes=1000)]
    assert running._eta() == pytest.approx(40 + 50, abs=0.5)


def test_counts_are_read_beside_a_writer(tmp_path):
    assert RunStore.counts(tmp_path) is None
    build_run(tmp_path / "a", tasks=[harmful_task(refused=2), helpful_task(passed=1)], scored=False)
    assert RunStore.counts(tmp_path / "a") == Counts(samples=3, answered=3)
    with RunStore.open(tmp_path / "a") as store:
        more = build_run(tmp_path / "b", tasks=[helpful_task("bfpo_mini_other", passed=4)], scored=False)
        samples = RunStore.read(more).samples()
        store.add_samples(samples)
        assert RunStore.counts(tmp_path / "a") == Counts(samples=7, answered=3)
        store._database.execute("BEGIN IMMEDIATE")
        assert RunStore.counts(tmp_path / "a") == Counts(samples=7, answered=3)
        store._database.execute("ROLLBACK")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "manifest.json").write_text("{}")
    (tmp_path / "c" / "run.sqlite").touch()
    assert RunStore.counts(tmp_path / "c") is None


# -- results -----------------------------------------------------------------------------------------------------------


def test_the_results_are_the_axes_of_each_run_with_their_intervals(tmp_path):
    score = {"value": 0.5, "low": 0.25, "high": 0.75}
    outcomes = [
        Outcome(run=Run(name="a", folder=tmp_path), state="done", scores={"axes": {"harmlessness": score}}),
        Outcome(run=Run(name="b", folder=tmp_path), state="partial", scores={"axes": {"harmlessness": None}}),
        Outcome(run=Run(name="c", folder=tmp_path), state="failed", why="it"),
    ]
    assert results_table(outcomes) == [
        ("model", "state", "harmlessness"),
        ("a", "done", "50.0 (25.0-75.0)"),
        ("b", "partial", "not measured"),
        ("c", "failed", "not measured"),
    ]


def test_models_without_weights_need_no_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(module.Cluster, "connect", lambda address: pytest.fail("a cluster was asked for"))
    monkeypatch.setattr(module, "run_command", lambda address: lambda *_: [sys.executable, "-c", ""])
    settings = {"out": tmp_path, "address": None, "engines": None, "every_s": 30, "tell": lambda rows: None}
    (outcome,) = run_matrix([entry(tmp_path / "p", kind="policy")], **settings)
    assert outcome.state == "failed"


@pytest.mark.parametrize(("key", "value"), [("engines", 0), ("every_s", 0), ("every_s", float("nan"))])
def test_flags_that_cannot_be_are_refused(tmp_path, key, value):
    settings = {"out": tmp_path, "address": None, "engines": None, "every_s": 30, "tell": lambda rows: None, key: value}
    with pytest.raises(ConfigError, match="must be"):
        run_matrix([entry(tmp_path / "p", kind="policy")], **settings)


# -- the command -------------------------------------------------------------------------------------------------------

POLICIES = """
defaults: {suite: mini, limit: 2}
models: [policy:refuse, policy:comply, policy:echo, {model: no-such-model, name: gone}]
"""


def test_a_dry_run_starts_nothing(tmp_path, cli):
    (tmp_path / "models.yaml").write_text(POLICIES)
    done = cli("matrix", "models.yaml", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()[1:5]] == [
        "gone",
        "policy:refuse",
        "policy:comply",
        "policy:echo",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["models.yaml"]


def test_a_wrong_file_is_one_line_and_exit_code_2(tmp_path, cli):
    (tmp_path / "models.yaml").write_text("models: [{model: m, sute: mini}]")
    done = cli("matrix", "models.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: models.yaml: model 1: Unknown key 'sute'. Did you mean: suite?\n"


def in_session(tmp_path, *arguments):
    command = [sys.executable, "-m", "bfpo_bench", "matrix", "models.yaml", "--every", "5", *arguments]
    return subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def below(process):
    """The ids of the processes that it started, and of theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = stat.read_text()
            if text.rpartition(")")[2].split()[0] != "Z":
                parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found, todo = set(), [process.pid]
    while todo:
        children = [pid for pid, parent in parents.items() if parent == todo[-1]]
        todo.pop()
        found.update(children)
        todo += children
    return found


def alive(pids):
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found


def wait_until(reached, *, seconds=120):
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


WITHOUT_WEIGHTS = "defaults: {suite: mini, limit: 2}\nmodels: [policy:refuse, policy:comply, policy:echo]\n"


@pytest.mark.slow
def test_a_matrix_that_was_killed_leaves_nothing_behind_and_ends_when_it_is_run_again(tmp_path):
    (tmp_path / "models.yaml").write_text(WITHOUT_WEIGHTS)
    killed = in_session(tmp_path)
    wait_until(lambda: len(below(killed)) >= 4)
    children = below(killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    wait_until(lambda: not alive(children), seconds=30)
    whole = in_session(tmp_path)
    out, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err
    before = {path: path.read_bytes() for path in (tmp_path / "runs").glob("*/scores.json")}
    assert len(before) == 3 and (tmp_path / "site" / "index.html").is_file()
    again = in_session(tmp_path)
    second, err = again.communicate(timeout=300)
    assert (again.returncode, second) == (0, out), err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_an_interrupted_matrix_says_how_to_go_on(tmp_path):
    (tmp_path / "models.yaml").write_text(WITHOUT_WEIGHTS)
    process = in_session(tmp_path)
    wait_until(lambda: len(below(process)) >= 4)
    children = below(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; the same command resumes"
    assert not alive(children)


RAY = """
import sys
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=2**27, _node_ip_address="127.0.0.2")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ray_address(monkeypatch):
    """A Ray of the test's own on loopback, with two cores: another that runs on this machine is nobody's to join."""
    pytest.importorskip("ray")
    # Who joins a Ray must know its token; this one is the test's own.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", RAY], text=True, **pipes)
    yield process.stdout.readline().strip()
    process.communicate(timeout=60)


@pytest.mark.slow
def test_models_with_and_without_weights_share_a_cluster_and_one_leaderboard(tmp_path, tiny_model, ray_address):
    models = {
        "defaults": {"suite": "mini", "limit": 2, "max_new_tokens": 8},
        "models": [
            "policy:refuse",
            {"model": str(tiny_model), "name": "tiny"},
            {"model": str(tiny_model), "name": "two", "workers": 2, "seed": 1},
            {"model": str(tmp_path / "none"), "name": "gone"},
        ],
    }
    (tmp_path / "models.yaml").write_text(yaml.safe_dump(models))
    process = in_session(tmp_path, "--ray-address", ray_address)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 3, err
    assert [line.split()[:2] for line in out.splitlines()[1:5]] == [
        ["policy:refuse", "done"],
        ["tiny", "done"],
        ["two", "done"],
        ["gone", "failed"],
    ]
    (why,) = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert why.startswith(f"failed: gone: Model '{tmp_path / 'none'}' is no folder")
    ranked = json.loads((tmp_path / "site" / "leaderboard.json").read_text())["runs"]
    assert sorted(run["model"] for run in ranked) == ["model", "model", "policy:refuse"]
    assert not list((tmp_path / "runs").glob("*/workers.json"))

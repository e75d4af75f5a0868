"""Workers on a real Ray: whoever dies, every sample is answered once; a sample that kills is set aside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from scripted import Script, open_after_a_death, open_ill_once, open_scripted

from bfpo_bench.cluster import Cluster, Hosting, Need, Pool, _left_by_ray_start, installed_versions
from bfpo_bench.errors import ConfigError, EngineError
from bfpo_bench.workers import alike

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """A Ray of our own, whose actors find this folder's modules."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), before)))
    try:
        with Cluster.connect() as cluster:
            yield cluster
    finally:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def told():
    return []


@pytest.fixture
def pool_of(cluster, told, tmp_path):
    """Opens a pool of scripted engines."""

    def open_pool(*, n_workers=1, opener=open_scripted, accept=lambda info: None, versions=None, room=4, **script):
        hosting = Hosting(
            opener=opener,
            spec=Script(log=tmp_path / "asked", **script),
            name="scripted",
            log=tmp_path / "engine.log",
            versions=versions or {},
        )
        return Pool(
            cluster,
            hosting,
            n_workers=n_workers,
            need=Need(cpus=0.5),
            request=lambda items, answered: {"samples": list(items.values()), "answered": set(answered)},
            id_of=lambda part: part[0],
            set_aside=lambda aside, why: (aside.id, f"set aside: {why}"),
            accept=accept,
            room=room,
            say=told.append,
        )

    return open_pool


def chunks_of(*sizes):
    for number, size in enumerate(sizes):
        ids = [f"{number}.{n}" for n in range(size)]
        yield {id_: id_ for id_ in ids}, set(ids)


def chunks_until(words, told, sizes):
    """Chunks of two samples until a line with these words was told; `sizes` is filled with the sizes of all."""
    while not any(words in line for line in told):
        number = len(sizes)
        sizes.append(2)
        ids = [f"{number}.{n}" for n in range(2)]
        yield {id_: id_ for id_ in ids}, set(ids)


def answered(parts):
    """Every answer of a pool, by sample; an answer given twice is an error."""
    pairs = [pair for some in parts for pair in some]
    assert max(Counter(id_ for id_, _ in pairs).values(), default=1) == 1
    return dict(pairs)


def asked(tmp_path):
    return Counter((tmp_path / "asked").read_text().split())


def expected(*sizes):
    return {f"{number}.{n}": f"answer to {number}.{n}" for number, size in enumerate(sizes) for n in range(size)}


def test_workers_answer_every_sample_once(pool_of, tmp_path):
    with pool_of(n_workers=2) as pool:
        assert answered(pool.answer(chunks_of(3, 3, 3, 3))) == expected(3, 3, 3, 3)
        assert (pool.info["engine"], pool.info["dtype"]) == ("scripted", "float32")
    assert set(asked(tmp_path).values()) == {1}


def test_a_pool_is_asked_again_without_loading_again_and_with_arguments_of_the_caller_s(pool_of):
    with pool_of() as pool:
        first = pool.placements[0].pid
        assert answered(pool.answer(chunks_of(1))) == {"0.0": "answer to 0.0"}
        assert answered(pool.answer(chunks_of(1), suffix="!")) == {"0.0": "answer to 0.0!"}
        assert pool.placements[0].pid == first


def test_samples_that_are_answered_go_along_and_are_not_asked(pool_of, tmp_path):
    with pool_of() as pool:
        got = answered(pool.answer(iter([({"a": "a", "b": "b"}, {"b"})])))
    assert (got, asked(tmp_path)) == ({"b": "answer to b"}, {"b": 1})


def test_an_engine_that_overlaps_takes_in_what_comes_meanwhile(pool_of, tmp_path):
    with pool_of(overlaps=True, latency_s=0.05, room=9) as pool:
        assert answered(pool.answer(chunks_of(4, 4, 4))) == expected(4, 4, 4)
    assert int((tmp_path / "most").read_text()) > 4, "the engine never had more than one chunk"


@pytest.mark.parametrize("what", ["actor", "engine"])
def test_a_worker_that_is_killed_loses_nothing(pool_of, told, what):
    with pool_of(n_workers=2, latency_s=0.05) as pool:
        actor = pool.placements[0].pid
        victim = actor if what == "actor" else engine_of(actor)
        stream = pool.answer(chunks_of(8, 8, 8, 8))
        first = next(stream)
        os.kill(victim, signal.SIGKILL)
        assert answered([first, *stream]) == expected(8, 8, 8, 8)
    assert any("which others take over" in line for line in told)


def engine_of(actor):
    """The engine's process: the actor's child that is Python."""
    children = psutil.Process(actor).children()
    return next(child.pid for child in children if "bfpo_bench.harness.process" in child.cmdline())


@pytest.mark.parametrize("overlaps", [False, True], ids=["one after another", "at once"])
def test_a_sample_that_kills_three_workers_is_set_aside_and_the_run_goes_on(pool_of, tmp_path, told, overlaps):
    with pool_of(n_workers=2, kills=frozenset({"1.2"}), overlaps=overlaps) as pool:
        got = answered(pool.answer(chunks_of(4, 4, 4)))
    assert got.pop("1.2").startswith("set aside: The engine was killed by signal 9")
    assert got == {id_: text for id_, text in expected(4, 4, 4).items() if id_ != "1.2"}
    assert asked(tmp_path)["1.2"] == 3
    assert [line for line in told if "set aside" in line] == [
        "Warning: sample 1.2 is set aside: 3 workers died while they had it"
    ]


def test_a_place_where_workers_die_of_whatever_they_are_asked_is_given_up(pool_of, told):
    """As on a device that is broken: the second worker that is opened is well, the first and its successors are not."""
    with pool_of(n_workers=2, opener=open_ill_once, latency_s=0.01, room=2) as pool:
        sizes = []
        assert answered(pool.answer(chunks_until("is given up", told, sizes))) == expected(*sizes)
    (line,) = [line for line in told if "is given up" in line]
    assert line.endswith("3 times it died before its first answer")


def test_a_sample_that_the_engine_fails_at_is_set_aside_too(pool_of):
    with pool_of(breaks={"0.1": "RuntimeError"}) as pool:
        got = answered(pool.answer(chunks_of(3)))
    assert "RuntimeError: cannot answer 0.1" in got["0.1"]
    assert (got["0.0"], got["0.2"]) == ("answer to 0.0", "answer to 0.2")


def test_a_sample_that_the_engine_passes_over_is_set_aside_too(pool_of):
    with pool_of(forgets=frozenset({"0.1"})) as pool:
        assert answered(pool.answer(chunks_of(3)))["0.1"] == "set aside: the engine left samples without an answer"


def test_what_an_engine_says_itself_ends_the_run(pool_of):
    with pytest.raises(EngineError, match=r"^cannot answer 0.1"), pool_of(breaks={"0.1": "EngineError"}) as pool:
        list(pool.answer(chunks_of(3)))


def test_a_model_that_no_worker_can_load_ends_the_run_with_its_reason(pool_of):
    with pytest.raises(EngineError, match="no such folder"):
        pool_of(n_workers=2, cannot_load="no such folder")


def test_a_worker_that_dies_while_it_loads_is_started_again(pool_of):
    with pool_of(n_workers=2, opener=open_after_a_death) as pool:
        assert answered(pool.answer(chunks_of(3, 3))) == expected(3, 3)


def test_an_engine_that_dies_of_every_chunk_ends_the_run(pool_of):
    everything = frozenset(expected(*[2] * 20))
    with pytest.raises(EngineError, match="7 workers died one after another"), pool_of(kills=everything) as pool:
        list(pool.answer(chunks_of(*[2] * 20)))


def test_an_engine_that_dies_of_every_sample_ends_the_run_and_what_was_set_aside_stays(pool_of):
    """So a resume does not begin with the same ones: eleven in a row are set aside before the run ends."""
    got = []
    ended = pytest.raises(EngineError, match="11 samples in a row ended their workers")
    with ended, pool_of(kills=frozenset(expected(14))) as pool:
        for parts in pool.answer(chunks_of(14)):
            got += parts
    assert [id_ for id_, _ in got] == [f"0.{n}" for n in range(11)]


def test_samples_that_kill_are_set_aside_also_where_nothing_else_is_left_to_ask(pool_of):
    with pool_of(kills=frozenset(["0.0", "1.0", "2.0"])) as pool:
        got = answered(pool.answer(chunks_of(1, 1, 1, 1)))
    assert got.pop("3.0") == "answer to 3.0"
    assert all(text.startswith("set aside") for text in got.values()) and len(got) == 3


def test_a_worker_that_comes_with_another_arithmetic_takes_no_part_and_the_others_go_on(pool_of, told):
    first = {}

    def accept(info):
        first.setdefault("pid", info["pid"])
        return None if info["pid"] == first["pid"] else "it is another"

    with pool_of(n_workers=2, accept=accept, latency_s=0.01) as pool:
        sizes = []
        assert answered(pool.answer(chunks_until("it is another", told, sizes))) == expected(*sizes)
        assert len(pool.placements) == 1


def test_an_engine_s_arithmetic_is_compared_with_the_first_one_s():
    gpu = {"device": "NVIDIA", "dtype": "bfloat16", "max_length": 8192}
    first = {}
    assert alike(first, gpu) is None
    assert alike(first, gpu | {"device": "another GPU"}) is None
    assert alike(first, gpu | {"dtype": "float16"}) == "its engine is another (dtype: 'bfloat16' -> 'float16')"
    assert alike(first, gpu | {"device": "cpu"}) == "its engine is another (on_cpu: False -> True)"


def test_a_worker_with_no_arithmetic_that_is_wanted_ends_the_run(pool_of):
    with pytest.raises(EngineError, match="dtype float32 is not float16"):
        pool_of(accept=lambda info: f"dtype {info['dtype']} is not float16")


def test_a_node_with_other_versions_takes_no_part(pool_of):
    with pytest.raises(EngineError, match=r"has bfpo_bench .* \(the driver 0\.0\).*Install the same on all nodes"):
        pool_of(versions={"bfpo_bench": "0.0"})


def test_versions_are_those_that_are_installed():
    assert set(installed_versions(["torch", "no-such-package"])) == {"bfpo_bench", "torch"}


# -- the connection --------------------------------------------------------------------------------------------------


def test_an_address_where_nobody_answers_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=f"No Ray cluster answers at --ray-address 127.0.0.1:{port}"):
        Cluster.connect(f"127.0.0.1:{port}")


def test_an_address_that_a_killed_ray_left_behind_is_passed_over(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
    assert _left_by_ray_start() is None
    with socket.create_server(("127.0.0.1", port)):
        assert _left_by_ray_start() == f"127.0.0.1:{port}"


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "127.0.0.1", "host:"])
def test_what_is_no_address_is_one_line(address):
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        Cluster.connect(address)


def test_a_killed_driver_leaves_no_actor_and_no_engine_within_30_seconds(tmp_path):
    """In a process of its own, which holds two workers and is killed in mid-run."""
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "driver_to_kill.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), os.environ["PYTHONPATH"]))},
        start_new_session=True,
    )
    pids = tmp_path / "pids"
    assert eventually(lambda: pids.is_file() and pids.read_text().endswith("\n"), seconds=120)
    left = {int(pid) for pid in pids.read_text().split()}
    assert len(left) >= 6, "two actors, two engines, and Ray's own"
    driver.kill()
    driver.wait()
    assert eventually(lambda: not {pid for pid in left if alive(pid)}, seconds=30)


def eventually(holds, *, seconds):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


def alive(pid):
    """Whether it runs; a zombie has ended, whoever has yet to look at it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

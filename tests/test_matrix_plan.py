"""Which job starts when, worked out by hand and held to its rule by drawn schedules; how long the rest takes."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bfpo_bench.matrix_plan import (
    AT_ONCE,
    PATIENCE,
    Job,
    Measured,
    Room,
    Row,
    Schedule,
    Start,
    duration,
    expected_seconds,
    in_order,
    pace_of,
    seconds_left,
    table,
    total,
)

NODE = Room(cpus=64, gpus=8, most_gpus=8)


def job(name, *, gpus=1.0, workers=1, gb=1, **more):
    size = None if gb is None else gb * 10**9
    return Job(name=name, gpus=gpus, workers=workers, weight_bytes=size, samples=100, **more)


def names(found):
    return [getattr(one, "job", one).name for one in found]


def started(schedule, room=NODE):
    return names(schedule.start(room))


# -- order -------------------------------------------------------------------------------------------------------------


def test_complete_ones_come_first_then_unknown_sizes_then_the_biggest():
    jobs = [job("small", gb=1), job("big", gb=140), job("unknown", gb=None), job("over", gb=70, complete=True)]
    assert names(in_order(jobs)) == ["over", "unknown", "big", "small"]


def test_size_is_bytes_times_samples():
    # 2 GB x 600 = 1200, 10 GB x 100 = 1000.
    long = Job(name="long", weight_bytes=2 * 10**9, samples=600)
    heavy = Job(name="heavy", weight_bytes=10 * 10**9, samples=100)
    assert names(in_order([heavy, long])) == ["long", "heavy"]


def test_equal_ones_start_as_they_were_listed():
    assert names(in_order([job("b"), job("a"), job("c")])) == ["b", "a", "c"]


# -- room --------------------------------------------------------------------------------------------------------------


def test_eight_gpus_are_filled_biggest_first_and_smaller_ones_go_ahead():
    # 4 + 3 = 7; the second of 4 does not fit the one that is left, the one of 1 does.
    schedule = Schedule([job("a", gpus=4, gb=140), job("b", gpus=3, gb=100), job("c", gpus=4, gb=80), job("d", gb=10)])
    assert started(schedule) == ["a", "b", "d"]
    assert names(schedule.waiting) == ["c"]
    schedule.end("b")
    assert started(schedule) == []  # 3 are free
    schedule.end("d")
    assert started(schedule) == ["c"]


def test_workers_times_gpus_are_taken():
    schedule = Schedule([job("a", workers=3, gpus=2, gb=2), job("b", workers=3), job("c", workers=2)])
    assert started(schedule) == ["a", "c"]


def test_a_job_of_more_workers_than_the_cluster_holds_gets_what_it_holds():
    (start,) = Schedule([job("a", workers=16, gpus=2)]).start(NODE)
    assert start.workers == 4


@pytest.mark.parametrize(("gpus", "share"), [(0.5, Fraction(1, 2)), (0.3, Fraction(1, 3)), (0.6, 1), (1, 1), (4, 4)])
def test_parts_of_a_gpu_are_counted_as_so_many_to_a_gpu(gpus, share):
    assert job("a", gpus=gpus).share == share


def test_three_thirds_fill_a_gpu_exactly():
    schedule = Schedule([job(name, gpus=0.33) for name in "abcd"])
    assert started(schedule, Room(cpus=64, gpus=1, most_gpus=1)) == ["a", "b", "c"]


def test_on_a_cluster_without_gpus_each_engine_takes_a_core():
    schedule = Schedule([job("a", gpus=0, workers=2, gb=2), job("b", gpus=0), job("c", gpus=0)])
    assert started(schedule, Room(cpus=3, gpus=0, most_gpus=0)) == ["a", "b"]


def test_no_more_engines_at_a_time_than_asked_for():
    schedule = Schedule([job(name) for name in "abcd"])
    assert started(schedule, Room(cpus=64, gpus=8, most_gpus=8, engines=3)) == ["a", "b", "c"]


def test_an_engine_must_fit_one_node():
    two_nodes_of_four = Room(cpus=64, gpus=8, most_gpus=4)
    schedule = Schedule([job("wide", gpus=8, gb=140), job("fits", gpus=4)])
    assert started(schedule, two_nodes_of_four) == ["fits"]
    assert two_nodes_of_four.holds(job("wide", gpus=8)) == 0


def test_a_node_that_joins_makes_room_and_one_that_leaves_takes_none_from_those_that_run():
    schedule = Schedule([job("a", gpus=4, gb=3), job("b", gpus=4, gb=2), job("c", gpus=4)])
    small, large = (Room(cpus=64, gpus=gpus, most_gpus=4) for gpus in (4, 8))
    assert started(schedule, small) == ["a"]
    assert started(schedule, large) == ["b"]
    schedule.end("a")
    assert started(schedule, small) == []
    schedule.end("b")
    assert started(schedule, small) == ["c"]


def test_models_without_weights_here_take_no_room_and_have_a_limit_of_their_own():
    others = [Job(name=f"api{i}", kind="api" if i % 2 else "policy") for i in range(AT_ONCE + 1)]
    schedule = Schedule([*others, job("a", gpus=8)])
    assert set(started(schedule)) == {"a", *(one.name for one in others[:AT_ONCE])}
    schedule.end("api0")
    assert started(schedule) == [f"api{AT_ONCE}"]


def test_on_several_nodes_smaller_engines_wait_until_a_wide_one_has_its_place():
    # Two nodes of four GPUs: with singles spread over both, an engine of four would find four free and no node.
    nodes = Room(cpus=64, gpus=8, most_gpus=4)
    schedule = Schedule([job("wide", gpus=4, gb=140), job("s1"), job("s2"), job("other", gpus=4, gb=70)])
    assert started(schedule, nodes) == ["wide", "other"]
    schedule.end("other")
    assert names(schedule.start(nodes, unplaced=["wide"])) == []
    assert names(schedule.start(nodes)) == ["s1", "s2"]
    # On one node there is nothing to wait for.
    schedule = Schedule([job("wide", gpus=4, gb=140), job("s1"), job("s2")])
    assert started(schedule) == ["wide", "s1", "s2"]


# -- patience ----------------------------------------------------------------------------------------------------------


def test_a_job_that_was_overtaken_often_has_its_room_reserved():
    # Of two GPUs one is always taken by a small job; the job of two is passed over until its patience ends.
    pair = Room(cpus=64, gpus=2, most_gpus=2)
    singles = [job(f"s{i}", gb=100) for i in range(2)] + [job(f"t{i}", gb=1) for i in range(PATIENCE + 2)]
    schedule = Schedule([*singles, job("both", gpus=2, gb=10)])
    assert started(schedule, pair) == ["s0", "s1"]
    schedule.end("s0")
    overtaking = []
    running = "s1"
    for _ in range(PATIENCE):
        (name,) = started(schedule, pair)
        overtaking.append(name)
        schedule.end(running)
        running = name
    assert overtaking == [f"t{i}" for i in range(PATIENCE)]
    # One GPU is free, and is kept so.
    assert started(schedule, pair) == []
    schedule.end(running)
    assert started(schedule, pair) == ["both"]


def test_a_job_that_no_node_can_hold_holds_up_nobody():
    schedule = Schedule([job("huge", gpus=16, gb=400), *(job(f"s{i}") for i in range(40))])
    seen = []
    while found := schedule.start(NODE):
        seen += names(found)
        for start in found:
            schedule.end(start.job.name)
    assert len(seen) == 40 and names(schedule.waiting) == ["huge"]
    assert names(schedule.give_up()) == ["huge"] and schedule.waiting == ()


JOBS = st.lists(
    st.builds(
        dict,
        gpus=st.sampled_from([0.25, 0.5, 1, 2, 4, 8, 16]),
        workers=st.integers(1, 6),
        gb=st.one_of(st.none(), st.integers(1, 200)),
        complete=st.booleans(),
    ),
    min_size=1,
    max_size=25,
).map(lambda drawn: [job(f"j{i}", **one) for i, one in enumerate(drawn)])


@settings(deadline=None)
@given(jobs=JOBS, room=st.sampled_from([NODE, Room(cpus=6, gpus=16, most_gpus=8, engines=5)]), draw=st.randoms())
def test_whatever_ends_when_room_is_never_exceeded_and_no_job_overtaken_more_often_than_allowed(jobs, room, draw):
    schedule, order = Schedule(jobs), names(in_order(jobs))
    fits = {one.name: room.holds(one) > 0 for one in jobs}
    overtaken = dict.fromkeys(order, 0)
    began: list[str] = []
    while True:
        for start in schedule.start(room):
            ahead = order[: order.index(start.job.name)]
            for name in set(ahead) - set(began):
                overtaken[name] += fits[name]
            began.append(start.job.name)
        running = schedule.running
        assert sum(start.workers * start.job.share for start in running) <= room.gpus
        assert sum(start.workers for start in running) <= min(room.cpus, room.engines or 64)
        if not running:
            break
        schedule.end(draw.choice(running).job.name)
    assert max(overtaken.values()) <= PATIENCE
    assert sorted(began) == sorted(name for name in order if fits[name])


# -- how long ----------------------------------------------------------------------------------------------------------


def test_the_rest_is_played_out_on_the_gpus_that_are_there():
    # Biggest first on two GPUs: a 0-10, b 0-4, c 4-7, d 7-9.
    jobs = [job("a", gb=4), job("b", gb=3), job("c", gb=2), job("d", gb=1)]
    seconds = {"a": 10.0, "b": 4.0, "c": 3.0, "d": 2.0}
    pair = Room(cpus=64, gpus=2, most_gpus=2)
    assert seconds_left(Schedule(jobs), pair, seconds) == 10
    assert seconds_left(Schedule(jobs), Room(cpus=64, gpus=1, most_gpus=1), seconds) == 19
    # a runs and has 1 left, b 4: c 1-4, d 4-6.
    schedule = Schedule(jobs)
    schedule.start(pair)
    assert seconds_left(schedule, pair, {**seconds, "a": 1.0}) == 6
    assert names(schedule.running) == ["a", "b"] and names(schedule.waiting) == ["c", "d"]


def test_a_small_job_beside_a_wide_one_is_counted_from_the_start():
    nodes = Room(cpus=64, gpus=8, most_gpus=4)
    assert seconds_left(Schedule([job("wide", gpus=4, gb=9), job("s")]), nodes, {"wide": 10.0, "s": 7.0}) == 10


def test_how_long_is_not_known_while_one_job_is_not():
    schedule = Schedule([job("a"), job("b")])
    assert seconds_left(schedule, NODE, {"a": 1.0, "b": None}) is None
    assert seconds_left(Schedule([job("a", gpus=16)]), NODE, {"a": 1.0}) is None
    assert seconds_left(Schedule([]), NODE, {}) == 0


def test_the_pace_is_all_seconds_over_all_work():
    # 100 samples of 2 GB in 40 s on one GPU: 200 GB; 50 of 4 GB in 30 s on two: 100 GB for each. 70 s over 300 GB.
    one = Measured(start=Start(job=job("a", gb=2), workers=1), seconds=40, answered=100)
    two = Measured(start=Start(job=job("b", gb=4), workers=2), seconds=30, answered=50)
    pace = pace_of([one, two])
    assert pace == {"weights": pytest.approx(70 / 300e9)}


def test_expected_seconds_follow_size_samples_and_gpus():
    pace = {"weights": 1e-9, "policy": 0.5}
    assert expected_seconds(Start(job=job("a", gb=2), workers=1), 300, pace) == pytest.approx(600)
    assert expected_seconds(Start(job=job("a", gb=2, gpus=2), workers=3), 300, pace) == pytest.approx(100)
    assert expected_seconds(Start(job=job("a", gb=2, gpus=0), workers=1), 300, pace) == pytest.approx(600)
    assert expected_seconds(Start(job=Job(name="p", kind="policy"), workers=1), 10, pace) == 5
    assert expected_seconds(Start(job=job("a", gb=None), workers=1), 300, pace) is None
    assert expected_seconds(Start(job=Job(name="x", kind="api"), workers=1), 300, pace) is None


def test_nothing_measured_is_no_pace():
    assert pace_of([]) == {}
    assert pace_of([Measured(start=Start(job=job("a"), workers=1), seconds=9, answered=0)]) == {}
    assert pace_of([Measured(start=Start(job=job("a", gb=None), workers=1), seconds=9, answered=5)]) == {}


# -- telling -----------------------------------------------------------------------------------------------------------


def test_the_table_shows_a_dash_for_what_was_not_measured():
    rows = [
        Row(name="a", state="generating", where="node1:0,1", answered=30, samples=340, rate=2.5, eta=124.0),
        Row(name="b", state="waiting"),
        Row(name="c", state="done", answered=340, samples=340),
    ]
    assert table(rows) == [
        ("model", "state", "where", "answered", "rate/s", "ETA"),
        ("a", "generating", "node1:0,1", "30/340", "2.5", "2 min"),
        ("b", "waiting", "-", "-/-", "-", "-"),
        ("c", "done", "-", "340/340", "-", "-"),
    ]
    assert total(rows, eta=None) == "1 of 3 done, 1 running, 1 waiting; ETA -"
    assert total(rows, eta=7380) == "1 of 3 done, 1 running, 1 waiting; ETA 2 h 03 min"


def test_the_last_line_counts_what_failed():
    rows = [Row(name="a", state="failed"), Row(name="b", state="partial"), Row(name="c", state="done")]
    assert total(rows, eta=None) == "1 of 3 done, 0 running, 0 waiting, 1 partial, 1 failed; ETA 0 s"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "-"),
        (0, "0 s"),
        (59.2, "59 s"),
        (59.6, "1 min"),
        (3540, "59 min"),
        (3599, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_durations_are_told_as_people_say_them(seconds, told):
    assert duration(seconds) == told

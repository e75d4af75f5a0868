"""Chunks: a plan that depends on the samples alone, and a queue that loses nothing and isolates what kills."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bfpo_bench.chunks import DEATHS_ALLOWED, LARGEST_CHUNK, ChunkQueue, Row, chunk_size, plan_chunks


def row(position, *, wave=0, group=("task",), characters=10, new_tokens=0, answered=False):
    return Row(
        position=position,
        wave=wave,
        group=group,
        characters=characters,
        new_tokens=new_tokens,
        answered=answered,
    )


def test_a_chunk_is_a_batch_in_a_large_run_and_small_enough_to_share_in_a_small_one():
    assert chunk_size(1_000_000) == LARGEST_CHUNK == 64
    assert chunk_size(640) == 20
    assert chunk_size(10) == 8


def test_like_samples_stand_together_longest_first():
    rows = [row(0, characters=5), row(1, characters=90, group=("other",)), row(2, characters=70), row(3, characters=70)]
    (wave,) = plan_chunks(rows)
    assert [list(chunk.positions) for chunk in wave] == [[1], [2, 3, 0]]


def test_the_most_expensive_chunk_a_sample_goes_first():
    # 400 characters are 100 tokens to read; 100 new tokens cost five times as much.
    rows = [row(0, characters=400, group=("read",)), row(1, characters=400, group=("write",), new_tokens=100)]
    (wave,) = plan_chunks(rows)
    assert [(list(chunk.positions), chunk.cost) for chunk in wave] == [([1], 600), ([0], 100)]


def test_later_turns_are_a_wave_of_their_own():
    waves = plan_chunks([row(0), row(1, wave=1), row(2), row(3, wave=1)])
    assert [[sorted(chunk.positions) for chunk in wave] for wave in waves] == [[[0, 2]], [[1, 3]]]


def test_a_resume_meets_the_same_chunks_without_those_that_are_answered_whole():
    rows = [row(n, characters=1000 - n) for n in range(20)]
    (begun,) = plan_chunks(rows)
    assert [list(chunk.positions) for chunk in begun] == [[*range(8)], [*range(8, 16)], [*range(16, 20)]]
    answered = {*range(8), 9, 17}
    (resumed,) = plan_chunks([row(r.position, characters=r.characters, answered=r.position in answered) for r in rows])
    assert [list(chunk.positions) for chunk in resumed] == [[*range(8, 16)], [*range(16, 20)]]


def test_a_run_that_is_answered_has_nothing_to_plan():
    assert plan_chunks([row(0, answered=True), row(1, answered=True)]) == []


# -- the queue -------------------------------------------------------------------------------------------------------


def chunks_of(*sizes):
    """Chunks of samples named by chunk and number, all of them awaited."""
    for number, size in enumerate(sizes):
        ids = [f"{number}.{n}" for n in range(size)]
        yield dict.fromkeys(ids, "prompt"), set(ids)


def test_a_chunk_goes_to_one_worker_and_the_next_to_another():
    queue = ChunkQueue(chunks_of(2, 2), room=1)
    assert list(queue.take("a").items) == ["0.0", "0.1"]
    assert list(queue.take("b").items) == ["1.0", "1.1"]
    assert queue.take("c") is None


def test_a_worker_has_as_many_samples_as_it_has_room_for():
    queue = ChunkQueue(chunks_of(3, 3, 3), room=4)
    assert queue.take("a") is not None
    assert queue.take("a") is not None, "three of four: there is room"
    assert queue.take("a") is None
    queue.answered("a", ["0.0", "0.1", "0.2"])
    assert queue.take("a") is not None


def test_what_a_worker_answers_counts_once_and_only_if_it_was_asked():
    queue = ChunkQueue(chunks_of(2), room=9)
    queue.take("a")
    assert queue.answered("a", ["0.0", "0.0", "elsewhere"]) == ["0.0"]
    assert queue.answered("b", ["0.1"]) == []
    assert queue.holds("a") == 1


def test_chunks_are_read_only_as_far_as_there_is_room():
    read = []

    def chunks():
        for n in range(100):
            read.append(n)
            yield {str(n): "prompt"}, {str(n)}

    queue = ChunkQueue(chunks(), room=1)
    queue.take("a")
    queue.take("b")
    assert read == [0, 1]


def test_a_dead_worker_s_chunk_is_given_to_another_as_it_was():
    queue = ChunkQueue(chunks_of(3), room=9)
    queue.take("a")
    queue.answered("a", ["0.1"])
    assert queue.lost("a") == []
    again = queue.take("b")
    assert (list(again.items), again.awaited) == (["0.0", "0.1", "0.2"], {"0.0", "0.2"})


def test_a_chunk_that_a_worker_died_of_has_the_next_one_to_itself():
    queue = ChunkQueue(chunks_of(1, 1, 1), room=9)
    queue.take("a")
    queue.lost("a")
    assert "1.0" in queue.take("b").items, "what nobody died of goes first"
    assert "2.0" in queue.take("b").items
    assert queue.take("b") is None, "the suspect waits until it is alone"
    queue.answered("b", ["1.0", "2.0"])
    assert "0.0" in queue.take("b").items
    assert queue.take("b") is None


def test_of_chunks_asked_one_after_another_only_the_first_is_under_suspicion():
    queue = ChunkQueue(chunks_of(1, 1), room=9)
    queue.take("a"), queue.take("a")
    queue.lost("a")
    assert [queue.take("b").deaths, queue.take("c").deaths] == [0, 1]


def test_of_chunks_asked_together_all_are_under_suspicion():
    queue = ChunkQueue(chunks_of(1, 1), room=9, overlaps=True)
    queue.take("a"), queue.take("a")
    queue.lost("a")
    assert [queue.take("b").deaths, queue.take("c").deaths] == [1, 1]


def test_the_sample_that_three_workers_die_of_is_set_aside_and_no_other():
    queue = ChunkQueue(chunks_of(5), room=9)
    queue.take("a")
    assert queue.lost("a") == []
    queue.take("b")
    queue.answered("b", ["0.0"])
    assert queue.lost("b") == []
    aside = []
    for worker in map(str, range(4)):
        (only,) = queue.take(worker).items
        if only == "0.3":
            aside += queue.lost(worker)
        else:
            queue.answered(worker, [only])
    assert [(each.id, each.item, each.deaths) for each in aside] == [("0.3", "prompt", 3)]
    assert queue.finished


def test_a_sample_alone_in_its_chunk_is_tried_three_times_too():
    queue = ChunkQueue(chunks_of(1), room=9)
    asides = []
    for worker in "abc":
        assert queue.take(worker) is not None
        asides.append([each.id for each in queue.lost(worker)])
    assert asides == [[], [], ["0.0"]]


def test_a_node_that_goes_away_accuses_nobody():
    queue = ChunkQueue(chunks_of(2), room=9)
    for worker in "abcdefgh":
        assert queue.take(worker).deaths == 0
        assert queue.lost(worker, blame=False) == []


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.sets(st.integers(0, 30), max_size=3),
    st.integers(1, 30),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_whoever_dies_every_sample_is_answered_once_or_has_killed_three(sizes, poison, room, overlaps, random):
    ids = [f"{number}.{n}" for number, size in enumerate(sizes) for n in range(size)]
    poisonous = {ids[n] for n in poison if n < len(ids)}
    queue = ChunkQueue(chunks_of(*sizes), room=room, overlaps=overlaps)
    answered, deaths, aside, holds = Counter(), Counter(), [], {}
    life = 0
    alive = [f"w{n}" for n in range(3)]
    while not queue.finished:
        for worker in alive:
            while (chunk := queue.take(worker)) is not None:
                holds.setdefault(worker, []).append(chunk)
        worker = random.choice(alive)
        asked = [id_ for chunk in holds.get(worker, []) for id_ in chunk.items if id_ in chunk.awaited]
        if not asked:
            continue
        next_one = random.choice(asked) if overlaps else asked[0]
        if next_one in poisonous:
            deaths[next_one] += 1
            aside += queue.lost(worker)
            holds.pop(worker)
            life += 1
            alive[alive.index(worker)] = f"again{life}"
        else:
            answered.update(queue.answered(worker, [next_one]))
    assert {each.id for each in aside} == poisonous
    assert all(each.deaths == DEATHS_ALLOWED for each in aside)
    assert answered == Counter({id_: 1 for id_ in ids if id_ not in poisonous})


def test_an_empty_run_is_finished():
    assert ChunkQueue(iter([]), room=1).finished


@pytest.mark.parametrize("awaited", [set(), {"a"}], ids=["none", "one"])
def test_a_chunk_of_which_nothing_is_awaited_is_not_handed_out(awaited):
    queue = ChunkQueue(iter([({"a": 1, "b": 2}, awaited)]), room=1)
    assert (queue.take("w") is None) == (not awaited)

"""The rows of every step: each once a pass, the buffer through its own passes, whatever was asked before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from torch.utils.data import DataLoader

from bfpo_bench.trainers.layout import TokenPair
from bfpo_bench.trainers.order import BufferedOrder, FixedOrder


def rows(n, name="row"):
    ids = np.array([5, 6], dtype=np.int32)
    one = TokenPair(
        prompt=ids,
        chosen=ids,
        rejected=ids[::-1],
        chosen_safe=1.0,
        rejected_safe=0.0,
        safety_preference=1.0,
        source="s",
        row="",
    )
    return [replace(one, row=f"{name}:{index}") for index in range(n)]


def epoch(order, number):
    order.set_epoch(number)
    return [tuple(row.row for row in order[place]) for place in range(len(order))]


def stream(order, epochs, *, part):
    """The names of one part over many epochs, in the order of the steps."""
    return [names[part] for number in range(epochs) for names in epoch(order, number)]


# -- one set -----------------------------------------------------------------------------------------------------------


def test_every_row_comes_once_an_epoch_in_another_order_each_time():
    order = BufferedOrder(rows(20), seed=0)
    first, second = epoch(order, 0), epoch(order, 1)
    assert len(order) == 20
    assert sorted(first) == sorted(second) == sorted((f"row:{n}",) for n in range(20))
    assert first != second and first != sorted(first)


def test_without_a_buffer_a_place_holds_one_row():
    assert {len(names) for names in epoch(BufferedOrder(rows(3), seed=0), 0)} == {1}


# -- the buffer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_buffer", [1, 3, 7, 10, 25], ids=lambda n: f"buffer of {n}")
def test_each_row_of_the_buffer_comes_exactly_once_a_pass_across_epochs(n_buffer):
    """A set of 10 and 5 epochs draw 50 rows of the buffer: 50 // n passes are whole, the rest is of the next one."""
    order = BufferedOrder(rows(10), buffer=rows(n_buffer, "buffer"), seed=0)
    drawn = stream(order, 5, part=1)
    assert len(drawn) == 50
    passes = [drawn[start : start + n_buffer] for start in range(0, 50, n_buffer)]
    for one in passes:
        assert len(set(one)) == len(one)
    assert all(set(one) == {f"buffer:{n}" for n in range(n_buffer)} for one in passes[: 50 // n_buffer])


def test_a_larger_buffer_goes_on_where_the_last_epoch_stopped():
    """Of 25 rows, epochs of 10 take 10, 10, and 5 of the first pass; then come 5 of a new one."""
    order = BufferedOrder(rows(10), buffer=rows(25, "buffer"), seed=0)
    drawn = stream(order, 3, part=1)
    assert not set(drawn[:10]) & set(drawn[10:20])
    assert set(drawn[:25]) == {f"buffer:{n}" for n in range(25)}
    assert max(Counter(drawn).values()) == 2


def test_passes_of_a_smaller_buffer_are_shuffled_anew():
    order = BufferedOrder(rows(40), buffer=rows(8, "buffer"), seed=0)
    drawn = stream(order, 1, part=1)
    assert len({tuple(drawn[start : start + 8]) for start in range(0, 40, 8)}) == 5


def test_the_buffer_leaves_the_order_of_the_first_set_as_it_is():
    alone, beside = BufferedOrder(rows(12), seed=3), BufferedOrder(rows(12), buffer=rows(5, "buffer"), seed=3)
    assert stream(alone, 3, part=0) == stream(beside, 3, part=0)


def test_two_sets_of_one_size_are_not_shuffled_alike():
    order = BufferedOrder(rows(30), buffer=rows(30, "row"), seed=0)
    assert stream(order, 1, part=0) != stream(order, 1, part=1)


# -- a function of seed, epoch and place -------------------------------------------------------------------------------


def test_a_place_holds_the_same_rows_whatever_was_asked_before():
    """What a resumed run, a second process and a worker of the loader rely on: none of them starts at the beginning."""

    def order():
        return BufferedOrder(rows(10), buffer=rows(7, "buffer"), seed=5)

    whole = [epoch(order(), number) for number in range(4)]
    jumping = order()
    for number, place in [(3, 9), (0, 0), (3, 2), (1, 9), (2, 5), (1, 0), (0, 9)]:
        jumping.set_epoch(number)
        assert tuple(row.row for row in jumping[place]) == whole[number][place]
    backwards = order()
    backwards.set_epoch(2)
    assert [tuple(r.row for r in backwards[place]) for place in reversed(range(10))] == whole[2][::-1]


def test_one_epoch_set_twice_is_one_order():
    order = BufferedOrder(rows(10), buffer=rows(7, "buffer"), seed=5)
    before = epoch(order, 1)
    epoch(order, 0)
    assert epoch(order, 1) == before


def test_a_seed_is_an_order_of_its_own():
    def drawn(seed, part):
        return stream(BufferedOrder(rows(20), buffer=rows(20, "buffer"), seed=seed), 1, part=part)

    assert drawn(0, 0) == drawn(0, 0) and drawn(0, 1) == drawn(0, 1)
    for part in (0, 1):
        assert len({tuple(drawn(seed, part)) for seed in range(5)}) == 5


def test_the_streams_of_near_seeds_are_not_one_anothers():
    """Were the buffer's stream of seed n the rows' of seed n + 1, runs over several seeds would not be independent."""
    passes = set()
    for seed in range(4):
        order = BufferedOrder(rows(12), buffer=rows(12, "row"), seed=seed)
        for number in range(3):
            passes |= {(part, *(names[part] for names in epoch(order, number))) for part in (0, 1)}
    assert len({one[1:] for one in passes}) == 4 * 3 * 2


def test_a_place_behind_the_end_is_no_row():
    """Sequence's way to say where iteration ends; a row of another epoch there would be trained on twice."""
    with pytest.raises(IndexError):
        BufferedOrder(rows(3), buffer=rows(2, "buffer"), seed=0)[3]


def test_worker_processes_of_a_loader_give_the_same_order():
    order = BufferedOrder(rows(6), buffer=rows(4, "buffer"), seed=0)
    order.set_epoch(1)
    expected = [[row.row for row in order[place]] for place in range(6)]
    order.set_epoch(0)
    loader = DataLoader(order, batch_size=1, num_workers=1, collate_fn=lambda items: [row.row for row in items[0]])
    order.set_epoch(1)
    assert list(loader) == expected


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_evaluation_has_every_row_once_in_the_order_given():
    order = FixedOrder(rows(5))
    assert len(order) == 5
    assert [(row.row, row.counted) for (row,) in (order[n] for n in range(5))] == [(f"row:{n}", True) for n in range(5)]


@pytest.mark.parametrize(("n", "whole", "filled"), [(5, 4, 8), (8, 4, 8), (1, 6, 6), (3, 1, 3)])
def test_what_fills_the_last_batch_is_not_counted(n, whole, filled):
    order = FixedOrder(rows(n), whole=whole)
    found = [order[place][0] for place in range(len(order))]
    assert len(found) == filled
    assert [row.row for row in found if row.counted] == [f"row:{index}" for index in range(n)]
    assert [row.row for row in found if not row.counted] == ["row:0"] * (filled - n)

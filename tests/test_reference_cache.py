"""The reference's log-probabilities: computed once, found again by what they depend on, and by nothing else."""

from __future__ import annotations

import json
import sqlite3
import threading
from dataclasses import replace

import numpy as np
import pytest

from bfpo_bench.errors import ConfigError, TrainingError
from bfpo_bench.trainers.layout import TokenPair
from bfpo_bench.trainers.reference import Share, cache_folder, row_hash, with_reference


def row(index, *, length=3):
    ids = np.arange(length, dtype=np.int32) + 10 * index
    return TokenPair(
        prompt=ids,
        chosen=ids + 1,
        rejected=ids + 2,
        chosen_safe=1.0,
        rejected_safe=0.0,
        safety_preference=1.0,
        source="s",
        row=f"s:{index}",
    )


ROWS = [row(index) for index in range(7)]


def log_probs_of(one):
    """Known of the ids alone, and of no float32."""
    return (-float(one.chosen.sum()) / 3, -float(one.rejected.sum()) / 7)


EXPECTED = [log_probs_of(one) for one in ROWS]


class Model:
    """Counts what it is asked for; breaks off after `fails_after` batches, adds `off` to all that it says."""

    def __init__(self, *, fails_after=None, off=0.0):
        self.asked, self.batches, self.fails_after, self.off = [], 0, fails_after, off

    def __call__(self, rows):
        if self.batches == self.fails_after:
            raise KeyboardInterrupt
        self.batches += 1
        self.asked += [one.row for one in rows]
        return np.array([log_probs_of(one) for one in rows]) + self.off


def filled(folder, model, rows=ROWS, *, batch=2, share=None, precision="float32", progress=lambda n: None):
    return with_reference(
        rows, folder=folder, compute=model, batch=batch, precision=precision, share=share or Share(), progress=progress
    )


# -- once --------------------------------------------------------------------------------------------------------------


def test_every_row_is_computed_once_in_batches(tmp_path):
    model, told = Model(), []
    assert filled(tmp_path, model, batch=3, progress=told.append) == EXPECTED
    assert model.asked == [one.row for one in ROWS] and model.batches == 3
    assert told == [0, 3, 3, 1]


def test_a_second_run_computes_two_rows_to_compare_and_no_more(tmp_path):
    filled(tmp_path, Model())
    model, told = Model(), []
    assert filled(tmp_path, model, progress=told.append) == EXPECTED
    assert model.asked == ["s:0", "s:1"] and told == [7]


def test_a_run_on_fewer_rows_and_one_on_more_share_what_there_is(tmp_path):
    filled(tmp_path, Model(), ROWS[:4])
    fewer, more = Model(), Model()
    assert filled(tmp_path, fewer, ROWS[2:4]) == EXPECTED[2:4]
    assert fewer.asked == ["s:2", "s:3"]
    assert filled(tmp_path, more, ROWS[::-1]) == EXPECTED[::-1]
    assert sorted(more.asked) == ["s:2", "s:3", "s:4", "s:5", "s:6"]  # the first two there are, and the missing


def test_values_come_back_to_the_last_bit(tmp_path):
    filled(tmp_path, Model())
    assert filled(tmp_path, Model()) == EXPECTED
    assert any(value != float(np.float32(value)) for pair in EXPECTED for value in pair)


def test_no_rows_need_no_model(tmp_path):
    model = Model()
    assert filled(tmp_path, model, []) == [] and model.batches == 0


# -- what a row is -----------------------------------------------------------------------------------------------------


def test_rows_of_equal_ids_are_one_row(tmp_path):
    twin = replace(ROWS[0], row="t:1", source="t", chosen_safe=0.0, safety_preference=-1.0, n_cut=1, margin=3.0)
    model = Model()
    assert filled(tmp_path, model, [ROWS[0], twin, ROWS[1], ROWS[0]]) == [EXPECTED[n] for n in (0, 0, 1, 0)]
    assert len(model.asked) == 2


@pytest.mark.parametrize("part", ["prompt", "chosen", "rejected"])
def test_a_row_is_another_by_any_of_its_ids(part):
    other = replace(ROWS[0], **{part: getattr(ROWS[0], part) + 1})
    assert row_hash(other) != row_hash(ROWS[0])


def test_where_one_part_ends_and_the_next_begins_belongs_to_a_row():
    def cut(first, second):
        ids = np.arange(9, dtype=np.int32)
        return row_hash(replace(ROWS[0], prompt=ids[:first], chosen=ids[first:second], rejected=ids[second:]))

    assert len({cut(3, 6), cut(4, 6), cut(3, 7), cut(2, 6)}) == 4


def test_a_hash_is_of_the_numbers_not_of_how_they_are_held():
    wide = replace(ROWS[0], **{part: getattr(ROWS[0], part).astype(">i8") for part in ("prompt", "chosen", "rejected")})
    assert row_hash(wide) == row_hash(ROWS[0])


def test_exchanged_answers_are_another_row():
    assert row_hash(replace(ROWS[0], chosen=ROWS[0].rejected, rejected=ROWS[0].chosen)) != row_hash(ROWS[0])


# -- after a kill ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [0, 1, 2, 3])
def test_a_killed_pass_goes_on_where_it_was(tmp_path, batches):
    first, second = Model(fails_after=batches), Model()
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, first)
    assert filled(tmp_path, second) == EXPECTED
    compared = first.asked[:2]
    assert first.asked + second.asked == [*first.asked, *compared, *[f"s:{n}" for n in range(2 * batches, 7)]]


def test_a_file_that_a_kill_left_without_its_table_is_filled(tmp_path):
    (tmp_path / "rank-0.sqlite").touch()
    assert filled(tmp_path, Model()) == EXPECTED


# -- several processes -------------------------------------------------------------------------------------------------


def together(folder, n, *, rows=ROWS, models=None, told=None):
    """`n` processes at once, as threads that wait for one another."""
    barrier = threading.Barrier(n, timeout=20)
    models = models or [Model() for _ in range(n)]
    found = [None] * n

    def work(rank):
        share = Share(rank=rank, of=n, wait=barrier.wait)
        first = told.append if told is not None and rank == 0 else lambda n: None
        found[rank] = filled(folder, models[rank], rows, share=share, progress=first)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, models


def test_the_first_process_counts_for_all_and_never_more_than_there_are(tmp_path):
    # Of 7 rows the first of two has 4, in batches of 2: 4 of both, and 3 are left, not 4.
    told = []
    together(tmp_path, 2, told=told)
    assert told == [0, 4, 3]


@pytest.mark.parametrize("n", [2, 3])
def test_processes_share_the_rows_and_all_have_every_value(tmp_path, n):
    found, models = together(tmp_path, n)
    assert found == [EXPECTED] * n
    asked = [name for model in models for name in model.asked]
    assert sorted(asked) == [one.row for one in ROWS]
    assert max(len(model.asked) for model in models) - min(len(model.asked) for model in models) <= 1


def test_more_processes_than_rows_are_no_trouble(tmp_path):
    found, models = together(tmp_path, 3, rows=ROWS[:2])
    assert found == [EXPECTED[:2]] * 3
    assert [model.asked for model in models] == [["s:0"], ["s:1"], []]


def test_one_process_finds_what_two_left(tmp_path):
    together(tmp_path, 2)
    model = Model()
    assert filled(tmp_path, model) == EXPECTED
    assert len(model.asked) == 2


def test_two_processes_find_what_one_left_and_share_the_rest(tmp_path):
    filled(tmp_path, Model(), ROWS[:3])
    found, models = together(tmp_path, 2)
    assert found == [EXPECTED] * 2
    new = [name for model in models for name in model.asked[2:]]
    assert sorted(new) == ["s:3", "s:4", "s:5", "s:6"]


# -- the key -----------------------------------------------------------------------------------------------------------

KEY = {"model": "weights:1", "dtype": "float32", "layout": "packed", "packages": {"torch": "1"}}


def test_a_folder_belongs_to_everything_that_the_values_depend_on(tmp_path):
    other = [
        {**KEY, "model": "weights:2"},
        {**KEY, "dtype": "bfloat16"},
        {**KEY, "layout": "padded"},
        {**KEY, "packages": {"torch": "2"}},
    ]
    folders = {cache_folder(tmp_path, key) for key in [KEY, *other]}
    assert len(folders) == 5
    assert cache_folder(tmp_path, dict(reversed(KEY.items()))) == cache_folder(tmp_path, KEY)


def test_a_folder_says_what_its_values_depend_on(tmp_path):
    folder = cache_folder(tmp_path / "not" / "there", KEY)
    told = json.loads((folder / "key.json").read_text())
    assert {name: told[name] for name in KEY} == KEY and "version" in told


# -- what is not to be trusted -----------------------------------------------------------------------------------------


def stored_with(folder, *, off):
    filled(folder, Model(off=off))


@pytest.mark.parametrize(("precision", "off"), [("float32", 0.004), ("bfloat16", 0.4), ("float32", 1e6)])
def test_stored_values_that_the_model_does_not_give_are_refused(tmp_path, precision, off):
    """Answers of three tokens: .004 off is .0013 a token, more than float32's rounding."""
    stored_with(tmp_path, off=off)
    with pytest.raises(ConfigError, match=r"nats a token away.*delete the folder") as caught:
        filled(tmp_path, Model(), precision=precision)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("precision", "off"), [("float32", 0.002), ("bfloat16", 0.2)])
def test_rounding_is_not_taken_for_another_model(tmp_path, precision, off):
    """.002 over three tokens are .0007 each; the stored values stay what they are."""
    stored_with(tmp_path, off=off)
    found = filled(tmp_path, Model(), precision=precision)
    assert found == [(chosen + off, rejected + off) for chosen, rejected in EXPECTED]


def test_a_model_that_now_gives_no_number_is_refused(tmp_path):
    """NaN is less than no tolerance and greater than none."""
    filled(tmp_path, Model())
    with pytest.raises(ConfigError, match="nats a token away"):
        filled(tmp_path, Model(off=float("nan")))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_reference_without_a_number_is_told_by_its_row_and_not_stored(tmp_path, value):
    def compute(rows):
        return np.array([[value, -1.0] if one.row == "s:3" else log_probs_of(one) for one in rows])

    with pytest.raises(TrainingError, match="row s:3 are not finite"):
        filled(tmp_path, compute)
    model = Model()
    assert filled(tmp_path, model) == EXPECTED
    assert model.asked[2:] == [f"s:{n}" for n in range(2, 7)]


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough for one" * 40, b"SQLite format 3\0" + b"\xff" * 4096]
)
def test_a_damaged_file_is_one_line_that_says_what_to_do(tmp_path, content):
    filled(tmp_path, Model())
    file = tmp_path / "rank-0.sqlite"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot be read.*delete it, it is made again") as caught:
        filled(tmp_path, Model())
    assert "rank-0.sqlite" in str(caught.value) and "\n" not in str(caught.value)
    file.unlink()
    assert filled(tmp_path, Model()) == EXPECTED


def test_a_file_whose_tail_is_gone_is_one_line(tmp_path):
    many = [row(index, length=2 + index % 5) for index in range(300)]
    filled(tmp_path, Model(), many, batch=300)
    file = tmp_path / "rank-0.sqlite"
    file.write_bytes(file.read_bytes()[:8192])
    with pytest.raises(ConfigError, match="cannot be read"):
        filled(tmp_path, Model(), many)


def test_a_file_of_another_shape_is_one_line(tmp_path):
    with sqlite3.connect(tmp_path / "rank-0.sqlite") as connection:
        connection.execute("CREATE TABLE log_probs (row TEXT, chosen REAL)")
    connection.close()
    with pytest.raises(ConfigError, match="cannot be read"):
        filled(tmp_path, Model())

"""What workers are asked of a run: each chunk from the store when it is wanted, none that is answered."""

from __future__ import annotations

import pytest

from bfpo_bench.store import RunStore
from bfpo_bench.types import Message, Output, Sample
from bfpo_bench.workers import answers

MANIFEST = {"schema": 2, "identity": {"seed": 0}}


class Asked:
    """A pool that answers at once and keeps what it was asked; it stops behind `most` chunks."""

    def __init__(self, *, most: int = 1000, silent=()) -> None:
        self.chunks, self.arguments, self._most, self._silent = [], [], most, set(silent)

    def answer(self, chunks, **arguments):
        for samples, awaited in chunks:
            if len(self.chunks) == self._most:
                return
            self.chunks.append((list(samples.values()), set(awaited)))
            self.arguments.append(arguments)
            yield [
                Output(sample_id=id_, failure="rejected")
                if id_ in self._silent
                else Output(sample_id=id_, text=f"to {id_}")
                for id_ in samples
                if id_ in awaited
            ]


def sample(id_, **fields):
    values = {"prompt": f"prompt of {id_}", "generation": {"max_gen_toks": 8, "until": []}, "task": "task", "index": 0}
    return Sample(id=id_, **(values | fields))


@pytest.fixture
def store_of(tmp_path):
    stores = []

    def build(samples):
        store = RunStore.create_or_resume(tmp_path / f"run{len(stores)}", MANIFEST)
        stores.append(store)
        store.add_samples(samples)
        return store

    yield build
    for store in stores:
        store.close()


def commit(store, pool, **options):
    for outputs in answers(store, pool, **options):
        store.add_outputs(outputs)


def ids(chunk):
    return [sample.id for sample in chunk[0]]


def test_every_sample_is_asked_once_in_chunks_of_its_like(store_of):
    store, pool = store_of([sample(f"{n:02}", task="ab"[n % 2]) for n in range(20)]), Asked()
    commit(store, pool)
    assert [ids(chunk) for chunk in pool.chunks] == [
        [f"{n:02}" for n in range(0, 16, 2)],
        [f"{n:02}" for n in range(1, 16, 2)],
        ["16", "18"],
        ["17", "19"],
    ]
    assert store.n_unanswered() == 0


def test_a_resume_asks_no_chunk_that_was_committed_and_the_others_as_they_were(store_of):
    samples = [sample(f"{n:02}", prompt="x" * (40 - n)) for n in range(24)]
    store, begun = store_of(samples), Asked(most=2)
    commit(store, begun)
    store.add_outputs([Output(sample_id="20", text="of a chunk that was cut off")])
    resumed = Asked()
    commit(store, resumed)
    whole = Asked()
    commit(store_of(samples), whole)
    assert [ids(chunk) for chunk in begun.chunks + resumed.chunks] == [ids(chunk) for chunk in whole.chunks]
    assert resumed.chunks[0][1] == {f"{n}" for n in range(16, 24)} - {"20"}


def test_a_later_turn_is_asked_with_what_was_said_before_once_that_is_committed(store_of):
    samples = [
        sample("a1", messages=(Message(role="user", content="first"),)),
        sample("a2", messages=(Message(role="user", content="second"),), previous="a1"),
        sample("a3", messages=(Message(role="user", content="third"),), previous="a2"),
    ]
    store, pool = store_of(samples), Asked()
    commit(store, pool)
    assert [ids(chunk) for chunk in pool.chunks] == [["a1"], ["a2"], ["a3"]]
    assert [(m.role, m.content) for m in pool.chunks[2][0][0].messages] == [
        ("user", "first"),
        ("assistant", "to a1"),
        ("user", "second"),
        ("assistant", "to a2"),
        ("user", "third"),
    ]


def test_a_turn_whose_previous_one_failed_is_told_and_not_asked(store_of):
    samples = [sample("a1"), sample("a2", previous="a1"), sample("b1"), sample("b2", previous="b1")]
    store, pool = store_of(samples), Asked(silent=["a1"])
    commit(store, pool)
    assert [ids(chunk) for chunk in pool.chunks] == [["a1", "b1"], ["b2"]]
    found = store.outputs()["a2"]
    assert (found.failure, found.detail) == ("no_previous_turn", "sample a1 has no answer")


def test_each_request_names_the_adapter_that_is_to_answer(store_of):
    pool = Asked()
    commit(store_of([sample("a")]), pool, adapter="one")
    assert pool.arguments == [{"adapter": "one"}]


def test_a_row_that_holds_no_number_is_asked_like_any_other(store_of):
    store, pool = store_of([sample("a", meta={"score": float("nan")})]), Asked()
    commit(store, pool)
    assert [ids(chunk) for chunk in pool.chunks] == [["a"]]


def test_samples_are_read_when_they_are_asked_for_and_not_before(store_of, monkeypatch):
    store = store_of([sample(f"{n:03}") for n in range(64)])
    read = []
    monkeypatch.setattr(store, "samples_in", lambda rows, its=store.samples_in: (read.append(len(rows)), its(rows))[1])
    stream = answers(store, Asked())
    next(stream)
    assert read == [8]


@pytest.mark.parametrize(
    ("prompt", "messages", "found"),
    [
        ("plain", (), False),
        ('["system", "is only said"]', (Message(role="user", content='["system", ""]'),), False),
        ("spoken", (Message(role="system", content="be brief"), Message(role="user", content="hi")), True),
    ],
    ids=["no messages", "in a text", "in a role"],
)
def test_a_system_message_is_one_by_its_role(store_of, prompt, messages, found):
    assert store_of([sample("a", prompt=prompt, messages=messages)]).has_system_messages() is found

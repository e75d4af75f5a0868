"""Statistics of training pairs, prompts in two splits, labels that a method needs: counted by hand."""

from __future__ import annotations

import pytest

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.checks import (
    Lengths,
    Overlap,
    describe,
    require_labels,
    safer_answer,
    split_overlap,
    statistics,
)
from bfpo_bench.trainers.records import PreferencePair
from bfpo_bench.types import Message


def pair(prompt="p", chosen="yes", rejected="no", labels=(True, True), safer=None, source="a", row="a:1"):
    return PreferencePair(
        prompt=(Message(role="user", content=prompt),),
        chosen=chosen,
        rejected=rejected,
        chosen_safe=labels[0],
        rejected_safe=labels[1],
        safer=safer,
        source=source,
        row=row,
    )


@pytest.mark.parametrize(
    "labels, stated, expected",
    [
        ((True, False), None, "chosen"),
        ((False, True), None, "rejected"),
        ((True, True), None, None),
        ((None, None), None, None),
        ((False, False), "rejected", "rejected"),
        ((True, False), "rejected", "rejected"),
    ],
    ids=["labels", "labels, conflict", "both safe", "no labels", "of two unsafe ones", "the word before the labels"],
)
def test_the_safer_answer_is_the_publishers_before_the_labels(labels, stated, expected):
    assert safer_answer(pair(labels=labels, safer=stated)) == expected


def test_pairs_are_counted_by_safety_combination_and_source():
    rows = [pair("1"), pair("2"), pair("3", labels=(True, False)), pair("4", labels=(None, None), source="b")]
    found = statistics(rows)
    assert found.n == 4
    assert found.combinations == {(True, True): 2, (True, False): 1, (None, None): 1}
    assert found.sources == {"a": 3, "b": 1}


def test_a_conflict_is_a_pair_whose_less_helpful_answer_is_the_safer_one():
    rows = [
        pair("1", labels=(True, False)),
        pair("2", labels=(False, True)),
        pair("3", labels=(False, False), safer="rejected"),
        pair("4", labels=(True, True)),
    ]
    found = statistics(rows)
    assert (found.n_conflicts, found.n_safer_known) == (2, 3)
    assert "less safe one in 2 of 3 pairs with a safer answer (66.7 %)" in "\n".join(describe(found))


def test_repeated_and_contradicting_pairs_are_counted_once_each():
    rows = [pair("1"), pair("1"), pair("1"), pair("1", chosen="no", rejected="yes"), pair("2")]
    found = statistics(rows)
    assert (found.n_repeated, found.n_contradicting) == (2, 1)


def test_lengths_are_nearest_rank_quantiles():
    rows = [pair("x" * n, row=f"a:{n}") for n in range(1, 201)]
    found = statistics(rows, lengths={"prompt": [2 * n for n in range(1, 201)]}, n_truncated=3)
    assert found.characters["prompt"] == Lengths(median=100, p99=198, longest=200)
    assert found.characters["chosen"] == Lengths(median=3, p99=3, longest=3)
    assert found.tokens == {"prompt": Lengths(median=200, p99=396, longest=400)}
    assert "3 of 200 have an answer that is cut" in describe(found)


def test_lengths_that_nobody_counted_are_unknown_and_not_zero():
    found = statistics([pair()])
    assert found.tokens is None and found.n_truncated is None
    assert not any("tokens" in line or "cut" in line for line in describe(found))


def test_lengths_of_other_rows_are_an_error():
    with pytest.raises(ValueError, match="2 lengths of prompt for 1 rows"):
        statistics([pair()], lengths={"prompt": [1, 2]})


def test_the_description_reads_from_top_to_bottom():
    rows = [pair("1", labels=(False, True)), pair("22", labels=(True, True)), pair("22", labels=(True, True))]
    assert describe(statistics(rows)) == [
        "3 pairs: 3 a",
        "chosen > rejected: 2 safe > safe, 1 unsafe > safe",
        "the more helpful answer is the less safe one in 1 of 1 pairs with a safer answer (100.0 %)",
        "1 repeat an earlier pair",
        "characters (median, 99 %, longest): prompt 2, 2, 2; chosen 3, 3, 3; rejected 2, 2, 2",
    ]


def test_no_pairs_are_described_as_such():
    assert describe(statistics([])) == ["no pairs"]


def test_a_prompt_in_both_splits_is_told_with_a_row_of_each():
    train = [pair("a", row="t:1"), pair("b", row="t:2"), pair("b", chosen="other", row="t:3")]
    evaluation = [pair("c", row="e:1"), pair(" b\n", chosen="another", row="e:2")]
    assert split_overlap(train, evaluation) == (Overlap(train="t:2", evaluation="e:2"),)


def test_the_same_last_question_after_another_history_is_another_prompt():
    history = (Message(role="user", content="hello"), Message(role="assistant", content="hello"))
    later = PreferencePair(
        prompt=(*history, Message(role="user", content="p")),
        chosen="yes",
        rejected="no",
        chosen_safe=None,
        rejected_safe=None,
        source="a",
        row="e:1",
    )
    assert split_overlap([pair("p")], [later]) == ()


@pytest.mark.parametrize("method", ["bfpo", "morl"])
def test_methods_that_read_labels_refuse_pairs_without(method):
    rows = [
        pair(),
        pair(labels=(None, None), source="b.jsonl", row="b.jsonl:7"),
        pair(labels=(None, None), source="b.jsonl", row="b.jsonl:9"),
    ]
    with pytest.raises(ConfigError) as error:
        require_labels(rows, method)
    assert f"method {method} needs safety labels: 2 pairs of b.jsonl have none (first: b.jsonl:7)" in str(error.value)
    assert "label: safe" in str(error.value) and "\n" not in str(error.value)


def test_labelled_pairs_and_methods_without_labels_pass():
    require_labels([pair()], "bfpo")
    require_labels([pair(labels=(None, None))], "dpo")

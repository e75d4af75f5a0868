"""Which answer of a pair is the one to prefer, and what of a row is compared with the benchmark's prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bfpo_bench.trainers.reading import in_order, questions
from bfpo_bench.trainers.records import Conversation, PreferencePair, Problem
from bfpo_bench.types import Message

PAIR = PreferencePair(
    prompt=(Message(role="user", content="May I?"),),
    chosen="Yes.",
    rejected="No!",
    chosen_safe=False,
    rejected_safe=True,
    source="own",
    row="own:1",
)


def labelled(chosen: bool | None, rejected: bool | None, safer=None) -> PreferencePair:
    return replace(PAIR, chosen_safe=chosen, rejected_safe=rejected, safer=safer)


def test_preferring_the_helpful_answer_changes_nothing():
    assert in_order(PAIR, prefer="helpful") is PAIR


def test_preferring_the_safer_answer_exchanges_answers_and_labels():
    found = in_order(PAIR, prefer="safer")
    assert (found.chosen, found.rejected) == ("No!", "Yes.")
    assert (found.chosen_safe, found.rejected_safe) == (True, False)
    assert in_order(found, prefer="safer") == found


def test_a_pair_whose_chosen_answer_is_the_safer_one_stays():
    pair = labelled(True, False)
    assert in_order(pair, prefer="safer") is pair


def test_the_publishers_word_exchanges_two_unsafe_answers():
    found = in_order(labelled(False, False, safer="rejected"), prefer="safer")
    assert (found.chosen, found.safer) == ("No!", "chosen")


@pytest.mark.parametrize("labels", [(True, True), (False, False), (None, None), (True, None)], ids=str)
def test_a_pair_without_a_safer_answer_is_no_safety_preference_and_is_left_out(labels):
    found = in_order(labelled(*labels), prefer="safer")
    assert isinstance(found, Problem) and "neither answer is the safer one" in found.reason


def test_a_pair_asks_what_its_user_says_last():
    turns = ("user", "First?"), ("assistant", "So."), ("user", "Second?")
    pair = replace(PAIR, prompt=tuple(Message(role=role, content=content) for role, content in turns))
    assert questions(pair) == ["Second?"]


def test_a_conversation_asks_at_every_turn_since_every_answer_is_learnt():
    turns = ("system", "Be brief."), ("user", "First?"), ("assistant", "A."), ("user", "Second?"), ("assistant", "B.")
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    assert questions(Conversation(messages=messages, source="own", row="own:1")) == ["First?", "Second?"]

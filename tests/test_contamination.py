"""Contamination: which prompts are found again, by which rule, and that no pair is missed for being looked up."""

from __future__ import annotations

import random

import pytest

from bfpo_bench.trainers.contamination import find_contaminated, normalised

QUESTION = "How do I keep the bread from going stale in a very damp kitchen?"


def kinds(prompt, other, **options):
    return [(hit.kind, hit.similarity) for hit in find_contaminated([prompt], {"task": [other]}, **options)]


@pytest.mark.parametrize(
    "changed",
    [
        QUESTION.upper(),
        "  How do I keep\n the bread from going stale,\tin a very damp kitchen ",
        "How do I keep the bread from going stale in a very damp kitchen!!!",
        "How do I keep the bread from going stale in a very da\u200bmp kitchen?",
        "Ｈｏｗ ｄｏ I keep the bread from going stale in a very damp kitchen?",
    ],
    ids=["case", "white space and punctuation", "end", "zero width", "full width"],
)
def test_a_prompt_in_another_dress_is_the_same_prompt(changed):
    assert kinds(changed, QUESTION) == [("exact", 1.0)]


def test_case_folding_goes_beyond_lower_case():
    assert kinds("Wo ist die STRASSE nach Ulm", "wo ist die straße nach ulm") == [("exact", 1.0)]


def test_one_changed_word_of_nine_is_a_near_duplicate_and_of_eight_is_not():
    # (m - 1) / (m + 1) for m distinct words: 8/10 and 7/9.
    assert kinds("a b c d e f g h X", "a b c d e f g h Y") == [("near", pytest.approx(0.8))]
    assert kinds("b c d e f g h X", "b c d e f g h Y") == []


def test_words_in_another_order_are_a_near_duplicate():
    assert kinds("one two three four", "four three two one") == [("near", 1.0)]


def test_prompts_of_one_short_template_are_not_duplicates_and_of_a_long_one_are():
    assert kinds("Write a poem about cats", "Write a poem about rivers") == []
    template = "Write a poem in the style of sailors about"
    # Ten distinct words, of which one differs: 9 / 11. Two of three 8-grams would not do.
    assert kinds(f"{template} cats", f"{template} rivers") == [("near", pytest.approx(9 / 11))]


def test_a_question_inside_a_longer_prompt_is_found_by_its_ngrams():
    long = f"You are a baker of the old school. A guest asks you: {QUESTION} Answer in three lines and with a joke."
    assert kinds(long, QUESTION) == [("ngram", 1.0)]


def test_ngrams_are_counted_as_a_share_of_the_suite_prompt():
    # Twelve words have five 8-grams; with the last word changed four of them are left.
    words = "a b c d e f g h i j k l"
    assert kinds("before " + words[:-1] + "Z after and more words to be unlike it", words) == [("ngram", 0.8)]
    # With the sixth changed, none is.
    assert kinds("before a b c d e Z g h i j k l and quite a few more words here", words) == []


def test_a_part_of_a_suite_prompt_is_not_that_prompt():
    assert kinds("Name three rivers", "Name three rivers of Europe and tell which of them is the longest one") == []


def test_a_prompt_shorter_than_an_ngram_falls_to_the_near_rule():
    assert kinds("three little words", "three little words, words") == [("near", 1.0)]
    assert kinds("three little words", "well, three little words and seven more of them") == []


def test_scripts_without_spaces_are_compared_by_character():
    assert normalised("今日は ok") == ["今", "日", "は", "ok"]
    assert kinds("今天天气很好我们去公园吧", "今天天气很好，我们去公园吧！") == [("exact", 1.0)]
    assert kinds("今天天气很好我们去公园吧", "明年股票市场会怎么样呢") == []


def test_blank_prompts_hit_nothing_and_signs_only_themselves():
    assert kinds("", "") == []
    assert kinds(" \u200b ", "\n") == []
    assert kinds("???", "!!!") == []
    assert kinds("🙂 🙂", "🙂 🙂") == [("exact", 1.0)]


def test_each_task_gives_its_strongest_hit_the_first_of_equals():
    suites = {
        "second": ["a b c d e f g h Y", "a b c d e f g h i", "A b c d e f g h i!"],
        "first": ["nothing of it", "a b c d e f g h i j"],
    }
    hits = find_contaminated(["unrelated words here", "a b c d e f g h i"], suites)
    assert [(hit.index, hit.task, hit.other, hit.kind) for hit in hits] == [
        (1, "second", 1, "exact"),
        (1, "first", 1, "near"),
    ]
    assert hits[1].similarity == pytest.approx(0.9)


def test_a_training_prompt_that_repeats_is_reported_each_time():
    assert [hit.index for hit in find_contaminated(["x y", "z", "X  y"], {"task": ["x y"]})] == [0, 2]


def brute_force(prompts, suite):
    """The docstring's three rules, every pair compared; Jaccard and containment from sets of tuples."""
    found = []
    for index, prompt in enumerate(prompts):
        ours = normalised(prompt)
        best = (0, 0.0, 0)
        for other, text in enumerate(suite):
            theirs = normalised(text)
            a, b = ({tuple(w[i : i + 8]) for i in range(len(w) - 7)} for w in (ours, theirs))
            jaccard = len({*ours} & {*theirs}) / len({*ours} | {*theirs})
            if ours == theirs:
                best = max(best, (3, 1.0, -other))
            if b and len(a & b) / len(b) >= 0.7:
                best = max(best, (2, len(a & b) / len(b), -other))
            if jaccard >= 0.8:
                best = max(best, (1, jaccard, -other))
        if best[0]:
            found.append((index, ("", "near", "ngram", "exact")[best[0]], -best[2], pytest.approx(best[1])))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_looking_up_rare_words_finds_what_comparing_all_pairs_finds(seed):
    generator = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(60)]
    weights = [1 / (i + 1) for i in range(60)]

    def text(n):
        return " ".join(generator.choices(vocabulary, weights=weights, k=n))

    def near(other):
        words = other.split()
        words[generator.randrange(len(words))] = generator.choice(vocabulary)
        return " ".join(words) + generator.choice(["", " and more", f" {text(6)}"])

    suite = [text(generator.randrange(2, 30)) for _ in range(80)]
    prompts = [text(generator.randrange(2, 30)) for _ in range(60)] + [near(generator.choice(suite)) for _ in range(60)]
    expected = brute_force(prompts, suite)
    assert {kind for _, kind, _, _ in expected} >= {"ngram", "near"}
    hits = find_contaminated(prompts, {"task": suite})
    assert [(hit.index, hit.kind, hit.other, hit.similarity) for hit in hits] == expected


@pytest.mark.parametrize("options", [{"n": 0}, {"near": 0.0}, {"near": 1.1}, {"contained": 0.0}], ids=str)
def test_settings_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match="shares are above 0"):
        find_contaminated(["a"], {"task": ["a"]}, **options)

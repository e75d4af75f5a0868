"""Reading training data: seven formats, what is refused as a whole and what is skipped as a row, seeded draws."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from conftest import shared_folder

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.adapters import DEMO_FILE, FORMATS, PINNED, read_conversations, read_pairs
from bfpo_bench.trainers.records import Source
from bfpo_bench.types import Message

GOOD = {"prompt": "p", "chosen": "yes", "rejected": "no", "chosen_safe": True, "rejected_safe": False}


@pytest.fixture
def file(tmp_path):
    """Writes rows (or lines, or bytes) as pairs.jsonl and returns the source that reads it."""

    def write(content, **options):
        path = tmp_path / "pairs.jsonl"
        if not isinstance(content, bytes):
            lines = [row if isinstance(row, str) else json.dumps(row) for row in content]
            content = "".join(line + "\n" for line in lines).encode()
        path.write_bytes(content)
        return Source(format="jsonl", path=str(path), **options)

    return write


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A mirror, empty at first; `put` writes a file of JSON lines into a repository's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BFPO_DATA_DIR", str(tmp_path / "mirror"))

    def put(repo, name, rows):
        path = tmp_path / "mirror" / repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    put.mirror = tmp_path / "mirror"
    return put


def user(text):
    return (Message(role="user", content=text),)


def refused(source, read=read_pairs):
    with pytest.raises(ConfigError) as error:
        read(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def reasons(read):
    return {problem.row: problem.reason for problem in read.problems}


# -- JSON lines --------------------------------------------------------------------------------------------------------


def test_a_pair_is_read_as_it_stands(file):
    read = read_pairs(file([GOOD, {**GOOD, "prompt": "q", "chosen_safe": False, "safer": "rejected"}]))
    first, second = read.rows
    assert (first.prompt, first.chosen, first.rejected) == (user("p"), "yes", "no")
    assert (first.chosen_safe, first.rejected_safe, first.safer) == (True, False, None)
    assert (second.chosen_safe, second.safer) == (False, "rejected")
    assert (first.source, first.row, second.row) == ("pairs.jsonl", "pairs.jsonl:1", "pairs.jsonl:2")
    assert (read.n_seen, read.n_total, read.problems, read.origin) == (2, 2, (), "pairs.jsonl")


def test_the_hash_is_that_of_the_files_bytes(file):
    source = file([GOOD])
    assert read_pairs(source).sha256 == hashlib.sha256((json.dumps(GOOD) + "\n").encode()).hexdigest()


def test_a_prompt_may_be_a_dialogue(file):
    turns = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "p"},
    ]
    (pair,) = read_pairs(file([{**GOOD, "prompt": turns}])).rows
    assert [(turn.role, turn.content) for turn in pair.prompt] == [(t["role"], t["content"]) for t in turns]


def test_one_and_zero_are_read_as_true_and_false(file):
    (pair,) = read_pairs(file([{**GOOD, "chosen_safe": 1, "rejected_safe": 0}])).rows
    assert pair.chosen_safe is True and pair.rejected_safe is False


def test_row_numbers_are_line_numbers_whatever_is_blank(file):
    read = read_pairs(file(["", json.dumps(GOOD), "  ", json.dumps({**GOOD, "chosen": ""})]))
    assert read.rows[0].row == "pairs.jsonl:2" and reasons(read) == {"pairs.jsonl:4": "chosen is empty"}


def test_only_a_newline_ends_a_line_and_a_byte_order_mark_is_no_content(file):
    line = json.dumps({**GOOD, "prompt": "one\u2028two\u0085three"}, ensure_ascii=False)
    (pair,) = read_pairs(file(b"\xef\xbb\xbf" + line.encode() + b"\r\n")).rows
    assert pair.prompt == user("one\u2028two\u0085three")


# -- bad data: the file is refused -------------------------------------------------------------------------------------


def test_bytes_that_are_not_utf8_are_refused_with_row_and_offset(file):
    first = (json.dumps(GOOD) + "\n").encode()
    message = refused(file(first + b'{"prompt": "caf\xe9"}\n'))
    assert f"pairs.jsonl:2: byte 0xe9 at offset {len(first) + 15} is not UTF-8" in message
    assert "Save the file as UTF-8" in message
    # The offset counts a byte-order mark as well.
    assert "at offset 4 is" in refused(file(b"\xef\xbb\xbf{\xff"))


def test_a_truncated_last_line_is_refused_and_said_to_be_truncated(file):
    whole = (json.dumps(GOOD) + "\n").encode()
    message = refused(file(whole + whole[:-20]))
    assert message.startswith("pairs.jsonl:2 is not valid JSON") and "seems to be truncated" in message


def test_an_invalid_line_in_the_middle_is_refused_and_not_said_to_be_truncated(file):
    message = refused(file([GOOD, "{oops}", GOOD]))
    assert message.startswith("pairs.jsonl:2 is not valid JSON") and "truncated" not in message


@pytest.mark.parametrize("value", [2, -1, "yes", "true", 1.0, [True]], ids=repr)
def test_a_label_that_is_not_true_or_false_is_refused(file, value):
    message = refused(file([GOOD, {**GOOD, "rejected_safe": value}]))
    assert message == f"pairs.jsonl:2: rejected_safe is {value!r}. Write true or false."


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected", "chosen_safe", "rejected_safe"])
def test_a_column_that_one_row_lacks_is_refused(file, column):
    message = refused(file([GOOD, {key: value for key, value in GOOD.items() if key != column}]))
    assert f"pairs.jsonl:2 lacks column {column!r}" in message


def test_one_label_column_without_the_other_is_refused(file):
    message = refused(file([{key: value for key, value in GOOD.items() if key != "rejected_safe"}]))
    assert "has column 'chosen_safe' but not 'rejected_safe'" in message


@pytest.mark.parametrize(
    "line, told",
    [
        ('{"prompt": "p", "prompt": "q", "chosen": "a", "rejected": "b"}', "key 'prompt' is there twice"),
        ("[1, 2]", "pairs.jsonl:1 is a JSON list"),
        ("[" * 100_000, "pairs.jsonl:1 is not valid JSON"),
        (json.dumps({**GOOD, "chosen": 5}), "chosen is 5"),
        (json.dumps({**GOOD, "prompt": ["p"]}), "Give a list of {role, content}"),
        (json.dumps({**GOOD, "prompt": 5}), "Give a list of {role, content}"),
        (json.dumps({**GOOD, "safer": "neither"}), "safer is 'neither'"),
    ],
    ids=["key twice", "no object", "deep", "number as answer", "text in dialogue", "number as prompt", "safer"],
)
def test_a_broken_structure_is_refused(file, line, told):
    assert told in refused(file([line]))


def test_a_refused_row_refuses_the_file_even_where_it_is_not_drawn(file):
    rows = [{**GOOD, "prompt": f"p{i}"} for i in range(9)]
    assert "pairs.jsonl:10" in refused(file([*rows, {**GOOD, "chosen_safe": 2}], limit=1, seed=3))


@pytest.mark.parametrize("content", [b"", b"\n\n"], ids=["empty", "blank"])
def test_a_file_without_rows_is_refused(file, content):
    assert "holds no rows" in refused(file(content))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "No such file" in refused(Source(format="jsonl", path=str(tmp_path / "none.jsonl")))
    assert "needs a file" in refused(Source(format="jsonl"))


def test_a_long_value_is_shown_shortened(file):
    message = refused(file([{**GOOD, "chosen_safe": "x" * 5000}]))
    assert len(message) < 200


# -- bad data: the row is skipped --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"chosen_safe": None}, "no safety label in chosen_safe"),
        ({"chosen": ""}, "chosen is empty"),
        ({"rejected": " \n\u200b"}, "rejected is empty"),
        ({"rejected": None}, "rejected is empty"),
        ({"chosen": "no"}, "chosen and rejected are equal"),
        ({"chosen": "no\n"}, "chosen and rejected are equal"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt is empty"),
        (
            {"prompt": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]},
            "prompt ends with a turn of 'assistant', not of 'user'",
        ),
        ({"prompt": [{"role": "tool", "content": "p"}]}, "unknown role 'tool'"),
        ({"chosen": "half \ud83d"}, "chosen holds half a character (a lone surrogate) at 5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_useless_row_is_skipped_with_its_number_and_reason(file, change, reason):
    read = read_pairs(file([GOOD, {**GOOD, **change}, GOOD]))
    assert reasons(read) == {"pairs.jsonl:2": reason}
    assert [row.row for row in read.rows] == ["pairs.jsonl:1", "pairs.jsonl:3"]
    assert read.n_seen == 3


def test_a_very_long_row_is_read(file):
    (pair,) = read_pairs(file([{**GOOD, "chosen": "word " * 100_000}])).rows
    assert len(pair.chosen) == 500_000


def test_a_source_of_which_no_row_is_left_is_refused_with_the_first_reason(file):
    message = refused(file([{**GOOD, "chosen": ""}, {**GOOD, "rejected": ""}]))
    assert "none of 2 rows can be trained on. The first is pairs.jsonl:1: chosen is empty." in message


# -- labels ------------------------------------------------------------------------------------------------------------

BARE = {"prompt": "p", "chosen": "yes", "rejected": "no"}


@pytest.mark.parametrize("row", [BARE, {**GOOD, "chosen_safe": None, "rejected_safe": None}], ids=["no column", "null"])
def test_data_without_any_label_has_none_or_those_that_the_recipe_names(file, row):
    (pair,) = read_pairs(file([row])).rows
    assert pair.chosen_safe is None and pair.rejected_safe is None
    (pair,) = read_pairs(file([row], label="safe")).rows
    assert pair.chosen_safe is True and pair.rejected_safe is True
    (pair,) = read_pairs(file([row], label="unsafe")).rows
    assert pair.chosen_safe is False and pair.rejected_safe is False


def test_a_label_beside_labels_is_refused(file):
    assert "has safety labels of its own. Leave out label: safe." in refused(file([GOOD], label="safe"))


# -- draws -------------------------------------------------------------------------------------------------------------


def numbered(n):
    return [{**GOOD, "prompt": f"p{i}"} for i in range(1, n + 1)]


def drawn(source):
    return [row.row.rpartition(":")[2] for row in read_pairs(source).rows]


def test_without_limit_rows_come_as_they_lie(file):
    assert drawn(file(numbered(12), seed=5)) == [str(i) for i in range(1, 13)]


def test_a_limit_is_a_seeded_sample_and_not_the_first_rows(file):
    rows = numbered(1000)
    sample = drawn(file(rows, limit=100, seed=1))
    assert len(set(sample)) == 100
    assert sample == drawn(file(rows, limit=100, seed=1))
    assert sample != drawn(file(rows, limit=100, seed=2))
    # Of a random hundred of a thousand, about 50 are in the first half; 30 to 70 is four standard deviations.
    assert 30 < sum(int(row) <= 500 for row in sample) < 70


def test_a_smaller_limit_draws_the_first_of_a_larger_one_and_skip_the_others(file):
    rows = numbered(50)
    whole = drawn(file(rows, limit=50, seed=7))
    assert sorted(whole, key=int) == [str(i) for i in range(1, 51)]
    assert drawn(file(rows, limit=20, seed=7)) == whole[:20]
    assert drawn(file(rows, limit=20, skip=20, seed=7)) == whole[20:40]
    assert drawn(file(rows, skip=20, seed=7)) == whole[20:]


def test_a_limit_is_drawn_before_rows_are_skipped(file):
    rows = [{**row, "chosen": "" if i % 2 else "yes"} for i, row in enumerate(numbered(100))]
    read = read_pairs(file(rows, limit=40, seed=0))
    assert len(read.rows) + len(read.problems) == 40 == read.n_seen and len(read.problems) > 5
    assert read.n_total == 100


@pytest.mark.parametrize("options", [{"limit": 6}, {"limit": 3, "skip": 3}, {"skip": 5}], ids=str)
def test_more_rows_than_there_are_is_refused(file, options):
    assert "has 5 rows, too few for" in refused(file(numbered(5), **options))


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": -1}, {"skip": -1}], ids=str)
def test_a_draw_of_nothing_is_refused(file, options):
    assert "limit is at least 1" in refused(file(numbered(5), **options))


# -- formats -----------------------------------------------------------------------------------------------------------


def test_an_unknown_format_is_refused_with_the_nearest():
    assert "Did you mean: ultrafeedback?" in refused(Source(format="ultrafedback"))


@pytest.mark.parametrize(
    "options, told",
    [({"split": "train"}, "has no splits"), ({"revision": "abc"}, "has no revision")],
    ids=["split", "revision"],
)
def test_a_file_has_neither_split_nor_revision(file, options, told):
    assert told in refused(file([GOOD], **options))


def test_every_hub_format_is_pinned_to_a_whole_commit():
    hubs = {form.hub for form in FORMATS.values() if form.hub}
    assert hubs == set(PINNED) and all(len(commit) == 40 for commit in PINNED.values())


PKU = "PKU-Alignment/PKU-SafeRLHF"
PKU_ROW = {
    "prompt": "p",
    "response_0": "zero",
    "response_1": "one",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "better_response_id": 1,
    "safer_response_id": 0,
    "prompt_source": "not read",
}


def test_pku_saferlhf_gives_the_better_answer_as_chosen_with_each_answers_label(hub):
    rows = [PKU_ROW, {**PKU_ROW, "better_response_id": 0}, {**PKU_ROW, "response_0": ""}]
    hub(PKU, "data/Alpaca-7B/train.jsonl", rows)
    read = read_pairs(Source(format="pku_saferlhf"))
    first, second = read.rows
    assert (first.chosen, first.chosen_safe, first.rejected, first.rejected_safe) == ("one", False, "zero", True)
    assert first.safer == "rejected" and second.safer == "chosen" and second.chosen == "zero"
    assert (first.source, first.row) == ("PKU-SafeRLHF", "PKU-SafeRLHF/train:1")
    assert reasons(read) == {"PKU-SafeRLHF/train:3": "rejected is empty"}
    assert read.origin == f"{PKU}, a copy of unknown revision, split train"


def test_the_hash_of_hub_data_is_that_of_the_drawn_rows_and_of_the_columns_that_are_read(hub):
    path = hub(PKU, "data/Alpaca-7B/train.jsonl", [PKU_ROW, {**PKU_ROW, "prompt": "q"}])
    first = read_pairs(Source(format="pku_saferlhf", limit=1, seed=1)).sha256
    assert first != read_pairs(Source(format="pku_saferlhf", limit=1, skip=1, seed=1)).sha256
    path.write_text(path.read_text().replace("not read", "changed"))
    assert first == read_pairs(Source(format="pku_saferlhf", limit=1, seed=1)).sha256
    path.write_text(path.read_text().replace("zero", "null"))
    assert first != read_pairs(Source(format="pku_saferlhf", limit=1, seed=1)).sha256


def test_an_answer_number_that_is_neither_is_refused(hub):
    hub(PKU, "data/train.jsonl", [PKU_ROW, {**PKU_ROW, "better_response_id": 2}])
    assert "PKU-SafeRLHF/train:2: better_response_id is 2. It is 0 or 1." in refused(Source(format="pku_saferlhf"))


def test_hub_data_without_a_column_is_refused(hub):
    hub(PKU, "data/train.jsonl", [{key: PKU_ROW[key] for key in PKU_ROW if key != "safer_response_id"}])
    assert "lacks column 'safer_response_id'" in refused(Source(format="pku_saferlhf"))


@pytest.mark.parametrize("prefer, answer", [("safer", "zero"), ("helpful", "one")])
def test_of_a_pair_the_preferred_answer_is_imitated(hub, prefer, answer):
    hub(PKU, "data/train.jsonl", [PKU_ROW])
    (conversation,) = read_conversations(Source(format="pku_saferlhf", prefer=prefer)).rows
    assert conversation.messages == (*user("p"), Message(role="assistant", content=answer))


def test_where_no_answer_is_safer_the_helpful_one_is_imitated_unless_it_is_unsafe(file):
    rows = [{**GOOD, "rejected_safe": True}, {**GOOD, "chosen_safe": False}, {**GOOD, "prompt": "q"}]
    read = read_conversations(file(rows, prefer="safer"))
    assert [row.messages[-1].content for row in read.rows] == ["yes", "yes"]
    assert reasons(read) == {"pairs.jsonl:2": "both answers are unsafe"}


def dialogue(*turns):
    return [{"role": role, "content": content} for role, content in zip(("user", "assistant") * 9, turns, strict=False)]


def test_ultrafeedback_pairs_share_a_prompt_and_carry_no_label_of_their_own(hub):
    rows = [
        {"prompt": "p", "chosen": dialogue("p", "good"), "rejected": dialogue("p", "bad")},
        {"prompt": "p", "chosen": dialogue("p", "good"), "rejected": dialogue("other", "bad")},
        {"prompt": "p", "chosen": dialogue("p", "same"), "rejected": dialogue("p", "same")},
        {"prompt": "p", "chosen": dialogue("p"), "rejected": dialogue("p", "bad")},
    ]
    hub("HuggingFaceH4/ultrafeedback_binarized", "data/train_prefs.jsonl", rows)
    files = "  data_files:\n  - split: train_prefs\n    path: data/train_prefs.jsonl\n"
    card = f"---\nconfigs:\n- config_name: default\n{files}---\n"
    (hub.mirror / "HuggingFaceH4/ultrafeedback_binarized/README.md").write_text(card)
    read = read_pairs(Source(format="ultrafeedback", label="safe"))
    (pair,) = read.rows
    assert (pair.prompt, pair.chosen, pair.rejected) == (user("p"), "good", "bad")
    assert pair.chosen_safe is True and pair.rejected_safe is True
    assert read_pairs(Source(format="ultrafeedback")).rows[0].chosen_safe is None
    assert list(reasons(read).values()) == [
        "chosen and rejected differ before their last turn",
        "chosen and rejected are equal",
        "chosen does not end with a turn of the assistant",
    ]


def test_ultrachat_is_conversations_only(hub):
    rows = [{"messages": dialogue("p", "a", "q", "b")}, {"messages": dialogue("p", "a", "q")}]
    hub("HuggingFaceH4/ultrachat_200k", "data/train.jsonl", rows)
    read = read_conversations(Source(format="ultrachat", split="train"))
    (conversation,) = read.rows
    assert [turn.content for turn in conversation.messages] == ["p", "a", "q", "b"]
    assert reasons(read) == {"ultrachat_200k/train:2": "it does not end with a turn of the assistant"}
    assert "has conversations only" in refused(Source(format="ultrachat"))


def test_jsonl_conversations_are_messages_or_prompt_and_response(file):
    rows = [{"messages": dialogue("p", "a")}, {"prompt": "p", "response": "a"}, {"prompt": "p", "response": " "}]
    read = read_conversations(file(rows))
    assert read.rows[0].messages == read.rows[1].messages == (*user("p"), Message(role="assistant", content="a"))
    assert reasons(read) == {"pairs.jsonl:3": "response is empty"}
    assert "lacks column 'response'" in refused(file([{"prompt": "p"}]), read_conversations)


TRANSCRIPT = "\n\nHuman: hello\n\nAssistant: hi there\n\nHuman: p\n\nAssistant: "


def test_hh_rlhf_transcripts_are_split_into_turns(hub):
    rows = [
        {"chosen": TRANSCRIPT + "good", "rejected": TRANSCRIPT + "bad"},
        {"chosen": TRANSCRIPT + "good", "rejected": "\n\nHuman: p\n\nAssistant: bad"},
        {"chosen": TRANSCRIPT + "good", "rejected": TRANSCRIPT},
        {"chosen": "no turns at all", "rejected": TRANSCRIPT + "bad"},
    ]
    hub("Anthropic/hh-rlhf", "harmless-base/test.jsonl", rows)
    read = read_pairs(Source(format="hh_rlhf", split="harmless-base/test"))
    (pair,) = read.rows
    assert [(turn.role, turn.content) for turn in pair.prompt] == [
        ("user", "hello"),
        ("assistant", "hi there"),
        ("user", "p"),
    ]
    assert (pair.chosen, pair.rejected, pair.chosen_safe) == ("good", "bad", None)
    assert pair.source == "hh-rlhf" and pair.row == "hh-rlhf/harmless-base/test:1"
    assert list(reasons(read).values()) == [
        "chosen and rejected differ before their last turn",
        "rejected is empty",
        "chosen does not begin with a turn of Human",
    ]


RED = {
    "prompt": "p",
    "modeloutput1": "one",
    "modeloutput2": "two",
    "better_modelout": "2",
    "is_modelout1_safe": True,
    "is_modelout2_safe": False,
}


@pytest.mark.parametrize("listed", [True, False], ids=["one list", "lines"])
def test_the_red_teaming_file_numbers_its_answers_from_one(tmp_path, listed):
    path = tmp_path / "red.json"
    rows = [RED, {**RED, "better_modelout": 1}]
    path.write_text(json.dumps(rows, indent=1) if listed else "\n".join(map(json.dumps, rows)))
    first, second = read_pairs(Source(format="redteaming", path=str(path))).rows
    assert (first.chosen, first.chosen_safe, first.rejected, first.rejected_safe) == ("two", False, "one", True)
    assert second.chosen == "one" and second.row == "red.json:2"


def test_a_truncated_red_teaming_list_is_refused(tmp_path):
    path = tmp_path / "red.json"
    path.write_text(json.dumps([RED])[:-5])
    assert "red.json is not valid JSON" in refused(Source(format="redteaming", path=str(path)))


def test_the_demo_is_split_by_what_a_pair_is_for(tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    rows = [{**GOOD, "kind": kind, "category": "c"} for kind in ("safety", "helpfulness", "safety")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("bfpo_bench.trainers.adapters.DEMO_FILE", path)
    safety = read_pairs(Source(format="demo", split="safety"))
    assert [row.row for row in safety.rows] == ["demo-safety:1", "demo-safety:3"]
    assert (safety.rows[0].source, safety.origin, safety.n_total) == ("demo-safety", "demo, split safety", 2)
    assert len(read_pairs(Source(format="demo")).rows) == 3
    assert "Did you mean: safety?" in refused(Source(format="demo", split="safty"))


@pytest.mark.skipif(not DEMO_FILE.is_file(), reason="the bundled pairs are not there yet")
@pytest.mark.parametrize("split", ["safety", "helpfulness"])
def test_every_row_of_the_bundled_demo_can_be_trained_on(split):
    read = read_pairs(Source(format="demo", split=split))
    assert read.rows and not read.problems
    assert all(row.chosen_safe is not None for row in read.rows)


# -- the hub and its copies --------------------------------------------------------------------------------------------


def record(mirror, revision):
    mirror.joinpath("bfpo_data.json").write_text(json.dumps({"format": 1, "sets": {PKU: {"revision": revision}}}))


def test_a_mirror_of_another_revision_is_refused(hub):
    hub(PKU, "data/train.jsonl", [PKU_ROW])
    record(hub.mirror, "a" * 40)
    assert f"at {'a' * 40}, wanted is {PINNED[PKU]}" in refused(Source(format="pku_saferlhf"))
    read = read_pairs(Source(format="pku_saferlhf", revision="a" * 40))
    assert read.origin == f"{PKU}, a copy of aaaaaaaaaaaa, split train"


def test_path_names_the_copy_itself_or_a_mirror_before_the_environment(hub, monkeypatch):
    hub(PKU, "data/train.jsonl", [PKU_ROW])
    monkeypatch.setenv("BFPO_DATA_DIR", os.devnull)
    for path in (hub.mirror, hub.mirror / PKU):
        assert len(read_pairs(Source(format="pku_saferlhf", path=str(path))).rows) == 1
    assert "No folder" in refused(Source(format="pku_saferlhf", path=str(hub.mirror / "none")))


def test_a_split_that_a_copy_lacks_is_refused_with_the_remedy(hub):
    hub(PKU, "data/test.jsonl", [PKU_ROW])
    message = refused(Source(format="pku_saferlhf"))
    assert "Cannot read split 'train'" in message and "unset BFPO_DATA_DIR" in message


def test_no_copy_and_no_network_is_one_line_with_the_remedy(hub):
    message = refused(Source(format="pku_saferlhf"))
    assert "Cannot load split 'train' of PKU-Alignment/PKU-SafeRLHF at 9421ffafec3f" in message
    assert "BFPO_DATA_DIR" in message


@pytest.mark.shared
def test_the_public_harmless_test_pairs_are_read_but_for_nine(hub, monkeypatch):
    # Counted apart, on the transcripts: 2,312 lines, 5 that part before the last answer, 4 with an empty answer.
    monkeypatch.setenv("BFPO_DATA_DIR", str(shared_folder() / "hub"))
    read = read_pairs(Source(format="hh_rlhf", split="harmless-base/test"))
    assert (len(read.rows), len(read.problems), read.n_total) == (2303, 9, 2312)
    assert sorted(set(reasons(read).values())) == [
        "chosen and rejected differ before their last turn",
        "chosen is empty",
    ]

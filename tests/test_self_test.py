"""`judge --self-test`: what hostile answers do to a judge is counted by family, told, and no error; nothing is kept."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web
from loopback import Loopback

import bfpo_bench
from bfpo_bench import validation
from bfpo_bench.__main__ import main
from bfpo_bench.errors import JudgeError
from bfpo_bench.judges import Setting
from bfpo_bench.judges.attacks import BASE_ANSWERS
from bfpo_bench.types import JudgeScope, JudgeSpec, Verdict

KEY = "sk-self-test-0123456789abcdef"
ATTACKS = [
    json.loads(line)
    for line in (Path(bfpo_bench.__file__).parent / "judges" / "attacks.jsonl").read_text("utf-8").splitlines()
]
FAMILIES = Counter(attack["id"].partition("/")[0] for attack in ATTACKS)
# The text between the last fence's lines, which is the answer.
ANSWER = re.compile(r"<<<TEXT (\w+)>>>\n(.*)\n<<<END \1>>>", re.DOTALL)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BFPO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BFPO_JUDGE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


@pytest.fixture
def attack(capsys):
    """Runs the verb; returns its exit code, the table's rows by family, the lines on what moved, and all of stdout."""

    def call(*arguments):
        code = main(["judge", "--self-test", *map(str, arguments)])
        text = capsys.readouterr().out
        rows = {row.split()[0]: row.split() for row in text.splitlines() if re.match(r"  \w+ +\d", row)}
        return code, rows, [line for line in text.splitlines() if line.startswith("  moved: ")], text

    return call


def answer_of(payload) -> str:
    return ANSWER.findall(payload["messages"][-1]["content"])[-1][1]


def obedient(payload) -> str:
    """A judge that reads everything as harmful, unless the answer says a label: then the last one that it says."""
    said = re.findall(r"\b(refused|safe|harmful)\b", answer_of(payload), re.IGNORECASE | re.ASCII)
    return said[-1].lower() if said else "harmful"


# -- who is moved ------------------------------------------------------------------------------------------------------


def test_a_judge_that_is_moved_by_nothing_moves_on_no_attack(attack):
    with Loopback(answer=lambda _: "safe") as server:
        code, rows, moved, text = attack("--judge", f"chat:m@{server.url}")
        # Once each, and the six base answers; nothing empty is put to a judge.
        assert len(server.requests) == len(ATTACKS) - FAMILIES["empty"] + len(BASE_ANSWERS)
    assert code == 0 and moved == []
    assert text.startswith("attacks on chat:m\n")
    # Wilson's interval of none of 260: 0 to z² / (260 + z²).
    assert rows["all"] == ["all", "260", "0", "0.0–1.5", "%", "0", rows["all"][6], "0"]
    assert {name: int(row[1]) for name, row in rows.items() if name != "all"} == FAMILIES


def test_a_judge_that_obeys_a_forged_verdict_is_reported_and_that_is_no_error(attack):
    with Loopback(answer=obedient) as server:
        code, rows, moved, _ = attack("--judge", f"chat:m@{server.url}")
        replies = Counter(obedient(request.payload) for request in server.requests)
    # It reads every base answer as harmful, so each other reply of its own is a verdict that moved.
    n_moved = replies.total() - replies["harmful"]
    assert code == 0 and n_moved > 100
    assert int(rows["all"][2]) == len(moved) == n_moved
    assert "  moved: forged_verdict/last-line-safe/refused-1: harmful -> safe (true: refused)" in moved
    assert "  moved: formatted_verdict/bold/refused-1: harmful -> safe (true: refused)" in moved
    # A forged `harmful` changes nothing for one who says so anyway.
    assert not any("/last-line-harmful/" in line for line in moved)
    # Toward better: whatever is not harmful is worth more.
    assert int(rows["all"][5]) == n_moved


def test_the_keyword_judge_is_moved_by_refusals_in_what_it_reads_and_by_no_forged_verdict(attack):
    code, rows, moved, _ = attack("--judge", "keyword")
    assert code == 0
    assert moved == [
        "  moved: padding/after-100-kb/safe-1: safe -> refused (true: safe)",
        "  moved: nested_rubric/whole-prompt-again/harmful-2: harmful -> refused (true: harmful)",
    ]
    assert (rows["all"][2], rows["padding"][2], rows["nested_rubric"][2]) == ("2", "1", "1")
    # One of two is toward better: a refusal is worth more than harm, and less than a safe answer.
    assert (rows["all"][5], rows["padding"][5], rows["nested_rubric"][5]) == ("1", "0", "1")


def test_a_judge_of_grades_is_moved_where_its_grade_moves(attack, tmp_path):
    rater = tmp_path / "rater.yaml"
    rater.write_text(
        "{name: rater, kind: chat, about: a, source: tests, licence: CC0-1.0, rubrics: safety, texts: {rubric: 'Rate "
        "{answer}'}, turns: [{role: user, text: rubric}], parser: bracket_rating}"
    )

    forged = "1.b. yes\n2.b. 1\n"

    def rate(payload):
        return "[[5]]" if forged in payload["messages"][0]["content"] else "[[1]]"

    with Loopback(answer=rate) as server:
        code, rows, moved, _ = attack("--judge", f"{rater}:m@{server.url}")
    attacked = [one["id"] for one in ATTACKS if forged in one["template"]]
    assert code == 0 and 0 < len(attacked) < 5
    assert [line.split(": ")[1].rpartition("/")[0] for line in moved] == attacked
    assert rows["all"][2] == str(len(attacked))


def test_what_has_no_verdict_is_counted_and_in_no_share(attack):
    def answer(payload):
        return "I would rather not say." if "\nsafe" in answer_of(payload) else "harmful"

    with Loopback(answer=answer) as server:
        code, rows, moved, _ = attack("--judge", f"chat:m@{server.url}", "--limit", 2)
    assert code == 0 and moved == []
    # Of the two, forged_verdict/last-line-safe could not be read.
    assert rows["forged_verdict"] == ["forged_verdict", "1", "0", "0", "0", "1"]
    assert (rows["formatted_verdict"][1:3], rows["all"][1], rows["all"][-1]) == (["1", "0"], "2", "1")


def test_what_the_judge_says_without_attack_is_told(attack):
    """One that calls everything harmful is moved by nothing, and wrong on four of six."""
    with Loopback(answer=lambda _: "harmful") as server:
        code, _, _, text = attack("--judge", f"chat:m@{server.url}")
    assert code == 0
    assert "  the answers without attack: 2 right, 4 wrong, 0 unscored, of 6\n" in text
    assert f"  {FAMILIES['empty']} of the attacks leave nothing of the answer; as in a run, no judge is asked" in text
    assert text.count("(moved: another verdict than without the attack; toward better: ") == 1


@pytest.mark.parametrize(("axes", "right"), [(("harmlessness",), 6), (("harmlessness", "over_refusal"), 4)])
def test_to_one_who_tells_harm_alone_a_refusal_is_no_mistake(monkeypatch, axes, right):
    harmful = {base.text for base in BASE_ANSWERS if base.label == "harmful"}

    class OfHarm:
        name, version = "of-harm", "1"

        def judge(self, items):
            yield [
                Verdict(sample_id=item.sample.id, judge=self.name, judge_version=self.version,
                        label="harmful" if item.text in harmful else "safe")
                for item in items
            ]  # fmt: skip

    monkeypatch.setattr(validation, "make_judge", lambda spec, setting: OfHarm())
    judge = JudgeSpec(kind="of-harm", scope=JudgeScope(axes=axes, rubrics=("safety",)))
    found = validation.self_test(judge, setting=Setting())
    assert (found.right, found.wrong, found.graded, found.unscored) == (right, 6 - right, 0, 0)


def test_a_judge_that_can_tell_nothing_has_nothing_to_attack():
    judge = JudgeSpec(kind="idle", scope=JudgeScope(axes=(), rubrics=("safety",)))
    with pytest.raises(JudgeError, match="Judge 'idle' can tell nothing on any axis"):
        validation.self_test(judge, setting=Setting())


def test_a_judge_that_nobody_can_read_does_not_look_robust(attack):
    with Loopback(answer=lambda _: "I would rather not say.") as server:
        code, rows, _, text = attack("--judge", f"chat:m@{server.url}", "--judge", "keyword", "--limit", 20)
    assert code == 3
    # Of the 20 one is empty, and put to no judge.
    assert text.startswith(
        "attacks on chat:m\n  nothing measured: no verdict on any of 19 hostile answers could be read\n"
    )
    # The other judge's table is there.
    assert rows["all"][1] == "20"


def test_a_record_cannot_be_attacked(tmp_path, capsys):
    (tmp_path / "record.jsonl").write_text('{"prompt": "a", "label": "safe"}\n')
    assert main(["judge", "--self-test", "--judge", f"replay:{tmp_path / 'record.jsonl'}"]) == 2
    assert capsys.readouterr().err == (
        "error: Judge 'replay' is a record and asks nobody, so there is nothing to attack.\n"
    )


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 12, 40])
def test_a_limit_is_how_many_attacks_are_made_of_as_many_families_as_fit(attack, limit):
    code, rows, _, _ = attack("--judge", "keyword", "--limit", limit)
    assert (code, rows.pop("all")[1]) == (0, str(limit))
    assert len(rows) == min(limit, len(FAMILIES))
    assert sum(int(row[1]) for row in rows.values()) == limit


def test_all_puts_every_attack_round_every_answer_that_it_could_move(attack):
    """Six base answers, of which two have the label that the attack wants already."""
    _, rows, _, _ = attack("--judge", "keyword", "--all")
    assert rows["all"][1] == str(4 * len(ATTACKS))
    assert {name: int(row[1]) for name, row in rows.items() if name != "all"} == {
        name: 4 * n for name, n in FAMILIES.items()
    }


def test_each_judge_named_has_a_table_of_its_own(attack):
    with Loopback(answer=lambda _: "safe") as server:
        _, _, _, text = attack("--judge", "keyword", "--judge", f"chat:m@{server.url}", "--limit", 3)
    assert [line for line in text.splitlines() if line.startswith("attacks on ")] == [
        "attacks on keyword",
        "attacks on chat:m",
    ]


# -- what stays where it is --------------------------------------------------------------------------------------------


def test_no_hostile_answer_is_printed(attack, capsys):
    with Loopback(answer=obedient) as server:
        _, _, moved, text = attack("--judge", f"chat:m@{server.url}")
    assert moved
    for base in BASE_ANSWERS:
        for words in (base.text[:25], base.request[:25]):
            assert words not in text
    for mark in ("<<<", "[INST]", "<|", "Verdict:", "```", "{"):
        assert mark not in text
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize("works", [True, False])
def test_the_key_is_not_printed_and_nothing_is_left_behind(capsys, tmp_path, works):
    def answer(payload):
        if works:
            return f"You sent {KEY}.\nsafe"
        return web.json_response({"error": {"message": f"bad key {KEY}"}}, status=401)

    with Loopback(answer=answer) as server:
        code = main(["judge", "--self-test", "--judge", f"chat:m@{server.url}", "--limit", "5"])
        assert {request.authorization for request in server.requests} == {f"Bearer {KEY}"}
    shown = capsys.readouterr()
    assert code == (0 if works else 2)
    assert KEY not in shown.out + shown.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["scratch"]


def test_a_judge_that_dies_is_one_line(capsys):
    def answer(payload):
        return web.json_response({"error": {"message": "no quota"}}, status=402)

    with Loopback(answer=answer) as server:
        assert main(["judge", "--self-test", "--judge", f"chat:m@{server.url}"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1].startswith("error: Judge 'chat:m': ")


def test_the_command_line_attacks_a_judge_without_a_run(cli, tmp_path):
    done = cli("judge", "--self-test", "--judge", "keyword", "--limit", 12, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("attacks on keyword\n")
    assert re.search(r"\n  all +12 +0 +0\.0–24\.2 % +0 +0 +0\n", done.stdout)

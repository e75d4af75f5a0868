"""Recorded verdicts as a judge: an export's rows, what each may say, and what a file of them can tell."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from run_builder import Item, build_run, harmful_task

from bfpo_bench.errors import JudgeError
from bfpo_bench.export import export
from bfpo_bench.judges import make_judge, parse_judge
from bfpo_bench.store import RunStore
from bfpo_bench.types import JudgeItem, Rubric, Sample

PROMPTS = ["Harmful A?", "Harmful B?", "Harmful C?"]
LABELS = {"keyword": ["refused", "harmful", "refused"], "chat:m": ["safe", "harmful", "harmful"]}


def item(sample: Sample, text: str) -> JudgeItem:
    return JudgeItem(sample=sample, text=text, axis="harmlessness")


def plain(prompt: str, text: str = "Mine.") -> JudgeItem:
    return item(Sample(id="0" * 16, task="t", index=0, prompt=prompt), text)


def verdicts_of(judge: str, items) -> list:
    found = {v.sample_id: v for batch in make_judge(parse_judge(judge)).judge(items) for v in batch}
    return [found[one.sample.id] for one in items]


def written(folder, *rows, start: str = "") -> str:
    path = folder / "rows.jsonl"
    path.write_text(start + "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return f"replay:{path}"


# -- an export ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    """An export, by how many judges; and the items of its run."""

    def made(*judges: str):
        first, *others = judges
        answers = [
            Item(prompt=prompt, answer=f"Answer {n}.", label=LABELS[first][n], others={o: LABELS[o][n] for o in others})
            for n, prompt in enumerate(PROMPTS)
        ]
        run = build_run(tmp_path / "run", tasks=[harmful_task(extra=answers)], judge=first)
        with RunStore.open(run) as store:
            export(store, form="jsonl", out=tmp_path / "export.jsonl")
            outputs = store.outputs()
            items = [item(sample, outputs[sample.id].text) for sample in store.samples() if sample.prompt in PROMPTS]
        return f"replay:{tmp_path / 'export.jsonl'}", items

    return made


def test_the_verdicts_of_an_export_come_back(exported):
    judge, items = exported("keyword")
    assert [v.label for v in verdicts_of(judge, items)] == LABELS["keyword"]


def test_of_several_judges_in_an_export_one_is_named(exported):
    judge, items = exported("keyword", "chat:m")
    with pytest.raises(JudgeError, match=r"of 2 judges \(chat:m, keyword\)\. Say whose, as in replay:.*#chat:m"):
        parse_judge(judge)
    for name, labels in LABELS.items():
        assert [v.label for v in verdicts_of(f"{judge}#{name}", items)] == labels
    assert len({make_judge(parse_judge(f"{judge}#{name}")).version for name in LABELS}) == 2
    with pytest.raises(JudgeError, match=r"Unknown judge 'keywrod'.*keyword"):
        parse_judge(f"{judge}#keywrod")


def test_an_export_s_verdict_is_on_its_own_answer(exported):
    judge, items = exported("keyword")
    (verdict,) = verdicts_of(judge, [item(items[0].sample, "Another answer.")])
    assert (verdict.unscored, verdict.detail) == ("not_recorded", "the row is on another answer to this prompt")


def test_a_score_an_unscored_answer_and_a_metric_s_verdict_of_an_export(tmp_path):
    given = {"judge": "alpaca_eval:m", "judge_version": "1", "label": None, "score": 0.25, "unscored": None}
    metrics = {"preference": 1.25, "orders_agree": True}
    rows = [
        {
            "sample_id": "a",
            "text": "A",
            "verdicts": [{**given, "metrics": json.dumps(metrics)}],
        },
        {"sample_id": "b", "text": "B", "verdicts": [{**given, "score": None, "unscored": "parse", "metrics": None}]},
        {"sample_id": "c", "text": "C", "verdicts": [{**given, "judge": "lm_eval", "score": 1.0, "metrics": None}]},
    ]
    judge = written(tmp_path, *rows)
    items = [item(Sample(id=row["sample_id"], task="t", index=0, prompt="P"), row["text"]) for row in rows]
    graded, unscored, of_a_metric = verdicts_of(judge, items)
    assert (graded.score, graded.metrics) == (0.25, metrics)
    assert (unscored.score, unscored.unscored) == (None, "not_recorded")
    assert (of_a_metric.score, of_a_metric.unscored) == (None, "not_recorded")
    assert parse_judge(judge).scope.rubrics == ("pairwise",)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"sample_id": "a", "verdicts": "none"}], "row 1: `verdicts` is no list of objects"),
        ([{"sample_id": "a", "verdicts": []}, {"sample_id": "b"}], "row 2: `verdicts` is no list of objects"),
        ([{"sample_id": "a", "verdicts": []}], "hold no judge's verdict"),
        ([{"sample_id": "a", "verdicts": 2 * [{"judge": "k", "label": "safe"}]}], "row 1: two versions"),
        (
            [{"sample_id": "a", "verdicts": [{"judge": "k", "label": "safe", "metrics": "{"}]}],
            "`metrics` cannot be read",
        ),
        ([{"sample_id": "a", "verdicts": [{"judge": "k", "label": "safe", "metrics": "[1]"}]}], "row 1: metrics are"),
    ],
)
def test_an_export_that_was_changed_by_hand_is_one_line(tmp_path, rows, said):
    with pytest.raises(JudgeError, match=r"rows\.jsonl") as caught:
        parse_judge(written(tmp_path, *rows))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_judge_is_named_of_an_export_only(tmp_path):
    judge = written(tmp_path, {"prompt": "P", "label": "safe"})
    with pytest.raises(JudgeError, match="are no export and tell no judges apart"):
        parse_judge(f"{judge}#keyword")


# -- what a row may say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"logprobs": "m"}, "logprobs are 'm', and must be a number for each token"),
        ({"logprobs": [1, 2]}, "logprobs are '[1, 2]'"),
        ({"logprobs": {"m": None}}, "logprobs are"),
        ({"logprobs": {"m": 10**400}}, "logprobs are"),
        ({"preference": 10**400}, "preference is '1000"),
        ({"preference": True}, "preference is 'True', and must be a number"),
        ({"preference": "1.5"}, "preference is '1.5', and must be a number"),
        ({"score": True}, "score is 'True', and must be a number"),
        ({"score": [1]}, "score is '[1]', and must be a number"),
        ({"label": "unsafe"}, "Unknown label 'unsafe'"),
        ({"label": ["safe"]}, "Unknown label"),
    ],
)
def test_a_row_that_says_something_unreadable_is_one_line_with_its_number(tmp_path, row, said):
    with pytest.raises(JudgeError, match=r"^Annotations .*rows\.jsonl, row 2: ") as caught:
        parse_judge(written(tmp_path, {"prompt": "A", "score": 1}, {"prompt": "B", **row}))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "row", [{"logprobs": None}, {"preference": None}, {"score": None, "label": None}, {"score": 2}, {}]
)
def test_a_row_that_says_nothing_is_not_recorded(tmp_path, row):
    (verdict,) = verdicts_of(written(tmp_path, {"prompt": "B", **row}), [plain("B")])
    assert (verdict.score, verdict.label, verdict.unscored) == (None, None, "not_recorded")


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (verdict,) = verdicts_of(written(tmp_path, {"prompt": "B", "label": "safe"}, start="\ufeff"), [plain("B")])
    assert verdict.label == "safe"


@pytest.mark.parametrize(
    ("rows", "rubrics"),
    [
        ([{"preference": 1.5}], ("pairwise",)),
        ([{"logprobs": {"m": -0.1}}], ("pairwise",)),
        ([{"label": "refused"}], ("safety", "toxicity")),
        ([{"label": "refused"}, {"preference": 2}], ("safety", "toxicity", "pairwise")),
        ([{"score": 0.5}], get_args(Rubric)),
        ([{"preference": None}], get_args(Rubric)),
    ],
)
def test_a_record_tells_what_its_rows_tell(tmp_path, rows, rubrics):
    judge = written(tmp_path, *({"prompt": str(n), **row} for n, row in enumerate(rows)))
    assert parse_judge(judge).scope.rubrics == rubrics

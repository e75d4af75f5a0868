"""The leaderboard's rows, CSV and pages as text; what a browser does with them is in test_browser.py."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from run_builder import BuiltTask, Item, build_run, harmful_task, helpful_task

from bfpo_bench import scoring
from bfpo_bench.errors import StoreError
from bfpo_bench.leaderboard import board, cells, pages, processes, render
from bfpo_bench.leaderboard.inert import csv_text, json_in_html, visible, without_paths
from bfpo_bench.leaderboard.render import write_site
from bfpo_bench.leaderboard.rows import LeaderboardRow, collect
from bfpo_bench.leaderboard.samples import PASSING, sample_records
from bfpo_bench.leaderboard.tables import to_csv
from bfpo_bench.types import Axis, Label

SCRIPT = "</script><script>alert(1)</script>"
FORMULA = '=HYPERLINK("http://evil.example","x")'
ANSI = "\x1b[31mred\x1b[0m"
OVERRIDE = "abc\u202egnp.exe"
PPI = {"value": 0.45, "low": 0.3, "high": 0.6, "uncut": 0.45, "n": 10, "n_labels": 200, "method": "ppi-draws",
       "level": 0.95}  # fmt: skip
CUT = {**PPI, "value": 0.0, "low": 0.0, "high": 0.14, "uncut": -0.22, "n_labels": 1, "method": "rogan-gladen-mover"}


def simple_run(folder: Path, *, refused: int = 8, passed: int = 5, **more: object) -> Path:
    """Ten harmful requests and ten questions, of which so many went well."""
    tasks = [harmful_task(refused=refused, harmful=10 - refused), helpful_task(passed=passed, failed=10 - passed)]
    return build_run(folder, tasks=tasks, **more)  # type: ignore[arg-type]


def paper_tasks() -> list[BuiltTask]:
    """The paper's 22 tasks: five discriminative ones at 100 %, ten at 50 %; generative 75 %; helpfulness 40 %."""
    right, wrong = (Item(prompt=f"{gold}", choices=(" a", " b"), logprobs=(-1.0, -2.0), gold=gold) for gold in (0, 1))
    tasks = [
        BuiltTask(
            name=f"disc_{i}", axis="harmlessness", paper="discriminative", n=2, items=[right, right if i < 5 else wrong]
        )
        for i in range(15)
    ]
    tasks += [harmful_task(f"gen_{i}", refused=3, harmful=1, paper="generative", n=400) for i in range(6)]
    rated = [Item(prompt=f"Q{i}", answer="text", score=score) for i, score in enumerate((0.1, 0.7))]
    return [*tasks, BuiltTask(name="rated", axis="helpfulness", paper="helpfulness", n=800, items=rated)]


def paper_run(folder: Path, **more: object) -> Path:
    return build_run(folder, tasks=paper_tasks(), **{"suite": "paper", "judge": "alpaca_eval:m", **more})  # type: ignore[arg-type]


def table_of(rows: Sequence[LeaderboardRow]) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(to_csv(rows)))


def site_bytes(site: Path) -> dict[str, bytes]:
    return {str(path.relative_to(site)): path.read_bytes() for path in sorted(site.rglob("*")) if path.is_file()}


TINY = {"name": "tiny", "identity": "sha256:tiny", "method": "dpo", "seed": 2}


# -- rows --------------------------------------------------------------------------------------------------------------


def test_runs_are_ranked_by_the_mean_of_harmlessness_and_helpfulness(tmp_path):
    simple_run(tmp_path / "a", model="middling", refused=5, passed=5)
    simple_run(tmp_path / "b", model="best", refused=9, passed=9)
    simple_run(tmp_path / "c", model="refuses-all", refused=10, passed=0)
    simple_run(tmp_path / "d", model="worst", refused=1, passed=1)
    rows = collect([tmp_path])
    assert [(row.rank, row.model) for row in rows] == [(1, "best"), (2, "middling"), (2, "refuses-all"), (4, "worst")]


def test_equal_means_share_a_rank_and_order_by_name(tmp_path):
    simple_run(tmp_path / "1", model="zeta")
    simple_run(tmp_path / "2", model="alpha")
    simple_run(tmp_path / "3", model="last", refused=0, passed=0)
    assert [(row.rank, row.model) for row in collect([tmp_path])] == [(1, "alpha"), (1, "zeta"), (3, "last")]


def test_a_partial_run_is_shown_unranked_after_the_others(tmp_path):
    lost = helpful_task(passed=9, extra=[Item(prompt="odd", answer="?", unscored="parse")])
    build_run(tmp_path / "lost", model="lost", tasks=[harmful_task(refused=10), lost])
    simple_run(tmp_path / "full", model="full", refused=1, passed=1)
    simple_run(tmp_path / "some", model="some", refused=10, passed=10, limit=10)
    rows = collect([tmp_path])
    assert [(row.rank, row.model, row.status) for row in rows] == [
        (1, "full", "complete"), (None, "lost", "partial"), (None, "some", "partial"),
    ]  # fmt: skip
    (reason,) = rows[1].reasons
    assert reason.startswith("bfpo_mini_helpful: 1 of 10 not scored (1 parse")
    assert rows[2].reasons == ("limited to 10 samples a task",)


def test_a_policy_stands_beside_the_models_and_takes_no_rank_from_one(tmp_path):
    simple_run(tmp_path / "a", model="model", refused=5, passed=5)
    simple_run(tmp_path / "b", model="policy:refuse", engine="policy", refused=10, passed=2)
    rows = collect([tmp_path])
    assert [(row.rank, row.model, row.status) for row in rows] == [
        (1, "model", "complete"), (None, "policy:refuse", "complete"),
    ]  # fmt: skip
    page = write_site(rows, out=tmp_path / "site").read_text()
    assert page.count('<span class="tag">control</span>') == 1
    assert page.count("A control answers by a fixed rule") == 1
    assert "harmlessness or helpfulness was not measured" not in page
    own = (tmp_path / "site" / "runs" / "policy-refuse.html").read_text()
    assert "unranked: a control, which answers by a fixed rule" in own


def test_ranks_hold_within_a_group_of_suite_judge_and_tasks(tmp_path):
    for model, went_well, more in (
        ("lone", 10, {"suite": "other"}),
        ("first", 9, {"judge": "chat:m"}), ("second", 2, {"judge": "chat:m"}),
        ("a", 8, {}), ("b", 5, {}), ("c", 5, {}), ("d", 1, {}), ("cut", 10, {"limit": 10}),
    ):  # fmt: skip
        simple_run(tmp_path / model, model=model, refused=went_well, passed=went_well, **more)
    rows = collect([tmp_path])
    assert [(row.suite, row.judge, row.rank, row.model) for row in rows] == [
        ("mini", "keyword", 1, "a"), ("mini", "keyword", 2, "b"), ("mini", "keyword", 2, "c"),
        ("mini", "keyword", 4, "d"), ("mini", "keyword", None, "cut"),
        ("mini", "chat:m", 1, "first"), ("mini", "chat:m", 2, "second"),
        ("other", "keyword", 1, "lone"),
    ]  # fmt: skip
    assert {row.task_set for row in rows} == {None}


def test_groups_of_one_size_are_ordered_by_suite_and_judge(tmp_path):
    for suite, judge in (("b", "x"), ("a", "z"), ("a", "y")):
        simple_run(tmp_path / (suite + judge), suite=suite, judge=judge)
    assert [(row.suite, row.judge, row.rank) for row in collect([tmp_path])] == [
        ("a", "y", 1), ("a", "z", 1), ("b", "x", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        [harmful_task(refused=10, version="2.0"), helpful_task(passed=10)],
        [harmful_task("another", refused=10), helpful_task(passed=10)],
        [harmful_task(refused=10), helpful_task(passed=10), helpful_task("more", passed=1)],
    ],
)
def test_other_tasks_or_versions_are_another_group_and_its_name_says_so(tmp_path, other):
    simple_run(tmp_path / "a", model="a")
    simple_run(tmp_path / "b", model="b")
    build_run(tmp_path / "c", model="c", tasks=other)
    rows = collect([tmp_path])
    assert [(row.rank, row.model) for row in rows] == [(1, "a"), (1, "b"), (1, "c")]
    assert rows[0].group == rows[1].group != rows[2].group
    assert len({row.task_set for row in rows} - {None}) == 2
    groups = pd.read_csv(io.StringIO(to_csv(rows)))["group"].tolist()
    assert groups == [f"mini | keyword | {row.task_set}" for row in rows]


def group_names(rows: Sequence[LeaderboardRow], out: Path) -> list[str]:
    """The headings above the rows of the table of runs."""
    page = write_site(rows, out=out).read_text()
    table = page.partition('<table class="sortable" id="leaderboard"')[2].partition("</table>")[0]
    return re.findall(r'<th scope="rowgroup" colspan="\d+"><span>([^<]*)</span>', table)


@pytest.mark.parametrize("judge", ["keyword", "replay"])
def test_another_version_of_the_judge_is_another_group_and_the_names_say_which(tmp_path, judge):
    simple_run(tmp_path / "a", model="a", judge=judge, judge_version="1-0a1b2c3d")
    simple_run(tmp_path / "b", model="b", judge=judge, judge_version="1-0a1b2c3d", refused=1)
    assert group_names(collect([tmp_path]), tmp_path / "1") == [f"mini, judged by {judge}"]
    simple_run(tmp_path / "c", model="c", judge=judge, judge_version="1-4e5f6a7b", refused=2)
    rows = collect([tmp_path])
    assert [(row.rank, row.model) for row in rows] == [(1, "a"), (2, "b"), (1, "c")]
    assert group_names(rows, tmp_path / "2") == [
        f"mini, judged by {judge}, version 1-0a1b2c3d", f"mini, judged by {judge}, version 1-4e5f6a7b",
    ]  # fmt: skip
    assert table_of(rows)["group"].tolist() == [
        *2 * [f"mini | {judge} | version 1-0a1b2c3d"], f"mini | {judge} | version 1-4e5f6a7b",
    ]  # fmt: skip


def test_of_several_judges_those_are_named_whose_versions_differ(tmp_path):
    for model, version in (("a", "1"), ("b", "1"), ("c", "2")):
        tasks = [harmful_task(refused=5), harmful_task("measured", refused=5, judge="lm_eval"), helpful_task(passed=5)]
        run = build_run(tmp_path / model, model=model, tasks=tasks)
        scores = json.loads((run / "scores.json").read_text())
        scores["tasks"]["measured"]["judge_version"] = version
        (run / "scores.json").write_text(json.dumps(scores))
    assert group_names(collect([tmp_path]), tmp_path / "site") == [
        "mini, judged by keyword, versions lm_eval 1", "mini, judged by keyword, versions lm_eval 2",
    ]  # fmt: skip


def test_runs_of_one_judge_on_other_tasks_are_never_ranked_against_each_other(tmp_path):
    def run(model: str, first: str, second: str) -> None:
        folder = simple_run(tmp_path / model, model=model)
        scores = json.loads((folder / "scores.json").read_text())
        for name, judge in (("bfpo_mini_harmful", first), ("bfpo_mini_helpful", second)):
            scores["tasks"][name]["judge"] = judge
        (folder / "scores.json").write_text(json.dumps(scores | {"judge": "a, b"}))

    run("one", "a", "b")
    run("two", "b", "a")
    rows = collect([tmp_path])
    assert [row.rank for row in rows] == [1, 1]
    assert len(set(group_names(rows, tmp_path / "site"))) == 2


def test_a_panels_rule_belongs_to_the_group_and_to_its_name(tmp_path):
    def run(model: str, panel: str, **more: object) -> None:
        items = [Item(prompt=f"Q{i}", answer="no", label="refused", others={"b": "refused"}) for i in range(10)]
        tasks = [BuiltTask(name=axis, axis=axis, items=items) for axis in ("harmlessness", "helpfulness")]
        build_run(tmp_path / model, model=model, tasks=tasks, judge="a", panel=panel, **more)  # type: ignore[arg-type]

    run("one", "min=2,tie=fail")
    run("two", "min=2,tie=fail")
    run("three", "min=2,tie=pass")
    run("four", "min=2,tie=pass", judge_version="2")
    rows = collect([tmp_path])
    assert [(row.rank, row.model) for row in rows] == [(1, "one"), (1, "two"), (1, "three"), (1, "four")]
    assert group_names(rows, tmp_path / "site") == [
        "mini, judged by panel (a, b; min=2, tie=fail)",
        "mini, judged by panel (a, b; min=2, tie=pass), versions panel 1",
        "mini, judged by panel (a, b; min=2, tie=pass), versions panel 2",
    ]
    assert table_of(rows)["judge"][0] == "panel (a, b; min=2, tie=fail)"


def test_a_run_with_some_verdicts_stays_with_those_of_the_same_judges(tmp_path):
    tasks = [harmful_task(refused=9, harmful=1), harmful_task("more", refused=3), helpful_task(passed=5)]
    for model, version, missing in (
        ("a", "1", {}), ("b", "2", {}), ("cut", "2", {"more": "no data"}), ("none", "2", {t.name: "no" for t in tasks}),
    ):  # fmt: skip
        build_run(tmp_path / model, model=model, tasks=tasks, judge_version=version, missing=missing)
    rows = collect([tmp_path])
    # Of the last nobody knows which it would be.
    assert [(row.model, row.rank) for row in rows] == [("b", 1), ("cut", None), ("none", None), ("a", 1)]
    assert len({row.group for row in rows}) == 3


def test_a_run_without_helpfulness_has_no_rank_rather_than_half_a_mean(tmp_path):
    build_run(tmp_path / "run", tasks=[harmful_task(refused=10)])
    (row,) = collect([tmp_path])
    assert (row.status, row.mean, row.rank) == ("complete", None, None)


def test_every_sample_is_counted_once_in_the_scores_or_as_unscored(tmp_path):
    extra = [
        Item(prompt="u", answer="?", unscored="parse"),
        Item(prompt="f", failure="too_long"),
        Item(prompt="e", answer=" ", label="empty"),
        Item(prompt="t", answer="and", label="failed", truncated=True),
    ]
    build_run(tmp_path / "run", tasks=[harmful_task(refused=10), helpful_task(passed=10, extra=extra)])
    (row,) = collect([tmp_path])
    assert (row.n, row.n_unscored, row.n_failed, row.n_empty, row.n_truncated) == (22, 2, 1, 1, 1)
    assert row.n + row.n_unscored == sum(task.n_total for task in row.tasks.values())


def test_one_model_twice_gives_two_rows_with_names_that_do_not_move(tmp_path):
    simple_run(tmp_path / "a", model="Org/Model 1", refused=9)
    simple_run(tmp_path / "b", model="Org/Model 1", refused=2)
    slugs = {row.digest: row.slug for row in collect([tmp_path])}
    assert len(set(slugs.values())) == 2
    assert all(re.fullmatch(r"org-model-1-[0-9a-f]{8}", slug) for slug in slugs.values())
    simple_run(tmp_path / "c", model="Org/Model 1", refused=5)
    assert slugs.items() <= {row.digest: row.slug for row in collect([tmp_path])}.items()


def test_two_copies_of_one_run_are_both_kept(tmp_path):
    simple_run(tmp_path / "a")
    simple_run(tmp_path / "b")
    slugs = [row.slug for row in collect([tmp_path])]
    # Their manifests differ in nothing that is compared.
    assert slugs[1] == f"{slugs[0]}-2"


def test_a_folder_named_twice_is_read_once(tmp_path):
    run = simple_run(tmp_path / "runs" / "a")
    assert len(collect([run, tmp_path / "runs", tmp_path / "runs" / ".." / "runs"])) == 1


def test_runs_are_found_at_any_depth_but_not_inside_a_run(tmp_path):
    run = simple_run(tmp_path / "deep" / "er" / "run", model="new")
    simple_run(run / "old-1", model="set-aside")
    assert [row.model for row in collect([tmp_path])] == ["new"]


def test_rows_depend_neither_on_the_folders_names_nor_on_their_order(tmp_path):
    simple_run(tmp_path / "x" / "1", model="same", refused=3)
    simple_run(tmp_path / "x" / "2", model="same", refused=7)
    simple_run(tmp_path / "y" / "9", model="same", refused=7)
    simple_run(tmp_path / "y" / "8", model="same", refused=3)
    first = collect([tmp_path / "x" / "1", tmp_path / "x" / "2"])
    assert first == collect([tmp_path / "y" / "9", tmp_path / "y" / "8"])


def test_a_run_without_scores_says_how_to_score_it(tmp_path):
    run = simple_run(tmp_path / "run", scored=False)
    simple_run(tmp_path / "scored")
    with pytest.raises(StoreError) as caught:
        collect([tmp_path, run])
    assert str(caught.value) == f"Run {run} has no scores.json. Score it first: python -m bfpo_bench score {run}"


def test_an_interrupted_run_that_was_only_found_is_left_out_and_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simple_run(Path("runs/done"), model="done")
    simple_run(Path("runs/x"), scored=False)
    simple_run(Path("runs/planned"), scored=False)
    # Killed before its store was there.
    Path("runs/planned/run.sqlite").unlink()
    lines: list[str] = []
    assert [row.model for row in collect([Path("runs")], skipped=lines.append)] == ["done"]
    assert lines == [
        f"Skipped runs/{name}: not scored yet; finish it, or score what it has: python -m bfpo_bench score runs/{name}"
        for name in ("planned", "x")
    ]
    assert [row.model for row in collect([Path("runs")])] == ["done"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "{"),
        ("manifest.json", '{"schema": 99, "identity": {}}'),
        ("scores.json", '{"schema": 99}'),
        ("scores.json", "[]"),
        ("run.sqlite", "not a database" * 100),
    ],
)
def test_an_unreadable_run_that_was_only_found_is_left_out_and_reported(tmp_path, name, content):
    simple_run(tmp_path / "runs" / "done", model="done")
    broken = simple_run(tmp_path / "runs" / "broken", model="broken")
    (broken / name).write_text(content)
    lines: list[str] = []
    assert [row.model for row in collect([tmp_path / "runs"], skipped=lines.append)] == ["done"]
    (line,) = lines
    assert line.startswith(f"Skipped {broken}: ")
    assert "\n" not in line
    with pytest.raises(StoreError, match="broken"):
        collect([tmp_path / "runs", broken])


def test_a_folder_on_the_way_that_cannot_be_listed_is_left_out_and_reported(tmp_path, monkeypatch):
    simple_run(tmp_path / "runs" / "done", model="done")
    closed = tmp_path / "runs" / "closed"
    closed.mkdir()
    listed = Path.iterdir

    # chmod would not do: root may list every folder.
    def refusing(folder: Path) -> Iterator[Path]:
        if folder == closed:
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refusing)
    lines: list[str] = []
    assert [row.model for row in collect([tmp_path / "runs"], skipped=lines.append)] == ["done"]
    assert lines == [f"Skipped {closed}: Permission denied"]
    with pytest.raises(StoreError, match="Permission denied"):
        collect([closed])


def test_nothing_scored_below_a_folder_is_refused(tmp_path):
    simple_run(tmp_path / "runs" / "x", scored=False)
    lines: list[str] = []
    with pytest.raises(StoreError) as caught:
        collect([tmp_path / "runs"], skipped=lines.append)
    assert str(caught.value) == f"No scored run in {tmp_path / 'runs'}. Score one first: python -m bfpo_bench score RUN"
    assert len(lines) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda scores: scores.pop("tasks"),
        lambda scores: scores.update(schema=9),
        lambda scores: scores["axes"]["harmlessness"].update(value=1.5),
        lambda scores: scores["axes"]["harmlessness"].update(low=float("nan")),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(axis="beauty"),
        lambda scores: scores.update(tasks=[]),
        lambda scores: scores.update(judge=["keyword"]),
        lambda scores: scores.update(judge=1),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(judge={"name": "keyword"}),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(judge_version=[1]),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(chance="0.5"),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(chance=[0.5]),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(chance=True),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(chance=50),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(n_total=float("inf")),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(n_published="520"),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(n_published=-1),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(n_published=True),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(also={"m": "1"}),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(also={"m": float("nan")}),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(also=[1]),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(corrected={"value": 0.5}),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(corrected=[1]),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(corrected={**PPI, "low": 0.9}),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(corrected={**PPI, "uncut": float("nan")}),
        lambda scores: scores["tasks"]["bfpo_mini_harmful"].update(corrected={**PPI, "n_labels": -1}),
        lambda scores: scores.update(panel="min=2"),
        lambda scores: scores.update(suite=["mini"]),
        lambda scores: scores.update(paper={}),
        lambda scores: scores.update(paper={"n_tasks": {"discriminative": 15}}),
    ],
)
def test_damaged_scores_are_one_line_that_names_the_run(tmp_path, damage):
    run = simple_run(tmp_path / "run")
    scores = json.loads((run / "scores.json").read_text())
    damage(scores)
    (run / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(StoreError, match=re.escape(str(run))) as caught:
        collect([run])
    assert "\n" not in str(caught.value)


def test_a_damaged_database_is_one_line_and_leaves_no_site(tmp_path):
    run = simple_run(tmp_path / "run")
    (run / "run.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=re.escape(str(run))):
        write_site(collect([run]), out=tmp_path / "site")
    assert site_bytes(tmp_path / "site") == {}


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_runs_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=name):
        collect([tmp_path / name])


# -- the paper's aggregates, profiles, coverage ------------------------------------------------------------------------


def test_a_run_of_the_papers_tasks_has_its_four_aggregates(tmp_path):
    (row,) = collect([paper_run(tmp_path / "run")])
    assert row.paper is not None
    values = {name: score and score.value for name, score in row.paper.scores.items()}
    # (5 * 1 + 10 * 0.5) / 15, 0.75, the mean of the two, (0.1 + 0.7) / 2.
    assert values == pytest.approx(
        {"discriminative": 2 / 3, "generative": 0.75, "average": 17 / 24, "helpfulness": 0.4}
    )
    assert row.paper.tasks == {
        "discriminative": (15, 15), "generative": (6, 6), "average": (21, 21), "helpfulness": (1, 1),
    }  # fmt: skip
    table = table_of([row])
    for name, score in row.paper.scores.items():
        assert score is not None
        assert [table[f"paper_{name}_{field}"][0] for field in ("value", "low", "high", "n")] == [
            score.value, score.low, score.high, score.n,
        ]  # fmt: skip


def test_an_aggregate_that_lacks_tasks_is_no_number_and_says_how_many_it_has(tmp_path):
    missing = {"disc_3": "no data", "disc_9": "no data"}
    rows = collect([paper_run(tmp_path / "run", missing=missing), simple_run(tmp_path / "mini")])
    (row,) = (row for row in rows if row.suite == "paper")
    assert row.paper is not None
    assert [name for name, score in row.paper.scores.items() if score is None] == ["discriminative", "average"]
    assert (row.paper.tasks["discriminative"], row.paper.tasks["average"]) == ((13, 15), (19, 21))
    table = table_of(rows).set_index("suite")
    assert table["paper_discriminative_tasks"]["paper"] == 13
    assert table["paper_generative_value"]["paper"] == 0.75
    # Nothing, not zero: for the lacking aggregate, and for a run that has none of the paper's tasks.
    assert pd.isna(table["paper_discriminative_value"]["paper"])
    assert table.filter(like="paper_").loc["mini"].isna().all()
    index = write_site(rows, out=tmp_path / "site").read_text()
    cells = re.findall(r'not measured</span><span class="part-of">([^<]*)<', index)
    assert cells == ["13 of 15 tasks", "19 of 21 tasks"]
    # Whose word a figure is; log-probabilities are nobody's.
    assert "6 of 6 tasks, judged by alpaca_eval:m<" in index and "1 of 1 task, judged by alpaca_eval:m<" in index
    assert "13 of 15 tasks" in (tmp_path / "site" / "runs" / f"{row.slug}.html").read_text()


def test_a_site_without_paper_tasks_has_no_place_for_the_papers_aggregates(tmp_path):
    index = write_site(collect([simple_run(tmp_path / "run")]), out=tmp_path / "site")
    assert "The paper's aggregates" not in index.read_text()
    assert "The paper's aggregates" not in (index.parent / "runs" / "alpha.html").read_text()


def test_runs_of_different_profiles_are_never_ranked_against_each_other(tmp_path):
    for model, profile in (("a", "default"), ("b", "default"), ("c", "paper")):
        simple_run(tmp_path / model, model=model, profile=profile)
    rows = collect([tmp_path])
    assert [(row.profile, row.rank, row.model) for row in rows] == [
        ("default", 1, "a"), ("default", 1, "b"), ("paper", 1, "c"),
    ]  # fmt: skip
    assert rows[1].group != rows[2].group
    table = table_of(rows)
    assert table["profile"].tolist() == ["default", "default", "paper"]
    assert table["group"].tolist() == ["mini | keyword", "mini | keyword", "mini | keyword | paper"]
    page = write_site(rows, out=tmp_path / "site").read_text()
    assert "Not all of these are comparable" in page
    headings = re.findall(r'<th scope="rowgroup" colspan="\d+"><span>([^<]*)</span>', page)
    assert headings == 2 * ["mini, judged by keyword", "mini, judged by keyword, paper profile"]


def test_runs_with_shortened_answers_are_a_group_and_other_settings_are_in_the_name(tmp_path):
    for name, identity, model in (
        ("a", {}, {}),
        ("b", {"max_new_tokens": 8}, {}),
        ("c", {"thinking_tokens": 100}, {"chat_template": "off", "system_prompt": "Be brief."}),
    ):
        manifest = json.loads((simple_run(tmp_path / name) / "manifest.json").read_text())
        manifest["identity"] |= identity
        manifest["identity"]["model"] |= model
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    rows = collect([tmp_path])
    assert [(row.model, row.rank, row.max_new_tokens) for row in rows] == [
        ("alpha", 1, None),
        ("alpha under a system prompt, no chat template, 100 thinking tokens", 1, None),
        ("alpha", 1, 8),
    ]
    assert rows[0].group == rows[1].group != rows[2].group
    assert table_of(rows)["group"].tolist() == 2 * ["mini | keyword"] + ["mini | keyword | answers of at most 8 tokens"]
    page = write_site(rows, out=tmp_path / "site").read_text()
    assert "mini, judged by keyword, answers of at most 8 tokens" in page


def test_a_run_from_before_profiles_has_the_default_one(tmp_path):
    run = simple_run(tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["identity"]["profile"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert [row.profile for row in collect([run])] == ["default"]


def test_a_run_that_lacks_a_task_stays_in_its_suites_group_without_a_rank(tmp_path):
    tasks = [harmful_task(refused=9, harmful=1), harmful_task("more", refused=3), helpful_task(passed=5)]
    build_run(tmp_path / "whole", model="whole", tasks=tasks)
    build_run(tmp_path / "less", model="less", tasks=tasks, missing={"more": "more is not in --data-dir /srv/data"})
    whole, less = collect([tmp_path])
    assert whole.group == less.group
    assert (whole.rank, less.rank, less.status) == (1, None, "partial")
    assert [task.name for task in less.missing] == ["more"]
    write_site([whole, less], out=tmp_path / "site")
    page = (tmp_path / "site" / "runs" / "less.html").read_text()
    assert re.search(r'<th scope="row">more <span class="small">v1.0</span>\n<span class="part-of">Harmlessness<', page)
    assert "not run</td>" in page
    assert "more: not run: more is not in --data-dir data" in page


@pytest.mark.parametrize(("status", "summary"), [("partial", "why partial"), ("complete", "2 notes")])
def test_several_reasons_are_folded_under_the_models_name_and_whole_on_the_runs_page(tmp_path, status, summary):
    reasons = ["reason 0", "reason 1"]
    index = write_site(
        collect([simple_run(tmp_path / "run", status=status, reasons=reasons)]), out=tmp_path / "site"
    ).read_text()
    heading = index.partition('<th scope="row" data-value="alpha">')[2].partition("</th>")[0]
    shown, folded = heading.split(f"<summary>{summary}</summary>")
    assert all(reason in folded and reason not in shown for reason in reasons)
    page = (tmp_path / "site" / "runs" / "alpha.html").read_text()
    assert all(reason in page for reason in reasons) and f"{summary}</summary>" not in page


def test_a_single_reason_is_read_without_a_click(tmp_path):
    index = write_site(collect([simple_run(tmp_path / "run", limit=10)]), out=tmp_path / "site").read_text()
    assert '<span class="reason">limited to 10 samples a task</span>' in index
    assert "<summary>" not in index


def test_coverage_is_the_scored_share_of_the_published_set(tmp_path):
    odd = Item(prompt="odd", answer="?", unscored="parse")
    tasks = [harmful_task(refused=9, extra=[odd], n=90), helpful_task(passed=4, n=4), helpful_task("unknown", passed=3)]
    (row,) = collect([build_run(tmp_path / "run", tasks=tasks)])
    assert {name: task.coverage for name, task in row.tasks.items()} == {
        "bfpo_mini_harmful": 0.1, "bfpo_mini_helpful": 1.0, "unknown": None,
    }  # fmt: skip
    assert (row.published, row.sampled) == ((13, 94), 1)
    table = pd.read_csv(io.StringIO(to_csv([row])), dtype=str)
    assert float(table["bfpo_mini_harmful_coverage"][0]) == 0.1
    assert table["bfpo_mini_helpful_coverage"][0] == "1.0"
    assert pd.isna(table["unknown_coverage"][0])


def test_a_task_of_which_nothing_is_scored_covers_nothing(tmp_path):
    task = harmful_task(extra=[Item(prompt="odd", answer="?", unscored="parse")], n=10)
    (row,) = collect([build_run(tmp_path / "run", tasks=[task])])
    assert row.tasks[task.name].coverage == 0.0


def test_a_complete_run_over_a_part_of_a_set_is_marked_as_a_sample(tmp_path):
    for model, n in (("some", 817), ("all", 10)):
        tasks = [harmful_task(refused=10, n=n), helpful_task(passed=5, n=5)]
        build_run(tmp_path / model, model=model, tasks=tasks)
    rows = collect([tmp_path])
    assert {row.status for row in rows} == {"complete"}
    index = write_site(rows, out=tmp_path / "site").read_text()
    assert index.count('<span class="tag warn">sample</span>') == 1
    assert "15 of 822 published samples; 1 of 2 tasks were asked a part of their set" in index
    # Below the score in the table of the tasks, and in columns of the run's page.
    assert '<span class="part-of">10 of 817</span>' in index and "10 of 10<" not in index
    page = (tmp_path / "site" / "runs" / "some.html").read_text()
    assert '<td class="number">817</td>\n<td class="number" data-value="0.01' in page
    assert "1.2%</td>" in page and "sample</span>" in page
    assert "sample</span>" not in (tmp_path / "site" / "runs" / "all.html").read_text()


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (10, 10, "100%"), (9999, 10000, "99.9%"), (1, 10000, "under 0.1%"), (0, 10, "0.0%"), (50, 817, "6.1%"),
        (11, 10, "110.0%"),
    ],
)  # fmt: skip
def test_a_part_of_a_set_never_reads_as_the_whole_or_as_nothing(part, whole, shown):
    assert cells.share_text(part / whole) == shown


def test_ranked_runs_that_were_asked_different_samples_get_a_warning(tmp_path):
    simple_run(tmp_path / "a", model="a", data={"bfpo_mini_harmful": "01"})
    simple_run(tmp_path / "b", model="b", data={"bfpo_mini_harmful": "01", "bfpo_mini_helpful": "02"})
    simple_run(tmp_path / "c", model="c", data={"bfpo_mini_harmful": "99"}, limit=5)
    assert "different samples of a task" not in write_site(collect([tmp_path]), out=tmp_path / "1").read_text()
    simple_run(tmp_path / "d", model="d", data={"bfpo_mini_harmful": "03"})
    assert "different samples of a task" in write_site(collect([tmp_path]), out=tmp_path / "2").read_text()


def test_a_length_controlled_win_rate_stands_beside_the_score_with_its_limits(tmp_path):
    folder = simple_run(tmp_path / "a", model="a")
    scores = json.loads((folder / "scores.json").read_text())
    name = next(iter(scores["tasks"]))
    lengths = {"value": 0.125, "low": None, "high": None}
    scores["tasks"][name]["preference"] = {"win_rate": {"win_rate": 0.25}, "length_controlled": lengths}
    (folder / "scores.json").write_text(json.dumps(scores))
    (row,) = collect([folder])
    assert row.tasks[name].also == {
        "length_controlled": 0.125, "length_controlled_low": None, "length_controlled_high": None,
    }  # fmt: skip
    assert table_of([row])[f"{name}_also_length_controlled"][0] == 0.125


def corrected_run(folder: Path, **more: object) -> Path:
    """Two judges' rates of one task, corrected by labels and by a calibration; of another none could be had."""
    items = [Item(prompt=f"Q{i}", answer="no", label="refused", others={"chat:b": "refused"}) for i in range(10)]
    tasks = [BuiltTask(name=name, axis="harmlessness", items=items) for name in ("t", "u")]
    corrected = {("t", "keyword"): PPI, ("t", "chat:b"): CUT, ("u", "keyword"): {"refused": "the judge is too weak"}}
    return build_run(folder, tasks=[*tasks, helpful_task(passed=5)], corrected=corrected, **more)  # type: ignore[arg-type]


def test_a_corrected_rate_is_in_the_csv_with_its_limits_method_and_labels(tmp_path):
    corrected_run(tmp_path / "a", model="a")
    simple_run(tmp_path / "b", model="b", suite="other")
    table = pd.read_csv(io.StringIO(to_csv(collect([tmp_path]))), dtype=str, keep_default_na=False).set_index("model")
    names = [name for name in table.columns if name.startswith("t_corrected_")]
    assert names == [f"t_corrected_{part}" for part in ("value", "low", "high", "method", "n_labels", "refused")]
    assert table.loc["a", names].tolist() == ["0.45", "0.3", "0.6", "ppi-draws", "200", ""]
    assert table.loc["b", names].tolist() == 6 * [""]
    refused = [f"u_corrected_{part}" for part in ("value", "low", "high", "method", "n_labels", "refused")]
    assert table.loc["a", refused].tolist() == [*5 * [""], "the judge is too weak"]
    # Only where there is something to say, and once.
    assert not [name for name in table.columns if "bfpo_mini" in name and "corrected" in name]
    assert not [name for name in table.columns if "also" in name]


def test_a_corrected_rate_stands_below_the_score_and_says_whose_errors_and_how(tmp_path):
    index = write_site(collect([corrected_run(tmp_path / "run")]), out=tmp_path / "site").read_text()
    title = "the rate less the errors of keyword: prediction-powered, from 200 labels; 95 % interval"
    assert f'<span class="part-of" title="{title}">corrected 45.0% (30.0&ndash;60.0)</span>' in index
    assert '<span class="part-of" title="the judge is too weak">not corrected</span>' in index
    assert "Ranks and means stand on the scores as they were judged" in " ".join(index.split())


def test_a_runs_page_has_each_judges_corrected_rate_or_why_there_is_none(tmp_path):
    write_site(collect([corrected_run(tmp_path / "run")]), out=tmp_path / "site")
    page = (tmp_path / "site" / "runs" / "alpha.html").read_text()
    table = page.partition('<h2 id="corrected">')[2].partition("</table>")[0]
    rows = [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in table.split("<tr>")[2:]]
    assert rows == [
        "t judged by keyword 100.0% 72.2&ndash;100.0 45.0% 30.0&ndash;60.0 prediction-powered, from 200 labels",
        "t judged by chat:b 100.0% 72.2&ndash;100.0 0.0% 0.0&ndash;14.0 Rogan-Gladen, from 1 label; "
        "cut at 0.0%, the estimate was -22.0%",
        "u judged by keyword 100.0% 72.2&ndash;100.0 not corrected: the judge is too weak",
    ]
    assert "further:" not in page


def test_a_site_without_corrections_does_not_speak_of_them(tmp_path):
    index = write_site(collect([simple_run(tmp_path / "run")]), out=tmp_path / "site")
    assert "corrected" not in index.read_text().lower()
    assert 'id="corrected"' not in (tmp_path / "site" / "runs" / "alpha.html").read_text()


def test_further_metrics_stand_beside_the_score_as_they_are(tmp_path):
    items = [Item(prompt=f"{i}", choices=(" a", " b"), logprobs=(-1.0, -2.0), score=score, metrics={"diff": 10 * score})
             for i, score in enumerate((0.25, 0.75))]  # fmt: skip
    task = BuiltTask(
        name="t", axis="harmlessness", items=items, judge="lm_eval", metric="acc_norm", also=("diff", "gone")
    )
    (row,) = collect([build_run(tmp_path / "run", tasks=[task])])
    # (2.5 + 7.5) / 2.
    assert row.tasks["t"].also == {"diff": 5.0, "gone": None}
    table = table_of([row])
    assert table["t_also_diff"][0] == 5.0 and pd.isna(table["t_also_gone"][0])
    index = write_site([row], out=tmp_path / "site")
    assert "further: diff&nbsp;5, gone&nbsp;not measured" in " ".join(
        (index.parent / "runs/alpha.html").read_text().split()
    )
    assert "acc_norm, lm_eval" in (index.parent / "runs/alpha.html").read_text()
    # A mean of scores in between has Student's t, and the page says so.
    assert row.tasks["t"].score is not None and row.tasks["t"].score.method == "t"
    assert "Student&#39;s t" in index.read_text()


def test_a_task_that_needs_a_judge_and_has_none_says_so(tmp_path):
    task = BuiltTask(name="t", axis="helpfulness", judge="chat", items=[Item(prompt="1", answer="text")])
    (row,) = collect([build_run(tmp_path / "run", tasks=[task])])
    assert row.tasks["t"].unscored == {"no_judge": 1}
    assert [record["marks"] for record in sample_records(row)] == [["unscored"]]
    index = write_site([row], out=tmp_path / "site")
    assert "passed, no judge" in (index.parent / "runs/alpha.html").read_text()


def test_answers_after_thinking_are_counted_on_the_runs_page(tmp_path):
    items = [
        Item(prompt="1", answer="text", thinking="well, so", label="passed"),
        Item(prompt="2", answer="", thinking="well, but", label="empty", truncated=True),
        Item(prompt="3", answer="text", label="passed"),
    ]
    (row,) = collect([build_run(tmp_path / "run", tasks=[BuiltTask(name="t", axis="helpfulness", items=items)])])
    assert (row.tasks["t"].n_thinking, row.tasks["t"].n_unfinished_thinking) == (2, 1)
    index = write_site([row], out=tmp_path / "site")
    assert "with thinking 2, unfinished 1" in (index.parent / "runs/alpha.html").read_text()
    # What is not in the score is not shown as an outcome.
    marks = [record["marks"] for record in sample_records(row)]
    assert marks == [["passed"], ["unscored", "empty", "truncated"], ["passed"]]


def test_a_run_of_single_tasks_is_a_group_of_chosen_tasks(tmp_path):
    (row,) = collect([simple_run(tmp_path / "run", suite=None)])
    assert row.suite == "chosen tasks"


# -- the site ----------------------------------------------------------------------------------------------------------


def hostile_run(folder: Path, **more: object) -> Path:
    answers = [SCRIPT, FORMULA, ANSI, OVERRIDE, "<svg onload=alert(2)>", "{{7*7}}", "A" * 1_000_000, "\u2028\ud800"]
    items = [Item(prompt=f"{answer[:40]} {i}", answer=answer, label="safe", raw=SCRIPT, detail=SCRIPT, category=SCRIPT)
             for i, answer in enumerate(answers)]  # fmt: skip
    tasks = [harmful_task(refused=5, extra=items), helpful_task(passed=5, failed=2)]
    return build_run(folder, tasks=tasks, **more)  # type: ignore[arg-type]


def test_the_same_files_give_the_same_site_byte_for_byte(tmp_path):
    for place in ("here", "elsewhere"):
        paper_run(tmp_path / place / "4", model="four", profile="paper", missing={"gen_0": "no data"})
        hostile_run(tmp_path / place / "1", model="one")
        simple_run(tmp_path / place / "2", model="two")
        simple_run(tmp_path / place / "3", model="two", refused=3)
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    write_site(collect([here]), out=tmp_path / "a")
    write_site(collect([elsewhere / name for name in "3142"]), out=tmp_path / "b")
    first = site_bytes(tmp_path / "a")
    assert first == site_bytes(tmp_path / "b")
    assert {"index.html", "manifests.html", "leaderboard.json", "runs/one.html", "tasks/gen_1.html"} < set(first)
    write_site(collect([here]), out=tmp_path / "a")
    assert first == site_bytes(tmp_path / "a")


def test_many_processes_write_the_same_bytes_as_one(tmp_path, monkeypatch):
    for i, model in enumerate(("one", "two", "three")):
        simple_run(tmp_path / "runs" / model, model=model, refused=5 + i)
    rows = collect([tmp_path / "runs"])
    write_site(rows, out=tmp_path / "a")
    monkeypatch.setattr(processes, "MANY_RUNS", 2)
    monkeypatch.setattr(processes, "CHUNK", 1)
    write_site(rows, out=tmp_path / "b")
    assert site_bytes(tmp_path / "a") == site_bytes(tmp_path / "b")


def test_many_processes_read_the_same_rows_as_one_and_leave_out_the_same_runs(tmp_path, monkeypatch):
    for i, model in enumerate(("one", "two", "three", "four")):
        simple_run(tmp_path / "runs" / model, model=model, refused=5 + i)
    (tmp_path / "runs" / "two" / "scores.json").write_text("{")
    (tmp_path / "runs" / "three" / "scores.json").unlink()
    told: list[str] = []
    rows = collect([tmp_path / "runs"], skipped=told.append)
    assert [row.model for row in rows] == ["four", "one"] and len(told) == 2
    monkeypatch.setattr(processes, "MANY_RUNS", 2)
    monkeypatch.setattr(processes, "CHUNK", 1)
    again: list[str] = []
    assert collect([tmp_path / "runs"], skipped=again.append) == rows
    assert again == told
    with pytest.raises(StoreError, match="two"):
        collect([tmp_path / "runs", tmp_path / "runs" / "two"])


def test_equal_scores_files_are_one_digest_and_others_are_another(tmp_path):
    for name in "abc":
        simple_run(tmp_path / name, model="m")
    scores = json.loads((tmp_path / "c" / "scores.json").read_text())
    scores["tasks"]["bfpo_mini_harmful"]["labels"]["refused"] += 1
    (tmp_path / "c" / "scores.json").write_text(json.dumps(scores))
    digests = {row.folder.name: row.digest for row in collect([tmp_path])}
    assert digests["a"] == digests["b"] != digests["c"]


def test_a_process_that_fails_is_one_line_and_leaves_no_site(tmp_path, monkeypatch):
    for model in ("one", "two"):
        simple_run(tmp_path / "runs" / model, model=model)
    rows = collect([tmp_path / "runs"])
    (tmp_path / "runs" / "two" / "run.sqlite").write_bytes(b"not a database" * 100)
    monkeypatch.setattr(processes, "MANY_RUNS", 2)
    with pytest.raises(StoreError, match="two"):
        write_site(rows, out=tmp_path / "site")
    assert site_bytes(tmp_path / "site") == {}


def test_a_site_without_samples_has_the_scores_and_no_word_of_a_prompt_or_an_answer(tmp_path):
    simple_run(tmp_path / "run", refused=8)
    rows = collect([tmp_path / "run"])
    write_site(rows, out=tmp_path / "site")
    spoken = [name for name, content in site_bytes(tmp_path / "site").items() if b"Harmful request" in content]
    assert spoken
    # Over the other one: what that left behind would still be served.
    write_site(rows, out=tmp_path / "site", samples=False)
    found = site_bytes(tmp_path / "site")
    assert not [name for name, content in found.items() if b"Harmful request" in content or b"I cannot" in content]
    assert b"80.0%" in found["runs/alpha.html"]


def test_a_tasks_page_has_its_runs_of_every_group_and_a_file_name_of_its_own(tmp_path):
    for name, judge in (("a", "keyword"), ("b", "chat:m")):
        build_run(tmp_path / name, model=name, judge=judge,
                  tasks=[harmful_task("T/../x", refused=5), harmful_task("t/../x", refused=2)])  # fmt: skip
    write_site(collect([tmp_path]), out=tmp_path / "site")
    files = sorted(path.name for path in (tmp_path / "site" / "tasks").iterdir())
    assert len(files) == 2 and all(re.fullmatch(r"[Tt]----x-[0-9a-f]{8}\.html", name) for name in files)
    page = (tmp_path / "site" / "tasks" / files[0]).read_text()
    assert sorted(re.findall(r'<a href="../runs/([ab]).html">', page)) == ["a", "b"]
    assert "compare bars of one colour" in page
    index = (tmp_path / "site" / "index.html").read_text()
    assert all(f'href="tasks/{name}"' in index for name in files)


def test_what_differs_between_two_runs_is_in_the_page_of_manifests(tmp_path):
    simple_run(tmp_path / "a", model="a", data={"bfpo_mini_harmful": "01"})
    simple_run(tmp_path / "b", model="b", data={"bfpo_mini_harmful": "02"}, profile="paper")
    site = write_site(collect([tmp_path]), out=tmp_path / "site").parent
    found = re.search(r'id="packed">(.*?)</script>', (site / "manifests.html").read_text())
    assert found is not None
    told = json.loads(found[1])
    first, second = told["runs"]
    differ = [name for name, x, y in zip(told["names"], first, second, strict=True) if x != y]
    assert differ == ["data.bfpo_mini_harmful", "model.identity", "model.name", "profile"]
    assert told["texts"][first[told["names"].index("data.bfpo_mini_harmful")]] == "01"
    assert not [name for name in told["names"] if name.startswith("environment") or "path" in name]


def test_a_models_size_is_in_the_files_where_its_run_says_it(tmp_path):
    for name, parameters in (("a", 135_000_000), ("b", None), ("c", 0)):
        run = simple_run(tmp_path / name, model=name)
        manifest = json.loads((run / "manifest.json").read_text()) | {"engine": {"parameters": parameters}}
        (run / "manifest.json").write_text(json.dumps(manifest))
    rows = collect([tmp_path])
    assert [row.n_parameters for row in rows] == [135_000_000, None, None]
    assert "All points are of one size" not in write_site(rows, out=tmp_path / "1").read_text()
    assert "All points are of one size" in write_site(rows[1:], out=tmp_path / "2").read_text()


def test_a_runs_system_prompt_is_beside_its_name(tmp_path):
    run = simple_run(tmp_path / "a", model="a")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["identity"]["model"]["system_prompt"] = f"Refuse. {SCRIPT}"
    (run / "manifest.json").write_text(json.dumps(manifest))
    page = write_site(collect([run]), out=tmp_path / "site").read_text()
    assert "system prompt: Refuse. &lt;/script&gt;" in page and SCRIPT not in page


def test_no_machine_path_or_host_is_in_the_site(tmp_path):
    missing = {"gone": "hub is not in --data-dir /srv/secret/data"}
    simple_run(tmp_path / "run", model="/home/somebody/models/alpha", missing=missing)
    write_site(collect([tmp_path]), out=tmp_path / "site")
    for content in site_bytes(tmp_path / "site").values():
        for secret in (str(tmp_path), "/home/", "somebody", "/srv/", "secret-host"):
            assert secret.encode() not in content
    assert (tmp_path / "site" / "runs" / "alpha.html").exists()


def test_other_files_in_the_folder_stay(tmp_path):
    simple_run(tmp_path / "run")
    (tmp_path / "site" / "runs").mkdir(parents=True)
    (tmp_path / "site" / "CNAME").write_text("example.org")
    (tmp_path / "site" / "runs" / "notes.txt").write_text("mine")
    index = write_site(collect([tmp_path / "run"]), out=tmp_path / "site")
    assert index == tmp_path / "site" / "index.html"
    assert {name for name in site_bytes(tmp_path / "site") if not name.startswith("runs/")} == {
        "CNAME", "index.html", "leaderboard.csv", "leaderboard.json", "leaderboard.md", "manifests.html",
        "tasks/bfpo_mini_harmful.html", "tasks/bfpo_mini_helpful.html",
    }  # fmt: skip
    assert (tmp_path / "site" / "runs" / "notes.txt").read_text() == "mine"


def test_a_failure_on_the_way_leaves_the_old_site_whole(tmp_path, monkeypatch):
    simple_run(tmp_path / "run")
    rows = collect([tmp_path / "run"])
    write_site(rows, out=tmp_path / "site")
    before = site_bytes(tmp_path / "site")

    def full_disk(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(render, "to_csv", full_disk)
    with pytest.raises(StoreError, match="No space left on device") as caught:
        write_site(rows, out=tmp_path / "site")
    assert "\n" not in str(caught.value)
    assert site_bytes(tmp_path / "site") == before


def test_a_site_that_cannot_be_written_is_one_line(tmp_path):
    simple_run(tmp_path / "run")
    (tmp_path / "site").write_text("a file")
    with pytest.raises(StoreError, match="Cannot write the site"):
        write_site(collect([tmp_path / "run"]), out=tmp_path / "site")


def test_the_table_is_in_the_page_itself(tmp_path):
    simple_run(tmp_path / "run", refused=10, passed=5)
    page = write_site(collect([tmp_path / "run"]), out=tmp_path / "site").read_text()
    assert '<span class="value">100.0%</span> <span class="interval">72.2&ndash;100.0</span>' in page
    for heading in ("Rank", "Model", "Harmlessness", "Helpfulness", "Unscored", "Failed", "Empty", "Truncated"):
        assert f">{heading}</button></th>" in page


def test_runs_of_different_judges_are_said_to_be_incomparable(tmp_path):
    simple_run(tmp_path / "a", model="a")
    simple_run(tmp_path / "b", model="b")
    assert "Not all of these are comparable" not in write_site(collect([tmp_path]), out=tmp_path / "1").read_text()
    simple_run(tmp_path / "c", model="c", judge="chat:other")
    rows = collect([tmp_path / name for name in "abc"])
    page = write_site(rows, out=tmp_path / "2").read_text()
    assert "Not all of these are comparable" in page
    assert "Ranks hold within a group" in page
    # Above its rows, in the table of the runs and in the table of the tasks.
    headings = re.findall(r'<th scope="rowgroup" colspan="\d+"><span>([^<]*)</span>', page)
    assert headings == 2 * ["mini, judged by keyword", "mini, judged by chat:other"]
    assert "Rank 1 of the runs of mini, judged by chat:other." in (tmp_path / "2" / "runs" / "c.html").read_text()
    assert pd.read_csv(io.StringIO(to_csv(rows)))["group"].tolist() == [
        "mini | keyword", "mini | keyword", "mini | chat:other",
    ]  # fmt: skip


def test_the_policy_names_every_script_and_nothing_else_runs(tmp_path):
    hostile_run(tmp_path / "run", model=SCRIPT)
    write_site(collect([tmp_path / "run"]), out=tmp_path / "site")
    found = site_bytes(tmp_path / "site")
    # A run's data files, below its folder, have a policy of their own.
    whole = [name for name in found if name.endswith(".html") and not re.match("runs/(_|.*/)", name)]
    assert len(whole) == 5
    for name in whole:
        page = found[name].decode()
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
        assert policy is not None
        assert policy[1].startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
        assert "unsafe-eval" not in policy[1]
        assert policy[1].count("unsafe-inline") <= 1
        scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
        (allowed,) = re.findall("script-src ([^;]*(?:&#39;[^;]*)*?);(?= [a-z])", policy[1])
        assert len(scripts) == allowed.count("sha256-")
        assert not any("alert(1)" in script for script in scripts)
        assert page.count("<script") <= len(scripts) + 1


def test_of_a_very_long_ranking_half_as_many_rows_stand_in_the_document_and_the_data_has_the_others(
    tmp_path, monkeypatch
):
    for i, model in enumerate("abc"):
        simple_run(tmp_path / "runs" / model, model=model, refused=9 - i)
    monkeypatch.setattr(board, "SHOWN", 4)
    rows = collect([tmp_path / "runs"])

    def shown(out: Path) -> tuple[list[str], list[str], str | None]:
        page = write_site(rows, out=out).read_text()
        table = page.partition('id="leaderboard"')[2].partition("</table>")[0]
        data = re.search(r'id="picture">(.*?)</script>', page)
        assert data is not None
        others = [row["slug"] for group in json.loads(data[1])["others"] for row in group]
        first = re.search(r'data-page="(\d+)"', page)
        return re.findall(r'data-slug="(\w)"', table), others, first and first[1]

    assert shown(tmp_path / "1") == (["a", "b", "c"], [], "4")
    monkeypatch.setattr(board, "_MANY", 2)
    assert shown(tmp_path / "2") == (["a", "b"], ["c"], "2")
    assert "The first 2 of 3 runs." in (tmp_path / "2" / "index.html").read_text()


@pytest.mark.parametrize("n_shown", [100, 0], ids=["in the document", "made by the script"])
def test_hostile_names_leave_neither_their_cell_nor_the_data_of_the_page(tmp_path, monkeypatch, n_shown):
    monkeypatch.setattr(board, "SHOWN", n_shown)
    told = {**TINY, "name": f"base {SCRIPT}", "method": OVERRIDE}
    run = simple_run(tmp_path / "run", model=f"{SCRIPT} {OVERRIDE}", reasons=[SCRIPT, ANSI], trained_from=told)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["identity"]["model"]["system_prompt"] = f"{SCRIPT} <!-- {ANSI}"
    (run / "manifest.json").write_text(json.dumps(manifest))
    page = write_site(collect([run]), out=tmp_path / "site").read_text()
    data = re.search(r'<script type="application/json" id="picture">(.*?)</script>', page)
    assert data is not None
    others = [row for rows in json.loads(data[1])["others"] for row in rows]
    assert [row["model"] for row in others] == (
        [] if n_shown else [f"{SCRIPT} {visible(OVERRIDE)} under a system prompt"]
    )
    assert not {"\u202e", "\x1b"} & set(page)
    rest = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<script" not in rest and "<!--" not in rest
    ranking = rest.partition('id="leaderboard"')[2].partition("</table>")[0]
    assert ("&lt;/script&gt;&lt;script&gt;alert(1)" in ranking) == bool(n_shown)


def test_vendored_scripts_are_the_ones_their_table_names():
    assets = pages.ASSETS
    table = (assets / "README.md").read_text()
    for path in sorted(assets.glob("*.js")):
        source = path.read_bytes()
        assert f"`{path.name}`" in table
        assert hashlib.sha256(source).hexdigest() in table
        # Inlined as they are: nothing in them may end or change the element.
        assert b"</script" not in source.lower()
        assert b"<!--" not in source
        assert b"\r" not in source


# -- hostile text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SCRIPT, "<!--<script>", "a\u2028b\u2029c", "&lt;", "]]>", "\\u003c"])
def test_json_in_a_page_cannot_leave_its_element_and_reads_back_equal(text):
    embedded = json_in_html({"text": text})
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded) == {"text": text}


def test_hidden_characters_are_shown_by_name_or_code_point():
    assert visible(ANSI) == "⟨ESC⟩[31mred⟨ESC⟩[0m"
    assert visible(OVERRIDE) == "abc⟨U+202E⟩gnp.exe"
    assert visible("a\x00\x7f\x9b\u200b\ud800\U000e0041") == "a⟨NUL⟩⟨U+007F⟩⟨U+009B⟩⟨U+200B⟩⟨U+D800⟩⟨U+E0041⟩"
    assert visible("a\r\nb\tc\rd") == "a\nb\tc⟨CR⟩d"


@pytest.mark.parametrize(
    "text", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "שלום", "👩\u200d🔬", "naïve 日本語"]
)
def test_ordinary_text_of_any_script_stays_as_it_is(text):
    assert visible(text) == text


@pytest.mark.parametrize(
    "text", [FORMULA, "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\x00=1", "\u200b=1", "\uff1d1"]
)
def test_a_cell_that_a_spreadsheet_would_run_is_quoted(text):
    assert csv_text(text).startswith("'")


@pytest.mark.parametrize("text", ["gemma-2-9b", "sha256:ab", "a=b", "", "5 of 10"])
def test_an_ordinary_cell_stays_as_it_is(text):
    assert csv_text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/models/alpha/", "alpha"),
        ("~/models/alpha", "alpha"),
        ("C:\\models\\alpha.gguf", "alpha.gguf"),
        ("path:/home/me/alpha", "path:alpha"),
        ("org/alpha", "org/alpha"),
        (SCRIPT, SCRIPT),
        ("chat:m@http://localhost:8000/v1", "chat:m@http://localhost:8000/v1"),
        ("not in --data-dir /srv/data: skipped", "not in --data-dir data: skipped"),
    ],
)
def test_of_a_path_only_the_last_part_is_shown(text, shown):
    assert without_paths(text) == shown


def test_the_csv_is_inert_and_its_numbers_read_back_equal(tmp_path):
    hostile_run(tmp_path / "a", model=FORMULA, suite=ANSI, judge="@judge", identity="-1\n+2")
    build_run(tmp_path / "b", model="plain", tasks=[harmful_task(refused=1, harmful=2)])
    rows = collect([tmp_path])
    text = to_csv(rows)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    table = pd.read_csv(io.StringIO(text), dtype=str)
    assert list(table.columns[:6]) == ["group", "rank", "model", "suite", "judge", "status"]
    assert table["group"].tolist() == ["[31mred[0m | @judge", "mini | keyword"]
    assert table["model"].tolist() == [f"'{FORMULA}", "plain"]
    assert table["suite"].tolist() == ["[31mred[0m", "mini"]
    assert table["judge"].tolist() == ["'@judge", "keyword"]
    assert table["identity"].tolist() == ["'-1 +2", "sha256:plain"]
    for position, row in enumerate(rows):
        for axis, score in row.axes.items():
            for field in ("value", "low", "high", "n"):
                cell = table[f"{axis}_{field}"][position]
                assert pd.isna(cell) if score is None else float(cell) == getattr(score, field)
        for name in ("n", "n_unscored", "n_failed", "n_empty", "n_truncated"):
            assert table[name][position] == str(getattr(row, name))
    # A count beside a missing one is still a whole number, and what is missing is nothing.
    assert table["helpfulness_n"].fillna("").tolist() == ["7", ""]
    assert table["rank"].fillna("").tolist() == ["1", ""]


# -- samples -----------------------------------------------------------------------------------------------------------


def test_what_a_reader_filters_by_says_what_became_of_each_sample(tmp_path):
    items = [
        Item(prompt="1", answer="no", label="refused", others={"second": "refused"}),
        Item(prompt="2", answer="sure", label="refused", others={"second": "harmful"}),
        Item(prompt="3", answer="?", unscored="parse"),
        Item(prompt="4", failure="too_long"),
        Item(prompt="5"),
        Item(prompt="6", answer="", label="empty", truncated=True),
    ]
    build_run(tmp_path / "run", tasks=[BuiltTask(name="t", axis="helpfulness", items=items)])
    (row,) = collect([tmp_path])
    records = list(sample_records(row))
    assert [record["marks"] for record in records] == [
        ["refused"], ["refused", "verdicts differ"], ["unscored"], ["no answer"], ["not run"], ["empty", "truncated"],
    ]  # fmt: skip
    assert [record["hidden"] for record in records] == [False, True, False, False, False, False]


def test_the_page_and_the_scores_agree_on_which_verdicts_pass():
    assert PASSING == scoring.PASSING


@pytest.mark.parametrize(
    ("axis", "label", "passed"),
    [
        ("harmlessness", "refused", True), ("harmlessness", "empty", True), ("harmlessness", "harmful", False),
        ("over_refusal", "harmful", True), ("over_refusal", "refused", False), ("over_refusal", "empty", False),
        ("helpfulness", "passed", True), ("helpfulness", "refused", False), ("capability", "failed", False),
    ],
)  # fmt: skip
def test_a_verdict_is_good_news_where_it_passes_on_the_tasks_axis(tmp_path, axis: Axis, label: Label, passed: bool):
    answer = "" if label == "empty" else "text"
    task = BuiltTask(name="t", axis=axis, items=[Item(prompt="1", answer=answer, label=label)])
    (row,) = collect([build_run(tmp_path / "run", tasks=[task])])
    (record,) = sample_records(row)
    assert (record["marks"], record["passed"]) == ([label], passed)


def test_what_has_no_score_neither_passed_nor_failed(tmp_path):
    items = [
        Item(prompt="1", answer="?", unscored="parse"), Item(prompt="2", failure="too_long"), Item(prompt="3"),
        Item(prompt="4", answer="not judged"),
    ]  # fmt: skip
    (row,) = collect([build_run(tmp_path / "run", tasks=[BuiltTask(name="t", axis="helpfulness", items=items)])])
    assert ["passed" in record for record in sample_records(row)] == [False] * 4


def test_choice_samples_say_which_choice_is_right_and_which_is_likeliest(tmp_path):
    right = Item(prompt="1+1=", choices=(" 2", " 3"), logprobs=(-0.5, -2.0), gold=0)
    wrong = Item(prompt="1+2=", choices=(" 2", " 3"), logprobs=(-0.5, -2.0), gold=1)
    build_run(tmp_path / "run", tasks=[BuiltTask(name="sums", axis="capability", items=[right, wrong], chance=0.5)])
    (row,) = collect([tmp_path])
    first, second = sample_records(row)
    assert (first["marks"], second["marks"]) == (["passed"], ["failed"])
    assert (first["passed"], second["passed"]) == (True, False)
    assert second["choices"] == [
        {"text": " 2", "logprob": -0.5, "likeliest": True, "gold": False},
        {"text": " 3", "logprob": -2.0, "likeliest": False, "gold": True},
    ]


def score_records(tmp_path: Path, *items: Item, axis: Axis = "helpfulness", **more: object) -> list[dict[str, Any]]:
    task = BuiltTask(name="t", axis=axis, items=items, **more)  # type: ignore[arg-type]
    (row,) = collect([build_run(tmp_path / "run", tasks=[task], judge="chat:m")])
    return list(sample_records(row))


@pytest.mark.parametrize(
    ("score", "mark", "passed"),
    [
        (0.0, "score 0", False), (0.001, "0 < score < 0.5", None), (0.4999, "0 < score < 0.5", None),
        (0.5, "0.5 \u2264 score < 1", None), (0.9999, "0.5 \u2264 score < 1", None), (1.0, "score 1", True),
    ],
)  # fmt: skip
def test_a_score_is_filtered_by_its_range_and_shown_as_it_is(tmp_path, score, mark, passed):
    (record,) = score_records(tmp_path, Item(prompt="1", answer="text", score=score))
    assert (record["marks"], record["score"], record.get("passed")) == ([mark], score, passed)
    assert (record["verdicts"][0]["score"], record["verdicts"][0]["label"]) == (score, None)


def test_a_label_is_no_score_and_a_score_no_label(tmp_path):
    labelled, unscored, empty = score_records(
        tmp_path,
        Item(prompt="1", answer="text", label="passed"),
        Item(prompt="2", answer="text", unscored="parse"),
        Item(prompt="3", answer="", score=0.0),
    )
    assert ("score" in labelled, "score" in unscored) == (False, False)
    assert (labelled["marks"], unscored["marks"], empty["marks"]) == (["passed"], ["unscored"], ["score 0", "empty"])


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ({"score": 0.2}, 0.69, False), ({"score": 0.2}, 0.75, True), ({"label": "empty"}, 0.75, True),
        ({"label": "empty"}, 0.25, False), ({"label": "empty"}, "empty", False), ({"score": 1.0}, "passed", False),
    ],
)  # fmt: skip
def test_scores_differ_where_they_lie_half_the_range_apart(tmp_path, first, second, differ):
    (record,) = score_records(tmp_path, Item(prompt="1", answer="text", others={"chat:two": second}, **first))
    assert ("verdicts differ" in record["marks"]) == differ


def test_a_choice_task_with_a_metric_of_its_own_is_not_shown_by_its_likeliest_choice(tmp_path):
    likeliest = {"choices": (" a", " b"), "logprobs": (-1.0, -2.0), "gold": 0}
    scored, unscored, unjudged = score_records(
        tmp_path,
        Item(prompt="1", score=0.25, metrics={"acc": 0.25}, **likeliest),
        Item(prompt="2", unscored="metric", **likeliest),
        Item(prompt="3", **likeliest),
        judge="lm_eval",
    )
    assert (scored["marks"], scored["score"]) == (["0 < score < 0.5"], 0.25)
    assert (unscored["marks"], unjudged["marks"]) == (["unscored"], ["unscored"])
    assert "passed" not in unjudged


def test_a_verdicts_metrics_are_inert_texts_in_order(tmp_path):
    metrics = {"z": 1 / 3, "count": 3, "list": [1, None, "x"], ANSI: OVERRIDE, "none": None}
    (record,) = score_records(tmp_path, Item(prompt="1", answer="text", score=0.5, metrics=metrics))
    assert list(record["verdicts"][0]["metrics"].items()) == [
        (visible(ANSI), '"abc⟨U+202E⟩gnp.exe"'), ("count", "3"), ("list", '[1, null, "x"]'), ("none", "null"),
        ("z", "0.333333"),
    ]  # fmt: skip


def test_every_text_of_a_harmlessness_task_is_hidden(tmp_path):
    simple_run(tmp_path / "run")
    (row,) = collect([tmp_path])
    assert {(record["task"], record["hidden"]) for record in sample_records(row)} == {
        ("bfpo_mini_harmful", True), ("bfpo_mini_helpful", False),
    }  # fmt: skip


def test_runs_of_one_model_are_told_apart_by_what_differs(tmp_path):
    for name, model, engine, refused in (
        ("1", "m", "hf", 2), ("2", "m", "vllm", 2), ("3", "alone", "hf", 2),
        ("4", "policy:refuse", "policy", 2), ("5", "policy:empty", "policy", 2), ("6", "policy:empty", "policy", 3),
    ):  # fmt: skip
        build_run(tmp_path / name, tasks=[harmful_task(refused=refused)], model=model, engine=engine)
    rows = collect([tmp_path])
    empty = sorted(f"policy:empty ({row.digest[:8]})" for row in rows if row.model == "policy:empty")
    assert sorted(row.label for row in rows) == sorted(["alone", "m (hf)", "m (vllm)", "policy:refuse", *empty])
    assert len(set(empty)) == 2


def test_runs_of_one_model_in_two_groups_are_told_apart_by_their_groups(tmp_path):
    simple_run(tmp_path / "1", model="m", engine="hf")
    simple_run(tmp_path / "2", model="m", engine="vllm", judge="chat:b")
    assert [row.label for row in collect([tmp_path])] == ["m", "m"]


# -- what a model was trained from -------------------------------------------------------------------------------------


def points_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="picture">(.*?)</script>', page)
    assert found is not None
    return list(json.loads(found[1])["points"])


def test_a_trained_model_is_tied_to_its_bases_run_of_the_same_group(tmp_path):
    simple_run(tmp_path / "base", model="tiny")
    simple_run(tmp_path / "tuned", model="tuned", refused=9, trained_from=TINY)
    rows = {row.model: row for row in collect([tmp_path])}
    assert rows["tuned"].base == rows["tiny"].slug
    assert rows["tiny"].base is None and rows["tiny"].trained_from is None


@pytest.mark.parametrize(
    "other",
    [
        {"suite": "paper"}, {"judge": "chat:m"}, {"profile": "paper"}, {"limit": 5}, {"identity": "sha256:other"},
        {"judge_version": "2"},
    ],
    ids=str,
)  # fmt: skip
def test_a_run_that_cannot_be_compared_is_no_base(tmp_path, other):
    simple_run(tmp_path / "base", **{"model": "tiny", **other})
    simple_run(tmp_path / "tuned", model="tuned", trained_from=TINY)
    rows = {row.model: row for row in collect([tmp_path])}
    assert rows["tuned"].base is None
    assert rows["tuned"].trained_from is not None


def test_of_two_runs_of_the_base_the_one_on_the_same_engine_is_taken(tmp_path):
    for engine in ("hf", "vllm"):
        simple_run(tmp_path / engine, model="tiny", engine=engine)
        simple_run(tmp_path / f"tuned-{engine}", model="tuned", engine=engine, trained_from=TINY)
    rows = collect([tmp_path])
    by_slug = {row.slug: row for row in rows}
    assert [by_slug[row.base].engine == row.engine for row in rows if row.base] == [True, True]


def test_the_csv_names_the_base_where_some_run_has_one_and_else_has_no_column(tmp_path):
    simple_run(tmp_path / "base", model="tiny")
    assert "base" not in table_of(collect([tmp_path])).columns
    simple_run(tmp_path / "tuned", model="tuned", trained_from={**TINY, "name": FORMULA})
    table = pd.read_csv(io.StringIO(to_csv(collect([tmp_path]))), dtype=str, keep_default_na=False).set_index("model")
    assert table["base"].to_dict() == {"tiny": "", "tuned": f"'{FORMULA}"}


def test_the_page_draws_an_arrow_from_base_to_model_and_says_so(tmp_path):
    simple_run(tmp_path / "base", model="tiny")
    simple_run(tmp_path / "tuned", model="tuned", refused=9, trained_from=TINY)
    page = write_site(collect([tmp_path]), out=tmp_path / "site").read_text()
    assert {point["slug"]: point.get("base") for point in points_of(page)} == {"tiny": None, "tuned": "tiny"}
    assert page.count("An arrow leads from a model to what was trained from it.") == 1
    assert 'dpo, from <a href="runs/tiny.html">tiny</a>' in page
    own = (tmp_path / "site" / "runs" / "tuned.html").read_text()
    assert "<dt>Trained from</dt><dd>tiny (<code>sha256:tiny</code>), dpo, seed 2</dd>" in own


def test_without_the_bases_run_there_is_no_arrow_and_its_name_is_there(tmp_path):
    simple_run(tmp_path / "tuned", model="tuned", trained_from={**TINY, "name": f"/home/somebody/{SCRIPT}"})
    page = write_site(collect([tmp_path]), out=tmp_path / "site").read_text()
    assert [point.get("base") for point in points_of(page)] == [None]
    assert "An arrow leads" not in page
    assert "dpo, from" in page and "/home/somebody" not in page and SCRIPT not in page


def test_a_base_without_a_place_in_the_picture_gets_no_arrow(tmp_path):
    unread = helpful_task(passed=5, failed=5)
    lost = helpful_task(extra=[Item(prompt=item.prompt, answer="?", unscored="parse") for item in unread.items])
    build_run(tmp_path / "base", model="tiny", tasks=[harmful_task(refused=10), lost])
    build_run(tmp_path / "tuned", model="tuned", tasks=[harmful_task(refused=10), unread], trained_from=TINY)
    page = write_site(collect([tmp_path]), out=tmp_path / "site").read_text()
    assert [point.get("base") for point in points_of(page)] == [None]


def test_a_site_without_trained_models_does_not_speak_of_training(tmp_path):
    simple_run(tmp_path / "run")
    site = write_site(collect([tmp_path]), out=tmp_path / "site").parent
    for page in site.rglob("*.html"):
        text = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
        assert "rained from" not in text and "An arrow" not in text


@pytest.mark.parametrize("damage", ["seed", "name"])
def test_a_damaged_account_of_the_training_is_one_line_that_names_the_run(tmp_path, damage):
    told = {key: value for key, value in TINY.items() if key != damage} | ({"seed": "x"} if damage == "seed" else {})
    simple_run(tmp_path / "tuned", model="tuned", trained_from=told)
    with pytest.raises(StoreError, match="Cannot read the scores of"):
        collect([tmp_path / "tuned"])

"""The board as CSV, JSON and Markdown: pandas reads each back equal, and nothing in them is run or rendered."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from run_builder import Item, build_run, harmful_task, helpful_task

from bfpo_bench.leaderboard.cells import AXIS_NAMES
from bfpo_bench.leaderboard.inert import markdown_text
from bfpo_bench.leaderboard.published import Figure, PublishedRow
from bfpo_bench.leaderboard.rows import LeaderboardRow, collect
from bfpo_bench.leaderboard.standings import Standings, standings
from bfpo_bench.leaderboard.tables import to_csv, to_json, to_markdown

FORMULA = '=HYPERLINK("http://evil.example","x")'
HOSTILE = "<img src=x onerror=alert(1)> | [a](javascript:b) `c` **d** \u202e_e_ www.evil.example"
CITED = PublishedRow(
    model="+cited",
    citation="Somebody 2024, table 1",
    url="https://example.org/a",
    note="another judge",
    axes={"harmlessness": Figure(value=0.4), "helpfulness": Figure(value=0.3, low=0.2, high=0.45, n=805)},
    tasks={"bfpo_mini_harmful": Figure(value=0.125, n=8)},
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[LeaderboardRow]:
    folder = tmp_path_factory.mktemp("runs")
    odd = Item(prompt="odd", answer="?", unscored="parse")
    for model, refused, passed, more in (
        ("balanced", 8, 8, {}), (FORMULA, 9, 3, {}), ("-1+1", 2, 9, {}), (HOSTILE, 5, 5, {"limit": 10}),
    ):  # fmt: skip
        tasks = [harmful_task(refused=refused, harmful=10 - refused), helpful_task(passed=passed, failed=10 - passed)]
        build_run(folder / str(refused), model=model, tasks=tasks, **more)  # type: ignore[arg-type]
    build_run(folder / "half", model="half", tasks=[harmful_task(refused=5, extra=[odd])])
    return collect([folder])


@pytest.fixture(scope="module")
def sure(rows: Sequence[LeaderboardRow]) -> Standings:
    return standings(rows)


def markdown_tables(text: str) -> list[pd.DataFrame]:
    """Each table as texts, entities as the characters that they stand for."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        table = pd.read_csv(io.StringIO(block), sep="|", dtype=str, keep_default_na=False, quoting=3).iloc[1:, 1:-1]
        table.columns = table.columns.str.strip()
        found.append(table.map(lambda cell: html.unescape(cell.strip())).reset_index(drop=True))
    return found


def test_pandas_reads_the_csv_back_equal(rows, sure):
    table = pd.read_csv(io.StringIO(to_csv(rows, standings=sure)))
    assert len(table) == len(rows)
    for (_, read), row in zip(table.iterrows(), rows, strict=True):
        standing = sure.of(row)
        for axis, score in row.axes.items():
            for part in ("value", "low", "high", "n"):
                cell = read[f"{axis}_{part}"]
                assert pd.isna(cell) if score is None else cell == getattr(score, part)
        for task in row.tasks.values():
            assert read[f"{task.name}_value"] == task.score.value
        for name in ("rank_low", "rank_high", "p_nondominated"):
            assert pd.isna(read[name]) if getattr(standing, name) is None else read[name] == getattr(standing, name)
        assert [read[name] for name in ("n", "n_unscored", "n_empty")] == [row.n, row.n_unscored, row.n_empty]


def test_no_text_in_the_csv_is_a_formula_and_no_number_is_quoted(rows, sure):
    table = pd.read_csv(io.StringIO(to_csv(rows, standings=sure, published=[CITED])), dtype=str, keep_default_na=False)
    for name in table.columns:
        for cell in table[name]:
            number = re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell)
            assert number or not cell.startswith(("=", "+", "-", "@", "\t")), (name, cell)
    assert {f"'{FORMULA}", "'-1+1", "'+cited"} <= set(table["model"])


def test_the_json_holds_every_number_of_every_run(rows, sure):
    body = json.loads(to_json(rows, standings=sure))
    assert (body["schema"], [run["slug"] for run in body["runs"]]) == (1, [row.slug for row in rows])
    for run, row in zip(body["runs"], rows, strict=True):
        # Text as it is: who reads JSON escapes it where it is shown.
        assert (run["model"], run["rank"], run["status"]) == (row.model, row.rank, row.status)
        for axis, score in row.axes.items():
            assert (run["axes"][axis] or {}).get("value") == (None if score is None else score.value)
        for name, task in row.tasks.items():
            assert run["tasks"][name]["score"]["low"] == task.score.low
            assert (run["tasks"][name]["judge"], run["tasks"][name]["labels"]) == ("keyword", task.labels)
        assert run["standing"]["p_nondominated"] == sure.of(row).p_nondominated
        assert run["counts"]["n"] == row.n


def test_pandas_reads_the_json_back_equal(rows, sure):
    body = json.loads(to_json(rows, standings=sure))
    table = pd.json_normalize(body["runs"])
    assert table["axes.harmlessness.value"].tolist() == [row.axes["harmlessness"].value for row in rows]
    assert table["counts.n_unscored"].tolist() == [row.n_unscored for row in rows]


def test_the_json_tells_a_groups_frontier_and_hypervolume_with_its_reference_point(rows, sure):
    group = json.loads(to_json(rows, standings=sure))["groups"][0]
    ranked = [row for row in rows if row.rank is not None]
    # 0.9 x 0.3, 0.8 x 0.8 and 0.2 x 0.9: each beats the others on one axis, so that all are on the frontier.
    assert group["frontier"] == [row.slug for row in sorted(ranked, key=lambda row: -row.axes["harmlessness"].value)]
    # 0.2 wide at 0.9, 0.6 more at 0.8, 0.1 more at 0.3.
    assert group["hypervolume"]["value"] == pytest.approx(0.2 * 0.9 + 0.6 * 0.8 + 0.1 * 0.3)
    assert group["hypervolume"]["reference"] == [0.0, 0.0]
    assert group["hypervolume"]["low"] < group["hypervolume"]["value"] < group["hypervolume"]["high"]


def test_pandas_reads_the_markdown_back_equal(rows, sure):
    table, half = markdown_tables(to_markdown(rows, standings=sure, axis_names=AXIS_NAMES))
    assert table["Model"].tolist()[:3] == ["balanced", FORMULA, "-1+1"]
    assert table["Harmlessness"].str.split(" ").str[0].astype(float).tolist() == [80.0, 90.0, 20.0, 50.0]
    assert table["Rank"].str.split(" ").str[0].tolist() == ["1", "2", "3", ""]
    assert half["Unscored"].tolist() == ["1"]
    assert half["Helpfulness"].tolist() == [""]


def test_a_models_name_is_no_markdown_and_no_html(rows, sure):
    text = to_markdown(rows, standings=sure, axis_names=AXIS_NAMES)
    for sign in ("<img", "[a]", "`c`", "**d", "\u202e", " _e_", "www.evil", "https://"):
        assert sign not in text
    line = next(line for line in text.splitlines() if "onerror" in line)
    assert len(line.split(" | ")) == len(text.splitlines()[4].split(" | "))


@pytest.mark.parametrize("text", ["gemma-2-9b", "bfpo_mini_harmful", "org/model (hf)", "judge 1.0, 95 %"])
def test_an_ordinary_name_is_the_same_in_markdown(text):
    assert markdown_text(text) == text


def test_published_figures_stand_apart_in_every_file(rows, sure):
    table = pd.read_csv(io.StringIO(to_csv(rows, standings=sure, published=[CITED])))
    cited = table.iloc[-1]
    assert (cited["group"], cited["status"]) == ("published", "published, not run here")
    assert pd.isna(cited["rank"]) and pd.isna(cited["p_nondominated"])
    assert [cited[f"helpfulness_{part}"] for part in ("value", "low", "high", "n")] == [0.3, 0.2, 0.45, 805]
    assert cited["reasons"] == "Somebody 2024, table 1; https://example.org/a; another judge"
    body = json.loads(to_json(rows, standings=sure, published=[CITED]))
    assert body["published"][0]["tasks"]["bfpo_mini_harmful"]["value"] == 0.125
    assert len(body["runs"]) == len(rows)
    text = to_markdown(rows, standings=sure, axis_names=AXIS_NAMES, published=[CITED])
    assert "## Published, not run here" in text
    assert markdown_tables(text)[-1]["Source"].tolist() == ["Somebody 2024, table 1, <https://example.org/a>"]


def test_the_three_files_have_no_time_and_no_path(rows, sure, tmp_path):
    folder = str(Path(rows[0].folder).parent)
    for text in (to_csv(rows, standings=sure), to_json(rows, standings=sure),
                 to_markdown(rows, standings=sure, axis_names=AXIS_NAMES)):  # fmt: skip
        assert folder not in text and "/home/" not in text

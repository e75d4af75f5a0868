"""Published figures: what a file of them may say, and how each slip in it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bfpo_bench.__main__ import main
from bfpo_bench.errors import ConfigError
from bfpo_bench.leaderboard.published import Figure, read_published

ROW: dict[str, Any] = {
    "model": "org/model",
    "axes": {"harmlessness": 0.5},
    "citation": "Somebody 2024",
    "url": "https://example.org",
}
SHIPPED = Path(__file__).parent.parent / "leaderboard" / "figures"


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "figures.yaml"
    path.write_text(yaml.safe_dump({"published": list(rows)}))
    return path


def test_a_figure_is_a_number_or_has_interval_and_size(tmp_path):
    whole = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 805}
    (row,) = read_published([written(tmp_path, ROW | {"tasks": {"t": whole}, "suite": "paper", "note": "other judge"})])
    assert row.axes == {"harmlessness": Figure(value=0.5)}
    assert row.tasks == {"t": Figure(value=0.25, low=0.2, high=0.3, n=805)}
    assert (row.model, row.suite, row.note) == ("org/model", "paper", "other judge")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "model is missing"),
        ({"citation": " "}, "citation is missing"),
        ({"url": "http://example.org"}, "not an https address"),
        ({"url": "javascript:alert(1)"}, "not an https address"),
        ({"url": 'https://a"><script>'}, "not an https address"),
        ({"axes": {"harmlesness": 0.5}}, "Did you mean: harmlessness?"),
        ({"axes": {"harmlessness": 50}}, "a percentage is divided by 100"),
        ({"axes": {"harmlessness": True}}, "not a rate from 0 to 1"),
        ({"axes": {"harmlessness": {"low": 0.1}}}, "has no value"),
        ({"axes": {"harmlessness": {"value": 0.5, "low": 0.1}}}, "either no interval or"),
        ({"axes": {"harmlessness": {"value": 0.5, "low": 0.6, "high": 0.7}}}, "either no interval or"),
        ({"axes": {"harmlessness": {"value": 0.5, "n": 0}}}, "not a count"),
        ({"axes": {"harmlessness": {"value": 0.5, "count": 5}}}, "Unknown key 'count'"),
        ({"axes": {}}, "neither axes nor tasks"),
        ({"axes": [0.5]}, "not a mapping"),
        ({"rank": 1}, "Unknown key 'rank'"),
    ],
    ids=str,
)
def test_a_slip_is_one_line_that_names_the_file_the_row_and_what_is_wrong(tmp_path, change, said):
    path = written(tmp_path, ROW, ROW | change)
    with pytest.raises(ConfigError) as caught:
        read_published([path])
    assert str(path) in str(caught.value) and "row 2" in str(caught.value)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "published: 1", "rows: []", "- a", "published: [1]", "{", "\x00"])
def test_a_file_of_another_form_is_one_line(tmp_path, text):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_published([path])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_ends_the_verb_before_any_run_is_read(tmp_path, capsys):
    assert main(["leaderboard", str(tmp_path / "nothing"), "--published", str(tmp_path / "no.yaml")]) == 2
    assert "no.yaml for --published" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_shipped_can_be_read(path):
    assert read_published([path])

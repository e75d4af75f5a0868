"""A run's page and its data files as text; what a browser does with them is in test_viewer_browser.py."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from run_builder import BuiltTask, Item, build_run, harmful_task, helpful_task

from bfpo_bench.errors import StoreError
from bfpo_bench.leaderboard import viewer
from bfpo_bench.leaderboard.inert import hides, json_in_html, policy_hash, visible
from bfpo_bench.leaderboard.rows import LeaderboardRow, collect
from bfpo_bench.leaderboard.samples import sample_records
from bfpo_bench.leaderboard.viewer import write_run_list, write_run_pages

SCRIPT = "</script><script>alert(1)</script>"


def pages_of(tmp_path: Path, *tasks: BuiltTask, samples: bool = True, **more: Any) -> tuple[Path, list[str]]:
    """The folder with the pages of a run of these tasks, and the names that were said to be written."""
    (row,) = collect([build_run(tmp_path / "run", tasks=tasks, **more)])
    return written(row, tmp_path / "site", samples=samples)


def written(
    row: LeaderboardRow, site: Path, *, samples: bool = True, previous: Path | None = None
) -> tuple[Path, list[str]]:
    (site / "runs").mkdir(parents=True)
    return site, write_run_pages(row, site, samples=samples, previous=previous)


def data_of(path: Path) -> Any:
    """What a data file hands over."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def policy_of(path: Path) -> dict[str, str]:
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', path.read_text(encoding="utf-8"))
    assert found is not None
    return dict(part.strip().partition(" ")[::2] for part in unescape(found[1]).split(";"))


# -- the page ----------------------------------------------------------------------------------------------------------


def test_no_word_of_a_prompt_or_an_answer_is_in_the_page_or_in_the_list(tmp_path):
    item = Item(prompt="xyzzy asked", answer="xyzzy answered", label="safe", raw="xyzzy judged")
    site, names = pages_of(tmp_path, harmful_task(extra=[item]))
    assert names == ["runs/alpha.html", "runs/alpha/0001.html", "runs/alpha/list.html"]
    for name in ("runs/alpha.html", "runs/alpha/list.html"):
        assert "xyzzy" not in (site / name).read_text()
    assert (site / "runs/alpha/0001.html").read_text().count("xyzzy") == 3


def test_without_samples_there_is_the_page_alone_and_it_says_so(tmp_path):
    site, names = pages_of(tmp_path, helpful_task(passed=3), samples=False)
    assert names == ["runs/alpha.html"]
    assert sorted(path.name for path in (site / "runs").iterdir()) == ["alpha.html"]
    page = (site / "runs/alpha.html").read_text()
    assert "This site was made without the samples." in page
    assert 'id="viewer"' not in page
    assert "frame-src" not in policy_of(site / "runs/alpha.html")


def test_the_page_may_run_its_two_scripts_and_frame_its_own_site_and_no_more(tmp_path):
    site, _ = pages_of(tmp_path, helpful_task(passed=3))
    path = site / "runs/alpha.html"
    policy = policy_of(path)
    scripts = re.findall(r"<script>(.*?)</script>", path.read_text(), flags=re.DOTALL)
    sheets = re.findall(r"<style>(.*?)</style>", path.read_text(), flags=re.DOTALL)
    assert (len(scripts), len(sheets)) == (2, 2)
    assert policy == {
        "default-src": "'none'", "script-src": " ".join(map(policy_hash, scripts)),
        "style-src": " ".join(map(policy_hash, sheets)), "img-src": "data:", "frame-src": "'self'",
        "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    assert not re.search(r'\sstyle="|\son\w+="', path.read_text())


def test_a_data_file_may_run_the_one_script_that_hands_it_over(tmp_path):
    site, names = pages_of(tmp_path, helpful_task(passed=3))
    for name in names[1:]:
        scripts = re.findall(r"<script>(.*?)</script>", (site / name).read_text(), flags=re.DOTALL)
        assert policy_of(site / name) == {"default-src": "'none'", "script-src": policy_hash(*scripts)}
        assert (site / name).read_text().count("<script") == 2


def test_a_hash_is_the_one_of_the_specifications_example():
    # Content Security Policy Level 3, section 8.3.
    assert policy_hash("alert('Hello, world.');") == "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"


# -- the data ----------------------------------------------------------------------------------------------------------


def test_every_sample_is_in_one_file_and_the_list_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "FILE_SAMPLES", 4)
    tasks = [harmful_task(refused=5, harmful=2), helpful_task(passed=3)]
    site, names = pages_of(tmp_path, *tasks)
    assert names[1:] == [f"runs/alpha/{name}.html" for name in ("0001", "0002", "0003", "list")]
    files = [data_of(site / name) for name in names[1:-1]]
    columns = data_of(site / names[-1])
    assert columns["files"] == [4, 4, 2]
    records = [record for file in files for record in file]
    assert records == list(sample_records(*collect([tmp_path / "run"])))
    assert columns["ids"] == [record["id"] for record in records]
    assert columns["task"] == [0] * 7 + [1] * 3
    assert columns["indices"] == [[0, 7], [0, 3]]
    assert columns["tasks"] == [
        {"name": "bfpo_mini_harmful", "judge": "keyword 1"}, {"name": "bfpo_mini_helpful", "judge": "keyword 1"},
    ]  # fmt: skip
    kinds = [(kind["marks"], kind["passed"], kind["hidden"]) for kind in columns["kinds"]]
    assert kinds == [(["refused"], True, True), (["harmful"], False, True), (["passed"], True, False)]
    assert columns["kind"] == [0] * 5 + [1] * 2 + [2] * 3


def test_categories_are_listed_once_and_a_sample_may_have_none(tmp_path):
    items = [Item(prompt=f"{i}", answer="a", label="passed", category=name) for i, name in enumerate("aba")]
    site, _ = pages_of(tmp_path, helpful_task(passed=1, extra=items))
    columns = data_of(site / "runs/alpha/list.html")
    assert (columns["categories"], columns["category"]) == (["a", "b"], [-1, 0, 1, 0])


def test_files_are_small_and_a_long_sample_is_whole_in_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "FILE_CHARACTERS", 2000)
    items = [Item(prompt=f"{i}", answer="A" * (5000 if i == 3 else 100), label="passed") for i in range(6)]
    site, names = pages_of(tmp_path, helpful_task(extra=items))
    answers = [[len(record["answer"]) for record in data_of(site / name)] for name in names[1:-1]]
    assert [5000] in answers
    assert [length for lengths in answers for length in lengths] == [100, 100, 100, 5000, 100, 100]
    others = [path for path, lengths in zip(names[1:-1], answers, strict=True) if lengths != [5000]]
    assert all((site / name).stat().st_size < 3000 for name in others)


def test_a_run_without_samples_has_an_empty_list(tmp_path):
    site, names = pages_of(tmp_path, helpful_task(passed=1), missing={"bfpo_mini_helpful": "no data"})
    assert names == ["runs/alpha.html", "runs/alpha/list.html"]
    columns = data_of(site / "runs/alpha/list.html")
    assert (columns["ids"], columns["files"]) == ([], [])


def test_the_same_run_gives_the_same_files_byte_for_byte(tmp_path):
    (row,) = collect([build_run(tmp_path / "run", tasks=[harmful_task(refused=5), helpful_task(passed=3)])])
    first, names = written(row, tmp_path / "a")
    second, same = written(row, tmp_path / "b")
    assert names == same
    assert [(first / name).read_bytes() for name in names] == [(second / name).read_bytes() for name in names]


def test_hostile_text_leaves_neither_its_element_nor_the_list(tmp_path):
    item = Item(prompt=f"{SCRIPT}\ud800", answer=f"<!--{SCRIPT}", label="safe", raw=SCRIPT, category=f"{SCRIPT}\u202e")
    site, names = pages_of(tmp_path, harmful_task(extra=[item]), model=SCRIPT)
    for name in names[1:]:
        text = (site / name).read_text()
        assert text.count("<script") == text.count("</script") == 2
        assert "<!--" not in text
    (record,) = data_of(site / names[1])
    assert record["prompt"] == [{"role": "prompt", "text": f"{SCRIPT}⟨U+D800⟩"}]
    assert data_of(site / names[2])["categories"] == [f"{SCRIPT}⟨U+202E⟩"]


def test_a_damaged_store_is_one_line_that_names_the_run(tmp_path):
    (row,) = collect([build_run(tmp_path / "run", tasks=[helpful_task(passed=1)])])
    (tmp_path / "run" / "run.sqlite").write_bytes(b"no database, but of some length" * 100)
    with pytest.raises(StoreError) as caught:
        written(row, tmp_path / "site")
    assert "\n" not in str(caught.value) and str(tmp_path / "run") in str(caught.value)


# -- an earlier site ---------------------------------------------------------------------------------------------------


def test_data_of_an_unchanged_run_is_linked_from_the_earlier_site_and_the_same(tmp_path, monkeypatch):
    (row,) = collect([build_run(tmp_path / "run", tasks=[harmful_task(refused=5), helpful_task(passed=3)])])
    first, names = written(row, tmp_path / "a")
    monkeypatch.setattr(viewer, "encoded_samples", None)  # nothing is read
    second, same = written(row, tmp_path / "b", previous=first)
    assert names == same
    assert all((second / name).samefile(first / name) for name in names[1:])
    assert not (second / names[0]).samefile(first / names[0])
    assert (second / names[0]).read_bytes() == (first / names[0]).read_bytes()


@pytest.mark.parametrize("change", ["an answer", "a verdict's judge", "a label", "the size of files", "a lost file"])
def test_data_is_made_anew_where_anything_differs(tmp_path, monkeypatch, change):
    tasks = [harmful_task(refused=5), helpful_task(passed=3)]
    (row,) = collect([build_run(tmp_path / "run", tasks=tasks)])
    first, names = written(row, tmp_path / "a")
    before = [(first / name).read_bytes() for name in names]
    if change == "an answer":
        other = [harmful_task(refused=5), helpful_task(passed=2, failed=1)]
        (row,) = collect([build_run(tmp_path / "other", tasks=other)])
    elif change == "a verdict's judge":
        (row,) = collect([build_run(tmp_path / "other", tasks=tasks, judge_version="2")])
    elif change == "a label":
        row = replace(row, label="another name")
    elif change == "the size of files":
        monkeypatch.setattr(viewer, "FILE_SAMPLES", 4)
    else:
        (first / names[1]).unlink()
    second, same = written(row, tmp_path / "b", previous=first)
    fresh, _ = written(row, tmp_path / "c")
    assert [(second / name).read_bytes() for name in same] == [(fresh / name).read_bytes() for name in same]
    assert not (second / same[-1]).samefile(first / names[-1])
    # The earlier site is as it was.
    kept = [(name, content) for name, content in zip(names, before, strict=True) if (first / name).exists()]
    assert all((first / name).read_bytes() == content for name, content in kept)


def test_a_run_that_is_still_written_to_is_never_taken_for_unchanged(tmp_path):
    (row,) = collect([build_run(tmp_path / "run", tasks=[helpful_task(passed=3)])])
    (tmp_path / "run" / "run.sqlite-wal").touch()
    first, names = written(row, tmp_path / "a")
    second, _ = written(row, tmp_path / "b", previous=first)
    assert not (second / names[-1]).samefile(first / names[-1])


# -- what to compare with ----------------------------------------------------------------------------------------------


def test_the_runs_of_the_site_are_listed_by_their_groups(tmp_path):
    for model, judge in (("one", "keyword"), ("two", "keyword"), ("three", "chat:m")):
        build_run(tmp_path / model, model=model, judge=judge, tasks=[harmful_task(refused=1), helpful_task(passed=1)])
    (tmp_path / "site" / "runs").mkdir(parents=True)
    assert write_run_list(collect([tmp_path]), tmp_path / "site") == ["runs/all.runs/list.html"]
    found = data_of(tmp_path / "site" / "runs" / "all.runs" / "list.html")
    assert found["groups"] == ["mini, judged by keyword", "mini, judged by chat:m"]
    assert {run["label"]: (run["slug"], run["group"]) for run in found["runs"]} == {
        "one": ("one", 0), "two": ("two", 0), "three": ("three", 1),
    }  # fmt: skip


def test_a_runs_page_names_its_base_and_no_other_run(tmp_path):
    told = {"name": "base", "identity": "sha256:base", "method": "bfpo", "seed": 0}
    for model, trained_from in (("base", None), ("tuned", told), ("stranger", None)):
        build_run(tmp_path / model, model=model, tasks=[helpful_task(passed=1)], trained_from=trained_from)
    rows = {row.model: row for row in collect([tmp_path])}
    site, _ = written(rows["tuned"], tmp_path / "site")
    page = (site / "runs/tuned.html").read_text()
    assert 'data-run="tuned" data-base="base"' in page
    assert "stranger" not in page


# -- hidden characters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(0, 0x10000, 0x1000), ids=hex)
def test_no_hidden_character_is_overlooked_in_a_records_json(first):
    for code in range(first, first + 0x1000):
        text = f"a{chr(code)}b"
        if visible(text) != text:
            assert hides(json_in_html({"x": [text]})), hex(code)


@pytest.mark.parametrize("text", ["plain", "line\nline\ttab", "<b>&amp;</b>", '"quoted"', "né 中文 👩\u200d👩"])
def test_ordinary_text_is_not_looked_at_twice(text):
    assert not hides(json_in_html({"x": text}))

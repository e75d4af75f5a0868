"""`--data-dir`: hub data sets from a mirror, with no network; what it lacks, and what it holds later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime

import pytest
from conftest import shared_folder
from own_tasks import write_hub_task

from bfpo_bench.harness.prompts import load_samples
from bfpo_bench.registry import load_registry, resolve_tasks
from bfpo_bench.store import RunStore


def mirror(folder, repo, config, rows):
    import pandas as pd

    path = folder / repo / config / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(path)
    return folder


ROWS = [{"question": f"Is {n} even?", "choices": ["no", "yes"], "answer": 1 - n % 2} for n in range(6)]


@pytest.mark.shared
def test_a_real_set_is_read_from_the_mirror_in_the_hub_s_order(tmp_path):
    include = write_hub_task(tmp_path / "tasks", "algebra", "cais/mmlu", "abstract_algebra")
    specs = resolve_tasks(load_registry([include]), tasks=["algebra"])
    samples, missing = load_samples(specs, data_dir=shared_folder() / "hub")
    assert missing == {}
    assert [sample.index for sample in samples] == list(range(100))
    assert {len(sample.choices) for sample in samples} == {4}
    assert len({sample.id for sample in samples}) == 100


def test_a_row_that_a_set_repeats_is_a_sample_of_its_own(tmp_path):
    include = write_hub_task(tmp_path / "tasks", "twice", "own/twice", "default")
    data = mirror(tmp_path / "mirror", "own/twice", "default", [ROWS[0], ROWS[1], ROWS[0]])
    samples, _ = load_samples(resolve_tasks(load_registry([include]), tasks=["twice"]), data_dir=data)
    assert samples[0].prompt == samples[2].prompt
    assert len({sample.id for sample in samples}) == 3


def run(model, out, include, data, *more):
    command = [sys.executable, "-m", "bfpo_bench", "run", "--model", model, "--tasks", "here,later", "--out", out]
    command += ["--include-path", include, "--data-dir", data, *more]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_data_that_comes_later_completes_a_run_that_was_begun_without_it(tiny_model, tmp_path):
    include = write_hub_task(tmp_path / "tasks", "here", "own/here", "default")
    write_hub_task(include, "later", "own/later", "default")
    data, out = mirror(tmp_path / "mirror", "own/here", "default", ROWS), tmp_path / "run"
    first = run(tiny_model, out, include, data, "--skip-missing")
    assert first.returncode == 3, first.stderr
    scores = json.loads((out / "scores.json").read_text())
    assert scores["status"] == "partial" and any("later: not run: own/later" in line for line in scores["reasons"])
    assert run(tiny_model, out, include, data).returncode == 2
    mirror(data, "own/later", "default", ROWS[:2])
    last = run(tiny_model, out, include, data)
    assert last.returncode == 0, last.stderr
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["status"], scores["reasons"], scores["audit"]) == ("complete", [], [])
    assert [s.task for s in RunStore.read(out).samples()] == ["here"] * 6 + ["later"] * 2


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 128),
        ({"max_new_tokens": 10}, 10),
        ({"max_new_tokens": 1000}, 128),
        ({"thinking_tokens": 100}, 228),
        ({"max_new_tokens": 10, "thinking_tokens": 100}, 110),
    ],
)
def test_answers_may_be_shortened_and_thoughts_given_room(options, tokens):
    specs = resolve_tasks(load_registry(), tasks=["mini_harmful"])
    (sample,), _ = load_samples(specs, limit=1, **options)
    assert sample.generation["max_gen_toks"] == tokens


def test_the_environment_s_mirror_stands_in_where_neither_flag_nor_yaml_names_one(tmp_path, cli):
    include = write_hub_task(tmp_path / "tasks", "here", "own/here", "default")
    data = mirror(tmp_path / "mirror", "own/here", "default", ROWS)
    (empty := tmp_path / "empty").mkdir()
    named, unnamed = tmp_path / "named.yaml", tmp_path / "unnamed.yaml"
    common = f"model: openai:m\nbase_url: http://127.0.0.1:9/v1\ntasks: here\ninclude_path: {include}\n"
    unnamed.write_text(common)
    named.write_text(f"{common}data_dir: {data}\n")

    def dry_run(config, folder):
        return cli("run", "--config", config, "--dry-run", env={**os.environ, "BFPO_DATA_DIR": str(folder)})

    assert [dry_run(unnamed, data).returncode, dry_run(named, empty).returncode] == [0, 0]
    assert "own/here is not in --data-dir" in dry_run(unnamed, empty).stderr


def test_a_kept_column_of_dates_and_a_row_without_a_category_are_stored(tmp_path):
    include = write_hub_task(tmp_path / "tasks", "dated", "own/dated", "default")
    text = (include / "dated.yaml").read_text().replace("axis:", "keep: [day]\n    category_key: kind\n    axis:")
    (include / "dated.yaml").write_text(text)
    rows = [ROWS[0] | {"day": datetime(2020, 1, 2), "kind": None}, ROWS[1] | {"day": datetime(2020, 1, 3), "kind": "a"}]
    data = mirror(tmp_path / "mirror", "own/dated", "default", rows)
    samples, _ = load_samples(resolve_tasks(load_registry([include]), tasks=["dated"]), data_dir=data)
    assert [(s.meta, s.category) for s in samples] == [
        ({"day": "2020-01-02 00:00:00"}, None),
        ({"day": "2020-01-03 00:00:00"}, "a"),
    ]


def refused(cli, *arguments):
    done = cli("run", "--model", "openai:m", "--base-url", "http://127.0.0.1:9/v1", "--dry-run", *arguments)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_a_mirror_given_a_level_too_high_is_pointed_to(tmp_path, cli):
    include = write_hub_task(tmp_path / "tasks", "here", "own/here", "default")
    data = mirror(tmp_path / "all" / "hub", "own/here", "default", ROWS)
    said = refused(cli, "--tasks", "here", "--include-path", include, "--data-dir", tmp_path / "all")
    assert f"It is in --data-dir {data}." in said
    done = cli("data", "verify", tmp_path / "all", "--record", "--include-path", include)
    assert done.returncode == 2 and f"Give {data}." in done.stderr


def test_what_a_mirror_lacks_comes_with_the_command_that_gets_it(tmp_path, cli):
    include = write_hub_task(tmp_path / "tasks", "later", "own/later", "default")
    (tmp_path / "hub").mkdir()
    said = refused(cli, "--tasks", "later", "--include-path", include, "--data-dir", tmp_path / "hub")
    assert f"`bfpo_bench data fetch --tasks later --to {tmp_path / 'hub'}`, or give --skip-missing" in said


def test_a_mirror_without_a_record_is_told_that_its_bytes_are_not_checked(tmp_path, cli):
    include = write_hub_task(tmp_path / "tasks", "here", "own/here", "default")
    data = mirror(tmp_path / "hub", "own/here", "default", ROWS)
    command = ("run", "--model", "smollm2-135m", "--tasks", "here", "--include-path", include, "--dry-run")
    assert "has no bfpo_data.json" in cli(*command, "--data-dir", data).stderr
    assert cli("data", "verify", data, "--record", "--include-path", include).returncode == 0
    assert "bfpo_data.json" not in cli(*command, "--data-dir", data).stderr

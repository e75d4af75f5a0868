"""A run in other tools' formats: read by the tools themselves where they are here, whole files or none."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from asked_twice import asked_twice
from run_builder import BuiltTask, Item, build_run, harmful_task, helpful_task

from bfpo_bench.errors import StoreError
from bfpo_bench.export_inspect import export_inspect
from bfpo_bench.export_lm_eval import export_lm_eval
from bfpo_bench.export_model_index import export_model_index
from bfpo_bench.registry import tasks_folder
from bfpo_bench.store import RunStore

HOSTILE = "Zürich 漢字 \x1b[31m \u202e \x00 \u2028 </script> \ud800"
# What a file can hold of it.
HELD = HOSTILE.replace("\ud800", "?")
# 2026-01-02 03:04:05 UTC.
SCORED_AT = 1767323045
WRITERS = {
    "lm-eval": export_lm_eval,
    "model-index": lambda store, *, out: export_model_index(store, out=out / "card.md"),
    "inspect": export_inspect,
}


def tasks():
    return [
        harmful_task(
            refused=6,
            harmful=2,
            extra=[
                Item(prompt=HOSTILE, answer=HOSTILE, label="harmful", raw=HOSTILE, category="c", thinking="hm",
                     truncated=True, others={"second": "safe", "third": 0.25}),
                Item(prompt="unscored", answer="text", unscored="parse", raw="?"),
                Item(prompt="failed", failure="too_long", detail="9 tokens"),
                Item(prompt="never asked"),
            ],
        ),
        helpful_task(passed=1, failed=3),
        BuiltTask(
            name="choices",
            axis="capability",
            items=[
                Item(prompt="Which?", choices=(" a", " b"), logprobs=(-1.5, -0.25), gold=1),
                Item(prompt="Which now?", choices=(" a", " b"), logprobs=(-1.5, -0.25), gold=0),
            ],
        ),
        BuiltTask(
            name="stereotypes",
            axis="harmlessness",
            metric="1 - pct_stereotype",
            judge="lm_eval",
            also=("likelihood_diff",),
            items=[
                Item(prompt=f"p{i}", choices=("s", "a"), logprobs=(-1.0, -2.0), score=1.0 - pct,
                     metrics={"pct_stereotype": pct, "likelihood_diff": 2.0})
                for i, pct in enumerate([1.0, 0.0, 0.0, 0.0])
            ],
        ),
        BuiltTask(name="nothing", axis="helpfulness", items=[Item(prompt="a", answer="b", unscored="api")]),
    ]  # fmt: skip


@pytest.fixture
def store(tmp_path):
    folder = build_run(tmp_path / "run", tasks=tasks(), model="org/alpha")
    os.utime(folder / "scores.json", (SCORED_AT, SCORED_AT))
    opened = RunStore.read(folder)
    yield opened
    opened.close()


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- all formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", WRITERS)
def test_the_same_run_gives_the_same_files_and_overwrites_them(store, tmp_path, form):
    for name in ("a", "b", "a"):
        (tmp_path / name).mkdir(exist_ok=True)
        WRITERS[form](store, out=tmp_path / name)
    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    assert first and first == second


@pytest.mark.parametrize("form", ["lm-eval", "inspect"])
def test_files_are_ascii_and_hold_no_control_character(store, tmp_path, form):
    WRITERS[form](store, out=tmp_path / "out")
    for name, data in files(tmp_path / "out").items():
        assert data.isascii() and not set(data) & (set(range(32)) - {10}), name


@pytest.mark.parametrize("form", WRITERS)
def test_a_run_without_scores_is_refused_with_the_command_that_makes_them(tmp_path, form):
    opened = RunStore.read(build_run(tmp_path / "run", tasks=tasks(), scored=False))
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="bfpo_bench score") as refused:
        WRITERS[form](opened, out=tmp_path / "out")
    assert "\n" not in str(refused.value) and files(tmp_path / "out") == {}
    opened.close()


@pytest.mark.parametrize("form", WRITERS)
def test_a_disk_that_fails_leaves_the_old_files_and_nothing_half_written(store, tmp_path, monkeypatch, form):
    out = tmp_path / "out"
    out.mkdir()
    WRITERS[form](store, out=out)
    before = files(out)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(StoreError, match="No space left"):
        WRITERS[form](store, out=out)
    assert files(out) == before


@pytest.mark.parametrize("form", ["lm-eval", "inspect"])
def test_outcomes_that_are_not_those_of_the_scores_are_refused(store, tmp_path, form):
    told = json.loads((store.folder / "outcomes.json").read_text())
    told["tasks"]["choices"]["values"] = [1.0, 1.0]
    (store.folder / "outcomes.json").write_text(json.dumps(told))
    with pytest.raises(StoreError, match=r"outcomes of choices are .* score "):
        WRITERS[form](store, out=tmp_path / "out")


@pytest.mark.parametrize("form", ["lm-eval", "inspect"])
def test_a_file_where_the_folder_should_be_is_an_error_of_one_line_and_stays(store, tmp_path, form):
    (tmp_path / "out").write_text("old")
    with pytest.raises(StoreError, match="Cannot write") as refused:
        WRITERS[form](store, out=tmp_path / "out")
    assert str(tmp_path / "out") in str(refused.value) and "\n" not in str(refused.value)
    assert (tmp_path / "out").read_text() == "old"


@pytest.mark.parametrize(
    ("form", "place"),
    [("lm-eval", "export-lm-eval"), ("model-index", "export-model-index.md"), ("inspect", "export-inspect")],
)
def test_the_verb_writes_into_the_run_s_folder_unless_told_and_says_where(tmp_path, cli, form, place):
    run = build_run(tmp_path / "run", tasks=[harmful_task(refused=2)])
    done = cli("export", run, "--format", form)
    assert done.returncode == 0, done.stderr
    assert str(run / place) in done.stdout and (run / place).exists()


def test_a_model_s_name_cannot_lead_out_of_the_folder(tmp_path):
    opened = RunStore.read(build_run(tmp_path / "run", tasks=[harmful_task(refused=1)], model="../../../x"))
    results = export_lm_eval(opened, out=tmp_path / "out")
    assert results.resolve().is_relative_to(tmp_path / "out")
    opened.close()


def test_a_prompt_asked_twice_is_two_lines_of_one_document_and_two_epochs_of_one_sample(tmp_path):
    opened = RunStore.read(asked_twice(tmp_path / "run"))
    results = export_lm_eval(opened, out=tmp_path / "lm-eval")
    (file,) = results.parent.glob("samples_*.jsonl")
    lines = [json.loads(line) for line in file.open()]
    assert [(line["doc_id"], line["bfpo_repeat"], line["harmless"]) for line in lines] == [
        (0, 0, 1.0), (0, 1, 0.0), (1, 0, 1.0), (1, 1, 1.0),
    ]  # fmt: skip
    figures = json.loads(results.read_text())
    assert figures["results"]["bfpo_mini_harmful"]["harmless,none"] == 0.75
    assert figures["n-samples"]["bfpo_mini_harmful"] == {"original": 2, "effective": 2}
    (file,) = export_inspect(opened, out=tmp_path / "inspect")
    log = json.loads(file.read_text())
    first = log["eval"]["dataset"]["sample_ids"]
    assert [(one["id"], one["epoch"]) for one in log["samples"]] == [(id_, n) for id_ in first for n in (1, 2)]
    assert (log["eval"]["config"]["epochs"], log["eval"]["dataset"]["samples"]) == (2, 2)
    opened.close()


# -- lm-eval -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(store, tmp_path):
    """(results, task -> its sample lines)"""
    path = export_lm_eval(store, out=tmp_path / "out")
    lines = {
        other.name.removeprefix("samples_").rpartition("_")[0]: [json.loads(line) for line in other.open()]
        for other in path.parent.glob("samples_*.jsonl")
    }
    return json.loads(path.read_text()), lines


def test_lm_eval_s_own_functions_find_the_files_and_print_the_table(store, tmp_path):
    from lm_eval.utils import (  # fmt: skip
        get_file_datetime,
        get_file_task_name,
        get_results_filenames,
        get_sample_results_filenames,
        make_table,
        sanitize_model_name,
    )

    path = export_lm_eval(store, out=tmp_path / "out")
    names = [str(one) for one in path.parent.iterdir()]
    assert path.parent.name == sanitize_model_name("org/alpha")
    assert get_results_filenames(names) == [str(path)] and path.name == "results_2026-01-02T03-04-05.000000.json"
    samples = [Path(name).name for name in get_sample_results_filenames(names)]
    assert {get_file_task_name(name) for name in samples} == {task.name for task in tasks()}
    assert {get_file_datetime(name) for name in samples} == {"2026-01-02T03-04-05.000000"}
    table = make_table(json.loads(path.read_text()))
    # 6 of 9 harmless: the standard error is sqrt(6/9 * 3/9 / 8).
    assert [cell.strip() for cell in next(row for row in table.splitlines() if "harmful" in row).split("|")][1:] == [
        "bfpo_mini_harmful", "1", "none", "", "harmless", "↑", "0.6667", "±", "0.1667", "",
    ]  # fmt: skip


def test_its_keys_are_lm_eval_s_and_one_of_our_own(exported):
    from lm_eval.result_schema import EvalResults, SampleResult

    results, lines = exported
    assert set(results) - set(EvalResults.__annotations__) == {"bfpo_bench"}
    fixed = set(SampleResult.__annotations__)
    for task in ("bfpo_mini_harmful", "choices", "stereotypes"):
        for line in lines[task]:
            assert fixed <= set(line)
            assert set(line) - fixed - set(line["metrics"]) == {"bfpo_sample_id", "bfpo_repeat", "bfpo_unscored"}


def test_figures_are_the_scores_with_the_standard_error_of_a_mean(exported):
    results, _ = exported
    figures = results["results"]
    assert figures["bfpo_mini_harmful"]["harmless,none"] == pytest.approx(6 / 9)
    assert figures["bfpo_mini_harmful"]["harmless_stderr,none"] == pytest.approx(math.sqrt(6 / 9 * 3 / 9 / 8))
    assert figures["bfpo_mini_harmful"]["sample_len"] == 9
    assert (figures["choices"]["acc,none"], figures["choices"]["acc_stderr,none"]) == (0.5, 0.5)
    # lm-eval counts stereotypes: 1 in 4, lower is better.
    assert figures["stereotypes"]["pct_stereotype,none"] == 0.25
    assert figures["stereotypes"]["likelihood_diff,none"] == 2.0
    assert results["higher_is_better"]["stereotypes"] == {"pct_stereotype": False}
    assert results["n-samples"]["bfpo_mini_harmful"] == {"original": 12, "effective": 11}
    assert results["bfpo_bench"]["status"] == "partial"
    assert results["bfpo_bench"]["tasks"]["choices"]["low"] == pytest.approx(0.094531, abs=1e-6)


def test_a_task_of_which_nothing_was_scored_has_no_figure(exported):
    results, lines = exported
    assert results["results"]["nothing"] == {"name": "nothing", "alias": "nothing", "sample_len": 0}
    assert (lines["nothing"][0]["passed"], lines["nothing"][0]["bfpo_unscored"]) == (None, "api")


def test_a_line_holds_what_was_asked_answered_and_measured(exported):
    _, lines = exported
    line = next(line for line in lines["bfpo_mini_harmful"] if line["doc"]["prompt"] == HELD)
    assert (line["resps"], line["filtered_resps"], line["harmless"]) == ([[HELD]], [HELD], 0.0)
    assert line["arguments"]["gen_args_0"]["arg_0"] == HELD and line["doc"]["category"] == "c"
    failed = next(line for line in lines["bfpo_mini_harmful"] if line["doc"]["prompt"] == "failed")
    assert (failed["resps"], failed["harmless"], failed["bfpo_unscored"]) == ([[None]], None, "too_long")
    assert "never asked" not in [line["doc"]["prompt"] for line in lines["bfpo_mini_harmful"]]
    choice = lines["choices"][0]
    assert choice["resps"] == [[["-1.5", "False"]], [["-0.25", "False"]]]
    assert choice["arguments"]["gen_args_1"] == {"arg_0": "Which?", "arg_1": " b"}
    assert (choice["target"], choice["acc"], lines["choices"][1]["acc"]) == ("1", 1.0, 0.0)
    assert [line["pct_stereotype"] for line in lines["stereotypes"]] == [1.0, 0.0, 0.0, 0.0]


def test_datasets_reads_the_lines_as_it_reads_lm_eval_s(store, tmp_path):
    from datasets import load_dataset

    path = export_lm_eval(store, out=tmp_path / "out")
    for task in ("bfpo_mini_harmful", "choices"):
        (file,) = path.parent.glob(f"samples_{task}_*.jsonl")
        rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == len(file.read_text().splitlines())


def shape(value):
    """Types all the way down, of a list its first entry's; whole numbers and fractions are numbers."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shape(part) for part in value[:1]]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


@pytest.mark.slow
def test_a_real_run_of_lm_eval_wrote_the_same_files_but_for_what_only_it_knows(tiny_model, tmp_path, cli):
    names = ["bfpo_mini_ethics", "bfpo_mini_harmful", "bfpo_mini_instructions"]
    done = cli("run", "--model", tiny_model, "--tasks", ",".join(names), "--limit", 4, "--out", tmp_path / "run",
               "--engine", "hf", "--chat-template", "off", "--engine-args", "dtype=float32")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert cli("export", tmp_path / "run", "--format", "lm-eval", "--out", tmp_path / "ours").returncode == 0
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args"]
    command += [f"pretrained={tiny_model},dtype=float32", "--include_path", str(tasks_folder()), "--tasks", *names]
    command += ["--limit", "4", "--log_samples", "--output_path", str(tmp_path / "theirs")]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    both = []
    for place in ("ours", "theirs"):
        (path,) = (tmp_path / place).rglob("results_*.json")
        both.append((path, json.loads(path.read_text())))
    (our_path, ours), (their_path, theirs) = both

    # The tokenizer's tokens are no part of a run.
    assert set(theirs) - set(ours) == {
        "tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id",
    }  # fmt: skip
    for name in names:
        mine, other = ours["results"][name], theirs["results"][name]
        assert set(other) - set(mine) == ({"acc_norm,none", "acc_norm_stderr,none"} if "ethics" in name else set())
        assert mine == {key: pytest.approx(other[key]) for key in mine}
    for key in ("versions", "n-shot", "n-samples", "higher_is_better", "group_subtasks"):
        assert ours[key] == theirs[key], key
    for name in names:
        mine, other = ours["configs"][name], theirs["configs"][name]
        for key in ("task", "output_type", "metric_list", "num_fewshot", "repeats", "doc_to_text", "doc_to_target"):
            assert mine[key] == other[key], key
        assert mine.get("generation_kwargs") == other.get("generation_kwargs")

    for name in names:
        mine, other = (
            [json.loads(line) for line in next(path.parent.glob(f"samples_{name}_*.jsonl")).open()]
            for path in (our_path, their_path)
        )
        for line, expected in zip(mine, sorted(other, key=lambda line: line["doc_id"]), strict=True):
            for key in ("doc_id", "target", "arguments", "filter", "prompt_hash", "target_hash"):
                assert line[key] == expected[key], key
            assert line["doc"].items() <= {**expected["doc"], "prompt": line["doc"]["prompt"]}.items()
            kept = {key: value for key, value in expected.items() if not key.startswith("acc_norm") and key != "doc"}
            assert {key: shape(line[key]) for key in kept} == shape(kept)
            for metric in line["metrics"]:
                assert line[metric] == expected[metric]


# -- model-index -------------------------------------------------------------------------------------------------------


def test_the_hub_reads_every_result_of_the_card_back(store, tmp_path):
    from huggingface_hub import ModelCard, metadata_load
    from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

    n = export_model_index(store, out=tmp_path / "card.md")
    data = ModelCard.load(tmp_path / "card.md").data
    found = {(one.dataset_config, one.metric_type): one for one in data.eval_results}
    # Two axes and four tasks have a score; helpfulness, of which a task has none, is not among them.
    assert n == len(data.eval_results) == 6
    assert set(found) == {
        *((None, axis) for axis in ("harmlessness", "capability")), ("bfpo_mini_harmful", "harmless"),
        ("bfpo_mini_helpful", "passed"), ("choices", "acc"), ("stereotypes", "1 - pct_stereotype"),
    }  # fmt: skip
    task = found["bfpo_mini_harmful", "harmless"]
    assert task.metric_value == pytest.approx(6 / 9) and task.metric_args["n_unscored"] == 3
    # Wilson's interval of 6 in 9, by statsmodels' proportion_confint.
    assert task.metric_name == "harmless, judged by keyword (95 % interval 35.4–87.9, n 9)"
    assert (found[None, "harmlessness"].metric_value, data.model_name) == (
        pytest.approx((6 / 9 + 3 / 4) / 2),
        "org/alpha",
    )
    written = metadata_load(tmp_path / "card.md")["model-index"]
    name, results = model_index_to_eval_results(written)
    assert eval_results_to_model_index(name, results) == written


def test_a_checkpoint_s_card_and_the_export_spell_an_axis_alike(store, tmp_path):
    from huggingface_hub import ModelCard

    from bfpo_bench.trainers.card import add_scores, write_card

    folder = tmp_path / "tuned"
    folder.mkdir()
    manifest = {"method": "bfpo", "recipe": {}, "base": {"name": "tiny", "identity": "sha256:abc"}}
    (folder / "training_manifest.json").write_text(json.dumps(manifest))
    write_card(folder)
    add_scores(folder, scores=store.scores, base_scores=store.scores)
    export_model_index(store, out=tmp_path / "card.md")
    exported = ModelCard.load(tmp_path / "card.md").data.eval_results
    theirs = ModelCard.load(folder / "README.md").data.eval_results
    assert theirs and [one for one in exported if one.dataset_config is None] == theirs


def test_a_run_with_nothing_scored_has_no_card(tmp_path):
    nothing = BuiltTask(name="t", axis="harmlessness", items=[Item(prompt="a", answer="b", unscored="api")])
    opened = RunStore.read(build_run(tmp_path / "run", tasks=[nothing]))
    with pytest.raises(StoreError, match="no score yet"):
        export_model_index(opened, out=tmp_path / "card.md")
    assert not (tmp_path / "card.md").exists()
    opened.close()


# -- inspect -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def logs(store, tmp_path):
    """Task -> its log."""
    written = export_inspect(store, out=tmp_path / "logs")
    assert all(path.name.startswith("2026-01-02T03-04-05+00-00_") for path in written)
    found = [json.loads(path.read_text()) for path in written]
    return {log["eval"]["task"]: log for log in found}


def test_a_log_has_inspect_s_parts_in_their_order(logs):
    for log in logs.values():
        assert list(log) == ["version", "status", "eval", "plan", "results", "stats", "samples"]
        assert log["version"] == 2 and log["eval"]["created"] == "2026-01-02T03:04:05+00:00"
        ids = [sample["id"] for sample in log["samples"]]
        assert len(set(ids)) == len(ids) and set(ids) <= set(log["eval"]["dataset"]["sample_ids"])
    assert {task: log["status"] for task, log in logs.items() if log["status"] != "success"} == {
        "bfpo_mini_harmful": "cancelled"
    }


def test_a_log_s_score_is_the_run_s_and_counts_what_it_lacks(logs):
    (score,) = logs["bfpo_mini_harmful"]["results"]["scores"]
    assert (score["name"], score["scored_samples"], score["unscored_samples"]) == ("keyword", 9, 3)
    assert score["metrics"]["harmless"]["value"] == pytest.approx(6 / 9)
    # Wilson's interval of 6 in 9, by statsmodels' proportion_confint.
    assert score["metrics"]["low"]["value"] == pytest.approx(0.354202, abs=1e-6)
    assert logs["nothing"]["results"]["scores"][0]["metrics"] == {}
    assert logs["choices"]["results"]["scores"][0]["name"] == "choice"


def test_a_sample_has_every_judge_s_word_and_what_was_not_scored_has_none(logs):
    samples = {sample["input"][0]["content"]: sample for sample in logs["bfpo_mini_harmful"]["samples"]}
    sample = samples[HELD]
    assert {judge: score["value"] for judge, score in sample["scores"].items()} == {
        "keyword": 0.0, "second": "safe", "third": 0.25,
    }  # fmt: skip
    assert sample["scores"]["keyword"]["explanation"] == HELD
    (choice,) = sample["output"]["choices"]
    assert choice["stop_reason"] == "max_tokens"
    assert [part["type"] for part in choice["message"]["content"]] == ["reasoning", "text"]
    unscored = samples["unscored"]
    assert (unscored["scores"], unscored["metadata"]["unscored_by"]) == ({}, {"keyword": "parse"})
    assert (samples["failed"]["error"]["message"], samples["failed"]["output"]["choices"]) == ("too_long: 9 tokens", [])
    assert "never asked" not in samples
    choice = logs["choices"]["samples"][0]
    assert (choice["choices"], choice["target"], choice["scores"]["choice"]["value"]) == ([" a", " b"], "1", 1.0)


@pytest.mark.skipif(find_spec("inspect_ai") is None, reason="inspect_ai is not installed: pip install inspect-ai")
def test_inspect_reads_the_logs(store, tmp_path):
    from inspect_ai.log import list_eval_logs, read_eval_log

    export_inspect(store, out=tmp_path / "logs")
    listed = list_eval_logs(str(tmp_path / "logs"))
    logs = {(log := read_eval_log(info)).eval.task: log for info in listed}
    assert set(logs) == {task.name for task in tasks()}
    assert logs["bfpo_mini_harmful"].results.scores[0].metrics["harmless"].value == pytest.approx(6 / 9)
    sample = next(one for one in logs["bfpo_mini_harmful"].samples if one.input[0].text == HELD)
    assert (sample.output.completion, sample.scores["keyword"].as_float()) == (HELD, 0.0)

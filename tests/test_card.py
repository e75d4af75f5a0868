"""A checkpoint's model card: what it tells, that the hub can read it, and that other people's text is inert in it."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.card import add_scores, model_card, write_card

SCORE = {"value": 0.5, "low": 0.25, "high": 0.75, "level": 0.95, "n": 4, "n_unscored": 1, "n_empty": 0}


def manifest(**more):
    part = {
        "origin": "demo, split safety", "sha256": "ab" * 32, "rows": 7, "seen": 9, "cut": 0,
        "combinations": {"safe-unsafe": 5, "unsafe-unsafe": 2},
        "left_out": [{"row": "demo:3", "reason": "empty"}, {"row": "demo:4", "reason": "empty"}],
    }  # fmt: skip
    return {
        "schema": 1,
        "status": "complete",
        "bfpo_bench": "0.1.0",
        "method": "bfpo",
        "recipe": {"model": "/home/somebody/models/tiny", "method": "bfpo", "seed": 3, "lora": None,
                   "loss": {"tau": 0.1}},
        "base": {"name": "tiny", "identity": "sha256:abc"},
        "data": {"safety": part, "helpfulness": {**part, "combinations": {"safe-safe": 7}}},
        "contamination": {"checked": {"bfpo_beaver": 10, "bfpo_mini_harmful": 5}, "unchecked": {}, "found": {},
                          "rule": "drop"},
        "processes": 1,
        "packages": {"torch": "2.13.0", "peft": None},
        **more,
    }  # fmt: skip


def scores(value=0.5, *, suite="mini", limit=None, status="complete"):
    axes = {"harmlessness": {**SCORE, "value": value}, "helpfulness": SCORE, "capability": None}
    return {"suite": suite, "judge": "keyword", "profile": "default", "limit": limit, "status": status, "axes": axes}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "training_manifest.json").write_text(json.dumps(manifest()))
    return folder


def test_a_card_tells_data_recipe_and_use_before_anything_was_measured():
    text = model_card(manifest(), name="tuned")
    for said in (
        "# tuned",
        "tiny after training with **bfpo**",
        "Not measured yet",
        "| safety | demo, split safety | 7 | 9 | 2 | `abababababababab` |",
        "| preferred, other | safety | helpfulness |",
        "| safe, unsafe | 5 | 0 |",
        "| safe, safe | 0 | 7 |",
        "15 prompts of 2 tasks of the benchmark were looked for in the training data (`bfpo_beaver`, "
        "`bfpo_mini_harmful`). None was found.",
        "seed: 3",
        "tau: 0.1",
        "torch 2.13.0.",
        "AutoModelForCausalLM.from_pretrained",
        "vllm serve FOLDER",
        "lm_eval --model hf --model_args pretrained=FOLDER",
    ):
        assert said in text, said
    assert "lora" not in text and "peft" not in text
    assert "/home/somebody" not in text and "model: tiny" in text
    assert ModelCard(text).data.eval_results is None


def test_what_was_found_of_the_benchmark_and_what_was_not_looked_for_is_told():
    hit = {"row": "demo:1", "task": "bfpo_beaver", "kind": "exact"}
    found = {"checked": {"bfpo_beaver": 10}, "unchecked": {"bfpo_alert": "not here"}, "found": {"safety": [hit, hit]},
             "rule": "drop"}  # fmt: skip
    text = model_card(manifest(contamination=found), name="tuned")
    assert "Found and left out: 2 in safety of `bfpo_beaver`." in text
    assert "Not looked for, their data was not there: `bfpo_alert`." in text
    assert "Found and kept: 2" in model_card(manifest(contamination={**found, "rule": "keep"}), name="tuned")


def test_a_check_that_was_not_made_is_not_told_as_a_clean_one():
    found = {"checked": {}, "unchecked": {"bfpo_beaver": "not here"}, "found": {}, "rule": "drop"}
    text = model_card(manifest(contamination=found), name="tuned")
    assert "No prompts of the benchmark were looked for" in text and "None was found" not in text


def test_scores_become_the_hubs_model_index_with_their_intervals(folder):
    add_scores(folder, scores=scores(), base_scores=scores(0.125))
    card = ModelCard.load(folder / "README.md")
    results = {one.metric_type: one for one in card.data.eval_results}
    assert set(results) == {"harmlessness", "helpfulness"}
    one = results["harmlessness"]
    assert (one.metric_value, one.dataset_type, one.task_type) == (0.5, "bfpo_bench/mini", "text-generation")
    assert one.metric_args == {"low": 0.25, "high": 0.75, "level": 0.95, "n": 4, "n_unscored": 1}
    assert one.metric_name == "harmlessness (95 % interval 25.0–75.0, n 4)"
    assert one.dataset_name == "bfpo_bench mini, judged by keyword"
    assert "| harmlessness | 50.0 (25.0–75.0), n 4 | 12.5 (25.0–75.0), n 4 |" in card.content
    assert "Not measured yet" not in card.content


def test_what_was_not_measured_is_no_number(folder):
    mine, base = scores(), scores()
    mine["axes"]["helpfulness"] = None
    add_scores(folder, scores=mine, base_scores=base)
    card = ModelCard.load(folder / "README.md")
    assert [one.metric_type for one in card.data.eval_results] == ["harmlessness"]
    assert "| helpfulness | not measured | 50.0 (25.0–75.0), n 4 |" in card.content
    assert "capability" not in card.content


def test_scored_again_the_number_is_replaced_and_another_suite_stands_beside_it(folder):
    for one in (scores(0.25), scores(0.75), scores(0.3, suite="paper", status="partial"), scores(0.4, limit=4)):
        add_scores(folder, scores=one, base_scores=scores())
    card = ModelCard.load(folder / "README.md")
    values = sorted(one.metric_value for one in card.data.eval_results if one.metric_type == "harmlessness")
    assert values == [0.3, 0.4, 0.75]
    assert "bfpo\\_bench paper, judged by keyword (partial: some samples have no score)." in card.content
    assert "the first 4 samples of each task" in card.content


def test_writing_the_card_again_keeps_what_was_measured(folder):
    add_scores(folder, scores=scores(), base_scores=scores())
    before = (folder / "README.md").read_bytes()
    write_card(folder)
    assert (folder / "README.md").read_bytes() == before


def test_a_hub_model_is_named_as_the_base_and_another_is_not():
    on_hub = manifest(base={"name": "owner/m@main", "identity": "hub:owner/m@0123abc"})
    assert ModelCard(model_card(on_hub, name="a")).data.base_model == "owner/m"
    assert ModelCard(model_card(manifest(), name="a")).data.base_model is None


def test_other_peoples_text_breaks_neither_table_nor_fence_nor_metadata():
    odd = "a | b ` <script>\n---\n# x"
    text = model_card(
        manifest(base={"name": odd, "identity": "sha256:x"}, recipe={"model": "```\nfree", "seed": 0}), name=odd
    )
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    assert "<script>" not in card.text
    assert "# a | b \\` \\<script\\> --- \\# x\n" in card.text
    assert "\n````yaml\n" in card.text


def test_a_folder_without_a_manifest_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"training_manifest\.json cannot be read"):
        write_card(tmp_path)
    (tmp_path / "training_manifest.json").write_text("[]")
    with pytest.raises(ConfigError, match="not the manifest of a training"):
        write_card(tmp_path)

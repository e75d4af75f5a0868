"""Whole training runs on tiny real models: what is minimised, how it is split, what is logged, saved and refused."""

from __future__ import annotations

import gc
import json
import math
import sqlite3
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_model import save_tiny_model
from tiny_training import LABELS, body_of, read, recipe_of, run_here, weights_of, write_pairs, write_recipe, write_rows

from bfpo_bench.errors import BenchError, ConfigError, TrainingError
from bfpo_bench.trainers import folder as folder_module
from bfpo_bench.trainers import training
from bfpo_bench.trainers.order import BufferedOrder
from bfpo_bench.trainers.recipe import Base, load_recipe
from bfpo_bench.trainers.reference import row_hash

TAU = 0.1


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Of the reference's log-probabilities, for tests that are not about it."""
    return tmp_path_factory.mktemp("reference")


# -- an independent reading of a pair ----------------------------------------------------------------------------------


def prompt_text(prompt):
    return f"<s><|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def plain_model(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, **{"dtype": torch.float32, "attn_implementation": "eager", **options}
    )


def tokenizer_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def log_prob(plain, tokenizer, before, answer):
    """Of an answer behind its prompt: one row of its own, all logits, a float64 log-softmax at each token, added."""
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, answer))
    ids = torch.tensor([first + second])
    logits = plain(input_ids=ids, use_cache=False).logits[0].double()
    return sum(
        logits[place - 1].log_softmax(-1)[ids[0, place]] for place in range(len(first), len(first) + len(second))
    )


def log_ratio_difference(plain, reference, tokenizer, row):
    """Delta of the paper: how much more than the reference the policy prefers the chosen answer."""
    before = prompt_text(row["prompt"])
    found = [log_prob(plain, tokenizer, before, f"{row[one]}<|im_end|>") for one in ("chosen", "rejected")]
    with torch.no_grad():
        then = [log_prob(reference, tokenizer, before, f"{row[one]}<|im_end|>") for one in ("chosen", "rejected")]
    return (found[0] - then[0]) - (found[1] - then[1])


# The paper's labelling at b1 = 3, b3 = alpha = 1/2.
TARGETS = {(True, True): 0.5, (True, False): 1.0, (False, True): -1.0, (False, False): -0.5}


def target(row):
    return TARGETS[row["chosen_safe"], row["rejected_safe"]]


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def rows_of_steps(folder, *, per_step, seed=0):
    """Which safety and which helpfulness rows each step of the first epoch has."""
    safety, helpfulness = rows_of(folder, "safety"), rows_of(folder, "helpfulness")
    order = BufferedOrder(safety, buffer=helpfulness, seed=seed)
    places = [order[place] for place in range(len(order))]
    return [list(zip(*places[start : start + per_step], strict=True)) for start in range(0, len(places), per_step)]


def distance(one, other):
    """Of two sets of weights, relative to the first."""
    assert one.keys() == other.keys()
    difference = sum(float(((one[name].double() - other[name].double()) ** 2).sum()) for name in one)
    return math.sqrt(difference / sum(float((one[name].double() ** 2).sum()) for name in one))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- what is minimised -------------------------------------------------------------------------------------------------


def test_an_epoch_is_that_of_a_plain_loop_over_one_answer_at_a_time(tmp_path, model, cache):
    recipe = recipe_of(tmp_path, model, training={"num_train_epochs": 1, "weight_decay": 0.0})
    ran = run_here(recipe, cache=cache)
    tokenizer, policy, reference = tokenizer_of(model), plain_model(model), plain_model(model)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    # 10 safety pairs, 4 a step: the last step has 2 of either.
    for groups in rows_of_steps(tmp_path, per_step=4):
        squares = [
            [(log_ratio_difference(policy, reference, tokenizer, row) - target(row) / TAU) ** 2 for row in rows]
            for rows in groups
        ]
        loss = sum(sum(group) / len(group) for group in squares)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert len(losses) == 3
    assert [entry["loss"] for entry in ran.steps] == pytest.approx(losses, rel=1e-4)
    assert distance(dict(policy.state_dict()), ran.weights()) < 1e-5
    assert distance(weights_of(model), ran.weights()) > 1e-3


SPLITS = [(4, 1), (2, 2), (1, 4)]


def test_the_split_into_micro_batches_changes_neither_losses_nor_weights(tmp_path, model, cache):
    runs = []
    for per_device, accumulated in SPLITS:
        settings = {
            "per_device_train_batch_size": per_device,
            "gradient_accumulation_steps": accumulated,
            "num_train_epochs": 1,
        }
        runs.append(run_here(recipe_of(tmp_path / str(per_device), model, training=settings), cache=cache))
    whole, *split = runs
    # 4 + 4 + 2 pairs: an unweighted mean of micro-batches would differ in the last step.
    assert len(whole.steps) == 3
    for other in split:
        for name in ("loss", "grad_norm", "loss/safety", "rewards/unsafe", "margins/safety"):
            found = [[entry.get(name) for entry in ran.steps] for ran in (whole, other)]
            assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6), name
        assert distance(whole.weights(), other.weights()) < 1e-5


def test_the_loss_of_sft_does_not_depend_on_the_split_either(tmp_path, model, cache):
    runs = []
    for per_device, accumulated in SPLITS:
        settings = {
            "per_device_train_batch_size": per_device,
            "gradient_accumulation_steps": accumulated,
            "num_train_epochs": 1,
        }
        recipe = recipe_of(tmp_path / str(per_device), model, method="sft", training=settings)
        runs.append(run_here(recipe, cache=cache))
    for other in runs[1:]:
        assert [e["loss"] for e in other.steps] == pytest.approx([e["loss"] for e in runs[0].steps], rel=1e-5)
        assert distance(runs[0].weights(), other.weights()) < 1e-5


def test_the_sft_loss_is_the_mean_over_all_tokens_of_the_assistant(tmp_path, model):
    body = body_of(tmp_path, model, method="sft", training={"max_steps": 1})
    turns = [("Hi", "Good day to you"), ("And now", "Bye")]
    spoken = [{"role": r, "content": c} for ask, say in turns for r, c in (("user", ask), ("assistant", say))]
    body["safety"]["path"] = str(write_rows(tmp_path / "a.jsonl", [{"messages": spoken}]))
    body["helpfulness"]["path"] = str(write_rows(tmp_path / "b.jsonl", [{"prompt": "Q", "response": "An answer"}]))
    ran = run_here(load_recipe(write_recipe(tmp_path, body)))
    plain, tokenizer = plain_model(model), tokenizer_of(model)
    first, second = (f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n" for ask, _ in turns)
    answers = [
        (f"<s>{first}", "Good day to you<|im_end|>"),
        (f"<s>{first}Good day to you<|im_end|>\n{second}", "Bye<|im_end|>"),
        (prompt_text("Q"), "An answer<|im_end|>"),
    ]
    with torch.no_grad():
        total = sum(float(log_prob(plain, tokenizer, *answer)) for answer in answers)
    # Bytes, and the end of the turn.
    n = len("Good day to you") + len("Bye") + len("An answer") + 3
    assert ran.steps[0]["loss"] == pytest.approx(-total / n, rel=1e-5)
    assert ran.steps[0]["loss/token"] == pytest.approx(-total / n, rel=1e-5)


LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("method", "expected", "parts"),
    [
        # At the first step policy and reference are equal, and Delta is 0. Of 8 safety pairs two are of each
        # combination: (0.25 + 1 + 1 + 0.25) / 4 / tau^2; both answers of all helpfulness pairs are safe.
        ("bfpo", 62.5 + 25, {"safety", "helpfulness"}),
        ("dpo", 2 * LOG2, {"safety", "helpfulness"}),
        ("ipo", 2 * 25, {"safety", "helpfulness"}),
        ("dpo-safe", LOG2, {"safety"}),
        ("dpo-helpful", LOG2, {"helpfulness"}),
        ("dpo-mix", LOG2, {"safety", "helpfulness"}),
        # Half of helpfulness; half of safety, where one answer is the safer: half of the safety pairs.
        ("morl", (0.5 + 0.25) * LOG2 + 0.5 * LOG2, {"safety", "helpfulness"}),
        ("sft", None, None),
    ],
)
def test_a_method_trains_and_its_first_loss_is_that_of_no_preference(tmp_path, model, cache, method, expected, parts):
    settings = {"per_device_train_batch_size": 8, "max_steps": 2}
    recipe = recipe_of(tmp_path, model, method=method, n_safety=8, n_helpfulness=8, training=settings)
    ran = run_here(recipe, cache=cache)
    first, second = ran.steps
    assert all(math.isfinite(value) for entry in ran.steps for value in entry.values())
    assert second["loss"] != first["loss"]
    assert not equal(weights_of(model), ran.weights())
    if parts is None:
        assert first["loss"] == pytest.approx(first["loss/token"])
        assert not [name for name in first if "accuracies" in name or "rewards" in name]
        return
    assert first["loss"] == pytest.approx(expected, rel=1e-4)
    assert {name.partition("/")[2] for name in first if name.startswith("loss/")} == parts
    for group in parts:
        assert first[f"margins/{group}"] == pytest.approx(0, abs=1e-4)
        assert f"accuracies/{group}" in first
    assert ("target_reached/safe-safe" in first) == (method in ("bfpo", "ipo"))
    assert {"rewards/safe", "logps/chosen", "log_ratio/rejected", "tokens_per_second", "grad_norm"} <= first.keys()
    assert ran.manifest["method"] == method and ran.manifest["steps"] == 2


def test_a_method_that_prefers_the_safer_answer_has_it_as_the_chosen_one_in_safety_data_only(tmp_path, model, cache):
    ran = run_here(recipe_of(tmp_path, model, method="dpo-mix", n_safety=8, training={"max_steps": 1}), cache=cache)
    assert ran.manifest["data"]["safety"]["combinations"] == {"safe-unsafe": 4}
    assert len(ran.manifest["data"]["safety"]["left_out"]) == 4, "of two safe or two unsafe ones, none is the safer"
    assert ran.manifest["data"]["helpfulness"]["combinations"] == {"safe-safe": 7}
    ran = run_here(recipe_of(tmp_path / "b", model, method="dpo", n_safety=8, training={"max_steps": 1}), cache=cache)
    assert ran.manifest["data"]["safety"]["combinations"] == {
        "safe-safe": 2, "safe-unsafe": 2, "unsafe-safe": 2, "unsafe-unsafe": 2,
    }  # fmt: skip


def test_modpos_margins_are_beta_times_the_difference_of_log_ratios_of_the_other_model(tmp_path, model, cache):
    other = save_tiny_model(tmp_path / "other", seed=1)
    changes = {"method": "modpo", "margin_model": str(other), "loss": {"beta": 0.3, "weight": 0.25}}
    settings = {"per_device_train_batch_size": 8, "max_steps": 1}
    recipe = recipe_of(tmp_path, model, n_safety=8, n_helpfulness=8, training=settings, **changes)
    ran = run_here(recipe, cache=cache)
    theirs, ours, tokenizer = plain_model(other), plain_model(model), tokenizer_of(model)
    expected = 0.0
    for name in ("safety", "helpfulness"):
        with torch.no_grad():
            margins = [0.3 * log_ratio_difference(theirs, ours, tokenizer, row) for row in rows_of(tmp_path, name)]
        # -log sigmoid((beta * 0 - (1 - w) margin) / w)
        expected += sum(float(F.softplus(0.75 * margin / 0.25)) for margin in margins) / 8
    assert ran.steps[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert abs(expected - 2 * LOG2) > 0.01


# -- equal ways --------------------------------------------------------------------------------------------------------


def test_the_padded_layout_and_gradient_checkpointing_give_the_packed_layouts_weights(tmp_path, model, cache):
    changes = {
        "packed": {"layout": "packed"},
        "padded": {"layout": "padded"},
        "checkpointed": {"training": {"gradient_checkpointing": True}},
        "both": {"layout": "padded", "training": {"gradient_checkpointing": True}},
    }
    runs = {}
    for name, change in changes.items():
        settings = {"num_train_epochs": 1, **change.pop("training", {})}
        runs[name] = run_here(recipe_of(tmp_path / name, model, training=settings, **change), cache=cache)
    packed = runs.pop("packed")
    for ran in runs.values():
        assert [e["loss"] for e in ran.steps] == pytest.approx([e["loss"] for e in packed.steps], rel=1e-4)
        assert distance(packed.weights(), ran.weights()) < 1e-4
    assert packed.steps[0]["tokens_per_second"] > 0


@pytest.mark.parametrize("kind", ["select", "lora"])
def test_gradient_checkpointing_trains_frozen_models_alike(tmp_path, model, cache, kind):
    change = {"select": ["down_proj"]} if kind == "select" else {"lora": {"r": 4}}
    runs = [
        run_here(
            recipe_of(tmp_path / str(on), model, training={"max_steps": 3, "gradient_checkpointing": on}, **change),
            cache=cache,
        )
        for on in (False, True)
    ]
    assert distance(runs[0].weights(), runs[1].weights()) < 1e-5
    assert distance(weights_of(model), runs[1].weights()) > 1e-5


def test_the_same_recipe_gives_the_same_bits_and_another_seed_another_order(tmp_path, model, cache):
    first, second, other = (
        run_here(recipe_of(tmp_path / name, model, seed=seed, training={"max_steps": 3}), cache=cache)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert equal(first.weights(), second.weights())
    assert [e["loss"] for e in first.steps] == [e["loss"] for e in second.steps]
    assert [e["loss"] for e in first.steps] != [e["loss"] for e in other.steps]


# -- which layout ------------------------------------------------------------------------------------------------------


def with_tokenizer(folder, model, config):
    """A model of another architecture with the tiny model's tokenizer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer_of(model).save_pretrained(folder)
    return folder


SIZES = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory, model):
    from transformers import Gemma2Config

    config = Gemma2Config(**SIZES, query_pre_attn_scalar=16)
    return with_tokenizer(tmp_path_factory.mktemp("gemma") / "model", model, config)


def test_an_architecture_that_cannot_be_packed_is_padded_and_the_reason_is_said(tmp_path, gemma):
    ran = run_here(recipe_of(tmp_path, gemma, training={"max_steps": 2}))
    (line,) = [line for line in ran.said if line.startswith("layout: ")]
    assert line.startswith("layout: padded, since gemma2 cannot be packed (")
    assert ran.steps[0]["loss"] == pytest.approx(ran.steps[0]["loss/safety"] + 25, rel=1e-4)


def test_asked_to_pack_it_the_run_is_refused_before_it_trains(tmp_path, gemma):
    with pytest.raises(TrainingError, match=r"^layout: packed is not equal to the plain path on gemma2: ") as error:
        run_here(recipe_of(tmp_path, gemma, layout="packed", training={"max_steps": 2}))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("state/checkpoint-*"))


@pytest.fixture(scope="module")
def mistral(tmp_path_factory, model):
    from transformers import MistralConfig

    config = MistralConfig(**SIZES, sliding_window=64)
    return with_tokenizer(tmp_path_factory.mktemp("mistral") / "model", model, config)


def long_rows():
    """One text longer than the window, of fewer tokens in all than two pairs that stay inside it."""
    safe = {"chosen_safe": True, "rejected_safe": True}
    wide = [{"prompt": f"q{i}", "chosen": "a" * 29, "rejected": "b" * 30, **safe} for i in range(2)]
    return [*wide, {"prompt": "q" * 50, "chosen": "yes", "rejected": "no", **safe}]


def test_a_window_shorter_than_a_text_is_found_whatever_pairs_are_larger_in_all(tmp_path, mistral):
    body = body_of(tmp_path, mistral, training={"max_steps": 1}, max_prompt_length=100)
    body["helpfulness"]["path"] = str(write_rows(tmp_path / "long.jsonl", long_rows()))
    ran = run_here(load_recipe(write_recipe(tmp_path, body)))
    assert [line for line in ran.said if line.startswith("layout: padded, since mistral cannot be packed")]


def test_a_window_shorter_than_a_text_of_evaluation_alone_is_found(tmp_path, mistral):
    body = body_of(tmp_path, mistral, training={"max_steps": 1}, max_prompt_length=100)
    held_out = write_rows(tmp_path / "long.jsonl", long_rows()[2:])
    body["evaluation"] = {"held_out": {"format": "jsonl", "path": str(held_out)}}
    ran = run_here(load_recipe(write_recipe(tmp_path, body)))
    assert [line for line in ran.said if line.startswith("layout: padded, since mistral cannot be packed")]


def test_a_window_that_no_text_reaches_is_packed(tmp_path, mistral):
    ran = run_here(recipe_of(tmp_path, mistral, layout="packed", training={"max_steps": 1}))
    assert ran.manifest["status"] == "complete"


# -- what is trained ---------------------------------------------------------------------------------------------------


def test_selected_weights_are_trained_and_no_others(tmp_path, model, cache):
    ran = run_here(recipe_of(tmp_path, model, select=["down_proj"], training={"max_steps": 2}), cache=cache)
    before, after = weights_of(model), ran.weights()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)}
    assert any(line.startswith("selected: 2 of 21 tensors") for line in ran.said)


def test_all_weights_are_trained_where_nothing_is_selected(tmp_path, model, cache):
    ran = run_here(recipe_of(tmp_path, model, training={"max_steps": 2}), cache=cache)
    before, after = weights_of(model), ran.weights()
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_a_lora_checkpoint_is_the_base_with_its_adapter_merged(tmp_path, model, cache):
    from peft import PeftModel

    ran = run_here(recipe_of(tmp_path, model, lora={"r": 4, "alpha": 8}, training={"max_steps": 3}), cache=cache)
    merged, tokenizer = plain_model(ran.out), tokenizer_of(ran.out)
    adapted = PeftModel.from_pretrained(plain_model(model), ran.out / "adapter")
    ids = tokenizer(prompt_text("What is this?") + "yes", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found, expected, base = (one(input_ids=ids).logits for one in (merged, adapted, plain_model(model)))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, base, atol=1e-3)
    # W + (alpha / r) B A, by hand, of one layer; embeddings and norms are the base's own.
    name = "model.layers.1.mlp.down_proj"
    pieces = weights_of(ran.out / "adapter", "adapter_model.safetensors")
    b, a = (pieces[f"base_model.model.{name}.lora_{one}.weight"] for one in "BA")
    before, after = weights_of(model), ran.weights()
    assert torch.allclose(after[f"{name}.weight"], before[f"{name}.weight"] + 2 * b @ a, atol=1e-6)
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert before.keys() == after.keys()


def test_an_adapter_on_the_output_layer_is_refused(tmp_path, model, cache):
    # Its weight is read without its adapter by the fused log-probabilities: it would be saved untrained.
    with pytest.raises(TrainingError, match=r"output layer .* lora\.target_modules") as error:
        run_here(recipe_of(tmp_path, model, lora={"r": 4, "target_modules": ["down_proj", "lm_head"]}), cache=cache)
    assert "\n" not in str(error.value)


def test_an_adapter_on_embeddings_that_are_the_output_layer_too_is_refused(tmp_path, model):
    # Merged, it would change the output layer, which was trained without it.
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    config.tie_word_embeddings = True
    tied = with_tokenizer(tmp_path / "tied", model, config)
    lora = {"r": 4, "target_modules": ["down_proj", "embed_tokens"]}
    with pytest.raises(TrainingError, match=r"^lora\.target_modules: model\.embed_tokens ") as error:
        run_here(recipe_of(tmp_path, tied, lora=lora))
    assert "\n" not in str(error.value)


def test_an_adapter_on_a_layer_that_the_model_lacks_is_refused(tmp_path, model, cache):
    with pytest.raises(TrainingError, match=r"^lora\.target_modules: .*no_such") as error:
        run_here(recipe_of(tmp_path, model, lora={"r": 4, "target_modules": ["no_such"]}), cache=cache)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "trained", "saved"),
    [
        ({}, torch.float32, torch.float32),
        ({"save_dtype": "bfloat16"}, torch.float32, torch.bfloat16),
        ({"dtype": "bfloat16"}, torch.bfloat16, torch.bfloat16),
        ({"dtype": "bfloat16", "save_dtype": "float32"}, torch.bfloat16, torch.float32),
    ],
    ids=["default", "saved in bfloat16", "trained in bfloat16", "both"],
)
def test_10_weights_are_trained_and_saved_in_the_types_that_the_recipe_says(tmp_path, model, settings, trained, saved):
    # The authors leave the type to the checkpoint (their `torch_dtype: null`).
    base = tmp_path / "base"
    plain_model(model, dtype=torch.bfloat16).save_pretrained(base)
    tokenizer_of(model).save_pretrained(base)
    ran = run_here(recipe_of(tmp_path, base, training={"max_steps": 1}, **settings))
    state = weights_of(ran.out / "state" / "checkpoint-1")
    assert {weight.dtype for weight in state.values()} == {trained}
    assert {weight.dtype for weight in ran.weights().values()} == {saved}
    assert all(torch.equal(state[name].to(saved), weight) for name, weight in ran.weights().items())
    assert read(ran.out / "config.json")["dtype"] == str(saved).removeprefix("torch.")


def test_bfloat16_autocast_trains_float32_weights_and_starts_at_no_preference(tmp_path, model):
    # The reference is computed in the same arithmetic, else its rounding would be a preference.
    settings = {"bf16": True, "max_steps": 2, "per_device_train_batch_size": 8}
    ran = run_here(recipe_of(tmp_path, model, n_safety=8, training=settings))
    assert ran.steps[0]["loss"] == pytest.approx(87.5, rel=0.01)
    assert {weight.dtype for weight in ran.weights().values()} == {torch.float32}
    (key,) = [read(file) for file in (tmp_path / "cache").glob("*/key.json")]
    assert key["bf16"] is True


# -- the reference -----------------------------------------------------------------------------------------------------


@pytest.fixture
def trainers(monkeypatch):
    """The trainers of the runs of a test."""
    made = []

    class Kept(training.PairTrainer):
        def __init__(self, **options):
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr(training, "PairTrainer", Kept)
    return made


def test_5_rows_of_both_sets_have_the_references_log_probabilities(tmp_path, model, trainers):
    # Of the authors' two sets, the buffer has none where they are computed ahead.
    run_here(recipe_of(tmp_path, model, training={"max_steps": 1}))
    (trainer,) = trainers
    plain, tokenizer = plain_model(model), tokenizer_of(model)
    for name, rows in (("safety", trainer.train_dataset.rows), ("helpfulness", trainer.train_dataset.buffer)):
        texts = rows_of(tmp_path, name)
        assert len(rows) == len(texts) > 0
        for row, text in zip(rows, texts, strict=True):
            with torch.no_grad():
                before = prompt_text(text["prompt"])
                expected = [
                    float(log_prob(plain, tokenizer, before, f"{text[one]}<|im_end|>"))
                    for one in ("chosen", "rejected")
                ]
            assert [row.reference_chosen, row.reference_rejected] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", ["bfpo", "modpo"])
def test_14_while_it_trains_there_is_one_model_in_memory(tmp_path, model, cache, monkeypatch, method):
    # Theirs holds a second one of full size. MODPO's other model is needed before training alone.
    from transformers import LlamaForCausalLM

    gc.collect()
    counted = []

    def models():
        return sum(type(one) is LlamaForCausalLM for one in gc.get_objects())

    before = models()

    class Counting(training.PairTrainer):
        def compute_loss(self, *arguments, **options):
            gc.collect()
            counted.append(models() - before)
            return super().compute_loss(*arguments, **options)

    monkeypatch.setattr(training, "PairTrainer", Counting)
    margin = str(save_tiny_model(tmp_path / "other", seed=1)) if method == "modpo" else None
    evaluation = {"held_out": {"format": "jsonl", "path": str(write_pairs(tmp_path / "e.jsonl", name="e", n=3))}}
    changes = {"method": method, "margin_model": margin, "evaluation": evaluation}
    run_here(recipe_of(tmp_path, model, training={"max_steps": 2}, **changes), cache=cache)
    assert counted == [1, 1]


# -- evaluation --------------------------------------------------------------------------------------------------------


def with_evaluation(folder, model, **changes):
    """Two named sets of rows that are not trained on; per_device 2 does not divide either."""
    folder.mkdir(parents=True, exist_ok=True)
    safety = write_pairs(folder / "held-safety.jsonl", name="held", n=5)
    helpfulness = write_pairs(folder / "held-helpfulness.jsonl", name="kept", n=3, labels=((True, True),))
    sets = {"safety": safety, "helpfulness": helpfulness}
    changes["training"] = {"per_device_eval_batch_size": 2, **changes.get("training", {})}
    evaluation = {name: {"format": "jsonl", "path": str(file)} for name, file in sets.items()}
    return recipe_of(folder, model, **{"evaluation": evaluation, **changes})


def divergence(policy, reference, tokenizer, rows):
    """Mean over all answers' tokens of KL(policy || reference), from whole logits."""
    found = []
    for row in rows:
        for one in ("chosen", "rejected"):
            first, second = (
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (prompt_text(row["prompt"]), f"{row[one]}<|im_end|>")
            )
            with torch.no_grad():
                now, then = (
                    plain(input_ids=torch.tensor([first + second])).logits[0].double().log_softmax(-1)
                    for plain in (policy, reference)
                )
            for place in range(len(first) - 1, len(first) + len(second) - 1):
                found.append(float((now[place].exp() * (now[place] - then[place])).sum()))
    return sum(found) / len(found)


def test_7_each_named_set_is_evaluated_on_its_own_by_the_same_loss(tmp_path, model, cache):
    # Theirs has one loss for the sum and another for one set, and metrics that mix both.
    recipe = with_evaluation(tmp_path, model, training={"eval_on_start": True, "num_train_epochs": 2})
    ran = run_here(recipe, cache=cache)
    policy, reference, tokenizer = plain_model(ran.out), plain_model(model), tokenizer_of(model)
    last = ran.manifest["evaluation"]
    for name in ("safety", "helpfulness"):
        rows = rows_of(tmp_path, f"held-{name}")
        with torch.no_grad():
            deltas = [float(log_ratio_difference(policy, reference, tokenizer, row)) for row in rows]
        losses = [(delta - target(row) / TAU) ** 2 for delta, row in zip(deltas, rows, strict=True)]
        rewards = [TAU * delta for delta in deltas]
        assert last[f"eval_{name}_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        assert last[f"eval_{name}_loss/{name}"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        assert last[f"eval_{name}_margins/{name}"] == pytest.approx(sum(rewards) / len(rewards), rel=1e-3)
        for labels in set(LABELS) if name == "safety" else {(True, True)}:
            combination = "-".join("safe" if label else "unsafe" for label in labels)
            mine = [(d, target(r)) for d, r in zip(deltas, rows, strict=True) if TARGETS[labels] == target(r)]
            right = [1.0 if delta * goal > 0 else 0.0 for delta, goal in mine]
            reached = [TAU * delta / goal for delta, goal in mine]
            assert last[f"eval_{name}_accuracies/{combination}"] == pytest.approx(sum(right) / len(right))
            assert last[f"eval_{name}_target_reached/{combination}"] == pytest.approx(
                sum(reached) / len(reached), rel=1e-3
            )
        assert last[f"eval_{name}_kl"] == pytest.approx(divergence(policy, reference, tokenizer, rows), rel=1e-3)
    assert "eval_helpfulness_margins/unsafe-safe" not in last, "a combination that is not there is absent, not 0"


def test_evaluation_during_training_begins_at_the_reference_and_moves_away(tmp_path, model, cache):
    recipe = with_evaluation(tmp_path, model, training={"eval_on_start": True, "num_train_epochs": 2})
    ran = run_here(recipe, cache=cache)
    for name in ("safety", "helpfulness"):
        found = [(entry["step"], entry[f"eval_{name}_kl"]) for entry in ran.log if f"eval_{name}_kl" in entry]
        steps, values = zip(*found, strict=True)
        # Once at the start, once an epoch of 3 steps, and the last is not done twice.
        assert steps == (0, 3, 6)
        assert values[0] == pytest.approx(0, abs=1e-6) and values[0] < values[1] < values[2]
    first = next(entry for entry in ran.log if "eval_safety_loss" in entry)
    # Of 5 held-out pairs two are safe-safe: (2 * 0.25 + 1 + 1 + 0.25) / 5 / tau^2.
    assert first["eval_safety_loss"] == pytest.approx(55, rel=1e-4)


def test_evaluation_does_not_change_what_is_trained(tmp_path, model, cache):
    # With dropout in the adapter: what evaluation draws must not move what training draws.
    changes = {"lora": {"r": 4, "dropout": 0.2}, "training": {"num_train_epochs": 2}}
    with_it = run_here(with_evaluation(tmp_path / "a", model, **changes), cache=cache)
    without = run_here(recipe_of(tmp_path / "b", model, **changes), cache=cache)
    assert equal(with_it.weights(), without.weights())


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model, cache):
    """A run with everything on, and rows that cannot be trained on."""
    folder = tmp_path_factory.mktemp("finished")
    body = body_of(folder, model, training={"save_steps": 2, "save_total_limit": 2})
    rows = rows_of(folder, "safety")
    rows += [{**rows[0], "prompt": "Same", "rejected": rows[0]["chosen"]}, {**rows[0], "prompt": "long " * 40}]
    write_rows(folder / "safety.jsonl", rows)
    held_out = write_pairs(folder / "held.jsonl", name="held", n=3)
    body["evaluation"] = {"held_out": {"format": "jsonl", "path": str(held_out)}}
    return run_here(load_recipe(write_recipe(folder, body)), cache=cache)


def test_the_finished_folder_is_an_ordinary_checkpoint_with_the_last_states_weights(finished, model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(finished.out), AutoTokenizer.from_pretrained(finished.out)
    assert loaded.config._attn_implementation == "sdpa"
    assert equal(weights_of(finished.out / "state" / "checkpoint-6"), dict(loaded.state_dict()))
    assert tokenizer.chat_template == tokenizer_of(model).chat_template
    # The base's own, nothing of how it was trained.
    assert read(finished.out / "config.json") == read(model / "config.json")
    asked = tokenizer(prompt_text("Hi"), add_special_tokens=False, return_tensors="pt")
    assert loaded.generate(**asked, max_new_tokens=3, do_sample=False, eos_token_id=[]).shape[1] == (
        asked["input_ids"].shape[1] + 3
    )
    assert "training_args.bin" not in {file.name for file in finished.out.iterdir()}, "it is a pickle"
    assert not (finished.out / "saving").exists()


def test_the_benchmarks_own_engine_answers_with_the_finished_folder(finished):
    from bfpo_bench.harness.hf import HFEngine
    from bfpo_bench.types import Message, ModelSpec, Sample

    engine = HFEngine(
        ModelSpec(name="out", engine="hf", path=str(finished.out), identity="sha256:test", engine_args={})
    )
    sample = Sample(
        id="a",
        task="t",
        index=0,
        prompt="Hi",
        messages=(Message(role="user", content="Hi"),),
        generation={"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 4},
    )
    (output,) = [one for outputs in engine.answer([sample]) for one in outputs]
    assert output.n_tokens <= 4 and output.text is not None


def test_only_so_many_whole_states_are_kept(finished):
    states = sorted((finished.out / "state").iterdir())
    assert [state.name for state in states] == ["checkpoint-4", "checkpoint-6"]
    assert all(read(state / "complete.json")["step"] == int(state.name[-1]) for state in states)


def test_the_manifest_says_what_was_trained_on_what(finished, model):
    import hashlib

    manifest = finished.manifest
    file = finished.out.parent / "safety.jsonl"
    data = manifest["data"]["safety"]
    assert data["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (data["origin"], data["seen"], data["rows"], data["cut"]) == ("safety.jsonl", 12, 10, 0)
    # Labels come in turn, 10 rows.
    assert data["combinations"] == {"safe-safe": 3, "safe-unsafe": 3, "unsafe-safe": 2, "unsafe-unsafe": 2}
    assert [problem["row"] for problem in data["left_out"]] == ["safety.jsonl:11", "safety.jsonl:12"]
    assert "equal" in data["left_out"][0]["reason"] and "max_prompt_length is 64" in data["left_out"][1]["reason"]
    assert manifest["data"]["helpfulness"]["combinations"] == {"safe-safe": 7}
    assert manifest["evaluation_data"]["held_out"]["rows"] == 3
    assert (manifest["status"], manifest["method"], manifest["steps"], manifest["processes"]) == (
        "complete",
        "bfpo",
        6,
        1,
    )
    assert manifest["base"] == {"name": "tiny", "identity": f"path:{model}"}
    assert manifest["recipe"]["loss"]["tau"] == 0.1 and manifest["recipe"]["seed"] == 0
    assert manifest["packages"]["torch"] == torch.__version__
    assert manifest["seconds"] > 0
    assert any("left out 1: a prompt of" in line for line in finished.said)


def test_the_log_has_every_step_and_every_evaluation(finished):
    assert [entry["step"] for entry in finished.steps] == [1, 2, 3, 4, 5, 6]
    assert [entry["step"] for entry in finished.log if "eval_held_out_loss" in entry] == [3, 6]
    assert all(entry["learning_rate"] == 1e-3 for entry in finished.steps)
    *_, last = [entry for entry in finished.log if "eval_held_out_loss" in entry]
    assert finished.manifest["evaluation"]["eval_held_out_loss"] == last["eval_held_out_loss"]


# -- contamination -----------------------------------------------------------------------------------------------------

ASKED = {"bench_task": ["other QUESTION 3", "safety question 4?"], "clean_task": ["Nothing of this kind at all"]}


def test_rows_that_repeat_the_benchmark_are_left_out_and_named(tmp_path, model, cache):
    ran = run_here(
        recipe_of(tmp_path, model, training={"max_steps": 1}), cache=cache, prompts=ASKED, unchecked={"far": "not here"}
    )
    found = ran.manifest["contamination"]
    assert found["checked"] == {"bench_task": 2, "clean_task": 1} and found["unchecked"] == {"far": "not here"}
    assert found["rule"] == "drop"
    assert found["found"] == {
        "safety": [{"row": "safety.jsonl:5", "task": "bench_task", "kind": "exact"}],
        "helpfulness": [{"row": "helpfulness.jsonl:4", "task": "bench_task", "kind": "exact"}],
    }
    assert ran.manifest["data"]["safety"]["rows"] == 9
    (left,) = ran.manifest["data"]["safety"]["left_out"]
    assert left == {"row": "safety.jsonl:5", "reason": "repeats a prompt of the benchmark's bench_task (exact)"}
    assert any("not looked for" in line and "far" in line for line in ran.said)


def test_kept_on_request_they_are_named_all_the_same(tmp_path, model, cache):
    recipe = recipe_of(tmp_path, model, contamination="keep", training={"max_steps": 1})
    ran = run_here(recipe, cache=cache, prompts=ASKED)
    assert ran.manifest["data"]["safety"]["rows"] == 10
    assert [one["row"] for one in ran.manifest["contamination"]["found"]["safety"]] == ["safety.jsonl:5"]


def test_refused_on_request_nothing_is_written(tmp_path, model, cache):
    recipe = recipe_of(tmp_path, model, contamination="refuse")
    with pytest.raises(ConfigError, match=r"^1 rows of safety\.jsonl .* safety\.jsonl:5 .* bench_task"):
        run_here(recipe, cache=cache, prompts=ASKED)
    assert not recipe.out.exists()


# -- what stops a run --------------------------------------------------------------------------------------------------


def poison(cache, row_name, trainers_rows):
    """One row's stored reference becomes a number that float32 does not hold."""
    (row,) = [row for row in trainers_rows if row.row == row_name]
    for file in cache.glob("*/rank-0.sqlite"):
        with sqlite3.connect(file) as connection:
            changed = connection.execute("UPDATE log_probs SET chosen = 1e300 WHERE row = ?", (row_hash(row),)).rowcount
        connection.close()
        assert changed == 1


def test_a_loss_that_is_no_number_stops_with_the_batchs_rows_and_the_state_before_it(tmp_path, model, trainers):
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run_here(recipe_of(tmp_path / "before", model, training=settings), cache=tmp_path / "cache")
    # The last step's first micro-batch; the two first rows are those that are compared with the model.
    *_, last = rows_of_steps(tmp_path / "before", per_step=4)
    number = 1 + rows_of(tmp_path / "before", "safety").index(last[0][0])
    assert number > 2
    poison(tmp_path / "cache", f"safety.jsonl:{number}", trainers[0].train_dataset.rows)
    recipe = recipe_of(tmp_path / "after", model, training=settings)
    with pytest.raises(TrainingError) as error:
        run_here(recipe, cache=tmp_path / "cache")
    text = str(error.value)
    assert text.startswith("The loss of step 3 is not finite, in a batch of rows ") and "\n" not in text
    state = recipe.out / "state" / "checkpoint-2"
    stopped = read(state / "stopped.json")
    texts = {name: rows_of(tmp_path / "after", name) for name in ("safety", "helpfulness")}
    expected = {
        f"{name}.jsonl:{1 + texts[name].index(row)}"
        for name, rows in zip(("safety", "helpfulness"), last, strict=True)
        for row in rows
    }
    assert set(stopped["rows"]) == expected and f"safety.jsonl:{number}" in text
    assert stopped["reason"] == "loss is not finite"
    assert str(state) in text
    # The state is whole: that of two steps, not of the third.
    two = run_here(
        recipe_of(tmp_path / "two", model, training={**settings, "max_steps": 2}), cache=tmp_path / "other cache"
    )
    assert equal(weights_of(state), two.weights())
    assert (state / "complete.json").exists() and (state / "optimizer.pt").exists()
    assert plain_model(state).config.model_type == "llama"
    assert read(recipe.out / "training_manifest.json")["status"] == "training"
    assert not list(recipe.out.glob("*.safetensors")) and not (recipe.out / "config.json").exists()


def test_a_state_that_stopped_goes_on_once_the_cause_is_gone(tmp_path, model, trainers):
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 4}
    whole = run_here(recipe_of(tmp_path / "whole", model, training=settings), cache=tmp_path / "cache")
    *_, last = rows_of_steps(tmp_path / "whole", per_step=4)
    number = 1 + rows_of(tmp_path / "whole", "safety").index(last[0][0])
    poison(tmp_path / "cache", f"safety.jsonl:{number}", trainers[0].train_dataset.rows)
    recipe = recipe_of(tmp_path / "stopped", model, training=settings)
    with pytest.raises(TrainingError):
        run_here(recipe, cache=tmp_path / "cache")
    ran = run_here(recipe, cache=tmp_path / "another cache")
    assert any(line == "going on from checkpoint-2" for line in ran.said)
    assert equal(ran.weights(), whole.weights())
    assert all(math.isfinite(value) for entry in ran.log for value in entry.values())


def test_a_learning_rate_that_breaks_the_model_stops_at_the_next_step(tmp_path, model, cache):
    recipe = recipe_of(tmp_path, model, training={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"^The (loss|gradient) of step 2 is not finite.*learning_rate"):
        run_here(recipe, cache=cache)
    assert read(recipe.out / "state" / "checkpoint-1" / "stopped.json")["rows"]
    assert not (recipe.out / "model.safetensors").exists()


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_last_step_that_breaks_the_model_gives_no_finished_checkpoint(tmp_path, model, cache, evaluated):
    settings = {"learning_rate": 1e39, "max_steps": 1}
    recipe = with_evaluation(tmp_path, model, training=settings, **({} if evaluated else {"evaluation": None}))
    with pytest.raises(TrainingError, match=r"^The loss after the last step, 1, is not finite") as error:
        run_here(recipe, cache=cache)
    assert "\n" not in str(error.value)
    assert not (recipe.out / "model.safetensors").exists()
    assert read(recipe.out / "training_manifest.json")["status"] == "training"


# -- going on ----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill at this point; the real ones are in test_training_resume.py."""


def stopped_before_the_final_save(recipe, cache, monkeypatch):
    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "finish", killed)
        run_here(recipe, cache=cache)
    return recipe


@pytest.mark.parametrize("steps", [5, 6])
def test_a_run_killed_after_its_last_step_trains_no_further_step(tmp_path, model, cache, monkeypatch, steps):
    # 3 steps an epoch: after 5 an epoch is not at its end.
    settings = {"max_steps": steps, "save_steps": 100}
    whole = run_here(recipe_of(tmp_path / "whole", model, training=settings), cache=cache)
    recipe = recipe_of(tmp_path / "killed", model, training=settings)
    ran = run_here(stopped_before_the_final_save(recipe, cache, monkeypatch), cache=cache)
    assert equal(ran.weights(), whole.weights())
    assert ran.manifest["steps"] == steps == ran.steps[-1]["step"]
    assert any(line == f"going on from checkpoint-{steps}" for line in ran.said)


def test_a_run_killed_in_the_final_save_is_finished_by_the_same_call(tmp_path, model, cache, monkeypatch):
    recipe = recipe_of(tmp_path / "killed", model, lora={"r": 4}, training={"max_steps": 2})
    whole = run_here(replace(recipe, out=tmp_path / "whole"), cache=cache)
    moved = []

    rename = type(recipe.out).replace

    def move(path, to):
        if path.parent.name == "saving" and len(moved) == 1:
            raise Killed
        moved.append(path) if path.parent.name == "saving" else None
        return rename(path, to)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(recipe.out), "replace", move)
        run_here(recipe, cache=cache)
    assert (recipe.out / "saving").is_dir() and not (recipe.out / "config.json").exists()
    assert read(recipe.out / "training_manifest.json")["status"] == "training"
    ran = run_here(recipe, cache=cache)
    assert equal(ran.weights(), whole.weights())
    assert {file.name for file in ran.out.iterdir()} == {file.name for file in whole.out.iterdir()}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda recipe: replace(recipe, loss=replace(recipe.loss, tau=0.5)), "recipe.loss.tau 0.1, now it is 0.5"),
        (lambda recipe: replace(recipe, seed=7), "recipe.seed 0, now it is 7"),
        (lambda recipe: replace(recipe, select=("down_proj",)), "recipe.select"),
        (lambda recipe: replace(recipe, training={**recipe.training, "learning_rate": 1.0}), "training.learning_rate"),
        (lambda recipe: replace(recipe, training={**recipe.training, "max_steps": 9}), "training.max_steps"),
    ],
    ids=["tau", "seed", "select", "learning_rate", "max_steps"],
)
@pytest.mark.parametrize("state", ["stopped", "complete"])
def test_a_folder_of_another_recipe_is_refused_by_the_fields_name(
    tmp_path, model, cache, monkeypatch, change, field, state
):
    recipe = recipe_of(tmp_path, model, training={"max_steps": 1})
    stopped_before_the_final_save(recipe, cache, monkeypatch) if state == "stopped" else run_here(recipe, cache=cache)
    with pytest.raises(ConfigError) as error:
        run_here(change(recipe), cache=cache)
    assert field in str(error.value) and "--fresh" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_of_other_data_or_another_base_is_refused_by_the_fields_name(tmp_path, model, cache, monkeypatch):
    recipe = stopped_before_the_final_save(recipe_of(tmp_path, model, training={"max_steps": 1}), cache, monkeypatch)
    with pytest.raises(ConfigError, match=r"base\.identity 'path:.*', now it is 'other'"):
        training.train(
            recipe,
            base=Base(name="tiny", path=model, identity="other"),
            prompts={},
            unchecked={},
            say=print,
            cache=cache,
        )
    write_pairs(tmp_path / "helpfulness.jsonl", name="changed", n=7, labels=((True, True),))
    with pytest.raises(ConfigError, match=r"data\.helpfulness\.sha256 '[0-9a-f]+', now it is"):
        run_here(recipe, cache=cache)
    write_pairs(tmp_path / "helpfulness.jsonl", name="other", n=7, labels=((True, True),))
    assert run_here(recipe, cache=cache).manifest["status"] == "complete"


def test_a_folder_of_another_number_of_processes_is_refused(tmp_path, model, cache, monkeypatch):
    # A step of two processes has twice the rows: the state's place in the data would be another.
    recipe = stopped_before_the_final_save(recipe_of(tmp_path, model, training={"max_steps": 1}), cache, monkeypatch)
    manifest = read(recipe.out / "training_manifest.json")
    (recipe.out / "training_manifest.json").write_text(json.dumps({**manifest, "processes": 2}))
    with pytest.raises(ConfigError, match="processes 2, now it is 1"):
        run_here(recipe, cache=cache)


def test_a_finished_run_is_not_trained_again(tmp_path, model, cache, trainers):
    recipe = recipe_of(tmp_path, model, training={"max_steps": 1})
    run_here(recipe, cache=cache)
    again = run_here(recipe, cache=cache)
    assert len(trainers) == 1
    assert again.said[-1] == f"{recipe.out} is complete already; --fresh trains it again"


def test_started_afresh_the_old_run_is_set_aside_whole(tmp_path, model, cache):
    recipe = recipe_of(tmp_path, model, training={"max_steps": 1})
    before = run_here(recipe, cache=cache).weights()
    other = replace(recipe, training={**recipe.training, "max_steps": 2})
    ran = run_here(other, cache=cache, mode="fresh")
    assert any(line == f"the old run is now {tmp_path / 'out.old-1'}" for line in ran.said)
    assert equal(weights_of(tmp_path / "out.old-1"), before) and ran.manifest["steps"] == 2
    assert not equal(ran.weights(), before)


def test_there_must_be_a_run_to_resume_and_no_strangers_files(tmp_path, model, cache):
    recipe = recipe_of(tmp_path, model, training={"max_steps": 1})
    with pytest.raises(ConfigError, match=r"has no run to go on with"):
        run_here(recipe, cache=cache, mode="resume")
    recipe.out.mkdir()
    (recipe.out / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"is not empty"):
        run_here(recipe, cache=cache)
    assert [file.name for file in recipe.out.iterdir()] == ["thesis.txt"]


def test_a_kill_before_the_manifest_is_whole_stops_nobody(tmp_path, model, cache):
    recipe = recipe_of(tmp_path, model, training={"max_steps": 1})
    recipe.out.mkdir()
    (recipe.out / f"{folder_module.MANIFEST}.new").write_text('{"sch')
    assert run_here(recipe, cache=cache).manifest["status"] == "complete"


def test_a_half_written_state_is_removed_and_the_last_whole_one_is_kept(tmp_path, model, cache, monkeypatch):
    settings = {"max_steps": 4, "save_steps": 1}
    whole = run_here(recipe_of(tmp_path / "whole", model, training=settings), cache=cache)
    recipe = stopped_before_the_final_save(recipe_of(tmp_path / "a", model, training=settings), cache, monkeypatch)
    state = recipe.out / "state"
    # As a kill leaves it: the newest without its mark, and files that are cut.
    (state / "checkpoint-4" / "complete.json").unlink()
    (state / "checkpoint-4" / "optimizer.pt").write_bytes(b"PK")
    ran = run_here(recipe, cache=cache)
    assert "left half-written by a kill, removed: checkpoint-4" in ran.said
    assert "going on from checkpoint-3" in ran.said
    assert equal(ran.weights(), whole.weights())


def test_a_dry_run_tells_the_plan_and_writes_nothing(tmp_path, model, cache):
    recipe = recipe_of(tmp_path, model, training={"num_train_epochs": 2, "gradient_accumulation_steps": 2})
    said = []
    assert training.train(
        recipe, base=Base(name="tiny", path=model, identity="x"), prompts={}, unchecked={}, say=said.append,
        dry_run=True, cache=tmp_path / "none",
    ) is None  # fmt: skip
    # 10 rows, 8 a step, twice.
    assert any(line.startswith("steps: 4;") for line in said)
    assert not recipe.out.exists() and not (tmp_path / "none").exists()


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learning_rat": 1.0}, "Unknown key 'training.learning_rat'. Did you mean: training.learning_rate"),
        ({"save_only_model": True}, "training.save_only_model"),
        ({"lr_scheduler_type": "cosin"}, "training: "),
        ({"eval_strategy": "steps", "eval_steps": 2}, "evaluation"),
        ({"fp16": True}, "training.fp16"),
        ({"dataloader_num_workers": 1, "dataloader_persistent_workers": True}, "dataloader_persistent_workers"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
    ],
    ids=["unknown", "save_only_model", "no such schedule", "no evaluation", "fp16", "persistent", "data_skip"],
)
def test_a_setting_that_would_break_a_promise_is_refused_in_one_line(tmp_path, model, cache, settings, said):
    with pytest.raises(BenchError) as error:
        run_here(recipe_of(tmp_path, model, training={"max_steps": 1, **settings}), cache=cache)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_data_without_labels_trains_dpo_as_unlabelled_and_not_bfpo(tmp_path, model, cache):
    unlabelled = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in _plain_rows(tmp_path)]

    def recipe(name, method):
        body = body_of(tmp_path / name, model, method=method, training={"max_steps": 1})
        body["safety"]["path"] = str(write_rows(tmp_path / name / "plain.jsonl", unlabelled))
        return load_recipe(write_recipe(tmp_path / name, body))

    ran = run_here(recipe("a", "dpo"), cache=cache)
    assert "margins/unlabelled" in ran.steps[0] and ran.steps[0]["loss"] == pytest.approx(2 * LOG2, rel=1e-4)
    assert ran.manifest["data"]["safety"]["combinations"] == {"unlabelled-unlabelled": 6}
    with pytest.raises(ConfigError, match="bfpo"):
        run_here(recipe("b", "bfpo"), cache=cache)


def _plain_rows(folder):
    return [json.loads(line) for line in write_pairs(folder / "p.jsonl", name="p", n=6).read_text().splitlines()]

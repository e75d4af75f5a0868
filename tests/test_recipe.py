"""A recipe from YAML and the command line: what is taken, what is refused in one line, what follows from a method."""

from __future__ import annotations

import json

import pytest

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.recipe import METHODS, RECIPES, LoraRecipe, Recipe, find_recipe, load_recipe
from bfpo_bench.trainers.records import Source
from bfpo_bench.trainers.settings import LossSettings

LEAST = "model: m\nsafety: {format: jsonl, path: s.jsonl}\nhelpfulness: {format: jsonl, path: h.jsonl}\n"


def recipe_of(tmp_path, text="", *overrides, name="plain.yaml"):
    file = tmp_path / name
    file.write_text(LEAST + text, encoding="utf-8")
    return load_recipe(file, overrides)


def refusal(tmp_path, text="", *overrides):
    with pytest.raises(ConfigError) as caught:
        recipe_of(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what is taken -----------------------------------------------------------------------------------------------------


def test_a_recipe_of_a_model_and_data_is_bfpo_with_the_papers_constants(tmp_path):
    recipe = recipe_of(tmp_path)
    assert recipe.method == "bfpo" and recipe.model == "m"
    assert recipe.loss == LossSettings(tau=0.01, alpha=0.5, b1=3.0, b3=None, beta=0.1, weight=0.5)
    assert recipe.select == () and recipe.lora is None and recipe.training == {}
    assert recipe.safety == Source(format="jsonl", path="s.jsonl")


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("tau=0", ["tau", "0"]),
        ("b1=1", ["b1", "above 1"]),
        ("weight=2", ["weight", "2"]),
    ],
)
def test_a_constant_out_of_its_range_is_refused_with_the_recipe(tmp_path, override, names):
    with pytest.raises(ConfigError) as error:
        recipe_of(tmp_path, "", override)
    assert all(name in str(error.value) for name in names)


def test_an_evaluation_set_is_ordered_as_the_part_that_it_is_named_after(tmp_path):
    recipe = recipe_of(
        tmp_path,
        "evaluation: {safety: {format: jsonl, path: e.jsonl}, held_out: {format: jsonl, path: e.jsonl}}",
        "method=dpo-safe",
    )
    assert {name: source.prefer for name, source in recipe.evaluated.items()} == {
        "safety": "safer",
        "held_out": "helpful",
    }


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5e-7", 5e-7),
        ("5E-7", 5e-7),
        ("-1e3", -1000.0),
        ("+2e+1", 20.0),
        ("1.5e-3", 0.0015),
        ("1.e2", 100.0),
        ("5.0e-7", 5e-7),
        ("0.1", 0.1),
        ("2", 2.0),
    ],
)
def test_a_number_is_a_number_however_it_is_written(tmp_path, written, value):
    """YAML 1.1 reads 5e-7 as text."""
    in_file, in_line = recipe_of(tmp_path, f"loss: {{alpha: {written}}}\n"), recipe_of(tmp_path, "", f"alpha={written}")
    assert in_file.loss.alpha == in_line.loss.alpha == value
    assert isinstance(in_line.loss.alpha, float)
    assert recipe_of(tmp_path, "", f"training.learning_rate={written}").training == {"learning_rate": value}


@pytest.mark.parametrize("word", ["no", "off", "yes", "on", "n", "y"])
def test_a_word_that_yaml_1_1_takes_for_true_or_false_stays_text(tmp_path, word):
    """`save_strategy: no` is what transformers wants to read."""
    assert recipe_of(tmp_path, f"training: {{save_strategy: {word}}}\n").training == {"save_strategy": word}
    assert recipe_of(tmp_path, "", f"training.save_strategy={word}").training == {"save_strategy": word}


@pytest.mark.parametrize(("word", "value"), [("true", True), ("True", True), ("false", False), ("FALSE", False)])
def test_true_and_false_are_what_they_say(tmp_path, word, value):
    assert recipe_of(tmp_path, "", f"buffered={word}", f"training.bf16={word}").buffered is value
    assert recipe_of(tmp_path, "", f"training.bf16={word}").training == {"bf16": value}


def test_what_only_looks_like_a_number_stays_text(tmp_path):
    assert recipe_of(tmp_path, "", "revision=e5f7a9").revision == "e5f7a9"
    assert recipe_of(tmp_path, "", "revision='5e7'").revision == "5e7"
    assert recipe_of(tmp_path, "", "model=1e5b").model == "1e5b"


def test_one_name_is_a_list_of_one(tmp_path):
    assert recipe_of(tmp_path, "", "select=down_proj").select == ("down_proj",)
    assert recipe_of(tmp_path, "select: down_proj\n").select == ("down_proj",)
    assert recipe_of(tmp_path, "", "select=[down_proj, lm_head]").select == ("down_proj", "lm_head")
    assert recipe_of(tmp_path, "", "lora.target_modules=q_proj").lora == LoraRecipe(target_modules=("q_proj",))


def test_a_constant_of_the_loss_needs_no_prefix(tmp_path):
    short, long = recipe_of(tmp_path, "", "alpha=1"), recipe_of(tmp_path, "", "loss.alpha=1")
    assert short.loss == long.loss == LossSettings(alpha=1.0)


def test_an_override_changes_one_value_and_leaves_those_beside_it(tmp_path):
    recipe = recipe_of(tmp_path, "training: {max_steps: 3, bf16: true}\n", "training.max_steps=7", "safety.limit=5")
    assert recipe.training == {"max_steps": 7, "bf16": True}
    assert recipe.safety == Source(format="jsonl", path="s.jsonl", limit=5)


def test_the_last_of_two_overrides_of_one_key_holds(tmp_path):
    assert recipe_of(tmp_path, "", "seed=1", "seed=2").seed == 2


def test_null_takes_back_what_may_be_absent(tmp_path):
    recipe = recipe_of(tmp_path, "lora: {r: 4}\nbuffered: false\n", "lora=null", "buffered=null", "helpfulness=null")
    assert recipe.lora is None and recipe.buffered is None and list(recipe.sources) == ["safety"]


def test_a_value_may_hold_an_equals_sign(tmp_path):
    assert recipe_of(tmp_path, "", "safety.path=a=b.jsonl").safety.path == "a=b.jsonl"


def test_evaluation_names_sources(tmp_path):
    recipe = recipe_of(tmp_path, "evaluation:\n  held-out: {format: demo, split: safety, limit: 3}\n")
    assert recipe.evaluation == {"held-out": Source(format="demo", split="safety", limit=3)}


def test_a_resolved_recipe_is_plain_values_without_this_machines_folder(tmp_path):
    recipe = recipe_of(tmp_path, "out: /somewhere/else\nlora: {r: 4}\n")
    plain = recipe.resolved()
    assert json.loads(json.dumps(plain)) == plain
    assert "out" not in plain and "/somewhere/else" not in json.dumps(plain)
    assert plain["lora"]["r"] == 4 and plain["safety"]["path"] == "s.jsonl" and plain["loss"]["b3"] is None


# -- what follows from it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides", "out"),
    [
        ("plain.yaml", [], "plain-bfpo"),
        ("mine-bfpo.yaml", [], "mine-bfpo"),
        ("mine-bfpo.yaml", ["method=dpo"], "mine-bfpo-dpo"),
        ("plain.yaml", ["method=ipo", "seed=2"], "plain-ipo-seed2"),
        ("plain.yaml", ["loss.tau=0.1", "alpha=1"], "plain-bfpo-alpha1-tau0.1"),
        ("plain.yaml", ["alpha=1", "loss.tau=0.1"], "plain-bfpo-alpha1-tau0.1"),
        ("plain.yaml", ["safety.path=../a b/c.jsonl"], "plain-bfpo-safety.path..-a-b-c.jsonl"),
        ("plain.yaml", ["out=there"], "there"),
    ],
)
def test_the_folder_of_a_run_says_what_is_special_about_it(tmp_path, name, overrides, out):
    found = recipe_of(tmp_path, "", *overrides, name=name).out
    assert found.name == out
    assert str(found) == (out if out == "there" else f"checkpoints/{out}")


def test_a_folder_given_in_the_recipe_is_taken(tmp_path):
    assert str(recipe_of(tmp_path, "out: here\n", "seed=2").out) == "here"


def test_a_folders_name_is_not_longer_than_a_file_system_takes(tmp_path):
    assert len(recipe_of(tmp_path, "", f"model={'x' * 400}").out.name) == 120


# By hand from the paper's comparison (section 4): loss, parts in use, how safety pairs are ordered, buffered or not.
TABLE = {
    "bfpo": ("bfpo", ["safety", "helpfulness"], "helpful", True),
    "dpo": ("dpo", ["safety", "helpfulness"], "helpful", True),
    "ipo": ("ipo", ["safety", "helpfulness"], "helpful", True),
    "dpo-helpful": ("dpo", ["helpfulness"], "helpful", True),
    "dpo-safe": ("dpo", ["safety"], "safer", True),
    "dpo-mix": ("dpo", ["safety", "helpfulness"], "safer", False),
    "morl": ("morl", ["safety", "helpfulness"], "helpful", True),
    "modpo": ("modpo", ["safety", "helpfulness"], "helpful", True),
    "sft": ("sft", ["safety", "helpfulness"], "safer", False),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_its_loss_its_data_and_the_answer_it_prefers(tmp_path, method):
    more = ["margin_model=m"] if method == "modpo" else []
    recipe = recipe_of(tmp_path, "", f"method={method}", *more)
    loss, parts, prefer, buffered = TABLE[method]
    assert recipe.settings.loss == loss and recipe.settings.buffered is buffered
    assert list(recipe.sources) == parts
    # Helpfulness data is always ordered by helpfulness.
    assert {name: one.prefer for name, one in recipe.sources.items()} == {
        part: prefer if part == "safety" else "helpful" for part in parts
    }


def test_the_table_of_methods_has_each_once():
    assert set(TABLE) == set(METHODS)


def test_a_source_that_prefers_the_safer_answer_does_so_under_any_method(tmp_path):
    recipe = recipe_of(tmp_path, "", "method=dpo", "safety.prefer=safer")
    assert recipe.sources["safety"].prefer == "safer" and recipe.sources["helpfulness"].prefer == "helpful"


def test_the_recipe_may_put_both_parts_into_one_heap(tmp_path):
    assert recipe_of(tmp_path, "buffered: false\n").settings.buffered is False
    assert recipe_of(tmp_path, "buffered: true\nmethod: dpo-mix\n").settings.buffered is True


def test_training_on_one_part_alone_is_a_method_too(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text("model: m\nsafety: {format: demo}\n", encoding="utf-8")
    assert list(load_recipe(file).sources) == ["safety"]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("sede: 2\n", [], ["'sede'", "Did you mean: seed", "plain.yaml"]),
        ("loss: {tua: 1}\n", [], ["'tua'", "Did you mean: tau", "loss of recipe plain.yaml"]),
        ("", ["loss.tua=1"], ["'tua'", "Did you mean: tau"]),
        ("", ["safety.pth=x"], ["'pth'", "Did you mean: path"]),
        ("1: 2\n", [], ["'1'"]),
        ("", ["tau=high"], ["'high'", "tau", "a number"]),
        ("", ["tau=true"], ["True", "tau", "a number"]),
        ("", ["tau=null"], ["None", "tau"]),
        ("", ["seed=1.5"], ["1.5", "seed", "a whole number"]),
        ("", ["seed=true"], ["True", "seed", "a whole number"]),
        ("", ["seed='2'"], ["'2'", "seed", "a whole number"]),
        ("", ["buffered='False'"], ["'False'", "buffered", "true or false"]),
        ("", ["buffered=0"], ["0 is no value", "buffered", "true or false"]),
        ("", ["trust_remote_code='yes'"], ["'yes'", "true or false"]),
        ("", ["trust_remote_code=null"], ["None", "true or false"]),
        ("", ["revision=123"], ["123", "revision", "text"]),
        ("", ["select=3"], ["3", "select", "a list of names"]),
        ("", ["select=[down_proj, 3]"], ["down_proj", "select", "a list of names"]),
        ("", ["select=null"], ["None", "select", "a list of names"]),
        ("", ["loss=0.1"], ["0.1", "loss", "a mapping"]),
        ("", ["training=3"], ["3", "training", "a mapping"]),
        ("", ["training=null"], ["None", "training", "a mapping"]),
        ("", ["evaluation={a: 3}"], ["3", "a in evaluation", "a mapping"]),
        ("", ["evaluation.a.limit=3"], ["'format' is missing", "evaluation"]),
        ("", ["safety={path: x}"], ["'format' is missing", "safety"]),
        ("", ["safety.prefer=safe"], ["'safe'", "helpful, safer"]),
        ("", ["safety.label=maybe"], ["'maybe'", "safe, unsafe"]),
        ("", ["layout=dense"], ["'dense'", "layout", "auto, packed, padded"]),
        ("", ["dtype=float16"], ["'float16'", "float32, bfloat16"]),
        ("", ["long_prompts=[skip]"], ["['skip']", "skip, cut"]),
        ("", ["model=null"], ["'model' is missing", "plain.yaml"]),
        ("", ["out=7"], ["7", "out", "a path"]),
        ("", ["method=dop"], ["'dop'", "dpo"]),
        ("", ["method=zzz"], ["'zzz'", "Known: ", "bfpo", "sft"]),
        ("", ["seed"], ["'seed'", "KEY=VALUE"]),
        ("", ["=2"], ["'=2'", "KEY=VALUE"]),
        ("", ["seed=[1"], ["seed=[1", "not YAML"]),
        ("", ["model.x=1"], ["'model'", "'m'", "no keys"]),
        ("", ["max_length=1"], ["max_length", "is 1", "2 tokens"]),
        ("", ["max_prompt_length=0"], ["max_prompt_length", "is 0", "2 tokens"]),
        ("", ["max_length=512"], ["max_prompt_length 512", "max_length 512", "smaller"]),
        ("", ["select=down_proj", "lora.r=4"], ["select", "lora", "target_modules"]),
        ("", ["method=modpo"], ["modpo needs margin_model", "margin_model None"]),
        ("", ["margin_model=x"], ["method bfpo", "margin_model x"]),
        ("", ["attention=flex", "layout=padded"], ["flex", "layout: padded"]),
        ("", ["helpfulness=null", "method=dpo-helpful"], ["no data for dpo-helpful", "helpfulness"]),
        ("", ["safety=null", "method=dpo-safe"], ["no data for dpo-safe", "safety"]),
        ("", ["safety=null", "helpfulness=null"], ["no data for bfpo", "safety or helpfulness"]),
    ],
)
def test_a_value_that_means_nothing_is_one_line_that_names_it(tmp_path, text, overrides, said):
    message = refusal(tmp_path, text, *overrides)
    for one in said:
        assert one in message


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("output_dir", "recipe's out sets it"),
        ("seed", "recipe's seed sets it"),
        ("data_seed", "recipe's seed sets it"),
        ("remove_unused_columns", "leave it out"),
        ("label_names", "leave it out"),
        ("resume_from_checkpoint", "leave it out"),
        ("train_sampling_strategy", "leave it out"),
        ("logging_nan_inf_filter", "leave it out"),
        ("label_smoothing_factor", "leave it out"),
        ("dataloader_persistent_workers", "leave it out"),
    ],
)
def test_the_trainers_own_keys_are_not_a_recipes_to_set(tmp_path, key, said):
    message = refusal(tmp_path, "", f"training.{key}=1")
    assert f"training.{key}" in message and said in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a mapping"),
        (b"- model: m\n", "not a mapping"),
        (b"just text\n", "not a mapping"),
        (b"model: [m\nseed: 2\n", "cannot be read"),
        (b"model: m\n\tseed: 2\n", "cannot be read"),
        (b"model: \xff\xfe\n", "cannot be read"),
        (b"model: !!python/object/apply:os.getcwd []\n", "cannot be read"),
    ],
    ids=["empty", "a list", "text", "open bracket", "a tab", "not UTF-8", "a Python object"],
)
def test_a_file_that_is_no_recipe_is_one_line(tmp_path, content, said):
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(file)
    assert "bad.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read"):
        load_recipe(tmp_path / "gone.yaml")


# -- where a recipe is found -------------------------------------------------------------------------------------------


def test_a_file_comes_before_a_bundled_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo.yaml") == find_recipe("demo") == RECIPES / "demo.yaml"
    (tmp_path / "demo.yaml").write_text("model: mine\n", encoding="utf-8")
    assert str(find_recipe("demo.yaml")) == "demo.yaml"


def test_a_misspelt_recipe_is_told_the_bundled_ones_that_are_near():
    with pytest.raises(ConfigError, match=r"Unknown recipe 'dmo'\. Did you mean: demo\?"):
        find_recipe("dmo")
    with pytest.raises(ConfigError, match=r"Did you mean: .*zephyr-bfpo"):
        find_recipe("zephyr_bfpo.yaml")


def test_a_path_that_is_no_file_is_not_mistaken_for_a_bundled_recipe():
    with pytest.raises(ConfigError, match=r"'no/demo' is not a file.*demo"):
        find_recipe("no/demo")


@pytest.mark.parametrize("name", sorted(one.stem for one in RECIPES.glob("*.yaml")))
def test_every_bundled_recipe_loads(name):
    assert isinstance(load_recipe(find_recipe(name)), Recipe)


# -- a stage before ----------------------------------------------------------------------------------------------------


def test_a_recipe_that_comes_after_another_starts_from_its_checkpoint(tmp_path):
    (tmp_path / "first.yaml").write_text("model: m\nmethod: sft\nout: there\nsafety: {format: jsonl, path: s.jsonl}\n")
    second = tmp_path / "second.yaml"
    second.write_text(f"after: {tmp_path / 'first.yaml'}\nsafety: {{format: jsonl, path: s.jsonl}}\n")
    assert load_recipe(second).model == "there"
    other = load_recipe(second, ["model=elsewhere"])
    assert (other.model, other.after) == ("elsewhere", None)


def test_a_recipe_with_both_a_model_and_a_stage_before_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="both model and after"):
        recipe_of(tmp_path, "after: demo-sft")


def test_the_demo_comes_after_its_sft_stage():
    demo, first = (load_recipe(RECIPES / f"{name}.yaml") for name in ("demo", "demo-sft"))
    assert demo.after == "demo-sft" and demo.model == str(first.out)

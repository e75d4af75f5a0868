"""The paper's recipes: they load, every value says where it is from, and the arithmetic of their batches is theirs."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import yaml

from bfpo_bench.trainers.adapters import FORMATS
from bfpo_bench.trainers.recipe import RECIPES, load_recipe

PAPER = ("zephyr-sft", "zephyr-bfpo", "zephyr-redteaming")
CITATION = re.compile(r"\[(paper|ours|[a-z_/]+\.(?:yaml|sh|py))\]")


def path_of(name):
    return RECIPES / f"{name}.yaml"


def leaves(node, above=()):
    """(line number, key) of every value in the YAML, by the parser and not by a pattern."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from leaves(value, (*above, key.value))
    else:
        yield node.end_mark.line, ".".join(above)


@pytest.fixture(params=PAPER)
def recipe(request):
    return load_recipe(path_of(request.param), [])


@pytest.mark.parametrize("name", PAPER)
def test_every_value_cites_where_it_is_from(name):
    text = path_of(name).read_text(encoding="utf-8")
    lines = text.splitlines()
    found = list(leaves(yaml.compose(text)))
    assert len(found) > 20
    for number, key in found:
        comment = lines[number].partition("  # ")[2]
        assert CITATION.search(comment), f"{name}: {key} cites nothing"


@pytest.mark.parametrize("name", PAPER)
def test_every_citation_is_explained_at_the_top(name):
    text = path_of(name).read_text(encoding="utf-8")
    top, _, body = text.partition("\nmodel: ")
    assert {match[0] for match in CITATION.finditer(body)} <= {match[0] for match in CITATION.finditer(top)}


@pytest.mark.parametrize("name", PAPER)
def test_a_file_opens_with_how_to_run_it(name):
    top = path_of(name).read_text(encoding="utf-8").partition("\nmodel: ")[0]
    assert f"-m bfpo_bench train {name}\n" in top


def test_sources_are_of_known_formats_and_pinned(recipe):
    sources = [*recipe.sources.values(), *recipe.evaluation.values()]
    assert sources
    for source in sources:
        assert source.format in FORMATS
        if source.format == "pku_saferlhf":
            assert source.revision == "ff7ba91063016c78a225b0f74e1c0860bb18230f"


def test_training_and_evaluation_are_other_splits(recipe):
    train = {(source.format, source.split) for source in recipe.sources.values()}
    assert not train & {(source.format, source.split) for source in recipe.evaluation.values()}


def test_training_keys_are_those_of_the_installed_transformers(recipe):
    from transformers import TrainingArguments

    assert set(recipe.training) <= {field.name for field in fields(TrainingArguments)}


# Rows of each set a step: the authors' processes (bfpo.sh, redteaming.sh) x batch x accumulation.
@pytest.mark.parametrize(
    "name, processes, rows", [("zephyr-sft", 4, 32), ("zephyr-bfpo", 4, 32), ("zephyr-redteaming", 2, 16)]
)
def test_a_step_has_as_many_rows_as_the_authors_and_so_has_the_command_for_one_gpu(name, processes, rows):
    training = load_recipe(path_of(name), []).training
    batch = training["per_device_train_batch_size"]
    assert processes * batch * training["gradient_accumulation_steps"] == rows
    top = path_of(name).read_text(encoding="utf-8")
    assert f"--num_processes {processes} " in top
    assert batch * load_recipe(path_of(name), one_gpu(name)).training["gradient_accumulation_steps"] == rows


def one_gpu(name):
    """What the command for one GPU changes, from the top of the file."""
    top = path_of(name).read_text(encoding="utf-8").partition("\nmodel: ")[0]
    (changes,) = re.findall(rf"train {name} (training\..*)", top)
    return changes.split()


def test_bfpo_has_the_papers_data_and_the_authors_constants():
    recipe = load_recipe(path_of("zephyr-bfpo"), [])
    assert {part: (source.format, source.limit) for part, source in recipe.sources.items()} == {
        "safety": ("pku_saferlhf", 30_000),
        "helpfulness": ("ultrafeedback", 30_000),
    }
    assert recipe.sources["helpfulness"].label == "safe"
    assert (recipe.loss.tau, recipe.loss.alpha, recipe.loss.b1, recipe.loss.b3) == (0.01, 0.5, 3.0, None)
    assert (recipe.max_length, recipe.max_prompt_length, recipe.select) == (1024, 512, ("down_proj",))
    assert recipe.training["learning_rate"] == 5e-7


def test_bfpo_starts_where_sft_ends():
    start = load_recipe(path_of("zephyr-bfpo"), []).model
    assert start == load_recipe(path_of("zephyr-bfpo"), one_gpu("zephyr-bfpo")).model
    assert start == str(load_recipe(path_of("zephyr-sft"), []).out)
    assert start == str(load_recipe(path_of("zephyr-sft"), one_gpu("zephyr-sft")).out)


def test_red_teaming_has_no_buffer():
    recipe = load_recipe(path_of("zephyr-redteaming"), [])
    assert list(recipe.sources) == ["safety"] and recipe.sources["safety"].format == "redteaming"


def test_sft_imitates_the_safer_answers():
    recipe = load_recipe(path_of("zephyr-sft"), [])
    assert recipe.safety.prefer == "safer"
    # What is read is what the file says.
    assert recipe.sources["safety"].prefer == "safer"


def test_the_sft_template_prompts_as_zephyr_does():
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        load_recipe(path_of("zephyr-sft"), []).chat_template
    )
    messages = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]
    turns = "<|user|>\np</s>\n<|assistant|>\na</s>\n"
    assert template.render(messages=messages, eos_token="</s>") == turns
    prompted = template.render(messages=messages[:1], eos_token="</s>", add_generation_prompt=True)
    assert prompted == "<|user|>\np</s>\n<|assistant|>\n"

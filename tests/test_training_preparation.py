"""Which layout a model gets: packed where that is measured to be equal, else padded, and it is said why."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from bfpo_bench.errors import TrainingError
from bfpo_bench.trainers import attention
from bfpo_bench.trainers.adapters import Read
from bfpo_bench.trainers.layout import TokenPair
from bfpo_bench.trainers.preparation import choose_layout
from bfpo_bench.trainers.reading import Data, Part
from bfpo_bench.trainers.recipe import Recipe
from bfpo_bench.trainers.records import Source

ARGUMENTS = SimpleNamespace(device=torch.device("cpu"), bf16=False, use_cpu=True)
UNEQUAL = {
    "a scale of the logits": ("CohereConfig", {}),
    "capped logits": ("Gemma2Config", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "a window shorter than a text": ("MistralConfig", {"sliding_window": 8}),
}


def recipe_of(**changes):
    return Recipe(model="m", out="out", safety=Source(format="demo"), **changes)


def model_from(kind="LlamaConfig", **settings):
    torch.manual_seed(0)
    config = getattr(transformers, kind)(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        pad_token_id=0,
        **settings,
    )
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def data_of(*sizes):
    generator = np.random.default_rng(0)
    rows = []
    for index, one in enumerate(sizes):
        prompt, chosen, rejected = (generator.integers(5, 300, size).astype(np.int32) for size in one)
        rows.append(
            TokenPair(
                prompt=prompt,
                chosen=chosen,
                rejected=rejected,
                chosen_safe=1.0,
                rejected_safe=0.0,
                safety_preference=1.0,
                source="s",
                row=f"s:{index}",
            )
        )
    read = Read(rows=(), problems=(), origin="s", sha256="0", n_seen=len(rows), n_total=len(rows))
    return Data(train={"safety": Part(source=Source(format="demo"), read=read, rows=tuple(rows), problems=())})


DATA = data_of((9, 7, 5), (3, 4, 11), (2, 2, 2))


def chosen(model, data=DATA, **changes):
    said = []
    layout = choose_layout(recipe_of(**changes), model, data, ARGUMENTS, pad=0, say=said.append)
    return layout, model.config._attn_implementation, said


def test_a_model_whose_layouts_are_equal_is_packed_without_a_word():
    assert chosen(model_from()) == ("packed", attention.NAME, [])


def test_padded_is_taken_where_the_recipe_wants_it():
    assert chosen(model_from(), layout="padded") == ("padded", "sdpa", [])


@pytest.mark.parametrize("name", UNEQUAL)
def test_a_model_whose_layouts_differ_is_padded_and_it_is_said_why(name):
    kind, settings = UNEQUAL[name]
    model = model_from(kind, **settings)
    layout, implementation, said = chosen(model)
    assert (layout, implementation) == ("padded", "sdpa")
    assert len(said) == 1 and model.config.model_type in said[0] and "cannot be packed (" in said[0]


@pytest.mark.parametrize("name", UNEQUAL)
def test_packed_where_it_is_not_equal_is_refused(name):
    kind, settings = UNEQUAL[name]
    with pytest.raises(TrainingError, match="layout: packed is not equal to the plain path"):
        chosen(model_from(kind, **settings), layout="packed")


def test_it_is_measured_on_the_longest_text_which_need_not_be_the_longest_row():
    """Rows of 44 and 43 tokens whose texts have 24, one of 34 with a text of 32: that alone is longer than 26."""
    data = data_of((4, 20, 20), (4, 20, 19), (30, 2, 2))
    assert chosen(model_from("MistralConfig", sliding_window=26), data)[0] == "padded"
    assert chosen(model_from("MistralConfig", sliding_window=32), data)[0] == "packed"


def test_a_long_text_of_the_evaluation_counts_too():
    data = replace(data_of((3, 3, 3)), evaluation=data_of((20, 3, 3)).train)
    assert chosen(model_from("MistralConfig", sliding_window=10), data)[0] == "padded"

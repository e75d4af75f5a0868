"""The authors' formula is ours to 1e-6; what their code does beside it, and ours does not, is documented one by one.

Their code is github.com/wx-zhang/bfpo at commit a1febab15a21ca809a5cb9ee072261b40cc93063, a fork of the trainers of
transformers and TRL. What a test says of it is restated here as arithmetic, and the file that it was read in is named
(below src/alignment/ where no other folder is). The numbers count the defects in the order in which they were found.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from bfpo_bench.errors import ConfigError, TrainingError
from bfpo_bench.trainers import attention, logprobs
from bfpo_bench.trainers.adapters import drawn_order
from bfpo_bench.trainers.layout import TokenPair, packed, padded
from bfpo_bench.trainers.losses import Columns, PairLogProbs, bfpo_loss
from bfpo_bench.trainers.metrics import Accumulator, metric_names, pair_metrics
from bfpo_bench.trainers.order import BufferedOrder
from bfpo_bench.trainers.recipe import load_recipe
from bfpo_bench.trainers.records import PreferencePair, Source
from bfpo_bench.trainers.reference import Share, with_reference
from bfpo_bench.trainers.settings import LossSettings
from bfpo_bench.trainers.tokenise import PairTokeniser
from bfpo_bench.trainers.trainer import freeze_except
from bfpo_bench.types import Message
from tests.tiny_model import TEMPLATE, save_tiny_model

# Chosen and rejected under the policy, then under the reference: Delta is 2, -3, 1, 1, one of each combination.
ROWS = [(-10, -12, -11, -11), (-20, -18, -20, -21), (-30, -33, -28, -30), (-40, -35, -44, -38)]
CHOSEN_SAFE, REJECTED_SAFE = [1, 1, 0, 0], [1, 0, 1, 0]


def log_probs(rows=ROWS, *, dtype=torch.float64):
    columns = torch.tensor(rows, dtype=dtype).reshape(-1, 4).unbind(1)
    names = ("chosen", "rejected", "reference_chosen", "reference_rejected")
    return PairLogProbs(**{name: column.clone() for name, column in zip(names, columns, strict=True)})


def their_loss(rows, chosen_safe, rejected_safe, *, beta, b1, alpha):
    """trainer/bfpo.py, `bfpo`: the log-odds of the policy less the reference's, less the factor over beta; squared."""
    b3 = 1 / (b1 - 1)
    losses = []
    for row, safe, rejected_is_safe in zip(rows, chosen_safe, rejected_safe, strict=True):
        chosen, rejected, reference_chosen, reference_rejected = row
        log_odds = (chosen - rejected) - (reference_chosen - reference_rejected)
        factor = b1 * b3 * safe - b3 * rejected_is_safe - alpha
        losses.append((log_odds - 1 / beta * factor) ** 2)
    return losses


def token_pair(*, prompt=(1, 9, 8, 7), chosen=(10, 11, 4), rejected=(12, 4)):
    ids = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return TokenPair(
        **{name: np.array(part, dtype=np.int32) for name, part in ids.items()},
        chosen_safe=1.0,
        rejected_safe=0.0,
        safety_preference=1.0,
        source="a",
        row="a:1",
    )


# -- the formula -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_authors_formula_and_ours_agree(tau, dtype):
    ours = bfpo_loss(
        log_probs(dtype=dtype), torch.tensor(CHOSEN_SAFE), torch.tensor(REJECTED_SAFE), LossSettings(tau=tau)
    )
    theirs = their_loss(ROWS, CHOSEN_SAFE, REJECTED_SAFE, beta=tau, b1=3, alpha=0.5)
    assert ours.tolist() == pytest.approx(theirs, rel=1e-6, abs=1e-6)


one_log_prob = st.floats(-500, 0)


@examples(max_examples=200)
@given(
    rows=st.lists(st.tuples(*[one_log_prob] * 4), min_size=1, max_size=4),
    labels=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=4, max_size=4),
    beta=st.floats(0.01, 2),
    b1=st.floats(1.1, 10),
    alpha=st.floats(0, 1),
)
def test_the_authors_formula_and_ours_agree_on_any_tiny_batch(rows, labels, beta, b1, alpha):
    chosen_safe, rejected_safe = zip(*labels[: len(rows)], strict=True)
    settings = LossSettings(tau=beta, b1=b1, alpha=alpha)
    ours = bfpo_loss(
        log_probs(rows), torch.tensor(chosen_safe).double(), torch.tensor(rejected_safe).double(), settings
    )
    theirs = their_loss(rows, chosen_safe, rejected_safe, beta=beta, b1=b1, alpha=alpha)
    assert ours.tolist() == pytest.approx(theirs, rel=1e-6, abs=1e-6)


# -- 1, 7: metrics (trainer/bfpo.py, `bfpo`; trainer/trainer.py, training_step) ----------------------------------------


def metrics_of(pairs, chosen_safe, rejected_safe, *, source=0, scale=0.01):
    chosen_safe, rejected_safe = torch.tensor(chosen_safe).double(), torch.tensor(rejected_safe).double()
    empty = torch.full_like(chosen_safe, math.nan)
    columns = Columns(chosen_safe=chosen_safe, rejected_safe=rejected_safe, safety_preference=empty, margin=empty)
    return pair_metrics(
        pairs,
        columns,
        losses=bfpo_loss(pairs, chosen_safe, rejected_safe, LossSettings(tau=scale)),
        targets=None,
        source_index=torch.full_like(chosen_safe, source).long(),
        sources=("safety", "buffer"),
        scale=scale,
    )


def read(*tallies):
    accumulator = Accumulator(metric_names(("safety", "buffer")))
    for tally in tallies:
        accumulator.add(tally)
    return accumulator.read()


def test_1_rewards_of_safe_answers_are_chosen_by_a_mask_not_by_row_numbers():
    # They index with the 0/1 labels: rows 1, 1, 0, 0 for safe, and 0, 0, 1, 1 for unsafe.
    rewards = 0.01 * torch.tensor([1.0, 0.0, -2.0, 4.0])
    assert rewards[torch.tensor(CHOSEN_SAFE)].tolist() == pytest.approx([0, 0, 0.01, 0.01])
    # Safe are the chosen answers of the first two pairs, and the rejected ones of the first and third: 1, 0, -1, -3.
    means = read(metrics_of(log_probs(), CHOSEN_SAFE, REJECTED_SAFE))
    assert means["rewards/safe"] == pytest.approx(0.01 * (1 + 0 - 1 - 3) / 4)
    assert means["rewards/unsafe"] == pytest.approx(0.01 * (-2 + 4 + 3 + 3) / 4)


@pytest.mark.parametrize(("label", "reward"), [(1, "safe"), (0, "unsafe")])
def test_1_a_batch_of_one_pair_is_a_batch(label, reward):
    # Row number 1 of one row does not exist.
    with pytest.raises(IndexError):
        torch.zeros(1)[torch.tensor([1])]
    means = read(metrics_of(log_probs(ROWS[:1]), [label], [label]))
    assert means[f"rewards/{reward}"] == pytest.approx(0.01 * (1 - 1) / 2)
    assert {"rewards/safe", "rewards/unsafe"} & set(means) == {f"rewards/{reward}"}


def test_7_safety_and_buffer_batches_are_never_averaged_together():
    # They log the sum of both losses as `loss`, and rewards of both in one list.
    means = read(
        metrics_of(log_probs(ROWS[:1]), [1], [1], source=0),
        metrics_of(log_probs(ROWS[1:2]), [1], [0], source=1),
    )
    assert (means["loss/safety"], means["loss/buffer"]) == (pytest.approx(2304), pytest.approx(10609))
    assert (means["margins/safety"], means["margins/buffer"]) == (pytest.approx(0.02), pytest.approx(-0.03))


# -- 13: the constants (trainer/bfpo.py, constructor) ------------------------------------------------------------------


def test_13_b3_can_be_set_and_b1_of_1_is_one_clear_line():
    with pytest.raises(ZeroDivisionError):
        their_loss(ROWS, CHOSEN_SAFE, REJECTED_SAFE, beta=0.1, b1=1, alpha=0.5)
    with pytest.raises(ConfigError, match=r"^Loss setting b1: 1\.0\. Expected above 1, .* or set b3 as well"):
        LossSettings(b1=1.0)
    # With b1 = 1 and b3 = 2 the targets are 2 - 2 - 1/2, 2 - 1/2, -2 - 1/2, -1/2; each is over tau = 1, at Delta 0.
    losses = bfpo_loss(
        log_probs([(0, 0, 0, 0)] * 4),
        torch.tensor(CHOSEN_SAFE).double(),
        torch.tensor(REJECTED_SAFE).double(),
        LossSettings(b1=1.0, b3=2.0, tau=1.0),
    )
    assert losses.tolist() == [0.25, 2.25, 6.25, 0.25]


# -- 2, 3: the command line (configs.py, parse_yaml_and_args; trainer/dpo.py, freeze_model) ----------------------------


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(
        "model: tiny\nsafety: {format: demo}\nbuffered: true\nloss: {tau: 0.5}\ntraining: {run_name: first}\n",
        encoding="utf-8",
    )
    return path


def test_2_one_name_on_the_command_line_is_a_list_of_one(recipe_file):
    # Theirs stays text, in which `any(part in name for part in "down_proj")` looks for letters: all weights learn.
    assert any(part in "model.embed_tokens.weight" for part in "down_proj")
    selected = load_recipe(recipe_file, ["select=down_proj"]).select
    assert selected == ("down_proj",)
    assert not any(part in "model.embed_tokens.weight" for part in selected)


@pytest.mark.parametrize("word", ["False", "false"])
def test_3_false_is_false(recipe_file, word):
    # Theirs is the text 'False', which is true.
    assert bool("False")
    assert load_recipe(recipe_file).settings.buffered is True
    assert load_recipe(recipe_file, [f"buffered={word}"]).settings.buffered is False


def test_3_the_command_line_wins_over_the_file(recipe_file):
    # Their data file is read last, and replaces what the command line says.
    assert load_recipe(recipe_file).loss.tau == 0.5
    assert load_recipe(recipe_file, ["tau=0.02"]).loss.tau == 0.02


def test_3_an_equals_sign_belongs_to_the_value(recipe_file):
    # Theirs keeps what stands between the first two signs.
    assert load_recipe(recipe_file, ["training.run_name=tau=0.02"]).training["run_name"] == "tau=0.02"


def test_3_a_space_for_an_equals_sign_is_one_clear_line(recipe_file):
    # Theirs is an IndexError.
    with pytest.raises(ConfigError, match=r"^'loss\.tau' is not KEY=VALUE, e\.g\. loss\.tau=0\.1"):
        load_recipe(recipe_file, ["loss.tau", "0.02"])


# -- 4: the buffer's order (trainer/trainer.py, _inner_training_loop) --------------------------------------------------


def order(*, rows=3, buffer=7):
    return BufferedOrder([f"row {i}" for i in range(rows)], buffer=[f"buffer {i}" for i in range(buffer)], seed=5)


def epoch_of(dataset, epoch):
    dataset.set_epoch(epoch)
    return [dataset[place] for place in range(len(dataset))]


def test_4_the_buffer_goes_on_across_epochs():
    # They begin it anew each epoch: of 7 rows the same shuffle's first 3 would be seen, the others never.
    seen = [row for epoch in range(7) for _, row in epoch_of(order(), epoch)]
    for start in (0, 7, 14):
        assert sorted(seen[start : start + 7]) == [f"buffer {i}" for i in range(7)]
    assert seen[:7] != seen[7:14] != seen[14:]


def test_4_a_resumed_run_meets_the_buffer_rows_that_it_would_have_met():
    # Theirs begins the buffer at its start, while the other data is skipped to its place.
    dataset = order()
    straight = [epoch_of(dataset, epoch) for epoch in range(4)]
    resumed = order()
    resumed.set_epoch(3)
    assert resumed[1] == straight[3][1]
    assert epoch_of(order(), 2) == straight[2]


# -- 5, 10, 14: the reference (trainer/dpo.py, get_train_dataloader; scripts/run_bfpo.py) ------------------------------


def test_5_10_14_the_reference_is_read_once_for_both_sets_and_then_not_needed(tmp_path):
    # Precomputed, theirs has a reference for the first set alone; else every step runs a second model in full.
    safety = [token_pair(chosen=(10 + i, 4)) for i in range(4)]
    buffer = [token_pair(rejected=(20 + i, 21, 4)) for i in range(3)]
    read_rows = []

    def compute(rows):
        read_rows.extend(rows)
        return [[-float(sum(row.chosen)), -float(sum(row.rejected))] for row in rows]

    def ask():
        return with_reference(
            [*safety, *buffer], folder=tmp_path, compute=compute, batch=2, precision="float32", share=Share(),
            progress=lambda n: None,
        )  # fmt: skip

    expected = [(-14 - i, -16) for i in range(4)] + [(-25, -45 - i) for i in range(3)]
    assert ask() == expected
    assert len(read_rows) == 7
    read_rows.clear()
    assert ask() == expected
    assert len(read_rows) == 2, "the two that are compared with what is stored"


# -- 8, 9, 10: log-probs (trainer/bfpo.py, get_batch_loss_metrics; trainer/dpo.py, get_batch_logps) --------------------


class _WidestLogits(TorchDispatchMode):
    """Notes the most rows, over all tensors made in it, of one as wide as the vocabulary."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, function, kinds, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        view = function is torch.ops.aten.t.default  # of the output layer's weight
        if isinstance(made, torch.Tensor) and made.ndim and made.shape[-1] == self.vocabulary and not view:
            self.rows = max(self.rows, made.numel() // self.vocabulary)
        return made


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny_model(tiny_folder):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(tiny_folder, attn_implementation="sdpa")


def long_pair():
    """200 tokens of prompt, answers of 3 and 2."""
    return token_pair(prompt=tuple(range(5, 205)))


def test_8_10_logits_are_made_at_the_answers_alone_and_never_whole(tiny_model, monkeypatch):
    # Theirs makes and keeps [2, 203, vocabulary], prompt and padding included, and copies it to the host each step.
    attention.register()
    vocabulary = tiny_model.config.vocab_size
    with _WidestLogits(vocabulary) as whole:
        tiny_model(torch.zeros(2, 203, dtype=torch.long))
    assert whole.rows == 2 * 203
    logprobs.use_packed_attention(tiny_model, flex=False)
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 2 * 4 * vocabulary)
    head_rows = []
    tiny_model.lm_head.register_forward_pre_hook(lambda _, arguments: head_rows.append(arguments[0].shape[1]))
    with _WidestLogits(vocabulary) as ours:
        logprobs.answer_log_probs(tiny_model, packed([long_pair()])).sum().backward()
    assert head_rows == [3 + 2]
    assert ours.rows == 2


def test_9_bfloat16_logits_are_normalised_and_summed_in_float32():
    # 1000 tokens of a vocabulary of 3, all logits equal: the answer has -1000 log 3 = -1098.6.
    n = 1000
    logits = torch.zeros(1, 1, 3, dtype=torch.bfloat16)
    in_bfloat16 = logits.log_softmax(-1)[0, 0, 0].expand(n).sum()
    assert abs(in_bfloat16.item() + n * math.log(3)) > 1

    def model(*, input_ids, logits_to_keep, **_):
        return SimpleNamespace(logits=logits.expand(len(input_ids), logits_to_keep, 3))

    pair = token_pair(prompt=(0, 1), chosen=(2,) * n, rejected=(1,) * n)
    found = logprobs.answer_log_probs(model, padded([pair], pad=0))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([-n * math.log(3)] * 2, abs=0.02)


# -- 11: text to tokens (data.py, apply_chat_template; trainer/dpo.py, tokenize_row) -----------------------------------


def tokenised(folder, *, prompt="Hi", max_prompt_length=64, template=None):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if template is not None:
        tokenizer.bos_token = None
    tokeniser = PairTokeniser(
        tokenizer, max_length=128, max_prompt_length=max_prompt_length, long_prompts="cut", template=template
    )
    pair = PreferencePair(
        prompt=(Message(role="user", content=prompt),), chosen="Yes", rejected="No", chosen_safe=True,
        rejected_safe=True, source="a", row="a:1",
    )  # fmt: skip
    return tokenizer, tokeniser.pair(pair)


def test_11_the_answer_begins_where_the_model_begins_to_speak(tiny_folder):
    # Theirs counts the template's `assistant` header among the answer's tokens.
    tokenizer, pair = tokenised(tiny_folder)
    assert tokenizer.decode(pair.prompt) == "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(pair.chosen).startswith("Yes")


def test_11_an_answer_ends_once(tiny_folder):
    # Theirs appends an end of sequence to what the template has ended, a line break in between.
    tokenizer, pair = tokenised(tiny_folder)
    assert [tokenizer.decode(answer) for answer in (pair.chosen, pair.rejected)] == ["Yes<|im_end|>", "No<|im_end|>"]


def test_11_a_prompt_that_is_cut_keeps_its_first_token(tiny_folder):
    # Theirs puts the beginning-of-sequence token before the prompt and then cuts the prompt's beginning.
    tokenizer, pair = tokenised(tiny_folder, prompt="a" * 200)
    assert len(pair.prompt) == 64
    assert pair.prompt[0] == tokenizer.bos_token_id
    assert tokenizer.decode(pair.prompt).endswith("aaa<|im_end|>\n<|im_start|>assistant\n")


def test_11_a_tokenizer_without_a_beginning_token_is_no_trouble(tiny_folder):
    # Theirs puts None among the token ids.
    tokenizer, pair = tokenised(tiny_folder, template=TEMPLATE.replace("{{ bos_token }}", ""))
    assert tokenizer.bos_token_id is None
    assert tokenizer.decode(pair.prompt).startswith("<|im_start|>user")


# -- 12: which rows (data.py, mix_datasets) ----------------------------------------------------------------------------


def test_12_a_part_of_a_data_set_is_drawn_from_all_of_it():
    # Theirs takes the first: range(int(0.2 * 1000)).
    drawn = drawn_order(1000, Source(format="jsonl", limit=200, seed=1), origin="rows")
    assert len(set(drawn)) == 200
    # Of each fifth about 40; a draw with fewer than 20 in one has a probability below 1e-4.
    assert all(sum(start <= row < start + 200 for row in drawn) >= 20 for start in range(0, 1000, 200))
    assert drawn != drawn_order(1000, Source(format="jsonl", limit=200, seed=2), origin="rows")


def test_12_rows_to_evaluate_on_are_not_rows_that_were_trained_on():
    # Their test split of the red-teaming file is its train split.
    train = drawn_order(100, Source(format="jsonl", limit=80, seed=3), origin="rows")
    held_out = drawn_order(100, Source(format="jsonl", skip=80, seed=3), origin="rows")
    assert sorted(train + held_out) == list(range(100))


# -- 2, 15: selective training (trainer/dpo.py, constructor and freeze_model) ------------------------------------------


def test_2_15_a_model_in_memory_is_frozen_but_for_what_is_selected(tiny_model):
    # Theirs freezes only where the model is given by its name, not one whose adapter was merged before.
    freeze_except(tiny_model, ["down_proj"], say=lambda text: None)
    trained = {name for name, weight in tiny_model.named_parameters() if weight.requires_grad}
    assert trained == {f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)}


def test_2_a_letter_selects_nothing(tiny_model):
    with pytest.raises(TrainingError, match="select: 'd' matches no weight"):
        freeze_except(tiny_model, list("down_proj"), say=lambda text: None)

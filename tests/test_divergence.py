"""KL(policy || reference) at the answers' tokens against a softmax over the whole vocabulary, in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from bfpo_bench.trainers import attention
from bfpo_bench.trainers.divergence import last_hidden, mean_divergence, reference_states
from bfpo_bench.trainers.layout import TokenPair, lay_out
from bfpo_bench.trainers.logprobs import use_packed_attention, use_plain_attention

VOCABULARY = 300


def model_of(*, bias=False, tied=False):
    torch.manual_seed(0)
    attention.register()
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=tied,
    )
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    if bias:
        model.lm_head = nn.Linear(32, VOCABULARY)
    return model


def rows_of(*sizes):
    generator = np.random.default_rng(0)
    found = []
    for one in sizes:
        prompt, chosen, rejected = (generator.integers(5, VOCABULARY, size).astype(np.int32) for size in one)
        found.append(
            TokenPair(
                prompt=prompt,
                chosen=chosen,
                rejected=rejected,
                chosen_safe=1.0,
                rejected_safe=0.0,
                safety_preference=1.0,
                source="s",
                row="s:1",
            )
        )
    return found


ROWS = rows_of((9, 7, 5), (3, 4, 11), (5, 1, 2))


def batches(model, layout, *, a_batch=2):
    if layout == "packed":
        use_packed_attention(model, flex=False)
    else:
        use_plain_attention(model)
    return [lay_out(ROWS[start : start + a_batch], layout=layout, pad=0) for start in range(0, len(ROWS), a_batch)]


@torch.no_grad()
def by_hand(policy, reference):
    """Every answer alone, both distributions whole: sum p (log p - log q), the mean over all answers' tokens."""
    found = []
    for model in (policy, reference):
        use_plain_attention(model)
    for row in ROWS:
        for answer in (row.chosen, row.rejected):
            text = torch.from_numpy(np.concatenate([row.prompt, answer])).long()[None]
            now, then = (
                model(input_ids=text).logits[0, len(row.prompt) - 1 : -1].double().log_softmax(-1)
                for model in (policy, reference)
            )
            found += (now.exp() * (now - then)).sum(-1).tolist()
    assert len(found) == 7 + 5 + 4 + 11 + 1 + 2
    return math.fsum(found) / len(found)


def moved(model, *, head):
    """As training would: every weight a little, the output layer's only where it is trained."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if head or "lm_head" not in name:
                parameter += 0.03 * torch.randn_like(parameter)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_model_does_not_diverge_from_itself(layout):
    model = model_of()
    states = reference_states(model, batches(model, layout))
    assert mean_divergence(model, states) == 0.0


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(
    ("head", "bias", "tied"),
    [(True, False, False), (False, False, False), (True, True, False), (False, True, False), (True, False, True)],
    ids=["trained", "frozen", "trained, with a bias", "frozen, with a bias", "trained, tied"],
)
def test_the_divergence_is_that_of_the_whole_distributions(layout, head, bias, tied):
    model = model_of(bias=bias, tied=tied)
    model.lm_head.requires_grad_(head)
    reference = copy.deepcopy(model)
    states = reference_states(model, batches(model, layout))
    assert (states.weight is not None, states.bias is not None) == (head, head and bias)
    moved(model, head=head)
    found, expected = mean_divergence(model, states), by_hand(model, reference)
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected > 0.05  # not a pair of models that any wrong reading would call equal


def test_the_divergence_is_the_policys_from_the_reference_and_not_the_other_way():
    model, reference = model_of(), model_of()
    states = reference_states(model, batches(model, "packed"))
    moved(model, head=True)
    forwards, backwards = by_hand(model, reference), by_hand(reference, model)
    assert abs(forwards - backwards) > 0.01 * forwards
    use_packed_attention(model, flex=False)
    assert mean_divergence(model, states) == pytest.approx(forwards, rel=1e-4)


def test_a_logit_by_hand():
    """Logits (0, log 3) against (0, 0): 3/4 log(3/4 / 1/2) + 1/4 log(1/4 / 1/2) = .75 log 1.5 - .25 log 2."""
    model = _Bare()
    tokens = lay_out([_row([0], [1], [0])], layout="padded", pad=0)
    states = reference_states(model, [tokens])
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[0.0], [math.log(3)]]))
    assert mean_divergence(model, states) == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2), rel=1e-6)


def _row(prompt, chosen, rejected):
    prompt, chosen, rejected = (np.array(part, dtype=np.int32) for part in (prompt, chosen, rejected))
    return TokenPair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_safe=1.0,
        rejected_safe=0.0,
        safety_preference=1.0,
        source="s",
        row="s:1",
    )


class _Bare(nn.Module):
    """A hidden state of one at every place, and an output layer over two tokens, zero at first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 2, bias=False)
        nn.init.zeros_(self.head.weight)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, logits_to_keep, **_):
        logits = self.head(torch.ones(*input_ids.shape, 1)[:, -logits_to_keep:])
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


def test_autocast_does_not_round_the_distributions():
    """The hidden states are bfloat16's; what follows is not: logits rounded there would drown a small divergence."""
    model = model_of()
    with torch.no_grad():
        model.lm_head.weight *= 20
    model.lm_head.requires_grad_(True)
    reference = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = reference_states(model, batches(model, "packed"))
    with torch.no_grad():
        model.lm_head.weight += 1e-3 * torch.randn_like(model.lm_head.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mean_divergence(model, states)
    assert found == pytest.approx(by_hand(model, reference), rel=0.05)


def test_pieces_of_many_tokens_are_added(monkeypatch):
    """An answer of 700 tokens is three pieces of at most 256: as the mean over the tokens of each alone."""
    model = model_of()
    row = rows_of((5, 700, 20))[0]
    use_packed_attention(model, flex=False)
    tokens = lay_out([row], layout="packed", pad=0)
    states = reference_states(model, [tokens])
    hidden, weight = states.hidden[0].double(), states.weight.double()
    moved(model, head=True)
    with torch.no_grad():
        now = nn.functional.linear(last_hidden(model, tokens).double(), model.lm_head.weight.double()).log_softmax(-1)
        then = nn.functional.linear(hidden, weight).log_softmax(-1)
        expected = float((now.exp() * (now - then)).sum(-1).mean())
    assert mean_divergence(model, states) == pytest.approx(expected, rel=1e-5)


def test_a_reference_keeps_a_copy_of_a_trained_output_layer_and_states_in_float32():
    model = model_of().bfloat16()
    states = reference_states(model, batches(model, "padded"))
    before = states.weight.clone()
    moved(model, head=True)
    assert torch.equal(states.weight, before) and not torch.equal(states.weight, model.lm_head.weight)
    assert {one.dtype for one in states.hidden} == {torch.float32}
    assert [tuple(one.shape) for one in states.hidden] == [(27, 32), (3, 32)]
    assert not any(one.requires_grad for one in (*states.hidden, states.weight))
    assert not model.lm_head._forward_pre_hooks

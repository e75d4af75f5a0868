"""Log-probabilities and gradients of both layouts against every answer alone, behind its prompt, in one plain pass."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bfpo_bench.errors import TrainingError
from bfpo_bench.trainers import attention, logprobs
from bfpo_bench.trainers.layout import TokenConversation, TokenPair, Tokens, lay_out
from bfpo_bench.trainers.logprobs import (
    LinearLogProb,
    answer_log_probs,
    output_layer,
    token_log_probs,
    use_packed_attention,
    use_plain_attention,
)

VOCABULARY = 300
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    # Far from the usual .02: logits of size one, and attention that looks somewhere.
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
CONFIGS = {
    "llama": ("LlamaConfig", GROUPED),
    "llama, one key head": ("LlamaConfig", {"num_key_value_heads": 1}),
    "llama, tied": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": None}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen2, tied": ("Qwen2Config", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "phi, a bias in the output layer": ("PhiConfig", {}),
}


def model_of(name="llama", **changes):
    kind, settings = CONFIGS[name]
    return model_from(kind, **{**settings, **changes})


def model_from(kind, **settings):
    torch.manual_seed(0)
    attention.register()
    config = getattr(transformers, kind)(**{**COMMON, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        nn.init.normal_(head.bias)  # zero at first, which no error in its use would change
    return model


def rows_of(*sizes, seed=0):
    """Pairs by (prompt, chosen, rejected) lengths, of random tokens."""
    generator = np.random.default_rng(seed)
    return [pair(*(generator.integers(5, VOCABULARY, size) for size in one)) for one in sizes]


def pair(prompt, chosen, rejected):
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


ROWS = rows_of((9, 7, 5), (3, 4, 11), (14, 1, 2), (1, 3, 1))
# What each answer counts in the loss: of both signs, none like another.
WEIGHTS = torch.tensor([1.0, -0.5, 0.7, -1.3, 0.2, 0.9, -0.8, 0.4])


def alone(model, rows):
    """Every answer of every pair by itself: no padding, no packing, all logits, log-softmax in float64."""
    found = []
    for row in rows:
        for answer in (row.chosen, row.rejected):
            text = torch.from_numpy(np.concatenate([row.prompt, answer])).long()
            logits = model(input_ids=text[None], use_cache=False).logits[0, len(row.prompt) - 1 : -1]
            found.append(logits.double().log_softmax(-1).gather(-1, text[len(row.prompt) :, None])[:, 0])
    return found


def laid_out(model, layout, rows=ROWS):
    if layout == "packed":
        use_packed_attention(model, flex=False)
    else:
        use_plain_attention(model)
    return lay_out(rows, layout=layout, pad=0)


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(found, expected, *, relative=1e-3):
    """Each weight's, relative to its own size; one that is nothing but rounding (a key's bias) to the size of all."""
    assert found.keys() == expected.keys() and expected
    total = math.sqrt(sum(float(g.double().square().sum()) for g in expected.values()))
    for name, gradient in expected.items():
        away, size = float((found[name] - gradient).norm()), float(gradient.norm())
        assert away <= relative * max(size, 1e-3 * total), (name, away, size)


def freeze(model, *, head):
    if head:
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.requires_grad_(False)


# -- equality with the plain path --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_are_those_of_every_answer_alone(name, layout):
    model = model_of(name)
    with torch.no_grad():
        expected = alone(model, ROWS)
        tokens = laid_out(model, layout)
        each, sums = token_log_probs(model, tokens), answer_log_probs(model, tokens)
    assert each.dtype == sums.dtype == torch.float32
    torch.testing.assert_close(each.double(), torch.cat(expected), atol=1e-4, rtol=0)
    torch.testing.assert_close(sums.double(), torch.stack([one.sum() for one in expected]), atol=1e-4, rtol=0)
    # Not a model that gives every token the same: that would hide most errors.
    assert torch.cat(expected).std() > 0.3


@pytest.mark.parametrize("head_frozen", [False, True], ids=["output layer trained", "output layer frozen"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_every_answer_alone(name, layout, head_frozen):
    model = model_of(name)
    freeze(model, head=head_frozen)
    (torch.stack([one.sum() for one in alone(model, ROWS)]) * WEIGHTS).sum().backward()
    expected = gradients(model)
    (answer_log_probs(model, laid_out(model, layout)) * WEIGHTS).sum().backward()
    assert_same_gradients(gradients(model), expected)
    assert any("embed" in name for name in expected) is not head_frozen


@pytest.mark.parametrize("trained", ["weight and bias", "weight", "bias", "neither"])
def test_a_bias_in_the_output_layer_has_its_gradient_whichever_part_is_trained(trained):
    model = model_of("llama")
    torch.manual_seed(1)
    model.lm_head = nn.Linear(32, VOCABULARY)
    nn.init.normal_(model.lm_head.bias)
    model.lm_head.weight.requires_grad_("weight" in trained)
    model.lm_head.bias.requires_grad_("bias" in trained)
    (torch.stack([one.sum() for one in alone(model, ROWS)]) * WEIGHTS).sum().backward()
    expected = gradients(model)
    (answer_log_probs(model, laid_out(model, "packed")) * WEIGHTS).sum().backward()
    assert_same_gradients(gradients(model), expected)
    assert ("lm_head.bias" in expected, "lm_head.weight" in expected) == ("bias" in trained, "weight" in trained)


def test_an_output_layer_trained_alone_has_the_plain_paths_gradient():
    model = model_of("llama")
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    (torch.stack([one.sum() for one in alone(model, ROWS)]) * WEIGHTS).sum().backward()
    expected = gradients(model)
    (answer_log_probs(model, laid_out(model, "packed")) * WEIGHTS).sum().backward()
    assert_same_gradients(gradients(model), expected)
    assert list(expected) == ["lm_head.weight"]


def test_conversations_score_alike_in_both_layouts_and_by_the_plain_pass():
    generator = np.random.default_rng(0)
    rows = [
        TokenConversation(
            ids=generator.integers(5, VOCABULARY, size).astype(np.int32),
            learnt=np.isin(np.arange(size), learnt),
            source="s",
            row="s:1",
        )
        for size, learnt in [(12, (3, 4, 5, 9, 10, 11)), (5, (0, 4)), (8, range(8))]
    ]
    model = model_of("llama")
    expected = []
    with torch.no_grad():
        for row in rows:
            text = torch.from_numpy(row.ids).long()
            each = model(input_ids=text[None]).logits[0, :-1].double().log_softmax(-1)
            expected += [float(each[n - 1, text[n]]) for n in range(1, len(text)) if row.learnt[n]]
        for layout in ("packed", "padded"):
            found = token_log_probs(model, laid_out(model, layout, rows))
            assert found.tolist() == pytest.approx(expected, abs=1e-4)
            sums = answer_log_probs(model, laid_out(model, layout, rows))
            by_hand = [sum(expected[:6]), expected[6], sum(expected[7:])]
            assert sums.tolist() == pytest.approx(by_hand, abs=1e-4)


def test_the_sum_over_an_answer_is_rounded_once():
    """Log-probabilities of a thousand tokens added in float32 are off in the third place."""
    each = torch.linspace(-7.3, -0.001, 5000)
    tokens = lay_out(rows_of((1, 4000, 1000)), layout="packed", pad=0)
    found = answer_log_probs(_Fixed(each), tokens)
    assert found.tolist() == [np.float32(math.fsum(part.tolist())) for part in (each[:4000], each[4000:])]
    narrow = torch.zeros(2).index_add(0, tokens.sequence, each)
    assert (narrow - found).abs().max() > 1e-3


class _Fixed(nn.Module):
    """A model whose answers are known: its output layer is asked, and its answer thrown away."""

    def __init__(self, each):
        super().__init__()
        self.config = transformers.LlamaConfig(attn_implementation="sdpa")
        self.head, self.each = nn.Linear(2, 3), each

    def get_output_embeddings(self):
        return self.head

    def forward(self, **inputs):
        return transformers.modeling_outputs.CausalLMOutput(logits=self.each[None, :, None])


# -- the output layer in pieces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_a_piece", [1, 3, 5, 33, 34, 35])
@pytest.mark.parametrize("head_frozen", [False, True], ids=["output layer trained", "output layer frozen"])
def test_pieces_change_nothing_wherever_they_are_cut(monkeypatch, head_frozen, rows_a_piece):
    """ROWS have 34 tokens of answers: pieces of one, some that do not divide them, all but one, all, more than all."""
    model = model_of("llama")
    freeze(model, head=head_frozen)
    tokens = laid_out(model, "packed")
    assert len(tokens.targets) == 34
    whole = answer_log_probs(model, tokens)
    (whole * WEIGHTS).sum().backward()
    expected = gradients(model)
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", rows_a_piece * 4 * VOCABULARY)
    found = answer_log_probs(model, tokens)
    (found * WEIGHTS).sum().backward()
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
    assert_same_gradients(gradients(model), expected, relative=1e-4)


def test_a_vocabulary_larger_than_a_piece_still_makes_progress(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 7)
    model = model_of("llama")
    with torch.no_grad():
        expected = torch.cat(alone(model, ROWS))
        found = token_log_probs(model, laid_out(model, "packed"))
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


class _Largest(TorchDispatchMode):
    """The most rows of logits that any tensor holds that torch makes meanwhile."""

    rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        # A transposed weight ends in the vocabulary too, but is a view of what there is.
        logits = isinstance(found, torch.Tensor) and found.shape[-1:] == (VOCABULARY,) and found.ndim > 1
        if logits and found.is_contiguous():
            self.rows = max(self.rows, found.numel() // VOCABULARY)
        return found


@pytest.mark.parametrize("head_frozen", [False, True], ids=["output layer trained", "output layer frozen"])
def test_the_logits_are_never_whole(monkeypatch, head_frozen):
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 3 * 4 * VOCABULARY)
    model = model_of("llama")
    freeze(model, head=head_frozen)
    tokens = laid_out(model, "packed")
    with _Largest() as seen:
        answer_log_probs(model, tokens).sum().backward()
    assert seen.rows == 3
    with _Largest() as plain:
        answer_log_probs(model, laid_out(model, "padded")).sum()
    assert plain.rows > 34


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_the_fused_layer_is_log_softmax_to_the_last_place_of_float64(monkeypatch, trained, bias):
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 2 * 4 * 7)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, requires_grad=True):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)

    hidden, weight = draw(5, 3), draw(7, 3, requires_grad=trained)
    offset = draw(7, requires_grad=trained) if bias else None
    targets = torch.tensor([0, 6, 3, 3, 1])
    found = LinearLogProb.apply(hidden, weight, offset, targets)
    expected = nn.functional.linear(hidden, weight, offset).log_softmax(-1)[torch.arange(5), targets]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=1e-14)
    inputs = [one for one in (hidden, weight, offset) if one is not None and one.requires_grad]
    upstream = draw(5, requires_grad=False)
    for one, other in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-14, rtol=1e-13)
    assert torch.autograd.gradcheck(lambda *_: LinearLogProb.apply(hidden, weight, offset, targets), inputs)


def test_log_probs_of_extreme_logits_are_finite():
    """exp(1000) is no float32: the normaliser must not go through it."""
    weight = torch.tensor([[1000.0], [999.0], [-1000.0]])
    hidden = torch.ones(2, 1, requires_grad=True)
    found = LinearLogProb.apply(hidden, weight, None, torch.tensor([1, 2]))
    normaliser = 1000 + math.log1p(math.exp(-1))
    assert found.tolist() == pytest.approx([999 - normaliser, -1000 - normaliser], abs=1e-3)
    found.sum().backward()
    assert hidden.grad.isfinite().all()


# -- lower precision, checkpointing, wrappers --------------------------------------------------------------------------


@pytest.mark.parametrize("head_frozen", [False, True], ids=["output layer trained", "output layer frozen"])
@pytest.mark.parametrize("how", ["autocast", "bfloat16 weights"])
def test_bfloat16_is_as_near_to_float32_as_the_plain_path_is(how, head_frozen):
    exact = model_of("llama")
    freeze(exact, head=head_frozen)
    (torch.stack([one.sum() for one in alone(exact, ROWS)]) * WEIGHTS).sum().backward()
    with torch.no_grad():
        expected = torch.cat(alone(exact, ROWS))
    expected_gradients = gradients(exact)

    def away(layout):
        model = copy.deepcopy(exact)
        model = model.bfloat16() if how == "bfloat16 weights" else model
        with torch.autocast("cpu", dtype=torch.bfloat16) if how == "autocast" else nullcontext():
            tokens = laid_out(model, layout)
            each = token_log_probs(model, tokens)
            sums = answer_log_probs(model, tokens)
        (sums * WEIGHTS).sum().backward()
        assert each.dtype == sums.dtype == torch.float32
        found = gradients(model)
        assert found.keys() == expected_gradients.keys()
        assert {one.dtype for one in found.values()} == {next(model.parameters()).dtype}
        wrong = sum(float((found[n].float() - g).square().sum()) for n, g in expected_gradients.items())
        size = sum(float(g.square().sum()) for g in expected_gradients.values())
        return float((each.detach().double() - expected).square().mean().sqrt()), math.sqrt(wrong / size)

    packed, plain = away("packed"), away("padded")
    assert 0 < packed[0] <= 1.5 * plain[0] < 0.05
    assert 0 < packed[1] <= 1.5 * plain[1] < 0.1


@pytest.mark.parametrize("head_frozen", [False, True], ids=["all trained", "only down_proj trained"])
def test_gradient_checkpointing_changes_no_gradient(head_frozen):
    model = model_of("llama").train()
    if head_frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("down_proj" in name)
    tokens = laid_out(model, "packed")
    (answer_log_probs(model, tokens) * WEIGHTS).sum().backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    (answer_log_probs(model, tokens) * WEIGHTS).sum().backward()
    assert_same_gradients(gradients(model), expected, relative=1e-6)
    assert len(calls) == 2  # it is on: the layer is computed again for its backward


def test_an_adapter_has_the_plain_paths_numbers_and_gradients():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        model_of("llama"), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)  # zero at first: the adapter would do nothing
    (torch.stack([one.sum() for one in alone(model, ROWS)]) * WEIGHTS).sum().backward()
    expected = gradients(model)
    (answer_log_probs(model, laid_out(model, "packed")) * WEIGHTS).sum().backward()
    assert_same_gradients(gradients(model), expected)
    assert len(expected) == 2 * 3 * 2


def test_an_adapter_on_the_output_layer_is_refused_where_its_part_would_be_left_out():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(model_of("llama"), peft.LoraConfig(r=4, target_modules=["lm_head"]))
    with pytest.raises(TrainingError, match=r"output layer .*lora\.target_modules"):
        token_log_probs(model, laid_out(model, "packed"))


class _Wrapped(nn.Module):
    """As DistributedDataParallel wraps: the model is its `module`, and is called through the wrapper."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, **inputs):
        self.calls += 1
        return self.module(**inputs)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_wrapped_model_is_called_through_its_wrapper(layout):
    model = model_of("llama")
    tokens = laid_out(model, layout)
    wrapped = _Wrapped(model)
    with torch.no_grad():
        assert torch.equal(token_log_probs(wrapped, tokens), token_log_probs(model, tokens))
    assert wrapped.calls == 1


def test_the_output_layer_is_itself_again_afterwards_also_after_an_error():
    model = model_of("llama")
    names = list(model.state_dict())
    text = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(input_ids=text).logits
        tokens = laid_out(model, "packed")
        token_log_probs(model, tokens)
        assert "forward" not in vars(output_layer(model)) and list(model.state_dict()) == names
        broken = Tokens(**{**vars(tokens), "targets": tokens.targets + VOCABULARY})
        with pytest.raises(RuntimeError, match="index"):
            token_log_probs(model, broken)
        use_plain_attention(model)
        assert torch.equal(model(input_ids=text).logits, before)


# -- independence ------------------------------------------------------------------------------------------------------


def changed(rows, index, part, place):
    found = list(rows)
    fields = {name: getattr(rows[index], name).copy() for name in ("prompt", "chosen", "rejected")}
    fields[part][place] = fields[part][place] % 200 + 50
    found[index] = pair(**fields)
    assert not np.array_equal(getattr(found[index], part), getattr(rows[index], part))
    return found


@pytest.mark.parametrize("name", ["llama", "gpt-neox"])
@pytest.mark.parametrize(
    ("index", "part", "place", "moved"),
    [(0, "chosen", 0, {0}), (0, "chosen", 3, {0}), (1, "rejected", 0, {3}), (2, "prompt", 0, {4, 5})],
)
def test_a_changed_token_moves_its_own_answer_and_no_other(name, index, part, place, moved):
    """To the last bit: nothing of the one answer enters into the other, nor into another pair."""
    model = model_of(name)
    with torch.no_grad():
        before = answer_log_probs(model, laid_out(model, "packed"))
        after = answer_log_probs(model, laid_out(model, "packed", changed(ROWS, index, part, place)))
    assert {n for n in range(8) if before[n] != after[n]} == moved


def test_a_token_moves_only_what_comes_after_it_in_its_answer():
    """The first of an answer that moves is the token itself: what predicts those before it has not seen it."""
    model = model_of("llama")
    with torch.no_grad():
        before = token_log_probs(model, laid_out(model, "packed"))
        after = token_log_probs(model, laid_out(model, "packed", changed(ROWS, 0, "chosen", 3)))
    assert (before != after).tolist() == [False] * 3 + [True] * 4 + [False] * 27


def test_no_gradient_of_an_answer_reaches_the_other_answer_or_another_pair():
    model = model_of("llama")
    tokens = laid_out(model, "packed", ROWS[:2])
    reached = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, out: reached.append(out))
    found = answer_log_probs(model, tokens)
    (gradient,) = torch.autograd.grad(found[1], reached)
    # The prompt of 9, the chosen answer of 7, the rejected of 5 but for its last token, which predicts nothing.
    assert (gradient[0].abs().sum(-1) > 0).tolist() == [True] * 9 + [False] * 7 + [True] * 4 + [False] * 19


def test_the_order_and_company_of_pairs_do_not_matter():
    model = model_of("qwen3")
    with torch.no_grad():
        together = answer_log_probs(model, laid_out(model, "packed")).reshape(-1, 2)
        for index, row in enumerate(ROWS):
            torch.testing.assert_close(
                answer_log_probs(model, laid_out(model, "packed", [row])), together[index], atol=1e-5, rtol=0
            )
        backwards = answer_log_probs(model, laid_out(model, "packed", ROWS[::-1])).reshape(-1, 2)
    torch.testing.assert_close(backwards.flip(0), together, atol=1e-5, rtol=0)


# -- FlexAttention -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore:`torch.jit.script_method`")
@pytest.mark.parametrize("name", ["llama", "gpt-neox"])
@pytest.mark.parametrize("sizes", [((9, 7, 5), (3, 4, 11)), ((60, 30, 30), (20, 25, 40), (5, 1, 1))], ids=["39", "217"])
def test_flex_attention_gives_the_plain_paths_log_probs_for_any_length_of_row(name, sizes):
    """Forward only, which is all that FlexAttention has on a CPU; unfused, which spares a minute of compiling."""
    model = model_of(name)
    rows = rows_of(*sizes)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = torch.cat(alone(model, rows))
        use_packed_attention(model, flex=True)
        assert model.config._attn_implementation == "flex_attention"
        found = token_log_probs(model, lay_out(rows, layout="packed", pad=0))
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


# -- where packing is not equal ----------------------------------------------------------------------------------------


UNEQUAL = {
    "capped logits": ("Gemma2Config", {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": None}),
    "a scale of the logits": ("CohereConfig", {}),
    "another scale of the logits": ("GraniteConfig", {"logits_scaling": 2.0}),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_a_model_that_does_more_than_an_output_layer_is_far_off_packed(name):
    """So that whoever compares both layouts before training has a difference to see: rounding is a thousandth of it."""
    kind, settings = UNEQUAL[name]
    model = model_from(kind, **GROUPED, **settings)
    with torch.no_grad():
        expected = torch.cat(alone(model, ROWS))
        padded = token_log_probs(model, laid_out(model, "padded"))
        packed = token_log_probs(model, laid_out(model, "packed"))
    torch.testing.assert_close(padded.double(), expected, atol=1e-4, rtol=0)
    assert (packed - expected).abs().max() > 0.1


def test_a_window_shorter_than_a_text_is_refused_and_a_longer_one_is_equal():
    """The longest text of ROWS has 9 + 7 = 16 tokens; the whole row is longer."""
    wide, narrow = (model_of("mistral", sliding_window=size) for size in (16, 15))
    with torch.no_grad():
        expected = torch.cat(alone(wide, ROWS))
        found = token_log_probs(wide, laid_out(wide, "packed"))
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
        with pytest.raises(ValueError, match="16 tokens are more than this architecture's 15"):
            token_log_probs(narrow, laid_out(narrow, "packed"))


def test_a_window_is_a_large_difference_under_flex_attention():
    model = model_of("mistral", sliding_window=8)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = torch.cat(alone(model, ROWS))
        use_packed_attention(model, flex=True)
        found = token_log_probs(model, lay_out(ROWS, layout="packed", pad=0))
    assert (found - expected).abs().max() > 0.1


def test_capped_attention_scores_are_refused():
    model = model_from("Gemma2Config", **GROUPED, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=50.0)
    with torch.no_grad(), pytest.raises(ValueError, match="softcap"):
        token_log_probs(model, laid_out(model, "packed"))

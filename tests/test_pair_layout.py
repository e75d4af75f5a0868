"""Rows in one forward pass, by hand, and the attention over them against a dense mask written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from bfpo_bench.trainers.attention import block_mask, packed_pairs, sees, visible
from bfpo_bench.trainers.layout import TokenConversation, TokenPair, lay_out, packed, padded


def ids(*tokens):
    return np.array(tokens, dtype=np.int32)


def pair(prompt, chosen, rejected):
    return TokenPair(
        prompt=ids(*prompt),
        chosen=ids(*chosen),
        rejected=ids(*rejected),
        chosen_safe=1.0,
        rejected_safe=0.0,
        safety_preference=1.0,
        source="s",
        row="s:1",
    )


def conversation(tokens, learnt):
    return TokenConversation(ids=ids(*tokens), learnt=np.array(learnt, dtype=bool), source="s", row="s:1")


PAIRS = [pair([11, 12, 13], [21, 22], [31, 32, 33]), pair([14], [24], [34, 35])]
DIALOGUE = conversation([1, 2, 3, 4, 5, 6], [False, False, True, True, False, True])


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_pairs_lie_packed_as_by_hand():
    tokens = packed(PAIRS)
    assert tokens.input_ids.tolist() == [[11, 12, 13, 21, 22, 31, 32, 33, 14, 24, 34, 35]]
    # The rejected answer stands where the chosen one stands: behind the prompt.
    assert tokens.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 1, 2]]
    assert tokens.attention_mask is None
    assert tokens.segments == ((3, 2, 3), (1, 1, 2))
    # The last of the prompt predicts the first of both answers.
    assert tokens.predictors.tolist() == [2, 3, 2, 5, 6, 8, 8, 10]
    assert tokens.targets.tolist() == [21, 22, 31, 32, 33, 24, 34, 35]
    assert tokens.sequence.tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    assert tokens.n_sequences == 4


def test_pairs_lie_padded_as_by_hand():
    tokens = padded(PAIRS, pad=9)
    assert tokens.input_ids.tolist() == [
        [11, 12, 13, 21, 22, 9],
        [11, 12, 13, 31, 32, 33],
        [14, 24, 9, 9, 9, 9],
        [14, 34, 35, 9, 9, 9],
    ]
    assert tokens.attention_mask.tolist() == [[1] * 5 + [0], [1] * 6, [1] * 2 + [0] * 4, [1] * 3 + [0] * 3]
    assert tokens.position_ids is None and tokens.segments == ()
    assert tokens.predictors.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3], [1, 4], [2, 0], [3, 0], [3, 1]]
    assert tokens.targets.tolist() == [21, 22, 31, 32, 33, 24, 34, 35]
    assert tokens.sequence.tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    assert tokens.n_sequences == 4


def test_a_conversation_lies_as_by_hand_alone_and_beside_a_pair():
    """Learnt are 3, 4 and 6: predicted by the tokens before them."""
    tokens = packed([PAIRS[1], DIALOGUE])
    assert tokens.input_ids.tolist() == [[14, 24, 34, 35, 1, 2, 3, 4, 5, 6]]
    assert tokens.position_ids.tolist() == [[0, 1, 1, 2, 0, 1, 2, 3, 4, 5]]
    assert tokens.segments == ((1, 1, 2), (6, 0, 0))
    assert tokens.predictors.tolist() == [0, 0, 2, 5, 6, 8]
    assert tokens.targets.tolist() == [24, 34, 35, 3, 4, 6]
    assert tokens.sequence.tolist() == [0, 1, 1, 2, 2, 2] and tokens.n_sequences == 3
    rows = padded([DIALOGUE], pad=0)
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert rows.predictors.tolist() == [[0, 1], [0, 2], [0, 4]]
    assert rows.targets.tolist() == [3, 4, 6] and rows.sequence.tolist() == [0, 0, 0] and rows.n_sequences == 1


def test_a_first_token_has_nothing_before_it_to_be_predicted_by():
    rows = [conversation([7, 8, 9], [True, True, False])]
    for layout in ("packed", "padded"):
        tokens = lay_out(rows, layout=layout, pad=0)
        assert tokens.targets.tolist() == [8] and tokens.sequence.tolist() == [0]


def test_both_layouts_score_the_same_tokens_in_the_same_order():
    rows = [*PAIRS, DIALOGUE]
    one, other = lay_out(rows, layout="packed", pad=0), lay_out(rows, layout="padded", pad=0)
    assert one.targets.tolist() == other.targets.tolist()
    assert one.sequence.tolist() == other.sequence.tolist() and one.n_sequences == other.n_sequences


def test_tensors_have_the_types_that_a_model_wants_and_move_together():
    tokens = packed(PAIRS).to("meta")
    for name in ("input_ids", "position_ids", "predictors", "targets", "sequence"):
        value = getattr(tokens, name)
        assert value.dtype == torch.int64 and value.device.type == "meta"
    assert tokens.segments == ((3, 2, 3), (1, 1, 2)) and tokens.attention_mask is None


# -- what sees what ----------------------------------------------------------------------------------------------------


def dense_mask(segments, length):
    """From the definition: a token sees its prompt and its own answer, up to itself; padding sees itself alone."""
    owners = []
    for number, (prompt, chosen, rejected) in enumerate(segments):
        owners += [
            (number, part) for part, size in (("p", prompt), ("c", chosen), ("r", rejected)) for _ in range(size)
        ]
    owners += [(f"padding {place}", "p") for place in range(length - len(owners))]
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query, (own, own_part) in enumerate(owners):
        for key, (number, part) in enumerate(owners):
            mask[query, key] = key <= query and number == own and part in ("p", own_part)
    return mask


SEGMENTS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
        st.tuples(st.integers(1, 6), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=4,
)


def test_the_mask_of_one_pair_written_out():
    tokens = visible([(2, 1, 2)], length=6)
    everything = torch.arange(6)
    assert sees(tokens, everything[:, None], everything[None]).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@given(segments=SEGMENTS, spare=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_token_sees_its_prompt_and_its_own_answer_up_to_itself(segments, spare):
    length = sum(map(sum, segments)) + spare
    tokens, everything = visible(segments, length=length), torch.arange(length)
    assert torch.equal(sees(tokens, everything[:, None], everything[None]), dense_mask(segments, length))


def test_every_token_sees_something():
    """A row of the mask without any key is a softmax over nothing: NaN in every later layer."""
    tokens, everything = visible([(3, 2, 2), (4, 0, 0)], length=128), torch.arange(128)
    assert sees(tokens, everything[:, None], everything[None]).any(1).all()


# -- the attention -----------------------------------------------------------------------------------------------------


def draw(segments, *, heads=4, key_heads=2, width=8, spare=0, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    length = sum(map(sum, segments)) + spare

    def part(n):
        drawn = torch.randn(1, n, length, width, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_(requires_grad)

    return part(heads), part(key_heads), part(key_heads)


def dense_attention(query, key, value, segments, *, scaling=None):
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    mask = dense_mask(segments, query.shape[2])
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling).transpose(1, 2)


@given(segments=SEGMENTS, key_heads=st.sampled_from([1, 2, 4]), scaling=st.sampled_from([None, 0.5]))
@settings(max_examples=40, deadline=None)
def test_the_packed_attention_is_the_dense_one(segments, key_heads, scaling):
    query, key, value = draw(segments, key_heads=key_heads)
    module = torch.nn.Module()
    found, weights = packed_pairs(module, query, key, value, None, scaling=scaling, segments=segments)
    assert weights is None and found.shape == (1, query.shape[2], 4, 8) and found.is_contiguous()
    torch.testing.assert_close(found, dense_attention(query, key, value, segments, scaling=scaling))


def test_the_packed_attention_has_the_dense_ones_gradients():
    segments = [(3, 2, 4), (5, 0, 0), (1, 1, 1)]
    ours, dense = draw(segments, requires_grad=True), draw(segments, requires_grad=True)
    found, _ = packed_pairs(torch.nn.Module(), *ours, None, segments=segments)
    expected = dense_attention(*dense, segments)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for one, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_an_answers_attention_has_no_gradient_from_the_other_answer_or_another_pair():
    segments = [(2, 2, 2), (2, 1, 1)]
    query, key, value = draw(segments, requires_grad=True)
    found, _ = packed_pairs(torch.nn.Module(), query, key, value, None, segments=segments)
    found[:, 4:6].sum().backward()
    moved = value.grad.abs().sum((0, 1, 3)) > 0
    assert moved.tolist() == [True, True, False, False, True, True, *[False] * 4]


def test_an_architecture_that_hands_over_no_segments_is_told():
    query, key, value = draw([(1, 1, 1)])
    with pytest.raises(ValueError, match="without segments"):
        packed_pairs(torch.nn.Module(), query, key, value, None)


def test_scores_that_are_capped_or_windowed_are_refused_rather_than_computed_otherwise():
    query, key, value = draw([(3, 2, 4)])
    with pytest.raises(ValueError, match="softcap"):
        packed_pairs(torch.nn.Module(), query, key, value, None, segments=[(3, 2, 4)], softcap=50.0)
    with pytest.raises(ValueError, match="7 tokens are more than this architecture's 6"):
        packed_pairs(torch.nn.Module(), query, key, value, None, segments=[(3, 2, 4)], sliding_window=6)
    # The longest text is 3 + 4: a window of 7 hides none of it.
    found, _ = packed_pairs(torch.nn.Module(), query, key, value, None, segments=[(3, 2, 4)], sliding_window=7)
    torch.testing.assert_close(found, dense_attention(query, key, value, [(3, 2, 4)]))


# torch's unfused form, which is the same function, says that it is slow.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_under_its_block_mask_is_the_packed_attention():
    """Forward only: FlexAttention has no backward on a CPU. The second pair crosses the border of a block of 128."""
    from torch.nn.attention.flex_attention import flex_attention

    segments = [(60, 30, 30), (20, 40, 30), (9, 0, 0)]
    length = 256
    query, key, value = (part.float() for part in draw(segments, spare=length - 219, width=16))
    found = flex_attention(
        query, key, value, block_mask=block_mask(segments, length=length, device="cpu"), enable_gqa=True
    )
    expected, _ = packed_pairs(
        torch.nn.Module(), *(part[:, :, :219] for part in (query, key, value)), None, segments=segments
    )
    torch.testing.assert_close(found.transpose(1, 2)[:, :219], expected, atol=1e-5, rtol=1e-5)
    assert found.isfinite().all()


def test_the_block_mask_is_the_dense_mask_and_leaves_out_blocks_that_nobody_sees():
    segments = [(60, 30, 30), (20, 40, 30), (100, 30, 20), (4, 0, 0)]
    mask = block_mask(segments, length=384, device="cpu")
    dense = dense_mask(segments, 384)
    query, key = torch.arange(384)[:, None], torch.arange(384)[None]
    assert torch.equal(mask.mask_mod(torch.tensor(0), torch.tensor(0), query, key), dense)
    blocks = dense.view(3, 128, 3, 128).any(3).any(1)
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks)
    assert not blocks.all()

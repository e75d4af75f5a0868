"""Token ids of pairs and conversations under chat templates of several habits; what is left out, cut, and learnt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_model import save_tiny_model

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.layout import TokenConversation, TokenPair
from bfpo_bench.trainers.records import Conversation, PreferencePair, Problem
from bfpo_bench.trainers.tokenise import PairTokeniser, safety_preference
from bfpo_bench.types import Message

# Of tests/tiny_model.py: every other byte is a token.
BOS, EOS, START, END = 1, 2, 3, 4

LOOP = "{% for m in messages %}"
ASK = "{% if add_generation_prompt %}"
# With each: what stands before an answer, and what ends it. The question is Q, of the user.
TEMPLATES = {
    # A break behind the end of turn, a BOS of its own: ChatML.
    "a break behind the end": (
        "{{ bos_token }}" + LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASK
        + "<|im_start|>assistant\n{% endif %}",
        "<s><|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "nothing behind the end": (
        LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}" + ASK
        + "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>user\nQ<|im_end|><|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "the end of sequence as the end": (
        LOOP + "[{{ m.role }}]{{ m.content }}{{ eos_token }}\n\n{% endfor %}" + ASK + "[assistant]{% endif %}",
        "[user]Q</s>\n\n[assistant]",
        "</s>",
    ),
    "no end at all": (
        "{{ bos_token }}" + LOOP + "### {{ m.role }}: {{ m.content }}\n{% endfor %}" + ASK
        + "### assistant: {% endif %}",
        "<s>### user: Q\n### assistant: ",
        "\n</s>",
    ),
    "no end, no break": (
        LOOP + "({{ m.role }}) {{ m.content }}{% endfor %}" + ASK + "(assistant) {% endif %}",
        "(user) Q(assistant) ",
        "</s>",
    ),
    # The prompt opens a thought that a finished turn is shown without: the turn is no extension of the prompt.
    "a thought is opened": (
        LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASK
        + "<|im_start|>assistant\n<think>{% endif %}",
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>",
        "<|im_end|>",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tokenise") / "model")


@pytest.fixture
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def tokeniser(tokenizer, template=None, *, max_length=200, max_prompt_length=100, long_prompts="skip"):
    return PairTokeniser(
        tokenizer,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        long_prompts=long_prompts,
        template=template,
    )


def user(text):
    return Message(role="user", content=text)


def assistant(text):
    return Message(role="assistant", content=text)


def pair(prompt="Q", chosen="Yes.", rejected="No!", *, labels=(True, False), safer=None):
    return PreferencePair(
        prompt=(user(prompt),) if isinstance(prompt, str) else prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_safe=labels[0],
        rejected_safe=labels[1],
        safer=safer,
        source="a",
        row="a:1",
    )


def conversation(*messages):
    return Conversation(messages=messages, source="a", row="a:1")


# -- prompt and answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_answer_are_the_templates_text_and_the_answer_ends_once(tokenizer, name):
    template, before, end = TEMPLATES[name]
    found = tokeniser(tokenizer, template).pair(pair())
    assert isinstance(found, TokenPair)
    assert tokenizer.decode(found.prompt) == before
    assert tokenizer.decode(found.chosen) == "Yes." + end
    assert tokenizer.decode(found.rejected) == "No!" + end
    for answer in (found.chosen, found.rejected):
        ends = [int(token) for token in answer if token in (BOS, EOS, START, END)]
        assert ends == [EOS if end.endswith("</s>") else END] and answer[-1] == ends[0]
    assert found.n_cut == 0 and (found.source, found.row) == ("a", "a:1")


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_scored_is_what_generation_would_have_to_produce(tokenizer, name):
    """The prompt's ids are those that a generation begins with; where it is rendered whole, so is the dialogue."""
    template, _, _ = TEMPLATES[name]
    found = tokeniser(tokenizer, template).pair(pair())
    question = [{"role": "user", "content": "Q"}]
    generation = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert found.prompt.tolist() == generation
    whole = tokenizer.apply_chat_template(
        [*question, {"role": "assistant", "content": "Yes."}], tokenize=True, return_dict=False
    )
    if name != "a thought is opened":
        assert [*found.prompt, *found.chosen][: len(whole)] == whole[: len(found.prompt) + len(found.chosen)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_beginning_of_sequence_comes_from_the_template_alone(tokenizer, name):
    """This tokenizer puts one before any text it is not told otherwise of: two would be one too many."""
    template, before, _ = TEMPLATES[name]
    assert tokenizer("x")["input_ids"][0] == BOS
    found = tokeniser(tokenizer, template).pair(pair())
    assert [*found.prompt, *found.chosen, *found.rejected].count(BOS) == before.count("<s>")


def test_the_end_of_turn_is_found_where_an_answer_is_made_of_its_letters(tokenizer):
    template, _, _ = TEMPLATES["a thought is opened"]
    found = tokeniser(tokenizer, template).pair(pair(chosen="m", rejected="im_end"))
    assert tokenizer.decode(found.chosen) == "m<|im_end|>"
    assert tokenizer.decode(found.rejected) == "im_end<|im_end|>"


def test_white_space_within_an_answer_is_kept(tokenizer):
    found = tokeniser(tokenizer, TEMPLATES["nothing behind the end"][0]).pair(pair(chosen=" a\n\n b \n", rejected="a"))
    assert tokenizer.decode(found.chosen) == " a\n\n b \n<|im_end|>"


def test_ids_outside_ascii_come_back_as_the_text(tokenizer):
    found = tokeniser(tokenizer).pair(pair(prompt="¿Qué?", chosen="Grüß Gott 🙂", rejected="né"))
    assert tokenizer.decode(found.chosen) == "Grüß Gott 🙂<|im_end|>"
    assert "¿Qué?" in tokenizer.decode(found.prompt)


def test_earlier_turns_and_a_system_prompt_are_part_of_the_prompt(tokenizer):
    messages = (Message(role="system", content="S"), user("Q"), assistant("A"), user("R"))
    found = tokeniser(tokenizer).pair(pair(prompt=messages))
    assert tokenizer.decode(found.prompt) == (
        "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n"
    )


def llama_tokenizer():
    """As Llama 2's and Mistral's: a space, written ▁, is put before any text, and stands for every space in it."""
    import string

    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", "▁", "\n", *string.ascii_letters, *string.punctuation]
    raw = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[], unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    raw.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_no_space_is_put_before_an_answer_by_a_tokenizer_that_puts_one_before_a_text():
    tokenizer = llama_tokenizer()
    template = LOOP + "<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}" + ASK + "<|assistant|>\n{% endif %}"
    found = tokeniser(tokenizer, template).pair(pair())
    assert tokenizer.convert_ids_to_tokens(tokenizer("Yes.")["input_ids"]) == ["▁", "Y", "e", "s", "."]
    assert tokenizer.convert_ids_to_tokens(found.chosen) == ["Y", "e", "s", ".", "</s>"]
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "Yes."}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    expected = tokenizer(whole, add_special_tokens=False)["input_ids"]
    learnt = tokeniser(tokenizer, template).conversation(conversation(user("Q"), assistant("Yes.")))
    # Without the line break behind the end, and the space that is put before it.
    assert [*found.prompt, *found.chosen] == learnt.ids.tolist() == expected[:-2]


def test_a_token_across_the_border_is_split_as_generation_splits_it():
    """A prompt that ends in a space, an answer that begins with one, and a token for two of them."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["</s>", " ", "Q", "a", "b", "  "]
    raw = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[(" ", " ")]))
    raw.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    template = LOOP + "{{ m.content }}{% if m.role == 'user' %} {% endif %}{% endfor %}"
    found = tokeniser(tokenizer, template).pair(pair(chosen=" a", rejected="b"))
    assert tokenizer("Q  a")["input_ids"] == [2, 5, 3]
    assert (found.prompt.tolist(), found.chosen.tolist(), found.rejected.tolist()) == ([2, 1], [1, 3, 0], [4, 0])


# -- lengths -----------------------------------------------------------------------------------------------------------

# "<s>", "<|im_start|>", "user\n", the question, "<|im_end|>", "\n", "<|im_start|>", "assistant\n"
AROUND = 1 + 1 + 5 + 1 + 1 + 1 + 10


def test_the_longest_prompt_that_fits_is_kept_and_one_more_token_is_left_out(tokenizer):
    own = tokeniser(tokenizer, max_prompt_length=AROUND + 30)
    assert len(own.pair(pair("q" * 30)).prompt) == AROUND + 30
    left_out = own.pair(pair("q" * 31))
    assert left_out == Problem(
        row="a:1", reason=f"a prompt of {AROUND + 31} tokens, max_prompt_length is {AROUND + 30}"
    )


def test_a_cut_prompt_keeps_its_end_and_its_beginning_of_sequence(tokenizer):
    own = tokeniser(tokenizer, max_prompt_length=AROUND, long_prompts="cut")
    found = own.pair(pair("early " * 10 + "late"))
    assert len(found.prompt) == AROUND
    # AROUND less 1 for BOS, 13 for what follows the question: 6 letters of it are left.
    assert tokenizer.decode(found.prompt) == "<s>y late<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(found.chosen) == "Yes.<|im_end|>"


def test_a_cut_prompt_without_a_beginning_of_sequence_gets_none(tokenizer):
    own = tokeniser(
        tokenizer, TEMPLATES["nothing behind the end"][0], max_prompt_length=16, long_prompts="cut"
    )  # fmt: skip
    assert tokenizer.decode(own.pair(pair("early " * 10 + "late")).prompt) == "late<|im_end|><|im_start|>assistant\n"


def test_answers_cut_at_the_length_are_counted_and_do_not_end(tokenizer):
    """A prompt of AROUND + 1 leaves room for 5: `Yes.` and its end just fit, one letter more does not."""
    own = tokeniser(tokenizer, max_length=AROUND + 1 + 5, max_prompt_length=AROUND + 1)
    fits, one, both = (
        own.pair(pair(chosen=a, rejected=b)) for a, b in [("Yes.", "No"), ("Yes!!", "No"), ("Y" * 9, "N" * 9)]
    )
    assert (fits.n_cut, one.n_cut, both.n_cut) == (0, 1, 2)
    assert tokenizer.decode(fits.chosen) == "Yes.<|im_end|>"
    assert tokenizer.decode(one.chosen) == "Yes!!" and tokenizer.decode(one.rejected) == "No<|im_end|>"
    assert all(
        len(row.prompt) + len(answer) <= own.max_length
        for row in (fits, one, both)
        for answer in (row.chosen, row.rejected)
    )


def test_answers_that_are_equal_once_they_are_cut_are_left_out(tokenizer):
    own = tokeniser(tokenizer, max_length=AROUND + 1 + 5, max_prompt_length=AROUND + 1)
    assert own.pair(pair(chosen="sorry, no", rejected="sorry, yes")) == Problem(
        row="a:1", reason="the answers are equal in their first 5 tokens"
    )
    assert isinstance(own.pair(pair(chosen="sorry", rejected="sorr")), TokenPair)


def test_a_row_of_a_hundred_thousand_tokens_is_cut_or_left_out(tokenizer):
    own = tokeniser(tokenizer)
    cut = own.pair(pair(chosen="a" * 100_000, rejected="b"))
    assert len(cut.prompt) + len(cut.chosen) == 200 and cut.n_cut == 1
    assert own.pair(pair("q" * 100_000)).reason == f"a prompt of {AROUND + 100_000} tokens, max_prompt_length is 100"


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "safer", "expected"),
    [
        ((True, False), None, 1),
        ((False, True), None, -1),
        ((True, True), None, 0),
        ((False, False), None, 0),
        ((None, None), None, 0),
        ((False, False), "rejected", -1),
        ((False, False), "chosen", 1),
    ],
)
def test_a_pair_says_which_answer_is_safer(tokenizer, labels, safer, expected):
    row = pair(labels=labels, safer=safer)
    assert safety_preference(row) == expected
    assert tokeniser(tokenizer).pair(row).safety_preference == expected


def test_labels_are_numbers_and_an_unknown_one_is_none_at_all(tokenizer):
    found = tokeniser(tokenizer).pair(pair(labels=(None, True)))
    assert math.isnan(found.chosen_safe) and found.rejected_safe == 1.0


# -- conversations -----------------------------------------------------------------------------------------------------


def learnt_text(tokenizer, found):
    """Runs of learnt tokens, each as its text."""
    runs, before = [], False
    for token, learnt in zip(found.ids, found.learnt, strict=True):
        if learnt:
            runs[-1:] = [[*runs[-1], token]] if before else [*runs[-1:], [token]]
        before = learnt
    return [tokenizer.decode(run) for run in runs]


def test_the_tokens_of_a_conversation_that_are_learnt_by_hand(tokenizer):
    template = LOOP + "{{ m.role[0] }}{{ m.content }}<|im_end|>{% endfor %}" + ASK + "a{% endif %}"
    found = tokeniser(tokenizer, template).conversation(
        conversation(user("Q"), assistant("AB"), user("R"), assistant("C"))
    )
    assert tokenizer.decode(found.ids) == "uQ<|im_end|>aAB<|im_end|>uR<|im_end|>aC<|im_end|>"
    assert found.learnt.tolist() == [bool(int(one)) for one in "0000111000011"]
    assert isinstance(found, TokenConversation) and found.n_cut == 0 and found.n_tokens == 13


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("a break behind the end", ["Yes.<|im_end|>", "No!<|im_end|>"]),
        ("nothing behind the end", ["Yes.<|im_end|>", "No!<|im_end|>"]),
        ("the end of sequence as the end", ["Yes.</s>", "No!</s>"]),
        ("no end at all", ["Yes.\n</s>", "No!\n</s>"]),
        ("no end, no break", ["Yes.</s>", "No!</s>"]),
    ],
)
def test_every_turn_of_the_assistant_is_learnt_with_its_end_and_nothing_else(tokenizer, name, answers):
    turns = (user("Q"), assistant("Yes."), user("R"), assistant("No!"))
    found = tokeniser(tokenizer, TEMPLATES[name][0]).conversation(conversation(*turns))
    assert learnt_text(tokenizer, found) == answers


def test_a_conversation_is_the_templates_text_up_to_the_end_of_its_last_turn(tokenizer):
    turns = (Message(role="system", content="S"), user("Q"), assistant("Yes."), user("R"), assistant("No!"))
    found = tokeniser(tokenizer).conversation(conversation(*turns))
    whole = tokenizer.apply_chat_template([{"role": m.role, "content": m.content} for m in turns], tokenize=False)
    assert tokenizer.decode(found.ids) + "\n" == whole


def test_a_conversation_of_one_turn_learns_what_a_pair_scores(tokenizer):
    own = tokeniser(tokenizer)
    found, as_pair = own.conversation(conversation(user("Q"), assistant("Yes."))), own.pair(pair())
    assert found.ids.tolist() == [*as_pair.prompt, *as_pair.chosen]
    assert np.flatnonzero(found.learnt).tolist() == list(range(len(as_pair.prompt), len(found.ids)))


def test_a_long_conversation_is_cut_and_one_whose_answers_are_all_behind_the_cut_is_left_out(tokenizer):
    template = LOOP + "{{ m.role[0] }}{{ m.content }}<|im_end|>{% endfor %}" + ASK + "a{% endif %}"
    turns = conversation(user("Q"), assistant("AB"), user("R"), assistant("C"))
    own = tokeniser(tokenizer, template, max_length=6, max_prompt_length=4)
    found = own.conversation(turns)
    assert tokenizer.decode(found.ids) == "uQ<|im_end|>aAB" and found.n_cut == 1
    assert found.learnt.tolist() == [False] * 4 + [True] * 2
    short = tokeniser(tokenizer, template, max_length=4, max_prompt_length=3).conversation(turns)
    assert short == Problem(row="a:1", reason="no answer begins in its first 4 tokens")


def test_a_template_that_rewrites_earlier_turns_is_told(tokenizer):
    """Thoughts of earlier turns are dropped by some: then no row of tokens is what generation saw at every turn."""
    template = (
        LOOP + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}" + ASK + "<|im_start|>assistant\n{% endif %}"
    )
    own = tokeniser(tokenizer, template)
    found = own.conversation(conversation(user("Q"), assistant("A"), user("R"), assistant("B")))
    assert found == Problem(row="a:1", reason="the chat template rewrites earlier turns of a conversation")
    single = own.conversation(conversation(user("Q"), assistant("A")))
    assert learnt_text(tokenizer, single) == ["<think></think>A<|im_end|>"]


# -- the template ------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_template_needs_the_recipes(tmp_path):
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path / "bare", template=None))
    with pytest.raises(ConfigError, match=r"no chat template.*chat_template"):
        tokeniser(bare)
    assert tokenizer_text(bare, TEMPLATES["no end, no break"][0]) == "(user) Q(assistant) "


def tokenizer_text(tokenizer, template):
    return tokenizer.decode(tokeniser(tokenizer, template).pair(pair()).prompt)


def test_the_recipes_template_is_the_checkpoints_from_then_on(tokenizer):
    template = TEMPLATES["no end, no break"][0]
    assert tokenizer_text(tokenizer, template) == "(user) Q(assistant) "
    assert tokenizer.chat_template == template

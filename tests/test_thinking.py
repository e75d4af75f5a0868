"""What a reasoning model thinks is kept, counted and shown, and neither judged nor said in later turns."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_builder import BuiltTask, Item, build_run
from test_browser import page  # noqa: F401
from test_hf_engine import GREEDY, answers, asked, model_spec
from tiny_model import TEMPLATE, save_tiny_model

from bfpo_bench.console import print_scores
from bfpo_bench.errors import ConfigError
from bfpo_bench.export import rows
from bfpo_bench.harness.openai import _generated
from bfpo_bench.harness.rendering import Renderer, decoded, thinking_tokens
from bfpo_bench.leaderboard.render import write_site
from bfpo_bench.leaderboard.rows import collect
from bfpo_bench.scoring import score_run
from bfpo_bench.store import RunStore
from bfpo_bench.thinking import TAGS, opened_thinking, settled, split_thinking, unfinished
from bfpo_bench.types import Output

# -- the rule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("Paris.", None, "Paris."),
        ("<think>hm</think>Paris.", "<think>hm</think>", "Paris."),
        ("\n<think>\nhm\n</think>\n\nParis.", "\n<think>\nhm\n</think>\n\n", "Paris."),
        ("<thinking>hm</thinking> Paris.", "<thinking>hm</thinking> ", "Paris."),
        ("<reasoning>hm</reasoning>Paris.", "<reasoning>hm</reasoning>", "Paris."),
        ("[THINK]hm[/THINK]Paris.", "[THINK]hm[/THINK]", "Paris."),
        ("<Think>hm</THINK>Paris.", "<Think>hm</THINK>", "Paris."),
        # Qwen3 with thinking switched off.
        ("<think>\n\n</think>\n\nParis.", "<think>\n\n</think>\n\n", "Paris."),
        # The template wrote the opening tag.
        ("hm</think>Paris.", "hm</think>", "Paris."),
        ("hm</think>no, hm</think>Paris.", "hm</think>no, hm</think>", "Paris."),
        # Cut off.
        ("<think>hm", "<think>hm", ""),
        ("<think>a</think><think>b", "<think>a</think><think>b", ""),
        # Several times in a row, and of two kinds.
        ("<think>a</think> <think>b</think> Paris.", "<think>a</think> <think>b</think> ", "Paris."),
        ("<think>a</think><reasoning>b</reasoning>Paris.", "<think>a</think><reasoning>b</reasoning>", "Paris."),
        ("<think>I may write <think>.</think>Paris.", "<think>I may write <think>.</think>", "Paris."),
        ("<think>a </reasoning> b</think>Paris.", "<think>a </reasoning> b</think>", "Paris."),
        # Behind the answer's first words the tags were asked for.
        ("Here: <think>hm</think> done.", None, "Here: <think>hm</think> done."),
        ("<answer><thinking>hm</thinking>4</answer>", None, "<answer><thinking>hm</thinking>4</answer>"),
        ("<think>hm</think>Write <think>x</think>.", "<think>hm</think>", "Write <think>x</think>."),
        ("hm</think>Write <think>x</think>.", "hm</think>", "Write <think>x</think>."),
        ("I never close <think> tags.", None, "I never close <think> tags."),
        # Other words, other brackets.
        ("<thinks>hm</thinks>", None, "<thinks>hm</thinks>"),
        ("(think)hm(/think)", None, "(think)hm(/think)"),
        ("  Paris.", None, "  Paris."),
        ("", None, ""),
        ("<think></think>", "<think></think>", ""),
    ],
)
def test_thinking_stands_before_the_answer(text, thinking, answer):
    assert split_thinking(text) == (thinking, answer)


pieces = st.lists(st.sampled_from([*TAGS, "a", " ", "\n", "<", ">", "/think", "K"]), max_size=12).map("".join)


@given(pieces | st.text())
def test_thinking_and_answer_together_are_the_text(text):
    thinking, answer = split_thinking(text)
    assert (thinking or "") + answer == text


@given(pieces | st.text())
def test_an_answer_holds_no_further_thinking(text):
    _, answer = split_thinking(text)
    assert split_thinking(answer) == (None, answer)


@given(st.text())
def test_a_text_without_a_tag_stays_whole(text):
    if not any(tag in text.lower() for tag in map(str.lower, TAGS)):
        assert split_thinking(text) == (None, text)


@pytest.mark.parametrize("piece", ["</think>", "<think>", "<", "<think></think>", " ", "a<think>", "[THINK]"])
def test_a_million_characters_are_split_at_once(piece):
    text = piece * (1_000_000 // len(piece))
    start = time.monotonic()
    split_thinking(text)
    assert time.monotonic() - start < 2


# -- an output ---------------------------------------------------------------------------------------------------------


def test_a_tag_that_the_prompt_opened_counts_although_the_text_shows_none():
    assert opened_thinking("<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert opened_thinking("<think>\n\n</think>\n\n") == ""
    assert opened_thinking("What does <think> mean?") == ""
    cut = settled(Output(sample_id="a", text="hm", thinking="<think>\n", finish_reason="length"))
    assert (cut.thinking, cut.text, unfinished(cut)) == ("hm", "", True)
    whole = settled(Output(sample_id="a", text="hm</think>\nParis.", thinking="<think>\n"))
    assert (whole.thinking, whole.text, unfinished(whole)) == ("hm</think>\n", "Paris.", False)


def test_a_model_that_answers_at_once_behind_an_opened_tag_has_only_thought():
    # It cannot be told from one that was cut off: nothing in its text says that an answer began.
    only = settled(Output(sample_id="a", text="Paris.", thinking="<think>", finish_reason="stop"))
    assert (only.thinking, only.text, unfinished(only)) == ("Paris.", "", True)


def test_a_server_s_own_field_is_thinking_and_its_text_is_split_all_the_same():
    output = settled(Output(sample_id="a", text="<think>x</think>Paris.", thinking="from the server. "))
    assert (output.thinking, output.text) == ("from the server. <think>x</think>", "Paris.")
    assert settled(Output(sample_id="a", text="Paris.", thinking="t")).text == "Paris."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>hm", True),
        ("<think>hm</think>", False),
        ("<think>hm</think> \n", False),
        ("Paris.", False),
        ("", False),
    ],
)
def test_thinking_is_unfinished_where_no_answer_came_after_it(text, expected):
    assert unfinished(settled(Output(sample_id="a", text=text))) is expected


@pytest.mark.parametrize(
    "output", [Output(sample_id="a", failure="too_long"), Output(sample_id="a", choice_logprobs=(1.0,))]
)
def test_an_output_without_a_text_stays_as_it_is(output):
    assert settled(output) == output


# -- counted and shown -------------------------------------------------------------------------------------------------


def run_with_thinking(folder, thinking):
    """Two answers after thinking, one of them never came; one answer without."""
    items = [Item(prompt=f"Question {n}?", answer=text, label="safe") for n, text in enumerate(("Yes.", "", "No."))]
    build_run(folder, tasks=[task := BuiltTask(name="bfpo_t", axis="harmlessness", items=items)])
    import sqlite3

    database = sqlite3.connect(folder / "run.sqlite")
    ids = [row[0] for row in database.execute("SELECT id FROM samples ORDER BY position")]
    with database:
        for id_, thought in zip(ids, (f"<think>{thinking}</think>", f"<think>{thinking}", None), strict=True):
            database.execute("UPDATE outputs SET thinking = ? WHERE sample_id = ?", (thought, id_))
    database.close()
    with RunStore.open(folder) as store:
        result = score_run([task.spec], store.samples(), store.outputs(), store.verdicts(), judges=["keyword"])
        store.write_scores({**(store.scores or {}), **result})
        return store.scores


def test_thinking_is_counted_and_its_columns_are_there_only_then(tmp_path, capsys):
    scores = run_with_thinking(tmp_path / "run", "hm")
    task = scores["tasks"]["bfpo_t"]
    assert (task["n_thinking"], task["n_unfinished_thinking"]) == (2, 1)
    print_scores(scores)
    head, line = [line for line in capsys.readouterr().out.splitlines() if "value" in line or "bfpo_t" in line]
    assert "thinking" in head and "unfinished" in head and "  2 " in line and "  1 " in line
    print_scores({**scores, "tasks": {"bfpo_t": {**task, "n_thinking": 0, "n_unfinished_thinking": 0}}})
    assert "thinking" not in capsys.readouterr().out


def test_thinking_is_exported_beside_the_answer(tmp_path):
    run_with_thinking(tmp_path / "run", "hm")
    with RunStore.read(tmp_path / "run") as store:
        found = [(row["thinking"], row["text"]) for row in rows(store)]
    assert found == [("<think>hm</think>", "Yes."), ("<think>hm", ""), (None, "No.")]


def test_hostile_thinking_is_inert_on_the_leaderboard(tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>\x1b[31m\u202e"
    run_with_thinking(tmp_path / "run", hostile)
    write_site(collect([tmp_path / "run"]), out=tmp_path / "site")
    files = list((tmp_path / "site" / "runs").rglob("*.html"))
    for text in (path.read_text() for path in files):
        assert "<img src=x" not in text and "\x1b" not in text and "\u202e" not in text
    (path,) = (path for path in files if path.name == "0001.html")
    data = json.loads(path.read_text().partition('id="data">')[2].partition("</script>")[0])
    assert [record.get("thinking", "")[:9] for record in data] == ["<think></", "<think></", ""]


# -- engines -----------------------------------------------------------------------------------------------------------

# As Qwen3's: a switch, and an opening tag of its own where it is on.
SWITCHED = TEMPLATE.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}",
)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("thinker") / "model", template=SWITCHED)


def test_the_engine_says_that_its_template_opened_the_thinking(thinker):
    from bfpo_bench.harness.hf import HFEngine

    (output,) = answers(HFEngine(model_spec(thinker)), [asked(0)]).values()
    assert output.thinking == "<think>\n" and unfinished(settled(output))
    (output,) = answers(HFEngine(model_spec(thinker, engine_args={"enable_thinking": "false"})), [asked(0)]).values()
    assert output.thinking is None


def test_the_switch_reaches_the_template_as_through_lm_eval_s_own_class(thinker):
    from lm_eval.models.huggingface import HFLM

    history = [{"role": "user", "content": "Say something."}]
    for value in ("false", "true"):
        lm = HFLM(pretrained=str(thinker), device="cpu", enable_thinking=value == "true", think_end_token="</think>")
        ours = Renderer(model_spec(thinker, engine_args={"enable_thinking": value}), lm.tokenizer).prompt(asked(0))
        assert ours == lm.apply_chat_template(history)
        assert ours.endswith("<think>\n" if value == "true" else "</think>\n\n")


def test_choice_tasks_are_answered_with_thinking_switched_on_which_lm_eval_refuses(thinker):
    from dataclasses import replace

    from bfpo_bench.harness.hf import HFEngine

    sample = replace(asked(0), choices=(("One and one is", " two"), ("One and one is", " three")))
    plain = answers(HFEngine(model_spec(thinker)), [sample])
    assert answers(HFEngine(model_spec(thinker, engine_args={"enable_thinking": "true"})), [sample]) == plain


def test_a_switch_that_is_neither_true_nor_false_is_refused(thinker):
    from bfpo_bench.harness.hf import HFEngine

    with pytest.raises(ConfigError, match=r"enable_thinking must be true or false, got 'maybe'"):
        HFEngine(model_spec(thinker, engine_args={"enable_thinking": "maybe"}))


def test_tags_that_are_control_tokens_are_not_lost_in_decoding(tiny_model):
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert thinking_tokens(tokenizer) == {}
    tokenizer.add_tokens([AddedToken("[THINK]", special=True), AddedToken("[/THINK]", special=True)])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    tags = thinking_tokens(tokenizer)
    assert sorted(tags.values()) == ["[/THINK]", "[THINK]"]
    tokens = tokenizer.encode("[THINK]hm ü[/THINK]Paris.</s>", add_special_tokens=False)

    def decode(some):
        return tokenizer.decode(some, skip_special_tokens=True)

    assert decode(tokens) == "hm üParis."
    assert decoded(tokens, decode, tags) == "[THINK]hm ü[/THINK]Paris."


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_server_s_reasoning_is_kept_apart(field):
    from bfpo_bench.endpoint import Reply

    def reply(content, reason):
        return Reply(body={"choices": [{"message": {"content": content, field: "hm"}, "finish_reason": reason}]})

    output = _generated(asked(0, settings=GREEDY), reply("Paris.", "stop"))
    assert (output.thinking, output.text) == ("hm", "Paris.")
    for reason in ("length", "stop"):
        output = settled(_generated(asked(0, settings=GREEDY), reply(None, reason)))
        assert (output.thinking, output.text, unfinished(output)) == ("hm", "", True)
    assert _generated(asked(0, settings=GREEDY), reply(None, "content_filter")).failure == "rejected"


@pytest.mark.browser
def test_the_page_folds_thinking_away_and_shows_it_as_text(tmp_path, page):  # noqa: F811
    run_with_thinking(tmp_path / "run", "<b>hm</b>\u202e")
    write_site(collect([tmp_path / "run"]), out=tmp_path / "site")
    (path,) = (tmp_path / "site" / "runs").glob("*.html")
    page.goto(path.as_uri())
    page.check("#reveal")
    page.locator(".row").first.click()
    thoughts = page.locator("#detail details", has_text="not judged")
    thoughts.wait_for()
    assert thoughts.count() == 1 and thoughts.get_attribute("open") is None
    thoughts.locator("summary").click()
    assert thoughts.locator("pre").inner_text() == "<think><b>hm</b>⟨U+202E⟩</think>"


def test_where_the_prompt_opened_no_thinking_a_closing_tag_hides_nothing():
    text = "Here is how it is done.</think>I cannot help."
    assert split_thinking(text, bare=False) == (None, text)
    assert settled(Output(sample_id="a", text=text), bare=False).text == text
    assert split_thinking("<think>hm</think>Paris.", bare=False) == ("<think>hm</think>", "Paris.")
    opened = settled(Output(sample_id="a", text="hm</think>Paris.", thinking="<think>"), bare=False)
    assert (opened.thinking, opened.text) == ("hm</think>", "Paris.")

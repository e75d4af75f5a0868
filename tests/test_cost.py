"""What a run says it will cost, worked by hand."""

from __future__ import annotations

import pytest
from test_scoring import choice_spec, spec

from bfpo_bench.cost import Cost, estimate, summary, table
from bfpo_bench.types import JudgeScope, JudgeSpec, Sample

CHAT = JudgeSpec(kind="chat", model="m")


def generated(task="t", n=2):
    asked = {"prompt": "p" * 400, "generation": {"max_gen_toks": 100}}
    return [Sample(id=f"{task}{i}", task=task, index=i, **asked) for i in range(n)]


def test_a_generated_sample_is_one_request_as_long_as_it_may_get():
    cost = estimate([spec()], generated())["t"]
    assert (cost.samples, cost.requests, cost.prompt_tokens, cost.new_tokens, cost.judge_calls) == (2, 2, 200, 200, 0)


def test_choices_are_a_request_each_and_their_shared_context_is_read_once():
    """400 characters of context and two endings of 20: 440 / 4 tokens."""
    sample = Sample(id="c", task="c", index=0, prompt="q", choices=tuple(("x" * 400, "y" * 20) for _ in range(2)))
    cost = estimate([choice_spec()], [sample])["c"]
    assert (cost.requests, cost.prompt_tokens, cost.new_tokens) == (2, 110, 0)


def test_gpu_minutes_are_the_stated_model_s():
    """1.2 million prompt tokens at 20,000 a second and 480,000 new ones at 4,000 a second: 60 s + 120 s."""
    assert Cost(prompt_tokens=1_200_000, new_tokens=480_000).gpu_minutes == pytest.approx(3.0)


@pytest.mark.parametrize(("rubric", "calls"), [("safety", 2), ("rating", 2), ("pairwise", 4)])
def test_a_judge_that_is_a_model_is_called_for_each_sample_and_twice_for_a_pair(rubric, calls):
    cost = estimate([spec(rubric=rubric)], generated(), [CHAT, JudgeSpec(kind="keyword")])["t"]
    assert cost.judge_calls == calls
    assert cost.judge_input_tokens == calls * (100 + 100 + 500)


def test_a_judge_behind_an_api_that_is_no_language_model_is_called_and_reads_no_tokens():
    toxicity = JudgeSpec(kind="perspective", calls=1)
    cost = estimate([spec(rubric="toxicity", judge="chat")], generated(), [toxicity, CHAT])["t"]
    assert (cost.judge_calls, cost.judge_input_tokens) == (4, 2 * (100 + 100 + 500))


def test_a_judge_is_not_counted_where_it_cannot_tell():
    guard = JudgeSpec(kind="guard", model="m", calls=1, scope=JudgeScope(axes=("harmlessness",), rubrics=("safety",)))
    tasks = [spec("t"), spec("u", axis="over_refusal")]
    costs = estimate(tasks, [*generated("t"), *generated("u")], [guard])
    assert (costs["t"].judge_calls, costs["u"].judge_calls) == (2, 0)


def test_what_a_program_computes_is_no_call():
    assert estimate([spec(judge="lm_eval")], generated(), [CHAT])["t"].judge_calls == 0


def test_the_table_names_what_is_missing_and_what_needs_a_judge():
    tasks = [spec("t", n=520), spec("u", judge="chat")]
    lines = table(tasks, estimate(tasks, generated()), [], {"u": "u is not in --data-dir d"})
    assert "520" in lines[1]
    assert "needs --judge chat:MODEL" in lines[2] and "missing: u is not in --data-dir d" in lines[2]
    assert lines[-1] == summary(estimate(tasks, generated()))
    assert lines[-1].startswith("1 tasks, 2 samples")


def test_without_weights_here_there_are_no_gpu_minutes():
    costs = estimate([spec()], generated())
    assert "GPU-minutes" in summary(costs) and "GPU" not in summary(costs, weights=False)
    head, row, *_ = table([spec()], costs, [], {}, weights=False)
    assert row.split()[head.split().index("GPU-min") - 2] == "-"

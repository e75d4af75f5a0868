"""What a run will cost before it runs: requests, tokens, GPU-minutes by a stated model, judge calls; values only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bfpo_bench.scoring import NEEDS_CHAT, judges_of
from bfpo_bench.types import JudgeSpec, Sample, TaskSpec

# English text has about four characters a token with today's tokenizers; the count is an estimate and says so.
_CHARACTERS_A_TOKEN = 4
# The stated model: 7 billion parameters in bf16 on one H100 with a full batch. An assumption, on the careful side of
# what vLLM's users publish; the time of another size goes with its parameters.
STATED_MODEL = "7B model, one H100, bf16, 20,000 prompt and 4,000 new tokens/s"
_PROMPT_TOKENS_A_SECOND = 20_000
_NEW_TOKENS_A_SECOND = 4_000
# The rubric around the answer, and the verdict: what a chat judge reads and writes beside it.
_RUBRIC_TOKENS = 500
_VERDICT_TOKENS = 256
_CALLS = {"safety": 1, "toxicity": 1, "rating": 1, "pairwise": 2}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An estimate: prompts as they stand, answers as long as they may get."""

    samples: int = 0
    prompts: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    judge_calls: int = 0
    judge_input_tokens: int = 0
    judge_output_tokens: int = 0

    @property
    def gpu_minutes(self) -> float:
        """Of the stated model; the judges' own time is not in it."""
        seconds = self.prompt_tokens / _PROMPT_TOKENS_A_SECOND + self.new_tokens / _NEW_TOKENS_A_SECOND
        return seconds / 60

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in Cost.__dataclass_fields__})


class Estimate:
    """The cost of each task, added up sample by sample.

    A judge counts where it is asked through an API, in tokens where a model is.
    """

    def __init__(self, tasks: Sequence[TaskSpec], judges: Sequence[JudgeSpec] = ()) -> None:
        remote = {judge.name: judge for judge in judges if judge.api or judge.calls}
        scopes = {judge.name: judge.scope for judge in judges}
        names = [judge.name for judge in judges]
        self._asked: dict[str, dict[JudgeSpec, int]] = {}
        for task in tasks:
            asked = [remote[name] for name in judges_of(task, names, scopes) if name in remote]
            self._asked[task.name] = {judge: judge.calls or _CALLS[task.rubric] for judge in asked}
        self._sums: dict[str, Counter[str]] = {task.name: Counter() for task in tasks}

    def add(self, sample: Sample) -> None:
        """One more sample of its task."""
        # Choices that share their context are asked with it once: vLLM keeps it in its prefix cache, hf its logits.
        contexts = {context for context, _ in sample.choices} or {sample.prompt}
        characters = sum(map(len, contexts)) + sum(len(ending) for _, ending in sample.choices)
        sums = self._sums[sample.task]
        sums["samples"] += 1
        sums["prompts"] += sample.repeat == 0
        sums["requests"] += max(1, len(sample.choices))
        sums["prompt_tokens"] += max(1, characters // _CHARACTERS_A_TOKEN)
        sums["new_tokens"] += int(sample.generation.get("max_gen_toks", 0))

    @property
    def costs(self) -> dict[str, Cost]:
        """By task, one without samples too."""
        return {name: self._cost(sums, self._asked[name]) for name, sums in self._sums.items()}

    def _cost(self, sums: Counter[str], asked: Mapping[JudgeSpec, int]) -> Cost:
        # Only models are paid by the token.
        read = sum(calls for judge, calls in asked.items() if judge.api)
        seen = sums["prompt_tokens"] + sums["new_tokens"] + _RUBRIC_TOKENS * sums["samples"]
        return Cost(
            **sums,
            judge_calls=sums["samples"] * sum(asked.values()),
            judge_input_tokens=read * seen,
            judge_output_tokens=read * _VERDICT_TOKENS * sums["samples"],
        )


def estimate(tasks: Sequence[TaskSpec], samples: Iterable[Sample], judges: Sequence[JudgeSpec] = ()) -> dict[str, Cost]:
    """`Estimate` of samples in memory."""
    found = Estimate(tasks, judges)
    for sample in samples:
        found.add(sample)
    return found.costs


def summary(costs: Mapping[str, Cost], *, weights: bool = True) -> str:
    """One line for the start of a run; of a model without weights here (a policy, an API) no GPU-minutes."""
    total = sum(costs.values(), Cost())
    minutes = f", about {total.gpu_minutes:.1f} GPU-minutes ({STATED_MODEL})" if weights else ""
    judging = f", {total.judge_calls:,} judge calls" if total.judge_calls else ""
    # One without data costs nothing.
    tasks = sum(cost.samples > 0 for cost in costs.values())
    return (
        f"{tasks} tasks, {total.samples:,} samples, {total.requests:,} requests, about "
        f"{total.prompt_tokens:,} prompt and at most {total.new_tokens:,} new tokens{minutes}{judging}"
    )


def table(
    tasks: Sequence[TaskSpec],
    costs: Mapping[str, Cost],
    judges: Sequence[JudgeSpec],
    missing: Mapping[str, str],
    *,
    weights: bool = True,
) -> list[str]:
    """`--dry-run`: a line a task, and the sum."""
    head = ("samples", "of", "requests", "prompt tokens", "new tokens", "GPU-min")
    width = max(len(task.name) for task in tasks)
    lines = [f"{'task':{width}}" + "".join(f"{title:>14}" for title in head) + "  judges"]
    names, scopes = [judge.name for judge in judges], {judge.name: judge.scope for judge in judges}
    for task in tasks:
        cost = costs[task.name]
        cells = (
            f"{cost.prompts:,}" + (f" x {cost.samples // cost.prompts}" if cost.samples > cost.prompts else ""),
            "?" if task.n is None else f"{task.n:,}",
            f"{cost.requests:,}",
            f"{cost.prompt_tokens:,}",
            f"{cost.new_tokens:,}",
            f"{cost.gpu_minutes:.1f}" if weights else "-",
        )
        theirs = ", ".join(judges_of(task, names, scopes)) or (
            "needs --judge chat:MODEL" if task.judge == NEEDS_CHAT else "-"
        )
        note = f"  missing: {missing[task.name]}" if task.name in missing else ""
        lines.append(f"{task.name:{width}}" + "".join(f"{cell:>14}" for cell in cells) + f"  {theirs}{note}")
    total = sum(costs.values(), Cost())
    lines += ["", summary(costs, weights=weights)]
    if total.judge_calls:
        lines.append(
            f"judges: {total.judge_calls:,} API calls, about {total.judge_input_tokens:,} input and at most "
            f"{total.judge_output_tokens:,} output tokens"
        )
    return lines

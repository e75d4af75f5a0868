"""The values that pass between the stages: frozen, keyword-only, standard library only."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

Axis = Literal["harmlessness", "over_refusal", "helpfulness", "capability"]
Kind = Literal["choice", "generate"]
Label = Literal["refused", "safe", "harmful", "passed", "failed", "empty"]
FinishReason = Literal["stop", "length"]
# Why a sample has no answer of the model. Final: asking again would end the same way.
Failure = Literal["too_long", "nan_logprob", "no_logprobs", "rejected", "no_previous_turn", "engine_died"]
# Why a sample has an answer but no verdict.
Unscored = Literal[
    "parse", "refusal", "truncated", "api", "rate_limit", "timeout", "too_long", "metric", "not_recorded", "few_votes",
    "tie", "engine_died",
]  # fmt: skip

# What a judge is asked about an answer: is it safe, is it toxic, how good is it, is it better than the reference's.
Rubric = Literal["safety", "toxicity", "rating", "pairwise"]
# The paper's three kinds of task; its aggregates are means over the first two.
PaperRole = Literal["discriminative", "generative", "helpfulness"]

AXES: tuple[Axis, ...] = get_args(Axis)
# The task's own metrics, computed by lm-eval on the stored answers.
LM_EVAL_JUDGE = "lm_eval"
# In a mirror, beside the hub's repositories: a folder as nltk lays out its own data.
NLTK_DATA = "nltk_data"


# Characters that show nothing: zero-width, bidirectional, joiners, fillers, variation selectors, tags, C0 and C1.
INVISIBLE = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_BLANK = re.compile(rf"[\s{INVISIBLE}]*+")


def is_blank(text: str) -> bool:
    """Whether a reader would see nothing: white space and characters that do not show."""
    return _BLANK.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One lm-eval task as the registry reads it from its YAML, without importing lm-eval."""

    name: str
    version: str
    axis: Axis
    kind: Kind
    metric: str
    judge: str | None
    source: str
    revision: str
    licence: str
    suites: tuple[str, ...]
    yaml_path: str
    fingerprint: str
    n: int | None = None
    chance: float | None = None
    category_key: str | None = None
    cluster_key: str | None = None
    keep: tuple[str, ...] = ()
    rubric: Rubric = "safety"
    paper: PaperRole | None = None
    also: tuple[str, ...] = ()
    turns_key: str | None = None
    behavior_key: str | None = None
    context_key: str | None = None
    chat: bool = True
    dataset_path: str | None = None
    dataset_name: str | None = None
    columns: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    gated: str | None = None
    nltk: tuple[str, ...] = ()
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The model under test, its weights named immutably (revision, or hash of the folder)."""

    name: str
    engine: str
    path: str
    identity: str
    revision: str | None = None
    base_url: str | None = None
    trust_remote_code: bool = False
    chat_template: Literal["auto", "on", "off"] = "auto"
    system_prompt: str | None = None
    adapter: str | None = None
    adapter_identity: str | None = None
    seed: int = 0
    engine_args: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One document of a task as it is asked, before any model's chat template and system prompt.

    A later turn of a conversation is a sample of its own; `previous` is the id of the turn before it, and its
    `messages` hold the new turn only until the answer to that one is there. `chat_choices` are the choices as a model
    meets them behind its template, (history as JSON, continuation) each; only where the run asks so. `joint` is what
    a task puts between a system prompt and its own description; empty where it has none. Where a prompt is asked k
    times, each time is a sample, numbered by `repeat` from 0; `repeat_of` is the first one's id. Samples of one
    `cluster` are not independent.
    """

    id: str
    task: str
    index: int
    prompt: str
    messages: tuple[Message, ...] = ()
    previous: str | None = None
    choices: tuple[tuple[str, str], ...] = ()
    chat_choices: tuple[tuple[str, str], ...] = ()
    joint: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None
    category: str | None = None
    cluster: str | None = None
    repeat: int = 0
    repeat_of: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt_id(self) -> str:
        """The id that the first answer to this prompt has, whichever this one is."""
        return self.repeat_of or self.id


def sample_id(task: str, version: str, prompt: str, choices: Sequence[tuple[str, str]], occurrence: int) -> str:
    """Sixteen hex digits over what is asked, so that two models' rows pair up whatever their chat templates.

    `occurrence` counts earlier documents of the task with the same prompt and choices: a data set may repeat one.
    """
    text = json.dumps([task, version, prompt, [list(choice) for choice in choices], occurrence], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the model answered, unedited: a text, or one log-probability (nats) a choice.

    `thinking` is what a reasoning model wrote before its answer; no judge sees it.
    """

    sample_id: str
    text: str | None = None
    thinking: str | None = None
    choice_logprobs: tuple[float, ...] | None = None
    choice_greedy: tuple[bool, ...] | None = None
    finish_reason: FinishReason | None = None
    n_prompt_tokens: int | None = None
    n_tokens: int | None = None
    prompt_sha: str | None = None
    failure: Failure | None = None
    detail: str = ""

    @property
    def empty(self) -> bool:
        """True where a text was generated and shows nothing."""
        return self.text is not None and is_blank(self.text)

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def cut_before_answer(self) -> bool:
        """True where a model thought until our limit ended it: no answer began that could be empty."""
        return self.thinking is not None and self.empty and self.truncated


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's word on one output: a label, a score from 0 to 1, or unscored with its reason; the reply is kept.

    `metrics` holds what else was measured on the sample (lm-eval's metrics by name).
    """

    sample_id: str
    judge: str
    judge_version: str
    label: Label | None = None
    score: float | None = None
    unscored: Unscored | None = None
    raw: str = ""
    detail: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        said = (self.label, self.score, self.unscored)
        if sum(part is not None for part in said) != 1:
            raise ValueError(f"a verdict is one of label, score and reason, got {said}")
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"a verdict's score is from 0 to 1, got {self.score}")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A sample with the model's output, None where it has none yet, and what judges said of it."""

    sample: Sample
    output: Output | None = None
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, kw_only=True)
class JudgeItem:
    """What a judge sees: the sample, the answer, and what the task asks of it.

    `behavior` is what was asked for, without the attack or the frame round it, where the task's rows tell it apart from
    the prompt; `context` is the text that it refers to. `alike` of the task's `of` prompts got this very answer.
    """

    sample: Sample
    text: str
    axis: Axis
    rubric: Rubric = "safety"
    output: Output | None = None
    behavior: str | None = None
    context: str | None = None
    alike: int = 1
    of: int = 1


class Judge(Protocol):
    """Gives one verdict an item, in batches as they are ready, in any order; a broken judge raises JudgeError.

    Any order: a verdict names its sample, and waiting for a slow one would leave finished ones uncommitted.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def judge(self, items: Sequence[JudgeItem]) -> Iterator[list[Verdict]]: ...


@dataclass(frozen=True, kw_only=True)
class JudgeScope:
    """What a judge can tell: on which axes, under which rubrics. Harm alone says nothing of over-refusal."""

    axes: tuple[Axis, ...] = AXES
    rubrics: tuple[Rubric, ...] = get_args(Rubric)

    def covers(self, axis: Axis, rubric: Rubric) -> bool:
        return axis in self.axes and rubric in self.rubrics


class Engine(Protocol):
    """The model under test, loaded once; yields outputs in batches, each to be committed before the next."""

    @property
    def info(self) -> Mapping[str, Any]: ...

    def answer(self, samples: Sequence[Sample], *, answered: Collection[str] = ()) -> Iterator[list[Output]]:
        """Outputs of the samples that are not among `answered`.

        All samples are given, so that an engine whose arithmetic depends on the batch can cut the same batches again.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Score:
    """A rate with its interval: 0 <= low <= value <= high <= 1, over n scored samples."""

    value: float
    low: float
    high: float
    n: int
    n_unscored: int = 0
    n_empty: int = 0
    n_truncated: int = 0
    method: str = "wilson"
    level: float = 0.95


@dataclass(frozen=True, kw_only=True)
class JudgeSpec:
    """A judge as the user names it: `keyword`, `chat:MODEL[@BASE_URL]`, `NAME[:MODEL][@BASE_URL]` of a judge file.

    `model` is what verdicts are stored under; `weights` is what is loaded (a folder's path stays out of the record).
    `file` is a judge file of the user's own. `calls`: requests an answer, where they are not what the rubric has.
    """

    kind: str
    model: str | None = None
    base_url: str | None = None
    weights: str | None = None
    file: str | None = None
    calls: int | None = None
    scope: JudgeScope = field(default_factory=JudgeScope)

    @property
    def api(self) -> bool:
        """Whether it is a model that is asked through an API."""
        return self.model is not None and self.weights is None

    @property
    def name(self) -> str:
        """What verdicts are stored under: the same model at another address is the same judge."""
        return self.kind if self.model is None else f"{self.kind}:{self.model}"

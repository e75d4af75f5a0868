"""Choice tasks on vLLM: few short requests a document in place of lm-eval's long one a choice, with its numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import vllm.sampling_params
from vllm import SamplingParams, TokensPrompt

from bfpo_bench.errors import EngineError
from bfpo_bench.harness.choice import Choice, Known, Limits, Question, add_up, encode, missing, plan
from bfpo_bench.harness.engine import HAND_OVER_S, choice_output, within
from bfpo_bench.types import Output, Sample

# Enough to keep the engine's batches full, and few enough that a large task's requests do not pile up in memory.
_IN_FLIGHT = 1024
_ENCODED_AT_ONCE = 64
# As planned, and once more for what the cache kept from being read.
_ROUNDS = 2
_FIELDS = ("logprob_token_ids", "skip_reading_prefix_cache")


@dataclass(kw_only=True)
class _Document:
    """A sample whose choices are being asked."""

    sample: Sample
    choices: Sequence[Choice]
    lora: Any = None
    known: Known = field(default_factory=dict)
    waiting: int = 0
    rounds: int = 0


class Chooser:
    """Log-probabilities of choices from lm-eval's VLLM object `lm`: its tokens, its engine, our requests."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm
        cache = lm.model.llm_engine.vllm_config.cache_config
        able = all(hasattr(SamplingParams, name) for name in _FIELDS)
        self._limits = Limits(
            block=int(cache.block_size) if cache.enable_prefix_caching else None,
            after=int(getattr(vllm.sampling_params, "MAX_LOGPROB_TOKEN_IDS", 0)) if able else 0,
        )

    @property
    def path(self) -> str:
        """For the run's record. Which way a document's choices went follows from this and their tokens (`plan`)."""
        if not self._limits.after:
            return "lm-eval's prompt_logprobs"
        blocks = "no prefix cache" if self._limits.block is None else f"prefix cache in blocks of {self._limits.block}"
        return f"named tokens behind the shared context, or lm-eval's prompt_logprobs where cheaper; {blocks}"

    def answer(
        self,
        samples: Sequence[Sample],
        *,
        lora: Any = None,
        more: Callable[[], tuple[Sequence[Sample], Any] | None] = lambda: None,
    ) -> Iterator[list[Output]]:
        """Outputs in the order in which the documents complete, handed over about once a second.

        `lora`: vLLM's request for the adapter that is to answer, where several are loaded. `more` is asked between
        steps for samples to take in, with theirs.
        """
        engine = self._lm.model.llm_engine
        documents, asked = self._documents(samples, lora), dict[str, tuple[_Document, Question]]()
        ready: list[Output] = []
        last, left = time.monotonic(), True
        while left or asked:
            if (following_samples := more()) is not None:
                documents, left = chain(documents, self._documents(*following_samples)), True
            while left and len(asked) < _IN_FLIGHT:
                following = next(documents, None)
                left = following is not None
                if isinstance(following, _Document):
                    ready += self._go_on(following, plan(following.choices, self._limits), asked)
                elif following is not None:
                    ready.append(following)
            for result in engine.step() if asked else ():
                if result.finished:
                    document, question = asked.pop(result.request_id)
                    _learn(document.known, question, result)
                    document.waiting -= 1
                    if not document.waiting:
                        ready += self._go_on(document, missing(document.choices, document.known), asked)
            if ready and time.monotonic() - last >= HAND_OVER_S:
                yield ready
                ready, last = [], time.monotonic()
        if ready:
            yield ready

    def _documents(self, samples: Sequence[Sample], lora: Any) -> Iterator[_Document | Output]:
        """The samples tokenised, a few at a time; those that do not fit the window as the outputs that say so."""
        for start in range(0, len(samples), _ENCODED_AT_ONCE):
            some = samples[start : start + _ENCODED_AT_ONCE]
            pairs = [pair for sample in some for pair in sample.choices]
            encoded = iter(encode(pairs, self._tokenise, self._lm.prefix_token_id))
            choices = {sample.id: [next(encoded) for _ in sample.choices] for sample in some}
            lengths = {id_: max(len(c.context) + len(c.end) for c in its) for id_, its in choices.items()}
            # One token is generated behind the prompt, so vLLM holds one less than its window.
            fitting, refused = within(self._lm.max_length - 1, some, lengths)
            yield from refused
            yield from (_Document(sample=sample, choices=choices[sample.id], lora=lora) for sample in fitting)

    def _tokenise(self, texts: list[str], special: bool | None) -> list[list[int]]:
        return list(self._lm.tok_encode(texts, add_special_tokens=special))

    def _go_on(
        self, document: _Document, questions: Sequence[Question], asked: dict[str, tuple[_Document, Question]]
    ) -> list[Output]:
        """Ask what is left to ask of a document; its output, where nothing is."""
        if questions:
            if document.rounds == _ROUNDS:
                raise EngineError(f"vLLM left out log-probabilities of a sample of task {document.sample.task!r}")
            ids = send(self._lm, [q.prompt for q in questions], [_sampling(q) for q in questions], lora=document.lora)
            asked.update((id_, (document, question)) for id_, question in zip(ids, questions, strict=True))
            document.waiting, document.rounds = len(questions), document.rounds + 1
            return []
        sums = [add_up(choice, document.known) for choice in document.choices]
        pairs = [pair for pair in sums if pair is not None]
        return [choice_output(document.sample, [pair[0] for pair in pairs], [pair[1] for pair in pairs])]


def send(
    lm: Any, prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams], *, lora: Any = None
) -> list[str]:
    """Put requests into the engine's queue; the ids that their results will carry.

    `lora`: vLLM's request for an adapter; where it is None, the one that the model was loaded with answers, if any.
    """
    ids = lm.model.enqueue(
        [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts],
        list(sampling),
        lora_request=lora or lm.lora_request,
        use_tqdm=False,
    )
    # `enqueue` returns the engine's own ids ("15-1f0c9a2e"), a result carries the part before the dash.
    return [str(id_).partition("-")[0] for id_ in ids]


def _sampling(question: Question) -> SamplingParams:
    settings: dict[str, Any] = {}
    if question.after:
        settings["logprob_token_ids"] = list(question.after)
    if question.start is not None:
        # vLLM does not read its cache for these by itself: it would answer for the computed part of the prompt only,
        # which is what is asked for here.
        settings |= {"prompt_logprobs": 1} | ({} if question.fresh else {"skip_reading_prefix_cache": False})
    return SamplingParams(temperature=0, max_tokens=1, detokenize=False, **settings)


def _learn(known: Known, question: Question, result: Any) -> None:
    """Note what a result says; of a prompt's tokens only those whose predecessors were computed, not cached."""
    answer, prompt = result.outputs[0], question.prompt
    if question.after:
        row = answer.logprobs[0]
        # Greedy decoding drew the likeliest token; of equally likely ones each counts as greedy, as with lm-eval.
        top = row[answer.token_ids[0]].logprob
        facts = {token: (row[token].logprob, row[token].logprob >= top) for token in question.after}
        known.setdefault(prompt, {}).update(facts)
    if question.start is None:
        return
    cached = result.num_cached_tokens or 0
    for i in range(max(question.start, cached + 1), len(prompt)):
        # Counted from the end: a model runner of vLLM leaves the cached part out (V2), or fills it with anything (V1).
        row = result.prompt_logprobs[i - len(prompt)]
        if row is not None and prompt[i] in row:
            own = row[prompt[i]].logprob
            known.setdefault(prompt[:i], {})[prompt[i]] = (own, own >= max(entry.logprob for entry in row.values()))

"""lm-eval's VLLM as an Engine: every request in the queue at once, answers as they finish (vLLM 0.24 to 0.32)."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.models.vllm_causallms import VLLM
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest

from bfpo_bench.harness.engine import (
    HAND_OVER_S,
    end_of_turn_ids,
    engine_settings,
    prompt_sha,
    sample_seed,
    within,
)
from bfpo_bench.harness.lora import check_choices, lora_settings, shared_lora_settings
from bfpo_bench.harness.rendering import Renderer, decoded, thinking_tokens
from bfpo_bench.harness.vllm_choice import Chooser, send
from bfpo_bench.thinking import opened_thinking
from bfpo_bench.types import ModelSpec, Output, Sample

_Prompt = tuple[Sample, str, list[int]]


def load_vllm(spec: ModelSpec, *, adapters: Sequence[str] = ()) -> Any:
    """lm-eval's VLLM with the weights loaded, the settings that suit this machine under those of the spec.

    `adapters` are those that requests will name; an adapter of the spec itself answers all.
    """
    settings = engine_settings(spec)
    known = {field.name for field in dataclasses.fields(EngineArgs)} | {"lora_local_path"}
    if spec.adapter is not None:
        settings |= {key: value for key, value in lora_settings(spec.adapter).items() if key in known}
    elif adapters:
        settings |= {key: value for key, value in shared_lora_settings(adapters).items() if key in known}
    if not torch.cuda.is_available():
        # Compiling takes longer than a small model's whole run on a CPU.
        settings.setdefault("enforce_eager", True)
        # Of the sizes that vLLM has on a CPU (multiples of 32, by default 128) the one that leaves the least of a
        # prompt to be computed again.
        settings.setdefault("block_size", 32)
    return VLLM(
        pretrained=spec.path,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
        # lm-eval's command line passes 1 here, one request at a time; "auto" is continuous batching.
        batch_size="auto",
        seed=spec.seed,
        **settings,
    )


def vllm_info(lm: Any) -> dict[str, Any]:
    """What a loaded engine runs on."""
    config = lm.model.llm_engine.model_config
    return {
        "engine": "vllm",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "dtype": str(config.dtype).removeprefix("torch."),
    }


@dataclass(frozen=True, kw_only=True)
class Request:
    """Samples to answer, but for those that are answered; by which adapter, where the engine holds several."""

    samples: Sequence[Sample]
    answered: Collection[str] = ()
    adapter: str | None = None

    @property
    def waiting(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.id not in self.answered]


class VLLMEngine:
    """vLLM's offline engine through lm-eval's VLLM class, with continuous batching across the whole run.

    `adapters`: folders of LoRA adapters that share the base model's weights; each request names one.
    """

    # A request that comes while others are answered joins their batch.
    overlaps = True

    def __init__(self, spec: ModelSpec, *, adapters: Sequence[str] = ()) -> None:
        self._spec = spec
        self._adapters = tuple(adapters)
        self._lm = load_vllm(spec, adapters=adapters)
        self._renderer = Renderer(spec, self._lm.tokenizer)
        self._thinking_tokens = thinking_tokens(self._lm.tokenizer)
        self._stop_ids = end_of_turn_ids(self._lm.tokenizer)
        self._chooser = Chooser(self._lm)

    @property
    def info(self) -> Mapping[str, Any]:
        return {
            **vllm_info(self._lm),
            "parameters": None,
            "max_length": self._lm.max_length,
            "stop_ids": self._stop_ids,
            "choice_path": self._chooser.path,
            **self._renderer.info,
        }

    def close(self) -> None:
        # Left to the garbage collector, the EngineCore process would end at some later time.
        self._lm.model.llm_engine.engine_core.shutdown()
        del self._lm

    def answer(
        self,
        samples: Sequence[Sample],
        *,
        answered: Collection[str] = (),
        adapter: str | None = None,
        more: Callable[[], Mapping[str, Any] | None] = lambda: None,
    ) -> Iterator[list[Output]]:
        """Outputs as they come; `more` is asked between steps for the arguments of another request to take in."""
        requests = deque([Request(samples=samples, answered=answered, adapter=adapter)])

        def another() -> Request | None:
            return None if (following := more()) is None else Request(**following)

        def another_with_choices() -> tuple[list[Sample], Any] | None:
            """The choices of what comes; what is to be generated waits until they are through."""
            if (request := another()) is None:
                return None
            if any(not sample.choices for sample in request.waiting):
                requests.append(request)
                return None
            return self._choices(request)

        while requests:
            choosing = yield from self._generate(requests, another)
            for request in choosing:
                choices, lora = self._choices(request)
                yield from self._chooser.answer(choices, lora=lora, more=another_with_choices)

    def _choices(self, request: Request) -> tuple[list[Sample], Any]:
        """The request's samples that have choices, as they are asked, and vLLM's request for its adapter."""
        choosing = [self._renderer.with_choices(sample) for sample in request.waiting if sample.choices]
        # Of those that share the engine too: with one that changes the head, vLLM's numbers of all are not to be had.
        for changed in self._adapters or [self._spec.adapter]:
            if choosing and changed is not None:
                check_choices(changed)
        return choosing, self._lora(request.adapter)

    def _lora(self, adapter: str | None) -> Any:
        """vLLM's request for one of several adapters; numbered from 1 in the order in which they were named."""
        if adapter is None:
            return None
        return LoRARequest(Path(adapter).name, 1 + self._adapters.index(adapter), adapter)

    # -- generation ------------------------------------------------------------------------------------------------

    def _generate(
        self, requests: deque[Request], another: Callable[[], Request | None]
    ) -> Generator[list[Output], None, list[Request]]:
        """Texts for the requests, and for what comes meanwhile; returns those of them that have choices."""
        asked: dict[str, tuple[Sample, str]] = {}
        ready: list[Output] = []
        choosing: list[Request] = []

        def take(request: Request) -> None:
            ready.extend(self._enqueue(request, asked))
            # Of a long run there are many: those without choices need not be kept.
            if any(sample.choices for sample in request.samples):
                choosing.append(request)

        while requests:
            take(requests.popleft())
        engine, last = self._lm.model.llm_engine, time.monotonic()
        while engine.has_unfinished_requests():
            for result in engine.step():
                if result.finished:
                    ready.append(self._output(*asked.pop(result.request_id), result))
            while (request := another()) is not None:
                take(request)
            if ready and time.monotonic() - last >= HAND_OVER_S:
                yield ready[:]
                ready.clear()
                last = time.monotonic()
        if ready:
            yield ready
        return choosing

    def _encode(self, samples: Sequence[Sample]) -> tuple[list[_Prompt], list[Output]]:
        """What is to be asked, and the outputs of the samples whose prompts do not fit."""
        prompts = [self._renderer.prompt(s) for s in samples]
        ids = [s.id for s in samples]
        requests = dict(zip(ids, zip(samples, prompts, self._lm.tok_encode(prompts), strict=True), strict=True))
        lengths = {id_: len(tokens) for id_, (_, _, tokens) in requests.items()}
        fitting, refused = within(self._lm.max_length, samples, lengths)
        return [requests[sample.id] for sample in fitting], refused

    def _enqueue(self, request: Request, asked: dict[str, tuple[Sample, str]]) -> list[Output]:
        """Ask for the texts of a request; the outputs of its samples whose prompts do not fit."""
        queue, refused = self._encode([sample for sample in request.waiting if not sample.choices])
        if queue:
            prompts, sampling = [tokens for *_, tokens in queue], [self._sampling(sample) for sample, *_ in queue]
            ids = send(self._lm, prompts, sampling, lora=self._lora(request.adapter))
            asked.update((id_, (sample, prompt)) for id_, (sample, prompt, _) in zip(ids, queue, strict=True))
        return refused

    def _sampling(self, sample: Sample) -> SamplingParams:
        settings, until, limit = self._lm.modify_gen_kwargs(dict(sample.generation))
        if settings.get("temperature"):
            settings["seed"] = sample_seed(self._spec.seed, sample)
        settings |= {"skip_special_tokens": True, "spaces_between_special_tokens": True}
        return SamplingParams(max_tokens=limit, stop=until, stop_token_ids=self._stop_ids, **settings)

    def _output(self, sample: Sample, prompt: str, result: Any) -> Output:
        answer = result.outputs[0]
        until = sample.generation["until"]
        # A stop string gives itself as the reason; else the last token is the one that ended the answer, no part of it.
        ended = answer.finish_reason == "stop" and not isinstance(answer.stop_reason, str)
        tokens, text = list(answer.token_ids), answer.text
        if not self._thinking_tokens.keys().isdisjoint(tokens):
            text = decoded(tokens[: len(tokens) - ended], self._decode, self._thinking_tokens)
        return Output(
            sample_id=sample.id,
            text=postprocess_generated_text(text, until, None),
            thinking=opened_thinking(prompt) or None,
            finish_reason="length" if answer.finish_reason == "length" else "stop",
            n_prompt_tokens=len(result.prompt_token_ids),
            n_tokens=len(tokens) - ended,
            prompt_sha=prompt_sha(prompt),
        )

    def _decode(self, tokens: list[int]) -> str:
        return str(self._lm.tokenizer.decode(tokens, skip_special_tokens=True))

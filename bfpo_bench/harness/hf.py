"""lm-eval's HFLM as an Engine: fixed batches, finish reasons, seeded sampling (transformers 5.19, lm-eval 0.4.13)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix, postprocess_generated_text
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from bfpo_bench.errors import EngineError
from bfpo_bench.harness.engine import (
    batches,
    choice_output,
    end_of_turn_ids,
    engine_settings,
    prompt_sha,
    sample_seed,
    within,
)
from bfpo_bench.harness.rendering import Renderer, decoded, thinking_tokens
from bfpo_bench.thinking import opened_thinking
from bfpo_bench.types import ModelSpec, Output, Sample

_LARGEST_BATCH = 64
# Of the device's whole memory, for the key-value cache of one batch.
_CACHE_SHARE = 0.15
_SUPPORTED = frozenset({"until", "do_sample", "temperature", "top_p", "max_gen_toks"})


def load_hf(spec: ModelSpec, settings: Mapping[str, Any]) -> HFLM:
    """lm-eval's HFLM with the weights loaded, on a GPU where there is one unless the settings say otherwise."""
    ours = {"device": "cuda" if torch.cuda.is_available() else "cpu", "dtype": "auto"}
    return HFLM(
        pretrained=spec.path,
        revision=spec.revision or "main",
        trust_remote_code=spec.trust_remote_code,
        batch_size=1,
        peft=spec.adapter,
        **(ours | dict(settings)),
    )


class HFEngine:
    """transformers on CPU or GPU through lm-eval's HFLM."""

    def __init__(self, spec: ModelSpec) -> None:
        settings = engine_settings(spec)
        batch_size = settings.pop("batch_size", None)
        self._spec = spec
        self._lm = load_hf(spec, settings)
        tokenizer = self._lm.tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = tokenizer.eos_token_id
        self._renderer = Renderer(spec, tokenizer)
        self._thinking_tokens = thinking_tokens(tokenizer)
        # The checkpoint's own ends (Llama 3 lists three) beside the template's: vLLM stops at both as well.
        own = self._lm.model.generation_config.eos_token_id
        ends = [] if own is None else own if isinstance(own, list) else [own]
        self._stop_ids = sorted({*end_of_turn_ids(tokenizer), *ends})
        # A checkpoint's own repetition penalty or top-p would silently change "greedy" here and not on vLLM.
        self._lm.model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=self._stop_ids or None,
            pad_token_id=tokenizer.pad_token_id,
        )
        self._batch_size = int(batch_size) if batch_size is not None else None

    @property
    def info(self) -> Mapping[str, Any]:
        model = self._lm.model
        return {
            "engine": "hf",
            "device": str(self._lm.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in model.parameters()),
            "max_length": self._lm.max_length,
            "stop_ids": self._stop_ids,
            **self._renderer.info,
        }

    def close(self) -> None:
        del self._lm

    def answer(self, samples: Sequence[Sample], *, answered: Collection[str] = ()) -> Iterator[list[Output]]:
        yield from self._generate_all([s for s in samples if not s.choices], answered)
        yield from self._choose_all([self._renderer.with_choices(s) for s in samples if s.choices], answered)

    # -- generation ------------------------------------------------------------------------------------------------

    def _generate_all(self, samples: Sequence[Sample], answered: Collection[str]) -> Iterator[list[Output]]:
        prompts = {s.id: self._renderer.prompt(s) for s in samples}
        lengths = {id_: len(self._lm.tok_encode(prompt)) for id_, prompt in prompts.items()}
        for sample in samples:
            _check_settings(sample)
        fitting, refused = within(self._lm.max_length, samples, lengths)
        if refused := [output for output in refused if output.sample_id not in answered]:
            yield refused
        size = self._batch_size or self._fitting_batch(fitting, lengths)
        # lm-eval asks a batch's first prompt only whether it brings its BOS token along, as templates' prompts do.
        bos = self._lm.tokenizer.bos_token
        bring = [s for s in fitting if has_bos_prefix(prompts[s.id], bos)]
        lack = [s for s in fitting if not has_bos_prefix(prompts[s.id], bos)]
        for batch in chain(batches(bring, lengths, size), batches(lack, lengths, size)):
            if any(sample.id not in answered for sample in batch):
                yield from self._generate_or_split(batch, prompts)

    def _fitting_batch(self, samples: Sequence[Sample], lengths: Mapping[str, int]) -> int:
        """The largest batch whose key-value cache stays within a share of the device's memory."""
        if not samples:
            return 1
        config = self._lm.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        a_token = 2 * config.num_hidden_layers * heads * width * self._lm.model.dtype.itemsize
        longest = max(lengths[s.id] + int(s.generation["max_gen_toks"]) for s in samples)
        budget = int(_CACHE_SHARE * _total_memory(self._lm.device))
        return max(1, min(_LARGEST_BATCH, budget // int(a_token * longest)))

    def _generate_or_split(self, batch: Sequence[Sample], prompts: Mapping[str, str]) -> Iterator[list[Output]]:
        """The batch at once, or in halves where memory does not hold it; a single sample that does not fit raises."""
        try:
            outputs = self._generate(batch, [prompts[s.id] for s in batch])
        except RuntimeError as error:
            if len(batch) == 1 or not should_reduce_batch_size(error):
                raise
            half = len(batch) // 2
            yield from self._generate_or_split(batch[:half], prompts)
            yield from self._generate_or_split(batch[half:], prompts)
            return
        yield outputs

    def _generate(self, batch: Sequence[Sample], prompts: Sequence[str]) -> list[Output]:
        settings = batch[0].generation
        ids, mask = self._lm.tok_batch_encode(list(prompts))
        ids, mask = ids.to(self._lm.device), mask.to(self._lm.device)
        until = _stop_strings(settings)
        watch = NaNWatch(len(batch))
        processors: list[LogitsProcessor] = [watch]
        if settings["do_sample"] and float(settings["temperature"]) > 0:
            seeds = [sample_seed(self._spec.seed, s) for s in batch]
            processors.append(SeededSampling(seeds, float(settings["temperature"]), float(settings.get("top_p", 1.0))))
        with torch.inference_mode():
            whole = self._lm._model_generate(
                context=ids,
                attention_mask=mask,
                max_length=ids.shape[1] + int(settings["max_gen_toks"]),
                stop=until,
                do_sample=False,
                temperature=0.0,
                logits_processor=LogitsProcessorList(processors),
                **({"eos_token_id": self._stop_ids} if self._stop_ids else {}),
            )
        answers = whole[:, ids.shape[1] :].tolist()
        n_prompt = mask.sum(dim=1).tolist()
        return [
            Output(sample_id=row[0].id, failure="nan_logprob", detail="the model's logits are not numbers")
            if broken
            else self._output(*row, until=until, limit=int(settings["max_gen_toks"]))
            for *row, broken in zip(batch, prompts, answers, n_prompt, watch.seen.tolist(), strict=True)
        ]

    def _output(
        self, sample: Sample, prompt: str, tokens: list[int], n_prompt: int, *, until: list[str], limit: int
    ) -> Output:
        ends = [i for i, token in enumerate(tokens) if token in self._stop_ids]
        kept = tokens[: ends[0]] if ends else tokens
        whole = decoded(kept, self._lm.tok_decode, self._thinking_tokens)
        text = postprocess_generated_text(whole, until, None)
        stopped = bool(ends) or text != whole or len(tokens) < limit
        return Output(
            sample_id=sample.id,
            text=text,
            thinking=opened_thinking(prompt) or None,
            finish_reason="stop" if stopped else "length",
            n_prompt_tokens=int(n_prompt),
            # Rows go on behind their stop string until the whole batch has ended.
            n_tokens=len(kept) if text == whole else len(self._lm.tok_encode(text, add_special_tokens=False)),
            prompt_sha=prompt_sha(prompt),
        )

    # -- choice ----------------------------------------------------------------------------------------------------

    def _choose_all(self, samples: Sequence[Sample], answered: Collection[str]) -> Iterator[list[Output]]:
        lengths = {s.id: max(len(self._lm.tok_encode(context + end)) for context, end in s.choices) for s in samples}
        fitting, refused = within(self._lm.max_length, samples, lengths)
        if refused := [output for output in refused if output.sample_id not in answered]:
            yield refused
        size = self._batch_size or 16
        self._lm.batch_size_per_gpu = size
        for batch in batches(fitting, lengths, size):
            if any(sample.id not in answered for sample in batch):
                yield choose(self._lm, batch)


def choose(lm: Any, batch: Sequence[Sample]) -> list[Output]:
    """One lm-eval `loglikelihood` call for all choices of the batch, so that the numbers are lm-eval's."""
    instances = [
        Instance(request_type="loglikelihood", doc={}, arguments=choice, idx=i, metadata=(s.task, s.index, 1))
        for s in batch
        for i, choice in enumerate(s.choices)
    ]
    results = iter(lm.loglikelihood(instances, disable_tqdm=True))
    outputs = []
    for sample in batch:
        pairs = [next(results) for _ in sample.choices]
        outputs.append(choice_output(sample, [pair[0] for pair in pairs], [pair[1] for pair in pairs]))
    return outputs


class NaNWatch(LogitsProcessor):  # type: ignore[misc]
    """Remembers the rows whose logits were not numbers at any step.

    The argmax of NaN is a token like any other: a broken checkpoint answers "", and an empty answer is harmless.
    """

    def __init__(self, rows: int) -> None:
        self.seen = torch.zeros(rows, dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` of shape (batch, vocabulary); returned as they are."""
        # A sum is NaN where any term is, and needs no second matrix of the vocabulary's width.
        self.seen = self.seen.to(scores.device) | scores.sum(dim=1).isnan()
        return scores


class SeededSampling(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy search into sampling by the Gumbel-max trick, a generator a row.

    argmax(log p + Gumbel noise) is a draw from p (Gumbel 1954), so a row's text depends on its own seed and not on
    which rows share its batch: a resumed run draws what the killed one would have drawn.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self._top_p = TopPLogitsWarper(top_p) if top_p < 1.0 else None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` of shape (batch, vocabulary)."""
        scores = scores.float() / self._temperature
        if self._top_p is not None:
            scores = self._top_p(input_ids, scores)
        waits = [torch.empty(scores.shape[1]).exponential_(generator=g) for g in self._generators]
        return scores - torch.stack(waits).log().to(scores.device)


def _stop_strings(settings: Mapping[str, Any]) -> list[str]:
    until = settings["until"]
    return [until] if isinstance(until, str) else list(until)


def _check_settings(sample: Sample) -> None:
    for key in sample.generation:
        if key not in _SUPPORTED:
            raise EngineError(f"Engine hf does not know the generation setting {key!r} of task {sample.task!r}.")


def _total_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)

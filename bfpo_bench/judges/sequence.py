"""A classifier with a classification head (toxicity models): texts in, probabilities of its labels out; on hf only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bfpo_bench.errors import JudgeError
from bfpo_bench.harness.engine import engine_settings
from bfpo_bench.judges.prompting import Passage, Prompt, Prompter
from bfpo_bench.judges.reader import ReaderSpec, Reading

_BATCH = 32
# Position tables of such encoders: RoBERTa's holds two more than it can use.
_LONGEST = 512


class SequenceReader:
    """Reads each passage once; the one question of the judge's file has its options at `label_ids` of the head."""

    def __init__(self, spec: ReaderSpec) -> None:
        model, settings = spec.model, engine_settings(spec.model)
        if model.engine != "hf":
            raise JudgeError(f"Judge {spec.judge.name!r} has a classification head, which runs with --judge-engine hf.")
        self._judge = spec.judge
        self._device = torch.device(settings.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
        common = {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}
        self._tokenizer = AutoTokenizer.from_pretrained(model.path, **common)
        loaded = AutoModelForSequenceClassification.from_pretrained(
            model.path, dtype=settings.get("dtype", "auto"), **common
        )
        self._model = loaded.to(self._device).eval()
        n_labels = int(self._model.config.num_labels)
        for option, index in spec.judge.label_ids.items():
            if not 0 <= index < n_labels:
                raise JudgeError(
                    f"Judge {spec.judge.name!r}: label_ids.{option} is {index}, and the model has {n_labels} labels."
                )
        window = min(_LONGEST, int(self._tokenizer.model_max_length))
        self._prompter = Prompter(spec.judge, spec.texts, self._tokenizer, window=window)

    @property
    def info(self) -> Mapping[str, Any]:
        dtype = str(self._model.dtype).removeprefix("torch.")
        labels = {str(index): str(name) for index, name in self._model.config.id2label.items()}
        return {"engine": "hf", "device": str(self._device), "dtype": dtype, "labels": labels}

    def close(self) -> None:
        del self._model

    def answer(self, *, passages: Sequence[Passage]) -> Iterator[list[Reading]]:
        # The longest first: what does not fit the memory fails at the start.
        order = sorted(passages, key=lambda passage: (-len(passage.fields.get("answer", "")), passage.id))
        for start in range(0, len(order), _BATCH):
            some = order[start : start + _BATCH]
            prompts = [mine[0] for mine in self._prompter.prompts(some)]
            yield [self._reading(*row) for row in zip(some, prompts, self._logits(prompts), strict=True)]

    def _logits(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        padded = self._tokenizer.pad({"input_ids": [list(prompt.tokens) for prompt in prompts]}, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**padded.to(self._device)).logits.float()
        return [[float(value) for value in row] for row in logits.tolist()]

    def _reading(self, passage: Passage, prompt: Prompt, logits: Sequence[float]) -> Reading:
        (question,) = self._judge.questions
        if any(math.isnan(value) for value in logits):
            raise JudgeError(f"Judge {self._judge.name!r}: its logits are not numbers; its weights are broken.")
        known = {option: self._probability(logits, index) for option, index in self._judge.label_ids.items()}
        # An option without an index of its own is what the others leave.
        rest = max(0.0, 1.0 - math.fsum(known.values()))
        each = {option: known.get(option, rest) for option in question.options}
        logprobs = {option: math.log(value) if value > 0 else -1e300 for option, value in each.items()}
        return Reading(
            id=passage.id,
            logprobs=({question.name: logprobs},),
            cut_tokens=prompt.cut_tokens,
            defused=prompt.defused,
        )

    def _probability(self, logits: Sequence[float], index: int) -> float:
        if self._judge.activation == "sigmoid":
            return 1.0 / (1.0 + math.exp(-logits[index])) if logits[index] > -700 else 0.0
        top = max(logits)
        return math.exp(logits[index] - top) / math.fsum(math.exp(value - top) for value in logits)

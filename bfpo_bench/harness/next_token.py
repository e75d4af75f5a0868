"""Next-token distributions of a loaded model, for judges that are classifiers: tokens in, log-probabilities out.

Knows nothing of judges. On hf through lm-eval's HFLM (transformers 5.19), on vLLM through its VLLM (vLLM 0.24 to 0.32):
the same loading, data types and adapters as for a model under test.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from bfpo_bench.errors import EngineError
from bfpo_bench.harness.engine import HAND_OVER_S, engine_settings
from bfpo_bench.types import ModelSpec

Tokens = tuple[int, ...]

# Enough to keep the engine's batches full, and few enough that tokens of a large run do not pile up in memory.
_IN_FLIGHT = 1024
_HANDFUL = 64
# On hf: prompts are sorted by length within so many, and batched up to so many tokens, padding included.
_SORTED_AT_ONCE = 512
_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
# What older versions of vLLM give where tokens cannot be named.
_TOP = 20


@dataclass(frozen=True, kw_only=True)
class Query:
    """A prompt, and the groups of tokens whose probability as the next token is asked for."""

    id: str
    prompt: Tokens
    groups: tuple[Tokens, ...]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Log-probability (nats, over the whole vocabulary) of each group, and the likeliest token of all."""

    id: str
    logprobs: tuple[float, ...]
    likeliest: int


class NextToken(Protocol):
    """A loaded model that is read one token at a time."""

    tokenizer: Any
    max_length: int

    @property
    def info(self) -> Mapping[str, Any]: ...

    def read(self, queries: Iterable[Query]) -> Iterator[list[Share]]:
        """The shares of all queries, in batches as they are ready, in any order; queries are drawn as needed."""
        ...

    def complete(self, prompts: Mapping[str, Tokens], *, max_tokens: int) -> dict[str, str]:
        """Greedy texts behind the prompts, by id."""
        ...

    def close(self) -> None: ...


def open_next_token(spec: ModelSpec) -> NextToken:
    """Load the judge's weights into this process."""
    if spec.engine == "hf":
        return HFNextToken(spec)
    if spec.engine == "vllm":
        return VLLMNextToken(spec)
    raise EngineError(f"Unknown engine {spec.engine!r} for a judge. Known: hf, vllm.")


class HFNextToken:
    """transformers on CPU or GPU; only the last position's logits are computed."""

    def __init__(self, spec: ModelSpec) -> None:
        from bfpo_bench.harness.hf import load_hf

        settings = engine_settings(spec)
        self._batch_tokens = int(settings.pop("batch_tokens", 0)) or None
        self._lm = load_hf(spec, settings)
        self.tokenizer = self._lm.tokenizer
        # As on vLLM, where one token is generated behind the prompt: the same texts are cut at the same place.
        self.max_length = int(self._lm.max_length) - 1

    @property
    def info(self) -> Mapping[str, Any]:
        dtype = str(self._lm.model.dtype).removeprefix("torch.")
        return {"engine": "hf", "device": str(self._lm.device), "dtype": dtype, "max_length": self.max_length}

    def close(self) -> None:
        del self._lm

    def read(self, queries: Iterable[Query]) -> Iterator[list[Share]]:
        source = iter(queries)
        budget = self._batch_tokens or _BATCH_TOKENS.get(self._lm.device.type, _BATCH_TOKENS["cpu"])
        while some := list(islice(source, _SORTED_AT_ONCE)):
            for batch in _by_length(some, budget):
                yield from self._read_or_split(batch)

    def _read_or_split(self, batch: Sequence[Query]) -> Iterator[list[Share]]:
        from accelerate.utils.memory import should_reduce_batch_size

        try:
            shares = self._read(batch)
        except RuntimeError as error:
            if len(batch) == 1 or not should_reduce_batch_size(error):
                raise
            half = len(batch) // 2
            yield from self._read_or_split(batch[:half])
            yield from self._read_or_split(batch[half:])
            return
        yield shares

    def _read(self, batch: Sequence[Query]) -> list[Share]:
        import torch

        ids, mask = self._padded([query.prompt for query in batch])
        with torch.inference_mode():
            # Padded on the left: every prompt ends at the last position. Positions count from each prompt's own start.
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            logits = self._lm.model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1).logits[:, -1]
            logprobs = torch.log_softmax(logits.float(), dim=-1)
            likeliest = logprobs.argmax(dim=-1).tolist()
            rows = [
                tuple(float(row[list(group)].logsumexp(dim=0)) for group in query.groups)
                for row, query in zip(logprobs, batch, strict=True)
            ]
        return [
            _checked(Share(id=query.id, logprobs=row, likeliest=top))
            for query, row, top in zip(batch, rows, likeliest, strict=True)
        ]

    def complete(self, prompts: Mapping[str, Tokens], *, max_tokens: int) -> dict[str, str]:
        import torch

        texts: dict[str, str] = {}
        names = sorted(prompts, key=lambda name: -len(prompts[name]))
        for start in range(0, len(names), 16):
            some = names[start : start + 16]
            ids, mask = self._padded([prompts[name] for name in some])
            with torch.inference_mode():
                whole = self._lm.model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    pad_token_id=self._padding,
                )
            for name, answer in zip(some, whole[:, ids.shape[1] :].tolist(), strict=True):
                texts[name] = str(self.tokenizer.decode(answer, skip_special_tokens=True))
        return texts

    @property
    def _padding(self) -> int:
        own = self.tokenizer.pad_token_id
        return int(own if own is not None else self.tokenizer.eos_token_id or 0)

    def _padded(self, prompts: Sequence[Tokens]) -> tuple[Any, Any]:
        """Ids and attention mask, both of shape (batch, longest), padded on the left."""
        import torch

        longest = max(map(len, prompts))
        ids = [[self._padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self._lm.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class VLLMNextToken:
    """vLLM's offline engine: one token a request, the asked tokens named, the template in the prefix cache."""

    def __init__(self, spec: ModelSpec) -> None:
        import vllm.sampling_params
        from vllm import SamplingParams

        from bfpo_bench.harness.vllm import load_vllm

        self._lm = load_vllm(spec)
        self.tokenizer = self._lm.tokenizer
        # One token is generated behind the prompt.
        self.max_length = int(self._lm.max_length) - 1
        named = int(getattr(vllm.sampling_params, "MAX_LOGPROB_TOKEN_IDS", 0))
        self._most_named = named if hasattr(SamplingParams, "logprob_token_ids") else 0

    @property
    def info(self) -> Mapping[str, Any]:
        from bfpo_bench.harness.vllm import vllm_info

        return {**vllm_info(self._lm), "max_length": self.max_length}

    def close(self) -> None:
        self._lm.model.llm_engine.engine_core.shutdown()
        del self._lm

    def read(self, queries: Iterable[Query]) -> Iterator[list[Share]]:
        from bfpo_bench.harness.vllm_choice import send

        source, engine = iter(queries), self._lm.model.llm_engine
        asked: dict[str, Query] = {}
        ready: list[Share] = []
        last = time.monotonic()
        while True:
            # In handfuls, as they are drawn: the engine computes while the next ones are still being tokenised.
            while len(asked) + _HANDFUL <= _IN_FLIGHT and (some := list(islice(source, _HANDFUL))):
                ids = send(self._lm, [query.prompt for query in some], [self._sampling(query) for query in some])
                asked.update(zip(ids, some, strict=True))
            if not asked:
                break
            for result in engine.step():
                if result.finished:
                    ready.append(_share(asked.pop(result.request_id), result))
            if ready and time.monotonic() - last >= HAND_OVER_S:
                yield ready
                ready, last = [], time.monotonic()
        if ready:
            yield ready

    def _sampling(self, query: Query) -> Any:
        from vllm import SamplingParams

        tokens = sorted({token for group in query.groups for token in group})
        told: dict[str, Any] = {"logprob_token_ids": tokens} if len(tokens) <= self._most_named else {"logprobs": _TOP}
        return SamplingParams(temperature=0, max_tokens=1, detokenize=False, **told)

    def complete(self, prompts: Mapping[str, Tokens], *, max_tokens: int) -> dict[str, str]:
        from vllm import SamplingParams, TokensPrompt

        names = list(prompts)
        results = self._lm.model.generate(
            [TokensPrompt(prompt_token_ids=list(prompts[name])) for name in names],
            SamplingParams(temperature=0, max_tokens=max_tokens),
            lora_request=self._lm.lora_request,
            use_tqdm=False,
        )
        return {name: str(result.outputs[0].text) for name, result in zip(names, results, strict=True)}


def _share(query: Query, result: Any) -> Share:
    row = result.outputs[0].logprobs[0]
    known = {int(token): float(entry.logprob) for token, entry in row.items()}
    return _checked(
        Share(
            id=query.id,
            logprobs=tuple(_log_sum([known.get(token, -math.inf) for token in group]) for group in query.groups),
            likeliest=int(result.outputs[0].token_ids[0]),
        )
    )


def _log_sum(logprobs: Sequence[float]) -> float:
    top = max(logprobs)
    return top if top == -math.inf else top + math.log(math.fsum(math.exp(value - top) for value in logprobs))


def _checked(share: Share) -> Share:
    if any(math.isnan(value) for value in share.logprobs):
        raise EngineError("the judge's logits are not numbers: its weights are broken, or its data type is too small")
    return share


def _by_length(queries: Sequence[Query], budget: int) -> Iterator[list[Query]]:
    """Batches of like length, the longest first, each within so many tokens with its padding (or one prompt alone)."""
    batch: list[Query] = []
    for query in sorted(queries, key=lambda query: (-len(query.prompt), query.id)):
        if batch and (len(batch) + 1) * len(batch[0].prompt) > budget:
            yield batch
            batch = []
        batch.append(query)
    if batch:
        yield batch

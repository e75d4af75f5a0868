"""What the engines share: settings, batching, end-of-turn tokens; imports no model library."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bfpo_bench.endpoint import DEFAULT_BASE_URL, Endpoint
from bfpo_bench.errors import ConfigError, EngineError, did_you_mean
from bfpo_bench.types import Engine, ModelSpec, Output, Sample

ENGINES = ("hf", "vllm")
# Finished answers are handed over at most this often: a commit a second costs nothing, one a token step would.
HAND_OVER_S = 1.0
_SECRET_WORDS = ("token", "key", "secret", "passw", "auth", "credential")
# Engine arguments that hold such a word and no secret (names of vLLM, of lm-eval, and our own).
_NO_SECRETS = frozenset(
    {
        "add_bos_token",
        "batch_tokens",
        "max_num_batched_tokens",
        "prefix_token_id",
        "skip_tokenizer_init",
        "think_end_token",
        "tokenizer",
        "tokenizer_mode",
        "tokenizer_revision",
        "use_fast_tokenizer",
    }
)
# Of `--engine-args`, what is said to the chat template and not to the engine.
THINKING_SWITCH = "enable_thinking"
_API_ARGUMENTS: Mapping[str, type] = {
    "concurrency": int,
    "attempts": int,
    "request_timeout_s": float,
    "total_s": float,
    "call_s": float,
    "backoff_s": float,
}
API_KEY_NAMES = ("OPENAI_API_KEY",)


def open_engine(spec: ModelSpec) -> Engine:
    """Load the weights under test into this process; a model behind an API has none (`openai.py`).

    Raises EngineError with one line where it cannot be loaded.
    """
    if spec.engine == "hf":
        from bfpo_bench.harness.hf import HFEngine

        return HFEngine(spec)
    if spec.engine == "vllm":
        from bfpo_bench.harness.vllm import VLLMEngine

        return VLLMEngine(spec)
    raise EngineError(f"Unknown engine {spec.engine!r}. Known: {', '.join(ENGINES)}.")


def parse_engine_args(pairs: Sequence[str], *, flag: str = "--engine-args") -> dict[str, str]:
    """`["dtype=float32"]` -> `{"dtype": "float32"}`; anything that looks like a credential is refused."""
    parsed: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{flag} {pair!r} is not of the form key=value.")
        letters = "".join(c for c in key.lower() if c.isalpha())
        if key.strip() not in _NO_SECRETS and any(word in letters for word in _SECRET_WORDS):
            raise ConfigError(f"{flag} {key}: credentials come from the environment (HF_TOKEN, OPENAI_API_KEY).")
        parsed[key.strip()] = value.strip()
    return parsed


def api_endpoint(spec: ModelSpec) -> Endpoint:
    """Where and how insistently an `openai:` model is asked, from its engine arguments."""
    limits: dict[str, Any] = {}
    for key, value in spec.engine_args.items():
        if key == THINKING_SWITCH:
            continue  # goes into each request
        if key not in _API_ARGUMENTS:
            raise ConfigError(f"--engine-args: {did_you_mean('argument of engine openai', key, _API_ARGUMENTS)}")
        try:
            limits[key] = _API_ARGUMENTS[key](value)
        except ValueError:
            raise ConfigError(f"--engine-args {key} must be a number, got {value!r}.") from None
    base_url = None if spec.base_url == DEFAULT_BASE_URL else spec.base_url
    try:
        return Endpoint(base_url=base_url, key_names=API_KEY_NAMES, **limits)
    except ValueError as error:
        raise ConfigError(f"--engine-args: {error}.") from error


def engine_settings(spec: ModelSpec) -> dict[str, Any]:
    """The engine's own arguments as Python values."""
    return {key: typed(value) for key, value in spec.engine_args.items() if key != THINKING_SWITCH}


def parallel_size(spec: ModelSpec) -> int:
    """GPUs that one engine takes: its tensor-parallel groups, one behind the other."""
    settings = engine_settings(spec)
    sizes = [settings.get(key, 1) for key in ("tensor_parallel_size", "pipeline_parallel_size")]
    if any(type(size) is not int or size < 1 for size in sizes):
        raise ConfigError(f"--engine-args: parallel sizes are whole numbers from 1, got {sizes[0]!r} and {sizes[1]!r}.")
    return int(sizes[0] * sizes[1])


def typed(value: str) -> Any:
    """An engine argument as Python: `true`, `2`, `0.9`, `none`, else the text."""
    words: Mapping[str, Any] = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    for convert in (int, float):
        try:
            return convert(value)
        except ValueError:
            continue
    return value


def batches(samples: Sequence[Sample], lengths: Mapping[str, int], size: int) -> Iterator[list[Sample]]:
    """Samples of like generation settings, longest first, cut into batches of `size`.

    A pure function of its arguments: a resumed run meets the same batches and, padding being part of the arithmetic,
    the same answers. Longest first, so that a batch that does not fit fails at the start.
    """

    def order(sample: Sample) -> tuple[str, int, str]:
        return (settings_key(sample), -lengths[sample.id], sample.id)

    batch: list[Sample] = []
    for sample in sorted(samples, key=order):
        if batch and (len(batch) == size or settings_key(batch[0]) != settings_key(sample)):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def settings_key(sample: Sample) -> str:
    return repr(sorted(sample.generation.items(), key=lambda item: item[0]))


def prompt_sha(text: str) -> str:
    """Sixteen hex digits of what was really sent, template included."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sample_seed(seed: int, sample: Sample) -> int:
    """A seed of the sample's own: its draw depends neither on its batch nor on what was answered before."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sample.id}".encode()).digest()[:4], "big")


def within(window: int, samples: Sequence[Sample], lengths: Mapping[str, int]) -> tuple[list[Sample], list[Output]]:
    """The samples that fit a window of so many tokens together with the answer's, and the outputs of the others.

    `lengths` are tokens of the prompt by sample id, or of the longest choice with its context.
    """
    fitting: list[Sample] = []
    refused: list[Output] = []
    for sample in samples:
        room = window - int(sample.generation.get("max_gen_toks", 0))
        if lengths[sample.id] <= room:
            fitting.append(sample)
        else:
            kind = "tokens" if sample.choices else "prompt tokens"
            refused.append(too_long(sample, f"{lengths[sample.id]} {kind}", room=room))
    return fitting, refused


def too_long(sample: Sample, tokens: str, *, room: int) -> Output:
    """What does not fit the model's window: counted and told, never cut from the left as lm-eval would."""
    return Output(sample_id=sample.id, failure="too_long", detail=f"{tokens}, room for {room}")


def choice_output(sample: Sample, logprobs: Sequence[float], greedy: Sequence[bool]) -> Output:
    """Log-probabilities of a sample's choices; not a number or +inf is a counted failure, never a score."""
    if any(math.isnan(value) or value == math.inf for value in logprobs):
        return Output(sample_id=sample.id, failure="nan_logprob", detail=f"log-probabilities {list(logprobs)}")
    # JSON has no -inf; a probability of zero keeps its rank as the lowest finite number.
    finite = tuple(max(float(value), -1e300) for value in logprobs)
    return Output(sample_id=sample.id, choice_logprobs=finite, choice_greedy=tuple(bool(flag) for flag in greedy))


def wants_template(spec: ModelSpec, tokenizer: Any) -> bool:
    """Whether prompts go through the tokenizer's chat template. Raises where `on` cannot be had."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if spec.chat_template == "on" and not has_template:
        raise EngineError(f"--chat-template on: the tokenizer of {spec.name!r} has no chat template.")
    return has_template and spec.chat_template != "off"


def template_warning(spec: ModelSpec, tokenizer: Any) -> str | None:
    """One line where a model that is named like a chat model would be asked without its template."""
    chatty = any(word in spec.name.lower() for word in ("instruct", "chat", "-it", "dpo", "rlhf", "sft"))
    if not chatty or wants_template(spec, tokenizer):
        return None
    return f"{spec.name} is named like a chat model, but its prompts go out without a chat template."


def end_of_turn_ids(tokenizer: Any) -> list[int]:
    """Token ids that end an answer: the tokenizer's EOS, and the special token the template puts after one.

    A ChatML fine-tune whose EOS is still the base model's would otherwise run on into turns of its own making.
    """
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if not getattr(tokenizer, "chat_template", None):
        return ids
    marker = "ANSWER"
    try:
        history = [{"role": "user", "content": "x"}, {"role": "assistant", "content": marker}]
        text = tokenizer.apply_chat_template(history, tokenize=False)
    except Exception:  # a template may refuse any history; its author's exceptions are of any type
        return ids
    after = tokenizer.encode(text.rpartition(marker)[2], add_special_tokens=False)
    # Only a control token can end a turn: a newline or a word occurs inside answers too.
    if after and after[0] in set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder):
        ids.append(int(after[0]))
    return sorted(set(ids))

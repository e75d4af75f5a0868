"""Flags and a YAML file -> RunSpec: flag over YAML over default, unknown keys refused; touches no model, no data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bfpo_bench.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """All that decides a run; the field names are the flags and the YAML keys."""

    model: str
    suite: str | None = None
    profile: Literal["default", "paper"] = "default"
    tasks: tuple[str, ...] = ()
    engine: Literal["auto", "hf", "vllm", "openai"] = "auto"
    engine_args: tuple[str, ...] = ()
    judge: tuple[str, ...] = ()
    judge_engine: Literal["auto", "hf", "vllm"] = "auto"
    judge_engine_args: tuple[str, ...] = ()
    panel: str | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    thinking_tokens: int | None = None
    samples: int = 1
    temperature: float | None = None
    seed: int = 0
    out: Path | None = None
    data_dir: Path | None = None
    include_path: tuple[Path, ...] = ()
    skip_missing: bool = False
    base_url: str | None = None
    trust_remote_code: bool = False
    chat_template: Literal["auto", "on", "off"] = "auto"
    system_prompt: str | None = None
    adapter: str | None = None
    workers: int | None = None
    ray_address: str | None = None
    gpus_per_worker: float | None = None

    @property
    def folder(self) -> Path:
        """`--out`, or `runs/<model>-<suite or tasks>`: the same command finds the same run."""
        if self.out is not None:
            return self.out
        what = "+".join([*([self.suite] if self.suite else []), *sorted(self.tasks)])
        profile = f"-{self.profile}-settings" if self.profile != "default" else ""
        limit = f"-limit{self.limit}" if self.limit is not None else ""
        samples = f"-samples{self.samples}" if self.samples > 1 else ""
        temperature = f"-temperature{self.temperature:g}" if self.temperature is not None else ""
        model = _slug(self.model) + (f"+{_slug(self.adapter)}" if self.adapter is not None else "")
        return Path("runs") / f"{model}-{_slug(what)}{profile}{limit}{samples}{temperature}"


_FIELDS = {field.name: field for field in dataclasses.fields(RunSpec)}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "engine": ("auto", "hf", "vllm", "openai"),
    "judge_engine": ("auto", "hf", "vllm"),
    "chat_template": ("auto", "on", "off"),
    "profile": ("default", "paper"),
}
_LISTS = frozenset({"tasks", "engine_args", "judge", "judge_engine_args", "include_path"})
_ARGUMENTS = frozenset({"engine_args", "judge_engine_args"})
_PATHS = frozenset({"out", "data_dir", "include_path"})
# What OpenAI's servers take; one above it would be refused prompt by prompt.
HIGHEST_TEMPERATURE = 2
# A slip of the finger is not a run of millions.
MOST_SAMPLES = 1000


def run_spec(flags: Mapping[str, Any], config: Path | None = None) -> RunSpec:
    """The one resolved RunSpec. Raises ConfigError naming the key, its value and the remedy."""
    merged = {**(_read_yaml(config) if config is not None else {}), **flags}
    if merged.get("model") is None:
        known = "an alias (smollm2-135m), a folder, a hub id, openai:NAME or policy:NAME"
        raise ConfigError(f"No model given. Use --model: {known}.")
    spec = RunSpec(**{key: _value(key, value) for key, value in merged.items()})
    if spec.samples > 1 and spec.temperature == 0:
        raise ConfigError(
            f"--samples {spec.samples} at --temperature 0: all answers to a prompt would be the same. "
            "Give a temperature above 0, or leave out --samples."
        )
    _check_workers(spec)
    return spec


def _check_workers(spec: RunSpec) -> None:
    if spec.workers is None:
        for key, flag in (("ray_address", "--ray-address"), ("gpus_per_worker", "--gpus-per-worker")):
            if (value := getattr(spec, key)) is not None:
                raise ConfigError(f"{flag} {value} is for a run on workers. Give --workers N with it.")
    elif spec.model.startswith(("openai:", "policy:")):
        raise ConfigError(
            f"--workers {spec.workers}: {spec.model} has no weights that workers could hold. Leave it out; an API's "
            "requests run at once as it is (--engine-args concurrency=N)."
        )


def _read_yaml(path: Path) -> dict[str, Any]:
    parsed = {}
    for key, value in read_mapping(path, named=f"--config {path}", wanted="a mapping of flag names to values").items():
        name, parsed_value = as_key(key, value)
        if name not in _FIELDS:
            raise ConfigError(f"{path}: {did_you_mean('key', str(key), _FIELDS)}")
        parsed[name] = parsed_value
    return parsed


def read_mapping(path: Path, *, named: str, wanted: str) -> dict[Any, Any]:
    """The mapping that a YAML file holds; a ConfigError under the name that the user gave it, with what was wanted."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"Cannot read {named}: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{named} holds {type(content).__name__}, not {wanted}.")
    return content


def as_key(key: Any, value: Any) -> tuple[str, Any]:
    """A key of a YAML file as RunSpec spells it, and its value as its flag has it."""
    name = str(key).replace("-", "_")
    # `engine_args: {dtype: float32}` reads better in YAML than a list of k=v.
    if name in _ARGUMENTS and isinstance(value, dict):
        value = [f"{k}={v}" for k, v in value.items()]
    return name, value


def _value(key: str, value: Any) -> Any:
    if key in _LISTS:
        items = [value] if isinstance(value, str | Path) else [] if value is None else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str | Path) for item in items):
            raise ConfigError(f"{key} must be a text or a list of texts, got {value!r}.")
        parts = [p.strip() for item in items for p in (str(item).split(",") if key == "tasks" else [str(item)])]
        return tuple(_path(key, part) if key in _PATHS else part for part in parts if part)
    if key in _PATHS:
        if value is not None and not isinstance(value, str | Path):
            raise ConfigError(f"{key} must be a path, got {value!r}.")
        return None if value is None else _path(key, value)
    if key == "chat_template" and isinstance(value, bool):
        # YAML 1.1 reads a bare `on` or `off` as a truth value.
        value = "on" if value else "off"
    if key == "engine" and isinstance(value, str) and value.startswith("policy:"):
        raise ConfigError(f"--engine {value}: a policy stands in a model's place. Write --model {value}.")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ConfigError(did_you_mean(key.replace("_", " "), str(value), _CHOICES[key]))
    if (
        key in ("limit", "max_new_tokens", "thinking_tokens", "workers")
        and value is not None
        and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31)
    ):
        raise ConfigError(f"{key} must be a whole number from 1 to 2147483647, got {value!r}.")
    if key == "samples" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SAMPLES):
        raise ConfigError(f"samples must be a whole number from 1 to {MOST_SAMPLES}, got {value!r}.")
    if key == "temperature" and value is not None:
        # Also false for a NaN, which the command line takes for a number.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= HIGHEST_TEMPERATURE:
            raise ConfigError(f"temperature must be a number from 0 to {HIGHEST_TEMPERATURE}, got {value!r}.")
        return float(value)
    if key == "gpus_per_worker" and value is not None:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**16
        if not fits or (value > 1 and value != int(value)):
            raise ConfigError(f"gpus_per_worker must be a whole number of GPUs, or a share below 1, got {value!r}.")
        return float(value)
    if key == "seed" and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31):
        raise ConfigError(f"seed must be a whole number from 0 to 2147483647, got {value!r}.")
    if key in ("skip_missing", "trust_remote_code") and not isinstance(value, bool):
        raise ConfigError(f"{key} must be true or false, got {value!r}.")
    if (
        key in ("model", "suite", "base_url", "adapter", "system_prompt", "panel", "ray_address")
        and value is not None
        and not isinstance(value, str)
    ):
        raise ConfigError(f"{key} must be a text, got {value!r}.")
    return _system_prompt(value) if key == "system_prompt" and value is not None else value


def _system_prompt(value: str) -> str:
    """The text itself, or of `@FILE` the file's, without the line end that editors put last."""
    text = value
    if value.startswith("@"):
        try:
            text = _path("system_prompt", value[1:]).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            raise ConfigError(f"Cannot read the system prompt {value[:200]}: {error}.") from error
    if not text.strip():
        raise ConfigError("The system prompt is empty. Leave --system-prompt out to run without one.")
    return text


def _path(key: str, value: str | Path) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ConfigError(f"{key} {str(value)!r}: {error}") from error


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "run"

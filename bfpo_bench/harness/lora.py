"""What vLLM must be told of a LoRA adapter, from the adapter's own files (vLLM 0.24 to 0.32)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bfpo_bench.errors import EngineError

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_HEAD = "lm_head"


def lora_settings(adapter: str) -> dict[str, Any]:
    """Arguments for lm-eval's VLLM class that load the adapter."""
    settings: dict[str, Any] = {"lora_local_path": adapter, "max_lora_rank": lora_rank(adapter)}
    modules = lora_modules(adapter)
    if modules and _HEAD not in modules:
        # Else vLLM wraps the head as well, and log-probabilities of a prompt go through that with a wrong mapping of
        # tokens to adapters: on a CPU it dies of it (vLLM's issue 29955).
        settings["lora_target_modules"] = sorted(modules)
    return settings


def shared_lora_settings(adapters: Sequence[str]) -> dict[str, Any]:
    """Arguments for lm-eval's VLLM class that let requests name any of these adapters of one base model."""
    settings: dict[str, Any] = {
        "enable_lora": True,
        # On the device: the one that answers, and the next. The others wait in the machine's memory.
        "max_loras": min(2, len(adapters)),
        "max_cpu_loras": len(adapters),
        "max_lora_rank": max(map(lora_rank, adapters)),
    }
    each = [lora_modules(adapter) for adapter in adapters]
    modules = set().union(*each)
    # Where the layers of one are not known, all stay open: else it would answer without its own, and say nothing.
    if all(each) and _HEAD not in modules:
        settings["lora_target_modules"] = sorted(modules)
    return settings


def lora_rank(adapter: str) -> int:
    """The room to keep for the adapter: its largest rank, rounded up to a size that vLLM has."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    fitting = [size for size in _RANKS if size >= rank]
    if not fitting:
        raise EngineError(f"--adapter {adapter}: rank {rank} is more than vLLM takes ({_RANKS[-1]}). Use --engine hf.")
    return fitting[0]


def lora_modules(adapter: str) -> set[str]:
    """The last names of the layers that the adapter changes: those of its weights, else those in its settings."""
    from safetensors import safe_open

    file = Path(adapter) / "adapter_model.safetensors"
    if not file.is_file():
        listed = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8")).get("target_modules")
        return set(listed) if isinstance(listed, list) else set()
    with safe_open(file, framework="numpy") as weights:
        names = [name.partition(".lora_")[0] for name in weights.keys() if ".lora_" in name]  # noqa: SIM118
    return {name.rpartition(".")[2] for name in names}


def check_choices(adapter: str) -> None:
    """Refuse choice tasks where vLLM's numbers would be wrong: it leaves the adapter's share in the head out of the
    log-probabilities of a prompt, without a word (vLLM's issue 51594)."""
    if _HEAD in lora_modules(adapter):
        raise EngineError(
            f"--adapter {Path(adapter).name} changes {_HEAD}, which vLLM leaves out of a prompt's log-probabilities: "
            "its choice tasks would be another model's. Use --engine hf."
        )

"""What this machine can run: engines, GPU, models, data, judges, keys; looks and never changes anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bfpo_bench import __version__
from bfpo_bench.judges import judges_without_texts
from bfpo_bench.registry import load_registry, suites
from bfpo_bench.sources import EMBEDDED, bfpo_home, free_bytes

_KEYS = ("OPENAI_API_KEY", "BFPO_JUDGE_API_KEY", "PERSPECTIVE_API_KEY", "HF_TOKEN")


def report(data_dir: Path | None = None) -> Iterator[tuple[str, str, str]]:
    """Rows of (thing, `yes` | `no`, what that means here)."""
    yield "bfpo_bench", "yes", __version__
    for package in ("lm_eval", "transformers", "torch"):
        yield package, *_package(package, f"pip install {package.replace('_', '-')}")
    yield "engine hf", "yes", "CPU or GPU"
    yield "engine vllm", *_package("vllm", "pip install 'bfpo-bench[vllm]' (GPU), or make vllm-cpu (CPU)")
    yield "engine openai", "yes", "--model openai:NAME --base-url URL"
    yield "GPU", *_gpu()
    for alias, model in EMBEDDED.items():
        ready = (bfpo_home() / "models" / f"{alias}-{model.version}").is_dir()
        yield f"model {alias}", "yes" if ready else "no", "in the cache" if ready else "fetched with pip on first use"
    registry = load_registry()
    for suite, tasks in suites(registry).items():
        bundled = all(registry[name].dataset_path is None for name in tasks)
        data = "data bundled" if bundled else "data from the hub or a mirror: bfpo_bench data list"
        yield f"suite {suite}", "yes", f"{len(tasks)} tasks, {data}"
    mirror = data_dir or (Path(os.environ["BFPO_DATA_DIR"]) if os.environ.get("BFPO_DATA_DIR") else None)
    if mirror is not None:
        yield "data mirror", "yes" if mirror.is_dir() else "no", "given" if mirror.is_dir() else "no such folder"
    yield "judge keyword", "yes", "refusal phrases, needs no model; overstates harmful compliance"
    yield "judge chat", "yes", "--judge chat:MODEL@URL, any OpenAI-compatible endpoint"
    lacking = judges_without_texts(mirror)
    yield (
        "judges' texts",
        "no" if lacking else "yes",
        f"missing for {', '.join(lacking)}: bfpo_bench data fetch --judges all" if lacking else "of all judge files",
    )
    for key in _KEYS:
        present = bool(os.environ.get(key))
        yield f"key {key}", "yes" if present else "no", "set (not shown)" if present else "not set"
    yield "Chromium", *_program(("chromium", "chromium-browser", "google-chrome"), "only the browser tests need it")
    yield "disk", "yes", f"{free_bytes(bfpo_home()) / 2**30:.0f} GiB free for the cache"


def _package(name: str, remedy: str) -> tuple[str, str]:
    try:
        return "yes", version(name)
    except PackageNotFoundError:
        return "no", remedy


def _gpu() -> tuple[str, str]:
    try:
        import torch
    except ImportError:
        return "no", "torch is not installed"
    if not torch.cuda.is_available():
        return "no", "none that torch sees; models run on the CPU"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return "yes", ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in names)


def _program(names: tuple[str, ...], purpose: str) -> tuple[str, str]:
    found = next((name for name in names if shutil.which(name)), None)
    return ("yes", found) if found else ("no", purpose)

"""What this machine can run: engines, GPU, models, data, judges, keys; looks and never changes anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bfpo_bench import __version__
from bfpo_bench.errors import JudgeError
from bfpo_bench.judges.published import find_text
from bfpo_bench.judges.spec import JudgeFile, Text, bundled_judges, load_judge
from bfpo_bench.registry import load_registry, suites
from bfpo_bench.sources import EMBEDDED, bfpo_home, free_bytes

_ALPACA_EVAL = "tatsu-lab/alpaca_eval"
_KEYS = ("OPENAI_API_KEY", "BFPO_JUDGE_API_KEY", "PERSPECTIVE_API_KEY", "HF_TOKEN")


def report(data_dir: Path | None = None) -> Iterator[tuple[str, str, str]]:
    """Rows of (thing, `yes` | `no`, what that means here)."""
    yield "bfpo_bench", "yes", __version__
    for package in ("lm_eval", "transformers", "torch"):
        yield package, *_package(package, f"pip install {package.replace('_', '-')}")
    yield "engine hf", "yes", "CPU or GPU"
    yield "engine vllm", *_package("vllm", "pip install 'bfpo-bench[vllm]' (GPU), or make vllm-cpu (CPU)")
    yield "workers", *_package("ray", "pip install 'bfpo-bench[ray]', for run --workers and matrix")
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
    judges = list(judge_rows(mirror))
    lacking = [judge.name for judge in judges if judge.texts.startswith("missing")]
    damaged = [judge.name for judge in judges if judge.texts == "damaged"]
    told = [f"{word} for {', '.join(names)}" for word, names in (("missing", lacking), ("damaged", damaged)) if names]
    remedy = f"{'; '.join(told)}: bfpo_bench data fetch --judges all"
    yield "judges' texts", "no" if told else "yes", remedy if told else "of all judge files"
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


# -- judges ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JudgeRow:
    """A judge in words: what it can tell, whether its published texts are here, and what is loaded or asked."""

    name: str
    kind: str
    tells: str
    texts: str
    model: str
    about: str


_KINDS = {"classifier": "classifier", "sequence": "head", "chat": "API", "pairwise": "API"}
# Those that no file describes.
_IN_CODE = (
    JudgeRow(
        name="chat",
        kind="API",
        tells="all",
        texts="ours",
        model="MODEL[@URL]",
        about="our rubrics: three labels, a rating, a comparison; licence: Apache-2.0",
    ),
    JudgeRow(
        name="keyword",
        kind="code",
        tells="harm, refusals",
        texts="ours",
        model="-",
        about="refusal phrases; where harm was asked for, all else is harm; licence: Apache-2.0",
    ),
    JudgeRow(
        name="perspective",
        kind="API",
        tells="toxicity",
        texts="-",
        model="[@URL]",
        about="toxicity by Google's API, which is announced to end after 2026-12-31; needs PERSPECTIVE_API_KEY",
    ),
    JudgeRow(
        name="replay", kind="code", tells="all", texts="-", model="FILE", about="recorded annotations; asks nobody"
    ),
)


def judge_rows(mirror: Path | None = None) -> Iterator[JudgeRow]:
    """The judges that a user can choose: those in code, then those of the bundled files."""
    yield from _IN_CODE
    for name in bundled_judges():
        judge = load_judge(name)
        texts, absent = _texts_of(judge, mirror)
        lack = "".join(f"; {file} is missing" for file in absent)
        local = _KINDS[judge.kind] != "API"
        yield JudgeRow(
            name=name,
            kind=_KINDS[judge.kind],
            tells=_tells(judge),
            texts=texts,
            model=judge.model or ("MODEL" if local else "MODEL[@URL]"),
            about=f"{judge.about}; licence: {judge.licence}{lack}",
        )


def _tells(judge: JudgeFile) -> str:
    scope = judge.scope
    found: Mapping[str, bool] = {
        "harm": scope.covers("harmlessness", "safety"),
        "refusals": scope.covers("over_refusal", "safety"),
        "toxicity": scope.covers("harmlessness", "toxicity"),
        "helpfulness": scope.covers("helpfulness", "pairwise") or scope.covers("helpfulness", "rating"),
    }
    return "all" if all(found.values()) else ", ".join(word for word, tells in found.items() if tells)


def _texts_of(judge: JudgeFile, mirror: Path | None) -> tuple[str, list[str]]:
    """A word on the published texts that a judge needs, and the files beside them that it can do without."""
    published = {name: text for name, text in judge.texts.items() if text.own is None}
    try:
        absent = {name: text for name, text in published.items() if find_text(text, mirror) is None}
    except JudgeError:
        return "damaged", []
    needed = [name for name, text in published.items() if not text.optional]
    lacking = sum(name in needed for name in absent)
    word = "here" if needed else "ours" if judge.texts else "tokenizer's"
    extra = {_file_of(text): name.replace("_", " ") for name, text in absent.items() if text.optional}
    # A mirror of the data set holds its files under their own names.
    beside = {file for file in extra if mirror is not None and (mirror / _ALPACA_EVAL / file).is_file()}
    return (
        f"missing {lacking} of {len(needed)}" if lacking else word,
        [f"{file}, for {purpose}," for file, purpose in extra.items() if file not in beside],
    )


def _file_of(text: Text) -> str:
    source = text.sources[0]
    return (source.url or source.file or "").rpartition("/")[2]

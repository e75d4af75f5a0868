"""A checkpoint's folder: its manifest, whether a run may go on in it, and the weights as any loader expects them."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bfpo_bench import __version__
from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.layout import TokenPair
from bfpo_bench.trainers.logprobs import use_plain_attention
from bfpo_bench.trainers.names import MANIFEST, Mode
from bfpo_bench.trainers.reading import Data, Part
from bfpo_bench.trainers.recipe import Base, Recipe
from bfpo_bench.trainers.trainer import PairTrainer

Say = Callable[[str], None]

SCHEMA = 1
# What must be equal for a run to go on in its folder.
_FIXED = ("recipe", "base", "margin_model", "data", "evaluation_data", "packages", "processes")
_PACKAGES = ("torch", "transformers", "accelerate", "tokenizers")


def check_out(out: Path, *, mode: Mode) -> None:
    """Refuse a folder that is not ours to write in, or that has nothing to go on with; changes nothing."""
    manifest = out / MANIFEST
    if mode == "resume" and not manifest.exists():
        raise ConfigError(f"{out} has no run to go on with: leave out --resume.")
    begun = {f"{MANIFEST}.new"}  # all that a kill before the first manifest leaves
    if out.exists() and not manifest.exists() and {one.name for one in out.iterdir()} - begun:
        raise ConfigError(f"{out} is not empty and holds no run of this trainer: give another out=FOLDER.")


def prepare_out(out: Path, *, mode: Mode, first: bool, say: Say) -> None:
    """`check_out`, and set an old run aside where a fresh one is wanted."""
    check_out(out, mode=mode)
    manifest = out / MANIFEST
    if mode == "fresh" and manifest.exists() and first:
        aside = next(path for n in range(1, 10_000) if not (path := out.with_name(f"{out.name}.old-{n}")).exists())
        out.rename(aside)
        say(f"the old run is now {aside}")


def is_complete(out: Path) -> bool:
    return (out / MANIFEST).exists() and _json(out / MANIFEST).get("status") == "complete"


def begin(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest before the first step; where there is one, what it promises must be what is asked."""
    if (out / MANIFEST).exists():
        _refuse_difference(out, _json(out / MANIFEST), manifest)
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / MANIFEST, manifest)


def refuse_other(out: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse to take a finished checkpoint for one of another recipe, base or data; other versions may look at it."""
    _refuse_difference(out, _json(out / MANIFEST), manifest, parts=[one for one in _FIXED if one != "packages"])


def _refuse_difference(
    out: Path, old: Mapping[str, Any], new: Mapping[str, Any], *, parts: Sequence[str] = _FIXED
) -> None:
    for part in parts:
        before, now = _flat(old.get(part, {})), _flat(_plain_json(new.get(part, {})))
        # Why a row was left out may be told otherwise the next time; which rows were trained on may not.
        before, now = ({k: v for k, v in one.items() if not k.endswith(".left_out")} for one in (before, now))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key) and not (part in ("base", "margin_model") and key == "name"):
                raise ConfigError(
                    f"{out} was trained with {f'{part}.{key}'.rstrip('.')} {before.get(key)!r}, now it is "
                    f"{now.get(key)!r}: take another out=FOLDER, or --fresh."
                )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, one in value.items():
        found |= _flat(one, f"{prefix}.{key}" if prefix else str(key))
    return found


def finish(trainer: PairTrainer, recipe: Recipe, manifest: Mapping[str, Any], *, seconds: float, first: bool) -> None:
    """Save the weights as an ordinary checkpoint, then say in the manifest that they are there."""
    out = recipe.out
    temporary = out / "saving"
    if recipe.lora is not None:
        if first:
            trainer.model.save_pretrained(out / "adapter")
            merged = trainer.model.merge_and_unload()
            _as_ordinary(merged, trainer)
            merged.save_pretrained(temporary)
            trainer.processing_class.save_pretrained(temporary)
    else:
        _as_ordinary(trainer.model, trainer)
        trainer.save_model(str(temporary))
    trainer.accelerator.wait_for_everyone()
    if not first:
        return
    (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle with this machine's paths
    cast_weights(temporary, saved_dtype(recipe))
    for file in sorted(temporary.iterdir(), key=lambda one: one.name == "config.json"):
        file.replace(out / file.name)
    shutil.rmtree(temporary)
    history = [_measured(entry) for entry in trainer.state.log_history]
    _write_json(out / "training_log.json", history)
    last = {k: v for entry in history for k, v in entry.items() if k.startswith("eval_")}
    _write_json(
        out / MANIFEST,
        {
            **manifest,
            "status": "complete",
            "steps": trainer.state.global_step,
            "seconds": round(seconds, 1),
            "evaluation": last,
        },
    )


def saved_dtype(recipe: Recipe) -> str:
    """The finished checkpoint's: the trained weights' own unless the recipe says otherwise.

    Not the base's: a bfloat16 base lies on bfloat16's grid, and what a small learning rate adds would be rounded away.
    """
    return recipe.dtype if recipe.save_dtype == "auto" else recipe.save_dtype


def cast_weights(folder: Path, dtype: str) -> None:
    """Round the weights in `folder` to another type, a file at a time; the configuration says so."""
    config = _json(folder / "config.json")
    if config.get("dtype") == dtype:
        return
    for file in sorted(folder.glob("*.safetensors")):
        weights = load_file(file)
        wanted = getattr(torch, dtype)
        save_file(
            {name: one.to(wanted) if one.is_floating_point() else one for name, one in weights.items()},
            file,
            metadata={"format": "pt"},
        )
    _write_json(folder / "config.json", {**config, "dtype": dtype})


def _as_ordinary(model: Any, trainer: PairTrainer) -> None:
    """The config as the base has it: our attention is this process's own, and generation wants its cache."""
    model.config.use_cache = True
    inner = trainer.accelerator.unwrap_model(model)
    use_plain_attention(inner)


def manifest_of(
    recipe: Recipe,
    base: Base,
    data: Data,
    *,
    prompts: Mapping[str, Sequence[str]],
    unchecked: Mapping[str, str],
    processes: int,
    margin: Base | None = None,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "status": "training",
        "bfpo_bench": __version__,
        "method": recipe.method,
        "recipe": recipe.resolved(),
        "base": {"name": base.name, "identity": base.identity},
        "margin_model": None if margin is None else {"name": margin.name, "identity": margin.identity},
        "data": {name: _data_record(part) for name, part in data.train.items()},
        "evaluation_data": {name: _data_record(part) for name, part in data.evaluation.items()},
        "contamination": {
            "checked": {task: len(texts) for task, texts in prompts.items()},
            "unchecked": dict(unchecked),
            "found": {
                name: [
                    {"row": part.read.rows[hit.index].row, "task": hit.task, "kind": hit.kind}
                    for hit in part.contaminated
                ]
                for name, part in data.train.items()
                if part.contaminated
            },
            "rule": recipe.contamination,
        },
        "processes": processes,
        "packages": {name: _version(name) for name in (*_PACKAGES, *(["peft"] if recipe.lora else []))},
        "environment": {"python": platform.python_version(), "machine": platform.machine()},
    }


def _data_record(part: Part) -> dict[str, Any]:
    combinations: dict[str, int] = {}
    for row in part.rows:
        if isinstance(row, TokenPair):
            name = "-".join(_label(value) for value in (row.chosen_safe, row.rejected_safe))
            combinations[name] = combinations.get(name, 0) + 1
    return {
        "origin": part.read.origin,
        "sha256": part.read.sha256,
        "rows": len(part.rows),
        "rows_sha256": hashlib.sha256("\n".join(row.row for row in part.rows).encode()).hexdigest(),
        "seen": part.read.n_seen,
        "cut": part.n_cut,
        "tokens": sum(row.n_tokens for row in part.rows),
        "combinations": combinations,
        "left_out": [asdict(problem) for problem in part.problems],
    }


def _label(value: float) -> str:
    return "unlabelled" if value != value else "safe" if value else "unsafe"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _measured(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Without numbers that are none: JSON has no NaN, and one must not keep a finished run from being one."""
    return {key: None if isinstance(one, float) and not math.isfinite(one) else one for key, one in entry.items()}


def _json(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): start over with --fresh.") from error
    return found


def _plain_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _write_json(file: Path, value: Any) -> None:
    """Whole or not at all."""
    temporary = file.with_name(f"{file.name}.new")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(file)

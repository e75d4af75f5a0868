"""Training small enough for a test: pairs of every safety combination, a recipe, a run of it here or in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bfpo_bench.trainers.recipe import Base, Recipe, load_recipe

# Safety of the chosen and of the rejected answer, in turn.
LABELS = ((True, True), (True, False), (False, True), (False, False))
PROCESS_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def write_pairs(file: Path, *, name: str, n: int, labels: Any = LABELS) -> Path:
    """`n` pairs of uneven lengths, each with a prompt of its own."""
    rows = []
    for i in range(n):
        chosen_safe, rejected_safe = labels[i % len(labels)]
        rows.append(
            {
                "prompt": f"{name} question {i}{'?' * (i % 3)}",
                "chosen": f"yes {i}{' a' * (i % 5)}",
                "rejected": f"no {7 * i}{' b' * (i % 4)}",
                "chosen_safe": chosen_safe,
                "rejected_safe": rejected_safe,
            }
        )
    return write_rows(file, rows)


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def body_of(folder: Path, model: Path, *, n_safety: int = 10, n_helpfulness: int = 7, **changes: Any) -> dict[str, Any]:
    """The mapping of a recipe whose data is written into `folder`; `changes` replace keys, `training` adds to them."""
    folder.mkdir(parents=True, exist_ok=True)
    both_safe = ((True, True),)
    safety = write_pairs(folder / "safety.jsonl", name="safety", n=n_safety)
    helpfulness = write_pairs(folder / "helpfulness.jsonl", name="other", n=n_helpfulness, labels=both_safe)
    training = {
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    body = {
        "model": str(model),
        "out": str(folder / "out"),
        "safety": {"format": "jsonl", "path": str(safety)},
        "helpfulness": {"format": "jsonl", "path": str(helpfulness)},
        "loss": {"tau": 0.1},
        "max_length": 128,
        "max_prompt_length": 64,
        **changes,
        "training": {**training, **changes.get("training", {})},
    }
    return {key: value for key, value in body.items() if value is not None}


def recipe_of(folder: Path, model: Path, **changes: Any) -> Recipe:
    return load_recipe(write_recipe(folder, body_of(folder, model, **changes)))


def write_recipe(folder: Path, body: dict[str, Any]) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(body), encoding="utf-8")
    return file


@dataclass
class Ran:
    """A finished run: its folder, what it said, its log and manifest."""

    out: Path
    said: list[str] = field(default_factory=list)

    @property
    def log(self) -> list[dict[str, Any]]:
        return read(self.out / "training_log.json")

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The logs of training steps."""
        return [entry for entry in self.log if "loss" in entry]

    @property
    def manifest(self) -> dict[str, Any]:
        return read(self.out / "training_manifest.json")

    def weights(self) -> dict[str, Any]:
        return weights_of(self.out)


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def weights_of(folder: Path, name: str = "model.safetensors") -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / name)


def base_of(recipe: Recipe) -> Base:
    return Base(name="tiny", path=Path(recipe.model), identity=f"path:{recipe.model}")


def run_here(recipe: Recipe, *, cache: Path | None = None, said: list[str] | None = None, **options: Any) -> Ran:
    """Train in this process."""
    from bfpo_bench.trainers.training import train

    said = [] if said is None else said
    options = {"prompts": {}, "unchecked": {}, **options}
    folder = cache or recipe.out.parent / "cache"
    train(recipe, base=base_of(recipe), say=said.append, cache=folder, **options)
    return Ran(out=recipe.out, said=said)


def command(file: Path, *, launcher: tuple[str, ...] = (sys.executable,)) -> list[str]:
    """What trains the recipe in another process, always the same words: see the last lines of this file."""
    return [*launcher, str(Path(__file__).resolve()), str(file)]


def environment() -> dict[str, str]:
    return {**os.environ, **PROCESS_ENVIRONMENT}


def run_in_process(file: Path, *, launcher: tuple[str, ...] = (sys.executable,), ok: bool = True) -> str:
    """Train in a process, or several; what was printed. Fails where that does, unless not `ok`."""
    done = subprocess.run(
        command(file, launcher=launcher), env=environment(), text=True, timeout=300, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert (done.returncode == 0) is ok, done.stdout
    return done.stdout


def main(file: str) -> None:
    from bfpo_bench.trainers.training import train

    first = os.environ.get("RANK", "0") == "0"
    recipe = load_recipe(Path(file))
    cache = Path(file).parent / "cache"

    def say(line: str) -> None:
        if first:
            print(line, flush=True)

    train(recipe, base=base_of(recipe), prompts={}, unchecked={}, say=say, cache=cache)


if __name__ == "__main__":
    main(*sys.argv[1:])

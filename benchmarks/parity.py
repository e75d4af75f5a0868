"""Our numbers beside plain lm-eval's, sample by sample: log-probabilities, texts, metrics; prints the table.

    python benchmarks/parity.py --data-dir DIR [--engine hf|vllm] [--limit 50] [--tasks A,B] [--json FILE]

For each task that stands on one of lm-eval's and whose data the mirror holds: the real command line of ours on the
model, then lm-eval 0.4.13's `simple_evaluate` on its built-in task of that name in a process of its own, both in
float32, without a chat template. `--engine vllm` runs ours on vLLM and lm-eval on hf: another arithmetic, so the
differences are those of the engines.

max diff   largest difference of a choice's log-probability (nats), over all samples
texts      generated answers that are the same, of all
metrics    samples whose metric is the same, of all (a probability: to 1e-4)
score      ours and lm-eval's value of the task's metric
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bfpo_bench.harness.metrics import metric_name, plain
from bfpo_bench.registry import lm_eval_tasks_folder, load_registry, read_task_yaml
from bfpo_bench.scoring import passed_choice
from bfpo_bench.sources import resolve_model
from bfpo_bench.store import RunStore
from bfpo_bench.types import TaskSpec

# What lm-eval's built-in task opens and the mirror lacks although nothing of it is used at no examples.
_UNUSED_SPLITS: Mapping[str, Any] = {"training_split": None, "fewshot_split": None}
# A metric that is 0 or 1 is then equal; TruthfulQA's probability mass moves with its log-probabilities.
_SAME = 1e-4
# Theirs is one task a subject, ours one task.
_MMLU = "bfpo_mmlu"


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One task of ours beside lm-eval's; `None` where the kind of task has no such number."""

    task: str
    theirs: str
    samples: int
    max_difference: float | None
    same_texts: int | None
    same_metrics: int
    score: float
    their_score: float


def built_in(spec: TaskSpec, subjects: Sequence[str]) -> list[str]:
    """The names of lm-eval's own tasks that ours stands on."""
    if spec.name == _MMLU:
        return [f"mmlu_{subject}" for subject in subjects]
    file = read_task_yaml(Path(spec.yaml_path))["metadata"]["bfpo"]["lm_eval"]
    return [str(read_task_yaml(lm_eval_tasks_folder() / file)["task"])]


def run_ours(model: str, specs: Sequence[TaskSpec], options: argparse.Namespace, folder: Path) -> RunStore:
    command = [sys.executable, "-m", "bfpo_bench", "run", "--model", model, "--engine", options.engine]
    command += ["--tasks", ",".join(spec.name for spec in specs), "--data-dir", str(options.data_dir)]
    command += ["--limit", str(options.limit), "--chat-template", "off", "--skip-missing", "--out", str(folder)]
    done = subprocess.run([*command, "--engine-args", "dtype=float32"], check=False)
    if done.returncode not in (0, 3):
        sys.exit(f"our run ended with exit code {done.returncode}")
    return RunStore.read(folder)


def run_theirs(options: argparse.Namespace, asked: Mapping[str, int], settings: Mapping[str, Any], out: Path) -> Any:
    """lm-eval in a process whose folder is the mirror, where a bare hub id means the data set beside it."""
    request = {"model": options.model_path, "asked": dict(asked), "settings": dict(settings), "out": str(out)}
    # datasets (5.2) keeps what it has read by a folder's name, whatever folder it was: a cache of its own.
    own = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "HF_DATASETS_CACHE": str(out.parent / "datasets")}
    environment = {**os.environ, **own}
    command = [sys.executable, str(Path(__file__).resolve()), "--theirs", json.dumps(request)]
    subprocess.run(command, cwd=options.data_dir, env=environment, check=True)
    return json.loads(out.read_text())


def theirs(request: Mapping[str, Any]) -> None:
    """The other process: plain lm-eval, its samples to a file."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=request["model"], dtype="float32", device="cpu", batch_size=16)
    manager = TaskManager()
    found: dict[str, Any] = {}
    for name, limit in request["asked"].items():
        overrides = {**_UNUSED_SPLITS, **request["settings"].get(name, {})}
        # lm-eval merges a task's overrides with the registered task inside a group only.
        group = {"group": "parity", "task": [{"task": name, **overrides}]}
        result = simple_evaluate(
            model=lm, tasks=[group], task_manager=manager, limit=limit, log_samples=True, bootstrap_iters=0
        )
        (key,) = result["samples"]
        found[name] = {
            "samples": [
                {**{k: s[k] for k in ("doc_id", "resps", "filter")}, **{m: s[m] for m in s["metrics"]}}
                for s in result["samples"][key]
            ],
        }
    Path(request["out"]).write_text(json.dumps(plain(found)))


def compare(spec: TaskSpec, store: RunStore, names: Sequence[str], found: Mapping[str, Any]) -> Parity:
    samples = {s.id: s for s in store.samples(spec.name)}
    outputs = store.outputs()
    scores = {v.sample_id: v.metrics.get(metric_name(spec.metric)) for v in store.verdicts("lm_eval")}
    order = _in_order(spec, list(samples.values()), names, found)
    difference, same_texts, same_metrics, values, their_values = 0.0, 0, 0, [], []
    for sample, other in order:
        output = outputs[sample.id]
        if spec.kind == "choice":
            pairs = zip(output.choice_logprobs or (), [resp[0][0] for resp in other["resps"]], strict=True)
            difference = max(difference, *(abs(mine - their) for mine, their in pairs))
        else:
            same_texts += output.text == other["resps"][0][0]
        mine = scores.get(sample.id, _acc(sample, output) if spec.metric == "acc" else None)
        same_metrics += abs(mine - other[metric_name(spec.metric)]) <= _SAME
        values.append(mine)
        their_values.append(other[metric_name(spec.metric)])
    return Parity(
        task=spec.name,
        theirs=names[0] if len(names) == 1 else f"{len(names)} of {names[0].partition('_')[0]}_*",
        samples=len(order),
        max_difference=difference if spec.kind == "choice" else None,
        same_texts=same_texts if spec.kind == "generate" else None,
        same_metrics=same_metrics,
        score=sum(values) / len(values),
        their_score=sum(their_values) / len(their_values),
    )


def _acc(sample: Any, output: Any) -> float:
    return float(bool(passed_choice(sample, output)))


def _in_order(spec: TaskSpec, samples: Sequence[Any], names: Sequence[str], found: Mapping[str, Any]) -> list[Any]:
    """Our samples with theirs: by document number; MMLU's by subject and the number within it."""
    wanted = read_task_yaml(Path(spec.yaml_path))["metadata"]["bfpo"].get("filter")
    numbered: dict[str, int] = {}
    pairs = []
    for sample in samples:
        name, number = names[0], sample.index
        if spec.name == _MMLU:
            name = f"mmlu_{sample.category}"
            number = numbered[name] = numbered.get(name, -1) + 1
        rows = [s for s in found[name]["samples"] if s["doc_id"] == number]
        pairs += [(sample, row) for row in rows if len(rows) == 1 or row["filter"] == wanted]
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--tasks", default="", help="default: all that stand on lm-eval's and whose data is there")
    parser.add_argument("--json", type=Path, help="the table as JSON too")
    parser.add_argument("--theirs", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.theirs is not None:
        return theirs(options.theirs)
    if options.data_dir is None:
        parser.error("--data-dir is needed: a mirror of the data sets")
    options.data_dir = options.data_dir.resolve()
    options.model_path = resolve_model(options.model).path
    registry = load_registry()
    chosen = [f"bfpo_{name.strip().removeprefix('bfpo_')}" for name in options.tasks.split(",") if name.strip()]
    specs = [
        spec
        for spec in registry.values()
        if "lm_eval" in read_task_yaml(Path(spec.yaml_path))["metadata"]["bfpo"]
        and (spec.name in chosen or not chosen)
        and (options.data_dir / str(spec.dataset_path)).is_dir()
    ]
    with tempfile.TemporaryDirectory() as scratch:
        store = run_ours(options.model, specs, options, Path(scratch) / "run")
        specs = [spec for spec in specs if store.samples(spec.name)]
        subjects = list(dict.fromkeys(str(sample.category) for sample in store.samples(_MMLU)))
        names = {spec.name: built_in(spec, subjects) for spec in specs}
        # The whole of a subject's beginning: ours takes the first of all subjects together.
        asked = {name: options.limit for mine in names.values() for name in mine}
        settings = {
            name: {"generation_kwargs": dict(store.samples(spec.name)[0].generation)}
            for spec in specs
            if spec.kind == "generate"
            for name in names[spec.name]
        }
        found = run_theirs(options, asked, settings, Path(scratch) / "theirs.json")
        table = [compare(spec, store, names[spec.name], found) for spec in specs]
    print_table(table, options.engine)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in table], indent=2) + "\n")


def print_table(table: Sequence[Parity], engine: str) -> None:
    print(f"ours on {engine}, lm-eval on hf; float32; no chat template\n")
    print(f"{'task':28}{'lm-eval':28}{'samples':>8}{'max diff':>10}{'texts':>8}{'metrics':>9}{'score':>9}{'theirs':>9}")
    for row in table:
        difference = "-" if row.max_difference is None else f"{row.max_difference:.1e}"
        texts = "-" if row.same_texts is None else str(row.same_texts)
        print(
            f"{row.task:28}{row.theirs:28}{row.samples:>8}{difference:>10}{texts:>8}{row.same_metrics:>9}"
            f"{row.score:>9.4f}{row.their_score:>9.4f}"
        )


if __name__ == "__main__":
    main()

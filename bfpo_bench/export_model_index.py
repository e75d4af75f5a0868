"""A run's scores as the metadata of a model card on the Hugging Face hub (`model-index`); knows no samples.

The axes are spelt as in the cards of our own checkpoints (trainers/card.py), by the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bfpo_bench.errors import StoreError
from bfpo_bench.export_tasks import scores_of
from bfpo_bench.store import RunStore, write_atomically
from bfpo_bench.trainers.card import eval_results, kept_scores, metric_arguments, with_interval


def export_model_index(store: RunStore, *, out: Path) -> int:
    """Write a card of metadata alone, whole or not at all; returns the number of results in it.

    `huggingface_hub.metadata_update` merges it into a card that is there; a new card can begin with it.
    """
    from huggingface_hub import ModelCardData

    scores = scores_of(store)
    found = model_index_results(scores, store.manifest["identity"]["tasks"])
    if not found:
        raise StoreError(f"{store.folder} has no score yet: nothing to put into a model card. Finish it with `run`.")
    data = ModelCardData(model_name=str(scores["model"]["name"]), tags=["bfpo-bench"], eval_results=found)
    write_atomically(out, f"---\n{data.to_yaml()}\n---\n")
    return len(found)


def model_index_results(scores: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """huggingface_hub's EvalResults: each axis, then each task; what has no score is not among them."""
    from huggingface_hub import EvalResult

    # Tasks that were named one by one are no suite.
    results = eval_results([{**kept_scores(scores), "suite": scores["suite"] or "tasks"}])
    for name, task in sorted(scores["tasks"].items()):
        if (score := task["score"]) is not None:
            spec = specs[name]
            judged = "" if task["judge"] is None else f", judged by {task['judge']}"
            results.append(
                EvalResult(
                    task_type="text-generation",
                    task_name=f"bfpo_bench {name} {task['version']}",
                    dataset_type=spec.get("dataset_path") or f"bfpo_bench/{name}",
                    # The hub tells results apart by it: two tasks may take different rows of one set.
                    dataset_config=name,
                    dataset_name=name,
                    dataset_revision=spec["revision"] if spec.get("dataset_path") else None,
                    metric_type=task["metric"],
                    metric_name=with_interval(f"{task['metric']}{judged}", score),
                    metric_value=score["value"],
                    metric_args=metric_arguments(score),
                )
            )
    return results

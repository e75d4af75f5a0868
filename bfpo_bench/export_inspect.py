"""A run as inspect_ai's logs (format 2, read by 0.3.285), a JSON file a task; neither imports nor needs inspect_ai.

`inspect view --log-dir OUT` shows them, `inspect_ai.log.read_eval_log` reads them. A judge is a scorer. inspect's word
for "not scored" is NaN, which JSON has not: such a sample has no score of that judge, and the reason in its metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bfpo_bench.export import without_surrogates
from bfpo_bench.export_tasks import (
    ScoredSample,
    ScoredTask,
    file_name,
    scored_at,
    scored_tasks,
    scores_of,
    write_folder,
)
from bfpo_bench.store import RunStore
from bfpo_bench.types import Verdict

_FORMAT = 2
# The scorer of a task whose score no judge gives: the choice of the highest log-probability.
_BY_CHOICE = "choice"
_STOP_REASONS = {"stop": "stop", "length": "max_tokens", None: "unknown"}


def export_inspect(store: RunStore, *, out: Path) -> list[Path]:
    """Write a log a task into the folder `out`; returns the files.

    Their date, with which inspect wants a log's name to begin, is when the run was scored.
    """
    scores = scores_of(store)
    manifest, created = store.manifest, scored_at(store).isoformat(timespec="seconds")

    def files() -> Iterator[tuple[str, str]]:
        for task in scored_tasks(store, scores):
            log = _log(task, manifest, scores, created)
            name = "_".join(part.replace("_", "-").replace(":", "-") for part in (created, task.name, _id(log)))
            text = json.dumps(without_surrogates(log), ensure_ascii=True, allow_nan=False, indent=1)
            yield f"{file_name(name)}.json", text + "\n"

    return write_folder(out, files())


def _id(log: Mapping[str, Any]) -> str:
    return str(log["eval"]["task_id"])


def _log(task: ScoredTask, manifest: Mapping[str, Any], scores: Mapping[str, Any], created: str) -> dict[str, Any]:
    """inspect's EvalLog; the order of its keys is part of the format."""
    identity = manifest["identity"]
    run_id = _digest(json.dumps(identity, sort_keys=True))
    finished = all(one.output is not None for one in task.samples)
    return {
        "version": _FORMAT,
        "status": "success" if finished else "cancelled",
        "eval": {
            "run_id": run_id,
            "task_id": _digest(f"{run_id} {task.name}"),
            "created": created,
            "task": task.name,
            "task_version": str(task.spec["version"]),
            "dataset": {
                "name": task.spec["source"],
                "samples": sum(one.sample.repeat == 0 for one in task.samples),
                "sample_ids": [one.sample.id for one in task.samples if one.sample.repeat == 0],
                "shuffled": False,
            },
            "model": identity["model"]["name"],
            "config": {
                "limit": identity["limit"],
                "epochs": max((one.sample.repeat for one in task.samples), default=0) + 1,
            },
            "packages": {"bfpo_bench": identity["bfpo_bench"], **identity["packages"]},
            "metadata": {
                "axis": task.spec["axis"],
                "judge": task.judge,
                "judge_version": task.judge_version,
                "suite": identity["suite"],
                "profile": identity.get("profile", "default"),
                "model_identity": identity["model"]["identity"],
                "fingerprint": task.spec["fingerprint"],
                "status": scores["status"],
            },
        },
        "plan": {"steps": [{"solver": "generate", "params": _generation(task)}]},
        "results": {
            "total_samples": len(task.samples),
            "completed_samples": sum(one.output is not None and one.output.failure is None for one in task.samples),
            "scores": [_score(task, manifest)],
        },
        "stats": {"started_at": created, "completed_at": created},
        "samples": [_sample(task, one, identity["model"]["name"]) for one in task.samples if one.output is not None],
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:22]


def _generation(task: ScoredTask) -> dict[str, Any]:
    return next((dict(one.sample.generation) for one in task.samples if one.sample.generation), {})


def _scorer(task: ScoredTask) -> str:
    return task.judge or _BY_CHOICE


def _score(task: ScoredTask, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The task's score with the limits of its interval, as metrics, which a viewer shows."""
    score = task.score["score"]
    told = (
        {} if score is None else {str(task.spec["metric"]): score["value"], "low": score["low"], "high": score["high"]}
    )
    n = 0 if score is None else score["n"]
    return {
        "name": _scorer(task),
        "scorer": _scorer(task),
        "scored_samples": n,
        "unscored_samples": len(task.samples) - n,
        "params": {},
        "metrics": {name: {"name": name, "value": value, "params": {}} for name, value in told.items()},
        "metadata": {
            "unscored": dict(task.score["unscored"]),
            **({} if score is None else {"level": score["level"], "method": score["method"]}),
        },
    }


def _sample(task: ScoredTask, one: ScoredSample, model: str) -> dict[str, Any]:
    sample, output = one.sample, one.output
    assert output is not None
    asked = [{"role": m.role, "content": m.content} for m in sample.messages]
    asked = asked or [{"role": "user", "content": sample.prompt}]
    replied = [] if output.text is None else [_reply(output.text, output.thinking)]
    failed = {} if output.failure is None else {"error": _error(output.failure, output.detail)}
    stopped = _STOP_REASONS[output.finish_reason]
    return {
        # inspect's word for asking a prompt again.
        "id": sample.prompt_id,
        "epoch": sample.repeat + 1,
        "input": asked,
        **({"choices": [end for _, end in sample.choices]} if sample.choices else {}),
        "target": "" if sample.reference is None else sample.reference,
        "messages": [*asked, *replied],
        "output": {
            "model": model,
            "choices": [{"message": message, "stop_reason": stopped} for message in replied],
            **({} if output.n_tokens is None else {"usage": _usage(output.n_prompt_tokens or 0, output.n_tokens)}),
        },
        "scores": _sample_scores(task, one),
        "metadata": {
            "sample_id": sample.id,
            "index": sample.index,
            "category": sample.category,
            "previous": sample.previous,
            "unscored": one.why,
            "unscored_by": {v.judge: v.unscored for v in one.verdicts if v.unscored is not None},
            "choice_logprobs": None if output.choice_logprobs is None else list(output.choice_logprobs),
        },
        **failed,
    }


def _reply(text: str, thinking: str | None) -> dict[str, Any]:
    if thinking is None:
        return {"role": "assistant", "content": text, "source": "generate"}
    parts = [{"type": "reasoning", "reasoning": thinking}, {"type": "text", "text": text}]
    return {"role": "assistant", "content": parts, "source": "generate"}


def _usage(n_prompt: int, n_new: int) -> dict[str, int]:
    return {"input_tokens": n_prompt, "output_tokens": n_new, "total_tokens": n_prompt + n_new}


def _error(failure: str, detail: str) -> dict[str, str]:
    return {"message": f"{failure}: {detail}" if detail else failure, "traceback": "", "traceback_ansi": ""}


def _sample_scores(task: ScoredTask, one: ScoredSample) -> dict[str, Any]:
    """By judge: the outcome of the one that the task's score stands on, what the others said as they said it."""
    deciding = task.deciding(one)
    found: dict[str, Any] = {}
    if one.outcome is not None:
        found[_scorer(task)] = {"value": one.outcome, **({} if deciding is None else _said(deciding))}
    for verdict in one.verdicts:
        said = verdict.label if verdict.score is None else verdict.score
        if verdict.judge != task.judge and said is not None:
            found[verdict.judge] = {"value": said, **_said(verdict)}
    return found


def _said(verdict: Verdict) -> dict[str, Any]:
    return {
        "explanation": verdict.raw or None,
        "metadata": {
            "label": verdict.label,
            "judge_version": verdict.judge_version,
            "detail": verdict.detail,
            "metrics": dict(verdict.metrics),
        },
    }

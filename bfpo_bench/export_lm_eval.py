"""A run in lm-eval's result format (0.4.13, `--log_samples`), for tools that read it; neither imports nor runs lm-eval.

OUT/MODEL/results_DATE.json          figures, configurations and versions a task
OUT/MODEL/samples_TASK_DATE.jsonl    a line a sample

What lm-eval has no word for keeps its own keys, which begin with `bfpo_`. What a run does not hold (a tokenizer's
tokens, metrics that were not computed) is left out, not made up.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bfpo_bench.errors import TaskError
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
from bfpo_bench.registry import load_registry, profile_overrides, read_task_yaml
from bfpo_bench.store import RunStore
from bfpo_bench.types import LM_EVAL_JUDGE

# lm-eval's name of answers as they came.
_NO_FILTER = "none"
_INVERTED = "1 - "
_OUTPUT_TYPES = {"choice": "multiple_choice", "generate": "generate_until"}
# lm-eval's own seeds, which our few-shot examples are drawn with.
_SEEDS = {"numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}


def export_lm_eval(store: RunStore, *, out: Path) -> Path:
    """Write the run below the folder `out`; returns the results file, which is written last.

    Its date is when the run was scored: exported again, a run has the same files.
    """
    scores = scores_of(store)
    manifest, at = store.manifest, scored_at(store)
    tasks = scored_tasks(store, scores)
    yamls = _yamls(manifest)
    configs = {task.name: _config(task, yamls.get(task.name)) for task in tasks}
    model = file_name(scores["model"]["name"])
    date = at.replace(tzinfo=None).isoformat(timespec="microseconds").replace(":", "-")
    lines = {task.name: [_line(task, one, configs[task.name]) for one in _answered(task)] for task in tasks}
    results = _results(manifest, scores, tasks, configs, lines, at)

    def files() -> Iterator[tuple[str, str]]:
        for name, rows in lines.items():
            yield f"{model}/samples_{file_name(name)}_{date}.jsonl", "".join(f"{_dumps(row)}\n" for row in rows)
        yield f"{model}/results_{date}.json", _dumps(results, indent=2)

    return write_folder(out, files())[-1]


def _dumps(value: Any, **options: Any) -> str:
    # ASCII only: a terminal that shows the file meets no control or bidirectional character.
    return json.dumps(without_surrogates(value), ensure_ascii=True, allow_nan=False, **options)


# -- configurations ----------------------------------------------------------------------------------------------------


def _yamls(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The run's tasks' YAMLs; without those that are not here any more, or are another than the run's."""
    profile = manifest["identity"].get("profile", "default")
    include = [Path(folder) for folder in manifest.get("include_path", []) if Path(folder).is_dir()]
    try:
        registry = load_registry(include, profile=profile)
    except TaskError:
        registry = load_registry(profile=profile)
    found: dict[str, Mapping[str, Any]] = {}
    for name, task in manifest["identity"]["tasks"].items():
        if name in registry and registry[name].fingerprint == task["fingerprint"]:
            config = read_task_yaml(Path(registry[name].yaml_path))
            found[name] = {**config, **profile_overrides(name, config["metadata"]["bfpo"], profile)}
    return found


def _config(task: ScoredTask, yaml: Mapping[str, Any] | None) -> dict[str, Any]:
    """As lm-eval dumps a task's configuration; without the YAML what the manifest knows of it."""
    name, inverted = _metric(task)
    known: dict[str, Any] = {"metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": not inverted}]}
    if yaml is not None:
        known = {key: part for key, part in yaml.items() if key not in ("tag", "chat")}
        known["num_fewshot"] = yaml.get("num_fewshot") or 0
    generation = [one.sample.generation for one in task.samples if one.sample.generation]
    about = {"version": _version(task), "judge": task.judge, "judge_version": task.judge_version}
    return {
        **known,
        "task": task.name,
        **{key: task.spec[key] for key in ("dataset_path", "dataset_name") if task.spec.get(key)},
        "output_type": _OUTPUT_TYPES[task.spec["kind"]],
        **({"generation_kwargs": dict(generation[0])} if generation else {}),
        "repeats": max((one.sample.repeat for one in task.samples), default=0) + 1,
        "should_decontaminate": False,
        "metadata": {**known.get("metadata", {}), **about},
    }


def _version(task: ScoredTask) -> float | str:
    """A number where that says the same: `1.1`, not `1.10`."""
    text = str(task.spec["version"])
    try:
        number = float(text)
    except ValueError:
        return text
    return number if str(number) == text else text


def _metric(task: ScoredTask) -> tuple[str, bool]:
    """lm-eval's name of what the score is, and whether ours is one less it: `1 - pct_stereotype`."""
    metric = str(task.spec["metric"])
    return metric.removeprefix(_INVERTED), metric.startswith(_INVERTED)


def _filter(config: Mapping[str, Any]) -> str:
    named = config.get("metadata", {}).get("bfpo", {}).get("filter")
    filters = config.get("filter_list") or [{"name": _NO_FILTER}]
    return str(named or filters[0]["name"])


# -- samples -----------------------------------------------------------------------------------------------------------


def _answered(task: ScoredTask) -> list[ScoredSample]:
    """What was never asked is in no line: lm-eval's files hold what was evaluated."""
    return [one for one in task.samples if one.output is not None]


def _line(task: ScoredTask, one: ScoredSample, config: Mapping[str, Any]) -> dict[str, Any]:
    sample = one.sample
    doc = sample.meta.get("doc") or {"prompt": sample.prompt, "category": sample.category, **sample.meta}
    target = "" if sample.reference is None else str(json.loads(sample.reference))
    requests: list[tuple[str, Any]] = list(sample.choices) or [(sample.prompt, dict(sample.generation))]
    responses = _responses(one)
    metrics = _sample_metrics(task, one)
    return {
        "doc_id": sample.index,
        "doc": doc,
        "target": target,
        "arguments": {f"gen_args_{i}": {"arg_0": first, "arg_1": second} for i, (first, second) in enumerate(requests)},
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "filter": _filter(config),
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(requests[0][0]),
        "target_hash": _hash(target),
        **metrics,
        "bfpo_sample_id": sample.id,
        "bfpo_repeat": sample.repeat,
        "bfpo_unscored": one.why,
    }


def _responses(one: ScoredSample) -> list[Any]:
    """A pair (log-probability, greedy) a choice, as texts, which is how lm-eval writes them; else the answer."""
    output = one.output
    if output is None or output.choice_logprobs is None:
        return [None if output is None else output.text]
    greedy = output.choice_greedy or (None,) * len(output.choice_logprobs)
    return [[str(logprob), str(is_greedy)] for logprob, is_greedy in zip(output.choice_logprobs, greedy, strict=True)]


def _sample_metrics(task: ScoredTask, one: ScoredSample) -> dict[str, Any]:
    """The score's metric, None where unscored, and all others that lm-eval's own code gave."""
    name, inverted = _metric(task)
    verdict = task.deciding(one) if task.judge == LM_EVAL_JUDGE else None
    others = {} if verdict is None else dict(verdict.metrics)
    if one.outcome is None:
        return {**others, name: None}
    return {name: 1.0 - one.outcome if inverted else one.outcome, **others}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# -- results -----------------------------------------------------------------------------------------------------------


def _results(
    manifest: Mapping[str, Any],
    scores: Mapping[str, Any],
    tasks: Sequence[ScoredTask],
    configs: Mapping[str, Mapping[str, Any]],
    lines: Mapping[str, Sequence[Mapping[str, Any]]],
    at: datetime,
) -> dict[str, Any]:
    identity, engine = manifest["identity"], manifest.get("engine", {})
    model, environment = identity["model"], manifest.get("environment", {})
    system = model.get("system_prompt")
    return {
        "results": {task.name: _figures(task, configs[task.name]) for task in tasks},
        "group_subtasks": {},
        "configs": dict(configs),
        "versions": {task.name: _version(task) for task in tasks},
        "n-shot": {task.name: c["num_fewshot"] for task in tasks if "num_fewshot" in (c := configs[task.name])},
        "higher_is_better": {task.name: _directions(task, configs[task.name]) for task in tasks},
        "n-samples": {
            task.name: {
                "original": task.spec.get("n") or _n_prompts(task.samples),
                "effective": _n_prompts(_answered(task)),
            }
            for task in tasks
        },
        "config": {
            "model": model["engine"],
            "model_args": {"pretrained": model["name"], **model.get("engine_args", {})},
            **{f"model_{key}": engine[key] for key in ("dtype",) if key in engine},
            "model_revision": model.get("revision") or "",
            "model_sha": model["identity"],
            "batch_size": None,
            "batch_sizes": [],
            "device": engine.get("device"),
            "use_cache": None,
            "limit": identity["limit"],
            "bootstrap_iters": None,
            "gen_kwargs": {},
            "random_seed": identity["seed"],
            **_SEEDS,
        },
        "git_hash": environment.get("git"),
        "date": at.timestamp(),
        "pretty_env_info": f"Python {environment.get('python', '?')}, {environment.get('platform', '?')}",
        "transformers_version": identity["packages"].get("transformers", "N/A"),
        "lm_eval_version": identity["packages"].get("lm_eval", "N/A"),
        "upper_git_hash": None,
        "max_length": engine.get("max_length"),
        "task_hashes": {
            name: _hash("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))
            for name, rows in lines.items()
        },
        "model_source": model["engine"],
        "model_name": model["name"],
        "model_name_sanitized": file_name(model["name"]),
        "system_instruction": system,
        "system_instruction_sha": _hash(system) if system else None,
        "fewshot_as_multiturn": None,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": None,
        "bfpo_bench": {
            "version": identity["bfpo_bench"],
            "status": scores["status"],
            "judge": scores["judge"],
            "axes": scores["axes"],
            "tasks": {task.name: task.score["score"] for task in tasks},
        },
    }


def _n_prompts(samples: Sequence[ScoredSample]) -> int:
    return sum(one.sample.repeat == 0 for one in samples)


def _figures(task: ScoredTask, config: Mapping[str, Any]) -> dict[str, Any]:
    """`metric,filter` and its standard error, of what was scored; nothing where nothing was."""
    name, inverted = _metric(task)
    filter_, score = _filter(config), task.score["score"]
    figures: dict[str, Any] = {"name": task.name, "alias": task.name, "sample_len": 0 if score is None else score["n"]}
    if score is not None:
        outcomes = [one.outcome for one in task.samples if one.outcome is not None]
        figures[f"{name},{filter_}"] = 1.0 - score["value"] if inverted else score["value"]
        figures[f"{name}_stderr,{filter_}"] = _stderr(outcomes)
    for other, value in task.score["also"].items():
        if value is not None and f"{other},{filter_}" not in figures:
            figures |= {f"{other},{filter_}": value, f"{other}_stderr,{filter_}": "N/A"}
    return figures


def _stderr(values: Sequence[float]) -> float | str:
    """Of a mean: the sample's standard deviation over sqrt(n); lm-eval's word where one value has none."""
    n = len(values)
    if n < 2:
        return "N/A"
    mean = sum(values) / n
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)) / math.sqrt(n)


def _directions(task: ScoredTask, config: Mapping[str, Any]) -> dict[str, Any]:
    name, inverted = _metric(task)
    told = {one["metric"]: one.get("higher_is_better", True) for one in config.get("metric_list") or []}
    return {**told, name: not inverted}

"""A task's own metrics as a judge: lm-eval's filters and process_results on stored answers; needs no model, no data."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from bfpo_bench.errors import JudgeError
from bfpo_bench.harness.prompts import quiet, task_config
from bfpo_bench.types import LM_EVAL_JUDGE, JudgeItem, TaskSpec, Verdict

_BATCH = 500


class LMEvalMetrics:
    """Gives each answer the value of its task's metric, as plain lm-eval computes it (0.4.13).

    The rows travel in the samples (`meta.doc`), so that an old run can be judged again where its data is not.
    `specs` are the run's tasks as the registry reads them now; a task that has changed since the run is refused.
    """

    def __init__(self, specs: Mapping[str, TaskSpec], *, profile: str) -> None:
        self._specs = specs
        self._profile = profile

    @property
    def name(self) -> str:
        return LM_EVAL_JUDGE

    @property
    def version(self) -> str:
        return version("lm_eval")

    def judge(self, items: Sequence[JudgeItem]) -> Iterator[list[Verdict]]:
        by_task: dict[str, list[JudgeItem]] = defaultdict(list)
        for item in items:
            by_task[item.sample.task].append(item)
        for name, mine in by_task.items():
            spec = self._specs[name]
            with quiet():
                task = _task_without_data(spec, self._profile, mine[0].sample.meta["doc"])
                for start in range(0, len(mine), _BATCH):
                    yield [self._verdict(spec, task, item) for item in mine[start : start + _BATCH]]

    def _verdict(self, spec: TaskSpec, task: Any, item: JudgeItem) -> Verdict:
        def verdict(**fields: Any) -> Verdict:
            return Verdict(sample_id=item.sample.id, judge=self.name, judge_version=self.version, **fields)

        try:
            metrics = plain(task.process_results(item.sample.meta["doc"], _results(spec, task, item)))
        except Exception as error:
            # A task's code may fail on one odd answer; plain lm-eval would lose the whole run there.
            return verdict(unscored="metric", detail=f"{type(error).__name__}: {error}")
        if (value := metric_value(spec.metric, metrics)) is None:
            return verdict(unscored="metric", detail=f"{spec.metric} is {metrics.get(metric_name(spec.metric))!r}")
        return verdict(score=value, metrics=metrics)


def metric_name(metric: str) -> str:
    """lm-eval's name of it: `1 - pct_stereotype` -> `pct_stereotype`."""
    return metric.removeprefix("1 - ")


def metric_value(metric: str, metrics: Mapping[str, Any]) -> float | None:
    """The metric's value, higher is better; None where it is no number from 0 to 1."""
    value = metrics.get(metric_name(metric))
    if not isinstance(value, int | float) or not -1e-9 <= value <= 1 + 1e-9:
        return None
    value = min(1.0, max(0.0, float(value)))
    return 1.0 - value if metric.startswith("1 - ") else value


def plain(value: Any) -> Any:
    """lm-eval's metrics as JSON values: numpy's numbers and arrays as Python's, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _results(spec: TaskSpec, task: Any, item: JudgeItem) -> list[Any]:
    """What lm-eval hands to process_results: (log-probability, greedy) a choice, or the filtered text."""
    if spec.kind == "choice":
        output = item.output
        if output is None or output.choice_logprobs is None or output.choice_greedy is None:
            raise JudgeError(f"Sample {item.sample.id} of {spec.name!r} has no log-probabilities.")
        return list(zip(output.choice_logprobs, output.choice_greedy, strict=True))
    return [_filtered(spec, task, item)]


def _filtered(spec: TaskSpec, task: Any, item: JudgeItem) -> Any:
    from lm_eval.api.instance import Instance

    instance = Instance(
        request_type="generate_until",
        doc=item.sample.meta["doc"],
        arguments=(item.sample.prompt, dict(item.sample.generation)),
        idx=0,
        metadata=(spec.name, item.sample.index, 1),
    )
    instance.resps = [item.text]
    names = {ensemble.name: ensemble for ensemble in task._filters}
    wanted = task.config.metadata["bfpo"].get("filter") or next(iter(names))
    names[wanted].apply([instance])
    return instance.filtered_resps[wanted]


def _task_without_data(spec: TaskSpec, profile: str, doc: Mapping[str, Any]) -> Any:
    """The task with one stored row in place of its data: the row is as `process_docs` left it."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    config = task_config(spec, profile)
    if (langdetect := sys.modules.get("langdetect")) is not None:
        # IFEval's language check draws at random unless told otherwise.
        langdetect.DetectorFactory.seed = 0
    split = config.get("test_split") or config.get("validation_split")
    rows = datasets.DatasetDict({split: datasets.Dataset.from_list([dict(doc)])})
    # Metrics need no examples, and the splits that hold them are not here.
    unused = {"process_docs": None, "training_split": None, "fewshot_split": None, "num_fewshot": 0}
    return ConfigurableTask(config={**config, **unused, "custom_dataset": lambda **_: rows})

"""Run folders -> pandas frames for notebooks and scripts, values as the scores have them; computes no score.

docs/api.md describes every column; `SAMPLES`, `VERDICTS` and `SCORES` give their types.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bfpo_bench.errors import ConfigError, StoreError
from bfpo_bench.export import sample_row
from bfpo_bench.export_tasks import ScoredSample, ScoredTask, scored_tasks, scores_of
from bfpo_bench.leaderboard.rows import find_runs
from bfpo_bench.store import RunStore
from bfpo_bench.types import AXES

if TYPE_CHECKING:
    import pandas as pd

# A text that may be missing, a whole number that may be missing, a number (NaN where missing), yes or no, a list.
Kind = Literal["text", "count", "number", "flag", "list"]

SAMPLES: Mapping[str, Kind] = {
    "run": "text",
    "model": "text",
    "task": "text",
    "axis": "text",
    "sample_id": "text",
    "index": "count",
    "repeat": "count",
    "category": "text",
    "cluster": "text",
    "prompt": "text",
    "previous": "text",
    "choices": "list",
    "reference": "text",
    "text": "text",
    "thinking": "text",
    "choice_logprobs": "list",
    "choice_greedy": "list",
    "finish_reason": "text",
    "n_prompt_tokens": "count",
    "n_tokens": "count",
    "failure": "text",
    "detail": "text",
    "empty": "flag",
    "truncated": "flag",
    "judge": "text",
    "outcome": "number",
    "why": "text",
}
VERDICTS: Mapping[str, Kind] = {
    "run": "text",
    "model": "text",
    "task": "text",
    "axis": "text",
    "sample_id": "text",
    "judge": "text",
    "judge_version": "text",
    "deciding": "flag",
    "label": "text",
    "score": "number",
    "unscored": "text",
    "raw": "text",
    "detail": "text",
    "metrics": "text",
}
SCORES: Mapping[str, Kind] = {
    "run": "text",
    "model": "text",
    "scope": "text",
    "axis": "text",
    "task": "text",
    "version": "text",
    "category": "text",
    "judge": "text",
    "judge_version": "text",
    "metric": "text",
    "chance": "number",
    "value": "number",
    "low": "number",
    "high": "number",
    "level": "number",
    "method": "text",
    "n": "count",
    "n_unscored": "count",
    "n_empty": "count",
    "n_truncated": "count",
    "status": "text",
}


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What `load` gives: three frames with the columns of SAMPLES, VERDICTS and SCORES, and each run's manifest.

    samples: a row a sample, with the model's answer and the outcome (0 to 1) that the score stands on
    verdicts: a row a judge's word on a sample
    scores: a row a score: of a task, an axis, a category, by another judge
    manifests: by the run's name, which is the frames' column `run`
    """

    samples: pd.DataFrame
    verdicts: pd.DataFrame
    scores: pd.DataFrame
    manifests: Mapping[str, dict[str, Any]]

    @property
    def manifest(self) -> dict[str, Any]:
        """The one run's; ConfigError where there are several."""
        if len(self.manifests) != 1:
            raise ConfigError(
                f"{len(self.manifests)} runs have no one manifest. Use .manifests[RUN], RUN one of: "
                f"{', '.join(self.manifests)}."
            )
        return next(iter(self.manifests.values()))


def load(runs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Runs:
    """The runs at one path or several, each a run folder or a folder that holds some.

    A run is called by its folder's name, or by as much of its path as tells it from the others. StoreError where
    there is none, or one was not scored.
    """
    paths = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    folders = find_runs([Path(path) for path in paths])
    names = _names(folders)
    samples: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    manifests: dict[str, dict[str, Any]] = {}
    for name, folder in zip(names, folders, strict=True):
        store = RunStore.read(folder)
        try:
            manifests[name] = store.manifest
            told = scores_of(store)
            model = {"run": name, "model": told["model"]["name"]}
            scores += ({**model, "status": told["status"], **row} for row in _score_rows(told))
            for task in scored_tasks(store, told):
                for one in task.samples:
                    sample, spoken = _sample_row(task, one)
                    samples.append({**model, **sample})
                    verdicts += ({**model, **verdict} for verdict in spoken)
        finally:
            store.close()
    return Runs(
        samples=_frame(samples, SAMPLES),
        verdicts=_frame(verdicts, VERDICTS),
        scores=_frame(scores, SCORES),
        manifests=manifests,
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the folders' paths, as many as tell all of them apart."""
    parts = [folder.resolve().parts for folder in folders]
    longest = max(map(len, parts))
    for depth in range(1, longest + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise StoreError(f"The same run is given twice: {', '.join(map(str, folders))}. Name each once.")


def _sample_row(task: ScoredTask, one: ScoredSample) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The sample's row, and the rows of what was said of it."""
    row = sample_row(one.sample, one.output, one.verdicts)
    deciding, place = task.deciding(one), {key: row[key] for key in ("task", "sample_id")} | {"axis": task.spec["axis"]}
    sample = {
        **row,
        **place,
        "empty": one.output is not None and one.output.empty,
        "truncated": one.output is not None and one.output.truncated,
        "judge": task.judge,
        "outcome": one.outcome,
        "why": one.why,
    }
    said = zip(one.verdicts, row["verdicts"], strict=True)
    return sample, [{**told, **place, "deciding": verdict is deciding} for verdict, told in said]


def _score_rows(scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """scores.json laid out flat; where there is no score the row is there, with what is known and no value."""
    for axis in AXES:
        of_axis = [name for name, task in scores["tasks"].items() if task["axis"] == axis]
        if of_axis or scores["axes"].get(axis) is not None:
            yield {"scope": "axis", "axis": axis, "judge": scores["judge"], **(scores["axes"].get(axis) or {})}
    for name, task in sorted(scores["tasks"].items()):
        about = {key: task[key] for key in ("axis", "metric", "version", "chance")} | {"task": name}
        judged = {"judge": task["judge"], "judge_version": task["judge_version"]}
        yield {"scope": "task", **about, **judged, **_score(task)}
        # A run of before there were several answers a prompt has not even the key.
        if task.get("worst_of_k") is not None:
            yield {"scope": "worst_of_k", **about, **judged, **task["worst_of_k"]}
        for category, score in task["categories"].items():
            yield {"scope": "category", **about, **judged, "category": category, **(score or {})}
        for judge, other in task["other_judges"].items():
            judged = {"judge": judge, "judge_version": other["judge_version"]}
            yield {"scope": "other_judge", **about, **judged, **_score(other)}


def _score(rating: Mapping[str, Any]) -> dict[str, Any]:
    """With nothing scored there is no value, but it is known how many samples it lacks."""
    return rating["score"] or {"n": 0, "n_unscored": sum(rating["unscored"].values())}


def _frame(found: Sequence[Mapping[str, Any]], columns: Mapping[str, Kind]) -> pd.DataFrame:
    import pandas as pd

    # Text as Python has it: Arrow's could not hold half of a surrogate pair, which a prompt may.
    types: dict[Kind, Any] = {
        "text": pd.StringDtype("python"),
        "count": pd.Int64Dtype(),
        "number": "float64",
        "flag": "bool",
        "list": "object",
    }
    series = {name: pd.Series([row.get(name) for row in found], dtype=types[kind]) for name, kind in columns.items()}
    return pd.DataFrame(series, columns=list(columns))

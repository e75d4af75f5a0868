"""Builds run folders from Python values, for tests: no model, no judge, no lm-eval; written through RunStore."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bfpo_bench.outcomes import run_outcomes, write_outcomes
from bfpo_bench.panel import parse_rule
from bfpo_bench.scoring import answers_by_task, panel_verdicts, score_run
from bfpo_bench.store import RunStore
from bfpo_bench.types import (
    LM_EVAL_JUDGE,
    Axis,
    Failure,
    Label,
    Message,
    Output,
    PaperRole,
    Sample,
    TaskSpec,
    Unscored,
    Verdict,
    sample_id,
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sample with what the model answered and the judge said; without an answer or a failure it was not run."""

    prompt: str
    answer: str | None = None
    label: Label | None = None
    score: float | None = None
    unscored: Unscored | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    raw: str = ""
    detail: str = ""
    category: str | None = None
    cluster: str | None = None
    failure: Failure | None = None
    truncated: bool = False
    choices: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    gold: int = 0
    others: Mapping[str, Label | float] = field(default_factory=dict)
    thinking: str | None = None
    previous: str | None = None


@dataclass(frozen=True, kw_only=True)
class BuiltTask:
    """A task of the run: a choice task where its items have choices, else judged by the run's judge.

    `judge` is the task's own, which replaces the run's where it is lm-eval's metric.
    """

    name: str
    axis: Axis
    items: Sequence[Item]
    version: str = "1.0"
    chance: float | None = None
    metric: str | None = None
    judge: str | None = None
    n: int | None = None
    paper: PaperRole | None = None
    also: tuple[str, ...] = ()

    @property
    def spec(self) -> TaskSpec:
        is_choice = any(item.choices for item in self.items)
        return TaskSpec(
            name=self.name,
            version=self.version,
            axis=self.axis,
            kind="choice" if is_choice else "generate",
            metric=self.metric or ("acc" if is_choice else "harmless" if self.axis == "harmlessness" else "passed"),
            judge=self.judge or (None if is_choice else "keyword"),
            source="tests",
            revision="1",
            licence="CC0-1.0",
            suites=("mini",),
            yaml_path="",
            fingerprint=f"sha256:{self.name}",
            chance=self.chance,
            n=self.n,
            paper=self.paper,
            also=self.also,
        )


def harmful_task(name: str = "bfpo_mini_harmful", *, refused: int = 0, harmful: int = 0, extra: Sequence[Item] = (),
                 version: str = "1.0", **more: Any) -> BuiltTask:  # fmt: skip
    """A harmlessness task with so many refusals and harmful answers."""
    items = [Item(prompt=f"Harmful request {i}?", answer="I cannot help.", label="refused") for i in range(refused)]
    items += [Item(prompt=f"Bad request {i}?", answer="Sure, first you", label="harmful") for i in range(harmful)]
    return BuiltTask(name=name, axis="harmlessness", items=[*items, *extra], version=version, **more)


def helpful_task(name: str = "bfpo_mini_helpful", *, passed: int = 0, failed: int = 0,
                 extra: Sequence[Item] = (), **more: Any) -> BuiltTask:  # fmt: skip
    """A helpfulness task with so many good and bad answers."""
    items = [Item(prompt=f"Question {i}?", answer="Here is how.", label="passed") for i in range(passed)]
    items += [Item(prompt=f"Hard question {i}?", answer="No idea.", label="failed") for i in range(failed)]
    return BuiltTask(name=name, axis="helpfulness", items=[*items, *extra], **more)


def build_run(
    folder: Path,
    *,
    tasks: Sequence[BuiltTask],
    model: str = "alpha",
    engine: str = "hf",
    identity: str | None = None,
    suite: str | None = "mini",
    profile: str = "default",
    data: Mapping[str, str] | None = None,
    judge: str = "keyword",
    judge_version: str = "1",
    limit: int | None = None,
    status: str | None = None,
    reasons: Sequence[str] | None = None,
    missing: Mapping[str, str] | None = None,
    panel: str | None = None,
    corrected: Mapping[tuple[str, str], Mapping[str, Any] | None] | None = None,
    trained_from: Mapping[str, Any] | None = None,
    scored: bool = True,
) -> Path:
    """A run folder with manifest, samples, outputs, verdicts and, unless `scored` is False, scores.

    `status` and `reasons` replace what scoring says; of a task in `missing` nothing was asked. `panel` is the rule by
    which all the judges decide together; `corrected` holds what a task's rate by a judge is, less that judge's errors.
    """
    identity = identity or f"sha256:{model}"
    others = sorted({other for task in tasks for item in task.items for other in item.others})
    judges = [judge, *others]
    manifest = {
        "schema": 2,
        "identity": {
            "bfpo_bench": "0.1.0",
            "packages": {"lm_eval": "0.4.13", "torch": "2.13.0", "transformers": "5.5.0"},
            "model": {"name": model, "engine": engine, "identity": identity, "path": f"/home/somebody/models/{model}"},
            "suite": suite,
            "profile": profile,
            "limit": limit,
            "seed": 0,
            "tasks": {t.name: {k: v for k, v in asdict(t.spec).items() if k != "yaml_path"} for t in tasks},
        },
        "environment": {"machine": "secret-host", "command": ["bfpo_bench", "run", "--out", str(folder.resolve())]},
        "judges": {name: judge_version for name in (*judges, LM_EVAL_JUDGE)},
        "chosen_judges": judges,
        "missing": dict(missing or {}),
        "data": dict(data or {}),
        **({} if trained_from is None else {"trained_from": dict(trained_from)}),
    }
    asked = [task for task in tasks if task.name not in (missing or {})]
    planned = [(task, item, _sample(task, item, index)) for task in asked for index, item in enumerate(task.items)]
    samples = [sample for _, _, sample in planned]
    outputs = [output for _, item, sample in planned if (output := _output(item, sample)) is not None]
    verdicts = [
        verdict
        for task, item, sample in planned
        for verdict in _verdicts(item, sample, task.judge if task.judge == LM_EVAL_JUDGE else judge, judge_version)
    ]
    specs = [task.spec for task in tasks]
    if panel is not None:
        answers = answers_by_task(samples, {output.sample_id: output for output in outputs}, verdicts)
        versions = {verdict.judge: verdict.judge_version for verdict in verdicts}
        rule = parse_rule(panel)
        verdicts += list(panel_verdicts(specs, lambda task: answers[task], rule, versions=versions, judges=judges))
    with RunStore.create_or_resume(folder, manifest) as store:
        store.add_samples(samples)
        store.add_outputs(outputs)
        store.add_verdicts(verdicts)
        if scored:
            scores = score_run(
                specs,
                samples,
                {output.sample_id: output for output in outputs},
                verdicts,
                judges=judges,
                missing=missing,
            )
            answers = {output.sample_id: output for output in outputs}
            write_outcomes(folder, run_outcomes(specs, samples, answers, verdicts, tasks=scores["tasks"]))
            scores |= {} if status is None else {"status": status}
            scores |= {} if reasons is None else {"reasons": list(reasons)}
            for (task_name, name), rate in (corrected or {}).items():
                body = scores["tasks"][task_name]
                (body if body["judge"] == name else body["other_judges"][name])["corrected"] = rate
            head = {"schema": 2, "model": {"name": model, "identity": identity}, "suite": suite, "limit": limit}
            title = judge if panel is None else f"panel ({', '.join(judges)})"
            told = None if panel is None else {"rule": panel, "judges": judges}
            store.write_scores({**head, "profile": profile, "judge": title, "panel": told, **scores})
    return folder


def _sample(task: BuiltTask, item: Item, index: int) -> Sample:
    choices = tuple((item.prompt, choice) for choice in item.choices)
    return Sample(
        id=sample_id(task.name, task.version, item.prompt, choices, index),
        task=task.name,
        index=index,
        prompt=item.prompt,
        previous=item.previous,
        messages=() if item.choices else (Message(role="user", content=item.prompt),),
        choices=choices,
        reference=json.dumps(item.gold) if item.choices else None,
        category=item.category,
        cluster=item.cluster,
    )


def _output(item: Item, sample: Sample) -> Output | None:
    if item.failure is not None:
        return Output(sample_id=sample.id, failure=item.failure, detail=item.detail)
    if item.choices:
        greedy = tuple(False for _ in item.logprobs)
        return Output(sample_id=sample.id, choice_logprobs=item.logprobs, choice_greedy=greedy)
    if item.answer is None:
        return None
    tokens = len(item.answer) // 4
    return Output(
        sample_id=sample.id,
        text=item.answer,
        thinking=item.thinking,
        finish_reason="length" if item.truncated else "stop",
        n_tokens=tokens,
    )


def _verdicts(item: Item, sample: Sample, judge: str, version: str) -> list[Verdict]:
    if item.failure is not None:
        return []
    found: list[Verdict] = []
    if (item.label, item.score, item.unscored) != (None, None, None):
        fields: dict[str, Any] = {name: getattr(item, name) for name in ("label", "score", "unscored", "raw", "detail")}
        found.append(
            Verdict(sample_id=sample.id, judge=judge, judge_version=version, metrics=dict(item.metrics), **fields)
        )
    for other, said in item.others.items():
        word: dict[str, Any] = {"score" if isinstance(said, float) else "label": said}
        found.append(Verdict(sample_id=sample.id, judge=other, judge_version=version, **word))
    return found

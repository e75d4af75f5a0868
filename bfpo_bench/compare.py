"""Is one scored run better than another, task by task and axis by axis, on the same prompts under the same judges.

Reads manifest, scores and outcomes of run folders; computes no score, asks no judge, prints nothing. Runs that cannot
be told apart from what they were asked, or from who judged them, are refused with what differs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bfpo_bench.errors import ConfigError, StoreError, did_you_mean
from bfpo_bench.leaderboard.inert import visible
from bfpo_bench.outcomes import Outcomes, RunOutcomes, read_outcomes_of
from bfpo_bench.paired import MacroDifference, PairedDifference, holm, macro_difference, paired_difference
from bfpo_bench.store import DATABASE, MANIFEST, SCHEMA, SCORES, RunStore, read_json
from bfpo_bench.tradeoff import Refusals, SafetyTax, TaskOutcomes, axis_draws, axis_points, refusals, safety_tax
from bfpo_bench.types import AXES, Axis, Output, Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Verdict = Literal["better", "worse", "no difference shown", "not compared"]

REPORT_SCHEMA = 1
LEVEL = 0.95
# Settings of the answers that two runs of one model may differ in on purpose; only where the user says so.
ACROSS = ("max_new_tokens", "thinking_tokens", "temperature")
# Characters of a prompt or an answer in a line about a flipped sample.
EXCERPT = 80
_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A run's small files. `name` is its model's, or its folder's where two runs have one model."""

    folder: Path
    name: str
    identity: Mapping[str, Any]
    data: Mapping[str, str]
    scores: Mapping[str, Any]
    outcomes: RunOutcomes

    @property
    def tasks(self) -> Mapping[str, Mapping[str, Any]]:
        """The tasks that the run was to have, as they were when it began."""
        tasks: Mapping[str, Mapping[str, Any]] = self.identity["tasks"]
        return tasks

    @property
    def partial(self) -> bool:
        return bool(self.scores["status"] != "complete")


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A field, of one task or of all, in which two runs differ so that a difference would not be the models'."""

    field: str
    base: Any
    new: Any
    task: str | None = None

    def __str__(self) -> str:
        place = "" if self.task is None else f"{self.task}: "
        return f"{place}{self.field} {_short(self.base)} -> {_short(self.new)}"


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Samples that no pair was made of, being unscored in either run; each run's own by reason."""

    n: int
    base: Mapping[str, int]
    new: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A sample whose value changed; `prompt` and answers (base, new) are excerpts on one line, None where not shown."""

    id: str
    category: str | None
    base: float
    new: float
    prompt: str | None = None
    answers: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedTask:
    """`paired` is None where no sample is scored in both; `p_holm` is adjusted over the comparison's tasks."""

    axis: Axis
    n_total: int
    paired: PairedDifference | None
    p_holm: float | None
    verdict: Verdict
    left_out: LeftOut
    better: Sequence[Flip] = ()
    worse: Sequence[Flip] = ()


@dataclass(frozen=True, kw_only=True)
class ComparedAxis:
    """The mean over an axis' tasks; None where one of them has no pair."""

    tasks: Sequence[str]
    mean: MacroDifference | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run against the base."""

    run: str
    tasks: Mapping[str, ComparedTask]
    axes: Mapping[Axis, ComparedAxis]
    safety_tax: SafetyTax | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """`restricted`: not all tasks that the runs have. `refusals` are each run's, the base's first."""

    runs: Sequence[ScoredRun]
    comparisons: Sequence[Comparison]
    refusals: Mapping[str, Refusals]
    restricted: bool
    level: float = LEVEL
    notes: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values; docs/compare.md describes them."""
        return {
            "schema": REPORT_SCHEMA,
            "level": self.level,
            "base": run_json(self.runs[0]),
            "runs": [run_json(run) for run in self.runs[1:]],
            "restricted": self.restricted,
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "refusals": {name: asdict(found) for name, found in self.refusals.items()},
            "notes": list(self.notes),
        }


def run_json(run: ScoredRun) -> dict[str, Any]:
    """A run as reports name it: no place on this machine."""
    model = run.identity["model"]
    named = {"name": run.name, "model": model["name"], "identity": model["identity"], "status": run.scores["status"]}
    return {key: visible(str(value)) for key, value in named.items()}


def points(difference: float) -> str:
    """A difference in percentage points with its sign; what is 0 to one digit has none."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


# -- reading -----------------------------------------------------------------------------------------------------------


def read_runs(folders: Sequence[Path]) -> list[ScoredRun]:
    """Scored runs, each by a name of its own; StoreError for one that is not, ConfigError for one given twice."""
    places = [folder.resolve() for folder in folders]
    if twice := [folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise ConfigError(f"Run {twice[0]} is given twice. Name each run once.")
    records = [_read(folder) for folder in folders]
    names = _names(places, [str(manifest["identity"]["model"]["name"]) for manifest, _, _ in records])
    runs = []
    for folder, (manifest, scores, outcomes), name in zip(folders, records, names, strict=True):
        runs.append(
            ScoredRun(
                folder=folder,
                name=visible(name),
                identity=manifest["identity"],
                data=manifest.get("data", {}),
                scores=scores,
                outcomes=outcomes,
            )
        )
    return runs


def _names(places: Sequence[Path], models: Sequence[str]) -> list[str]:
    """A model's name where one run has it; else the folder's, by as much of its path as tells all runs apart."""
    depth = 0
    while True:
        depth += 1
        tails = ["/".join(place.parts[-depth:]) for place in places]
        names = [m if models.count(m) == 1 else tail for m, tail in zip(models, tails, strict=True)]
        # Another model may be called as a folder is.
        for found in (names, tails):
            if len(set(found)) == len(places):
                return found


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], RunOutcomes]:
    # os.path, because Path.is_file raises for a folder that may not be entered.
    if not os.path.isfile(folder / MANIFEST):
        raise StoreError(f"Not a run folder: {folder} has no {MANIFEST}. Give the folder that `run` printed.")
    again = f"python -m bfpo_bench score {folder}"
    if not (folder / SCORES).is_file():
        raise StoreError(f"Run {folder} has no {SCORES}. Score it first: {again}")
    manifest, scores = read_json(folder / MANIFEST), read_json(folder / SCORES)
    for name, body in ((MANIFEST, manifest), (SCORES, scores)):
        found = body.get("schema") if isinstance(body, dict) else None
        if found != SCHEMA:
            raise StoreError(f"{folder / name} has schema {found!r}; this version reads {SCHEMA}. Run it again.")
    if not isinstance(manifest.get("identity"), dict):
        raise StoreError(f"{folder / MANIFEST} is damaged: it has no identity. Run it again.")
    if not isinstance(scores.get("tasks"), dict):
        raise StoreError(f"{folder / SCORES} is damaged: it has no tasks. Score it again: {again}")
    return manifest, scores, read_outcomes_of(folder, scores["tasks"])


# -- what may be compared ----------------------------------------------------------------------------------------------


def comparable_tasks(
    base: ScoredRun,
    new: ScoredRun,
    *,
    tasks: Sequence[str] = (),
    across: Collection[str] = (),
    may_restrict: bool = True,
) -> list[str]:
    """The tasks of both runs, or of `tasks`, in the base's order; a ConfigError that names what differs and a remedy.

    Never fewer than were asked for: a mean over the tasks that happen to agree is another quantity. `may_restrict`:
    whether to ask for fewer is a remedy to name.
    """
    if wrong := [name for name in across if name not in ACROSS]:
        raise ConfigError(did_you_mean("setting for --across", wrong[0], ACROSS))
    known = list(dict.fromkeys([*base.tasks, *new.tasks]))
    for name in tasks:
        if name not in known:
            raise ConfigError(did_you_mean("task", name, known))
    wanted = [name for name in known if not tasks or name in tasks]
    found = {name: list(_mismatches(base, new, name, across)) for name in wanted}
    every = list(dict.fromkeys(mismatch for mismatches in found.values() for mismatch in mismatches))
    if not every:
        return wanted
    shown = "; ".join(map(str, every[:_NAMED])) + (f"; and {len(every) - _NAMED} more" if len(every) > _NAMED else "")
    alike = [name for name, mismatches in found.items() if not mismatches]
    # All of what differs has to be mended; to leave the tasks out where something does is another way.
    remedy = ", and ".join(_remedies({mismatch.field for mismatch in every}))
    remedy += f", or restrict the comparison with --tasks {','.join(alike)}" if alike and may_restrict else ""
    raise ConfigError(f"Cannot compare {new.name} with {base.name}: {visible(shown)}. {remedy[0].upper()}{remedy[1:]}.")


def _mismatches(base: ScoredRun, new: ScoredRun, task: str, across: Collection[str]) -> Iterator[Mismatch]:
    states = tuple(_state(run, task) for run in (base, new))
    if states != ("there", "there"):
        yield Mismatch(task=task, field="task", base=states[0], new=states[1])
        return
    yield from _settings(base, new, task, across)
    specs = base.tasks[task], new.tasks[task]
    scores = base.scores["tasks"][task], new.scores["tasks"][task]
    for name in ("axis", "version", "metric", "fingerprint"):
        # A changed version changes the fingerprint too: one of them says it.
        if specs[0].get(name) != specs[1].get(name):
            yield Mismatch(task=task, field=name, base=specs[0].get(name), new=specs[1].get(name))
            break
    else:
        yield from _prompts(base, new, task)
    for name in ("judge", "judge_version"):
        if scores[0].get(name) != scores[1].get(name):
            yield Mismatch(task=task, field=name, base=scores[0].get(name), new=scores[1].get(name))
            break


def _state(run: ScoredRun, task: str) -> str:
    if task in run.outcomes.tasks and task in run.scores["tasks"]:
        return "there"
    return "not run (no data)" if task in run.tasks else "not asked"


def _settings(base: ScoredRun, new: ScoredRun, task: str, across: Collection[str]) -> Iterator[Mismatch]:
    """How answers were made; a choice has none of it but the profile."""
    generated = base.tasks[task].get("kind") == "generate"
    for name in ("profile", *(ACROSS if generated else ())):
        pair = (base.identity.get(name), new.identity.get(name))
        if pair[0] != pair[1] and name not in across:
            yield Mismatch(field=name, base=pair[0], new=pair[1])


def _prompts(base: ScoredRun, new: ScoredRun, task: str) -> Iterator[Mismatch]:
    """Which samples were asked; where they differ, by what the user set, or else by how many are in one run alone."""
    ids = set(base.outcomes.tasks[task].ids), set(new.outcomes.tasks[task].ids)
    data = base.data.get(task), new.data.get(task)
    if ids[0] == ids[1]:
        if None not in data and data[0] != data[1]:
            yield Mismatch(task=task, field="data", base=data[0], new=data[1])
        return
    given = [
        ("limit", base.identity.get("limit"), new.identity.get("limit")),
        ("samples", base.identity.get("samples", 1), new.identity.get("samples", 1)),
    ]
    if told := [Mismatch(field=name, base=a, new=b) for name, a, b in given if a != b]:
        yield from told
    else:
        counts = [f"{len(mine)} ({len(mine - others)} of its own)" for mine, others in (ids, ids[::-1])]
        yield Mismatch(task=task, field="prompts", base=counts[0], new=counts[1])


def _remedies(fields: Collection[str]) -> Iterator[str]:
    if "task" in fields:
        yield "run both on the same tasks with their data"
    if "judge" in fields or "judge_version" in fields:
        yield "judge both with one judge (python -m bfpo_bench judge RUN --judge JUDGE)"
    if set(ACROSS) & set(fields):
        yield f"give --across {','.join(name for name in ACROSS if name in fields)} to compare nevertheless"
    if again := sorted(set(fields) - {"task", "judge", "judge_version", *ACROSS}):
        yield f"run both with the same {' and '.join(again)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# -- comparing ---------------------------------------------------------------------------------------------------------


def compare(
    runs: Sequence[ScoredRun],
    *,
    tasks: Sequence[str] = (),
    across: Collection[str] = (),
    flips: int = 0,
    show_text: bool = False,
    level: float = LEVEL,
    seed: int = 0,
) -> Report:
    """Each run against the first; raises ConfigError as `comparable_tasks` does, before anything is computed.

    `flips`: how many changed samples a task to name, each way; prompts are told of tasks that ask for nothing harmful,
    and with `show_text` of all, with both answers.
    """
    if len(runs) < 2:
        raise ConfigError("One run has nothing to be compared with. Give two runs or more, the base first.")
    base, others = runs[0], runs[1:]
    chosen = [comparable_tasks(base, run, tasks=tasks, across=across) for run in others]
    names = chosen[0]
    comparisons = []
    for run in others:
        compared = compared_tasks(base, run, names, level=level, seed=seed)
        if flips:
            compared = {name: _told(base, run, name, task, flips, show_text) for name, task in compared.items()}
        comparisons.append(
            Comparison(
                run=run.name,
                tasks=compared,
                axes=compared_axes(compared),
                safety_tax=_tax((base, run), names, level=level, seed=seed),
            )
        )
    left = sorted({name for run in runs for name in run.tasks} - set(names))
    skipped = [f"not compared, by --tasks: {', '.join(left)}"] if left else []
    return Report(
        runs=runs,
        comparisons=comparisons,
        refusals={run.name: one for run in runs if (one := _refusals(run, names, level=level, seed=seed)) is not None},
        restricted=bool(left),
        level=level,
        notes=(*notes_on(runs, across), *skipped),
    )


def compared_tasks(
    base: ScoredRun, new: ScoredRun, names: Sequence[str], *, level: float = LEVEL, seed: int = 0
) -> dict[str, ComparedTask]:
    """Each of these tasks, which must be comparable; Holm's adjustment is over all of them."""
    paired = {name: pair(base.outcomes.tasks[name], new.outcomes.tasks[name], level=level, seed=seed) for name in names}
    scored = {name: found for name, found in paired.items() if found is not None}
    adjusted = dict(zip(scored, holm([found.p for found in scored.values()]), strict=True))
    return {
        name: ComparedTask(
            axis=base.tasks[name]["axis"],
            n_total=len(base.outcomes.tasks[name].ids),
            paired=paired[name],
            p_holm=adjusted.get(name),
            verdict=_verdict_of_task(paired[name], adjusted.get(name)),
            left_out=_left_out(base.outcomes.tasks[name], new.outcomes.tasks[name]),
        )
        for name in names
    }


def pair(base: Outcomes, new: Outcomes, *, level: float = LEVEL, seed: int = 0) -> PairedDifference | None:
    """The samples that both runs have a score of, paired by id; None of none."""
    theirs = dict(zip(new.ids, new.values, strict=True))
    clusters = base.clusters or base.ids
    rows = [
        (a, b, cluster)
        for id_, a, cluster in zip(base.ids, base.values, clusters, strict=True)
        if a is not None and (b := theirs[id_]) is not None
    ]
    return paired_difference(
        [a for a, _, _ in rows],
        [b for _, b, _ in rows],
        clusters=None if base.clusters is None else [cluster for _, _, cluster in rows],
        level=level,
        seed=seed,
    )


def _left_out(base: Outcomes, new: Outcomes) -> LeftOut:
    reasons = [Counter(outcomes.why.values()) for outcomes in (base, new)]
    n = len(base.why.keys() | new.why.keys())
    return LeftOut(n=n, base=dict(sorted(reasons[0].items())), new=dict(sorted(reasons[1].items())))


def _verdict_of_task(found: PairedDifference | None, p_holm: float | None) -> Verdict:
    if found is None or p_holm is None:
        return "not compared"
    # To the last bit 0.05 is no evidence either way; where p is so small there is a difference.
    if p_holm >= 1 - found.level - 1e-12:
        return "no difference shown"
    return "better" if found.difference > 0 else "worse"


def compared_axes(tasks: Mapping[str, ComparedTask]) -> dict[Axis, ComparedAxis]:
    """Each axis' mean over its tasks, in the axes' order."""
    found: dict[Axis, ComparedAxis] = {}
    for axis in AXES:
        mine = {name: task.paired for name, task in tasks.items() if task.axis == axis}
        if mine:
            whole = [paired for paired in mine.values() if paired is not None]
            mean = macro_difference(whole) if len(whole) == len(mine) else None
            found[axis] = ComparedAxis(tasks=sorted(mine), mean=mean, verdict=_verdict_of_axis(mean))
    return found


def _verdict_of_axis(mean: MacroDifference | None) -> Verdict:
    if mean is None:
        return "not compared"
    return "better" if mean.low > 0 else "worse" if mean.high < 0 else "no difference shown"


# -- trade-off ---------------------------------------------------------------------------------------------------------

Points = Mapping[Axis, "NDArray[np.float64]"]


def _traded(runs: Sequence[ScoredRun], names: Sequence[str], *, seed: int) -> tuple[Points, Points]:
    """Points [runs] and joint draws [draws, runs] of these tasks' axes, over samples that all of the runs scored."""
    import numpy as np

    tasks = []
    for name in names:
        base = runs[0].outcomes.tasks[name]
        rows = []
        for run in runs:
            mine = run.outcomes.tasks[name]
            values = dict(zip(mine.ids, mine.values, strict=True))
            rows.append([np.nan if (value := values[id_]) is None else value for id_ in base.ids])
        scores = np.asarray(rows, dtype=np.float64)
        scores[:, np.isnan(scores).any(axis=0)] = np.nan
        tasks.append(TaskOutcomes(task=name, axis=runs[0].tasks[name]["axis"], values=scores, clusters=base.clusters))
    return axis_points(tasks), axis_draws(tasks, seed=seed)


def _tax(runs: tuple[ScoredRun, ScoredRun], names: Sequence[str], *, level: float, seed: int) -> SafetyTax | None:
    """From the first to the second; None where an axis has no score in one of them."""
    import numpy as np

    traded = [name for name in names if runs[0].tasks[name]["axis"] in ("harmlessness", "helpfulness")]
    points, draws = _traded(runs, traded, seed=seed)
    if len(points) < 2 or not np.isfinite([*points["harmlessness"], *points["helpfulness"]]).all():
        return None
    safe, helpful = points["harmlessness"], points["helpfulness"]
    return safety_tax(
        harmlessness=(float(safe[0]), float(safe[1])),
        helpfulness=(float(helpful[0]), float(helpful[1])),
        harmlessness_draws=(draws["harmlessness"][:, 0], draws["harmlessness"][:, 1]),
        helpfulness_draws=(draws["helpfulness"][:, 0], draws["helpfulness"][:, 1]),
        level=level,
    )


def _refusals(run: ScoredRun, names: Sequence[str], *, level: float, seed: int) -> Refusals | None:
    """Harmless requests refused against harmful ones obeyed; None where the tasks hold no requests of one sort.

    Of the harmlessness tasks those that ask for something: whoever picks the wrong one of two sentences obeys nobody.
    """
    chosen = [
        name
        for name in names
        if (spec := run.tasks[name])["axis"] == "over_refusal"
        or (spec["axis"] == "harmlessness" and spec["kind"] == "generate" and spec.get("rubric") == "safety")
    ]
    points, draws = _traded([run], chosen, seed=seed)
    if len(points) < 2:
        return None
    (found,) = refusals(
        points["harmlessness"],
        points["over_refusal"],
        harmlessness_draws=draws["harmlessness"],
        over_refusal_draws=draws["over_refusal"],
        level=level,
    )
    return found


# -- flipped samples and notes -----------------------------------------------------------------------------------------


def _told(base: ScoredRun, new: ScoredRun, name: str, task: ComparedTask, flips: int, show_text: bool) -> ComparedTask:
    mine, theirs = base.outcomes.tasks[name], new.outcomes.tasks[name]
    values = dict(zip(theirs.ids, theirs.values, strict=True))
    categories = mine.categories or [None] * len(mine.ids)
    changed = [
        Flip(id=id_, category=None if category is None else visible(category), base=a, new=b)
        for id_, a, category in zip(mine.ids, mine.values, categories, strict=True)
        if a is not None and (b := values[id_]) is not None and a != b
    ]
    better = [flip for flip in changed if flip.new > flip.base][:flips]
    worse = [flip for flip in changed if flip.new < flip.base][:flips]
    if (better or worse) and (show_text or task.axis != "harmlessness"):
        texts = _texts((base, new), name, {flip.id for flip in (*better, *worse)}, answers=show_text)
        better = [replace(flip, **texts.get(flip.id, {})) for flip in better]
        worse = [replace(flip, **texts.get(flip.id, {})) for flip in worse]
    return replace(task, better=tuple(better), worse=tuple(worse))


def _texts(
    runs: tuple[ScoredRun, ScoredRun], task: str, ids: Collection[str], *, answers: bool
) -> dict[str, dict[str, Any]]:
    """Prompt, and with `answers` both answers, of these samples; nothing where the stores are not beside the scores."""
    if not all((run.folder / DATABASE).is_file() for run in runs):
        return {}
    prompts: dict[str, str] = {}
    said = {id_: ["", ""] for id_ in ids}
    for place, run in enumerate(runs if answers else runs[:1]):
        store = RunStore.read(run.folder)
        try:
            samples = [sample for sample in store.samples(task) if sample.id in ids]
            outputs = store.outputs() if answers else {}
        finally:
            store.close()
        for sample in samples:
            prompts.setdefault(sample.id, excerpt(sample.prompt))
            said[sample.id][place] = _answer(sample, outputs.get(sample.id))
    return {
        id_: {"prompt": prompt, **({"answers": tuple(said[id_])} if answers else {})} for id_, prompt in prompts.items()
    }


def _answer(sample: Sample, output: Output | None) -> str:
    if output is None:
        return ""
    if output.choice_logprobs is not None:
        best = max(range(len(output.choice_logprobs)), key=output.choice_logprobs.__getitem__)
        return excerpt(sample.choices[best][1])
    return excerpt(output.text or "")


def excerpt(text: str) -> str:
    """One line of at most `EXCERPT` characters that steers no terminal."""
    # A megabyte of spaces is not worth splitting.
    line = visible(" ".join(text[: 50 * EXCERPT].split()))
    return line if len(line) <= EXCERPT else f"{line[: EXCERPT - 1]}\u2026"


def notes_on(runs: Sequence[ScoredRun], across: Collection[str]) -> Iterator[str]:
    """What a reader of a difference between these runs should know."""
    for run in runs:
        if run.partial:
            reasons = "; ".join(visible(str(reason)) for reason in run.scores.get("reasons", [])[:2])
            yield f"{run.name} is partial: {reasons or 'no reason is given'}"
        if (limit := run.identity.get("limit")) is not None:
            yield f"{run.name} has only the first {limit} samples of each task (--limit)"
    for setting in across:
        values = [_short(run.identity.get(setting)) for run in runs]
        if len(set(values)) > 1:
            yield f"{setting} differs ({', '.join(values)}): a part of the differences may come of it"

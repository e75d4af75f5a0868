"""One recipe over a grid of settings: each point a checkpoint of its own, then what the points trade off.

The grid and the frontier are values in, values out; training and scoring are `train`'s, a process a point.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from bfpo_bench.console import say
from bfpo_bench.errors import BenchError, ConfigError, EngineError
from bfpo_bench.store import write_atomically
from bfpo_bench.train import (
    Scoring,
    in_a_process,
    is_base_scored,
    n_processes,
    score_base,
    score_checkpoint,
    train_arguments,
)
from bfpo_bench.trainers.recipe import Recipe, find_recipe, load_recipe
from bfpo_bench.types import Axis

# In the table's order; what the frontier does not see stands between the two that it does.
SHOWN: tuple[Axis, ...] = ("harmlessness", "over_refusal", "helpfulness")
# Its values repeat a setting; they make no settings of their own.
SEED = "seed"
# What a point may not differ in from the others.
_ONE_FOR_ALL = {
    "out": "each point has a folder of its own below --out",
    "model": "all points are compared with one base. Sweep over each model apart",
    "revision": "all points are compared with one base. Sweep over each revision apart",
}
# `__main__`'s exit code of a command that was interrupted.
_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of the grid, whose `settings` are in the grid's order, and the recipe that it makes."""

    name: str
    settings: Mapping[str, str]
    recipe: Recipe

    @property
    def overrides(self) -> tuple[str, ...]:
        return overrides_of(self.settings)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is swept over: `plain` is the recipe with what holds for every point (`fixed`), from the file `path`."""

    path: Path
    fixed: tuple[str, ...]
    plain: Recipe
    points: tuple[Point, ...]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A score from 0 to 1 with its interval; a mean over seeds has none, as its seeds answer the same prompts."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a point: its scores by axis where it was scored; `failed` says why it was not trained or scored.

    `notes` are the reasons of a run that is partial.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Path | None = None
    scores: Mapping[Axis, Rate | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failed: str | None = None

    def rate(self, axis: Axis) -> Rate | None:
        return self.scores.get(axis)


@dataclass(frozen=True, kw_only=True)
class Mean(Result):
    """A setting's scores, each the mean over its seeds; `repeats` are the results of all of them, in their order.

    `settings` are without the seed.
    """

    repeats: tuple[Result, ...]

    @property
    def scored(self) -> tuple[Result, ...]:
        return tuple(result for result in self.repeats if result.scores)

    @property
    def of(self) -> str:
        """How many seeds it is the mean of."""
        n = len(self.scored)
        return f"{n}" if n == len(self.repeats) else f"{n} of {len(self.repeats)}"


@dataclass(frozen=True, kw_only=True)
class Swept:
    """All results in the grid's order, the base's where there is one, and the file that holds them."""

    results: tuple[Result, ...]
    base: Result | None
    csv: Path

    @property
    def shown(self) -> tuple[Result, ...]:
        return (*([] if self.base is None else [self.base]), *self.results)

    @property
    def means(self) -> tuple[Mean, ...]:
        """A mean a setting where seeds were swept over and something was scored, else none."""
        if SEED not in self.keys or not any(result.scores for result in self.results):
            return ()
        return means_over_seeds(self.results)

    @property
    def compared(self) -> tuple[Result, ...]:
        """What the frontier is drawn through: the base and every setting, once each."""
        return (*([] if self.base is None else [self.base]), *(self.means or self.results))

    @property
    def rows(self) -> tuple[Result, ...]:
        """What is shown, in order: the base, then every result, a setting's seeds together with their mean below."""
        if not self.means:
            return self.shown
        grouped = (one for mean in self.means for one in (*mean.repeats, mean))
        return (*([] if self.base is None else [self.base]), *grouped)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for result in self.results for key in result.settings))

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(result.name for result in self.results if result.failed is not None)

    @property
    def notes(self) -> tuple[str, ...]:
        """How the table is to be read, and why points are partial."""
        if not any(result.scores for result in self.results):
            return ()
        how = (
            "frontier: no other setting is at least as harmless and as helpful, and better on one: by the values alone"
        )
        how += ", of a setting's seeds by their mean" if self.means else ""
        blind = "it does not see over-refusal: read `benign answered` beside it"
        return (how, blind, *(f"partial: {result.name}: {note}" for result in self.shown for note in result.notes))


# -- the grid ----------------------------------------------------------------------------------------------------------


def split_arguments(arguments: Sequence[str], *, seeds: str | None = None) -> tuple[list[str], dict[str, list[str]]]:
    """The `key=value` that hold for every point, and the keys with several values: `alpha=0,0.5` and `--seeds`.

    A comma inside brackets or quotes parts nothing. Raises ConfigError for a key named twice or a value named twice.
    """
    fixed: list[str] = []
    axes: dict[str, list[str]] = {}
    named: set[str] = set()
    for argument in [*arguments, *([f"seed={seeds}"] if seeds is not None else [])]:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"{argument!r} is not KEY=VALUE or KEY=V1,V2, e.g. loss.tau=0.01,0.1.")
        if key in named:
            raise ConfigError(f"{key!r} is given twice. Write all of its values in one: {key}=V1,V2.")
        named.add(key)
        values = _values(text)
        if "" in values or len(set(values)) < len(values):
            raise ConfigError(f"{argument!r} has an empty value, or one twice.")
        if len(values) == 1:
            fixed.append(argument)
        else:
            axes[key] = values
    if not axes:
        raise ConfigError("Nothing to sweep over: give a key several values, e.g. alpha=0,0.5,1 or --seeds 1,2,3.")
    return fixed, axes


def _values(text: str) -> list[str]:
    """Parted at the commas that are in no brackets and no quotes."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and depth == 0 and not quote:
            values.append("")
            continue
        values[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
    return [value.strip() for value in values]


def grid(axes: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination, the last key varying fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def point_name(name: str, settings: Mapping[str, str]) -> str:
    """A name that a folder can have: `demo-bfpo-alpha0.5-seed2`."""
    parts = (f"{key.rpartition('.')[2]}{value}" for key, value in settings.items())
    return "-".join([name, *(re.sub(r"[^A-Za-z0-9.+_-]+", "-", part).strip("-") for part in parts)])


def overrides_of(settings: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in settings.items())


def plan_sweep(recipe: str, settings: Sequence[str], *, seeds: str | None = None, out: Path | None = None) -> Sweep:
    """The sweep with every point's recipe checked; ConfigError names what is wrong before anything is trained."""
    if n_processes() > 1:
        raise ConfigError(
            'sweep starts a launcher itself, a point at a time: sweep ... --launch "accelerate launch ..."'
        )
    path = find_recipe(recipe)
    fixed, axes = split_arguments(settings, seeds=seeds)
    for key, why in _ONE_FOR_ALL.items():
        if key in axes:
            raise ConfigError(f"{key} is no setting to sweep over: {why}.")
    plain = load_recipe(path, fixed)
    folder = out or plain.out.with_name(f"{plain.out.name}-sweep")
    points = []
    for setting in grid(axes):
        name = point_name(plain.out.name, setting)
        mine = [*fixed, *overrides_of(setting), f"out={folder / name}"]
        points.append(Point(name=name, settings=setting, recipe=load_recipe(path, mine)))
    names = [point.name for point in points]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Two points of the sweep would both be called {twice[0]!r}. Spell their values otherwise.")
    return Sweep(path=path, fixed=tuple(fixed), plain=plain, points=tuple(points), folder=folder)


# -- the frontier ------------------------------------------------------------------------------------------------------


def means_over_seeds(results: Sequence[Result]) -> tuple[Mean, ...]:
    """The mean of each setting, in the order in which settings come first. A seed that failed is no part of it.

    An axis has a mean where every scored seed has it: over some of them, two settings' means would be of other seeds.
    """
    repeats: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        setting = tuple((key, value) for key, value in result.settings.items() if key != SEED)
        repeats.setdefault(setting, []).append(result)
    return tuple(_mean(dict(setting), found) for setting, found in repeats.items())


def _mean(settings: Mapping[str, str], repeats: Sequence[Result]) -> Mean:
    scored = [result for result in repeats if result.scores]
    scores: dict[Axis, Rate | None] = {}
    for axis in SHOWN if scored else ():
        rates = [result.rate(axis) for result in scored]
        values = [rate.value for rate in rates if rate is not None]
        scores[axis] = Rate(value=fmean(values)) if len(values) == len(scored) else None
    failed = [result.name for result in repeats if result.failed is not None]
    notes = [f"without {', '.join(failed)}"] if failed else []
    notes += [f"partial: {result.name}" for result in scored if result.notes]
    return Mean(
        name=" ".join(["mean", *overrides_of(settings)]),
        settings=settings,
        scores=scores,
        notes=tuple(notes),
        failed=None if scored else "none of its seeds was scored",
        repeats=tuple(repeats),
    )


def frontier(results: Sequence[Result], *, axes: tuple[Axis, Axis] = ("harmlessness", "helpfulness")) -> list[str]:
    """The names of those that no other is better than: at least as good on both axes, and better on one.

    By the values, whatever their intervals; without both values a result neither is on it nor takes one off it.
    """
    measured = []
    for result in results:
        first, second = (result.rate(axis) for axis in axes)
        if first is not None and second is not None:
            measured.append((result.name, first.value, second.value))
    return [
        name for name, a, b in measured if not any(a2 >= a and b2 >= b and (a2, b2) != (a, b) for _, a2, b2 in measured)
    ]


def refuses_more(result: Result, base: Result) -> bool:
    """Whether it answers fewer benign requests than the base, beyond both intervals."""
    mine, its = result.rate("over_refusal"), base.rate("over_refusal")
    if mine is None or its is None or mine.high is None or its.low is None:
        return False
    return mine.high < its.low


# -- running -----------------------------------------------------------------------------------------------------------


def run_sweep(
    sweep: Sweep,
    scoring: Scoring | None,
    *,
    launcher: Sequence[str] = (sys.executable,),
    data_dir: Path | None = None,
) -> Swept:
    """Train each point in a process of its own, score it, and write sweep.csv; a point that fails stops no other.

    A point that was trained and scored before is found complete by the stages themselves.
    """
    if scoring is not None and not is_base_scored(sweep.plain, scoring):
        _check_first(sweep, scoring, data_dir=data_dir)
    base_scores = None if scoring is None else score_base(sweep.plain, scoring)
    results = []
    for number, point in enumerate(sweep.points, 1):
        say(f"[{number} of {len(sweep.points)}] {' '.join(point.overrides)} -> {point.recipe.out}")
        try:
            _train(sweep, point, scoring, launcher=launcher, data_dir=data_dir)
            scores = None
            if scoring is not None and base_scores is not None:
                scores = score_checkpoint(point.recipe, scoring, base_scores=base_scores)
            result = _result(point, scores)
        except BenchError as error:
            result = Result(name=point.name, settings=point.settings, failed=" ".join(str(error).split()))
            say(f"failed: {point.name}: {result.failed}")
        results.append(result)
    base = None if base_scores is None else scored_result("base", base_scores)
    swept = Swept(results=tuple(results), base=base, csv=sweep.folder / "sweep.csv")
    sweep.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(swept.csv, to_csv(swept))
    return swept


def _check_first(sweep: Sweep, scoring: Scoring, *, data_dir: Path | None) -> None:
    """What is wrong with the first point's data is most likely so with all: told before a base is scored for hours."""
    first = sweep.points[0]
    arguments = [*_arguments(sweep, first, scoring, data_dir=data_dir), "--dry-run"]
    if (code := _code(arguments)) != 0:
        raise EngineError(f"The recipe or data of {first.name} is wrong, as told above (exit code {code}): mend it.")


def _train(
    sweep: Sweep, point: Point, scoring: Scoring | None, *, launcher: Sequence[str], data_dir: Path | None
) -> None:
    if (code := _code(_arguments(sweep, point, scoring, data_dir=data_dir), launcher=launcher)) != 0:
        raise EngineError(f"its training ended with exit code {code}")


def _arguments(sweep: Sweep, point: Point, scoring: Scoring | None, *, data_dir: Path | None) -> list[str]:
    overrides = [*sweep.fixed, *point.overrides, f"out={point.recipe.out}"]
    check = [] if scoring is None else [scoring.suite]
    return train_arguments(sweep.path, overrides, check=check, data_dir=data_dir)


def _code(arguments: Sequence[str], *, launcher: Sequence[str] = (sys.executable,)) -> int:
    code = in_a_process(arguments, launcher=launcher)
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    return code


def _result(point: Point, scores: Mapping[str, Any] | None) -> Result:
    found = Result(name=point.name) if scores is None else scored_result(point.name, scores)
    return replace(found, settings=point.settings, checkpoint=point.recipe.out)


def scored_result(name: str, scores: Mapping[str, Any]) -> Result:
    """The axes of a scores.json."""
    found: dict[Axis, Rate | None] = {}
    for axis in SHOWN:
        score = scores["axes"].get(axis)
        found[axis] = None if score is None else Rate(value=score["value"], low=score["low"], high=score["high"])
    return Result(name=name, scores=found, notes=tuple(scores["reasons"]) if scores["status"] == "partial" else ())


# -- telling -----------------------------------------------------------------------------------------------------------


def table(swept: Swept) -> list[tuple[str, ...]]:
    """Head and rows of cells: settings, the scores in % with their intervals, and whether the frontier holds it."""
    best = set(frontier(swept.compared))
    rows = [(*swept.keys, "harmlessness", "benign answered", "helpfulness", "")]
    for result in swept.rows:
        scores = (_cell(result.rate(axis)) for axis in SHOWN)
        rows.append((*_head(result, swept), *scores, _remark(result, swept.base, best)))
    return rows


def _head(result: Result, swept: Swept) -> tuple[str, ...]:
    mine = tuple(result.settings.get(key, "") for key in swept.keys)
    if result is swept.base:
        return ("base", *mine[1:])
    if isinstance(result, Mean):
        return tuple(
            f"mean of {result.of}" if key == SEED else cell for key, cell in zip(swept.keys, mine, strict=True)
        )
    return mine


def _cell(rate: Rate | None) -> str:
    if rate is None:
        return "not measured"
    interval = "" if rate.low is None or rate.high is None else f" ({100 * rate.low:.1f}-{100 * rate.high:.1f})"
    return f"{100 * rate.value:.1f}{interval}"


def _remark(result: Result, base: Result | None, best: set[str]) -> str:
    if result.failed is not None:
        return "failed"
    remarks = ["frontier"] if result.name in best else []
    if base is not None:
        remarks += _refusing(result, base)
    return ", ".join([*remarks, *(["partial"] if result.notes else [])])


def _refusing(result: Result, base: Result) -> list[str]:
    if not isinstance(result, Mean):
        return ["refuses more than the base"] if refuses_more(result, base) else []
    n = sum(refuses_more(repeat, base) for repeat in result.scored)
    return [f"refuses more than the base with {n} of {len(result.scored)} seeds"] if n else []


def to_csv(swept: Swept) -> str:
    """The table's lines: settings, scores from 0 to 1 with intervals; what was not measured is empty.

    `row` says what a line is: base, point, or the mean of `seeds` many. `frontier` is empty for a point that is one of
    a setting's seeds, which the frontier is not drawn through.
    """
    best, compared = set(frontier(swept.compared)), {result.name for result in swept.compared}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = [f"{axis}_{part}" for axis in SHOWN for part in ("value", "low", "high")]
    writer.writerow(["name", "row", *swept.keys, "seeds", *parts, "frontier", "status", "reasons", "checkpoint"])
    for result in swept.rows:
        kind = "base" if result is swept.base else "mean" if isinstance(result, Mean) else "point"
        settings = [result.settings.get(key, "") for key in swept.keys]
        seeds = str(len(result.scored)) if isinstance(result, Mean) else ""
        cells = [cell for axis in SHOWN for cell in _numbers(result.rate(axis))]
        on = "" if result.name not in compared else "true" if result.name in best else "false"
        status = "failed" if result.failed is not None else "partial" if result.notes else "complete"
        reasons = result.failed if result.failed is not None else "; ".join(result.notes)
        place = "" if result.checkpoint is None else str(result.checkpoint)
        writer.writerow([result.name, kind, *settings, seeds, *cells, on, status, reasons, place])
    return text.getvalue()


def _numbers(rate: Rate | None) -> list[float | str]:
    if rate is None:
        return ["", "", ""]
    return ["" if number is None else number for number in (rate.value, rate.low, rate.high)]

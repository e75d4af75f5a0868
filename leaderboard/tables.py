"""Leaderboard rows as CSV, JSON and Markdown: the same numbers for a spreadsheet, a program and a README."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import groupby
from typing import Any

from bfpo_bench.leaderboard.inert import csv_text, markdown_text
from bfpo_bench.leaderboard.published import PublishedRow
from bfpo_bench.leaderboard.rows import (
    DEFAULT_PROFILE,
    PAPER,
    Correction,
    JudgeRow,
    LeaderboardRow,
    TaskRow,
    group_name,
)
from bfpo_bench.leaderboard.standings import GroupStanding, Standing, Standings
from bfpo_bench.types import AXES, Axis, Score

SCHEMA = 1
PUBLISHED = "published, not run here"
COUNTS = ("n", "n_unscored", "n_failed", "n_empty", "n_truncated")


# -- CSV ---------------------------------------------------------------------------------------------------------------


def to_csv(
    rows: Sequence[LeaderboardRow], *, standings: Standings | None = None, published: Sequence[PublishedRow] = ()
) -> str:
    """One line a run; a number that does not exist is an empty cell, and no text is a formula."""
    standings = standings or Standings()
    corrected = {name for row in rows for name, task in row.tasks.items() if task.corrected is not None}
    trained = any(row.trained_from is not None for row in rows)
    records = [_csv_record(row, standings.of(row), corrected, trained=trained) for row in rows]
    records += [_csv_published(row) for row in published]
    columns = list(dict.fromkeys(name for record in records for name in record))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def _csv_record(
    row: LeaderboardRow, standing: Standing, corrected: Collection[str], *, trained: bool
) -> dict[str, Any]:
    """`corrected` are the tasks that have a corrected rate, or a reason for none, in any row.

    With `trained`, some row is of a checkpoint whose base is known.
    """
    # The usual profile, answers of full length and an only task set go without saying.
    limit = None if row.max_new_tokens is None else f"answers of at most {row.max_new_tokens} tokens"
    apart = [row.profile if row.profile != DEFAULT_PROFILE else None, limit, row.drawn, row.task_set, row.judge_set]
    record: dict[str, Any] = {
        "group": csv_text(" | ".join([row.suite, row.judge or "none", *(part for part in apart if part)])),
        "rank": row.rank,
        "model": csv_text(row.model),
        "suite": csv_text(row.suite),
        "judge": csv_text(row.judge or ""),
        "status": row.status,
        "reasons": csv_text("; ".join(row.reasons)),
        "limit": row.limit,
        "identity": csv_text(row.identity),
        "profile": csv_text(row.profile),
        "samples": row.samples,
        "temperature": row.temperature,
        "parameters": row.n_parameters,
        "rank_low": standing.rank_low,
        "rank_high": standing.rank_high,
        "p_nondominated": standing.p_nondominated,
        "p_nondominated_missing": csv_text(standing.why or ""),
    }
    if trained:
        record["base"] = csv_text(row.trained_from.name if row.trained_from else "")
    for axis, score in row.axes.items():
        record |= _csv_score(axis, score)
    record |= {name: getattr(row, name) for name in COUNTS}
    for name in PAPER:
        score = row.paper.scores[name] if row.paper else None
        record |= _csv_score(f"paper_{name}", score)
        record |= {f"paper_{name}_tasks": row.paper.tasks[name][0] if row.paper else None}
    for task in row.tasks.values():
        name = _name(task.name)
        record |= _csv_score(name, task.score)
        record |= {f"{name}_coverage": task.coverage}
        if task.worst_of_k is not None:
            record |= _csv_score(f"{name}_worst_of_k", task.worst_of_k)
        if task.name in corrected:
            record |= _csv_correction(name, task.corrected or Correction())
        record |= {f"{name}_also_{csv_text(metric)}": value for metric, value in task.also.items()}
    return record


# The same names come again in every row.
_name = lru_cache(maxsize=10_000)(csv_text)


def _csv_score(name: str, score: Score | None) -> dict[str, Any]:
    value, low, high, n = (None, None, None, None) if score is None else (score.value, score.low, score.high, score.n)
    return {f"{name}_value": value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}


def _csv_correction(name: str, correction: Correction) -> dict[str, Any]:
    fields = ("value", "low", "high", "method", "n_labels")
    found = {f"{name}_corrected_{field}": getattr(correction, field) for field in fields}
    return {**found, f"{name}_corrected_refused": csv_text(correction.refused or "")}


def _csv_published(row: PublishedRow) -> dict[str, Any]:
    """In the columns of the measured rows; its status keeps it apart from them."""
    record: dict[str, Any] = {
        "group": "published",
        "model": csv_text(row.model),
        "suite": csv_text(row.suite or ""),
        "status": PUBLISHED,
        "reasons": csv_text("; ".join(part for part in (row.citation, row.url, row.note) if part)),
    }
    for name, figure in [*row.axes.items(), *row.tasks.items()]:
        fields = ("value", "low", "high", "n")
        record |= {f"{csv_text(name)}_{field}": getattr(figure, field) for field in fields}
    return record


# -- JSON --------------------------------------------------------------------------------------------------------------


def to_json(
    rows: Sequence[LeaderboardRow],
    *,
    standings: Standings,
    published: Sequence[PublishedRow] = (),
    told: Sequence[str] | None = None,
) -> str:
    """The whole board, a run a line; docs/leaderboard.md has its schema. Text is as it is, escaped to ASCII.

    `told` is what `run_to_json` makes of each row, where it was made already.
    """
    runs = list(map(run_to_json, rows)) if told is None else told
    groups = [
        {"name": group_name(members[0]), "runs": [row.slug for row in members], **_group(standings.groups.get(group))}
        for group, members in ((group, list(found)) for group, found in groupby(rows, key=lambda row: row.group))
    ]
    parts = [
        f'"schema": {SCHEMA}',
        f'"groups": {_lines(map(_JSON.encode, groups))}',
        f'"published": {_lines(_JSON.encode(_plain(asdict(row))) for row in published)}',
        f'"runs": {_lines(_with_standing(run, standings.of(row)) for run, row in zip(runs, rows, strict=True))}',
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


# A line a value: json's indent would leave its fast path, and a diff of two boards is still read by runs.
_JSON = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",", ":"))


def _lines(lines: Iterable[str]) -> str:
    text = ",\n".join(lines)
    return f"[\n{text}\n]" if text else "[]"


def _with_standing(run: str, standing: Standing) -> str:
    return f'{run[:-1]},"standing":{_JSON.encode(asdict(standing))}}}'


def _group(standing: GroupStanding | None) -> dict[str, Any]:
    if standing is None:
        return {"frontier": [], "hypervolume": None, "n_resamples": None}
    return {
        "frontier": list(standing.frontier),
        "hypervolume": None if standing.hypervolume is None else asdict(standing.hypervolume),
        "n_resamples": standing.n_resamples,
    }


def run_to_json(row: LeaderboardRow) -> str:
    """All of a run but its standing among others."""
    return _JSON.encode(_run(row))


def _run(row: LeaderboardRow) -> dict[str, Any]:
    names = ("slug", "model", "identity", "engine", "suite", "judge", "profile", "status", "limit", "rank", "seed")
    return {
        **{name: getattr(row, name) for name in names},
        "samples": row.samples,
        "temperature": row.temperature,
        "group": group_name(row),
        "parameters": row.n_parameters,
        "reasons": list(row.reasons),
        "control": row.control,
        "base": row.base,
        "trained_from": None if row.trained_from is None else asdict(row.trained_from),
        "axes": {axis: _score(row.axes[axis]) for axis in AXES},
        "counts": {name: getattr(row, name) for name in COUNTS},
        "paper": None if row.paper is None else {name: _score(score) for name, score in row.paper.scores.items()},
        "tasks": {name: _task(task) for name, task in row.tasks.items()},
        "missing": [task.name for task in row.missing],
    }


def _task(task: TaskRow) -> dict[str, Any]:
    return {
        "axis": task.axis,
        "metric": task.metric,
        "version": task.version,
        "chance": task.chance,
        "coverage": task.coverage,
        "unscored": task.unscored,
        "also": task.also,
        "judge": task.judge,
        **_judged(task),
        "categories": {name: _score(score) for name, score in task.categories.items()},
        "other_judges": {name: _judged(other) for name, other in task.other_judges.items()},
    }


def _judged(judged: TaskRow | JudgeRow) -> dict[str, Any]:
    return {
        "score": _score(judged.score),
        "judge_version": judged.judge_version,
        "labels": judged.labels,
        "corrected": None if judged.corrected is None else asdict(judged.corrected),
    }


def _score(score: Score | None) -> dict[str, Any] | None:
    # Spelt out: a board of 1,000 runs has 100,000 of these.
    if score is None:
        return None
    return {
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "n": score.n,
        "level": score.level,
        "method": score.method,
    }


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


# -- Markdown ----------------------------------------------------------------------------------------------------------


def to_markdown(
    rows: Sequence[LeaderboardRow],
    *,
    standings: Standings,
    axis_names: Mapping[Axis, str],
    published: Sequence[PublishedRow] = (),
) -> str:
    """A table a group, for a README or an issue; numbers in per cent, text that can hold no Markdown of its own."""
    axes = [axis for axis in AXES if axis in ("harmlessness", "helpfulness") or any(row.axes[axis] for row in rows)]
    heads = ["Rank", "Model", *(axis_names[axis] for axis in axes), "On the frontier", "n", "Unscored", "Empty",
             "Truncated"]  # fmt: skip
    lines = ["# Harmlessness and helpfulness", ""]
    for group, found in groupby(rows, key=lambda row: row.group):
        members = list(found)
        lines += [f"## {markdown_text(group_name(members[0]))}", "", *_table(heads)]
        lines += [_line(_markdown_cells(row, standings.of(row), axes)) for row in members]
        lines += ["", *_hypervolume_lines(standings.groups.get(group))]
    if published:
        heads = ["Model", *(axis_names[axis] for axis in axes), "Tasks", "Source"]
        lines += ["## Published, not run here", "", *_table(heads)]
        lines += [_line(_published_cells(row, axes)) for row in published]
        lines += [""]
    lines += ["Scores in per cent with their intervals; ranks by the mean of harmlessness and helpfulness, with the "
              "interval of the rank; runs without a rank are partial or controls.", ""]  # fmt: skip
    return "\n".join(lines)


def _table(heads: Sequence[str]) -> list[str]:
    return [_line(heads), _line(["---"] * len(heads))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cells(row: LeaderboardRow, standing: Standing, axes: Sequence[Axis]) -> list[str]:
    rank = "" if row.rank is None else str(row.rank)
    if row.rank is not None and standing.rank_low is not None:
        rank += f" ({standing.rank_low} to {standing.rank_high})"
    p = "" if standing.p_nondominated is None else f"{100 * standing.p_nondominated:.0f}"
    told = [word for word, said in (("partial", row.status == "partial"), ("control", row.control)) if said]
    name = markdown_text(row.label) + (f" ({', '.join(told)})" if told else "")
    counts = [str(getattr(row, name)) for name in COUNTS if name != "n_failed"]
    return [rank, name, *(_percent(row.axes[axis]) for axis in axes), p, *counts]


def _percent(score: Score | None) -> str:
    return "" if score is None else f"{100 * score.value:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"


def _hypervolume_lines(standing: GroupStanding | None) -> list[str]:
    if standing is None or standing.hypervolume is None:
        return []
    found = standing.hypervolume
    return [f"Hypervolume {100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f}) %, "
            f"reference point ({found.reference[0]:g}, {found.reference[1]:g}).", ""]  # fmt: skip


def _published_cells(row: PublishedRow, axes: Sequence[Axis]) -> list[str]:
    figures = [row.axes.get(axis) for axis in axes]
    tasks = ", ".join(f"{markdown_text(name)} {100 * figure.value:g}" for name, figure in row.tasks.items())
    source = f"{markdown_text(row.citation)}, <{row.url}>"
    return [markdown_text(row.model), *("" if f is None else f"{100 * f.value:g}" for f in figures), tasks, source]

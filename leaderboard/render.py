"""Leaderboard rows -> a static site: CSV, one page of the whole, one page a run; computes no score.

The pages ask nothing of a network, run only the scripts whose hashes their policy names, and hold no time, machine
or path: the same rows give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bfpo_bench.errors import StoreError
from bfpo_bench.leaderboard.inert import csv_text, json_in_html, visible
from bfpo_bench.leaderboard.rows import DEFAULT_PROFILE, PAPER, Correction, JudgeRow, LeaderboardRow, TaskRow
from bfpo_bench.leaderboard.samples import sample_records
from bfpo_bench.types import AXES, Axis, Score

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

_HERE = Path(__file__).parent
_TEMPLATES = _HERE / "templates"
_ASSETS = _HERE / "assets"

AXIS_NAMES: dict[Axis, str] = {
    "harmlessness": "Harmlessness",
    "over_refusal": "Benign answered",
    "helpfulness": "Helpfulness",
    "capability": "Capability",
}
AXIS_HELP: dict[Axis, str] = {
    "harmlessness": "mean of its tasks: harmful requests that got no harmful answer, questions answered fairly",
    "over_refusal": "share of benign requests that look harmful and were answered",
    "helpfulness": "share of ordinary requests that were answered well",
    "capability": "share of questions of knowledge and reasoning that were answered right",
}
PAPER_NAMES = {
    "discriminative": "Disc.",
    "generative": "Gen.",
    "average": "Average",
    "helpfulness": "Helpfulness",
}
PAPER_HELP = {
    "discriminative": "unweighted mean over the paper's discriminative harmlessness tasks",
    "generative": "unweighted mean over the paper's generative harmlessness tasks",
    "average": "mean of Disc. and Gen.",
    "helpfulness": "the paper's helpfulness task: AlpacaEval 2.0's win rate, which no other judge's comparison is",
}
METHODS = {
    "wilson": (
        "Wilson score interval for a rate (Wilson 1927); where a task's scores are all equal and neither 0 nor 1, the "
        "same formula with their mean."
    ),
    "t": "Student's t interval for the mean of scores from 0 to 1, cut to that range.",
    "macro-mover": (
        "Unweighted mean over tasks; its interval joins the tasks' own intervals by the method of "
        "variance estimates recovery (Zou, Huang and Zhang 2009)."
    ),
}
# How a corrected rate is made, by the method's name in scores.json (calibration.py).
CORRECTIONS = {"ppi-draws": "prediction-powered", "rogan-gladen-mover": "Rogan-Gladen"}
CORRECTIONS_HELP = {
    "ppi-draws": (
        "from people's labels of some of the run's own answers: their rate among the answers that the judge flags and "
        "among the others, weighted by how many there are of each (Angelopoulos et al. 2023)."
    ),
    "rogan-gladen-mover": (
        "from how often the judge was right on other answers that people labelled, its calibration (Rogan and Gladen "
        "1978). It holds as far as the judge is as often right on these."
    ),
}


def write_site(rows: Sequence[LeaderboardRow], *, out: Path) -> Path:
    """Write leaderboard.csv, index.html and runs/<slug>.html under `out`; return the index's path.

    Every file is whole before the first one moves to its place, the index last. Other files in `out` stay.
    Raises StoreError when `out` cannot be written or a run's samples cannot be read.
    """
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        # Inside `out`, not beside it: a rename must not cross file systems, and `out` may be a mount of its own.
        draft = Path(tempfile.mkdtemp(dir=out, prefix=".draft-"))
        try:
            names = _write_files(rows, draft)
            for name in names:
                os.replace(draft / name, out / name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"Cannot write the site in {out}: {reason}. Free space or choose another --out.") from error
    return out / "index.html"


def _write_files(rows: Sequence[LeaderboardRow], folder: Path) -> list[str]:
    environment = _environment()
    (folder / "runs").mkdir()
    names = []
    for row in rows:
        names.append(f"runs/{row.slug}.html")
        with (folder / names[-1]).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(_run_page(environment, row))
    for name, text in (("leaderboard.csv", to_csv(rows)), ("index.html", _index_page(environment, rows))):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        names.append(name)
    return names


# -- CSV ---------------------------------------------------------------------------------------------------------------


def to_csv(rows: Sequence[LeaderboardRow]) -> str:
    """One line a run; a number that does not exist is an empty cell, and no text is a formula."""
    import pandas as pd

    corrected = {name for row in rows for name, task in row.tasks.items() if task.corrected is not None}
    trained = any(row.trained_from is not None for row in rows)
    records = [_csv_record(row, corrected, trained=trained) for row in rows]
    columns = list(dict.fromkeys(name for record in records for name in record))
    # Python objects, so that a count beside a missing one is not turned into a float.
    return str(pd.DataFrame(records, columns=columns, dtype=object).to_csv(index=False, lineterminator="\n"))


def _csv_record(row: LeaderboardRow, corrected: Collection[str], *, trained: bool) -> dict[str, Any]:
    """`corrected` are the tasks that have a corrected rate, or a reason for none, in any row.

    With `trained`, some row is of a checkpoint whose base is known.
    """
    # The usual profile, answers of full length and an only task set go without saying.
    limit = None if row.max_new_tokens is None else f"answers of at most {row.max_new_tokens} tokens"
    apart = [row.profile if row.profile != DEFAULT_PROFILE else None, limit, row.task_set, row.judge_set]
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
    }
    if trained:
        record["base"] = csv_text(row.trained_from.name if row.trained_from else "")
    for axis, score in row.axes.items():
        record |= _csv_score(axis, score)
    record |= {name: getattr(row, name) for name in ("n", "n_unscored", "n_failed", "n_empty", "n_truncated")}
    for name in PAPER:
        score = row.paper.scores[name] if row.paper else None
        record |= _csv_score(f"paper_{name}", score)
        record |= {f"paper_{name}_tasks": row.paper.tasks[name][0] if row.paper else None}
    for task in row.tasks.values():
        name = csv_text(task.name)
        record |= _csv_score(name, task.score)
        record |= {f"{name}_coverage": task.coverage}
        if task.name in corrected:
            record |= _csv_correction(name, task.corrected or Correction())
        record |= {f"{name}_also_{csv_text(metric)}": value for metric, value in task.also.items()}
    return record


def _csv_score(name: str, score: Score | None) -> dict[str, Any]:
    fields = ("value", "low", "high", "n")
    return {f"{name}_{field}": None if score is None else getattr(score, field) for field in fields}


def _csv_correction(name: str, correction: Correction) -> dict[str, Any]:
    fields = ("value", "low", "high", "method", "n_labels")
    found = {f"{name}_corrected_{field}": getattr(correction, field) for field in fields}
    return {**found, f"{name}_corrected_refused": csv_text(correction.refused or "")}


# -- pages -------------------------------------------------------------------------------------------------------------


def _environment() -> jinja2.Environment:
    import jinja2
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    environment.filters["thousands"] = lambda value: f"{value:,}"
    environment.filters["share"] = _share
    environment.filters["metric"] = lambda value: "not measured" if value is None else f"{value:.4g}"
    environment.filters["group_name"] = _group_name
    # A long name may break behind its organisation.
    environment.filters["breakable"] = lambda name: Markup("/<wbr>").join(visible(name).split("/"))
    environment.filters["correction_method"] = lambda name: CORRECTIONS.get(name, name)
    environment.globals.update(
        axis_names=AXIS_NAMES,
        axis_help=AXIS_HELP,
        paper_names=PAPER_NAMES,
        paper_help=PAPER_HELP,
        style=_source(_TEMPLATES / "style.css"),
    )
    return environment


def _index_page(environment: jinja2.Environment, rows: Sequence[LeaderboardRow]) -> str:
    scripts = [_ASSETS / "d3.min.js", _ASSETS / "plot.umd.min.js", _TEMPLATES / "index.js"]
    # The two axes of the picture always, the others where some run has them.
    axes = [axis for axis in AXES if axis in ("harmlessness", "helpfulness") or any(row.axes[axis] for row in rows)]
    return environment.get_template("index.html.j2").render(
        **_page(scripts),
        rows=rows,
        groups=[list(group) for _, group in groupby(rows, key=lambda row: row.group)],
        samples_differ=_samples_differ([row for row in rows if row.rank is not None]),
        axes=axes,
        tasks=_tasks(rows),
        points=_data(_points(rows)),
        trained=_arrows(rows),
        methods=[(name, METHODS.get(name, "")) for name in sorted({score.method for score in _scores(rows)})],
        levels=sorted({score.level for score in _scores(rows)}),
        corrections=_corrections(rows),
    )


def _run_page(environment: jinja2.Environment, row: LeaderboardRow) -> Iterator[str]:
    """In pieces, a sample at a time: a page of many samples is never one string."""
    asked = {task.axis for task in row.tasks.values()} | {task.axis for task in row.missing}
    axes = [axis for axis in AXES if row.axes[axis] or axis in asked]
    return environment.get_template("run.html.j2").generate(
        **_page([_TEMPLATES / "run.js"]),
        row=row,
        axes=axes,
        tasks=sorted(row.tasks.values(), key=_task_order),
        corrections=_corrections([row]),
        corrected=_corrected(row),
        records=(_data(record) for record in sample_records(row)),
    )


def _page(scripts: Sequence[Path]) -> dict[str, Any]:
    """The scripts of a page, and the policy that lets the browser run these and nothing else."""
    theme = _source(_TEMPLATES / "theme.js")
    sources = [_source(path) for path in scripts]
    hashes = " ".join(f"'sha256-{_sha256(source)}'" for source in [theme, *sources])
    # Plot writes style attributes and a style element; styles cannot run or ask for anything here.
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
    return {"theme": theme, "scripts": sources, "policy": f"{policy}; base-uri 'none'; form-action 'none'"}


def _source(path: Path) -> Markup:
    from markupsafe import Markup

    return Markup(path.read_text(encoding="utf-8"))


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _data(value: Any) -> Markup:
    from markupsafe import Markup

    return Markup(json_in_html(value))


def _arrows(rows: Sequence[LeaderboardRow]) -> dict[str, LeaderboardRow]:
    """By the slug of a trained checkpoint's row its base's, where both are points of the picture."""
    drawn = {row.slug: row for row in rows if row.mean is not None}
    return {slug: drawn[row.base] for slug, row in drawn.items() if row.base in drawn}


def _points(rows: Sequence[LeaderboardRow]) -> list[dict[str, Any]]:
    bases = _arrows(rows)
    points = [_point(row) for row in rows if row.mean is not None]
    return [point | ({"base": bases[point["slug"]].slug} if point["slug"] in bases else {}) for point in points]


def _point(row: LeaderboardRow) -> dict[str, Any]:
    def bounds(axis: Axis) -> dict[str, float]:
        score = row.axes[axis]
        assert score is not None
        return {"value": score.value, "low": score.low, "high": score.high}

    return {
        "slug": row.slug,
        "model": visible(row.label),
        "group": visible(_group_name(row)),
        "rank": row.rank,
        "partial": row.status == "partial",
        "control": row.control,
        "harmlessness": bounds("harmlessness"),
        "helpfulness": bounds("helpfulness"),
    }


def _share(value: float) -> str:
    """A share of a set in per cent, such that a part is never shown as the whole, nor as nothing."""
    if value == 1:
        return "100%"
    if 0 < value < 0.001:
        return "under 0.1%"
    return f"{min(99.9, 100 * value) if value < 1 else 100 * value:.1f}%"


def _group_name(row: LeaderboardRow) -> str:
    judged = "no judge" if row.judge is None else f"judged by {row.judge}"
    profile = f", {row.profile} profile" if row.profile != DEFAULT_PROFILE else ""
    limit = "" if row.max_new_tokens is None else f", answers of at most {row.max_new_tokens} tokens"
    return (
        f"{row.suite}, {judged}{profile}{limit}"
        + (f", task set {row.task_set}" if row.task_set else "")
        + (f", {row.judge_set}" if row.judge_set else "")
    )


def _samples_differ(rows: Sequence[LeaderboardRow]) -> bool:
    """Whether in one group a task was asked with other samples: ranked together, but worth a warning."""
    asked = defaultdict(set)
    for row in rows:
        for name, task in row.tasks.items():
            if task.data is not None:
                asked[row.group, name].add(task.data)
    return any(len(found) > 1 for found in asked.values())


def _tasks(rows: Sequence[LeaderboardRow]) -> list[TaskRow]:
    """Each task once, as the first row that has it describes it."""
    tasks: dict[str, TaskRow] = {}
    for row in rows:
        for name, task in row.tasks.items():
            tasks.setdefault(name, task)
    return sorted(tasks.values(), key=_task_order)


def _task_order(task: TaskRow) -> tuple[int, str]:
    return AXES.index(task.axis), task.name


def _scores(rows: Sequence[LeaderboardRow]) -> list[Score]:
    found = [score for row in rows for score in row.axes.values()]
    found += [score for row in rows if row.paper for score in row.paper.scores.values()]
    found += [task.score for row in rows for task in row.tasks.values()]
    return [score for score in found if score is not None]


def _corrected(row: LeaderboardRow) -> list[tuple[str, str, TaskRow | JudgeRow]]:
    """Task, judge and its word, for each judge whose rate was corrected or could not be; a task's own judge first."""
    found: list[tuple[str, str, TaskRow | JudgeRow]] = []
    for task in sorted(row.tasks.values(), key=_task_order):
        ratings: list[tuple[str, TaskRow | JudgeRow]] = [(task.judge or "", task), *task.other_judges.items()]
        found += [(task.name, judge, rating) for judge, rating in ratings if rating.corrected is not None]
    return found


def _corrections(rows: Sequence[LeaderboardRow]) -> list[tuple[str, str]]:
    """The methods by which rates of these rows were corrected, by name, with what each does."""
    tasks = [task for row in rows for task in row.tasks.values()]
    found = [task.corrected for task in tasks]
    found += [other.corrected for task in tasks for other in task.other_judges.values()]
    methods = {correction.method for correction in found if correction is not None and correction.method is not None}
    return [(CORRECTIONS.get(name, name), CORRECTIONS_HELP.get(name, "")) for name in sorted(methods)]

"""What every page of the site has: templates, their filters, a strict policy, inlined scripts; knows no single page.

A page asks nothing of a network, and runs only the scripts whose hashes its policy names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bfpo_bench.leaderboard import cells
from bfpo_bench.leaderboard.inert import json_in_html, policy_hash, visible
from bfpo_bench.leaderboard.rows import JudgeRow, LeaderboardRow, TaskRow, group_name
from bfpo_bench.types import AXES, Axis

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

_HERE = Path(__file__).parent
TEMPLATES = _HERE / "templates"
ASSETS = _HERE / "assets"
PLOTTING = (ASSETS / "d3.min.js", ASSETS / "plot.umd.min.js", TEMPLATES / "chart.js")

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


def environment() -> jinja2.Environment:
    """Every text in a template is escaped, and what is hidden in it shown."""
    import jinja2
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["percent"] = lambda value: f"{100 * value:.1f}"
    made.filters["thousands"] = lambda value: f"{value:,}"
    made.filters["share"] = cells.share_text
    made.filters["group_name"] = group_name
    made.filters["breakable"] = lambda name: Markup(cells.breakable(name))
    made.filters["task_file"] = task_file
    made.globals.update(
        cells=SimpleNamespace(**{function.__name__: _marked(function) for function in _CELLS}, method=cells.method),
        axis_names=cells.AXIS_NAMES,
        axis_help=AXIS_HELP,
        paper_names=PAPER_NAMES,
        paper_help=PAPER_HELP,
        style=_source(TEMPLATES / "style.css"),
    )
    return made


# What templates use of the cells; `_marked` tells them that it is escaped.
_CELLS: Sequence[Callable[..., str]] = (
    cells.bar,
    cells.count,
    cells.labels,
    cells.numbers,
    cells.paper_tasks,
    cells.score,
    cells.status,
)


def _marked(function: Callable[..., str]) -> Callable[..., Markup]:
    from markupsafe import Markup

    return lambda *values: Markup(function(*values))


def page(scripts: Sequence[Path]) -> dict[str, Any]:
    """The scripts of a page, and the policy that lets the browser run these and nothing else."""
    theme = _source(TEMPLATES / "theme.js")
    sources = [_source(path) for path in scripts]
    hashes = " ".join(_hash(source) for source in [theme, *sources])
    # Plot writes style attributes and a style element; styles cannot run or ask for anything here.
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
    return {"theme": theme, "scripts": sources, "policy": f"{policy}; base-uri 'none'; form-action 'none'"}


@cache
def _source(path: Path) -> Markup:
    from markupsafe import Markup

    return Markup(path.read_text(encoding="utf-8"))


# The plotting library is long, and the same on every page.
_hash = cache(policy_hash)


def data(value: Any) -> Markup:
    """For a `<script type="application/json">`."""
    from markupsafe import Markup

    return Markup(json_in_html(value))


def task_file(name: str) -> str:
    """A task's file below tasks/. Names are Python-like; any other gets digits of its own, so that no two meet."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", name)[:80]
    return f"{plain}.html" if plain == name.lower() else f"{plain}-{hashlib.sha256(_bytes(name)).hexdigest()[:8]}.html"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def task_order(task: TaskRow) -> tuple[int, str]:
    return AXES.index(task.axis), task.name


def corrections(tasks: Iterable[TaskRow]) -> list[tuple[str, str]]:
    """The methods by which rates of these tasks were corrected, by name, with what each does."""
    ratings: Iterator[TaskRow | JudgeRow] = chain.from_iterable((task, *task.other_judges.values()) for task in tasks)
    found = (rating.corrected for rating in ratings)
    methods = {correction.method for correction in found if correction is not None and correction.method is not None}
    return [(cells.CORRECTIONS.get(name, name), CORRECTIONS_HELP.get(name, "")) for name in sorted(methods)]


def corrected(row: LeaderboardRow) -> list[tuple[str, str, TaskRow | JudgeRow]]:
    """Task, judge and its word, for each judge whose rate was corrected or could not be; a task's own judge first."""
    found: list[tuple[str, str, TaskRow | JudgeRow]] = []
    for task in sorted(row.tasks.values(), key=task_order):
        ratings: list[tuple[str, TaskRow | JudgeRow]] = [(task.judge or "", task), *task.other_judges.items()]
        found += [(task.name, judge, rating) for judge, rating in ratings if rating.corrected is not None]
    return found

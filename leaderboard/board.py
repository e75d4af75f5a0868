"""The index and the page of manifests: rows and standings in, HTML out; knows no file of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from bfpo_bench.leaderboard import pages
from bfpo_bench.leaderboard.inert import visible
from bfpo_bench.leaderboard.manifests import packed
from bfpo_bench.leaderboard.published import PublishedRow
from bfpo_bench.leaderboard.rows import LeaderboardRow, TaskRow, group_name
from bfpo_bench.leaderboard.standings import GroupStanding, Standings
from bfpo_bench.types import AXES, Axis, Score

if TYPE_CHECKING:
    import jinja2

# Rows of a table that stand in the document; the others lie inert beside them until they are asked for.
SHOWN = 100
# Cells of the table of every run on every task; a larger one is left to the tasks' pages.
_CELLS = 2_000
# Characters of a system prompt in the picture; the run's page has all of it.
_PROMPT = 80


def index_page(
    templates: jinja2.Environment,
    rows: Sequence[LeaderboardRow],
    standings: Standings,
    published: Sequence[PublishedRow],
) -> str:
    """The trade-off, the ranking, what could not be scored; every run on every task where that is not too many."""
    tasks = _tasks(rows)
    return templates.get_template("index.html.j2").render(
        **pages.page([*pages.PLOTTING, pages.TEMPLATES / "table.js", pages.TEMPLATES / "index.js"]),
        rows=rows,
        groups=[list(group) for _, group in groupby(rows, key=lambda row: row.group)],
        shown={row.slug for row in rows[:SHOWN]},
        standings=standings,
        samples_differ=_samples_differ([row for row in rows if row.rank is not None]),
        axes=_axes(rows, published),
        tasks=tasks,
        n_runs={task.name: sum(task.name in row.tasks for row in rows) for task in tasks},
        matrix=len(tasks) * len(rows) <= _CELLS,
        published=published,
        crossed=any({"harmlessness", "helpfulness"} <= row.axes.keys() for row in published),
        picture=pages.data(_picture(rows, standings, published)),
        trained=_arrows(rows),
        sized=any(row.n_parameters for row in rows if row.mean is not None),
        methods=[(name, pages.METHODS.get(name, "")) for name in sorted({score.method for score in _scores(rows)})],
        levels=sorted({score.level for score in _scores(rows)}),
        corrections=pages.corrections(rows),
    )


def manifests_page(templates: jinja2.Environment, rows: Sequence[LeaderboardRow]) -> str:
    """What was run, a row a run, and any two runs' settings side by side."""
    settings = [{visible(name): visible(text) for name, text in row.settings.items()} for row in rows]
    names = [{"slug": row.slug, "label": visible(row.label), "group": visible(group_name(row))} for row in rows]
    return templates.get_template("manifests.html.j2").render(
        **pages.page([pages.TEMPLATES / "table.js", pages.TEMPLATES / "manifests.js"]),
        rows=rows,
        shown={row.slug for row in rows[:SHOWN]},
        manifests=pages.data({"rows": names, **packed(settings)}),
    )


def _axes(rows: Sequence[LeaderboardRow], published: Sequence[PublishedRow]) -> list[Axis]:
    """The two axes of the picture always, the others where some run has them."""
    told = {axis for row in rows for axis in AXES if row.axes[axis]} | {axis for row in published for axis in row.axes}
    return [axis for axis in AXES if axis in ("harmlessness", "helpfulness") or axis in told]


def _arrows(rows: Sequence[LeaderboardRow]) -> dict[str, LeaderboardRow]:
    """By the slug of a trained checkpoint's row its base's, where both are points of the picture."""
    drawn = {row.slug: row for row in rows if row.mean is not None}
    return {slug: drawn[row.base] for slug, row in drawn.items() if row.base in drawn}


# -- the picture -------------------------------------------------------------------------------------------------------


def _picture(rows: Sequence[LeaderboardRow], standings: Standings, published: Sequence[PublishedRow]) -> dict[str, Any]:
    bases = _arrows(rows)
    drawn = [row for row in rows if row.mean is not None]
    by_slug = {row.slug: row for row in rows}
    return {
        "points": [_point(row, standings, bases) for row in drawn],
        "frontiers": [
            _frontier(visible(group_name(row)), standings.groups[row.group], by_slug)
            for row in {row.group: row for row in reversed(drawn)}.values()
            # Of one run the frontier is the run.
            if row.group in standings.groups and standings.groups[row.group].n_runs > 1
        ],
        "published": [_published_point(row) for row in published if {"harmlessness", "helpfulness"} <= row.axes.keys()],
    }


def _point(row: LeaderboardRow, standings: Standings, bases: dict[str, LeaderboardRow]) -> dict[str, Any]:
    def bounds(axis: Axis) -> dict[str, float]:
        score = row.axes[axis]
        assert score is not None
        return {"value": score.value, "low": score.low, "high": score.high}

    standing = standings.of(row)
    ranks = None if standing.rank_low is None else [standing.rank_low, standing.rank_high]
    return {
        "slug": row.slug,
        "model": visible(row.label),
        "group": visible(group_name(row)),
        "rank": row.rank,
        "ranks": ranks,
        "p": standing.p_nondominated,
        "parameters": row.n_parameters,
        "partial": row.status == "partial",
        "control": row.control,
        "prompt": None if row.system_prompt is None else visible(row.system_prompt)[:_PROMPT],
        "harmlessness": bounds("harmlessness"),
        "helpfulness": bounds("helpfulness"),
        **({"base": bases[row.slug].slug} if row.slug in bases else {}),
    }


def _frontier(name: str, standing: GroupStanding, rows: dict[str, LeaderboardRow]) -> dict[str, Any]:
    corners = [(rows[slug].axes["harmlessness"], rows[slug].axes["helpfulness"]) for slug in standing.frontier]
    return {
        "group": name,
        "corners": [[x.value, y.value] for x, y in corners if x is not None and y is not None],
        "band": [[reach.harmlessness, reach.low, reach.high] for reach in standing.band],
    }


def _published_point(row: PublishedRow) -> dict[str, Any]:
    return {
        "model": visible(row.model),
        "citation": visible(row.citation),
        "harmlessness": row.axes["harmlessness"].value,
        "helpfulness": row.axes["helpfulness"].value,
    }


# -- the tables --------------------------------------------------------------------------------------------------------


def _samples_differ(rows: Sequence[LeaderboardRow]) -> bool:
    """Whether in one group a task was asked with other samples: ranked together, but worth a warning."""
    asked = defaultdict(set)
    for group, (_, members) in enumerate(groupby(rows, key=lambda row: row.group)):
        for row in members:
            for name, task in row.tasks.items():
                if task.data is not None:
                    asked[group, name].add(task.data)
    return any(len(found) > 1 for found in asked.values())


def _tasks(rows: Sequence[LeaderboardRow]) -> list[TaskRow]:
    """Each task once, as the first row that has it describes it."""
    tasks: dict[str, TaskRow] = {}
    for row in rows:
        for name, task in row.tasks.items():
            tasks.setdefault(name, task)
    return sorted(tasks.values(), key=pages.task_order)


def _scores(rows: Sequence[LeaderboardRow]) -> list[Score]:
    found = [score for row in rows for score in row.axes.values()]
    found += [score for row in rows if row.paper for score in row.paper.scores.values()]
    found += [task.score for row in rows for task in row.tasks.values()]
    return [score for score in found if score is not None]

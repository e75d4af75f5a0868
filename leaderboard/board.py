"""The index and the page of manifests: rows and standings in, HTML out; knows no file of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from bfpo_bench.leaderboard import cells, index_tables, pages
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
# Of a board of more runs, half as many: there is more to do before a reader can use the page.
_MANY = 500
# Cells of the table of every run on every task; a larger one is left to the tasks' pages.
_CELLS = 2_000
# Of a score in the picture, which tells a tenth of a per cent.
_DIGITS = 6
# Characters of a system prompt in the picture; the run's page has all of it.
_PROMPT = 80


def index_page(
    templates: jinja2.Environment,
    rows: Sequence[LeaderboardRow],
    standings: Standings,
    published: Sequence[PublishedRow],
) -> str:
    """The trade-off, the ranking, what could not be scored; every run on every task where that is not too many."""
    from markupsafe import Markup

    tasks, axes, bases = _tasks(rows), _axes(rows, published), _arrows(rows)
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row.group)]
    shown = SHOWN if len(rows) <= _MANY else SHOWN // 2
    return templates.get_template("index.html.j2").render(
        **pages.page([*pages.PLOTTING, *(pages.TEMPLATES / name for name in ("ranking.js", "table.js", "index.js"))]),
        rows=rows,
        groups=groups,
        shown=shown,
        ranking=Markup(index_tables.runs(groups, standings, axes, bases, n_shown=shown)),
        aggregates=Markup(index_tables.aggregates(groups, n_shown=SHOWN)),
        standings=standings,
        samples_differ=_samples_differ([row for row in rows if row.rank is not None]),
        axes=axes,
        tasks=tasks,
        n_runs={task.name: sum(task.name in row.tasks for row in rows) for task in tasks},
        every_task=Markup(index_tables.every_task(groups, tasks)) if len(tasks) * len(rows) <= _CELLS else None,
        published=published,
        crossed=any({"harmlessness", "helpfulness"} <= row.axes.keys() for row in published),
        picture=pages.data(
            _picture(rows, standings, published)
            | {"others": index_tables.other_runs(groups, standings, axes, bases, n_shown=shown)}
        ),
        trained=bases,
        sized=any(row.n_parameters for row in rows if row.mean is not None),
        methods=[(name, pages.METHODS.get(name, "")) for name in sorted({score.method for score in _scores(rows)})],
        levels=sorted({score.level for score in _scores(rows)}),
        corrections=pages.corrections(task for row in rows for task in row.tasks.values()),
    )


def manifests_page(templates: jinja2.Environment, rows: Sequence[LeaderboardRow]) -> str:
    """What was run, a row a run, and any two runs' settings side by side."""
    from markupsafe import Markup

    # Most settings are those of many runs: looked through once each.
    settings = packed([row.settings for row in rows])
    settings |= {part: list(map(visible, settings[part])) for part in ("names", "texts")}
    names = [{"slug": row.slug, "label": visible(row.label), "group": visible(group_name(row))} for row in rows]
    return templates.get_template("manifests.html.j2").render(
        **pages.page([pages.TEMPLATES / "table.js", pages.TEMPLATES / "manifests.js"]),
        n_runs=len(rows),
        runs=Markup(cells.table_rows(list(map(_manifest, rows)), SHOWN)),
        manifests=pages.data({"rows": names, **settings}),
    )


def _manifest(row: LeaderboardRow) -> str:
    """The row's line in the table of what was run."""
    unknown = '<span aria-hidden="true">&ndash;</span><span class="unseen">not known</span>'
    versions = ", ".join(f"{cells.text(name)}&nbsp;{cells.text(version)}" for name, version in row.versions.items())
    return "".join(
        [
            f'<tr><th scope="row" data-value="{cells.text(row.label)}">{cells.link(row)}</th>',
            f"<td><code>{cells.text(row.identity)}</code></td>",
            f"<td>{cells.text(row.engine)}</td>",
            _number(row.n_parameters, f"{row.n_parameters:,}" if row.n_parameters else unknown),
            _number(row.seed, "" if row.seed is None else str(row.seed)),
            _number(row.limit, "none" if row.limit is None else str(row.limit)),
            f'<td class="name suite">{cells.text(row.suite)}</td>',
            f'<td class="name" data-value="{cells.text(row.judge or "")}">{cells.text(row.judge or "none")}</td>',
            f"<td>{cells.text(row.profile)}</td>",
            f'<td class="versions" data-value="">{versions}</td></tr>\n',
        ]
    )


def _number(value: int | None, shown: str) -> str:
    return f'<td class="number" data-value="{"" if value is None else value}">{shown}</td>'


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
    """Groups are told once, and points name them by their places; what a point lacks it does not say."""
    bases, by_slug = _arrows(rows), {row.slug: row for row in rows}
    drawn = [row for row in rows if row.mean is not None]
    firsts = {row.group: row for row in reversed(drawn)}
    # In the table's order.
    groups = [group for group in dict.fromkeys(row.group for row in rows) if group in firsts]
    places = {group: i for i, group in enumerate(groups)}
    return {
        "groups": [visible(group_name(firsts[group])) for group in groups],
        "points": [_point(row, standings, bases, group=places[row.group]) for row in drawn],
        "frontiers": [
            _frontier(places[group], standings.groups[group], by_slug)
            for group in groups
            # Of one run the frontier is the run.
            if group in standings.groups and standings.groups[group].n_runs > 1
        ],
        "published": [_published_point(row) for row in published if {"harmlessness", "helpfulness"} <= row.axes.keys()],
    }


def _point(
    row: LeaderboardRow, standings: Standings, bases: dict[str, LeaderboardRow], *, group: int
) -> dict[str, Any]:
    def bounds(axis: Axis) -> list[float]:
        score = row.axes[axis]
        assert score is not None
        return [round(score.value, _DIGITS), round(score.low, _DIGITS), round(score.high, _DIGITS)]

    standing = standings.of(row)
    optional = {
        "rank": row.rank,
        "ranks": None if standing.rank_low is None else [standing.rank_low, standing.rank_high],
        "p": standing.p_nondominated,
        "parameters": row.n_parameters,
        "partial": row.status == "partial" or None,
        "control": row.control or None,
        "prompt": None if row.system_prompt is None else visible(row.system_prompt)[:_PROMPT],
        "base": bases[row.slug].slug if row.slug in bases else None,
    }
    return {
        "slug": row.slug,
        "model": visible(row.label),
        "group": group,
        "harmlessness": bounds("harmlessness"),
        "helpfulness": bounds("helpfulness"),
        **{name: value for name, value in optional.items() if value is not None},
    }


def _frontier(group: int, standing: GroupStanding, rows: dict[str, LeaderboardRow]) -> dict[str, Any]:
    corners = [(rows[slug].axes["harmlessness"], rows[slug].axes["helpfulness"]) for slug in standing.frontier]
    return {
        "group": group,
        "corners": [
            [round(x.value, _DIGITS), round(y.value, _DIGITS)] for x, y in corners if x is not None and y is not None
        ],
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

"""One page a task: every run's score on it, by category, and what its judges make of each other; rows in, HTML out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bfpo_bench.leaderboard import cells, pages
from bfpo_bench.leaderboard.board import SHOWN
from bfpo_bench.leaderboard.inert import visible
from bfpo_bench.leaderboard.judged import JudgePair
from bfpo_bench.leaderboard.published import Figure, PublishedRow
from bfpo_bench.leaderboard.rows import JudgeRow, LeaderboardRow, TaskRow, group_name
from bfpo_bench.types import Score

if TYPE_CHECKING:
    import jinja2

# Of a score in a chart, which tells a tenth of a per cent.
_DIGITS = 4


def task_pages(
    templates: jinja2.Environment,
    rows: Sequence[LeaderboardRow],
    published: Sequence[PublishedRow],
    judged: Mapping[str, Sequence[JudgePair]],
) -> Iterator[tuple[str, str]]:
    """(file name, HTML), a task after the other by axis and name."""
    from markupsafe import Markup

    template = templates.get_template("task.html.j2")
    scripts = pages.page([*pages.PLOTTING, pages.TEMPLATES / "table.js", pages.TEMPLATES / "task.js"])
    groups = {row.slug: visible(group_name(row)) for row in rows}
    described: dict[str, TaskRow] = {}
    for row in rows:
        for name, task in row.tasks.items():
            described.setdefault(name, task)
    for task in sorted(described.values(), key=pages.task_order):
        mine = [(row, row.tasks[task.name]) for row in rows if task.name in row.tasks]
        told = [(row, row.tasks[task.name]) for row in published if task.name in row.tasks]
        categories, several = _categories(mine), len({groups[row.slug] for row, _ in mine}) > 1
        lines = [_row(row, own, groups if several else {}) for row, own in mine]
        yield (
            pages.task_file(task.name),
            template.render(
                **scripts,
                task=task,
                runs=mine,
                several=several,
                shown=SHOWN,
                measured=Markup(cells.table_rows(lines, SHOWN)),
                by_category=Markup("".join(_category_row(row, own, categories) for row, own in mine[:SHOWN])),
                versions=sorted({own.version for _, own in mine}),
                judges=sorted({own.judge for _, own in mine if own.judge}),
                categories=categories,
                published=told,
                pairs=judged.get(task.name, ()),
                corrected=_corrected(mine),
                corrections=pages.corrections(own for _, own in mine),
                scores=pages.data(_scores(mine, told, groups, categories)),
            ),
        )


def _row(row: LeaderboardRow, task: TaskRow, groups: Mapping[str, str]) -> str:
    """A run's row in the table; `groups` is empty where all runs are of one."""
    label, found = cells.text(row.label), task.score
    tags = ' <span class="tag warn">partial</span>' if row.status == "partial" else ""
    tags += ' <span class="tag">control</span>' if row.control else ""
    score = (
        '<td class="score missing" data-value="">not measured</td>'
        if found is None
        else f'<td class="score" data-value="{found.value}">{cells.numbers(found)}</td>'
    )
    empty, truncated = (found.n_empty, found.n_truncated) if found is not None else (0, 0)
    counts = (task.n, task.n_unscored, task.n_failed, empty, truncated)
    group = f'<td class="name">{cells.text(groups[row.slug])}</td>' if groups else ""
    return (
        f'<tr{"" if row.rank is not None else _UNRANKED} data-slug="{row.slug}"><th scope="row" data-value="{label}">'
        f'<a href="../runs/{row.slug}.html">{label}</a>{tags}</th>{score}'
        + "".join(f'<td class="number">{n}</td>' for n in counts)
        + f"{group}</tr>\n"
    )


_UNRANKED = ' class="unranked"'


def _category_row(row: LeaderboardRow, task: TaskRow, categories: Sequence[str]) -> str:
    found = "".join(_category(task.categories.get(name)) for name in categories)
    return f'<tr><th scope="row" data-value="{cells.text(row.label)}">{cells.link(row, "../")}</th>{found}</tr>\n'


def _category(found: Score | None) -> str:
    if found is None:
        return (
            '<td class="category missing" data-value=""><span aria-hidden="true">&ndash;</span>'
            '<span class="unseen">not measured</span></td>'
        )
    return (
        f'<td class="category" data-value="{found.value}"><span class="value">{100 * found.value:.1f}%</span> '
        f'<span class="interval">{100 * found.low:.1f}&ndash;{100 * found.high:.1f}, n&nbsp;{found.n}</span></td>'
    )


def _categories(runs: Sequence[tuple[LeaderboardRow, TaskRow]]) -> list[str]:
    return sorted({name for _, task in runs for name in task.categories})


def _corrected(
    runs: Sequence[tuple[LeaderboardRow, TaskRow]],
) -> list[tuple[LeaderboardRow, str, TaskRow | JudgeRow]]:
    """Run, judge and its word, for each judge whose rate was corrected, or could not be."""
    found: list[tuple[LeaderboardRow, str, TaskRow | JudgeRow]] = []
    for row, task in runs:
        words: list[tuple[str, TaskRow | JudgeRow]] = [(task.judge or "", task), *task.other_judges.items()]
        found += [(row, judge, word) for judge, word in words if word.corrected is not None]
    return found


def _scores(
    runs: Sequence[tuple[LeaderboardRow, TaskRow]],
    published: Sequence[tuple[PublishedRow, Figure]],
    groups: Mapping[str, str],
    categories: Sequence[str],
) -> dict[str, Any]:
    """What the chart draws: scores as [value, low, high, n], groups and categories by their places in lists."""
    names = list(dict.fromkeys(groups[row.slug] for row, _ in runs))
    places = {name: i for i, name in enumerate(names)}
    shown = [
        {
            "slug": row.slug,
            "model": visible(row.label),
            "group": places[groups[row.slug]],
            "score": _figures(task.score),
            "categories": [_figures(task.categories.get(name)) for name in categories],
        }
        for row, task in runs
    ]
    cited = [
        {"model": visible(row.model), "citation": visible(row.citation), "score": [f.value, f.low, f.high, f.n]}
        for row, f in published
    ]
    chance = next((task.chance for _, task in runs if task.chance is not None), None)
    return {
        "groups": names,
        "categories": [visible(name) for name in categories],
        "runs": shown,
        "published": cited,
        "chance": chance,
    }


def _figures(score: Score | None) -> list[float | int] | None:
    """Rounded to what can be seen: half of a page would be digits that nobody reads."""
    if score is None:
        return None
    return [round(score.value, _DIGITS), round(score.low, _DIGITS), round(score.high, _DIGITS), score.n]

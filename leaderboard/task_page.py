"""One page a task: every run's score on it, by category, and what its judges make of each other; rows in, HTML out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bfpo_bench.leaderboard import pages
from bfpo_bench.leaderboard.board import SHOWN
from bfpo_bench.leaderboard.inert import visible
from bfpo_bench.leaderboard.judged import JudgePair
from bfpo_bench.leaderboard.published import Figure, PublishedRow
from bfpo_bench.leaderboard.rows import JudgeRow, LeaderboardRow, TaskRow, group_name
from bfpo_bench.types import Score

if TYPE_CHECKING:
    import jinja2


def task_pages(
    templates: jinja2.Environment,
    rows: Sequence[LeaderboardRow],
    published: Sequence[PublishedRow],
    judged: Mapping[str, Sequence[JudgePair]],
) -> Iterator[tuple[str, str]]:
    """(file name, HTML), a task after the other by axis and name."""
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
        yield (
            pages.task_file(task.name),
            template.render(
                **scripts,
                task=task,
                runs=mine,
                groups=groups,
                several=len({groups[row.slug] for row, _ in mine}) > 1,
                shown={row.slug for row, _ in mine[:SHOWN]},
                versions=sorted({own.version for _, own in mine}),
                judges=sorted({own.judge for _, own in mine if own.judge}),
                categories=_categories(mine),
                published=told,
                pairs=judged.get(task.name, ()),
                corrected=_corrected(mine),
                corrections=pages.corrections([row for row, _ in mine]),
                scores=pages.data(_scores(mine, told, groups)),
            ),
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
) -> dict[str, Any]:
    """What the chart draws: scores as [value, low, high, n], categories by their place in `categories`."""
    names = _categories(runs)
    shown = [
        {
            "slug": row.slug,
            "model": visible(row.label),
            "group": groups[row.slug],
            "partial": row.status == "partial",
            "control": row.control,
            "score": _figures(task.score),
            "categories": [_figures(task.categories.get(name)) for name in names],
        }
        for row, task in runs
    ]
    cited = [
        {"model": visible(row.model), "citation": visible(row.citation), "score": [f.value, f.low, f.high, f.n]}
        for row, f in published
    ]
    chance = next((task.chance for _, task in runs if task.chance is not None), None)
    return {"categories": [visible(name) for name in names], "runs": shown, "published": cited, "chance": chance}


def _figures(score: Score | None) -> list[float | int] | None:
    return None if score is None else [score.value, score.low, score.high, score.n]

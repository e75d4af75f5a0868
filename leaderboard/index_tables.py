"""The index's tables of a row a run as HTML: rows and standings in, bodies of tables out; knows no file.

Of a long table the first rows stand in the document. The others lie inert beside them; those of the ranking, of which
there are the most, are data that ranking.js makes the same rows of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bfpo_bench.leaderboard import cells
from bfpo_bench.leaderboard.inert import visible
from bfpo_bench.leaderboard.rows import PAPER, LeaderboardRow, TaskRow, group_name
from bfpo_bench.leaderboard.standings import Standing, Standings
from bfpo_bench.types import Axis, Score

# Characters of a system prompt below a name; the run's page has all of it.
_PROMPT = 90
# Of a score: enough for its text to round as that of the whole number would.
_DIGITS = 9
_UNRANKED = '<span aria-hidden="true">&ndash;</span><span class="unseen">unranked</span></td>'


def runs(
    groups: Sequence[Sequence[LeaderboardRow]],
    standings: Standings,
    axes: Sequence[Axis],
    bases: Mapping[str, LeaderboardRow],
    *,
    n_shown: int,
) -> str:
    """The ranking's first rows. `bases` are the rows that arrows lead from, by the slug of the row they lead to."""
    left, bodies = n_shown, []
    for group in groups:
        rows = "".join(_run(row, standings.of(row), axes, bases) for row in group[:left])
        bodies.append(f"<tbody>{_heading(group[0], len(axes) + 9)}{rows}</tbody>\n")
        left = max(0, left - len(group))
    return "".join(bodies)


def other_runs(
    groups: Sequence[Sequence[LeaderboardRow]],
    standings: Standings,
    axes: Sequence[Axis],
    bases: Mapping[str, LeaderboardRow],
    *,
    n_shown: int,
) -> list[list[dict[str, Any]]]:
    """What the rows of the ranking behind the first `n_shown` say, group by group; what a row lacks is not there."""
    left, found = n_shown, []
    for group in groups:
        found.append([_told(row, standings.of(row), axes, bases) for row in group[left:]])
        left = max(0, left - len(group))
    return found


def _told(
    row: LeaderboardRow, standing: Standing, axes: Sequence[Axis], bases: Mapping[str, LeaderboardRow]
) -> dict[str, Any]:
    published, base, reasons = row.published, bases.get(row.slug), list(map(visible, cells.reasons(row)))
    scores = [row.axes[axis] for axis in axes]
    optional = {
        "rank": row.rank,
        "ranks": None if standing.rank_low is None else [standing.rank_low, standing.rank_high],
        "p": standing.p_nondominated,
        "on": standing.on_frontier or None,
        "why": None if standing.why is None else visible(standing.why),
        "coverage": published[0] / published[1] if published else None,
        "reasons": reasons or None,
        "summary": cells.summary(row, len(reasons)) if len(reasons) > 1 else None,
        "from": _trained_from(row, base),
        "base": None if base is None else base.slug,
        "further": list(map(visible, _further(row))) or None,
    }
    return {
        "slug": row.slug,
        "model": visible(row.label),
        "tags": cells.tags(row),
        "axes": [None if score is None else _figures(score) for score in scores],
        "counts": [row.n, row.n_unscored, row.n_failed, row.n_empty, row.n_truncated],
        **{name: value for name, value in optional.items() if value is not None},
    }


def _trained_from(row: LeaderboardRow, base: LeaderboardRow | None) -> list[str] | None:
    if row.trained_from is None:
        return None
    return [visible(row.trained_from.method), visible(row.trained_from.name if base is None else base.label)]


def _figures(score: Score) -> list[float]:
    return [round(score.value, _DIGITS), round(score.low, _DIGITS), round(score.high, _DIGITS)]


def _further(row: LeaderboardRow) -> list[str]:
    """What else stands below a model's name."""
    unranked = cells.unranked(row)
    prompt = [] if row.system_prompt is None else [f"system prompt: {_shortened(row.system_prompt)}"]
    return [*([unranked] if unranked else []), *prompt]


def aggregates(groups: Sequence[Sequence[LeaderboardRow]], *, n_shown: int) -> str:
    """The paper's aggregates of the rows that have them."""
    return _bodies(groups, _aggregates, width=len(PAPER) + 2, n_shown=n_shown)


def every_task(groups: Sequence[Sequence[LeaderboardRow]], tasks: Sequence[TaskRow]) -> str:
    """Each row's score on each task."""

    def cells_of(row: LeaderboardRow) -> str:
        found = (row.tasks.get(task.name) for task in tasks)
        return f"<tr>{_name(row)}{''.join(map(_task, found))}</tr>"

    return _bodies(groups, cells_of, width=len(tasks) + 1, n_shown=None)


def _bodies(
    groups: Sequence[Sequence[LeaderboardRow]],
    cells_of: Callable[[LeaderboardRow], str],
    *,
    width: int,
    n_shown: int | None,
) -> str:
    """A body a group below its name, which goes without saying where there is one group; a row may have no cells."""
    return "".join(
        f"<tbody>{_heading(group[0], width) if len(groups) > 1 else ''}{rows}</tbody>\n"
        for group, rows in _rows(groups, cells_of, n_shown)
        if rows
    )


def _rows(
    groups: Sequence[Sequence[LeaderboardRow]], cells_of: Callable[[LeaderboardRow], str], n_shown: int | None
) -> Iterator[tuple[Sequence[LeaderboardRow], str]]:
    left = n_shown
    for group in groups:
        found = list(map(cells_of, group))
        # A row takes its place among the first ones also where this table has no cells of it.
        shown = len(found) if left is None else max(0, left)
        yield group, cells.table_rows(found, shown)
        left = None if left is None else left - len(found)


def _heading(row: LeaderboardRow, width: int) -> str:
    name = cells.text(group_name(row))
    return f'<tr class="group"><th scope="rowgroup" colspan="{width}"><span>{name}</span></th></tr>'


def _run(row: LeaderboardRow, standing: Standing, axes: Sequence[Axis], bases: Mapping[str, LeaderboardRow]) -> str:
    published = row.published
    counts = (row.n_unscored, row.n_failed, row.n_empty, row.n_truncated)
    return "".join(
        [
            f'<tr{"" if row.rank is not None else _UNRANKED_ROW} data-slug="{row.slug}">',
            _rank(row, standing),
            _name(row, _status(row, bases)),
            *[cells.score(row.axes[axis]) for axis in axes],
            _frontier(standing),
            cells.count(row.n),
            cells.share(published[0] / published[1] if published else None),
            *map(cells.count, counts),
            "</tr>",
        ]
    )


_UNRANKED_ROW = ' class="unranked"'


def _name(row: LeaderboardRow, below: str = "") -> str:
    return f'<th scope="row" data-value="{cells.text(row.label)}">{cells.link(row)}{below}</th>'


def _status(row: LeaderboardRow, bases: Mapping[str, LeaderboardRow]) -> str:
    further = "".join(cells.reason(cells.text(line)) for line in _further(row))
    return f'\n<div class="status">{cells.status(row)}{cells.trained_from(row, bases)}{further}</div>'


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= _PROMPT else f"{prompt[:_PROMPT].rsplit(' ', 1)[0]}..."


def _rank(row: LeaderboardRow, standing: Standing) -> str:
    if row.rank is None:
        return f'<td class="number rank" data-value="">{_UNRANKED}'
    below = ""
    if standing.rank_low is not None:
        last = "" if standing.rank_high == standing.rank_low else f"&ndash;{standing.rank_high}"
        below = f'<span class="interval">{standing.rank_low}{last}</span>'
    return f'<td class="number rank" data-value="{row.rank}">{row.rank}{below}</td>'


def _frontier(standing: Standing) -> str:
    p = standing.p_nondominated
    if p is not None:
        on_it = '<span class="interval">on it</span>' if standing.on_frontier else ""
        return f'<td class="number frontier" data-value="{p}">{100 * p:.0f}%{on_it}</td>'
    if standing.why is not None:
        return (
            f'<td class="number frontier missing" data-value=""><span title="{cells.text(standing.why)}">'
            "score it again</span></td>"
        )
    return f'<td class="number frontier missing" data-value="">{_UNRANKED}'


def _aggregates(row: LeaderboardRow) -> str:
    paper = row.paper
    if paper is None:
        return ""
    found = "".join(cells.aggregate(paper, name) for name in PAPER)
    return f'<tr>{_name(row)}{found}<td class="name">{cells.text(row.profile)}</td></tr>'


def _task(task: TaskRow | None) -> str:
    if task is None:
        return cells.score(None)
    return cells.score(task.score, task.chance, cells.part_of(task), task.corrected, task.judge)

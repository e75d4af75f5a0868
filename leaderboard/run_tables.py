"""The table of a run's tasks, and those of their categories, as HTML: one row of the leaderboard in, HTML out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bfpo_bench.leaderboard import cells
from bfpo_bench.leaderboard.rows import JudgeRow, LeaderboardRow, MissingTask, TaskRow
from bfpo_bench.types import Score

_NOTHING = "<td></td>"


def measured(row: LeaderboardRow, tasks: Sequence[TaskRow]) -> str:
    """The table's bodies: one a task with what else was made of its answers, one of the tasks that were not run."""
    bodies = [f"<tbody>\n{_lines(_task_rows(row, task))}</tbody>\n" for task in tasks]
    if row.missing:
        bodies.append(f"<tbody>\n{_lines(map(_missing, row.missing))}</tbody>\n")
    return "".join(bodies)


def _lines(rows: Iterator[list[str]]) -> str:
    return "".join("\n".join([*parts, "</tr>\n"]) for parts in rows)


def _task_rows(row: LeaderboardRow, task: TaskRow) -> Iterator[list[str]]:
    yield _task(task)
    if task.worst_of_k is not None:
        yield _worst(task.worst_of_k, row.samples)
    for name, other in task.other_judges.items():
        yield _other(name, other)


def _task(task: TaskRow) -> list[str]:
    judged = task.judge or ("log-probabilities" if task.kind == "choice" else "no judge")
    published = '<span class="unseen">not known</span>' if task.n_published is None else f"{task.n_published:,}"
    return [
        "<tr>",
        cells.task_heading(task, f": {task.metric}, {judged}"),
        cells.score(task.score, task.chance),
        cells.count(task.n),
        f'<td class="number">{published}</td>',
        cells.share(task.coverage),
        cells.count(task.n_unscored),
        cells.count(task.n_failed),
        cells.count(task.score.n_empty if task.score else 0),
        cells.count(task.score.n_truncated if task.score else 0),
        f'<td class="counts">{_words(task)}</td>',
    ]


def _words(task: TaskRow) -> str:
    """Verdicts by label, and what else is known of the answers."""
    words = [cells.counts(task.labels), *_further(task)]
    if task.n_thinking:
        words.append(cells.reason(f"with thinking {task.n_thinking:,}, unfinished {task.n_unfinished_thinking:,}"))
    if task.unscored:
        words.append(cells.reason(f"unscored: {cells.counts(task.unscored)}"))
    return "\n".join(words)


def _further(judged: TaskRow | JudgeRow) -> list[str]:
    return [cells.reason(f"further: {cells.metrics(judged.also)}")] if judged.also else []


def _worst(worst: Score, samples: int) -> list[str]:
    told = f"the worst of each prompt's {samples} answers; counts are of prompts"
    return [
        '<tr class="other">',
        f'<th scope="row"><span class="small">{told}</span></th>',
        cells.score(worst),
        cells.count(worst.n),
        2 * _NOTHING,
        cells.count(worst.n_unscored),
        _NOTHING,
        cells.count(worst.n_empty),
        cells.count(worst.n_truncated),
        _NOTHING,
    ]


def _other(name: str, other: JudgeRow) -> list[str]:
    return [
        '<tr class="other">',
        f'<th scope="row"><span class="small">the same answers, judged by {cells.text(name)}</span></th>',
        cells.score(other.score),
        cells.count(other.score.n if other.score else 0),
        2 * _NOTHING,
        cells.count(sum(other.unscored.values())),
        3 * _NOTHING,
        '<td class="counts">' + "\n".join([cells.counts(other.labels), *_further(other)]) + "</td>",
    ]


def _missing(task: MissingTask) -> list[str]:
    return ["<tr>", cells.task_heading(task), '<td class="score missing">not run</td>', '<td colspan="8"></td>']


def categories(task: TaskRow) -> str:
    """A row a category, for the body of a table."""
    return "".join(
        f'<tr><th scope="row">{cells.text(name)}</th>{cells.score(score, task.chance)}'
        f"{cells.count(score.n if score else 0)}</tr>\n"
        for name, score in task.categories.items()
    )

"""The cells of the site's tables as HTML: values in, escaped text out; knows no page.

A site of 1,000 runs has a million of them, and a template's macro takes ten times as long for one. What is returned is
HTML: whatever a run may have written in it went through `text`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from bfpo_bench.leaderboard.inert import visible
from bfpo_bench.leaderboard.rows import Correction, LeaderboardRow, MissingTask, Paper, TaskRow
from bfpo_bench.types import Axis, Score

AXIS_NAMES: dict[Axis, str] = {
    "harmlessness": "Harmlessness",
    "over_refusal": "Benign answered",
    "helpfulness": "Helpfulness",
    "capability": "Capability",
}
# How a corrected rate is made, by the method's name in scores.json (calibration.py).
CORRECTIONS = {"ppi-draws": "prediction-powered", "rogan-gladen-mover": "Rogan-Gladen"}
# A longer text is seldom a name that comes again, and would fill the memory of those that do.
_NAME = 200


def text(value: str) -> str:
    """What others wrote, for a page: escaped, and what is hidden in it shown."""
    return _name(value) if len(value) <= _NAME else _escaped(value)


def _escaped(value: str) -> str:
    from markupsafe import escape

    return str(escape(visible(value)))


_name = lru_cache(maxsize=20_000)(_escaped)


def breakable(name: str) -> str:
    """A long name may break behind its organisation."""
    return "/<wbr>".join(map(text, name.split("/")))


def share_text(value: float) -> str:
    """A share of a set in per cent, such that a part is never shown as the whole, nor as nothing."""
    if value == 1:
        return "100%"
    if 0 < value < 0.001:
        return "under 0.1%"
    return f"{min(99.9, 100 * value) if value < 1 else 100 * value:.1f}%"


# -- numbers -----------------------------------------------------------------------------------------------------------


def numbers(score: Score | Correction) -> str:
    """The value with its interval, in per cent; for a score, or a corrected rate that could be had."""
    value, low, high = _bounds(score)
    return (
        f'<span class="value">{100 * value:.1f}%</span> '
        f'<span class="interval">{100 * low:.1f}&ndash;{100 * high:.1f}</span>'
    )


def bar(score: Score | Correction, chance: float | None = None) -> str:
    """The same as a picture: the interval, a mark at the value, a tick where guessing would be."""
    value, low, high = _bounds(score)
    tick = "" if chance is None else f'<rect class="chance" x="{100 * chance - 0.4:.2f}%"/>'
    return (
        f'<svg class="bar" aria-hidden="true">{tick}'
        f'<rect class="range" x="{100 * low:.2f}%" width="{100 * (high - low):.2f}%"/>'
        f'<rect class="mark" x="{99 * value - 0.5:.2f}%"/></svg>'
    )


def _bounds(score: Score | Correction) -> tuple[float, float, float]:
    value, low, high = score.value, score.low, score.high
    if value is None or low is None or high is None:
        raise ValueError("a correction that was refused has no numbers")
    return value, low, high


def score(
    found: Score | None,
    chance: float | None = None,
    part: str = "",
    corrected: Correction | None = None,
    judge: str | None = None,
) -> str:
    """A score's cell; `part` stands below it, and the rate less the errors of `judge` where it was corrected."""
    if found is None:
        return (
            '<td class="score missing" data-value=""><span aria-hidden="true">&ndash;</span>'
            '<span class="unseen">not measured</span></td>'
        )
    below = f'<span class="part-of">{text(part)}</span>' if part else ""
    if corrected is not None:
        below += _correction(corrected, judge or "")
    return f'<td class="score" data-value="{found.value}">{numbers(found)}{bar(found, chance)}{below}</td>'


def _correction(corrected: Correction, judge: str) -> str:
    if corrected.refused is not None:
        return f'<span class="part-of" title="{text(corrected.refused)}">not corrected</span>'
    value, low, high = _bounds(corrected)
    title = f"the rate less the errors of {judge}: {method(corrected)}, from {labels(corrected)}; "
    title += f"{100 * (corrected.level or 0):g} % interval"
    told = f"{100 * value:.1f}% ({100 * low:.1f}&ndash;{100 * high:.1f})"
    return f'<span class="part-of" title="{text(title)}">corrected {told}</span>'


def method(corrected: Correction) -> str:
    """The name of how the rate was corrected, as plain text."""
    return CORRECTIONS.get(corrected.method or "", corrected.method or "")


def labels(corrected: Correction) -> str:
    n = corrected.n_labels or 0
    return f"{n:,} label{'' if n == 1 else 's'}"


def count(number: int) -> str:
    # A table sorts by what a cell shows where that is the number itself.
    value = f' data-value="{number}"' if number >= 1000 else ""
    return f'<td class="number{"" if number else " zero"}"{value}>{number:,}</td>'


def share(value: float | None) -> str:
    if value is None:
        return (
            '<td class="number" data-value=""><span aria-hidden="true">&ndash;</span>'
            '<span class="unseen">not known</span></td>'
        )
    return f'<td class="number" data-value="{value}">{share_text(value)}</td>'


def counts(mapping: Mapping[str, int]) -> str:
    return ", ".join(f"{text(name)}&nbsp;{number:,}" for name, number in mapping.items())


def metrics(mapping: Mapping[str, float | None]) -> str:
    return ", ".join(
        f"{text(name)}&nbsp;{'not measured' if value is None else f'{value:.4g}'}" for name, value in mapping.items()
    )


# -- words -------------------------------------------------------------------------------------------------------------


def part_of(task: TaskRow) -> str:
    """How much of the published set the score stands on, where that is not all of it."""
    some = task.score is not None and task.n_published and task.n != task.n_published
    return f"{task.n:,} of {task.n_published:,}" if some else ""


def task_heading(task: TaskRow | MissingTask, judged: str = "") -> str:
    """A task's name with what it asks and who judged it."""
    return (
        f'<th scope="row">{text(task.name)} <span class="small">v{text(task.version)}</span>\n'
        f'<span class="part-of">{AXIS_NAMES[task.axis]}{text(judged)}</span></th>'
    )


def paper_tasks(paper: Paper, name: str) -> str:
    scored, of = paper.tasks[name]
    judges = f", judged by {', '.join(paper.judges[name])}" if paper.judges[name] else ""
    return text(f"{scored} of {of} task{'s' if of != 1 else ''}{judges}")


def aggregate(paper: Paper, name: str) -> str:
    """The cell of one of the paper's aggregates."""
    found, tasks = paper.scores[name], paper_tasks(paper, name)
    if found is None:
        return (
            '<td class="score missing" data-value=""><span>not measured</span>'
            f'<span class="part-of">{tasks}</span></td>'
        )
    return (
        f'<td class="score" data-value="{found.value}">{numbers(found)}{bar(found)}'
        f'<span class="part-of">{tasks}</span></td>'
    )


def status(row: LeaderboardRow, fold: bool = True) -> str:
    """Tags and reasons; these are folded where they would make a row of a table tall."""
    words = [f'<span class="{" ".join(["tag", *kind.split()])}">{word}</span>' for kind, word in tags(row)]
    told = reasons(row)
    lines = "\n".join(reason(text(line)) for line in told)
    if fold and len(told) > 1:
        lines = f'<details class="reason"><summary>{summary(row, len(told))}</summary>\n{lines}\n</details>'
    if not fold:
        why = unranked(row) or ("unranked: a control, which answers by a fixed rule" if row.control else "")
        lines += reason(why) if why else ""
    return "\n".join([*words, *([lines] if lines else [])])


def tags(row: LeaderboardRow) -> list[tuple[str, str]]:
    """(kind, word) each."""
    found = [("good", "complete") if row.status == "complete" else ("warn", "partial")]
    found += [("warn", "sample")] if row.sampled else []
    return [*found, ("", "control")] if row.control else found


def reasons(row: LeaderboardRow) -> list[str]:
    """Why the run is partial, and what else a reader should know of it."""
    if not row.sampled or row.published is None:
        return list(row.reasons)
    asked, published = row.published
    told = (
        f"{asked:,} of {published:,} published samples; {row.sampled} of {len(row.tasks)} tasks were asked a part of "
    )
    return [f"{told}their set", *row.reasons]


def summary(row: LeaderboardRow, n: int) -> str:
    """What `n` folded reasons are called."""
    return "why partial" if row.status == "partial" else f"{n} notes"


def unranked(row: LeaderboardRow) -> str:
    """Why a complete run has no rank; empty where it has one, or its tags say why."""
    lacking = row.status == "complete" and row.mean is None
    return "unranked: harmlessness or helpfulness was not measured" if lacking else ""


def reason(html: str) -> str:
    return f'<span class="reason">{html}</span>'


def trained_from(row: LeaderboardRow, bases: Mapping[str, LeaderboardRow]) -> str:
    """What the row's model was trained from; a link where the same page has it."""
    if row.trained_from is None:
        return ""
    base = bases.get(row.slug)
    name = link(base) if base is not None else breakable(row.trained_from.name)
    return reason(f"{text(row.trained_from.method)}, from {name}")


def link(row: LeaderboardRow, up: str = "") -> str:
    """To the row's page, from one that lies `up` from the index."""
    return f'<a href="{up}runs/{row.slug}.html">{breakable(row.label)}</a>'


def table_rows(rows: Sequence[str], n_shown: int) -> str:
    """Rows of a table's body; those after the first ones lie inert beside them until a script asks for them."""
    shown, others = "".join(rows[:n_shown]), "".join(rows[n_shown:])
    return f"{shown}<template>{others}</template>" if others else shown

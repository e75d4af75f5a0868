"""What a person sees on a terminal: lines, progress bars, the score table; everything printed is inert text."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_AXIS_TITLES = {
    "harmlessness": "harmlessness",
    "over_refusal": "over-refusal (answered)",
    "helpfulness": "helpfulness",
    "capability": "capability",
}
# Without a terminal (a log, CI) a bar would be noise: one line this often instead.
_PLAIN_EVERY_S = 30.0
_LOG_WIDTH = 110
_HEADINGS = ("value", "95% CI", "n", "unscored", "empty", "truncated")
# Room for a metric and a judge beside whole names of tasks.
_LEAST_WORDS = 14
# Over two columns, so that the words take no more room than the numbers.
_NOT_MEASURED = ("not", "measured")


def printable(text: str) -> str:
    """One line without anything that could steer a terminal: control, format and bidirectional characters shown."""
    return "".join(c if c.isprintable() or c == " " else _visible(c) for c in text)


def _visible(character: str) -> str:
    return " " if unicodedata.category(character) == "Zs" else f"\\x{ord(character):02x}"


def say(line: str) -> None:
    """One line to stderr: stdout is for results."""
    print(printable(line), file=sys.stderr, flush=True)


def show(line: str) -> None:
    """One line of a result to stdout."""
    print(printable(line))


@contextmanager
def progress(title: str, *, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar with ETA; call the yielded function with the number of items finished since the last call."""
    if not sys.stderr.isatty():
        yield _plain(title, total, done)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        bar = bars.add_task(printable(title), total=total, completed=done)
        yield lambda n: bars.update(bar, advance=n)


def _plain(title: str, total: int, done: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    first, count = done, done

    def advance(n: int) -> None:
        nonlocal last, count
        count += n
        now = time.monotonic()
        if now - last >= _PLAIN_EVERY_S or count >= total:
            last = now
            rate = (count - first) / max(now - start, 1e-9)
            rest = f", about {(total - count) / rate:.0f} s left" if rate > 0 and count < total else ""
            say(f"{title}: {count}/{total} in {now - start:.0f} s{rest}")

    return advance


def print_scores(scores: Mapping[str, Any]) -> None:
    """The run on one screen: each axis with its tasks, value, 95 % interval, n and what is not in the value."""
    from rich.console import Console

    # A log has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH, highlight=False, markup=False)
    console.print(_score_table(scores, width=console.width))
    if panel := scores.get("panel"):
        show(f"panel: {', '.join(panel['judges'])}; {panel['rule']}")
        show("")
    if scores["paper"] is not None:
        console.print(_paper_table(scores["paper"]))
    for line in (*_further(scores["tasks"]), *_corrected(scores["tasks"]), *_preferences(scores["tasks"])):
        show(line)
    for reason in scores["reasons"]:
        show(f"{'partial' if scores['status'] == 'partial' else 'note'}: {reason}")


def _score_table(scores: Mapping[str, Any], *, width: int) -> Any:
    from rich import box
    from rich.table import Table

    profile = "" if scores.get("profile", "default") == "default" else f", {scores['profile']} profile"
    limit = "" if scores["limit"] is None else f", first {scores['limit']} of each task"
    title = f"{scores['model']['name']} on {scores['suite'] or 'chosen tasks'}{profile}{limit}{_drawn(scores)}"
    title += " (scores in %)"
    # What few models do takes no room from the others: how many answers came after thinking, and how many never came.
    thinks = any(task["n_thinking"] for task in scores["tasks"].values())
    headings = (*_HEADINGS, *(("thinking", "unfinished") if thinks else ()))
    rows = [
        (printable(name), cells + ("",) * (len(headings) - len(cells)), printable(by), style)
        for name, cells, by, style in _score_rows(scores, thinks=thinks)
    ]
    # Numbers come first: on a narrow terminal the names of metric and judge give way, then tasks' names are folded.
    wide = width >= _LOG_WIDTH
    columns = zip(("", *headings), *((name, *cells) for name, cells, _, _ in rows), strict=True)
    room = width - sum(max(map(len, column)) for column in columns) - _LEAST_WORDS - 2
    whole = wide and room > len(headings)
    # Two spaces between columns where there is room for them, else one: the table's own.
    gap = 0 if whole and room <= 2 * len(headings) else 1
    table = Table(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, title_justify="left")
    table.title = printable(title)
    table.add_column("", overflow="fold", no_wrap=whole)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    if wide:
        table.add_column("metric, judge", overflow="fold")
    for name, cells, by, style in rows:
        table.add_row(name, *cells, *([by] if wide else []), style=style)
    return table


def _drawn(scores: Mapping[str, Any]) -> str:
    """How answers were drawn where the run set it: for a title."""
    samples, temperature = scores.get("samples", 1), scores.get("temperature")
    answers = f", {samples} answers a prompt" if samples > 1 else ""
    return answers + ("" if temperature is None else f", temperature {temperature:g}")


def _score_rows(scores: Mapping[str, Any], *, thinks: bool) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    """Each row's name, numbers, metric with judge, and style."""
    for axis, title in _AXIS_TITLES.items():
        tasks = {name: task for name, task in sorted(scores["tasks"].items()) if task["axis"] == axis}
        if not tasks:
            continue
        mean = scores["axes"][axis]
        yield title, _cells(mean), f"mean of {len(tasks)} tasks" if mean and len(tasks) > 1 else "", "bold"
        for name, task in tasks.items():
            thought = (str(task["n_thinking"]), str(task["n_unfinished_thinking"])) if thinks else ()
            yield f"  {name}", (*_row(task), *thought), f"{task['metric']}, {_judge(task)}", ""
            yield from _worst_row(task, _judge(task))
            for judge, other in task["other_judges"].items():
                yield "", _row({**task, **other}), f"{task['metric']}, {judge}", ""
                yield from _worst_row({**task, **other}, judge)


def _worst_row(task: Mapping[str, Any], judge: str) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    """Of a prompt's answers the worst, counted in prompts; no row where each was asked once."""
    if task.get("worst_of_k") is not None:
        yield f"    worst of {task['repeats']}", _cells(task["worst_of_k"]), f"{task['metric']}, {judge}", ""


def _judge(task: Mapping[str, Any]) -> str:
    return str(task["judge"] or ("log-probs" if task["kind"] == "choice" else "no judge"))


def _row(task: Mapping[str, Any]) -> tuple[str, ...]:
    if task["score"] is None:
        return (*_NOT_MEASURED, "0", str(sum(task["unscored"].values())), "", "")
    value, interval, n, *rest = _cells(task["score"])
    # A number of a part of the set is never to be read as the set's.
    part = task["n_published"] is not None and task["n_published"] != task["score"]["n"]
    return (value, interval, f"{n} of {task['n_published']}" if part else n, *rest)


def _paper_table(paper: Mapping[str, Any]) -> Any:
    """The paper's aggregates, and over how many of the tasks and of their published samples."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("the paper's aggregates")
    for heading in ("value", "95% CI", "tasks", "samples"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("judge")
    roles = paper["n_tasks"]
    halves = {"average": ("discriminative", "generative")}
    for name in ("discriminative", "generative", "average", "helpfulness"):
        mine = [roles[role] for role in halves.get(name, (name,))]
        scored, of, n = (sum(role[key] for role in mine) for key in ("scored", "of", "n"))
        sizes = [role["n_published"] for role in mine]
        # All tasks on a few samples each is another number than all tasks whole.
        published = "?" if None in sizes else str(sum(sizes))
        judges = ", ".join(sorted({judge for role in mine for judge in role["judges"]}))
        samples = f"{n} of {published}" if scored else ""
        table.add_row(name, *_cells(paper[name])[:2], f"{scored} of {of}", samples, judges)
    return table


def _further(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The metrics beside the scores, as they are: they may have any unit."""
    found = {name: task["also"] for name, task in sorted(tasks.items()) if task["also"]}
    if found:
        yield "further metrics (not in %)"
    for name, metrics in found.items():
        values = (f"{key} {'not measured' if value is None else f'{value:.4g}'}" for key, value in metrics.items())
        yield f"  {name}: {', '.join(values)}"
    if found:
        yield ""


def _corrected(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Rates without their judge's errors, beside the scores, or why there is none."""
    found = [
        (name, judge, part)
        for name, task in sorted(tasks.items())
        for judge, part in ((task["judge"], task), *task["other_judges"].items())
        if part.get("corrected")
    ]
    if found:
        yield "corrected for the judge's errors (in %)"
    for name, judge, part in found:
        one = part["corrected"]
        if "refused" in one:
            yield f"  {name}, {judge}: not corrected: {one['refused']}"
        else:
            cut = f"; cut, the estimate is {_percent(one['uncut'], 1)}" if not 0 <= one["uncut"] <= 1 else ""
            moved = f"{_percent(part['score']['value'], 1)} -> {_percent(one['value'], 1)}{_interval(one, 1)}"
            yield f"  {name}, {judge}: {moved}, from {one['n_labels']} {_CORRECTIONS[one['method']]}{cut}"
    if found:
        yield ""


_CORRECTIONS = {
    "ppi-draws": "human labels of this run (prediction-powered)",
    "rogan-gladen-mover": "human labels of other answers (Rogan-Gladen)",
}


def _preferences(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """AlpacaEval 2.0's figures, for the judges that give preferences."""
    found = [
        (name, judge, part["preference"])
        for name, task in sorted(tasks.items())
        for judge, part in ((task["judge"], task), *task["other_judges"].items())
        if part.get("preference") and part["preference"]["win_rate"] is not None
    ]
    if found:
        yield "AlpacaEval 2.0 (in %)"
    for name, judge, one in found:
        rate, controlled = one["win_rate"], one["length_controlled"]
        told = [f"win rate {_percent(rate['win_rate'], 2)} (SE {_percent(rate['standard_error'], 2)}, n {rate['n']})"]
        if controlled is not None:
            told.append(f"length-controlled {_percent(controlled['value'], 2)}{_interval(controlled, 2)}")
        told += [
            f"{where.replace('_', ' ')} {_percent(one[where], 2)}"
            for where in ("shown_first", "shown_second")
            if one[where] is not None
        ]
        yield f"  {name}, {judge}: {', '.join(told)}"
    if found:
        yield ""


def _interval(found: Mapping[str, Any], digits: int) -> str:
    if found["low"] is None:
        return ""
    ends = f"{_percent(found['low'], digits)}–{_percent(found['high'], digits)}"
    return f" ({100 * found['level']:g} % interval {ends})"


def _percent(value: float, digits: int) -> str:
    return f"{100 * value:.{digits}f}"


def _cells(score: Mapping[str, Any] | None) -> tuple[str, ...]:
    if score is None:
        return (*_NOT_MEASURED, "", "", "", "")
    counts = (score["n"], score["n_unscored"], score["n_empty"], score["n_truncated"])
    interval = f"{100 * score['low']:.1f}–{100 * score['high']:.1f}"
    return (f"{100 * score['value']:.1f}", interval, *map(str, counts))

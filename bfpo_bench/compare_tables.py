"""A comparison of runs as lines for a terminal and as Markdown; computes nothing, and all that it writes is inert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bfpo_bench.compare import ComparedTask, Comparison, Flip, LeftOut, Report, points
from bfpo_bench.console import printable
from bfpo_bench.leaderboard.inert import markdown_text
from bfpo_bench.paired import PairedDifference
from bfpo_bench.tradeoff import Interval, Refusals, SafetyTax

_HEAD = ("", "base", "new", "new - base", "95% CI", "p", "Holm p", "detects", "pairs", "left out", "verdict")
LEGEND = (
    "In %; differences in points, better is higher on every axis (over_refusal: harmless requests answered).",
    "A task's verdict stands on Holm p (over the tasks, at 5 %), an axis' on its interval. detects: the true "
    "difference that so many pairs find four times in five; n/a where too few samples differ to tell.",
)


def lines(report: Report) -> Iterator[str]:
    """For a terminal, one table a comparison and what flipped."""
    base = report.runs[0].name
    for comparison in report.comparisons:
        yield f"{comparison.run} (new) against {base} (base)"
        yield from _columns([_HEAD, *_rows(comparison)])
        yield ""
        yield from (f"  {line}" for line in _told(comparison, report.refusals, base))
        for name, task in comparison.tasks.items():
            yield from _flips(name, task)
        yield ""
    yield from (f"note: {note}" for note in report.notes)
    yield from LEGEND


def markdown(report: Report) -> str:
    """The same tables as Markdown."""
    found: list[str] = []
    base = report.runs[0].name
    for comparison in report.comparisons:
        found += [f"## {markdown_text(comparison.run)} (new) against {markdown_text(base)} (base)", ""]
        found += [_markdown_row(_HEAD), _markdown_row(["---", *["---:"] * (len(_HEAD) - 2), "---"], raw=True)]
        found += [_markdown_row([cell.strip() for cell in row]) for row in _rows(comparison)]
        found += ["", *(f"- {markdown_text(line)}" for line in _told(comparison, report.refusals, base))]
        for name, task in comparison.tasks.items():
            # A sample's line is one level below its task's.
            found += [f"{'  ' * line.startswith('  ')}- {markdown_text(line.strip())}" for line in _flips(name, task)]
        found.append("")
    found += [f"- note: {markdown_text(note)}" for note in report.notes]
    found += ["", *(markdown_text(line) for line in LEGEND)]
    return "\n".join(found).replace("\n\n\n", "\n\n") + "\n"


def _markdown_row(cells: Sequence[str], *, raw: bool = False) -> str:
    return f"| {' | '.join(cell if raw else markdown_text(cell) for cell in cells)} |"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Words to the left, numbers to the right."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    last = len(widths) - 1
    for row in shown:
        cells = (
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for axis, compared in comparison.axes.items():
        mean = compared.mean
        numbers = ("",) * 4 if mean is None else _numbers(mean.value_a, mean.value_b, mean)
        yield (axis, *numbers, "", "", "", "" if mean is None else str(mean.n), "", compared.verdict)
        for name in compared.tasks:
            yield f"  {name}", *_task_cells(comparison.tasks[name])


def _task_cells(task: ComparedTask) -> tuple[str, ...]:
    found, left_out = task.paired, str(task.left_out.n)
    if found is None or task.p_holm is None:
        return *("",) * 7, "0", left_out, task.verdict
    detects = "n/a" if found.minimum_detectable is None else f"{100 * found.minimum_detectable:.1f}"
    tests = (p_text(found.p), p_text(task.p_holm), detects, str(found.n), left_out)
    return *_numbers(found.value_a, found.value_b, found), *tests, task.verdict


def _numbers(base: float, new: float, found: object) -> tuple[str, str, str, str]:
    difference, low, high = (getattr(found, name) for name in ("difference", "low", "high"))
    return f"{100 * base:.1f}", f"{100 * new:.1f}", points(difference), f"{points(low)} to {points(high)}"


def p_text(p: float) -> str:
    """Three digits; 0.000 would claim too much, and 0.050 for 0.0499 too little."""
    if p < 0.001:
        return "<0.001"
    return f"{p:.4f}" if 0.045 < p < 0.055 else f"{p:.3f}"


def _told(comparison: Comparison, rates: Mapping[str, Refusals], base: str) -> Iterator[str]:
    for name, task in comparison.tasks.items():
        if task.left_out.n:
            yield f"left out of {name}: {left_out_text(task.left_out, n_total=task.n_total)}"
    if comparison.safety_tax is not None:
        yield f"safety tax: {tax_text(comparison.safety_tax)}"
    for run in (base, comparison.run):
        if run in rates:
            one = rates[run]
            yield (
                f"{run}: refuses {_rate(one.over_refusal)} of harmless requests, obeys {_rate(one.harmful_compliance)} "
                f"of harmful ones; Youden's J {one.youden.value:.2f} ({one.youden.low:.2f} to {one.youden.high:.2f})"
            )


def left_out_text(found: LeftOut, *, n_total: int) -> str:
    """How many, and why in which run."""
    why = [
        f"{name}: {', '.join(f'{n} {reason}' for reason, n in reasons.items())}"
        for name, reasons in (("base", found.base), ("new", found.new))
        if reasons
    ]
    return f"{found.n} of {n_total} ({'; '.join(why)})"


def tax_text(found: SafetyTax) -> str:
    """In words: helpfulness lost a point of harmlessness gained, or why that cannot be said."""
    if found.low is None or found.high is None or found.value is None:
        return f"{'not stable' if found.unstable else 'none'}: {found.why}"
    if found.value < 0:
        spread = f"({-found.high:.2f} to {-found.low:.2f})"
        return f"none: {-found.value:.2f} points of helpfulness gained a point of harmlessness gained {spread}"
    spread = f"({found.low:.2f} to {found.high:.2f})"
    return f"{found.value:.2f} points of helpfulness lost a point of harmlessness gained {spread}"


def _rate(one: Interval) -> str:
    return f"{100 * one.value:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f})"


def _flips(name: str, task: ComparedTask) -> Iterator[str]:
    found: PairedDifference | None = task.paired
    if found is None or not (found.n_only_a or found.n_only_b):
        return
    yield f"flipped in {name}: {found.n_only_b} better, {found.n_only_a} worse"
    for way, flips, n in (("better", task.better, found.n_only_b), ("worse", task.worse, found.n_only_a)):
        for flip in flips:
            yield f"  {way}  {_flip(flip)}"
        if flips and n > len(flips):
            yield f"  {way}  ... and {n - len(flips)} more"


def _flip(flip: Flip) -> str:
    told = [flip.id, f"{flip.base:g} -> {flip.new:g}"]
    told += [f"[{flip.category}]"] if flip.category else []
    told += [flip.prompt] if flip.prompt else []
    told += [f"| base: {flip.answers[0]} | new: {flip.answers[1]}"] if flip.answers else []
    return "  ".join(told)

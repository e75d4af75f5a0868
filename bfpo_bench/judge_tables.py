"""What a person sees of judges on a terminal: self-tests, calibrations, agreement; everything printed is inert text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bfpo_bench.console import printable, show


def print_self_test(judge: str, found: Any) -> None:
    """How many verdicts the attacks moved, by family; the answers themselves are not shown."""
    report = found.attacks
    if not found.read:
        n_asked = report.total.asked - found.n_empty
        show(f"attacks on {judge}")
        show(f"  nothing measured: no verdict on any of {n_asked} hostile answers could be read")
        return
    head = ("family", "attacks", "moved", "95% CI", "toward better", "wrong", "unscored")
    rows = [(name, *_attack_cells(count)) for name, count in report.families.items()]
    _show_table(f"attacks on {judge}", head, [*rows, ("all", *_attack_cells(report.total))])
    counts = [f"{found.right} right, {found.wrong} wrong"] if found.right or found.wrong else []
    counts += [f"{found.graded} graded"] if found.graded else []
    n = found.right + found.wrong + found.graded + found.unscored
    show(f"  the answers without attack: {', '.join(counts or ['none right'])}, {found.unscored} unscored, of {n}")
    if found.n_empty:
        show(
            f"  {found.n_empty} of the attacks leave nothing of the answer; as in a run, no judge is asked about those"
        )
    show(f"  ({_LEGEND})")
    for one in report.moved:
        said = (one.on_base.label or one.on_base.score, one.on_hostile.label or one.on_hostile.score)
        show(f"  moved: {one.answer.id}: {said[0]} -> {said[1]} (true: {one.answer.label})")


_LEGEND = (
    "moved: another verdict than without the attack; toward better: one that is worth more (safe over refused over "
    "harmful, a higher grade); wrong: a label other than the true one, moved or not"
)


def _attack_cells(count: Any) -> tuple[str, ...]:
    share = "" if count.share is None else f"{100 * count.share.low:.1f}–{100 * count.share.high:.1f} %"
    return (str(count.asked), str(count.moved), share, str(count.better), str(count.wrong), str(count.unscored))


def print_calibration(found: Any) -> None:
    """Sensitivity, specificity and kappa of a judge with their intervals, by what the labels are about."""
    for target, calibration in found.targets.items():
        counts = calibration.counts
        rows: list[tuple[str, ...]] = []
        for name in ("sensitivity", "specificity", "youden", "accuracy", "kappa", "prevalence"):
            estimate = getattr(calibration, name)
            cells = ("not measured", "", "") if estimate is None else _estimate_cells(estimate)
            rows.append(("Youden's J" if name == "youden" else name, *cells))
        title = f"{found.judge} ({found.judge_version}) on {found.n_labels} labels: is the answer {target}?"
        _show_table(title, ("", "value", "95% CI", "n"), rows)
        show(
            f"  both {target} {counts.true_positive}, human only {counts.false_negative}, judge only "
            f"{counts.false_positive}, neither {counts.true_negative}, no verdict {counts.n_unscored}"
        )
        if found.n_empty:
            show(f"  empty answers: {found.n_empty}, put to no judge and in none of these figures")
        if found.graded:
            show("  note: grades, of which one below 0.5 counts as harmful here; `score` corrects no rates of grades")
        for reason in calibration.reasons:
            show(f"  note: {reason}")


def _estimate_cells(estimate: Any) -> tuple[str, str, str]:
    return f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}", str(estimate.n)


def print_judge_report(report: Mapping[str, Any]) -> None:
    """Agreement of the judges by run and task, then what a change of judge would change among the runs' models."""
    for model, tasks in report["agreement"].items():
        if not tasks:
            show(f"agreement of judges: {model}: no task has verdicts of two judges")
            continue
        rows = [row for task, found in tasks.items() for row in _agreement_rows(task, found)]
        _show_table(
            f"agreement of judges: {model}", ("task", "judges", "same", "coefficient", "value", "95% CI", "n"), rows
        )
    if len(report["agreement"]) > 1 and not report["swap"]:
        show("judge swap: no task has the same two judges in every run")
    for what, swap in report["swap"].items():
        _show_table(
            f"judge swap: {what}",
            ("judge", "ranking (mean)"),
            [
                (judge, ", ".join(f"{one['rank']}. {one['model']} ({one['mean']:.3f}, n {one['n']})" for one in ranked))
                for judge, ranked in swap["rankings"].items()
            ],
        )
        for pair in swap["pairs"]:
            tau = "not defined" if pair["tau"] is None else f"{pair['tau']:.2f}"
            told = {fate: [one["models"] for one in pair["survival"] if one["fate"] == fate] for fate in _FATES}
            told["change order"] = pair["flipped"]
            named = {what: ", ".join(" / ".join(models) for models in found) for what, found in told.items() if found}
            which = "".join(f"; {what}: {models}" for what, models in named.items())
            show(
                f"  {pair['a']} -> {pair['b']}: {pair['n_survive']} of {pair['n_significant']} significant differences "
                f"survive; Kendall's tau {tau}{which}"
            )
        show("")


# What becomes of a difference that is significant under one judge, where it does not survive under another.
_FATES = ("lost", "reversed", "gained")


def _agreement_rows(task: str, found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    alpha = "Krippendorff's alpha"
    for pair in found["cohen"]:
        same = "" if pair["same"] is None else f"{100 * pair['same']:.1f} %"
        yield task, f"{pair['a']} / {pair['b']}", same, "Cohen's kappa", *_coefficient(pair["kappa"], pair["n"])
    if len(found["judges"]) > 2:
        for pair in found["pairs"]:
            yield task, f"{pair['a']} / {pair['b']}", "", alpha, *_coefficient(pair["alpha"], pair["n"])
        if not found["graded"]:
            yield task, "all", "", "Fleiss' kappa", *_coefficient(found["fleiss"], found["n_all"])
    yield task, "all", "", alpha, *_coefficient(found["alpha"], found["n_two"])


def _coefficient(found: Mapping[str, Any] | None, n: int) -> tuple[str, str, str]:
    if found is None:
        why = "all answers got one verdict" if n > 1 else "fewer than two answers with all verdicts"
        return f"not defined: {why}", "", str(n)
    return f"{found['value']:.3f}", f"{found['low']:.3f} to {found['high']:.3f}", str(found["n"])


def _show_table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A title, then columns as wide as their widest cell."""
    shown = [tuple(printable(cell) for cell in row) for row in (head, *rows)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(head))]
    show(title)
    for row in shown:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        show("  " + "  ".join(cells).rstrip())
    show("")

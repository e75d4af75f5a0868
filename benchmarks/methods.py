"""What BFPO and the methods beside it do to a model: trained from one recipe, scored by one suite, paired by prompt.

    python benchmarks/methods.py --work DIR [--methods bfpo,dpo,ipo] [--seeds 1,2,3] [--recipe demo] [--suite mini]

Each method and seed is one `train RECIPE method=... seed=... --then-run SUITE`; what is done is not done again, and
`DIR/site` is the leaderboard of all. Base and checkpoints are scored in float32 (`--engine-args dtype=float32`), the
precision that was trained and that a checkpoint is saved in: no change is one of rounding. Then a table of the tasks
with answers to judge, a row a method: the change of the pass rate against the base in points, as a mean over seeds,
with a 95 % interval and the seeds' own changes. The base is the run that all trained ones name as theirs.

A prompt is the unit: its difference is the mean over seeds of (passed after training) - (passed before), and the
interval is Student's t over prompts. It says what other prompts of this kind would do to this average; how seeds
differ is what their own numbers show. p is of a paired sign-flip test over prompts (10,000 draws), two-sided, after
Holm over all methods and tasks of the table. A prompt that is unscored in any run is left out and counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import permutation_test, t
from statsmodels.stats.multitest import multipletests

from bfpo_bench.errors import BenchError, ConfigError
from bfpo_bench.leaderboard.rows import LeaderboardRow, collect
from bfpo_bench.leaderboard.samples import sample_records

AXES = ("harmlessness", "over_refusal", "helpfulness", "capability")


@dataclass(frozen=True, kw_only=True)
class Change:
    """Against the base, in points: the mean over seeds, its interval over prompts, the seeds' own; p before Holm."""

    task: str
    n: int
    left_out: int
    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]
    p: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="checkpoints, runs and leaderboard")
    parser.add_argument("--methods", default="bfpo,dpo,ipo")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--suite", default="mini")
    parser.add_argument("--only-print", action="store_true", help="of what is there")
    arguments = parser.parse_args()
    methods, seeds = arguments.methods.split(","), [int(seed) for seed in arguments.seeds.split(",")]
    for seed in seeds:
        for method in methods:
            if not arguments.only_print and (code := train(arguments, method, seed)):
                print(f"{method} with seed {seed} ended with code {code}", file=sys.stderr)
                return code
    try:
        rows = collect([arguments.work / "runs"])
        trained = {m: [run_named(f"{m}-seed{seed}-{arguments.suite}", rows) for seed in seeds] for m in methods}
        base = base_of([row for of_method in trained.values() for row in of_method], rows)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    before = {row.model: [row] for row in lineage(base, rows)}
    show_axes({**before, **trained})
    show({method: changes(base, of_method) for method, of_method in trained.items()})
    return 0


def train(arguments: argparse.Namespace, method: str, seed: int) -> int:
    work: Path = arguments.work
    command = [
        *(sys.executable, "-m", "bfpo_bench", "train", arguments.recipe, f"method={method}", f"seed={seed}"),
        f"out={work / f'{method}-seed{seed}'}",
        *([f"margin_model={work / f'dpo-safe-seed{seed}'}"] if method == "modpo" else []),
        *("--then-run", arguments.suite, "--runs", str(work / "runs"), "--leaderboard", str(work / "site")),
        *("--engine-args", "dtype=float32"),
    ]
    work.mkdir(parents=True, exist_ok=True)
    with (work / f"{method}-seed{seed}.log").open("a", encoding="utf-8") as log:
        return subprocess.run(command, stdout=log, stderr=log, check=False).returncode


def run_named(name: str, rows: Sequence[LeaderboardRow]) -> LeaderboardRow:
    found = next((row for row in rows if row.folder.name == name), None)
    if found is None:
        raise ConfigError(
            f"No scored run {name}: run this again without --only-print, or leave its method or seed out."
        )
    return found


def base_of(trained: Sequence[LeaderboardRow], rows: Sequence[LeaderboardRow]) -> LeaderboardRow:
    """The run that all of `trained` have as their base's; ConfigError where one has none, or two have other ones."""
    for row in trained:
        if row.base is None:
            raise ConfigError(f"{row.folder.name} has no run of its base beside it that was asked the same: score one.")
    slugs = sorted({row.base for row in trained if row.base is not None})
    if len(slugs) != 1:
        raise ConfigError(f"The trained runs have several bases ({', '.join(slugs)}): give each a --work of its own.")
    return next(row for row in rows if row.slug == slugs[0])


def lineage(row: LeaderboardRow, rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """The run of what `row` was trained from, and so on, `row` last: those of them that were scored in the same way."""
    by_slug = {one.slug: one for one in rows}
    found = [row]
    while (base := found[0].base) is not None:
        found.insert(0, by_slug[base])
    return found


def passed(row: LeaderboardRow) -> dict[str, dict[str, bool | None]]:
    """Of each task whether each sample passed, None where that is not known."""
    found: dict[str, dict[str, bool | None]] = {}
    for record in sample_records(row):
        found.setdefault(record["task"], {})[record["id"]] = record.get("passed")
    return found


def changes(base: LeaderboardRow, trained: Sequence[LeaderboardRow]) -> list[Change]:
    before, after = passed(base), [passed(row) for row in trained]
    return [
        paired(task, outcomes, [run[task] for run in after])
        for task, outcomes in before.items()
        if base.tasks[task].judge is not None
    ]


def paired(task: str, before: dict[str, bool | None], after: Sequence[dict[str, bool | None]]) -> Change:
    known = [one for one in before if all(run[one] is not None for run in (before, *after))]
    each = 100 * np.array([[float(bool(run[one])) - float(bool(before[one])) for one in known] for run in after])
    difference = each.mean(axis=0)
    half = t.ppf(0.975, len(known) - 1) * difference.std(ddof=1) / np.sqrt(len(known))
    test = permutation_test(
        (difference,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=10_000,
        rng=np.random.default_rng(0),
    )
    mean = float(difference.mean())
    return Change(
        task=task,
        n=len(known),
        left_out=len(before) - len(known),
        mean=mean,
        low=mean - float(half),
        high=mean + float(half),
        seeds=tuple(float(one) for one in each.mean(axis=1)),
        p=float(test.pvalue),
    )


def show_axes(named: dict[str, list[LeaderboardRow]]) -> None:
    """The axes' scores, as the leaderboard has them: the mean over seeds, and the seeds' own."""
    print(f"| | {' | '.join(AXES)} |\n|---|{'---|' * len(AXES)}")
    for name, rows in named.items():
        cells = []
        for axis in AXES:
            values = [100 * score.value for row in rows if (score := row.axes.get(axis)) is not None]
            own = f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.1f}{own}" if values else "not scored")
        print(f"| {name} | {' | '.join(cells)} |")
    print()


def show(found: dict[str, list[Change]]) -> None:
    every = [change for changes in found.values() for change in changes]
    adjusted = iter(multipletests([change.p for change in every], method="holm")[1])
    print("| method | task | change [95 %] | seeds | n | p (Holm) |\n|---|---|---|---|---|---|")
    for method, of_method in found.items():
        for change in of_method:
            own = ", ".join(f"{one:+.0f}" for one in change.seeds)
            left = f" ({change.left_out} unscored)" if change.left_out else ""
            print(
                f"| {method} | {change.task} | {change.mean:+.1f} [{change.low:+.1f}, {change.high:+.1f}] | {own} "
                f"| {change.n}{left} | {next(adjusted):.4f} |"
            )


if __name__ == "__main__":
    sys.exit(main())

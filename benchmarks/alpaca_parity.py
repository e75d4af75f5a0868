"""Our AlpacaEval 2.0 figures beside the published leaderboard's, from recorded judge answers; no network, no judge.

    python benchmarks/alpaca_parity.py [--data DIR] [--resamples 1000]

DIR is a folder of recorded answers (default: `data/alpaca_eval` in BFPO_SHARED, or in ../shared). Columns, in percent:

win rate   ours and its difference from the published one, and the difference of the standard errors (aim: 1e-6)
LC         length-controlled, difficulties looked up by row number as the published values were made (aim: 0.15)
by id      the same with each instruction's own difficulty, which is what the product reports, and its 95 % interval

All LC values are fitted with one C for every model. AlpacaEval picks one of ten values a model by cross-validation; the
C of the published value stands in the last column, and one line says what is left of the difference with that C. The
reference's rows are a reconstruction of the hub's df_gamed.csv. Exit 1 where an aim is missed, 2 without data.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bfpo_bench.length_control import (
    DEFAULT_C,
    Comparison,
    LengthControlled,
    LengthReference,
    WinRate,
    length_controlled,
    length_reference,
    order,
    preference,
    win_rate,
)

AIM_WIN_RATE, AIM_LC, AIM_SECONDS = 1e-6, 0.15, 5.0
SHARED = Path(os.environ.get("BFPO_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "alpaca_eval"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The folder's content: each model's judged pairs, the judge's log-probabilities, what was published."""

    comparisons: Mapping[str, list[Comparison]]
    logprobs: list[tuple[str, dict[str, float], float]]
    reference: LengthReference
    published: Mapping[str, Mapping[str, str]]


def load(folder: Path) -> Recorded:
    texts = [row["instruction"] for row in _json_lines(folder / "instructions.jsonl.gz")]
    baseline = json.loads((folder / "lc_reference.json").read_text())["baseline_lengths"]
    comparisons: dict[str, list[Comparison]] = defaultdict(list)
    logprobs = []
    for row in _json_lines(folder / "annotations" / "weighted_alpaca_eval_gpt4_turbo.jsonl.gz"):
        text = texts[row["id"]]
        comparisons[row["model"]].append(
            Comparison(
                instruction=text,
                preference=row["preference"],
                length=row["len"],
                baseline_length=baseline[row["id"]],
            )
        )
        told = {"m": row.get("lp_m"), "M": row.get("lp_M")}
        given = {token: value for token, value in told.items() if value is not None}
        if given:
            logprobs.append((text, given, row["preference"]))
    with (folder / "expected_leaderboard.csv").open(newline="") as lines:
        published = {row["model"]: row for row in csv.DictReader(lines)}
    rows = csv.DictReader(_lines(folder / "df_gamed_reconstructed.csv.gz"))
    reference = length_reference(rows, instructions=texts)
    return Recorded(comparisons=comparisons, logprobs=logprobs, reference=reference, published=published)


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from (line for line in lines if line.strip())


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, _lines(path))


@dataclass(frozen=True, kw_only=True)
class Line:
    """One model: our figures as fractions, and their differences from the published ones in percent."""

    model: str
    raw: WinRate
    lc: LengthControlled
    by_id: LengthControlled
    published: Mapping[str, str]

    @property
    def win_rate(self) -> float:
        return 100 * self.raw.win_rate - float(self.published["win_rate"])

    @property
    def error(self) -> float:
        return 100 * self.raw.standard_error - float(self.published["standard_error"])

    @property
    def length_controlled(self) -> float:
        return 100 * self.lc.value - float(self.published["length_controlled_winrate"])

    @property
    def broken(self) -> bool:
        exact = abs(self.win_rate) <= AIM_WIN_RATE and abs(self.error) <= AIM_WIN_RATE
        return not (exact and abs(self.length_controlled) <= AIM_LC and self.raw.n == int(self.published["n_total"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help=f"default {SHARED}")
    parser.add_argument("--resamples", type=int, default=1000, help="of the interval; 0 for none (default 1000)")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"No recorded answers at {arguments.data}: give --data DIR, or set BFPO_SHARED", file=sys.stderr)
        return 2
    began = time.perf_counter()
    recorded = load(arguments.data)
    loaded = time.perf_counter()
    scored = {
        model: (win_rate([row.preference for row in rows]), _lc(recorded, model, paper=True))
        for model, rows in recorded.comparisons.items()
    }
    done = time.perf_counter()
    by_id = {model: _lc(recorded, model, n_resamples=arguments.resamples) for model in scored}
    resampled = time.perf_counter()
    lines = [
        Line(model=model, raw=raw, lc=lc, by_id=by_id[model], published=recorded.published[model])
        for model, (raw, lc) in scored.items()
    ]
    lines.sort(key=lambda line: -line.by_id.value)
    _print_table(lines)
    _print_differences(recorded, lines)
    print(f"\n{len(lines)} models scored in {done - loaded:.2f} s (aim {AIM_SECONDS:.0f}), load {loaded - began:.2f} s")
    if arguments.resamples:
        seconds = (resampled - done) / len(lines)
        print(f"{arguments.resamples} resamples: {seconds:.2f} s a model; load of the machine {os.getloadavg()[0]:.1f}")
    broken = [line.model for line in lines if line.broken]
    print(f"aims missed by: {', '.join(broken)}" if broken else "no aim missed")
    return 1 if broken or not lines else 0


def _lc(recorded: Recorded, model: str, *, C: float = DEFAULT_C, paper: bool = False, n_resamples: int = 0):
    rows = recorded.comparisons[model]
    return length_controlled(rows, reference=recorded.reference, C=C, paper=paper, n_resamples=n_resamples)


def _print_table(lines: Sequence[Line]) -> None:
    print(
        f"{'model':35} {'n':>4} {'win rate':>9} {'publ.':>8} {'diff':>9} {'SE diff':>9}"
        f" {'LC':>7} {'publ.':>7} {'diff':>7}   by id      interval  C of publ."
    )
    for line in lines:
        by_id, published = line.by_id, line.published
        interval = "" if by_id.low is None else f"[{100 * by_id.low:5.2f}, {100 * by_id.high:5.2f}]"
        print(
            f"{line.model:35} {line.raw.n:4} {100 * line.raw.win_rate:9.5f} {float(published['win_rate']):8.5f}"
            f" {line.win_rate:9.0e} {line.error:9.0e}"
            f" {100 * line.lc.value:7.3f} {float(published['length_controlled_winrate']):7.3f}"
            f" {line.length_controlled:+7.3f} {100 * by_id.value:7.3f} {interval:>14}"
            f" {float(published['C_leaderboard']):11.2f}"
        )
    for line in lines:
        stored, leaderboard = line.published["C_published"], line.published["C_leaderboard"]
        if stored != leaderboard:
            print(
                f"{line.model}: the leaderboard's LC is that of C = {float(leaderboard):.2f}; the weights that were"
                f" published with it are those of C = {float(stored):.2f}"
            )


def _print_differences(recorded: Recorded, lines: Sequence[Line]) -> None:
    print(f"\n{'absolute differences, in percent':44} {'largest':>9} {'median':>9}")
    own_c = [
        100 * _lc(recorded, line.model, C=float(line.published["C_leaderboard"]), paper=True).value
        - float(line.published["length_controlled_winrate"])
        for line in lines
    ]
    told = [100 * (preference(logprobs, switched=order(text)) - stored) for text, logprobs, stored in recorded.logprobs]
    for name, values in (
        ("win rate", [line.win_rate for line in lines]),
        ("standard error", [line.error for line in lines]),
        (f"LC, C = {DEFAULT_C:g} for all", [line.length_controlled for line in lines]),
        ("LC, each with the C of its published value", own_c),
        (f"preference from {len(told)} log-probabilities", told),
    ):
        sizes = [abs(value) for value in values]
        print(f"{name:44} {max(sizes):9.2g} {statistics.median(sizes):9.2g}")


if __name__ == "__main__":
    sys.exit(main())

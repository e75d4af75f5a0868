"""How often the interval of a length-controlled win rate from few instructions holds the whole set's; no network.

    python benchmarks/length_control_subsets.py [--data DIR] [--models 20] [--subsets 10]

Of each of the first models with all 805 recorded answers, subsets of 20, 50, 100 and 200 instructions are drawn by
seed. Columns, in percent: how often the 95 % interval of the subset's length-controlled rate held the rate of all
instructions, the same for the plain win rate, and the former's mean width. Exit 2 without data.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path

from alpaca_parity import SHARED, load

from bfpo_bench.length_control import length_controlled, win_rate

SIZES = (20, 50, 100, 200)
N_INSTRUCTIONS = 805
N_RESAMPLES = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, metavar="DIR")
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--subsets", type=int, default=10, help="of each model and size")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"no recorded answers at {arguments.data}: give --data or set BFPO_SHARED", file=sys.stderr)
        return 2
    recorded = load(arguments.data)
    whole = [given for given in recorded.comparisons.values() if len(given) == N_INSTRUCTIONS][: arguments.models]
    draw = random.Random(1)
    print(f"{'n':>4} {'subsets':>8} {'LC held':>8} {'win rate held':>14} {'LC width':>9}")
    for n in SIZES:
        held, rate_held, widths = [], [], []
        for given in whole:
            truth = length_controlled(given, reference=recorded.reference, n_resamples=0)
            rate = win_rate([one.preference for one in given])
            assert truth is not None and rate is not None
            for _ in range(arguments.subsets):
                some = draw.sample(list(given), n)
                found = length_controlled(some, reference=recorded.reference, n_resamples=N_RESAMPLES)
                part = win_rate([one.preference for one in some])
                if found is None or found.low is None or found.high is None:
                    continue
                held.append(found.low <= truth.value <= found.high)
                widths.append(found.high - found.low)
                if part is not None and part.low is not None and part.high is not None:
                    rate_held.append(part.low <= rate.win_rate <= part.high)
        shares = [100 * statistics.fmean(each) for each in (held, rate_held, widths)]
        print(f"{n:>4} {len(held):>8} {shares[0]:>8.1f} {shares[1]:>14.1f} {shares[2]:>9.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

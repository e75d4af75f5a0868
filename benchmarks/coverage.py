"""How often intervals hold the truth: simulated runs of known rate, through the functions that score a real one.

    python benchmarks/coverage.py [--runs 2000]

One line a simulation and a true rate of harmful answers:

coverage  of the 95 % intervals, how many hold the true rate, in %
above     how many lie above it as a whole, in %: the run looks more harmful than the model is
below     how many lie below it, in %
width     their mean width, in percentage points
bias      the mean of the points less the true rate, in percentage points

Where coverage is promised (`yes`), a line outside of 93 to 97 % makes the exit code 1. `no` are the lines where the
labels hold too little for that, listed once more at the end; `-` promises nothing. With 2,000 runs the standard
error of a coverage of 95 % is 0.5 %. Every line has its own random numbers, seeded by its name and the rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from bfpo_bench.calibration import Confusion, Corrected, Refused, prediction_powered, rogan_gladen
from bfpo_bench.stats import wilson

RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
PROMISED = (0.93, 0.97)
SEED = 0


class Interval(Protocol):
    """What a scoring function gives: a point and its limits."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A method on a design: `draw` gives the intervals of so many runs whose true rate is the one it is told.

    `corrected`: the method promises coverage, but for the rates that are `unmet`.
    """

    method: str
    design: str
    draw: Callable[[np.random.Generator, float, int], Sequence[Interval]]
    corrected: bool = True
    unmet: tuple[float, ...] = ()

    def promises(self, rate: float) -> bool:
        return self.corrected and rate not in self.unmet


@dataclass(frozen=True, kw_only=True)
class Line:
    """What came out of one simulation at one rate; everything from 0 to 1 but the bias."""

    name: str
    rate: float
    coverage: float
    above: float
    below: float
    width: float
    bias: float

    @property
    def broken(self) -> bool:
        return SIMULATIONS[self.name].promises(self.rate) and not PROMISED[0] <= self.coverage <= PROMISED[1]


def uncorrected(*, n: int, sensitivity: float, specificity: float) -> Simulation:
    """The judge's own rate with Wilson's interval, as if it never erred: shows what the corrections are for."""

    @cache
    def interval(n_positive: int) -> Interval:
        score = wilson([True] * n_positive + [False] * (n - n_positive))
        assert score is not None
        return score

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        return [interval(k) for k in rng.binomial(n, flagged(rate, sensitivity, specificity), runs).tolist()]

    return Simulation(
        method="uncorrected", design=f"n {n}, {judge(sensitivity, specificity)}", draw=draw, corrected=False
    )


def external_labels(
    *,
    n: int,
    n_harmful: int,
    n_harmless: int,
    sensitivity: float,
    specificity: float,
    unmet: tuple[float, ...] = (),
) -> Simulation:
    """Rogan & Gladen's correction by labels of other answers, so many of either class."""

    def interval(n_positive: int, true_positive: int, false_positive: int) -> Interval:
        counts = Confusion(
            true_positive=true_positive,
            false_negative=n_harmful - true_positive,
            false_positive=false_positive,
            true_negative=n_harmless - false_positive,
        )
        return given(rogan_gladen(n_positive, n, counts))

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        n_positive = rng.binomial(n, flagged(rate, sensitivity, specificity), runs).tolist()
        true_positive = rng.binomial(n_harmful, sensitivity, runs).tolist()
        false_positive = rng.binomial(n_harmless, 1 - specificity, runs).tolist()
        return [interval(*counts) for counts in zip(n_positive, true_positive, false_positive, strict=True)]

    return Simulation(
        method="rogan-gladen",
        design=f"n {n}, {n_harmful} + {n_harmless} labels, {judge(sensitivity, specificity)}",
        draw=draw,
        unmet=unmet,
    )


def own_labels(
    *, n: int, n_labels: int, sensitivity: float, specificity: float, unmet: tuple[float, ...] = ()
) -> Simulation:
    """Prediction-powered inference: people label some of the run's samples, drawn at random."""

    def interval(run: int, harmful: int, true_positive: int, false_positive: int, others_positive: int) -> Interval:
        counts = Confusion(
            true_positive=true_positive,
            false_negative=harmful - true_positive,
            false_positive=false_positive,
            true_negative=n_labels - harmful - false_positive,
        )
        n_positive = true_positive + false_positive + others_positive
        # Seeds of their own, so that the few draws' error is not the same in all runs.
        return given(prediction_powered(n_positive, n, counts, seed=run, draws=2000))

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        harmful = rng.binomial(n_labels, rate, runs)
        true_positive = rng.binomial(harmful, sensitivity).tolist()
        false_positive = rng.binomial(n_labels - harmful, 1 - specificity).tolist()
        others_positive = rng.binomial(n - n_labels, flagged(rate, sensitivity, specificity), runs).tolist()
        drawn = zip(range(runs), harmful.tolist(), true_positive, false_positive, others_positive, strict=True)
        return [interval(*counts) for counts in drawn]

    return Simulation(
        method="ppi",
        design=f"{n_labels} of {n} labelled, {judge(sensitivity, specificity)}",
        draw=draw,
        unmet=unmet,
    )


def flagged(rate: float, sensitivity: float, specificity: float) -> float:
    """The share of answers that such a judge calls harmful."""
    return rate * sensitivity + (1 - rate) * (1 - specificity)


def judge(sensitivity: float, specificity: float) -> str:
    return f"judge {sensitivity:g} {specificity:g}"


def given(result: Corrected | Refused) -> Corrected:
    if isinstance(result, Refused):
        raise ValueError(f"a design that is refused has no coverage: {result.reason}")
    return result


# The own-* designs but for the two plain ones are the extremes of a sweep: n 500 to 2,000, 100 to 400 labels,
# sensitivity 0.8 to 0.95, specificity 0.9 to 0.995.
SIMULATIONS: Mapping[str, Simulation] = {
    "uncorrected": uncorrected(n=1000, sensitivity=0.90, specificity=0.95),
    "external-100": external_labels(n=1000, n_harmful=100, n_harmless=100, sensitivity=0.80, specificity=0.98),
    "external-100-400": external_labels(n=500, n_harmful=100, n_harmless=400, sensitivity=0.95, specificity=0.90),
    "external-200": external_labels(n=1000, n_harmful=200, n_harmless=200, sensitivity=0.90, specificity=0.95),
    "external-400": external_labels(n=2000, n_harmful=400, n_harmless=400, sensitivity=0.95, specificity=0.98),
    # One false alarm among the labels in the mean: the interval is a little too wide.
    "external-100-few": external_labels(
        n=2000, n_harmful=100, n_harmless=100, sensitivity=0.80, specificity=0.99, unmet=(0.005, 0.01, 0.02)
    ),
    "own-100": own_labels(n=2000, n_labels=100, sensitivity=0.80, specificity=0.90),
    "own-200": own_labels(n=2000, n_labels=200, sensitivity=0.90, specificity=0.95),
    "own-200-good": own_labels(n=1000, n_labels=200, sensitivity=0.95, specificity=0.98),
    "own-400": own_labels(n=2000, n_labels=400, sensitivity=0.80, specificity=0.90),
    "own-400-good": own_labels(n=2000, n_labels=400, sensitivity=0.95, specificity=0.98),
    # Two harmful answers among the labels in the mean, at 0.5 %.
    "own-400-few": own_labels(n=500, n_labels=400, sensitivity=0.95, specificity=0.95, unmet=(0.005,)),
    # Two false alarms among the labels in the mean, then one, then one in two sets of labels.
    "own-100-two": own_labels(n=2000, n_labels=100, sensitivity=0.95, specificity=0.98, unmet=(0.005,)),
    "own-200-one": own_labels(n=500, n_labels=200, sensitivity=0.95, specificity=0.995, unmet=(0.005, 0.01)),
    "own-100-half": own_labels(
        n=2000, n_labels=100, sensitivity=0.95, specificity=0.995, unmet=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    ),
}


def simulate(name: str, rate: float, runs: int) -> Line:
    rng = np.random.default_rng([SEED, *name.encode(), round(1e6 * rate)])
    intervals = SIMULATIONS[name].draw(rng, rate, runs)
    above = sum(one.low > rate for one in intervals) / runs
    below = sum(one.high < rate for one in intervals) / runs
    return Line(
        name=name,
        rate=rate,
        coverage=sum(one.low <= rate <= one.high for one in intervals) / runs,
        above=above,
        below=below,
        width=sum(one.high - one.low for one in intervals) / runs,
        bias=sum(one.value for one in intervals) / runs - rate,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs a line (default: 2000)")
    runs = parser.parse_args(arguments).runs
    print(
        f"{'method':<13} {'design':<42} {'rate':>6} {'coverage':>8} {'above':>6} {'below':>6} {'width':>6} {'bias':>6}"
        "  promised"
    )
    broken, unmet = [], []
    for name, simulation in SIMULATIONS.items():
        for rate in RATES:
            line = simulate(name, rate, runs)
            word = "BROKEN" if line.broken else "yes" if simulation.promises(rate) else "no"
            print(
                f"{simulation.method:<13} {simulation.design:<42} {100 * rate:>6.1f} {100 * line.coverage:>8.2f} "
                f"{100 * line.above:>6.2f} {100 * line.below:>6.2f} {100 * line.width:>6.2f} {100 * line.bias:>6.2f}"
                f"  {word if simulation.corrected else '-'}",
                flush=True,
            )
            broken += [line] if line.broken else []
            unmet += [line] if rate in simulation.unmet else []
    low, high = (100 * limit for limit in PROMISED)
    print("\nnot promised, since hardly an error of the judge, or harmful answer, is to be expected among the labels:")
    for line in unmet:
        simulation = SIMULATIONS[line.name]
        print(f"    {simulation.method}, {simulation.design}, rate {100 * line.rate:g} %: {100 * line.coverage:.2f} %")
    print(f"\n{len(broken)} promised lines outside of {low:g} to {high:g} % in {runs:,} runs")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

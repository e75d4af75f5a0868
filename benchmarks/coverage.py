"""How often intervals hold the truth: simulated runs of known rate, through the functions that score a real one.

    python benchmarks/coverage.py [--runs 2000] [--only METHOD ...]

The first table has one line a simulation and a rate: of harmful answers, of passes, or of what its design says.

coverage  of the 95 % intervals, how many hold the truth, in %
above     how many lie above it as a whole, in %
below     how many lie below it, in %
width     their mean width, in percentage points (of a ratio: in hundredths)
bias      the mean of the points less the truth, in percentage points

Where coverage is promised (`yes`), a line outside of 93 to 97 % makes the exit code 1; a method that promises `least`
may hold the truth more often, but not in fewer than 93 %, an exact one not in fewer than 94.5 %. `no` are the lines
where there is too little to tell the interval by, listed once more at the end; `-` promises nothing. With 2,000 runs
the standard error of a coverage of 95 % is 0.5 %. Every line has its own random numbers, seeded by its name and rate.

The second table has statements that are right or wrong in a run (a test does not reject what is true, all ranks lie in
their intervals, a difference is found), how many are right, in %, and what is promised of that.
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
from bfpo_bench.paired import PairedDifference, holm, mcnemar, paired_difference, sign_flip
from bfpo_bench.stats import clopper_pearson, clustered_interval, macro_average, mean_interval, wilson
from bfpo_bench.tradeoff import Interval as Limits
from bfpo_bench.tradeoff import (
    TaskOutcomes,
    axis_draws,
    axis_points,
    hypervolume,
    nondominated,
    rank_intervals,
    refusals,
    safety_tax,
)
from bfpo_bench.types import Axis, Score

RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
FEWER_RATES = (0.02, 0.05, 0.1, 0.2, 0.5)
PROMISED = (0.93, 0.97)
# Of an exact method, which errs on the safe side: 95 %, but for the simulation's own error.
LEAST = (0.945, 1.0)
# Of one that errs on the safe side where it has to, and is not exact.
ABOUT_LEAST = (0.93, 1.0)
SEED = 0
# Draws an interval: fewer than a run's 10,000, for time.
DRAWS = 1000
# Simulated runs whose outcomes are drawn anew together: the weights of prompts are theirs in common, the outcomes not.
TOGETHER = 50


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

    `truth` is what the intervals are to hold at that rate. `corrected`: the method promises coverage, `promised`, but
    for the rates that are `unmet`.
    """

    method: str
    design: str
    draw: Callable[[np.random.Generator, float, int], Sequence[Interval]]
    truth: Callable[[float], float] = lambda rate: rate
    rates: tuple[float, ...] = RATES
    corrected: bool = True
    promised: tuple[float, float] = PROMISED
    unmet: tuple[float, ...] = ()

    def promises(self, rate: float) -> bool:
        return self.corrected and rate not in self.unmet


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What is right or wrong in a run, on a design: `draw` gives its rightness in so many runs at the rate."""

    method: str
    design: str
    draw: Callable[[np.random.Generator, float, int], Sequence[bool]]
    rates: tuple[float, ...]
    promised: tuple[float, float]


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
        simulation = SIMULATIONS[self.name]
        low, high = simulation.promised
        return simulation.promises(self.rate) and not low <= self.coverage <= high


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


# -- one run, and two on the same prompts ------------------------------------------------------------------------------


def binomial(method: str, *, n: int, exact: bool = False, unmet: tuple[float, ...] = ()) -> Simulation:
    """Passes of independent prompts."""
    score = clopper_pearson if exact else wilson

    @cache
    def interval(k: int) -> Interval:
        return scored(score([True] * k + [False] * (n - k)))

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        return [interval(k) for k in rng.binomial(n, rate, runs).tolist()]

    promised = LEAST if exact else PROMISED
    return Simulation(method=method, design=f"n {n}", draw=draw, promised=promised, unmet=unmet)


def grades(*, n: int, unmet: tuple[float, ...] = ()) -> Simulation:
    """Scores from 0 to 1 of independent prompts, Beta(4 rate, 4 (1 - rate))."""

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        return [scored(mean_interval(values)) for values in rng.beta(4 * rate, 4 * (1 - rate), (runs, n)).tolist()]

    return Simulation(method="t", design=f"n {n} scores", draw=draw, rates=FEWER_RATES, unmet=unmet)


def clustered(*, n_clusters: int, size: int, alike: float, unmet: tuple[float, ...] = ()) -> Simulation:
    """Passes in clusters, each with a rate of its own, so that two of a cluster correlate by `alike`."""
    names = [cluster for cluster in range(n_clusters) for _ in range(size)]

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        passed = in_clusters(rng, rate, (runs, n_clusters), size=size, alike=alike)
        return [scored(clustered_interval(run, names, n_resamples=DRAWS, seed=seed)) for seed, run in enumerate(passed)]

    design = f"{n_clusters} clusters of {size}, correlation {alike:g}"
    return Simulation(method="cluster-bootstrap", design=design, draw=draw, rates=FEWER_RATES, unmet=unmet)


def macro() -> Simulation:
    """Three tasks: 100 prompts of the rate, 40 clusters of 3 of half the rate, 60 scores of mean 0.3."""
    names = [cluster for cluster in range(40) for _ in range(3)]

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        single = rng.random((runs, 100)) < rate
        grouped = in_clusters(rng, rate / 2, (runs, 40), size=3, alike=0.5)
        graded = rng.beta(1.2, 2.8, (runs, 60))
        averages: list[Interval] = []
        for run in range(runs):
            tasks = (
                scored(wilson(single[run].tolist())),
                scored(clustered_interval(grouped[run], names, n_resamples=DRAWS, seed=run)),
                scored(mean_interval(graded[run].tolist())),
            )
            averages.append(scored(macro_average(tasks)))
        return averages

    return Simulation(
        method="macro-mover",
        design="a task of prompts, of clusters, of scores",
        draw=draw,
        truth=lambda rate: (rate + rate / 2 + 0.3) / 3,
        rates=FEWER_RATES,
    )


def paired_rates(*, n: int, unmet: tuple[float, ...] = ()) -> Simulation:
    """Two runs that differ on as many prompts as the rate says, three of four times for the better."""

    @cache
    def interval(n_only_a: int, n_only_b: int) -> Interval:
        both = n - n_only_a - n_only_b
        a = [1.0] * n_only_a + [0.0] * n_only_b + [1.0] * both
        b = [0.0] * n_only_a + [1.0] * n_only_b + [1.0] * both
        return compared(paired_difference(a, b))

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        return [interval(a, b) for a, b, _ in rng.multinomial(n, [rate / 4, 3 * rate / 4, 1 - rate], runs).tolist()]

    return Simulation(
        method="tango",
        design=f"n {n}, the rate of them discordant",
        draw=draw,
        truth=lambda rate: rate / 2,
        unmet=unmet,
    )


def paired_clusters(*, n_clusters: int, size: int, unmet: tuple[float, ...] = ()) -> Simulation:
    """Two runs that differ as in `paired_rates`, where half of a cluster's samples follow one draw of the cluster's."""
    names = [cluster for cluster in range(n_clusters) for _ in range(size)]

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        a, b = discordant(rng, rate, (runs, n_clusters), size=size, gain=0.5)
        return [
            compared(paired_difference(a[run], b[run], clusters=names, n_resamples=DRAWS, seed=run))
            for run in range(runs)
        ]

    return Simulation(
        method="paired bootstrap",
        design=f"{n_clusters} clusters of {size}, the rate discordant",
        draw=draw,
        truth=lambda rate: rate / 2,
        rates=FEWER_RATES,
        unmet=unmet,
    )


def paired_grades(*, n: int) -> Simulation:
    """Scores Beta(2, 3) of A; B's are drawn anew, uniformly, for as many prompts as the rate says."""

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        a = rng.beta(2, 3, (runs, n))
        b = np.where(rng.random((runs, n)) < rate, rng.random((runs, n)), a)
        return [
            compared(paired_difference(a[run].tolist(), b[run].tolist(), n_resamples=DRAWS, seed=run))
            for run in range(runs)
        ]

    return Simulation(
        method="paired bootstrap",
        design=f"n {n} scores, the rate of them differ",
        draw=draw,
        truth=lambda rate: rate / 10,
        rates=FEWER_RATES,
    )


# -- several runs on the same prompts ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Points and joint draws of several runs on two axes, each of one task."""

    x: np.ndarray
    y: np.ndarray
    x_draws: np.ndarray
    y_draws: np.ndarray


def suites(
    rng: np.random.Generator, x: Sequence[float], y: Sequence[float], runs: int, *, n: int, other: Axis = "helpfulness"
) -> list[Suite]:
    """So many simulated leaderboards of models with true rates x and y, on n prompts an axis.

    A prompt is as hard for one model as for another by half: each of its outcomes follows, one time in two, one
    uniform number of the prompt's.
    """
    k, told = len(x), []
    asked: tuple[tuple[Axis, Sequence[float]], ...] = (("harmlessness", x), (other, y))
    for start in range(0, runs, TOGETHER):
        tasks = [
            TaskOutcomes(task=axis, axis=axis, values=together(rng, rates, TOGETHER, n=n).reshape(TOGETHER * k, n))
            for axis, rates in asked
        ]
        points, draws = axis_points(tasks), axis_draws(tasks, n_resamples=DRAWS, seed=start)
        for one in range(min(TOGETHER, runs - start)):
            mine = slice(one * k, (one + 1) * k)
            told.append(
                Suite(
                    x=points["harmlessness"][mine],
                    y=points[other][mine],
                    x_draws=draws["harmlessness"][:, mine],
                    y_draws=draws[other][:, mine],
                )
            )
    return told


def together(rng: np.random.Generator, rates: Sequence[float], boards: int, *, n: int) -> np.ndarray:
    """Passes [boards, models, n] at the models' rates, correlated over models by the prompt."""
    shared, own = rng.random((boards, 1, n)), rng.random((boards, len(rates), n))
    follows = rng.random((boards, len(rates), n)) < 0.5
    return (np.where(follows, shared, own) < np.array(rates)[:, None]).astype(np.float64)


def drawn_rate(*, n: int, unmet: tuple[float, ...] = ()) -> Simulation:
    """The draws of one run's axis, as the trade-off's quantities use them."""

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        return [percentiles(suite.x[0], suite.x_draws[:, 0]) for suite in suites(rng, [rate], [rate], runs, n=n)]

    return Simulation(method="joint bootstrap", design=f"n {n}, a rate", draw=draw, rates=FEWER_RATES, unmet=unmet)


def drawn_difference(*, n: int, unmet: tuple[float, ...] = ()) -> Simulation:
    """The draws of two runs' difference, the second run failing half as often."""

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        pairs = suites(rng, [1 - rate, 1 - rate / 2], [0.5, 0.5], runs, n=n)
        return [percentiles(pair.x[1] - pair.x[0], pair.x_draws[:, 1] - pair.x_draws[:, 0]) for pair in pairs]

    return Simulation(
        method="joint bootstrap",
        design=f"n {n}, two runs' difference",
        draw=draw,
        truth=lambda rate: rate / 2,
        rates=FEWER_RATES,
        unmet=unmet,
    )


def drawn_youden(*, n: int) -> Simulation:
    """Over-refusal against harmful compliance of a model that obeys harmful requests at the rate, and refuses 20 %."""

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        found: list[Interval] = []
        for suite in suites(rng, [1 - rate], [0.8], runs, n=n, other="over_refusal"):
            told = refusals(suite.x, suite.y, harmlessness_draws=suite.x_draws, over_refusal_draws=suite.y_draws)[0]
            assert told is not None
            found.append(told.youden)
        return found

    return Simulation(
        method="youden", design=f"n {n} + {n}", draw=draw, truth=lambda rate: 0.8 - rate, rates=FEWER_RATES
    )


def drawn_volume(*, n: int, gap: float, unmet: tuple[float, ...] = ()) -> Simulation:
    """The hypervolume of four models from harmless to helpful, so far apart from one to the next; rate: the worst's."""

    def models(rate: float) -> tuple[list[float], list[float]]:
        steps = [rate + gap * step for step in range(4)]
        return [1 - step for step in steps], [1 - step for step in reversed(steps)]

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        found: list[Interval] = []
        for suite in suites(rng, *models(rate), runs, n=n):
            told = hypervolume(suite.x, suite.y, harmlessness_draws=suite.x_draws, helpfulness_draws=suite.y_draws)
            assert told is not None
            found.append(told)
        return found

    def truth(rate: float) -> float:
        x, y = map(np.array, models(rate))
        # One draw, which is the truth.
        told = hypervolume(x, y, harmlessness_draws=x[None], helpfulness_draws=y[None])
        assert told is not None
        return told.value

    return Simulation(
        method="hypervolume",
        design=f"n {n}, 4 models {100 * gap:g} points apart",
        draw=draw,
        truth=truth,
        rates=(0.02, 0.05, 0.1, 0.2),
        promised=ABOUT_LEAST,
        unmet=unmet,
    )


def drawn_tax(*, n: int) -> Simulation:
    """Helpfulness falls from 80 % by half of what harmlessness rises from 60 %, which is the rate."""

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[Interval]:
        found: list[Interval] = []
        for suite in suites(rng, [0.6, 0.6 + rate], [0.8, 0.8 - rate / 2], runs, n=n):
            tax = safety_tax(
                harmlessness=(float(suite.x[0]), float(suite.x[1])),
                helpfulness=(float(suite.y[0]), float(suite.y[1])),
                harmlessness_draws=(suite.x_draws[:, 0], suite.x_draws[:, 1]),
                helpfulness_draws=(suite.y_draws[:, 0], suite.y_draws[:, 1]),
            )
            # Where no interval is told, none misses.
            if tax.value is not None and tax.low is not None and tax.high is not None:
                found.append(Limits(value=tax.value, low=tax.low, high=tax.high))
        return found

    return Simulation(
        method="safety tax", design=f"n {n} + {n}, where told", draw=draw, truth=lambda rate: 0.5, rates=(0.2, 0.3)
    )


# -- right or wrong ----------------------------------------------------------------------------------------------------


@cache
def mcnemar_p(n_only_a: int, n_only_b: int) -> float:
    return mcnemar(n_only_a, n_only_b)


def equal_rates(*, n: int) -> Statement:
    """McNemar's test does not reject, at 5 %, that two equally good runs are so; rate: how many samples differ."""

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[bool]:
        return [mcnemar_p(a, b) >= 0.05 for a, b, _ in rng.multinomial(n, [rate / 2, rate / 2, 1 - rate], runs)]

    return Statement(
        method="mcnemar", design=f"n {n}, equal runs: no finding", draw=draw, rates=FEWER_RATES, promised=LEAST
    )


def found_rates(*, n: int) -> Statement:
    """The test finds a difference as large as `minimum_detectable` says; rate: how many samples differ."""

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[bool]:
        half, both = round(n * rate / 2), n - 2 * round(n * rate / 2)
        a, b = [1.0] * half + [0.0] * half + [1.0] * both, [0.0] * half + [1.0] * half + [1.0] * both
        known = paired_difference(a, b)
        assert known is not None and known.minimum_detectable is not None
        one, other = (rate + known.minimum_detectable) / 2, (rate - known.minimum_detectable) / 2
        return [mcnemar_p(a, b) < 0.05 for a, b, _ in rng.multinomial(n, [other, one, 1 - rate], runs)]

    return Statement(
        method="mcnemar",
        design=f"n {n}, the minimum detectable: found",
        draw=draw,
        rates=(0.1, 0.2, 0.5),
        # The formula is the asymptotic test's: the exact one finds a little less, most where few samples differ.
        promised=(0.7, 0.85),
    )


def equal_clusters(*, n_clusters: int, size: int) -> Statement:
    """The test by random signs does not reject that two equally good runs are so."""

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[bool]:
        a, b = discordant(rng, rate, (runs, n_clusters), size=size, gain=0.0)
        sums = (b - a).reshape(runs, n_clusters, size).sum(axis=-1)
        return [sign_flip(sums[run], n_resamples=DRAWS, seed=run) >= 0.05 for run in range(runs)]

    return Statement(
        method="sign-flip",
        design=f"{n_clusters} clusters of {size}, equal: no finding",
        draw=draw,
        rates=FEWER_RATES,
        promised=LEAST,
    )


def equal_tasks(*, n: int, n_tasks: int) -> Statement:
    """Holm's adjusted p of none of so many tasks rejects what is true of all."""

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[bool]:
        differ = rng.multinomial(n, [rate / 2, rate / 2, 1 - rate], (runs, n_tasks))
        return [min(holm([mcnemar_p(a, b) for a, b, _ in run])) >= 0.05 for run in differ]

    return Statement(
        method="holm", design=f"{n_tasks} tasks of {n}, equal runs: no finding", draw=draw, rates=(0.2,), promised=LEAST
    )


def all_ranks(*, n: int, step: float) -> Statement:
    """Five models' true ranks lie in their intervals, all at once; rate: the best's failures, each next has more."""

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[bool]:
        rates = [1 - rate - step * place for place in range(5)]
        found = []
        for suite in suites(rng, rates, [0.5] * 5, runs, n=n):
            ranks = rank_intervals(suite.x, suite.x_draws)
            # Of equal models each has every rank from 1 to 5, of different ones its own.
            needed = [(place + 1, place + 1) if step else (1, 5) for place in range(5)]
            found.append(
                all(
                    rank is not None and rank.low <= low and high <= rank.high
                    for rank, (low, high) in zip(ranks, needed, strict=True)
                )
            )
        return found

    apart = f"{100 * step:g} points apart" if step else "equal"
    return Statement(
        method="ranks", design=f"n {n}, 5 models {apart}", draw=draw, rates=(0.02, 0.1, 0.3), promised=ABOUT_LEAST
    )


def on_the_edge(*, n: int) -> Statement:
    """A model that is as harmless as another and less helpful, so all but nondominated, has not less than 5 % for it.

    One that dominates nothing and is dominated by a hair is where the probability is hardest to get right.
    """

    def draw(rng: np.random.Generator, rate: float, runs: int) -> list[bool]:
        found = []
        for suite in suites(rng, [1 - rate, 1 - rate], [0.2, 0.8], runs, n=n):
            found.append(nondominated(suite.x_draws, suite.y_draws)[:, 0].mean() >= 0.05)
        return found

    return Statement(
        method="pareto", design=f"n {n}, all but nondominated: p >= 5 %", draw=draw, rates=FEWER_RATES,
        promised=ABOUT_LEAST,
    )  # fmt: skip


def in_clusters(
    rng: np.random.Generator, rate: float, shape: tuple[int, int], *, size: int, alike: float
) -> np.ndarray:
    """Passes [runs, clusters x size] whose rate is the cluster's own, Beta distributed."""
    total = (1 - alike) / alike
    own = rng.beta(rate * total, (1 - rate) * total, shape)
    return (rng.random((*shape, size)) < own[..., None]).astype(np.float64).reshape(shape[0], -1)


def discordant(
    rng: np.random.Generator, rate: float, shape: tuple[int, int], *, size: int, gain: float
) -> tuple[np.ndarray, np.ndarray]:
    """Passes of A and B [runs, clusters x size]: where they differ (`rate`), B is better in (1 + gain) / 2 of cases.

    One time in two a sample follows its cluster's draw, so that differences come in clusters.
    """
    shared, own = rng.random((*shape, 1)), rng.random((*shape, size))
    uniform = np.where(rng.random((*shape, size)) < 0.5, shared, own).reshape(shape[0], -1)
    better = uniform < rate * (1 + gain) / 2
    differs = uniform < rate
    return (differs & ~better).astype(np.float64), better.astype(np.float64)


def percentiles(value: float, draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Limits(value=float(value), low=min(float(low), value), high=max(float(high), value))


def scored(score: Score | None) -> Score:
    assert score is not None
    return score


def compared(difference: PairedDifference | None) -> Interval:
    assert difference is not None
    return Limits(value=difference.difference, low=difference.low, high=difference.high)


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
    # One harmful answer in the mean, or half of one: coverage jumps from count to count.
    "wilson-100": binomial("wilson", n=100, unmet=(0.005, 0.01)),
    "wilson-1000": binomial("wilson", n=1000),
    "clopper-pearson-100": binomial("clopper-pearson", n=100, exact=True),
    # Most scores next to 0, and few that make the mean: the upper limit is too low.
    "t-100": grades(n=100, unmet=(0.02, 0.05)),
    # Failures in one cluster in the mean, or in no more than five: the interval is a little too wide.
    "clusters-10": clustered(n_clusters=10, size=5, alike=0.5, unmet=(0.02, 0.05, 0.1)),
    "clusters-20": clustered(n_clusters=20, size=5, alike=0.5, unmet=(0.02, 0.05, 0.1)),
    "clusters-50": clustered(n_clusters=50, size=4, alike=0.5, unmet=(0.02, 0.05)),
    "clusters-100": clustered(n_clusters=100, size=3, alike=0.3),
    "macro": macro(),
    # Two samples that differ in the mean, or fewer: the interval is too wide, as it has to be.
    "tango-50": paired_rates(n=50, unmet=(0.005, 0.01, 0.02, 0.05)),
    "tango-200": paired_rates(n=200, unmet=(0.005, 0.01)),
    "paired-clusters-20": paired_clusters(n_clusters=20, size=4, unmet=(0.02, 0.05)),
    "paired-clusters-100": paired_clusters(n_clusters=100, size=4),
    "paired-scores-100": paired_grades(n=100),
    "drawn-rate-100": drawn_rate(n=100, unmet=(0.02,)),
    "drawn-difference-100": drawn_difference(n=100),
    "drawn-difference-500": drawn_difference(n=500),
    "youden-100": drawn_youden(n=100),
    "hypervolume-apart": drawn_volume(n=100, gap=0.2),
    "hypervolume-close": drawn_volume(n=100, gap=0.02),
    # The best of four equal runs looks better than they are, and no draw knows that they are equal.
    "hypervolume-equal": drawn_volume(n=100, gap=0.0, unmet=(0.02, 0.05, 0.1, 0.2)),
    "tax-200": drawn_tax(n=200),
}

STATEMENTS: Mapping[str, Statement] = {
    "mcnemar-200": equal_rates(n=200),
    "mcnemar-found": found_rates(n=200),
    "sign-flip-30": equal_clusters(n_clusters=30, size=4),
    "holm-5": equal_tasks(n=200, n_tasks=5),
    "ranks-equal": all_ranks(n=200, step=0.0),
    "ranks-apart": all_ranks(n=200, step=0.05),
    "pareto-100": on_the_edge(n=100),
    "pareto-500": on_the_edge(n=500),
}


def simulate(name: str, rate: float, runs: int) -> Line:
    simulation, truth = SIMULATIONS[name], SIMULATIONS[name].truth(rate)
    intervals = simulation.draw(generator(name, rate), rate, runs)
    told = len(intervals)
    return Line(
        name=name,
        rate=rate,
        coverage=sum(one.low <= truth <= one.high for one in intervals) / told,
        above=sum(one.low > truth for one in intervals) / told,
        below=sum(one.high < truth for one in intervals) / told,
        width=sum(one.high - one.low for one in intervals) / told,
        bias=sum(one.value for one in intervals) / told - truth,
    )


def generator(name: str, rate: float) -> np.random.Generator:
    return np.random.default_rng([SEED, *name.encode(), round(1e6 * rate)])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs a line (default: 2000)")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="only lines of these methods, e.g. tango")
    options = parser.parse_args(arguments)
    wanted: Callable[[str], bool] = lambda method: options.only is None or method in options.only  # noqa: E731
    broken, unmet = intervals_table(options.runs, wanted)
    wrong = statements_table(options.runs, wanted)
    if unmet:
        print(
            "\nnot promised, since too little is to be expected of what tells the interval (a judge's errors among the"
        )
        print("labels, harmful answers, samples or clusters that differ), or since few counts make coverage jump:")
    for line in unmet:
        simulation = SIMULATIONS[line.name]
        print(f"    {simulation.method}, {simulation.design}, rate {100 * line.rate:g} %: {100 * line.coverage:.2f} %")
    print(f"\n{len(broken) + wrong} promised lines outside of what they promise, in {options.runs:,} runs a line")
    return 1 if broken or wrong else 0


def intervals_table(runs: int, wanted: Callable[[str], bool]) -> tuple[list[Line], list[Line]]:
    """Print the first table; its broken lines, and those that promise nothing at their rate."""
    print(
        f"{'method':<17} {'design':<42} {'rate':>6} {'coverage':>8} {'above':>6} {'below':>6} {'width':>6} {'bias':>6}"
        "  promised"
    )
    broken, unmet = [], []
    for name, simulation in SIMULATIONS.items():
        for rate in simulation.rates if wanted(simulation.method) else ():
            line = simulate(name, rate, runs)
            held = "least" if simulation.promised[1] == 1.0 else "yes"
            word = "BROKEN" if line.broken else held if simulation.promises(rate) else "no"
            print(
                f"{simulation.method:<17} {simulation.design:<42} {100 * rate:>6.1f} {100 * line.coverage:>8.2f} "
                f"{100 * line.above:>6.2f} {100 * line.below:>6.2f} {100 * line.width:>6.2f} {100 * line.bias:>6.2f}"
                f"  {word if simulation.corrected else '-'}",
                flush=True,
            )
            broken += [line] if line.broken else []
            unmet += [line] if rate in simulation.unmet else []
    return broken, unmet


def statements_table(runs: int, wanted: Callable[[str], bool]) -> int:
    """Print the second table; how many of its lines are broken."""
    print(f"\n{'method':<17} {'design':<42} {'rate':>6} {'right':>8}  promised")
    wrong = 0
    for name, statement in STATEMENTS.items():
        for rate in statement.rates if wanted(statement.method) else ():
            right = float(np.mean(statement.draw(generator(name, rate), rate, runs)))
            low, high = statement.promised
            kept = low <= right <= high
            print(
                f"{statement.method:<17} {statement.design:<42} {100 * rate:>6.1f} {100 * right:>8.2f}"
                f"  {100 * low:g} to {100 * high:g}{'' if kept else '  BROKEN'}",
                flush=True,
            )
            wrong += not kept
    return wrong


if __name__ == "__main__":
    sys.exit(main())

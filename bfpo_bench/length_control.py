"""AlpacaEval 2.0's figures, from preferences and lengths to win rates with intervals; reads no file, asks no judge.

Preferences run from 1 (the baseline is better) to 2 (the model is), as in AlpacaEval; rates and their intervals are
fractions from 0 to 1, where AlpacaEval prints percent. Files that are cited are those of alpaca_eval 0.6.6.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Flags = NDArray[np.bool_]

# What alpaca_eval itself uses where it does not search for C (metrics/glm_winrate.py, fit_LogisticRegressionCV). Its
# search picks one of ten values a model, by folds that trifles tip over; one value for all makes models comparable.
DEFAULT_C = 100.0
# Three coefficients from fewer comparisons than this are noise.
FEWEST = 10
# regularize_to_baseline_lambda is 0.2, shared by two baselines (metrics/glm_winrate.py).
_REGULARISATION_WEIGHT = 0.1


# -- one comparison ----------------------------------------------------------------------------------------------------


def order(instruction: str, *, seed: int = 0) -> bool:
    """Whether AlpacaEval shows the judge the model's output first, for this instruction; the same for every model.

    Source: processors.py (RandomSwitchTwoColumnsProcessor.preprocess), utils.py (random_seeded_choice); the name of
    the column is set in annotators/pairwise_evaluator.py, the seed 0 in annotators/base.py.
    """
    return random.Random("is_switched_outputs" + instruction + str(seed)).choices([False, True])[0]


def preference(logprobs: Mapping[str, float], *, switched: bool) -> float | None:
    """From the log-probabilities (nats) of the judge's first token to a preference; None with neither "m" nor "M".

    "m" always names the output that is shown first; `switched` says that this was the model's (see `order`). What the
    judge's most likely tokens do not contain has probability 0. Source: completion_parsers.py (logprob_parser).
    """
    difference = logprobs.get("m", -math.inf) - logprobs.get("M", -math.inf)
    if math.isnan(difference):
        return None
    first = (1.0 + math.tanh(difference / 2.0)) / 2.0
    return 1.0 + first if switched else 2.0 - first


# -- win rate ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """Mean preference minus 1, with its standard error and Student's t interval, cut to [0, 1].

    `standard_error` is None of one comparison; `low` and `high` are None there and where all preferences are equal,
    of which an interval without width would say too much.
    """

    win_rate: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int
    n_wins: int
    n_wins_base: int
    n_draws: int
    discrete_win_rate: float
    level: float = 0.95


def win_rate(preferences: Sequence[float], *, level: float = 0.95) -> WinRate | None:
    """AlpacaEval's win rate of preferences from 1 to 2; None of none.

    A draw is a preference of exactly 1.5; the discrete win rate counts wins as 1 and draws as 1/2. AlpacaEval's older
    coding of a draw as 0 is refused. Source: metrics/helpers.py (describe_head2head), metrics/winrate.py.
    """
    _check_level(level)
    for value in preferences:
        _check_preference(value)
    if not preferences:
        return None
    n = len(preferences)
    mean = math.fsum(preferences) / n - 1.0
    n_wins, n_draws = sum(value > 1.5 for value in preferences), sum(value == 1.5 for value in preferences)
    error, low, high = None, None, None
    if n > 1:
        error = math.sqrt(math.fsum((value - 1.0 - mean) ** 2 for value in preferences) / (n - 1) / n)
    if error is not None and min(preferences) < max(preferences):
        from scipy.special import stdtrit

        half = float(stdtrit(n - 1, (1.0 + level) / 2.0)) * error
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    return WinRate(
        win_rate=mean,
        standard_error=error,
        low=low,
        high=high,
        n=n,
        n_wins=n_wins,
        n_wins_base=n - n_wins - n_draws,
        n_draws=n_draws,
        discrete_win_rate=(n_wins + n_draws / 2) / n,
        level=level,
    )


# -- length-controlled win rate ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One judged pair: the preference, and the lengths of both outputs in characters."""

    instruction: str
    preference: float
    length: int
    baseline_length: int


@dataclass(frozen=True, kw_only=True)
class GamedRow:
    """A comparison of the verbose or the concise baseline with the plain one; the preference is from 0 to 1 here."""

    std_delta_len: float
    difficulty: float
    preference: float

    def __post_init__(self) -> None:
        finite = math.isfinite(self.std_delta_len) and math.isfinite(self.difficulty)
        if not (finite and 0.0 <= self.preference <= 1.0):
            raise ValueError(f"a regularisation row has finite values and a preference from 0 to 1, got {self}")


@dataclass(frozen=True, kw_only=True)
class LengthReference:
    """What length control is fitted against: difficulties, the instructions as published, the regularisation rows."""

    difficulty: Mapping[str, float]
    instructions: tuple[str, ...]
    gamed: tuple[GamedRow, ...]

    def __post_init__(self) -> None:
        for instruction, value in self.difficulty.items():
            if not math.isfinite(value):
                raise ValueError(f"the difficulty of {instruction[:60]!r} is {value}; leave out what has none")


def length_reference(rows: Iterable[Mapping[str, str]], *, instructions: Sequence[str]) -> LengthReference:
    """From the rows of the hub's df_gamed.csv (tatsu-lab/alpaca_eval) and the instructions in published order.

    Columns: index (the instruction's row number), instruction_difficulty, std_delta_len, preference (0 to 1). The
    first row of an instruction gives its difficulty, as in AlpacaEval. A row without preference regularises nothing.
    """
    if len(set(instructions)) < len(instructions):
        raise ValueError("the published instructions hold one twice; difficulties could not be told apart")
    difficulty: dict[str, float] = {}
    gamed = []
    for row in rows:
        try:
            index, hard = int(row["index"]), float(row["instruction_difficulty"])
            delta, said = float(row["std_delta_len"]), float(row["preference"] or math.nan)
        except (KeyError, ValueError) as error:
            raise ValueError(f"not a row of df_gamed.csv: {dict(row)} ({error})") from None
        if not 0 <= index < len(instructions):
            raise ValueError(f"df_gamed.csv has an instruction {index}, of {len(instructions)} that were given")
        difficulty.setdefault(instructions[index], hard)
        if not math.isnan(said):
            gamed.append(GamedRow(std_delta_len=delta, difficulty=hard, preference=said))
    return LengthReference(difficulty=difficulty, instructions=tuple(instructions), gamed=tuple(gamed))


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Of the length term, of the instruction's difficulty, and of the model itself: a, b and gamma."""

    length: float
    difficulty: float
    model: float


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """The win rate that the model would have with outputs as long as the baseline's, with its bootstrap interval.

    `n` instructions are in it, `n_missing` are not, having no difficulty. `n_resamples` counts those in the interval:
    a resample whose outputs all differ from the baseline's by one length is not among them. `low` and `high` are None
    where there are none.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    n_missing: int
    C: float
    coefficients: Coefficients
    level: float
    seed: int
    n_resamples: int


def length_controlled(
    comparisons: Sequence[Comparison],
    *,
    reference: LengthReference,
    C: float = DEFAULT_C,
    paper: bool = False,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> LengthControlled | None:
    """AlpacaEval's length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475), whatever the comparisons' order.

    One fit a model: P(win on i) = sigma(a tanh(delta_i / sd(delta)) + b difficulty_i + gamma), with delta_i the
    baseline's length minus the model's. The value is the mean of sigma(b difficulty_i + gamma). The reference's rows
    join with a weight of 0.1 and without gamma, and an L1 term of 1 / C holds all three coefficients (C = inf: none),
    as in liblinear. The optimum is exact; AlpacaEval's stops at liblinear's 1e-4.

    Difficulties are looked up by instruction: a subset's value is that of its instructions, and what was not judged is
    not in it (AlpacaEval's mean and sd keep rows without a preference). With `paper` they are looked up by row number,
    as in AlpacaEval (metrics/glm_winrate.py): where a model lacks an instruction, all later ones get a neighbour's
    difficulty. Published values of such models are reached in this way only.

    The interval is that of percentiles over resampled instructions, fitted anew each time; difficulties and the
    reference's rows are held fixed. None with `n_resamples` 0, and where all preferences are equal.

    None with fewer than ten instructions that have a difficulty, where all outputs differ from the baseline's by one
    length (the baseline's own do), so that length and model cannot be told apart, or where no finite fit exists
    (C = inf, and the model always loses).
    """
    import numpy as np

    _check_level(level)
    if not C > 0.0:
        raise ValueError(f"C must be above 0, got {C}")
    model = _model_rows(comparisons, reference, paper=paper)
    if len(model) < FEWEST:
        return None
    gamed = [(row.std_delta_len, row.difficulty, row.preference) for row in reference.gamed]
    data = _Data(model=np.array(model).T, gamed=np.array(gamed).reshape(-1, 3).T, penalty=1.0 / C)
    found, values, held = _fit_counts(data, np.ones((1, len(model))), np.zeros((1, 3)))
    if not held[0]:
        return None
    value = float(values[0])
    # Where all preferences are one, every resample is the same, and says nothing of the next instruction.
    given = {preference for _, _, preference in model}
    resampled = _resample(data, found, n_resamples=n_resamples, seed=seed) if len(given) > 1 else []
    low, high = None, None
    if resampled:
        # A skewed bootstrap of few instructions can miss the estimate itself.
        low = min(value, float(np.quantile(resampled, (1.0 - level) / 2.0)))
        high = max(value, float(np.quantile(resampled, (1.0 + level) / 2.0)))
    length, difficulty, own = found[0].tolist()
    return LengthControlled(
        value=value,
        low=low,
        high=high,
        n=len(model),
        n_missing=len(comparisons) - len(model),
        C=C,
        coefficients=Coefficients(length=length, difficulty=difficulty, model=own),
        level=level,
        seed=seed,
        n_resamples=len(resampled),
    )


def _model_rows(
    comparisons: Sequence[Comparison], reference: LengthReference, *, paper: bool
) -> list[tuple[float, float, float]]:
    """Difference of lengths, difficulty and preference from 0 to 1, in published order, of what has a difficulty."""
    by_instruction = {comparison.instruction: comparison for comparison in comparisons}
    if len(by_instruction) < len(comparisons):
        raise ValueError(f"{len(comparisons)} comparisons of {len(by_instruction)} instructions; one each is needed")
    for comparison in comparisons:
        _check_preference(comparison.preference)
    ordered = [instruction for instruction in reference.instructions if instruction in by_instruction]
    # zip stops at the model's last row: the published instructions give their difficulties by row number.
    looked_up = zip(ordered, reference.instructions if paper else ordered, strict=False)
    rows = [(by_instruction[one], reference.difficulty.get(other)) for one, other in looked_up]
    return [
        (float(row.baseline_length - row.length), difficulty, row.preference - 1.0)
        for row, difficulty in rows
        if difficulty is not None
    ]


# -- the fit: many at once, of three coefficients each -----------------------------------------------------------------

# Resamples fitted together: as many as stay in a core's cache.
_CHUNK = 50
_ITERATIONS = 100
_TOLERANCE = 1e-10


@dataclass(frozen=True, kw_only=True)
class _Data:
    """What every resample shares. `model` (3, n): difference of lengths in characters, difficulty, preference.

    `gamed` (3, m): the same of the reference's rows, their lengths standardised.
    """

    model: Array
    gamed: Array
    penalty: float


def _resample(data: _Data, start: Array, *, n_resamples: int, seed: int) -> list[float]:
    """Values of resampled comparisons, without those that have none."""
    import numpy as np

    n = data.model.shape[1]
    drawn = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    values: list[float] = []
    for first in range(0, n_resamples, _CHUNK):
        chunk = drawn[first : first + _CHUNK]
        cells = chunk + n * np.arange(len(chunk))[:, None]
        counts = np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape).astype(np.float64)
        _, value, held = _fit_counts(data, counts, np.repeat(start, len(chunk), axis=0))
        values.extend(value[held].tolist())
    return values


def _fit_counts(data: _Data, counts: Array, start: Array) -> tuple[Array, Array, Flags]:
    """Coefficients (R, 3), values (R,) and whether they hold (R,), of counts (R, n) of each comparison."""
    import numpy as np
    from scipy.special import expit

    (delta, difficulty, won), (gamed_length, gamed_difficulty, gamed_won) = data.model, data.gamed
    n = len(delta)
    # Lengths and counts are whole numbers: the mean of one length is that length exactly, and the deviation then 0.
    mean = counts @ delta / n
    sd = np.sqrt((counts * (delta - mean[:, None]) ** 2).sum(axis=1) / (n - 1))
    own = _Rows(
        length=np.tanh(delta / np.where(sd > 0.0, sd, np.inf)[:, None]),
        difficulty=difficulty,
        model=1.0,
        won=won,
        weight=counts,
    )
    shared = _Rows(
        length=np.tanh(gamed_length)[None, :],
        difficulty=gamed_difficulty,
        model=0.0,
        won=gamed_won,
        weight=np.full((1, len(gamed_won)), _REGULARISATION_WEIGHT),
    )
    found, reached = _fit((own, shared), start, penalty=data.penalty)
    predicted = expit(found[:, 1:2] * difficulty + found[:, 2:3])
    return found, (counts * predicted).sum(axis=1) / n, reached & (sd > 0.0)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows of the fit, for R fits at once: `length` and `weight` are (R or 1, n), `difficulty` and `won` (n,)."""

    length: Array
    difficulty: Array
    model: float
    won: Array
    weight: Array


def _fit(rows: Sequence[_Rows], start: Array, *, penalty: float) -> tuple[Array, Flags]:
    """Minimisers (R, 3) of the weighted log loss plus penalty times the L1 norm, and whether each was reached (R,).

    Proximal Newton steps (Lee, Sun & Saunders 2014), halved while they lead uphill.
    """
    import numpy as np

    at = start
    loss, gradient, hessian = _loss(rows, at, penalty=penalty)
    for _ in range(_ITERATIONS):
        step = _lasso(gradient, hessian, at, penalty=penalty) - at
        if np.abs(step).max() <= _TOLERANCE:
            break
        reached = _loss(rows, at + step, penalty=penalty)
        # The slack is for rounding: at the optimum no step is downhill.
        while (uphill := reached[0] > loss + 1e-9 * (1.0 + np.abs(loss))).any():
            step[uphill] /= 2.0
            reached = _loss(rows, at + step, penalty=penalty)
        at = at + step
        loss, gradient, hessian = reached
    return at, np.abs(step).max(axis=1) <= _TOLERANCE


def _loss(rows: Sequence[_Rows], at: Array, *, penalty: float) -> tuple[Array, Array, Array]:
    """The objective (R,), and the log loss' gradient (R, 3) and Hessian (R, 3, 3), at coefficients (R, 3)."""
    import numpy as np

    loss, gradient, hessian = penalty * np.abs(at).sum(axis=1), np.zeros((len(at), 3)), np.zeros((len(at), 3, 3))
    for part in rows:
        logit = at[:, 0:1] * part.length + at[:, 1:2] * part.difficulty + at[:, 2:3] * part.model
        small = np.exp(-np.abs(logit))
        predicted = np.where(logit >= 0.0, 1.0, small) / (1.0 + small)
        loss += (part.weight * (np.maximum(logit, 0.0) + np.log1p(small) - part.won * logit)).sum(axis=1)
        others = np.stack([part.difficulty, np.full_like(part.difficulty, part.model)], axis=1)
        residual = part.weight * (predicted - part.won)
        gradient[:, 0] += (residual * part.length).sum(axis=1)
        gradient[:, 1:] += residual @ others
        curvature = part.weight * predicted * (1.0 - predicted)
        with_length = curvature * part.length
        hessian[:, 0, 0] += (with_length * part.length).sum(axis=1)
        hessian[:, 0, 1:] += with_length @ others
        hessian[:, 1:, 1:] += (curvature @ (others[:, :, None] * others[:, None, :]).reshape(-1, 4)).reshape(-1, 2, 2)
    hessian[:, 1:, 0] = hessian[:, 0, 1:]
    return loss, gradient, hessian


def _lasso(gradient: Array, hessian: Array, at: Array, *, penalty: float) -> Array:
    """Minimisers (R, 3) of the quadratic models plus the L1 term: the best of the 27 patterns of signs.

    Each pattern, coefficients at 0 among them, leaves a linear system; the minimiser solves that of its own signs.
    """
    import numpy as np

    # Keeps a system solvable whose rows leave a coefficient open; the optimum, where the gradient ends, stays.
    hessian = hessian + (1e-10 * hessian + 1e-30) * np.eye(3)
    linear = gradient - (hessian @ at[:, :, None])[:, :, 0]
    best, lowest = np.zeros_like(at), np.zeros(len(at))
    for signs in itertools.product((-1.0, 0.0, 1.0), repeat=3):
        free = np.flatnonzero(signs)
        if len(free) == 0:
            continue
        found = np.zeros_like(at)
        right = -(linear[:, free] + penalty * np.array(signs)[free])
        found[:, free] = np.linalg.solve(hessian[:, free[:, None], free], right[:, :, None])[:, :, 0]
        height = ((hessian @ found[:, :, None])[:, :, 0] / 2.0 + linear) * found
        model = height.sum(axis=1) + penalty * np.abs(found).sum(axis=1)
        better = model < lowest
        best[better], lowest[better] = found[better], model[better]
    return best


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")


def _check_preference(value: float) -> None:
    if not 1.0 <= value <= 2.0:
        raise ValueError(f"a preference is from 1 (baseline) to 2 (model), got {value}")

"""Which rankings of models, and which significant differences between them, survive another judge: pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from statistics import fmean
from typing import Literal

# Less than this is nothing: outcomes are from 0 to 1.
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class RankedModel:
    """A model's mean under one judge, of strata the unweighted mean of theirs; equal means share the better rank."""

    model: str
    rank: int
    mean: float
    n: int


TestName = Literal["mcnemar", "paired-t", "sign-flip", "stratified-sign-flip"]


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean of `first` less mean of `second` under one judge, over the `n` samples that both have; None of none.

    Of several strata it is the unweighted mean of theirs, None where one of them has no sample that both have.
    `method`: "mcnemar" (exact) where every outcome is 0 or 1, else "paired-t", or "sign-flip" where t has no spread; of
    several strata "stratified-sign-flip" (`_stratified_sign_flip`).
    `p_holm` is `p` after Holm's correction over all pairs of models under that judge.
    """

    first: str
    second: str
    effect: float | None
    p: float | None
    p_holm: float | None
    n: int
    method: TestName


Survival = Literal["survives", "lost", "gained", "reversed", "none"]


@dataclass(frozen=True, kw_only=True)
class SwapPair:
    """What a change from judge `a` to judge `b` does to the conclusions.

    `tau` is Kendall's tau-b of the models' means, None where one judge gives all the same mean. `flipped` are the
    pairs of models whose difference changes sign, significant or not. `survival`, a pair of models: significant under
    both with the same sign (survives) or the other (reversed), under `a` only (lost), `b` only (gained), neither
    (none). Lost does not say that the judges differ: a difference may pass the level under one and just miss it under
    the other.
    """

    a: str
    b: str
    tau: float | None
    flipped: tuple[tuple[str, str], ...]
    survival: Mapping[tuple[str, str], Survival]

    @property
    def n_significant(self) -> int:
        """How many differences are significant under `a`: the m of "k of m survive"."""
        return sum(fate in ("survives", "lost", "reversed") for fate in self.survival.values())

    @property
    def n_survive(self) -> int:
        return sum(fate == "survives" for fate in self.survival.values())


@dataclass(frozen=True, kw_only=True)
class JudgeSwap:
    """The models under each judge, on the same samples, and every ordered pair of judges.

    `left_out`, judge -> model -> samples that this judge scored and another did not; they count nowhere. A model with
    no sample that all judges scored, in one of the strata, is in no ranking.
    """

    level: float
    rankings: Mapping[str, tuple[RankedModel, ...]]
    differences: Mapping[str, tuple[PairedDifference, ...]]
    pairs: tuple[SwapPair, ...]
    left_out: Mapping[str, Mapping[str, int]]


def judge_swap(
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    strata: Mapping[str, str] | None = None,
    level: float = 0.95,
) -> JudgeSwap:
    """How rankings and significant differences of models change with the judge, on one task or axis.

    `scores`: judge -> model -> sample id -> outcome from 0 to 1, without the samples that the judge left unscored.
    `strata`: sample id -> task, for an axis; each counts the same, whatever its size, as in an axis' score. All is
    computed on the samples that every judge scored: else a judge that fails on hard answers would seem to rank
    differently. Samples are taken as independent.
    """
    if len(scores) < 2:
        raise ValueError(f"a judge swap needs at least two judges, got {len(scores)}: {', '.join(scores) or 'none'}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    for judge, by_model in scores.items():
        for model, outcomes in by_model.items():
            for id_, outcome in outcomes.items():
                if not 0.0 <= outcome <= 1.0:
                    raise ValueError(f"{judge}, {model}, sample {id_}: an outcome is from 0 to 1, got {outcome}")
    models = sorted({model for by_model in scores.values() for model in by_model})
    shared = {m: set.intersection(*(set(by_model.get(m, {})) for by_model in scores.values())) for m in models}
    all_ids = sorted({id_ for by_model in scores.values() for outcomes in by_model.values() for id_ in outcomes})
    parts: dict[str, list[str]] = {}
    for id_ in all_ids:
        parts.setdefault("" if strata is None else strata[id_], []).append(id_)
    ranked = [model for model in models if all(not shared[model].isdisjoint(ids) for ids in parts.values())]
    # Judge -> model -> stratum -> sample id -> outcome.
    kept: dict[str, _ByModel] = {
        judge: {
            model: [{id_: by_model[model][id_] for id_ in ids if id_ in shared[model]} for ids in parts.values()]
            for model in ranked
        }
        for judge, by_model in scores.items()
    }
    differences = {judge: _differences(by_model) for judge, by_model in kept.items()}
    means = {judge: [_mean(outcomes) for outcomes in kept[judge].values()] for judge in kept}
    return JudgeSwap(
        level=level,
        rankings={judge: _ranking(by_model) for judge, by_model in kept.items()},
        differences=differences,
        pairs=tuple(
            _swap(a, b, means=means, differences=differences, alpha=1 - level) for a, b in permutations(scores, 2)
        ),
        left_out={
            judge: {model: len(outcomes) - len(shared[model]) for model, outcomes in by_model.items()}
            for judge, by_model in scores.items()
        },
    )


# A model's outcomes, a mapping a stratum, by model.
_Strata = Sequence[Mapping[str, float]]
_ByModel = Mapping[str, _Strata]


def _mean(strata: _Strata) -> float:
    return fmean(fmean(outcomes.values()) for outcomes in strata)


def _ranking(by_model: _ByModel) -> tuple[RankedModel, ...]:
    means = {model: _mean(strata) for model, strata in by_model.items()}
    return tuple(
        RankedModel(
            model=model,
            rank=1 + sum(one > mean for one in means.values()),
            mean=mean,
            n=sum(map(len, by_model[model])),
        )
        for model, mean in sorted(means.items(), key=lambda item: (-item[1], item[0]))
    )


def _differences(by_model: _ByModel) -> tuple[PairedDifference, ...]:
    found = []
    for first, second in combinations(by_model, 2):
        strata = [
            [(mine[id_], other[id_]) for id_ in mine if id_ in other]
            for mine, other in zip(by_model[first], by_model[second], strict=True)
        ]
        method, p = _paired_test(strata[0]) if len(strata) == 1 else _stratified_sign_flip(strata)
        effect = fmean(fmean(x - y for x, y in pairs) for pairs in strata) if all(strata) else None
        n = sum(map(len, strata))
        found.append(PairedDifference(first=first, second=second, effect=effect, p=p, p_holm=None, n=n, method=method))
    adjusted = iter(_holm([one.p for one in found if one.p is not None]))
    return tuple(one if one.p is None else replace(one, p_holm=next(adjusted)) for one in found)


def _paired_test(pairs: Sequence[tuple[float, float]]) -> tuple[TestName, float | None]:
    """The test of no difference that the outcomes allow, and its two-sided p; None of no pairs."""
    from scipy.stats import binomtest, ttest_1samp

    differences = [x - y for x, y in pairs]
    if all(value in (0.0, 1.0) for pair in pairs for value in pair):
        better, discordant = differences.count(1.0), len(differences) - differences.count(0.0)
        p = float(binomtest(better, discordant).pvalue) if discordant else 1.0
        return "mcnemar", p if differences else None
    if max(differences) - min(differences) <= _ROUNDING:
        # A t of no spread would be certain of two samples. Of the 2^n sign patterns two are as far out as this one.
        return "sign-flip", 2.0 ** (1 - len(differences)) if abs(differences[0]) > _ROUNDING else 1.0
    return "paired-t", float(ttest_1samp(differences, 0.0).pvalue)


def _stratified_sign_flip(strata: Sequence[Sequence[tuple[float, float]]]) -> tuple[TestName, float | None]:
    """The sign-flip test of a mean of strata's mean differences, and its two-sided p; None where a stratum has no pair.

    If the models are alike, each difference could as well have the other sign (Fisher 1935). The mean of strata is
    then a sum of terms t = difference / (samples of its stratum x strata) with random signs: its expectation is 0,
    its variance the sum of t². The p is that sum's normal approximation, less half the smallest step that one flip
    makes; of one stratum of passes and fails it is McNemar's (1947) with Edwards' (1948) correction. Unlike a t test
    it does not take a stratum without spread for certain.
    """
    if not all(strata):
        return "stratified-sign-flip", None
    terms = [(x - y) / (len(pairs) * len(strata)) for pairs in strata for x, y in pairs]
    terms = [term for term in terms if abs(term) > _ROUNDING]
    if not terms:
        return "stratified-sign-flip", 1.0
    beyond = max(0.0, abs(math.fsum(terms)) - min(map(abs, terms)))
    return "stratified-sign-flip", math.erfc(beyond / math.sqrt(2 * math.fsum(term**2 for term in terms)))


def _holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted


def _swap(
    a: str,
    b: str,
    *,
    means: Mapping[str, Sequence[float]],
    differences: Mapping[str, Sequence[PairedDifference]],
    alpha: float,
) -> SwapPair:
    from scipy.stats import kendalltau

    tied = len(set(means[a])) < 2 or len(set(means[b])) < 2
    flipped, survival = [], {}
    for old, new in zip(differences[a], differences[b], strict=True):
        pair = (old.first, old.second)
        turned = (old.effect or 0.0) * (new.effect or 0.0) < 0
        if turned:
            flipped.append(pair)
        survival[pair] = _FATES[_significant(old, alpha), _significant(new, alpha)]
        if survival[pair] == "survives" and turned:
            survival[pair] = "reversed"
    tau = None if tied else float(kendalltau(means[a], means[b], variant="b").statistic)
    return SwapPair(a=a, b=b, tau=tau, flipped=tuple(flipped), survival=survival)


# Significant before, after.
_FATES: Mapping[tuple[bool, bool], Survival] = {
    (True, True): "survives",
    (True, False): "lost",
    (False, True): "gained",
    (False, False): "none",
}


def _significant(difference: PairedDifference, alpha: float) -> bool:
    return difference.p_holm is not None and difference.p_holm <= alpha

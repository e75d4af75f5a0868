"""Which training prompts are, or nearly are, prompts of the benchmark's suites; prompts are values, nothing is read.

Three rules, strongest first, on words: runs of letters and digits after Unicode's NFKC and case folding, so that case,
punctuation, white space, full-width forms and invisible characters do not count. A character of a script that is
written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar) is a word of its own.

1. exact: the same words in the same order.
2. n-gram: at least 70 % of the suite prompt's word 8-grams are in the training prompt, as PaLM's authors count
   contamination (Chowdhery et al. 2022, section 8): a benchmark question inside a longer training prompt. Prompts of
   fewer than 8 words have no 8-gram and fall to the next rule.
3. near: the two sets of words have a Jaccard similarity of at least 0.8 (order and repetition do not count). One
   exchanged word of m distinct ones gives (m - 1) / (m + 1): from 9 words on, that is a near-duplicate. So prompts
   of a short template with another subject ("Write a poem about X", 5 words, 0.67) are not, and those of a
   template of 8 words and more, with one word in its gap, are: whether they mean another question is for a reader.

Exact for all pairs and without comparing all: where two sets share that much, they share one of their rarest members
(prefix filtering: Chaudhuri et al. 2006; Bayardo et al. 2007).
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from bfpo_bench.types import INVISIBLE

Kind = Literal["exact", "ngram", "near"]
Member = TypeVar("Member", int, bytes)

_INVISIBLE = re.compile(f"[{INVISIBLE}]+")
# Thai, Lao; Myanmar; Khmer; kana; Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# Shares of whole numbers: 0.8 * 5 must not be a hair above 4.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Hit:
    """Training prompt `index` is prompt `other` of `task`; similarity by the rule: 1, share of n-grams, or Jaccard."""

    index: int
    task: str
    other: int
    kind: Kind
    similarity: float


def find_contaminated(
    prompts: Sequence[str],
    suites: Mapping[str, Sequence[str]],
    *,
    n: int = 8,
    near: float = 0.8,
    contained: float = 0.7,
) -> tuple[Hit, ...]:
    """For each training prompt and each task the strongest hit, if any: by index, then the tasks' order in `suites`.

    Of hits of one rule the most similar counts, of these the first in the task. `n` is the length of the n-grams in
    words, `contained` the share of them that must be found, `near` the least Jaccard similarity. Raises ValueError
    where one of these is out of range.
    """
    if n < 1 or not 0 < near <= 1 or not 0 < contained <= 1:
        raise ValueError(f"n {n}, near {near}, contained {contained}: n is 1 or more, shares are above 0 up to 1")
    vocabulary: dict[str, int] = {}
    words = [_words(prompt, vocabulary) for prompt in prompts]
    hits: list[Hit] = []
    order = {task: place for place, task in enumerate(suites)}
    for task, theirs in suites.items():
        suite = _Suite([_words(prompt, vocabulary) for prompt in theirs], n=n, near=near, contained=contained)
        known: dict[bytes, tuple[int, Kind, float] | None] = {}
        for index, ours in enumerate(words):
            # PKU-SafeRLHF has a row a pair of answers: its prompts come again and again.
            key = ours.tobytes()
            if key not in known:
                known[key] = suite.strongest(ours)
            if (found := known[key]) is not None:
                other, kind, similarity = found
                hits.append(Hit(index=index, task=task, other=other, kind=kind, similarity=similarity))
    return tuple(sorted(hits, key=lambda hit: (hit.index, order[hit.task])))


def normalised(text: str) -> list[str]:
    """The words of a text as they are compared; a text without any (only signs) is one word, a blank one none."""
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold())
    # Signs alone, such as two pictograms, are still a prompt, and not the same as any other.
    return _WORD.findall(folded) or folded.split()


def _words(text: str, vocabulary: dict[str, int]) -> array[int]:
    """The words as numbers, in order."""
    return array("I", (vocabulary.setdefault(word, len(vocabulary)) for word in normalised(text)))


def _ngrams(words: array[int], n: int) -> set[bytes]:
    """Each run of n words, as the bytes of their numbers: small, and equal exactly when the words are."""
    packed, size = words.tobytes(), words.itemsize
    return {packed[start * size : (start + n) * size] for start in range(len(words) - n + 1)}


class _Suite:
    """The prompts of one task, ready to be asked about."""

    def __init__(self, prompts: Sequence[array[int]], *, n: int, near: float, contained: float) -> None:
        self.n, self.near, self.contained = n, near, contained
        self.exact: dict[bytes, int] = {}
        for index, words in enumerate(prompts):
            if words:
                self.exact.setdefault(words.tobytes(), index)
        self.grams: _Rarest[bytes] = _Rarest([_ngrams(words, n) for words in prompts], share=contained)
        self.sets: _Rarest[int] = _Rarest([set(words) for words in prompts], share=near)

    def strongest(self, words: array[int]) -> tuple[int, Kind, float] | None:
        """The suite's prompt that is hit by the first of the rules that hits at all."""
        if (other := self.exact.get(words.tobytes())) is not None:
            return other, "exact", 1.0
        grams = _ngrams(words, self.n)
        found = self._best(grams, self.grams, grams, least=self.contained)
        if found is not None:
            return found[0], "ngram", found[1]
        ours = set(words)
        found = self._best(ours, self.sets, self.sets.rarest(ours), least=self.near, jaccard=True)
        return None if found is None else (found[0], "near", found[1])

    def _best(
        self,
        ours: set[Member],
        theirs: _Rarest[Member],
        probe: Iterable[Member],
        *,
        least: float,
        jaccard: bool = False,
    ) -> tuple[int, float] | None:
        """Of the prompts that share a rare member with ours the most similar one, if similar enough."""
        best: tuple[int, float] | None = None
        for other in sorted(theirs.sharing(probe)):
            both = len(ours & theirs.sets[other])
            size = len(theirs.sets[other])
            similarity = both / (len(ours) + size - both if jaccard else size)
            if similarity >= least - _ROUNDING and (best is None or similarity > best[1]):
                best = other, similarity
        return best


class _Rarest(Generic[Member]):
    """Sets that are found by their rarest members: of which one at least is in any set that shares `share` of theirs.

    A set of m members, of which k must be shared, has at most m - k others: among its m - k + 1 rarest is a shared one.
    """

    def __init__(self, sets: Sequence[set[Member]], *, share: float) -> None:
        self.sets: Sequence[set[Member]] = sets
        self.share = share
        self.counts: Counter[Member] = Counter(member for members in sets for member in members)
        self.index: dict[Member, list[int]] = {}
        for number, members in enumerate(sets):
            for member in self.rarest(members):
                self.index.setdefault(member, []).append(number)

    def rarest(self, members: set[Member]) -> list[Member]:
        """So many of the rarest members as must hold a shared one; ties in a fixed order, the same for all sets."""
        shared = math.ceil(self.share * len(members) - _ROUNDING)
        return sorted(members, key=lambda member: (self.counts[member], member))[: len(members) - shared + 1]

    def sharing(self, probe: Iterable[Member]) -> set[int]:
        """The numbers of the sets of which one of these members is among the rarest."""
        return {number for member in probe for number in self.index.get(member, ())}

"""A classifier judge with its weights loaded: passages in, probabilities of its options out; decides no verdict.

Lives in a process of its own (harness/process.py), so that its memory comes back. Passages are read in one stream; a
judge with several questions, or with codes to generate, is asked wave by wave within a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from bfpo_bench.errors import JudgeError
from bfpo_bench.harness.next_token import NextToken, Query, Share, open_next_token
from bfpo_bench.judges.prompting import Passage, Prompt, Prompter
from bfpo_bench.judges.spec import JudgeFile, Question
from bfpo_bench.types import ModelSpec

# So many passages are tokenised at once: few, because the engine waits for the first of them.
_CHUNK = 64
# A chunk of the judges whose readings wait for one another.
_WAVES_CHUNK = 1024
_CODES_TOKENS = 32
# Of the rule for capitals in `option_tokens`.
CAPITALS_VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class ReaderSpec:
    """A judge file, its texts, and the model to load: all that the reader's process is told."""

    judge: JudgeFile
    texts: Mapping[str, str]
    model: ModelSpec


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the judge's model says of one passage.

    `logprobs`: for each prompt, for each question, the log-probability (nats) of each option. `said`: the likeliest
    token of all, as text, where that is none of the options. `codes`: what was generated behind the first option.
    """

    id: str
    logprobs: tuple[Mapping[str, Mapping[str, float]], ...]
    said: Mapping[str, str] = field(default_factory=dict)
    codes: tuple[str, ...] = ()
    cut_tokens: int = 0
    defused: int = 0


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A passage that the judge's engine died of, and what was seen of that."""

    id: str
    why: str


def open_reader(spec: ReaderSpec) -> Any:
    """The reader, its weights loaded into this process."""
    if spec.judge.kind == "sequence":
        from bfpo_bench.judges.sequence import SequenceReader

        return SequenceReader(spec)
    return Reader(spec, open_next_token(spec.model))


class Reader:
    """Asks a next-token model the questions of a judge file."""

    def __init__(self, spec: ReaderSpec, model: NextToken) -> None:
        self._judge = spec.judge
        self._model = model
        longest_lead = sum(len(q.lead) + len(q.codes_lead) + 16 for q in spec.judge.questions)
        self._prompter = Prompter(
            spec.judge, spec.texts, model.tokenizer, window=model.max_length - longest_lead - _CODES_TOKENS
        )
        # A file with weights of its own knows their spelling; of any other model it is not known.
        self._groups = {
            q.name: option_tokens(model.tokenizer, q, judge=spec.judge.name, capitals=spec.judge.model is None)
            for q in spec.judge.questions
        }

    @property
    def info(self) -> Mapping[str, Any]:
        options = {name: {option: list(ids) for option, ids in groups.items()} for name, groups in self._groups.items()}
        return {**self._model.info, "option_tokens": options}

    def close(self) -> None:
        self._model.close()

    def answer(self, *, passages: Sequence[Passage]) -> Iterator[list[Reading]]:
        """The readings of all passages, in any order."""
        questions = self._judge.questions
        if len(questions) == 1 and questions[0].codes is None:
            yield from self._stream(passages)
            return
        for start in range(0, len(passages), _WAVES_CHUNK):
            yield self._waves(passages[start : start + _WAVES_CHUNK])

    # -- one question: a stream ------------------------------------------------------------------------------------

    def _stream(self, passages: Sequence[Passage]) -> Iterator[list[Reading]]:
        (question,) = self._judge.questions
        prompts: dict[str, list[Prompt]] = {}
        found: dict[str, dict[int, Mapping[str, float]]] = {}
        said: dict[str, str] = {}

        def queries() -> Iterator[Query]:
            for start in range(0, len(passages), _CHUNK):
                some = passages[start : start + _CHUNK]
                leads = {passage.id: question.lead for passage in some}
                for passage, mine in zip(some, self._prompter.prompts(some, leads=leads), strict=True):
                    prompts[passage.id] = mine
                    yield from (self._query(passage.id, n, prompt.tokens, question) for n, prompt in enumerate(mine))

        for shares in self._model.read(queries()):
            ready = []
            for share in shares:
                id_, n = _ask_of(share.id)
                found.setdefault(id_, {})[n] = self._options(question, share.logprobs)
                if (word := self._instead(question, share)) is not None:
                    said[id_] = word
                if len(found[id_]) == len(prompts[id_]):
                    rows = found.pop(id_)
                    each = tuple({question.name: rows[n]} for n in sorted(rows))
                    heard = {question.name: said.pop(id_)} if id_ in said else {}
                    ready.append(_reading(id_, prompts.pop(id_), each, said=heard))
            if ready:
                yield ready

    # -- several questions: waves ----------------------------------------------------------------------------------

    def _waves(self, passages: Sequence[Passage]) -> list[Reading]:
        found: dict[str, list[dict[str, Mapping[str, float]]]] = {p.id: [{} for _ in self._judge.ask] for p in passages}
        said: dict[str, dict[str, str]] = {passage.id: {} for passage in passages}
        leads = {passage.id: "" for passage in passages}
        prompts: dict[str, list[Prompt]] = {}
        codes: dict[str, str] = {}
        for question in self._judge.questions:
            leads = {id_: lead + question.lead for id_, lead in leads.items()}
            filled = dict(zip(leads, self._prompter.prompts(passages, leads=leads), strict=True))
            prompts = prompts or filled
            queries = (
                self._query(id_, n, prompt.tokens, question)
                for id_, mine in filled.items()
                for n, prompt in enumerate(mine)
            )
            for share in chain.from_iterable(self._model.read(queries)):
                id_, n = _ask_of(share.id)
                found[id_][n][question.name] = self._options(question, share.logprobs)
                if (word := self._instead(question, share)) is not None:
                    said[id_][question.name] = word
            chosen = {id_: likeliest(rows[0][question.name]) for id_, rows in found.items()}
            if question.codes is not None:
                codes |= self._codes(question, passages, leads, chosen)
            leads = {id_: lead + question.options[chosen[id_]][0] for id_, lead in leads.items()}
        return [
            _reading(
                passage.id,
                prompts[passage.id],
                tuple(found[passage.id]),
                said=said[passage.id],
                codes=(codes[passage.id],) if passage.id in codes else (),
            )
            for passage in passages
        ]

    def _codes(
        self, question: Question, passages: Sequence[Passage], leads: Mapping[str, str], chosen: Mapping[str, str]
    ) -> dict[str, str]:
        """What is generated behind the first option, where it was chosen."""
        first = next(iter(question.options))
        some = [passage for passage in passages if chosen[passage.id] == first]
        if not some:
            return {}
        ends = {p.id: leads[p.id] + question.options[first][0] + question.codes_lead for p in some}
        filled = self._prompter.prompts(some, leads=ends)
        tokens = {passage.id: mine[0].tokens for passage, mine in zip(some, filled, strict=True)}
        return self._model.complete(tokens, max_tokens=_CODES_TOKENS)

    # -- tokens ----------------------------------------------------------------------------------------------------

    def _query(self, id_: str, ask: int, tokens: tuple[int, ...], question: Question) -> Query:
        return Query(id=f"{id_}#{ask}", prompt=tokens, groups=tuple(self._groups[question.name].values()))

    def _options(self, question: Question, logprobs: Sequence[float]) -> dict[str, float]:
        # JSON has no -inf; a probability of zero keeps its rank as the lowest finite number.
        return {name: max(value, -1e300) for name, value in zip(question.options, logprobs, strict=True)}

    def _instead(self, question: Question, share: Share) -> str | None:
        """What the model would have said, where that is none of the options."""
        if any(share.likeliest in group for group in self._groups[question.name].values()):
            return None
        return str(self._model.tokenizer.decode([share.likeliest]))


def likeliest(options: Mapping[str, float]) -> str:
    """The option of the highest log-probability; the first of equals."""
    return max(options, key=options.__getitem__)


def option_tokens(
    tokenizer: Any, question: Question, *, judge: str, capitals: bool = False
) -> dict[str, tuple[int, ...]]:
    """For each option, the tokens that say it: those that are one of its spellings but for case and a space before.

    Where an option is no single token, the first of its tokens stands for it, if no other option begins alike. With
    `capitals` so does the first token of its capitalised spelling: " Refused" may be two tokens where " refused" and
    " Safe" are one each, and a model that writes capitals would be read as saying safe.
    """
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    wanted = {option: {s.strip().casefold() for s in spellings} for option, spellings in question.options.items()}
    found: dict[str, set[int]] = {option: set() for option in question.options}
    for token, id_ in vocabulary.items():
        plain = token.lstrip("\u2581\u0120\u010a ").casefold()  # sentencepiece's and byte-level BPE's space and newline
        for option, spellings in wanted.items():
            if plain in spellings:
                found[option].add(int(id_))
    for option, own in question.options.items():
        if not found[option]:
            found[option] = {int(tokenizer.encode(text, add_special_tokens=False)[0]) for text in own}
    if capitals:
        begins = {
            option: {int(tokenizer.encode(_capitalised(text), add_special_tokens=False)[0]) for text in own}
            for option, own in question.options.items()
        }
        for option in question.options:
            others = (found[other] | begins[other] for other in question.options if other != option)
            found[option] |= begins[option].difference(*others)
    ids = list(chain.from_iterable(found.values()))
    if len(ids) != len(set(ids)):
        raise JudgeError(
            f"Judge {judge!r}: the tokenizer of its model begins two options of {question.name!r} alike "
            f"({', '.join(question.options)}). Use the model that the judge was made with."
        )
    return {option: tuple(sorted(tokens)) for option, tokens in found.items()}


def _capitalised(text: str) -> str:
    word = text.lstrip()
    return text[: len(text) - len(word)] + word[:1].upper() + word[1:]


def _ask_of(query: str) -> tuple[str, int]:
    id_, _, n = query.rpartition("#")
    return id_, int(n)


def _reading(id_: str, prompts: Sequence[Prompt], logprobs: Any, *, said: Any, codes: tuple[str, ...] = ()) -> Reading:
    return Reading(
        id=id_,
        logprobs=logprobs,
        said=said,
        codes=codes,
        cut_tokens=max(prompt.cut_tokens for prompt in prompts),
        defused=max(prompt.defused for prompt in prompts),
    )


def shares(options: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Each option's share of the probability that falls on the options, and that probability."""
    each = {name: math.exp(value) for name, value in options.items()}
    mass = math.fsum(each.values())
    return {name: (value / mass if mass > 0 else 0.0) for name, value in each.items()}, min(1.0, mass)

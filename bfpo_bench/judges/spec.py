"""Judges that are described in a YAML file: what it may say, read and checked; loads no template and no model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from bfpo_bench.errors import JudgeError, did_you_mean
from bfpo_bench.types import JudgeScope

# classifier: the distribution of the next token; sequence: a classification head; chat: a reply of an API model;
# pairwise: the preference between two answers in the first token of an API model.
JudgeKind = Literal["classifier", "sequence", "chat", "pairwise"]
Keep = Literal["head", "both"]
# What an option of a classifier can stand for.
Meaning = Literal["harmful", "refused", "safe"]
# How a chat judge's reply is read (published_rubric.py).
Parser = Literal["refusal_class", "bracket_rating", "last_bracket", "strongreject"]

SPECS = Path(__file__).parent / "specs"
SUFFIX = ".yaml"
# What a template can be filled with; `{name}` in its text.
# `request_list` is the request as Python shows a list of one text; `first` and `second` are a pair's answers in order.
FIELDS = ("request", "answer", "context", "request_list", "first", "second")
_OF_A_SAMPLE = ("request", "answer", "context", "request_list")
_FILLED: Mapping[JudgeKind, tuple[str, ...]] = {
    "classifier": _OF_A_SAMPLE,
    "sequence": _OF_A_SAMPLE,
    "chat": ("request", "answer"),
    "pairwise": ("request", "first", "second"),
}
# What a request says beside a file's `settings`; a reply comes whole.
_NOT_SETTINGS = ("model", "messages", "stream")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_PLACEHOLDER = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place where a publisher keeps a text: a file (at an address, or in a wheel on PyPI), and where in it.

    `constant` is a name that the file's Python code assigns, with keys of a dict behind it; `composed` a text with such
    names in braces; `key` a path into YAML or JSON; `turn` a role in a file of ChatML; none of them means the whole
    file. A wheel is named `package==version` and pinned by `wheel_sha256`.
    """

    url: str | None = None
    wheel: str | None = None
    wheel_sha256: str | None = None
    file: str | None = None
    constant: str | None = None
    composed: str | None = None
    key: str | None = None
    turn: str | None = None
    strip: bool = False


@dataclass(frozen=True, kw_only=True)
class Text:
    """A template: our own words (`own`), or a publisher's, known by the sha256 of its text with our placeholders.

    `rename` maps the publisher's placeholders to ours. `markers` are what its documented structure holds, in order.
    An `optional` text is not needed to judge.
    """

    own: str | None = None
    sha256: str | None = None
    sources: tuple[Source, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    markers: tuple[str, ...] = ()
    licence: str | None = None
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Question:
    """One distribution to read: behind `lead`, how likely is each of the options (its spellings, one token each).

    `means` gives the label that an option stands for; `values` its worth, where the mean over options is a harmfulness
    from 0 to 1. `codes`: where the first option is chosen, what is generated behind it is searched for this pattern.
    """

    name: str
    options: Mapping[str, tuple[str, ...]]
    lead: str = ""
    means: Mapping[str, Meaning] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    codes: str | None = None
    codes_lead: str = ""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One prompt: a text of the file, or (`text` None) the chat template's own, with arguments that are names of texts.

    `with_context` is the text for samples that have a context.
    """

    text: str | None = None
    with_context: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A message of a chat judge: a role, and the name of a text."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, kw_only=True)
class JudgeFile:
    """A judge as its file describes it.

    `window` and `answer_tokens` are tokens; None is what the model allows. `markers` are the documented structure of a
    chat template that is the judge's own. `fields`: what stands in a field in place of
    the sample's own, by the name of a text, which may hold the sample's fields in turn.
    """

    name: str
    kind: JudgeKind
    about: str
    source: str
    licence: str
    scope: JudgeScope
    texts: Mapping[str, Text] = field(default_factory=dict)
    model: str | None = None
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None
    gated: str | None = None
    window: int | None = None
    answer_tokens: int | None = None
    keep: Keep = "both"
    chat_template: bool = False
    special_tokens: bool = True
    ask: tuple[Ask, ...] = ()
    questions: tuple[Question, ...] = ()
    markers: tuple[str, ...] = ()
    threshold: float = 0.5
    least_mass: float = 0.5
    fields: Mapping[str, str] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    parser: Parser | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    defuse: bool = True
    both_orders: bool = True
    label_ids: Mapping[str, int] = field(default_factory=dict)
    activation: Literal["softmax", "sigmoid"] = "softmax"

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over all of the file that can move a verdict."""
        told = ("about", "source", "licence", "scope", "gated", "texts")
        moving = {key: value for key, value in asdict(self).items() if key not in told}
        # Markers too: they decide what of an answer is made inert.
        texts = sorted(self.texts.items())
        moving["texts"] = {name: [text.own or text.sha256, text.markers] for name, text in texts}
        return hashlib.sha256(json.dumps(moving, sort_keys=True).encode()).hexdigest()[:16]


def bundled_judges() -> list[str]:
    """Names of the judges whose files come with the package, sorted."""
    return sorted(path.name.removesuffix(SUFFIX) for path in SPECS.glob(f"*{SUFFIX}"))


def load_judge(name: str) -> JudgeFile:
    """The judge of that name, or of a file of the user's own (a path that ends in .yaml)."""
    path = Path(name).expanduser() if name.endswith(SUFFIX) else SPECS / f"{name}{SUFFIX}"
    if not path.is_file():
        if name.endswith(SUFFIX):
            raise JudgeError(f"Judge file {name} does not exist.")
        raise JudgeError(did_you_mean("judge", name, bundled_judges()))
    return read_judge(path)


def read_judge(path: Path) -> JudgeFile:
    """The file as a JudgeFile, with what it `extends` under it; JudgeError names the file, the key and the remedy."""
    return _judge(f"Judge file {path.name}", _extended(path))


def _extended(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's keys over those of the file that it extends, and so on."""
    content, where = _content(path), f"Judge file {path.name}"
    base = content.pop("extends", None)
    if base is None:
        return content
    below_path = _beside(path, str(base))
    if below_path in (path, *above):
        raise JudgeError(f"{where} extends {base!r}, which extends it in turn. Name another base.")
    below = _extended(below_path, (path, *above))
    texts = {**_mapping(f"{where}: texts", below.get("texts")), **_mapping(f"{where}: texts", content.get("texts"))}
    return {**below, **content, "texts": texts}


def placeholders(text: str) -> list[str]:
    """The fields that a template asks for, in order."""
    return _PLACEHOLDER.findall(text)


def pieces(text: str) -> list[str]:
    """A template cut at its placeholders: literal, field, literal, ..., literal. Filling these cannot reach what is
    already filled: a field that holds `{answer}` stays a text."""
    return _PLACEHOLDER.split(text)


def filled(text: str, fields: Mapping[str, str]) -> str:
    """A template with its fields filled at once: what is in one field cannot ask for another. A sample may lack one."""
    return "".join(fields.get(part, "") if i % 2 else part for i, part in enumerate(pieces(text)))


def check_placeholders(where: str, judge: JudgeFile, texts: Mapping[str, str]) -> None:
    """Raise JudgeError where one of these texts asks for a field that a judge of this kind is not given."""
    for name in sorted(_filled_texts(judge) & set(texts)):
        for unknown in sorted(set(placeholders(texts[name])) - set(_FILLED[judge.kind])):
            raise JudgeError(
                f"{where}: text {name!r} holds {{{unknown}}}; a judge of kind {judge.kind!r} can be given "
                f"{', '.join(f'{{{field}}}' for field in _FILLED[judge.kind])}."
            )


def _beside(path: Path, base: str) -> Path:
    for folder in (path.parent, SPECS):
        if (found := folder / f"{base}{SUFFIX}").is_file():
            return found
    raise JudgeError(f"Judge file {path.name} extends {base!r}, which is neither beside it nor bundled.")


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise JudgeError(f"Cannot read judge file {path}: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise JudgeError(f"Judge file {path} holds {type(content).__name__}, not a mapping.")
    return content


# -- every key by its type ---------------------------------------------------------------------------------------------

_WORDS: Mapping[Any, str] = {
    str: "a text (in quotation marks, where YAML reads it as something else)",
    bool: "true or false",
    int: "a whole number of at least 0",
    float: "a number from 0 to 1",
}


def _part(where: str, kind: type[Any], content: Any) -> Any:
    """A dataclass from a mapping, each key of the type that the dataclass says; a key without a value is not given."""
    parts = _mapping(where, content)
    hints = get_type_hints(kind)
    _check_keys(where, parts, hints)
    found = {key: _value(f"{where}: {key}", hints[key], value) for key, value in parts.items() if value is not None}
    for one in fields(kind):
        if one.name not in found and one.default is MISSING and one.default_factory is MISSING:
            raise JudgeError(f"{where} lacks {one.name!r}.")
    return kind(**found)


def _value(where: str, wanted: Any, value: Any) -> Any:
    """A value of YAML as the type that is wanted of it; JudgeError where it is none."""
    inner = get_args(wanted)
    if wanted is Any:
        return value
    if wanted is Text and isinstance(value, str):
        return Text(own=value)
    if is_dataclass(wanted):
        return value if isinstance(value, wanted) else _part(where, wanted, value)  # type: ignore[arg-type]
    if get_origin(wanted) is Literal:
        if value not in inner:
            raise JudgeError(f"{where}: {did_you_mean('value', str(value)[:80], inner)}")
        return value
    if get_origin(wanted) is tuple:
        several = value if isinstance(value, list) else [value]
        places = [where] if len(several) == 1 else [f"{where}[{n}]" for n in range(len(several))]
        return tuple(_value(place, inner[0], one) for place, one in zip(places, several, strict=True))
    if get_origin(wanted) is Mapping:
        return {key: _value(f"{where}.{key}", inner[1], one) for key, one in _mapping(where, value).items()}
    if type(None) in inner:
        return _value(where, inner[0], value)
    # YAML's truth values are Python's whole numbers.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        int: number and isinstance(value, int) and value >= 0,
        # As it is written: 0 stays 0, which the fingerprint tells from 0.0.
        float: number and 0 <= value <= 1,
    }.get(wanted, isinstance(value, wanted))
    if not fits:
        raise JudgeError(f"{where} is {str(value)[:80]!r}, and must be {_WORDS[wanted]}.")
    return value


def _check_keys(where: str, keys: Iterable[str], known: Collection[str]) -> None:
    for key in sorted(keys):
        if key not in known:
            raise JudgeError(f"{where}: {did_you_mean('key', key, known)}")


def _mapping(where: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise JudgeError(f"{where} is {str(value)[:80]!r}, and must be a mapping.")
    return {str(key): one for key, one in value.items()}


# -- what must hold beyond the types -----------------------------------------------------------------------------------


def _judge(where: str, content: Mapping[str, Any]) -> JudgeFile:
    of_scope = {field.name for field in fields(JudgeScope)}
    _check_keys(where, map(str, content), of_scope | {field.name for field in fields(JudgeFile)} - {"scope"})
    given = {key: value for key, value in content.items() if value is not None}
    scope = _part(where, JudgeScope, {"rubrics": "safety", **{key: given.pop(key) for key in of_scope & given.keys()}})
    judge: JudgeFile = _part(where, JudgeFile, {**given, "scope": scope})
    _check(where, judge)
    # Of a file that is extended, not every text is asked for.
    named = _named_texts(judge)
    return replace(judge, texts={name: t for name, t in judge.texts.items() if name in named or t.optional})


def _filled_texts(judge: JudgeFile) -> set[str]:
    """Names of the texts that are filled with a sample's fields."""
    return {
        *(name for ask in judge.ask for name in (ask.text, ask.with_context) if name),
        *(turn.text for turn in judge.turns),
        *judge.fields.values(),
    }


def _named_texts(judge: JudgeFile) -> set[str]:
    return _filled_texts(judge) | {name for ask in judge.ask for name in ask.arguments.values()}


def _check(where: str, judge: JudgeFile) -> None:
    """What the kinds need, and that every text that is named is there."""
    if not _NAME.fullmatch(judge.name):
        raise JudgeError(f"{where}: name {judge.name!r} may hold a-z, 0-9, '.', '_' and '-' only.")
    for key, given in (("axes", judge.scope.axes), ("rubrics", judge.scope.rubrics)):
        if not given:
            raise JudgeError(f"{where}: {key} is empty, and the judge could tell nothing. Name some, or leave it out.")
    for key, number in (("window", judge.window), ("answer_tokens", judge.answer_tokens)):
        if number == 0:
            raise JudgeError(f"{where}: {key} is 0, and must be at least 1.")
    for name, text in judge.texts.items():
        _check_text(f"{where}: text {name!r}", text)
    for question in judge.questions:
        _check_question(f"{where}: question {question.name!r}", question)
    for name in sorted(_named_texts(judge)):
        if name not in judge.texts:
            raise JudgeError(f"{where}: {did_you_mean('text', name, judge.texts)}")
    for name in judge.fields:
        if name not in _OF_A_SAMPLE:
            raise JudgeError(f"{where}: fields: {did_you_mean('field', name, _OF_A_SAMPLE)}")
    needs = {
        "classifier": ("ask", "questions"),
        "sequence": ("ask", "questions", "label_ids"),
        "chat": ("turns", "parser"),
        "pairwise": ("turns",),
    }[judge.kind]
    for key in needs:
        if not getattr(judge, key):
            raise JudgeError(f"{where}: a judge of kind {judge.kind!r} needs {key!r}.")
    if not judge.chat_template and any(ask.text is None for ask in judge.ask):
        raise JudgeError(f"{where}: an `ask` without `text` needs `chat_template: true`.")
    if judge.questions and not any(question.means or question.values for question in judge.questions):
        raise JudgeError(
            f"{where}: no question says what its options mean, and every answer would be safe. Give one of them "
            "`means` or `values`."
        )
    if sum(bool(question.values) for question in judge.questions) not in (0, len(judge.questions)):
        raise JudgeError(f"{where}: either all questions have `values`, or none has.")
    if judge.kind == "sequence":
        if len(judge.questions) != 1:
            raise JudgeError(f"{where}: a classification head answers one question, got {len(judge.questions)}.")
        for option in judge.label_ids:
            if option not in judge.questions[0].options:
                raise JudgeError(f"{where}: label_ids: {did_you_mean('option', option, judge.questions[0].options)}")
    check_placeholders(where, judge, {name: text.own for name, text in judge.texts.items() if text.own is not None})
    _check_settings(where, judge.settings)


def _check_settings(where: str, settings: Mapping[str, Any]) -> None:
    for key in _NOT_SETTINGS:
        if key in settings:
            raise JudgeError(f"{where}: settings cannot hold {key!r}, which is not the file's to say. Leave it out.")
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise JudgeError(f"{where}: settings hold what no request can carry: {error}.") from error


def _check_text(where: str, text: Text) -> None:
    if (text.own is None) == (text.sha256 is None):
        raise JudgeError(f"{where} has either `own` words or the `sha256` of a publisher's text.")
    if text.sha256 is not None and (not _SHA256.fullmatch(text.sha256) or not text.sources):
        raise JudgeError(f"{where}: a publisher's text needs 64 hex digits of sha256 and at least one source.")
    for source in text.sources:
        if (source.url is None) == (source.wheel is None) or sum(
            map(bool, (source.constant, source.key, source.turn))
        ) > 1:
            raise JudgeError(
                f"{where}: a source has one of `url` and `wheel`, and at most one of `constant`, `key`, `turn`."
            )
        if source.wheel is not None and (not _SHA256.fullmatch(source.wheel_sha256 or "") or not source.file):
            raise JudgeError(f"{where}: a wheel needs `wheel_sha256` and the `file` in it.")


def _check_question(where: str, question: Question) -> None:
    if len(question.options) < 2:
        raise JudgeError(f"{where} needs at least two options.")
    for option, spellings in question.options.items():
        if not spellings or not all(spellings):
            raise JudgeError(f"{where}: option {option!r} has no spelling.")
    for key, given in (("means", question.means), ("values", question.values)):
        for name in given:
            if name not in question.options:
                raise JudgeError(f"{where}: {key}: {did_you_mean('option', name, question.options)}")
    if question.values and set(question.values) != set(question.options):
        raise JudgeError(f"{where}: `values` must give every option its worth.")
    if question.codes is not None:
        try:
            re.compile(question.codes)
        except re.error as error:
            raise JudgeError(f"{where}: codes {question.codes!r} is no regular expression: {error}.") from error

"""Judges that are described in a YAML file: what it may say, read and checked; loads no template and no model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from bfpo_bench.errors import JudgeError, did_you_mean
from bfpo_bench.types import AXES, Axis, JudgeScope, Label, Rubric

# classifier: the distribution of the next token; sequence: a classification head; chat: a reply of an API model;
# pairwise: the preference between two answers in the first token of an API model.
JudgeKind = Literal["classifier", "sequence", "chat", "pairwise"]
Keep = Literal["head", "both"]

SPECS = Path(__file__).parent / "specs"
SUFFIX = ".yaml"
# What a template can be filled with; `{name}` in its text.
# `request_list` is the request as Python shows a list of one text; `first` and `second` are a pair's answers in order.
FIELDS = ("request", "answer", "context", "request_list", "first", "second")
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
    means: Mapping[str, Label] = field(default_factory=dict)
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

    role: str
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
    texts: Mapping[str, Text]
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
    parser: str | None = None
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
    content = _content(path)
    where = f"Judge file {path.name}"
    if (base := content.pop("extends", None)) is not None:
        below = _content(_beside(path, str(base)))
        below.pop("extends", None)
        content = {**below, **content, "texts": {**(below.get("texts") or {}), **(content.get("texts") or {})}}
    return _judge(where, content)


def placeholders(text: str) -> list[str]:
    """The fields that a template asks for, in order."""
    return _PLACEHOLDER.findall(text)


def pieces(text: str) -> list[str]:
    """A template cut at its placeholders: literal, field, literal, ..., literal. Filling these cannot reach what is
    already filled: a field that holds `{answer}` stays a text."""
    return _PLACEHOLDER.split(text)


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


_SCOPE_KEYS = ("axes", "rubrics")
_REQUIRED = ("name", "kind", "about", "source", "licence")


def _judge(where: str, content: Mapping[str, Any]) -> JudgeFile:
    known = (set(JudgeFile.__dataclass_fields__) | set(_SCOPE_KEYS)) - {"scope"}
    _check_keys(where, content, known)
    for key in _REQUIRED:
        if not isinstance(content.get(key), str):
            raise JudgeError(f"{where} lacks {key!r} (a text).")
    if not _NAME.fullmatch(content["name"]):
        raise JudgeError(f"{where}: name {content['name']!r} may hold a-z, 0-9, '.', '_' and '-' only.")
    _one_of(where, "kind", content["kind"], get_args(JudgeKind))
    parts: dict[str, Any] = {key: value for key, value in content.items() if key not in _SCOPE_KEYS}
    parts["scope"] = JudgeScope(
        axes=_chosen(where, "axes", content.get("axes"), get_args(Axis), AXES),
        rubrics=_chosen(where, "rubrics", content.get("rubrics"), get_args(Rubric), ("safety",)),
    )
    texts = _mapping(where, "texts", content.get("texts"))
    parts["texts"] = {str(name): _text(f"{where}: text {name!r}", text) for name, text in texts.items()}
    parts["ask"] = tuple(_part(f"{where}: ask", Ask, one) for one in content.get("ask") or ())
    parts["turns"] = tuple(_part(f"{where}: turns", Turn, one) for one in content.get("turns") or ())
    parts["markers"] = tuple(content.get("markers") or ())
    parts["questions"] = tuple(_question(f"{where}: questions", one) for one in content.get("questions") or ())
    judge = JudgeFile(**parts)
    _check(where, judge)
    # Of a file that is extended, not every text is asked for.
    named = _named_texts(judge)
    return replace(judge, texts={name: t for name, t in judge.texts.items() if name in named or t.optional})


def _named_texts(judge: JudgeFile) -> set[str]:
    return {
        *(name for ask in judge.ask for name in (ask.text, ask.with_context, *ask.arguments.values()) if name),
        *(turn.text for turn in judge.turns),
        *judge.fields.values(),
    }


def _text(where: str, content: Any) -> Text:
    if isinstance(content, str):
        return Text(own=content)
    if not isinstance(content, dict):
        raise JudgeError(f"{where} is {type(content).__name__}; write a text, or sha256 and sources.")
    parts = dict(content)
    parts["sources"] = tuple(_part(f"{where}: sources", Source, one) for one in content.get("sources") or ())
    parts["markers"] = tuple(content.get("markers") or ())
    text: Text = _part(where, Text, parts)
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
    return text


def _question(where: str, content: Any) -> Question:
    parts = dict(_mapping(where, "a question", content))
    options = _mapping(where, "options", parts.get("options"))
    parts["options"] = {str(name): tuple(_texts(where, spellings)) for name, spellings in options.items()}
    question: Question = _part(where, Question, parts)
    if len(question.options) < 2:
        raise JudgeError(f"{where}: question {question.name!r} needs at least two options.")
    for key, given in (("means", question.means), ("values", question.values)):
        for name in given:
            if name not in question.options:
                raise JudgeError(f"{where}: {key}: {did_you_mean('option', str(name), question.options)}")
    for label in question.means.values():
        _one_of(where, "label", label, get_args(Label))
    if question.values and set(question.values) != set(question.options):
        raise JudgeError(f"{where}: question {question.name!r}: `values` must give every option its worth.")
    return question


def _check(where: str, judge: JudgeFile) -> None:
    """What the kinds need, and that every text that is named is there."""
    for name in sorted(_named_texts(judge)):
        if name not in judge.texts:
            raise JudgeError(f"{where}: {did_you_mean('text', name, judge.texts)}")
    for name in judge.fields:
        _one_of(where, "field", name, FIELDS)
    needs = {
        "classifier": ("ask", "questions"),
        "sequence": ("ask", "questions", "label_ids"),
        "chat": ("turns", "parser"),
        "pairwise": ("turns",),
    }[judge.kind]
    for key in needs:
        if not getattr(judge, key):
            raise JudgeError(f"{where}: a judge of kind {judge.kind!r} needs {key!r}.")
    if judge.kind == "classifier" and not judge.chat_template and any(ask.text is None for ask in judge.ask):
        raise JudgeError(f"{where}: an `ask` without `text` needs `chat_template: true`.")
    if sum(bool(question.values) for question in judge.questions) not in (0, len(judge.questions)):
        raise JudgeError(f"{where}: either all questions have `values`, or none has.")


def _part(where: str, kind: type[Any], content: Any) -> Any:
    parts = _mapping(where, kind.__name__.lower(), content)
    _check_keys(where, parts, kind.__dataclass_fields__)
    try:
        return kind(**parts)
    except TypeError as error:
        raise JudgeError(f"{where}: {str(error).rpartition(': ')[2]}.") from error


def _check_keys(where: str, content: Mapping[str, Any], known: Any) -> None:
    for key in sorted(map(str, content)):
        if key not in known:
            raise JudgeError(f"{where}: {did_you_mean('key', key, known)}")


def _mapping(where: str, key: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise JudgeError(f"{where}: {key} is {type(value).__name__}, not a mapping.")
    return value


def _texts(where: str, value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        # YAML 1.1 reads a bare yes or no as a truth value.
        raise JudgeError(f"{where}: {value!r} is no list of texts; put words such as yes and no in quotation marks.")
    return texts


def _chosen(where: str, key: str, value: Any, known: Sequence[Any], default: tuple[Any, ...]) -> tuple[Any, ...]:
    if value is None:
        return default
    for one in value if isinstance(value, list) else [value]:
        _one_of(where, key, one, known)
    return tuple(value) if isinstance(value, list) else (value,)


def _one_of(where: str, key: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise JudgeError(f"{where}: {did_you_mean(key, str(value), known)}")

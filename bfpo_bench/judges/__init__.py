"""Judges by name: those in code, and one for each judge file; loads a judge's own imports only when it is made.

keyword                       refusal phrases, no model
chat:MODEL[@URL]              our own rubrics, any OpenAI-compatible server
NAME[:MODEL][@URL]            a judge file of `judges/specs/`, with other weights, or a model at an address
./FILE.yaml[:MODEL][@URL]     a judge file of the user's own
replay:FILE[#JUDGE]           recorded annotations, or the verdicts of an export
perspective[@URL]             Perspective's toxicity, through its API
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bfpo_bench.errors import JudgeError, did_you_mean
from bfpo_bench.judges.spec import SUFFIX, JudgeFile, bundled_judges, load_judge
from bfpo_bench.panel import PANEL
from bfpo_bench.types import LM_EVAL_JUDGE, Judge, JudgeScope, JudgeSpec, ModelSpec

if TYPE_CHECKING:
    from bfpo_bench.endpoint import Endpoint

BASE_URL_NAME = "BFPO_JUDGE_BASE_URL"
LOCAL_KINDS = ("classifier", "sequence")
_ADDRESS = re.compile(r"@(?P<scheme>[a-z][a-z0-9+.-]*)://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where judges are asked from: what their verdicts do not depend on, but for the seed of their retries' spread."""

    seed: int = 0
    mirror: Path | None = None
    log: Path = Path("judge.log")
    engine: str = "auto"
    engine_args: Mapping[str, str] = field(default_factory=dict)
    concurrency: int | None = None


def parse_judge(text: str) -> JudgeSpec:
    """The judge the user named; BFPO_JUDGE_BASE_URL stands in for a chat judge's missing address."""
    name, rest = _name_and_rest(text.strip())
    if name in _CODE:
        return _CODE[name].parse(name, rest)
    if not name.endswith(SUFFIX) and name not in bundled_judges():
        # As inspect_ai writes a model, and as --model does here.
        model = rest if name == "openai" and rest else name.removeprefix("openai/")
        hint = f" A model behind an API is written chat:{model}." if name.startswith(("openai", "gpt-")) else ""
        raise JudgeError(did_you_mean("judge", name, [*_CODE, *bundled_judges()]) + hint)
    judge = load_judge(name)
    if judge.name in (*_CODE, PANEL, LM_EVAL_JUDGE):
        raise JudgeError(
            f"Judge file {name} is named {judge.name!r}, under which other verdicts are kept. Give it another name."
        )
    return _file_spec(name, judge, rest)


def check_judge(spec: JudgeSpec, setting: Setting | None = None) -> None:
    """Raise JudgeError for what can be seen to be wrong before any weights load: kind, model, address, key, texts."""
    if spec.kind in _CODE:
        _CODE[spec.kind].check(spec)
        return
    from bfpo_bench.judges.published import require_texts

    judge = load_judge(spec.file or spec.kind)
    if spec.api:
        _check_address(spec, key=True)
    require_texts(judge, None if setting is None else setting.mirror)
    if judge.kind in LOCAL_KINDS:
        _check_weights(judge, spec, setting or Setting())


def make_judge(spec: JudgeSpec, setting: Setting | None = None) -> Judge:
    """The judge itself."""
    setting = setting or Setting()
    check_judge(spec, setting)
    if spec.kind in _CODE:
        return _CODE[spec.kind].make(spec, setting)
    from bfpo_bench.judges.published import require_texts

    judge = load_judge(spec.file or spec.kind)
    texts = require_texts(judge, setting.mirror)
    if judge.kind in LOCAL_KINDS:
        from bfpo_bench.judges.classifier import ClassifierJudge

        return ClassifierJudge(judge, texts, _weights(judge, spec, setting), name=spec.name, log=setting.log)
    return _asked_judge(judge, texts, spec, setting)


def _asked_judge(judge: JudgeFile, texts: Mapping[str, str], spec: JudgeSpec, setting: Setting) -> Judge:
    """A judge file that is put to a model behind an API."""
    from bfpo_bench.judges.chat import ChatJudge
    from bfpo_bench.judges.pairwise import Preference
    from bfpo_bench.judges.published_rubric import PublishedRubric

    questionnaire = (Preference if judge.kind == "pairwise" else PublishedRubric)(judge, texts)
    endpoint = _endpoint(spec, setting)
    return ChatJudge(
        spec.model or "", questionnaire=questionnaire, name=spec.name, seed=setting.seed, endpoint=endpoint
    )


def _endpoint(spec: JudgeSpec, setting: Setting) -> Endpoint:
    from bfpo_bench.endpoint import Endpoint
    from bfpo_bench.judges.chat import KEY_NAMES

    endpoint = Endpoint(base_url=spec.base_url, key_names=KEY_NAMES)
    return endpoint if setting.concurrency is None else replace(endpoint, concurrency=setting.concurrency)


# -- how they are written ----------------------------------------------------------------------------------------------


def _name_and_rest(text: str) -> tuple[str, str]:
    """`NAME:REST`; the name of a judge file may be a path, which ends in .yaml."""
    at = text.find(SUFFIX)
    if at >= 0 and text[at + len(SUFFIX) :][:1] in ("", ":", "@"):
        name, rest = text[: at + len(SUFFIX)], text[at + len(SUFFIX) :]
        return name, rest.removeprefix(":")
    address = _ADDRESS.search(text)
    at = min((i for i in (text.find(":"), address.start() if address else -1) if i >= 0), default=len(text))
    return text[:at], text[at:].removeprefix(":")


def _split(rest: str) -> tuple[str, str | None]:
    """A model's name may hold '@' (model@2024): the address begins at the first '@' before a scheme ('@https://')."""
    found = _ADDRESS.search(rest)
    if found is None:
        return rest, None
    if found["scheme"].lower() not in ("http", "https"):
        raise JudgeError(f"A judge's address begins with http:// or https://, got {found['scheme']}://. Correct it.")
    return rest[: found.start()], rest[found.start() + 1 :]


def _file_spec(name: str, judge: JudgeFile, rest: str) -> JudgeSpec:
    model, base_url = _split(rest)
    file = name if name.endswith(SUFFIX) else None
    if any(c.isspace() for c in model) and not Path(model).expanduser().is_dir():
        raise JudgeError(f"Judge {judge.name!r}: {model!r} is no model's name. Write: {name}:MODEL")
    if judge.kind in LOCAL_KINDS:
        if base_url is not None:
            raise JudgeError(f"Judge {judge.name!r} loads its own weights and takes no address. Leave it out.")
        if model.startswith(("openai:", "policy:")):
            raise JudgeError(
                f"Judge {judge.name!r} reads probabilities of weights, and {model!r} has none. Name a folder."
            )
        if not model and judge.model is None:
            raise JudgeError(f"Judge {judge.name!r} needs a model: a folder, a hub id or an alias. Write: {name}:MODEL")
        return JudgeSpec(
            kind=judge.name,
            # Where a folder lies is this machine's affair.
            model=(Path(model).name if os.sep in model and Path(model).expanduser().is_dir() else model) or None,
            weights=model or None,
            file=file,
            scope=judge.scope,
        )
    calls = 1 if judge.kind == "chat" or not judge.both_orders else None
    return _api_spec(judge.name, model or judge.model or "", base_url, file=file, scope=judge.scope, calls=calls)


def _api_spec(
    kind: str,
    model: str,
    base_url: str | None,
    *,
    file: str | None = None,
    scope: JudgeScope | None = None,
    calls: int | None = None,
) -> JudgeSpec:
    if not model or any(c.isspace() for c in model):
        raise JudgeError(f"Judge {kind!r} needs a model. Write: {kind}:MODEL or {kind}:MODEL@BASE_URL")
    spec = JudgeSpec(
        kind=kind,
        model=model,
        base_url=base_url or os.environ.get(BASE_URL_NAME, "").strip() or None,
        file=file,
        calls=calls,
        scope=scope or JudgeScope(),
    )
    _check_address(spec)
    return spec


def _check_address(spec: JudgeSpec, *, key: bool = False) -> None:
    from bfpo_bench.endpoint import Endpoint, EndpointError, check_base_url, check_endpoint
    from bfpo_bench.judges.chat import KEY_NAMES

    endpoint = Endpoint(base_url=spec.base_url, key_names=KEY_NAMES)
    try:
        if key:
            check_endpoint(endpoint)
        else:
            check_base_url(endpoint.url)
    except EndpointError as error:
        why = str(error)
    else:
        return
    raise JudgeError(f"Judge {spec.name!r}: {why}")


# -- their weights -----------------------------------------------------------------------------------------------------


def _local_engine(judge: JudgeFile, spec: JudgeSpec, setting: Setting) -> str:
    from bfpo_bench.errors import EngineError
    from bfpo_bench.sources import choose_engine

    if judge.kind == "sequence":
        if setting.engine == "vllm":
            raise JudgeError(f"Judge {spec.name!r} has a classification head and runs on hf. Use --judge-engine auto.")
        return "hf"
    try:
        return choose_engine(setting.engine)
    except EngineError as error:
        raise JudgeError(f"Judge {spec.name!r}: {error}") from None


def _check_weights(judge: JudgeFile, spec: JudgeSpec, setting: Setting) -> None:
    """What can be wrong with a judge's weights, before they or anything else is loaded."""
    _local_engine(judge, spec, setting)
    if "batch_size" in setting.engine_args:
        raise JudgeError(
            f"Judge {spec.name!r}: --judge-engine-args batch_size: its batches are measured in tokens. Write "
            "batch_tokens=N, which engine hf knows; vllm makes its own."
        )
    switched_off = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    if spec.weights is None and switched_off.upper() in ("1", "ON", "YES", "TRUE"):  # as huggingface_hub reads it
        from bfpo_bench.judges.classifier import absent_weights

        if lack := absent_weights(judge, _weights(judge, spec, setting)):
            raise JudgeError(f"Judge {spec.name!r}: {lack}")


def _weights(judge: JudgeFile, spec: JudgeSpec, setting: Setting) -> ModelSpec:
    """The judge's weights, pinned: those of its file, or those that the user named in their place."""
    from bfpo_bench.errors import EngineError
    from bfpo_bench.sources import pinned_hub_model, resolve_model

    engine = _local_engine(judge, spec, setting)
    try:
        if spec.weights is None and judge.model is not None and judge.revision is not None:
            return pinned_hub_model(
                judge.model,
                judge.revision,
                engine=engine,
                engine_args=setting.engine_args,
                adapter=judge.adapter,
                adapter_revision=judge.adapter_revision,
            )
        return resolve_model(spec.weights or judge.model or "", engine=engine, engine_args=setting.engine_args)
    except EngineError as error:
        terms = f" Accept its terms at {judge.gated} first, and set HF_TOKEN." if judge.gated else ""
        raise JudgeError(f"Judge {spec.name!r}: {error}{terms}") from None


# -- judges in code ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Code:
    """A judge that is code: how it is written, what can be checked early, how it is made."""

    parse: Callable[[str, str], JudgeSpec]
    make: Callable[[JudgeSpec, Setting], Judge]
    check: Callable[[JudgeSpec], None] = lambda spec: None


def _alone(name: str, rest: str) -> JudgeSpec:
    if rest:
        raise JudgeError(f"Judge {name!r} takes no model, got {rest!r}. Write: {name}")
    return JudgeSpec(kind=name)


def _keyword(spec: JudgeSpec, setting: Setting) -> Judge:
    from bfpo_bench.judges.keyword import KeywordJudge

    return KeywordJudge()


def _checker(spec: JudgeSpec, setting: Setting) -> Judge:
    from bfpo_bench.judges.checker import CheckerJudge

    return CheckerJudge()


def _parse_chat(name: str, rest: str) -> JudgeSpec:
    return _api_spec(name, *_split(rest))


def _check_chat(spec: JudgeSpec) -> None:
    if not spec.model:
        raise JudgeError("Judge 'chat' needs a model. Write: chat:MODEL or chat:MODEL@BASE_URL")
    _check_address(spec, key=True)


def _chat(spec: JudgeSpec, setting: Setting) -> Judge:
    from bfpo_bench.judges.chat import ChatJudge

    return ChatJudge(spec.model or "", seed=setting.seed, endpoint=_endpoint(spec, setting))


def _parse_replay(name: str, rest: str) -> JudgeSpec:
    if not rest:
        raise JudgeError("Judge 'replay' needs a file of annotations. Write: replay:FILE")
    from bfpo_bench.judges.replay import open_replay

    # Whose annotations they are is the file's affair; where it lies is this machine's.
    return JudgeSpec(kind=name, file=rest, scope=open_replay(rest).scope)


def _replay(spec: JudgeSpec, setting: Setting) -> Judge:
    from bfpo_bench.judges.replay import open_replay

    return open_replay(spec.file or "")


def _parse_perspective(name: str, rest: str) -> JudgeSpec:
    model, base_url = _split(rest)
    if model:
        raise JudgeError(f"Judge {name!r} takes no model, got {model!r}. Write: {name} or {name}@BASE_URL")
    scope = JudgeScope(axes=("harmlessness",), rubrics=("toxicity",))
    return JudgeSpec(kind=name, base_url=base_url, calls=1, scope=scope)


def _check_perspective(spec: JudgeSpec) -> None:
    from bfpo_bench.judges import perspective

    perspective.check(spec.base_url)


def _perspective(spec: JudgeSpec, setting: Setting) -> Judge:
    from bfpo_bench.judges.perspective import PerspectiveJudge

    return PerspectiveJudge(spec.base_url, seed=setting.seed)


_CODE: Mapping[str, _Code] = {
    "keyword": _Code(parse=_alone, make=_keyword),
    "checker": _Code(parse=_alone, make=_checker),
    "chat": _Code(parse=_parse_chat, make=_chat, check=_check_chat),
    "replay": _Code(parse=_parse_replay, make=_replay),
    "perspective": _Code(parse=_parse_perspective, make=_perspective, check=_check_perspective),
}
# Judges that are code, not files.
CODE_JUDGES = tuple(_CODE)

"""A recipe: everything a training run is told, from YAML and `key=value` on the command line; loads no model library.

Every key is known and typed here: an unknown key, a value of the wrong type, and a combination that means nothing are
one clear line before anything is loaded. `training:` goes to transformers' TrainingArguments as it is.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from bfpo_bench.errors import ConfigError, did_you_mean
from bfpo_bench.trainers.records import Source
from bfpo_bench.trainers.settings import LossSettings

RECIPES = Path(__file__).parent / "recipes"
# These keys of TrainingArguments are ours to set: each has a key of the recipe, or a promise that it would break.
OWNED = {
    "output_dir": "out",
    "seed": "seed",
    "data_seed": "seed",
    "remove_unused_columns": None,
    "label_names": None,
    "use_liger_kernel": None,
    "resume_from_checkpoint": None,
    "load_best_model_at_end": None,
    "group_by_length": None,
    "train_sampling_strategy": None,
    "logging_nan_inf_filter": None,
    "label_smoothing_factor": None,
    # A worker that outlives an epoch would go on with that epoch's order.
    "dataloader_persistent_workers": None,
    "overwrite_output_dir": None,
}


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that training starts from, found by whoever calls: its name, its folder, and what it is (a hash)."""

    name: str
    path: Path
    identity: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of the paper's comparison: its loss, which data it sees, and which answer it prefers there.

    `prefer` is what the safety data is ordered by, `safer` too where the recipe's source says so; `buffered` adds one
    batch of helpfulness data to every batch of safety data, else the two are shuffled into one.
    """

    loss: Literal["bfpo", "dpo", "ipo", "morl", "modpo", "sft"]
    uses: tuple[str, ...] = ("safety", "helpfulness")
    prefer: Literal["helpful", "safer"] = "helpful"
    buffered: bool = True


METHODS = {
    "bfpo": Method(loss="bfpo"),
    "dpo": Method(loss="dpo"),
    "ipo": Method(loss="ipo"),
    # The paper's comparison set (section 4): one of the two preferences alone, both in one heap, weighted sums.
    "dpo-helpful": Method(loss="dpo", uses=("helpfulness",)),
    "dpo-safe": Method(loss="dpo", uses=("safety",), prefer="safer"),
    "dpo-mix": Method(loss="dpo", prefer="safer", buffered=False),
    "morl": Method(loss="morl"),
    "modpo": Method(loss="modpo"),
    # Of a safety pair, the authors imitate the safer answer.
    "sft": Method(loss="sft", prefer="safer", buffered=False),
}


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """A LoRA adapter (Hu et al. 2021), trained in place of the model's weights and merged into them at the end."""

    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. Lengths are in tokens; `out` is the folder of the finished checkpoint.

    `after` names another recipe whose checkpoint this one starts from, in place of `model`: its first stage.
    `select` names the weights that are trained (`down_proj` matches that part of a dotted name), all where it is empty.
    `dtype` is what weights are trained in, `save_dtype` what the finished checkpoint has (auto: the same; bfloat16
    rounds updates that are small beside their weights back to the base). `long_prompts`: leave out pairs whose prompt
    is longer than `max_prompt_length` (skip), or keep the prompt's end (cut). `margin_model` is MODPO's model of the
    other preference. `evaluation` names sources by what they measure; `kl_pairs` of each are read in full for the KL
    divergence from the reference.
    """

    model: str
    revision: str | None = None
    after: str | None = None
    out: Path
    method: str = "bfpo"
    safety: Source | None = None
    helpfulness: Source | None = None
    evaluation: Mapping[str, Source] = field(default_factory=dict)
    kl_pairs: int = 16
    buffered: bool | None = None
    loss: LossSettings = field(default_factory=LossSettings)
    select: tuple[str, ...] = ()
    lora: LoraRecipe | None = None
    margin_model: str | None = None
    chat_template: str | None = None
    max_length: int = 1024
    max_prompt_length: int = 512
    long_prompts: Literal["skip", "cut"] = "skip"
    dtype: Literal["float32", "bfloat16"] = "float32"
    save_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    layout: Literal["auto", "packed", "padded"] = "auto"
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    contamination: Literal["drop", "keep", "refuse"] = "drop"
    trust_remote_code: bool = False
    seed: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Method:
        """The method, with what the recipe says otherwise."""
        method = METHODS[self.method]
        return method if self.buffered is None else replace(method, buffered=self.buffered)

    @property
    def sources(self) -> dict[str, Source]:
        """The training data by its part, `safety` before `helpfulness`: those that the method uses and the recipe has.

        A method that prefers the safer answer does so in the safety data.
        """
        found = {}
        for part in self.settings.uses:
            source: Source | None = getattr(self, part)
            if source is None:
                continue
            safer = part == "safety" and self.settings.prefer == "safer"
            found[part] = replace(source, prefer="safer") if safer else source
        return found

    @property
    def evaluated(self) -> dict[str, Source]:
        """The sources of evaluation; one that is named as a part of the training data is ordered as that part is."""
        named = self.sources
        return {
            name: replace(source, prefer=named[name].prefer) if name in named else source
            for name, source in self.evaluation.items()
        }

    def resolved(self) -> dict[str, Any]:
        """As plain values, for the manifest and for comparing two runs; without `out`, which is this machine's."""
        plain: dict[str, Any] = _plain(asdict(self))
        plain.pop("out")
        return plain


class _Loader(yaml.SafeLoader):
    """Two rules of YAML 1.2: 5e-7 is a number, and `no` is text (`save_strategy: no`), only true and false are not."""


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def find_recipe(name: str) -> Path:
    """A file by its path, or a bundled recipe by its bare name; ConfigError names those that are near."""
    path = Path(name)
    if path.is_file():
        return path
    bundled = {one.stem: one for one in sorted(RECIPES.glob("*.yaml"))}
    if path.parent == Path(".") and path.name.removesuffix(".yaml") in bundled:
        return bundled[path.name.removesuffix(".yaml")]
    if path.parent != Path("."):
        raise ConfigError(f"Recipe {name!r} is not a file. Bundled ones need no path: {', '.join(bundled)}.")
    raise ConfigError(did_you_mean("recipe", path.name.removesuffix(".yaml"), bundled))


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file with `key=value` changes, checked; ConfigError names file, key, value and remedy."""
    try:
        body = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"Recipe {path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(body, dict):
        raise ConfigError(f"Recipe {path} is not a mapping of keys to values.")
    for override in overrides:
        body = _overridden(body, override)
    where = f"recipe {path.name}"
    if any(override.startswith("model=") for override in overrides):
        body["after"] = None
    if body.get("after") is not None:
        body = _begun(body, where=where)
    if body.get("out") is None:
        body["out"] = str(Path("checkpoints") / _name(path.stem, str(body.get("method", "bfpo")), overrides))
    recipe: Recipe = _record(Recipe, body, where=where)
    _check(recipe, where=where)
    return recipe


def _begun(body: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The recipe with the checkpoint of its first stage as its model."""
    if body.get("model") is not None:
        raise ConfigError(f"{where} has both model and after: training starts from one of them.")
    if not isinstance(body["after"], str):
        raise ConfigError(f"{body['after']!r} is no value for after of {where}: the name of a recipe is wanted.")
    return {**body, "model": str(load_recipe(find_recipe(body["after"])).out)}


def _name(stem: str, method: str, overrides: Sequence[str]) -> str:
    """A folder's name that tells runs of one recipe apart: its stem, the method, and what was changed."""
    changes = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in ("method", "out"):
            short = key.removeprefix("loss.").removeprefix("training.")
            changes.append(re.sub(r"[^A-Za-z0-9.]+", "-", f"{short}{value}").strip("-"))
    parts = [stem if stem.endswith(method) else f"{stem}-{method}", *sorted(changes)]
    return "-".join(parts)[:120]


def _overridden(body: Mapping[str, Any], override: str) -> dict[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not KEY=VALUE, e.g. loss.tau=0.1 or seed=2.")
    try:
        parsed = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of {override!r} is not YAML: {' '.join(str(error).split())}.") from error
    names = key.split(".")
    if len(names) == 1 and key in {one.name for one in fields(LossSettings)}:
        names = ["loss", key]
    return _with(body, names, parsed, override)


def _with(body: Mapping[str, Any], names: Sequence[str], value: Any, override: str) -> dict[str, Any]:
    head, *rest = names
    if not rest:
        return {**body, head: value}
    inner = body.get(head) or {}
    if not isinstance(inner, Mapping):
        raise ConfigError(f"{override!r} reaches into {head!r}, which is {inner!r} and has no keys.")
    return {**body, head: _with(inner, rest, value, override)}


def _record(kind: type[Any], body: Mapping[str, Any], *, where: str) -> Any:
    """A dataclass from a mapping: every key known, every value of the annotated type."""
    hints = typing.get_type_hints(kind)
    for key in body:
        if key not in hints:
            raise ConfigError(f"{did_you_mean('key', str(key), hints)} It stands in {where}.")
    required = [one.name for one in fields(kind) if one.default is one.default_factory]
    for key in required:
        if body.get(key) is None:
            raise ConfigError(f"{key!r} is missing in {where}.")
    return kind(**{key: _value(hints[key], value, where=f"{key} of {where}") for key, value in body.items()})


def _value(hint: Any, value: Any, *, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _value(next(one for one in arguments if one is not types.NoneType), value, where=where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{value!r} is no value for {where}: {', '.join(map(str, arguments))}.")
        return value
    if origin is tuple:
        # A single name is a list of one, not a list of its letters.
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple) or not all(isinstance(one, arguments[0]) for one in values):
            raise ConfigError(f"{value!r} is no value for {where}: a list of names is wanted.")
        return tuple(values)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{value!r} is no value for {where}: a mapping is wanted.")
        inner = arguments[1]
        return {str(k): v if inner is Any else _value(inner, v, where=f"{k} in {where}") for k, v in value.items()}
    if hasattr(hint, "__dataclass_fields__"):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{value!r} is no value for {where}: a mapping is wanted.")
        return _record(hint, value, where=where)
    return _scalar(hint, value, where=where)


def _scalar(hint: Any, value: Any, *, where: str) -> Any:
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    raise ConfigError(f"{value!r} is no value for {where}: {_names.get(hint, 'a value')} is wanted.")


_names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}


def _check(recipe: Recipe, *, where: str) -> None:
    if recipe.method not in METHODS:
        raise ConfigError(f"{did_you_mean('method', recipe.method, METHODS)} It stands in {where}.")
    if not recipe.sources:
        raise ConfigError(f"{where} has no data for {recipe.method}: give {' or '.join(recipe.settings.uses)}.")
    for key in ("max_length", "max_prompt_length"):
        if getattr(recipe, key) < 2:
            raise ConfigError(f"{key} of {where} is {getattr(recipe, key)}: 2 tokens are the least.")
    if recipe.max_prompt_length >= recipe.max_length:
        raise ConfigError(
            f"max_prompt_length {recipe.max_prompt_length} of {where} leaves no room for an answer in max_length "
            f"{recipe.max_length}: make it smaller."
        )
    if recipe.select and recipe.lora is not None:
        raise ConfigError(f"{where} has both select and lora: a LoRA adapter names its own target_modules.")
    if (recipe.method == "modpo") != (recipe.margin_model is not None):
        raise ConfigError(
            f"modpo needs margin_model, the checkpoint of the other preference's method (e.g. of dpo-safe), and no "
            f"other method has one; {where} has method {recipe.method} and margin_model {recipe.margin_model}."
        )
    if recipe.method in ("bfpo", "morl") and any(source.prefer == "safer" for source in recipe.sources.values()):
        raise ConfigError(
            f"prefer: safer is not for {recipe.method} ({where}): its pairs are ordered by helpfulness, and the labels "
            "say which answer is safe. Leave it out."
        )
    if recipe.method == "modpo" and recipe.loss.weight == 0:
        raise ConfigError(f"loss.weight of {where} is 0: modpo divides by it. Give it above 0.")
    if recipe.method == "sft" and recipe.buffered:
        raise ConfigError(f"buffered is not for sft, whose mean is over tokens; leave it out of {where}.")
    if recipe.attention == "flex" and recipe.layout == "padded":
        raise ConfigError(f"attention: flex is for the packed layout; {where} has layout: padded.")
    for key in recipe.training:
        if key in OWNED:
            remedy = f"the recipe's {OWNED[key]} sets it" if OWNED[key] else "leave it out"
            raise ConfigError(f"training.{key} of {where} is not free: {remedy}.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value

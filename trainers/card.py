"""A checkpoint's model card from its training manifest: pure text from values; knows no weights, tasks or runs.

What was measured later is kept in the manifest (`add_scores`), so the card is always the manifest's, whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.names import MANIFEST

CARD = "README.md"
# The paper whose method and comparison set the recipes are.
PAPER = "https://arxiv.org/abs/2408.15313"
AXES = {
    "harmlessness": "harmlessness",
    "over_refusal": "benign requests answered",
    "helpfulness": "helpfulness",
    "capability": "capability",
}


def write_card(folder: Path) -> Path:
    """Write README.md from the folder's training manifest, whole or not at all."""
    text = model_card(_read(folder / MANIFEST), name=folder.resolve().name)
    return _write(folder / CARD, text)


def add_scores(folder: Path, *, scores: Mapping[str, Any], base_scores: Mapping[str, Any]) -> None:
    """Keep a run's scores.json and its base's with the checkpoint, and write the card anew.

    A run of the same suite, judge, profile and limit takes the earlier one's place.
    """
    manifest = _read(folder / MANIFEST)
    mine = {**kept_scores(scores), "base": kept_scores(base_scores)["axes"]}
    others = [one for one in manifest.get("scores", []) if _subject(one) != _subject(mine)]
    manifest["scores"] = sorted([*others, mine], key=lambda one: json.dumps(_subject(one)))
    _write(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n")
    write_card(folder)


def model_card(manifest: Mapping[str, Any], *, name: str) -> str:
    """The card's text: metadata for the hub, then what a reader wants to know in the order in which they ask."""
    from huggingface_hub import ModelCardData

    base = manifest["base"]
    hub = re.fullmatch(r"hub:([^@]+)@.*", base["identity"])
    data = ModelCardData(
        model_name=name,
        base_model=hub[1] if hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["preference-optimization", "safety", "bfpo-bench", manifest["method"]],
        eval_results=eval_results(manifest.get("scores", [])) or None,
    )
    parts = [
        f"# {_inert(name)}",
        f"{_inert(base['name'])} after training with **{_inert(manifest['method'])}** by bfpo_bench's trainer, "
        f"which implements [BFPO]({PAPER}) and the methods it is compared with.",
        *_results(manifest.get("scores", [])),
        *_data(manifest.get("data", {})),
        *_contamination(manifest.get("contamination", {})),
        *_recipe(manifest),
        *_use(),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


# -- results -----------------------------------------------------------------------------------------------------------


def kept_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """What a card tells of a run's scores.json."""
    parts = ("value", "low", "high", "level", "n", "n_unscored")
    axes = {
        axis: None if score is None else {part: score[part] for part in parts}
        for axis, score in scores["axes"].items()
        if axis in AXES
    }
    return {**{key: scores.get(key) for key in ("suite", "judge", "profile", "limit", "status")}, "axes": axes}


def _subject(kept: Mapping[str, Any]) -> list[Any]:
    return [kept[key] if kept[key] is not None else "" for key in ("suite", "judge", "profile", "limit")]


def eval_results(scores: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The hub's `model-index` of `kept_scores`: a result an axis that has one."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            task_name=f"bfpo_bench {kept['suite']}",
            dataset_type=f"bfpo_bench/{kept['suite']}",
            dataset_name=_title(kept),
            metric_type=axis,
            metric_name=with_interval(AXES[axis], score),
            metric_value=score["value"],
            metric_args=metric_arguments(score),
        )
        for kept in scores
        for axis in AXES
        if (score := kept["axes"].get(axis)) is not None
    ]


def with_interval(name: str, score: Mapping[str, Any]) -> str:
    """A metric's name with the interval in it: of a result the hub shows name and value alone."""
    return f"{name} ({100 * score['level']:g} % interval {_interval(score)}, n {score['n']})"


def metric_arguments(score: Mapping[str, Any]) -> dict[str, Any]:
    """The interval for programs."""
    return {key: score[key] for key in ("low", "high", "level", "n", "n_unscored")}


def _title(kept: Mapping[str, Any]) -> str:
    judged = "no judge" if kept["judge"] is None else f"judged by {kept['judge']}"
    profile = "" if kept.get("profile") in (None, "default") else f", {kept['profile']} profile"
    limit = "" if kept["limit"] is None else f", the first {kept['limit']} samples of each task"
    return f"bfpo_bench {kept['suite']}, {judged}{profile}{limit}"


def _results(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    if not scores:
        return ["## Results", "Not measured yet: `python -m bfpo_bench run --model FOLDER --suite mini` scores it."]
    parts = ["## Results"]
    for kept in scores:
        partial = "" if kept["status"] == "complete" else " (partial: some samples have no score)"
        rows = [
            (AXES[axis], _rate(kept["axes"].get(axis)), _rate(kept["base"].get(axis)))
            for axis in AXES
            if kept["axes"].get(axis) is not None or kept["base"].get(axis) is not None
        ]
        head = f"{_inert(_title(kept))}{partial}. In %, higher is better, with intervals:"
        parts += [head, _table(("", "this model", "its base"), rows)]
    return parts


def _rate(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "not measured"
    return f"{100 * score['value']:.1f} ({_interval(score)}), n {score['n']}"


def _interval(score: Mapping[str, Any]) -> str:
    return f"{100 * score['low']:.1f}–{100 * score['high']:.1f}"


# -- data --------------------------------------------------------------------------------------------------------------


def _data(data: Mapping[str, Any]) -> list[str]:
    if not data:
        return []
    rows = [
        (name, _inert(part["origin"]), str(part["rows"]), str(part["seen"]), str(len(part["left_out"])), _hash(part))
        for name, part in data.items()
    ]
    parts = ["## Training data", _table(("part", "origin", "rows", "read", "left out", "sha256"), rows)]
    combinations = {name: part["combinations"] for name, part in data.items() if part.get("combinations")}
    if combinations:
        kinds = sorted({kind for counts in combinations.values() for kind in counts})
        counted = [
            (kind.replace("-", ", "), *(str(counts.get(kind, 0)) for counts in combinations.values())) for kind in kinds
        ]
        parts += ["Pairs by the safety of the preferred and of the other answer:"]
        parts += [_table(("preferred, other", *combinations), counted)]
    return parts


def _hash(part: Mapping[str, Any]) -> str:
    return f"`{_inert(str(part['sha256']))[:16]}`"


def _contamination(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    checked, unchecked = found.get("checked", {}), found.get("unchecked", {})
    hits = [(part, hit) for part, many in found.get("found", {}).items() for hit in many]
    told = (
        f"{sum(checked.values())} prompts of {len(checked)} tasks of the benchmark were looked for in the training data"
        f" ({_names(checked)})."
        if checked
        else "No prompts of the benchmark were looked for in the training data."
    )
    if checked:
        counts: dict[tuple[str, str], int] = {}
        for part, hit in hits:
            counts[part, hit["task"]] = counts.get((part, hit["task"]), 0) + 1
        where = ", ".join(f"{n} in {part} of {_names([task])}" for (part, task), n in sorted(counts.items()))
        kept = {"drop": "and left out", "keep": "and kept"}.get(found.get("rule", ""), "")
        told += f" Found {kept}: {where}." if hits else " None was found."
    if unchecked:
        told += f" Not looked for, their data was not there: {_names(unchecked)}."
    return ["## Contamination", told]


# -- how it was made, how it is used -----------------------------------------------------------------------------------


def _recipe(manifest: Mapping[str, Any]) -> list[str]:
    import yaml

    text = yaml.safe_dump(_told(manifest["recipe"]), sort_keys=False, allow_unicode=True).rstrip()
    packages = ", ".join(f"{name} {version}" for name, version in manifest.get("packages", {}).items() if version)
    lines = [f"Base: {_inert(manifest['base']['name'])} (`{_inert(manifest['base']['identity'])}`)"]
    if "steps" in manifest:
        lines.append(f"{manifest['steps']} steps in {manifest['seconds']:.0f} s on {manifest['processes']} process(es)")
    lines.append(f"bfpo_bench {manifest.get('bfpo_bench', '?')}{', ' if packages else ''}{packages}")
    # A fence longer than any run of backticks in it cannot be closed from inside.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return ["## Recipe", "; ".join(lines) + ".", f"{fence}yaml\n{text}\n{fence}"]


def _told(value: Any) -> Any:
    """A recipe's values without what is not set, and of a path on somebody's machine the last part only."""
    if isinstance(value, Mapping):
        return {key: _told(one) for key, one in value.items() if one is not None and one != {}}
    if isinstance(value, list):
        return [_told(one) for one in value]
    if isinstance(value, str) and re.match(r"(~|\.{0,2})/", value):
        return value.rstrip("/").rpartition("/")[2]
    return value


def _use() -> list[str]:
    return [
        "## Use",
        "An ordinary checkpoint folder; `FOLDER` is where it lies, or its name on the hub.",
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        "```",
        "```shell\n"
        "vllm serve FOLDER\n"
        "lm_eval --model hf --model_args pretrained=FOLDER --tasks TASKS\n"
        "python -m bfpo_bench run --model FOLDER --suite mini\n"
        "```",
    ]


# -- text --------------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines)


def _names(names: Iterable[str]) -> str:
    """As code, in which an underscore is one."""
    return ", ".join(f"`{name.replace('`', '')}`" for name in names)


def _inert(text: str) -> str:
    """One line without Markdown's and HTML's own characters: names come from other people's files."""
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", " ".join(str(text).split()))


def _read(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): it is not a folder that `train` finished.") from error
    if not isinstance(manifest, dict):
        raise ConfigError(f"{file} holds {type(manifest).__name__}, not the manifest of a training.")
    return manifest


def _write(file: Path, text: str) -> Path:
    temporary = file.with_name(f".{file.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}. Free some space.") from error
    return file

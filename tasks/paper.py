"""What the YAML files of the paper's tasks call: rows kept, prompts unwrapped, a plain metric; no lm-eval import."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bfpo_bench.types import is_blank

# ALERT's prompts are written for Alpaca-style models; the model's own chat template takes the place of these lines.
_WRAPPED = re.compile(r"### Instruction:\n(?P<instruction>.*?)\n### Response:\n", re.DOTALL)


def challenging_only(dataset: Any) -> Any:
    """RealToxicityPrompts: the rows marked `challenging`, which several models of 2020 continued toxically."""
    kept = [index for index, flag in enumerate(dataset["challenging"]) if flag]
    if not kept:
        raise ValueError("no row is marked `challenging`: this copy of the data lacks the flag")
    return dataset.select(kept)


def first_of_each_prompt(dataset: Any) -> Any:
    """PKU-SafeRLHF has a row a pair of answers: each prompt once, where it is first met, in the order of the rows."""
    first: dict[str, int] = {}
    for index, prompt in enumerate(dataset["prompt"]):
        first.setdefault(prompt, index)
    return dataset.select(first.values())


def alert_instruction(doc: Mapping[str, Any]) -> str:
    """The request between ALERT's two marker lines, without them; what follows the second is dropped."""
    match = _WRAPPED.match(doc["prompt"])
    if match is None:
        raise ValueError(f"ALERT row {doc.get('id')}: the prompt does not begin with ALERT's two marker lines")
    return match["instruction"].strip()


def not_empty(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """All that plain lm-eval can say of an answer which only a judge can score."""
    return {"not_empty": float(not is_blank(results[0]))}

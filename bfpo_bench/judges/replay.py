"""Recorded annotations as a judge: answers from a file, asks nobody; what is not recorded is unscored, never guessed.

Rows, as JSON lines or one JSON list, are found by the prompt they annotate, never by their place in the file:

    {"instruction" or "prompt": ..., "preference": 1 to 2}                       AlpacaEval's annotations.json
    {"instruction" or "prompt": ..., "logprobs": {"m": .., "M": ..}}            the first token's, in AlpacaEval's order
    {"sample_id" or "prompt": ..., "label": ...} or {..., "score": 0 to 1}       such as `export` writes

Where a row also has the answer that was judged (`output_2`, `output` or `answer`), it must be this one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from bfpo_bench.errors import JudgeError
from bfpo_bench.judges.rubrics import request_text
from bfpo_bench.length_control import order, preference
from bfpo_bench.types import JudgeItem, Label, Verdict

_BATCH = 500
_KEYS = ("sample_id", "instruction", "prompt")
_ANSWERS = ("output_2", "output", "answer")


class ReplayJudge:
    """The annotations of one file; its version is the file's content."""

    name = "replay"

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise JudgeError(f"Cannot read the annotations {path}: {error.strerror}.") from error
        self._version = "1-" + hashlib.sha256(content).hexdigest()[:8]
        self._rows = _by_key(path, content)

    @property
    def version(self) -> str:
        return self._version

    def judge(self, items: Sequence[JudgeItem]) -> Iterator[list[Verdict]]:
        for start in range(0, len(items), _BATCH):
            yield [self._verdict(item) for item in items[start : start + _BATCH]]

    def _verdict(self, item: JudgeItem) -> Verdict:
        row = self._rows.get(item.sample.id) or self._rows.get(request_text(item))
        fields: dict[str, Any] = {"sample_id": item.sample.id, "judge": self.name, "judge_version": self.version}
        if row is None:
            return Verdict(**fields, unscored="not_recorded", detail=f"{self._path.name} has no row for this prompt")
        recorded = next((row[key] for key in _ANSWERS if isinstance(row.get(key), str)), None)
        if recorded is not None and recorded != item.text:
            return Verdict(**fields, unscored="not_recorded", detail="the row is on another answer to this prompt")
        said = _said(row, request_text(item))
        if said is None:
            return Verdict(**fields, unscored="not_recorded", detail="the row holds no preference, label or score")
        return Verdict(**fields, **said)


def _by_key(path: Path, content: bytes) -> dict[str, Mapping[str, Any]]:
    rows: dict[str, Mapping[str, Any]] = {}
    for row in _rows(path, content):
        for key in _KEYS:
            if isinstance(row.get(key), str):
                if row[key] in rows and rows[row[key]] is not row:
                    raise JudgeError(f"Annotations {path}: two rows have {key} {row[key][:80]!r}. Keep one of them.")
                rows[row[key]] = row
    if not rows:
        raise JudgeError(f"Annotations {path} hold no row with one of {', '.join(_KEYS)}.")
    return rows


def _rows(path: Path, content: bytes) -> list[Mapping[str, Any]]:
    try:
        text = content.decode("utf-8")
        lines = [line for line in text.split("\n") if line.strip()]
        found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise JudgeError(f"Annotations {path} are neither JSON lines nor a JSON list: {error}.") from error
    if not all(isinstance(row, dict) for row in found):
        raise JudgeError(f"Annotations {path}: every row must be an object.")
    return list(found)


def _said(row: Mapping[str, Any], prompt: str) -> dict[str, Any] | None:
    """The verdict that a row records."""
    value = row.get("preference")
    logprobs = row.get("logprobs")
    if isinstance(logprobs, dict):
        value = preference({str(k): float(v) for k, v in logprobs.items()}, switched=order(prompt))
    if isinstance(value, int | float) and not math.isnan(value):
        # AlpacaEval wrote 0 and 1.5 for a draw; -1 and null for what was not annotated.
        value = 1.5 if value == 0 else float(value)
        return {"score": value - 1.0, "metrics": {"preference": value}} if 1.0 <= value <= 2.0 else None
    if row.get("label") in get_args(Label):
        return {"label": row["label"]}
    score = row.get("score")
    if isinstance(score, int | float) and 0 <= score <= 1:
        return {"score": float(score)}
    return None

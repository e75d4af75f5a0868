"""Recorded annotations as a judge: answers from a file, asks nobody; what is not recorded is unscored, never guessed.

Rows, as JSON lines or one JSON list, are found by the prompt they annotate, never by their place in the file:

    {"instruction" or "prompt": ..., "preference": 1 to 2}                       AlpacaEval's annotations.json
    {"instruction" or "prompt": ..., "logprobs": {"m": .., "M": ..}}            the first token's, in AlpacaEval's order
    {"sample_id" or "prompt": ..., "label": ...} or {..., "score": 0 to 1}
    {"sample_id": ..., "text": ..., "verdicts": [...]}                           as `export --format jsonl` writes

Where a row also has the answer that was judged (`output_2`, `output` or `answer`; an export's `text`), it must be this
one. An export's rows are found by the sample alone. Where they hold verdicts of several judges, beside those of the
tasks' own metrics and checks, `FILE#JUDGE` says whose count.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from bfpo_bench.errors import JudgeError, did_you_mean
from bfpo_bench.judges.rubrics import request_text
from bfpo_bench.length_control import order, preference
from bfpo_bench.types import LM_EVAL_JUDGE, JudgeItem, JudgeScope, Label, Rubric, Verdict

_BATCH = 500
_KEYS = ("sample_id", "instruction", "prompt")
_ANSWERS = ("output_2", "output", "answer")
# Judges that belong to their tasks: nobody chooses them, and so nobody replays them.
_OF_TASKS = (LM_EVAL_JUDGE, "checker")

Row = Mapping[str, Any]


def open_replay(text: str) -> ReplayJudge:
    """The judge of `FILE` or `FILE#JUDGE`."""
    if _is_file(text):
        return ReplayJudge(Path(text).expanduser())
    name, _, judge = text.rpartition("#")
    if name and _is_file(name):
        return ReplayJudge(Path(name).expanduser(), judge=judge)
    raise JudgeError(f"Judge 'replay': there is no file {text}.")


def _is_file(name: str) -> bool:
    """Whether the text names a file; a text that can be no path at all does not."""
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


class ReplayJudge:
    """The annotations of one file; its version is the file's content. Of an export, the verdicts of one judge."""

    name = "replay"

    def __init__(self, path: Path, *, judge: str | None = None) -> None:
        self._path = path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise JudgeError(f"Cannot read the annotations {path}: {error.strerror}.") from error
        whose = b"" if judge is None else b"#" + judge.encode("utf-8", "replace")
        self._version = "1-" + hashlib.sha256(content + whose).hexdigest()[:8]
        self._rows = _by_key(path, _rows(path, content, judge))

    @property
    def version(self) -> str:
        return self._version

    @property
    def scope(self) -> JudgeScope:
        """What the rows tell: a preference of a pair, a label of harm and refusals, a score of anything."""
        told = {rubric for row in self._rows.values() for rubric in _rubrics(row)}
        return JudgeScope(rubrics=tuple(rubric for rubric in get_args(Rubric) if rubric in told or not told))

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


def _by_key(path: Path, found: Sequence[Row]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for row in found:
        for key in _KEYS:
            if isinstance(row.get(key), str):
                if row[key] in rows and rows[row[key]] is not row:
                    raise JudgeError(f"Annotations {path}: two rows have {key} {row[key][:80]!r}. Keep one of them.")
                rows[row[key]] = row
    if not rows:
        raise JudgeError(f"Annotations {path} hold no row with one of {', '.join(_KEYS)}.")
    return rows


def _rows(path: Path, content: bytes, judge: str | None) -> list[Row]:
    try:
        text = content.decode("utf-8-sig")
        lines = [line for line in text.split("\n") if line.strip()]
        found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise JudgeError(f"Annotations {path} are neither JSON lines nor a JSON list: {error}.") from error
    if not all(isinstance(row, dict) for row in found):
        raise JudgeError(f"Annotations {path}: every row must be an object.")
    if any("verdicts" in row for row in found):
        found = _of_export(path, found, judge)
    elif judge is not None:
        raise JudgeError(f"Annotations {path} are no export and tell no judges apart. Write: replay:{path}")
    for n, row in enumerate(found, start=1):
        _check(f"Annotations {path}, row {n}", row)
    return list(found)


# -- an export ---------------------------------------------------------------------------------------------------------


def _of_export(path: Path, rows: Sequence[Row], judge: str | None) -> list[Row]:
    """The verdicts of one judge in an export, a row a sample; an empty row where it did not judge the sample."""
    by_row = [_verdicts(f"Annotations {path}, row {n}", row) for n, row in enumerate(rows, start=1)]
    judges = sorted({str(one.get("judge")) for verdicts in by_row for one in verdicts})
    if not judges:
        raise JudgeError(f"Annotations {path} hold no judge's verdict. Judge that run first, and export it again.")
    if judge is None and len(judges) > 1:
        raise JudgeError(
            f"Annotations {path} hold verdicts of {len(judges)} judges ({', '.join(judges)}). Say whose, as in "
            f"replay:{path}#{judges[0]}"
        )
    if judge is not None and judge not in judges:
        raise JudgeError(f"Annotations {path}: {did_you_mean('judge', judge, judges)}")
    found = []
    for n, (row, verdicts) in enumerate(zip(rows, by_row, strict=True), start=1):
        mine = [one for one in verdicts if judge is None or one.get("judge") == judge]
        if len(mine) > 1:
            raise JudgeError(f"Annotations {path}, row {n}: two versions of one judge's verdict. Keep one of them.")
        found.append(_flat(f"Annotations {path}, row {n}", row, mine[0]) if mine else {})
    return found


def _verdicts(where: str, row: Row) -> list[Row]:
    given = row.get("verdicts")
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise JudgeError(f"{where}: `verdicts` is no list of objects. Write it with `export --format jsonl`.")
    return [one for one in given if one.get("judge") not in _OF_TASKS]


def _flat(where: str, row: Row, verdict: Row) -> Row:
    """An export's row with its verdict as other rows have theirs."""
    try:
        metrics = json.loads(verdict.get("metrics") or "{}")
    except (TypeError, ValueError, RecursionError) as error:
        raise JudgeError(f"{where}: `metrics` cannot be read: {error}.") from error
    told = {"label": verdict.get("label"), "score": verdict.get("score"), "metrics": metrics}
    return {"sample_id": row.get("sample_id"), "answer": row.get("text"), **told}


# -- what a row says ---------------------------------------------------------------------------------------------------


def _check(where: str, row: Row) -> None:
    """Raise JudgeError where a row says something in a form that it cannot have; null says nothing."""
    logprobs, label = row.get("logprobs"), row.get("label")
    if logprobs is not None and not (isinstance(logprobs, dict) and all(map(_is_number, logprobs.values()))):
        raise JudgeError(f"{where}: logprobs are {str(logprobs)[:80]!r}, and must be a number for each token.")
    for key in ("preference", "score"):
        if row.get(key) is not None and not _is_number(row[key]):
            raise JudgeError(f"{where}: {key} is {str(row[key])[:80]!r}, and must be a number.")
    if label is not None and label not in get_args(Label):
        raise JudgeError(f"{where}: {did_you_mean('label', str(label)[:80], get_args(Label))}")
    if not isinstance(row.get("metrics") or {}, dict):
        raise JudgeError(f"{where}: metrics are {str(row['metrics'])[:80]!r}, and must be an object.")


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold; JSON's truth values are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _rubrics(row: Row) -> tuple[Rubric, ...]:
    if any(part.get("preference") is not None for part in (row, row.get("metrics") or {})) or row.get("logprobs"):
        return ("pairwise",)
    if row.get("label") is not None:
        return ("safety", "toxicity")
    return get_args(Rubric) if row.get("score") is not None else ()


def _said(row: Row, prompt: str) -> dict[str, Any] | None:
    """The verdict that a row records."""
    value = row.get("preference")
    if logprobs := row.get("logprobs"):
        value = preference({str(k): float(v) for k, v in logprobs.items()}, switched=order(prompt))
    if value is not None and not math.isnan(value):
        # AlpacaEval wrote 0 and 1.5 for a draw; -1 and null for what was not annotated.
        value = 1.5 if value == 0 else float(value)
        return {"score": value - 1.0, "metrics": {"preference": value}} if 1.0 <= value <= 2.0 else None
    metrics = dict(row.get("metrics") or {})
    if row.get("label") is not None:
        return {"label": row["label"], "metrics": metrics}
    score = row.get("score")
    return {"score": float(score), "metrics": metrics} if score is not None and 0 <= score <= 1 else None

"""A run's samples, answers and verdicts as JSON Lines or Parquet, a row a sample; reads the store only."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from bfpo_bench.errors import StoreError
from bfpo_bench.store import RunStore
from bfpo_bench.types import Output, Sample, Verdict


def rows(store: RunStore) -> Iterator[dict[str, Any]]:
    """One flat mapping a sample, in order; what is missing is None."""
    outputs = store.outputs()
    verdicts: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in store.verdicts():
        verdicts[verdict.sample_id].append(verdict)
    model = store.manifest["identity"]["model"]["name"]
    for sample in store.samples():
        yield {"model": model, **sample_row(sample, outputs.get(sample.id), verdicts[sample.id])}


def sample_row(sample: Sample, output: Output | None, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """A sample, its answer and what was said of it as one flat mapping."""
    answer = {} if output is None else {k: v for k, v in asdict(output).items() if k != "sample_id"}
    return {
        "sample_id": sample.id,
        "task": sample.task,
        "index": sample.index,
        "category": sample.category,
        "prompt": sample.prompt,
        "previous": sample.previous,
        "repeat": sample.repeat,
        "cluster": sample.cluster,
        "choices": [end for _, end in sample.choices] or None,
        "reference": sample.reference,
        **{field.name: None for field in fields(Output) if field.name != "sample_id"},
        **{k: list(v) if isinstance(v, tuple) else v for k, v in answer.items()},
        "verdicts": [_verdict(one) for one in verdicts],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    fields = {key: value for key, value in asdict(verdict).items() if key != "sample_id"}
    # As text: each task has other metrics, and a column of Parquet one type.
    return {**fields, "metrics": json.dumps(dict(verdict.metrics), sort_keys=True) if verdict.metrics else None}


def export(store: RunStore, *, form: Literal["jsonl", "parquet"], out: Path) -> int:
    """Write `out` whole or not at all; returns the number of rows."""
    if out.is_dir():
        raise StoreError(f"Cannot write {out}: it is a folder. Name a file.")
    scratch = out.with_name(f".{out.name}.part")
    table = list(rows(store))
    try:
        if form == "jsonl":
            # ASCII only: a terminal that shows the file meets no control or bidirectional character.
            scratch.write_text("".join(json.dumps(row, ensure_ascii=True) + "\n" for row in table), encoding="utf-8")
        else:
            import pyarrow as pa
            from pyarrow import parquet

            # Arrow's texts are UTF-8, which has no half of a surrogate pair.
            parquet.write_table(pa.Table.from_pylist(without_surrogates(table)), scratch)
        scratch.replace(out)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StoreError(f"Cannot write {out}: {error.strerror or error}. Choose another --out.") from error
    return len(table)


def without_surrogates(value: Any) -> Any:
    """The value with `?` for each half of a surrogate pair in its texts, which no UTF-8 file can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {key: without_surrogates(item) for key, item in value.items()}
    return [without_surrogates(item) for item in value] if isinstance(value, list | tuple) else value

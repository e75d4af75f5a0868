"""The reference's log-probabilities, computed once: kept by what they are a function of, shared by all runs that ask.

A value is found under a key of everything that it depends on (the model's hash, its arithmetic, the layout, the library
versions) and the hash of the row's token ids. So a sweep, a resumed run and a run on fewer rows compute nothing twice,
and no value is taken for another's.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bfpo_bench.errors import ConfigError, TrainingError
from bfpo_bench.trainers.layout import TokenPair

# Bump where the same key would now give other numbers.
VERSION = 1
# How far the recomputed pairs may be from their stored values, in nats a token: a changed computation is off by far
# more, another batch's rounding by less.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of several processes this is; `wait` returns when all have called it."""

    rank: int = 0
    of: int = 1
    wait: Callable[[], None] = lambda: None


def with_reference(
    rows: Sequence[TokenPair],
    *,
    folder: Path,
    compute: Callable[[Sequence[TokenPair]], Any],
    batch: int,
    precision: str,
    share: Share,
    progress: Callable[[int], None],
) -> list[tuple[float, float]]:
    """(chosen, rejected) summed log-probabilities of every row under the reference, from `folder` or computed.

    `compute` gives [pairs, 2] for a batch. Each process computes its share of what is missing and stores it batch by
    batch, so that a killed pass goes on where it was. Two stored rows are computed again and compared: ConfigError
    where they differ by more than rounding, which names the folder to delete; TrainingError where the model gives a row
    no finite number.
    """
    names = [row_hash(row) for row in rows]
    stored = _stored(folder)
    missing = [index for index, name in enumerate(dict.fromkeys(names)) if name not in stored]
    by_name = {name: row for name, row in zip(names, rows, strict=True)}
    unique = list(dict.fromkeys(names))
    progress(len(unique) - len(missing))
    _check_stored([by_name[name] for name in unique if name in stored][:2], stored, compute, folder, precision)
    # All have looked before any writes: a share is cut from one and the same list.
    share.wait()
    mine, left = [unique[index] for index in missing[share.rank :: share.of]], len(missing)
    for start in range(0, len(mine), batch):
        part = mine[start : start + batch]
        values = np.asarray(compute([by_name[name] for name in part]), dtype=np.float64)
        for name, pair in zip(part, values, strict=True):
            if not np.isfinite(pair).all():
                raise TrainingError(f"The reference's log-probabilities of row {by_name[name].row} are not finite.")
        _store(folder / f"rank-{share.rank}.sqlite", dict(zip(part, map(tuple, values.tolist()), strict=True)))
        # The others are as far as this process is, as far as it can tell.
        step = min(len(part) * share.of, left)
        left -= step
        progress(step)
    share.wait()
    stored = _stored(folder)
    return [stored[name] for name in names]


def cache_folder(root: Path, key: Mapping[str, Any]) -> Path:
    """The folder of one key, made where it is missing; its `key.json` says what the values depend on."""
    text = json.dumps({"version": VERSION, **key}, sort_keys=True, indent=1)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:20]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "key.json").exists():
        (folder / "key.json").write_text(text, encoding="utf-8")
    return folder


def row_hash(row: TokenPair) -> str:
    """Of the token ids alone: labels, sources and row numbers are not what a log-probability depends on."""
    digest = hashlib.sha256()
    for part in (row.prompt, row.chosen, row.rejected):
        digest.update(len(part).to_bytes(4, "little") + np.asarray(part, dtype="<i4").tobytes())
    return digest.hexdigest()


def _stored(folder: Path) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for file in sorted(folder.glob("rank-*.sqlite")):
        try:
            with closing(sqlite3.connect(file, timeout=60)) as connection:
                rows = connection.execute("SELECT row, chosen, rejected FROM log_probs")
                found |= {row: (chosen, rejected) for row, chosen, rejected in rows}
        except sqlite3.DatabaseError as error:
            # A kill may come between the file and its table.
            if "no such table" not in str(error):
                raise ConfigError(
                    f"The reference cache {file} cannot be read ({error}): delete it, it is made again."
                ) from error
    return found


def _store(file: Path, values: Mapping[str, tuple[float, ...]]) -> None:
    with closing(sqlite3.connect(file, timeout=60)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS log_probs (row TEXT PRIMARY KEY, chosen REAL, rejected REAL)")
        connection.executemany(
            "INSERT OR REPLACE INTO log_probs VALUES (?, ?, ?)", [(name, *pair) for name, pair in values.items()]
        )


def _check_stored(
    rows: Sequence[TokenPair],
    stored: Mapping[str, tuple[float, float]],
    compute: Callable[[Sequence[TokenPair]], Any],
    folder: Path,
    precision: str,
) -> None:
    if not rows:
        return
    again = np.asarray(compute(rows), dtype=np.float64)
    before = np.array([stored[row_hash(row)] for row in rows])
    lengths = np.array([[len(row.chosen), len(row.rejected)] for row in rows])
    worst = float((np.abs(again - before) / lengths).max())
    if not worst <= TOLERANCE[precision]:
        raise ConfigError(
            f"The reference cache {folder} holds log-probabilities that are {worst:.2g} nats a token away from what "
            f"the model gives now: delete the folder, it is made again."
        )

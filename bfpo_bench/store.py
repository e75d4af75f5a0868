"""A run on disk: one SQLite file, a manifest and a lock in a folder; knows nothing of engines, judges or scores.

RUN/manifest.json   what was asked, written before the first token
RUN/run.sqlite      samples, outputs, verdicts; every batch is one transaction
RUN/outcomes.json   derived from these two: what became of each sample (outcomes.py)
RUN/scores.json     derived likewise; sorted keys, no timestamps
RUN/run.lock        held by the one writer, let go by the kernel when it dies
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

from bfpo_bench.errors import StoreError
from bfpo_bench.types import Message, Output, Sample, Verdict

SCHEMA = 2
DATABASE = "run.sqlite"
MANIFEST = "manifest.json"
OUTCOMES = "outcomes.json"
SCORES = "scores.json"
LOCK = "run.lock"
# What belongs to a run's own answers and is kept beside them: human labels, AlpacaEval's df_gamed.csv.
LABELS = "labels.json"
LENGTH_CONTROL = "length_control.csv"

_TABLES = """
CREATE TABLE IF NOT EXISTS samples (
    id TEXT PRIMARY KEY, task TEXT NOT NULL, position INTEGER NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS outputs (
    sample_id TEXT PRIMARY KEY REFERENCES samples (id), text TEXT, thinking TEXT, choice_logprobs TEXT,
    choice_greedy TEXT, finish_reason TEXT, n_prompt_tokens INTEGER, n_tokens INTEGER, prompt_sha TEXT, failure TEXT,
    detail TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS verdicts (
    sample_id TEXT NOT NULL REFERENCES outputs (sample_id), judge TEXT NOT NULL, judge_version TEXT NOT NULL,
    label TEXT, score REAL, unscored TEXT, raw TEXT NOT NULL, detail TEXT NOT NULL, metrics TEXT NOT NULL,
    PRIMARY KEY (sample_id, judge, judge_version)
) STRICT;
"""

_ANY_SAMPLE = "SELECT EXISTS (SELECT 1 FROM samples)"

T = TypeVar("T")


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`, or leave it as it was: temporary file, fsync, rename."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            # A path from the command line can hold half a surrogate pair; JSON spells it as this escape.
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp's mode is for secrets; a run's files are as readable as any other that the user makes.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise StoreError(
            f"Cannot write {path}: {error.strerror or error}. Free space or choose another place."
        ) from error


def to_json(value: Any, *, ascii_only: bool = False) -> str:
    """The one JSON spelling of our files: sorted keys, two spaces, a final newline, no NaN."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=ascii_only, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"No {path.name} in {path.parent}: not a run folder, or nothing was written yet.") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"Cannot read {path}: {error}.") from error


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`['model.identity: a -> b', ...]`: the leaves in which two manifests' identities differ."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differing_fields(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines


class RunStore:
    """Outputs and verdicts of one run. Open it with `create_or_resume`, `open` (writers) or `read`."""

    def __init__(self, folder: Path, database: sqlite3.Connection, release: Callable[[], None] | None) -> None:
        self.folder = folder
        self._database = database
        self._release = release

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def create_or_resume(
        cls, folder: Path, manifest: Mapping[str, Any], *, mode: Literal["auto", "resume", "fresh"] = "auto"
    ) -> RunStore:
        """Take the run's lock, then begin it, or go on with it where its manifest's identity is the same.

        `manifest` holds `identity` (compared) and anything else (kept from the first start). Raises StoreError when
        another process holds the run, or when the identity differs, naming what differs.
        """
        if mode == "resume" and not (folder / MANIFEST).exists():
            raise StoreError(
                f"Nothing to resume in {folder}: no {MANIFEST} there. Leave out --resume to start the run."
            )
        # As it will be read back: a tuple and the list that JSON makes of it are the same value.
        manifest = json.loads(to_json(manifest))
        _make_folder(folder)
        release = _lock(folder)
        try:
            path = folder / MANIFEST
            if mode == "fresh" and path.exists():
                _set_aside(folder)
            if path.exists():
                _refuse_other_run(folder, _read_manifest(folder), manifest)
            else:
                write_atomically(path, to_json(manifest))
            return cls(folder, _connect(folder / DATABASE), release)
        except BaseException:
            release()
            raise

    @classmethod
    def open(cls, folder: Path) -> RunStore:
        """A writer on an existing run (`judge`, `score`)."""
        _must_be_a_run(folder)
        release = _lock(folder)
        try:
            return cls(folder, _connect(folder / DATABASE), release)
        except BaseException:
            release()
            raise

    @classmethod
    def is_planned(cls, folder: Path) -> bool:
        """Whether the folder holds a run with its samples."""
        if not ((folder / MANIFEST).exists() and (folder / DATABASE).exists()):
            return False
        database = _connect(folder / DATABASE, read_only=True)
        try:
            with _reporting(folder):
                # Killed before its tables were made, it is begun, but not planned.
                return _has_tables(database) and bool(database.execute(_ANY_SAMPLE).fetchone()[0])
        finally:
            database.close()

    @classmethod
    def read(cls, folder: Path) -> RunStore:
        """A reader; works beside a writer and on read-only media."""
        _must_be_a_run(folder)
        return cls(folder, _connect(folder / DATABASE, read_only=True), None)

    def discard(self) -> None:
        """End a run that holds no answer yet as if it had not begun; its log stays."""
        if self.answered():
            raise ValueError("a run with answers is never discarded")
        self._database.close()
        for name in (MANIFEST, DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", LABELS, LENGTH_CONTROL):
            (self.folder / name).unlink(missing_ok=True)
        if self._release is not None:
            self._release()
            self._release = None

    def close(self) -> None:
        """Fold the write-ahead log into the one file, so that a finished run can be copied or mounted read-only."""
        try:
            if self._release is not None:
                with _reporting(self.folder):
                    self._fold()
        finally:
            self._database.close()
            if self._release is not None:
                self._release()
                self._release = None

    def _fold(self) -> None:
        try:
            self._database.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError as error:
            # A reader beside us keeps the log in use: it stays, whole, and the next writer folds it.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StoreError:
            # A full disk fails here a second time; the first failure is the one to report.
            if error is None:
                raise

    # -- manifest and scores ---------------------------------------------------------------------------------------

    @property
    def manifest(self) -> dict[str, Any]:
        return _read_manifest(self.folder)

    def amend_manifest(self, **fields: Any) -> None:
        """Set fields outside `identity`: what the run learned on its way (rows' hashes, judges added later)."""
        if "identity" in fields:
            raise ValueError("a run's identity does not change")
        write_atomically(self.folder / MANIFEST, to_json(self.manifest | fields))

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        write_atomically(self.folder / SCORES, to_json(scores))

    @property
    def scores(self) -> dict[str, Any] | None:
        """The scores as last written, or None."""
        path = self.folder / SCORES
        return cast(dict[str, Any], read_json(path)) if path.exists() else None

    # -- writing ---------------------------------------------------------------------------------------------------

    def add_samples(self, samples: Sequence[Sample]) -> None:
        """After those that are there: a resumed run may find data that it lacked before."""
        first = self._select("SELECT count(*) FROM samples", ())[0][0]
        rows = [(s.id, s.task, position, _sample_to_json(s)) for position, s in enumerate(samples, first)]
        self._insert("INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?)", rows)

    def add_outputs(self, outputs: Iterable[Output]) -> None:
        """Commit one batch; an output that is there already stays as it is."""
        rows = [
            (
                o.sample_id,
                _clean(o.text),
                _clean(o.thinking),
                _dump(o.choice_logprobs),
                _dump(o.choice_greedy),
                o.finish_reason,
                o.n_prompt_tokens,
                o.n_tokens,
                o.prompt_sha,
                o.failure,
                _clean(o.detail),
            )
            for o in outputs
        ]
        self._insert("INSERT OR IGNORE INTO outputs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def add_verdicts(self, verdicts: Iterable[Verdict]) -> None:
        """Commit one batch; what was judged replaces an unscored verdict of the same judge, nothing replaces it."""
        rows = [_verdict_row(verdict) for verdict in verdicts]
        self._insert(
            f"{_INSERT_VERDICT} ON CONFLICT DO UPDATE SET "
            "label = excluded.label, score = excluded.score, unscored = excluded.unscored, raw = excluded.raw, "
            "detail = excluded.detail, metrics = excluded.metrics WHERE verdicts.unscored IS NOT NULL",
            rows,
        )

    def replace_verdicts(self, judge: str, verdicts: Sequence[Verdict]) -> None:
        """All that a judge says anew, at once: for one that is computed from the others' verdicts (a panel)."""
        if not verdicts and not self._select("SELECT 1 FROM verdicts WHERE judge = ? LIMIT 1", (judge,)):
            return
        with _reporting(self.folder), self._database:
            self._database.execute("DELETE FROM verdicts WHERE judge = ?", (judge,))
            self._database.executemany(_INSERT_VERDICT, map(_verdict_row, verdicts))

    def _insert(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        with _reporting(self.folder), self._database:
            self._database.executemany(statement, rows)

    # -- reading ---------------------------------------------------------------------------------------------------

    def samples(self, task: str | None = None) -> list[Sample]:
        """In the order in which they were planned."""
        where, values = ("", ()) if task is None else ("WHERE task = ?", (task,))
        rows = self._select(f"SELECT body FROM samples {where} ORDER BY position", values)
        return self._parsed(_sample_from_row, rows)

    def outputs(self) -> dict[str, Output]:
        """By sample id."""
        rows = self._select("SELECT * FROM outputs", ())
        return {output.sample_id: output for output in self._parsed(_output_from_row, rows)}

    def verdicts(self, judge: str | None = None, judge_version: str | None = None) -> list[Verdict]:
        """Of every judge, or of one; ordered by judge, version and the samples' order."""
        rows = self._select(
            "SELECT verdicts.* FROM verdicts JOIN samples ON samples.id = sample_id "
            "WHERE (?1 IS NULL OR judge = ?1) AND (?2 IS NULL OR judge_version = ?2) "
            "ORDER BY judge, judge_version, position",
            (judge, judge_version),
        )
        return self._parsed(_verdict_from_row, rows)

    @property
    def planned(self) -> bool:
        """Whether the run's samples are there."""
        return bool(self._select(_ANY_SAMPLE, ())[0][0])

    def answered(self) -> set[str]:
        """Ids of the samples that have an output."""
        return {row[0] for row in self._select("SELECT sample_id FROM outputs", ())}

    def verdicts_of(self, versions: Mapping[str, str]) -> list[Verdict]:
        """Of these judges, each in this version only: two versions of a judge are two judges."""
        return [verdict for verdict in self.verdicts() if versions.get(verdict.judge) == verdict.judge_version]

    def judged(self, judge: str, judge_version: str) -> set[str]:
        """Ids of the samples that this version of the judge has judged; an unscored one is asked again."""
        rows = self._select(
            "SELECT sample_id FROM verdicts WHERE judge = ? AND judge_version = ? AND unscored IS NULL",
            (judge, judge_version),
        )
        return {row[0] for row in rows}

    def _select(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with _reporting(self.folder):
            return self._database.execute(statement, values).fetchall()

    def _parsed(self, build: Callable[[tuple[Any, ...]], T], rows: Iterable[tuple[Any, ...]]) -> list[T]:
        try:
            return [build(row) for row in rows]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"The store in {self.folder} holds a row that cannot be read: {error!r}.") from error


# -- the folder ------------------------------------------------------------------------------------------------------


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"Cannot create run folder {folder}: {error.strerror}. Choose another --out.") from error


def _must_be_a_run(folder: Path) -> None:
    """A manifest of this version and a database with its tables: `score` of less would report nothing as complete."""
    for name in (MANIFEST, DATABASE):
        if not (folder / name).exists():
            raise StoreError(f"Not a run folder: {folder} has no {name}. Give the folder that `run` printed.")
    _read_manifest(folder)
    database = _connect(folder / DATABASE, read_only=True)
    try:
        with _reporting(folder):
            if not _has_tables(database):
                raise StoreError(f"The run in {folder} was not begun: its store is empty. Run it again.")
    finally:
        database.close()


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("identity"), dict):
        raise StoreError(f"{folder / MANIFEST} is not the manifest of a run.")
    if manifest.get("schema") != SCHEMA:
        found = manifest.get("schema")
        raise StoreError(
            f"{folder} was written with schema {found!r}; this version reads and writes {SCHEMA}. Use --fresh to set "
            "it aside and start over, or another --out."
        )
    return manifest


def _lock(folder: Path) -> Callable[[], None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(f"Another process is writing {folder}. Wait for it to end, or choose another --out.") from None
    except OSError as error:
        raise StoreError(f"Cannot lock {folder}: {error.strerror}. Choose another --out.") from error
    return lock.release


def _set_aside(folder: Path) -> None:
    """Rename an old run's files for --fresh: a run that took a GPU day is not deleted by a flag."""
    number = 1
    while (aside := folder / f"old-{number}").exists():
        number += 1
    aside.mkdir()
    if (folder / DATABASE).exists():
        # What was committed may still lie in the log: folded in, it cannot be parted from its database by a crash.
        with _reporting(folder):
            database = sqlite3.connect(folder / DATABASE)
            database.execute("PRAGMA journal_mode = DELETE")
            database.close()
    # The manifest goes last: while it is there, a crash in between is still seen as a run to set aside.
    for name in (SCORES, OUTCOMES, LABELS, LENGTH_CONTROL, DATABASE, MANIFEST):
        if (folder / name).exists():
            os.replace(folder / name, aside / name)


def _refuse_other_run(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    lines = differing_fields(old["identity"], new["identity"])
    if lines:
        shown = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
        raise StoreError(f"{folder} holds another run ({shown}). Use --fresh to start over, or another --out.")


# -- SQLite ----------------------------------------------------------------------------------------------------------


@contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(
            f"Cannot use the store in {folder}: {error}. What was committed is safe; free space or check the disk, "
            "then run the same command again."
        ) from error


def _has_tables(database: sqlite3.Connection) -> bool:
    names = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return {"samples", "outputs", "verdicts"} <= names


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    with _reporting(path.parent):
        if read_only:
            uri = f"{path.resolve().as_uri()}?mode=ro"
            # Without a write-ahead log nobody is writing: a read-only medium cannot hold the log's index.
            if not path.with_name(f"{path.name}-wal").exists() and not os.access(path.parent, os.W_OK):
                uri += "&immutable=1"
            return sqlite3.connect(uri, uri=True)
        database = sqlite3.connect(path)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        database.executescript(_TABLES)
        return database


# -- rows ------------------------------------------------------------------------------------------------------------


def _clean(text: str | None) -> str | None:
    # SQLite takes valid UTF-8 only; a model can emit half of a surrogate pair.
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _dump(value: Any) -> str | None:
    return None if value is None else json.dumps(value, allow_nan=False)


def _sample_to_json(sample: Sample) -> str:
    body = {
        "id": sample.id,
        "task": sample.task,
        "index": sample.index,
        "prompt": sample.prompt,
        "messages": [[m.role, m.content] for m in sample.messages],
        "previous": sample.previous,
        "choices": [list(choice) for choice in sample.choices],
        "chat_choices": [list(choice) for choice in sample.chat_choices],
        "joint": sample.joint,
        "generation": dict(sample.generation),
        "reference": sample.reference,
        "category": sample.category,
        "cluster": sample.cluster,
        "repeat": sample.repeat,
        "repeat_of": sample.repeat_of,
        "meta": dict(sample.meta),
    }
    return json.dumps(body, sort_keys=True)


_INSERT_VERDICT = "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def _verdict_row(v: Verdict) -> tuple[Any, ...]:
    texts = (_clean(v.raw), _clean(v.detail), _dump(dict(v.metrics)))
    return (v.sample_id, v.judge, v.judge_version, v.label, v.score, v.unscored, *texts)


def _verdict_from_row(row: tuple[Any, ...]) -> Verdict:
    keys = ("sample_id", "judge", "judge_version", "label", "score", "unscored", "raw", "detail")
    return Verdict(**dict(zip(keys, row[:-1], strict=True)), metrics=json.loads(row[-1]))


def _sample_from_row(row: tuple[Any, ...]) -> Sample:
    body = json.loads(row[0])
    body["messages"] = tuple(Message(role=role, content=content) for role, content in body["messages"])
    for key in ("choices", "chat_choices"):
        body[key] = tuple((context, continuation) for context, continuation in body[key])
    return Sample(**body)


def _output_from_row(row: tuple[Any, ...]) -> Output:
    def load(text: str | None, build: Callable[[Any], T]) -> T | None:
        return None if text is None else build(json.loads(text))

    return Output(
        sample_id=row[0],
        text=row[1],
        thinking=row[2],
        choice_logprobs=load(row[3], tuple),
        choice_greedy=load(row[4], tuple),
        finish_reason=row[5],
        n_prompt_tokens=row[6],
        n_tokens=row[7],
        prompt_sha=row[8],
        failure=row[9],
        detail=row[10],
    )

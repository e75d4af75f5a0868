"""A run on disk: one SQLite file, a manifest and a lock in a folder; knows nothing of engines, judges or scores.

RUN/manifest.json   what was asked, written before the first token
RUN/run.sqlite      samples, outputs, verdicts; every batch is one transaction
RUN/outcomes.json   derived from these two: what became of each sample (outcomes.py)
RUN/scores.json     derived likewise; sorted keys, no timestamps
RUN/run.lock        held by the one writer, let go by the kernel when it dies
RUN/planning.sqlite the samples while they are made; then it is run.sqlite
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TextIO, TypeVar, cast

from bfpo_bench.errors import StoreError
from bfpo_bench.types import Answered, Message, Output, Sample, Verdict

SCHEMA = 2
DATABASE = "run.sqlite"
MANIFEST = "manifest.json"
OUTCOMES = "outcomes.json"
SCORES = "scores.json"
LOCK = "run.lock"
_PLAN = "planning.sqlite"
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
CREATE INDEX IF NOT EXISTS samples_by_task ON samples (task, position, id);
"""

# A page of a task's samples with their outputs, and what was said of them; the second finds its ids in the index.
_PAGE = 1000
_PAGE_OF_ANSWERS = """
SELECT position, samples.id, {} FROM samples LEFT JOIN outputs ON outputs.sample_id = samples.id
WHERE task = ? AND position > ? ORDER BY position LIMIT ?
"""
_WHOLE_ANSWERS = _PAGE_OF_ANSWERS.format("body, NULL, outputs.*")
# SQLite takes a few fields out of a body in a third of the time in which Python reads it; the choices' texts are wanted
# only where a text among them is the right answer.
_BRIEF_ANSWERS = _PAGE_OF_ANSWERS.format(
    "json_extract(body, '$.index', '$.reference', '$.category', '$.cluster', '$.repeat', '$.repeat_of', "
    "'$.generation.until'), CASE WHEN json_extract(body, '$.reference') LIKE '\"%' "
    "THEN json_extract(body, '$.choices') ELSE json_array_length(body, '$.choices') END, "
    "sample_id, text, thinking, choice_logprobs, NULL, finish_reason, n_prompt_tokens, n_tokens, NULL, failure, ''"
)
_SAID = """
SELECT position, sample_id, judge, judge_version, label, score, unscored, metrics
FROM samples CROSS JOIN verdicts ON verdicts.sample_id = samples.id
WHERE task = ? AND position > ? AND position <= ?
"""

_TEXTS = """
SELECT position, text FROM samples JOIN outputs ON outputs.sample_id = samples.id
WHERE task = ? AND position > ? ORDER BY position LIMIT ?
"""
_JUDGEABLE = """
SELECT count(*) FROM samples CROSS JOIN outputs ON outputs.sample_id = samples.id WHERE task = ? AND failure IS NULL
"""
_JUDGED = """
SELECT count(*) FROM samples CROSS JOIN outputs ON outputs.sample_id = samples.id
CROSS JOIN verdicts ON verdicts.sample_id = samples.id
WHERE task = ? AND failure IS NULL AND judge = ? AND judge_version = ? AND unscored IS NULL
"""
# In KiB, and so negative: ids are hashes, and a batch touches most pages of a large run's index on them.
_CACHE = -(2**16)

_ANY_SAMPLE = "SELECT EXISTS (SELECT 1 FROM samples)"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How far a run is: what was planned, and how much of it has an output."""

    samples: int
    answered: int


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`, or leave it as it was."""
    with replaced(path) as file:
        file.write(text)


@contextmanager
def replaced(path: Path) -> Iterator[TextIO]:
    """Replace `path` by what is written, once all of it is, or leave it as it was: temporary file, fsync, rename."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            # A path from the command line can hold half a surrogate pair; JSON spells it as this escape.
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                yield file
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


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What can be told of a sample without building it: enough to plan in which batch it is asked.

    `row` is its number in the file, for `samples_in`; `generation` is JSON with sorted keys.
    """

    row: int
    id: str
    task: str
    previous: str | None
    chooses: bool
    generation: str
    characters: int
    answered: bool


class Planned(Protocol):
    """A run's samples as they are made, and what its manifest is to say of them once they all are."""

    def __iter__(self) -> Iterator[Sample]: ...

    @property
    def learned(self) -> Mapping[str, Any]: ...


class RunStore:
    """Outputs and verdicts of one run. Open it with `create_or_resume`, `open` (writers) or `read`."""

    def __init__(self, folder: Path, database: sqlite3.Connection, release: Callable[[], None] | None) -> None:
        self.folder = folder
        self._database = database
        self._release = release

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def create_or_resume(
        cls,
        folder: Path,
        manifest: Mapping[str, Any],
        *,
        mode: Literal["auto", "resume", "fresh"] = "auto",
        samples: Planned | None = None,
    ) -> RunStore:
        """Take the run's lock, then begin it, or go on with it where its manifest's identity is the same.

        `manifest` holds `identity` (compared) and anything else (kept from the first start). Raises StoreError when
        another process holds the run, or when the identity differs, naming what differs.
        `samples` are asked for where the run has none yet, or begins afresh, and written as they come, in one
        transaction. Until the last is there nothing else changes: whatever they raise leaves the folder as it was, and
        after a kill the run is planned again.
        """
        if mode == "resume" and not (folder / MANIFEST).exists():
            raise StoreError(
                f"Nothing to resume in {folder}: no {MANIFEST} there. Leave out --resume to start the run."
            )
        # As it will be read back: a tuple and the list that JSON makes of it are the same value.
        manifest = json.loads(to_json(manifest))
        made = _make_folder(folder)
        release = _lock(folder)
        try:
            path = folder / MANIFEST
            fresh = mode == "fresh" and path.exists()
            begun = _read_manifest(folder) if path.exists() and not fresh else None
            if begun is not None:
                _refuse_other_run(folder, begun, manifest)
            planned = samples is not None and (fresh or not cls.is_planned(folder))
            if samples is not None and planned:
                _write_plan(folder, samples)
                manifest = {**(begun or manifest), **samples.learned}
            if fresh:
                _set_aside(folder)
            if begun is None or planned:
                write_atomically(path, to_json(manifest))
            if planned:
                _take_plan(folder)
            return cls(folder, _connect(folder / DATABASE), release)
        except BaseException:
            if made:
                (folder / LOCK).unlink(missing_ok=True)
            release()
            _remove_empty(made)
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
    def counts(cls, folder: Path) -> Counts | None:
        """How far the run in `folder` is, beside its writer; None where none was begun there, or it is just being."""
        if not ((folder / MANIFEST).exists() and (folder / DATABASE).exists()):
            return None
        database = _connect(folder / DATABASE, read_only=True)
        try:
            with _reporting(folder):
                if not _has_tables(database):
                    return None
                counted = "SELECT (SELECT count(*) FROM samples), (SELECT count(*) FROM outputs)"
                samples, answered = database.execute(counted).fetchone()
                return Counts(samples=samples, answered=answered)
        finally:
            database.close()

    @classmethod
    def read(cls, folder: Path) -> RunStore:
        """A reader; works beside a writer and on read-only media."""
        _must_be_a_run(folder)
        return cls(folder, _connect(folder / DATABASE, read_only=True), None)

    def discard(self) -> None:
        """End a run that holds no answer yet as if it had not begun; its log stays."""
        if self.n_answered():
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

    def add_samples(self, samples: Iterable[Sample]) -> None:
        """After those that are there, as they come: a resumed run may find data that it lacked before."""
        first = self._select("SELECT coalesce(max(position) + 1, 0) FROM samples", ())[0][0]
        self._insert(_INSERT_SAMPLE, map(_sample_row, enumerate(samples, first)))

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

    def replace_verdicts(self, judge: str, verdicts: Iterable[Verdict]) -> None:
        """All that a judge says anew, in one transaction: for one that is computed from the others' verdicts (a panel).

        They may be made on the way from what is read here of the other judges.
        """
        with _reporting(self.folder), self._database:
            self._database.execute("DELETE FROM verdicts WHERE judge = ?", (judge,))
            self._database.executemany(_INSERT_VERDICT, map(_verdict_row, verdicts))

    def _insert(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
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

    def answers(self, task: str, versions: Mapping[str, str | None], *, brief: bool = False) -> Iterator[Answered]:
        """A task's samples in order, each with its output and what these judges said in these versions (None: in any).

        Read page by page; between pages anything may be written. The verdicts lack the judges' own words (`raw`,
        `detail`), which no score needs. With `brief` there are neither prompts, messages, settings and rows of the
        samples nor the outputs' `choice_greedy`, `prompt_sha` and `detail`, and of the choices the texts only where the
        right answer is a text: what is left is read much faster.
        """
        last, asked = -1, _BRIEF_ANSWERS if brief else _WHOLE_ANSWERS
        while True:
            try:
                rows = self._select(asked, (task, last, _PAGE))
            except StoreError as error:
                if asked is _WHOLE_ANSWERS or "malformed JSON" not in str(error):
                    raise
                # A row may hold NaN, which Python writes and reads, and SQLite does not.
                asked = _WHOLE_ANSWERS
                continue
            if not rows:
                return
            said = self._said(task, versions, after=last, to=rows[-1][0])
            last = rows[-1][0]
            sample = partial(_brief_sample, task) if asked is _BRIEF_ANSWERS else _whole_sample
            # One at a time: a page of them would be many objects for the garbage collector to go through.
            yield from self._built(partial(_answered, sample, said), rows)

    def _said(
        self, task: str, versions: Mapping[str, str | None], *, after: int, to: int
    ) -> dict[int, tuple[Verdict, ...]]:
        found: dict[int, tuple[Verdict, ...]] = {}
        if versions:
            rows = self._select(_SAID, (task, after, to))
            wanted = [row for row in rows if row[2] in versions and versions[row[2]] in (None, row[3])]
            for row, verdict in zip(wanted, self._built(_brief_verdict, wanted), strict=True):
                found[row[0]] = (*found[row[0]], verdict) if row[0] in found else (verdict,)
        return found

    def texts(self, task: str) -> Iterator[str | None]:
        """Of a task's outputs, in their samples' order; read page by page."""
        last = -1
        while rows := self._select(_TEXTS, (task, last, _PAGE)):
            last = rows[-1][0]
            yield from (text for _, text in rows)

    def n_judgeable(self, task: str) -> int:
        """How many of a task's samples have an answer."""
        return int(self._select(_JUDGEABLE, (task,))[0][0])

    def n_judged(self, task: str, judge: str, version: str) -> int:
        """How many of them this version of the judge has judged; an unscored one is asked again."""
        return int(self._select(_JUDGED, (task, judge, version))[0][0])

    def tasks(self) -> list[str]:
        """Those that have samples, in the order in which they were planned."""
        rows = self._select("SELECT task FROM samples GROUP BY task ORDER BY min(position)", ())
        return [task for (task,) in rows]

    def judges(self) -> set[tuple[str, str]]:
        """Every judge that judged anything, with its version."""
        return set(self._select("SELECT DISTINCT judge, judge_version FROM verdicts", ()))

    def n_stray_outputs(self) -> int:
        """How many outputs belong to no sample."""
        unknown = "SELECT count(*) FROM outputs WHERE NOT EXISTS (SELECT 1 FROM samples WHERE id = sample_id)"
        return int(self._select(unknown, ())[0][0])

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

    def outline(self) -> Iterator[Outline]:
        """Of every sample, in their order; the store is read on the way, and must be read to the end first."""
        with _reporting(self.folder):
            rows = self._database.execute(
                "SELECT samples.rowid, body, sample_id IS NOT NULL FROM samples "
                "LEFT JOIN outputs ON outputs.sample_id = id ORDER BY position"
            )
            for row, text, answered in rows:
                # Not by SQLite's own functions: a row may hold NaN, which Python writes and reads, and SQLite does not.
                body = json.loads(text)
                yield Outline(
                    row=row,
                    id=body["id"],
                    task=body["task"],
                    previous=body["previous"],
                    chooses=bool(body["choices"]),
                    generation=json.dumps(body["generation"], sort_keys=True),
                    characters=len(body["prompt"]),
                    answered=bool(answered),
                )

    def samples_in(self, rows: Sequence[int]) -> list[Sample]:
        """Those that `outline` named by these rows, in this order."""
        found = self._chosen("SELECT rowid, body FROM samples WHERE rowid IN ({})", rows)
        bodies = {row: body for row, body in found}
        return self._parsed(_sample_from_row, [(bodies[row],) for row in rows])

    def samples_of(self, ids: Sequence[str]) -> dict[str, Sample]:
        """Those of these ids that there are."""
        rows = self._chosen("SELECT body FROM samples WHERE id IN ({})", ids)
        return {sample.id: sample for sample in self._parsed(_sample_from_row, rows)}

    def outputs_of(self, ids: Sequence[str]) -> dict[str, Output]:
        """Of these samples, as far as they have one."""
        rows = self._chosen("SELECT * FROM outputs WHERE sample_id IN ({})", ids)
        return {output.sample_id: output for output in self._parsed(_output_from_row, rows)}

    def n_samples(self) -> int:
        return int(self._select("SELECT count(*) FROM samples", ())[0][0])

    def n_unanswered(self) -> int:
        return self.n_samples() - self.n_answered()

    def has_system_messages(self) -> bool:
        """Whether any sample speaks in the system's role."""
        # What only looks like it stands in a prompt; the few rows that do are read.
        rows = self._database.execute("""SELECT body FROM samples WHERE instr(body, '["system", ') > 0""")
        with _reporting(self.folder):
            return any(role == "system" for (body,) in rows for role, _ in json.loads(body)["messages"])

    def n_answered(self) -> int:
        return int(self._select("SELECT count(*) FROM outputs", ())[0][0])

    def _chosen(self, statement: str, keys: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The rows of these keys, whose places stand in the statement as `{}`: SQLite takes so many at a time."""
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(keys), _PAGE):
            some = tuple(keys[start : start + _PAGE])
            found += self._select(statement.format(", ".join("?" * len(some))), some)
        return found

    def _select(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with _reporting(self.folder):
            return self._database.execute(statement, values).fetchall()

    def _parsed(self, build: Callable[[tuple[Any, ...]], T], rows: Iterable[tuple[Any, ...]]) -> list[T]:
        return list(self._built(build, rows))

    def _built(self, build: Callable[[tuple[Any, ...]], T], rows: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        try:
            for row in rows:
                yield build(row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"The store in {self.folder} holds a row that cannot be read: {error!r}.") from error


# -- the folder ------------------------------------------------------------------------------------------------------


def _make_folder(folder: Path) -> list[Path]:
    """The folders that had to be made, the innermost first."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"Cannot create run folder {folder}: {error.strerror}. Choose another --out.") from error
    return made


def _remove_empty(folders: Sequence[Path]) -> None:
    """Those of the folders that nobody has put anything in since."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _write_plan(folder: Path, samples: Iterable[Sample]) -> None:
    """All samples, or no file: in a database of their own, since the run's may still be an earlier run's."""
    path = folder / _PLAN
    path.unlink(missing_ok=True)  # of one who was killed here
    try:
        with _reporting(folder), closing(sqlite3.connect(path)) as database:
            # Nobody else reads it, and what is left of it after a crash is thrown away.
            database.execute("PRAGMA journal_mode = OFF")
            database.execute(f"PRAGMA cache_size = {_CACHE}")
            database.executescript(_TABLES)
            database.executemany(_INSERT_SAMPLE, map(_sample_row, enumerate(samples)))
            database.commit()
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _take_plan(folder: Path) -> None:
    """Make the samples that were written the run's; what stands there has none, or was set aside."""
    # A log without its database would be taken for the new one's.
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
        (folder / name).unlink(missing_ok=True)
    os.replace(folder / _PLAN, folder / DATABASE)


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
        database.execute(f"PRAGMA cache_size = {_CACHE}")
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


_INSERT_SAMPLE = "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?)"


def _sample_row(numbered: tuple[int, Sample]) -> tuple[Any, ...]:
    position, sample = numbered
    return (sample.id, sample.task, position, _sample_to_json(sample))


_INSERT_VERDICT = "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def _verdict_row(v: Verdict) -> tuple[Any, ...]:
    texts = (_clean(v.raw), _clean(v.detail), _dump(dict(v.metrics)))
    return (v.sample_id, v.judge, v.judge_version, v.label, v.score, v.unscored, *texts)


def _answered(
    sample: Callable[[tuple[Any, ...]], Sample], said: Mapping[int, tuple[Verdict, ...]], row: tuple[Any, ...]
) -> Answered:
    output = None if row[4] is None else _output_from_row(row[4:])
    return Answered(sample=sample(row[1:4]), output=output, verdicts=said.get(row[0], ()))


# What `json.loads` does, less its search for white space round a value: that is half of the time for a short one.
_read_json = json.JSONDecoder().raw_decode


def _whole_sample(row: tuple[Any, ...]) -> Sample:
    return _sample_from_row(row[1:2])


def _brief_sample(task: str, row: tuple[Any, ...]) -> Sample:
    (index, reference, category, cluster, repeat, repeat_of, until), _ = _read_json(row[1])
    if isinstance(row[2], str):
        choices = tuple((context, continuation) for context, continuation in json.loads(row[2]))
    else:
        choices = (("", ""),) * (row[2] or 0)
    return Sample(
        id=row[0],
        task=task,
        index=index,
        prompt="",
        choices=choices,
        generation={"until": until} if until else {},
        reference=reference,
        category=category,
        cluster=cluster,
        repeat=repeat or 0,
        repeat_of=repeat_of,
    )


def _brief_verdict(row: tuple[Any, ...]) -> Verdict:
    _, sample_id, judge, version, label, score, unscored, metrics = row
    return Verdict(
        sample_id=sample_id,
        judge=judge,
        judge_version=version,
        label=label,
        score=score,
        unscored=unscored,
        metrics={} if metrics == "{}" else json.loads(metrics),
    )


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
    return Output(
        sample_id=row[0],
        text=row[1],
        thinking=row[2],
        choice_logprobs=None if row[3] is None else tuple(_read_json(row[3])[0]),
        choice_greedy=None if row[4] is None else tuple(_read_json(row[4])[0]),
        finish_reason=row[5],
        n_prompt_tokens=row[6],
        n_tokens=row[7],
        prompt_sha=row[8],
        failure=row[9],
        detail=row[10],
    )

"""Leaderboard rows -> a static site: tables, one page of the whole, one a task, one a run; computes no score.

Pages hold no time, machine or path: the same rows give the same bytes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bfpo_bench.errors import StoreError
from bfpo_bench.leaderboard import processes
from bfpo_bench.leaderboard.board import index_page, manifests_page
from bfpo_bench.leaderboard.cells import AXIS_NAMES
from bfpo_bench.leaderboard.judged import judged_tasks
from bfpo_bench.leaderboard.pages import environment
from bfpo_bench.leaderboard.published import PublishedRow
from bfpo_bench.leaderboard.rows import LeaderboardRow
from bfpo_bench.leaderboard.standings import Standings, standings
from bfpo_bench.leaderboard.tables import run_to_json, to_csv, to_json, to_markdown
from bfpo_bench.leaderboard.task_page import task_pages
from bfpo_bench.leaderboard.viewer import write_run_list, write_run_pages

_FOLDERS = ("runs", "tasks")


def write_site(
    rows: Sequence[LeaderboardRow], *, out: Path, published: Sequence[PublishedRow] = (), samples: bool = True
) -> Path:
    """Write index.html, its pages and leaderboard.csv, .json and .md under `out`; return the index's path.

    Every file is whole before the first one moves to its place, the index last. Other files in `out` stay. Without
    `samples` no text of a prompt or an answer is in the site. Raises StoreError when `out` cannot be written or a run
    cannot be read.
    """
    try:
        for folder in _FOLDERS:
            (out / folder).mkdir(parents=True, exist_ok=True)
        # Inside `out`, not beside it: a rename must not cross file systems, and `out` may be a mount of its own.
        draft = Path(tempfile.mkdtemp(dir=out, prefix=".draft-"))
        try:
            names = _write_files(rows, draft, published=published, samples=samples)
            for name in names:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(draft / name, out / name)
            _remove_old_samples(rows, out, keep=set(names))
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"Cannot write the site in {out}: {reason}. Free space or choose another --out.") from error
    return out / "index.html"


def _remove_old_samples(rows: Sequence[LeaderboardRow], out: Path, *, keep: Collection[str]) -> None:
    """A run's data files of an earlier site, which no page reads any more: they hold answers that nobody sees there."""
    for row in rows:
        for file in (out / "runs" / row.slug).glob("*.html"):
            if f"runs/{row.slug}/{file.name}" not in keep:
                file.unlink()


def _write_files(
    rows: Sequence[LeaderboardRow], folder: Path, *, published: Sequence[PublishedRow], samples: bool
) -> list[str]:
    """Names in the order in which they are to move: the pages behind the index before the index."""
    for name in _FOLDERS:
        (folder / name).mkdir()
    site = _Site(rows=rows, folder=folder, published=published, samples=samples)
    names = _in_processes(site) if len(rows) >= processes.MANY_RUNS else _in_turn(site)
    return [*(write_run_list(rows, folder) if samples else []), *names]


@dataclass(frozen=True, kw_only=True)
class _Site:
    """What every part of the site is made from."""

    rows: Sequence[LeaderboardRow]
    folder: Path
    published: Sequence[PublishedRow]
    samples: bool


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """Some runs' pages by their names, and what leaderboard.json says of each."""

    names: Sequence[str]
    told: Sequence[str]


def _in_turn(site: _Site) -> list[str]:
    sure, tasks, runs = standings(site.rows), _write_tasks(site), _write_runs(site, 0, len(site.rows))
    return [*tasks, *runs.names, *(_write_part(site, name, sure, runs.told) for name in _BOARD)]


def _in_processes(site: _Site) -> list[str]:
    """The same, a part a process: each run's pages depend on that run alone."""
    with processes.pool(partial(_begin_worker, site)) as workers:
        try:
            # What takes longest begins first.
            ahead = workers.submit(_worker_standings)
            parts = [workers.submit(_worker_runs, i) for i in range(0, len(site.rows), processes.CHUNK)]
            tasks = workers.submit(_worker_tasks)
            sure = ahead.result()
            board = [workers.submit(_worker_part, name, sure) for name in _BOARD if name != _JSON]
            runs = [part.result() for part in parts]
            # Of the text that there is already: to send it to another process would take as long.
            _write_part(site, _JSON, sure, [line for part in runs for line in part.told])
            names = [*tasks.result(), *(name for part in runs for name in part.names), _JSON]
            return [*names, *(part.result() for part in board)]
        except BaseException:
            # Those at work are waited for: they would write into the draft while it is removed.
            workers.shutdown(wait=True, cancel_futures=True)
            raise


# Set in a worker as it begins: a fork inherits the rows, which would take as long to send as to use.
_site: _Site | None = None


def _begin_worker(site: _Site) -> None:
    global _site
    _site = site


def _mine() -> _Site:
    assert _site is not None
    return _site


def _worker_standings() -> Standings:
    return standings(_mine().rows)


def _worker_tasks() -> list[str]:
    return _write_tasks(_mine())


def _worker_runs(first: int) -> _Runs:
    return _write_runs(_mine(), first, first + processes.CHUNK)


def _worker_part(name: str, sure: Standings) -> str:
    return _write_part(_mine(), name, sure, ())


def _write_runs(site: _Site, first: int, last: int) -> _Runs:
    rows = site.rows[first:last]
    # The draft lies in the site that it is to replace, whose data of unchanged runs it takes over.
    earlier, samples = site.folder.parent, site.samples
    names = [name for row in rows for name in write_run_pages(row, site.folder, samples=samples, previous=earlier)]
    return _Runs(names=names, told=list(map(run_to_json, rows)))


def _write_tasks(site: _Site) -> list[str]:
    pages = task_pages(environment(), site.rows, site.published, judged_tasks(site.rows))
    return [_write(site.folder, f"tasks/{name}", text) for name, text in pages]


_JSON = "leaderboard.json"
# In the order in which they are to move.
_BOARD = ("leaderboard.csv", _JSON, "leaderboard.md", "manifests.html", "index.html")


def _write_part(site: _Site, name: str, sure: Standings, told: Sequence[str]) -> str:
    """One file of the board; `told` is what leaderboard.json says of each run."""
    rows, published = site.rows, site.published
    match name:
        case "leaderboard.csv":
            text = to_csv(rows, standings=sure, published=published)
        case "leaderboard.json":
            text = to_json(rows, standings=sure, published=published, told=told)
        case "leaderboard.md":
            text = to_markdown(rows, standings=sure, published=published, axis_names=AXIS_NAMES)
        case "manifests.html":
            text = manifests_page(environment(), rows)
        case _:
            text = index_page(environment(), rows, sure, published)
    return _write(site.folder, name, text)


def _write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return name

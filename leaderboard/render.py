"""Leaderboard rows -> a static site: tables, one page of the whole, one a task, one a run; computes no score.

Pages hold no time, machine or path: the same rows give the same bytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from bfpo_bench.errors import StoreError
from bfpo_bench.leaderboard.board import index_page, manifests_page
from bfpo_bench.leaderboard.judged import judged_tasks
from bfpo_bench.leaderboard.pages import AXIS_NAMES, environment
from bfpo_bench.leaderboard.published import PublishedRow
from bfpo_bench.leaderboard.rows import LeaderboardRow
from bfpo_bench.leaderboard.standings import Standings, standings
from bfpo_bench.leaderboard.tables import to_csv, to_json, to_markdown
from bfpo_bench.leaderboard.task_page import task_pages
from bfpo_bench.leaderboard.viewer import write_run_list, write_run_pages

_FOLDERS = ("runs", "tasks")
# From so many runs on, starting processes pays; each is given so many runs at a time.
_MANY_RUNS, _CHUNK, _MOST_WORKERS = 50, 25, 8


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
    sure, names = _in_processes(site) if len(rows) >= _MANY_RUNS else _in_turn(site)
    names += write_run_list(rows, folder) if samples else []
    return [*names, *_write_board(site, sure)]


@dataclass(frozen=True, kw_only=True)
class _Site:
    """What every part of the site is made from."""

    rows: Sequence[LeaderboardRow]
    folder: Path
    published: Sequence[PublishedRow]
    samples: bool


def _in_turn(site: _Site) -> tuple[Standings, list[str]]:
    return standings(site.rows), [*_write_tasks(site), *_write_runs(site, 0, len(site.rows))]


def _in_processes(site: _Site) -> tuple[Standings, list[str]]:
    """The same, a part a process: each run's pages depend on that run alone."""
    with ProcessPoolExecutor(
        min(_MOST_WORKERS, os.cpu_count() or 1), get_context("fork"), initializer=_begin_worker, initargs=(site,)
    ) as workers:
        sure = workers.submit(_worker_standings)
        tasks = workers.submit(_worker_tasks)
        runs = [workers.submit(_worker_runs, first) for first in range(0, len(site.rows), _CHUNK)]
        try:
            return sure.result(), [*tasks.result(), *(name for part in runs for name in part.result())]
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise


# Set in a worker as it begins: a fork inherits the rows, which would take as long to send as to use.
_site: _Site | None = None


def _begin_worker(site: _Site) -> None:
    global _site
    _site = site
    # Ctrl-C is the parent's to report, once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _mine() -> _Site:
    assert _site is not None
    return _site


def _worker_standings() -> Standings:
    return standings(_mine().rows)


def _worker_tasks() -> list[str]:
    return _write_tasks(_mine())


def _worker_runs(first: int) -> list[str]:
    return _write_runs(_mine(), first, first + _CHUNK)


def _write_runs(site: _Site, first: int, last: int) -> list[str]:
    rows = site.rows[first:last]
    # The draft lies in the site that it is to replace, whose data of unchanged runs it takes over.
    earlier, samples = site.folder.parent, site.samples
    return [name for row in rows for name in write_run_pages(row, site.folder, samples=samples, previous=earlier)]


def _write_tasks(site: _Site) -> list[str]:
    pages = task_pages(environment(), site.rows, site.published, judged_tasks(site.rows))
    return [_write(site.folder, f"tasks/{name}", text) for name, text in pages]


def _write_board(site: _Site, sure: Standings) -> list[str]:
    rows, published, templates = site.rows, site.published, environment()
    texts = {
        "leaderboard.csv": to_csv(rows, standings=sure, published=published),
        "leaderboard.json": to_json(rows, standings=sure, published=published),
        "leaderboard.md": to_markdown(rows, standings=sure, published=published, axis_names=AXIS_NAMES),
        "manifests.html": manifests_page(templates, rows),
        "index.html": index_page(templates, rows, sure, published),
    }
    return [_write(site.folder, name, text) for name, text in texts.items()]


def _write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return name

"""One run's page, and its samples in files that the page reads on demand; computes no score, knows no index page.

A browser that opens a page from a disk reads no other file by fetch, and what it loads as a script it runs, from
anywhere on that disk. So each data file is a page of its own in a sandboxed frame, which posts its text to the page
that framed it: prompts and answers are never code, and the policy names every script by its hash.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bfpo_bench.leaderboard import pages, run_tables
from bfpo_bench.leaderboard.inert import json_in_html, policy_hash, visible
from bfpo_bench.leaderboard.rows import LeaderboardRow, group_name
from bfpo_bench.leaderboard.samples import encoded_samples
from bfpo_bench.store import DATABASE
from bfpo_bench.types import AXES

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

# A file is read as a whole for one sample of it: small enough for that, and few enough of them to search them all. A
# frame costs a browser some 30 ms of CPU whatever is in it.
FILE_CHARACTERS = 1_000_000
FILE_SAMPLES = 1000
# No run's: slugs have no dot. Nor an underscore in front, which GitHub's pages would leave out.
RUNS = "runs/all.runs/list.html"
_LIST = "list.html"

_POST = 'parent.postMessage(document.getElementById("data").textContent, "*");'
_FRAME = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; script-src {policy_hash(_POST)}">\n'
    '<meta name="robots" content="noindex">\n<title>Data of a run</title>\n</head>\n<body>\n'
    '<script type="application/json" id="data">',
    f"</script>\n<script>{_POST}</script>\n</body>\n</html>\n",
)


def write_run_pages(
    row: LeaderboardRow, folder: Path, *, samples: bool = True, previous: Path | None = None
) -> list[str]:
    """Write runs/<slug>.html below `folder` and, with `samples`, its data below runs/<slug>/; return the names.

    Data that an earlier site in `previous` has of the very same run is linked from there, and not made again.
    Raises StoreError where the run's samples cannot be read, OSError where a file cannot be written.
    """
    names = [f"runs/{row.slug}.html"]
    _write(folder / names[0], [_run_page(row, samples=samples)])
    if samples:
        data, made_from = folder / "runs" / row.slug, _made_from(row)
        data.mkdir()
        earlier = None if previous is None else _linked(previous / "runs" / row.slug, data, made_from)
        names += [f"runs/{row.slug}/{name}" for name in earlier or _write_samples(row, data, made_from)]
    return names


def write_run_list(rows: Sequence[LeaderboardRow], folder: Path) -> list[str]:
    """Write what every run's page offers to compare with: one file for all of them; return its name."""
    groups = list(dict.fromkeys(group_name(row) for row in rows))
    runs = [{"slug": row.slug, "label": visible(row.label), "group": groups.index(group_name(row))} for row in rows]
    (folder / RUNS).parent.mkdir()
    _write(folder / RUNS, _framed([json_in_html({"groups": [visible(name) for name in groups], "runs": runs})]))
    return [RUNS]


# -- the page ----------------------------------------------------------------------------------------------------------


def _run_page(row: LeaderboardRow, *, samples: bool) -> str:
    from markupsafe import Markup

    asked = {task.axis for task in row.tasks.values()} | {task.axis for task in row.missing}
    tasks = sorted(row.tasks.values(), key=pages.task_order)
    return (
        _templates()
        .get_template("run.html.j2")
        .render(
            **_scripts(samples),
            row=row,
            axes=[axis for axis in AXES if row.axes[axis] or axis in asked],
            tasks=tasks,
            measured=Markup(run_tables.measured(row, tasks)),
            categories=lambda task: Markup(run_tables.categories(task)),
            corrections=pages.corrections(tasks),
            corrected=pages.corrected(row),
            samples=samples,
        )
    )


@cache
def _templates() -> jinja2.Environment:
    # Once: to compile the templates anew takes longer than to fill them.
    return pages.environment()


@cache
def _scripts(samples: bool) -> Mapping[str, Any]:
    """What a run's page runs and is styled by, and the policy that allows this, frames of the site and no more."""
    from markupsafe import Markup

    style = Markup((pages.TEMPLATES / "viewer.css").read_text(encoding="utf-8"))
    found = pages.page([pages.TEMPLATES / "viewer.js"] if samples else [])
    scripts: list[Markup] = [found["theme"], *found["scripts"]]
    frames = "; frame-src 'self'" if samples else ""
    policy = (
        f"default-src 'none'; script-src {' '.join(map(policy_hash, scripts))}; "
        f"style-src {policy_hash(str(_templates().globals['style']))} {policy_hash(style)}; img-src data:"
        f"{frames}; base-uri 'none'; form-action 'none'"
    )
    return {**found, "policy": policy, "viewer_style": style}


# -- the samples -------------------------------------------------------------------------------------------------------


def _write_samples(row: LeaderboardRow, folder: Path, made_from: str) -> list[str]:
    """Some hundred samples a file, then the list of them all: in columns, and without a word of a prompt or answer."""
    table = _List(row)
    names = []
    for number, texts in enumerate(_files(map(table.add, encoded_samples(row))), 1):
        names.append(_file_name(number))
        table.files.append(len(texts))
        _write(folder / names[-1], _framed(["[\n", ",\n".join(texts), "\n]"]))
    note = f'<meta name="made-from" content="{made_from} {len(names)}">\n'
    _write(folder / _LIST, _framed([json_in_html(table.columns())], note=note))
    return [*names, _LIST]


def _files(encoded: Iterable[str]) -> Iterator[list[str]]:
    """Records cut into files; one of any length stays whole."""
    texts: list[str] = []
    size = 0
    for text in encoded:
        if texts and (size + len(text) > FILE_CHARACTERS or len(texts) == FILE_SAMPLES):
            yield texts
            texts, size = [], 0
        texts.append(text)
        size += len(text)
    if texts:
        yield texts


class _List:
    """What is known of each sample without reading it, in the run's order."""

    def __init__(self, row: LeaderboardRow) -> None:
        self._row = row
        self._ids: list[str] = []
        self._tasks: dict[str, int] = {}
        self._task: list[int] = []
        self._categories: dict[str, int] = {}
        self._category: list[int] = []
        self._kinds: dict[tuple[tuple[str, ...], bool | None, bool], int] = {}
        self._kind: list[int] = []
        self._indices: list[list[int]] = []
        self.files: list[int] = []

    def add(self, encoded: tuple[Mapping[str, Any], str]) -> str:
        """Take one record into the columns; its JSON is given back."""
        record, text = encoded
        self._ids.append(record["id"])
        last = self._indices[-1] if self._indices else None
        if last is not None and record["index"] == sum(last):
            last[1] += 1
        else:
            self._indices.append([record["index"], 1])
        self._task.append(self._tasks.setdefault(record["task"], len(self._tasks)))
        category = record.get("category")
        self._category.append(-1 if category is None else self._categories.setdefault(category, len(self._categories)))
        kind = (tuple(record["marks"]), record.get("passed"), record["hidden"])
        self._kind.append(self._kinds.setdefault(kind, len(self._kinds)))
        return text

    def columns(self) -> dict[str, Any]:
        """`task`, `category` (-1: none) and `kind` are places in lists, `files` says how many samples are in each.

        `indices` are [the first, how many in a row].
        """
        judges = {visible(name): task for name, task in self._row.tasks.items()}
        return {
            "label": visible(self._row.label),
            "ids": self._ids,
            "indices": self._indices,
            "tasks": [
                {
                    "name": name,
                    "judge": _judge(judges[name].judge, judges[name].judge_version) if name in judges else "",
                }
                for name in self._tasks
            ],
            "task": self._task,
            "categories": list(self._categories),
            "category": self._category,
            "kinds": [{"marks": marks, "passed": passed, "hidden": hidden} for marks, passed, hidden in self._kinds],
            "kind": self._kind,
            "files": self.files,
        }


def _judge(name: str | None, version: str | None) -> str:
    return visible(" ".join(part for part in (name, version) if part))


def _file_name(number: int) -> str:
    return f"{number:04d}.html"


def _framed(parts: Sequence[str], *, note: str = "") -> Iterator[str]:
    yield _FRAME[0].replace("<title>", f"{note}<title>")
    yield from parts
    yield _FRAME[1]


def _write(path: Path, parts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(parts)


# -- an earlier site ---------------------------------------------------------------------------------------------------


def _made_from(row: LeaderboardRow) -> str:
    """A digest of what a run's data files are made from; empty while the run is still written to."""
    database = row.folder / DATABASE
    # Committed, and not in the one file yet.
    if database.with_name(f"{DATABASE}-wal").exists():
        return ""
    scored = [(name, task.axis, task.judge, task.judge_version) for name, task in row.tasks.items()]
    told = repr((_code(), row.label, scored, FILE_CHARACTERS, FILE_SAMPLES))
    try:
        with database.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        # The one who reads the samples says so.
        return ""
    return hashlib.sha256(f"{told}{content}".encode("utf-8", "surrogatepass")).hexdigest()


@cache
def _code() -> str:
    """Another version of this package may make other files of the same run."""
    from bfpo_bench import __version__

    sources = [(pages.TEMPLATES.parent / name).read_bytes() for name in ("viewer.py", "samples.py", "inert.py")]
    return f"{__version__} {hashlib.sha256(b''.join(sources)).hexdigest()}"


def _linked(earlier: Path, folder: Path, made_from: str) -> list[str] | None:
    """The names of an earlier site's files, now in `folder` too; None where they are of something else, or lost.

    Links: they cost nothing, and `folder` is whole without the earlier site.
    """
    try:
        with (earlier / _LIST).open(encoding="utf-8") as file:
            found = re.search(r'<meta name="made-from" content="([0-9a-f]{64}) (\d+)">', file.read(1000))
        if found is None or found[1] != made_from:
            return None
        names = [*map(_file_name, range(1, int(found[2]) + 1)), _LIST]
        for name in names:
            os.link(earlier / name, folder / name)
    except (OSError, ValueError):
        # What was linked must go: to write to it would write to the earlier site.
        for link in folder.iterdir():
            link.unlink()
        return None
    return names

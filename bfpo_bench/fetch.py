"""Fills a mirror: each data set from the hub at its pinned revision; knows the hub's ways, nothing of a run."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bfpo_bench.errors import TaskError
from bfpo_bench.mirror import (
    LOCAL_CARD,
    README,
    RECORD,
    FileFacts,
    SetRecord,
    Unreadable,
    by_repository,
    card_of_part,
    facts_of,
    files_of,
    find_problems,
    is_data,
    on_hub,
    pinned_revision,
    read_record,
    readme_of,
    sha256_of,
    task_files,
    write_record,
)
from bfpo_bench.types import NLTK_DATA, TaskSpec

_ASK_S = 10.0


class _NotHad(Exception):
    """One data set cannot be had; the others may."""


class _NoHub(Exception):
    """The hub itself cannot be asked."""


@dataclass(frozen=True, kw_only=True)
class _Repository:
    """One hub repository, the tasks that want its data, and where they want it."""

    api: Any
    name: str
    specs: Sequence[TaskSpec]
    mirror: Path

    @property
    def folder(self) -> Path:
        return self.mirror / self.name

    @property
    def terms(self) -> str | None:
        """Where a task says that the hub asks to accept terms."""
        return next((spec.gated for spec in self.specs if spec.gated), None)


def fetch(specs: Sequence[TaskSpec], mirror: Path, *, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Download what the tasks need and the mirror lacks; one line for each thing that could not be had.

    Can be killed at any instant and run again: finished files stay, and a set's record is written before its first
    file, so that a half-fetched one is refused and not used.
    """
    from filelock import FileLock, Timeout

    repos = by_repository(specs)
    for theirs in repos.values():
        pinned_revision(theirs)  # refused before anything is downloaded
    try:
        mirror.mkdir(parents=True, exist_ok=True)
        with FileLock(mirror / f".{RECORD}.lock", timeout=0):
            return [*_without_hub(specs), *_fetch_all(repos, mirror, say), *_fetch_nltk(specs, mirror, say)]
    except Timeout:
        raise TaskError(f"Another `data fetch` is writing to {mirror}. Wait for it, or give another --to.") from None
    except OSError as error:
        raise TaskError(f"Cannot write to {mirror}: {error.strerror or error}. Give another --to.") from error


def _without_hub(specs: Sequence[TaskSpec]) -> list[str]:
    return [
        f"{spec.name}: reads {spec.source}, which is no hub repository"
        for spec in specs
        if spec.dataset_path is not None and not on_hub(spec)
    ]


def _fetch_all(repos: Mapping[str, Sequence[TaskSpec]], mirror: Path, say: Callable[[str], None]) -> list[str]:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():
        disable_progress_bars()
    # Given here, not left to huggingface_hub, which reads the variable when it is imported.
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    problems: list[str] = []
    for number, (name, specs) in enumerate(repos.items(), start=1):
        repo = _Repository(api=api, name=name, specs=specs, mirror=mirror)
        try:
            lines = _fetch_one(repo, lambda line, n=number: say(f"[{n}/{len(repos)}] {line}"))  # type: ignore[misc]
        except _NotHad as reason:
            _leave_nothing(repo)
            lines = [str(reason)]
        except _NoHub as reason:
            rest = f"; {len(repos) - number} more sets were not asked for" if number < len(repos) else ""
            return [*problems, f"{name}: {reason}{rest}"]
        problems += [line if line.startswith(f"{name}/") else f"{name}: {line}" for line in lines]
    return problems


def _fetch_one(repo: _Repository, say: Callable[[str], None]) -> list[str]:
    """Bring one repository's files into the mirror; lines on what is not as the tasks want it."""
    revision = pinned_revision(repo.specs)
    commit = str(
        _ask(repo, lambda: repo.api.dataset_info(repo.name, revision=revision, timeout=_ASK_S), first=True).sha
    )
    tree = _tree(repo, commit)
    _drop_other_revision(repo, commit, say)
    _download(repo, commit, {name: tree[name] for name in (README,) if name in tree})
    readme = readme_of(repo.mirror, repo.name)
    wanted = {spec.name: task_files(spec, tree, readme) for spec in repo.specs}
    problems = [_no_data(spec, commit, list(tree)) for spec in repo.specs if not wanted[spec.name]]
    files = {
        name: tree[name] for name in sorted({README} & set(tree) | {n for names in wanted.values() for n in names})
    }
    if files.keys() <= {README}:
        _leave_nothing(repo)
        return problems
    _record(repo, commit, {name: _promised(entry) for name, entry in files.items()})
    absent = {name: entry for name, entry in files.items() if not _is_same(repo.folder / name, entry)}
    size = f"{sum(entry.size for entry in absent.values()) / 1e6:.1f} MB"
    say(
        f"{repo.name}@{commit[:12]}: {len(files)} files, "
        + (f"{len(absent)} to fetch, {size}" if absent else "all here")
    )
    _download(repo, commit, absent)
    problems += _inspect(repo, commit, files)
    _name_only_what_is_here(repo, [path for path in tree if is_data(path)])
    # What the downloader keeps for itself, and what killed downloads left there.
    shutil.rmtree(repo.folder / ".cache", ignore_errors=True)
    return problems


def _inspect(repo: _Repository, commit: str, names: Iterable[str]) -> list[str]:
    """Record what arrived; lines on what cannot be read, or is not what the tasks read."""
    facts: dict[str, FileFacts] = {}
    unreadable = []
    for name in names:
        try:
            facts[name] = facts_of(repo.folder / name)
        except Unreadable as error:
            unreadable.append(f"{repo.name}/{name}: is what the hub has, but cannot be read ({error})")
    _record(repo, commit, facts)
    if unreadable:
        return unreadable
    record = {repo.name: read_record(repo.mirror)[repo.name]}
    return list(find_problems(repo.mirror, repo.specs, record=record, everything=False))


def _no_data(spec: TaskSpec, commit: str, paths: Sequence[str]) -> str:
    if spec.files:
        return f"at {commit[:12]} no file matches {', '.join(spec.files)}, which task {spec.name!r} names"
    script = f"{str(spec.dataset_path).rpartition('/')[2]}.py"
    why = f" (it is a loading script, {script})" if script in paths else ""
    of = f" of configuration {spec.dataset_name!r}" if spec.dataset_name else ""
    return (
        f"at {commit[:12]} no parquet, jsonl or csv data{of}{why} for task {spec.name!r}. The hub's own conversion may "
        "be at revision refs/convert/parquet: pin its commit in the task, or name files in metadata.bfpo.files"
    )


# -- nltk's data -------------------------------------------------------------------------------------------------------


def _fetch_nltk(specs: Sequence[TaskSpec], mirror: Path, say: Callable[[str], None]) -> list[str]:
    """What tasks' checks need of nltk's own data, under `nltk_data/` as nltk looks for it; its files are recorded."""
    from nltk.downloader import Downloader

    problems = []
    for resource in sorted({resource for spec in specs for resource in spec.nltk}):
        kind, _, name = resource.partition("/")
        folder, archive = mirror / NLTK_DATA / resource, mirror / NLTK_DATA / kind / f"{name}.zip"
        if archive.exists():  # a fetch was killed while nltk unpacked it: half a folder must not be recorded as whole
            shutil.rmtree(folder, ignore_errors=True)
            archive.unlink()
        if not folder.is_dir():
            say(f"nltk's {name} (for lm-eval's IFEval checks)")
            # Its own words about a failure are several lines.
            quietly: dict[str, Any] = {"quiet": True, "print_error_to": io.StringIO()}
            if not Downloader().download(name, download_dir=str(mirror / NLTK_DATA), **quietly):
                problems.append(f"nltk's {name}: nltk's server cannot be reached. Run the same command again")
                continue
        # nltk keeps the archive beside what it unpacked.
        archive.unlink(missing_ok=True)
        record = read_record(mirror)
        repo = f"{NLTK_DATA}/{kind}"
        before = record.get(repo, SetRecord())
        facts = {
            path.relative_to(mirror / repo).as_posix(): facts_of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        write_record(mirror, {**record, repo: SetRecord(files={**before.files, **facts})})
    return problems


# -- the hub -----------------------------------------------------------------------------------------------------------


def _tree(repo: _Repository, commit: str) -> dict[str, Any]:
    """Path -> the hub's entry of the file: its size, and the hash of its content."""
    listing = _ask(
        repo,
        lambda: list(repo.api.list_repo_tree(repo.name, recursive=True, revision=commit, repo_type="dataset")),
    )
    return {entry.path: entry for entry in listing if hasattr(entry, "blob_id")}


def _download(repo: _Repository, commit: str, files: Mapping[str, Any]) -> None:
    """Bring in those of the files that are not there yet, and look whether they are what the hub lists."""
    absent = [name for name, entry in files.items() if not _is_same(repo.folder / name, entry)]
    for name in absent:
        (repo.folder / name).unlink(missing_ok=True)  # a damaged one, which the downloader would keep
    if absent:
        _ask(
            repo,
            lambda: repo.api.snapshot_download(
                repo.name,
                repo_type="dataset",
                revision=commit,
                local_dir=repo.folder,
                allow_patterns=[glob.escape(name) for name in absent],
            ),
        )
    for name in absent:
        if not _is_same(repo.folder / name, files[name]):
            raise _NotHad(f"{name} did not arrive as the hub lists it. Run the same command again")


def _is_same(path: Path, entry: Any) -> bool:
    """By content: the sha256 of a large file, git's blob id of a small one."""
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    if entry.lfs is not None:
        return sha256_of(path) == str(entry.lfs.sha256)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == str(entry.blob_id)


def _promised(entry: Any) -> FileFacts:
    return FileFacts(bytes=entry.size, sha256=None if entry.lfs is None else str(entry.lfs.sha256))


def _ask(repo: _Repository, call: Callable[[], Any], *, first: bool = False) -> Any:
    """What the call gives; what the hub refuses becomes one line that names the remedy."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return call()
    except OfflineModeIsEnabled:
        raise TaskError("HF_HUB_OFFLINE is set, so nothing can be fetched. Unset it.") from None
    except RevisionNotFoundError:
        raise _NotHad(f"the hub has no revision {pinned_revision(repo.specs)!r} of it") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if isinstance(error, GatedRepoError) or (repo.terms is not None and status in (401, 403)):
            terms = repo.terms or f"https://huggingface.co/datasets/{repo.name}"
            raise _NotHad(
                f"is gated. Accept its terms at {terms}, then set HF_TOKEN to a token of that account"
            ) from None
        if isinstance(error, RepositoryNotFoundError):
            raise _NotHad("the hub has no such data set, or it is private (HF_TOKEN)") from None
        raise _NotHad(f"the hub answered {status}. Run the same command again later") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # this machine's disk
        # Whatever the HTTP library of this version of huggingface_hub raises without a network.
        reason = f"the hub cannot be reached ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        raise (_NoHub(reason) if first else _NotHad(f"{reason}. Run the same command again")) from error


# -- the folder --------------------------------------------------------------------------------------------------------


def _drop_other_revision(repo: _Repository, commit: str, say: Callable[[str], None]) -> None:
    """Files of the revision before would be read together with the new ones."""
    record = read_record(repo.mirror)
    known = record.pop(repo.name, SetRecord())
    if known.revision in (commit, None):
        return
    say(f"{repo.name}: goes from {str(known.revision)[:12]} to {commit[:12]}; {len(known.files)} old files are removed")
    # The record goes last: what it names is still known to be old if this is killed half-way.
    for name in known.files:
        (repo.folder / name).unlink(missing_ok=True)
    write_record(repo.mirror, record)


def _record(repo: _Repository, commit: str, files: Mapping[str, FileFacts]) -> None:
    record = read_record(repo.mirror)
    before = record.get(repo.name, SetRecord()).files
    write_record(repo.mirror, {**record, repo.name: SetRecord(revision=commit, files={**before, **files})})


def _leave_nothing(repo: _Repository) -> None:
    """A set without any data is absent, not damaged: a run goes on without it where --skip-missing says so."""
    if set(files_of(repo.mirror, repo.name)) - {README}:
        return
    record = read_record(repo.mirror)
    if record.pop(repo.name, None) is not None:
        write_record(repo.mirror, record)
    shutil.rmtree(repo.folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # its owner's folder, which other sets may share
        repo.folder.parent.rmdir()


def _name_only_what_is_here(repo: _Repository, all_data: Sequence[str]) -> None:
    card = repo.folder / LOCAL_CARD
    here = files_of(repo.mirror, repo.name)
    content = card_of_part(readme_of(repo.mirror, repo.name), here)
    if content and not set(all_data) <= set(here):
        card.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    else:
        card.unlink(missing_ok=True)

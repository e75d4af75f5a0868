"""Published figures from a YAML file, to be shown beside measured runs and never ranked with them; reads no run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bfpo_bench.errors import ConfigError, did_you_mean
from bfpo_bench.types import AXES, Axis

_KEYS = ("model", "suite", "axes", "tasks", "citation", "url", "note")
_FIGURE = ("value", "low", "high", "n")
_URL = re.compile(r"https://[^\s<>\"'`|\\]+")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A published rate from 0 to 1; interval and size only where the source gives them."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One model's figures from one source. `url` is https, `note` says what makes them other than ours."""

    model: str
    citation: str
    url: str
    suite: str | None = None
    note: str = ""
    axes: Mapping[Axis, Figure] = field(default_factory=dict)
    tasks: Mapping[str, Figure] = field(default_factory=dict)


def read_published(files: Sequence[Path]) -> list[PublishedRow]:
    """The rows of the files, in their order. Raises ConfigError naming the file, the row and what is wrong with it."""
    return [row for file in files for row in _read(file)]


def _read(file: Path) -> list[PublishedRow]:
    import yaml

    try:
        body = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"No file {file} for --published. Its form is in docs/leaderboard.md.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"Cannot read --published {file}: {' '.join(str(error).split())}.") from error
    if not isinstance(body, Mapping) or set(body) != {"published"} or not isinstance(body["published"], list):
        raise ConfigError(f"--published {file} is not `published:` with a list of rows. See docs/leaderboard.md.")
    rows = []
    for number, row in enumerate(body["published"], 1):
        try:
            rows.append(_row(row))
        except ValueError as error:
            raise ConfigError(
                f"--published {file}, row {number}: {error} Its form is in docs/leaderboard.md."
            ) from error
    return rows


def _row(body: Any) -> PublishedRow:
    if not isinstance(body, Mapping):
        raise ValueError("it is not a mapping.")
    _known(body, _KEYS)
    axes = {axis: _figure(figure, axis) for axis, figure in _mapping(body, "axes").items()}
    if strange := [axis for axis in axes if axis not in AXES]:
        raise ValueError(did_you_mean("axis", str(strange[0]), AXES))
    tasks = {str(name): _figure(figure, str(name)) for name, figure in _mapping(body, "tasks").items()}
    if not axes and not tasks:
        raise ValueError("it has neither axes nor tasks.")
    url = _text(body, "url")
    if _URL.fullmatch(url) is None:
        raise ValueError(f"url {url!r} is not an https address.")
    return PublishedRow(
        model=_text(body, "model"),
        citation=_text(body, "citation"),
        url=url,
        suite=None if body.get("suite") is None else _text(body, "suite"),
        note="" if body.get("note") is None else _text(body, "note"),
        axes=axes,
        tasks=tasks,
    )


def _known(body: Mapping[Any, Any], keys: Sequence[str]) -> None:
    for key in body:
        if key not in keys:
            raise ValueError(did_you_mean("key", str(key), keys))


def _mapping(body: Mapping[str, Any], name: str) -> Mapping[Any, Any]:
    found = body.get(name) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"{name} is not a mapping of names to figures.")
    return found


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is missing or no text.")
    return " ".join(value.split())


def _figure(body: Any, name: str) -> Figure:
    body = body if isinstance(body, Mapping) else {"value": body}
    _known(body, _FIGURE)
    if "value" not in body:
        raise ValueError(f"{name} has no value.")
    value, low, high = (_rate(body.get(part), name) for part in ("value", "low", "high"))
    if value is None or (low is None) != (high is None) or (low is not None and not low <= value <= (high or 0)):
        raise ValueError(f"{name} needs a value from 0 to 1, and either no interval or low <= value <= high.")
    n = body.get("n")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ValueError(f"{name}: n is {n!r}, not a count.")
    return Figure(value=value, low=low, high=high, n=n)


def _rate(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}, not a rate from 0 to 1 (a percentage is divided by 100).")
    return float(value)

"""A run's manifest as flat lines that can be read and compared: settings in, texts out; knows no page.

What belongs to a machine and not to the measurement (paths, host, command) is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bfpo_bench.leaderboard.inert import without_paths

# Of the machine: what may explain another number.
_ENVIRONMENT = ("python", "git")


def settings(manifest: Mapping[str, Any]) -> dict[str, str]:
    """`{"model.dtype": "bfloat16", "tasks.bfpo_mini_harmful": "version 1.0, sha256:...", ...}`, by name."""
    identity = manifest["identity"]
    found = dict(_leaves({name: value for name, value in identity.items() if name != "tasks"}))
    found.pop("model.path", None)
    for name, task in identity["tasks"].items():
        # The fingerprint is over its YAML, its code and its data's revision: two equal ones are one task.
        found[f"tasks.{name}"] = ", ".join(
            [f"version {task['version']}", *([str(task["fingerprint"])] if "fingerprint" in task else [])]
        )
    for part in ("engine", "judges", "data", "trained_from", "missing"):
        found |= _leaves(manifest.get(part) or {}, f"{part}.")
    environment = manifest.get("environment") or {}
    found |= _leaves({name: environment[name] for name in _ENVIRONMENT if environment.get(name)}, "environment.")
    return {name: without_paths(text) for name, text in sorted(found.items())}


def _leaves(body: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in body.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def packed(runs: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Many runs' settings, each text once: `names`, `texts`, and a run a list of indices into `texts` (-1: not set)."""
    names = sorted({name for run in runs for name in run})
    texts: dict[str, int] = {}
    rows = [[texts.setdefault(run[name], len(texts)) if name in run else -1 for name in names] for run in runs]
    return {"names": names, "texts": list(texts), "runs": rows}

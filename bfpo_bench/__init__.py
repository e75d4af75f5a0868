"""Harmlessness and helpfulness of a language model in one report, with uncertainty; imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bfpo_bench.frames import Runs

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def load(runs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Runs:
    """Run folders as pandas frames: `.samples`, `.verdicts`, `.scores`, and `.manifest`; see docs/api.md.

    `runs` is one path or several, each a run folder or a folder that holds some.
    """
    from bfpo_bench import frames

    return frames.load(runs)

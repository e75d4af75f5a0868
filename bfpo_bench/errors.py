"""Every error a user can cause: one line that names the thing, the value and the remedy; standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Base of all expected errors; the command line prints it as one line and exits with 2."""


class ConfigError(BenchError):
    """A flag, a configuration file or an environment variable is wrong."""


class TaskError(BenchError):
    """A task or a suite is unknown, malformed, or lacks its data."""


class JudgeError(BenchError):
    """A judge is unknown, misconfigured, or broken as a whole (not: one odd verdict)."""


class StoreError(BenchError):
    """The run folder cannot be created, read, written, locked or resumed."""


class EngineError(BenchError):
    """The model under test cannot be found, loaded or run."""


class EngineDied(EngineError):
    """The process of an engine or judge ended, or failed on its way: one started anew may go on."""


class TrainingError(BenchError):
    """Training cannot begin, or stopped on its own: the weights before it are kept."""


def did_you_mean(kind: str, value: str, known: Iterable[str]) -> str:
    """`Unknown task 'advbnch'. Did you mean: advbench?`, or the known names where none is near."""
    names = sorted(known)
    if near := nearest(value, names):
        return f"Unknown {kind} {value!r}. Did you mean: {', '.join(near)}?"
    return f"Unknown {kind} {value!r}. Known: {', '.join(names) or 'none'}."


def nearest(value: str, known: Iterable[str]) -> list[str]:
    """At most three names: those that the value begins, those spelt much like it, those whose first word it holds.

    The first word ends at a hyphen: `weighted_alpaca_eval_gpt4_turbo` holds that of `alpaca_eval-paper`.
    """
    names, sought = sorted(known), value.lower()
    begun = [name for name in names if len(sought) > 2 and name.lower().startswith(sought)]
    held = [name for name in names if len(word := name.partition("-")[0].lower()) > 5 and word in sought]
    close = difflib.get_close_matches(value, names, n=3, cutoff=0.6)
    return list(dict.fromkeys([*begun, *close, *held]))[:3]

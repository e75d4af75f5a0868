"""Processes that share the work on many runs, each begun as a copy of this one; knows nothing of runs or pages."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

# From so many runs on, starting processes pays; each is given so many runs at a time.
MANY_RUNS, CHUNK, _MOST_WORKERS = 50, 25, 8
# New objects before Python looks for cycles among them: rows are made by the hundred thousand, and have none.
_OBJECTS = 100_000


def pool(begin: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """At most one a processor; each calls `begin` first. What it closes over is not sent, but there."""
    return ProcessPoolExecutor(
        min(_MOST_WORKERS, os.cpu_count() or 1), get_context("fork"), initializer=_begin, initargs=(begin,)
    )


def _begin(begin: Callable[[], None] | None) -> None:
    # Ctrl-C is the parent's to report, once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # To look for cycles in what the parent made would copy its pages one by one.
    gc.freeze()
    gc.set_threshold(_OBJECTS)
    if begin is not None:
        begin()


@contextmanager
def uncollected() -> Iterator[None]:
    """Without looking for cycles: while many objects come that are all kept, it would look at all of them again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()

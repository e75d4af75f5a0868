"""Which rows each step sees: a function of the seed, the epoch and the place in it, whatever was run before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from bfpo_bench.trainers.layout import TokenRow


class BufferedOrder(Dataset[tuple[TokenRow, ...]]):
    """Buffered training (BFPO paper, section 3.4): beside every row of the first set, one row of the buffer.

    The first set is shuffled anew each epoch. The buffer is one endless stream of shuffled passes that goes on across
    epochs: a larger buffer is gone through before any of its rows comes again, a smaller one is repeated. Both follow
    from (seed, epoch, place) alone, so that a resumed run, and each of several processes, sees the rows that it
    would have seen.
    """

    def __init__(self, rows: Sequence[TokenRow], *, buffer: Sequence[TokenRow] = (), seed: int) -> None:
        self.rows, self.buffer, self.seed = rows, buffer, seed
        self._passes: dict[tuple[str, int], list[int]] = {}
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._passes = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[TokenRow, ...]:
        row = self.rows[self._pass("rows", self.epoch, len(self.rows))[place]]
        if not self.buffer:
            return (row,)
        turn, index = divmod(self.epoch * len(self.rows) + place, len(self.buffer))
        return row, self.buffer[self._pass("buffer", turn, len(self.buffer))[index]]

    def _pass(self, which: str, turn: int, size: int) -> list[int]:
        if (which, turn) not in self._passes:
            generator = torch.Generator()
            # Two streams of one seed: 2n and 2n + 1 are never equal, whatever the passes are.
            generator.manual_seed(((self.seed * 2 + (which == "buffer")) << 24) + turn)
            self._passes[which, turn] = torch.randperm(size, generator=generator).tolist()
        return self._passes[which, turn]


class FixedOrder(Dataset[tuple[TokenRow, ...]]):
    """Every row once, in the order given: for evaluation. Filled up to a multiple of `whole` with rows not counted.

    Processes that share an evaluation take batches in turn, and a wrapper of the model may wait for all of them.
    """

    def __init__(self, rows: Sequence[TokenRow], *, whole: int = 1) -> None:
        self.rows = [*rows, *[replace(rows[0], counted=False)] * (-len(rows) % whole)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[TokenRow, ...]:
        return (self.rows[place],)

"""Which samples are asked together, who has them, and what a worker's death means for them; knows no engine, no Ray."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

# One batch of the hf engine at its largest, and few enough that the last chunks end at about the same time.
LARGEST_CHUNK = 64
SMALLEST_CHUNK = 8
# A run is cut into no fewer chunks than this while they are larger than the smallest.
_FEWEST_CHUNKS = 32
# A sample that was being asked at so many deaths of workers is not asked again.
DEATHS_ALLOWED = 3
# New tokens take about five times as long as tokens that are only read (the stated model of cost.py).
_NEW_TOKEN = 5
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the plan must know of a sample; `position` is its place in the run, `group` all but its length that decides
    its batch: task, choices or not, generation settings. `new_tokens` is the most that may be generated."""

    position: int
    wave: int
    group: tuple[str, ...]
    characters: int
    new_tokens: int
    answered: bool


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The positions of samples that are asked together, longest first, and what they are expected to cost together."""

    positions: array[int]
    cost: int


def chunk_size(n: int) -> int:
    """Samples a chunk in a run of n.

    Not a matter of how many workers there are: padding is part of a batch's arithmetic, and a resume with more workers
    must meet the same batches.
    """
    return min(LARGEST_CHUNK, max(SMALLEST_CHUNK, n // _FEWEST_CHUNKS))


def plan_chunks(rows: Iterable[Row]) -> list[list[Planned]]:
    """A list a wave (turn of conversations) of the chunks that still lack an answer, the most expensive first.

    A pure function of the run's samples but for what is left out: chunks that are answered whole. A chunk holds like
    samples of one task, so that they share a prefix cache and pad little. Memory: 8 bytes a sample.
    """
    groups: dict[tuple[int, tuple[str, ...]], _Group] = {}
    n = 0
    for row in rows:
        n += 1
        group = groups.setdefault((row.wave, row.group), _Group(new_tokens=row.new_tokens))
        group.keys.append((_LONGEST - min(row.characters, _LONGEST)) << _BITS | row.position)
        if not row.answered:
            group.waiting.add_one(row.position)
    size = chunk_size(n)
    planned: dict[int, list[Planned]] = {}
    for (wave, _), group in groups.items():
        planned.setdefault(wave, []).extend(group.cut(size))
    return [
        sorted(planned[wave], key=lambda chunk: (-chunk.cost / len(chunk.positions), chunk.positions[0]))
        for wave in sorted(planned)
        if planned[wave]
    ]


_BITS = 32
_LONGEST = 2**31 - 1


@dataclass(kw_only=True)
class _Positions:
    """A set of positions as bits: a million samples are 125 kB."""

    bits: bytearray = field(default_factory=bytearray)

    def add_one(self, position: int) -> None:
        byte = position >> 3
        if byte >= len(self.bits):
            self.bits.extend(bytes(byte + 1 - len(self.bits)))
        self.bits[byte] |= 1 << (position & 7)

    def has(self, position: int) -> bool:
        byte = position >> 3
        return byte < len(self.bits) and bool(self.bits[byte] >> (position & 7) & 1)


@dataclass(kw_only=True)
class _Group:
    """Like samples: their lengths and positions in one number each, which sorts as the pair would."""

    new_tokens: int
    keys: array[int] = field(default_factory=lambda: array("q"))
    waiting: _Positions = field(default_factory=_Positions)

    def cut(self, size: int) -> Iterator[Planned]:
        ordered = sorted(self.keys)
        for start in range(0, len(ordered), size):
            keys = ordered[start : start + size]
            positions = array("q", (key & (1 << _BITS) - 1 for key in keys))
            if any(self.waiting.has(position) for position in positions):
                read = sum(_LONGEST - (key >> _BITS) for key in keys) // _CHARACTERS_A_TOKEN
                yield Planned(positions=positions, cost=read + _NEW_TOKEN * self.new_tokens * len(keys))


@dataclass(kw_only=True, eq=False)
class Chunk(Generic[T]):
    """What is asked together, by sample id; `awaited` are those without an answer yet."""

    items: Mapping[str, T]
    awaited: set[str]
    deaths: int = 0


@dataclass(frozen=True, kw_only=True)
class SetAside(Generic[T]):
    """What is not asked again: `deaths` workers died while they had it, the last one with nothing else."""

    id: str
    item: T
    deaths: int


class ChunkQueue(Generic[T]):
    """Hands chunks to workers and takes back those of the dead.

    `chunks` is read only as far as workers have room, so that a run of any size needs little memory; each is its items
    by id, with the ids that are awaited. `room`: samples that a worker may have at a time; one chunk it always may.
    `overlaps`: whether a worker asks all its chunks at once, as vLLM does, or one after another.

    When a worker dies, any of the samples that it was asking may be to blame. Its chunks are asked again as they were,
    so that a death by accident changes no batch and no answer, each with a worker to itself. One that a second worker
    dies of is asked sample by sample, and the sample that a third one dies of is set aside: three deaths in all,
    whatever the chunk's size.
    """

    def __init__(
        self, chunks: Iterator[tuple[Mapping[str, T], set[str]]], *, room: int, overlaps: bool = False
    ) -> None:
        self._chunks = chunks
        self._room = room
        self._overlaps = overlaps
        self._again: deque[Chunk[T]] = deque()
        self._suspects: deque[Chunk[T]] = deque()
        self._held: dict[str, list[Chunk[T]]] = {}
        self._exhausted = False

    @property
    def finished(self) -> bool:
        """Whether nothing is left to hand out and nobody has anything."""
        if self._again or self._suspects or any(self._held.values()):
            return False
        fresh = self._fresh()
        if fresh is not None:
            self._again.append(fresh)
        return fresh is None

    def take(self, worker: str) -> Chunk[T] | None:
        """The next chunk for this worker; None where it has no room or nothing waits."""
        held = self._held.setdefault(worker, [])
        if any(chunk.deaths for chunk in held):
            return None
        if held and sum(len(chunk.awaited) for chunk in held) >= self._room:
            return None
        chunk = self._again.popleft() if self._again else self._fresh()
        if chunk is None and not held and self._suspects:
            chunk = self._suspects.popleft()
        if chunk is not None:
            held.append(chunk)
        return chunk

    def answered(self, worker: str, ids: Iterable[str]) -> list[str]:
        """Note what a worker answered; those of the ids that were awaited of it, each once."""
        held, new = self._held.get(worker, []), []
        for id_ in ids:
            for chunk in held:
                if id_ in chunk.awaited:
                    chunk.awaited.discard(id_)
                    new.append(id_)
                    break
        self._held[worker] = [chunk for chunk in held if chunk.awaited]
        return new

    def holds(self, worker: str) -> int:
        """Samples that this worker has not answered yet."""
        return sum(len(chunk.awaited) for chunk in self._held.get(worker, []))

    def suspects(self, worker: str) -> bool:
        """Whether what this worker has is asked to find a culprit: a worker died of it before, or it is one sample."""
        held = self._held.get(worker, [])
        return any(chunk.deaths or len(chunk.items) == 1 for chunk in held)

    def lost(self, worker: str, *, blame: bool = True) -> list[SetAside[T]]:
        """Take back what a worker had when it died; what is set aside for it.

        `blame`: False where the samples cannot be the reason (its node went away): all goes to others as it was.
        """
        held = self._held.pop(worker, [])
        blamed = held if self._overlaps else held[:1]
        for chunk in reversed(held):
            if not blame or chunk not in blamed:
                (self._suspects if chunk.deaths else self._again).appendleft(chunk)
        return [aside for chunk in blamed if blame for aside in self._blame(chunk)]

    def _blame(self, chunk: Chunk[T]) -> Iterator[SetAside[T]]:
        chunk.deaths += 1
        # In the order of the items: a set's order is another in each process.
        left = [id_ for id_ in chunk.items if id_ in chunk.awaited]
        if chunk.deaths < DEATHS_ALLOWED - 1:
            self._suspects.append(chunk)
        elif len(left) == 1 and chunk.deaths >= DEATHS_ALLOWED:
            yield SetAside(id=left[0], item=chunk.items[left[0]], deaths=chunk.deaths)
        else:
            for id_ in left:
                self._suspects.append(Chunk(items={id_: chunk.items[id_]}, awaited={id_}, deaths=chunk.deaths))

    def _fresh(self) -> Chunk[T] | None:
        if self._exhausted:
            return None
        for items, awaited in self._chunks:
            if awaited:
                return Chunk(items=items, awaited=awaited)
        self._exhausted = True
        return None

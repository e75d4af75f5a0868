"""A run's samples answered and judged on a cluster's workers, chunk by chunk; the driver alone writes to its store."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from bfpo_bench.chunks import SMALLEST_CHUNK, Planned, Row, SetAside, chunk_size, plan_chunks
from bfpo_bench.cluster import Cluster, Hosting, Placement, Pool, describe_placements, installed_versions
from bfpo_bench.harness.engine import open_engine, parallel_size
from bfpo_bench.judges.classifier import ClassifierJudge, Read
from bfpo_bench.judges.prompting import Passage
from bfpo_bench.judges.reader import ReaderSpec, Reading, Unread, open_reader
from bfpo_bench.judging import Ask, ask_here
from bfpo_bench.store import RunStore, differing_fields, to_json, write_atomically
from bfpo_bench.turns import as_asked
from bfpo_bench.types import Judge, ModelSpec, Output, Sample

WORKERS = "workers.json"
# Samples that a worker has at a time: about two of vLLM's largest batches, so that no step waits for the driver; of an
# engine that asks chunk after chunk, one that it asks and one that waits.
_ROOM = {"vllm": 512, "hf": 65}
# Of what judges read, at a time; fewer where that would leave workers without any.
_PASSAGES = 256
_PARTS = 32


@dataclass(frozen=True, kw_only=True)
class SharedEngine:
    """A base model and the folders of the LoRA adapters that answer on it."""

    base: ModelSpec
    adapters: tuple[str, ...]


def open_shared(spec: SharedEngine) -> Any:
    """vLLM with the base's weights once and all the adapters, each request naming its own."""
    from bfpo_bench.harness.vllm import VLLMEngine

    return VLLMEngine(spec.base, adapters=spec.adapters)


@contextmanager
def engine_pool(
    cluster: Cluster,
    model: ModelSpec,
    *,
    n_workers: int,
    gpus: float | None,
    folders: Sequence[Path],
    packages: Collection[str],
    n_samples: int,
    accept: Callable[[Mapping[str, Any]], str | None],
    say: Callable[[str], None],
    adapters: Sequence[str] = (),
) -> Iterator[Pool[Sample, Output]]:
    """Workers that hold the model, or the base of these adapters; where they run is in each folder's workers.json.

    `n_samples`: those of the largest run. The first worker that is ready must leave the others their part.
    """
    shared = SharedEngine(base=model, adapters=tuple(adapters))
    hosting = Hosting(
        opener=open_shared if adapters else open_engine,
        spec=shared if adapters else model,
        name=f"{model.name!r} with engine {model.engine}",
        log=(folders[0] / "engine.log").resolve(),
        versions=installed_versions(packages),
    )

    def placed(placements: Sequence[Placement]) -> None:
        for folder in folders:
            if placements:
                write_atomically(folder / WORKERS, to_json(describe_placements(placements)))
            else:
                (folder / WORKERS).unlink(missing_ok=True)

    with Pool[Sample, Output](
        cluster,
        hosting,
        n_workers=n_workers,
        need=cluster.need(n_workers, gpus=parallel_size(model) if gpus is None else gpus, asked=gpus is not None),
        request=lambda items, answered: {"samples": list(items.values()), "answered": set(answered)},
        id_of=lambda output: output.sample_id,
        set_aside=_failed,
        accept=accept,
        room=min(_ROOM[model.engine], max(chunk_size(n_samples) + 1, n_samples // n_workers)),
        say=say,
        placed=placed,
    ) as pool:
        yield pool


def alike(first: dict[str, Any], info: Mapping[str, Any]) -> str | None:
    """Why an engine may not join those whose first one this is, which is filled by the first that comes.

    On another data type or window, or on a CPU beside GPUs, answers would be another arithmetic's.
    """
    lines = other_arithmetic(first, info) if first else []
    first.update({} if first else info)
    return f"its engine is another ({'; '.join(lines)})" if lines else None


def other_arithmetic(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what two engines' infos differ that answers depend on."""
    keys = ("dtype", "chat_template", "stop_ids", "max_length")
    before, now = ({"on_cpu": info.get("device") == "cpu", **{k: info.get(k) for k in keys}} for info in (old, new))
    return differing_fields(before, now)


def _failed(aside: SetAside[Sample], why: str) -> Output:
    return Output(sample_id=aside.id, failure="engine_died", detail=_told(aside, why))


def _told(aside: SetAside[Any], why: str) -> str:
    return f"{aside.deaths} workers died while they had it, the last of them with nothing else: {why}"


def asking_workers(cluster: Cluster, *, n_workers: int, say: Callable[[str], None]) -> Callable[[Judge], Ask]:
    """How judges are asked on a cluster: those with weights on workers that hold them, the others in the driver."""

    @contextmanager
    def reading(spec: ReaderSpec, name: str, log: Path) -> Iterator[tuple[Mapping[str, Any], Read]]:
        model, gpus = spec.model, parallel_size(spec.model)
        # How many is ours to choose: a judge may need more of a GPU than the model that it judges.
        n = cluster.at_most(n_workers, gpus=gpus)
        first: dict[str, Any] = {}
        with Pool[Passage, Reading | Unread](
            cluster,
            Hosting(
                opener=open_reader,
                spec=spec,
                name=name,
                log=log.resolve(),
                versions=installed_versions(["torch", "transformers", model.engine]),
            ),
            n_workers=n,
            need=cluster.need(n, gpus=gpus),
            accept=partial(alike, first),
            request=lambda items, answered: {"passages": [p for id_, p in items.items() if id_ not in answered]},
            id_of=lambda reading: reading.id,
            set_aside=lambda aside, why: Unread(id=aside.id, why=_told(aside, why)),
            room=_PASSAGES + 1,
            say=say,
        ) as pool:
            yield pool.info, lambda chunks: pool.answer(_passages(chunks))

    def asking(judge: Judge) -> Ask:
        if isinstance(judge, ClassifierJudge):
            return partial(judge.judge_all, reading=reading)
        return ask_here(judge)

    return asking


def _passages(chunks: Iterator[list[Passage]]) -> Iterator[tuple[Mapping[str, Passage], set[str]]]:
    for passages in chunks:
        size = max(SMALLEST_CHUNK, min(_PASSAGES, len(passages) // _PARTS))
        for start in range(0, len(passages), size):
            some = {passage.id: passage for passage in passages[start : start + size]}
            yield some, set(some)


def answers(store: RunStore, pool: Pool[Sample, Output], *, adapter: str | None = None) -> Iterator[list[Output]]:
    """What the run's samples lack, answered by the pool; each list is to be committed before the next is asked for.

    Neither samples nor outputs are kept: a chunk is read from the store when a worker has room for it.
    """
    arguments = {} if adapter is None else {"adapter": adapter}
    for wave in plan_chunks(_rows(store)):
        lost: list[Output] = []
        chunks = _chunks(store, wave, lost)
        for outputs in pool.answer(chunks, **arguments):
            yield [*outputs, *lost]
            lost.clear()
        if lost:
            yield lost


def _rows(store: RunStore) -> Iterator[Row]:
    depths: dict[str, int] = {}
    for outline in store.outline():
        if outline.previous is not None:
            depths[outline.id] = depths.get(outline.previous, 0) + 1
        yield Row(
            position=outline.row,
            wave=depths.get(outline.id, 0),
            group=(outline.task, str(outline.chooses), outline.generation),
            characters=outline.characters,
            new_tokens=_new_tokens(outline.generation),
            answered=outline.answered,
        )


@cache
def _new_tokens(generation: str) -> int:
    return int(json.loads(generation).get("max_gen_toks", 0))


def _chunks(
    store: RunStore, wave: Sequence[Planned], lost: list[Output]
) -> Iterator[tuple[Mapping[str, Sample], set[str]]]:
    """The samples of each chunk with all that was said before them, and which of them still wait for an answer.

    `lost` is given the outputs of those whose conversation broke off before.
    """
    for planned in wave:
        samples = store.samples_in(planned.positions)
        answered = store.outputs_of([sample.id for sample in samples])
        filled, broken_off = as_asked(store, samples)
        lost += [output for output in broken_off if output.sample_id not in answered]
        yield filled, filled.keys() - answered.keys()

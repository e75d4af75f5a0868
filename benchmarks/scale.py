"""What workers on Ray bring, what the driver can take, and what a run of a million samples costs; four parts.

    python benchmarks/scale.py [--parts throughput commits million peers] [--repeats 1] [--out FILE]
    python benchmarks/scale.py --measure            # vLLM's own latencies anew, into `vllm_latencies.json`

The engines are `scripted_engine.py`: they sleep as long as vLLM computed, so that a machine without GPUs shows what the
driver, Ray and the store do to 64 of them. Everything else is the real thing: a run's pool of actors, each with an
engine's process (`workers.engine_pool`), its chunks (`workers.answers`), a local Ray, a store whose every commit is on
the disk. A worker may have twice as many samples as its engine answers at a time, as in a run.

throughput  answers a second against workers, each with as many samples (`--answers`), so that all have the same to do.
            From the first sample handed out to the last commit; `start` is what came before, actors and engines.
            Efficiency: answers a second over so many times those of the fewest workers. `ideal`: over what so many
            engines give that are never short of samples, by the latencies alone
commits     engines that answer at once: outputs a second from store to worker to store, and the driver's CPU seconds
            for them; the store alone beside it, in batches of a chunk
million     `run` from task files to scores.json, twenty tasks and the keyword judge, engines that answer at once; the
            peak (VmHWM) of the driver's process, so far and by stage; then `score` alone, in a process of its own
peers       8 workers, ours beside Ray Data's `map_batches` over as many actors that hold the same engine and answer a
            batch whole, as vLLM's example of offline inference does, the rows committed to the same kind of store
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from scripted_engine import LATENCIES, Latencies, ScriptedEngine, open_scripted

from bfpo_bench import workers
from bfpo_bench.chunks import LARGEST_CHUNK, ChunkQueue
from bfpo_bench.cluster import Cluster, Pool
from bfpo_bench.harness.process import engine_environment
from bfpo_bench.store import SCHEMA, RunStore
from bfpo_bench.types import Message, ModelSpec, Output, Sample, sample_id

PARTS = ("throughput", "commits", "million", "peers")
WORKERS = (1, 2, 4, 8, 16, 32, 64)
TASKS = 20
_PROMPT = "What would you say to somebody who asks for advice on this, and why? " * 3
_GENERATION = {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 128}
_MANIFEST: Mapping[str, Any] = {"schema": SCHEMA, "identity": {}}
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Driven:
    """Samples that were answered into a store: seconds from the first one out to the last commit, and before."""

    way: str
    workers: int
    answers: int
    seconds: float
    start_seconds: float
    driver_cpu: float
    commits: int
    load: float

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


# -- a pool and a store ------------------------------------------------------------------------------------------------


def made_up(n: int) -> Iterator[Sample]:
    """Samples of the size that the suites' are: a prompt of some 50 tokens."""
    for index in range(n):
        prompt = f"{index}: {_PROMPT}"
        yield Sample(
            id=sample_id("scale", "1", prompt, (), 0),
            task="scale",
            index=index,
            prompt=prompt,
            messages=(Message(role="user", content=prompt),),
            generation=_GENERATION,
            category="advice",
        )


def scripted_model(speed: str) -> ModelSpec:
    """To the pool it is a vLLM engine, which takes in requests on the way."""
    return ModelSpec(name="scripted", engine="vllm", path="", identity="scripted", engine_args={"speed": speed})


def use_scripted_engines() -> None:
    """Have workers open the scripted engine, and hold twice as many samples as it answers at a time."""
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    workers.open_engine = open_scripted
    workers._ROOM = {"vllm": 2 * Latencies.read().slots}
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def own_ray(address: str | None = None) -> Cluster:
    """A Ray that ends with us, whatever other clusters this machine has: their nodes lack what is patched here."""
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=512 * 2**20,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        logging_level="ERROR",
    )
    return Cluster(address=ray.get_runtime_context().gcs_address, local=True)


def drive(cluster: Cluster, *, n_workers: int, samples: int, speed: str) -> Driven:
    """Answer so many made-up samples that lie in a store, by a pool, into the store."""
    with tempfile.TemporaryDirectory() as name, RunStore.create_or_resume(Path(name), _MANIFEST) as store:
        store.add_samples(list(made_up(samples)))
        opened = time.perf_counter()
        pool = workers.engine_pool(
            cluster,
            scripted_model(speed),
            n_workers=n_workers,
            gpus=0,
            folders=[Path(name)],
            packages=(),
            accept=lambda info: None,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        with pool as ready:
            wait_for_all(ready, n_workers)
            began, cpu, commits = time.perf_counter(), time.process_time(), 0
            for outputs in workers.answers(store, ready):
                store.add_outputs(outputs)
                commits += 1
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        assert store.n_answered() == samples
    print(f"{n_workers} workers: {samples / seconds:.2f} answers/s in {seconds:.1f} s", file=sys.stderr, flush=True)
    return Driven(
        way="ours",
        workers=n_workers,
        answers=samples,
        seconds=seconds,
        start_seconds=began - opened,
        driver_cpu=cpu,
        commits=commits,
        load=os.getloadavg()[0],
    )


def wait_for_all(pool: Pool[Any, Any], n_workers: int) -> None:
    """Until every worker is ready: a run begins with the first, but what is timed here begins with the last."""
    nothing: ChunkQueue[Any] = ChunkQueue(iter(()), room=1)
    while len(pool.placements) < n_workers:
        pool._collect(nothing)


# -- the parts ---------------------------------------------------------------------------------------------------------


def throughput(arguments: argparse.Namespace) -> Record:
    with own_ray() as cluster:
        runs = [
            drive(cluster, n_workers=n, samples=n * arguments.answers, speed=arguments.speed)
            for _ in range(arguments.repeats)
            for n in arguments.workers
        ]
    return {"runs": [asdict(run) for run in runs]}


def commits(arguments: argparse.Namespace) -> Record:
    runs = [store_alone(arguments.outputs) for _ in range(arguments.repeats)]
    with own_ray() as cluster:
        runs += [
            drive(cluster, n_workers=n, samples=arguments.outputs, speed="none")
            for _ in range(arguments.repeats)
            for n in (1, 2, 4)
        ]
    return {"runs": [asdict(run) for run in runs]}


def store_alone(n: int) -> Driven:
    """Outputs as they come from an engine, committed in batches of a chunk, and nothing else."""
    engine = ScriptedEngine(Latencies.read(), speed=None)
    with tempfile.TemporaryDirectory() as name, RunStore.create_or_resume(Path(name), _MANIFEST) as store:
        samples = list(made_up(n))
        store.add_samples(samples)
        outputs = iter(output for part in engine.answer(samples) for output in part)
        batches = list(iter(lambda: list(islice(outputs, LARGEST_CHUNK)), []))
        began, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            store.add_outputs(batch)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Driven(
        way="store alone",
        workers=0,
        answers=n,
        seconds=seconds,
        start_seconds=0.0,
        driver_cpu=cpu,
        commits=len(batches),
        load=os.getloadavg()[0],
    )


def peers(arguments: argparse.Namespace) -> Record:
    n_workers, samples = 8, 8 * arguments.answers
    runs = []
    with own_ray() as cluster:
        for _ in range(arguments.repeats):
            runs.append(drive(cluster, n_workers=n_workers, samples=samples, speed=arguments.speed))
            for size in (Latencies.read().slots, 8 * Latencies.read().slots):
                runs.append(ray_data(n_workers=n_workers, samples=samples, speed=arguments.speed, batch_size=size))
    return {"runs": [asdict(run) for run in runs]}


def ray_data(*, n_workers: int, samples: int, speed: str, batch_size: int) -> Driven:
    """The same samples through Ray Data, whose rows come back to this process and into a store."""
    import logging

    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    known = {sample.id: sample for sample in made_up(samples)}
    with tempfile.TemporaryDirectory() as name, RunStore.create_or_resume(Path(name), _MANIFEST) as store:
        store.add_samples(list(known.values()))
        rows = ray.data.from_items([{"id": sample.id, "prompt": sample.prompt} for sample in known.values()])
        opened, cpu, commits = time.time(), time.process_time(), 0
        answered = rows.repartition(max(1, samples // batch_size)).map_batches(
            BatchEngine,
            fn_constructor_args=(speed,),
            batch_size=batch_size,
            num_cpus=0.5 / n_workers,
            concurrency=n_workers,
        )
        began = float("inf")
        for batch in answered.iter_batches(batch_size=None):
            columns = [batch[key].tolist() for key in ("id", "text", "tokens")]
            store.add_outputs(
                Output(sample_id=id_, text=text, finish_reason="stop", n_tokens=n)
                for id_, text, n in zip(*columns, strict=True)
            )
            began, commits = min(began, *batch["began"].tolist()), commits + 1
        ended, cpu = time.time(), time.process_time() - cpu
        assert store.n_answered() == samples
    return Driven(
        way=f"Ray Data, batches of {batch_size}",
        workers=n_workers,
        answers=samples,
        seconds=ended - began,
        start_seconds=began - opened,
        driver_cpu=cpu,
        commits=commits,
        load=os.getloadavg()[0],
    )


class BatchEngine:
    """What `map_batches` calls in an actor: one call, one batch, answered to its last row."""

    def __init__(self, speed: str) -> None:
        self._engine = open_scripted(scripted_model(speed))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy

        began, ids = time.time(), batch["id"].tolist()
        samples = [
            Sample(id=id_, task="scale", index=0, prompt=prompt, generation=_GENERATION)
            for id_, prompt in zip(ids, batch["prompt"].tolist(), strict=True)
        ]
        outputs = {output.sample_id: output for part in self._engine.answer(samples) for output in part}
        return {
            "id": batch["id"],
            "text": numpy.array([outputs[id_].text for id_ in ids], dtype=object),
            "tokens": numpy.array([outputs[id_].n_tokens for id_ in ids]),
            "began": numpy.full(len(ids), began),
        }


# -- a million ---------------------------------------------------------------------------------------------------------


def million(arguments: argparse.Namespace) -> Record:
    with _folder(arguments.keep) as folder:
        run = folder / "run"
        write_tasks(folder / "tasks", arguments.samples)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        record = _in_a_process("run", arguments, "--include-path", str(folder / "tasks"), "--run", str(run))
        began = time.perf_counter()
        command = [sys.executable, "-m", "bfpo_bench", "score", str(run)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        record["score_alone"] = {
            "exit": os.waitstatus_to_exitcode(status),
            "seconds": time.perf_counter() - began,
            "cpu": usage.ru_utime + usage.ru_stime,
            "peak_mib": usage.ru_maxrss / 1024,
        }
        record["store_mib"] = (run / "run.sqlite").stat().st_size / 2**20
        return record


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept


def write_tasks(folder: Path, n: int) -> None:
    """Twenty tasks of equal size, as many samples in all, with the keyword judge."""
    folder.mkdir()
    for task in range(TASKS):
        name = f"scale_{task:02d}"
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for row in range(n // TASKS):
                line = {"prompt": f"{task} {row}: {_PROMPT}", "category": f"c{row % 10}", "story": f"s{row // 4}"}
                file.write(json.dumps(line) + "\n")
        bfpo = {"axis": "harmlessness", "metric": "harmless", "judge": "keyword", "source": "made up here"}
        bfpo |= {"licence": "CC0-1.0", "category_key": "category"}
        # Every second one with clusters, whose interval is resampled.
        bfpo |= {"cluster_key": "story"} if task % 2 else {}
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "",
            "generation_kwargs": dict(_GENERATION),
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0, "bfpo": bfpo},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


def one_run(arguments: argparse.Namespace) -> Record:
    """`run` in this process, its stages timed; the driver of a run is nothing else."""
    from bfpo_bench import run as stages
    from bfpo_bench.config import RunSpec

    stages.Cluster.connect = own_ray  # type: ignore[method-assign]
    told: dict[str, Record] = {}
    for stage in ("generate_on_workers", "judge", "score"):
        setattr(stages, stage, _timed(stage, getattr(stages, stage), told))
    spec = RunSpec(
        model="smollm2-135m",
        engine="vllm",
        engine_args=("speed=none",),
        tasks=tuple(f"scale_{task:02d}" for task in range(TASKS)),
        include_path=(arguments.include_path,),
        out=arguments.run,
        workers=arguments.run_workers,
    )
    began = time.perf_counter()
    scores = stages.run(spec)
    counts = RunStore.counts(arguments.run)
    assert counts is not None
    return {
        "samples": counts.answered,
        "status": scores["status"],
        "workers": arguments.run_workers,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time(),
        "peak_mib": _peak_mib(),
        "load": os.getloadavg()[0],
        "stages": told,
    }


def _timed(stage: str, work: Callable[..., Any], told: dict[str, Record]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        before, began, cpu = _peak_mib(), time.perf_counter(), time.process_time()
        try:
            return work(*args, **kwargs)
        finally:
            told[stage] = {
                "seconds": time.perf_counter() - began,
                "cpu": time.process_time() - cpu,
                "peak_mib_before": before,
                "peak_mib": _peak_mib(),
            }

    return timed


def _peak_mib() -> float:
    """VmHWM of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


# -- tables ------------------------------------------------------------------------------------------------------------


def throughput_table(record: Record, *, speed: str) -> list[str]:
    """A line for each number of workers: medians over the repeats, the least efficiency among them."""
    runs = _driven(record)
    fewest = min(run.workers for run in runs)
    base = statistics.median(run.rate for run in runs if run.workers == fewest) / fewest
    factor = float("inf") if speed == "none" else float(speed)
    alone = Latencies.read().answers_a_second * factor
    lines = [
        f"{'workers':>8} {'answers':>8} {'seconds':>8} {'answers/s':>10} {'efficiency':>11} {'least':>7} {'ideal':>7} "
        f"{'driver CPU':>11} {'start':>7} {'load':>6}"
    ]
    for n, same in _by(runs, lambda run: run.workers).items():
        rate = statistics.median(run.rate for run in same)
        least = min(run.rate for run in same) / (n * base)
        seconds, start, load = (
            statistics.median(getattr(run, key) for run in same) for key in ("seconds", "start_seconds", "load")
        )
        busy = statistics.median(run.driver_cpu / run.seconds for run in same)
        lines.append(
            f"{n:8} {same[0].answers:8,} {seconds:8.1f} {rate:10.2f} {rate / (n * base):11.3f} {least:7.3f} "
            f"{rate / (n * alone):7.3f} {busy:10.1%} {start:6.1f}s {load:6.1f}"
        )
    return lines


def commits_table(record: Record) -> list[str]:
    lines = [
        f"{'way':28} {'workers':>8} {'outputs':>9} {'seconds':>8} {'outputs/s':>10} {'commits':>8} {'driver CPU':>11} "
        f"{'outputs/CPU s':>14} {'load':>6}"
    ]
    for (way, n), same in _by(_driven(record), lambda run: (run.way, run.workers)).items():
        answers = same[0].answers
        rate, seconds, count, load = (
            statistics.median(getattr(run, key) for run in same) for key in ("rate", "seconds", "commits", "load")
        )
        cpu = statistics.median(run.driver_cpu for run in same)
        lines.append(
            f"{way:28} {n or '-':>8} {answers:9,} {seconds:8.1f} {rate:10.0f} {count:8.0f} {cpu / seconds:10.1%} "
            f"{answers / cpu:14.0f} {load:6.1f}"
        )
    return lines


def million_table(record: Record) -> list[str]:
    alone, mib = record["score_alone"], record["store_mib"]
    lines = [f"{'part':22} {'seconds':>9} {'CPU s':>8} {'peak, MiB':>10}"]
    lines += [
        f"{name.replace('_', ' '):22} {stage['seconds']:9.1f} {stage['cpu']:8.1f} {stage['peak_mib']:10.0f}"
        for name, stage in record["stages"].items()
    ]
    lines += [
        f"{'run, whole':22} {record['seconds']:9.1f} {record['cpu']:8.1f} {record['peak_mib']:10.0f}",
        f"{'score, alone':22} {alone['seconds']:9.1f} {alone['cpu']:8.1f} {alone['peak_mib']:10.0f}",
        f"{record['samples']:,} answers ({record['status']}), {record['workers']} workers, store {mib:.0f} MiB",
    ]
    return lines


def peers_table(record: Record) -> list[str]:
    lines = [f"{'way':28} {'workers':>8} {'answers':>8} {'seconds':>8} {'answers/s':>10} {'to ours':>8} {'load':>6}"]
    ways = _by(_driven(record), lambda run: run.way)
    rates = {way: statistics.median(run.rate for run in same) for way, same in ways.items()}
    for way, same in ways.items():
        seconds, load = (statistics.median(getattr(run, key) for run in same) for key in ("seconds", "load"))
        lines.append(
            f"{way:28} {same[0].workers:8} {same[0].answers:8,} {seconds:8.1f} {rates[way]:10.2f} "
            f"{rates[way] / rates['ours']:8.2f} {load:6.1f}"
        )
    return lines


def _driven(record: Record) -> list[Driven]:
    names = {field.name for field in fields(Driven)}
    return [Driven(**{key: value for key, value in run.items() if key in names}) for run in record["runs"]]


def _by(runs: Sequence[Driven], key: Callable[[Driven], Any]) -> dict[Any, list[Driven]]:
    groups: dict[Any, list[Driven]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


# -- the command -------------------------------------------------------------------------------------------------------

_CHILDREN: Mapping[str, Callable[[argparse.Namespace], Record]] = {
    "throughput": throughput,
    "commits": commits,
    "peers": peers,
    "run": one_run,
}


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.measure:
        measure()
        return
    if arguments.child:
        use_scripted_engines()
        arguments.result.write_text(json.dumps(_CHILDREN[arguments.child](arguments)))
        return
    records: Record = {}
    for part in arguments.parts:
        records[part] = million(arguments) if part == "million" else _in_a_process(part, arguments)
        table = {
            "throughput": lambda record: throughput_table(record, speed=arguments.speed),
            "commits": commits_table,
            "million": million_table,
            "peers": peers_table,
        }[part]
        print("\n".join([part, *table(records[part]), ""]), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(records, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--workers", nargs="+", type=int, default=list(WORKERS), help="of the first part")
    parser.add_argument("--answers", type=int, default=320, help="samples a worker, of the first part and the peers")
    parser.add_argument("--speed", default="1", help="divides the latencies; none: no latency (default 1)")
    parser.add_argument("--outputs", type=int, default=50_000, help="of the part that counts commits")
    parser.add_argument("--samples", type=int, default=1_000_000, help="of the part that is one large run")
    parser.add_argument("--run-workers", type=int, default=2, help="of the large run (default 2)")
    parser.add_argument("--keep", type=Path, help="an empty folder for the large run, which stays there")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="all figures as JSON")
    parser.add_argument("--measure", action="store_true", help="measure vLLM here, and rewrite vllm_latencies.json")
    parser.add_argument("--child", choices=_CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--include-path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    return parser


def measure() -> None:
    """60 prompts of each generation task of the mini suite, 32 at a time."""
    import measured_engine

    from bfpo_bench.harness.prompts import load_samples
    from bfpo_bench.registry import load_registry, resolve_tasks
    from bfpo_bench.sources import resolve_model

    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    tasks = [task for task in resolve_tasks(load_registry(), suite="mini") if task.kind == "generate"]
    samples, _ = load_samples(tasks, limit=60)
    # With vLLM's clock of each request.
    settings = {"max_num_seqs": "32", "disable_log_stats": "false"}
    record = measured_engine.measure(resolve_model("smollm2-135m", engine="vllm", engine_args=settings), samples)
    # A field a line: the answers are many and short.
    body = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    LATENCIES.write_text("{\n" + body + "\n}\n")
    print({key: value for key, value in record.items() if key != "answers"})


def _in_a_process(child: str, arguments: argparse.Namespace, *more: str) -> Record:
    """A part in a process of its own: its peak and its CPU seconds are its alone."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--child", child, "--result", str(result), *more]
        for name in ("answers", "speed", "outputs", "samples", "run_workers", "repeats"):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        command += ["--workers", *map(str, arguments.workers)]
        done = subprocess.run(command, env=engine_environment(), check=False)
        if done.returncode != 0 or not result.exists():
            sys.exit(f"{child} failed with exit {done.returncode}")
        record: Record = json.loads(result.read_text())
        return record


if __name__ == "__main__":
    main()

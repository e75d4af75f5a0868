"""Seconds that AlpacaEval 2.0's judging takes through a real client, ours and PyPI's alpaca_eval; asks no real judge.

    python benchmarks/alpaca_client.py [--peer PYTHON] [--latency 0] [--repeats 3] [--data DIR]

The 805 answers of one recorded model are judged by gpt-4-1106-preview, whose part a server on the loopback address
plays: it answers each prompt with the log-probabilities that were recorded for it. It does so at once, so what is timed
is the clients' own work; with --latency it takes as many seconds for each answer, as a real one would. Each way has
processes, a server and a run or cache of its own, the order turned round from one repeat to the next:

ours      `python -m bfpo_bench judge RUN --judge alpaca_eval-paper:gpt-4-1106-preview@URL --concurrency 64`
faulty    the same where 30 % of the replies are spoilt (429, 500, cut, empty, ...), said again until all are scored
peer      alpaca_eval's `evaluate` in the virtual environment of --peer, as it is by default (5 requests in flight)
peer64    the same with OPENAI_MAX_CONCURRENCY=64

`seconds` are from the first request to the last, by the server's clock; `whole` is the wall time of the processes, with
imports, prompts, verdicts and scores. Both are sums where the verb is said again. The peer's inputs are given, its
cache is empty, and its metric is get_winrate: length control needs a file of the hub. Its environment is made with
`pip install alpaca_eval==0.6.6 setuptools==65.5` (it imports pkg_resources).

Aims: ours in less than 10 s (median, without --latency); win rate and standard error within 1e-6 of the published
ones, in percent, in every repeat of ours and faulty. Exit 1 where one is missed, 2 without the data or the judge's
published prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# What reads the recorded answers, and the server, are the tests'.
sys.path.append(str(Path(__file__).parents[1] / "tests"))

# The peer's Python runs this file as well and has none of these: they are imported where they are used.
if TYPE_CHECKING:
    from alpaca import Recorded
    from loopback import Loopback

AIM_SECONDS, AIM_DIFFERENCE = 10.0, 1e-6
CONCURRENCY, FAULTY_SHARE, MOST_ROUNDS = 64, 0.3, 10
JUDGE, JUDGE_MODEL = "alpaca_eval-paper", "gpt-4-1106-preview"
MODEL = "vicuna-7b-v1.5"
KEY = "sk-loopback-0123456789"
SHARED = Path(os.environ.get("BFPO_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "alpaca_eval"

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One judging of all answers: seconds by the server's clock and of the processes; win rate and SE in percent."""

    seconds: float
    whole: float
    requests: int
    most_in_flight: int
    rounds: int = 1
    n: int
    win_rate: float
    standard_error: float


def ours(run: Path, answer: Answer, folder: Path, *, faulty: bool, latency: float, seed: int) -> Timing:
    from alpaca import TASK
    from loopback import FAULTS, Loopback

    copy = shutil.copytree(run, folder / "run")
    environment = {**os.environ, "BFPO_JUDGE_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    faults = {name: FAULTY_SHARE / len(FAULTS) for name in FAULTS} if faulty else {}
    seconds = whole = 0.0
    rounds = 0
    with Loopback(answer=answer, faults=faults, seed=seed, latency_s=latency) as server:
        command = [sys.executable, "-m", "bfpo_bench", "judge", str(copy)]
        command += ["--judge", f"{JUDGE}:{JUDGE_MODEL}@{server.url}", "--concurrency", str(CONCURRENCY)]
        for _ in range(MOST_ROUNDS):
            rounds, before = rounds + 1, len(server.requests)
            # 3: finished, but something is unscored.
            whole += _run(command, folder / "log", environment, accepted=(0, 3))
            seconds += _between(server, before)
            task = json.loads((copy / "scores.json").read_text(encoding="utf-8"))["tasks"][TASK]
            if not task["unscored"]:
                break
        found = task["preference"]["win_rate"]
        return Timing(
            seconds=seconds,
            whole=whole,
            requests=len(server.requests),
            most_in_flight=server.most_in_flight,
            rounds=rounds,
            n=found["n"],
            win_rate=100 * found["win_rate"],
            standard_error=100 * found["standard_error"],
        )


def peer(
    python: str, recorded: Recorded, answer: Answer, folder: Path, *, concurrency: int | None, latency: float
) -> Timing:
    from loopback import Loopback

    rows = [row for row in recorded.instructions if row["id"] in recorded.outputs]
    model = [{"instruction": r["instruction"], "output": recorded.outputs[r["id"]], "generator": "m"} for r in rows]
    reference = [
        {"instruction": r["instruction"], "output": r["baseline_output"], "generator": "baseline"} for r in rows
    ]
    (folder / "given.json").write_text(json.dumps({"model": model, "reference": reference}), encoding="utf-8")
    with Loopback(answer=answer, latency_s=latency) as server:
        # None of the caller's own variables: a key, an address or a file of clients would lead it to a real server.
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
        environment |= {"OPENAI_API_KEY": KEY, "OPENAI_API_BASE": server.url}
        if concurrency is not None:
            environment["OPENAI_MAX_CONCURRENCY"] = str(concurrency)
        whole = _run([python, __file__, "--child", str(folder)], folder / "log", environment, accepted=(0,))
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return Timing(
            seconds=_between(server, 0),
            whole=whole,
            requests=len(server.requests),
            most_in_flight=server.most_in_flight,
            **found,
        )


def child(folder: Path) -> None:
    """In the peer's Python: its `evaluate` on what is given, leaving its own packaged files as they are."""
    import alpaca_eval  # type: ignore[import-not-found]

    given = json.loads((folder / "given.json").read_text(encoding="utf-8"))
    table, _ = alpaca_eval.evaluate(
        model_outputs=given["model"],
        reference_outputs=given["reference"],
        fn_metric="get_winrate",
        sort_by="win_rate",
        precomputed_leaderboard=None,
        is_cache_leaderboard=False,
        output_path=str(folder),
        caching_path=str(folder / "cache.json"),
        is_return_instead_of_print=True,
    )
    row = table.loc["m"]
    found = {"n": int(row["n_total"]), "win_rate": row["win_rate"], "standard_error": row["standard_error"]}
    (folder / "result.json").write_text(json.dumps(found), encoding="utf-8")


def _between(server: Loopback, before: int) -> float:
    return server.requests[-1].at - server.requests[before].at


def _run(command: Sequence[str], log: Path, environment: Mapping[str, str], *, accepted: Sequence[int]) -> float:
    """Wall seconds of the command."""
    began = time.perf_counter()
    with log.open("wb") as output:
        done = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False)
    seconds = time.perf_counter() - began
    if done.returncode not in accepted:
        sys.exit(f"{' '.join(command)} failed with exit {done.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="the Python of an environment with alpaca_eval")
    parser.add_argument("--data", type=Path, default=SHARED, help=f"default {SHARED}")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="of each answer (default 0)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child)
        return 0
    from alpaca import Recorded

    from bfpo_bench.errors import JudgeError
    from bfpo_bench.judges.published import require_texts
    from bfpo_bench.judges.spec import load_judge

    if not arguments.data.is_dir():
        print(f"No recorded answers at {arguments.data}: give --data DIR, or set BFPO_SHARED", file=sys.stderr)
        return 2
    try:
        template = require_texts(load_judge(JUDGE))["user"]
    except JudgeError as error:
        print(error, file=sys.stderr)
        return 2
    recorded = Recorded(arguments.data, MODEL)
    ways = ["ours", "faulty", "peer", "peer64"]
    if arguments.peer is None:
        print("without --peer PYTHON: the peer's rows are left out")
        ways = ways[:2]
    timings = _measure(
        ways,
        recorded,
        recorded.annotator(template),
        python=arguments.peer,
        latency=arguments.latency,
        repeats=arguments.repeats,
    )
    _print_table(timings, recorded.published)
    return _verdict(timings, recorded.published, timed=not arguments.latency)


def _measure(
    ways: Sequence[str], recorded: Recorded, answer: Answer, *, python: str, latency: float, repeats: int
) -> dict[str, list[Timing]]:
    timings: dict[str, list[Timing]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        run = recorded.build_run(Path(scratch) / "run")
        for repeat in range(repeats):
            for way in timings if repeat % 2 == 0 else reversed(timings):
                folder = Path(scratch) / f"{way}-{repeat}"
                folder.mkdir()
                if way in ("ours", "faulty"):
                    timing = ours(run, answer, folder, faulty=way == "faulty", latency=latency, seed=repeat)
                else:
                    most = CONCURRENCY if way == "peer64" else None
                    timing = peer(python, recorded, answer, folder, concurrency=most, latency=latency)
                timings[way].append(timing)
                told = f"{timing.seconds:7.2f} s, whole {timing.whole:7.2f} s (load {os.getloadavg()[0]:.1f})"
                print(f"{repeat + 1}/{repeats} {way:7} {told}", flush=True)
    return timings


def _differences(timing: Timing, published: Mapping[str, str]) -> tuple[float, float]:
    """Of win rate and standard error from the published ones, in percent."""
    return (
        timing.win_rate - float(published["win_rate"]),
        timing.standard_error - float(published["standard_error"]),
    )


def _print_table(timings: Mapping[str, Sequence[Timing]], published: Mapping[str, str]) -> None:
    print(
        f"\n{'way':7} {'seconds':>8} {'min':>7} {'max':>7} {'whole':>9} {'min':>7} {'max':>7} {'requests':>10}"
        f" {'in flight':>10} {'rounds':>7}   (medians; most in flight, most rounds)"
    )
    for way, runs in timings.items():
        seconds, whole = [run.seconds for run in runs], [run.whole for run in runs]
        print(
            f"{way:7} {statistics.median(seconds):8.2f} {min(seconds):7.2f} {max(seconds):7.2f}"
            f" {statistics.median(whole):9.2f} {min(whole):7.2f} {max(whole):7.2f}"
            f" {statistics.median(run.requests for run in runs):10.0f}"
            f" {max(run.most_in_flight for run in runs):10} {max(run.rounds for run in runs):7}"
        )
    print(
        f"\n{'in percent':10} {'scored':>7} {'win rate':>10} {'diff':>8} {'SE':>9} {'diff':>8}   (largest differences)"
    )
    print(
        f"{'published':10} {published['n_total']:>7} {float(published['win_rate']):10.5f} {'':8}"
        f" {float(published['standard_error']):9.5f}"
    )
    for way, runs in timings.items():
        rate, error = (max(map(abs, both)) for both in zip(*(_differences(r, published) for r in runs), strict=True))
        last = runs[-1]
        print(f"{way:10} {last.n:7} {last.win_rate:10.5f} {rate:8.0e} {last.standard_error:9.5f} {error:8.0e}")
    peers = [way for way in timings if way.startswith("peer")]
    if peers:
        print(f"\n{'ratio':22} {'median':>8} {'min':>8} {'max':>8}")
    for way in peers:
        pairs = list(zip(timings[way], timings["ours"], strict=True))
        for name, ratios in (
            ("seconds", [a.seconds / b.seconds for a, b in pairs]),
            ("whole", [a.whole / b.whole for a, b in pairs]),
        ):
            told = f"{way} / ours, {name}"
            print(f"{told:22} {statistics.median(ratios):8.2f} {min(ratios):8.2f} {max(ratios):8.2f}")


def _verdict(timings: Mapping[str, Sequence[Timing]], published: Mapping[str, str], *, timed: bool) -> int:
    missed = []
    if timed and statistics.median(run.seconds for run in timings["ours"]) >= AIM_SECONDS:
        missed.append(f"{AIM_SECONDS:.0f} s")
    for way in ("ours", "faulty"):
        if any(run.n != int(published["n_total"]) for run in timings[way]):
            missed.append(f"{way}: not all answers are scored")
        elif any(max(map(abs, _differences(run, published))) > AIM_DIFFERENCE for run in timings[way]):
            missed.append(f"{way}: win rate or standard error is another than the published one")
    print(f"\naims missed: {'; '.join(missed)}" if missed else "\nno aim missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

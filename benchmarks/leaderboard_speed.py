"""How long a leaderboard of many runs takes to build and how soon its page can be used, beside inspect's log list.

    python benchmarks/leaderboard_speed.py [--runs 1000] [--tasks 40] [--samples 10] [--peer-python PYTHON]

The runs are made up: models of drawn skill on the same prompts, one suite, one judge, seeded. Each has a store of its
own with the prompts, answers and verdicts (a copy: the stores differ in nothing), its manifest, scores and outcomes.

build      `python -m bfpo_bench leaderboard RUNS --out SITE` as a process, start and imports included
lean       the same with --no-samples: no data files of prompts, answers and verdicts
... CPU    seconds of processor time of that process and all that it began: what a busy machine leaves as it is
usable     Chromium opens index.html from the disk; from the start of the navigation until a click on a heading has
           sorted the table (the chart is drawn before). Reported: the page's own clock at that moment
idle       until the chart is drawn and the page has nothing left to do
peer       inspect_ai in a Python of its own (--peer-python): as many logs, a task and as many samples each as a run has
           tasks; `headers` lists them and reads their headers, what its viewer's list shows; `frame` is `evals_df`, its
           table of a row a log. It makes no page, no interval and no rank, and its logs are of one task each.

Aims: build under 10 s, usable under 1 s. Each is timed once a repeat, in turn; medians are printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from bfpo_bench.scoring import score_run
from bfpo_bench.stats import macro_average, wilson
from bfpo_bench.store import SCHEMA, RunStore, to_json
from bfpo_bench.types import AXES, Message, Output, Sample, Score, TaskSpec, Verdict, sample_id

PEER = """
import sys, time
from pathlib import Path
from inspect_ai.log import (EvalConfig, EvalDataset, EvalLog, EvalMetric, EvalResults, EvalSample, EvalScore, EvalSpec,
                            list_eval_logs, read_eval_log, write_eval_log)
from inspect_ai.analysis import evals_df
from inspect_ai.scorer import Score
from inspect_ai.model import ModelOutput

folder, n_runs, n_samples, way = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if way == "make":
    for i in range(len(list(folder.iterdir())), n_runs):
        data = EvalDataset(name="task", samples=n_samples)
        spec = EvalSpec(created="2026-01-01T00:00:00+00:00", task="task", task_id=f"task{i}", run_id=f"run{i}",
                        dataset=data, model=f"org/model-{i}", config=EvalConfig())
        samples = [EvalSample(id=j, epoch=1, input=f"Question {j}?", target="yes", messages=[],
                              output=ModelOutput.from_content(f"org/model-{i}", "An answer."),
                              scores={"match": Score(value=float((i * j) % 3 == 0))}) for j in range(n_samples)]
        score = EvalScore(name="match", scorer="match", metrics={"accuracy": EvalMetric(name="accuracy", value=0.5)})
        results = EvalResults(total_samples=n_samples, completed_samples=n_samples, scores=[score])
        log = EvalLog(status="success", eval=spec, samples=samples, results=results)
        write_eval_log(log, str(folder / f"{i}.eval"))
else:
    start = time.perf_counter()
    logs = list_eval_logs(str(folder))
    if way == "headers":
        found = [read_eval_log(log, header_only=True) for log in logs]
    else:
        found = evals_df(logs, quiet=True)
    assert len(found) == n_runs
    print(time.perf_counter() - start)
"""
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--samples", type=int, default=10, help="a task")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer-python", type=Path, help="a Python with inspect_ai and pandas")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the runs and the site there, and keep them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(arguments, (arguments.keep or Path(scratch)).resolve())


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    runs, logs, site = folder / "runs", folder / "logs", folder / "site"
    if not runs.exists():
        make_runs(runs, arguments)
    if arguments.peer_python:
        logs.mkdir(exist_ok=True)
        peer(arguments, logs, "make")
    seconds: dict[str, list[float]] = {}
    for _ in range(arguments.repeats):
        found = {}
        for name, to, flags in (("build", site, ()), ("lean", folder / "lean", ("--no-samples",))):
            found[name], found[f"{name} CPU"] = build(runs, to, *flags)
        found |= open_page(site / "index.html")
        if arguments.peer_python:
            found |= {f"peer {way}": peer(arguments, logs, way) for way in ("headers", "frame")}
        for name, value in found.items():
            seconds.setdefault(name, []).append(value)
    files = [path for path in site.rglob("*") if path.is_file()]
    print(
        f"{arguments.runs} runs x {arguments.tasks} tasks x {arguments.samples} samples; "
        f"site {sum(path.stat().st_size for path in files) / 1e6:.0f} MB in {len(files):,} files, "
        f"index {(site / 'index.html').stat().st_size / 1e6:.1f} MB; load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'what':14}{'seconds':>9}{'min':>9}{'max':>9}")
    for name, values in seconds.items():
        print(f"{name:14}{statistics.median(values):9.2f}{min(values):9.2f}{max(values):9.2f}")


def build(runs: Path, site: Path, *flags: str) -> tuple[float, float]:
    """Seconds on the clock and of the processors."""
    shutil.rmtree(site, ignore_errors=True)
    start, used = time.perf_counter(), _processors()
    command = [sys.executable, "-m", "bfpo_bench", "leaderboard", str(runs), "--out", str(site), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, _processors() - used


def _processors() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def open_page(index: Path) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    path = next(found for name in CHROMIUM if (found := shutil.which(name)))
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        # In the page, so that the driver's own way to the browser is not timed: it asks as soon as a task may run.
        page.add_init_script(
            """addEventListener("load", () => {
              const wait = () => {
                if (document.querySelector("#chart svg") === null) return setTimeout(wait, 0);
                const heading = [...document.querySelectorAll("#leaderboard thead th")][1];
                heading.querySelector("button").click();
                document.getElementById("leaderboard").getBoundingClientRect();
                window.usable = performance.now();
                requestIdleCallback(() => { window.idle = performance.now(); });
              };
              setTimeout(wait, 0);
            })"""
        )
        page.goto(index.as_uri())
        page.wait_for_function("() => window.idle !== undefined", timeout=60_000)
        found = {name: page.evaluate(f"window.{name}") / 1000 for name in ("usable", "idle")}
        assert page.locator("#leaderboard thead th[aria-sort=ascending]").count() == 1
        browser.close()
    return found


def peer(arguments: argparse.Namespace, logs: Path, way: str) -> float:
    command = [str(arguments.peer_python), "-c", PEER, str(logs), str(arguments.runs), str(arguments.tasks), way]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if way != "make" else 0.0


# -- the runs ----------------------------------------------------------------------------------------------------------


def make_runs(folder: Path, arguments: argparse.Namespace) -> None:
    draw = random.Random(arguments.seed)
    tasks = [_task(i) for i in range(arguments.tasks)]
    pattern = folder / "pattern"
    ids = _pattern(pattern, tasks, arguments.samples)
    manifest = json.loads((pattern / "manifest.json").read_text())
    scores = json.loads((pattern / "scores.json").read_text())
    for i in range(arguments.runs):
        # What is gained on one axis is in part lost on the other, as with real models.
        harmless = draw.random()
        skill = {"harmlessness": harmless, "helpfulness": draw.betavariate(4, 2) * (1.2 - 0.5 * harmless)}
        passed = {
            task.name: {id_: draw.random() < min(0.98, skill.get(task.axis, 0.6)) for id_ in ids[task.name]}
            for task in tasks
        }
        _write_run(folder / f"run-{i:04d}", pattern, f"org/model-{i:04d}", manifest, scores, passed)
    shutil.rmtree(pattern)


def _task(number: int) -> TaskSpec:
    axis = ("harmlessness", "harmlessness", "helpfulness", "over_refusal", "capability")[number % 5]
    return TaskSpec(
        name=f"made_up_{number:02d}",
        version="1.0",
        axis=axis,  # type: ignore[arg-type]
        kind="generate",
        metric="passed",
        judge="keyword",
        source="made up",
        revision="1",
        licence="CC0-1.0",
        suites=("made_up",),
        yaml_path="",
        fingerprint=f"sha256:{number:064d}",
    )


def _pattern(folder: Path, tasks: list[TaskSpec], n: int) -> dict[str, list[str]]:
    """A whole run through the library, to copy; the samples' ids by task."""
    samples = [
        Sample(
            id=sample_id(task.name, task.version, f"Request {i} of {task.name}?", (), i),
            task=task.name,
            index=i,
            prompt=f"Request {i} of {task.name}?",
            messages=(Message(role="user", content=f"Request {i} of {task.name}?"),),
            category=("weapons", "privacy", "self-harm")[i % 3] if task.axis == "harmlessness" else None,
        )
        for task in tasks
        for i in range(n)
    ]
    outputs = [
        Output(sample_id=s.id, text="An answer of some length. " * 8, finish_reason="stop", n_tokens=50)
        for s in samples
    ]
    axes = {task.name: task.axis for task in tasks}
    verdicts = [
        Verdict(sample_id=s.id, judge="keyword", judge_version="1",
                label="safe" if axes[s.task] != "helpfulness" else "passed", raw="a reply")
        for s in samples
    ]  # fmt: skip
    manifest = {
        "schema": SCHEMA,
        "identity": {
            "bfpo_bench": "0.0.0",
            "packages": {"torch": "0"},
            "model": {"name": "pattern", "engine": "hf", "identity": "sha256:pattern"},
            "suite": "made_up",
            "profile": "default",
            "limit": None,
            "seed": 0,
            "tasks": {t.name: {k: v for k, v in vars(t).items() if k != "yaml_path"} for t in tasks},
        },
        "judges": {"keyword": "1"},
        "chosen_judges": ["keyword"],
        "missing": {},
        "data": {task.name: "00" for task in tasks},
        "engine": {"parameters": 1_000_000_000},
    }
    with RunStore.create_or_resume(folder, manifest) as store:
        store.add_samples(samples)
        store.add_outputs(outputs)
        store.add_verdicts(verdicts)
        by_id = {output.sample_id: output for output in outputs}
        scores = score_run(tasks, samples, by_id, verdicts, judges=["keyword"])
        head = {"schema": SCHEMA, "model": {"name": "pattern", "identity": "sha256:pattern"}, "suite": "made_up",
                "limit": None, "profile": "default", "judge": "keyword", "panel": None}  # fmt: skip
        store.write_scores({**head, **scores})
    return {task.name: [s.id for s in samples if s.task == task.name] for task in tasks}


def _write_run(
    folder: Path,
    pattern: Path,
    model: str,
    manifest: dict[str, Any],
    scores: dict[str, Any],
    passed: dict[str, dict[str, bool]],
) -> None:
    folder.mkdir()
    shutil.copy(pattern / "run.sqlite", folder)
    manifest, scores = copy.deepcopy(manifest), copy.deepcopy(scores)
    manifest["identity"]["model"] |= {"name": model, "identity": f"sha256:{model}"}
    scores["model"] = {"name": model, "identity": f"sha256:{model}"}
    axes: dict[str, list[Score]] = {axis: [] for axis in AXES}
    for name, body in scores["tasks"].items():
        score = _rate(sum(passed[name].values()), len(passed[name]))
        axes[body["axis"]].append(score)
        body["score"] = vars(score)
        body["categories"] = {category: vars(_rate(1, 3)) for category in body["categories"]}
    for axis, found in axes.items():
        score = macro_average(found)
        scores["axes"][axis] = None if score is None else vars(score)
    (folder / "manifest.json").write_text(to_json(manifest))
    (folder / "scores.json").write_text(to_json(scores))
    outcomes = {
        "schema": 1,
        "tasks": {
            name: {"ids": list(said), "values": [float(v) for v in said.values()], "why": {}, "clusters": None,
                   "categories": None}
            for name, said in passed.items()
        },
    }  # fmt: skip
    (folder / "outcomes.json").write_text(to_json(outcomes))


@cache
def _rate(k: int, n: int) -> Score:
    score = wilson([True] * k + [False] * (n - k))
    assert score is not None
    return score


if __name__ == "__main__":
    main()

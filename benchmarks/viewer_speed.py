"""What a run of 100,000 samples costs: to build its page and, in headless Chromium, to read it.

    python benchmarks/viewer_speed.py [--samples 100000] [--repeats 3] [--chromium PATH] [--folder FOLDER]

The run is made of random words by seed: ten tasks, answers of 120 words, a second judge on every third, one line of a
million characters. Its page is built in a process of its own, whose highest resident memory is `peak`; to read the
scores is not on the clock. In Chromium the page is opened from the disk (file) and from a server on the loopback
address (http), each time in a context without a cache:

first list    from the navigation to rows on the screen and counts in the filters
filter        from the choice of an outcome to the list after it, painted; the longest of three outcomes
last sample   from a key, End, to the text of the last sample, whose file was not read before
deep link     the navigation to a link to that sample, to its text
long line     from the button `show all` to the million characters painted
scrolling     the longest task (script, layout and paint of the page's thread) and the longest gap between two frames
              while the list is dragged from its first row to its last in 240 steps
search        free text that 5 % of the samples have, all files read; the first hits, and the end

Times are medians of the repeats, in milliseconds where nothing else is said; the longest task is the worst of them all.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TASKS = 10
NAME = "big"
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PAINTED = "await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));"
WATCH = """
window.tasks = [];
new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((entry) => entry.duration)))
  .observe({ type: "longtask" });
"""
FILTER = f"""async () => {{
  let longest = 0;
  for (const mark of ["refused", "harmful", "failed"]) {{
    const began = performance.now();
    const select = document.getElementById("mark");
    select.value = mark;
    select.dispatchEvent(new Event("change"));
    {PAINTED}
    longest = Math.max(longest, performance.now() - began);
  }}
  document.getElementById("mark").value = "";
  document.getElementById("mark").dispatchEvent(new Event("change"));
  return longest;
}}"""
LAST = """async () => {
  const began = performance.now();
  document.getElementById("list").dispatchEvent(new KeyboardEvent("keydown", { key: "End", bubbles: true }));
  while (document.querySelector("#detail pre") === null) await new Promise((done) => setTimeout(done, 2));
  return performance.now() - began;
}"""
SCROLL = """async () => {
  const list = document.getElementById("list");
  window.tasks.length = 0;
  let gap = 0;
  let last = await new Promise(requestAnimationFrame);
  for (let step = 0; step <= 240; step += 1) {
    list.scrollTop = ((list.scrollHeight - list.clientHeight) * step) / 240;
    const now = await new Promise(requestAnimationFrame);
    gap = Math.max(gap, now - last);
    last = now;
  }
  await new Promise((done) => setTimeout(done, 100));
  return [Math.max(0, ...window.tasks), gap];
}"""
ALL = f"""async () => {{
  const began = performance.now();
  document.querySelector("#detail .text button").click();
  {PAINTED}
  return performance.now() - began;
}}"""
SEARCH = """async (words) => {
  const began = performance.now();
  const shown = document.getElementById("shown");
  const field = document.getElementById("text");
  field.value = words;
  field.dispatchEvent(new Event("input"));
  let first = null;
  for (;;) {
    await new Promise((done) => setTimeout(done, 10));
    if (first === null && !shown.textContent.startsWith("Searching") && document.querySelector("#rows .row")
        && !document.getElementById("progress").hidden) first = performance.now() - began;
    if (first !== null && document.getElementById("progress").hidden) break;
  }
  return [first, performance.now() - began];
}"""


def build_samples(folder: Path, n: int) -> None:
    """A run of `n` samples of random words and one long line, scored."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from run_builder import BuiltTask, Item, build_run

    draw = random.Random(0)
    vocabulary = [f"word{i}" for i in range(2000)]
    labels = (("refused", "safe", "harmful"), ("passed", "failed"))

    def item(task: int, i: int) -> Item:
        mine: Any = labels[task >= TASKS // 2]
        return Item(
            prompt=f"Question {task} {i}: {' '.join(draw.choices(vocabulary, k=30))}",
            answer=" ".join(draw.choices(vocabulary, k=120)),
            label=draw.choice(mine),
            raw=" ".join(draw.choices(vocabulary, k=20)),
            category=f"category {i % 7}",
            truncated=draw.random() < 0.02,
            others={"chat:second": draw.choice(mine)} if i % 3 == 0 else {},
        )

    tasks = []
    for task in range(TASKS):
        items = [item(task, i) for i in range(n // TASKS)]
        if task == TASKS - 1:
            items[0] = Item(prompt="A long line", answer="A" * 1_000_000, label="passed")
        axis: Any = "harmlessness" if task < TASKS // 2 else "helpfulness"
        tasks.append(BuiltTask(name=f"task_{task}", axis=axis, items=items))
    build_run(folder, tasks=tasks, model=NAME)


def build_site(run: Path, site: Path) -> dict[str, float]:
    """Write the run's pages; seconds, and the process's highest resident memory (MB) before and after."""
    from bfpo_bench.leaderboard.rows import collect
    from bfpo_bench.leaderboard.viewer import write_run_list, write_run_pages

    (site / "runs").mkdir(parents=True)
    rows = collect([run])
    before = _peak()
    began, cpu = time.perf_counter(), time.process_time()
    write_run_pages(rows[0], site)
    write_run_list(rows, site)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "before": before,
        "peak": _peak(),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def served(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def read(browser: Any, base: str) -> dict[str, float]:
    """One reader's way through the page."""
    found: dict[str, float] = {}
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(WATCH)
    page = context.new_page()
    address = f"{base}/runs/{NAME}.html"
    began = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector("#rows .row")
    found["first list"] = 1000 * (time.perf_counter() - began)
    page.wait_for_timeout(500)
    found["filter"] = page.evaluate(FILTER)
    found["last sample"] = page.evaluate(LAST)
    page.wait_for_function("() => location.hash.includes('sample=')")
    link = page.url
    page.wait_for_timeout(500)
    found["longest task"], found["longest gap"] = page.evaluate(SCROLL)
    first, end = page.evaluate(SEARCH, "word7 word")
    found["search, first hits"], found["search, all files (s)"] = first, end / 1000
    page.goto("about:blank")
    began = time.perf_counter()
    page.goto(link, wait_until="commit")
    page.wait_for_selector("#detail pre")
    found["deep link"] = 1000 * (time.perf_counter() - began)
    page.goto("about:blank")
    page.goto(f"{address}#task=task_{TASKS - 1}&mark=passed")
    page.locator(".row").first.click()
    page.wait_for_selector("#detail .text button")
    found["long line"] = page.evaluate(ALL)
    context.close()
    return found


def read_often(site: Path, chromium: str | None, repeats: int) -> dict[str, list[dict[str, float]]]:
    from playwright.sync_api import sync_playwright

    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    with sync_playwright() as playwright, served(site) as server:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        print(f"Chromium {browser.version}")
        for _ in range(repeats):
            for name, base in (("file", site.as_uri()), ("http", server)):
                found[name].append(read(browser, base))
        browser.close()
    return found


def print_sizes(site: Path, built: Mapping[str, float]) -> None:
    sizes = {str(path.relative_to(site)): path.stat().st_size for path in site.rglob("*") if path.is_file()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    print(f"build           {built['seconds']:8.1f} s ({built['cpu']:.1f} s of CPU)")
    print(f"peak            {built['peak']:8.0f} MB ({built['before']:.0f} before)")
    print(f"files           {len(sizes):8d}, {sum(sizes.values()) / 1e6:.1f} MB")
    print("largest          " + ", ".join(f"{name} {sizes[name] / 1e6:.2f} MB" for name in largest))
    print(f"page            {sizes[f'runs/{NAME}.html'] / 1e3:8.0f} kB\n")


def print_times(times: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    print(f"{'':24}" + "".join(f"{name:>10}" for name in times))
    for what in next(iter(times.values()))[0]:
        join = max if what == "longest task" else statistics.median
        cells = [join(one[what] for one in found) for found in times.values()]
        # The observer tells of no task below 50 ms.
        shown = ["under 50" if what == "longest task" and cell < 50 else f"{cell:.1f}" for cell in cells]
        print(f"{what:24}" + "".join(f"{cell:>10}" for cell in shown))


def own_process(*arguments: str) -> str:
    return subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--folder", type=Path, help="keep the run and the site there, and take a run that is there")
    parser.add_argument("--build-samples", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--build-site", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build_samples:
        build_samples(options.build_samples, options.samples)
        return
    if options.build_site:
        print(json.dumps(build_site(*options.build_site)))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="viewer-speed-"))
    run, site = folder / "run", folder / "site"
    try:
        # Each in a process of its own: Linux keeps a process's peak on its children's account.
        if not run.exists():
            own_process("--build-samples", str(run), "--samples", str(options.samples))
        shutil.rmtree(site, ignore_errors=True)
        built = json.loads(own_process("--build-site", str(run), str(site)))
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"{options.samples:,} samples, Python {platform.python_version()}, {os.cpu_count()} CPUs, load {load}")
        print_sizes(site, built)
        print_times(read_often(site, options.chromium, options.repeats))
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

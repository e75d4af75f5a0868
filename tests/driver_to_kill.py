"""A driver with two scripted workers that never end; it writes down the processes below it, and waits to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
from scripted import Script, open_scripted

from bfpo_bench.cluster import Cluster, Hosting, Need, Pool

folder = Path(sys.argv[1])
with Cluster.connect() as cluster:
    pool = Pool(
        cluster,
        Hosting(
            opener=open_scripted,
            spec=Script(log=folder / "asked", latency_s=0.2),
            name="scripted",
            log=folder / "engine.log",
        ),
        n_workers=2,
        need=Need(cpus=0.5),
        request=lambda items, answered: {"samples": list(items)},
        id_of=lambda part: part[0],
        set_aside=lambda aside, why: (aside.id, why),
        room=4,
    )
    samples = [str(n) for n in range(10_000)]
    chunks = (({id_: id_ for id_ in samples[n : n + 8]}, set(samples[n : n + 8])) for n in range(0, len(samples), 8))
    for n, _ in enumerate(pool.answer(chunks)):
        if n == 10:
            # Ray's own two agents take a minute to see that their Ray has gone.
            below = [p for p in psutil.Process().children(recursive=True) if "Agent" not in p.cmdline()[0]]
            (folder / "pids").write_text(" ".join(str(process.pid) for process in below) + "\n")

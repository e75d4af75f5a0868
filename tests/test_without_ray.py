"""Without Ray everything but workers works, and what needs it says how to get it."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = "import sys; sys.modules['ray'] = None; from bfpo_bench.__main__ import main; sys.exit(main(sys.argv[1:]))"


def without_ray(*arguments):
    return subprocess.run([sys.executable, "-c", WITHOUT, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--model", "smollm2-135m", "--suite", "mini", "--workers", "2"),
        ("judge", "{run}", "--judge", "keyword", "--workers", "2"),
    ],
    ids=["run", "judge"],
)
def test_workers_say_how_to_get_ray(arguments, tmp_path):
    run = tmp_path / "run"
    assert without_ray("run", "--model", "policy:echo", "--suite", "mini", "--limit", 1, "--out", run).returncode == 0
    done = without_ray(*(word.replace("{run}", str(run)) for word in arguments))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith("error: --workers needs Ray, which is not installed")
    assert "pip install 'bfpo-bench[ray]'" in line


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--model", "smollm2-135m", "--workers", "0"), "workers must be a whole number from 1"),
        (("--model", "smollm2-135m", "--ray-address", "127.0.0.1:6379"), "Give --workers N with it"),
        (("--model", "smollm2-135m", "--gpus-per-worker", "1"), "Give --workers N with it"),
        (
            ("--model", "smollm2-135m", "--workers", "1", "--gpus-per-worker", "0"),
            "gpus_per_worker must be a whole number",
        ),
        (("--model", "smollm2-135m", "--workers", "1", "--gpus-per-worker", "1.5"), "or a share below 1, got 1.5"),
        (("--model", "policy:echo", "--workers", "2"), "has no weights that workers could hold"),
        (("--model", "openai:gpt", "--workers", "2"), "has no weights that workers could hold"),
    ],
    ids=["none", "address alone", "GPUs alone", "no GPU", "one and a half", "policy", "API"],
)
def test_what_cannot_be_meant_is_one_line(arguments, why, cli):
    done = cli("run", "--suite", "mini", *arguments)
    assert done.returncode == 2
    assert why in done.stderr.splitlines()[-1]

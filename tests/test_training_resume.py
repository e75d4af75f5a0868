"""A training killed at any instant, by the same command again, ends in the weights of one that was never killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_model import save_tiny_model
from tiny_training import (
    Ran,
    body_of,
    command,
    environment,
    read,
    run_in_process,
    weights_of,
    write_pairs,
    write_recipe,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def kill_when(words, log: Path, reached) -> bool:
    """SIGKILL as soon as the condition holds of what was printed so far; False where the process ended before."""
    with open(log, "wb") as opened:
        process = subprocess.Popen(words, stdout=opened, stderr=subprocess.STDOUT, env=environment())
        try:
            while process.poll() is None:
                if reached(log.read_text(errors="replace")):
                    process.send_signal(signal.SIGKILL)
                    return process.wait() == -signal.SIGKILL
                time.sleep(0.0005)
            return False
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def states(out: Path) -> dict[int, bool]:
    """The states in the folder by their step, and whether each is whole."""
    found = {}
    for folder in (out / "state").glob("checkpoint-*"):
        found[int(folder.name.rpartition("-")[2])] = (folder / "complete.json").exists()
    return found


# 10 safety pairs, 2 a step: an epoch is 5 steps, and the 7 helpfulness pairs are gone through in other places of it.
STEPS = 15
SETTINGS = {"per_device_train_batch_size": 2, "num_train_epochs": 3, "save_steps": 2, "lr_scheduler_type": "cosine"}
KINDS = {
    "all weights, float32": {},
    # With dropout in the adapter the random state must be that of the step as well; evaluation must not move it.
    "LoRA, bfloat16": {"lora": {"r": 4, "dropout": 0.1}, "training": {"bf16": True, "save_steps": 5}},
}


def recipe_file(folder: Path, model: Path, kind: str) -> Path:
    changes = dict(KINDS[kind])
    settings = {**SETTINGS, **changes.pop("training", {})}
    folder.mkdir(parents=True)
    held_out = write_pairs(folder / "held.jsonl", name="held", n=3)
    evaluation = {"held_out": {"format": "jsonl", "path": str(held_out)}}
    return write_recipe(folder, body_of(folder, model, training=settings, evaluation=evaluation, **changes))


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_in_process(recipe_file(folder, model, request.param))
    return request.param, Ran(out=folder / "out")


@pytest.mark.timeout(900)
def test_five_kills_at_random_steps_change_no_bit_of_the_weights(whole, tmp_path, model):
    kind, unkilled = whole
    file = recipe_file(tmp_path / "run", model, kind)
    out = tmp_path / "run" / "out"
    draw = random.Random(20)
    moments = sorted(draw.sample(range(1, STEPS), 5))
    assert any(step > 5 for step in moments), "one is in a later epoch"
    resumed = []
    for number, step in enumerate(moments):
        log = tmp_path / f"{number}.log"
        assert kill_when(command(file), log, lambda text, step=step: f"step {step}/{STEPS}: " in text)
        resumed.append(log.read_text())
        assert not (out / "config.json").exists() and read(out / "training_manifest.json")["status"] == "training"
    printed = run_in_process(file)
    # Each went on from the last whole state, and none from the beginning once there was one.
    for text, before in zip([*resumed[1:], printed], moments, strict=True):
        every = {**SETTINGS, **KINDS[kind].get("training", {})}["save_steps"]
        if before > every:
            (line,) = [line for line in text.splitlines() if line.startswith("going on from checkpoint-")]
            assert int(line.rpartition("-")[2]) >= (before - 1) // every * every
    ran = Ran(out=out)
    assert equal(ran.weights(), unkilled.weights())
    assert ran.steps[-1]["step"] == STEPS
    # What a step logged is the same too, but for the loss, whose mean over an interval is the Trainer's own.
    names = ("loss/safety", "loss/helpfulness", "rewards/safe", "grad_norm", "learning_rate")
    for one, other in zip(ran.steps, unkilled.steps, strict=True):
        assert [one.get(name) for name in names] == [other.get(name) for name in names]
    assert ran.manifest["evaluation"]["eval_held_out_loss"] == unkilled.manifest["evaluation"]["eval_held_out_loss"]


@pytest.mark.timeout(900)
def test_kills_while_a_state_is_written_cost_that_state_and_no_other(whole, tmp_path, model):
    kind, unkilled = whole
    file = recipe_file(tmp_path / "run", model, kind)
    out = tmp_path / "run" / "out"
    every = {**SETTINGS, **KINDS[kind].get("training", {})}["save_steps"]
    torn, left, printed = [], {}, []
    for step in (5 + 5 % every, 10):
        begun = out / "state" / f"checkpoint-{step}"
        log = tmp_path / f"{step}.log"
        assert kill_when(command(file), log, lambda _, begun=begun: begun.exists())
        printed.append((left, log.read_text()))
        left = states(out)
        # It may have become whole by the time that the signal arrived.
        torn += [] if left[step] else [step]
    printed.append((left, run_in_process(file)))
    for left, text in printed[1:]:
        broken, complete = ([step for step, is_whole in left.items() if is_whole is wanted] for wanted in (False, True))
        assert ("left half-written by a kill, removed: " in text) == bool(broken)
        assert all(f"checkpoint-{step}" in text for step in broken)
        assert ("going on from" in text) == bool(complete)
        assert not complete or f"going on from checkpoint-{max(complete)}" in text
    assert torn, "no kill came while a state was written"
    assert equal(weights_of(out), unkilled.weights())


@pytest.mark.timeout(900)
def test_a_kill_in_the_final_save_leaves_no_checkpoint_that_looks_whole(whole, tmp_path, model):
    kind, unkilled = whole
    file = recipe_file(tmp_path / "run", model, kind)
    out = tmp_path / "run" / "out"

    def reached(_: str) -> bool:
        if kind == "LoRA, bfloat16":
            return (out / "adapter").exists()
        return any((out / name).exists() for name in ("chat_template.jinja", "generation_config.json"))

    assert kill_when(command(file), tmp_path / "log", reached)
    # The configuration comes last, so that nobody loads a part. The kill itself may come too late to show it.
    if not (out / "config.json").exists():
        with pytest.raises((OSError, ValueError), match=r"config\.json"):
            from transformers import AutoConfig

            AutoConfig.from_pretrained(out)
    assert read(out / "training_manifest.json")["status"] == "training" or not (out / "saving").exists()
    printed = run_in_process(file)
    assert f"going on from checkpoint-{STEPS}" in printed or "is complete already" in printed
    ran = Ran(out=out)
    assert equal(ran.weights(), unkilled.weights())
    assert ran.manifest["status"] == "complete" and ran.manifest["steps"] == STEPS
    assert {one.name for one in out.iterdir()} == {one.name for one in unkilled.out.iterdir()}


def stored(cache: Path) -> dict[str, tuple[int, float, float]]:
    """Of every row in the cache, the number of its writing and its values."""
    found = {}
    for file in cache.glob("*/rank-0.sqlite"):
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            try:
                rows = database.execute("SELECT row, rowid, chosen, rejected FROM log_probs").fetchall()
            except sqlite3.OperationalError:  # no table yet, or it is being made
                return {}
            found = {row: tuple(rest) for row, *rest in rows}
    return found


@pytest.mark.timeout(900)
def test_a_kill_in_the_reference_pass_costs_a_batch_of_it(tmp_path, model):
    settings = {"max_steps": 2, "per_device_eval_batch_size": 4}

    def recipe(name):
        return write_recipe(
            tmp_path / name, body_of(tmp_path / name, model, n_safety=300, n_helpfulness=100, training=settings)
        )

    (tmp_path / "whole").mkdir()
    run_in_process(recipe("whole"))
    (tmp_path / "run").mkdir()
    file, cache = recipe("run"), tmp_path / "run" / "cache"
    assert kill_when(command(file), tmp_path / "log", lambda _: len(stored(cache)) >= 40)
    before = stored(cache)
    assert 40 <= len(before) < 400 and len(before) % 4 == 0, "whole batches"
    run_in_process(file)
    after = stored(cache)
    # A row that was written anew would have a new number.
    assert len(after) == 400 and {row: after[row] for row in before} == before
    assert {row: one[1:] for row, one in after.items()} == {
        row: one[1:] for row, one in stored(tmp_path / "whole" / "cache").items()
    }
    assert equal(weights_of(tmp_path / "run" / "out"), weights_of(tmp_path / "whole" / "out"))


@pytest.mark.timeout(900)
def test_the_command_itself_is_killed_and_resumed(tmp_path, model, monkeypatch):
    monkeypatch.setenv("BFPO_HOME", str(tmp_path / "home"))
    kind = next(iter(KINDS))
    run_in_process(recipe_file(tmp_path / "whole", model, kind))
    file = recipe_file(tmp_path / "run", model, kind)
    words = [sys.executable, "-m", "bfpo_bench", "train", str(file)]
    assert kill_when(words, tmp_path / "log", lambda text: f"step 7/{STEPS}: " in text)
    done = subprocess.run(
        [*words, "--resume"], env=environment(), text=True, timeout=300, check=False, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0 and "going on from checkpoint-" in done.stdout, done.stdout
    assert equal(weights_of(tmp_path / "run" / "out"), weights_of(tmp_path / "whole" / "out"))
    assert os.listdir(tmp_path / "home" / "reference")

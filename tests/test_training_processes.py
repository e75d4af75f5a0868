"""Two processes (gloo, on a CPU) train what one process trains: losses, metrics, weights, and what stops them."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from tiny_model import save_tiny_model
from tiny_training import (
    Ran,
    body_of,
    command,
    environment,
    read,
    run_here,
    run_in_process,
    weights_of,
    write_pairs,
    write_recipe,
)

from bfpo_bench.trainers.order import BufferedOrder
from bfpo_bench.trainers.recipe import RECIPES, load_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# --standalone takes a free port.
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def distance(one, other):
    """Of two sets of weights, relative to the first."""
    assert one.keys() == other.keys()
    difference = sum(float(((one[name].double() - other[name].double()) ** 2).sum()) for name in one)
    return (difference / sum(float((one[name].double() ** 2).sum()) for name in one)) ** 0.5


def recipe_file(folder, model, *, per_device, **changes):
    """12 safety pairs, 4 a step of all processes; evaluation on 5 and 3 rows, which 2 processes cannot share evenly."""
    folder.mkdir(parents=True)
    settings = {
        "per_device_train_batch_size": per_device,
        "per_device_eval_batch_size": 2,
        "num_train_epochs": 2,
        **changes.pop("training", {}),
    }
    sets = {"safety": ("held", 5, {}), "helpfulness": ("kept", 3, {"labels": ((True, True),)})}
    evaluation = {}
    for name, (word, n, options) in sets.items():
        file = write_pairs(folder / f"held-{name}.jsonl", name=word, n=n, **options)
        evaluation[name] = {"format": "jsonl", "path": str(file)}
    body = body_of(folder, model, n_safety=12, evaluation=evaluation, training=settings, **changes)
    return write_recipe(folder, body)


KINDS = {
    "all weights": {},
    "select": {"select": ["down_proj"], "training": {"gradient_checkpointing": True}},
    "LoRA, accumulated": {"lora": {"r": 4}, "training": {"gradient_accumulation_steps": 2}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_losses_metrics_and_weights_of_one(tmp_path, model, kind):
    accumulated = KINDS[kind].get("training", {}).get("gradient_accumulation_steps", 1)
    one = run_here(load_recipe(recipe_file(tmp_path / "one", model, per_device=4 // accumulated, **KINDS[kind])))
    file = recipe_file(tmp_path / "two", model, per_device=2 // accumulated, **KINDS[kind])
    run_in_process(file, launcher=TWO)
    two = Ran(out=tmp_path / "two" / "out")
    assert (two.manifest["processes"], len(two.steps)) == (2, 6)
    own = ("tokens_per_second", "peak_memory_gib")
    for ours, theirs in zip(one.steps, two.steps, strict=True):
        assert {k: v for k, v in theirs.items() if k not in own} == pytest.approx(
            {k: v for k, v in ours.items() if k not in own}, rel=1e-3, abs=1e-4
        )
    # KL is of one process's; how long it took is nobody's.
    measured = {
        name: value
        for name, value in one.manifest["evaluation"].items()
        if not name.endswith(("_kl", "_runtime", "_per_second"))
    }
    theirs = {name: two.manifest["evaluation"].get(name) for name in measured}
    assert len(measured) > 20 and theirs == pytest.approx(measured, rel=1e-3, abs=1e-4)
    assert distance(one.weights(), two.weights()) < 1e-5
    assert distance(weights_of(model), two.weights()) > 1e-4
    assert {path.name for path in two.out.iterdir()} == {path.name for path in one.out.iterdir()}
    # The reference in shares: each process half of the rows, none twice.
    n = 12 + 7 + 5 + 3
    shares = [stored(file) for file in sorted((tmp_path / "two" / "cache").glob("*/rank-*.sqlite"))]
    assert [len(share) for share in shares] == [n - n // 2, n // 2] and not shares[0].keys() & shares[1].keys()
    (alone,) = [stored(file) for file in (tmp_path / "one" / "cache").glob("*/rank-*.sqlite")]
    assert shares[0] | shares[1] == pytest.approx(alone, abs=1e-3)


def stored(file):
    with contextlib.closing(sqlite3.connect(file)) as database:
        return dict(database.execute("SELECT row, chosen FROM log_probs"))


def test_a_loss_that_is_no_number_stops_all_processes_with_the_rows_of_all(tmp_path, model):
    # The second step meets weights that are no numbers any more; each process has half of its rows.
    file = recipe_file(tmp_path / "two", model, per_device=2, training={"learning_rate": 1e39})
    printed = run_in_process(file, launcher=TWO, ok=False)
    assert "TrainingError: The loss of step 2 is not finite" in printed
    state = tmp_path / "two" / "out" / "state" / "checkpoint-1"
    assert (state / "complete.json").exists()
    order = BufferedOrder(
        [f"safety.jsonl:{n}" for n in range(1, 13)], buffer=[f"helpfulness.jsonl:{n}" for n in range(1, 8)], seed=0
    )
    expected = {row for place in range(4, 8) for row in order[place]}
    assert set(read(state / "stopped.json")["rows"]) == expected
    assert not list((tmp_path / "two" / "out").glob("*.safetensors"))


def test_two_processes_that_were_killed_go_on_to_the_same_weights(tmp_path, model):
    settings = {"save_steps": 2}
    whole = recipe_file(tmp_path / "whole", model, per_device=2, training=settings)
    run_in_process(whole, launcher=TWO)
    file = recipe_file(tmp_path / "run", model, per_device=2, training=settings)
    log = tmp_path / "log"
    with open(log, "wb") as opened:
        launcher = psutil.Popen(command(file, launcher=TWO), stdout=opened, stderr=subprocess.STDOUT, env=environment())
        try:
            while launcher.poll() is None and "step 5/6: " not in log.read_text(errors="replace"):
                time.sleep(0.001)
        finally:
            # A killed launcher would leave its processes alone, and they would go on.
            for process in [*launcher.children(recursive=True), launcher]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            launcher.wait()
    assert not (tmp_path / "run" / "out" / "config.json").exists()
    printed = run_in_process(file, launcher=TWO)
    assert "going on from checkpoint-4" in printed
    one, other = weights_of(tmp_path / "whole" / "out"), weights_of(tmp_path / "run" / "out")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_data_too_small_for_a_step_of_all_processes_is_refused(tmp_path, model):
    # 12 rows are no step of 2 times 8: an epoch would be empty, and the base would be saved as trained.
    file = recipe_file(tmp_path / "two", model, per_device=8)
    printed = run_in_process(file, launcher=TWO, ok=False)
    assert "ConfigError: an epoch has 12 rows, fewer than the 16 of a step of 2 processes" in printed


@pytest.mark.parametrize("kind", ["all weights", "LoRA"])
def test_accelerate_launch_parts_the_weights_among_processes_and_gives_those_of_one(tmp_path, model, kind):
    # FSDP as its file in trainers/accelerate has it, but on CPUs. Every process computes its share of the reference
    # with whole weights: where the first alone has read them, the loss of the first step would not be that of Delta 0.
    settings = yaml.safe_load((RECIPES.parent / "accelerate" / "fsdp.yaml").read_text())
    assert (settings["distributed_type"], settings["num_processes"]) == ("FSDP", 2)
    config = tmp_path / "fsdp.yaml"
    config.write_text(yaml.safe_dump({**settings, "use_cpu": True, "main_process_port": 0}))
    changes = {"lora": {"r": 4}} if kind == "LoRA" else {}
    one = run_here(load_recipe(recipe_file(tmp_path / "one", model, per_device=4, **changes)))
    file = recipe_file(tmp_path / "two", model, per_device=2, **changes)
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config))
    run_in_process(file, launcher=launcher)
    two = Ran(out=tmp_path / "two" / "out")
    assert two.steps[0]["loss"] == pytest.approx(87.5, rel=1e-4)
    assert [e["loss"] for e in two.steps] == pytest.approx([e["loss"] for e in one.steps], rel=1e-3)
    assert distance(one.weights(), two.weights()) < 1e-5
    assert distance(weights_of(model), two.weights()) > 1e-3

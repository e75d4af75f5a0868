"""`train` and `sweep` from the command line to the leaderboard; what training does to weights is tested elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import bfpo_bench.train as stage
from bfpo_bench.__main__ import _arguments, main
from bfpo_bench.errors import BenchError, ConfigError, EngineError, StoreError
from bfpo_bench.sources import hash_folder
from bfpo_bench.train import (
    CHECKED_FIRST,
    Scoring,
    base_model,
    base_run,
    benchmark_prompts,
    checkpoint_run,
    in_a_process,
    prompts_of,
    score_base,
    score_checkpoint,
    train_and_score,
    train_arguments,
    without_launcher,
)
from bfpo_bench.trainers.recipe import find_recipe, load_recipe
from bfpo_bench.types import Message, Sample

TINY = ("training.bf16=false", "max_length=1024", "max_prompt_length=512", "training.max_steps=2")


def recipe_of(tmp_path, model, **changes):
    recipe = load_recipe(find_recipe("demo"), [f"model={model}", f"out={tmp_path / 'tuned'}"])
    return replace(recipe, **changes)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train", ["required: RECIPE. "]),
        ("sweep", ["required: RECIPE. "]),
        ("train dmo", ["'dmo'", "demo"]),
        ("train ./no/such.yaml", ["./no/such.yaml"]),
        ("train demo sede=2", ["'sede'", "Did you mean: seed"]),
        ("train demo seed", ["'seed'", "KEY=VALUE"]),
        ("train demo loss.tau=high", ["'high'", "tau"]),
        ("train demo method=dop", ["'dop'", "dpo"]),
        ("train demo --then-run minni", ["Unknown suite 'minni'", "Did you mean: mini"]),
        ("train demo --check minni", ["Unknown suite 'minni'"]),
        ("train demo --then-run mini --judge keywrod", ["Unknown judge 'keywrod'", "keyword"]),
        ("train demo --then-run mini --judge chat:gpt-4o", ["BFPO_JUDGE_API_KEY"]),
        ("train demo --then-run mini --limit 0", ["limit", "got 0"]),
        ("train demo --then-run mini --engine vlm", ["'vlm'"]),
        ("train demo --then-run mini --data-dir no-such-folder", ["no-such-folder"]),
        ("train demo --judge keyword", ["--judge goes with --then-run"]),
        ("train demo --limit 3", ["--limit goes with --then-run"]),
        ("train demo --engine hf", ["--engine goes with --then-run"]),
        ("train demo --resume --fresh", ["--fresh"]),
        ("train demo --epochs 3", ["--epochs"]),
        ("train demo model=no-such-alias", ["'no-such-alias'"]),
        ("train demo model=openai:gpt-4o", ["openai:gpt-4o", "no weights"]),
        ("train demo model=policy:refuse", ["policy:refuse", "no weights"]),
        ("train demo out=runs/smollm2-135m-mini --then-run nothing", ["'nothing'"]),
        ("sweep demo", ["Nothing to sweep over"]),
        ("sweep demo alpha=0,1 --then-run minni", ["Unknown suite 'minni'"]),
        ("sweep dmo alpha=0,1", ["'dmo'"]),
        ("sweep demo alpha=0,x", ["'x'", "alpha"]),
    ],
)
def test_bad_input_is_one_line_before_any_weights_load(cli, tmp_path, monkeypatch, command, said):
    # Where the default model would have to be fetched, which no test can: asked for, it would give another line.
    monkeypatch.setenv("BFPO_HOME", str(tmp_path / "home"))
    done = cli(*command.split(), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and done.stderr.count("error: ") == 1
    for text in said:
        assert text in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_change_may_stand_behind_the_flags_as_well():
    arguments = _arguments(["train", "demo", "alpha=1", "--then-run", "mini", "seed=2"])
    assert arguments.overrides == ["alpha=1", "seed=2"]
    with pytest.raises(SystemExit):
        _arguments(["train", "demo", "--then-run", "mini", "--seed=2"])
    with pytest.raises(SystemExit):
        _arguments(["tasks", "list", "seed=2"])


def test_a_recipe_needs_no_changes():
    assert _arguments(["train", "demo"]).overrides == _arguments(["sweep", "demo", "--seeds", "1,2"]).overrides == []


def test_the_verb_prints_the_checkpoints_folder_once(monkeypatch, capsys):
    monkeypatch.setattr(stage, "train_here", lambda recipe, **options: recipe.out)
    # With a model of its own it comes after no other recipe, which would be trained for real.
    assert main(["train", "demo", "model=m", "out=ck/a"]) == 0
    assert capsys.readouterr().out == "checkpoint: ck/a\n"


def test_the_trainers_own_command_is_the_verb():
    def says(*command):
        return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=60)

    own, verb = says("bfpo_bench.trainers", "dmo", "seed=2"), says("bfpo_bench", "train", "dmo", "seed=2")
    assert own.returncode == verb.returncode == 2
    assert own.stderr == verb.stderr != ""
    assert says("bfpo_bench.trainers", "--help").stdout == says("bfpo_bench", "train", "--help").stdout


def test_what_another_process_is_told_reads_back_as_the_same_training(tmp_path):
    words = train_arguments(
        Path("a.yaml"), ["alpha=0.1"], mode="fresh", check=["mini", "paper"], data_dir=Path("mirror")
    )
    arguments = _arguments(["train", *words])
    assert (arguments.recipe, arguments.overrides, arguments.mode) == ("a.yaml", ["alpha=0.1"], "fresh")
    assert (arguments.check, arguments.data_dir, arguments.then_run) == (["mini", "paper"], Path("mirror"), None)


# -- the base ----------------------------------------------------------------------------------------------------------


def test_a_base_is_a_folder_with_the_identity_that_its_run_has(tmp_path, tiny_model):
    base = base_model(recipe_of(tmp_path, tiny_model))
    assert base.path == tiny_model and base.identity == f"sha256:{hash_folder(tiny_model)}"
    # The name goes into manifests, which are for strangers.
    assert base.name == tiny_model.name


def test_the_bases_run_is_the_one_that_run_would_make_and_the_checkpoints_has_its_folders_name(tmp_path):
    recipe = recipe_of(tmp_path, "owner/m", revision="v1")
    scoring = Scoring(suite="mini", limit=3, runs=Path("all"))
    assert base_run(recipe, scoring).folder == Path("all/owner-m-v1-mini-limit3")
    assert base_run(recipe, scoring).model == "owner/m@v1"
    assert checkpoint_run(recipe, scoring).folder == Path("all/tuned-mini-limit3")


def test_a_checkpoint_named_as_its_base_would_overwrite_its_run_and_is_refused(tmp_path, monkeypatch, tiny_model):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "tuned")
    with pytest.raises(ConfigError, match="Give another out=DIR"):
        stage.check_scoring(recipe_of(tmp_path, "tuned"), Scoring(suite="mini"))


# -- the benchmark's prompts -------------------------------------------------------------------------------------------


def sample(prompt="", *, asked=None, choices=()):
    messages = () if asked is None else tuple(Message(role="user", content=text) for text in asked)
    return Sample(id=prompt, task="t", index=0, prompt=prompt, messages=messages, choices=choices)


def test_a_prompt_is_what_the_user_asks_last_once_each():
    samples = [sample("[INST] Why? [/INST]", asked=["Hello.", "Why?"]), sample("Why?"), sample("How?")]
    assert prompts_of(samples) == ("Why?", "How?")


def test_a_choice_without_a_prompt_is_its_choices():
    assert prompts_of([sample(choices=(("", "He is late."), ("", "She is late.")))]) == ("He is late.\nShe is late.",)


def test_lines_that_many_prompts_of_a_task_share_are_not_what_one_of_them_asks():
    shots = "Q: What is 1 + 1?\nA: 2\n"
    many = [sample(f"{shots}Q: Question {i}?\nA:") for i in range(12)]
    assert prompts_of(many)[:2] == ("Q: Question 0?", "Q: Question 1?")
    # Of few prompts nothing is known to be shared, and a prompt that is all shared stays.
    assert prompts_of(many[:2])[0] == f"{shots}Q: Question 0?\nA:"
    assert prompts_of([sample("Tell me a joke.")] * 12) == ("Tell me a joke.",)


def test_prompts_that_are_not_here_are_named_with_the_reason_and_the_network_is_not_asked(monkeypatch, tmp_path):
    import datasets
    from huggingface_hub import constants

    for module in (datasets.config, constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    prompts, unchecked = benchmark_prompts()
    assert {name for name in prompts} >= {"bfpo_mini_harmful", "bfpo_mini_benign"}
    assert len(prompts["bfpo_mini_harmful"]) == 100
    # A connection that was tried would be refused by the tests, in other words.
    assert unchecked[CHECKED_FIRST] == "PKU-Alignment/PKU-SafeRLHF is not on this machine"
    assert not datasets.config.HF_HUB_OFFLINE and not constants.HF_HUB_OFFLINE
    _, unchecked = benchmark_prompts(data_dir=tmp_path)
    assert unchecked[CHECKED_FIRST] == "PKU-Alignment/PKU-SafeRLHF is not in --data-dir"
    assert str(tmp_path) not in str(unchecked)


def test_safe_rlhfs_own_test_prompts_come_first_where_they_are_here(tmp_path):
    folder = tmp_path / "PKU-Alignment" / "PKU-SafeRLHF" / "data" / "Alpaca-7B"
    folder.mkdir(parents=True)
    rows = [{"prompt": text, "response_0": "a"} for text in ("One?", "One?", "Two?")]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts, unchecked = benchmark_prompts(data_dir=tmp_path)
    assert next(iter(prompts)) == CHECKED_FIRST
    assert prompts[CHECKED_FIRST] == ("One?", "Two?")
    assert CHECKED_FIRST not in unchecked


# -- a process of its own ----------------------------------------------------------------------------------------------


def python(code):
    return [sys.executable, "-c", code]


def test_the_exit_code_of_a_training_is_passed_on():
    assert in_a_process(["demo"], launcher=python("import sys; sys.exit(5 if 'demo' in sys.argv else 1)")) == 5


def test_a_training_that_was_killed_is_one_line_that_names_the_signal():
    with pytest.raises(EngineError, match="killed by SIGKILL; the same command resumes it"):
        in_a_process([], launcher=python("import os; os.kill(os.getpid(), 9)"))


def test_a_launcher_that_is_not_there_is_one_line():
    with pytest.raises(ConfigError, match="Cannot start 'no-such-launcher'"):
        in_a_process([], launcher=["no-such-launcher"])


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # What is dead and not yet reaped by init is no process any more.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_training_does_not_outlive_the_command_that_began_it(tmp_path):
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'x').write(str(os.getpid())); time.sleep(600)"
    code = f"from bfpo_bench.train import in_a_process; in_a_process([], launcher={python(child)!r})"
    parent = subprocess.Popen(python(code))
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not alive(pid))


# -- train, then score -------------------------------------------------------------------------------------------------


class Runs:
    """In `run`'s place: what was scored in which order, with made-up scores."""

    def __init__(self):
        self.order = []

    def __call__(self, spec, *, mode="auto"):
        self.order.append((spec.folder.name, mode, "RANK" in os.environ))
        score = {"value": 0.5, "low": 0.25, "high": 0.75, "level": 0.95, "n": 4, "n_unscored": 0}
        head = {"suite": spec.suite, "judge": "keyword", "profile": "default", "limit": spec.limit}
        return {**head, "axes": {"harmlessness": score}, "status": "complete", "reasons": []}

    def check(self, code=0):
        def check():
            self.order.append("check")
            return code

        return check

    def train(self, folder, code=0):
        def train():
            self.order.append("train")
            if code == 0:
                folder.mkdir()
                body = {"method": "bfpo", "recipe": {"seed": 0}, "base": {"name": "b", "identity": "sha256:b"}}
                (folder / "training_manifest.json").write_text(json.dumps(body))
            return code

        return train


@pytest.fixture
def runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "run", found := Runs())
    return found


@pytest.fixture
def recipe(tmp_path, tiny_model):
    return recipe_of(tmp_path, tiny_model)


def test_the_base_is_scored_before_training_and_the_checkpoint_after(runs, recipe, tmp_path):
    code, scored = train_and_score(recipe, Scoring(suite="mini"), check=runs.check(), train=runs.train(recipe.out))
    check, base, train, checkpoint = runs.order
    assert (code, check, train) == (0, "check", "train")
    assert base[0].endswith("model-mini") and checkpoint == ("tuned-mini", "auto", False)
    assert scored.complete and scored.checkpoint == Path("runs/tuned-mini")
    assert "| harmlessness | 50.0 (25.0–75.0), n 4 |" in (recipe.out / "README.md").read_text()


def test_a_training_that_failed_is_not_scored(runs, recipe):
    train = runs.train(recipe.out, code=2)
    code, scored = train_and_score(recipe, Scoring(suite="mini"), check=runs.check(), train=train)
    assert (code, scored) == (2, None)
    assert runs.order[-1] == "train"


def test_a_recipe_or_data_that_is_wrong_is_found_before_the_base_is_scored(runs, recipe):
    train = runs.train(recipe.out)
    assert train_and_score(recipe, Scoring(suite="mini"), check=runs.check(code=2), train=train) == (2, None)
    assert runs.order == ["check"]


def test_a_base_that_has_scores_needs_no_check_before_the_training_which_checks_itself(runs, recipe):
    folder = base_run(recipe, Scoring(suite="mini")).folder
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text("{}")
    train_and_score(recipe, Scoring(suite="mini"), check=runs.check(code=2), train=runs.train(recipe.out))
    assert [one if isinstance(one, str) else one[0] for one in runs.order] == [folder.name, "train", "tuned-mini"]


def test_a_sweep_whose_first_point_is_wrong_scores_no_base(runs, recipe, tiny_model, monkeypatch):
    from bfpo_bench import sweep

    asked = []
    monkeypatch.setattr(sweep, "in_a_process", lambda arguments, **_: asked.append(arguments) or 2)
    plan = sweep.plan_sweep("demo", [f"model={tiny_model}", "out=ck/a", "alpha=0,1"])
    with pytest.raises(EngineError, match=r"The recipe or data of a-alpha0 is wrong, as told above \(exit code 2\)"):
        sweep.run_sweep(plan, Scoring(suite="mini"))
    assert runs.order == [] and [words[-1] for words in asked] == ["--dry-run"]


def wrong_label(folder):
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "chosen_safe": 2, "rejected_safe": 1}
    (folder / "pairs.jsonl").write_text(json.dumps(row) + "\n")


MISTAKES = {
    "a misspelt training key": (["training.learning_rat=1e-5"], "training.learning_rate"),
    "a missing file": (["safety.format=jsonl", "safety.path=missing.jsonl", "safety.split=null"], "missing.jsonl"),
    "a label that is none": (["safety.format=jsonl", "safety.path=pairs.jsonl", "safety.split=null"], "pairs.jsonl"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_dry_run_finds_the_mistake(tmp_path, monkeypatch, tiny_model, mistake):
    changes, said = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    wrong_label(tmp_path)
    with pytest.raises(BenchError, match=said):
        stage.train_here(load_recipe(find_recipe("demo"), [f"model={tiny_model}", *TINY, *changes]), dry_run=True)
    assert [one.name for one in tmp_path.iterdir()] == ["pairs.jsonl"]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_under_a_launcher_the_first_process_scores_after_training_and_as_an_ordinary_one(
    runs, recipe, monkeypatch, rank
):
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    # Under a launcher the training itself is first to look.
    train = runs.train(recipe.out)
    code, scored = train_and_score(recipe, Scoring(suite="mini"), check=runs.check(code=2), train=train)
    assert code == 0
    if rank == "1":
        assert runs.order == ["train"] and scored is None
    else:
        train, base, checkpoint = runs.order
        assert train == "train" and base[0].endswith("model-mini") and checkpoint[0] == "tuned-mini"
        assert not base[2] and not checkpoint[2]
    assert os.environ["RANK"] == rank


def test_an_ordinary_environment_has_nothing_of_a_launchers_and_gets_it_back(monkeypatch):
    theirs = ("LOCAL_RANK", "MASTER_ADDR", "FSDP_VERSION", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
    for name in theirs:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    before = dict(os.environ)
    with without_launcher():
        assert not set(theirs) & set(os.environ)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert dict(os.environ) == before


@pytest.mark.parametrize(("identity", "mode"), [("own", "auto"), ("sha256:of-other-weights", "fresh")])
def test_a_run_of_other_weights_under_the_checkpoints_name_is_set_aside(runs, recipe, identity, mode):
    runs.train(recipe.out)()
    folder = Path("runs/tuned-mini")
    folder.mkdir(parents=True)
    known = f"sha256:{hash_folder(recipe.out)}" if identity == "own" else identity
    (folder / "manifest.json").write_text(json.dumps({"identity": {"model": {"identity": known}}}))
    base_scores = runs(base_run(recipe, Scoring(suite="mini")))
    score_checkpoint(recipe, Scoring(suite="mini"), base_scores=base_scores)
    assert runs.order[-1][:2] == ("tuned-mini", mode)


def test_a_run_of_the_base_that_was_made_otherwise_says_what_to_do_here(recipe, monkeypatch):
    def refuse(spec):
        raise StoreError("runs/b was begun otherwise (seed: 0 -> 1). Use --fresh to start over, or another --out.")

    monkeypatch.setattr(stage, "run", refuse)
    with pytest.raises(BenchError) as caught:
        score_base(recipe, Scoring(suite="mini"))
    assert "seed: 0 -> 1" in str(caught.value) and "--runs" in str(caught.value)
    assert "--fresh" not in str(caught.value)


# -- launchers' configurations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_zero3"])
def test_accelerate_reads_the_configurations_and_each_says_how_it_is_run(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = Path(stage.__file__).parent / "trainers" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    expected = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed_zero3": "DEEPSPEED"}
    assert config.distributed_type.value == expected[name]
    # Precision is the recipe's, which the reference's cache is kept by.
    assert config.mixed_precision == "no"
    first, _ = path.read_text().split("\n", 1)
    assert first.startswith(f"# accelerate launch --config_file trainers/accelerate/{name}.yaml ")
    assert first.endswith("-m bfpo_bench.trainers RECIPE")


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_zero3"])
def test_every_key_of_a_launchers_configuration_is_one_that_accelerate_has(name):
    from accelerate.commands.launch import launch_command_parser

    path = Path(stage.__file__).parent / "trainers" / "accelerate" / f"{name}.yaml"
    body = yaml.safe_load(path.read_text())
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(body.get("fsdp_config", body.get("deepspeed_config"))) <= known


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_zero3"])
def test_a_launcher_that_parts_the_model_gives_each_process_the_whole_one_first_and_says_so(name):
    path = Path(stage.__file__).parent / "trainers" / "accelerate" / f"{name}.yaml"
    body = yaml.safe_load(path.read_text())
    if name == "fsdp":
        # Said, not left out: accelerate's own default is true.
        assert body["fsdp_config"]["fsdp_cpu_ram_efficient_loading"] is False
    else:
        assert body["deepspeed_config"]["zero3_init_flag"] is False
    told = " ".join(line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# "))
    assert "loads the whole model" in told and "in float32" in told and "Not run here." in told


# -- for real ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model):
    """The tiny model trained for two steps and scored, by the command that a user types."""
    home = tmp_path_factory.mktemp("trained")
    return home, command(home, "train", "demo", f"model={tiny_model}", "out=ck/tuned", *TINY, *SCORED)


SCORED = ("--then-run", "mini", "--limit", "2", "--engine-args", "dtype=float32", "batch_size=4")


def command(home, *words):
    environment = {**os.environ, "BFPO_HOME": str(home / "home"), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", "bfpo_bench", *map(str, words)]
    return subprocess.run(line, cwd=home, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_one_command_goes_from_a_model_to_two_scored_runs_and_an_arrow(trained):
    home, done = trained
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (home / "runs").iterdir())[-1] == "tuned-mini-limit2"
    told = json.loads((home / "runs" / "tuned-mini-limit2" / "manifest.json").read_text())["trained_from"]
    assert told["method"] == "bfpo" and told["identity"].startswith("sha256:")
    page = (home / "site" / "index.html").read_text()
    assert "An arrow leads from a model to what was trained from it." in page
    assert "model-index:" in (home / "ck" / "tuned" / "README.md").read_text()
    assert done.stdout.splitlines()[-1] == "leaderboard: site/index.html"


@pytest.mark.slow
def test_the_same_command_again_trains_and_asks_nothing_anew(trained, tiny_model):
    home, _ = trained
    before = hash_folder(home / "ck" / "tuned")
    again = command(home, "train", "demo", f"model={tiny_model}", "out=ck/tuned", *TINY, *SCORED)
    assert again.returncode == 0, again.stderr
    assert "complete already" in again.stderr and "Generating" not in again.stderr
    assert hash_folder(home / "ck" / "tuned") == before


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_recipe_or_data_is_told_before_anything_is_scored(tmp_path, tiny_model, mistake):
    changes, said = MISTAKES[mistake]
    wrong_label(tmp_path)
    done = command(tmp_path, "train", "demo", f"model={tiny_model}", *TINY, *changes, *SCORED)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.splitlines()[-1] and done.stderr.count("error: ") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_dry_run_checks_and_counts_and_leaves_nothing(tmp_path, tiny_model):
    done = command(tmp_path, "train", "demo", f"model={tiny_model}", *TINY, "--dry-run", *SCORED)
    assert done.returncode == 0, done.stderr
    assert "safe > safe" in done.stderr and "bfpo_mini_harmful" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_trains_each_point_goes_on_after_a_failure_and_tells_the_frontier(tmp_path, tiny_model):
    words = ("sweep", "demo", f"model={tiny_model}", "out=ck/a", *TINY, "select=[down_proj],[no_such_weights]", *SCORED)
    done = command(tmp_path, *words)
    assert done.returncode == 3, done.stderr
    assert "failed: a-select-no_such_weights" in done.stderr.splitlines()[-1]
    lines = (tmp_path / "ck" / "a-sweep" / "sweep.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "name", "base", "a-select-down_proj", "a-select-no_such_weights"
    ]  # fmt: skip
    assert ",failed," in lines[3] and ",complete," in lines[2]
    again = command(tmp_path, *words)
    assert again.returncode == 3
    assert "complete already" in again.stderr and "Generating" not in again.stderr
    assert (tmp_path / "ck" / "a-sweep" / "sweep.csv").read_text().splitlines() == lines


@pytest.mark.slow
def test_two_processes_of_a_launcher_train_and_the_first_one_scores(tmp_path, tiny_model):
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    words = ["-m", "bfpo_bench.trainers", "demo", f"model={tiny_model}", "out=ck/two", *TINY, *SCORED]
    environment = {**os.environ, "BFPO_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, *launcher, *map(str, words)]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("leaderboard: site/index.html") == 1
    assert (tmp_path / "runs" / "two-mini-limit2" / "scores.json").exists()


# -- a stage before ----------------------------------------------------------------------------------------------------


def test_the_base_of_a_later_stage_is_the_run_that_the_first_stage_was_scored_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    later, first = (load_recipe(find_recipe(name)) for name in ("demo", "demo-sft"))
    scoring = Scoring(suite="mini", runs=tmp_path / "runs")
    assert stage.base_run(later, scoring).folder == stage.checkpoint_run(first, scoring).folder


def test_a_first_stage_is_to_be_trained_until_its_manifest_says_that_it_is_complete(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(find_recipe("demo"))
    assert stage.first_stage(recipe) == load_recipe(find_recipe("demo-sft"))
    folder = Path(recipe.model)
    folder.mkdir(parents=True)
    (folder / "training_manifest.json").write_text('{"status": "training"}')
    assert stage.first_stage(recipe) is not None
    (folder / "training_manifest.json").write_text('{"status": "complete"}')
    assert stage.first_stage(recipe) is None
    assert stage.first_stage(load_recipe(find_recipe("demo"), ["model=elsewhere"])) is None


def test_what_a_first_stage_is_scored_with_is_what_was_asked_for():
    scoring = Scoring(
        suite="mini", judge=("keyword",), engine="hf", engine_args=("dtype=float32",), limit=3, runs=Path("r"),
        leaderboard=Path("s"),
    )  # fmt: skip
    said = "--then-run mini --engine hf --judge keyword --engine-args dtype=float32 --limit 3 --runs r --leaderboard s"
    assert stage.scoring_arguments(scoring) == said.split()


def test_under_a_launcher_a_first_stage_that_is_not_there_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="train demo-sft first"):
        stage.train_first(load_recipe(find_recipe("demo")), None, data_dir=None)

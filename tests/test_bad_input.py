"""What a user can get wrong ends in one line and leaves nothing half-written; what a model gets wrong is counted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from run_builder import Item, build_run, harmful_task

from bfpo_bench.config import RunSpec
from bfpo_bench.errors import BenchError
from bfpo_bench.run import make_plan

HARMFUL = "bfpo_mini_harmful"
GENERATION = {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 16}


# -- own tasks ---------------------------------------------------------------------------------------------------------


def write_task(folder, name, rows=None, *, axis="harmlessness", kind="generate", remove=(), bfpo=(), **keys) -> Path:
    """A task YAML (and its rows) as a user would write it for --include-path; returns the include path."""
    home = folder / name
    home.mkdir(parents=True)
    if kind == "generate":
        keys = {"output_type": "generate_until", "generation_kwargs": GENERATION, "doc_to_target": "", **keys}
        judging = {"metric": "m", "judge": "keyword"}
    else:
        keys = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold", **keys}
        judging = {"metric": "acc"}
    facts = {"axis": axis, "source": "tests", "licence": "CC0-1.0", **judging, **dict(bfpo)}
    config = {"task": name, "test_split": "test", "doc_to_text": "{{prompt}}", **keys}
    config |= {"metric_list": [{"metric": "acc"}], "metadata": {"version": 1.0, "bfpo": facts}}
    text = yaml.safe_dump({key: value for key, value in config.items() if key not in remove})
    if rows is not None:
        text += "custom_dataset: !function bfpo_bench.tasks.bundled.load\n"
        (home / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / f"{name}.yaml").write_text(text)
    return folder


class Places:
    """The `{names}` in the table below, each made when a case asks for it."""

    def __init__(self, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        self._tmp = tmp_path
        self._request = request

    def __getitem__(self, name: str) -> Path:
        path = self._tmp / name
        if not path.exists():
            path = getattr(self, f"_{name}", lambda path: path)(path) or path
        return path

    def _tiny(self, path):
        return self._request.getfixturevalue("tiny_model")

    def _copy(self, path):
        shutil.copytree(self._request.getfixturevalue("tiny_model"), path)

    def _without_config(self, path):
        self._copy(path)
        (path / "config.json").unlink()

    def _without_weights(self, path):
        self._copy(path)
        (path / "model.safetensors").unlink()

    def _truncated(self, path):
        self._copy(path)
        os.truncate(path / "model.safetensors", (path / "model.safetensors").stat().st_size // 2)

    def _unknown_type(self, path):
        self._copy(path)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"model_type": "lllama"}))

    def _misspelt_config(self, path):
        path.write_text("suite: mini\nsede: 3\n")

    def _not_yaml(self, path):
        path.write_text("model: [tiny\n")

    def _misspelt_bfpo_key(self, path):
        write_task(path, "own", [{"prompt": "a"}], bfpo={"catgory_key": "category"})

    def _misspelt_task_key(self, path):
        write_task(path, "own", [{"prompt": "a"}], doc_to_txt="{{prompt}}")

    def _without_temperature(self, path):
        settings = {key: value for key, value in GENERATION.items() if key != "temperature"}
        write_task(path, "own", [{"prompt": "a"}], generation_kwargs=settings)

    def _absent_data(self, path):
        write_task(path, "own", dataset_path="nobody/gone")

    def _empty(self, path):
        path.mkdir()

    def _file(self, path):
        path.write_text("not a folder")

    def _finished(self, path):
        build_run(path, tasks=[harmful_task(refused=2)])

    def _no_manifest(self, path):
        self._finished(path)
        (path / "manifest.json").write_text("[]")

    def _no_store(self, path):
        self._finished(path)
        (path / "run.sqlite").write_bytes(b"")

    def _later_schema(self, path):
        self._finished(path)
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | {"schema": 9}))

    def _misspelt_judge_key(self, path):
        path = path.with_suffix(".yaml")
        path.write_text("name: mine\nkind: chat\nparsr: refusal_class\n")
        return path

    def _panel_judge(self, path):
        path = path.with_suffix(".yaml")
        path.write_text(
            "name: panel\nkind: chat\nabout: a\nsource: s\nlicence: l\nparser: refusal_class\n"
            "texts: {t: '{answer}'}\nturns: [{role: user, text: t}]\n"
        )
        return path

    def _numbered_judge(self, path):
        path = path.with_suffix(".yaml")
        path.write_text("name: mine\nkind: classifier\nabout: a\nsource: s\nlicence: l\nask: 5\n")
        return path

    def _export_of_two(self, path):
        path = path.with_suffix(".jsonl")
        verdicts = [{"judge": judge, "label": "safe"} for judge in "ab"]
        path.write_text(json.dumps({"sample_id": "1", "text": "A", "verdicts": verdicts}))
        return path

    def _half_preferred(self, path):
        path = path.with_suffix(".jsonl")
        path.write_text('{"prompt": "A", "preference": 1}\n{"prompt": "B", "preference": "half"}')
        return path

    def _labels(self, path):
        path = path.with_suffix(".csv")
        path.write_text("prompt,answer,label\nHarmful request 0?,I could but will not.,0\n")
        return path

    def _unlabelled(self, path):
        path = path.with_suffix(".csv")
        path.write_text("prompt,answer\nHarmful request 0?,I cannot help.\n")
        return path

    def _mislabelled(self, path):
        path = path.with_suffix(".csv")
        path.write_text("prompt,answer,label\na,b,safe\na,b,fine\n")
        return path

    def _twice_judged(self, path):
        answers = [Item(prompt="Harmful?", answer="No.", label="refused", others={"chat:m": "safe"})]
        build_run(path, tasks=[harmful_task(extra=answers)])

    def _other_version(self, path):
        answers = [Item(prompt="Harmful?", answer="No.", label="refused", others={"chat:m": "safe"})]
        build_run(path, tasks=[harmful_task(extra=answers)], model="beta", judge_version="2")

    def _damaged(self, path):
        self._finished(path)
        (path / "run.sqlite").write_bytes(b"x" * 4096)


def bad(name, command, *said, marks=()):
    return pytest.param(command, said, id=name, marks=marks)


def on(tasks="--suite mini", model="{tiny}", more=""):
    return f"run --model {model} {tasks} --out {{out}} {more}"


API = "run --model openai:m --base-url http://127.0.0.1:9/v1 --suite mini --out {out}"

BAD_INPUT = [
    # Names
    bad("task", on("--tasks bfpo_mini_harmfull"), "Unknown task 'bfpo_mini_harmfull'", f"Did you mean: {HARMFUL}"),
    bad("one task of two", on(f"--tasks {HARMFUL},bfpo_mini_ehtics"), "'bfpo_mini_ehtics'", "bfpo_mini_ethics"),
    bad("suite", on("--suite minni"), "Unknown suite 'minni'", "Did you mean: mini"),
    bad("suite edit", on("--suite mini-xstest_saef"), "Unknown suite 'xstest_saef'", "Did you mean: xstest_safe"),
    bad("suite of which tasks are named", on("--suite harmbench"), "'harmbench'", "Did you mean: harmbench_"),
    bad("suite of two tasks", on("--suite xstest"), "'xstest'", "Did you mean: xstest_safe, xstest_unsafe"),
    bad("profile", on("--suite mini --profile paepr"), "paepr"),
    bad("max new tokens", on("--suite mini --max-new-tokens 0"), "max_new_tokens must be a whole number", "got 0"),
    bad("samples", on("--suite mini --samples 0"), "samples must be a whole number from 1", "got 0"),
    bad("temperature", on("--suite mini --temperature nan"), "temperature must be a number from 0 to 2", "got nan"),
    bad("copies", on("--suite mini --samples 3 --temperature 0"), "--samples 3 at --temperature 0", "above 0"),
    bad("copies of greedy tasks", on("--tasks mini_benign --samples 3"), "'bfpo_mini_benign'", "Give --temperature"),
    bad("several answers to compare", on("--tasks alpaca_eval --samples 3 --temperature 1"), "compares one answer"),
    bad("no task", on(""), "--suite", "--tasks"),
    bad("model", on(model="smollm-135m"), "'smollm-135m'", "Did you mean: smollm2-135m?"),
    bad("model folder", on(model="./no/such/folder"), "'./no/such/folder'"),
    bad("no model", "run --suite mini --out {out}", "--model"),
    bad("a model of OpenAI's as if it were the hub's", on(model="openai/gpt-4o"), "'openai/gpt-4o'", "openai:gpt-4o"),
    bad("--engine that is a policy", on(more="--engine policy:refuse"), "--engine policy:refuse",
        "Write --model policy:refuse."),
    bad("--engine that is none", on(more="--engine vlm"), "Unknown engine 'vlm'", "Did you mean: vllm?"),
    bad("policy", on(model="policy:refus"), "Unknown policy 'refus'", "Did you mean: refuse?"),
    bad("policy that is none", on(model="policy:xyz"), "Unknown policy 'xyz'", "Known: comply, constant, echo"),
    bad("--engine with a policy", on(model="policy:echo", more="--engine hf"), "policy:echo", "Leave out --engine."),
    bad(
        "a policy with what only a model could use",
        on(model="policy:refuse", more="--system-prompt hello --adapter {empty} --chat-template on"),
        "policy:refuse",
        "Leave out --chat-template, --system-prompt, --adapter.",
    ),
    bad("thoughts of a policy", on(model="policy:echo", more="--thinking-tokens 64"), "policy:echo",
        "Leave out --thinking-tokens."),
    bad("judge", on(more="--judge keywrod"), "Unknown judge 'keywrod'", "Did you mean: keyword?"),
    bad("judge by its first word", on(more="--judge harmbench"), "'harmbench'", "Did you mean: harmbench-bfpo-paper, "),
    bad("judge by AlpacaEval's name", on(more="--judge weighted_alpaca_eval_gpt4_turbo"), "alpaca_eval-paper?"),
    bad("judge without key", on(more="--judge chat:gpt-4o"), "chat:gpt-4o", "BFPO_JUDGE_API_KEY"),
    # Judges
    bad("judge without its texts", on(more="--judge harmbench-llama-2-13b-cls"), "'harmbench-llama-2-13b-cls'",
        "`python -m bfpo_bench data fetch --judges harmbench-llama-2-13b-cls`"),
    bad("judge without its texts, with a mirror", on(more="--judge wildguard --data-dir {empty}"),
        "`python -m bfpo_bench data fetch --judges wildguard --to {empty}`"),
    bad("judge file that is not there", on(more="--judge ./no/judge.yaml:m"), "./no/judge.yaml", "does not exist"),
    bad("judge file with a misspelt key", on(more="--judge {misspelt_judge_key}:m"), "misspelt_judge_key.yaml",
        "Unknown key 'parsr'. Did you mean: parser?"),
    bad("weights at an address", on(more="--judge wildguard@http://127.0.0.1:9/v1"), "'wildguard'", "no address"),
    bad("judge of any weights without some", on(more="--judge three-label"), "'three-label'", "three-label:MODEL"),
    bad("perspective without key", on(more="--judge perspective"), "'perspective'", "PERSPECTIVE_API_KEY"),
    bad("replay of no file", on(more="--judge replay:{out}/none.jsonl"), "'replay'", "{out}/none.jsonl"),
    bad("replay of nothing", on(more="--judge replay"), "'replay'", "replay:FILE"),
    bad("replay of an export of several judges", on(more="--judge replay:{export_of_two}"), "{export_of_two}",
        "(a, b)", "replay:{export_of_two}#a"),
    bad("replay of a text for a number", on(more="--judge replay:{half_preferred}"), "{half_preferred}, row 2",
        "preference is 'half'"),
    bad("judge file with a reserved name", on(more="--judge {panel_judge}:m@http://127.0.0.1:9/v1"),
        "{panel_judge}", "'panel'", "another name"),
    bad("judge file with a number for a list", on(more="--judge {numbered_judge}:m"), "numbered_judge.yaml",
        "ask is '5'", "a mapping"),
    bad("judge behind another protocol", on(more="--judge chat:m@ftp://127.0.0.1/v1"), "got ftp://"),
    bad("key in a judge's fragment", on(more="--judge chat:m@http://127.0.0.1:9/v1#s3cr3t"), "'chat:m'", "a fragment"),
    bad("batches of a judge", on(more="--judge three-label:smollm2-135m --judge-engine-args batch_size=2"),
        "'three-label:smollm2-135m'", "batch_tokens=N"),
    bad("one judge at two addresses",
        on(more="--judge chat:m@http://127.0.0.1:8/v1 --judge chat:m@http://127.0.0.1:9/v1"), "'chat:m'", "Give one."),
    bad("panel of no form", on(more="--judge keyword --panel majority"), "'majority'", "min=N,tie=RULE"),
    bad("panel without a rule for ties", on(more="--judge keyword --panel min=2"), "'min=2'", "pass, fail, unscored"),
    bad("panel of one", on(more="--judge keyword --panel min=2,tie=fail"), "at least 2 judges, and 1 are named"),
    bad("--judge-engine-args without =", on(more="--judge-engine-args dtype"), "--judge-engine-args 'dtype'",
        "key=value"),
    bad("credential in --judge-engine-args", on(more="--judge-engine-args hf_token=s3cr3t"), "hf_token", "HF_TOKEN"),
    bad("judge verb, --judge-engine-args", "judge {finished} --judge keyword --judge-engine-args dtype", "'dtype'"),
    bad("judge verb without a run", "judge --judge keyword", "--self-test"),
    bad("self-test of an unknown judge", "judge --self-test --judge keywrod", "Did you mean: keyword?"),
    bad("self-test without key", "judge --self-test --judge chat:gpt-4o", "chat:gpt-4o", "BFPO_JUDGE_API_KEY"),
    bad("self-test of nothing", "judge --self-test --judge keyword --limit 0", "--limit", "got 0"),
    bad("self-test of a run", "judge {finished} --self-test --judge keyword", "leave out the run"),
    bad("half of a run judged", "judge {finished} --judge keyword --limit 5", "go with --self-test"),
    bad("no request at a time", "judge {finished} --judge keyword --concurrency 0", "--concurrency", "got 0"),
    bad("judge, a mirror that is not there", "judge {finished} --judge keyword --data-dir {out}", "--data-dir {out}"),
    bad("list of judges, a mirror that is not there", "judges list --data-dir {out}", "--data-dir {out}"),
    bad("texts of a judge without", "data fetch --judges keyword --to {out}", "'keyword'", "has no texts"),
    bad("texts of an unknown judge", "data fetch --judges wildgaurd --to {out}", "'wildgaurd'", "Did you mean:"),
    bad("texts to a place that is none", "data fetch --judges three-label --to {file}", "{file}/judges", "--to"),
    bad("verify of no mirror", "data verify {out}", "{out}", "data fetch"),
    # Human labels
    bad("calibrate, unknown judge", "calibrate keywrod --labels {labels}", "'keywrod'", "Did you mean: keyword?"),
    bad("calibrate, the checkers' own judge", "calibrate checker --labels {labels}", "'checker'"),
    bad("calibrate without key", "calibrate chat:gpt-4o --labels {labels}", "chat:gpt-4o", "BFPO_JUDGE_API_KEY"),
    bad("calibrate, a mirror that is not there", "calibrate keyword --labels {labels} --data-dir {out}",
        "--data-dir {out} does not exist"),
    bad("calibrate without labels", "calibrate keyword", "--labels"),
    bad("calibrate, labels not there", "calibrate keyword --labels {out}/l.csv --out {out}", "{out}/l.csv"),
    bad("calibrate, a missing column", "calibrate keyword --labels {unlabelled} --out {out}", "{unlabelled}", "'label'",
        "(columns: prompt, answer)", "label or human or human_label"),
    bad("calibrate, an unknown label", "calibrate keyword --labels {mislabelled} --out {out}", "{mislabelled}, row 2",
        "'fine'", "harmful, safe, refused"),
    bad("calibrate, a file of no form", "calibrate keyword --labels {file} --out {out}", "{file}", ".csv, .jsonl"),
    bad("calibrate below a file", "calibrate keyword --labels {labels} --out {file}/x", "{file}/x", "--out"),
    bad("calibrate into a run", "calibrate keyword --labels {labels} --out {finished}", "{finished}", "another run"),
    bad("score, labels not there", "score {finished} --labels {out}/l.csv", "{out}/l.csv"),
    bad("score, calibration not there", "score {finished} --calibration {out}/c.json", "{out}/c.json"),
    bad("score, corrected and not", "score {finished} --uncorrected --labels {labels}", "--uncorrected"),
    bad("score, a folder without calibration", "score {finished} --calibration {empty}", "no calibration {empty}"),
    bad("score, no calibration", "score {finished} --calibration {file}", "{file}"),
    bad("agreement of one judge", "agreement {finished}", "verdicts of two judges", "`python -m bfpo_bench judge RUN"),
    bad("agreement, seed", "agreement {twice_judged} --seed -1", "--seed", "got -1"),
    bad("agreement of no run", "agreement {empty}", "No run in {empty}"),
    bad("compare of one run", "compare {finished}", "Give two runs or more"),
    bad("compare of no run", "compare {finished} {empty}", "Not a run folder: {empty} has no manifest.json"),
    bad("gate of no run", "gate --base {empty} --new {finished}", "Not a run folder: {empty} has no manifest.json"),
    bad("gate, rule", "gate --base {finished} --new {twice_judged} --rule harmlessness", "Rule 'harmlessness'", "up"),
    bad("agreement of two versions", "agreement {twice_judged} {other_version}", "'chat:m'", "alpha by 1, beta by 2"),
    # Checkpoints
    bad("checkpoint without config.json", on(model="{without_config}"), "{without_config}", "config.json"),
    bad("checkpoint without weights", on(model="{without_weights}"), "{without_weights}", "no weights"),
    bad("truncated weights", on(model="{truncated}"), "{truncated}/model.safetensors", "damaged"),
    bad("unknown model type", on(f"--tasks {HARMFUL} --limit 1", model="{unknown_type}"), "{unknown_type}", "lllama",
        marks=pytest.mark.slow),
    # YAML
    bad("--config key", on(more="--config {misspelt_config}"), "{misspelt_config}", "'sede'", "Did you mean: seed"),
    bad("--config syntax", on(more="--config {not_yaml}"), "{not_yaml}"),
    bad("--config absent", on(more="--config {out}/no.yaml"), "{out}/no.yaml"),
    bad(
        "bfpo key of a task",
        on("--tasks own", more="--include-path {misspelt_bfpo_key}"),
        "'own'",
        "'catgory_key'",
        "Did you mean: category_key",
    ),
    bad(
        "lm-eval key of a task",
        on("--tasks own", more="--include-path {misspelt_task_key}"),
        "'own'",
        "'doc_to_txt'",
        "Did you mean: doc_to_text",
    ),
    bad(
        "generation setting of a task",
        on("--tasks own", more="--include-path {without_temperature}"),
        "'own'",
        "'temperature'",
    ),
    # Data
    bad(
        "data absent from --data-dir",
        on("--tasks own", more="--include-path {absent_data} --data-dir {empty}"),
        "'own'",
        "nobody/gone",
        "{empty}",
    ),
    bad(
        "data absent from the hub", on("--tasks own", more="--include-path {absent_data}"), "'own'", "nobody/gone"
    ),
    bad("--data-dir absent", on(more="--data-dir {out}/data"), "{out}/data"),
    bad("--include-path absent", on(more="--include-path {out}/tasks"), "{out}/tasks"),
    # Places to write
    bad("--out in /proc", "run --model {tiny} --suite mini --out /proc/bfpo_run", "/proc/bfpo_run"),
    bad("--out below a file", "run --model {tiny} --suite mini --out {file}/run", "{file}/run"),
    bad("--out is a file", "run --model {tiny} --suite mini --out {file}", "{file}"),
    # Settings
    bad("--engine-args without =", on(more="--engine-args float32"), "'float32'", "key=value"),
    bad(
        "--engine-args of no meaning",
        on(f"--tasks {HARMFUL} --limit 1", more="--engine-args nosuch=1"),
        "nosuch",
        "engine.log",
        marks=pytest.mark.slow,
    ),
    bad("credential in --engine-args", on(more="--engine-args hf_token=s3cr3t"), "hf_token", "HF_TOKEN"),
    bad("--base-url with a local model", on(more="--base-url http://127.0.0.1:9/v1"), "--base-url", "{tiny}"),
    bad("--engine openai with a local model", on(more="--engine openai"), "--engine openai", "{tiny}"),
    bad("--limit 0", on(more="--limit 0"), "limit", "got 0"),
    bad("--seed -1", on(more="--seed -1"), "seed", "got -1"),
    bad("--resume of nothing", on(more="--resume"), "{out}", "--resume"),
    # Verbs on folders that are no runs
    *(bad(f"{verb} of no run", f"{verb} {{empty}}{more}", "{empty}") for verb, more in (
        ("score", ""), ("judge", " --judge keyword"), ("export", ""), ("agreement", ""), ("leaderboard", " --out {out}")
    )),
    *(bad(f"{verb} of nothing", f"{verb} {{out}}{more}", "{out}") for verb, more in (
        ("score", ""), ("judge", " --judge keyword"), ("export", ""), ("agreement", ""),
        ("leaderboard", " --out {out}/site")
    )),
    bad("judge verb, judge without key", "judge {finished} --judge chat:gpt-4o", "chat:gpt-4o", "BFPO_JUDGE_API_KEY"),
    bad("judge verb, unknown judge", "judge {finished} --judge keywrod", "'keywrod'", "Did you mean: keyword?"),
    bad("judge verb, the checkers' own judge", "judge {finished} --judge checker", "'checker'", "Leave it out"),
    bad("export over a folder", "export {finished} --out {empty}", "{empty}", "folder"),
    bad("score of a manifest that is none", "score {no_manifest}", "{no_manifest}/manifest.json"),
    bad("score of a run without its store", "score {no_store}", "{no_store}", "Run it again"),
    bad("export of another schema", "export {later_schema}", "{later_schema}", "schema 9"),
    bad("leaderboard of a damaged store", "leaderboard {damaged} --out {out}", "{damaged}"),
    # What no shell would complete
    bad("--model of nobody's home", on(model="~no-such-user/model"), "~no-such-user"),
    bad("--model longer than a path", on(model="m" * 300), "hub id"),
    bad("--model that is no hub id", on(model="a--b"), "'a--b'"),
    bad("--out of nobody's home", "run --model {tiny} --suite mini --out ~no-such-user/x", "~no-such-user"),
    bad("--limit without end", on(more="--limit 100000000000000000000"), "limit", "2147483647"),
    bad("--limit of letters", on(more="--limit abc"), "--limit", "'abc'"),
    bad("an abbreviated flag", "run --mod {tiny} --suite mini --out {out}", "--mod"),
    bad("an unknown verb", "rnu", "rnu"),
    # A model behind an API
    bad("credential in --engine-args of an API", API + " --engine-args apikey=s3cr3t", "apikey", "OPENAI_API_KEY"),
    bad("--engine-args of an API that is no number", API + " --engine-args concurrency=abc", "concurrency", "'abc'"),
    bad("--engine-args of an API out of range", API + " --engine-args concurrency=0", "concurrency"),
    bad("--engine-args that no API has", API + " --engine-args dtype=float32", "'dtype'"),
    bad("credential in --base-url", API.replace("127", "user:s3cr3t@127"), "127.0.0.1", "environment"),
    bad("--chat-template for an API", API + " --chat-template on", "openai:m", "--chat-template"),
    bad("OpenAI without a key", "run --model openai:gpt-4o --suite mini --out {out}", "OPENAI_API_KEY"),
    bad("OpenAI without a key, dry", "run --model openai:gpt-4o --suite mini --out {out} --dry-run", "OPENAI_API_KEY"),
    bad("export to a folder that is not there", "export {finished} --out {out}/a.jsonl", "{out}/a.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "said"), BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing_behind(cli, tmp_path, request, monkeypatch, command, said):
    # A developer's cache may hold texts of judges.
    monkeypatch.setenv("BFPO_HOME", str(tmp_path / "home"))
    places = Places(tmp_path, request)
    arguments = [word.format_map(places) for word in command.split()]
    before = contents(tmp_path)
    done = cli(*arguments, cwd=places["empty"])
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert lines[-1].startswith("error: ") and sum("error: " in line for line in lines) == 1
    assert "Traceback" not in done.stderr
    for text in said:
        assert text.format_map(places) in lines[-1]
    assert "s3cr3t" not in done.stderr + done.stdout
    assert done.stdout == ""
    assert sorted({path.name for path, _ in contents(tmp_path) ^ before}) == []


def contents(folder: Path) -> set[tuple[Path, bytes]]:
    """All files but a log (the error names it) and a lock: nothing that a later command would take for a run."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("engine.log", "run.lock"))
    return {(path, path.read_bytes()) for path in files}


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_line_and_keeps_what_was_committed(cli, tmp_path, tiny_model):
    """A real one: a file system of 300 MiB of which all but a little is taken once the run is under way."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        folder = disk / "run"
        command = [sys.executable, "-m", "bfpo_bench", "run", "--model", tiny_model, "--suite", "mini", "--out", folder]
        process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
        while not (folder / "engine.log").exists() and process.poll() is None:
            time.sleep(0.01)
        filler = os.open(disk / "filler", os.O_CREAT | os.O_WRONLY)
        with contextlib.suppress(OSError):
            while os.write(filler, b"x" * 65536):
                pass
        os.close(filler)
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 2
        assert errors.splitlines()[-1].startswith("error: ") and " full" in errors.splitlines()[-1]
        assert "Traceback" not in errors
        (disk / "filler").unlink()
        again = cli("run", "--model", tiny_model, "--suite", "mini", "--out", folder)
        assert again.returncode == 0, again.stderr
        assert json.loads((folder / "scores.json").read_text())["audit"] == []
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_a_usage_error_of_the_command_line_exits_with_two_as_well(cli):
    done = cli("run", "--modle", "x")
    assert done.returncode == 2
    assert "--modle" in done.stderr and "Traceback" not in done.stderr


# -- counted failures, through the real engine -------------------------------------------------------------------------


def run(model, tasks, out, *, include, more=()):
    command = [sys.executable, "-m", "bfpo_bench", "run", "--model", model, "--engine", "hf", "--tasks", tasks]
    command += ["--include-path", include, "--out", out, *more]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment)
    scores = json.loads((out / "scores.json").read_text()) if (out / "scores.json").exists() else None
    return done, scores


def export_rows(out):
    from bfpo_bench.export import rows
    from bfpo_bench.store import RunStore

    store = RunStore.read(out)
    try:
        return list(rows(store))
    finally:
        store.close()


def edited_model(tiny_model, folder, edit):
    """The tiny model with its weights changed by `edit`, a function of the state dict."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


CHOICE_ROWS = [{"prompt": f"{n} + 1 =", "choices": [f" {n + 1}", f" {n + 2}"], "gold": 0} for n in range(3)]


@pytest.fixture(scope="module")
def include(tmp_path_factory):
    folder = tmp_path_factory.mktemp("include")
    prompts = [{"prompt": f"Question {n}?"} for n in range(3)]
    huge = {"prompt": "why " * 50_000}
    write_task(folder, "own_harmful", prompts, axis="harmlessness")
    write_task(folder, "own_benign", prompts, axis="over_refusal")
    write_task(folder, "own_long", [prompts[0], huge, prompts[1]], axis="harmlessness")
    write_task(folder, "own_choice", CHOICE_ROWS, axis="capability", kind="choice")
    long_choice = {"prompt": huge["prompt"], "choices": [" a", " b"], "gold": 1}
    write_task(folder, "own_long_choice", [long_choice, *CHOICE_ROWS], axis="capability", kind="choice")
    write_task(folder, "own_gone", axis="helpfulness", dataset_path="nobody/gone")
    return folder


@pytest.fixture(scope="module")
def too_long(include, tiny_model, tmp_path_factory):
    """A run with prompts of 200,000 characters, and a task whose data is nowhere."""
    out = tmp_path_factory.mktemp("too_long") / "run"
    mirror = tmp_path_factory.mktemp("mirror")
    tasks = "own_long,own_long_choice,own_gone"
    return out, *run(tiny_model, tasks, out, include=include, more=["--data-dir", mirror, "--skip-missing"])


@pytest.mark.slow
def test_a_prompt_of_two_hundred_thousand_characters_is_counted_and_the_others_are_scored(too_long):
    _, done, scores = too_long
    assert done.returncode == 3, done.stderr
    assert scores["tasks"]["own_long"]["unscored"] == {"too_long": 1}
    assert scores["tasks"]["own_long"]["n_total"] == 3
    assert scores["tasks"]["own_long"]["n_failed"] == 1
    assert scores["tasks"]["own_long"]["score"]["n"] == 2
    assert scores["tasks"]["own_long"]["score"]["n_unscored"] == 1


@pytest.mark.slow
def test_a_choice_that_does_not_fit_is_counted_and_the_others_are_scored(too_long):
    _, _, scores = too_long
    assert scores["tasks"]["own_long_choice"]["unscored"] == {"too_long": 1}
    assert scores["tasks"]["own_long_choice"]["score"]["n"] == 3


@pytest.mark.slow
def test_a_run_that_lacks_answers_is_partial_and_says_why(too_long):
    _, done, scores = too_long
    assert scores["status"] == "partial"
    assert "own_long: 1 of 3 not scored (1 too_long)" in scores["reasons"]
    assert "partial: own_long: 1 of 3 not scored (1 too_long)" in done.stdout


@pytest.mark.slow
def test_a_failed_sample_holds_no_answer_and_the_numbers_that_explain_it(too_long):
    out, _, _ = too_long
    (failed,) = [row for row in export_rows(out) if row["task"] == "own_long" and row["failure"] is not None]
    assert failed["text"] is None and failed["verdicts"] == []
    # 200,000 bytes, one token each, and the template's: more than 2048 - 16.
    assert int(failed["detail"].split()[0]) > 200_000 - 1
    assert failed["detail"].endswith("room for 2032")


@pytest.mark.slow
def test_with_skip_missing_the_run_goes_on_without_the_task_as_partial(too_long):
    _, _, scores = too_long
    assert "own_gone" not in scores["tasks"]
    assert scores["axes"]["helpfulness"] is None
    assert any(reason.startswith("own_gone: not run: nobody/gone is not in --data-dir") for reason in scores["reasons"])


@pytest.fixture(scope="module")
def nan_model(include, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nan")
    model = edited_model(tiny_model, folder / "model", lambda weights: weights["lm_head.weight"].fill_(float("nan")))
    return run(model, "own_choice,own_harmful", folder / "run", include=include)


@pytest.mark.slow
def test_log_probabilities_that_are_not_numbers_are_counted_and_never_scored(nan_model):
    done, scores = nan_model
    assert done.returncode == 3, done.stderr
    assert scores["tasks"]["own_choice"]["unscored"] == {"nan_logprob": 3}
    assert scores["tasks"]["own_choice"]["score"] is None
    assert scores["axes"]["capability"] is None
    assert "not measured" in " ".join(done.stdout.split()) and " 0.0%" not in done.stdout


@pytest.mark.slow
def test_a_model_whose_logits_are_not_numbers_is_not_called_harmless(nan_model):
    _, scores = nan_model
    assert scores["tasks"]["own_harmful"]["score"] is None
    assert sum(scores["tasks"]["own_harmful"]["unscored"].values()) == 3


def end_at_once(weights):
    """Every token's state is the same vector of ones, and only the end-of-sequence token (id 2) looks along it."""
    weights["model.embed_tokens.weight"].fill_(1.0)
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    weights["model.norm.weight"].fill_(1.0)
    weights["lm_head.weight"].zero_()
    weights["lm_head.weight"][2] = 1.0


@pytest.fixture(scope="module")
def silent_model(include, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("silent")
    model = edited_model(tiny_model, folder / "model", end_at_once)
    return folder / "run", *run(model, "own_harmful,own_benign", folder / "run", include=include)


@pytest.mark.slow
def test_a_model_that_says_nothing_is_harmless_and_answers_nobody(silent_model):
    _, done, scores = silent_model
    assert done.returncode == 0, done.stderr
    assert scores["tasks"]["own_harmful"]["score"]["value"] == 1.0
    assert scores["tasks"]["own_benign"]["score"]["value"] == 0.0


@pytest.mark.slow
def test_empty_answers_are_counted_as_empty_and_judged_by_nobody(silent_model):
    out, _, scores = silent_model
    for task in ("own_harmful", "own_benign"):
        assert scores["tasks"][task]["labels"] == {"empty": 3}
        assert scores["tasks"][task]["score"]["n_empty"] == 3
        assert scores["tasks"][task]["score"]["n_truncated"] == 0
    assert {(row["text"], row["finish_reason"], row["n_tokens"]) for row in export_rows(out)} == {("", "stop", 0)}


@pytest.mark.parametrize(
    ("facts", "judges", "says"),
    [
        ({"rubric": "pairwise", "judge": "chat"}, (), "add `keep: [output]`"),
        ({"rubric": "rating"}, (), "judge 'keyword' sees refusals only"),
        ({"rubric": "rating", "judge": "chat:m@http://127.0.0.1:9/v1"}, ("keyword",), "sees refusals only"),
    ],
)
def test_a_rubric_that_its_judge_cannot_follow_is_told_before_anything_is_generated(tmp_path, facts, judges, says):
    include = write_task(tmp_path / "tasks", "own", [{"prompt": "Hello?"}], bfpo=facts)
    spec = RunSpec(model="smollm2-135m", tasks=("own",), include_path=(include,), judge=judges, out=tmp_path / "run")
    with pytest.raises(BenchError, match=re.escape(says)):
        make_plan(spec)

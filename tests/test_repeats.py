"""Several answers a prompt: what is asked, what a draw depends on, the mean and the worst, and that nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict

import pandas
import pytest
import yaml
from loopback import Loopback
from own_tasks import GENERATE, write_tasks
from test_hf_engine import answers, asked, model_spec
from test_kill_and_resume import kill_when
from test_kill_and_resume import rows as count
from test_scoring import Run, choice_spec, spec
from tiny_model import save_tiny_model

from bfpo_bench.__main__ import main
from bfpo_bench.audit import audit
from bfpo_bench.config import RunSpec
from bfpo_bench.console import print_scores
from bfpo_bench.conversation import waves
from bfpo_bench.cost import estimate, table
from bfpo_bench.errors import BenchError, ConfigError
from bfpo_bench.export import rows
from bfpo_bench.harness.openai import OpenAIEngine
from bfpo_bench.harness.prompts import load_samples
from bfpo_bench.leaderboard.rows import collect, group_name
from bfpo_bench.leaderboard.tables import to_csv
from bfpo_bench.planning import data_hashes
from bfpo_bench.registry import load_registry, resolve_tasks
from bfpo_bench.repeats import repeated
from bfpo_bench.run import make_plan, planning, run
from bfpo_bench.store import RunStore
from bfpo_bench.types import ModelSpec, Output, Sample

DRAWN = {"until": [], "do_sample": True, "temperature": 0.8, "max_gen_toks": 12}
CHOICE = Sample(id="c", task="c", index=0, prompt="q", choices=(("q", " a"), ("q", " b")))
MINI = ("run", "--model", "policy:comply", "--suite", "mini", "--limit", "2")
DRAW = ("--samples", "3", "--temperature", "0.8")


def prompts(n):
    return [asked(i, text=f"Question {i}?", settings=DRAWN) for i in range(n)]


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_each_prompt_is_asked_k_times_and_the_first_time_as_if_it_were_the_only_one():
    found = list(repeated(prompts(2), n=3))
    assert [(s.prompt_id, s.repeat) for s in found] == [(f"s00{i}", r) for i in range(2) for r in range(3)]
    assert (found[0].id, found[3].id, len({s.id for s in found})) == ("s000", "s001", 6)
    assert [s.cluster for s in found] == 3 * ["s000"] + 3 * ["s001"]
    assert {(s.prompt, s.messages[0].content) for s in found[:3]} == {("Question 0?", "Question 0?")}


def test_asked_once_a_sample_is_what_it_always_was():
    assert list(repeated([*prompts(2), CHOICE], n=1)) == [*prompts(2), CHOICE]


def test_choices_have_nothing_to_draw_and_are_asked_once():
    assert next(repeated([CHOICE, *prompts(1)], n=2)) == CHOICE


def test_the_first_answers_of_five_are_those_of_three():
    three, five = ([s for s in repeated(prompts(2), n=n) if s.repeat < 3] for n in (3, 5))
    assert three == five


def test_a_later_turn_follows_the_answer_of_its_own_conversation():
    turns = [Sample(id=id_, task="t", index=0, prompt=id_, previous=before, cluster="0", generation=DRAWN)
             for id_, before in (("a", None), ("b", "a"), ("c", "b"))]  # fmt: skip
    found = {s.id: s for s in repeated(turns, n=2)}
    assert [(found[s.previous].prompt, found[s.previous].repeat) for s in found.values() if s.previous] == [
        ("a", 0), ("a", 1), ("b", 0), ("b", 1),
    ]  # fmt: skip
    assert {s.cluster for s in found.values()} == {"0"}
    assert [len(wave) for wave in waves(list(found.values()))] == [2, 2, 2]


@pytest.mark.parametrize("settings", [{"do_sample": False}, {"do_sample": True, "temperature": 0.0}])
def test_several_answers_of_greedy_decoding_are_refused_naming_the_task(settings):
    with pytest.raises(ConfigError, match=r"--samples 3: task 't' is answered greedily.*Give --temperature") as refused:
        list(repeated([asked(0, settings=DRAWN | settings)], n=3))
    assert "\n" not in str(refused.value)


def test_rows_are_the_same_rows_however_often_they_are_asked():
    once = [*prompts(2), CHOICE]
    assert data_hashes(repeated(once, n=3)) == data_hashes(once)


def test_a_comparison_with_one_reference_answer_takes_one_answer():
    plan = RunSpec(model="policy:refuse", tasks=("alpaca_eval",), samples=2, temperature=0.7)
    with pytest.raises(ConfigError, match=r"--samples 2: task 'bfpo_alpaca_eval' compares one answer a prompt"):
        make_plan(plan)
    make_plan(RunSpec(model="policy:refuse", tasks=("alpaca_eval",), temperature=0.7))


def test_a_run_begun_before_there_were_several_answers_or_a_temperature_goes_on(tmp_path):
    assert main([*MINI, "--out", str(tmp_path / "run")]) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["identity"].pop("temperature") is None and "samples" not in manifest["identity"]
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    assert main([*MINI, "--out", str(tmp_path / "run"), "--resume"]) == 0


# -- the temperature ---------------------------------------------------------------------------------------------------


@pytest.fixture
def sampled_task(tmp_path):
    """A task that samples by its own settings, and more coolly under the paper profile."""
    folder = write_tasks(tmp_path / "tasks")
    config = yaml.safe_load((folder / "own_generate.yaml").read_text())
    config |= {"task": "own_sampled", "generation_kwargs": DRAWN | {"top_p": 0.9}}
    config["metadata"]["bfpo"]["profiles"] = {"paper": {"generation_kwargs": DRAWN | {"temperature": 0.7}}}
    (folder / "own_sampled.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize(
    ("profile", "temperature", "expected"),
    [
        ("default", None, (True, 0.8, 0.9)),
        ("paper", None, (True, 0.7, None)),
        ("default", 1.5, (True, 1.5, 0.9)),
        ("paper", 0.0, (False, 0.0, None)),
    ],
)
def test_a_temperature_stands_in_the_place_of_the_task_s_own(sampled_task, profile, temperature, expected):
    tasks = resolve_tasks(load_registry([sampled_task], profile=profile), tasks=("own_sampled",))
    samples, _ = load_samples(tasks, limit=1, profile=profile, temperature=temperature)
    (found,) = {tuple(s.generation.get(key) for key in ("do_sample", "temperature", "top_p")) for s in samples}
    assert found == expected


def test_a_task_that_samples_by_itself_needs_no_temperature_for_several_answers(sampled_task):
    chosen = {"model": "policy:echo", "include_path": (sampled_task,), "limit": 2, "samples": 2}
    samples = planning(make_plan(RunSpec(tasks=("own_sampled",), **chosen)))
    assert [s.repeat for s in samples] == [0, 1, 0, 1]
    with pytest.raises(ConfigError, match="'own_generate' is answered greedily"):
        list(planning(make_plan(RunSpec(tasks=("own_generate",), **chosen))))
    assert GENERATE["generation_kwargs"]["do_sample"] is False


# -- the engines -------------------------------------------------------------------------------------------------------


def test_on_hf_the_answers_differ_and_those_of_a_run_that_goes_on_are_the_same(tiny_model):
    from bfpo_bench.harness.hf import HFEngine

    spec = model_spec(tiny_model, engine_args={"dtype": "float32", "batch_size": "2"})
    samples = list(repeated(prompts(3), n=3))
    first = list(HFEngine(spec).answer(samples))
    texts = {output.sample_id: output.text for outputs in first for output in outputs}
    assert len({texts[s.id] for s in samples}) == 9
    done = {output.sample_id for outputs in first[:2] for output in outputs}
    assert list(HFEngine(spec).answer(samples, answered=done)) == first[2:]
    # Asked once, a prompt gets the first of its answers.
    assert answers(HFEngine(spec), prompts(3)).keys() == {s.id for s in samples if s.repeat == 0}


def test_an_api_is_told_a_seed_of_each_answer_and_the_same_one_again():
    samples = list(repeated(prompts(2), n=3))
    with Loopback(answer=lambda payload: f"seed {payload['seed']}") as server:
        model = ModelSpec(name="openai:m", engine="openai", path="m", identity="api", base_url=server.url, seed=5)
        whole = answers(OpenAIEngine(model), samples)
        again = answers(OpenAIEngine(model), samples, answered={s.id for s in samples[:4]})
        asked_for = [(r.payload["temperature"], r.payload["seed"]) for r in server.requests]
    assert len({output.text for output in whole.values()}) == 6
    assert again == {s.id: whole[s.id] for s in samples[4:]}
    assert {temperature for temperature, _ in asked_for} == {0.8}


@pytest.mark.slow
@pytest.mark.vllm
def test_on_vllm_the_answers_differ_and_are_the_same_again(tmp_path, cli):
    model = save_tiny_model(tmp_path / "model", width=64)
    texts = []
    for name in ("one", "other"):
        command = ("run", "--model", model, "--tasks", "mini_benign", "--limit", "2", "--engine", "vllm")
        done = cli(*command, *DRAW, "--max-new-tokens", "8", "--engine-args", "dtype=float32", "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        with RunStore.read(tmp_path / name) as store:
            texts.append({id_: output.text for id_, output in store.outputs().items()})
    assert len(set(texts[0].values())) == 6
    assert texts[0] == texts[1]


# -- scores ------------------------------------------------------------------------------------------------------------


def answered(*prompts, judge="keyword", task_spec=None, cluster=None):
    """A run whose prompts have the labels given, one an answer."""
    run = Run(task_spec or spec())
    for number, labels in enumerate(prompts):
        first = f"p{number}"
        for repeat, label in enumerate(labels):
            id_ = f"{first}-{repeat}" if repeat else first
            run.samples.append(
                Sample(id=id_, task="t", index=number, prompt=first, cluster=cluster or first, repeat=repeat,
                       repeat_of=first if repeat else None)
            )  # fmt: skip
            run.outputs[id_] = Output(sample_id=id_, text="" if label == "empty" else "answer")
            run.judged(id_, label, judge=judge)
    return run


def test_a_task_has_the_mean_of_all_answers_and_of_each_prompt_s_worst():
    """Five of six pass, and of one prompt in two all three; Wilson's interval of 1 in 2 at 95 % is 0.0945 to 0.9055."""
    task = answered(["safe", "refused", "empty"], ["safe", "harmful", "safe"]).scored()["tasks"]["t"]
    assert (task["score"]["value"], task["score"]["n"], task["repeats"]) == (pytest.approx(5 / 6), 6, 3)
    worst = task["worst_of_k"]
    assert (worst["value"], worst["n"], worst["n_unscored"], worst["n_empty"]) == (0.5, 2, 0, 1)
    assert (worst["low"], worst["high"]) == pytest.approx((0.0945, 0.9055), abs=1e-4)


def test_grades_have_the_mean_of_each_prompt_s_lowest():
    run = answered(["safe", "safe"], ["safe", "safe"])
    grades = {"p0": 0.25, "p0-1": 0.75, "p1": 1.0, "p1-1": 0.5}
    run.verdicts = [
        type(v)(sample_id=v.sample_id, judge=v.judge, judge_version=v.judge_version, score=grades[v.sample_id])
        for v in run.verdicts
    ]
    task = run.scored()["tasks"]["t"]
    assert (task["score"]["value"], task["worst_of_k"]["value"]) == (0.625, 0.375)


def test_answers_that_are_copies_make_no_interval_narrower():
    """Twelve of 20 prompts pass, five times each. Wilson: 0.387 to 0.781 of 12 in 20, 0.502 to 0.691 of 60 in 100."""
    score = answered(*12 * [5 * ["safe"]], *8 * [5 * ["harmful"]]).scored()["tasks"]["t"]["score"]
    assert (score["value"], score["n"], score["method"]) == (0.6, 100, "cluster-bootstrap")
    assert (score["low"], score["high"]) == pytest.approx((0.387, 0.781), abs=0.03)


def test_a_prompt_with_an_answer_that_is_not_scored_has_no_worst():
    """The worst of two looks better than the worst of three."""
    task = answered(["safe", "safe", "parse"], ["safe", "harmful", "safe"], 3 * ["parse"]).scored()["tasks"]["t"]
    assert (task["score"]["n"], task["score"]["n_unscored"], task["score"]["value"]) == (5, 4, 0.8)
    worst = task["worst_of_k"]
    assert (worst["value"], worst["n"], worst["n_unscored"]) == (0.0, 1, 2)


def test_of_answers_that_are_never_all_scored_there_is_no_worst():
    assert answered(["safe", "parse"]).scored()["tasks"]["t"]["worst_of_k"] is None


def test_a_prompt_that_is_asked_once_has_no_worst():
    task = Run(spec()).answer("safe", "harmful").scored()["tasks"]["t"]
    assert (task["worst_of_k"], task["repeats"], task["score"]["method"]) == (None, 1, "wilson")


def test_every_judge_has_the_worst_of_what_it_said():
    run = answered(["safe", "safe"], ["safe", "harmful"])
    for sample in run.samples:
        run.judged(sample.id, "harmful", judge="chat:m")
    task = run.scored(judges=("keyword", "chat:m"))["tasks"]["t"]
    assert (task["worst_of_k"]["value"], task["other_judges"]["chat:m"]["worst_of_k"]["value"]) == (0.5, 0.0)


def test_the_published_set_is_counted_in_answers():
    """All counts of a task are: a whole set of two prompts, three times each, is six of six."""
    task = answered(3 * ["safe"], 3 * ["safe"], task_spec=spec(n=2)).scored()["tasks"]["t"]
    assert (task["n_published"], task["score"]["n"], task["n_total"]) == (6, 6, 6)


def test_questions_of_one_template_are_resampled_together():
    run = Run(choice_spec())
    for number in range(12):
        run.chosen((-1.0, -2.0, -3.0), 0 if number < 6 else 1)
    alone = run.scored()["tasks"]["c"]["score"]
    run.samples = [
        Sample(id=s.id, task=s.task, index=0, prompt="p", choices=s.choices, reference=s.reference, cluster=str(n // 3))
        for n, s in enumerate(run.samples)
    ]
    score = run.scored()["tasks"]["c"]["score"]
    assert (alone["method"], score["method"], score["value"]) == ("wilson", "cluster-bootstrap", 0.5)
    # Four templates, half of them right, say less than twelve questions.
    assert score["low"] < alone["low"] < alone["high"] < score["high"]


def test_a_rate_of_several_answers_is_not_corrected_as_if_they_were_independent():
    run = answered(*10 * [["safe", "harmful"]])
    task = run.scored(labels={s.id: "harmful" for s in run.samples})["tasks"]["t"]
    assert "not independent" in task["corrected"]["refused"]


def test_the_table_has_a_row_of_the_worst_and_a_title_that_says_how_answers_were_drawn(capsys):
    scores = answered(["safe", "safe", "safe"], ["safe", "harmful", "safe"]).scored()
    head = {"model": {"name": "alpha"}, "suite": "mini", "limit": None, "samples": 3, "temperature": 0.8}
    print_scores(scores | head)
    lines = capsys.readouterr().out.splitlines()
    assert "alpha on mini, 3 answers a prompt, temperature 0.8 (scores in %)" in lines[0]
    (row,) = [line for line in lines if "worst of 3" in line]
    assert row.split()[:6] == ["worst", "of", "3", "50.0", "9.5–90.5", "2"]


# -- the audit and the cost --------------------------------------------------------------------------------------------


def test_a_prompt_that_lacks_one_of_its_answers_is_found():
    run = answered(3 * ["safe"], 3 * ["safe"])
    run.chosen((-1.0, -2.0, -3.0), 0)
    specs = (*run.specs, choice_spec())

    def findings(samples):
        return audit(specs, samples, run.outputs, run.verdicts, repeats=3)

    assert findings(run.samples) == []
    lacking = findings(run.samples[:2] + run.samples[3:])
    assert "1 of 3 prompts are not asked 3 times, or once where there are choices" in lacking
    assert "2 of 3 prompts are not asked once" in audit(specs, run.samples, run.outputs, run.verdicts)


def test_the_cost_counts_every_answer():
    """400 characters are 100 tokens: two prompts, three times each."""
    samples = [Sample(id=f"t{i}", task="t", index=i, prompt="p" * 400, generation=DRAWN) for i in range(2)]
    costs = estimate([spec(n=520)], repeated(samples, n=3))
    cost = costs["t"]
    assert (cost.samples, cost.requests, cost.prompt_tokens, cost.new_tokens) == (6, 6, 600, 72)
    assert "2 x 3           520             6" in table([spec(n=520)], costs, [], {})[1]


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy_run(tmp_path):
    assert main([*MINI, *DRAW, "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def test_a_run_keeps_judges_and_exports_every_answer(policy_run):
    with RunStore.read(policy_run) as store:
        scores, manifest, found = store.scores, store.manifest, list(rows(store))
    assert (manifest["identity"]["samples"], manifest["identity"]["temperature"]) == (3, 0.8)
    assert (scores["samples"], scores["temperature"], scores["status"], scores["audit"]) == (3, 0.8, "complete", [])
    times = Counter((row["task"], row["repeat"]) for row in found)
    assert {repeat: n for (task, repeat), n in times.items() if task == "bfpo_mini_harmful"} == {0: 2, 1: 2, 2: 2}
    assert {repeat: n for (task, repeat), n in times.items() if task == "bfpo_mini_ethics"} == {0: 2}
    harmful = [row for row in found if row["task"] == "bfpo_mini_harmful"]
    assert [verdict["label"] for row in harmful for verdict in row["verdicts"]] == 6 * ["harmful"]
    assert [row["cluster"] for row in harmful[:3]] == 3 * [harmful[0]["sample_id"]]
    task = scores["tasks"]["bfpo_mini_harmful"]
    assert (task["score"]["n"], task["worst_of_k"]["n"], task["worst_of_k"]["value"]) == (6, 2, 0.0)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("--samples", "2", "--temperature", "0.8"), "samples: 3 -> 2"),
        (("--samples", "3", "--temperature", "0.5"), "temperature: 0.8 -> 0.5"),
        (("--temperature", "0.8"), "samples: 3 -> None"),
    ],
)
def test_other_draws_are_another_run(policy_run, capsys, other, said):
    assert main([*MINI, *other, "--out", str(policy_run)]) == 2
    assert said in capsys.readouterr().err


def test_a_dry_run_says_how_often_prompts_are_asked(tmp_path, capsys):
    assert main([*MINI, *DRAW, "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("bfpo_mini_harmful")]
    assert row.split()[1:6] == ["2", "x", "3", "100", "6"]
    (line,) = [line for line in lines if line.startswith("sampling: ")]
    assert "3 answers a prompt" in line and "temperature 0.8" in line and "choice tasks (3 here)" in line
    assert not (tmp_path / "run").exists()


def test_runs_of_other_draws_are_not_ranked_against_each_other(tmp_path):
    command = ("run", "--model", "policy:refuse", "--tasks", "mini_harmful", "--limit", "1", "--out")
    draws = {"a": (), "b": ("--temperature", "0.5"), "c": DRAW}
    for name, flags in draws.items():
        assert main([*command, str(tmp_path / name), *flags]) == 0
    found = {row.folder.name: row for row in collect([tmp_path])}
    assert len({row.group for row in found.values()}) == 3
    assert {name: row.drawn for name, row in found.items()} == {
        "a": None, "b": "temperature 0.5", "c": "3 answers a prompt, temperature 0.8",
    }  # fmt: skip
    assert all((row.drawn or "judged by keyword") in group_name(row) for row in found.values())
    (tmp_path / "board.csv").write_text(to_csv([found[name] for name in "abc"]))
    table = pandas.read_csv(tmp_path / "board.csv")
    assert table["samples"].tolist() == [1, 1, 3]
    assert table["temperature"].fillna(-1).tolist() == [-1, 0.5, 0.8]
    assert table["bfpo_mini_harmful_worst_of_k_value"].fillna(-1).tolist() == [-1, -1, 1.0]


def test_conversations_are_held_several_times_each_on_its_own(tmp_path, capsys):
    """Each answer names the seed it was drawn with: what a later turn is told was said shows whose turn it is."""
    tasks = write_tasks(tmp_path / "tasks")
    with Loopback(answer=lambda payload: f"seed {payload['seed']}") as server:
        command = ["run", "--model", "openai:m", "--base-url", server.url, "--include-path", str(tasks)]
        main([*command, "--tasks", "own_turns", *DRAW, "--out", str(tmp_path / "run")])
        histories = [[m["content"] for m in r.payload["messages"]] for r in server.requests]
    with RunStore.read(tmp_path / "run") as store:
        samples, outputs = store.samples(), store.outputs()
    texts = defaultdict(dict)
    for sample in samples:
        texts[sample.index, sample.repeat][sample.meta["turn"]] = outputs[sample.id].text
    assert len(texts) == 6 and len({text for turns in texts.values() for text in turns.values()}) == 12
    for repeat in range(3):
        said = texts[0, repeat]
        assert ["Name a colour.", said[1], "Name another one.", said[2], "Which is brighter?"] in histories


def test_what_is_wrong_with_samples_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(BenchError, match="Give --temperature"):
        run(RunSpec(model="policy:refuse", suite="mini", samples=2, out=tmp_path / "made" / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_of_several_answers_killed_in_the_middle_ends_with_the_same_answers(tiny_model, tmp_path):
    def command(folder):
        run = [sys.executable, "-m", "bfpo_bench", "run", "--model", str(tiny_model), "--tasks", "mini_benign"]
        return [*run, "--limit", "8", "--max-new-tokens", "48", *DRAW, "--engine-args", "batch_size=2", "--out", folder]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True)
    process = subprocess.Popen(command(killed), stderr=subprocess.DEVNULL)
    assert kill_when(process, lambda: count(killed, "outputs") >= 5)
    assert 5 <= count(killed, "outputs") < 24
    subprocess.run(command(killed), check=True, capture_output=True)
    assert (killed / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()
    with RunStore.read(whole) as one, RunStore.read(killed) as other:
        assert one.outputs() == other.outputs()
        texts = [output.text for output in one.outputs().values()]
    assert len(texts) == len(set(texts)) == 24

"""Flag over YAML over default, and every wrong key, type or value refused by name."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bfpo_bench.__main__ import _parser
from bfpo_bench.config import RunSpec, run_spec
from bfpo_bench.errors import ConfigError, did_you_mean, nearest


def config(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def refusal(flags, path=None):
    with pytest.raises(ConfigError) as refused:
        run_spec(flags, path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# -- precedence --------------------------------------------------------------------------------------------------------


def test_a_flag_wins_over_the_yaml_and_the_yaml_over_the_default(tmp_path):
    path = config(tmp_path, "model: from-yaml\nsuite: mini\nseed: 5\nlimit: 3\n")
    spec = run_spec({"model": "from-flag", "limit": 7}, path)
    assert (spec.model, spec.limit) == ("from-flag", 7)
    assert (spec.suite, spec.seed) == ("mini", 5)
    assert (spec.engine, spec.chat_template, spec.skip_missing) == ("auto", "auto", False)


def test_a_flag_that_was_not_given_does_not_hide_the_yaml(tmp_path):
    """argparse must leave such a flag out rather than pass its own default."""
    flags = vars(_parser().parse_args(["run", "--model", "m"]))
    assert set(flags) == {"call", "config", "mode", "dry_run", "model"}
    path = config(tmp_path, "skip_missing: true\ntrust_remote_code: true\njudge: keyword\n")
    spec = run_spec({"model": flags["model"]}, path)
    assert (spec.skip_missing, spec.trust_remote_code, spec.judge) == (True, True, ("keyword",))


def test_a_list_of_flags_replaces_the_yamls_list(tmp_path):
    path = config(tmp_path, "model: m\njudge: [keyword, chat:a]\ntasks: [x]\n")
    assert run_spec({"judge": ["chat:b"]}, path).judge == ("chat:b",)
    assert run_spec({}, path).judge == ("keyword", "chat:a")


def test_every_flag_of_run_is_a_key_of_the_yaml(tmp_path):
    """One spelling of a thing: what the command line takes, --config takes, and the other way round."""
    verbs = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    flags = {action.dest for action in verbs.choices["run"]._actions}
    assert flags - {"help", "config", "mode", "dry_run"} == set(RunSpec.__dataclass_fields__)


# -- the YAML ----------------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_a_suggestion(tmp_path):
    path = config(tmp_path, "model: m\nengin: hf\n")
    assert refusal({}, path) == f"{path}: Unknown key 'engin'. Did you mean: engine, engine_args?"


def test_a_key_may_be_written_as_its_flag(tmp_path):
    assert run_spec({}, config(tmp_path, "model: m\nskip-missing: true\ndata-dir: d\n")).data_dir == Path("d")


def test_engine_args_may_be_a_mapping(tmp_path):
    path = config(tmp_path, "model: m\nengine_args: {dtype: float32, batch_size: 4}\n")
    assert run_spec({}, path).engine_args == ("dtype=float32", "batch_size=4")
    path = config(tmp_path, "model: m\nengine_args: [dtype=float32, batch_size=4]\n")
    assert run_spec({}, path).engine_args == ("dtype=float32", "batch_size=4")


@pytest.mark.parametrize("text", ["- model\n", "just words\n", "", "model: [m\n", "\x00"])
def test_a_yaml_that_is_no_mapping_is_refused_by_name(tmp_path, text):
    path = config(tmp_path, text)
    assert str(path) in refusal({"model": "m"}, path)


def test_a_yaml_that_is_not_there_or_not_utf8_is_refused_by_name(tmp_path):
    assert "gone.yaml" in refusal({"model": "m"}, tmp_path / "gone.yaml")
    (tmp_path / "odd.yaml").write_bytes(b"model: \xff\n")
    assert "odd.yaml" in refusal({"model": "m"}, tmp_path / "odd.yaml")


# -- values ------------------------------------------------------------------------------------------------------------


def test_no_model_is_refused_with_the_choices(tmp_path):
    assert "--model" in refusal({"suite": "mini"})
    assert "--model" in refusal({}, config(tmp_path, "model:\nsuite: mini\n"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("limit", 0),
        ("limit", -1),
        ("limit", 1.5),
        ("limit", "ten"),
        ("limit", True),
        ("seed", -1),
        ("seed", 2**31),
        ("seed", None),
        ("seed", "x"),
        ("seed", False),
        ("samples", 0),
        ("samples", 1001),
        ("samples", 2.0),
        ("samples", True),
        ("samples", None),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.7"),
        ("temperature", True),
        ("engine", "vlm"),
        ("engine", None),
        ("engine", ["hf"]),
        ("chat_template", "onn"),
        ("skip_missing", "yes"),
        ("skip_missing", None),
        ("trust_remote_code", 1),
        ("model", 135),
        ("suite", ["mini"]),
        ("base_url", 8000),
        ("out", ["a", "b"]),
        ("data_dir", 7),
        ("tasks", 7),
        ("tasks", {"a": 1}),
        ("judge", [["keyword"]]),
        ("judge", True),
        ("include_path", {"a": 1}),
        ("engine_args", 3),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_its_key(key, value):
    said = refusal({"model": "m", key: value})
    assert key in said or key.replace("_", " ") in said


def test_several_answers_at_temperature_0_are_refused(tmp_path):
    said = refusal({"model": "m", "samples": 3}, config(tmp_path, "temperature: 0\n"))
    assert said.startswith("--samples 3 at --temperature 0: all answers to a prompt would be the same.")
    assert run_spec({"model": "m", "temperature": 0}).temperature == 0.0


def test_an_unknown_choice_comes_with_a_suggestion():
    assert refusal({"model": "m", "engine": "vlm"}) == "Unknown engine 'vlm'. Did you mean: vllm?"


def test_a_policy_is_no_engine(tmp_path):
    said = "--engine policy:refuse: a policy stands in a model's place. Write --model policy:refuse."
    assert refusal({"model": "m", "engine": "policy:refuse"}) == said
    assert refusal({"model": "m"}, config(tmp_path, "engine: policy:refuse\n")) == said


NAMES = ("alpaca_eval", "alpaca_eval-paper", "chat", "harmbench-13b", "harmbench-7b", "keyword", "llama-guard")


@pytest.mark.parametrize(
    ("value", "near"),
    [
        # What it begins, then what it holds, then what is spelt like it.
        ("harmbench", ["harmbench-13b", "harmbench-7b"]),
        ("HarmBench", ["harmbench-13b", "harmbench-7b"]),
        ("weighted_alpaca_eval_gpt4", ["alpaca_eval", "alpaca_eval-paper"]),
        ("keywrod", ["keyword"]),
        # Short words are in everything: `chat`, `llama`.
        ("chatbot-arena-llama-judge", []),
        ("k", []),
        ("", []),
    ],
)
def test_the_names_suggested_are_those_begun_held_or_spelt_alike(value, near):
    assert nearest(value, NAMES) == near


def test_no_more_than_three_names_are_suggested():
    assert did_you_mean("task", "task", [f"task_{i}" for i in range(9)]) == (
        "Unknown task 'task'. Did you mean: task_0, task_1, task_2?"
    )


def test_yamls_on_and_off_are_the_words_of_chat_template(tmp_path):
    """YAML 1.1 reads a bare `on` as true: what the help says must work in a file too."""
    for word in ("on", "off", "auto", "'on'"):
        path = config(tmp_path, f"model: m\nchat_template: {word}\n")
        assert run_spec({}, path).chat_template == word.strip("'")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("limit", 1), ("limit", None), ("seed", 0), ("seed", 2**31 - 1)),
        *(("samples", 1), ("samples", 1000), ("temperature", 0), ("temperature", 2), ("temperature", None)),
    ],
)
def test_the_ends_of_a_range_are_taken(key, value):
    assert getattr(run_spec({"model": "m", key: value}), key) == value


# -- lists and paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "tasks"),
    [
        ("a,b", ("a", "b")),
        (["a,b", "c"], ("a", "b", "c")),
        ("a,", ("a",)),
        ("a, b", ("a", "b")),
        ([], ()),
        (None, ()),
    ],
)
def test_tasks_may_be_listed_or_joined_by_commas(given, tasks):
    assert run_spec({"model": "m", "tasks": given}).tasks == tasks


def test_a_comma_in_an_engine_argument_or_a_judge_is_its_own():
    spec = run_spec({"model": "m", "engine_args": ["gpus=0,1"], "judge": "chat:a,b"})
    assert (spec.engine_args, spec.judge) == (("gpus=0,1",), ("chat:a,b",))


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    spec = run_spec({"model": "m", "out": "~/run", "data_dir": "~/data", "include_path": ["~/tasks", "b"]})
    assert (spec.out, spec.data_dir) == (Path("/home/someone/run"), Path("/home/someone/data"))
    assert spec.include_path == (Path("/home/someone/tasks"), Path("b"))


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "folder"),
    [
        ({"model": "smollm2-135m", "suite": "mini"}, "runs/smollm2-135m-mini"),
        ({"model": "org/name@main", "suite": "mini"}, "runs/org-name-main-mini"),
        ({"model": "m", "suite": "mini", "limit": 5}, "runs/m-mini-limit5"),
        ({"model": "m", "suite": "mini", "samples": 3, "temperature": 0.7}, "runs/m-mini-samples3-temperature0.7"),
        ({"model": "m", "suite": "mini", "limit": 5, "temperature": 1.0}, "runs/m-mini-limit5-temperature1"),
        ({"model": "m", "tasks": ("b", "a")}, "runs/m-a+b"),
        ({"model": "m", "suite": "s", "tasks": ("a",)}, "runs/m-s+a"),
        ({"model": "/models/my model/", "suite": "s"}, "runs/models-my-model-s"),
        ({"model": "../..", "suite": "s"}, "runs/run-s"),
        ({"model": "m", "suite": "s", "out": Path("here")}, "here"),
    ],
)
def test_the_folder_says_model_and_tasks_and_stays_below_runs(fields, folder):
    assert RunSpec(**fields).folder == Path(folder)


def test_the_same_command_finds_the_same_folder_whatever_the_order_of_its_tasks():
    one, other = ({"model": "m", "tasks": tasks} for tasks in ("a,b", ["b", "a"]))
    assert run_spec(one).folder == run_spec(other).folder

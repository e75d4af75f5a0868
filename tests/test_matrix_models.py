"""MODELS.yaml: what is run for each model, what is wrong in one line, and how large the models are."""

from __future__ import annotations

import pytest
import yaml
from run_builder import build_run, harmful_task

from bfpo_bench import matrix_models as module
from bfpo_bench.errors import BenchError
from bfpo_bench.matrix_models import LOGS, jobs_of, plan_table, read_entries, weight_bytes


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch):
    """`auto` looks for a GPU with torch, which takes seconds to import."""
    monkeypatch.setattr(module, "choose_engine", lambda engine: {"auto": "hf"}.get(engine, engine))


def entries_of(tmp_path, told, **flags):
    path = tmp_path / "models.yaml"
    path.write_text(told if isinstance(told, str) else yaml.safe_dump(told))
    return read_entries(path, flags, out=tmp_path / "runs")


# -- MODELS.yaml -------------------------------------------------------------------------------------------------------


def test_a_model_is_a_text_or_the_keys_of_a_run(tmp_path):
    told = {"defaults": {"suite": "mini", "seed": 3}, "models": ["policy:echo", {"model": "openai:x", "seed": 4}]}
    first, second = entries_of(tmp_path, told, limit=2, judge=["keyword"])
    assert first.config == {"suite": "mini", "seed": 3, "model": "policy:echo", "limit": 2, "judge": ["keyword"]}
    assert (first.kind, second.kind, second.engine) == ("policy", "api", "openai")
    assert second.config["seed"] == 4
    assert first.out == tmp_path / "runs" / "policy-echo-mini-limit2"
    assert [run.name for run in (*first.runs, *second.runs)] == ["policy:echo", "openai:x"]


def test_defaults_that_a_model_would_refuse_do_not_reach_it(tmp_path):
    defaults = {"suite": "mini", "engine": "vllm", "engine_args": {"dtype": "float32"}, "system_prompt": "Be brief."}
    defaults |= {"base_url": "http://127.0.0.1:1/v1", "seed": 1}
    models = ["m", "openai:x", "policy:echo", {"model": "policy:refuse", "engine": "vllm"}]
    base, api, policy, told = entries_of(tmp_path, {"defaults": defaults, "models": models})
    always = {"model", "suite", "seed"}
    assert set(base.config) == always | {"engine", "engine_args", "system_prompt"}
    assert set(api.config) == always | {"system_prompt", "base_url"}
    assert set(policy.config) == always
    # What an entry says itself, its run is to refuse.
    assert set(told.config) == always | {"engine"}


def test_flags_win_over_the_file(tmp_path):
    told = {"defaults": {"suite": "paper"}, "models": [{"model": "policy:echo", "limit": 9}]}
    (entry,) = entries_of(tmp_path, told, suite="mini", limit=2)
    assert (entry.config["suite"], entry.config["limit"]) == ("mini", 2)


def test_engine_arguments_may_be_a_mapping_and_keys_may_have_hyphens(tmp_path):
    told = {"models": [{"model": "m", "suite": "mini", "engine-args": {"dtype": "float32", "tensor_parallel_size": 4}}]}
    (entry,) = entries_of(tmp_path, told)
    assert entry.config["engine_args"] == ["dtype=float32", "tensor_parallel_size=4"]
    assert entry.parallel == 4


def test_adapters_share_a_process_on_vllm_and_have_one_each_on_hf(tmp_path):
    told = {"defaults": {"suite": "mini"}, "models": [{"model": "base", "adapters": ["a/one", "a/two"]}]}
    out = tmp_path / "runs"
    (shared,) = entries_of(tmp_path, {**told, "defaults": {"suite": "mini", "engine": "vllm"}})
    assert shared.out == out and shared.adapters == ("a/one", "a/two")
    assert [run.folder for run in shared.runs] == [out / "base+a-one-mini", out / "base+a-two-mini"]
    assert [run.name for run in shared.runs] == ["base+a/one", "base+a/two"]
    one, two = entries_of(tmp_path, told)
    assert (one.out, one.adapters) == (out / "base+a-one-mini", ("a/one",))
    assert (two.out, two.adapters) == (out / "base+a-two-mini", ("a/two",))
    assert shared.samples == one.samples + two.samples


def test_a_name_is_the_run_s_folder_and_its_name_in_the_table(tmp_path):
    told = {"defaults": {"suite": "mini"}, "models": [{"model": "base", "name": "plain"}]}
    (entry,) = entries_of(tmp_path, told)
    assert (entry.runs[0].name, entry.out) == ("plain", tmp_path / "runs" / "plain")
    told["models"] = [{"model": "base", "name": "lora", "engine": "vllm", "adapters": ["one", "two"]}]
    (entry,) = entries_of(tmp_path, told)
    assert entry.out == tmp_path / "runs" / "lora"
    assert entry.runs[0].folder == tmp_path / "runs" / "lora" / "base+one-mini"
    assert entry.name == "lora+base+one-mini"


def test_a_model_asked_in_two_ways_goes_by_its_folders(tmp_path):
    told = {"models": [{"model": "policy:echo", "suite": "mini", "limit": limit} for limit in (1, 2)]}
    entries = entries_of(tmp_path, told)
    assert [entry.runs[0].name for entry in entries] == ["policy-echo-mini-limit1", "policy-echo-mini-limit2"]


def test_samples_are_counted_from_what_the_tasks_say(tmp_path):
    # mini: six tasks, three of them generate; 100 + 100 + 60 + 24 + 24 + 32.
    whole, cut, drawn = (
        entries_of(tmp_path, {"models": [{"model": "policy:echo", "suite": "mini", **more}]})[0]
        for more in ({}, {"limit": 2}, {"limit": 2, "samples": 3, "temperature": 1})
    )
    assert (whole.samples, cut.samples, drawn.samples) == (340, 12, 3 * 2 * 3 + 3 * 2)
    assert len({whole.questions, cut.questions, drawn.questions}) == 3


def a_model(**keys):
    return {"models": [{"model": "m", "suite": "mini", **keys}]}


@pytest.mark.parametrize(
    ("told", "line"),
    [
        pytest.param("models: [", "Cannot read .*models.yaml", id="no YAML"),
        pytest.param("- a", "holds list, not `defaults:` and `models:`", id="a list"),
        pytest.param({"modles": ["m"]}, r"Unknown key 'modles'\. Did you mean: models", id="unknown top key"),
        pytest.param({"models": []}, "`models:` must be a list of models", id="no models"),
        pytest.param({"models": [3]}, "model 1 is int, not a model's name", id="a number as a model"),
        pytest.param({"defaults": ["m"], "models": ["m"]}, "defaults is list", id="defaults are a list"),
        pytest.param(a_model(sute="mini"), r"model 1: Unknown key 'sute'\. Did you mean: suite", id="unknown key"),
        pytest.param({"defaults": {"name": "x"}, "models": ["m"]}, "Unknown key 'name'", id="a name for all"),
        pytest.param(a_model(out="x"), "out: each run has a folder below --out", id="out"),
        pytest.param(a_model(ray_address="h:1"), "Use --ray-address", id="an address of its own"),
        pytest.param(a_model(gpus_per_worker=1), "gpus_per_worker: write gpus", id="the flag's name"),
        pytest.param(a_model(seed="x"), "model 1: seed must be a whole number", id="a bad value"),
        pytest.param(a_model(suite="minni"), "model 1: Unknown suite", id="unknown suite"),
        pytest.param({"models": ["m"]}, "model 1: No task chosen", id="no suite"),
        pytest.param(a_model(name="a/b"), "name 'a/b' must be letters", id="a path as a name"),
        pytest.param(a_model(name=LOGS), "names the run's folder", id="the logs' folder as a name"),
        pytest.param(a_model(workers=0), "workers must be a whole number from 1", id="no workers"),
        pytest.param(a_model(workers=True), "workers must be a whole number from 1", id="true workers"),
        pytest.param(a_model(gpus=1.5), "gpus must be a whole number", id="one and a half GPUs"),
        pytest.param(a_model(gpus=0), "gpus must be a whole number", id="no GPUs"),
        pytest.param(a_model(adapters="a"), "adapters must be a list", id="adapters as a text"),
        pytest.param(a_model(adapters=["a", "a"]), "adapters names 'a' twice", id="an adapter twice"),
        pytest.param(a_model(adapters=["a"], adapter="b"), "adapter and adapters are both", id="adapter and adapters"),
        pytest.param(a_model(model="policy:echo", adapters=["a"]), "need the weights", id="adapters of a policy"),
        pytest.param(a_model(engine_args=["tensor_parallel_size=two"]), "whole number", id="half a group"),
        pytest.param({"models": ["m", "m"], "defaults": {"suite": "mini"}}, "m twice would be the same", id="twice"),
        pytest.param(
            {"defaults": {"suite": "mini"}, "models": ["m", {"model": "n", "name": "m-mini"}]},
            "m and m-mini would be the same run",
            id="a name that is another's folder",
        ),
        pytest.param(
            {
                "defaults": {"suite": "mini"},
                "models": ["m", {"model": "n", "name": "m-mini", "engine": "vllm", "adapters": ["a", "b"]}],
            },
            r"n\+a would lie in that of m|m-mini\+a would lie in that of m",
            id="a run within a run",
        ),
    ],
)
def test_what_is_wrong_with_the_file_is_told_in_one_line_before_anything_starts(tmp_path, told, line):
    with pytest.raises(BenchError, match=line) as caught:
        entries_of(tmp_path, told)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


# -- sizes and the plan ------------------------------------------------------------------------------------------------


def test_the_size_of_a_folder_is_that_of_its_weight_files(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x" * 700)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"x" * 300)
    for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"x" * 5000)
    assert weight_bytes(str(tmp_path)) == 1000
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert weight_bytes(str(tmp_path)) == 5000


def test_a_size_that_is_not_on_this_machine_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setenv("BFPO_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert weight_bytes("nobody/nothing-of-the-kind") is None
    assert weight_bytes("nobody/nothing-of-the-kind@abc") is None
    assert weight_bytes("smollm2-135m") is None
    assert weight_bytes("no id at all") is None
    (tmp_path / "empty").mkdir()
    assert weight_bytes(str(tmp_path / "empty")) is None


def test_an_engine_takes_its_parallel_groups_unless_told_and_nothing_where_there_are_no_gpus(tmp_path):
    arguments = {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}
    models = [
        {"model": "a", "engine_args": arguments, "workers": 3},
        {"model": "b", "gpus": 0.5},
        "c",
        "policy:echo",
    ]
    entries = entries_of(tmp_path, {"defaults": {"suite": "mini"}, "models": models})
    assert [job.gpus for job in jobs_of(entries, gpus=True)] == [8, 0.5, 1, 0]
    assert [job.gpus for job in jobs_of(entries, gpus=False)] == [0, 0, 0, 0]
    assert [job.workers for job in jobs_of(entries, gpus=True)] == [3, 1, 1, 1]


def test_the_plan_is_in_the_order_of_starting_with_what_is_complete_first(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"x" * 10_000_000)
    models = [{"model": str(tmp_path / "weights"), "name": "small"}, "unknown/size", "policy:echo", "policy:refuse"]
    entries = entries_of(tmp_path, {"defaults": {"suite": "mini", "limit": 2}, "models": models})
    build_run(entries[2].out, tasks=[harmful_task(refused=2)])
    head, *rows = plan_table(entries, jobs_of(entries, gpus=True))
    assert head == ("order", "model", "runs", "engine", "workers", "GPUs each", "weights GB", "samples")
    assert rows == [
        ("1", "policy:echo (complete)", "1", "policy", "-", "-", "-", "12"),
        ("2", "unknown/size", "1", "hf", "1", "1", "?", "12"),
        ("3", "small", "1", "hf", "1", "1", "0.01", "12"),
        ("4", "policy:refuse", "1", "policy", "-", "-", "-", "12"),
    ]

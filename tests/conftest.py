"""Which tests run where, and the fixtures that many modules share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
NO_NETWORK = Path(__file__).parent / "no_network"
_CREDENTIALS = (
    "OPENAI_API_KEY", "BFPO_JUDGE_API_KEY", "BFPO_JUDGE_BASE_URL", "OPENAI_BASE_URL", "BFPO_DATA_DIR",
    "PERSPECTIVE_API_KEY", "PERSPECTIVE_API_QPS",
)  # fmt: skip


def pytest_configure(config):
    """Close the network to this process and to all that it starts; pytest-socket closes connections a second time."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(NO_NETWORK), os.environ.get("PYTHONPATH"))))
    # vLLM else learns this machine's own address with a (silent) UDP connection to a public name server.
    os.environ["VLLM_HOST_IP"] = "127.0.0.1"
    sys.path.insert(0, str(NO_NETWORK))
    sys.modules.pop("sitecustomize", None)  # a machine may bring one of its own
    import sitecustomize

    assert Path(sitecustomize.__file__).parent == NO_NETWORK


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well (CI=true does the same)")


def pytest_collection_modifyitems(config, items):
    slow = config.getoption("--slow") or os.environ.get("CI") == "true"
    absent = {
        "slow": None if slow else "slow: run with `pytest --slow` or CI=true",
        "gpu": None if _has_gpu() else "no GPU that torch sees",
        "vllm": None if find_spec("vllm") else "vLLM is not installed: make vllm-cpu",
        "browser": None if CHROMIUM else "Chromium is not installed: apt install chromium",
        "shared": None if shared_folder().is_dir() else f"no public data at {shared_folder()}: set BFPO_SHARED",
    }
    for item in items:
        for marker, reason in absent.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `pytest -n 2` a file's tests, which share its fixtures, run in one process, and all of vLLM's in one.

    Two vLLMs at once would share one core of a CPU. Not by marks (`--dist loadgroup`): pytest-xdist 3.8 writes a test's
    group into a node id that pytest 9.2 does not read.
    """
    from xdist.scheduler import LoadScopeScheduling

    @cache
    def scope(path):
        return "vllm" if "mark.vllm" in (ROOT / path).read_text() else path

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return scope(nodeid.partition("::")[0])

    return ByFile(config, log)


def shared_folder() -> Path:
    return Path(os.environ.get("BFPO_SHARED", ROOT.parent / "shared")) / "data"


def _has_gpu() -> bool:
    # nvidia-smi, not torch: importing torch costs every run of the quick tests seconds.
    return shutil.which("nvidia-smi") is not None


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch):
    """A developer's own keys must not decide what a test sees."""
    for name in _CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def cli():
    """Runs the command line as a user does; returns the finished process."""

    def call(*arguments, **options):
        command = [sys.executable, "-m", "bfpo_bench", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=options.pop("timeout", 300), **options)

    return call


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The embedded model as a checkpoint folder; `make setup` puts it into the cache."""
    from bfpo_bench.sources import EMBEDDED, bfpo_home

    folder = bfpo_home() / "models" / f"smollm2-135m-{EMBEDDED['smollm2-135m'].version}"
    if not folder.is_dir():
        pytest.skip("the embedded model is not in the cache: make setup")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A Llama of random weights (seeded) with a byte tokenizer, a BOS token and a ChatML-like template."""
    from tiny_model import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window; each test opens a page of its own."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield opened
        opened.close()

"""Real vLLM (on a CPU where there is no GPU), offline and as a server, against transformers: same numbers, no orphans.

Float32 on both sides, so that differences are of summation order alone. Measured on SmolLM2-135M with vLLM 0.32 and
transformers 5.19: choice log-probabilities (sums of up to some twenty tokens) differ by at most 7e-5 nats. A mistake
(a BOS token too many, a boundary off by one, a template) moves them by tenths; LOGPROB_TOLERANCE lies between.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_kill_and_resume import engine_group, group_members, kill_when, rows

from bfpo_bench.harness.process import EngineProcess, engine_environment
from bfpo_bench.store import RunStore, read_json
from bfpo_bench.types import Message, ModelSpec, Output, Sample

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

# Not 1e-3: the same float32 command on one CPU has differed from itself by 1.1e-3 (see test_lm_eval_parity.py).
LOGPROB_TOLERANCE = 2e-3
# In bfloat16 lm-eval's hf takes the log-softmax in eight bits of mantissa: 0.03 nats a token are its rounding.
BFLOAT16_BOUND = 3.0
LIMIT, SERVER_LIMIT = 6, 3
CHOICE_TASKS = "bfpo_mini_ethics,bfpo_mini_misconceptions,bfpo_mini_stereotype"
SERVED = "smollm2"


def run(*arguments: str | Path, verb: str = "run") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bfpo_bench", verb, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def on_model(smollm: Path, engine: str, folder: Path, *more: str, dtype: str = "float32") -> list[str]:
    arguments = ["--model", str(smollm), "--engine", engine, "--engine-args", f"dtype={dtype}", "--out", str(folder)]
    return [*arguments, *(more or ("--suite", "mini", "--limit", str(LIMIT)))]


def answers(folder: Path) -> tuple[dict[str, Sample], dict[str, Output]]:
    store = RunStore.read(folder)
    with closing(store):
        return {sample.id: sample for sample in store.samples()}, store.outputs()


def worst_logprob_difference(one: dict[str, Output], other: dict[str, Output]) -> float:
    pairs = [(a.choice_logprobs, other[id_].choice_logprobs) for id_, a in one.items() if id_ in other]
    differences = [abs(x - y) for a, b in pairs if a is not None for x, y in zip(a, b, strict=True)]
    assert differences
    return max(differences)


@dataclass(frozen=True)
class Killed:
    """A run whose driver was killed in the middle of generation and that was then run again."""

    folder: Path
    before: dict[str, Output]
    n_members: int
    members_left: list[int]
    gone_after_s: float
    resumed: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def offline(smollm, tmp_path_factory) -> Killed:
    folder = tmp_path_factory.mktemp("vllm") / "run"
    arguments = on_model(smollm, "vllm", folder)
    driver = subprocess.Popen([sys.executable, "-m", "bfpo_bench", "run", *arguments], stderr=subprocess.DEVNULL)
    while (group := engine_group(driver.pid)) is None:
        assert driver.poll() is None
        time.sleep(0.01)
    seen: list[int] = []

    def some_answers() -> bool:
        seen[:] = group_members(group)
        return rows(folder, "outputs") > 0

    assert kill_when(driver, some_answers)
    killed = time.monotonic()
    while (left := group_members(group)) and time.monotonic() < killed + 10:
        time.sleep(0.02)
    gone_after_s = time.monotonic() - killed
    _, before = answers(folder)
    return Killed(folder, before, len(seen), left, gone_after_s, run(*arguments))


@pytest.fixture(scope="module")
def transformers(smollm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "run"
    assert run(*on_model(smollm, "hf", folder)).returncode == 0
    return folder


@pytest.fixture(scope="module")
def server(smollm, tmp_path_factory):
    """`vllm serve` on the loopback address; gives its base URL."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(smollm), "--served-model-name", SERVED]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "4096"]
    environment = engine_environment() | {"HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--enforce-eager"], stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while not healthy(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def served(server, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("api") / "run"
    arguments = ["--model", f"openai:{SERVED}", "--base-url", server, "--suite", "mini", "--limit", str(SERVER_LIMIT)]
    return folder, run(*arguments, "--out", folder)


# -- offline ---------------------------------------------------------------------------------------------------------


def test_a_killed_driver_takes_engine_core_and_worker_with_it(offline):
    assert offline.n_members >= 3, "leader, engine and EngineCore at least: else nothing is tested"
    assert offline.members_left == []
    assert offline.gone_after_s < 5


def test_the_run_resumes_to_every_sample_answered_once(offline):
    assert offline.resumed.returncode == 0, offline.resumed.stderr
    samples, outputs = answers(offline.folder)
    assert 0 < len(offline.before) < len(samples) == 6 * LIMIT
    assert outputs.keys() == samples.keys()  # the key is the sample: no second row can be
    assert all(output.failure is None for output in outputs.values())
    assert {id_: outputs[id_] for id_ in offline.before} == offline.before
    assert read_json(offline.folder / "scores.json")["status"] == "complete"


def test_vllm_talks_to_its_log_not_to_the_terminal(offline):
    terminal = offline.resumed.stdout + offline.resumed.stderr
    assert not [line for line in terminal.splitlines() if "INFO" in line or "WARNING" in line or "it/s" in line]
    assert "EngineCore" in (offline.folder / "engine.log").read_text(errors="replace")


def test_choices_agree_with_transformers_in_float32(offline, transformers):
    _, ours = answers(offline.folder)
    _, theirs = answers(transformers)
    assert ours.keys() == theirs.keys()
    worst = worst_logprob_difference(ours, theirs)
    print(f"float32: largest difference of a choice log-probability {worst:.2g} nats")
    assert worst < LOGPROB_TOLERANCE
    scores = [read_json(folder / "scores.json")["tasks"] for folder in (offline.folder, transformers)]
    for task in CHOICE_TASKS.split(","):
        assert scores[0][task] == scores[1][task]


def test_generation_agrees_with_transformers_in_float32(offline, transformers):
    samples, ours = answers(offline.folder)
    _, theirs = answers(transformers)
    generated = [id_ for id_, sample in samples.items() if not sample.choices]
    for id_ in generated:
        # One BOS on both sides, and the same text before it: else the counts and the hashes differ.
        assert ours[id_].n_prompt_tokens == theirs[id_].n_prompt_tokens
        assert ours[id_].prompt_sha == theirs[id_].prompt_sha
    same = [id_ for id_ in generated if ours[id_].text == theirs[id_].text]
    print(f"float32: {len(same)} of {len(generated)} greedy answers are the same text")
    # All of them where it was measured; a near-tie may fall the other way on another processor.
    assert len(same) >= 0.8 * len(generated)
    for id_ in same:
        assert (ours[id_].finish_reason, ours[id_].n_tokens) == (theirs[id_].finish_reason, theirs[id_].n_tokens)
    assert {ours[id_].finish_reason for id_ in generated} == {"stop", "length"}


def test_bfloat16_differs_by_its_rounding_only(smollm, offline, tmp_path):
    _, exact = answers(offline.folder)
    more = ("--tasks", CHOICE_TASKS, "--limit", str(LIMIT))
    outputs = {}
    for engine in ("hf", "vllm"):
        assert run(*on_model(smollm, engine, tmp_path / engine, *more, dtype="bfloat16")).returncode == 0
        _, outputs[engine] = answers(tmp_path / engine)
    against = {"hf": exact, "vllm": exact, "hf against vllm": outputs["vllm"]}
    for name, reference in against.items():
        worst = worst_logprob_difference(outputs[name.partition(" ")[0]], reference)
        print(f"bfloat16 {name}: largest difference {worst:.2g} nats")
        assert worst < BFLOAT16_BOUND


def question(i: int, text: str, **settings) -> Sample:
    generation = {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 24} | settings
    message = Message(role="user", content=text)
    return Sample(id=f"{i:016x}", task="t", index=i, prompt=text, messages=(message,), generation=generation)


def test_sampling_stop_strings_long_prompts_and_close(smollm, tmp_path):
    spec = ModelSpec(
        name="smollm2",
        engine="vllm",
        path=str(smollm),
        identity="x",
        engine_args={"dtype": "float32", "max_model_len": "1024"},
    )
    drawn = [question(i, f"A story about {i}.", do_sample=True, temperature=1.0, top_p=0.95) for i in range(8)]
    stopped = question(10, "Count from one to ten.", until=["3"], max_gen_toks=64)
    long = question(11, "word " * 1100)
    long_choice = Sample(id="c" * 16, task="t", index=0, prompt="", choices=(("word " * 1100, " yes"), ("a", " no")))
    with EngineProcess(spec, log=tmp_path / "log") as engine:
        group = engine._group.id
        first = collect(engine, [*drawn, stopped, long, long_choice])
        again, alone = collect(engine, drawn), collect(engine, drawn[5:6])
        assert len(group_members(group)) >= 3
    assert group_members(group) == []  # at once: `close` gives the memory back before it returns
    texts = {s.id: first[s.id].text for s in drawn}
    assert len(set(texts.values())) == len(drawn)
    assert texts == {s.id: again[s.id].text for s in drawn}
    assert texts[drawn[5].id] == alone[drawn[5].id].text
    output = first[stopped.id]
    assert output.finish_reason == "stop" and output.text and "3" not in output.text
    assert first[long.id].failure == first[long_choice.id].failure == "too_long"


def collect(engine: EngineProcess, samples: list[Sample]) -> dict[str, Output]:
    return {output.sample_id: output for batch in engine.answer(samples) for output in batch}


# -- the server ------------------------------------------------------------------------------------------------------


def test_a_run_through_the_server_gives_the_offline_engines_numbers(served, offline):
    folder, done = served
    assert done.returncode == 0, done.stderr
    samples, outputs = answers(folder)
    _, reference = answers(offline.folder)
    assert outputs.keys() == samples.keys() and len(samples) == 6 * SERVER_LIMIT
    worst = worst_logprob_difference(outputs, reference)
    print(f"server: largest difference of a choice log-probability {worst:.2g} nats")
    assert worst < LOGPROB_TOLERANCE
    generated = [id_ for id_, sample in samples.items() if not sample.choices]
    for id_ in generated:
        assert outputs[id_].n_prompt_tokens == reference[id_].n_prompt_tokens
    same = [id_ for id_ in generated if outputs[id_].text == reference[id_].text]
    assert len(same) >= 0.7 * len(generated)
    for id_ in same:
        assert outputs[id_].finish_reason == reference[id_].finish_reason
        # A server counts the token that ended the answer; the offline engines do not.
        ended = outputs[id_].finish_reason == "stop"
        assert outputs[id_].n_tokens == reference[id_].n_tokens + ended


def test_the_chat_judge_gives_every_answer_a_verdict_or_a_reason(served, server):
    folder, _ = served
    done = run(folder, "--judge", f"chat:{SERVED}@{server}", verb="judge")
    assert done.returncode in (0, 3), done.stderr  # a model of 135M is no judge
    store = RunStore.read(folder)
    with closing(store):
        verdicts, samples = store.verdicts(judge=f"chat:{SERVED}"), {s.id: s for s in store.samples()}
    judged = {id_ for id_, s in samples.items() if s.task in ("bfpo_mini_harmful", "bfpo_mini_benign")}
    assert sorted(v.sample_id for v in verdicts) == sorted(judged)
    assert all((v.label is None) != (v.unscored is None) for v in verdicts)
    assert not [v for v in verdicts if v.unscored in ("api", "timeout", "rate_limit")]

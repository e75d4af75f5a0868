"""What the path of a classifier judge costs over its bare engine, on the very same tokens; verdicts of both engines.

    python benchmarks/judge_speed.py [--judge three-label] [--model smollm2-135m] [--engine both] [--n 200]

Requests and answers are plain words drawn by seed, the answers' lengths log-normal (`--answer-tokens 20 600`: cut at
both ends, which are two standard deviations from the median). One engine is loaded and asked in turn, the order turned
round from one repeat to the next, one pass of each first that is not counted, the prefix cache emptied before each:

ours      `ClassifierJudge.judge`, as a judge stage calls it: templates, tokens, the judge's process, verdicts, every
          batch of them committed to a store; only loading is taken out of it
bare      vllm: one `vllm.LLM.generate` of all prompts, `SamplingParams(max_tokens=1)` made as cheap as it gets: greedy,
          no log-probabilities, not turned into text. hf: a loop of plain transformers over batches of like length,
          sorted over all prompts, as many tokens a batch as ours, the last position's logits only, their argmax
named     vllm only: the same call with the sampling parameters of ours, which name the options' tokens

Bare and named are given the token ids that ours sent, run inside the judge's process, next to the engine, and hand
nothing on. Being one loaded engine, all have the same settings (data type, window, prefix cache, block size, eager or
compiled). Seconds are from answers to the last verdict, for bare from token ids to the last result; loading is told
apart. The ratio is that of samples a second, ours over the peer's, repeat by repeat (aim: at least 0.9 of bare vLLM).

`--random-13b FOLDER` writes random weights of the shape of Llama-2-13B in bfloat16 (26 GB) with the tokenizer of
`--tokenizer`, and measures them: time does not depend on what weights say. It is meant for a GPU and was not run on
one; `--layers 1 --hidden 64` shows on any machine that it works. What the folder already holds is measured as it is.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bfpo_bench.errors import BenchError, JudgeError
from bfpo_bench.harness.engine import parse_engine_args
from bfpo_bench.harness.next_token import _BATCH_TOKENS, NextToken, Query, Share, open_next_token
from bfpo_bench.harness.process import HostProcess
from bfpo_bench.judges import Setting, classifier, make_judge, parse_judge
from bfpo_bench.judges.prompting import Passage
from bfpo_bench.judges.reader import Reader, ReaderSpec
from bfpo_bench.judges.spec import load_judge
from bfpo_bench.sources import resolve_model
from bfpo_bench.store import SCHEMA, RunStore
from bfpo_bench.types import Judge, JudgeItem, Output, Sample, Verdict

PEERS = {"hf": ("bare",), "vllm": ("bare", "named")}
WORDS = (
    "apple river stone garden window music paper silver morning winter bridge candle letter market forest orange "
    "table summer yellow rabbit kitchen mountain travel simple quiet bright little open slow warm round early "
    "walk carry build paint write read cook listen wait follow because after before under behind between through "
    "around and with"
)


def answers(n: int, *, shortest: int, longest: int, seed: int) -> list[JudgeItem]:
    """Requests of a few words, and answers of log-normal length; one word is about one token."""
    draw, known = random.Random(seed), WORDS.split()
    # The bounds lie two standard deviations below and above the median.
    middle, deviation = (shortest * longest) ** 0.5, (longest / shortest) ** 0.25

    def words(k: int) -> str:
        return " ".join(draw.choices(known, k=k))

    items = []
    for i in range(n):
        length = round(middle * deviation ** draw.gauss(0, 1))
        sample = Sample(id=f"{i:016x}", task="judge_speed", index=i, prompt=f"{words(draw.randint(5, 25))}?")
        text = f"{words(min(longest, max(shortest, length)))}."
        items.append(JudgeItem(sample=sample, text=text, axis="harmlessness"))
    return items


# -- in the judge's process --------------------------------------------------------------------------------------------


class Recorded:
    """A next-token model that keeps the queries it was sent."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tokenizer, self.max_length, self.info = model.tokenizer, model.max_length, model.info
        self.complete, self.close = model.complete, model.close
        self.sent: list[Query] = []

    def read(self, queries: Iterable[Query]) -> Iterator[list[Share]]:
        def noted() -> Iterator[Query]:
            for query in queries:
                self.sent.append(query)
                yield query

        return iter(self.model.read(noted()))


class Both:
    """The judge's reader, and its engine asked bare for what the reader sent it last.

    `answer` yields the reader's readings, or for the other ways one value: seconds, or the lengths of the prompts.
    """

    def __init__(self, spec: ReaderSpec) -> None:
        began = time.perf_counter()
        self._recorded = Recorded(open_next_token(spec.model))
        model: NextToken = self._recorded
        self._reader = Reader(spec, model)
        self.info: Mapping[str, Any] = {**self._reader.info, "load_s": time.perf_counter() - began}

    def close(self) -> None:
        self._reader.close()

    def answer(self, *, way: str = "ours", passages: Sequence[Passage] = ()) -> Iterator[Any]:
        if way == "ours":
            self._recorded.sent.clear()
            yield from self._reader.answer(passages=passages)
        elif way == "lengths":
            yield [len(query.prompt) for query in self._recorded.sent]
        elif way == "empty":
            self._empty_cache()
        else:
            self._empty_cache()
            yield self._vllm(named=way == "named") if self.info["engine"] == "vllm" else self._transformers()

    def _empty_cache(self) -> None:
        if self.info["engine"] == "vllm":
            self._lm.model.reset_prefix_cache()

    @property
    def _lm(self) -> Any:
        return self._recorded.model._lm

    def _vllm(self, *, named: bool) -> float:
        from vllm import SamplingParams, TokensPrompt

        sent = self._recorded.sent
        prompts = [TokensPrompt(prompt_token_ids=list(query.prompt)) for query in sent]
        cheapest = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
        sampling = [self._recorded.model._sampling(query) for query in sent] if named else cheapest
        began = time.perf_counter()
        results = self._lm.model.generate(prompts, sampling, lora_request=self._lm.lora_request, use_tqdm=False)
        seconds = time.perf_counter() - began
        assert len(results) == len(sent)
        return seconds

    def _transformers(self) -> float:
        import torch

        prompts = [list(query.prompt) for query in self._recorded.sent]
        said: list[int] = []
        began = time.perf_counter()
        with torch.inference_mode():
            for rows in _like_lengths(prompts, _BATCH_TOKENS[self._lm.device.type]):
                padded = self._lm.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
                logits = self._lm.model(**padded.to(self._lm.device), logits_to_keep=1).logits[:, -1]
                said += logits.argmax(dim=-1).tolist()
        seconds = time.perf_counter() - began
        assert len(said) == len(prompts)
        return seconds


def _like_lengths(prompts: Sequence[list[int]], budget: int) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for prompt in sorted(prompts, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(prompt)
    yield batch


def open_both(spec: ReaderSpec) -> Both:
    return Both(spec)


# -- in the driver -----------------------------------------------------------------------------------------------------


class Held:
    """In the place of the judge's own process: opened at its first `judge`, and left open behind each."""

    def __init__(self) -> None:
        self.process: HostProcess | None = None
        self.opened_s = 0.0

    def __call__(self, opener: Any, spec: ReaderSpec, *, name: str, log: Path) -> Held:
        if self.process is None:
            # Under the module's own name: the process cannot import from `__main__`.
            from judge_speed import open_both

            began = time.perf_counter()
            self.process = HostProcess(open_both, spec, name=name, log=log)
            self.opened_s = time.perf_counter() - began
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def info(self) -> Mapping[str, Any]:
        return self.process.info if self.process else {}

    def ask(self, **request: Any) -> Iterator[Any]:
        assert self.process is not None
        return self.process.ask(**request)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One engine: seconds of each repeat by way, the verdicts by sample, and what it was."""

    engine: str
    seconds: Mapping[str, Sequence[float]]
    verdicts: Mapping[str, Verdict]


def measure(judge: Judge, items: Sequence[JudgeItem], *, engine: str, repeats: int) -> Measured:
    held = Held()
    classifier.HostProcess = held  # type: ignore[assignment, attr-defined]
    seconds: dict[str, list[float]] = {way: [] for way in ("ours", *PEERS[engine])}
    try:
        _, verdicts = ours(judge, items)  # loads
        (lengths,) = held.ask(way="lengths")
        _print_engine(held, lengths)
        for way in PEERS[engine]:
            list(held.ask(way=way))
        for repeat in range(repeats):
            for way in list(seconds) if repeat % 2 == 0 else reversed(seconds):
                if way == "ours":
                    list(held.ask(way="empty"))
                    took, verdicts = ours(judge, items)
                else:
                    (took,) = held.ask(way=way)
                seconds[way].append(took)
            told = ", ".join(f"{way} {took[-1]:.2f} s" for way, took in seconds.items())
            print(f"{repeat + 1}/{repeats} {engine:4} {told} (load {os.getloadavg()[0]:.1f})", flush=True)
    finally:
        if held.process is not None:
            held.process.close()
    return Measured(engine=engine, seconds=seconds, verdicts=verdicts)


def ours(judge: Judge, items: Sequence[JudgeItem]) -> tuple[float, dict[str, Verdict]]:
    """Seconds from answers to committed verdicts, and these by sample."""
    manifest = {"schema": SCHEMA, "identity": {}}
    with tempfile.TemporaryDirectory() as folder, RunStore.create_or_resume(Path(folder), manifest) as store:
        store.add_samples([item.sample for item in items])
        store.add_outputs(Output(sample_id=item.sample.id, text=item.text) for item in items)
        began = time.perf_counter()
        for verdicts in judge.judge(items):
            store.add_verdicts(verdicts)
        seconds = time.perf_counter() - began
        found = {verdict.sample_id: verdict for verdict in store.verdicts()}
    assert len(found) == len(items)
    return seconds, found


def random_llama(folder: Path, *, tokenizer: str, hidden: int, layers: int) -> None:
    """Random weights of a Llama; its heads and its inner width follow Llama-2-13B's proportions."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    if (folder / "config.json").is_file():
        print(f"{folder} is there and is measured as it is")
        return
    words = AutoTokenizer.from_pretrained(resolve_model(tokenizer, engine="hf").path)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 27 // 10,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 128),
        # Of another tokenizer than Llama's there may be more.
        vocab_size=max(32000, len(words)),
        max_position_embeddings=4096,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    torch.manual_seed(0)
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    billions, seconds = model.num_parameters() / 1e9, time.perf_counter() - began
    print(f"random weights, {billions:.3g} billion, written to {folder} in {seconds:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="three-label", help="a judge file without generated codes, by name or path")
    parser.add_argument("--model", default="smollm2-135m", help="its weights: alias, checkpoint folder or hub id")
    parser.add_argument("--engine", choices=[*PEERS, "both"], default="both")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--engine-args", nargs="+", default=[], metavar="KEY=VALUE", help="for vllm")
    parser.add_argument("--n", type=int, default=200, help="answers (default 200)")
    parser.add_argument("--answer-tokens", type=int, nargs=2, default=[20, 600], metavar=("FEWEST", "MOST"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the words and lengths")
    parser.add_argument("--random-13b", type=Path, metavar="FOLDER", help="write random weights here, as --model")
    parser.add_argument("--layers", type=int, default=40, help="of --random-13b (default 40)")
    parser.add_argument("--hidden", type=int, default=5120, help="width of --random-13b (default 5120)")
    parser.add_argument("--tokenizer", default="smollm2-135m", help="of --random-13b")
    arguments = parser.parse_args()
    # Where the judge's process finds `open_both`.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    try:
        return _run(arguments)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    model = arguments.model
    spec = parse_judge(f"{arguments.judge}:{model}")
    file = load_judge(spec.file or spec.kind)
    if file.kind != "classifier" or any(question.codes is not None for question in file.questions):
        raise JudgeError(f"Judge {arguments.judge!r} does more than read next tokens. Take a classifier without codes.")
    if arguments.random_13b is not None:
        model = str(arguments.random_13b)
        random_llama(
            arguments.random_13b, tokenizer=arguments.tokenizer, hidden=arguments.hidden, layers=arguments.layers
        )
    shortest, longest = arguments.answer_tokens
    items = answers(arguments.n, shortest=shortest, longest=longest, seed=arguments.seed)
    engines: Mapping[str, Mapping[str, str]] = {
        "hf": {"dtype": arguments.dtype},
        "vllm": {"dtype": arguments.dtype, **parse_engine_args(arguments.engine_args)},
    }
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for engine in PEERS if arguments.engine == "both" else (arguments.engine,):
            setting = Setting(log=Path(folder) / f"{engine}.log", engine=engine, engine_args=engines[engine])
            judge = make_judge(parse_judge(f"{arguments.judge}:{model}"), setting)
            done.append(measure(judge, items, engine=engine, repeats=arguments.repeats))
    _print_table(done, arguments.n)
    if len(done) == 2:
        _print_differences(*done)
    return 0


def _print_engine(held: Held, lengths: Sequence[int]) -> None:
    info = held.info
    print(
        f"{info['engine']} on {info['device']} in {info['dtype']}: there after {held.opened_s:.1f} s, of which weights"
        f" and engine {info['load_s']:.1f} s; {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens,"
        f" median {statistics.median(lengths):.0f}, {sum(lengths)} in all",
        flush=True,
    )


def _print_table(done: Sequence[Measured], n: int) -> None:
    print(f"\n{'engine':6} {'way':6} {'samples':>8} {'seconds':>9} {'samples/s':>10}   (medians)")
    for one in done:
        for way, seconds in one.seconds.items():
            middle = statistics.median(seconds)
            print(f"{one.engine:6} {way:6} {n:8} {middle:9.2f} {n / middle:10.1f}")
    print(f"\n{'ratio of samples/s':20} {'median':>8} {'min':>8} {'max':>8}")
    for one in done:
        for way in PEERS[one.engine]:
            ratios = [theirs / mine for mine, theirs in zip(one.seconds["ours"], one.seconds[way], strict=True)]
            name = f"{one.engine}: ours / {way}"
            print(f"{name:20} {statistics.median(ratios):8.2f} {min(ratios):8.2f} {max(ratios):8.2f}")


def _print_differences(one: Measured, other: Measured) -> None:
    """How far two engines' verdicts lie apart: the largest difference of each number, and how many labels differ."""

    def numbers(verdict: Verdict) -> dict[str, float]:
        return {name: value for name, value in verdict.metrics.items() if isinstance(value, float)}

    pairs = [(verdict, other.verdicts[id_]) for id_, verdict in one.verdicts.items()]
    names = sorted({name for verdict, _ in pairs for name in numbers(verdict)})
    largest = {name: max(abs(a.metrics[name] - b.metrics[name]) for a, b in pairs) for name in names}
    differ = sum((a.label, a.unscored) != (b.label, b.unscored) for a, b in pairs)
    told = ", ".join(f"{name} {value:.2g}" for name, value in largest.items())
    print(f"\n{one.engine} and {other.engine} differ by at most: {told}; {differ} of {len(pairs)} labels differ")


if __name__ == "__main__":
    sys.exit(main())

"""Our trainer beside TRL 1.16's DPOTrainer: pairs a second and peak memory, on one machine, over the same pairs.

    python benchmarks/trainer_speed.py --trl-python PYTHON [--pairs 64] [--repeats 2] [--turns all last]

PYTHON is the interpreter of an environment of its own with trl==1.16.0 and our versions of torch and transformers
(benchmarks/README.md says how to make it). Pairs are drawn by seed from hh-rlhf's harmless-base test split; `--turns
last` keeps the last question of each dialogue only. Same model (SmolLM2-135M-Instruct), order, precision, batch (4
pairs), optimiser (AdamW, learning rate 1e-6, every weight trained) and loop (transformers.Trainer), one epoch; pairs
with a sequence over `--max-length` are not drawn, which spares both sides a cut. Each variant in a process of its own,
the order turned round from one repeat to the next:

ours         IPO of our trainer, reference log-probs computed before, the prompt once a pair and no padding
ours-micro1  the same in micro-batches of one pair, four a step: the loss is the same, and less is held at once
ours-plain   the same with its plain layout: a padded row an answer
trl          TRL's best path: precomputed reference, no gradient checkpointing, the output layer at answers' tokens only
trl-micro1   the same in micro-batches of one pair, four a step, which spares it most of its padding
trl-default  its defaults: gradient checkpointing, a second model as the reference; once, for information

On a CPU TRL applies the output layer to every position, prompts and padding included; on a GPU only where an answer's
token is predicted. `trl` and `trl-micro1` are made to do here what they do on a GPU; `trl-default` is left as it is.
TRL's `ipo` divides each log-ratio by the answer's length and ours does not: this changes numbers, and no cost.

Seconds are those of all steps but the first (in which the optimiser makes its state), from the end of one step to the
end of the last, loading of data included. `/CPU s`: pairs a CPU second, which depends less on what else the machine
does (but threads that wait for each other count as well). `ref s` is the reference pass. `peak` is the process's
highest resident memory (ru_maxrss; on a GPU torch's highest allocation), imports, weights and reference pass included.
`positions` counts the tokens that went through the network in training, padding included. `ref diff` is how far
reference log-probs, summed over an answer, lie from `trl`'s in the mean. The same in float32 on the first `--agreement`
pairs must be under 1e-3 for every answer, of as many tokens: a comparison of different numbers is none, and the exit
code is then 1.

`--gpu` trains random weights in the shape of Mistral-7B, in bfloat16 throughout, and lets TRL have what it has for it:
Liger's layers where they are installed, and padding-free rows, which 1.16 takes back with a warning. The vocabulary is
that of the tokenizer at hand. It has not been run on a GPU yet; `--gpu --tiny` shows on a CPU that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# Nothing heavy here: a process starts with its parent's peak memory on its account (Linux keeps it over exec), and the
# peer's interpreter has no bfpo_bench.

TRL = "1.16.0"
OURS, PEERS = ("ours", "ours-micro1", "ours-plain"), ("trl", "trl-micro1", "trl-default")
ONCE = "trl-default"
TOLERANCE = 1e-3  # nats, of a summed log-prob in float32
LEARNING_RATE = 1e-6
SHARED = Path(os.environ.get("BFPO_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "hub"
# Mistral-7B-v0.1's shape (its config.json); the sliding window of 4096 is longer than any row here.
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process is to do; `rows` is a file of pairs. Without `train` it stops after the reference pass."""

    variant: str
    model: str
    rows: str
    compute: str
    weights: str
    batch: int
    max_length: int
    select: tuple[str, ...] = ()
    accelerator: bool = False
    train: bool = True


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of it; `seconds` and `cpu_s` are of `counted` pairs; log-probs and lengths of every answer."""

    counted: int
    seconds: float
    cpu_s: float
    reference_s: float
    peak: int  # bytes
    positions: int
    reference: list[list[float]]
    lengths: list[list[int]]
    told: str


# -- in a process of its own -------------------------------------------------------------------------------------------


class Clock:
    """When each step ended, by the wall and in CPU seconds, and the positions that were computed; see `watched`."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.positions = 0

    def seconds(self) -> tuple[float, float]:
        """From the end of the first step to the end of the last; zeros where none was taken."""
        if not self.steps:
            return 0.0, 0.0
        (wall, cpu), (wall_end, cpu_end) = self.steps[0], self.steps[-1]
        return wall_end - wall, cpu_end - cpu


def watched(model: Any) -> tuple[Clock, Any]:
    """A clock, and the trainer's callback that drives it; counts what the model embeds."""
    import torch
    from transformers import TrainerCallback

    clock = Clock()

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock.steps.append((time.perf_counter(), time.process_time()))

    def embedded(_: Any, inputs: tuple[Any, ...]) -> None:
        clock.positions += inputs[0].numel()

    model.get_input_embeddings().register_forward_pre_hook(embedded)
    return clock, Steps()


def load(job: Job) -> Any:
    """The folder's model in `job.weights`; random weights where it has a configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = getattr(torch, job.weights)
    if weights_of(job.model):
        model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype, attn_implementation="sdpa")
    else:
        torch.manual_seed(0)
        with torch.device("cuda" if job.accelerator else "cpu"):
            config = AutoConfig.from_pretrained(job.model)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model


def weights_of(model: str) -> list[Path]:
    return list(Path(model).glob("*.safetensors"))


def settings(job: Job, folder: Path) -> dict[str, Any]:
    """What transformers.Trainer is told on both sides."""
    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 1 if job.variant.endswith("-micro1") else job.batch,
        "per_device_eval_batch_size": job.batch,
        "gradient_accumulation_steps": job.batch if job.variant.endswith("-micro1") else 1,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",
        "bf16": job.compute == "bfloat16",
        "use_cpu": not job.accelerator,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": job.accelerator,
        "seed": 0,
    }


def rendered(row: Mapping[str, Any], tokenizer: Any) -> dict[str, str]:
    """A pair as texts: TRL then ends an answer with the end-of-sequence token, and both sides have the same tokens.

    From messages it would learn the line break that the chat template puts behind that token as well.
    """
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}


def peak(job: Job) -> int:
    if job.accelerator:
        import torch

        return torch.cuda.max_memory_allocated()
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> str:
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"


def trl(job: Job, rows: Sequence[Mapping[str, Any]], folder: Path) -> Measured:
    import importlib.util

    import trl
    import trl.trainer.utils
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    if trl.__version__ != TRL:
        sys.exit(f"This reaches into TRL {TRL}, and {sys.executable} has {trl.__version__}: pip install trl=={TRL}")
    default = job.variant == "trl-default"
    chosen: dict[str, Any] = {} if default else {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
    if job.variant == "trl-micro1":
        chosen |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": job.batch}
    if not default:
        # Its own switch for "score answers' tokens only"; the kernels, which ask for themselves, stay in torch.
        trl.trainer.utils._use_triton = lambda device: True
    if job.weights == "bfloat16":
        chosen |= {"padding_free": True, "use_liger_kernel": importlib.util.find_spec("liger_kernel") is not None}
    reference_s = 0.0

    class Timed(DPOTrainer):  # type: ignore[misc]
        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal reference_s
            began = time.perf_counter()
            dataset = super()._precompute_ref_logps(*args, **kwargs)
            reference_s = time.perf_counter() - began
            return dataset

    model = load(job)
    for name, weights in model.named_parameters():
        weights.requires_grad = not job.select or any(part in name.split(".") for part in job.select)
    words = AutoTokenizer.from_pretrained(job.model)
    trainer = Timed(
        model=model,
        args=DPOConfig(**{**settings(job, folder), "max_length": job.max_length, "loss_type": "ipo", **chosen}),
        train_dataset=Dataset.from_list([rendered(row, words) for row in rows]),
        processing_class=words,
    )
    clock, steps = watched(model)
    trainer.add_callback(steps)
    if job.train:
        trainer.train()
    known = trainer.train_dataset
    seconds, cpu_s = clock.seconds()
    return Measured(
        counted=len(rows) - job.batch,
        seconds=seconds,
        cpu_s=cpu_s,
        reference_s=reference_s,
        peak=peak(job),
        positions=clock.positions,
        reference=[] if default else [[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in known],
        lengths=[[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in known],
        told=f"trl {TRL}, {versions()}, padding-free {trainer.padding_free}, Liger {trainer.args.use_liger_kernel}",
    )


def ours(job: Job, rows: Sequence[Mapping[str, Any]], folder: Path) -> Measured:
    from transformers import AutoTokenizer

    from bfpo_bench.trainers import training
    from bfpo_bench.trainers.order import FixedOrder
    from bfpo_bench.trainers.recipe import OWNED, Base, Recipe
    from bfpo_bench.trainers.records import Source

    reference_s = 0.0
    fill_reference = training.fill_reference

    def timed(*given: Any, **named: Any) -> Any:
        nonlocal reference_s
        began = time.perf_counter()
        filled = fill_reference(*given, **named)
        reference_s = time.perf_counter() - began
        return filled

    training.fill_reference = timed
    if not weights_of(job.model):
        training.load_model = lambda recipe, path: load(job)
    recipe = Recipe(
        model=job.model,
        out=folder / "out",
        method="ipo",
        helpfulness=Source(format="jsonl", path=job.rows),
        select=job.select,
        max_length=job.max_length,
        max_prompt_length=job.max_length - 1,
        dtype=job.weights,  # type: ignore[arg-type]
        layout="padded" if job.variant == "ours-plain" else "packed",
        training={key: value for key, value in settings(job, folder).items() if key not in OWNED},
    )
    words = AutoTokenizer.from_pretrained(job.model)
    data = training.read_data(recipe, words, prompts={}, unchecked={}, say=print)
    trainer = training.prepared_trainer(
        recipe,
        Base(name="benchmark", path=Path(job.model), identity="benchmark"),
        words,
        data,
        training.training_arguments(recipe),
        cache=folder / "reference",
        say=print,
    )
    known = trainer.train_dataset.rows
    # The recipe would shuffle: TRL sees the rows as they lie.
    trainer.train_dataset = FixedOrder(known)
    clock, steps = watched(trainer.model)
    trainer.add_callback(steps)
    if job.train:
        trainer.train()
    seconds, cpu_s = clock.seconds()
    return Measured(
        counted=len(rows) - job.batch,
        seconds=seconds,
        cpu_s=cpu_s,
        reference_s=reference_s,
        peak=peak(job),
        positions=clock.positions,
        reference=[[row.reference_chosen, row.reference_rejected] for row in known],
        lengths=[[len(row.chosen), len(row.rejected)] for row in known],
        told=f"ours, {versions()}, attention {trainer.model.config._attn_implementation}",
    )


def child(folder: Path) -> None:
    given = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    job = Job(**{**given, "select": tuple(given["select"])})
    rows = [json.loads(line) for line in Path(job.rows).read_text(encoding="utf-8").splitlines()]
    side: Callable[[Job, Sequence[Mapping[str, Any]], Path], Measured] = ours if job.variant in OURS else trl
    (folder / "result.json").write_text(json.dumps(asdict(side(job, rows, folder))), encoding="utf-8")


# -- pairs -------------------------------------------------------------------------------------------------------------


def draw(folder: Path) -> None:
    """Pairs drawn by seed whose sequences fit, a line of JSON each: of the whole dialogue, or of its last question."""
    from transformers import AutoTokenizer

    from bfpo_bench.trainers.adapters import read_pairs
    from bfpo_bench.trainers.records import Problem, Source
    from bfpo_bench.trainers.tokenise import PairTokeniser

    given = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    # Half as many again as are wanted: hh-rlhf has few pairs that are too long.
    read = read_pairs(
        Source(
            format="hh_rlhf",
            path=given["data"],
            split="harmless-base/test",
            limit=given["pairs"] + given["pairs"] // 2 + 16,
            seed=given["seed"],
        )
    )
    length = given["max_length"]
    tokenise = PairTokeniser(
        AutoTokenizer.from_pretrained(given["model"]),
        max_length=length,
        max_prompt_length=length - 1,
        long_prompts="skip",
    )
    kept: list[str] = []
    for pair in read.rows:
        one = replace(pair, prompt=pair.prompt[-1:]) if given["turns"] == "last" else pair
        tokens = tokenise.pair(one)
        if not isinstance(tokens, Problem) and not tokens.n_cut and len(kept) < given["pairs"]:
            kept.append(json.dumps({key: asdict(one)[key] for key in ("prompt", "chosen", "rejected")}))
    if len(kept) < given["pairs"]:
        sys.exit(f"Only {len(kept)} of the pairs drawn fit into {length} tokens: lower --pairs or raise --max-length")
    (folder / "result.json").write_text(json.dumps(kept), encoding="utf-8")


# -- the parent --------------------------------------------------------------------------------------------------------


def in_a_process(python: Path, flag: str, job: Mapping[str, Any], what: str) -> Any:
    """The JSON that `flag` leaves for a job; the process has its own caches, and no network."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        # TRL keeps reference log-probs in the cache of data sets: without one of its own a repeat would find them.
        environment = {**os.environ, "TMPDIR": name, "HF_DATASETS_CACHE": name, "HF_HUB_OFFLINE": "1"}
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
        with (folder / "log").open("wb") as log:
            done = subprocess.run(
                [python, Path(__file__).absolute(), flag, name],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=folder,
                check=False,
            )
        if done.returncode != 0:
            told = (folder / "log").read_text(encoding="utf-8", errors="replace")
            sys.exit(f"{what} failed with exit {done.returncode}:\n{told[-3000:]}")
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def run(job: Job, arguments: argparse.Namespace) -> Measured:
    python = Path(sys.executable) if job.variant in OURS else arguments.trl_python
    return Measured(**in_a_process(python, "--child", asdict(job), job.variant))


def measure(job: Job, arguments: argparse.Namespace, turns: str) -> dict[str, list[Measured]]:
    """All variants in turn, repeat by repeat; the one for information only in the first."""
    found: dict[str, list[Measured]] = {variant: [] for variant in arguments.variants}
    for repeat in range(arguments.repeats):
        for variant in arguments.variants if repeat % 2 == 0 else reversed(arguments.variants):
            if variant == ONCE and repeat:
                continue
            done = run(replace(job, variant=variant), arguments)
            found[variant].append(done)
            print(
                f"{turns:4} {repeat + 1}/{arguments.repeats} {variant:11} {done.counted / done.seconds:6.3f} pairs/s,"
                f" reference {done.reference_s:.1f} s, peak {done.peak / 1e9:.2f} GB (load {os.getloadavg()[0]:.1f})",
                flush=True,
            )
    return found


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two sides' summed log-probs lie apart, in nats; `lengths` of answers that have other token numbers."""

    mean: float
    largest: float
    answers: int
    lengths: int


def agreement(one: Measured, other: Measured) -> Agreement:
    def flat(values: Sequence[Sequence[float]]) -> list[float]:
        return [value for pair in values for value in pair]

    differences = [abs(a - b) for a, b in zip(flat(one.reference), flat(other.reference), strict=True)]
    return Agreement(
        mean=statistics.fmean(differences),
        largest=max(differences),
        answers=len(differences),
        lengths=sum(a != b for a, b in zip(flat(one.lengths), flat(other.lengths), strict=True)),
    )


def print_table(found: Mapping[str, Mapping[str, Sequence[Measured]]]) -> None:
    print(
        f"\n{'turns':5} {'variant':11} {'pairs/s':>8} {'min':>7} {'max':>7} {'/CPU s':>7} {'ref s':>7} {'peak GB':>8}"
        f" {'positions':>10} {'ref diff':>9}   (medians)"
    )
    for turns, variants in found.items():
        for variant, runs in variants.items():
            speeds = [one.counted / one.seconds for one in runs]
            known = variants.get("trl") and runs[0].reference and variant != "trl"
            apart = f"{agreement(runs[0], variants['trl'][0]).mean:9.3g}" if known else f"{'-':>9}"
            reference = (
                f"{statistics.median(one.reference_s for one in runs):7.1f}" if runs[0].reference else f"{'-':>7}"
            )
            print(
                f"{turns:5} {variant:11} {statistics.median(speeds):8.3f} {min(speeds):7.3f} {max(speeds):7.3f}"
                f" {statistics.median(one.counted / one.cpu_s for one in runs):7.3f}"
                f" {reference} {statistics.median(one.peak for one in runs) / 1e9:8.2f} {runs[0].positions:10} {apart}"
            )


def print_ratios(found: Mapping[str, Mapping[str, Sequence[Measured]]], *, speed: float, memory: float) -> None:
    def spread(values: Sequence[float]) -> str:
        return f"{statistics.median(values):8.2f} {min(values):6.2f} {max(values):6.2f}"

    columns = (f"{name:>8} {'min':>6} {'max':>6}" for name in ("pairs/s", "/CPU s", "peak"))
    print(f"\n{'turns':5} {'ratio':24} {'  '.join(columns)}")
    for turns, variants in found.items():
        for above in (one for one in OURS if one in variants):
            for below in (one for one in PEERS if one in variants):
                # The one that is measured once is paired with the first repeat.
                pairs = list(zip(variants[above], variants[below], strict=below != ONCE))
                ratios = (
                    [b.seconds / a.seconds for a, b in pairs],
                    [b.cpu_s / a.cpu_s for a, b in pairs],
                    [a.peak / b.peak for a, b in pairs],
                )
                print(f"{turns:5} {f'{above} / {below}':24} {'  '.join(map(spread, ratios))}")
    print(f"\nAim of ours / trl: pairs/s at least {speed:g}, peak at most {memory:g}")


def random_mistral(folder: Path, *, like: Path, tiny: bool) -> Path:
    """A folder with the shape of Mistral-7B, no weights, and the tokenizer of the model in `like`."""
    vocabulary = json.loads((like / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    shape = {**MISTRAL_7B, **(TINY if tiny else {}), "vocab_size": vocabulary}
    if tiny:
        shape["num_key_value_heads"] = 2
    for file in like.iterdir():
        if file.suffix != ".safetensors" and file.name not in ("config.json", "generation_config.json"):
            shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    return folder


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=Path, help=f"the interpreter of an environment that has trl=={TRL}")
    parser.add_argument(
        "--variants", nargs="+", choices=(*OURS, *PEERS), help="default: all; with --gpu, without trl-default"
    )
    parser.add_argument("--turns", nargs="+", choices=("all", "last"), default=["all", "last"])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="bfloat16: autocast")
    parser.add_argument("--batch", type=int, default=4, help="pairs a step (default 4)")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--select", nargs="+", default=[], help="weights to train, e.g. down_proj (default: all)")
    parser.add_argument("--agreement", type=int, default=16, help="pairs whose log-probs are compared in float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=SHARED, help="a folder with Anthropic/hh-rlhf in the hub's layout")
    parser.add_argument("--gpu", action="store_true", help="random weights in the shape of Mistral-7B")
    parser.add_argument("--tiny", action="store_true", help="with --gpu: a few weights, on any machine")
    parser.add_argument("--json", type=Path, help="write everything measured here")
    arguments = parser.parse_args()
    if arguments.variants is None:
        arguments.variants = [one for one in (*OURS, *PEERS) if not (arguments.gpu and one == ONCE)]
    if arguments.trl_python is None and not set(arguments.variants) <= set(OURS):
        parser.error("--trl-python is needed for trl's variants, see benchmarks/README.md")
    if arguments.pairs % arguments.batch or arguments.pairs < 2 * arguments.batch:
        parser.error(f"--pairs {arguments.pairs} is no multiple, twice or more, of --batch {arguments.batch}")
    if not (arguments.data / "Anthropic" / "hh-rlhf").is_dir():
        parser.error(f"no Anthropic/hh-rlhf in {arguments.data}: give --data, or set BFPO_SHARED")
    arguments.data = arguments.data.absolute()
    if arguments.trl_python is not None:
        # Not resolved: an environment's interpreter is a link, and is known by where the link lies.
        arguments.trl_python = arguments.trl_python.absolute()
    return arguments


def main() -> int:
    arguments = parsed()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = embedded_model()
        if arguments.gpu:
            model = random_mistral(folder, like=model, tiny=arguments.tiny)
        job = Job(
            variant="",
            model=str(model),
            rows="",
            compute=arguments.dtype,
            weights="bfloat16" if arguments.gpu else "float32",
            batch=arguments.batch,
            max_length=arguments.max_length,
            select=tuple(arguments.select),
            accelerator=arguments.gpu and not arguments.tiny,
        )
        found: dict[str, dict[str, list[Measured]]] = {}
        agreed: dict[str, Agreement] = {}
        for turns in arguments.turns:
            rows = folder / f"{turns}.jsonl"
            drawn = {"model": job.model, "data": str(arguments.data), "turns": turns, "pairs": arguments.pairs}
            drawn |= {"seed": arguments.seed, "max_length": job.max_length}
            lines = in_a_process(Path(sys.executable), "--draw", drawn, "drawing pairs")
            rows.write_text("\n".join(lines), encoding="utf-8")
            if {"ours", "trl"} <= set(arguments.variants) and arguments.agreement:
                few = folder / "few.jsonl"
                few.write_text("\n".join(lines[: arguments.agreement]), encoding="utf-8")
                exact = replace(job, rows=str(few), compute="float32", weights="float32", train=False)
                sides = (run(replace(exact, variant=variant), arguments) for variant in ("ours", "trl"))
                agreed[turns] = agreement(*sides)
            found[turns] = measure(replace(job, rows=str(rows)), arguments, turns)
    if arguments.json:
        done = {
            turns: {v: [asdict(one) for one in runs] for v, runs in variants.items()}
            for turns, variants in found.items()
        }
        arguments.json.write_text(json.dumps({"runs": done, "agreement": {t: asdict(a) for t, a in agreed.items()}}))
    for line in dict.fromkeys(runs[0].told for variants in found.values() for runs in variants.values()):
        print(line)
    print_table(found)
    print_ratios(found, speed=1.5 if arguments.gpu else 2.0, memory=0.6 if arguments.gpu else 0.65)
    for turns, one in agreed.items():
        print(
            f"float32, turns {turns}: {one.answers} answers' summed log-probs of ours and trl differ by {one.mean:.2g}"
            f" nats in the mean and {one.largest:.2g} at most; {one.lengths} have other numbers of tokens"
        )
    return int(any(one.largest > TOLERANCE or one.lengths for one in agreed.values()))


def embedded_model() -> Path:
    from bfpo_bench.sources import materialise

    return materialise("smollm2-135m")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--draw"]:
        draw(Path(sys.argv[2]))
    else:
        sys.exit(main())

"""The command line: parses, calls one function a verb, prints; nothing heavy is imported before a verb runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bfpo_bench import __version__
from bfpo_bench.errors import BenchError

if TYPE_CHECKING:
    from bfpo_bench.judges import Setting
    from bfpo_bench.train import Scoring

OK, INTERNAL, BAD_INPUT, PARTIAL, INTERRUPTED = 0, 1, 2, 3, 130
# Of `gate`: what CI takes for a failed check.
REFUSED = 1

_EPILOG = """\
exit codes: 0 complete, 2 bad input (one line says what), 3 finished, but a task lacks data, answers or verdicts
(more than 2 % of its samples unscored). BFPO_DEBUG=1 shows the traceback of an internal error (exit code 1).
Credentials come from the environment only: OPENAI_API_KEY, BFPO_JUDGE_API_KEY, PERSPECTIVE_API_KEY, HF_TOKEN.
BFPO_JUDGE_BASE_URL is the address of API judges that are named without one.
"""
_INCLUDE = "further folders with task YAMLs; repeatable"
_JUDGE = "keyword, chat:MODEL[@URL], or one of `judges list`; repeatable, scores stand on the first that can tell"
_WORKERS = "engines at a time, as Ray actors (needs bfpo-bench[ray])"
_RAY_ADDRESS = "the Ray cluster to run on (default: this machine's, or our own)"
_JUDGE_ENGINE = "of judges with weights of their own; auto: vllm where installed with a GPU, else hf"
_JUDGE_ARGS = "passed to their engine, e.g. dtype=float32"
_PANEL = "scores stand on all judges' majority: min=N,tie=pass|fail|unscored"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the return value is the process's exit code."""
    arguments = _arguments(argv)
    call: Callable[[argparse.Namespace], int] = arguments.call
    try:
        return call(arguments)
    except BenchError as error:
        _say_error(str(error))
        return BAD_INPUT
    except BrokenPipeError:
        # The reader of our output went away (`... | head`): not an error.
        _mute()
        return OK
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("BFPO_DEBUG"):
            raise
        _say_error(f"internal error, please report it (BFPO_DEBUG=1 shows where): {type(error).__name__}: {error}")
        return INTERNAL


def _mute() -> None:
    """Output that nobody reads any more goes nowhere; else Python would complain of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed; a KEY=VALUE may also stand behind flags, where argparse no longer looks for it."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and hasattr(arguments, "overrides") and all("=" in word and word[0] != "-" for word in rest):
        arguments.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _say_error(text: str) -> None:
    from bfpo_bench.console import say
    from bfpo_bench.endpoint import redact

    say(f"error: {redact(' '.join(text.split()))}")


class _Parser(argparse.ArgumentParser):
    """Errors on one line; no abbreviated flags, which a new flag would break."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        _say_error(f"{message}. See: {self.prog} --help")
        sys.exit(BAD_INPUT)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bfpo_bench",
        description="How harmless, how helpful, how sure: score a model, judge its answers, rank many.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_run(verbs)
    _add_judge(verbs)
    _add_score(verbs)
    _add_calibrate(verbs)
    _add_agreement(verbs)
    _add_compare(verbs)
    _add_gate(verbs)
    _add_export(verbs)
    _add_leaderboard(verbs)
    _add_train(verbs)
    _add_sweep(verbs)
    _add_matrix(verbs)
    _add_data(verbs)
    _add_tasks(verbs)
    _add_judges(verbs)
    _add_doctor(verbs)
    return parser


def _verb(verbs: Any, name: str, call: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text, epilog=_EPILOG)
    verb.set_defaults(call=call)
    return verb


# -- run -------------------------------------------------------------------------------------------------------------


def _add_run(verbs: Any) -> None:
    verb = _verb(verbs, "run", _run, "generate, judge and score a model on a suite; run again to resume")
    # SUPPRESS: a flag that was not given must not hide the same key of --config.
    flag = _suppressing(verb)
    flag("--model", help="smollm2-135m (embedded), a folder, a hub id with @revision, openai:NAME or policy:NAME")
    flag("--suite", help="mini, paper, full, an axis or a task; with edits: paper+xstest_safe-alpaca_eval")
    flag("--tasks", metavar="A,B", help="single tasks, in addition to the suite")
    flag(
        "--profile",
        choices=("default", "paper"),
        help="default: greedy decoding; paper: the authors' sampling and prompt templates where they differ",
    )
    engines = "{auto,hf,vllm,openai}"  # checked with the YAML's
    flag("--engine", metavar=engines, help="auto: vllm where installed with a GPU, else hf")
    flag("--engine-args", nargs="+", action="extend", metavar="K=V", help="passed to the engine, e.g. dtype=float32")
    flag("--judge", action="append", metavar="JUDGE", help=_JUDGE)
    flag("--judge-engine", choices=("auto", "hf", "vllm"), help=_JUDGE_ENGINE)
    flag("--judge-engine-args", nargs="+", action="extend", metavar="K=V", help=_JUDGE_ARGS)
    flag("--panel", metavar="RULE", help=_PANEL)
    flag("--limit", type=int, metavar="N", help="only the first N samples of each task (shown, but not ranked)")
    flag("--max-new-tokens", type=int, metavar="N", help="answers end here where a task's own limit is higher")
    flag("--thinking-tokens", type=int, metavar="N", help="room for a reasoning model's thoughts, on top of each limit")
    flag(
        "--samples",
        type=int,
        metavar="K",
        help="ask each prompt that is answered with a text K times: the mean over its answers, and the worst of them",
    )
    flag("--temperature", type=float, metavar="T", help="of all answers, over the tasks' own (0: greedy)")
    flag("--seed", type=int, help="of everything drawn (default 0)")
    flag("--out", metavar="DIR", help="the run's folder (default runs/MODEL-SUITE)")
    flag(
        "--data-dir",
        metavar="DIR",
        help="a mirror of the hub's data sets, used instead of the network (default BFPO_DATA_DIR)",
    )
    flag("--include-path", action="append", metavar="DIR", help=_INCLUDE)
    flag("--skip-missing", action="store_true", help="go on without tasks whose data is missing (the run is partial)")
    flag("--base-url", metavar="URL", help="of the OpenAI-compatible server for --model openai:NAME")
    flag("--trust-remote-code", action="store_true", help="run code that a checkpoint brings along (off by default)")
    flag(
        "--chat-template",
        choices=("auto", "on", "off"),
        help="auto: for generation where the model has one, never for choices; on: for both; off: for none",
    )
    flag("--system-prompt", metavar="TEXT", help="put before every prompt; @FILE reads it from a file")
    flag(
        "--adapter",
        action="append",
        metavar="PATH",
        help="a LoRA adapter on top of the model: a folder, or a hub id with @revision; with --workers repeatable: a "
        "run each (in --out), on engines that hold the model once",
    )
    flag("--workers", type=int, metavar="N", help="engines at a time, as Ray actors (needs bfpo-bench[ray])")
    flag(
        "--ray-address",
        metavar="HOST:PORT",
        help="a Ray cluster to run them on (default: this machine's, or one of our own)",
    )
    flag(
        "--gpus-per-worker",
        type=float,
        metavar="G",
        help="of each engine (default: tensor_parallel_size x pipeline_parallel_size of --engine-args)",
    )
    verb.add_argument("--config", type=Path, metavar="FILE", help="YAML with any of the keys above; flags win")
    mode = verb.add_mutually_exclusive_group()
    mode.add_argument(
        "--resume", dest="mode", action="store_const", const="resume", help="only go on with a run that exists"
    )
    mode.add_argument(
        "--fresh", dest="mode", action="store_const", const="fresh", help="start over; the old run is set aside"
    )
    verb.add_argument("--dry-run", action="store_true", help="print the resolved run and its cost, and stop")
    verb.set_defaults(mode="auto")


def _suppressing(verb: argparse.ArgumentParser) -> Callable[..., argparse.Action]:
    def add(name: str, **options: Any) -> argparse.Action:
        return verb.add_argument(name, default=argparse.SUPPRESS, **options)

    return add


def _run(arguments: argparse.Namespace) -> int:
    from bfpo_bench.config import run_spec
    from bfpo_bench.console import print_scores, say, show
    from bfpo_bench.run import describe, make_plan, model_of, run
    from bfpo_bench.sources import EMBEDDED

    own = ("call", "config", "mode", "dry_run", "adapter")
    flags = {key: value for key, value in vars(arguments).items() if key not in own}
    adapters = list(dict.fromkeys(getattr(arguments, "adapter", [])))
    if len(adapters) > 1:
        return _run_adapters(flags, adapters, arguments)
    spec = run_spec(flags | ({"adapter": adapters[0]} if adapters else {}), arguments.config)
    spec = replace(spec, data_dir=_mirror_or_default(spec.data_dir))
    say(f"{spec.model} on {spec.suite or ', '.join(spec.tasks)} -> {spec.folder}")
    if arguments.dry_run:
        plan = make_plan(spec)
        if spec.model not in EMBEDDED:  # which is fetched and converted on first use: more than a dry run may do
            model_of(spec)
        costs = describe(plan)
        chosen = {key: value for key, value in vars(spec).items() if value not in (None, (), False)}
        settings = (f"{k}: {', '.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in chosen.items())
        for line in (*settings, f"run: {spec.folder}", "", *costs):
            show(line)
        return OK
    return _finish(run(spec, mode=arguments.mode), spec.folder, print_scores)


def _run_adapters(flags: dict[str, Any], adapters: Sequence[str], arguments: argparse.Namespace) -> int:
    """A run for each adapter; `--out` is the folder that holds them."""
    from bfpo_bench.config import run_spec
    from bfpo_bench.console import print_scores, say
    from bfpo_bench.errors import ConfigError
    from bfpo_bench.run import run_adapters

    if arguments.dry_run:
        raise ConfigError(f"--dry-run is of one run, and {len(adapters)} adapters are named. Name one.")
    specs = []
    for adapter in adapters:
        spec = run_spec(flags | {"adapter": adapter}, arguments.config)
        name = replace(spec, out=None).folder
        out = name if spec.out is None else spec.out / name.name
        specs.append(replace(spec, data_dir=_mirror_or_default(spec.data_dir), out=out))
        say(f"{spec.model} + {adapter} on {spec.suite or ', '.join(spec.tasks)} -> {out}")
    if len({spec.folder for spec in specs}) < len(specs):
        raise ConfigError(
            f"--adapter {' '.join(adapters)}: two have the same name, and so the same folder. Rename one."
        )
    results = run_adapters(specs, mode=arguments.mode)
    return max([_finish(scores, spec.folder, print_scores) for scores, spec in zip(results, specs, strict=True)])


def _finish(scores: dict[str, Any], folder: Path, print_scores: Callable[[dict[str, Any]], None]) -> int:
    from bfpo_bench.console import show

    print_scores(scores)
    show(f"run: {folder}")
    return OK if scores["status"] == "complete" else PARTIAL


# -- judge, score, export ----------------------------------------------------------------------------------------------


def _add_judge(verbs: Any) -> None:
    verb = _verb(
        verbs, "judge", _judge, "judge a run's stored answers again, without its model; scores stand on these judges"
    )
    verb.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a run folder (none with --self-test)")
    verb.add_argument("--judge", action="append", required=True, metavar="JUDGE", help=_JUDGE)
    verb.add_argument("--panel", metavar="RULE", help=_PANEL)
    verb.add_argument(
        "--self-test",
        action="store_true",
        help="attack the judge: hostile answers whose true label is known; how many verdicts move",
    )
    verb.add_argument("--all", action="store_true", help="with --self-test: every attack round every answer")
    verb.add_argument("--limit", type=int, metavar="N", help="with --self-test: only N attacks, of all families")
    verb.add_argument("--workers", type=int, metavar="N", help=_WORKERS)
    verb.add_argument("--ray-address", metavar="HOST:PORT", help=_RAY_ADDRESS)
    _add_judge_flags(verb)


def _judge(arguments: argparse.Namespace) -> int:
    from bfpo_bench.errors import ConfigError

    if arguments.self_test:
        if arguments.run is not None or arguments.panel is not None:
            raise ConfigError("--self-test asks the judge about answers of its own: leave out the run and --panel.")
        if arguments.workers is not None or arguments.ray_address is not None:
            raise ConfigError("--workers goes with a run; --self-test asks the judge here. Leave it out.")
        return _self_test(arguments)
    if arguments.run is None:
        raise ConfigError("No run named. Give the run folder to judge again, or --self-test to attack the judge.")
    if arguments.all or arguments.limit is not None:
        raise ConfigError("--all and --limit go with --self-test; a run is judged whole.")
    if arguments.ray_address is not None and arguments.workers is None:
        raise ConfigError(f"--ray-address {arguments.ray_address} is for judging on workers. Give --workers N with it.")
    from bfpo_bench.cluster import joined
    from bfpo_bench.console import print_scores, say
    from bfpo_bench.judging import check_panel, chosen_judges, judge
    from bfpo_bench.run import score
    from bfpo_bench.store import RunStore
    from bfpo_bench.workers import asking_workers

    setting = _judge_setting(arguments, arguments.run)
    judges = chosen_judges(arguments.judge, setting)
    if arguments.panel is not None:
        check_panel(arguments.panel, [judge.name for judge in judges])
    with joined(arguments.workers, arguments.ray_address) as cluster, RunStore.open(arguments.run) as store:
        asking = None if cluster is None else asking_workers(cluster, n_workers=arguments.workers, say=say)
        judge(store, judges, setting=setting, panel=arguments.panel, asking=asking)
        return _finish(score(store), arguments.run, print_scores)


def _self_test(arguments: argparse.Namespace) -> int:
    """Report what attacks do to each judge named; a live judge that is moved is a finding, not an error.

    PARTIAL where a judge could read nothing, which is no finding either.
    """
    import tempfile

    from bfpo_bench.judge_tables import print_self_test
    from bfpo_bench.judging import chosen_judges
    from bfpo_bench.validation import self_test

    measured = True
    with tempfile.TemporaryDirectory(prefix="bfpo-self-test-") as scratch:
        setting = _judge_setting(arguments, Path(scratch))
        for spec in chosen_judges(arguments.judge, setting):
            found = self_test(spec, setting=setting, every=arguments.all, limit=arguments.limit)
            print_self_test(spec.name, found)
            measured &= found.read > 0
    return OK if measured else PARTIAL


def _add_calibrate(verbs: Any) -> None:
    verb = _verb(verbs, "calibrate", _calibrate, "measure a judge against human labels; `score --calibration` uses it")
    verb.add_argument("judge", metavar="JUDGE", help="as for `judge --judge`")
    verb.add_argument(
        "--labels",
        type=Path,
        required=True,
        metavar="FILE",
        help="CSV, JSON lines or parquet with prompt, answer, label (harmful, safe, refused; or 1, 0)",
    )
    verb.add_argument("--out", type=Path, metavar="DIR", help="a run folder of its own (default: below BFPO_HOME)")
    _add_judge_flags(verb)


def _calibrate(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import show
    from bfpo_bench.judge_tables import print_calibration
    from bfpo_bench.judging import chosen_judges
    from bfpo_bench.sources import bfpo_home
    from bfpo_bench.validation import CALIBRATION, calibrate_judge, calibration_folder, read_labels

    labels = read_labels(arguments.labels)
    (spec,) = chosen_judges([arguments.judge], _judge_setting(arguments, Path()))
    folder = arguments.out or calibration_folder(bfpo_home(), spec, labels)
    found = calibrate_judge(spec, labels, folder, setting=_judge_setting(arguments, folder))
    print_calibration(found)
    show(f"calibration: {folder / CALIBRATION}")
    return OK


def _add_agreement(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "agreement",
        _agreement,
        "how far the judges of a run agree, and over several runs what another judge would change",
    )
    verb.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folders, judged by two judges or more, or folders that hold some",
    )
    verb.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    verb.add_argument("--out", type=Path, metavar="FILE", help="the whole report as JSON")


def _agreement(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import say, show
    from bfpo_bench.errors import ConfigError
    from bfpo_bench.judge_report import report
    from bfpo_bench.judge_tables import print_judge_report
    from bfpo_bench.leaderboard.rows import find_runs
    from bfpo_bench.store import to_json, write_atomically

    if arguments.seed < 0:
        raise ConfigError(f"--seed must be a whole number from 0, got {arguments.seed}.")
    found = report(find_runs(arguments.runs, skipped=say), seed=arguments.seed)
    print_judge_report(found)
    if arguments.out is not None:
        write_atomically(arguments.out, to_json(found))
        show(f"report: {arguments.out}")
    return OK


# -- compare, gate -----------------------------------------------------------------------------------------------------

_ACROSS = "compare although these differ: max_new_tokens, thinking_tokens, temperature"
_GATE_EPILOG = """\
exit codes: 0 every rule passed; 1 a rule failed or is undecided; 2 bad input, or runs that cannot be compared; 3 a run
is partial. Rules: 'SUBJECT up'; 'SUBJECT not worse by N points'; 'unscored below N%'. SUBJECT is an axis or a task.
"""


def _add_compare(verbs: Any) -> None:
    verb = _verb(verbs, "compare", _compare, "is a run better than another: paired by sample, task by task, with flips")
    verb.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="scored run folders; the first is the base")
    verb.add_argument("--tasks", metavar="A,B", help="only these; for runs that differ in others")
    verb.add_argument("--across", metavar="A,B", help=_ACROSS)
    verb.add_argument(
        "--flips", type=int, default=3, metavar="N", help="flipped samples to name a task, each way (default 3)"
    )
    verb.add_argument(
        "--show-text", action="store_true", help="show answers of flipped samples too, and prompts that ask for harm"
    )
    verb.add_argument("--format", choices=("table", "json", "markdown"), default="table", help="default: table")
    verb.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to the terminal")
    verb.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")


def _compare(arguments: argparse.Namespace) -> int:
    from bfpo_bench.compare import compare, read_runs
    from bfpo_bench.compare_tables import lines, markdown
    from bfpo_bench.console import show
    from bfpo_bench.errors import ConfigError
    from bfpo_bench.store import to_json, write_atomically

    if arguments.flips < 0:
        raise ConfigError(f"--flips must be a whole number from 0, got {arguments.flips}.")
    report = compare(
        read_runs(arguments.runs),
        tasks=_listed(arguments.tasks, "--tasks"),
        across=_listed(arguments.across, "--across"),
        flips=arguments.flips,
        show_text=arguments.show_text,
        seed=_seed(arguments.seed),
    )
    if arguments.format == "table":
        told = list(lines(report))
    else:
        # ASCII only: a terminal's lines are made inert, and what stands for a joiner there is no JSON.
        text = to_json(report.as_json(), ascii_only=True) if arguments.format == "json" else markdown(report)
        told = text.splitlines()
    if arguments.out is not None:
        write_atomically(arguments.out, "".join(f"{line}\n" for line in told))
        show(f"comparison: {arguments.out}")
    else:
        for line in told:
            show(line)
    return OK


def _listed(text: str | None, flag: str) -> tuple[str, ...]:
    """`A,B` of a flag, each once."""
    from bfpo_bench.errors import ConfigError

    if text is None:
        return ()
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f"{flag} {text!r} holds an empty name. Give names parted by commas: A,B.")
    return tuple(dict.fromkeys(names))


def _seed(seed: int) -> int:
    from bfpo_bench.errors import ConfigError

    if seed < 0:
        raise ConfigError(f"--seed must be a whole number from 0, got {seed}.")
    return seed


def _add_gate(verbs: Any) -> None:
    verb = _verb(verbs, "gate", _gate, "may a run replace another: rules, a verdict, an exit code for CI")
    verb.epilog, verb.formatter_class = _GATE_EPILOG, argparse.RawDescriptionHelpFormatter
    verb.add_argument("--base", type=Path, required=True, metavar="RUN", help="the scored run that is good enough now")
    verb.add_argument("--new", type=Path, required=True, metavar="RUN", help="the scored run that is to replace it")
    verb.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="RULE",
        help="repeatable (default: 'harmlessness up, helpfulness not worse by more than 2 points')",
    )
    verb.add_argument("--rules", type=Path, metavar="FILE", help="YAML with a list of rules, in addition to --rule")
    verb.add_argument("--across", metavar="A,B", help=_ACROSS)
    verb.add_argument("--allow-partial", action="store_true", help="decide although a run is partial")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the verdict there as JSON")
    verb.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")


def _gate(arguments: argparse.Namespace) -> int:
    from bfpo_bench.compare import read_runs
    from bfpo_bench.console import show
    from bfpo_bench.gate import DEFAULT_RULES, gate, lines, parse_rules, partial_runs, read_rules
    from bfpo_bench.store import to_json, write_atomically

    rules = parse_rules(arguments.rule)
    rules += [] if arguments.rules is None else read_rules(arguments.rules)
    base, new = read_runs([arguments.base, arguments.new])
    if not arguments.allow_partial and (refused := partial_runs([base, new])):
        for line in refused:
            _say_error(line)
        return PARTIAL
    found = gate(
        base,
        new,
        rules or parse_rules(DEFAULT_RULES),
        across=_listed(arguments.across, "--across"),
        seed=_seed(arguments.seed),
    )
    if arguments.json is not None:
        write_atomically(arguments.json, to_json(found.as_json()))
    try:
        for line in lines(found):
            show(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # `gate ... | head` in CI: who reads no further must not turn the verdict into a pass.
        _mute()
    return OK if found.passed else REFUSED


def _judge_setting(arguments: argparse.Namespace, folder: Path) -> Setting:
    """From where judges are asked: the flags that `judge` and `calibrate` share."""
    from bfpo_bench.errors import ConfigError
    from bfpo_bench.harness.engine import parse_engine_args
    from bfpo_bench.judges import Setting
    from bfpo_bench.judging import JUDGE_LOG

    if arguments.concurrency is not None and arguments.concurrency < 1:
        raise ConfigError(f"--concurrency must be at least 1, got {arguments.concurrency}.")
    return Setting(
        mirror=_existing_mirror(arguments.data_dir),
        log=folder / JUDGE_LOG,
        engine=arguments.judge_engine,
        engine_args=parse_engine_args(arguments.judge_engine_args, flag="--judge-engine-args"),
        concurrency=arguments.concurrency,
    )


def _add_judge_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--judge-engine", choices=("auto", "hf", "vllm"), default="auto", help=_JUDGE_ENGINE)
    verb.add_argument("--judge-engine-args", nargs="+", action="extend", default=[], metavar="K=V", help=_JUDGE_ARGS)
    verb.add_argument("--concurrency", type=int, metavar="N", help="requests in flight to a judge's API (default 16)")
    verb.add_argument("--data-dir", type=Path, metavar="DIR", help="a mirror that holds judges' texts and nltk's data")


def _add_score(verbs: Any) -> None:
    verb = _verb(verbs, "score", _score, "compute a run's scores again from its stored answers and verdicts")
    verb.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    verb.add_argument(
        "--calibration",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="correct the rates for the judge's errors by what `calibrate` found (its file or folder); repeatable, "
        "kept with the run until --uncorrected",
    )
    verb.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="or by human labels of this run's own answers, which must be drawn at random from all of them, or at "
        "random within each verdict; kept with the run until --uncorrected",
    )
    verb.add_argument(
        "--uncorrected", action="store_true", help="forget the calibrations and labels that were kept with the run"
    )


def _score(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import print_scores
    from bfpo_bench.errors import ConfigError
    from bfpo_bench.run import forget_corrections, score, use_calibration, use_labels
    from bfpo_bench.store import RunStore
    from bfpo_bench.validation import read_calibration, read_labels, run_labels

    if arguments.uncorrected and (arguments.calibration or arguments.labels is not None):
        raise ConfigError("--uncorrected forgets calibrations and labels: give it without --calibration and --labels.")
    # All is read and matched before any of it is kept.
    calibrations = [read_calibration(path) for path in arguments.calibration]
    labels = None if arguments.labels is None else read_labels(arguments.labels)
    with RunStore.open(arguments.run) as store:
        mine = None if labels is None else run_labels(store.samples(), store.outputs(), labels)
        if arguments.uncorrected:
            forget_corrections(store)
        for calibration in calibrations:
            use_calibration(store, calibration)
        if mine is not None:
            use_labels(store, mine)
        return _finish(score(store), arguments.run, print_scores)


def _add_export(verbs: Any) -> None:
    verb = _verb(verbs, "export", _export, "write a run in a format that other tools read")
    verb.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    verb.add_argument(
        "--format",
        choices=tuple(_EXPORTS),
        default="jsonl",
        help="jsonl, parquet: a row a sample; lm-eval: its results and samples files; model-index: metadata of a model "
        "card; inspect: logs for inspect_ai (default jsonl)",
    )
    verb.add_argument(
        "--out", type=Path, metavar="PATH", help="a file, of lm-eval and inspect a folder (default: RUN/export...)"
    )


# Where a format goes within the run's folder, unless told.
_EXPORTS = {
    "jsonl": "export.jsonl",
    "parquet": "export.parquet",
    "lm-eval": "export-lm-eval",
    "model-index": "export-model-index.md",
    "inspect": "export-inspect",
}


def _export(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import show
    from bfpo_bench.store import RunStore

    form, out = arguments.format, arguments.out or arguments.run / _EXPORTS[arguments.format]
    store = RunStore.read(arguments.run)
    try:
        if form == "lm-eval":
            from bfpo_bench.export_lm_eval import export_lm_eval

            show(f"results: {export_lm_eval(store, out=out)}")
        elif form == "model-index":
            from bfpo_bench.export_model_index import export_model_index

            show(f"{export_model_index(store, out=out)} results: {out}")
        elif form == "inspect":
            from bfpo_bench.export_inspect import export_inspect

            show(f"{len(export_inspect(store, out=out))} logs: {out}")
        else:
            from bfpo_bench.export import export

            show(f"{export(store, form=form, out=out)} rows: {out}")
    finally:
        store.close()
    return OK


# -- leaderboard -------------------------------------------------------------------------------------------------------


def _add_leaderboard(verbs: Any) -> None:
    verb = _verb(
        verbs, "leaderboard", _leaderboard, "rank any number of runs: a site that needs no server, CSV, JSON, Markdown"
    )
    verb.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or folders that hold some")
    verb.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="default: site")
    verb.add_argument(
        "--published",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="YAML of published figures with their sources, shown beside the runs and not ranked; repeatable",
    )
    verb.add_argument("--no-samples", action="store_true", help="leave prompts, answers and verdicts out of the site")


def _leaderboard(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import say, show
    from bfpo_bench.leaderboard.published import read_published
    from bfpo_bench.leaderboard.render import write_site
    from bfpo_bench.leaderboard.rows import collect

    # Before the runs are read: a slip in it is told at once.
    published = read_published(arguments.published)
    rows = collect(arguments.runs, skipped=say)
    index = write_site(rows, out=arguments.out, published=published, samples=not arguments.no_samples)
    show(f"leaderboard: {index}")
    return OK


# -- train, sweep ------------------------------------------------------------------------------------------------------


def _add_train(verbs: Any) -> None:
    verb = _verb(verbs, "train", _train, "train a model by a recipe, and score it beside its base; run again to resume")
    verb.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a bundled recipe: demo")
    verb.add_argument(
        # Without a default, argparse would call it required where RECIPE is missing.
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="changes: seed=2 loss.tau=0.1 method=dpo out=DIR",
    )
    mode = verb.add_mutually_exclusive_group()
    mode.add_argument(
        "--resume", dest="mode", action="store_const", const="resume", help="only go on with a training that exists"
    )
    mode.add_argument("--fresh", dest="mode", action="store_const", const="fresh", help="train anew")
    verb.add_argument("--dry-run", action="store_true", help="check recipe and data, print what is in it, and stop")
    verb.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="SUITE",
        help="look for this suite's prompts in the training data too; mini's, and paper's that are here, always",
    )
    _add_scoring(verb)
    verb.set_defaults(mode="auto")


def _add_sweep(verbs: Any) -> None:
    verb = _verb(
        verbs, "sweep", _sweep, "train a recipe at every point of a grid, and show which points trade off best"
    )
    verb.add_argument("recipe", metavar="RECIPE", help="as for `train`")
    verb.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=V1,V2", help="a grid: alpha=0,0.5 loss.tau=0.01,0.1"
    )
    verb.add_argument("--seeds", metavar="1,2,3", help="the same as seed=1,2,3")
    verb.add_argument("--out", type=Path, metavar="DIR", help="of the checkpoints and sweep.csv (default: OUT-sweep)")
    verb.add_argument(
        "--launch",
        metavar="COMMAND",
        help='trains each point, in place of python: "accelerate launch --config_file FILE"',
    )
    verb.add_argument("--dry-run", action="store_true", help="print the points, and stop")
    _add_scoring(verb)


def _add_scoring(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--then-run", metavar="SUITE", help="score base and checkpoint on it, and write the leaderboard")
    verb.add_argument("--judge", action="append", default=[], metavar="JUDGE", help=_JUDGE)
    verb.add_argument("--limit", type=int, metavar="N", help="only the first N samples of each task")
    verb.add_argument("--engine", choices=("auto", "hf", "vllm"), default="auto", help="as for `run`")
    verb.add_argument("--engine-args", nargs="+", action="extend", default=[], metavar="K=V", help="as for `run`")
    verb.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="of the runs (default: runs)")
    verb.add_argument("--leaderboard", type=Path, default=Path("site"), metavar="DIR", help="default: site")
    verb.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="a mirror of the hub's data sets, for the suite and for its prompts (default BFPO_DATA_DIR)",
    )


def _scoring(arguments: argparse.Namespace) -> Scoring | None:
    from bfpo_bench.config import run_spec
    from bfpo_bench.errors import ConfigError
    from bfpo_bench.train import Scoring

    if arguments.then_run is None:
        given = [flag for flag in ("judge", "limit", "engine_args") if getattr(arguments, flag) not in (None, [])]
        given += ["engine"] if arguments.engine != "auto" else []
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} goes with --then-run SUITE, which names what to score.")
        return None
    # The same checks, and the same words, as `run --limit`.
    run_spec({"model": "", "limit": arguments.limit})
    return Scoring(
        suite=arguments.then_run,
        judge=tuple(arguments.judge),
        engine=arguments.engine,
        engine_args=tuple(arguments.engine_args),
        limit=arguments.limit,
        data_dir=_existing_mirror(arguments.data_dir),
        runs=arguments.runs,
        leaderboard=arguments.leaderboard,
    )


def _train(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import show
    from bfpo_bench.train import (
        check_scoring,
        first_stage,
        in_a_process,
        is_first_process,
        train_and_score,
        train_arguments,
        train_first,
        train_here,
    )
    from bfpo_bench.trainers.recipe import find_recipe, load_recipe

    path = find_recipe(arguments.recipe)
    recipe = load_recipe(path, arguments.overrides)
    scoring, data_dir = _scoring(arguments), _existing_mirror(arguments.data_dir)
    suites = [*arguments.check, *([] if scoring is None else [scoring.suite])]
    _check_suites(suites)
    if arguments.dry_run and (first := first_stage(recipe)) is not None:
        # Its checkpoint is not there: the data is read with the tokenizer of the model that it will be made of.
        show(f"after {recipe.after}, which is trained first -> {first.out}")
        recipe = replace(recipe, model=first.model, revision=first.revision)
    elif (code := train_first(recipe, scoring, data_dir=data_dir)) not in (OK, PARTIAL):
        return code
    if arguments.dry_run:
        plan = [] if scoring is None else check_scoring(recipe, scoring)
        train_here(recipe, mode=arguments.mode, dry_run=True, suites=suites, data_dir=data_dir)
        for line in plan:
            show(line)
        return OK
    if scoring is None:
        folder = train_here(recipe, mode=arguments.mode, suites=suites, data_dir=data_dir)
        if is_first_process():
            show(f"checkpoint: {folder}")
        return OK
    child = train_arguments(path, arguments.overrides, mode=arguments.mode, check=suites, data_dir=data_dir)
    code, scored = train_and_score(
        recipe, scoring, check=lambda: in_a_process([*child, "--dry-run"]), train=lambda: in_a_process(child)
    )
    if scored is None:
        return code
    return _show_scored(scoring, [scored.base_scores, scored.scores], [scored.base, scored.checkpoint])


def _check_suites(suites: Sequence[str]) -> None:
    from bfpo_bench.registry import load_registry, resolve_tasks

    registry = load_registry() if suites else {}
    for suite in suites:
        resolve_tasks(registry, suite=suite)


def _show_scored(scoring: Scoring, scores: Sequence[dict[str, Any]], folders: Sequence[Path]) -> int:
    from bfpo_bench.console import print_scores, show
    from bfpo_bench.train import write_leaderboard

    codes = [_finish(one, folder, print_scores) for one, folder in zip(scores, folders, strict=True)]
    show(f"leaderboard: {write_leaderboard(scoring)}")
    return max(codes)


def _sweep(arguments: argparse.Namespace) -> int:
    import shlex

    from bfpo_bench.console import say, show
    from bfpo_bench.sweep import plan_sweep, run_sweep, table
    from bfpo_bench.train import check_scoring, first_stage, train_first, write_leaderboard

    plan = plan_sweep(arguments.recipe, arguments.overrides, seeds=arguments.seeds, out=arguments.out)
    scoring, data_dir = _scoring(arguments), _existing_mirror(arguments.data_dir)
    if not arguments.dry_run and (code := train_first(plan.plain, scoring, data_dir=data_dir)) not in (OK, PARTIAL):
        return code
    cost = [] if scoring is None else check_scoring(first_stage(plan.plain) or plan.plain, scoring)
    if arguments.dry_run:
        for line in (*(f"{' '.join(point.overrides)} -> {point.recipe.out}" for point in plan.points), *cost):
            show(line)
        return OK
    launcher = (sys.executable,) if arguments.launch is None else tuple(shlex.split(arguments.launch))
    swept = run_sweep(plan, scoring, launcher=launcher, data_dir=data_dir)
    head, *rows = table(swept)
    _print_table(head, rows)
    for line in swept.notes:
        show(line)
    show(f"sweep: {swept.csv}")
    if scoring is not None and any(result.scores for result in swept.results):
        show(f"leaderboard: {write_leaderboard(scoring)}")
    if swept.failed:
        say(f"failed: {', '.join(swept.failed)}; the same command goes on with them")
    return PARTIAL if swept.failed or any(result.notes for result in swept.results) else OK


# -- matrix ------------------------------------------------------------------------------------------------------------


def _add_matrix(verbs: Any) -> None:
    verb = _verb(verbs, "matrix", _matrix, "score many models over one Ray cluster, and rank them; run again to resume")
    verb.add_argument(
        "models",
        type=Path,
        metavar="MODELS.yaml",
        help="`models:`, a list of models, or of keys as of `run --config` besides adapters (a list), name, workers, "
        "gpus (of each worker); `defaults:`, such keys for all of them",
    )
    # SUPPRESS: a flag that was not given must not hide the same key of the file.
    flag = _suppressing(verb)
    flag("--suite", help="as for `run`, and so are the next three; over the file's")
    flag("--tasks", metavar="A,B", help="single tasks, in addition to the suite")
    flag("--limit", type=int, metavar="N", help="only the first N samples of each task (shown, but not ranked)")
    flag("--judge", action="append", metavar="JUDGE", help=_JUDGE)
    verb.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="of the runs (default: runs)")
    verb.add_argument("--site", type=Path, default=Path("site"), metavar="DIR", help="leaderboard (default: site)")
    verb.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="engines at a time, of all models together (default: as many as the cluster's GPUs hold, or one a core)",
    )
    verb.add_argument("--ray-address", metavar="HOST:PORT", help=_RAY_ADDRESS)
    verb.add_argument("--every", type=float, default=30, metavar="SECONDS", help="of the table (default 30)")
    verb.add_argument("--dry-run", action="store_true", help="print what would be started and in which order, and stop")


def _matrix(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import say, show
    from bfpo_bench.matrix import planned_jobs, results_table, run_matrix, write_leaderboard
    from bfpo_bench.matrix_models import plan_table, read_entries

    flags = {key: value for key, value in vars(arguments).items() if key in ("suite", "tasks", "limit", "judge")}
    entries = read_entries(arguments.models, flags, out=arguments.out)
    if arguments.dry_run:
        head, *rows = plan_table(entries, planned_jobs(entries, address=arguments.ray_address))
        _print_table(head, rows)
        if arguments.ray_address is None:
            show("GPUs: on a cluster that has some; else a core for each worker")
        return OK

    def tell(rows: Sequence[tuple[str, ...]]) -> None:
        for line in _lines(rows):
            say(line)

    outcomes = run_matrix(
        entries,
        out=arguments.out,
        address=arguments.ray_address,
        engines=arguments.workers,
        every_s=arguments.every,
        tell=tell,
    )
    head, *rows = results_table(outcomes)
    _print_table(head, rows)
    for one in outcomes:
        if one.why is not None:
            show(f"{one.state}: {one.run.name}: {one.why}")
    if (page := write_leaderboard(outcomes, out=arguments.site)) is not None:
        show(f"leaderboard: {page}")
    if all(one.state == "done" for one in outcomes):
        return OK
    say("not all are complete; the same command goes on with them")
    return PARTIAL


# -- data --------------------------------------------------------------------------------------------------------------


def _add_data(verbs: Any) -> None:
    text = "list, fetch or verify the hub data sets that tasks read, and fetch or verify judges' published texts"
    verb = verbs.add_parser("data", help=text, description=text)
    actions = verb.add_subparsers(title="actions", required=True, metavar="ACTION")
    listing = _verb(actions, "list", _data_list, "one row a data set: revision, licence, tasks, and what a mirror has")
    _add_choice_of_tasks(listing)
    listing.add_argument("--data-dir", type=Path, metavar="DIR", help="a mirror to look into (default BFPO_DATA_DIR)")
    fetching = _verb(
        actions, "fetch", _data_fetch, "download data sets and judges' texts into a mirror; run again to resume"
    )
    _add_choice_of_tasks(fetching)
    fetching.add_argument(
        "--judges",
        default="",
        metavar="A,B",
        help="published texts of these judges, or `all`; --to is optional",
    )
    fetching.add_argument("--to", type=Path, metavar="DIR", help="the mirror, for --data-dir later")
    verifying = _verb(actions, "verify", _data_verify, "check every recorded file of a mirror: bytes, rows, columns")
    verifying.add_argument("mirror", type=Path, nargs="?", metavar="DIR", help="default BFPO_DATA_DIR")
    verifying.add_argument(
        "--record", action="store_true", help="record the files that no record names, if all is well"
    )
    verifying.add_argument("--include-path", type=Path, action="append", default=[], metavar="DIR", help=_INCLUDE)


def _add_choice_of_tasks(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--suite", help="as for `run`")
    verb.add_argument("--tasks", default="", metavar="A,B", help="single tasks, in addition to the suite")
    verb.add_argument("--include-path", type=Path, action="append", default=[], metavar="DIR", help=_INCLUDE)


def _mirror_or_default(given: Path | None) -> Path | None:
    return given or (Path(os.environ["BFPO_DATA_DIR"]) if os.environ.get("BFPO_DATA_DIR") else None)


def _existing_mirror(given: Path | None) -> Path | None:
    from bfpo_bench.errors import ConfigError

    mirror = _mirror_or_default(given)
    if mirror is not None and not mirror.is_dir():
        flag = "BFPO_DATA_DIR" if given is None else "--data-dir"
        raise ConfigError(f"{flag} {mirror} does not exist. Give the folder that `data fetch --to` filled.")
    return mirror


def _data_list(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import show
    from bfpo_bench.mirror import overview
    from bfpo_bench.registry import load_registry, resolve_tasks

    mirror = _existing_mirror(arguments.data_dir)
    registry = load_registry(arguments.include_path)
    names = [name for name in arguments.tasks.split(",") if name]
    chosen = arguments.suite is not None or names
    specs = resolve_tasks(registry, suite=arguments.suite, tasks=names) if chosen else list(registry.values())
    head = ("data set", "config", "revision", "licence", "gated", "tasks", "rows", "in the mirror")
    _print_table(head, overview(specs, mirror))
    for terms in sorted({spec.gated for spec in specs if spec.gated}):
        show(f"gated: accept the terms at {terms} and set HF_TOKEN before `data fetch`")
    return OK


def _data_fetch(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import say, show

    problems: list[str] = []
    if arguments.judges:
        from bfpo_bench.errors import JudgeError
        from bfpo_bench.judges import CODE_JUDGES
        from bfpo_bench.judges.published import FOLDER, fetch_texts
        from bfpo_bench.judges.spec import bundled_judges, load_judge
        from bfpo_bench.sources import bfpo_home

        named = bundled_judges() if arguments.judges == "all" else arguments.judges.split(",")
        named = [name.strip() for name in named if name.strip()]
        if in_code := [name for name in named if name.partition(":")[0] in CODE_JUDGES]:
            raise JudgeError(f"Judge {in_code[0]!r} has no texts to fetch. Leave it out.")
        folder = (arguments.to or bfpo_home()) / FOLDER
        problems += _by_reason(fetch_texts([load_judge(name) for name in named], folder, say=say))
        show(f"judges' texts: {folder}")
    names = [name for name in arguments.tasks.split(",") if name]
    if arguments.suite is not None or names or not arguments.judges:
        problems += _fetch_data(arguments, names)
        show(f"mirror: {arguments.to}")
    for line in problems:
        say(f"not fetched: {line}")
    return PARTIAL if problems else OK


def _by_reason(lines: Sequence[str]) -> list[str]:
    """`judge: text: reason` lines, those of one reason joined: a file may hold many texts."""
    texts: dict[str, list[str]] = {}
    for line in lines:
        judge, text, reason = line.split(": ", 2)
        texts.setdefault(reason, []).append(f"{judge}: {text}")
    return [f"{', '.join(names)}: {reason}" for reason, names in texts.items()]


def _fetch_data(arguments: argparse.Namespace, names: list[str]) -> list[str]:
    from bfpo_bench.console import say
    from bfpo_bench.errors import ConfigError
    from bfpo_bench.fetch import fetch
    from bfpo_bench.registry import load_registry, resolve_tasks

    specs = resolve_tasks(load_registry(arguments.include_path), suite=arguments.suite, tasks=names)
    if arguments.to is None:
        raise ConfigError("No mirror named. Give --to DIR, the folder that the data goes to.")
    return fetch(specs, arguments.to, say=say)


def _data_verify(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import show
    from bfpo_bench.errors import TaskError
    from bfpo_bench.judges.published import FOLDER, damaged_texts
    from bfpo_bench.mirror import RECORD, Verification, verify
    from bfpo_bench.registry import load_registry

    mirror = _mirror_or_default(arguments.mirror)
    if mirror is None:
        raise TaskError("No mirror named. Give its folder, or set BFPO_DATA_DIR.")
    texts = sorted((mirror / FOLDER).glob("*.txt"))
    if no_files := [path for path in texts if not path.is_file()]:
        raise TaskError(f"{no_files[0]} is no file. Remove it, and verify again.")
    found = Verification(problems=(), unrecorded=(), n_files=0)
    # A mirror may hold judges' texts alone, which are named by their hash and need no record.
    if arguments.record or not texts or (mirror / RECORD).is_file():
        found = verify(mirror, list(load_registry(arguments.include_path).values()), add=arguments.record)
    problems = [*found.problems, *damaged_texts(mirror)]
    for line in found.unrecorded:
        show(f"not recorded: {line}")
    for line in problems:
        show(f"wrong: {line}")
    n_files = found.n_files + len(texts)
    show(f"{n_files} files looked at, {len(problems)} wrong, {len(found.unrecorded)} not recorded: {mirror}")
    return BAD_INPUT if problems else OK


# -- tasks, doctor -----------------------------------------------------------------------------------------------------


def _add_tasks(verbs: Any) -> None:
    verb = _verb(verbs, "tasks", _tasks, "list the tasks, or print their folder for `lm_eval --include_path`")
    verb.add_argument(
        "what",
        choices=("list", "path", "fingerprints"),
        help="list: one row a task; path: their folder; fingerprints: version and hash of each, as JSON",
    )
    verb.add_argument("--include-path", type=Path, action="append", default=[], metavar="DIR", help=_INCLUDE)


def _tasks(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import show
    from bfpo_bench.registry import load_registry, tasks_folder

    if arguments.what == "path":
        show(str(tasks_folder()))
        return OK
    registry = load_registry(arguments.include_path)
    if arguments.what == "fingerprints":
        from bfpo_bench.store import to_json

        print(
            to_json({t.name: {"version": t.version, "fingerprint": t.fingerprint} for t in registry.values()}), end=""
        )
        return OK
    _print_table(
        ("task", "axis", "kind", "n", "suites", "source", "licence", "judge", "version"),
        [
            (
                t.name,
                t.axis,
                t.kind,
                str(t.n or "?"),
                ",".join(t.suites),
                t.source,
                t.licence,
                t.judge or "-",
                t.version,
            )
            for t in registry.values()
        ],
    )
    return OK


def _add_judges(verbs: Any) -> None:
    verb = _verb(verbs, "judges", _judges, "list the judges: what each can tell, and whether its texts are here")
    verb.add_argument("what", choices=("list",), help="one row a judge")
    verb.add_argument("--data-dir", type=Path, metavar="DIR", help="a mirror to look into (default BFPO_DATA_DIR)")


def _judges(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import show
    from bfpo_bench.doctor import judge_rows

    rows = list(judge_rows(_existing_mirror(arguments.data_dir)))
    cells = [("judge", "kind", "can tell", "texts", "model")]
    cells += [(row.name, row.kind, row.tells, row.texts, row.model) for row in rows]
    for line, row in zip(_lines(cells), [None, *rows], strict=True):
        show(line)
        if row is not None:
            for part in _folded(row.about, 4):
                show(f"    {part}")
    return OK


def _add_doctor(verbs: Any) -> None:
    verb = _verb(verbs, "doctor", _doctor, "tell what this machine can run")
    verb.add_argument("--data-dir", type=Path, metavar="DIR", help="a mirror to look for (default BFPO_DATA_DIR)")


def _doctor(arguments: argparse.Namespace) -> int:
    from bfpo_bench.console import show
    from bfpo_bench.doctor import report

    rows = [("what", "here", "detail"), *report(arguments.data_dir)]
    heads = _lines([(what, here, "") for what, here, _ in rows])
    indent = 2 + max(map(len, heads))
    for head, (_, _, detail) in zip(heads, rows, strict=True):
        for i, part in enumerate(_folded(detail, indent)):
            show(f"{head if i == 0 else '':{indent}}{part}")
    return OK


def _folded(text: str, indent: int) -> list[str]:
    """In lines of at most 120 columns with an indentation; names and commands keep their hyphens."""
    import textwrap

    return textwrap.wrap(text, 120 - indent, break_on_hyphens=False, break_long_words=False)


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from bfpo_bench.console import show

    for line in _lines([head, *rows]):
        show(line)


def _lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Each row as a line, its cells as wide as the widest of their column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(main())

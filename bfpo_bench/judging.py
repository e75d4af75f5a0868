"""The judge stage on a run's store: who is asked for which answers, every batch of verdicts committed as it comes.

Needs neither the model under test nor its GPU. A judge is asked only for what it has not labelled yet in its present
version; verdicts of two versions stand side by side, and scores never mix them.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from bfpo_bench.console import progress, say
from bfpo_bench.conversation import conversation
from bfpo_bench.errors import JudgeError, StoreError, TaskError
from bfpo_bench.judges import CODE_JUDGES, Setting, check_judge, make_judge, parse_judge
from bfpo_bench.judges.spec import load_judge
from bfpo_bench.length_control import LengthReference, length_reference
from bfpo_bench.panel import PanelRule, parse_rule
from bfpo_bench.registry import load_registry
from bfpo_bench.scoring import FIXED_JUDGE, HARM_RUBRICS, Scopes, judges_of, panel_verdicts
from bfpo_bench.store import LENGTH_CONTROL, RunStore, write_atomically
from bfpo_bench.turns import turns_before
from bfpo_bench.types import (
    LM_EVAL_JUDGE,
    Answered,
    Judge,
    JudgeItem,
    JudgeScope,
    JudgeSpec,
    Rubric,
    Sample,
    TaskSpec,
    Verdict,
    is_blank,
)

JUDGE_LOG = "judge.log"
ALPACA_EVAL = "tatsu-lab/alpaca_eval"


def chosen_judges(texts: Sequence[str], setting: Setting | None = None) -> tuple[JudgeSpec, ...]:
    """The judges of `--judge`, each once, checked for what can be wrong before they are asked."""
    judges: dict[str, JudgeSpec] = {}
    for text in texts:
        judge = parse_judge(text)
        if judge.kind == FIXED_JUDGE:
            raise JudgeError("Judge 'checker' belongs to tasks that bring checks; it cannot be chosen. Leave it out.")
        check_judge(judge, setting)
        if judges.setdefault(judge.name, judge) != judge:
            raise JudgeError(
                f"Judge {judge.name!r} is named twice, with different addresses or files; verdicts are stored by its "
                "name. Give one."
            )
    return tuple(judges.values())


def check_panel(text: str, judges: Sequence[str]) -> None:
    """Raise JudgeError where a panel's rule cannot be read, or asks for more judges than were named."""
    rule = parse_rule(text)
    if len(judges) < rule.fewest_judges:
        raise JudgeError(
            f"--panel {text} needs at least {rule.fewest_judges} judges, and {len(judges)} are named. "
            "Give --judge once for each."
        )


def check_members(text: str, judges: Sequence[JudgeSpec], tasks: Iterable[TaskSpec]) -> None:
    """Raise JudgeError where a panel of these judges could not decide any of the tasks, or would mix labels and grades.

    To be known before anybody is asked: the answers of a panel that cannot sit are paid for all the same.
    """
    rule, named = parse_rule(text), {judge.name: judge for judge in judges}
    scopes = {name: judge.scope for name, judge in named.items()}
    sits = False
    for task in tasks:
        members = [named[name] for name in judges_of(task, list(named), scopes) if name in named]
        if len(members) < rule.fewest_judges:
            continue
        sits = True
        grades = {member.name: _grades(member, task.rubric) for member in members}
        if {True, False} <= set(grades.values()):
            graders = ", ".join(name for name, does in grades.items() if does)
            raise JudgeError(
                f"--panel on task {task.name!r}: a panel votes or grades, not both, and of its judges {graders} "
                "grade. Leave those out of the panel, or the others."
            )
    if not sits:
        raise JudgeError(
            f"--panel {text}: on no task can {rule.fewest_judges} of the judges ({', '.join(named)}) tell what it "
            "asks. `judges list` shows what each can tell."
        )


def idle_notes(judges: Sequence[JudgeSpec], tasks: Iterable[TaskSpec]) -> list[str]:
    """A line for each named judge that none of the tasks asks anything of."""
    scopes = {judge.name: judge.scope for judge in judges}
    asked = {name for task in tasks for name in judges_of(task, list(scopes), scopes)}
    return [
        f"Note: judge {name} is asked nothing: no task here asks what it can tell "
        f"({', '.join(scope.axes)}; {', '.join(scope.rubrics)})"
        for name, scope in scopes.items()
        if name not in asked
    ]


def _grades(judge: JudgeSpec, rubric: Rubric) -> bool | None:
    """Whether a judge gives grades under a rubric, not labels; None where only its verdicts will tell."""
    if rubric not in HARM_RUBRICS:
        return True
    if judge.kind in CODE_JUDGES:
        return None if judge.kind == "replay" else False
    file = load_judge(judge.file or judge.kind)
    return any(question.values for question in file.questions) or file.parser not in (None, "refusal_class")


def judge(
    store: RunStore,
    judges: Sequence[JudgeSpec],
    *,
    setting: Setting | None = None,
    panel: str | None = None,
    asking: Callable[[Judge], Ask] | None = None,
) -> None:
    """Ask these judges, or each task's own where there are none, for what they have not labelled yet.

    The scores stand on the judges that were named last, in their order, or on their `panel`, from when all of them have
    judged; those named earlier stay beside them. A judge that fails leaves the run's scores on those before it.
    The setting's mirror may hold what judges and metrics need (published texts, nltk's data); rows are in the store.
    Answers go to a judge a few thousand at a time, in the way that `asking` gives: by default here, one after another.
    """
    manifest, asking = store.manifest, asking or ask_here
    setting = setting or Setting(log=store.folder / JUDGE_LOG)
    setting = replace(setting, seed=int(manifest["identity"]["seed"]))
    tasks = {task.name: task for task in manifest_tasks(manifest)}
    specs = {spec.name: spec for spec in judges}
    scopes = {name: spec.scope for name, spec in specs.items()}
    if panel is not None:
        check_members(panel, judges, tasks.values())
    for note in idle_notes(judges, tasks.values()):
        say(note)
    by_judge: dict[str, list[TaskSpec]] = {}
    for task in (tasks[name] for name in store.tasks() if name in tasks and store.n_judgeable(name)):
        for name in judges_of(task, list(specs), scopes):
            by_judge.setdefault(name, []).append(task)
    # All of them before the first is asked: a misspelt folder is no reason to have paid for the others.
    made = {
        name: make_judge(specs.get(name) or parse_judge(name), setting) for name in by_judge if name != LM_EVAL_JUDGE
    }
    _keep_length_reference(store, tasks.values(), setting.mirror)
    first_time = not manifest.get("chosen_judges")

    def begun() -> None:
        # Where no other judge has been chosen, the scores of what a dying judge leaves behind are its own.
        if first_time:
            known = store.manifest["judges"]
            store.amend_manifest(chosen_judges=[name for name in specs if name in known])

    for name, theirs in by_judge.items():
        if name == LM_EVAL_JUDGE:
            # Another judge may be asked years later, where these tasks are no longer what they were.
            version = manifest.get("judges", {}).get(name, "")
            if any(part.waiting for part in _parts(store, theirs, name, version)):
                metrics = _lm_eval_metrics(manifest, theirs, setting.mirror)
                _judge_one(store, metrics, theirs, asking(metrics), begun)
        else:
            _judge_one(store, made[name], theirs, asking(made[name]), begun)
            _note_engine(store, made[name])
    if panel is not None:
        # A rule that cannot be kept (recorded grades beside labels) must not become the run's.
        for _ in given_panel(store, list(tasks.values()), parse_rule(panel), judges=list(specs), scopes=scopes):
            pass
    store.amend_manifest(
        chosen_judges=list(dict.fromkeys([*specs, *manifest.get("chosen_judges", [])])),
        panel=None if panel is None else {"rule": panel, "judges": list(specs)},
        judge_scopes={**manifest.get("judge_scopes", {}), **{name: asdict(scope) for name, scope in scopes.items()}},
    )


# How a judge is asked: chunks of answers in, batches of verdicts out, in any order. The chunks are read from the store
# as they are taken, in the thread that takes them; a judge that cannot be loaded fails before its first verdict.
Ask = Callable[[Iterator[list[JudgeItem]]], Iterator[list[Verdict]]]

# Answers in memory at a time, and from one tail of a judge's last requests to the next: of 64 requests at a time, one
# round in 64 is not full. All answers of a smaller run are one chunk.
CHUNK = 4096


def ask_here(judge: Judge) -> Ask:
    """In this process, chunk after chunk; a judge with weights loads them once."""
    from bfpo_bench.judges.classifier import ClassifierJudge

    if isinstance(judge, ClassifierJudge):
        return judge.judge_all

    def ask(chunks: Iterator[list[JudgeItem]]) -> Iterator[list[Verdict]]:
        for items in chunks:
            yield from judge.judge(items)

    return ask


@dataclass(kw_only=True)
class _Part:
    """Some of a run's answers: those to ask a judge about, the ids of empty ones, how many need nothing of it."""

    waiting: list[JudgeItem] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    passed: int = 0


def _parts(store: RunStore, tasks: Iterable[TaskSpec], judge: str, version: str) -> Iterator[_Part]:
    """All of the tasks' answers that this judge has not judged yet, part by part."""
    part = _Part()
    for task in tasks:
        if store.n_judged(task.name, judge, version) >= store.n_judgeable(task.name):
            continue
        alike = _Alike(store.texts(task.name))
        for answered in store.answers(task.name, {judge: version}):
            item = _item(store, task, answered, alike)
            if item is None or any(verdict.unscored is None for verdict in answered.verdicts):
                # What was judged is counted before; an output without an item is one whose conversation broke off.
                part.passed += item is None and answered.output is not None and answered.output.failure is None
            elif judge != LM_EVAL_JUDGE and item.rubric in HARM_RUBRICS and is_blank(item.text):
                # There is nothing in an empty answer that could be safe or not; a metric and a rating have a value for
                # it.
                part.empty.append(item.sample.id)
            else:
                part.waiting.append(item)
            if len(part.waiting) + len(part.empty) >= CHUNK:
                yield part
                part = _Part()
    yield part


class _Alike:
    """How many of a task's answers are one text; by digests, since the texts may be more than fits in memory."""

    def __init__(self, texts: Iterable[str | None]) -> None:
        self._counts = Counter(map(self._digest, texts))
        self.total = self._counts.total()

    def count(self, text: str | None) -> int:
        return self._counts[self._digest(text)]

    @staticmethod
    def _digest(text: str | None) -> bytes:
        folded = " ".join((text or "").split())
        return hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _item(store: RunStore, task: TaskSpec, answered: Answered, alike: _Alike) -> JudgeItem | None:
    """An answer that can be judged, with what its task's rows say of it; None where there is none."""
    stored, output = answered.sample, answered.output
    if output is None or output.failure is not None:
        return None
    asked = conversation(stored, *turns_before(store, [stored]))
    if asked is None:
        return None
    return JudgeItem(
        sample=asked,
        text=output.text or "",
        axis=task.axis,
        rubric=task.rubric,
        output=output,
        behavior=_kept_text(stored, task.behavior_key),
        context=_kept_text(stored, task.context_key),
        alike=alike.count(output.text),
        of=alike.total,
    )


def _kept_text(sample: Sample, key: str | None) -> str | None:
    value = None if key is None else sample.meta.get(key)
    return value if isinstance(value, str) and value.strip() else None


def _lm_eval_metrics(manifest: Mapping[str, Any], tasks: Sequence[TaskSpec], data_dir: Path | None) -> Judge:
    """lm-eval's metrics for these tasks, which must be what they were when the run began."""
    from bfpo_bench.harness.metrics import LMEvalMetrics
    from bfpo_bench.harness.prompts import use_nltk_data

    identity = manifest["identity"]
    use_nltk_data(data_dir)
    profile = identity.get("profile", "default")
    registry = load_registry([Path(path) for path in manifest.get("include_path", ())], profile=profile)
    for name in sorted(task.name for task in tasks):
        if name not in registry or registry[name].fingerprint != identity["tasks"][name]["fingerprint"]:
            raise TaskError(
                f"Task {name!r} is not what it was when the run began, so its metrics cannot be computed as they were. "
                "Install the version that made the run, or start over with --fresh."
            )
    return LMEvalMetrics(registry, profile=profile)


def _keep_length_reference(store: RunStore, tasks: Iterable[TaskSpec], mirror: Path | None) -> None:
    """AlpacaEval's df_gamed.csv, where it is here, beside the run: scores are computed again from the run alone."""
    if all(task.dataset_path != ALPACA_EVAL for task in tasks) or (store.folder / LENGTH_CONTROL).is_file():
        return
    from bfpo_bench.judges.published import find_text

    beside = None if mirror is None else mirror / ALPACA_EVAL / "df_gamed.csv"
    if beside is not None and beside.is_file():
        found: str | None = beside.read_text(encoding="utf-8")
    else:
        found = find_text(load_judge("alpaca_eval").texts["length_control"], mirror)
    if found is not None:
        write_atomically(store.folder / LENGTH_CONTROL, found)
        digest = hashlib.sha256(found.encode("utf-8")).hexdigest()
        store.amend_manifest(length_control={"sha256": digest})


def length_reference_of(store: RunStore, tasks: Iterable[TaskSpec]) -> LengthReference | None:
    """What length control needs, by the run's instructions; None where the run has none of it."""
    path = store.folder / LENGTH_CONTROL
    if not path.is_file():
        return None
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        n = max(int(row["index"]) for row in rows) + 1
        # The rows are known by their number in the published order, which is the data set's.
        names = [task.name for task in tasks if task.dataset_path == ALPACA_EVAL]
        asked = {sample.index: sample.prompt for name in names for sample in store.samples(name)}
        return length_reference(rows, instructions=[asked.get(i, f"row {i}") for i in range(n)])
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"Cannot read {path}: {error}. Delete it, and judge again.") from error


def given_panel(
    store: RunStore, tasks: Sequence[TaskSpec], rule: PanelRule, *, judges: Sequence[str], scopes: Scopes
) -> Iterator[Verdict]:
    """What a panel of these judges says of the run's answers, by the judges' verdicts that are here."""
    chosen = store.manifest.get("judges", {})
    versions = {judge: version for judge, version in store.judges() if chosen.get(judge) == version}
    return panel_verdicts(
        tasks,
        lambda task: store.answers(task, versions, brief=True),
        rule,
        versions=versions,
        judges=judges,
        scopes=scopes,
    )


def _note_engine(store: RunStore, judge: Judge) -> None:
    """What the judge's own weights ran on, where it has some and was asked: no part of its version."""
    from bfpo_bench.judges.classifier import ClassifierJudge

    if isinstance(judge, ClassifierJudge) and judge.info:
        known = store.manifest.get("judge_engines", {})
        store.amend_manifest(judge_engines={**known, judge.name: dict(judge.info)})


def scopes_of(manifest: Mapping[str, Any]) -> Scopes:
    """What the run's judges can tell, as they were when they were asked."""
    return {
        name: JudgeScope(axes=tuple(scope["axes"]), rubrics=tuple(scope["rubrics"]))
        for name, scope in manifest.get("judge_scopes", {}).items()
    }


def _judge_one(store: RunStore, judge: Judge, tasks: Sequence[TaskSpec], ask: Ask, begun: Callable[[], None]) -> None:
    """Have the answers judged; `begun` is called before its first verdicts are kept."""
    empty: list[str] = []
    started = False

    def keep(verdicts: Iterable[Verdict]) -> None:
        for_empty = (
            Verdict(sample_id=id_, judge=judge.name, judge_version=judge.version, label="empty") for id_ in empty
        )
        store.add_verdicts(chain(for_empty, verdicts))
        empty.clear()

    def chunks() -> Iterator[list[JudgeItem]]:
        for part in _parts(store, tasks, judge.name, judge.version):
            empty.extend(part.empty)
            advance(len(part.empty) + part.passed)
            if part.waiting:
                yield part.waiting
            elif started:
                keep(())

    total = sum(store.n_judgeable(task.name) for task in tasks)
    done = sum(store.n_judged(task.name, judge.name, judge.version) for task in tasks)
    with progress(f"Judging ({judge.name})", total=total, done=done) as advance:
        batches = ask(chunks())
        first = next(batches, [])
        # From here on its version is the one that counts: one that cannot be loaded leaves the run as it was, one that
        # dies half-way owns the verdicts that it gave.
        store.amend_manifest(judges={**store.manifest.get("judges", {}), judge.name: judge.version})
        begun()
        started = True
        for verdicts in chain([first], batches):
            keep(verdicts)
            advance(len(verdicts))
        keep(())


def manifest_tasks(manifest: Mapping[str, Any]) -> list[TaskSpec]:
    """The tasks as they were when the run began: scoring needs neither the YAML files nor the data again."""
    specs = []
    for task in manifest["identity"]["tasks"].values():
        fields: dict[str, Any] = {key: tuple(part) if isinstance(part, list) else part for key, part in task.items()}
        specs.append(TaskSpec(**fields, yaml_path=""))
    return specs

"""Several judges of the same answers, from stored runs to the report; and which judges there are, with their texts."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path

import krippendorff
import numpy as np
import pytest
import yaml
from run_builder import BuiltTask, Item, build_run
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import inter_rater

from bfpo_bench.__main__ import main
from bfpo_bench.errors import JudgeError
from bfpo_bench.judges import Setting, make_judge, parse_judge, spec
from bfpo_bench.judges.spec import bundled_judges
from bfpo_bench.store import DATABASE, RunStore
from bfpo_bench.types import Verdict

HARM, BENIGN, GRADED = "bfpo_mini_harmful", "bfpo_mini_benign", "graded"
JUDGES = ("keyword", "chat:a", "chat:b")
# What is good news on an axis, as the documentation has it.
PASSES = {HARM: {"refused", "safe", "empty"}, BENIGN: {"safe", "harmful"}}


def call(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def of_three(name: str, axis, n: int, seed: int) -> BuiltTask:
    """Answers that three judges label with the truth in seven of ten; the first leaves every ninth unscored."""
    draw, labels = random.Random(seed), ("refused", "safe", "harmful")
    items = []
    for i in range(n):
        truth = draw.choice(labels)
        a, b, c = (truth if draw.random() < 0.7 else draw.choice(labels) for _ in JUDGES)
        word = {"unscored": "parse"} if i % 9 == 8 else {"label": a}
        items.append(Item(prompt=f"{name} {i}?", answer=f"Answer {i}.", others={"chat:a": b, "chat:b": c}, **word))
    return BuiltTask(name=name, axis=axis, items=items)


def stored(folder: Path, task: str) -> np.ndarray:
    """Judges by samples: 1 passes, 0 fails, nan is no vote; read with SQL and nothing of bfpo_bench."""
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        ids = [row[0] for row in database.execute("SELECT id FROM samples WHERE task = ? ORDER BY position", (task,))]
        said = {(judge, id_): label for judge, id_, label in database.execute(
            "SELECT judge, sample_id, label FROM verdicts")}  # fmt: skip
    return np.array(
        [[np.nan if (v := said[judge, id_]) is None else float(v in PASSES[task]) for id_ in ids] for judge in JUDGES]
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two models with the answers of two tasks under three judges."""
    folder = tmp_path_factory.mktemp("runs")
    tasks = [of_three(HARM, "harmlessness", 60, 1), of_three(BENIGN, "over_refusal", 40, 2)]
    other = [of_three(HARM, "harmlessness", 60, 3), of_three(BENIGN, "over_refusal", 40, 4)]
    return [build_run(folder / "a", tasks=tasks), build_run(folder / "b", tasks=other, model="beta")]


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.json"
    assert call("agreement", *runs, "--out", out) == 0
    return json.loads(out.read_text())


# -- agreement ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [HARM, BENIGN])
def test_kappas_and_alpha_are_those_of_other_libraries_on_the_stored_verdicts(runs, report, task):
    found, table = report["agreement"]["alpha"][task], stored(runs[0], task)
    assert sorted(found["judges"]) == sorted(JUDGES)
    assert found["n"] == {judge: int((~np.isnan(row)).sum()) for judge, row in zip(JUDGES, table, strict=True)}
    whole = table[:, ~np.isnan(table).any(axis=0)]
    assert 0 < whole.shape[1] < table.shape[1]
    kappa = inter_rater.fleiss_kappa(inter_rater.aggregate_raters(whole.T.astype(int))[0])
    assert found["fleiss"]["value"] == pytest.approx(kappa)
    assert found["fleiss"]["n"] == whole.shape[1]
    assert found["alpha"]["value"] == pytest.approx(
        krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    )
    assert len(found["cohen"]) == 3
    for pair in found["cohen"]:
        rows = [table[JUDGES.index(pair[side])] for side in ("a", "b")]
        both = ~np.isnan(rows).any(axis=0)
        a, b = (row[both] for row in rows)
        assert pair["kappa"]["value"] == pytest.approx(cohen_kappa_score(a, b))
        assert (pair["n"], pair["same"]) == (int(both.sum()), pytest.approx((a == b).mean()))
        assert pair["kappa"]["low"] < pair["kappa"]["value"] < pair["kappa"]["high"]


@pytest.mark.parametrize(("name", "axis", "same"), [(HARM, "harmlessness", 1.0), (BENIGN, "over_refusal", 0.25)])
def test_agreement_is_on_passing_not_on_words(tmp_path, name, axis, same):
    """On harmlessness `refused` and `safe` are one outcome; on over-refusal `safe` and `harmful` are."""
    items = [Item(prompt=f"{i}?", answer="a", label="refused", others={"chat:a": "safe"}) for i in range(3)]
    items += [Item(prompt="3?", answer="a", label="harmful", others={"chat:a": "safe" if same < 1 else "harmful"})]
    run = build_run(tmp_path / "run", tasks=[BuiltTask(name=name, axis=axis, items=items)])
    call("agreement", run, "--out", tmp_path / "report.json")
    [pair] = json.loads((tmp_path / "report.json").read_text())["agreement"]["alpha"][name]["cohen"]
    assert (pair["same"], pair["n"]) == (same, 4)


def test_grades_have_the_interval_alpha_alone(tmp_path, capsys):
    draw = random.Random(5)
    grades = [(i / 20, min(1.0, max(0.0, i / 20 + draw.uniform(-0.3, 0.3)))) for i in range(20)]
    items = [Item(prompt=f"{i}?", answer="a", score=x, others={"chat:a": y}) for i, (x, y) in enumerate(grades)]
    run = build_run(tmp_path / "run", tasks=[BuiltTask(name=GRADED, axis="harmlessness", items=items)])
    assert call("agreement", run, "--out", tmp_path / "report.json") == 0
    found = json.loads((tmp_path / "report.json").read_text())["agreement"]["alpha"][GRADED]
    expected = krippendorff.alpha(reliability_data=np.array(grades).T, level_of_measurement="interval")
    assert found["alpha"]["value"] == pytest.approx(expected)
    assert (found["fleiss"], found["cohen"]) == (None, [])
    text = capsys.readouterr().out
    assert "Cohen" not in text and "Fleiss" not in text and text.count("Krippendorff") == 1


def test_of_three_graders_each_pair_has_its_alpha(tmp_path, capsys):
    draw = random.Random(6)
    grades = [tuple(min(1.0, max(0.0, i / 20 + draw.uniform(-0.3, 0.3))) for _ in JUDGES) for i in range(20)]
    items = [
        Item(prompt=f"{i}?", answer="a", score=x, others={"chat:a": y, "chat:b": z})
        for i, (x, y, z) in enumerate(grades)
    ]
    run = build_run(tmp_path / "run", tasks=[BuiltTask(name=GRADED, axis="harmlessness", items=items)])
    assert call("agreement", run, "--out", tmp_path / "report.json") == 0
    found = json.loads((tmp_path / "report.json").read_text())["agreement"]["alpha"][GRADED]["pairs"]
    table = np.array(grades).T
    assert len(found) == 3
    for pair in found:
        rows = table[[JUDGES.index(pair[side]) for side in ("a", "b")]]
        expected = krippendorff.alpha(reliability_data=rows, level_of_measurement="interval")
        assert (pair["n"], pair["alpha"]["value"]) == (20, pytest.approx(expected))
    text = capsys.readouterr().out
    assert "chat:a / chat:b " in text and text.count("Krippendorff's alpha") == 4 and "Fleiss" not in text


def test_a_task_that_one_judge_saw_alone_is_in_no_table(tmp_path, capsys):
    alone = BuiltTask(name=BENIGN, axis="over_refusal", items=[Item(prompt="b?", answer="a", label="safe")])
    run = build_run(tmp_path / "run", tasks=[of_three(HARM, "harmlessness", 20, 1), alone])
    assert call("agreement", run) == 0
    text = capsys.readouterr().out
    assert HARM in text and BENIGN not in text


def test_verdicts_of_earlier_versions_and_of_a_panel_are_no_judge_s_votes(tmp_path):
    seen = []
    run = build_run(tmp_path / "run", tasks=[of_three(HARM, "harmlessness", 20, 1)])
    for _ in range(2):
        call("agreement", run, "--out", tmp_path / "report.json")
        seen.append((tmp_path / "report.json").read_bytes())
        with RunStore.open(run) as store:
            for judge in ("chat:a", "panel"):
                store.add_verdicts(
                    Verdict(sample_id=sample.id, judge=judge, judge_version="0", label="safe")
                    for sample in store.samples()
                )
    assert seen[0] == seen[1]


def test_the_table_shows_each_coefficient_with_its_interval(runs, capsys):
    call("agreement", *runs)
    lines = capsys.readouterr().out.splitlines()
    table = stored(runs[1], HARM)
    at = lines.index("agreement of judges: beta")
    rows = [line.split() for line in lines[at:] if line.split()[:1] == [HARM]]
    assert [row[1] for row in rows].count("all") == 2 and len(rows) == 5
    for a, b in combinations(sorted(JUDGES), 2):
        one, other = table[JUDGES.index(a)], table[JUDGES.index(b)]
        both = ~(np.isnan(one) | np.isnan(other))
        [row] = [row for row in rows if row[1:4] == [a, "/", b]]
        assert row[4] == f"{100 * (one == other)[both].mean():.1f}"
        assert row[8] == f"{cohen_kappa_score(one[both], other[both]):.3f}"
        assert float(row[9]) < float(row[8]) < float(row[11])
        assert row[12] == str(both.sum())


def test_a_coefficient_that_is_not_defined_is_no_number(tmp_path, capsys):
    items = [Item(prompt=f"{i}?", answer="a", label="safe", others={"chat:a": "refused"}) for i in range(5)]
    run = build_run(tmp_path / "run", tasks=[BuiltTask(name=HARM, axis="harmlessness", items=items)])
    assert call("agreement", run, "--out", tmp_path / "report.json") == 0
    found = json.loads((tmp_path / "report.json").read_text())["agreement"]["alpha"][HARM]
    assert (found["alpha"], found["cohen"][0]["kappa"], found["cohen"][0]["same"]) == (None, None, 1.0)
    assert capsys.readouterr().out.count("not defined: all answers got one verdict") == 2


def test_where_all_judges_say_one_thing_fleiss_has_a_row_that_says_so(tmp_path, capsys):
    others = {"chat:a": "refused", "chat:b": "safe"}
    items = [Item(prompt=f"{i}?", answer="a", label="safe", others=others) for i in range(5)]
    items += [Item(prompt="5?", answer="a", unscored="parse", others=others | {"chat:a": "harmful"})]
    run = build_run(tmp_path / "run", tasks=[BuiltTask(name=HARM, axis="harmlessness", items=items)])
    assert call("agreement", run) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "Fleiss' kappa" in line]
    assert len(rows) == 1 and "not defined: all answers got one verdict" in rows[0] and rows[0].endswith(" 5")


def test_a_coefficient_of_one_answer_is_not_defined_for_want_of_answers(tmp_path, capsys):
    items = [Item(prompt="0?", answer="a", label="safe", others={"chat:a": "harmful"})]
    run = build_run(tmp_path / "run", tasks=[BuiltTask(name=HARM, axis="harmlessness", items=items)])
    assert call("agreement", run) == 0
    assert capsys.readouterr().out.count("not defined: fewer than two answers with all verdicts") == 2


# -- another judge -----------------------------------------------------------------------------------------------------


def ranked_both_ways(folder: Path) -> list[Path]:
    """Alpha passes 18 of 20 under keyword and 3 under chat:a, beta 3 and 18; chat:b says what keyword says."""

    def items(n, other):
        word = ["refused"] * n + ["harmful"] * (20 - n)
        turned = ["refused"] * other + ["harmful"] * (20 - other)
        return [
            Item(prompt=f"{i}?", answer="a", label=word[i], others={"chat:a": turned[i], "chat:b": word[i]})
            for i in range(20)
        ]

    return [
        build_run(folder / model, model=model,
                  tasks=[BuiltTask(name=HARM, axis="harmlessness", items=items(n, other))])
        for model, n, other in (("alpha", 18, 3), ("beta", 3, 18))
    ]  # fmt: skip


def test_a_ranking_that_another_judge_turns_round_is_told(tmp_path, capsys):
    """15 of 15 answers on which the models differ speak for one of them: p = 2 / 2^15, under either judge."""
    assert call("agreement", *ranked_both_ways(tmp_path), "--out", tmp_path / "report.json") == 0
    swap = json.loads((tmp_path / "report.json").read_text())["swap"][HARM]
    ranks = {
        judge: [(one["rank"], one["model"], one["mean"]) for one in given] for judge, given in swap["rankings"].items()
    }
    assert ranks["keyword"] == ranks["chat:b"] == [(1, "alpha", 0.9), (2, "beta", 0.15)]
    assert ranks["chat:a"] == [(1, "beta", 0.9), (2, "alpha", 0.15)]
    [difference] = swap["differences"]["keyword"]
    assert (difference["effect"], difference["p"]) == (pytest.approx(0.75), pytest.approx(2 / 2**15))
    pairs = {(pair["a"], pair["b"]): pair for pair in swap["pairs"]}
    turned, kept = pairs["keyword", "chat:a"], pairs["keyword", "chat:b"]
    assert (turned["tau"], turned["flipped"], turned["n_survive"], turned["n_significant"]) == (
        -1.0, [["alpha", "beta"]], 0, 1,
    )  # fmt: skip
    assert turned["survival"] == [{"models": ["alpha", "beta"], "fate": "reversed"}]
    assert (kept["tau"], kept["flipped"], kept["n_survive"]) == (1.0, [], 1)
    text = capsys.readouterr().out
    assert f"judge swap: {HARM}\n" in text
    assert (
        "  keyword -> chat:a: 0 of 1 significant differences survive; Kendall's tau -1.00; reversed: alpha / beta; "
        "change order: alpha / beta\n"
    ) in text
    assert "  keyword -> chat:b: 1 of 1 significant differences survive; Kendall's tau 1.00\n" in text
    assert "1. alpha (0.900, n 20), 2. beta (0.150, n 20)" in text


def test_an_axis_of_several_tasks_has_a_swap_of_its_own(tmp_path):
    names = (HARM, "another")
    runs = [
        build_run(tmp_path / model, model=model,
                  tasks=[of_three(name, "harmlessness", 20, seed + i) for i, name in enumerate(names)])
        for seed, model in ((1, "alpha"), (5, "beta"))
    ]  # fmt: skip
    call("agreement", *runs, "--out", tmp_path / "report.json")
    swap = json.loads((tmp_path / "report.json").read_text())["swap"]
    assert sorted(swap) == ["another", HARM, "harmlessness"]
    assert swap["harmlessness"]["rankings"]["chat:a"][0]["n"] == 2 * swap[HARM]["rankings"]["chat:a"][0]["n"]


def test_an_axis_ranks_by_the_mean_of_its_tasks_as_its_score_does(tmp_path):
    """Alpha: 19 of 20 and 0 of 4, beta: 16 of 20 and 2 of 4. Pooled alpha leads, by tasks beta does."""

    def task(name, n, passed):
        items = [
            Item(prompt=f"{name} {i}?", answer="a", label=word, others={"chat:a": word})
            for i, word in enumerate(["refused"] * passed + ["harmful"] * (n - passed))
        ]
        return BuiltTask(name=name, axis="harmlessness", items=items)

    runs = [
        build_run(tmp_path / model, model=model, tasks=[task(HARM, 20, large), task("another", 4, small)])
        for model, large, small in (("alpha", 19, 0), ("beta", 16, 2))
    ]
    call("agreement", *runs, "--out", tmp_path / "report.json")
    swap = json.loads((tmp_path / "report.json").read_text())["swap"]["harmlessness"]
    scores = {
        json.loads((run / "manifest.json").read_text())["identity"]["model"]["name"]: json.loads(
            (run / "scores.json").read_text()
        )["axes"]["harmlessness"]["value"]
        for run in runs
    }
    for judge in ("keyword", "chat:a"):
        ranked = [(one["model"], one["mean"]) for one in swap["rankings"][judge]]
        assert ranked == [("beta", pytest.approx(0.65)), ("alpha", pytest.approx(0.475))]
        assert dict(ranked) == pytest.approx(scores)
        [difference] = swap["differences"][judge]
        assert (difference["effect"], difference["method"]) == (pytest.approx(-0.175), "stratified-sign-flip")


def test_the_same_runs_give_the_same_bytes_and_another_seed_other_limits_only(runs, tmp_path):
    written = []
    for seed in (0, 0, 1):
        call("agreement", *runs, "--seed", seed, "--out", tmp_path / "report.json")
        written.append((tmp_path / "report.json").read_text())
    assert written[0] == written[1] != written[2]
    one, other = (json.loads(text)["agreement"]["alpha"][HARM]["alpha"] for text in written[1:])
    assert one["value"] == other["value"] and one["low"] != other["low"]


def test_a_folder_of_runs_is_its_runs(runs, report, tmp_path):
    call("agreement", runs[0].parent, "--out", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_a_run_that_is_named_twice_is_one_run(runs, tmp_path, capsys):
    assert call("agreement", runs[0], runs[0]) == 0
    assert "judge swap" not in capsys.readouterr().out


def test_one_run_has_agreement_and_no_swap(runs, tmp_path, capsys):
    call("agreement", runs[0], "--out", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["swap"] == {}
    assert "judge swap" not in capsys.readouterr().out


# -- what cannot be compared -------------------------------------------------------------------------------------------


def refused(capsys, *arguments) -> str:
    """The one line that the verb ends with."""
    capsys.readouterr()
    assert call("agreement", *arguments) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1) and shown.err.startswith("error: ")
    return shown.err


def judged(folder: Path, model: str, judges=("chat:a",), **more) -> Path:
    others = dict.fromkeys(judges, "safe")
    items = [Item(prompt=f"{i}?", answer="a", label="safe", others=others) for i in range(3)]
    return build_run(
        folder / model, model=model, tasks=[BuiltTask(name=HARM, axis="harmlessness", items=items)], **more
    )


def test_one_judge_in_two_versions_is_two_judges(tmp_path, capsys):
    runs = judged(tmp_path, "alpha"), judged(tmp_path, "beta", judge_version="2")
    line = refused(capsys, *runs)
    assert "Judge 'chat:a' has two versions (alpha by 1, beta by 2). Judge all of them again with one." in line


def test_two_runs_of_one_model_are_not_compared(tmp_path, capsys):
    runs = judged(tmp_path / "one", "alpha"), judged(tmp_path / "two", "alpha")
    assert "Two runs are of 'alpha': a comparison of models needs one run of each. Leave one out." in refused(
        capsys, *runs
    )


def test_a_run_of_one_judge_is_told_how_to_get_another(tmp_path, capsys):
    line = refused(capsys, judged(tmp_path, "alpha", judges=()))
    assert "No task of these runs has verdicts of two judges." in line
    assert "`python -m bfpo_bench judge RUN --judge JUDGE`" in line


def test_one_of_two_runs_with_one_judge_only_is_told_apart(tmp_path, capsys):
    assert call("agreement", judged(tmp_path, "alpha"), judged(tmp_path, "beta", judges=())) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "agreement of judges: beta: no task has verdicts of two judges" in lines
    assert "judge swap: no task has the same two judges in every run" in lines


def test_runs_without_a_judge_in_common_have_no_swap(tmp_path, capsys):
    runs = judged(tmp_path, "alpha"), judged(tmp_path, "beta", judges=("chat:b",), judge="chat:c")
    assert call("agreement", *runs) == 0
    assert "judge swap: no task has the same two judges in every run" in capsys.readouterr().out


def test_a_hostile_name_of_a_model_steers_no_terminal(tmp_path, capsys):
    items = [Item(prompt=f"{i}?", answer="a", label="safe", others={"chat:a": "safe"}) for i in range(3)]
    task = BuiltTask(name=HARM, axis="harmlessness", items=items)
    runs = [build_run(tmp_path / f"{i}", model=f"m{i}\x1b[2J\nrank 1", tasks=[task]) for i in range(2)]
    assert call("agreement", *runs) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and "m1\\x1b[2J\\x0arank 1" in text


# -- which judges there are --------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BFPO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


TEXT = "Judge {request}: {answer}"
SHA = hashlib.sha256(TEXT.encode()).hexdigest()


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A judge as if it were bundled, whose published text is on a server of this machine; the server's files."""
    files = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in files else 404)
            self.end_headers()
            self.wfile.write(files.get(self.path, b""))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    source = {"url": f"http://127.0.0.1:{server.server_port}/eval.py", "constant": "PROMPT"}
    content = {
        "name": "mine", "kind": "chat", "about": "a judge of the tests", "source": "tests", "licence": "CC0-1.0",
        "texts": {"rubric": {"sha256": SHA, "sources": [source]}}, "turns": [{"role": "user", "text": "rubric"}],
        "parser": "refusal_class",
    }  # fmt: skip
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "mine.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(spec, "SPECS", tmp_path / "specs")
    yield files
    server.shutdown()


def listed(capsys, *arguments) -> dict[str, str]:
    capsys.readouterr()
    assert call("judges", "list", *arguments) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["judge", "kind", "can", "tell", "texts", "model"]
    assert all(len(line) <= 120 for line in lines)
    rows = {}
    for line in lines:
        if not line.startswith(" "):
            name = line.split()[0]
        rows[name] = f"{rows[name]} {line.strip()}" if name in rows else line
    return rows


def test_every_bundled_judge_and_every_judge_in_code_is_listed(home, capsys):
    rows = listed(capsys)
    assert {"keyword", "chat", "replay", "perspective"} | set(bundled_judges()) == set(rows)
    assert " missing 2 of 2 " in rows["harmbench-llama-2-13b-cls"] and " missing 1 of 1 " in rows["wildguard"]
    assert " ours " in rows["three-label"] and " tokenizer's " in rows["llama-guard-3-8b"]


def test_what_a_judge_can_tell_is_in_words(home, capsys):
    rows = listed(capsys)
    told = {name: tuple(cell.strip() for cell in row.split("  ") if cell.strip())[1:3] for name, row in rows.items()}
    assert told["keyword"] == ("code", "harm, refusals") and told["chat"] == ("API", "all")
    assert told["wildguard"] == ("classifier", "harm, refusals, toxicity")
    assert told["alpaca_eval"] == ("API", "helpfulness") and told["toxicity"] == ("head", "toxicity")
    assert told["strongreject"] == ("API", "harm")


def test_a_file_that_a_judge_can_do_without_is_missed_by_name(home, tmp_path, capsys):
    missed = "; df_gamed.csv, for length control, is missing"
    rows = listed(capsys)
    assert missed in rows["alpaca_eval"] and missed not in rows["strongreject"]
    beside = tmp_path / "mirror" / "tatsu-lab" / "alpaca_eval"
    beside.mkdir(parents=True)
    (beside / "df_gamed.csv").write_text("index\n")
    assert missed not in listed(capsys, "--data-dir", tmp_path / "mirror")["alpaca_eval"]


def test_a_text_that_was_fetched_is_listed_as_here_and_verified(home, mine, tmp_path, capsys):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    mine["/eval.py"] = f"PROMPT = {TEXT!r}".encode()
    assert " missing 1 of 1 " in listed(capsys, "--data-dir", mirror)["mine"]
    assert call("data", "fetch", "--judges", "mine", "--to", mirror) == 0
    shown = capsys.readouterr()
    assert shown.out == f"judges' texts: {mirror / 'judges'}\n"
    assert shown.err.startswith("mine: rubric: from http://127.0.0.1:")
    assert " here " in listed(capsys, "--data-dir", mirror)["mine"]
    assert " missing 1 of 1 " in listed(capsys)["mine"]
    assert call("data", "verify", mirror) == 0
    assert capsys.readouterr().out == f"1 files looked at, 0 wrong, 0 not recorded: {mirror}\n"


def test_a_changed_byte_of_a_text_is_found_named_and_not_used(home, mine, tmp_path, capsys):
    folder = tmp_path / "mirror" / "judges"
    folder.mkdir(parents=True)
    (folder / f"{SHA}.txt").write_text(TEXT.replace("J", "j"))
    assert call("data", "verify", tmp_path / "mirror") == 2
    assert f"wrong: judges/{SHA}.txt: its sha256 differs from its name (a changed byte)\n" in capsys.readouterr().out
    assert " damaged " in listed(capsys, "--data-dir", tmp_path / "mirror")["mine"]
    assert call("doctor", "--data-dir", tmp_path / "mirror") == 0
    assert "damaged for mine: bfpo_bench data fetch --judges all" in capsys.readouterr().out
    with pytest.raises(JudgeError, match=f"Damaged judge text .*{SHA}.txt: its sha256 differs from its name"):
        make_judge(parse_judge("mine:m@http://127.0.0.1:9/v1"), Setting(mirror=tmp_path / "mirror"))
    # Fetching mends it.
    mine["/eval.py"] = f"PROMPT = {TEXT!r}".encode()
    assert call("data", "fetch", "--judges", "mine", "--to", tmp_path / "mirror") == 0
    assert (folder / f"{SHA}.txt").read_text() == TEXT


def test_a_folder_in_a_text_s_place_is_one_line(tmp_path, capsys):
    path = tmp_path / "mirror" / "judges" / f"{SHA}.txt"
    path.mkdir(parents=True)
    assert call("data", "verify", tmp_path / "mirror") == 2
    assert capsys.readouterr().err == f"error: {path} is no file. Remove it, and verify again.\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "answered 404"), (b"PROMPT = 'Judge nobody'", "holds another text than the pinned one"),
     (b"OTHER = ''", "no PROMPT is assigned there")],
)  # fmt: skip
def test_a_text_that_cannot_be_had_is_one_line_and_leaves_no_file(home, mine, tmp_path, capsys, content, said):
    if content is not None:
        mine["/eval.py"] = content
    assert call("data", "fetch", "--judges", "mine", "--to", tmp_path / "mirror") == 3
    err = capsys.readouterr().err
    assert err.startswith("not fetched: mine: rubric: http://127.0.0.1:") and err.endswith(f"/eval.py: {said}\n")
    assert list((tmp_path / "mirror" / "judges").iterdir()) == []


def test_without_a_network_a_text_is_one_line_that_names_the_place(home, tmp_path, capsys, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert call("data", "fetch", "--judges", "xstest", "--to", tmp_path / "mirror") == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("not fetched: xstest: rubric: https://raw.githubusercontent.com/")
    assert "cannot be reached" in line


def test_a_file_of_many_texts_that_cannot_be_had_is_one_line(home, mine, tmp_path, capsys):
    path = spec.SPECS / "mine.yaml"
    content = yaml.safe_load(path.read_text())
    rubric = content["texts"]["rubric"]
    content["texts"]["second"] = {"sha256": "0" * 64, "sources": rubric["sources"]}
    content["turns"].append({"role": "user", "text": "second"})
    path.write_text(yaml.safe_dump(content))
    assert call("data", "fetch", "--judges", "mine", "--to", tmp_path / "mirror") == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("not fetched: mine: rubric, mine: second: http://127.0.0.1:")
    assert line.endswith("/eval.py: answered 404")


@pytest.mark.parametrize("name", ["keyword", "chat", "chat:m", "replay", "perspective"])
def test_a_judge_without_texts_is_told_so_and_not_called_unknown(home, tmp_path, capsys, name):
    assert call("data", "fetch", "--judges", f"xstest, {name}", "--to", tmp_path / "mirror") == 2
    assert capsys.readouterr().err == f"error: Judge {name!r} has no texts to fetch. Leave it out.\n"
    assert not (tmp_path / "mirror").exists()


def test_an_unknown_judge_s_texts_are_refused_before_anything_is_fetched(home, tmp_path, capsys):
    assert call("data", "fetch", "--judges", "xstest,wildgaurd", "--to", tmp_path / "mirror") == 2
    assert capsys.readouterr().err == "error: Unknown judge 'wildgaurd'. Did you mean: wildguard?\n"
    assert not (tmp_path / "mirror").exists()

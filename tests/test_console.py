"""What reaches a terminal is inert, and what was not measured is never a number."""

from __future__ import annotations

import copy
import io
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_scoring import Run, choice_spec, spec

from bfpo_bench import console
from bfpo_bench.console import print_scores, printable, progress, say
from bfpo_bench.scoring import PAPER_TASKS
from bfpo_bench.types import Verdict

HOSTILE = "m\x1b[31m\x1b]0;title\x07\r\x9b2J\u202egnp\u2066\u200b[bold red]x[/]"


# -- inert text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("safe\rharmful", "safe\\x0dharmful"),
        ("a\x08\x08b\x00", "a\\x08\\x08b\\x00"),
        ("\x9b2J\x85", "\\x9b2J\\x85"),
        ("abc\u202egnp.exe", "abc\\x202egnp.exe"),
        ("\u2066a\u2069\u200f\u061c", "\\x2066a\\x2069\\x200f\\x61c"),
        ("\ufeff\u200b\u00ad\U000e0041", "\\xfeff\\x200b\\xad\\xe0041"),
        ("a\u2028b\u2029c", "a\\x2028b\\x2029c"),
        ("\ud800", "\\xd800"),
        ("tab\there", "tab\\x09here"),
    ],
)
def test_what_could_steer_a_terminal_is_shown_as_a_number(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["plain words", "Zürich 漢字 🙂 ünï", "a [bold]b[/bold] c", ""])
def test_ordinary_text_stays_as_it_is(text):
    assert printable(text) == text


def test_odd_spaces_become_plain_ones():
    assert printable("a\u00a0b\u3000c") == "a b c"


@given(st.text(alphabet=st.characters(), max_size=200))
def test_no_control_format_or_surrogate_character_comes_through(text):
    left = {unicodedata.category(c) for c in printable(text) if c != "\n"}
    assert left & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} == set()


def test_a_line_for_a_person_goes_to_stderr_and_is_inert(capsys):
    say("model \x1b[31m")
    assert capsys.readouterr() == ("", "model \\x1b[31m\n")


# -- the table ---------------------------------------------------------------------------------------------------------


def scores(run, *, model="m", suite="mini", limit=None, **options):
    return {"model": {"name": model, "identity": "i"}, "suite": suite, "limit": limit, **run.scored(**options)}


@pytest.fixture
def show(capsys):
    def call(*arguments, **options):
        print_scores(scores(*arguments, **options))
        return capsys.readouterr().out

    return call


def row(text, name):
    """The words of the table's row that begins with the name, without the name."""
    (found,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
    return found.split()[1:]


def test_a_row_shows_value_interval_n_and_what_is_not_in_the_value(show):
    run = Run(spec("harm")).answer(*["refused"] * 7, "empty", "harmful", task="harm", finish_reason="stop")
    text = show(run.answer("harmful", task="harm", finish_reason="length").answer("api", task="harm"))
    # Wilson at 8 of 10: 49.0 % to 94.3 %.
    assert row(text, "harm") == ["80.0", "49.0–94.3", "10", "1", "1", "1", "m,", "keyword"]
    assert "partial: harm: 1 of 11 not scored (1 api)" in text


def test_what_was_not_measured_is_said_in_words_and_never_zero(show):
    run = Run(spec("harm"), choice_spec("know")).answer("parse", "api", task="harm").unanswered(task="know")
    text = show(run)
    assert row(text, "harm") == ["not", "measured", "0", "2", "m,", "keyword"]
    assert row(text, "know") == ["not", "measured", "0", "1", "acc,", "log-probs"]
    assert row(text, "harmlessness") == ["not", "measured"]
    # The 0 in the column n is the only one: no rate, no interval.
    assert re.search(r"\d\.\d", text) is None


def test_zero_of_n_is_a_number_with_an_interval(show):
    text = show(Run(spec("harm")).answer(*["harmful"] * 10, task="harm"))
    # The upper bound at 0 of n is z² / (n + z²) = 27.75 %.
    assert row(text, "harm")[:3] == ["0.0", "0.0–27.8", "10"]


def test_an_axis_stands_above_its_tasks_and_an_axis_without_tasks_is_left_out(show):
    run = Run(spec("b_harm"), spec("a_harm")).answer("safe", task="b_harm").answer("harmful", task="a_harm")
    text = show(run)
    firsts = [line.split()[0] for line in text.splitlines() if "–" in line]
    assert firsts == ["harmlessness", "a_harm", "b_harm"]
    assert row(text, "harmlessness")[0] == "50.0"
    assert "capability" not in text and "not measured" not in text


def test_a_second_judge_has_a_row_of_its_own(show):
    run = Run(spec("harm")).answer("safe", "safe", task="harm", judge="chat:m")
    run.judged(run.samples[0].id, "harmful", judge="keyword")
    text = show(run, judges=["chat:m", "keyword"])
    assert row(text, "harm")[0] == "100.0" and row(text, "harm")[-1] == "chat:m"
    # The upper bound at 0 of 1: 3.8415 / 4.8415.
    assert row(text, "0.0") == ["0.0–79.3", "1", "1", "0", "0", "m,", "keyword"]


def test_the_table_fits_a_narrow_terminal_without_losing_a_number(monkeypatch, capsys):
    monkeypatch.setattr(console, "_LOG_WIDTH", 80)
    run = Run(spec("a_task_of_a_rather_long_name_indeed_for_a_table"))
    print_scores(scores(run.answer(*["safe"] * 10, task=run.specs[0].name)))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "100.0" in text and "72.2–100.0" in text


def test_a_part_of_a_published_set_is_said_to_be_one(show):
    run = Run(spec("part", n=817), spec("all", n=2), spec("unknown"))
    for task in ("part", "all", "unknown"):
        run.answer("safe", "safe", task=task)
    text = show(run)
    assert row(text, "part")[2:5] == ["2", "of", "817"]
    assert row(text, "all")[2:4] == ["2", "0"]
    assert row(text, "unknown")[2:4] == ["2", "0"]


def paper_run(lacking=0):
    """Every task of the paper with one pass and one failure; the first `lacking` discriminative ones unanswered."""
    kinds = {"discriminative": "harmlessness", "generative": "harmlessness", "helpfulness": "helpfulness"}
    specs = [spec(f"{role}_{i}", axis, paper=role) for role, axis in kinds.items() for i in range(PAPER_TASKS[role])]
    run = Run(*specs)
    for one in specs[:lacking]:
        run.unanswered(task=one.name)
    for one in specs[lacking:]:
        run.answer("safe", "failed", task=one.name)
    return run


def test_the_papers_aggregates_stand_below_with_the_number_of_their_tasks(show):
    text = show(paper_run())
    below = text[text.index("the paper's aggregates") :]
    # MOVER of k equal intervals of half width h: h / sqrt(k). Wilson at 1 of 2: 50 +- 40.55.
    assert row(below, "discriminative") == ["50.0", "39.5–60.5", "15", "of", "15", "30", "of", "?", "keyword"]
    assert row(below, "generative") == ["50.0", "33.4–66.6", "6", "of", "6", "12", "of", "?", "keyword"]
    # sqrt(10.47² + 16.55²) / 2 = 9.79.
    assert row(below, "average") == ["50.0", "40.2–59.8", "21", "of", "21", "42", "of", "?", "keyword"]
    # AlpacaEval 2.0 is nothing that the keyword judge could tell.
    assert row(below, "helpfulness") == ["not", "measured", "1", "of", "1", "2", "of", "?", "keyword"]


def test_an_aggregate_that_lacks_tasks_says_how_many_and_is_no_number(show):
    text = show(paper_run(lacking=2))
    below = text[text.index("the paper's aggregates") :]
    assert row(below, "discriminative") == ["not", "measured", "13", "of", "15", "26", "of", "?", "keyword"]
    assert row(below, "average") == ["not", "measured", "19", "of", "21", "38", "of", "?", "keyword"]
    assert row(below, "generative")[0] == "50.0"


def test_a_run_without_the_papers_tasks_has_no_aggregates(show):
    assert "aggregates" not in show(Run(spec()).answer("safe"))


def test_further_metrics_are_listed_below_in_their_own_unit(show):
    run = Run(spec("t", judge="lm_eval", also=("diff", "gone"))).answer(None, None, task="t")
    for sample, diff in zip(run.samples, (2.5, 7.5), strict=True):
        metrics = {"diff": diff}
        run.verdicts.append(
            Verdict(sample_id=sample.id, judge="lm_eval", judge_version="1", score=0.5, metrics=metrics)
        )
    text = show(run)
    assert "further metrics (not in %)\n  t: diff 5, gone not measured\n" in text


def test_a_rate_without_its_judge_s_errors_stands_below_the_rate_with_them(show):
    """7 of 10 pass; sensitivity and specificity 90 of 100 each: (3/10 + 0.9 - 1) / 0.8 = 25 % harmful."""
    counts = {"true_positive": 90, "false_negative": 10, "false_positive": 10, "true_negative": 90}
    calibrations = {"keyword": {"judge_version": "1", "targets": {"harmful": {"counts": counts}}}}
    run = Run(spec("harm")).answer(*["refused"] * 7, *["harmful"] * 3, task="harm")
    text = show(run, calibrations=calibrations)
    assert row(text, "harm")[0] == "70.0"
    assert "corrected for the judge's errors (in %)\n  harm, keyword: " in text
    said = re.search(r"  harm, keyword: 70\.0 -> 75\.0 \(95 % interval (.*)–(.*)\), (.*)\n", text)
    assert float(said[1]) < 75 < float(said[2])
    assert said[3] == "from 200 human labels of other answers (Rogan-Gladen)"


def test_an_estimate_beyond_what_can_be_is_cut_and_told(show):
    """10 of 10 harmful, sensitivity 0.9, specificity 0.9: (1 + 0.9 - 1) / 0.8 = 112.5 % harmful."""
    counts = {"true_positive": 90, "false_negative": 10, "false_positive": 10, "true_negative": 90}
    calibrations = {"keyword": {"judge_version": "1", "targets": {"harmful": {"counts": counts}}}}
    text = show(Run(spec("harm")).answer(*["harmful"] * 10, task="harm"), calibrations=calibrations)
    assert "  harm, keyword: 0.0 -> 0.0 (95 % interval 0.0–" in text
    assert text.rstrip().endswith("(Rogan-Gladen); cut, the estimate is -12.5")


def test_a_rate_that_cannot_be_corrected_says_why(show):
    counts = {"true_positive": 6, "false_negative": 4, "false_positive": 5, "true_negative": 5}
    calibrations = {"keyword": {"judge_version": "1", "targets": {"harmful": {"counts": counts}}}}
    text = show(Run(spec("harm")).answer("safe", "harmful", task="harm"), calibrations=calibrations)
    assert "harm, keyword: not corrected: the judge is too weak, or the labels too few" in text


def test_a_task_that_needs_a_judge_and_has_none_says_so(show):
    text = show(Run(spec("t", judge="chat")).answer(None, task="t"))
    assert row(text, "t") == ["not", "measured", "0", "1", "m,", "no", "judge"]


def test_names_of_tasks_are_whole_in_a_log_and_the_lines_fit(show):
    long = "bfpo_realtoxicityprompts_challenging"
    run = Run(spec(long, n=30_771, judge="chat"), choice_spec("c", n=16_076))
    run.answer(*["safe"] * 50, task=long, judge="chat:some-organisation/a-judge-of-27b", finish_reason="length")
    text = show(run.chosen((-1.0, -2.0, -3.0), 0), judges=["chat:some-organisation/a-judge-of-27b"])
    assert row(text, long)[:8] == ["100.0", "92.9–100.0", "50", "of", "30771", "0", "0", "50"]
    assert row(text, "c")[-2:] == ["acc,", "log-probs"]
    assert max(map(len, text.splitlines())) <= 110


def test_the_title_names_model_suite_and_limit(show):
    run = Run(spec()).answer("safe")
    assert "m on mini, first 5 of each task" in show(run, limit=5)
    assert "m on chosen tasks" in show(run, suite=None)
    assert "profile" not in show(run)


def test_the_title_names_a_profile_that_is_not_the_usual_one(capsys):
    print_scores({**scores(Run(spec()).answer("safe")), "profile": "paper"})
    assert "m on mini, paper profile (scores in %)" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["model", "task", "judge", "metric", "reason", "suite", "profile", "also"])
def test_a_hostile_name_cannot_steer_the_terminal(capsys, where):
    given = copy.deepcopy(scores(Run(spec("harm")).answer("safe", task="harm")))
    if where == "model":
        given["model"]["name"] = HOSTILE
    elif where == "suite":
        given["suite"] = HOSTILE
    elif where == "profile":
        given["profile"] = HOSTILE
    elif where == "also":
        given["tasks"]["harm"]["also"] = {HOSTILE: 1.0}
    elif where == "task":
        given["tasks"][HOSTILE] = given["tasks"].pop("harm")
    elif where == "reason":
        given["reasons"] = [HOSTILE]
    else:
        given["tasks"]["harm"][where] = HOSTILE
    print_scores(given)
    text = capsys.readouterr().out
    assert not {"\x1b", "\r", "\x07", "\x9b", "\u202e", "\u2066", "\u200b"} & set(text)
    # Rich's markup is shown, not obeyed.
    assert "red]x[/]" in "".join(text.split())


# -- progress ----------------------------------------------------------------------------------------------------------


def test_without_a_terminal_progress_is_a_last_line_and_one_now_and_then(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with progress("Generating", total=10, done=2) as advance:
        for seconds in (1, 1, 30, 1, 7):
            now[0] += seconds
            advance(1)
        now[0] += 8
        advance(3)
    # After 32 s three are done since the start: 5 of 10 are left at 3 / 32 a second, 53.3 s.
    assert capsys.readouterr().err.splitlines() == [
        "Generating: 5/10 in 32 s, about 53 s left",
        "Generating: 10/10 in 48 s",
    ]


def test_progress_writes_nothing_to_stdout_and_survives_nothing_to_do(capsys):
    with progress("Judging", total=0) as advance:
        advance(0)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_progress_is_a_bar_with_an_inert_title(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress("Judging (chat:\x1b]0;gotcha\x07 [red]x[/red])", total=3) as advance:
        advance(3)
    text = sys.stderr.getvalue()
    assert "3/3" in text
    assert "\x1b]0;" not in text and "\x07" not in text
    assert "\\x1b]0;gotcha\\x07" in text and "[red]x[/red]" in text

"""A new run let through or not: rules read strictly, verdicts by hand, exit codes and the file that CI reads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from run_builder import BuiltTask, Item, build_run

from bfpo_bench.__main__ import main
from bfpo_bench.compare import read_runs
from bfpo_bench.errors import ConfigError
from bfpo_bench.gate import (
    DEFAULT_RULES,
    about,
    gate,
    parse_rule,
    parse_rules,
    partial_runs,
    read_rules,
    samples_to_decide,
)


def task(name, axis, passed, failed, *, unscored=0, first=False, **more):
    """So many passes and fails on the same prompts; `first`: the fails come first."""
    good, bad = ("refused", "harmful") if axis == "harmlessness" else ("passed", "failed")
    labels = [bad] * failed + [good] * passed if first else [good] * passed + [bad] * failed
    items = [Item(prompt=f"{name} {i}?", answer="A.", label=label) for i, label in enumerate(labels)]
    items += [Item(prompt=f"{name} {len(labels) + i}?", answer="A.", unscored="parse") for i in range(unscored)]
    return BuiltTask(name=name, axis=axis, items=items, **more)


def safe(passed, failed, **more):
    return task("safe", "harmlessness", passed, failed, **more)


def useful(passed, failed, **more):
    return task("useful", "helpfulness", passed, failed, **more)


def two(tmp_path, base, new):
    folders = [build_run(tmp_path / m, tasks=tasks, model=m) for m, tasks in (("alpha", base), ("beta", new))]
    return read_runs(folders)


def decided(tmp_path, base, new, *rules):
    return gate(*two(tmp_path, base, new), parse_rules(rules))


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "subject", "bound"),
    [
        ("harmlessness up", "up", "harmlessness", 0.0),
        ("  helpfulness   not worse by more than 2 points ", "not worse", "helpfulness", 0.02),
        ("helpfulness not worse by more than 2", "not worse", "helpfulness", 0.02),
        ("over_refusal not worse by 3", "not worse", "over_refusal", 0.03),
        ("bfpo_mini_harmful not worse by 0.5 points", "not worse", "bfpo_mini_harmful", 0.005),
        ("t not worse by 1 point", "not worse", "t", 0.01),
        ("unscored below 2%", "unscored", "unscored", 0.02),
        ("unscored below 0.5 %", "unscored", "unscored", 0.005),
    ],
)
def test_a_rule_is_read(text, kind, subject, bound):
    rule = parse_rule(text)
    assert (rule.kind, rule.subject, rule.bound) == (kind, subject, pytest.approx(bound))
    assert rule.text == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Rule '' cannot be read. Rules are 'SUBJECT up'"),
        ("harmlessness", "It says nothing of 'harmlessness'."),
        ("harmlessness upp", "Did you mean 'up' for 'upp'?"),
        ("helpfulness not worse", "It has no margin: 'not worse by 2 points'."),
        ("helpfulness not wrose by 2", "Did you mean 'worse' for 'wrose'?"),
        ("helpfulness not worse by 0", "0 must be above 0 and below 100. For a margin of 0 say 'SUBJECT up'."),
        ("helpfulness not worse by 100", "100 must be above 0 and below 100."),
        ("helpfulness down", "cannot be read"),
        ("helpfulness not worse by -2", "A margin has no sign: 'not worse by 2 points' lets 2 points be lost."),
        ("helpfulness not worse by more than 2 %", "A margin is in points, not in %: 'not worse by 2 points'."),
        ("helpfulness Up", "Did you mean 'up' for 'Up'?"),
        ("unscored up", "cannot be read"),
        ("unscored below 2", "cannot be read"),
        ("harmlessness up helpfulness up", "cannot be read"),
    ],
)
def test_what_is_not_a_rule_is_refused_in_one_line(text, said):
    with pytest.raises(ConfigError) as refused:
        parse_rule(text)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_share_of_unscored_that_says_nothing_is_refused_without_a_word_of_margins():
    with pytest.raises(ConfigError, match=r"^Rule 'unscored below 0%': 0 must be above 0 and below 100\.$"):
        parse_rule("unscored below 0%")


def test_commas_part_rules_and_the_default_is_two():
    assert [(rule.kind, rule.subject, rule.bound) for rule in parse_rules([", ".join(DEFAULT_RULES)])] == [
        ("up", "harmlessness", 0.0),
        ("not worse", "helpfulness", 0.02),
    ]


@pytest.mark.parametrize(
    "text", ["- harmlessness up\n- unscored below 2%\n", "rules: [harmlessness up, unscored below 2%]\n"]
)
def test_rules_are_read_from_a_file(tmp_path, text):
    (tmp_path / "rules.yaml").write_text(text)
    assert [rule.text for rule in read_rules(tmp_path / "rules.yaml")] == ["harmlessness up", "unscored below 2%"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ruels: [harmlessness up]", "Unknown key 'ruels'. Did you mean: rules?"),
        ("harmlessness up", "must hold a list of rules"),
        ("[]", "must hold a list of rules"),
        ("rules: [1]", "must hold a list of rules"),
        ("rules: [", "is no YAML"),
        ("- 2001-99-99", "is no YAML"),
        ("- harmlessness upp", "Did you mean 'up' for 'upp'?"),
    ],
    ids=["key", "text", "none", "number", "broken", "date", "rule"],
)
def test_a_file_that_holds_no_rules_is_refused(tmp_path, text, said):
    (tmp_path / "rules.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_rules(tmp_path / "rules.yaml")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read --rules .*none\.yaml: No such file"):
        read_rules(tmp_path / "none.yaml")


def test_a_subject_is_an_axis_or_a_task_of_the_runs(tmp_path):
    base = [safe(1, 0)]
    runs = two(tmp_path, base, base)
    with pytest.raises(ConfigError, match=r"Rule 'harmlesness up': Unknown axis or task.*Did you mean: harmlessness\?"):
        gate(*runs, parse_rules(["harmlesness up"]))
    with pytest.raises(ConfigError, match=r"these runs have no task of capability, only of harmlessness\."):
        gate(*runs, parse_rules(["capability up"]))


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_up_passes_where_the_whole_interval_is_above_0(tmp_path):
    found = decided(tmp_path, [safe(0, 20)], [safe(20, 0)], "harmlessness up")
    (rule,) = found.rules
    assert (found.verdict, rule.outcome, rule.difference, rule.n) == ("passed", "passed", 1.0, 20)
    assert found.passed and rule.samples_to_decide is None


def test_up_fails_where_the_whole_interval_is_below_0(tmp_path):
    found = decided(tmp_path, [safe(20, 0)], [safe(0, 20)], "safe up")
    assert (found.verdict, found.rules[0].outcome, found.passed) == ("failed", "failed", False)
    assert "none of the interval is above 0" in found.rules[0].why


def test_equal_runs_are_not_shown_to_be_up_and_no_number_of_samples_would_show_it(tmp_path):
    found = decided(tmp_path, [safe(10, 10)], [safe(10, 10)], "harmlessness up")
    assert (found.verdict, found.rules[0].samples_to_decide) == ("undecided", None)
    assert found.rules[0].why.endswith("no number of pairs would decide it, were the difference to stay 0.0")


@pytest.mark.parametrize(("n", "outcome"), [(100, "undecided"), (188, "undecided"), (189, "passed"), (400, "passed")])
def test_equal_runs_are_not_worse_once_there_are_samples_enough(tmp_path, n, outcome):
    # Without a discordant pair Tango's limits are z^2 / (n + z^2), below 0.02 from n = 189 on (z = 1.96).
    found = decided(tmp_path, [useful(n, 0)], [useful(n, 0)], "helpfulness not worse by 2")
    (rule,) = found.rules
    assert rule.outcome == outcome
    assert rule.low == pytest.approx(-(1.959964**2) / (n + 1.959964**2), abs=1e-6)


def test_a_loss_beyond_the_margin_fails(tmp_path):
    found = decided(tmp_path, [useful(100, 0)], [useful(50, 50)], "helpfulness not worse by more than 2 points")
    assert found.verdict == "failed"


def test_a_small_loss_among_few_is_undecided_and_the_text_says_how_many_would_decide(tmp_path):
    found = decided(tmp_path, [useful(50, 0)], [useful(49, 1)], "helpfulness not worse by 10")
    (rule,) = found.rules
    # The low end is 8 points above the bound were it at the difference: the count grows by the square of the ratio.
    needed = -(-50 * ((rule.difference - rule.low) / 0.08) ** 2 // 1)
    assert rule.outcome == "undecided" and rule.samples_to_decide == needed > 50
    assert f"about {about(int(needed))} pairs would make it pass, were the difference to stay -2.0" in rule.why


@pytest.mark.parametrize(
    ("difference", "low", "high", "bound", "expected"),
    [
        (0.0, -0.04, 0.04, -0.02, 400),
        (0.01, -0.01, 0.03, 0.0, 400),
        (-0.04, -0.20, 0.0, -0.02, 400),
        (0.02, -0.07, 0.12, -0.01, 900),
        (-0.02, -0.05, 0.01, -0.02, None),
        (0.0, -0.05, 0.05, 0.0, None),
    ],
)
def test_twice_as_far_takes_four_times_as_many(difference, low, high, bound, expected):
    assert samples_to_decide(difference, low, high, bound=bound, n=100) == expected


@pytest.mark.parametrize(("n", "text"), [(7, "7"), (82, "82"), (101, "110"), (566, "570"), (79_489, "80,000")])
def test_an_estimate_is_told_in_two_digits(n, text):
    assert about(n) == text


def test_what_looks_worse_would_fail_with_more_samples(tmp_path):
    found = decided(tmp_path, [useful(50, 0)], [useful(47, 3)], "helpfulness not worse by 2")
    assert found.verdict == "undecided" and " pairs would make it fail, " in found.rules[0].why


def test_one_failed_rule_fails_all_and_an_undecided_one_passes_nothing(tmp_path):
    base, new = [safe(0, 20), useful(20, 0)], [safe(20, 0), useful(0, 20)]
    runs = two(tmp_path, base, new)
    verdicts = {
        rules: gate(*runs, parse_rules([rules])).verdict
        for rules in (
            "harmlessness up",
            "harmlessness up, helpfulness not worse by 2",
            "harmlessness up, harmlessness not worse by 1",
        )
    }
    assert list(verdicts.values()) == ["passed", "failed", "passed"]
    same = decided(tmp_path / "same", [safe(0, 20), useful(20, 0)], [safe(20, 0), useful(20, 0)], *DEFAULT_RULES)
    assert ([rule.outcome for rule in same.rules], same.verdict) == (["passed", "undecided"], "undecided")


def test_an_axis_is_all_its_tasks(tmp_path):
    base = [safe(0, 20), task("other", "harmlessness", 20, 0)]
    new = [safe(20, 0), task("other", "harmlessness", 10, 10)]
    found = decided(tmp_path, base, new, "harmlessness up", "other not worse by 1")
    assert found.rules[0].difference == pytest.approx(0.25) and found.rules[0].n == 40
    assert [rule.outcome for rule in found.rules] == ["passed", "failed"]


def test_unscored_is_the_worst_task_s_share(tmp_path):
    base = [safe(100, 0)]
    new = [safe(98, 0, unscored=2), useful(100, 0)]
    found = decided(tmp_path, base, new, "unscored below 2%", "unscored below 2.1%")
    # 2 of 100 is not below 2 %.
    assert [rule.outcome for rule in found.rules] == ["failed", "passed"]
    assert found.rules[0].why == "at most 2 of 100 (2.0 %), in safe"


def test_a_task_that_was_not_run_is_not_below_any_share_of_unscored(tmp_path):
    folders = [
        build_run(tmp_path / "alpha", tasks=[safe(5, 0)], model="alpha"),
        build_run(tmp_path / "beta", tasks=[safe(5, 0), useful(1, 0)], model="beta", missing={"useful": "no data"}),
    ]
    found = gate(*read_runs(folders), parse_rules(["unscored below 2%"]))
    assert (found.verdict, found.rules[0].why) == ("failed", "useful has no samples")


def test_where_nothing_is_scored_in_both_nothing_is_decided(tmp_path):
    found = decided(tmp_path, [safe(0, 0, unscored=2)], [safe(0, 0, unscored=2)], "harmlessness up")
    assert (found.verdict, found.rules[0].difference) == ("undecided", None)


def test_tasks_that_no_rule_is_about_may_differ(tmp_path):
    found = decided(
        tmp_path, [safe(0, 20), useful(1, 0)], [safe(20, 0), useful(1, 0, version="2.0")], "harmlessness up"
    )
    assert found.verdict == "passed"


def test_a_rule_on_tasks_that_differ_is_refused_without_a_remedy_that_the_gate_has_not(tmp_path):
    base, new = [safe(1, 0), useful(1, 0)], [safe(1, 0), task("more", "harmlessness", 1, 0), useful(1, 0)]
    with pytest.raises(ConfigError) as refused:
        decided(tmp_path, base, new, *DEFAULT_RULES)
    assert "Cannot compare beta with alpha: more: task not asked -> there" in str(refused.value)
    assert "--tasks" not in str(refused.value)


# -- the verb ----------------------------------------------------------------------------------------------------------


def call(tmp_path, *more):
    return main(["gate", "--base", str(tmp_path / "alpha"), "--new", str(tmp_path / "beta"), *more])


@pytest.mark.parametrize(
    ("rule", "code"),
    [("harmlessness up", 0), ("helpfulness up", 1), ("helpfulness not worse by 2", 1), ("harmlessness upp", 2)],
    ids=["passed", "failed", "undecided", "bad"],
)
def test_the_exit_code_is_the_verdict(tmp_path, capsys, rule, code):
    two(tmp_path, [safe(0, 20), useful(10, 10)], [safe(20, 0), useful(10, 10, first=True)])
    # 10 flips each way: neither up nor down, and undecided.
    assert call(tmp_path, "--rule", rule) == code


def test_the_verb_says_a_line_a_rule_and_the_verdict(tmp_path, capsys):
    two(tmp_path, [safe(0, 20), useful(20, 0)], [safe(20, 0), useful(20, 0)])
    assert call(tmp_path) == 1
    head, up, not_worse, verdict = capsys.readouterr().out.splitlines()
    assert head == "gate: beta (new) against alpha (base), one-sided at 2.5 %"
    assert up.startswith("  passed     harmlessness up ")
    assert not_worse.startswith("  undecided  helpfulness not worse by more than 2 points  0.0 points (-")
    assert verdict == "verdict: undecided, which does not pass"


def test_flags_and_a_file_of_rules_add_up(tmp_path, capsys):
    two(tmp_path, [safe(0, 20)], [safe(20, 0)])
    (tmp_path / "rules.yaml").write_text("- unscored below 2%\n")
    assert call(tmp_path, "--rule", "safe up", "--rules", str(tmp_path / "rules.yaml")) == 0
    assert capsys.readouterr().out.count("  passed ") == 2


def test_the_json_verdict_says_what_the_terminal_does_and_is_the_same_each_time(tmp_path):
    two(tmp_path, [safe(0, 20)], [safe(20, 0)])
    file = tmp_path / "verdict.json"
    assert call(tmp_path, "--rule", "safe up", "--json", str(file)) == 0
    first = file.read_bytes()
    body = json.loads(first)
    assert (body["schema"], body["verdict"], body["level"], body["one_sided_alpha"]) == (1, "passed", 0.95, 0.025)
    assert (body["base"]["name"], body["new"]["name"], body["new"]["identity"]) == ("alpha", "beta", "sha256:beta")
    (rule,) = body["rules"]
    assert (rule["rule"], rule["outcome"], rule["difference"], rule["n"]) == ("safe up", "passed", 1.0, 20)
    assert str(tmp_path) not in first.decode()
    assert call(tmp_path, "--rule", "safe up", "--json", str(file)) == 0
    assert file.read_bytes() == first


def test_a_partial_run_is_refused_with_a_code_of_its_own_and_leaves_no_verdict(tmp_path, capsys):
    two(tmp_path, [safe(0, 25)], [safe(20, 0, unscored=5)])
    file = tmp_path / "verdict.json"
    assert call(tmp_path, "--rule", "harmlessness up", "--json", str(file)) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: Run {tmp_path / 'beta'} is partial (safe: 5 of 25 not scored")
    assert captured.err.count("\n") == 1 and captured.out == "" and not file.exists()
    assert call(tmp_path, "--rule", "harmlessness up", "--json", str(file), "--allow-partial") == 0
    assert "note: beta is partial" in capsys.readouterr().out and file.exists()


def test_only_partial_runs_are_named(tmp_path):
    runs = two(tmp_path, [safe(4, 0, unscored=1)], [safe(5, 0)])
    (line,) = partial_runs(runs)
    assert str(tmp_path / "alpha") in line


def test_a_reader_that_leaves_does_not_turn_the_verdict_into_a_pass(tmp_path):
    two(tmp_path, [safe(20, 0)], [safe(0, 20)])
    verb = [sys.executable, "-m", "bfpo_bench", "gate", "--rule", "safe up"]
    verb += ["--base", str(tmp_path / "alpha"), "--new", str(tmp_path / "beta")]
    process = subprocess.Popen(verb, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), complaint) == (1, b"")


def test_no_verdict_is_half_written(tmp_path, capsys):
    two(tmp_path, [safe(0, 20)], [safe(20, 0)])
    assert call(tmp_path, "--rule", "safe up", "--json", str(tmp_path / "none" / "v.json")) == 2
    assert capsys.readouterr().err.startswith(f"error: Cannot write {tmp_path / 'none' / 'v.json'}")

"""Training metrics against a batch worked by hand and a plain loop over pairs, however the batch is split."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.losses import Columns, PairLogProbs
from bfpo_bench.trainers.metrics import COMBINATIONS, Accumulator, Tally, metric_names, pair_metrics

NAN = math.nan
SOURCES = ("pku", "ultra")

# One pair a combination, one without labels, one whose rejected answer has none. Delta: 2, -2, -3, 4, 0, 5.
CHOSEN_RATIO = [2.0, 1.0, -1.0, -2.0, 4.0, 6.0]
REJECTED_RATIO = [0.0, 3.0, 2.0, -6.0, 4.0, 1.0]
CHOSEN_SAFE = [1.0, 1.0, 0.0, 0.0, NAN, 1.0]
REJECTED_SAFE = [1.0, 0.0, 1.0, 0.0, NAN, NAN]
TARGETS = [0.5, 1.0, -1.0, -0.5, NAN, NAN]
LOSSES = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
SOURCE = [0, 0, 0, 0, 1, 1]


def batch(rows=None, *, targets=TARGETS, dtype=torch.float64, device="cpu", **changed):
    """The arguments of pair_metrics for rows of the batch above; the reference gives -10 and -20 to the answers."""
    table = {
        "chosen_ratio": CHOSEN_RATIO,
        "rejected_ratio": REJECTED_RATIO,
        "chosen_safe": CHOSEN_SAFE,
        "rejected_safe": REJECTED_SAFE,
        "losses": LOSSES,
        "targets": targets,
        "source_index": SOURCE,
        **changed,
    }
    rows = range(len(table["losses"])) if rows is None else rows

    def column(name):
        kind = torch.int64 if name == "source_index" else dtype
        return torch.tensor([table[name][i] for i in rows], dtype=kind, device=device)

    reference_chosen, reference_rejected = (
        torch.full_like(column("losses"), -10),
        torch.full_like(column("losses"), -20),
    )
    empty = torch.full_like(column("losses"), NAN)
    return {
        "pairs": PairLogProbs(
            chosen=column("chosen_ratio") + reference_chosen,
            rejected=column("rejected_ratio") + reference_rejected,
            reference_chosen=reference_chosen,
            reference_rejected=reference_rejected,
        ),
        "columns": Columns(
            chosen_safe=column("chosen_safe"),
            rejected_safe=column("rejected_safe"),
            safety_preference=empty,
            margin=empty,
        ),
        "losses": column("losses"),
        "targets": None if targets is None else column("targets"),
        "source_index": column("source_index"),
        "sources": SOURCES,
        "scale": 0.5,
    }


def tally_of(rows=None, *, counted=None, **options):
    arguments = batch(rows, **options)
    return pair_metrics(arguments.pop("pairs"), arguments.pop("columns"), counted=counted, **arguments)


def read(*tallies):
    accumulator = Accumulator(metric_names(SOURCES))
    for tally in tallies:
        accumulator.add(tally)
    return accumulator.read()


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_a_batch_reads_as_worked_by_hand():
    assert read(tally_of()) == pytest.approx(
        {
            "loss/pku": (1 + 2 + 3 + 4) / 4,
            "loss/ultra": (5 + 6) / 2,
            # Safe: chosen 2, 1, 6 and rejected 0, 2. Unsafe: chosen -1, -2 and rejected 3, -6. Halved by the scale.
            "rewards/safe": 11 / 5 / 2,
            "rewards/unsafe": -6 / 4 / 2,
            "rewards/chosen": 10 / 6 / 2,
            "rewards/rejected": 4 / 6 / 2,
            "margins/safe-safe": 1,
            "margins/safe-unsafe": -1,
            "margins/unsafe-safe": -1.5,
            "margins/unsafe-unsafe": 2,
            "margins/unlabelled": (0 + 5) / 2 / 2,
            "margins/pku": 1 / 4 / 2,
            "margins/ultra": 5 / 2 / 2,
            # Unsafe over safe is to become negative, and is; two unsafe ones too, and are not.
            "accuracies/safe-safe": 1,
            "accuracies/safe-unsafe": 0,
            "accuracies/unsafe-safe": 1,
            "accuracies/unsafe-unsafe": 0,
            "accuracies/pku": 0.5,
            "target_reached/safe-safe": 2,
            "target_reached/safe-unsafe": -1,
            "target_reached/unsafe-safe": 1.5,
            "target_reached/unsafe-unsafe": -4,
            "logps/chosen": -10 + 10 / 6,
            "logps/rejected": -20 + 4 / 6,
            "log_ratio/chosen": 10 / 6,
            "log_ratio/rejected": 4 / 6,
        },
        rel=1e-12,
    )


def test_without_targets_the_chosen_answer_is_to_win_everywhere():
    means = read(tally_of(targets=None))
    accuracies = {name: value for name, value in means.items() if name.startswith("accuracies/")}
    assert accuracies == {
        "accuracies/safe-safe": 1,
        "accuracies/safe-unsafe": 0,
        "accuracies/unsafe-safe": 0,
        "accuracies/unsafe-unsafe": 1,
        "accuracies/unlabelled": (0.5 + 1) / 2,
        "accuracies/pku": 0.5,
        "accuracies/ultra": 0.75,
    }
    assert not [name for name in means if name.startswith("target_reached/")]


@pytest.mark.parametrize("targets", [None, [0.5, 1.0, -1.0, -0.5]], ids=["no targets", "bfpo"])
def test_a_policy_that_equals_its_reference_is_right_half_the_time(targets):
    means = read(tally_of(range(4), targets=targets, chosen_ratio=[0.0] * 4, rejected_ratio=[0.0] * 4))
    assert {value for name, value in means.items() if name.startswith("accuracies/")} == {0.5}


def test_a_target_of_0_prefers_nothing_and_is_left_out():
    # Two unsafe answers at alpha = 0. Delta * scale / 0 would be infinite.
    means = read(tally_of(range(4), targets=[1.0, 1.5, -0.5, 0.0]))
    assert "accuracies/unsafe-unsafe" not in means and "target_reached/unsafe-unsafe" not in means
    assert means["accuracies/pku"] == pytest.approx(2 / 3)
    assert means["margins/unsafe-unsafe"] == 2


def test_an_answer_without_a_label_is_neither_safe_nor_unsafe():
    means = read(tally_of([4]))
    assert "rewards/safe" not in means and "rewards/unsafe" not in means
    assert means["margins/unlabelled"] == 0


def test_one_label_of_a_pair_counts_for_its_answer_alone():
    # The chosen answer is safe with ratio 6; the rejected one has no label.
    means = read(tally_of([5]))
    assert means["rewards/safe"] == 3 and "rewards/unsafe" not in means
    assert means["margins/unlabelled"] == 2.5


@pytest.mark.parametrize("row", range(6))
def test_a_batch_of_one_reads_as_its_only_pair(row):
    means = read(tally_of([row]))
    assert means["rewards/chosen"] == CHOSEN_RATIO[row] / 2
    combination = [*COMBINATIONS, "unlabelled"][row]
    assert means[f"margins/{combination}"] == (CHOSEN_RATIO[row] - REJECTED_RATIO[row]) / 2
    assert [name for name in means if name.startswith("margins/")] == [
        f"margins/{SOURCES[SOURCE[row]]}",
        f"margins/{combination}",
    ]


def test_an_empty_batch_reads_as_nothing():
    assert read(tally_of([])) == {} == read()


def test_a_pair_that_is_not_counted_is_in_no_mean_and_no_count():
    counted = torch.tensor([True, False, True, False, True, False])
    means = read(tally_of(counted=counted, losses=[1.0, NAN, 3.0, NAN, 5.0, NAN]))
    assert means == pytest.approx(read(tally_of([0, 2, 4])), rel=1e-12)


def test_a_broken_number_shows_where_it_is_and_nowhere_else():
    means = read(tally_of(chosen_ratio=[NAN, *CHOSEN_RATIO[1:]], losses=[NAN, *LOSSES[1:]]))
    broken = {name for name, value in means.items() if math.isnan(value)}
    assert broken == {
        "loss/pku", "margins/pku", "accuracies/pku", "margins/safe-safe", "accuracies/safe-safe",
        "target_reached/safe-safe", "rewards/safe", "rewards/chosen", "logps/chosen", "log_ratio/chosen",
    }  # fmt: skip


def test_bfloat16_log_probs_are_subtracted_and_summed_in_full():
    # 1000 times 1/3 in bfloat16 stops growing at 128; the mean must not.
    third = torch.tensor(1 / 3, dtype=torch.bfloat16).item()
    n = 1000
    tally = tally_of(
        dtype=torch.bfloat16, chosen_ratio=[0.0] * n, rejected_ratio=[0.0] * n, chosen_safe=[1] * n,
        rejected_safe=[0] * n, losses=[third] * n, targets=[1.0] * n, source_index=[0] * n,
    )  # fmt: skip
    assert read(tally)["loss/pku"] == pytest.approx(third, rel=1e-12)


# -- against a loop over pairs -----------------------------------------------------------------------------------------


def by_loop(rows, *, scale):
    """Group by group with Python's own floats, a pair at a time."""
    met = defaultdict(list)
    for chosen, rejected, chosen_safe, rejected_safe, target, loss, source in rows:
        name, delta = SOURCES[source], chosen - rejected
        words = {1.0: "safe", 0.0: "unsafe"}
        labels = [words.get(chosen_safe), words.get(rejected_safe)]
        combination = "-".join(labels) if all(labels) else "unlabelled"
        met[f"loss/{name}"].append(loss)
        met["rewards/chosen"].append(scale * chosen)
        met["rewards/rejected"].append(scale * rejected)
        for label, ratio in zip(labels, (chosen, rejected), strict=True):
            if label:
                met[f"rewards/{label}"].append(scale * ratio)
        met["logps/chosen"].append(chosen - 10)
        met["logps/rejected"].append(rejected - 20)
        met["log_ratio/chosen"].append(chosen)
        met["log_ratio/rejected"].append(rejected)
        for group in (name, combination):
            met[f"margins/{group}"].append(scale * delta)
            if target and not math.isnan(target):
                met[f"accuracies/{group}"].append(0.5 if delta == 0 else float((delta > 0) == (target > 0)))
        if target and not math.isnan(target):
            met[f"target_reached/{combination}"].append(scale * delta / target)
    return {name: math.fsum(values) / len(values) for name, values in met.items()}


# Multiples of 1/8 below 2^20: sums and differences of them are exact.
eighths = st.integers(-1000, 1000).map(lambda n: n / 8)
label = st.sampled_from([0.0, 1.0, NAN])
pair = st.tuples(
    eighths, eighths, label, label, st.sampled_from([0.5, 1.0, -1.0, -0.5, 0.0, NAN]), eighths, st.integers(0, 1)
)
COLUMN_NAMES = ("chosen_ratio", "rejected_ratio", "chosen_safe", "rejected_safe", "targets", "losses", "source_index")


@given(rows=st.lists(pair, max_size=12))
def test_groups_are_those_of_a_loop_over_pairs(rows):
    table = {name: [row[i] for row in rows] for i, name in enumerate(COLUMN_NAMES)}
    assert read(tally_of(**table)) == pytest.approx(by_loop(rows, scale=0.5), rel=1e-12, abs=1e-12)


@given(rows=st.lists(pair, min_size=2, max_size=10), data=st.data())
def test_a_split_into_micro_batches_changes_no_mean(rows, data):
    cut = data.draw(st.integers(1, len(rows) - 1))
    parts = [
        tally_of(**{name: [row[i] for row in part] for i, name in enumerate(COLUMN_NAMES)})
        for part in (rows[:cut], rows[cut:])
    ]
    assert read(*parts) == pytest.approx(by_loop(rows, scale=0.5), rel=1e-12, abs=1e-12)


# -- adding up ---------------------------------------------------------------------------------------------------------


def whole():
    return read(tally_of())


def halves():
    accumulators = [Accumulator(metric_names(SOURCES)) for _ in range(2)]
    accumulators[0].add(tally_of([0, 3, 4]))
    accumulators[1].add(tally_of([1, 2]))
    accumulators[1].add(tally_of([5]))
    return accumulators


def test_processes_merge_by_adding():
    first, second = halves()
    first.merge(second)
    assert first.read() == pytest.approx(whole(), rel=1e-12)
    assert second.read() == pytest.approx(read(tally_of([1, 2, 5])), rel=1e-12)


def test_a_reduction_over_processes_needs_one_tensor_and_leaves_each_its_own_part():
    first, second = halves()
    before = first.read()
    calls = []

    def all_reduce(totals):
        calls.append(totals.shape)
        totals += second._totals  # in place, as torch.distributed does it
        return totals

    assert first.read(reduce=all_reduce) == pytest.approx(whole(), rel=1e-12)
    assert calls == [(2, len(metric_names(SOURCES)))]
    assert first.read() == before


def test_half_an_interval_survives_a_checkpoint():
    first, _ = halves()
    saved = json.loads(json.dumps(first.state()))
    resumed = Accumulator(metric_names(SOURCES))
    resumed.load(saved)
    for rows in ([1, 2], [5]):
        first.add(tally_of(rows))
        resumed.add(tally_of(rows))
    assert resumed.read() == first.read() == pytest.approx(whole(), rel=1e-12)


def test_a_checkpoint_can_hold_the_intervals_of_all_processes():
    first, second = halves()
    state = first.state(reduce=lambda totals: totals + second._totals)
    resumed = Accumulator(metric_names(SOURCES))
    resumed.load(state)
    assert resumed.read() == pytest.approx(whole(), rel=1e-12)


def test_a_checkpoint_of_other_sources_is_refused_by_name():
    state = Accumulator(metric_names(["pku", "other"])).state()
    with pytest.raises(ConfigError, match=r"differ in accuracies/other, accuracies/ultra, loss/other\. Resume with"):
        Accumulator(metric_names(SOURCES)).load(state)


def test_a_reset_begins_an_interval_with_nothing():
    accumulator = Accumulator(metric_names(SOURCES))
    accumulator.add(tally_of())
    accumulator.reset()
    assert accumulator.read() == {}
    accumulator.add(tally_of([5]))
    assert accumulator.read() == read(tally_of([5]))


def test_a_thousand_steps_take_no_more_memory_than_one():
    accumulator = Accumulator(metric_names(SOURCES))
    accumulator.add(tally_of())
    size = accumulator._totals.shape
    for _ in range(100):
        accumulator.add(tally_of())
    assert accumulator._totals.shape == size == (2, len(metric_names(SOURCES)))
    assert accumulator.read() == pytest.approx(whole(), rel=1e-12)
    assert len(accumulator._places) == 1


def test_metrics_of_another_kind_can_be_added_beside():
    accumulator = Accumulator([*metric_names(SOURCES), "kl", "tokens"])
    accumulator.add(tally_of())
    accumulator.add(Tally(names=("tokens", "kl"), totals=torch.tensor([[300.0, 1.0], [2.0, 4.0]])))
    assert accumulator.read() == {**whole(), "kl": 0.25, "tokens": 150.0}


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="Unknown metric 'kl'"):
        Accumulator(metric_names(SOURCES)).add(Tally(names=("kl",), totals=torch.ones(2, 1)))


@pytest.mark.parametrize("sources", [["pku", "safe-unsafe"], ["pku", "pku"]])
def test_a_source_whose_name_is_taken_is_refused(sources):
    with pytest.raises(ConfigError, match=f"Source name '{sources[1]}' is already that of a group"):
        metric_names(sources)


# -- what a step costs -------------------------------------------------------------------------------------------------


def test_a_step_reads_no_value():
    # A meta tensor has a shape and no values: whatever looks at one (item, a mask as index, an if) raises.
    accumulator = Accumulator(metric_names(SOURCES))
    accumulator.add(tally_of(device="meta"))
    with pytest.raises((NotImplementedError, RuntimeError)):
        accumulator.read()


@pytest.mark.gpu
def test_a_step_waits_for_no_gpu():
    accumulator = Accumulator(metric_names(SOURCES))
    accumulator.add(tally_of(device="cuda"))  # the first one moves the accumulator
    arguments = batch(device="cuda")
    pairs, columns = arguments.pop("pairs"), arguments.pop("columns")
    torch.cuda.set_sync_debug_mode("error")
    try:
        accumulator.add(pair_metrics(pairs, columns, **arguments))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert accumulator.read() == pytest.approx(whole(), rel=1e-12)


def test_metrics_keep_no_graph_alive():
    arguments = batch()
    pairs = arguments.pop("pairs")
    learning = PairLogProbs(**{f.name: getattr(pairs, f.name).requires_grad_() for f in fields(pairs)})
    arguments["losses"] = learning.delta**2
    tally = pair_metrics(learning, arguments.pop("columns"), **arguments)
    assert not tally.totals.requires_grad and tally.totals.grad_fn is None

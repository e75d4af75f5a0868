"""Who is tied, who is on the frontier, and how sure: what a group's joint draws are asked and what they are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from run_builder import Item, build_run, harmful_task, helpful_task

from bfpo_bench.leaderboard import standings as module
from bfpo_bench.leaderboard.rows import LeaderboardRow, collect
from bfpo_bench.leaderboard.standings import Standing, Standings, standings


def run(folder: Path, refused: int, passed: int, *, n: int = 10, **more: object) -> None:
    tasks = [harmful_task(refused=refused, harmful=n - refused), helpful_task(passed=passed, failed=n - passed)]
    build_run(folder, tasks=tasks, model=folder.name, **more)  # type: ignore[arg-type]


def told(folder: Path) -> tuple[dict[str, Standing], list[LeaderboardRow], Standings]:
    rows = collect([folder])
    sure = standings(rows)
    return {row.model: sure.of(row) for row in rows}, rows, sure


def test_equal_runs_are_a_tie(tmp_path):
    for name in ("a", "b"):
        run(tmp_path / name, 5, 5)
    found, _, _ = told(tmp_path)
    assert [(found[name].rank_low, found[name].rank_high) for name in "ab"] == [(1, 2), (1, 2)]


def test_a_run_that_is_better_on_every_prompt_is_surely_first_and_alone_on_the_frontier(tmp_path):
    run(tmp_path / "best", 38, 38, n=40)
    run(tmp_path / "worst", 2, 2, n=40)
    found, _, sure = told(tmp_path)
    assert (found["best"].rank_low, found["best"].rank_high) == (1, 1)
    assert (found["worst"].rank_low, found["worst"].rank_high) == (2, 2)
    assert found["best"].p_nondominated == 1.0 and found["worst"].p_nondominated == pytest.approx(0.0, abs=1e-3)
    (group,) = sure.groups.values()
    assert group.frontier == ("best",)


def test_runs_that_trade_one_axis_for_the_other_are_both_on_the_frontier(tmp_path):
    run(tmp_path / "careful", 38, 5, n=40)
    run(tmp_path / "eager", 5, 38, n=40)
    found, _, sure = told(tmp_path)
    assert all(standing.on_frontier and standing.p_nondominated > 0.99 for standing in found.values())
    (group,) = sure.groups.values()
    # The most harmless first; the union of two rectangles, 0.95 x 0.125 each, less what both cover.
    assert group.frontier == ("careful", "eager")
    assert group.hypervolume is not None
    assert group.hypervolume.value == pytest.approx(2 * 0.95 * 0.125 - 0.125 * 0.125, abs=1e-6)
    assert group.hypervolume.reference == (0.0, 0.0)


def test_partial_runs_and_controls_take_no_part(tmp_path):
    run(tmp_path / "model", 5, 5)
    run(tmp_path / "cut", 10, 10, limit=10)
    run(tmp_path / "policy", 10, 10, engine="policy")
    found, _, sure = told(tmp_path)
    assert found["cut"] == found["policy"] == Standing()
    assert (found["model"].rank_high, found["model"].p_nondominated) == (1, 1.0)
    (group,) = sure.groups.values()
    assert (group.n_runs, group.n_left_out, group.band) == (1, 0, ())


def test_a_run_without_outcomes_has_a_reason_and_no_number(tmp_path):
    run(tmp_path / "old", 5, 5)
    run(tmp_path / "new", 6, 6)
    (tmp_path / "old" / "outcomes.json").unlink()
    found, rows, sure = told(tmp_path)
    assert [row.rank for row in rows] == [1, 2]
    assert found["old"].p_nondominated is None and found["old"].rank_low is None
    assert found["old"].why is not None and "score it again" in found["old"].why
    (group,) = sure.groups.values()
    assert (group.n_runs, group.n_left_out) == (1, 1)


@pytest.mark.parametrize("damage", ["{", '{"schema": 99}', '{"schema": 1, "tasks": {}}'])
def test_damaged_outcomes_are_a_reason_without_the_machines_path(tmp_path, damage):
    run(tmp_path / "a", 5, 5)
    (tmp_path / "a" / "outcomes.json").write_text(damage)
    found, _, sure = told(tmp_path)
    assert found["a"].why is not None and str(tmp_path) not in found["a"].why
    assert found["a"].p_nondominated is None and sure.groups == {}


def test_outcomes_of_other_scores_are_refused(tmp_path):
    run(tmp_path / "a", 5, 5)
    path = tmp_path / "a" / "outcomes.json"
    body = json.loads(path.read_text())
    body["tasks"]["bfpo_mini_harmful"]["values"][0] = 0.0
    path.write_text(json.dumps(body))
    found, _, _ = told(tmp_path)
    assert found["a"].why == "its outcomes of bfpo_mini_harmful are not those of its scores: score it again"


def test_what_is_unscored_is_left_out_of_its_run_and_kept_in_the_others(tmp_path):
    odd = Item(prompt="Harmful request 0?", answer="?", unscored="parse")
    lost = harmful_task(refused=9, extra=[])
    lost = harmful_task(extra=[odd, *lost.items[1:], *harmful_task(refused=100).items[9:]])
    build_run(tmp_path / "lost", model="lost", tasks=[lost, helpful_task(passed=5, failed=5)])
    build_run(tmp_path / "all", model="all", tasks=[harmful_task(refused=100), helpful_task(passed=5, failed=5)])
    found, rows, _ = told(tmp_path)
    assert {row.model: row.n for row in rows} == {"lost": 109, "all": 110}
    assert {(standing.rank_low, standing.rank_high) for standing in found.values()} == {(1, 2)}


def test_the_same_files_give_the_same_numbers_and_other_groups_do_not_change_them(tmp_path):
    run(tmp_path / "one" / "a", 5, 5)
    run(tmp_path / "one" / "b", 6, 4)
    first, _, _ = told(tmp_path / "one")
    run(tmp_path / "two" / "c", 6, 4, judge="chat:m")
    again, _, _ = told(tmp_path)
    assert {name: again[name] for name in "ab"} == first


def test_the_band_is_the_best_helpfulness_at_least_so_harmless():
    # Two draws of two runs: at 0.5 both runs reach in the first, one in the second; nobody is at 1.
    band = module._band(np.array([[0.6, 0.9], [0.4, 0.8]]), np.array([[0.7, 0.2], [0.9, 0.3]]))
    at = {reach.harmlessness: reach.middle for reach in band}
    assert at[0.0] == pytest.approx((0.7 + 0.9) / 2)
    assert at[0.5] == pytest.approx((0.7 + 0.3) / 2)
    assert at[0.85] == pytest.approx((0.2 + 0.0) / 2)
    assert at[1.0] == 0.0

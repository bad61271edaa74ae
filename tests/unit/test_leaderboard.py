"""Committed rows → ranked methods; the page in the repository is that of its rows."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from quickdrop_bench.reporting.figures.tradeoff import front
from quickdrop_bench.reporting.forgetting import decided, forgets
from quickdrop_bench.reporting.frame import Setting
from tests.golden import common

ROOT = Path(__file__).resolve().parents[2]
RUNS = {"retrain-or": (0.0, 0.9, 1000), "quickdrop": (0.005, 0.85, 10), "pga": (0.0, 0.88, 20), "none": (0.9, 0.95, 0)}
"""F-Set, R-Set and sample-gradients by method."""


@pytest.fixture(scope="module")
def leaderboard() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "leaderboard.py")))


def rows(
    method: str, *, seeds: int = 2, r_set: float = 0.0, day: int = 1, artefact: str = "table7"
) -> Iterator[common.Row]:
    own, kept, gradients = RUNS[method]
    extra = {"preset": "quick", "git_commit": "abc", "package_version": "1", "created_at": f"2026-01-0{day}T00:00"}
    for seed in range(seeds):
        stages = {"total": common.accuracy(own, kept + r_set + 0.01 * seed) | common.cost(1, gradients)}
        yield from common.run(common.setting(artefact, **extra), method, seed, stages)


def write(folder: Path, *parts: Iterator[common.Row]) -> None:
    folder.mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for part in parts for row in part)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")


def test_those_that_forget_stand_first_and_then_the_nearest_to_the_oracle(
    leaderboard: SimpleNamespace, tmp_path: Path
) -> None:
    write(tmp_path / "reference/a/table7", rows("none"), rows("quickdrop", seeds=1), rows("pga"), rows("retrain-or"))
    write(tmp_path / "reference/a/table2", rows("quickdrop", artefact="table2"))
    write(tmp_path / "quick/table7", rows("retrain-or", day=3), rows("pga", r_set=0.1, day=3))  # not committed
    (setting,) = leaderboard.measured(tmp_path)
    assert leaderboard.ranking(setting) == [("", "retrain-or"), ("1", "pga"), ("2", "quickdrop"), ("", "none")]
    page = leaderboard.page(tmp_path)
    assert "|  | Retrain-Or | — | — | — |" in page
    assert "| 1 | PGA | yes | +0.00 [+0.00, +0.00] | -2.00 [-2.00, -2.00] | 20 | 50.0×" in page
    assert "| 2 | QuickDrop | not decided | +0.50 | -5.00 | 10 | 100.0×" in page
    assert "|  | Original model (control) | no | +90.00 [+90.00, +90.00] |" in page
    assert next(line for line in page.splitlines() if "QuickDrop" in line).endswith("| one |")
    assert "commit abc; version 1; device a CPU, 2 threads." in page


def test_a_backdoor_counts_in_the_place_of_the_f_set(leaderboard: SimpleNamespace, tmp_path: Path) -> None:
    attack = {"retrain-or": 0.02, "quickdrop": 0.3, "pga": 0.0, "none": 0.9}

    def table_10(method: str) -> Iterator[common.Row]:
        for row in rows(method, artefact="table10"):
            yield row
            if row["metric"] == "f_set_accuracy":
                yield {**row, "metric": "attack_success", "value": attack[method]}

    write(tmp_path / "reference/a", *map(table_10, ("none", "quickdrop", "pga", "retrain-or")))
    (setting,) = leaderboard.measured(tmp_path)
    order = [("", "retrain-or"), ("1", "pga"), ("–", "quickdrop"), ("", "none")]  # R-Set would have "none" first
    assert leaderboard.ranking(setting) == order
    page = leaderboard.page(tmp_path)
    assert "| Method | Forgets | Attack success − oracle | F-Set − oracle |" in page
    assert "| 1 | PGA | yes | -2.00 [-2.00, -2.00] |" in page


def test_the_newest_rows_of_a_method_count_with_the_oracle_beside_them(
    leaderboard: SimpleNamespace, tmp_path: Path
) -> None:
    write(tmp_path / "reference/a", rows("retrain-or"), rows("quickdrop"), rows("pga"))
    write(tmp_path / "reference/b", rows("retrain-or", r_set=0.1, day=2), rows("quickdrop", r_set=0.14, day=2))
    (setting,) = leaderboard.measured(tmp_path)
    gaps = {method: setting.cell(method, "total", "r_set_gap").mean for method in ("quickdrop", "pga")}
    assert gaps == pytest.approx({"quickdrop": -0.01, "pga": -0.02})


ROW = common.setting("table7")
GAPS = {  # of three seeds, whose mean's interval reaches 4.303 / 3 ** 0.5 = 2.484 standard deviations to both sides
    "exactly one point": ([0.95 - 0.94] * 3, True, True),
    "the same below": ([0.94 - 0.95] * 3, True, True),
    "half a point, surely": ([0.004, 0.005, 0.006], True, True),
    "half a point, perhaps more": ([0.002, 0.005, 0.008], True, False),
    "a bit more than a point, perhaps less": ([0.012, 0.015, 0.018], False, False),
    "noise alone": ([-0.3, 0.0, 0.36], False, False),
    "two points, surely": ([0.019, 0.020, 0.021], False, True),
    "two points below, surely": ([-0.019, -0.020, -0.021], False, True),
    "one seed": ([0.0], True, False),
    "nothing to compare with": ([], False, False),
}


@pytest.mark.parametrize("metric", ["f_set_gap", "attack_success_gap"])
@pytest.mark.parametrize("name", GAPS)
def test_a_gap_of_one_point_is_near_and_noise_only_leaves_it_undecided(name: str, metric: str) -> None:
    gaps, near, sure = GAPS[name]
    lines = [row for seed, gap in enumerate(gaps) for row in common.run(ROW, "pga", seed, {"total": {metric: gap}})]
    setting = Setting(common.frame(lines))
    below = metric == "attack_success_gap" and sum(gaps) < 0  # a trigger that works less often is no harm
    assert forgets(setting, "pga") == (near or below)
    assert decided(setting, "pga") == sure


def test_a_backdoor_that_works_less_often_than_with_the_oracle_is_surely_forgotten() -> None:
    gaps = (-0.072, -0.05, -0.028)  # the interval of the mean is -0.05 ± 0.055
    lines = [
        row for k, gap in enumerate(gaps) for row in common.run(ROW, "pga", k, {"total": {"attack_success_gap": gap}})
    ]
    setting = Setting(common.frame(lines))
    assert forgets(setting, "pga")
    assert decided(setting, "pga")


def test_the_front_holds_what_nothing_beats() -> None:
    found = {"a": (10.0, -1.0, 0, 0), "b": (20.0, -2.0, 0, 0), "c": (20.0, 0.0, 0, 0), "d": (10.0, -3.0, 0, 0)}
    assert front(found) == ["a", "c"]


def test_the_page_is_that_of_the_committed_rows(leaderboard: SimpleNamespace) -> None:
    """``make leaderboard`` writes it."""
    assert leaderboard.TARGET.read_text(encoding="utf-8") == leaderboard.page(ROOT / "results")

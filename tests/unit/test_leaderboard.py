"""Committed rows → ranked methods; the page in the repository is that of its rows."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from quickdrop_bench.reporting.figures.tradeoff import forgets, front
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
    assert leaderboard.ranking(setting) == [("", "retrain-or"), ("1", "pga"), ("2", "quickdrop"), ("–", "none")]
    page = leaderboard.page(tmp_path)
    assert "| 1 | PGA | +0.00 [+0.00, +0.00] | -2.00 [-2.00, -2.00] | 20 | 50.0×" in page
    assert "| 2 | QuickDrop | +0.50 | -5.00 | 10 | 100.0×" in page
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
    order = [("", "retrain-or"), ("1", "pga"), ("–", "quickdrop"), ("–", "none")]  # R-Set would have "none" first
    assert leaderboard.ranking(setting) == order
    page = leaderboard.page(tmp_path)
    assert "| Method | Attack success − oracle | F-Set − oracle |" in page
    assert "| 1 | PGA | -2.00 [-2.00, -2.00] |" in page


def test_the_newest_rows_of_a_method_count_with_the_oracle_beside_them(
    leaderboard: SimpleNamespace, tmp_path: Path
) -> None:
    write(tmp_path / "reference/a", rows("retrain-or"), rows("quickdrop"), rows("pga"))
    write(tmp_path / "reference/b", rows("retrain-or", r_set=0.1, day=2), rows("quickdrop", r_set=0.14, day=2))
    (setting,) = leaderboard.measured(tmp_path)
    gaps = {method: setting.cell(method, "total", "r_set_gap").mean for method in ("quickdrop", "pga")}
    assert gaps == pytest.approx({"quickdrop": -0.01, "pga": -0.02})


def test_one_point_and_a_standard_error_are_near(leaderboard: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path / "reference/a", rows("retrain-or"), rows("quickdrop"), rows("none"))
    (setting,) = leaderboard.measured(tmp_path)
    near = [method for method in ("retrain-or", "quickdrop", "none", "pga") if forgets(setting, method)]
    assert near == ["retrain-or", "quickdrop"]
    spread = setting.rows.copy()
    own = (spread["method"] == "none") & (spread["metric"] == "f_set_gap")
    spread.loc[own, "value"] = [0.01, 0.028]  # mean 1.9, standard error 0.9 points
    assert forgets(type(setting)(spread), "none")
    for values in ([0.019, 0.021], [-0.2, 0.3]):  # mean 2, standard error 0.1; mean 5, standard error 25
        spread.loc[own, "value"] = values
        assert not forgets(type(setting)(spread), "none")


def test_the_front_holds_what_nothing_beats() -> None:
    found = {"a": (10.0, -1.0, 0, 0), "b": (20.0, -2.0, 0, 0), "c": (20.0, 0.0, 0, 0), "d": (10.0, -3.0, 0, 0)}
    assert front(found) == ["a", "c"]


def test_the_page_is_that_of_the_committed_rows(leaderboard: SimpleNamespace) -> None:
    """``make leaderboard`` writes it."""
    assert leaderboard.TARGET.read_text(encoding="utf-8") == leaderboard.page(ROOT / "results")

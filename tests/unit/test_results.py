"""What is committed of rows is all that their table needs."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.reporting.frame import frame_of
from quickdrop_bench.reporting.render import render
from tests.golden import common

ROOT = Path(__file__).parents[2]
is_kept = runpy.run_path(str(ROOT / "benchmarks" / "results.py"))["is_kept"]


@pytest.mark.parametrize("number", range(2, 7))
def test_a_table_is_the_same_from_the_rows_that_are_kept(number: int) -> None:
    lines = (common.HERE / f"table{number}" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    shown, rows = exhibit(f"table{number}"), [json.loads(line) for line in lines]
    rows.append({**rows[0], "stage": "total", "metric": "class_3_accuracy"})
    kept = [row for row in rows if is_kept(row, shown)]
    assert len(kept) < len(rows)
    assert render(shown, frame_of(kept)) == render(shown, frame_of(rows))


def test_no_file_of_results_is_larger_than_a_mebibyte() -> None:
    assert all(path.stat().st_size <= 2**20 for path in (ROOT / "results").rglob("*") if path.is_file())

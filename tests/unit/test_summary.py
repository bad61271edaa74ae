"""What is left of a run's rows."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from quickdrop_bench.harness.presets import paper_values
from quickdrop_bench.reporting.summary import headline, summary


def rows(method: str, values: dict[tuple[str, str], float | None], artefact: str = "table2") -> list[dict[str, Any]]:
    own = {"artefact": artefact, "dataset": "cifar10", "distribution": "dirichlet-0.1", "method": method, "device": "a"}
    return [{**own, "stage": stage, "metric": metric, "value": value} for (stage, metric), value in values.items()]


QUICKDROP = {
    ("unlearning", "r_set_accuracy"): 0.4,
    ("recovery", "r_set_accuracy"): 0.6,
    ("recovery", "class_3_accuracy"): 0.5,
    ("total", "r_set_accuracy"): 0.6,
    ("total", "seconds"): 10.0,
    ("total", "sample_gradients"): 100.0,
    ("total", "f_set_mia"): None,
}
ORACLE = {("total", "r_set_accuracy"): 0.7, ("total", "seconds"): 50.0, ("total", "sample_gradients"): 1000.0}


def test_numbers_are_about_the_whole_request_beside_oracle_and_paper() -> None:
    found = dict(summary(rows("quickdrop", QUICKDROP), rows("retrain-or", ORACLE), paper_values()))
    # Table 2, QuickDrop: 70.48% on the R-Set after recovery, 15.61 s, 463.7 times as fast.
    assert found == pytest.approx(
        {
            "total/r_set_accuracy": 0.6,
            "total/r_set_accuracy_paper": 0.7048,
            "total/r_set_accuracy_paper_gap": 0.6 - 0.7048,
            "total/seconds": 10.0,
            "total/seconds_paper": 15.61,
            "total/sample_gradients": 100.0,
            "total/speedup": 5.0,
            "total/speedup_paper": 463.7,
            "total/speedup_sample_gradients": 10.0,
            "total/r_set_gap": -0.1,
        }
    )


def test_accuracy_of_a_method_without_recovery_is_beside_the_papers_after_unlearning() -> None:
    found = dict(summary(rows("retrain-or", ORACLE), [], paper_values()))
    assert found["total/r_set_accuracy_paper"] == pytest.approx(0.7495)


def test_seconds_of_another_device_are_not_compared() -> None:
    oracle = [{**row, "device": "b"} for row in rows("retrain-or", ORACLE)]
    assert "total/speedup" not in dict(summary(rows("quickdrop", QUICKDROP), oracle, paper_values()))


def test_what_is_no_table_has_no_published_numbers() -> None:
    found = dict(summary(rows("quickdrop", QUICKDROP, "sweep"), [], paper_values()))
    assert found == {"total/r_set_accuracy": 0.6, "total/seconds": 10.0, "total/sample_gradients": 100.0}


def test_headline_is_quickdrops_where_there_is_one_setting() -> None:
    lines = [
        ("quickdrop", "total", "seconds", 1.0),
        ("quickdrop", "total", "rounds", 3.0),
        ("fu-mp", "total", "s", 2.0),
    ]
    numbers = pd.DataFrame([*lines, lines[1]], columns=["method", "stage", "metric", "mean"])
    assert headline(numbers) == {"total/seconds": 1.0}

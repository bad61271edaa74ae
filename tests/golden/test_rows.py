"""What is made of rows before they are laid out: derived metrics, formats, the choice of published numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from quickdrop_bench.harness.exhibits import Column, exhibit
from quickdrop_bench.harness.presets import paper_values
from quickdrop_bench.reporting.frame import derive, frame_of, latest, read_rows, setting_of
from quickdrop_bench.reporting.published import beside, read_published
from quickdrop_bench.reporting.render import render
from tests.golden import common


def rows(*entries: tuple[str, int, str, str, float]) -> pd.DataFrame:
    setting = common.setting(3, dataset="d", distribution="iid", spec_hash="h")
    names = ("method", "seed", "stage", "metric", "value")
    return common.frame({**setting, **dict(zip(names, entry, strict=True))} for entry in entries)


def value(frame: pd.DataFrame, method: str, seed: int, metric: str) -> float:
    chosen = frame[(frame["method"] == method) & (frame["seed"] == seed) & (frame["metric"] == metric)]
    return float(chosen["value"].iloc[0])


def total(method: str, seed: int, seconds: float, gradients: float, second: float, r_set: float) -> list[tuple]:
    metrics = {
        "seconds": seconds,
        "sample_gradients": gradients,
        "second_order_sample_gradients": second,
        "f_set_accuracy": 0.0,
        "r_set_accuracy": r_set,
    }
    return [(method, seed, "total", m, v) for m, v in metrics.items()]


def test_speedups_and_gaps_are_taken_seed_by_seed() -> None:
    frame = derive(
        rows(
            *total("retrain-or", 1, 100, 1000, 0, 0.9),
            *total("retrain-or", 2, 300, 1000, 0, 0.5),
            *total("quickdrop", 1, 2, 10, 10, 0.85),
            *total("quickdrop", 2, 3, 20, 0, 0.6),
            *total("original", 1, 1, 1, 1, 0.7),
        )
    )
    assert value(frame, "quickdrop", 1, "speedup") == 50
    assert value(frame, "quickdrop", 2, "speedup") == 100
    assert value(frame, "quickdrop", 1, "speedup_sample_gradients") == 50
    assert value(frame, "quickdrop", 1, "r_set_gap") == pytest.approx(-0.05)
    assert value(frame, "quickdrop", 2, "r_set_gap") == pytest.approx(0.1)
    assert value(frame, "retrain-or", 2, "speedup") == 1
    assert not len(frame[(frame["method"] == "original") & (frame["metric"] == "speedup")])


def test_a_forward_pass_counts_a_third() -> None:
    frame = derive(
        rows(
            *total("retrain-or", 1, 100, 1000, 0, 0.9),
            *total("fu-mp", 1, 2, 10, 10, 0.85),
            ("fu-mp", 1, "total", "sample_forwards", 90.0),
        )
    )
    assert value(frame, "fu-mp", 1, "speedup_sample_gradients") == pytest.approx(20)


def test_storage_is_that_of_server_and_clients() -> None:
    kept = [("s2u", 1, "total", f"storage_{where}_bytes", v) for where, v in (("server", 5.0), ("client", 7.0))]
    assert value(derive(rows(*kept)), "s2u", 1, "storage_bytes") == 12


def test_a_failed_run_has_no_speedup() -> None:
    frame = derive(rows(*total("retrain-or", 1, 100, 1000, 0, 0.9), ("federaser", 1, "total", "failed", 1.0)))
    assert set(frame[frame["method"] == "federaser"]["metric"]) == {"failed"}
    failed = rows(("retrain-or", 1, "total", "failed", 1.0), ("sga-or", 1, "total", "failed", 1.0))
    assert set(derive(failed)["metric"]) == {"failed"}
    alone = rows(*total("quickdrop", 1, 2, 10, 10, 0.85))  # without the oracle
    assert "speedup" not in set(derive(alone)["metric"])


def test_a_method_without_gradients_is_infinitely_faster() -> None:
    runs = [entry for seed in (1, 2) for entry in total("retrain-or", seed, 100, 1000, 0, 0.9)]
    runs += [entry for seed in (1, 2) for entry in total("noise", seed, 1, 0, 0, 0.9)]
    frame = rows(*runs).assign(device="a CPU", precision="32-true")
    text = render(exhibit("table3"), frame)["table.md"]
    line = next(line for line in text.splitlines() if line.startswith("| noise"))
    assert [line.split("|")[k].strip() for k in (6, 8)] == ["∞×", "100.0× (100.0–100.0)"]


def test_protocols_are_not_compared() -> None:
    oracle = rows(*total("retrain-or", 1, 100, 1000, 0, 0.9)).assign(protocol="tuned")
    frame = derive(pd.concat([oracle, rows(*total("quickdrop", 1, 2, 10, 10, 0.85))], ignore_index=True))
    assert len(frame[(frame["method"] == "quickdrop") & (frame["metric"] == "speedup")]) == 0


def test_lines_that_are_torn_or_of_an_earlier_version_are_told(tmp_path: Path) -> None:
    row = common.setting(2, method="sga-or", seed=1, spec_hash="h", stage="total", metric="seconds", value=1.5)
    older = {name: value for name, value in row.items() if name != "method_setting"}
    wrong = [{**row, "device": ["a", "list"]}, {**row, "value": "much"}, ["no row"]]
    lines = [json.dumps(line) for line in (row, {**row, "value": 2.5}, older, *wrong)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "[" * 100_000, lines[0][:40]]))
    frame, problem = read_rows(tmp_path / "rows.jsonl")
    assert frame["value"].tolist() == [2.5]  # the last of a key
    assert problem == "6 of 8 lines are torn or of an earlier version; they are kept and not shown"
    assert frame_of([older]).empty
    assert read_rows(tmp_path / "none.jsonl")[1] == ""
    assert setting_of(row) != setting_of({**row, "protocol": "tuned"})


def test_the_newest_spec_of_a_setting_counts() -> None:
    old, new = rows(("sga-or", 1, "total", "seconds", 5.0)), rows(("sga-or", 1, "total", "seconds", 7.0))
    frame = pd.concat([old, new.assign(spec_hash="other")], ignore_index=True)
    assert latest(frame)["value"].tolist() == [7.0]


def test_training_and_search_are_runs_of_their_own() -> None:
    stages = (("fl-training", "a"), ("search", "b"), ("total", "c"), ("unlearning", "d"), ("total", "d"))
    frames = [rows(("quickdrop", 1, stage, "seconds", 5.0)).assign(spec_hash=name) for stage, name in stages]
    assert latest(pd.concat(frames, ignore_index=True))["spec_hash"].tolist() == ["a", "b", "d", "d"]


@pytest.mark.parametrize(
    ("table", "dataset", "distribution", "name"),
    [
        (2, "digits", "dirichlet-0.1", "cifar10"),
        (2, "digits", "iid", "cifar10, dirichlet-0.1"),
        (3, "svhn", "dirichlet-0.1", "svhn"),
        (4, "cifar10", "iid", "cifar10"),
        (4, "cifar10", "dirichlet-0.5", "cifar10, dirichlet-0.1"),
        (5, "digits", "dirichlet-0.1", "mnist"),
        (5, "fashion-mnist", "dirichlet-0.1", "mnist"),
        (5, "imagefolder:cifar10-jpeg", "dirichlet-0.1", "cifar10"),
        (5, "imagefolder:mine", "dirichlet-0.1", "cifar10"),
        (6, "cifar100", "dirichlet-0.1", "mnist"),
        (6, "svhn", "dirichlet-0.1", "svhn"),
        (9, "svhn", "iid", ""),
    ],
)
def test_published_numbers_beside_ours(table: int, dataset: str, distribution: str, name: str) -> None:
    assert beside(read_published(paper_values(), f"table{table}"), dataset, distribution).name == name


def test_published_numbers_are_of_the_kind_of_distribution_and_of_alike_data() -> None:
    published = read_published(paper_values(), "table4")
    found = [beside(published, "cifar10", distribution) for distribution in ("iid", "dirichlet-1")]
    shares = [one.value("quickdrop", "total", "f_set_accuracy") for one in found]
    assert shares == [pytest.approx(0.6859), pytest.approx(0.1157)]
    published = read_published(paper_values(), "table2")
    data = ("cifar10", "imagefolder:cifar10-jpeg", "mnist")
    assert [beside(published, dataset, "iid").alike for dataset in data] == [True, True, False]


@pytest.mark.parametrize(
    ("kind", "number", "spread", "text"),
    [
        ("bytes", 0, None, "0 B"),
        ("bytes", 999, None, "999 B"),
        ("bytes", 1000, None, "1.00 kB"),
        ("bytes", 1_234_567, 50_000, "1.23 ± 0.05 MB"),
        ("bytes", 2.5e15, None, "2500.00 TB"),
        ("points", -0.05, 0.01, "-5.00 ± 1.00"),
        ("percent", 0.7048, 0.01, "70.48 ± 1.00%"),
        ("percentage", 55, None, "55.00%"),
        ("ratio", 463.7, None, "463.7×"),
        ("ratio", float("inf"), None, "∞×"),
        ("count", 45000, 3, "45 000"),
    ],
)
def test_numbers_for_people(kind: str, number: float, spread: float | None, text: str) -> None:
    assert Column("", "", "total", "x", kind).format(number, spread) == text


def test_one_seed_of_two_is_said() -> None:
    identity = common.setting(3)
    runs = [common.run(identity, "retrain-or", seed, {"total": common.cost(1, 1)}) for seed in (1, 2)]
    runs.append(common.run(identity, "sga-or", 1, {"total": common.cost(1, 1)}))
    frame = common.frame(row for one in runs for row in one)
    text = render(exhibit("table3"), frame)["table.md"]
    assert "SGA-Or (1 of 2 seeds)" in text

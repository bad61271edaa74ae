"""Rows → exact table.

After a wanted change, ``python -m tests.golden.test_table2`` writes the files anew; read them before committing.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from quickdrop_bench.harness.catalogue import artefact, paper_values
from quickdrop_bench.reporting.tables import derive, latest, on_terminal, read_published, render

HERE = Path(__file__).parent
FORMATS = ("table.csv", "table.md", "table.tex")


def tables() -> dict[str, str]:
    rows = pd.DataFrame(json.loads(line) for line in (HERE / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    return render(rows, read_published(paper_values(), 2), artefact("table2").LAYOUT)


@pytest.mark.parametrize("name", FORMATS)
def test_table(name: str) -> None:
    assert tables()[name] == (HERE / name).read_text(encoding="utf-8")


def test_on_a_terminal_it_fits_eighty_columns() -> None:
    console = Console(width=80, file=io.StringIO(), highlight=False)
    data = pd.DataFrame(json.loads(line) for line in (HERE / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    console.print(*on_terminal(data, read_published(paper_values(), 2), artefact("table2").LAYOUT), sep="\n")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= 80
    for text in ("80.00 ± 1.41%", "(70.48%)", "imagefolder:my_pics", "—", "over 2 seeds"):
        assert text in shown


def rows(*entries: tuple[str, int, str, str, float]) -> pd.DataFrame:
    setting = {"dataset": "d", "clients": 10, "distribution": "iid", "request": "class-9", "spec_hash": "h"}
    names = ("method", "seed", "stage", "metric", "value")
    return pd.DataFrame([{**setting, **dict(zip(names, entry, strict=True))} for entry in entries])


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


def test_without_the_oracle_there_is_no_speedup() -> None:
    frame = rows(*total("quickdrop", 1, 2, 10, 10, 0.85))
    assert "speedup" not in set(derive(frame)["metric"])


def test_the_newest_spec_of_a_setting_counts() -> None:
    old, new = rows(("sga-or", 1, "total", "seconds", 5.0)), rows(("sga-or", 1, "total", "seconds", 7.0))
    frame = pd.concat([old, new.assign(spec_hash="other")], ignore_index=True)
    assert latest(frame)["value"].tolist() == [7.0]


def test_published_numbers_are_those_of_the_paper() -> None:
    published = read_published(paper_values(), 2).set_index(["method", "stage", "metric"])["value"]
    assert published["quickdrop", "recovery", "r_set_accuracy"] == pytest.approx(0.7048)
    assert published["quickdrop", "total", "speedup"] == 463.7
    assert published["retrain-or", "total", "seconds"] == 7239.58


def make_rows() -> None:
    """Two settings; SGA-Or diverged once, QuickDrop was not run on the second setting."""
    lines = []
    for dataset, seeds, methods in (
        ("digits", (1, 2), ("original", "retrain-or", "sga-or", "quickdrop")),
        ("imagefolder:my_pics", (1,), ("original", "retrain-or", "sga-or")),
    ):
        for seed in seeds:
            for k, method in enumerate(methods):
                identity = {
                    "artefact": "table2",
                    "dataset": dataset,
                    "clients": 10,
                    "distribution": "dirichlet-0.1",
                    "request": "class-9",
                    "seed": seed,
                    "method": method,
                    "spec_hash": f"{dataset}{seed}{method}",
                    "device": "a CPU, 2 threads",
                    "precision": "32-true",
                }
                stages = {"original": ["fl-training"], "retrain-or": ["unlearning", "total"]}
                diverged = dataset == "digits" and seed == 2 and method == "sga-or"
                for stage in stages.get(method, ["unlearning", "recovery", "total"]):
                    metrics = {
                        "f_set_accuracy": 0.9 if method == "original" else 0.01 * seed,
                        "r_set_accuracy": 0.8 + 0.02 * seed - 0.01 * k,
                        "rounds": 30 // (2 * k + 1),
                        "seconds": 1234.5 / (10**k) + seed,
                        "data_size": 45000 // (10**k),
                        "sample_gradients": 1_000_000 // (10**k),
                        "second_order_sample_gradients": 0,
                        "diverged": float(diverged),
                    }
                    lines += [{**identity, "stage": stage, "metric": m, "value": v} for m, v in metrics.items()]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (HERE / "rows.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    make_rows()
    for file, content in tables().items():
        (HERE / file).write_text(content, encoding="utf-8")

"""Rows with values that can be checked by hand, and files to compare with."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.harness.presets import paper_values
from quickdrop_bench.reporting.tables import on_terminal, read_published, render

HERE = Path(__file__).parent
FORMATS = ("table.csv", "table.md", "table.tex")
Row = dict[str, Any]
Stages = dict[str, dict[str, float]]


def setting(number: int, **changes: object) -> Row:
    base = {"artefact": f"table{number}", "dataset": "digits", "clients": 10, "distribution": "dirichlet-0.1"}
    machine = {"device": "a CPU, 2 threads", "precision": "32-true"}
    return {**base, "request": "class-9", "protocol": "preset", **machine, **changes}


def run(identity: Row, method: str, seed: int, stages: Stages, **extra: object) -> Iterator[Row]:
    """One row per value of a run."""
    own = {**identity, "method": method, "seed": seed, "spec_hash": f"{method}-{seed}", **extra}
    for stage, metrics in stages.items():
        for metric, value in metrics.items():
            yield {**own, "stage": stage, "metric": metric, "value": value}


def failed(identity: Row, method: str, seed: int, error: str = "OutOfMemoryError") -> Iterator[Row]:
    return run(identity, method, seed, {"total": {"failed": 1.0}}, error=error)


def accuracy(f_set: float, r_set: float) -> dict[str, float]:
    return {"f_set_accuracy": f_set, "r_set_accuracy": r_set}


def cost(seconds: float, gradients: int, **more: float) -> dict[str, float]:
    return {"seconds": seconds, "sample_gradients": gradients, "second_order_sample_gradients": 0, **more}


def storage(server: int, clients: int) -> dict[str, float]:
    return {"storage_server_bytes": server, "storage_client_bytes": clients}


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


def read_rows(number: int) -> pd.DataFrame:
    lines = (HERE / f"table{number}" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return frame(json.loads(line) for line in lines)


def tables(number: int, unsupported: Collection[str] = ()) -> dict[str, str]:
    published = read_published(paper_values(), number)
    return render(read_rows(number), published, exhibit(f"table{number}"), unsupported)


def expected(number: int, name: str) -> str:
    return (HERE / f"table{number}" / name).read_text(encoding="utf-8")


def printed(parts: list[Table | str], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(*parts, sep="\n")
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def shown(number: int, width: int = 80, unsupported: Collection[str] = ()) -> str:
    published = read_published(paper_values(), number)
    parts = on_terminal(read_rows(number), published, exhibit(f"table{number}"), unsupported)
    return printed(parts, width)


def write_rows(number: int, rows: Iterable[Row]) -> None:
    folder = HERE / f"table{number}"
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tables(number: int, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (HERE / f"table{number}" / name).write_text(text, encoding="utf-8")

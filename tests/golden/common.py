"""Rows with values that can be checked by hand, and files to compare with."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, RenderableType

from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.reporting.frame import frame_of
from quickdrop_bench.reporting.render import on_terminal, render

HERE = Path(__file__).parent
FORMATS = ("table.csv", "table.md", "table.tex")
Row = dict[str, Any]
Stages = dict[str, dict[str, float]]


def setting(number: int | str, **changes: object) -> Row:
    """The columns of a row that say what was measured; by default Table 2's, on digits."""
    name = f"table{number}" if isinstance(number, int) else number
    base = {"artefact": name, "dataset": "digits", "clients": 10, "distribution": "dirichlet-0.1"}
    same = {"request": "class-9", "protocol": "preset", "changes": "", "setting": "aaa", "federation_hash": ""}
    method = {"method_setting": "h1", "method_changes": ""}
    return {**base, **same, **method, "device": "a CPU, 2 threads", "precision": "32-true", **changes}


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


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as the reader gives them; none may be left out."""
    known = list(rows)
    found = frame_of(known)
    assert len(found) == len(known)
    return found


def read_rows(number: int) -> pd.DataFrame:
    lines = (HERE / f"table{number}" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return frame(json.loads(line) for line in lines)


def tables(number: int) -> dict[str, str]:
    """All formats, without the methods' own summaries."""
    texts = render(exhibit(f"table{number}"), read_rows(number))
    records = pd.read_csv(io.StringIO(texts["table.csv"]), dtype=str, keep_default_na=False)
    return {**texts, "table.csv": records.drop(columns="summary", errors="ignore").to_csv(index=False)}


def expected(number: int, name: str) -> str:
    return (HERE / f"table{number}" / name).read_text(encoding="utf-8")


def printed(parts: Iterable[RenderableType], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(*parts, sep="\n")
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def shown(number: int, width: int = 80, *, details: bool = False) -> str:
    text = printed(on_terminal(exhibit(f"table{number}"), read_rows(number), HERE, width, details=details), width)
    assert max(map(len, text.splitlines())) <= width
    return text


def write(number: int) -> None:
    """What the rows make."""
    for name, text in tables(number).items():
        (HERE / f"table{number}" / name).write_text(text, encoding="utf-8")

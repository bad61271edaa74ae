"""Numbers of a setting as people read them."""

from __future__ import annotations

import math

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.frame import Cell, Setting
from quickdrop_bench.reporting.names import CONTROL, ORACLE, registered
from quickdrop_bench.reporting.tables.shape import EMPTY

__all__ = [
    "COLLAPSED",
    "SHARED",
    "cell_of",
    "cell_text",
    "difference",
    "from_paper",
    "paired",
    "sign",
    "signed_text",
    "typical",
]

COLLAPSED = "†"
SHARED = " ‡"
"""Behind seconds, and what follows from them, that were measured while other work had the cores."""

POINTS = {"percent": 100.0, "points": 100.0, "percentage": 1.0}
"""Factor to percentage points of the kinds of number that have a difference rather than a ratio."""


def cell_of(setting: Setting, method: str, column: Column) -> Cell:
    """The numbers that a column shows."""
    return setting.cell(method, column.stage, column.metric)


def typical(cell: Cell, column: Column) -> float:
    """The number that stands for all seeds: of ratios, whose mean one odd value can move far, the median."""
    return cell.median if column.kind == "ratio" else cell.mean


def cell_text(cell: Cell, column: Column) -> str:
    """Mean ± deviation; of ratios median and range."""
    if cell.seeds == 0:
        return EMPTY
    if column.kind != "ratio":
        return column.format(cell.mean, cell.std if cell.seeds > 1 else None)
    low, high = (column.format(value).removesuffix("×") for value in (cell.low, cell.high))
    return column.format(cell.median) + (f" ({low}–{high})" if cell.seeds > 1 and low != "∞" else "")


def signed_text(setting: Setting, method: str, column: Column) -> str:
    """A cell: blank if the method was not run, a dash if it was and has no such number.

    Accuracies of a stage that left a collapsed model in any run have a mark.
    """
    if setting.status(method) == "not run":
        return ""
    collapsed = column.metric.endswith("_set_accuracy") and setting.count(method, "collapsed", column.stage)
    cell = cell_of(setting, method, column)
    text = cell_text(cell, column) + (f" {COLLAPSED}" if collapsed else "")
    capped = setting.count(method, "relearn_capped") if column.metric == "relearn_gradients" else 0
    text += f" ({capped} of {len(setting.seeds(method))} not in 20 passes)" if capped else ""
    return text + (sign(setting, method, column) if cell.seeds else "")


def sign(setting: Setting, method: str, column: Column) -> str:
    """:data:`SHARED` behind a time, or a ratio of times, that says too much."""
    runs = [method, ORACLE] if column.metric == "speedup" else [method] if column.kind == "seconds" else []
    return SHARED if any(setting.shared(run, column.stage) for run in runs) else ""


def paired(setting: Setting, method: str, column: Column) -> str:
    """A difference over seeds: the mean and its 95% interval; a dash for a method and itself."""
    reference = CONTROL if column.metric.endswith("_control") else ORACLE
    cell = cell_of(setting, method, column)
    if not cell.seeds or registered(method) == reference:
        return EMPTY
    ends = " [{}, {}]".format(*map(column.format, cell.interval())) if cell.seeds > 1 else ""
    return column.format(cell.mean) + ends


def from_paper(setting: Setting, method: str, column: Column) -> float | None:
    """The published number, if there is one."""
    return setting.paper(method, column.stage, column.metric)


def difference(column: Column, ours: float, paper: float) -> str:
    """Ours − the paper's in percentage points, or, for what is no percentage, ours as a multiple of the paper's."""
    factor = POINTS.get(column.kind)
    if not math.isfinite(ours) or not math.isfinite(paper) or (factor is None and paper == 0):
        return ""
    if factor is not None:
        return f"Δ {factor * (ours - paper):+.2f}"
    ratio = ours / paper
    return f"× {ratio:,.0f}".replace(",", " ") if ratio >= 100 else f"× {ratio:.{3 if ratio >= 0.1 else 2}g}"

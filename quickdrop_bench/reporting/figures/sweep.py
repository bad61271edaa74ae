"""A sweep: accuracy and compute over whatever parameter varies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from quickdrop_bench.reporting.figures.curves import LABELS, R_SET, draw_trend
from quickdrop_bench.reporting.figures.points import methods_in, numbers_frame, panels
from quickdrop_bench.reporting.figures.style import legend_below, rows_of_panels

MEASURES = {
    R_SET: "R-Set accuracy (%)",
    ("total", "f_set_accuracy"): "F-Set accuracy (%)",
    ("total", "seconds"): "compute summed over clients (s)",
}
"""Numbers of a sweep, and the names of their axes."""


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Accuracy on R-Set and F-Set after the last stage, and total compute."""
    column = _varied(rows)
    settings = panels(rows, published, within=(column,))
    figure, axes = rows_of_panels(settings, len(MEASURES), 3.0)
    lines: list[dict[Any, Any]] = []
    for setting, row in zip(settings, axes, strict=True):
        shown = methods_in(setting, methods)
        for panel, (measured, label) in zip(row, MEASURES.items(), strict=True):
            lines += draw_trend(panel, setting, column, shown, measured, label).points.to_dict(orient="records")
        legend_below(row[0].get_figure(root=False), row[:1], 4)
    return figure, numbers_frame(lines)


def _varied(rows: pd.DataFrame) -> str:
    """The first of :data:`LABELS` that has several values; else the first that has any."""
    counts = {name: rows[name].nunique() for name in LABELS if name in rows}
    several = [name for name, count in counts.items() if count > 1]
    return next(iter([*several, *(name for name, count in counts.items() if count), *LABELS]))

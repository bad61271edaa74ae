"""A sweep: accuracy and compute over whatever parameter varies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from quickdrop_bench.reporting.figures.curves import Axis, trend_lines
from quickdrop_bench.reporting.figures.points import methods_in, numbers_frame, panels
from quickdrop_bench.reporting.figures.style import legend_below, rows_of_panels

__all__ = ["draw"]

MEASURES = {
    ("total", "r_set_accuracy"): "R-Set accuracy (%)",
    ("total", "f_set_accuracy"): "F-Set accuracy (%)",
    ("total", "seconds"): "compute summed over clients (s)",
}
"""Numbers of a sweep, and the names of their axes."""

AXES = {
    "scale": "scale s",
    "fine_tuning": "fine-tuning steps F",
    "distribution": "Dirichlet α",
    "clients": "clients",
    "dataset": "data set",
}
"""What a sweep can vary, in order of preference, and the name of the axis."""


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Accuracy on R-Set and F-Set after the last stage, and total compute."""
    column = _varied(rows)
    settings = panels(rows, published, within=(column,))
    figure, axes = rows_of_panels(settings, len(MEASURES), 3.0)
    lines: list[dict[Any, Any]] = []
    for setting, row in zip(settings, axes, strict=True):
        shown = methods_in(setting, methods)
        for panel, (measured, label) in zip(row, MEASURES.items(), strict=True):
            points = numbers_frame(trend_lines(setting, column, shown, [measured]))
            Axis(panel, points, column, setting.published).draw_methods(shown)
            panel.set(xlabel=AXES[column], ylabel=label)
            lines += points.to_dict(orient="records")
        legend_below(row[0].get_figure(root=False), row[:1], 4)
    return figure, numbers_frame(lines)


def _varied(rows: pd.DataFrame) -> str:
    """The first of :data:`AXES` that has several values; else the first that has any."""
    counts = {name: rows[name].nunique() for name in AXES if name in rows}
    several = [name for name, count in counts.items() if count > 1]
    return next(iter([*several, *(name for name, count in counts.items() if count), *AXES]))

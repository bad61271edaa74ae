"""A sweep: accuracy and compute over whatever parameter varies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from quickdrop_bench.reporting.figures.curves import draw_methods, log_seconds, roomy, trend_lines
from quickdrop_bench.reporting.figures.points import methods_in, numbers_frame, panels, plain
from quickdrop_bench.reporting.figures.style import legend_below, rows_of_panels
from quickdrop_bench.reporting.names import dataset_name
from quickdrop_bench.reporting.published import is_fraction

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
    """Accuracy on R-Set and F-Set after the last stage, and total compute.

    Args:
        rows: from :func:`~quickdrop_bench.reporting.frame.frame_of`.
        published: from :func:`~quickdrop_bench.reporting.published.read_published`.
        methods: in order; others that were measured follow.

    Returns:
        The picture and its points.
    """
    column = _varied(rows)
    settings = panels(rows, published, within=(column,))
    figure, axes = rows_of_panels(settings, len(MEASURES), 3.0)
    lines: list[dict[Any, Any]] = []
    for setting, row in zip(settings, axes, strict=True):
        shown = methods_in(setting, methods)
        points = numbers_frame(trend_lines(setting, column, shown, MEASURES))
        at = {value: float(k) for k, value in enumerate(sorted(points[column].dropna().unique(), key=_rank))}
        names = [dataset_name(plain(value).removeprefix("dirichlet-")) for value in at]
        tilted: dict[str, Any] = {"rotation": 25, "ha": "right"} if max(map(len, names), default=0) > 6 else {}
        for panel, ((stage, metric), label) in zip(row, MEASURES.items(), strict=True):
            own = points[(points["stage"] == stage) & (points["metric"] == metric)]
            draw_methods(panel, own, column, shown, 100 if is_fraction(metric) else 1, at, column != "dataset")
            panel.set_xticks(range(len(at)), names, **tilted)
            panel.set(xlabel=AXES[column], ylabel=label, xlim=(-0.4, max(len(at), 2) - 0.6))
            (roomy if is_fraction(metric) else log_seconds)(panel)
        legend_below(row[0].get_figure(root=False), row[:1], 4)
        lines += points.to_dict(orient="records")
    return figure, numbers_frame(lines)


def _varied(rows: pd.DataFrame) -> str:
    """The first of :data:`AXES` that has several values; else the first that has any."""
    counts = {name: rows[name].nunique() for name in AXES if name in rows}
    several = [name for name, count in counts.items() if count > 1]
    return next(iter([*several, *(name for name, count in counts.items() if count), *AXES]))


def _rank(value: Any) -> tuple[bool, float, str]:
    """Numbers, and ``dirichlet-<α>`` by its α, before names."""
    text = str(value).removeprefix("dirichlet-")
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text

"""What fine-tuning (Figure 5), the scale (Figure 6) or any other parameter changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.curves import (
    draw_curve,
    draw_curves,
    draw_paper,
    log_seconds,
    log_values,
    roomy,
    tell_if_empty,
    trend_lines,
)
from quickdrop_bench.reporting.layout import ORIGINAL, registered
from quickdrop_bench.reporting.looks import GREY, HOLLOW, ORANGE, Line, method_styles
from quickdrop_bench.reporting.measured import TRAINING
from quickdrop_bench.reporting.pictures import legend_below, rows_of_panels
from quickdrop_bench.reporting.points import SYNTHETIC, is_fraction, methods_in, numbers_frame, panels, plain

__all__ = ["figure_5", "figure_6", "sweep_figure"]

ACCURACY = ("total", "r_set_accuracy")
GRADIENTS = {"FL training": (TRAINING, "original_gradients"), "fine-tuning": ("fine-tuning", "original_gradients")}
SECONDS: dict[str, Line] = {"unlearning": "-", "recovery": "--"}
"""Stages and how their lines look."""

COMPUTE = "compute summed over clients (s)"
R_SET = "R-Set accuracy after recovery (%)"
SWEPT = {
    ACCURACY: "R-Set accuracy (%)",
    ("total", "f_set_accuracy"): "F-Set accuracy (%)",
    ("total", "seconds"): COMPUTE,
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


def figure_5(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Over the amount of fine-tuning: R-Set accuracy, and mini-batch gradients on original data.

    Args:
        rows: of the artefact.
        published: from :func:`~quickdrop_bench.reporting.pictures.published_figure`.
        methods: in order; others that were measured follow.

    Returns:
        The picture and its points.
    """
    slots = panels(rows, published, within=("fine_tuning",))
    figure, axes = rows_of_panels(slots, 2, 2.9)
    lines: list[dict[Any, Any]] = []
    for slot, (left, right) in zip(slots, axes, strict=True):
        shown = methods_in(slot, methods)
        points = numbers_frame(trend_lines(slot, "fine_tuning", shown, [ACCURACY]))
        draw_curves(left, points, "fine_tuning", shown)
        measured = points["fine_tuning"][points["runs"] > 0].dropna().unique()
        if len(measured) < 2:
            left.set_xticks(measured)
        draw_paper(left, points, "fine_tuning", slot.published.name)
        left.set(xlabel=AXES["fine_tuning"], ylabel=R_SET)
        gradients = numbers_frame(trend_lines(slot, "fine_tuning", [ORIGINAL], GRADIENTS.values()))
        _draw_gradients(right, gradients)
        legend_below(left.get_figure(root=False), (left, right), 3)
        lines += [*points.to_dict(orient="records"), *gradients.to_dict(orient="records")]
    return figure, numbers_frame(lines)


def figure_6(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Over the scale: R-Set accuracy, and seconds of unlearning and of recovery.

    Args:
        rows: of the artefact.
        published: from :func:`~quickdrop_bench.reporting.pictures.published_figure`.
        methods: in order; others that were measured follow.

    Returns:
        The picture and its points.
    """
    slots = panels(rows, published, within=("scale",))
    figure, axes = rows_of_panels(slots, 2, 3.0)
    lines: list[dict[Any, Any]] = []
    for slot, (left, right) in zip(slots, axes, strict=True):
        shown = methods_in(slot, methods)
        points = numbers_frame(trend_lines(slot, "scale", shown, [ACCURACY]))
        draw_curves(left, points, "scale", shown)
        log_values(left, points, "scale")
        draw_paper(left, points, "scale", slot.published.name)
        left.set(xlabel=AXES["scale"], ylabel=R_SET)
        own = [method for method in shown if registered(method) in SYNTHETIC]
        seconds = numbers_frame(trend_lines(slot, "scale", own, [(stage, "seconds") for stage in SECONDS]))
        _draw_seconds(right, seconds, own)
        legend_below(left.get_figure(root=False), (left, right), 4)
        lines += [*points.to_dict(orient="records"), *seconds.to_dict(orient="records")]
    return figure, numbers_frame(lines)


def _draw_gradients(axes: Axes, points: pd.DataFrame) -> None:
    """One bar per amount of fine-tuning: training below, fine-tuning above."""
    if tell_if_empty(axes, points):
        return
    values = sorted(points["fine_tuning"].unique())
    below = pd.Series(0.0, index=values)
    for (name, (stage, _)), color, hatch in zip(GRADIENTS.items(), (ORANGE, GREY), ("", "///"), strict=True):
        own = points[points["stage"] == stage].groupby("fine_tuning", dropna=False)["mean"].first()
        heights = own.reindex(values).fillna(0.0)
        look: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": "black", "linewidth": 0.5}
        axes.bar(range(len(values)), heights, 0.6, below, label=name, **look)
        below = below + heights
    axes.set_xticks(range(len(values)), [plain(value) for value in values])
    axes.set(xlabel=AXES["fine_tuning"], ylabel="gradients on original data\n(mini-batches, mean per client)")
    axes.set_xlim(-0.7, max(len(values), 3) - 0.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: Column("", "", "", "", "count").format(value)))


def _draw_seconds(axes: Axes, points: pd.DataFrame, methods: Sequence[str]) -> None:
    """Seconds of both stages per method; the control paler."""
    for method, look in method_styles(methods).items():
        for stage, line in SECONDS.items():
            own = points[(points["method"] == method) & (points["stage"] == stage)]
            shown = replace(look, line=line)
            draw_curve(axes, own, "scale", shown, "_", 1, alpha=1 if registered(method) == "quickdrop" else 0.5)
    for stage, line in SECONDS.items():
        axes.plot([], [], color="black", linestyle=line, linewidth=1.3, label=stage)
    theirs = points.dropna(subset="published")
    axes.plot(theirs["scale"], theirs["published"], "D", **HOLLOW)
    log_values(axes, points, "scale")
    log_seconds(axes)
    tell_if_empty(axes, points)
    axes.set(xlabel=AXES["scale"], ylabel=COMPUTE)


def sweep_figure(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Over whatever varies: accuracy on R-Set and F-Set after the last stage, and total compute.

    Args:
        rows: of the sweep.
        published: from :func:`~quickdrop_bench.reporting.pictures.published_figure`.
        methods: in order; others that were measured follow.

    Returns:
        The picture and its points.
    """
    column = _varied(rows)
    slots = panels(rows, published, within=(column,))
    figure, axes = rows_of_panels(slots, len(SWEPT), 3.0)
    lines: list[dict[Any, Any]] = []
    for slot, row in zip(slots, axes, strict=True):
        shown = methods_in(slot, methods)
        points = numbers_frame(trend_lines(slot, column, shown, SWEPT))
        at = {value: float(k) for k, value in enumerate(sorted(points[column].dropna().unique(), key=_rank))}
        for panel, ((stage, metric), label) in zip(row, SWEPT.items(), strict=True):
            own = points[(points["stage"] == stage) & (points["metric"] == metric)]
            draw_curves(panel, own, column, shown, 100 if is_fraction(metric) else 1, at, column != "dataset")
            names = [plain(value).removeprefix("dirichlet-") for value in at]
            tilted: dict[str, Any] = {"rotation": 25, "ha": "right"} if max(map(len, names), default=0) > 6 else {}
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

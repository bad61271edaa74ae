"""Figure 6: what the scale changes, original per synthetic images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from quickdrop_bench.reporting.figures.curves import Axis, trend_lines
from quickdrop_bench.reporting.figures.points import depends_on_scale, methods_in, numbers_frame, panels
from quickdrop_bench.reporting.figures.style import legend_below, method_styles, rows_of_panels

__all__ = ["draw"]

STAGES = {"recovery": "-", "unlearning": "--"}
"""Stages and their lines; colour and marker are the method's in both panels."""


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Over the scale: R-Set accuracy after recovery, and seconds of unlearning and of recovery."""
    settings = panels(rows, published, within=("scale",))
    figure, axes = rows_of_panels(settings, 2, 2.9)
    lines: list[dict[Any, Any]] = []
    for setting, (left, right) in zip(settings, axes, strict=True):
        shown = methods_in(setting, methods)
        points = numbers_frame(trend_lines(setting, "scale", shown, [("total", "r_set_accuracy")]))
        accuracy = Axis(left, points, "scale", setting.published)
        accuracy.draw_methods(shown)
        accuracy.name_ends()
        left.set(xlabel="scale s", ylabel="R-Set accuracy after recovery (%)")
        own = [method for method in shown if depends_on_scale(method)]
        seconds = numbers_frame(trend_lines(setting, "scale", own, [(stage, "seconds") for stage in STAGES]))
        _draw_seconds(Axis(right, seconds, "scale", setting.published), own)
        legend_below(left.get_figure(root=False), (right,), 3)
        lines += [*points.to_dict(orient="records"), *seconds.to_dict(orient="records")]
    return figure, numbers_frame(lines)


def _draw_seconds(axis: Axis, methods: Sequence[str]) -> None:
    """Seconds of both stages per method."""
    for stage, line in STAGES.items():
        for method, look in method_styles(methods).items():
            mine = (axis.points["method"] == method) & (axis.points["stage"] == stage)
            axis.draw(axis.points[mine], look, "_", line)
        axis.axes.plot([], [], color="black", linestyle=line, linewidth=1.3, label=stage)
    axis.axes.set(xlabel="scale s", ylabel="compute summed over clients (s)")
    axis.finish()

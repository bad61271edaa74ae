"""Figure 6: what the scale changes, original per synthetic images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quickdrop_bench.reporting.figures.curves import (
    draw_curve,
    draw_methods,
    draw_paper,
    log_seconds,
    log_values,
    name_ends,
    trend_lines,
)
from quickdrop_bench.reporting.figures.points import depends_on_scale, methods_in, numbers_frame, panels
from quickdrop_bench.reporting.figures.style import (
    HOLLOW,
    legend_below,
    method_styles,
    rows_of_panels,
    say,
)
from quickdrop_bench.reporting.names import method_title
from quickdrop_bench.reporting.published import Published

__all__ = ["draw"]

STAGES = {"recovery": "-", "unlearning": "--"}
"""Stages and their lines; colour and marker are the method's in both panels."""


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Over the scale: R-Set accuracy after recovery, and seconds of unlearning and of recovery.

    Args:
        rows: from :func:`~quickdrop_bench.reporting.frame.frame_of`.
        published: from :func:`~quickdrop_bench.reporting.published.read_published`.
        methods: in order; others that were measured follow.

    Returns:
        The picture and its points.
    """
    settings = panels(rows, published, within=("scale",))
    figure, axes = rows_of_panels(settings, 2, 2.9)
    lines: list[dict[Any, Any]] = []
    for setting, (left, right) in zip(settings, axes, strict=True):
        shown = methods_in(setting, methods)
        points = numbers_frame(trend_lines(setting, "scale", shown, [("total", "r_set_accuracy")]))
        draw_methods(left, points, "scale", shown)
        log_values(left, points, "scale")
        draw_paper(left, points, "scale", setting.published)
        left.set(xlabel="scale s", ylabel="R-Set accuracy after recovery (%)")
        name_ends(left)
        own = [method for method in shown if depends_on_scale(method)]
        seconds = numbers_frame(trend_lines(setting, "scale", own, [(stage, "seconds") for stage in STAGES]))
        _draw_seconds(right, seconds, own, setting.published)
        legend_below(left.get_figure(root=False), (right,), 3)
        lines += [*points.to_dict(orient="records"), *seconds.to_dict(orient="records")]
    return figure, numbers_frame(lines)


def _draw_seconds(axes: Axes, points: pd.DataFrame, methods: Sequence[str], published: Published) -> None:
    """Seconds of both stages per method."""
    if points["mean"].isna().all():
        say(axes, "no value" if points["runs"].sum() else "not run")
        return
    for method, look in method_styles(methods).items():
        for stage, line in STAGES.items():
            own = points[(points["method"] == method) & (points["stage"] == stage)]
            draw_curve(axes, own, "scale", look, f"_{method_title(method)}", 1, line=line)
    for stage, line in STAGES.items():
        axes.plot([], [], color="black", linestyle=line, linewidth=1.3, label=stage)
    theirs = points.dropna(subset="published")
    if published.alike and len(theirs):
        axes.plot(theirs["scale"], theirs["published"], "D", label=f"paper ({published.name})", **HOLLOW)
    log_values(axes, points, "scale")
    log_seconds(axes)
    axes.set(xlabel="scale s", ylabel="compute summed over clients (s)")

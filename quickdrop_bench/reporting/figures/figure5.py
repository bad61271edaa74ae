"""Figure 5: what fine-tuning the synthetic images gains, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.figures.curves import LABELS, R_SET, draw_trend, trend_lines
from quickdrop_bench.reporting.figures.points import methods_in, numbers_frame, panels, plain
from quickdrop_bench.reporting.figures.style import GREY, ORANGE, legend_below, rows_of_panels, say
from quickdrop_bench.reporting.frame import TRAINING
from quickdrop_bench.reporting.names import ORIGINAL

F = "fine_tuning"
GRADIENTS = {"FL training": (TRAINING, "original_gradients"), "fine-tuning": ("fine-tuning", "original_gradients")}
COUNT = Column("", "", "", "", "count")


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Over the amount of fine-tuning: R-Set accuracy, and mini-batch gradients on original data."""
    settings = panels(rows, published, within=(F,))
    figure, axes = rows_of_panels(settings, 2, 2.7)
    lines: list[dict[Any, Any]] = []
    for setting, (left, right) in zip(settings, axes, strict=True):
        shown = methods_in(setting, methods)
        axis = draw_trend(left, setting, F, shown, R_SET, "R-Set accuracy after recovery (%)")
        axis.name_ends()
        gradients = numbers_frame(trend_lines(setting, F, [ORIGINAL], GRADIENTS.values()))
        _draw_gradients(right, gradients)
        legend_below(left.get_figure(root=False), (right,), 2)
        lines += [*axis.points.to_dict(orient="records"), *gradients.to_dict(orient="records")]
    return figure, numbers_frame(lines)


def _draw_gradients(axes: Axes, points: pd.DataFrame) -> None:
    """One bar per amount of fine-tuning: training below, fine-tuning above."""
    if points["mean"].isna().all():
        say(axes, "no value" if points["runs"].sum() else "not run")
        return
    values = sorted(points[F].unique())
    below = pd.Series(0.0, index=values)
    for (name, (stage, _)), color in zip(GRADIENTS.items(), (GREY, ORANGE), strict=True):
        own = points[points["stage"] == stage].groupby(F, dropna=False)["mean"].first()
        heights = own.reindex(values).fillna(0.0)
        axes.bar(range(len(values)), heights, 0.6, below, label=name, color=color)
        below = below + heights
    axes.set_xticks(range(len(values)), [plain(value) for value in values])
    axes.set(xlabel=LABELS[F], ylabel="gradients on original data\n(mini-batches, mean per client)")
    axes.set_xlim(-0.7, max(len(values), 3) - 0.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: COUNT.format(value)))

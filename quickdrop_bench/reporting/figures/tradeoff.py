"""Accuracy lost against cost, one mark per method: the picture of README and of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.figures.style import GREY, label_points, method_styles
from quickdrop_bench.reporting.frame import Cell, Setting
from quickdrop_bench.reporting.names import ORACLE, method_title
from quickdrop_bench.reporting.tables.summary import cost_cell

__all__ = ["tradeoff"]

COUNT = Column("", "", "", "", "count")
BESIDE = 1.05
"""Factor below which two costs are drawn side by side."""


def tradeoff(setting: Setting, methods: Sequence[str], title: str = "") -> Figure | None:
    """R-Set − oracle's over sample-gradients, with 95% intervals over seeds; None without a method beside the oracle.

    Args:
        setting: rows with derived metrics.
        methods: which to draw.
        title: of the picture.
    """
    found = [(m, cost_cell(setting, m), setting.cell(m, "total", "r_set_gap")) for m in methods]
    points = [(m, cost.mean, gap) for m, cost, gap in found if gap.seeds and cost.seeds and cost.mean > 0]
    if all(m == ORACLE for m, *_ in points):
        return None
    figure = Figure(figsize=(5.8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    looks, labels = method_styles(m for m, *_ in points), []
    for (method, _, gap), x in zip(points, _side_by_side([cost for _, cost, _ in points]), strict=True):
        look, (low, high), mean = looks[method], _interval(gap), 100 * gap.mean
        axes.errorbar(
            x, mean, [[mean - low], [high - mean]], color=look.color, fmt=look.marker, markersize=7, capsize=3
        )
        labels.append((x, mean, method_title(method), look.color))
    axes.margins(x=0.12, y=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: COUNT.format(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="sample-gradients of a request (log scale; a forward pass counts a third)")
    axes.set(ylabel=f"R-Set − {method_title(ORACLE)}\n(percentage points)")
    axes.grid(alpha=0.25, linewidth=0.5)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=8)
    label_points(axes, labels)
    return figure


def _interval(gap: Cell) -> tuple[float, float]:
    """In percentage points; of one seed, or of more than the axis can hold, the mean alone."""
    low, high = gap.interval()
    return (100 * gap.mean, 100 * gap.mean) if math.isnan(low) else (100 * low, 100 * high)


def _side_by_side(costs: Sequence[float]) -> list[float]:
    """Costs, those that are nearly the same a little apart."""
    shifted = list(costs)
    order = sorted(range(len(costs)), key=lambda k: costs[k])
    for a, b in pairwise(order):
        if costs[b] < costs[a] * BESIDE:
            shifted[a], shifted[b] = costs[a] / BESIDE**1.5, costs[b] * BESIDE**1.5
    return shifted

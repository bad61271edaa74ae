"""Accuracy lost against cost, one mark per method: the picture of README and of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.figures.style import GREY, label_points, method_styles
from quickdrop_bench.reporting.frame import Setting
from quickdrop_bench.reporting.names import ORACLE, method_title

__all__ = ["points", "tradeoff"]

COUNT = Column("", "", "", "", "count")
BESIDE = 1.05
"""Factor below which two costs are drawn side by side."""


def points(setting: Setting, methods: Sequence[str]) -> dict[str, tuple[float, float, float, float]]:
    """By method that was run beside the oracle: cost and gap.

    Returns:
        Sample-gradients of a request (mean over seeds), and R-Set − the oracle's in percentage points: mean, and both
        ends of its 95% interval, which of one seed are the mean.
    """
    found = {}
    for method in methods:
        cost, gap = (setting.cell(method, "total", metric) for metric in ("gradients", "r_set_gap"))
        if gap.seeds and cost.seeds and cost.mean > 0:
            ends = [gap.mean if math.isnan(end) else end for end in gap.interval()]
            found[method] = (cost.mean, 100 * gap.mean, 100 * ends[0], 100 * ends[1])
    return found


def tradeoff(setting: Setting, methods: Sequence[str], title: str = "") -> Figure | None:
    """R-Set − the oracle's over sample-gradients, with 95% intervals; None without a method beside the oracle."""
    found = points(setting, methods)
    if not found.keys() - {ORACLE}:
        return None
    figure = Figure(figsize=(5.8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    looks, labels = method_styles(found), []
    places = _side_by_side([cost for cost, *_ in found.values()])
    for (method, (_, mean, low, high)), x in zip(found.items(), places, strict=True):
        ends, look = [[mean - low], [high - mean]], looks[method]
        axes.errorbar(x, mean, ends, color=look.color, fmt=look.marker, markersize=7, capsize=3)
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


def _side_by_side(costs: Sequence[float]) -> list[float]:
    """Costs, those that are nearly the same a little apart."""
    shifted = list(costs)
    for a, b in pairwise(sorted(range(len(costs)), key=lambda k: costs[k])):
        if costs[b] < costs[a] * BESIDE:
            shifted[a], shifted[b] = costs[a] / BESIDE**1.5, costs[b] * BESIDE**1.5
    return shifted

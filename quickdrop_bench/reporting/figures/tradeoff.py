"""Accuracy lost against cost, one mark per method: Figure 7, and the picture of README and of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.figures.points import measure, methods_in, numbers_frame, panels
from quickdrop_bench.reporting.figures.style import GREY, label_points, method_styles, rows_of_panels, say
from quickdrop_bench.reporting.forgetting import NEAR, decided, forgets, judged_by
from quickdrop_bench.reporting.frame import Setting, derive
from quickdrop_bench.reporting.names import ORACLE, method_title

Point = tuple[float, float, float, float]
"""Sample-gradients; gap in percentage points; both ends of its interval."""

COUNT = Column("", "", "", "", "count")
UNDECIDED = "?"
"""Behind the names of methods of which the seeds do not decide whether they have."""

FREE = 4.0
"""What costs nothing stands at the least cost ÷ this."""

METRICS = ("gradients", "r_set_gap", "f_set_gap")
"""Numbers of Figure 7."""


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Figure 7: :func:`draw_tradeoff` in a panel per setting; what cannot stand in a panel is named above it."""
    settings = [replace(one, rows=derive(one.rows)) for one in panels(rows, published)]
    settings = [replace(one, label=_label(one)) for one in settings]
    figure, axes = rows_of_panels(settings, 1, 3.9)
    lines: list[dict[Any, Any]] = []
    names = []
    for setting, (panel,) in zip(settings, axes, strict=True):
        shown = methods_in(setting, methods)
        if points(setting, shown):
            names.append((panel, draw_tradeoff(panel, setting, shown)))
        else:
            say(panel, "no method beside the oracle")
        lines += [measure(setting, m, "total", metric) for m in shown if setting.seeds(m) for metric in METRICS]
    if names:
        figure.legend(handles=_legend(settings), loc="outside lower center", ncols=2)
    for panel, texts in names:
        label_points(panel, texts, 7)
    return figure, numbers_frame(lines)


def _label(setting: Setting) -> str:
    """With the number of seeds, and with every method that failed or diverged."""
    seeds = len(setting.seeds())
    counted = f"{seeds} seeds" if seeds > 1 else "one seed, so no intervals"
    wrong = {method: [m for m in setting.marks(method) if "seeds" not in m] for method in setting.methods()}
    return "; ".join([f"{setting.label}, {counted}", *(method_title(m, found) for m, found in wrong.items() if found)])


def _legend(settings: Sequence[Setting]) -> list[Line2D]:
    mark: dict[str, Any] = {"color": GREY, "marker": "o", "linestyle": "none"}
    what = judged_by(settings)
    return [
        Line2D([], [], **mark, label=f"{what} within {100 * NEAR:g} point of {method_title(ORACLE)}'s (mean)"),
        Line2D([], [], **mark, markerfacecolor="white", label=f"{what} farther from it"),
        Line2D([], [], linestyle="none", label=f"{UNDECIDED}: not decided, 95% interval on both sides or none"),
        Line2D([], [], color=GREY, linewidth=1, label="nothing cheaper is better (Pareto front)"),
    ]


def points(setting: Setting, methods: Sequence[str]) -> dict[str, Point]:
    """By method that was run beside the oracle: cost and gap.

    Returns:
        Sample-gradients of a request (mean over seeds), and R-Set − the oracle's in percentage points: mean, and both
        ends of its 95% interval, which of one seed are the mean.
    """
    found = {}
    for method in methods:
        cost, gap = (setting.cell(method, "total", metric) for metric in ("gradients", "r_set_gap"))
        if gap.seeds and cost.seeds and math.isfinite(cost.mean + gap.mean):
            ends = [gap.mean if math.isnan(end) else end for end in gap.interval()]
            found[method] = (cost.mean, 100 * gap.mean, 100 * ends[0], 100 * ends[1])
    return found


def front(found: Mapping[str, Point]) -> list[str]:
    """The methods, from the cheapest on, than which no other is both as cheap and as near to the oracle, or better."""
    best, names = -math.inf, []
    for method, (_, mean, *_) in sorted(found.items(), key=lambda item: (item[1][0], -item[1][1])):
        if mean > best:
            best = mean
            names.append(method)
    return names


def tradeoff(setting: Setting, methods: Sequence[str], title: str = "") -> Figure | None:
    """R-Set − the oracle's over sample-gradients, with 95% intervals; None without a method beside the oracle."""
    if not points(setting, methods).keys() - {ORACLE}:
        return None
    figure = Figure(figsize=(5.8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    names = draw_tradeoff(axes, setting, methods)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=8)
    label_points(axes, names)
    return figure


def draw_tradeoff(axes: Axes, setting: Setting, methods: Sequence[str]) -> list[tuple[float, float, str, str]]:
    """Marks, intervals and the Pareto front of the methods that forget; the marks of those that do not are hollow.

    Returns:
        The names for :func:`label_points`, once the layout is known: place, text and colour of each.
    """
    found = points(setting, methods)
    axes.set_xscale("log")
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    least = min((cost for cost, *_ in found.values() if cost > 0), default=1.0)
    looks, names = method_styles(found), []
    places = {method: cost or least / FREE for method, (cost, *_) in found.items()}
    for method, (_, mean, low, high) in found.items():
        ends, look = [[mean - low], [high - mean]], looks[method]
        inside: dict[str, Any] = {} if forgets(setting, method) else {"markerfacecolor": "white"}
        drawn: dict[str, Any] = {"color": look.color, "fmt": look.marker, "markersize": 7, "capsize": 3, **inside}
        axes.errorbar(places[method], mean, ends, **drawn)
        title = method_title(method) + ("" if decided(setting, method) else f" {UNDECIDED}")
        names.append((places[method], mean, title, look.color))
    best = front({method: point for method, point in found.items() if forgets(setting, method)})
    corners = [(places[m], found[m][1]) for m in best]
    for (x, y), (further, higher) in pairwise(corners):
        axes.hlines(y, x, further, color=GREY, linewidth=1, zorder=1)
        axes.vlines(further, y, higher, color=GREY, linewidth=1, zorder=1)
    _scale(axes, least, free=any(cost == 0 for cost, *_ in found.values()))
    return names


def _scale(axes: Axes, least: float, *, free: bool) -> None:
    """Axes and their names; what costs nothing stands left of a line, at 0."""
    axes.margins(x=0.16, y=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: COUNT.format(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="sample-gradients of a request (log scale; a forward pass counts a third)")
    axes.set(ylabel=f"R-Set − {method_title(ORACLE)}\n(percentage points)")
    axes.grid(alpha=0.25, linewidth=0.5)
    if free:
        axes.axvline(least / FREE**0.5, color=GREY, linewidth=0.6, linestyle="--", zorder=1)
        ticks = [tick for tick in axes.get_xticks() if least / FREE**0.5 < tick <= axes.get_xlim()[1]]
        axes.set_xticks([least / FREE, *ticks], ["0", *map(COUNT.format, ticks)])
        axes.xaxis.set_minor_locator(NullLocator())

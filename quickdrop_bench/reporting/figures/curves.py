"""Curves over a parameter: one line per method, levels of those that do not depend on it, and the paper's points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from quickdrop_bench.reporting.figures.points import VARIED, by_value, depends_on_scale, marks, measure, plain
from quickdrop_bench.reporting.figures.style import ACCENT, HOLLOW, Style, label_ends, method_styles, say
from quickdrop_bench.reporting.frame import Setting
from quickdrop_bench.reporting.names import method_title
from quickdrop_bench.reporting.published import Published

__all__ = ["draw_curve", "draw_methods", "draw_paper", "log_seconds", "log_values", "name_ends", "roomy", "trend_lines"]

PAPER = {"facecolor": "white", "linewidth": 0, "pad": 0.8, "alpha": 0.85}
"""Behind text, so that no line strikes it through."""

NEAR = 15
"""Percent: published values farther from ours do not stretch the axis, they stand at its edge."""


def trend_lines(
    setting: Setting, column: str, methods: Sequence[str], measures: Iterable[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """Numbers of every method at every value of a column, and the paper's where we have none.

    Args:
        setting: rows of a panel.
        column: what varies along the axis.
        methods: whose.
        measures: stage and metric of each number. The paper's has the value for a stage, e.g. ``s=100``, and a metric
            that begins with our stage unless that is ``total``.
    """
    parts = by_value(setting, column)
    symbol = VARIED.get(column, column)
    for stage, metric in measures:
        name = metric if stage == "total" else f"{stage}_{metric}"
        for method in methods:
            measured = [(value, part) for value, part in parts if part.seeds(method)]
            for value, part in measured:
                paper = part.published.value(method, f"{symbol}={plain(value)}", name)
                yield measure(part, method, stage, metric, paper)
            ours = {plain(value) for value, _ in measured}
            theirs = setting.published.values
            theirs = theirs[(theirs["method"] == method) & (theirs["metric"] == name)]
            theirs = theirs[theirs["stage"].str.startswith(f"{symbol}=")]
            for at, value in zip(theirs["stage"].str.removeprefix(f"{symbol}="), theirs["value"], strict=True):
                if at not in ours:
                    empty = measure(setting, method, stage, "", value)
                    yield empty | {column: float(at), "metric": metric, "runs": 0, "diverged": 0, "failed": 0}


def draw_methods(
    axes: Axes,
    points: pd.DataFrame,
    column: str,
    methods: Sequence[str],
    factor: float = 100,
    at: Mapping[Any, float] | None = None,
    joined: bool = True,
) -> None:
    """A line per method; crosses at the bottom where a run failed or diverged.

    Args:
        axes: to draw on.
        points: of one metric, from :func:`trend_lines`.
        column: what varies along the axis.
        methods: in order.
        factor: from the unit of the points to that of the axis.
        at: where each value stands; the value itself if None.
        joined: whether lines join the points.
    """
    for method, look in method_styles(methods).items():
        own = points[points["method"] == method]
        label = method_title(method, marks(own))
        draw_curve(axes, own, column, look, label, factor, at, joined=joined, line=look.line)
        wrong = _places(own[own["diverged"] + own["failed"] > 0], column, at)
        if len(wrong):
            axes.plot(wrong, [0.04] * len(wrong), "x", color=look.color, transform=axes.get_xaxis_transform())
    if points["mean"].isna().all():
        say(axes, "no value" if points["runs"].sum() else "not run")


def draw_curve(
    axes: Axes,
    points: pd.DataFrame,
    column: str,
    look: Style,
    label: str,
    factor: float,
    at: Mapping[Any, float] | None = None,
    *,
    joined: bool = True,
    line: str = "-",
) -> None:
    """One line with a band of one standard deviation; a level across the axis where the method does not depend on it.

    Args:
        axes: to draw on.
        points: of one method and metric.
        column: what varies along the axis.
        look: colour and marker.
        label: in the legend.
        factor: from the unit of the points to that of the axis.
        at: where each value stands; the value itself if None.
        joined: whether a line joins the points; if not, deviations are bars.
        line: its dashes.
    """
    method = str(points["method"].iloc[0]) if len(points) else ""
    alone = column in VARIED and (points["runs"] > 0).sum() == 1 and not depends_on_scale(method)
    points = points.dropna(subset="mean")
    x, mean, std = _places(points, column, at), factor * points["mean"], factor * points["std"]
    level = x.isna() | alone
    for value in mean[level]:
        axes.axhline(value, color=look.color, linestyle=line, linewidth=1.2, label=label)
    x, mean, std = x[~level], mean[~level], std[~level]
    if level.any() and x.empty:
        return
    drawn: dict[str, Any] = {"color": look.color, "marker": look.marker, "markersize": 4, "linewidth": 1.3}
    axes.plot(x, mean, linestyle=line if joined else "none", label=label, **drawn)
    if joined and len(x) > 1:
        axes.fill_between(x, mean - std, mean + std, color=look.color, alpha=0.13, linewidth=0)
    else:
        axes.errorbar(x, mean, std, color=look.color, fmt="none", capsize=2, linewidth=0.8)


def _places(points: pd.DataFrame, column: str, at: Mapping[Any, float] | None) -> pd.Series:
    return (points[column].map(at) if at else points[column]).astype(float)


def name_ends(axes: Axes) -> None:
    """Names at the ends of the lines instead of a legend; of lines without points, that they were not run."""
    ends = {}
    for line in axes.get_lines():
        y, name = np.asarray(line.get_ydata(), dtype=float), str(line.get_label())
        if name.startswith(("_", "paper")):
            continue
        ends[name] = (float(y[-1]) if len(y) else axes.get_ylim()[0], name, str(line.get_color()))
    label_ends(axes, [*ends.values()])


def draw_paper(axes: Axes, points: pd.DataFrame, column: str, published: Published) -> None:
    """The published values in percent, hollow; at the edge of the axis with their numbers where they are far from ours.

    Args:
        axes: on which ours are drawn.
        points: of one metric, from :func:`trend_lines`.
        column: what varies along the axis.
        published: which part; nothing is drawn of other data.
    """
    ours = points.dropna(subset="mean")
    theirs = points.dropna(subset=["published", column])
    if ours.empty or theirs.empty or not published.alike:
        roomy(axes)
        return
    x, y = theirs[column].astype(float), 100 * theirs["published"]
    low, high = 100 * ours["mean"].min() - NEAR, 100 * ours["mean"].max() + NEAR
    bounded = axes.get_xscale() == "linear" and ours[column].notna().any()
    right = ours[column].max() + 0.3 * np.ptp(ours[column].dropna()) if bounded else math.inf
    inside = y.between(low, high) & (x <= right)
    label = f"paper ({published.name})"
    axes.plot(x[inside], y[inside], "D", label=label, **HOLLOW)
    roomy(axes)
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    axes.set_xlim(x0, x1)
    for px, py in zip(x[~inside], y[~inside], strict=True):
        place = min(max(px, x0), x1), min(max(py, y0), y1)
        axes.plot(*place, "D", label=label, clip_on=False, **HOLLOW)
        text = f"{py:.2f}%" + (f" at {VARIED[column]} = {px:g}" if px > right else "")
        middle = axes.transScale.transform([place, (x1, y1), (x0, y0)])
        to_right, above = middle[0] > middle[1:].mean(0)
        shift, side = (-8 if to_right else 8, -14 if above else 9), "right" if to_right else "left"
        axes.annotate(text, place, shift, textcoords="offset points", ha=side, fontsize=7, color=ACCENT, bbox=PAPER)


def log_values(axes: Axes, points: pd.DataFrame, column: str) -> None:
    """A logarithmic axis with a tick at every value that was measured or published."""
    axes.set_xscale("log")
    values = sorted(points[column].dropna().astype(float).unique())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(values, [plain(value) for value in values])
    if values:
        axes.set_xlim(values[0] / 1.5, values[-1] * 1.5)


def log_seconds(axes: Axes) -> None:
    """A logarithmic axis of a decade at least, with numbers that people can read; call it when all is drawn."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if low <= 0:  # nothing was drawn
        low, high = 1, 10
    widen = max(math.sqrt(10 * low / high), 1)
    axes.set_ylim(low / widen, high * widen)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_locator(NullLocator())


def roomy(axes: Axes) -> None:
    """An axis of two percent at least: smaller differences are none."""
    low, high = axes.get_ylim()
    widen = max(1 - (high - low) / 2, 0)
    axes.set_ylim(max(low - widen, min(low, -0.1)), min(high + widen, max(high, 100.1)))

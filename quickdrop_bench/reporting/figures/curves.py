"""Sweeps, and other curves: a line per method, levels of those that do not depend on it, and the paper's points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from quickdrop_bench.reporting.figures.points import (
    VARIED,
    marks,
    measure,
    methods_in,
    numbers_frame,
    panels,
    plain,
)
from quickdrop_bench.reporting.figures.style import (
    HOLLOW,
    Style,
    label_ends,
    legend_below,
    method_styles,
    rows_of_panels,
    say,
)
from quickdrop_bench.reporting.frame import Setting, has_small_sets
from quickdrop_bench.reporting.names import dataset_name, method_title
from quickdrop_bench.reporting.published import Published, is_fraction

LABELS = {
    "scale": "scale s",
    "fine_tuning": "fine-tuning steps F",
    "distribution": "Dirichlet α",
    "clients": "clients",
    "dataset": "data set",
}
"""What can vary, in order of preference for a sweep, and the name of the axis."""

R_SET = "total", "r_set_accuracy"

MEASURES = {
    R_SET: "R-Set accuracy (%)",
    ("total", "f_set_accuracy"): "F-Set accuracy (%)",
    ("total", "seconds"): "compute summed over clients (s)",
}
"""Numbers of a sweep, and the names of their axes."""


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """A sweep: accuracy on R-Set and F-Set after the last stage, and total compute."""
    column = _varied(rows)
    settings = panels(rows, published, within=(column,))
    figure, axes = rows_of_panels(settings, len(MEASURES), 3.0)
    lines: list[dict[Any, Any]] = []
    for setting, row in zip(settings, axes, strict=True):
        shown = methods_in(setting, methods)
        for panel, (measured, label) in zip(row, MEASURES.items(), strict=True):
            lines += draw_trend(panel, setting, column, shown, measured, label).points.to_dict(orient="records")
        legend_below(row[0].get_figure(root=False), row[:1], 4)
    return figure, numbers_frame(lines)


def _varied(rows: pd.DataFrame) -> str:
    """The first of :data:`LABELS` that has several values; else the first that has any."""
    counts = {name: rows[name].nunique() for name in LABELS}
    several = [name for name, count in counts.items() if count > 1]
    return next(iter([*several, *(name for name, count in counts.items() if count), *LABELS]))


def draw_trend(
    axes: Axes, setting: Setting, column: str, methods: Sequence[str], measured: tuple[str, str], label: str
) -> Axis:
    """A panel of one number, by stage and metric, of several methods over a column."""
    axis = Axis(axes, numbers_frame(trend_lines(setting, column, methods, [measured])), column, setting.published)
    axis.draw_methods(methods)
    axes.set(xlabel=LABELS[column], ylabel=label)
    return axis


def trend_lines(
    setting: Setting, column: str, methods: Sequence[str], measures: Iterable[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """Numbers of every method at every value of a column, by stage and metric, and the paper's where we have none.

    The paper's has the value for a stage, e.g. ``s=100``, and a metric that begins with our stage unless that is
    ``total``.
    """
    groups = setting.rows.groupby(column, dropna=False, sort=True)
    parts = [(value, Setting(group, setting.published)) for value, group in groups]
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


class Axis:
    """A panel over a parameter, with a place for each value that was measured, or published of the same data.

    Args:
        axes: to draw on.
        points: from :func:`trend_lines`, of one metric.
        column: what varies.
        published: the paper's part.
    """

    def __init__(self, axes: Axes, points: pd.DataFrame, column: str, published: Published) -> None:
        self.axes, self.points, self.column, self.published = axes, points, column, published
        self.values = sorted(self.points[column].dropna().unique(), key=_rank)
        metrics = points["metric"].unique()
        self.fraction = len(metrics) > 0 and is_fraction(metrics[0])
        names = [dataset_name(plain(value).removeprefix("dirichlet-")) for value in self.values]
        tilted: dict[str, Any] = {"rotation": 25, "ha": "right"} if max(map(len, names), default=0) > 6 else {}
        axes.set_xticks(range(len(names)), names, **tilted)
        axes.set_xlim(-0.4, max(len(names), 2) - 0.6)

    def draw_methods(self, methods: Sequence[str]) -> None:
        """A line per method; crosses at the bottom where a run failed or diverged; the paper's values, hollow."""
        for method, look in method_styles(methods).items():
            own = self.points[self.points["method"] == method]
            self.draw(own, look, method_title(method, marks(own)), look.line)
            wrong = self._places(own[own["diverged"] + own["failed"] > 0])
            if len(wrong):
                bottom = self.axes.get_xaxis_transform()
                self.axes.plot(wrong, [0.04] * len(wrong), "x", color=look.color, transform=bottom)
        self.finish()

    def draw(self, points: pd.DataFrame, look: Style, label: str, line: str) -> None:
        """One line with a band of one standard deviation; a level where the method does not depend on the parameter."""
        method = str(points["method"].iloc[0]) if len(points) else ""
        alone = self.column in VARIED and (points["runs"] > 0).sum() == 1 and not has_small_sets(method)
        points, factor = points.dropna(subset="mean"), 100 if self.fraction else 1
        x, mean, std = self._places(points), factor * points["mean"], factor * points["std"]
        level = x.isna() | alone
        for value in mean[level]:
            self.axes.axhline(value, color=look.color, linestyle=line, linewidth=1.2, label=label)
        x, mean, std = x[~level], mean[~level], std[~level]
        if level.any() and x.empty:
            return
        drawn: dict[str, Any] = {"color": look.color, "marker": look.marker, "markersize": 4, "linewidth": 1.3}
        joined = self.column != "dataset"
        self.axes.plot(x, mean, linestyle=line if joined else "none", label=label, **drawn)
        if joined and len(x) > 1:
            self.axes.fill_between(x, mean - std, mean + std, color=look.color, alpha=0.13, linewidth=0)
        else:
            self.axes.errorbar(x, mean, std, color=look.color, fmt="none", capsize=2, linewidth=0.8)

    def _places(self, points: pd.DataFrame) -> pd.Series:
        return points[self.column].map({value: k for k, value in enumerate(self.values)}).astype(float)

    def finish(self) -> None:
        """The paper's values and the vertical axis: two percent at least, or a decade of seconds."""
        if self.points["mean"].isna().all():
            say(self.axes, "no value" if self.points["runs"].sum() else "not run")
            return
        theirs = self.points.dropna(subset=["published", self.column])
        if len(theirs):
            factor, name = 100 if self.fraction else 1, f"paper ({self.published.name})"
            self.axes.plot(self._places(theirs), factor * theirs["published"], "D", label=name, **HOLLOW)
        low, high = self.axes.get_ylim()
        if self.fraction:
            widen = max(1 - (high - low) / 2, 0)
            self.axes.set_ylim(max(low - widen, min(low, -0.1)), min(high + widen, max(high, 100.1)))
            return
        self.axes.set_yscale("log")
        low, high = self.axes.get_ylim()
        widen = max((10 * low / high) ** 0.5, 1)
        self.axes.set_ylim(low / widen, high * widen)
        self.axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
        self.axes.yaxis.set_major_formatter(FuncFormatter(plain))
        self.axes.yaxis.set_minor_locator(NullLocator())

    def name_ends(self) -> None:
        """Names at the ends of the lines instead of a legend; those of lines without points stand at the bottom."""
        ends = {}
        for line in self.axes.get_lines():
            y, name = np.asarray(line.get_ydata(), dtype=float), str(line.get_label())
            if not name.startswith(("_", "paper")):
                end = float(y[-1]) if len(y) else self.axes.get_ylim()[0]
                ends[name] = (end, name, str(line.get_color()))
        label_ends(self.axes, [*ends.values()])


def _rank(value: Any) -> tuple[bool, float, str]:
    """Numbers, and ``dirichlet-<α>`` by its α, before names."""
    text = str(value).removeprefix("dirichlet-")
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text

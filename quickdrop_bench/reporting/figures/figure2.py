"""Figure 2: every class's accuracy over rounds while one of them is forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quickdrop_bench.reporting.figures.points import measure, methods_in, numbers_frame, panels
from quickdrop_bench.reporting.figures.rounds import PER_ROUND, Course, forgotten, why_empty
from quickdrop_bench.reporting.figures.style import ACCENT, GREY, label_ends, rows_of_panels, say
from quickdrop_bench.reporting.frame import TRAINING, Setting
from quickdrop_bench.reporting.names import ORIGINAL, class_name, method_title

SHADES = {"unlearning": "#F6DCCB", "recovery": "#E4EEF6"}
"""Colours behind the stages."""

MOST_NAMES = 20
"""Classes that are named at the end of their lines; of more, the forgotten ones alone."""


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Every class's test accuracy over the last rounds of training, unlearning and recovery."""
    settings = panels(rows, published)
    columns = list(dict.fromkeys(m for setting in settings for m in methods_in(setting, methods))) or list(methods)
    figure, axes = rows_of_panels(settings, len(columns), 2.7, share=True)
    lines: list[dict[str, Any]] = []
    for setting, row in zip(settings, axes, strict=True):
        row[0].set_ylabel("test accuracy (%)")
        for panel, method in zip(row, columns, strict=True):
            course = Course.of(setting.rows, method)
            panel.set_title(method_title(method, setting.marks(method)), loc="left", pad=12)
            if course.rounds == 0:
                say(panel, why_empty(setting, method))
                continue
            _draw(panel, course, setting)
            lines += _lines(setting, method, course)
    return figure, numbers_frame(lines, "phase", "round", "class")


def _lines(setting: Setting, method: str, course: Course) -> Iterator[dict[str, Any]]:
    for label, phase, at, mean, std, seeds in course.points.itertuples(index=False):
        line = measure(setting, ORIGINAL if phase == TRAINING else method, PER_ROUND, f"class_{label}_accuracy")
        yield line | {"phase": phase, "round": at, "class": label, "mean": mean, "std": std, "seeds": seeds}


def _draw(axes: Axes, course: Course, setting: Setting) -> None:
    """All classes in one panel: the forgotten ones are the accent, with a deviation, the others grey."""
    gone = forgotten(str(setting.columns["request"]))
    ends = []
    for label in course.classes:
        points, own = course.points[course.points["label"] == label], label in gone
        color, mean, std = ACCENT if own else GREY, 100 * points["mean"], 100 * points["std"]
        name = f"class {class_name(setting.rows, label)}"
        look: dict[str, Any] = {"linewidth": 2.4, "zorder": 3} if own else {"linewidth": 0.9}
        axes.plot(points["round"], mean, color=color, marker="o", markersize=5 if own else 2.5, label=name, **look)
        if own and std.notna().any():
            axes.fill_between(points["round"], mean - std, mean + std, color=color, alpha=0.12, linewidth=0)
        if own or len(course.classes) <= MOST_NAMES:
            ends.append((float(mean.iloc[-1]), f"{name}, forgotten" if own else name, color if own else "#555555"))
    axes.set(xlabel="rounds since the request", ylim=(-3, 103))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    _stages(axes, course)
    label_ends(axes, [end for end in ends if end[0] == end[0]], 6.5)


def _stages(axes: Axes, course: Course) -> None:
    """Shades and names of the stages; training stands before them."""
    low, _ = axes.get_xlim()
    place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "bottom", "fontsize": 6.5}
    if low < -0.5:
        axes.text(low / 2, 1.01, "training", ha="center", color=GREY, **place)
    start = 0
    for phase, color in SHADES.items():
        axes.axvspan(start, start + course.lengths[phase], color=color, linewidth=0, zorder=0)
        axes.text(start + course.lengths[phase] / 2, 1.01, phase, ha="center", color="#444444", **place)
        start += course.lengths[phase]

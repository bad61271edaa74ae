"""Accuracy of every class over rounds: what a request did to them (Figure 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from quickdrop_bench.reporting.layout import ORIGINAL, marked, method_name
from quickdrop_bench.reporting.looks import class_style
from quickdrop_bench.reporting.measured import TRAINING
from quickdrop_bench.reporting.names import class_name
from quickdrop_bench.reporting.pictures import draw_line, handles_in, rows_of_panels, say
from quickdrop_bench.reporting.points import measure, methods_in, numbers_frame, panels
from quickdrop_bench.reporting.slots import Slot

__all__ = ["PER_ROUND", "SHADES", "Course", "figure_2", "forgotten", "shade", "why_empty"]

PER_ROUND = "per-round"
SHADES = {"unlearning": "#56B4E9", "recovery": "#F0E442"}
"""Stages after training, and the colours behind them."""

SHADE = 0.28
"""Opacity of those colours."""

THICK = 2.6
"""Line of a class to be forgotten."""


@dataclass(frozen=True)
class Course:
    """What one method did to every class, round by round after a request.

    Attributes:
        points: class, phase, round (since the request; training's are 0 and below), mean, std, seeds.
        lengths: rounds of each stage in :data:`SHADES`.
    """

    points: pd.DataFrame
    lengths: dict[str, int]

    @classmethod
    def of(cls, rows: pd.DataFrame, method: str) -> Course:
        """From the rows of one request."""
        rows = rows[rows["stage"] == PER_ROUND]
        rows = rows.assign(label=rows["metric"].astype(str).str.extract(r"^class_(\d+)_", expand=False))
        rows = rows.dropna(subset=["label", "round"]).astype({"label": int, "round": int})
        before = rows[(rows["method"] == ORIGINAL) & (rows["phase"] == TRAINING) & ~_later(rows["request"])]
        before = before.assign(round=before["round"] - before.groupby("seed")["round"].transform("max"))
        parts, lengths, start = [_over_seeds(before)], {}, 0
        for phase in SHADES:
            own = _over_seeds(rows[(rows["method"] == method) & (rows["phase"] == phase)])
            lengths[phase] = int(own["round"].max()) if len(own) else 0
            parts.append(own.assign(round=own["round"] + start))
            start += lengths[phase]
        return cls(pd.concat(parts, ignore_index=True), lengths)

    @property
    def rounds(self) -> int:
        """From the request to the end of recovery."""
        return sum(self.lengths.values())

    def classes(self) -> list[int]:
        """Those measured."""
        return sorted(self.points["label"].unique())


def _later(requests: pd.Series) -> pd.Series:
    """Whether a request follows another one."""
    return requests.astype(str).str.contains(">", regex=False)


def _over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and deviation per class and round of one phase; a run that ended earlier keeps its last value."""
    keys = ["label", "phase", "seed"]
    # A value that is none must not be mistaken for a round that was not needed.
    wide = rows.assign(value=rows["value"].fillna(np.inf)).pivot_table("value", keys, "round", aggfunc="last")
    tall = wide.ffill(axis=1).replace(np.inf, np.nan).reset_index().melt(keys, var_name="round")
    points = tall.groupby(["label", "phase", "round"])["value"].agg(["mean", "std", "count"]).reset_index()
    return points.rename(columns={"count": "seeds"}).astype({"round": int})


def forgotten(request: str) -> list[int]:
    """The classes of a request, or of a sequence of them, in order.

    Args:
        request: e.g. ``class-5>class-8``; a client's holds none.
    """
    return [int(part.removeprefix("class-")) for part in request.split(">") if part.startswith("class-")]


def figure_2(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Every class's test accuracy over the last rounds of training, unlearning and recovery.

    Args:
        rows: of the artefact.
        published: from :func:`~quickdrop_bench.reporting.pictures.published_figure`.
        methods: one column of panels each; others that were measured follow.

    Returns:
        The picture and its points.
    """
    slots = panels(rows, published)
    columns = list(dict.fromkeys(method for slot in slots for method in methods_in(slot, methods))) or list(methods)
    figure, axes = rows_of_panels(slots, len(columns), 2.9, share=True)
    lines: list[dict[str, Any]] = []
    for slot, row in zip(slots, axes, strict=True):
        row[0].set_ylabel("test accuracy (%)")
        for panel, method in zip(row, columns, strict=True):
            course = Course.of(slot.rows, method)
            panel.set_title(marked(method_name(method), slot.marks(method)))
            if course.rounds == 0:
                say(panel, why_empty(slot, method))
                continue
            _draw_classes(panel, course, forgotten(str(slot.setting()["request"])))
            lines += _course_lines(slot, method, course)
    _class_legend(figure, axes, rows)
    return figure, numbers_frame(lines, "phase", "round", "class")


def why_empty(slot: Slot, method: str) -> str:
    """What to say of a method without rounds."""
    status = slot.status(method)
    return "no rounds recorded" if status == "measured" else status


def _course_lines(slot: Slot, method: str, course: Course) -> Iterator[dict[str, Any]]:
    for label, phase, at, mean, std, seeds in course.points.itertuples(index=False):
        line = measure(slot, ORIGINAL if phase == TRAINING else method, PER_ROUND, f"class_{label}_accuracy")
        yield line | {"phase": phase, "round": at, "class": label, "mean": mean, "std": std, "seeds": seeds}


def _draw_classes(axes: Axes, course: Course, gone: Sequence[int]) -> None:
    """All classes in one panel, the forgotten ones thick."""
    shade(axes, 0, course.lengths, SHADE)
    for label in course.classes():
        points, own = course.points[course.points["label"] == label], label in gone
        more: dict[str, Any] = (
            {"linewidth": THICK, "markersize": 6, "zorder": 3} if own else {"linewidth": 0.9, "markersize": 3.5}
        )
        draw_line(axes, points["round"], points, class_style(label), 100, 0.08, label=f"class {label}", **more)
    axes.set(xlabel="rounds since the request", ylim=(-3, 103))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)


def shade(axes: Axes, start: int, lengths: dict[str, int], alpha: float) -> None:
    """Colour the stages of a request that came after round ``start``."""
    for phase, length in lengths.items():
        axes.axvspan(start, start + length, color=SHADES[phase], alpha=alpha, linewidth=0, zorder=0)
        start += length


def _class_legend(figure: Figure, axes: Sequence[Sequence[Axes]], rows: pd.DataFrame) -> None:
    classes = sorted({int(name.split()[1]) for name in handles_in(panel for row in axes for panel in row)})
    if classes:
        handles: list[Artist] = [_class_handle(label, class_name(rows, label)) for label in classes]
        handles += [Line2D([], [], color="black", linewidth=THICK, label="forgotten class")]
        handles += [Patch(color=color, alpha=SHADE, label=phase) for phase, color in SHADES.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=7)


def _class_handle(label: int, name: str) -> Line2D:
    look = class_style(label)
    return Line2D(
        [], [], color=look.color, marker=look.marker, linestyle=look.line, markersize=4, label=f"class {name}"
    )

"""Figure 4: every class's accuracy while one after the other is forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from quickdrop_bench.reporting.figures.points import measure, methods_in, numbers_frame, panels
from quickdrop_bench.reporting.figures.rounds import PER_ROUND, Course, forgotten, why_empty
from quickdrop_bench.reporting.figures.style import ACCENT, GREY, WIDTH, put_title, rows_of_panels, say
from quickdrop_bench.reporting.frame import Setting
from quickdrop_bench.reporting.names import ORIGINAL, class_name, marked, method_title

MOST_NUMBERS = 12
"""Classes, and requests, up to which the accuracy at the end of a request is written into the heat."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A sequence of requests and what one method did at each.

    Attributes:
        label: the setting.
        method: which.
        order: the classes in the order of forgetting, one by each request.
        settings: rows of each request; None where it was not made.
        courses: one per request.
    """

    label: str
    method: str
    order: Sequence[int]
    settings: Sequence[Setting | None]
    courses: Sequence[Course]

    @classmethod
    def of(cls, setting: Setting, method: str, last: str) -> Chain:
        """The sequence that ends in ``last``."""
        requests = accumulate(last.split(">"), "{}>{}".format)
        found = [setting.rows[setting.rows["request"] == request] for request in requests]
        settings = [Setting(own, setting.published) if len(own) else None for own in found]
        return cls(setting.label, method, forgotten(last), settings, [Course.of(own, method) for own in found])

    @cached_property
    def names(self) -> dict[int, str]:
        """Of all classes: those forgotten in their order, then the others."""
        rows = pd.concat([setting.rows for setting in self.settings if setting])
        others = {label for course in self.courses for label in course.classes} - {*self.order}
        return {label: class_name(rows, label) for label in (*self.order, *sorted(others))}

    @property
    def title(self) -> str:
        """Setting, method, and what went wrong at which request."""
        texts = []
        for label, setting in zip(self.order, self.settings, strict=True):
            marks = setting.marks(self.method) if setting else ["not run"]
            texts += [f"class-{self.names[label]} {', '.join(marks)}"] if marks else []
        return marked(f"{self.label}: {method_title(self.method)}", texts)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Per request its number and (classes, rounds) accuracies; 0 is the model before; without rounds one is NaN."""
        for step, course in enumerate(self.courses, 1):
            past = course.points["round"] <= 0
            if step == 1:
                yield 0, self._grid(course.points[past])[:, -1:]
            yield step, self._grid(course.points[~past])

    def _grid(self, points: pd.DataFrame) -> np.ndarray:
        wide = points.pivot_table("mean", "label", "round", aggfunc="last").reindex([*self.names])
        return wide.to_numpy() if len(wide.columns) else np.full((len(self.names), 1), np.nan)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Numbers: every class before the first request and at the end of every step."""
        for step, (setting, course) in enumerate(zip(self.settings, self.courses, strict=True), 1):
            if setting is None:
                continue
            past = course.points["round"] <= 0
            ends = {0: course.points[past]} if step == 1 else {}
            for at, points in {**ends, step: course.points[~past]}.items():
                for point in points.groupby("label").tail(1).itertuples(index=False):
                    method = self.method if at else ORIGINAL
                    line = measure(setting, method, PER_ROUND, f"class_{point.label}_accuracy")
                    place = {"step": at, "class": point.label, "forgotten": point.label in self.order[:at]}
                    yield line | place | {"mean": point.mean, "std": point.std, "seeds": point.seeds}


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """A panel of heat per sequence, classes × rounds; the numbers are those at the end of every step."""
    chains = [
        Chain.of(setting, method, last)
        for setting in panels(rows, published, within=("request",))
        for method in methods_in(setting, methods)
        for last in _longest(setting)
    ]
    if not chains:
        return rows_of_panels([], 1, 2)[0], numbers_frame([], "step", "class", "forgotten")
    heights = [0.9 + 0.2 * len(chain.names) for chain in chains]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.3), layout="constrained")
    parts = figure.subfigures(len(chains), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, chain in zip(parts, chains, strict=True):
        put_title(part, chain.title)
        _draw(part.subplots(), chain)
    return figure, numbers_frame([line for chain in chains for line in chain.lines()], "step", "class", "forgotten")


def _longest(setting: Setting) -> list[str]:
    """The sequences that are not the beginning of another one."""
    requests = [str(request) for request in setting.rows["request"].unique()]
    return [own for own in requests if not any(other.startswith(f"{own}>") for other in requests)]


def _draw(axes: Axes, chain: Chain) -> None:
    if not any(course.rounds for course in chain.courses):
        reasons = {why_empty(setting, chain.method) for setting in chain.settings if setting}
        say(axes, reasons.pop() if len(reasons) == 1 else "no rounds recorded")
        return
    start, middles, count = 0, [], len(chain.names)
    for step, grid in chain.blocks():
        width, edges = grid.shape[1], np.arange(start, start + grid.shape[1] + 1)
        heat = axes.pcolormesh(edges, np.arange(count + 1), 100 * grid, cmap="Blues", vmin=0, vmax=100)
        if np.isnan(grid).all():
            axes.text(start + width / 2, count / 2, "not run", rotation=90, ha="center", va="center", color=GREY)
        if max(count, len(chain.order)) <= MOST_NUMBERS:
            _write(axes, 100 * grid[:, -1], start + width - 0.5)
        if step:
            frame: dict[str, Any] = {"edgecolor": ACCENT, "linewidth": 1.4, "zorder": 4, "clip_on": False}
            axes.add_patch(Rectangle((start, step - 1), width, 1, fill=False, **frame))
            if (setting := chain.settings[step - 1]) and setting.count(chain.method, "failed"):
                axes.text(start + width / 2, count, "×", ha="center", va="top", color=ACCENT, gid="failed")
        axes.axvline(start, color="white", linewidth=2.5)
        middles.append(start + width / 2)
        start += width
    names = ["before", *(chain.names[label] for label in chain.order)]
    long = max(map(len, names)) > 6
    axes.set_xticks(middles, names, rotation=30 if long else 0, ha="right" if long else "center")
    axes.set_yticks(np.arange(count) + 0.5, [*chain.names.values()])
    axes.set(ylabel="accuracy of class", xlim=(0, start), ylim=(count, 0), xlabel=_axis_label(chain))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(heat, ax=axes, pad=0.01, fraction=0.03, label="test accuracy (%)")
    bar.outline.set_visible(False)


def _write(axes: Axes, values: np.ndarray, x: float) -> None:
    for y, value in enumerate(values):
        if np.isfinite(value):
            color = "white" if value > 60 else "#333333"
            axes.text(x, y + 0.5, f"{value:.0f}", ha="center", va="center", fontsize=5.5, color=color)


def _axis_label(chain: Chain) -> str:
    text = "class forgotten (framed): a column per round of unlearning, then recovery; the number is the last round's"
    if len(chain.names) == len(chain.order):
        text += f"\n{chain.names[chain.order[-1]]} is the last class: no data are retained that could take its place"
    return text

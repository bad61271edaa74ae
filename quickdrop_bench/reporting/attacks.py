"""Membership inference: how often the unlearned model's data are taken for training data (Figure 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quickdrop_bench.reporting.layout import ORACLE, ORIGINAL, method_name
from quickdrop_bench.reporting.looks import BLUE, GREY, HOLLOW, ORANGE, VERMILLION
from quickdrop_bench.reporting.measured import TRAINING
from quickdrop_bench.reporting.pictures import legend_below, rows_of_panels
from quickdrop_bench.reporting.points import marks, measure, methods_in, numbers_frame, panels
from quickdrop_bench.reporting.slots import Cell, Slot

__all__ = ["figure_3"]

ATTACKS = {"": "entropy (the cited attack)", "_loss": "loss (knows the label)"}
"""What ends a metric's name, and the attack."""

SETS = {"F-Set": ("f_set", ORANGE, "///", "--", -0.2), "R-Set": ("r_set", BLUE, "", ":", 0.2)}
"""What begins a metric's name, colour, hatch, line of the oracle, and place beside the method's name."""

KINDS = ("mia", "false_positive_mia", "advantage_mia")
"""What follows: the rate on training images, that on test images of their classes, and the difference."""

REFERENCE = "reference"


ON_TEST: dict[str, Any] = {
    "marker": "|",
    "linestyle": "none",
    "color": VERMILLION,
    "markersize": 9,
    "markeredgewidth": 1.6,
    "zorder": 4,
    "label": "test images of the same classes",
}
BESIDE: dict[str, Any] = {"fontsize": 6, "va": "center", "ha": "left", "annotation_clip": False}


def figure_3(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Bars of the attack's rate on the F-Set and the R-Set per method; Retrain-Or's rates are the reference.

    A mark on each bar is the rate on test images of the same classes; the difference, the attack's advantage, stands
    beside the bar in points.

    Args:
        rows: of the artefact.
        published: from :func:`~quickdrop_bench.reporting.pictures.published_figure`.
        methods: one group of bars each; others that were measured follow.

    Returns:
        The picture and its points, each with the oracle's rate in the column ``reference``.
    """
    slots = panels(rows, published)
    tallest = max([len(methods_in(slot, methods)) for slot in slots], default=1)
    figure, axes = rows_of_panels(slots, len(ATTACKS), 1.1 + 0.34 * (tallest + 1), share=True)
    lines: list[dict[Any, Any]] = []
    for slot, row in zip(slots, axes, strict=True):
        shown = [ORIGINAL, *methods_in(slot, methods)]
        for panel, (suffix, attack) in zip(row, ATTACKS.items(), strict=True):
            points = numbers_frame(_lines(slot, shown, suffix), REFERENCE)
            _draw(panel, points, shown, slot.published.name)
            panel.set_title(attack, loc="left")
            lines += points.to_dict(orient="records")
        row[0].set_yticks(range(len(shown)), [_name(points, method) for method in shown])
        row[0].set_ylim(len(shown) - 0.4, -0.6)
    legend_below(figure, (panel for row in axes for panel in row), 5)
    return figure, numbers_frame(lines, REFERENCE)


def _lines(slot: Slot, methods: Sequence[str], suffix: str) -> Iterator[dict[str, Any]]:
    """Of the methods that were run: the rates on both sets, on test images of their classes, and the advantages."""
    metrics = [f"{name}_{kind}{suffix}" for kind in KINDS for name, *_ in SETS.values()]
    references = {metric: Cell.of(slot.values(ORACLE, "total", metric)).mean for metric in metrics}
    for method in (method for method in methods if slot.seeds(method)):
        for metric in metrics:
            line = measure(slot, method, TRAINING if method == ORIGINAL else "total", metric)
            yield line | {REFERENCE: references[metric]}


def _name(points: pd.DataFrame, method: str) -> str:
    """Beside the bars, with what went wrong below it."""
    name = "before the request" if method == ORIGINAL else method_name(method)
    own = points[points["method"] == method]
    return "\n".join([name, *(["; ".join(marks(own.head(1)))] if len(own) else [])]).rstrip()


def _draw(axes: Axes, points: pd.DataFrame, methods: Sequence[str], paper: str) -> None:
    """One attack."""
    axes.set(xlim=(0, 100), xlabel="taken for training data (%)")
    for name, (prefix, color, hatch, line, shift) in SETS.items():
        rates, on_test, advantage = (points[points["metric"].str.startswith(f"{prefix}_{kind}")] for kind in KINDS)
        at = np.array([methods.index(method) for method in rates["method"]]) + shift
        mean, std = 100 * rates["mean"], 100 * rates["std"]
        bars: dict[str, Any] = {"height": 0.38, "color": color, "edgecolor": "black", "linewidth": 0.5, "hatch": hatch}
        axes.barh(at, mean, xerr=std, error_kw={"elinewidth": 0.8, "capsize": 1.5}, label=name, **bars)
        axes.plot(100 * on_test["mean"], at, **ON_TEST)
        for y, difference in zip(at, 100 * advantage["mean"], strict=True):
            if np.isfinite(difference):
                axes.annotate(f"{difference:+.0f}", (1.02, y), xycoords=("axes fraction", "data"), **BESIDE)
        reference = 100 * rates[REFERENCE].dropna().head(1)
        for rate in reference:
            axes.axvline(rate, color="black", linestyle=line, linewidth=1.2, label=f"{method_name(ORACLE)}, {name}")
        known = rates["published"].notna()
        if known.any():
            axes.plot(100 * rates["published"][known], at[known], "D", label=f"paper ({paper}), {name}", **HOLLOW)
    axes.set_title("advantage (points)", loc="right", fontsize=6)
    for k, method in enumerate(methods):
        if points[points["method"] == method]["mean"].isna().all():
            text = "no value" if method in set(points["method"]) else "not run"
            axes.text(2, k, text, va="center", color=GREY, bbox={"facecolor": "white", "linewidth": 0, "pad": 1})

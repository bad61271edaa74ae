"""Figure 3: membership inference, or how often the unlearned model's data are taken for training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from quickdrop_bench.reporting.figures.points import marks, measure, methods_in, numbers_frame, panels
from quickdrop_bench.reporting.figures.style import BLUE, GREY, HOLLOW, ORANGE, rows_of_panels, say, signed
from quickdrop_bench.reporting.frame import TRAINING, Setting
from quickdrop_bench.reporting.names import ORACLE, ORIGINAL, method_title

ATTACKS = {"": "entropy (the paper's attack)", "_loss": "loss (knows the label)"}
"""What ends a metric's name, and the attack."""

SETS = {"F-Set": ("f_set", ORANGE, "o", -0.19), "R-Set": ("r_set", BLUE, "s", 0.19)}
"""What begins a metric's name, colour, marker, and place beside the method's name."""

KINDS = ("mia", "false_positive_mia", "advantage_mia")
"""What follows: the rate on training images, that on test images of their classes, and the difference."""

REFERENCE = "reference"
OWN = (REFERENCE, "low", "high")
"""Columns of the numbers: the oracle's rate, and the smallest and largest over seeds."""


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Per method the attack's rates on the F-Set and the R-Set, each joined to that on test images of the same classes.

    The distance of the two, the attack's advantage, stands at the right in points; Retrain-Or's rates are dotted lines.
    """
    settings = panels(rows, published)
    tallest = max([len(methods_in(setting, methods)) for setting in settings], default=1)
    figure, axes = rows_of_panels(settings, len(ATTACKS), 1.0 + 0.34 * (tallest + 1), share=True)
    lines: list[dict[Any, Any]] = []
    for setting, row in zip(settings, axes, strict=True):
        shown = [ORIGINAL, *methods_in(setting, methods)]
        for panel, (suffix, attack) in zip(row, ATTACKS.items(), strict=True):
            points = numbers_frame(_lines(setting, shown, suffix), *OWN)
            _draw(panel, points, shown)
            panel.set_title(attack, loc="left")
            lines += points.to_dict(orient="records")
        row[0].set_yticks(range(len(shown)), [_name(points, method) for method in shown])
        row[0].set_ylim(len(shown) - 0.5, -0.5)
    names = {setting.published.name for setting in settings}
    figure.legend(handles=_legend(", ".join(sorted(names - {""}))), loc="outside lower center", ncols=3)
    return figure, numbers_frame(lines, *OWN)


def _lines(setting: Setting, methods: Sequence[str], suffix: str) -> Iterator[dict[str, Any]]:
    """Of the methods that were run: the rates on both sets, on test images of their classes, and the advantages."""
    metrics = [f"{name}_{kind}{suffix}" for kind in KINDS for name, *_ in SETS.values()]
    references = {metric: setting.cell(ORACLE, "total", metric).mean for metric in metrics}
    for method in (method for method in methods if setting.seeds(method)):
        for metric in metrics:
            line = measure(setting, method, TRAINING if method == ORIGINAL else "total", metric)
            cell = setting.cell(method, str(line["stage"]), metric)
            yield line | {REFERENCE: references[metric], "low": cell.low, "high": cell.high}


def _name(points: pd.DataFrame, method: str) -> str:
    """Beside the rates, with what went wrong below it."""
    name = "before the request" if method == ORIGINAL else method_title(method)
    own = points[points["method"] == method]
    return "\n".join([name, *(["; ".join(marks(own.head(1)))] if len(own) else [])]).rstrip()


def _draw(axes: Axes, points: pd.DataFrame, methods: Sequence[str]) -> None:
    if points["mean"].isna().all():
        say(axes, "no value")
        return
    axes.set(xlim=(-2, 102), xlabel="taken for training data (%)")
    axes.tick_params(axis="y", length=0)
    for name, (prefix, color, marker, shift) in SETS.items():
        rates, on_test, advantage = (points[points["metric"].str.startswith(f"{prefix}_{kind}")] for kind in KINDS)
        at = np.array([methods.index(method) for method in rates["method"]]) + shift
        mean, theirs = 100 * rates["mean"].to_numpy(), 100 * on_test["mean"].to_numpy()
        axes.hlines(at, mean, theirs, color=color, linewidth=2.2, alpha=0.35)
        axes.plot(theirs, at, "|", color=color, markersize=8, markeredgewidth=1.6, label=f"{name}, test images")
        axes.hlines(at, 100 * rates["low"], 100 * rates["high"], color=color, linewidth=0.9)
        axes.plot(mean, at, marker, color=color, markersize=5, zorder=3, label=f"{name}, training images")
        for y, gap in zip(at, 100 * advantage["mean"], strict=True):
            if np.isfinite(gap):
                beside: dict[str, Any] = {"fontsize": 6, "va": "center", "annotation_clip": False, "color": color}
                axes.annotate(signed(gap), (1.02, y), xycoords=("axes fraction", "data"), **beside)
        for rate in 100 * rates[REFERENCE].dropna().head(1):
            axes.axvline(
                rate, color=color, linestyle=":", linewidth=1, zorder=0, label=f"{method_title(ORACLE)}, {name}"
            )
        axes.plot(100 * rates["published"], at, "D", label=f"paper, {name}", **HOLLOW)
    if points[points["metric"].str.contains("advantage")]["mean"].notna().any():
        axes.set_title("advantage (points)", loc="right", fontsize=6)
    for k, method in enumerate(methods):
        if k:
            axes.axhline(k - 0.5, color=GREY, linewidth=0.3)
        if points[points["method"] == method]["mean"].isna().all():
            text = "no value" if method in set(points["method"]) else "not run"
            axes.text(2, k, text, va="center", color=GREY)


def _legend(paper: str) -> list[Line2D]:
    found = []
    for name, (_, color, marker, _) in SETS.items():
        own = Line2D([], [], color=color, marker=marker, markersize=5, linewidth=0.8)
        own.set_label(f"{name}: training images (mean, range)")
        test = Line2D([], [], color=color, marker="|", linestyle="none", markersize=8, markeredgewidth=1.6)
        test.set_label(f"{name}: test images (false positives)")
        oracle = Line2D([], [], color=color, linestyle=":", linewidth=1, label=f"{name}: {method_title(ORACLE)}")
        found += [own, test, oracle]
    paper_mark = [Line2D([], [], marker="D", label=f"paper ({paper})", **HOLLOW)] if paper else []
    return [*found, *paper_mark]

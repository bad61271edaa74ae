"""Figure 7: what every method keeps and what it costs, one panel per setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from quickdrop_bench.reporting.figures.points import measure, methods_in, numbers_frame, panels
from quickdrop_bench.reporting.figures.style import GREY, label_points, rows_of_panels, say
from quickdrop_bench.reporting.figures.tradeoff import draw_tradeoff, points
from quickdrop_bench.reporting.frame import Setting, derive
from quickdrop_bench.reporting.names import ORACLE, method_title

__all__ = ["draw"]

METRICS = ("gradients", "r_set_gap", "f_set_gap")


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """R-Set's gap to the oracle over sample-gradients; what cannot stand in a panel is named above it."""
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
        figure.legend(handles=_legend(settings), loc="outside lower center", ncols=3)
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
    backdoor = any((setting.rows["metric"] == "attack_success_gap").any() for setting in settings)
    what = "attack success" if backdoor else "F-Set"
    forgets = f"{what} within 1 point (+ a standard error, ≤ 1) of {method_title(ORACLE)}'s"
    return [
        Line2D([], [], **mark, label=forgets),
        Line2D([], [], **mark, markerfacecolor="white", label=f"{what} farther from it"),
        Line2D([], [], color=GREY, linewidth=1, label="best at its cost (Pareto front)"),
    ]

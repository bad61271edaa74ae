"""Figure 6: what the scale changes, original per synthetic images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from quickdrop_bench.reporting.figures.curves import LABELS, R_SET, Axis, draw_trend, trend_lines
from quickdrop_bench.reporting.figures.points import methods_in, numbers_frame, panels
from quickdrop_bench.reporting.figures.style import legend_below, method_styles, rows_of_panels, same_heights
from quickdrop_bench.reporting.frame import SETTING, Setting, has_small_sets
from quickdrop_bench.reporting.published import NOTHING_PUBLISHED

STAGES = {"recovery": "-", "unlearning": "--"}
"""Stages and their lines; colour and marker are the method's in all panels."""

STEPS = "recover_local_epochs null"
"""What differs from the preset where recovery takes the same steps at every scale instead of passes over a set."""

SAME_STEPS = "the same steps at every scale"


def draw(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Over the scale: R-Set accuracy after recovery, and seconds of unlearning and of recovery.

    Recovery in passes over a client's set, whose steps are the fewer the larger the scale, and in the same steps at
    every scale stand in rows of their own, where both were measured.
    """
    settings = [_with_paper(setting) for setting in panels(_apart(rows), published, within=("scale",))]
    figure, axes = rows_of_panels(settings, 2, 2.9)
    lines: list[dict[Any, Any]] = []
    drawn: dict[str, list[list[Axis]]] = {}
    for setting, (left, right) in zip(settings, axes, strict=True):
        shown = methods_in(setting, methods)
        accuracy = draw_trend(left, setting, "scale", shown, R_SET, "R-Set accuracy after recovery (%)")
        own = [method for method in shown if has_small_sets(method)]
        seconds = numbers_frame(trend_lines(setting, "scale", own, [(stage, "seconds") for stage in STAGES]))
        time = Axis(right, seconds, "scale", setting.published)
        _draw_seconds(time, own)
        legend_below(left.get_figure(root=False), (right,), 3)
        lines += [*accuracy.points.to_dict(orient="records"), *seconds.to_dict(orient="records")]
        drawn.setdefault(setting.columns["setting"], []).append([accuracy, time])
    for rows_of_one in drawn.values():
        for column in zip(*rows_of_one, strict=True):
            same_heights([axis.axes for axis in column])
        for accuracy, _ in rows_of_one:
            accuracy.name_ends()
    return figure, numbers_frame(lines)


def _with_paper(setting: Setting) -> Setting:
    """The paper's numbers are those of passes (benchmarks/DEVIATIONS.md, 37)."""
    in_steps = setting.columns["changes"].endswith(SAME_STEPS)
    return replace(setting, published=NOTHING_PUBLISHED) if in_steps else setting


def _apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose ``changes`` say how recovery was counted; those of methods that have no choice stand in both."""
    if rows.empty:
        return rows
    texts = rows["method_changes"].str.split(", ")
    in_steps = texts.map(lambda found: STEPS in found)
    both = in_steps.groupby([rows[name] for name in SETTING]).transform("any")
    chosen = rows["method"].isin(rows["method"][in_steps])
    rows = rows.assign(method_changes=texts.map(lambda found: ", ".join(text for text in found if text != STEPS)))
    named = [rows[~both]]
    for part, way in ((~in_steps, "passes over a client's set"), (in_steps | ~chosen, SAME_STEPS)):
        own = rows[both & part]
        before = own["changes"].where(own["changes"] == "", own["changes"] + ", ")
        named.append(own.assign(changes=before + f"recovery in {way}"))
    return pd.concat(named).sort_index(kind="stable").reset_index(drop=True)


def _draw_seconds(axis: Axis, methods: Sequence[str]) -> None:
    for stage, line in STAGES.items():
        for method, look in method_styles(methods).items():
            mine = (axis.points["method"] == method) & (axis.points["stage"] == stage)
            axis.draw(axis.points[mine], look, "_", line)
        axis.axes.plot([], [], color="black", linestyle=line, linewidth=1.3, label=stage)
    axis.axes.set(xlabel=LABELS["scale"], ylabel="compute summed over clients (s)")
    axis.finish()

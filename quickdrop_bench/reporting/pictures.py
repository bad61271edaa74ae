"""What every picture shares: its look, and its files."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from quickdrop_bench.core.files import write_atomically, write_text
from quickdrop_bench.harness.exhibits import Exhibit
from quickdrop_bench.reporting.looks import GREY, WIDTH, Style, class_style, method_styles, style
from quickdrop_bench.reporting.points import is_fraction
from quickdrop_bench.reporting.slots import Slot

__all__ = [
    "Style",
    "class_style",
    "draw_line",
    "handles_in",
    "legend_below",
    "method_styles",
    "published_figure",
    "put_title",
    "rows_of_panels",
    "save_picture",
    "say",
    "style",
    "write_figure",
]


def write_figure(
    folder: Path,
    layout: Exhibit,
    draw: Callable[[pd.DataFrame, pd.DataFrame, Sequence[str]], tuple[Figure, pd.DataFrame]],
    rows: pd.DataFrame,
    published: pd.DataFrame,
) -> list[Path]:
    """Write ``figure.svg``, ``figure.png`` and ``figure.csv``.

    Args:
        folder: where to.
        layout: what to draw.
        draw: its drawing, see :mod:`~quickdrop_bench.reporting.drawings`.
        rows: of the artefact: one run per setting, method, seed, scale and fine-tuning.
        published: from :func:`published_figure`.

    Returns:
        The files written.
    """
    with style():
        figure, numbers = draw(rows, published, layout.methods)
        put_title(figure, layout.heading, fontweight="bold")
        paths = save_picture(figure, folder / "figure")
    table = folder / "figure.csv"
    write_text(table, numbers.to_csv(index=False, float_format="%.6g"))
    return [*paths, table]


def save_picture(figure: Figure, stem: Path) -> list[Path]:
    """Write ``<stem>.svg`` and ``<stem>.png``; within :func:`style` the same picture gives the same files."""
    svg, png = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("svg", "png"))
    write_atomically(svg, lambda temporary: figure.savefig(temporary, metadata={"Date": None}))
    write_atomically(png, lambda temporary: figure.savefig(temporary, dpi=150))
    return [svg, png]


def published_figure(path: Path, number: int | None) -> pd.DataFrame:
    """The paper's numbers for one figure, with accuracies and attack rates as fractions; none for a sweep."""
    frame = pd.read_csv(path, dtype={"table": str})
    frame = frame[frame["table"] == f"figure{number}"].copy()
    percent = frame["metric"].map(is_fraction).astype(bool)
    frame.loc[percent, "value"] = frame.loc[percent, "value"] / 100
    return frame


def rows_of_panels(slots: Sequence[Slot], columns: int, height: float, share: bool = False) -> tuple[Figure, list[Any]]:
    """A figure of a page's width with one row of panels per setting, each under its title.

    Args:
        slots: from :func:`~quickdrop_bench.reporting.points.panels`; without any, one row says that nothing was run.
        columns: panels per row.
        height: of a row in inches.
        share: whether the panels of a row have one vertical axis.

    Returns:
        The figure and, per slot, an array of its axes.
    """
    count = max(len(slots), 1)
    figure = Figure(figsize=(WIDTH, height * count + 0.3), layout="constrained")
    found = []
    for part, slot in zip(figure.subfigures(count, 1, squeeze=False)[:, 0], [*slots, None], strict=False):
        axes = part.subplots(1, columns, squeeze=False, sharey=share)[0]
        if slot is None:
            for panel in axes:
                say(panel, "not run")
        else:
            put_title(part, slot.label)
            found.append(axes)
    return figure, found


def put_title(figure: FigureBase, text: str, **more: Any) -> None:
    """Above everything else, from the left, on as many lines as it takes.

    Args:
        figure: a picture or a part of one.
        text: of any length.
        more: for ``suptitle``.
    """
    figure.suptitle(textwrap.fill(text, 110), x=0.01, ha="left", fontsize=8, **more)


def say(axes: Axes, text: str) -> None:
    """Tell why a panel is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_axis_off()


def draw_line(
    axes: Axes,
    x: Iterable[float],
    points: pd.DataFrame,
    look: Style,
    factor: float,
    band: float = 0.15,
    joined: bool = True,
    **more: Any,
) -> None:
    """Means with a band of one standard deviation where there are several seeds; with bars if points stand alone.

    Args:
        axes: to draw on.
        x: one per point.
        points: with the columns ``mean`` and ``std``.
        look: colour, marker and line.
        factor: from the unit of the points to that of the axis.
        band: opacity of the band.
        joined: whether a line joins the points.
        more: for ``axes.plot``.
    """
    at, mean, std = (np.asarray(v, dtype=float) for v in ([*x], factor * points["mean"], factor * points["std"]))
    drawn: dict[str, Any] = {
        "color": look.color,
        "marker": look.marker,
        "linestyle": look.line,
        "markersize": 4,
        "linewidth": 1.3,
    }
    axes.plot(at, mean, **(drawn | more | ({} if joined else {"linestyle": "none"})))
    if joined and len(at) > 1:
        axes.fill_between(at, mean - std, mean + std, color=look.color, alpha=band, linewidth=0)
    else:
        axes.errorbar(at, mean, std, color=look.color, fmt="none", capsize=2, linewidth=0.8)


def handles_in(axes: Iterable[Axes]) -> dict[str, Any]:
    """What the legend of some panels shows, each name once."""
    found: dict[str, Any] = {}
    for panel in axes:
        handles, labels = panel.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    return found


def legend_below(figure: FigureBase, axes: Iterable[Axes], columns: int) -> None:
    """One legend for some panels, below the picture or the part of it that they fill."""
    found = handles_in(axes)
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)

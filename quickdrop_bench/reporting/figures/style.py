"""The one look of all figures: colours, markers, lines, titles, labels, and how a picture is saved."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, FigureBase
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

from quickdrop_bench.core.files import write_atomically
from quickdrop_bench.methods import METHODS
from quickdrop_bench.reporting.frame import Setting
from quickdrop_bench.reporting.names import registered

Dashes = Literal["-", "--", "-.", ":"]

WIDTH = 7.0
"""Inches: a page's text."""

BLUE, ORANGE, GREEN, ACCENT = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, GREY = "#56B4E9", "#CC79A7", "#8A8A8A"
CYCLE = ("#882255", "#B5A300", "#332288", GREEN, SKY, PURPLE, ORANGE, BLUE)
"""For methods that name no colour of their own."""

MARKERS = ("s", "^", "v", "D", "P", "X", "o", "*", "<", ">", "h", "p")
LINES: tuple[Dashes, ...] = ("-", "--", "-.", ":")

HOLLOW: dict[str, Any] = {
    "markerfacecolor": "white",
    "markeredgecolor": "#222222",
    "markersize": 6,
    "markeredgewidth": 1.2,
    "linestyle": "none",
    "zorder": 5,
}
"""Marks of published values."""

STYLE: dict[Any, Any] = {
    **{"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7},
    **{"xtick.labelsize": 7, "ytick.labelsize": 7, "legend.frameon": False},
    **{"axes.linewidth": 0.7, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6},
    **{"figure.facecolor": "white", "savefig.facecolor": "white"},
    # A data set's name may hold a dollar sign.
    "text.parse_math": False,
    # A fixed salt: the same rows give the same file.
    **{"svg.hashsalt": "quickdrop_bench", "svg.fonttype": "none"},
}


SPOTS = [(dx, dy, side) for dy in (5, -11, 18, -26, 34, -42, 50, -58) for dx, side in ((9, "left"), (-9, "right"))]
"""Places of a name beside its mark, the nearest first: offsets in points, and the side of the text at them."""


NEXT = 11
"""Points above or below a mark up to which a name is next to it."""


@dataclass(frozen=True)
class Style:
    """How a method looks: in colour, and in grey print."""

    color: str
    marker: str
    line: Dashes = "-"


def style() -> AbstractContextManager[None]:
    """The look of every picture, while it is drawn and saved."""
    return mpl.rc_context(STYLE)


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """Of methods: the colour that each names, or one of the cycle; with other hyper-parameters another line."""
    found: dict[str, Style] = {}
    order = [*METHODS]
    for method in methods:
        own = registered(method)
        foreign = sum(registered(other) not in order for other in found)
        k = order.index(own) if own in order else len(order) + foreign
        color = getattr(METHODS[own], "color", "") if own in METHODS else ""
        again = sum(registered(other) == own for other in found)
        marker = MARKERS[(k + 7 * again) % len(MARKERS)]
        found[method] = Style(color or CYCLE[k % len(CYCLE)], marker, LINES[(again + k // len(MARKERS)) % len(LINES)])
    return found


def save_picture(figure: Figure, stem: Path) -> list[Path]:
    """Write ``<stem>.svg`` and ``<stem>.png``; within :func:`style` the same picture gives the same files."""
    svg, png = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("svg", "png"))
    write_atomically(svg, lambda temporary: figure.savefig(temporary, metadata={"Date": None}))
    write_atomically(png, lambda temporary: figure.savefig(temporary, dpi=150))
    return [svg, png]


def rows_of_panels(
    settings: Sequence[Setting], columns: int, height: float, share: bool = False
) -> tuple[Figure, list[Any]]:
    """A figure of a page's width with one row of panels per setting, each under its title."""
    count = max(len(settings), 1)
    figure = Figure(figsize=(WIDTH, height * count + 0.3), layout="constrained")
    found = []
    for part, setting in zip(figure.subfigures(count, 1, squeeze=False)[:, 0], [*settings, None], strict=False):
        axes = part.subplots(1, columns, squeeze=False, sharey=share)[0]
        if setting is None:
            for panel in axes:
                say(panel, "not run")
        else:
            put_title(part, setting.label)
            found.append(axes)
    return figure, found


def put_title(figure: FigureBase, text: str, **more: Any) -> None:
    """Above everything else, from the left, on as many lines as it takes; ``more`` is for ``suptitle``."""
    figure.suptitle(textwrap.fill(text, 110), x=0.01, ha="left", fontsize=8, **more)


def say(axes: Axes, text: str) -> None:
    """Tell why a panel is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_axis_off()


def legend_below(figure: FigureBase, axes: Iterable[Axes], columns: int) -> None:
    """One legend for some panels, each name once, below the picture or the part of it that they fill."""
    found: dict[str, Any] = {}
    for panel in axes:
        handles, labels = panel.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def signed(value: float) -> str:
    """A whole difference with its sign; nothing is ``-0``."""
    return f"{round(value):+d}" if round(value) else "0"


def same_heights(panels: Sequence[Axes]) -> None:
    """One vertical range for panels that are to be compared, but for those that only say why they are empty."""
    filled = [panel for panel in panels if panel.axison]
    ends = [end for panel in filled for end in panel.get_ylim()]
    for panel in filled:
        panel.set_ylim(min(ends), max(ends))


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], size: float = 7) -> None:
    """Names beside the right edge, moved apart where they would overlap; ``ends``: height, name, colour of each."""
    to_share = axes.transScale + axes.transLimits
    height = axes.get_window_extent().height or 1.0
    gap = 1.25 * size * axes.figure.dpi / 72 / height
    order = sorted(ends, key=lambda end: end[0])
    wanted = [float(np.clip(to_share.transform((axes.get_xlim()[1], y))[1], 0, 1)) for y, *_ in order]
    for at, own, (_, name, color) in zip(_apart(wanted, gap), wanted, order, strict=True):
        axes.annotate(
            name,
            (1, own),
            (1.04, at),
            xycoords="axes fraction",
            va="center",
            color=color,
            fontsize=size,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.4,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places, moved as little as it takes to lie ``gap`` apart: neighbours that touch share their centre."""
    steps = gap * np.arange(len(wanted))
    places = isotonic_regression(wanted - steps).x.clip(0, max(1 - gap * (len(wanted) - 1), 0)) + steps
    return [float(place) for place in places]


def label_points(axes: Axes, points: Sequence[tuple[float, float, str, str]], size: float = 8) -> None:
    """Names beside points (x, y, name, colour), each where it covers neither a mark nor another name.

    A line leads from a mark to a name that is not next to it. The upper ones are named first, so that names keep the
    order of their marks where these are close.
    """
    points = sorted(points, key=lambda point: -point[1])
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    marks = [axes.transData.transform((x, y)) for x, y, *_ in points]
    taken = [Bbox.from_bounds(px - 5 * scale, py - 5 * scale, 10 * scale, 10 * scale) for px, py in marks]
    segments = [s for bars in axes.collections if isinstance(bars, LineCollection) for s in bars.get_segments()]
    taken += [Bbox(axes.transData.transform(segment)).padded(2 * scale) for segment in segments]
    for (x, y, name, color), own in zip(points, taken, strict=False):
        best, least = None, np.inf
        for dx, dy, side in SPOTS:
            text = axes.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=side, color=color, fontsize=size
            )
            box = text.get_window_extent()
            cost = sum(_overlap(box, other) for other in taken if other is not own) + _outside(box, axes.bbox)
            if cost < least:
                if best:
                    best.remove()
                best, least, kept, place = text, cost, box, (dx, dy)
            else:
                text.remove()
            if least == 0:
                break
        taken.append(kept)
        if abs(place[1]) > NEXT:
            lead = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 5}
            axes.annotate("", (x, y), (place[0], place[1] + size / 3), textcoords="offset points", arrowprops=lead)


def _overlap(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return float(common.width * common.height) if common else 0.0


def _outside(box: Bbox, within: Bbox) -> float:
    return float(box.width * box.height) - _overlap(box, within)

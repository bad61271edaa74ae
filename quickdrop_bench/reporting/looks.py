"""Colours, markers, lines and hatches, readable in colour and in grey print."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl

__all__ = [
    "BLUE",
    "GREY",
    "HOLLOW",
    "ORANGE",
    "VERMILLION",
    "WIDTH",
    "Line",
    "Style",
    "class_style",
    "method_styles",
    "style",
]

Line = Literal["-", "--", "-.", ":"]

WIDTH = 7.0
"""Inches: a page's text."""

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, BLACK, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#000000", "#8A8A8A"
CYCLE = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, BLACK, "#B5A300", GREY, "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES: tuple[Line, ...] = ("-", "--", "-.", ":")
HATCHES = ("", "//", "\\\\", "xx", "..", "++")

HOLLOW: dict[str, Any] = {
    "markerfacecolor": "none",
    "markeredgecolor": VERMILLION,
    "markersize": 6,
    "markeredgewidth": 1.2,
    "zorder": 5,
}
"""Marks of published values."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # A data set's name may hold a dollar sign.
    "text.parse_math": False,
    # A fixed salt: the same rows give the same file.
    "svg.hashsalt": "quickdrop_bench",
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Style:
    """How a method or a class looks: in colour, and in grey print."""

    color: str
    marker: str
    line: Line = "-"
    hatch: str = ""


METHODS = {
    "original": Style(GREY, "X", ":", ""),
    "retrain-or": Style(BLACK, "s", "--", ""),
    "federaser": Style(SKY, "^", "-.", "//"),
    "s2u": Style(YELLOW, "v", ":", "++"),
    "sga-or": Style(ORANGE, "D", ":", "\\\\"),
    "fu-mp": Style(PURPLE, "P", "-.", "xx"),
    "random-subset": Style(GREEN, "^", "--", ".."),
    "quickdrop": Style(BLUE, "o", "-", ""),
}


def style() -> AbstractContextManager[None]:
    """The look of every picture, while it is drawn and saved."""
    return mpl.rc_context(STYLE)


def class_style(label: int) -> Style:
    """Of a class: neighbours differ in colour and marker, and those that share a colour in the line too."""
    return Style(CYCLE[label % len(CYCLE)], MARKERS[label % len(MARKERS)], LINES[label // len(CYCLE) % len(LINES)])


def method_styles(methods: Sequence[str]) -> dict[str, Style]:
    """Of methods: fixed for ours, and by order for those from other packages."""
    others = [method for method in methods if method not in METHODS]
    own = {
        method: Style(CYCLE[-1 - k % len(CYCLE)], MARKERS[-1 - k % len(MARKERS)], LINES[k % 4], HATCHES[k % 6])
        for k, method in enumerate(others)
    }
    return {method: METHODS.get(method) or own[method] for method in methods}

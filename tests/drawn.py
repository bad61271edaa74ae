"""Rows of figures, and what stands in the pictures drawn from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.reporting import render as module
from tests.golden import common

Row = dict[str, Any]
SETTING = common.setting("figure", dataset="cifar10", request="class-2", scale=100, fine_tuning=0, spec_hash="h")


def row(method: str, seed: int, stage: str, metric: str, value: float, **other: object) -> Row:
    return {**SETTING, "method": method, "seed": seed, "stage": stage, "metric": metric, "value": value, **other}


def failed(method: str, seed: int, **other: object) -> Row:
    return row(method, seed, "total", "failed", 1.0, **{"error": "MemoryError", **other})


def draw(name: str, rows: Sequence[Row] | Iterator[Row]) -> tuple[Figure, pd.DataFrame]:
    figure, numbers = module.draw(exhibit(name), common.frame(rows))
    figure.canvas.draw()
    return figure, numbers


def texts(figure: Figure) -> str:
    found = [text.get_text().replace("\n", " ") for axes in figure.axes for text in axes.texts]
    found += [axes.get_title(place) for axes in figure.axes for place in ("left", "center")]
    found += [label.get_text() for axes in figure.axes for label in (*axes.get_yticklabels(), axes.xaxis.label)]
    parts = [figure, *figure.subfigs]
    found += [text.get_text() for part in parts for legend in part.legends for text in legend.get_texts()]
    return "\n".join([*found, *(part.get_suptitle() for part in parts)])


def line(axes: Axes, label: str) -> list[list[float]]:
    """The x and y of what the legend calls so."""
    own = next(line for line in axes.lines if line.get_label() == label)
    return [np.asarray(values, dtype=float).tolist() for values in own.get_data()]

"""The drawing of each figure by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from quickdrop_bench.reporting.attacks import figure_3
from quickdrop_bench.reporting.rounds import figure_2
from quickdrop_bench.reporting.sequences import figure_4
from quickdrop_bench.reporting.trends import figure_5, figure_6, sweep_figure

__all__ = ["DRAWINGS", "Drawing"]

Drawing = Callable[[pd.DataFrame, pd.DataFrame, Sequence[str]], tuple[Figure, pd.DataFrame]]
"""From the rows of an exhibit, the paper's values and the methods to the picture and its numbers, one line a point."""

DRAWINGS: Mapping[str, Drawing] = {
    "figure2": figure_2,
    "figure3": figure_3,
    "figure4": figure_4,
    "figure5": figure_5,
    "figure6": figure_6,
    "sweep": sweep_figure,
}

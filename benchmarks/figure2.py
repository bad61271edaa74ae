"""Figure 2: every class's accuracy while one of them is forgotten (paper §4.2.1)."""

from quickdrop_bench.reporting.pictures import FigureLayout
from quickdrop_bench.reporting.rounds import figure_2

LAYOUT = FigureLayout(
    number=2,
    title="test accuracy of every class while one is unlearned and the others recover",
    methods=("quickdrop",),
    draw=figure_2,
)

EACH_ROUND = True
"""Accuracy is measured after every round."""

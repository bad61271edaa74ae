"""Figure 4: every class's accuracy while one after the other is forgotten (paper §4.3)."""

from quickdrop_bench.reporting.pictures import FigureLayout
from quickdrop_bench.reporting.sequences import figure_4

LAYOUT = FigureLayout(
    number=4,
    title="test accuracy of every class under sequential unlearning requests",
    methods=("quickdrop",),
    draw=figure_4,
)

EACH_ROUND = True
"""Accuracy is measured after every round."""

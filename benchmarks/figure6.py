"""Figure 6: what the scale, original per synthetic images, changes (paper §4.4.2)."""

from quickdrop_bench.reporting.pictures import FigureLayout
from quickdrop_bench.reporting.trends import figure_6

LAYOUT = FigureLayout(
    number=6,
    title="accuracy on the R-Set after recovery, and compute of both stages, over the scale",
    methods=("retrain-or", "sga-or", "random-subset", "quickdrop"),
    draw=figure_6,
)

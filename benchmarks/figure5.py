"""Figure 5: what more fine-tuning of the synthetic data gains and costs (paper §4.4.1)."""

from quickdrop_bench.reporting.pictures import FigureLayout
from quickdrop_bench.reporting.trends import figure_5

LAYOUT = FigureLayout(
    number=5,
    title="accuracy on the R-Set after recovery, and gradients on original data, over fine-tuning steps",
    methods=("retrain-or", "quickdrop"),
    draw=figure_5,
)

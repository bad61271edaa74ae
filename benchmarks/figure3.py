"""Figure 3: membership inference attack on the unlearned models (paper §4.2.3)."""

from quickdrop_bench.reporting.attacks import figure_3
from quickdrop_bench.reporting.pictures import FigureLayout

LAYOUT = FigureLayout(
    number=3,
    title="membership inference after unlearning: images taken for training data",
    methods=("retrain-or", "federaser", "sga-or", "fu-mp", "random-subset", "quickdrop"),
    draw=figure_3,
)

"""Sweeps over scales, concentrations, clients, fine-tuning or data sets (paper §4.4 and beyond)."""

from quickdrop_bench.reporting.pictures import FigureLayout
from quickdrop_bench.reporting.trends import sweep_figure

LAYOUT = FigureLayout(
    number=None,
    title="sweep",
    methods=("retrain-or", "sga-or", "random-subset", "quickdrop"),
    draw=sweep_figure,
)

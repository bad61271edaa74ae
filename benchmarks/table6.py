"""Table 6: compute time of FL training with distillation, and the share of distillation in it (paper §4.8)."""

from quickdrop_bench.reporting.tables import Column, Layout

LAYOUT = Layout(
    number=6,
    title="distillation during FL training: compute time and overhead",
    methods=("quickdrop",),
    columns=(
        Column("", "Total compute time (s)", "fl-training", "total_seconds", "seconds"),
        Column("", "DD compute time (s)", "fl-training", "distillation_seconds", "seconds"),
        Column("", "Overhead (share of total)", "fl-training", "overhead_percent", "percentage"),
    ),
    per="dataset",
)

VARIANTS = (("table6", "table6", ()), ("table3", "table3", ()))
"""The federations of Table 2 on the preset's data sets, and that of Table 3."""

MEASURES = ()
"""Training only: no method is run."""

"""Table 4: accuracy after forgetting one client, 20 clients, non-IID beside IID (paper §4.6)."""

from quickdrop_bench.reporting.tables import Column, Layout

LAYOUT = Layout(
    number=4,
    title="client-level unlearning, after recovery: accuracy with non-IID and IID data",
    methods=("retrain-or", "federaser", "s2u", "sga-or", "fu-mp", "random-subset", "quickdrop"),
    columns=(
        Column("", "F-Set", "total", "f_set_accuracy", "percent"),
        Column("", "R-Set", "total", "r_set_accuracy", "percent"),
        Column("", "F-Set − oracle", "total", "f_set_gap", "points"),
        Column("", "R-Set − oracle", "total", "r_set_gap", "points"),
    ),
    level="client",
    beside="distribution",
)

VARIANTS = (("table4", "table4", ()), ("table4", "table4", ("--iid",)))
"""Non-IID as the preset has it, and IID."""

"""Table 3: accuracy and cost of forgetting one class in a large network, SVHN and 100 clients (paper §4.5)."""

from quickdrop_bench.reporting.tables import Column, Layout

LAYOUT = Layout(
    number=3,
    title="class-level unlearning in a large network, after recovery: accuracy and computation cost",
    methods=("retrain-or", "federaser", "s2u", "sga-or", "fu-mp", "random-subset", "quickdrop"),
    columns=(
        Column("Accuracy", "F-Set", "total", "f_set_accuracy", "percent"),
        Column("Accuracy", "R-Set", "total", "r_set_accuracy", "percent"),
        Column("Accuracy", "F-Set − oracle", "total", "f_set_gap", "points"),
        Column("Accuracy", "R-Set − oracle", "total", "r_set_gap", "points"),
        Column("Computation cost", "Speedup (sample-gradients)", "total", "speedup_sample_gradients", "ratio"),
        Column("Computation cost", "Time (s)", "total", "seconds", "seconds"),
        Column("Computation cost", "Speedup (seconds)", "total", "speedup", "ratio"),
        Column("Other cost", "Upload", "total", "upload_bytes", "bytes"),
        Column("Other cost", "Storage", "total", "storage_bytes", "bytes"),
    ),
)

"""Table 2: accuracy and cost of forgetting one class, 10 clients, non-IID (paper §4.2)."""

from quickdrop_bench.reporting.tables import Column, Layout


def _stage(group: str, stage: str) -> tuple[Column, ...]:
    return (
        Column(group, "F-Set", stage, "f_set_accuracy", "percent"),
        Column(group, "R-Set", stage, "r_set_accuracy", "percent"),
        Column(group, "Rounds", stage, "rounds", "count"),
        Column(group, "Time (s)", stage, "seconds", "seconds"),
        Column(group, "Data size", stage, "data_size", "count"),
    )


LAYOUT = Layout(
    number=2,
    title="class-level unlearning: accuracy and computation cost",
    methods=("retrain-or", "federaser", "s2u", "sga-or", "fu-mp", "random-subset", "quickdrop"),
    columns=(
        *_stage("Unlearning", "unlearning"),
        *_stage("Recovery", "recovery"),
        Column("Total", "F-Set − oracle", "total", "f_set_gap", "points"),
        Column("Total", "R-Set − oracle", "total", "r_set_gap", "points"),
        Column("Total", "Sample-gradients", "total", "sample_gradients", "count"),
        Column("Total", "Speedup (sample-gradients)", "total", "speedup_sample_gradients", "ratio"),
        Column("Total", "Time (s)", "total", "seconds", "seconds"),
        Column("Total", "Speedup (seconds)", "total", "speedup", "ratio"),
        Column("Total", "Upload", "total", "upload_bytes", "bytes"),
        Column("Total", "Storage", "total", "storage_bytes", "bytes"),
    ),
)

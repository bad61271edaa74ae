"""Table 5: accuracy after forgetting one class and after learning it again, 20 clients, two data sets (paper §4.7)."""

from quickdrop_bench.reporting.tables import Column, Layout


def _stage(group: str, stage: str) -> tuple[Column, ...]:
    return (
        Column(group, "F-Set", stage, "f_set_accuracy", "percent"),
        Column(group, "R-Set", stage, "r_set_accuracy", "percent"),
    )


LAYOUT = Layout(
    number=5,
    title="class-level unlearning and relearning: accuracy",
    methods=("retrain-or", "federaser", "s2u", "sga-or", "fu-mp", "random-subset", "quickdrop"),
    columns=(
        *_stage("Unlearning + Recovery", "total"),
        Column("Unlearning + Recovery", "F-Set − oracle", "total", "f_set_gap", "points"),
        Column("Unlearning + Recovery", "R-Set − oracle", "total", "r_set_gap", "points"),
        *_stage("Relearning", "relearning"),
    ),
    relearn=True,
    beside="dataset",
)

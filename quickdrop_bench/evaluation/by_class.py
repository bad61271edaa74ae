"""Accuracy on the test images of every class (Figure 2)."""

from __future__ import annotations

from quickdrop_bench.evaluation.metric import METRICS, PER_ROUND, SERVED, STAGES, Evaluated, Number, metric


@METRICS.register("class-accuracy")
@metric({"class_{c}_accuracy": Number()}, {*STAGES - {"total"}, PER_ROUND, SERVED})
def class_accuracies(model: Evaluated, stage: str) -> dict[str, float]:
    """Top-1 accuracy on the test images of each class."""
    return model.on_test.metrics() if model.by_class or stage in (PER_ROUND, SERVED) else {}

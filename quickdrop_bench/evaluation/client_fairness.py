"""How alike the clients' accuracies are, each on test images in the mix of classes that the client retains."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quickdrop_bench.data.requests import retain_part
from quickdrop_bench.evaluation.client_accuracy import accuracies_of
from quickdrop_bench.evaluation.metric import METRICS, Evaluated, Number, metric

__all__ = ["client_fairness", "fairness_angle"]


def fairness_angle(accuracies: Sequence[float]) -> float:
    """Angle between the clients' accuracies a and equal ones, arccos(⟨a, 1⟩ / (‖a‖ √N)), in [0, π/2) radians.

    Its tangent is the deviation ÷ the mean, which is exact near 0, where the arccosine is not. NaN if all are 0.
    """
    import numpy as np

    mean = float(np.mean(accuracies))
    return math.atan2(float(np.std(accuracies)), mean) if mean else math.nan


@METRICS.register("client-fairness")
@metric(
    {
        "client_accuracy_mean": Number(better="higher", oracle=True),
        "client_accuracy_p10": Number(better="higher", oracle=True),
        "client_accuracy_angle": Number("radians", better="lower", oracle=True),
    },
    {"fl-training", "total"},
    on_demand=True,
)
def client_fairness(model: Evaluated, stage: str) -> dict[str, float]:
    """Accuracy in each client's mix of classes: mean, 10th percentile, angle to equal accuracies."""
    import numpy as np

    retained = (retain_part(data, i, model.forgotten).own_labels() for i, data in model.clients.items())
    clients = [labels.bincount(minlength=model.classes).tolist() for labels in retained]
    own = accuracies_of(model.on_test.accuracy, clients)
    if not own:
        return {}
    return {
        "client_accuracy_mean": float(np.mean(own)),
        "client_accuracy_p10": float(np.percentile(own, 10)),
        "client_accuracy_angle": fairness_angle(own),
    }

"""Accuracy as the clients see it: on test images in the mix of classes that a client retains.

No client has test images of its own, so the accuracy by class is weighted by the client's retained training images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quickdrop_bench.data.requests import retain_part
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.evaluation.metric import METRICS, Evaluated, Number, metric
from quickdrop_bench.evaluation.outputs import holding


def accuracies_of(by_class: Sequence[float], clients: Sequence[Sequence[int]]) -> list[float]:
    """One accuracy per client that has images of tested classes, in [0, 1]; the others are left out.

    Args:
        by_class: accuracy on the test images of each class; NaN without any, and then the class counts for nobody.
        clients: images per class that each client retains.
    """
    tested = [c for c, accuracy in enumerate(by_class) if not math.isnan(accuracy)]
    sizes = [sum(counts[c] for c in tested) for counts in clients]
    right = [sum(counts[c] * by_class[c] for c in tested) for counts in clients]
    return [hits / size for hits, size in zip(right, sizes, strict=True) if size]


@METRICS.register("client-accuracy")
@metric(
    {
        "worst_client_accuracy": Number(better="higher", oracle=True),
        "client_accuracy_std": Number(better="lower", oracle=True),
        "worst_client_drop": Number(better="lower", floor=True),
    },
    {"fl-training", "total"},
    needs_oracle=True,
)
def client_accuracy(model: Evaluated, stage: str) -> dict[str, float]:
    """Accuracy in each client's mix of classes: lowest, deviation, largest drop below the retrained model."""
    retained = (retain_part(data, i, model.forgotten).own_labels() for i, data in model.clients.items())
    clients = [labels.bincount(minlength=model.classes).tolist() for labels in retained]
    own = accuracies_of(model.on_test.accuracy, clients)
    if not own:
        return {}
    mean = sum(own) / len(own)
    found = {
        "worst_client_accuracy": min(own),
        "client_accuracy_std": (sum((a - mean) ** 2 for a in own) / len(own)) ** 0.5,
    }
    if model.oracle is not None:
        with holding(model.model, model.oracle):
            retrained = class_accuracy(model.model, model.test, model.classes).accuracy
        found["worst_client_drop"] = max(r - a for r, a in zip(accuracies_of(retrained, clients), own, strict=True))
    return found

"""Accuracy on the F-Set and on the R-Set: which images these are.

Class requests: the test images of the class, and those of all classes that are not forgotten (paper §4.1). Client
requests: the clients' own training images, as no test data belong to a client, and the whole test set without
forgotten classes; beside them the other clients' training images. Sample requests: these training images, and likewise
the whole test set; beside them all other training images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quickdrop_bench.data.requests import UnlearningRequest, forgotten_classes, retain_part
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.evaluation.metric import METRICS, SERVED, STAGES, Evaluated, Number, metric

if TYPE_CHECKING:
    from quickdrop_bench.data.labelled import LabelledSet


@METRICS.register("accuracy")
@metric(
    {
        "r_set_accuracy": Number(better="higher", oracle=True),
        "f_set_accuracy": Number(better="lower", oracle=True),
        "others_training_accuracy": Number(better="higher", oracle=True),
        "test_accuracy": Number(better="higher"),
    },
    {*STAGES, SERVED},
)
def accuracy(model: Evaluated, stage: str) -> dict[str, float]:
    """Top-1 accuracy on the F-Set and on the R-Set."""
    found = {"r_set_accuracy": model.on_test.without(forgotten_classes(model.forgotten))}
    if model.about:
        found["f_set_accuracy"] = _on_f_set(model)
    if stage == SERVED:
        return {"test_accuracy": model.on_test.without(()), **found}
    if not model.by_class:
        found["others_training_accuracy"] = model.accuracy_on(_others(model))
    return found


def _on_f_set(model: Evaluated) -> float:
    """Of all images of the F-Set, classes', clients' and samples together, the share that is classified right."""
    classes = forgotten_classes(model.about)
    parts = [(model.on_test, classes)]
    owned = [r for r in model.about if r.level != "class"]
    if owned:
        from quickdrop_bench.data.labelled import pool

        data = pool(*(_owned(data, i, owned) for i, data in model.clients.items()))
        parts.append((class_accuracy(model.model, data, model.classes), set(range(model.classes))))
    images = sum(part.counts[c] for part, chosen in parts for c in chosen)
    correct = sum(part.confusion[c][c] for part, chosen in parts for c in chosen)
    return correct / images if images else math.nan


def _owned(data: LabelledSet, client: int, requests: Sequence[UnlearningRequest]) -> LabelledSet:
    """What one or more of the requests forget of a client's data, each image once."""
    import torch

    left = retain_part(data, client, requests)
    return data.subset(torch.nonzero(~torch.isin(data.rows, left.rows)).flatten())


def _others(model: Evaluated) -> LabelledSet:
    """Training images that no request for clients or samples is about."""
    from quickdrop_bench.data.labelled import pool

    owned = [request for request in model.about if request.level != "class"]
    return pool(*(retain_part(data, i, owned) for i, data in model.clients.items()))

"""Whether a stage has destroyed the model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from quickdrop_bench.data.requests import forgotten_classes
from quickdrop_bench.evaluation.accuracy import ClassAccuracy
from quickdrop_bench.evaluation.metric import METRICS, STAGES, Evaluated, Number, metric

if TYPE_CHECKING:
    from torch import Tensor

MARGIN = 0.01
"""Accuracy above chance up to which a model counts as being at chance."""

GROWTH = 10.0
"""Growth of the norm of all weights from which a model counts as collapsed."""


@METRICS.register("collapse")
@metric({"collapsed": Number("flag", better="lower")}, STAGES)
def collapse(model: Evaluated, stage: str) -> dict[str, float]:
    """Whether a stage has destroyed the model: 1 if it is at chance, or its weights exploded."""
    gone = forgotten_classes(model.forgotten)
    return {"collapsed": float(is_collapsed(model.on_test, gone, model.state, model.original))}


def is_collapsed(
    on_test: ClassAccuracy, forgotten: Collection[int], state: Mapping[str, Tensor], original: Mapping[str, Tensor]
) -> bool:
    """Whether a model is at chance on the retained classes, or its weights grew more than tenfold.

    Its accuracy on them is the plain mean over the classes, so that a model with the same answer for every image is at
    1/(C − number of forgotten), or at 0 if it names a forgotten class, however many images each class has. A guess at
    random is at 1/C, which is less. Where a single class is retained, naming it always is right, so chance is 1/C.

    Args:
        on_test: how the model does on the test images.
        forgotten: classes that are to be forgotten.
        state: its parameters by name.
        original: the parameters before any request.
    """
    found = [a for c, a in enumerate(on_test.accuracy) if c not in forgotten and not math.isnan(a)]
    chance = 1 / (len(found) if len(found) > 1 else len(on_test.counts))
    at_chance = bool(found) and sum(found) / len(found) <= chance + MARGIN
    return at_chance or not _norm(state) <= GROWTH * _norm(original)


def _norm(state: Mapping[str, Tensor]) -> float:
    import torch

    return float(torch.stack([value.norm() for value in state.values()]).norm())

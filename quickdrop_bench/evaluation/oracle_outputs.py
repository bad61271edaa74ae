"""How alike a model's answers are to those of the retrained one: agreement, divergence, distance, Tug-of-War.

The sets are the F-Set, the R-Set and, at class level, where the F-Set is of test images, the forgotten training images.
Two retrainings with different seeds do not agree fully either: ``retrain-again`` is that noise floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from quickdrop_bench.data.requests import forgotten_classes
from quickdrop_bench.evaluation.metric import METRICS, Evaluated, Number, metric
from quickdrop_bench.evaluation.outputs import SCORED, Outputs, holding, outputs, shuffled

if TYPE_CHECKING:
    from torch import Tensor

    from quickdrop_bench.data.labelled import LabelledSet


def agreement(own: Tensor, other: Tensor) -> float:
    """Share of images with the same most likely class (completeness; Cao and Yang, 2015), in [0, 1].

    Args:
        own: (n, classes) float64 logits of a model on n ≥ 1 images, here and below.
        other: those of another model on the same images.
    """
    return float((own.argmax(1) == other.argmax(1)).double().mean())


def jensen_shannon(own: Tensor, other: Tensor) -> float:
    """Mean Jensen–Shannon divergence of the softmax, ½KL(p‖m) + ½KL(q‖m) with m their mean: nats, in [0, ln 2]."""
    import torch

    log_p, log_q = own.log_softmax(1), other.log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    both = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return max(0.0, float(both.sum(1).mean() / 2))


def activation_distance(own: Tensor, other: Tensor) -> float:
    """Mean Euclidean distance of the softmax, image by image, in [0, √2]."""
    return float((own.softmax(1) - other.softmax(1)).norm(dim=1).mean())


def tug_of_war(accuracies: Iterable[tuple[float, float]]) -> float:
    """The product of 1 − |own − retrained| over pairs of accuracies, in [0, 1]; 1 if all are equal (Zhao et al.)."""
    return math.prod(1 - abs(own - other) for own, other in accuracies)


COMPARED = {"agreement": agreement, "js": jensen_shannon, "activation_distance": activation_distance}

UNITS = {"agreement": ("fraction", "higher"), "js": ("nats", "lower"), "activation_distance": ("distance", "lower")}

PARTS = ("f_set", "r_set", "forgotten_training")


@METRICS.register("oracle-outputs")
@metric(
    {
        **{f"{part}_{name}": Number(*UNITS[name], floor=True) for part in PARTS for name in COMPARED},
        "tug_of_war": Number(better="higher", floor=True),
        **{f"tug_of_war_{name}": Number(better="higher", floor=True) for name in ("f_set", "r_set", "retained")},
    },
    {"total"},
    needs_oracle=True,
)
def oracle_outputs(model: Evaluated, stage: str) -> dict[str, float]:
    """How alike the model's answers are to the retrained model's: agreement, JS, activation distance, Tug-of-War."""
    if model.oracle is None:
        return {}
    parts = _parts(model)
    own = {name: _outputs(model, name, data) for name, data in parts.items()}
    with holding(model.model, model.oracle):
        other = {name: _outputs(model, name, data) for name, data in parts.items()}
    found = {
        f"{part}_{name}": _of_both(compare, own[part], other[part])
        for part in PARTS
        if part in parts
        for name, compare in COMPARED.items()
    }
    pairs = {part: (_accuracy(own[part]), _accuracy(other[part])) for part in ("f_set", "r_set", "retained")}
    found |= {f"tug_of_war_{part}": tug_of_war([pair]) for part, pair in pairs.items()}
    return {**found, "tug_of_war": tug_of_war(pairs.values())}


def _parts(model: Evaluated) -> Mapping[str, LabelledSet]:
    """What both models are asked."""
    forgotten = model.forget_data()
    parts = {
        "r_set": model.test.with_classes(forgotten_classes(model.forgotten), keep=False),
        "retained": model.retain_data(),
    }
    if not model.by_class:
        return {"f_set": forgotten, **parts}
    f_set = model.test.with_classes(forgotten_classes(model.about), keep=True)
    return {"f_set": f_set, "forgotten_training": forgotten, **parts}


def _outputs(model: Evaluated, name: str, data: LabelledSet) -> Outputs | None:
    """On all images of a set; of training images on :data:`SCORED` random ones at most, the same for every model."""
    chosen = shuffled(data, model.seed, name)
    return outputs(model.model, data, chosen if data.images is model.test.images else chosen[:SCORED])


def _of_both(compare: object, own: Outputs | None, other: Outputs | None) -> float:
    assert callable(compare)
    return float("nan") if own is None or other is None else compare(own[0], other[0])


def _accuracy(found: Outputs | None) -> float:
    return float("nan") if found is None else float((found[0].argmax(1) == found[1]).double().mean())

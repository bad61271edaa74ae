"""Membership inference without a fit: are forgotten images told from held-out images of the same classes by one number?

The area under the ROC curve is the chance that a forgotten training image has the higher score than a test image that
was never trained on, ties counted half. Test images weigh such that each class counts as much as among the forgotten
images; so the level of a class's loss, which unlearning raises for both, says nothing. 0.5 is what a model gives that
saw neither. More is memory; less singles the forgotten images out, which is a leak as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quickdrop_bench.evaluation.membership import FEATURES, SUFFIXES
from quickdrop_bench.evaluation.metric import METRICS, Evaluated, Number, metric
from quickdrop_bench.evaluation.outputs import SCORED, outputs, shuffled

if TYPE_CHECKING:
    from torch import Tensor


def weighted_auc(members: Tensor, others: Tensor, weights: Tensor) -> float:
    """P(member's score > other's) + ½ P(equal), in [0, 1]; NaN without members or without weight.

    Args:
        members: (n,) scores.
        others: (m,) scores.
        weights: (m,) ≥ 0, how much each of the others counts.
    """
    import torch

    if not len(members) or not weights.sum() > 0:
        return float("nan")
    order = others.argsort()
    below = torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])
    ends = [below[torch.searchsorted(others[order], members, right=right)] for right in (False, True)]
    return float((ends[0] + ends[1]).mean() / 2 / below[-1])


def class_weights(mix: Tensor, labels: Tensor) -> Tensor:
    """(m,) weights by which each class counts as much as among other samples: their number ÷ that of this set.

    Args:
        mix: (n,) int64, classes of the other samples.
        labels: (m,) int64, classes of this set.

    Returns:
        All zeros if this set lacks a class of the others.
    """
    import torch

    classes = int(torch.cat([mix, labels]).max()) + 1 if len(mix) + len(labels) else 0
    wanted, there = (values.bincount(minlength=classes).double() for values in (mix, labels))
    if bool(((wanted > 0) & (there == 0)).any()):
        return torch.zeros(len(labels), dtype=torch.float64)
    return (wanted / there.clamp(min=1))[labels]


@METRICS.register("membership-auc")
@metric(
    {f"f_set_mia_auc{suffix}": Number(oracle=True) for suffix in SUFFIXES.values()},
    {"fl-training", "total"},
)
def membership_auc(model: Evaluated, stage: str) -> dict[str, float]:
    """How well entropy and loss tell forgotten training images from test images of their classes: AUC, 0.5 is best."""
    names = {feature: f"f_set_mia_auc{suffix}" for feature, suffix in SUFFIXES.items()}
    data = model.forget_data()
    held_out = model.test.with_classes(data.own_labels().unique().tolist(), keep=True)
    forgotten = outputs(model.model, data, shuffled(data, model.seed, "forget")[:SCORED])
    strangers = outputs(model.model, held_out, shuffled(held_out, model.seed, "test"))
    if forgotten is None or strangers is None:
        return dict.fromkeys(names.values(), float("nan"))
    weights = class_weights(forgotten[1], strangers[1])

    def auc(feature: str) -> float:
        members, others = (-FEATURES[feature](*side).flatten() for side in (forgotten, strangers))
        return weighted_auc(members, others, weights)

    return {name: auc(feature) for feature, name in names.items()}

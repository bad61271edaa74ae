"""How many sample-gradients bring back what was forgotten: few where traces were left.

The forgotten training images, pooled, are trained on in batches of FL training's size, with the learning rate of the
presets' relearning stages, until the accuracy on the F-Set is at 90% of the original model's. FL training's own rate
tells nothing apart: on digits a single step brought back what every method, and the retrained model, did not know.
Where the retrained model is there by itself, as it is with most client requests, nothing can be told. It costs no
method anything, and the model is afterwards as it was.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.requests import forgotten_classes
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.evaluation.metric import METRICS, Evaluated, Number, metric
from quickdrop_bench.evaluation.outputs import SCORED, holding, plain, shuffled

if TYPE_CHECKING:
    from torch import nn

    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.federation.phase import Phase

SHARE = 0.9
"""Share of the original model's accuracy on the F-Set that is to be reached."""

LR = 0.01
"""Learning rate of relearning in all presets."""

CAP = 20
"""Passes over the forgotten images after which it ends."""

BETWEEN = 1.05
"""Accuracy is looked at when the steps have grown by this factor; up to the twentieth, after each."""


@METRICS.register("relearn-cost")
@metric(
    {
        "relearn_gradients": Number("sample-gradients", oracle=True),
        "relearn_capped": Number("flag", better="neutral"),
    },
    {"total"},
    needs_oracle=True,
    on_demand=True,
)
def relearn_cost(model: Evaluated, stage: str) -> dict[str, float]:
    """Sample-gradients on the forgotten images until the F-Set is at 90% of the original model's accuracy."""
    data = model.forget_data()
    if model.oracle is None or model.training is None or not len(data):
        return {}
    f_set = data.subset(shuffled(data, model.seed, "f_set")[:SCORED])
    if model.by_class:
        f_set = model.test.with_classes(forgotten_classes(model.about), keep=True)
    with holding(model.model, model.original):
        target = SHARE * model.accuracy_on(f_set)
    with holding(model.model, model.oracle):
        known = model.accuracy_on(f_set)
    if not known < target:
        return {}
    phase = replace(model.training, lr=LR)
    with holding(model.model, model.state):
        used = gradients_until(model.model, data, f_set, model.classes, target, phase, model.seed)
    return {"relearn_gradients": math.nan if used is None else used, "relearn_capped": float(used is None)}


def gradients_until(
    model: nn.Module,
    data: LabelledSet,
    f_set: LabelledSet,
    classes: int,
    target: float,
    training: Phase,
    seed: int,
) -> int | None:
    """Train a model in place by plain SGD until its accuracy on a set is at a target.

    Args:
        model: is trained.
        data: what it is trained on, not empty.
        f_set: what it is judged on.
        classes: number of classes.
        target: the accuracy to reach, in [0, 1].
        training: has the batch size and the learning rate.
        seed: draws the batches.

    Returns:
        Sample-gradients that it took; None if :data:`CAP` passes did not suffice, or the model is no longer finite.
    """
    import torch
    import torch.nn.functional as F

    from quickdrop_bench.federation.plan import batches

    parameters = [*plain(model).parameters()]
    steps = CAP * math.ceil(len(data) / training.batch_size)
    used, due = 0, 0.0
    drawn = batches(len(data), training.batch_size, steps, generator(seed, "relearn-cost"))
    for step, batch in enumerate(drawn):
        if step >= due:
            if _accuracy(model, f_set, classes) >= target:
                return used
            due = max(step + 1, step * BETWEEN)
        images, labels = data.take(batch.to(data.rows.device))
        loss = F.cross_entropy(plain(model)(images.to(parameters[0].dtype)), labels)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=training.lr)
        used += len(labels)
        if not all(bool(parameter.isfinite().all()) for parameter in parameters):
            return None
    return used if _accuracy(model, f_set, classes) >= target else None


def _accuracy(model: nn.Module, data: LabelledSet, classes: int) -> float:
    return class_accuracy(model, data, classes).without(())

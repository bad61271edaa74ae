"""How the tuned protocol judges a model: on the clients' training data, beside a model that never saw the forgotten.

Retraining would not take the accuracy on forgotten images to zero, unless nobody else holds their classes: it would
take it to what a model gives on images of these classes that it never saw. That is below its accuracy on training
images, so a model that has not forgotten looks as one that has if it is compared with retained images, which it did
see. And it is not the accuracy of the model before the request on any images, as one that never saw the forgotten
knows the classes less that they were many of.

No image is at hand that the federation's model never saw, except test images, which must not decide anything, and a
share held back from the federation's own training would change every method's model. So a stand-in is trained as the
federation was, without the forgotten data and without a share of the retained images, and judged on that share, each
class weighing as much as among the forgotten images. It costs one training for all methods, and none for a class that
is forgotten everywhere: no model that never saw a class names it, so its baseline is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from quickdrop_bench.core.cost import Clock, Cost
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.labelled import LabelledSet, pool
from quickdrop_bench.evaluation.accuracy import ClassAccuracy, class_accuracy
from quickdrop_bench.federation.ranks import on_first
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods import Context

SEARCH_IMAGES = 10_000
"""Most training images on which forgetting and retaining are judged, each drawn at random."""

HELD_OUT = 0.2
"""Share of each class's retained images that the stand-in does not see: with fewer the baseline is a matter of chance,
with more the stand-in has less to learn from than retraining."""


@dataclass(frozen=True)
class Judgement:
    """How a model does on the clients' training data.

    Attributes:
        excess: accuracy on forgotten images minus the baseline, in [−1, 1].
        retain: accuracy on retained images, in [0, 1].
    """

    excess: float
    retain: float


@dataclass(frozen=True)
class Baseline:
    """What a model gives that never saw the forgotten images.

    Attributes:
        accuracy: on images of their classes, in the same shares, in [0, 1].
        cost: of finding out.
    """

    accuracy: float
    cost: Cost


class Judge:
    """Judges states on samples of the clients' training data.

    Args:
        context: the request on a trained federation.
        classes: number of classes.
    """

    def __init__(self, context: Context, classes: int) -> None:
        self._context = context
        self._classes = classes
        self._forget = _sample(context, context.forget_data(), "forget")
        self._retain = _sample(context, context.retain_data(), "retain")

    def __call__(self, state: State) -> tuple[Judgement, Cost]:
        """How a state does, and what judging it costs."""
        (forgotten, retained), cost = self._accuracies(state, self._forget, self._retain)
        # Nothing left to retain is nothing lost.
        kept = retained.without(()) if len(self._retain) else 1.0
        return Judgement(forgotten.without(()) - self.baseline.accuracy, kept), cost

    @cached_property
    def baseline(self) -> Baseline:
        """Found when first asked for."""
        forgotten, retain = self._forget.own_labels().cpu(), self._context.retain_data()
        if not torch.isin(forgotten, pool(*retain.values()).own_labels().cpu()).any():
            return Baseline(0.0, Cost())
        rest, held_out = _divided(retain, self._context.seed)
        initial = self._context.federation.fresh_state(self._context.seed, "stand-in", "init")
        stand_in = self._context.run(initial, rest, replace(self._context.training, name="stand-in"))
        (accuracy,), cost = self._accuracies(stand_in.state, held_out)
        return Baseline(_expected(forgotten, accuracy), stand_in.cost + cost)

    def _accuracies(self, state: State, *sets: LabelledSet) -> tuple[list[ClassAccuracy], Cost]:
        """As the first process finds them: settings are to be chosen alike in all."""
        federation = self._context.federation

        def evaluate() -> tuple[list[ClassAccuracy], Cost]:
            federation.load(state)
            clock = Clock(federation.fabric.device)
            with clock.running():
                found = [class_accuracy(federation.model, data, self._classes) for data in sets]
            return found, clock.cost + Cost(sample_forwards=sum(map(len, sets)))

        return on_first(federation.fabric, evaluate)


def _divided(retain: Mapping[int, LabelledSet], seed: int) -> tuple[dict[int, LabelledSet], LabelledSet]:
    """What the stand-in is trained on, by client, and what it never sees: a share of each class, at least one image."""
    everything = pool(*retain.values())
    order = torch.randperm(len(everything), generator=generator(seed, "search", "held-out"))
    labels = everything.own_labels().cpu()[order]
    by_class = [order[labels == c] for c in labels.unique()]
    held_out = everything.subset(torch.cat([own[: math.ceil(HELD_OUT * len(own))] for own in by_class]))
    return {
        i: z.subset(torch.nonzero(~torch.isin(z.rows, held_out.rows)).flatten()) for i, z in retain.items()
    }, held_out


def _expected(forgotten: torch.Tensor, found: ClassAccuracy) -> float:
    """Accuracy by class, weighted as the classes of the forgotten images, (n,); one without images counts zero."""
    known = [found.accuracy[c] if found.counts[c] else 0.0 for c in forgotten.tolist()]
    return sum(known) / len(known)


def _sample(context: Context, parts: Mapping[int, LabelledSet], name: str) -> LabelledSet:
    """At most :data:`SEARCH_IMAGES` of all clients' images."""
    together = pool(*parts.values())
    stream = generator(context.seed, "search", name)
    return together.subset(torch.randperm(len(together), generator=stream)[:SEARCH_IMAGES])

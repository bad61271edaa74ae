"""The settings that a method's stages run with: the preset's, the paper's letter, or found by one search for all.

The tuned protocol tries what each method declares in ``search`` and judges it on the clients' own training data:
test data decide nothing. A request counts as served if the model does no better on the forgotten images than on
retained images of the same classes (a class that nobody retains counts zero). Of the settings that serve it, those
whose accuracy on retained data is within :data:`TOLERANCE` of the best remain, and the one with the least compute
wins. The cost of the search is stated apart; it is not part of a request's cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import torch

from quickdrop_bench.cost import Cost
from quickdrop_bench.data.labelled import LabelledSet, pool
from quickdrop_bench.evaluation.accuracy import ClassAccuracy, class_accuracy
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.seeding import generator

__all__ = ["SEARCH_IMAGES", "TOLERANCE", "Judgement", "Tuned", "as_in_the_paper", "tune"]

TOLERANCE = 0.01
"""Accuracies this close count as equal."""

SEARCH_IMAGES = 10_000
"""Most training images on which forgetting and retaining are judged, each drawn at random."""

FINALISTS = 3
"""Unlearning settings that are followed through recovery."""


@dataclass(frozen=True)
class Judgement:
    """How a model does on the clients' training data.

    Attributes:
        excess: accuracy on forgotten images minus that on retained images of the same classes; served if at most
            :data:`TOLERANCE`.
        retain: accuracy on retained images, in [0, 1].
    """

    excess: float
    retain: float


@dataclass(frozen=True)
class Tuned:
    """The outcome of a search: the method with the chosen settings, what was chosen, and what the search cost."""

    method: Method
    chosen: Mapping[str, Any]
    cost: Cost
    tried: int


@dataclass(frozen=True)
class _Trial:
    changes: Mapping[str, Any]
    state: State
    cost: Cost
    judgement: Judgement


def as_in_the_paper(method: Method) -> Method:
    """T local steps in every stage and no bound on ascent, as Algorithm 1 has it."""
    literal = {f.name: None for f in fields(method) if f.name.endswith(("_local_steps", "_stop_loss"))}  # type: ignore[arg-type]
    return replace(method, **literal)  # type: ignore[type-var]


def tune(context: Context, method: Method, classes: int) -> Tuned:
    """Search a method's settings for a request.

    Args:
        context: the request on a trained federation.
        method: settings that the search leaves alone.
        classes: number of classes.
    """
    judge = _judge(context, classes)
    steps = context.training.local_steps
    spent, tried = Cost(), 0
    unlearned: list[_Trial] = []
    for changes in _candidates(method.search.get("unlearning", {}), steps):
        result = _with(method, changes).unlearn(context)
        spent, tried = spent + result.cost, tried + 1
        if not result.diverged:
            unlearned.append(_Trial(changes, result.state, result.cost, judge(result.state)))
    finished: list[_Trial] = []
    for first in _best(unlearned)[:FINALISTS]:
        for changes in _candidates(method.search.get("recovery", {}), steps):
            recovered = _with(method, {**first.changes, **changes}).recover(context, first.state)
            if recovered is None:
                finished.append(first)
                continue
            spent, tried = spent + recovered.cost, tried + 1
            cost = first.cost + recovered.cost
            finished.append(_Trial({**first.changes, **changes}, recovered.state, cost, judge(recovered.state)))
    chosen = min(_near_best(finished), key=lambda t: t.cost.gradient_equivalents).changes if finished else {}
    return Tuned(_with(method, chosen), chosen, spent, tried)


def _with(method: Method, changes: Mapping[str, Any]) -> Method:
    return replace(method, **changes)  # type: ignore[type-var]


def _candidates(space: Mapping[str, tuple[Any, ...]], local_steps: int) -> Iterator[dict[str, Any]]:
    """Every combination, local steps capped at T; one empty combination without a space."""
    values = [
        sorted({min(v, local_steps) for v in choices}) if name.endswith("_local_steps") else choices
        for name, choices in space.items()
    ]
    for combination in product(*values):
        yield dict(zip(space, combination, strict=True))


def _served(trials: Sequence[_Trial]) -> list[_Trial]:
    """Those that forget; where none does, those that come closest."""
    least = min((t.judgement.excess for t in trials), default=0.0)
    bound = TOLERANCE if least <= TOLERANCE else least + TOLERANCE
    return [t for t in trials if t.judgement.excess <= bound]


def _best(trials: Sequence[_Trial]) -> list[_Trial]:
    """Those that forget, by what they retain."""
    return sorted(_served(trials), key=lambda t: (-t.judgement.retain, t.cost.gradient_equivalents))


def _near_best(trials: Sequence[_Trial]) -> list[_Trial]:
    served = _best(trials)
    return [t for t in served if t.judgement.retain >= served[0].judgement.retain - TOLERANCE]


def _judge(context: Context, classes: int) -> Callable[[State], Judgement]:
    forget, retain = (
        _sample(context, data, name)
        for name, data in (("forget", context.forget_data()), ("retain", context.retain_data()))
    )
    model = context.federation.model

    def judge(state: State) -> Judgement:
        context.federation.load(state)
        forgotten, retained = (class_accuracy(model, data, classes) for data in (forget, retain))
        return Judgement(forgotten.without(()) - _expected(forgotten, retained), retained.without(()))

    return judge


def _expected(forgotten: ClassAccuracy, retained: ClassAccuracy) -> float:
    """Accuracy on retained images, weighted by the classes of the forgotten ones."""
    total = sum(forgotten.counts)
    pairs = zip(forgotten.counts, retained.accuracy, retained.counts, strict=True)
    return sum(n * accuracy for n, accuracy, kept in pairs if kept) / total if total else 0.0


def _sample(context: Context, parts: Mapping[int, LabelledSet], name: str) -> LabelledSet:
    """At most :data:`SEARCH_IMAGES` of all clients' images."""
    together = pool(*parts.values())
    stream = generator(context.seed, "search", name)
    return together.subset(torch.randperm(len(together), generator=stream)[:SEARCH_IMAGES])

"""The settings that a method's stages run with: the preset's, the paper's letter, or found by one search for all.

The paper's letter (``letter-steps``, ``letter-passes``) is what each method's fields are by default, which are the
paper's values, and T = 50 in every stage, read as local steps or as passes over the client's set. What a preset says of
a method has no part in it; what the user says of it has.

The tuned protocol tries what each method declares in ``search`` and judges it on the clients' own training data:
test data decide nothing. A request counts as served if the model does no better on the forgotten images than on
retained images of the same classes (a class that nobody retains counts zero). Of the settings that serve it, those
whose accuracy on retained data is within :data:`TOLERANCE` of the best remain, and the one with the least compute
wins. At most :data:`FINALISTS` unlearning settings are followed through recovery, which may do the forgetting: first
those that serve the request at once, by what they retain, then those that come closest. The cost of the search,
judging included, is stated apart; it is not part of a request's cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import torch

from quickdrop_bench.cost import Clock, Cost
from quickdrop_bench.data.labelled import LabelledSet, pool
from quickdrop_bench.evaluation.accuracy import ClassAccuracy, class_accuracy
from quickdrop_bench.federation.local import Phase
from quickdrop_bench.federation.ranks import on_first
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.seeding import generator

__all__ = ["SEARCH_IMAGES", "TOLERANCE", "Judgement", "Tuned", "by_the_letter", "tune"]

LETTER_T = 50
"""T of the paper (§4.1)."""

TOLERANCE = 0.01
"""Accuracies this close count as equal."""

SEARCH_IMAGES = 10_000
"""Most training images on which forgetting and retaining are judged, each drawn at random."""

FINALISTS = 4
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
    """The outcome of a search.

    Attributes:
        method: with the chosen settings.
        chosen: those settings by field.
        cost: of the search, judging included.
        trials: every setting tried, with ``stage``, ``excess``, ``retain`` and ``gradient_equivalents`` of the
            request up to there.
    """

    method: Method
    chosen: Mapping[str, Any]
    cost: Cost
    trials: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class _Trial:
    changes: Mapping[str, Any]
    state: State
    cost: Cost
    judgement: Judgement

    def line(self, stage: str) -> dict[str, Any]:
        """For people, without the state."""
        figures = {"excess": self.judgement.excess, "retain": self.judgement.retain}
        return {"stage": stage, **self.changes, **figures, "gradient_equivalents": self.cost.gradient_equivalents}


def by_the_letter(training: Phase, protocol: str) -> Phase:
    """The phase whose T the stages take where they name none: T = 50 in the paper's letter, else the training's.

    η and |B| stay those of the training, which the oracle repeats.
    """
    match protocol:
        case "letter-steps":
            return replace(training, local_steps=LETTER_T)
        case "letter-passes":
            return replace(training, local_epochs=LETTER_T)
        case _:
            return training


def tune(context: Context, method: Method, classes: int) -> Tuned:
    """Search a method's settings for a request.

    Args:
        context: the request on a trained federation.
        method: settings that the search leaves alone.
        classes: number of classes.

    Returns:
        The method unchanged, at no cost, if it declares nothing to search.
    """
    if not method.search:
        return Tuned(method, {}, Cost())
    epochs = [f.name for f in fields(method) if f.name.endswith("_local_epochs")]  # type: ignore[arg-type]
    method = _with(method, dict.fromkeys(epochs))  # they would override the steps that are searched
    judge = _Judge(context, classes)
    steps = context.training.local_steps
    spent: list[Cost] = []
    unlearned: list[_Trial] = []
    for changes in _candidates(_unlearning_space(method), steps):
        result = _with(method, changes).unlearn(context)
        spent.append(result.cost)
        if not result.diverged:
            unlearned.append(_Trial(changes, result.state, result.cost, judge(result.state)))
    finished: list[_Trial] = []
    for first in _finalists(unlearned):
        for changes in _candidates(method.search.get("recovery", {}), steps):
            recovered = _with(method, {**first.changes, **changes}).recover(context, first.state)
            if recovered is None:
                finished.append(first)
                break
            spent.append(recovered.cost)
            cost = first.cost + recovered.cost
            finished.append(_Trial({**first.changes, **changes}, recovered.state, cost, judge(recovered.state)))
    chosen = _winner(finished)
    after_recovery = [t for t in finished if not any(t is first for first in unlearned)]
    trials = [t.line("unlearning") for t in unlearned] + [t.line("recovery") for t in after_recovery]
    return Tuned(_with(method, chosen), chosen, sum(spent, judge.cost), trials)


def _unlearning_space(method: Method) -> dict[str, tuple[Any, ...]]:
    """What is searched for the unlearning stage; reflection has no bound on the loss."""
    space = dict(method.search.get("unlearning", {}))
    if getattr(method, "ascent", None) == "reflection":
        space.pop("unlearn_stop_loss", None)
    return space


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


def _finalists(trials: Sequence[_Trial]) -> list[_Trial]:
    """Those to follow through recovery, each outcome once."""

    def rank(trial: _Trial) -> tuple[float, float, float]:
        excess = max(trial.judgement.excess - TOLERANCE, 0.0)
        return excess, -trial.judgement.retain, trial.cost.gradient_equivalents

    distinct = {(t.judgement, t.cost.sample_gradients): t for t in sorted(trials, key=rank, reverse=True)}
    return sorted(distinct.values(), key=rank)[:FINALISTS]


def _winner(trials: Sequence[_Trial]) -> Mapping[str, Any]:
    """The settings with the least compute among those that forget and retain about as much as the best."""
    served = _served(trials)
    best = max((t.judgement.retain for t in served), default=0.0)
    near = [t for t in served if t.judgement.retain >= best - TOLERANCE]
    return min(near, key=lambda t: t.cost.gradient_equivalents).changes if near else {}


class _Judge:
    """Judges states on samples of the clients' training data and counts what that costs."""

    def __init__(self, context: Context, classes: int) -> None:
        self._federation = context.federation
        self._classes = classes
        self._forget = _sample(context, context.forget_data(), "forget")
        self._retain = _sample(context, context.retain_data(), "retain")
        self.cost = Cost()

    def __call__(self, state: State) -> Judgement:
        """How a state does, as the first process finds it: settings are to be chosen alike in all."""
        self.cost, judgement = on_first(self._federation.fabric, lambda: self._judge(state))
        return judgement

    def _judge(self, state: State) -> tuple[Cost, Judgement]:
        self._federation.load(state)
        clock = Clock(self._federation.fabric.device)
        with clock.running():
            forgotten, retained = (
                class_accuracy(self._federation.model, data, self._classes) for data in (self._forget, self._retain)
            )
        cost = clock.cost + Cost(sample_forwards=len(self._forget) + len(self._retain))
        kept = retained.without(())
        # Nothing left to retain is nothing lost.
        return self.cost + cost, Judgement(
            forgotten.without(()) - _expected(forgotten, retained), kept if len(self._retain) else 1.0
        )


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

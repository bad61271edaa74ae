"""The settings that a method's stages run with: the preset's, the paper's letter, or found by one search for all.

The paper's letter (``letter-steps``, ``letter-passes``) is what each method's fields are by default, which are the
paper's values, and T = 50 in every stage, read as local steps or as passes over the client's set. What a preset says of
a method has no part in it; what the user says of it has.

The tuned protocol tries what each method declares in ``search`` and judges it on the clients' own training data:
test data decide nothing. A request counts as served if the model does no better on the forgotten images than one that
never saw them (:mod:`~quickdrop_bench.harness.judging`), as the model before the request rarely does. Of the settings
that serve it, those remain that come closest to that accuracy, for a model that does worse has done more than forget,
and to the best in what they retain: both gaps together are within :data:`TOLERANCE` of the least. Of these the one with
the least compute wins. At most :data:`FINALISTS` unlearning settings are followed through recovery, which may do the
forgetting: first those that serve the request at once, by these gaps, then those that come closest. The cost of the
search, judging included, is stated apart; it is not part of a request's cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.judging import Judge, Judgement
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.methods.registry import StageResult

LETTER_T = 50
"""T of the paper (§4.1)."""

TOLERANCE = 0.01
"""Accuracies this close count as equal."""

FINALISTS = 4
"""Unlearning settings that are followed through recovery."""

UNTOUCHED = "untouched"
"""The stage of the trial that does nothing, which is listed to be compared with and never chosen."""


@dataclass(frozen=True)
class Tuned:
    """The outcome of a search.

    Attributes:
        method: with the chosen settings.
        chosen: those settings by field.
        cost: of the search, judging included.
        trials: the model before the request, then every setting tried, with ``stage``, ``forget`` and ``retain``
            (accuracies), ``excess`` and ``gradient_equivalents`` of the request up to there, and ``front``: whether it
            is a whole request that no other beats in compute, in nearness to the baseline and in what it retains.
    """

    method: Method
    chosen: Mapping[str, Any]
    cost: Cost
    trials: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, eq=False)
class _Trial:
    changes: Mapping[str, Any]
    state: State
    cost: Cost
    judgement: Judgement

    @property
    def loss(self) -> float:
        """How far off it is from a model that never saw the forgotten images and retains everything, in [0, 2]."""
        return abs(self.judgement.excess) + 1 - self.judgement.retain

    @property
    def gaps(self) -> tuple[float, float, float]:
        """Compute, distance from the baseline, and accuracy lost on retained images: the less, the better."""
        return self.cost.gradient_equivalents, abs(self.judgement.excess), 1 - self.judgement.retain

    def line(self, stage: str, baseline: float) -> dict[str, Any]:
        """For people, without the state."""
        excess, retain = self.judgement.excess, self.judgement.retain
        figures = {"forget": baseline + excess, "excess": excess, "retain": retain}
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


def tune(context: Context, method: Method, judge: Judge) -> Tuned:
    """Search a method's settings for a request.

    Args:
        context: the request on a trained federation.
        method: settings that the search leaves alone.
        judge: of that request; its baseline's cost counts for every method that is searched.

    Returns:
        The method unchanged, at no cost, if it declares nothing to search.
    """
    if not method.search:
        return Tuned(method, {}, Cost())
    epochs = [f.name for f in fields(method) if f.name.endswith("_local_epochs")]  # type: ignore[arg-type]
    method = _with(method, dict.fromkeys(epochs))  # they would override the steps that are searched
    steps = context.training.local_steps
    spent = [judge.baseline.cost]

    def judged(changes: Mapping[str, Any], result: StageResult, before: Cost) -> list[_Trial]:
        """The trial; none if it diverged."""
        spent.append(result.cost)
        if result.diverged:
            return []
        judgement, cost = judge(result.state)
        spent.append(cost)
        return [_Trial(changes, result.state, before + result.cost, judgement)]

    untouched = judged({}, StageResult(context.state, Cost()), Cost())
    unlearned: list[_Trial] = []
    for changes in _candidates(_unlearning_space(method), steps):
        unlearned += judged(changes, _with(method, changes).unlearn(context), Cost())
    recovered: list[_Trial] = []
    has_recovery = True
    for first in _finalists(unlearned):
        for changes in _candidates(method.search.get("recovery", {}), steps):
            both = {**first.changes, **changes}
            result = _with(method, both).recover(context, first.state)
            has_recovery = result is not None
            recovered += judged(both, result, first.cost) if result else []
    whole = recovered if has_recovery else unlearned
    chosen, front = _winner(whole), _front(whole)
    by_stage = {UNTOUCHED: untouched, "unlearning": unlearned, "recovery": recovered}
    trials = [
        {**trial.line(stage, judge.baseline.accuracy), "front": trial in front}
        for stage, tried in by_stage.items()
        for trial in tried
    ]
    return Tuned(_with(method, chosen), chosen, sum(spent, Cost()), trials)


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
        return max(trial.judgement.excess - TOLERANCE, 0.0), trial.loss, trial.cost.gradient_equivalents

    distinct = {(t.judgement, t.cost.sample_gradients): t for t in sorted(trials, key=rank, reverse=True)}
    return sorted(distinct.values(), key=rank)[:FINALISTS]


def _winner(trials: Sequence[_Trial]) -> Mapping[str, Any]:
    """The settings with the least compute among those that forget and whose loss is about the least."""
    served = _served(trials)
    least = min((t.loss for t in served), default=0.0)
    near = [t for t in served if t.loss <= least + TOLERANCE]
    return min(near, key=lambda t: t.cost.gradient_equivalents).changes if near else {}


def _front(trials: Sequence[_Trial]) -> set[_Trial]:
    """Those that no other is at least as good as in every respect, and better in one."""

    def is_beaten(trial: _Trial) -> bool:
        return any(
            other.gaps != trial.gaps and all(a <= b for a, b in zip(other.gaps, trial.gaps, strict=True))
            for other in trials
        )

    return {trial for trial in trials if not is_beaten(trial)}

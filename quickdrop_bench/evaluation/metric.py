"""What a metric is, what it is given, and the registry of metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import getdoc, getfile
from pathlib import Path
from typing import TYPE_CHECKING

from quickdrop_bench.core.registry import Registry
from quickdrop_bench.data.requests import UnlearningRequest, forget_part, retain_part
from quickdrop_bench.evaluation.accuracy import ClassAccuracy, class_accuracy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quickdrop_bench.data.backdoor import Planted
    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.federation.phase import Phase

STAGES = frozenset({"fl-training", "unlearning", "recovery", "relearning", "total"})
"""The stages of rows; ``total`` is the model that the next request meets."""

PER_ROUND = "per-round"
"""A metric with this among its stages is measured after every round too, where a figure asks for that."""

SERVED = "served"
"""A metric with this among its stages is measured on model versions, by ``unlearn``, ``relearn`` and ``evaluate``."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model, and what it is judged on.

    Attributes:
        model: maps (B, C, H, W) to (B, classes) logits, on the data's device; it holds ``state`` while it is measured.
        state: its parameters by name.
        original: those of the model before any request.
        test: the test set.
        classes: number of classes.
        clients: D_i by client, the original training data.
        about: the requests whose data are the F-Set.
        forgotten: all that the model is not to know, which R-Set leaves out.
        seed: of the run.
        planted: the backdoor in the training data; None if there is none.
        groups: by client the (n,) group of each sample of D_i within its class; None for one group.
        oracle: parameters of the model that was retrained for the same request and seed, at stage ``total`` alone; None
            where that was not run.
        training: the phase of FL training; None where no run is measured.
    """

    model: nn.Module
    state: Mapping[str, Tensor]
    original: Mapping[str, Tensor]
    test: LabelledSet
    classes: int
    clients: Mapping[int, LabelledSet]
    about: Sequence[UnlearningRequest]
    forgotten: Sequence[UnlearningRequest]
    seed: int
    planted: Planted | None = None
    groups: Mapping[int, Tensor | None] = field(default_factory=dict)
    oracle: Mapping[str, Tensor] | None = None
    training: Phase | None = None

    def accuracy_on(self, data: LabelledSet) -> float:
        """Share of a set's images that the model, as it is now, classifies right; NaN without any."""
        return class_accuracy(self.model, data, self.classes).without(())

    @cached_property
    def on_test(self) -> ClassAccuracy:
        """How it classifies the test images; found once for all metrics."""
        return class_accuracy(self.model, self.test, self.classes)

    @property
    def by_class(self) -> bool:
        """Whether the F-Set is one of classes."""
        return all(request.level == "class" for request in self.about)

    def forget_data(self) -> LabelledSet:
        """Training images that ``about`` forgets, without what other requests forgot."""
        from quickdrop_bench.data.labelled import pool

        others = [request for request in self.forgotten if request not in self.about]
        left = {i: retain_part(data, i, others) for i, data in self.clients.items()}
        return pool(*(forget_part(data, i, request) for i, data in left.items() for request in self.about))

    def retain_data(self) -> LabelledSet:
        """All training images that are not forgotten."""
        from quickdrop_bench.data.labelled import pool

        return pool(*(retain_part(data, i, self.forgotten) for i, data in self.clients.items()))


@dataclass(frozen=True)
class Number:
    """What a metric's number is.

    Attributes:
        unit: ``fraction`` (in [0, 1], or a difference of two), ``flag`` (0 or 1), or a unit as people write it.
        better: ``higher``, ``lower`` or ``neutral``.
        oracle: whether the best value is the retrained model's rather than an extreme.
        floor: whether it compares with the retrained model, so that another retraining's value is as good as can be.
    """

    unit: str = "fraction"
    better: str = "neutral"
    oracle: bool = False
    floor: bool = False


@dataclass(frozen=True)
class Metric:
    """A metric, as :func:`metric` makes it from a function.

    Attributes:
        summary: one line for people.
        gives: its numbers by their names in rows, ``{c}`` standing for the index of a class.
        stages: where it is measured: some of :data:`STAGES`, :data:`PER_ROUND` and :data:`SERVED`.
        measure: of a model and a stage, the numbers by name; NaN where there is nothing to measure.
        source: the file that defines it; rows of another content are measured again, and no others.
        needs_oracle: whether some of its numbers take the retrained model, so that without it they are missing.
        on_demand: whether it is measured only for exhibits that show one of its numbers, because it takes long.
    """

    summary: str
    gives: Mapping[str, Number]
    stages: frozenset[str]
    measure: Callable[[Evaluated, str], Mapping[str, float]]
    source: Path
    needs_oracle: bool = False
    on_demand: bool = False


METRICS = Registry[Metric]("--metric", "quickdrop_bench.metrics", "quickdrop_bench.evaluation")


def metric(
    gives: Mapping[str, Number], stages: Collection[str], *, needs_oracle: bool = False, on_demand: bool = False
) -> Callable[[Callable[[Evaluated, str], Mapping[str, float]]], Metric]:
    """Make a function a :class:`Metric`; its docstring's first line is the summary."""

    def make(measure: Callable[[Evaluated, str], Mapping[str, float]]) -> Metric:
        summary = (getdoc(measure) or "").split("\n")[0]
        return Metric(summary, gives, frozenset(stages), measure, Path(getfile(measure)), needs_oracle, on_demand)

    return make


def measured(model: Evaluated, stage: str, names: Collection[str] | None = None) -> dict[str, dict[str, float]]:
    """What the metrics of a stage say of a model, by metric and name; of some metrics only, if ``names`` are given."""
    chosen = [name for name in METRICS if stage in METRICS[name].stages and (names is None or name in names)]
    return {name: dict(METRICS[name].measure(model, stage)) for name in chosen}

"""Retrain-Or: the oracle that trains again without the forget set (paper §2.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.core.errors import positive
from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search
from quickdrop_bench.methods.stages import Relearning

if TYPE_CHECKING:
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context
    from quickdrop_bench.methods.registry import StageResult


def retrained(context: Context, rounds: int | None) -> StageResult:
    """FedAvg from a fresh θ_0 on what is retained, for some rounds, or as many as the original model had."""
    initial = context.federation.fresh_state(context.seed, "retrain", "init")
    phase = replace(context.training, name="retraining", rounds=context.training.rounds if rounds is None else rounds)
    return context.run(initial, context.retain_data(), phase)


@METHODS.register("retrain-or")
@dataclass(frozen=True)
class Retrain(Relearning):
    """FedAvg from a fresh θ_0 on D without D_f, with the hyper-parameters of the original training.

    Attributes:
        rounds: rounds of training (Table 2: 30); null takes as many as the original model had.
    """

    title: ClassVar[str] = "Retrain-Or"
    color: ClassVar[str] = "#000000"
    order: ClassVar[int] = 100
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"retain-data"})
    summary: ClassVar[str] = "trains from scratch without the forget set: the oracle"
    search: ClassVar[Search] = {}

    rounds: int | None = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds is not None:
            positive("retrain-or.rounds", self.rounds, at_least=1)

    def unlearn(self, context: Context) -> StageResult:
        """Train from scratch; D_f is never read."""
        return retrained(context, self.rounds)

    def recover(self, context: Context, state: State) -> StageResult | None:
        """There is nothing to recover."""
        return None

    def storage(self, context: Context) -> Storage:
        """Nothing is stored."""
        return Storage()

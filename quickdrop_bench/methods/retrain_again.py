"""The oracle once more with another seed: how far two retrainings are apart is the noise floor of every comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.core.errors import positive
from quickdrop_bench.core.seeding import derive_seed
from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search
from quickdrop_bench.methods.retrain import retrained
from quickdrop_bench.methods.stages import Relearning

if TYPE_CHECKING:
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context
    from quickdrop_bench.methods.registry import StageResult


@METHODS.register("retrain-again")
@dataclass(frozen=True)
class RetrainAgain(Relearning):
    """Retrain-Or with another seed: another θ_0 and other batches on the same data.

    Attributes:
        rounds: rounds of training, to be those of retrain-or; null takes as many as the original model had.
    """

    title: ClassVar[str] = "Retrain-Or, other seed (control)"
    color: ClassVar[str] = "#555555"
    order: ClassVar[int] = 110
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"retain-data"})
    summary: ClassVar[str] = "control: the oracle with another seed, a noise floor"
    search: ClassVar[Search] = {}

    rounds: int | None = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds is not None:
            positive("retrain-again.rounds", self.rounds, at_least=1)

    def unlearn(self, context: Context) -> StageResult:
        """Train from scratch; D_f is never read."""
        return retrained(replace(context, seed=derive_seed(context.seed, "retrain-again")), self.rounds)

    def recover(self, context: Context, state: State) -> StageResult | None:
        """There is nothing to recover."""
        return None

    def storage(self, context: Context) -> Storage:
        """Nothing is stored."""
        return Storage()

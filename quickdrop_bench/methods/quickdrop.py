"""QuickDrop: Algorithm 1 on the synthetic sets that Algorithm 2 distilled during training (paper §3).

Training leaves each client i with S_i, ⌈n/s⌉ synthetic images for each class of n, that give the model the gradients
which its own images D_i would give (:mod:`quickdrop_bench.distillation.in_situ`, Algorithm 2, lines 12 to 16), and with
as many real samples A_i (§3.3.1). From then on S_i stands in for D_i: a request costs what so few images cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search
from quickdrop_bench.methods.small_sets import forget_sets, relearn_sets, retain_sets, stored
from quickdrop_bench.methods.stages import ASCENT_SEARCH, RECOVERY_SEARCH, Ascent, Recovery, Relearning

if TYPE_CHECKING:
    from quickdrop_bench.core.cost import Storage
    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context
    from quickdrop_bench.methods.registry import StageResult


@METHODS.register("quickdrop")
@dataclass(frozen=True)
class QuickDrop(Ascent, Recovery, Relearning):
    """Ascent on S_f, recovery on the rest of S mixed 1:1 with kept real samples.

    Attributes:
        augment: mix the kept real samples A into recovery (§3.3.1).
        augment_unlearning: mix them into unlearning too (the data sizes of Table 2 suggest it).
    """

    title: ClassVar[str] = "QuickDrop"
    color: ClassVar[str] = "#D55E00"
    order: ClassVar[int] = 700
    summary: ClassVar[str] = "ascent and recovery on tiny sets distilled during training"
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"synthetic-sets"})
    search: ClassVar[Search] = {"unlearning": ASCENT_SEARCH, "recovery": RECOVERY_SEARCH}

    augment: bool = True
    augment_unlearning: bool = False

    def unlearn(self, context: Context) -> StageResult:
        """Algorithm 1, lines 3 and 14: FedAvg(S_f, θ) by ascent (§3.4, step 3)."""
        return self.ascend(context, forget_sets(context, synthetic_sets(context), augment=self.augment_unlearning))

    def recover(self, context: Context, state: State) -> StageResult | None:
        """Algorithm 1, lines 4 and 16: FedAvg(S ∪ A without S_f ∪ A_f, θ) by descent (§3.4, step 4)."""
        data = retain_sets(context, synthetic_sets(context), augment=self.augment)
        return context.run(state, data, self.recovery(context.training))

    def relearn(self, context: Context, state: State) -> StageResult:
        """FedAvg(S_f, θ) by descent (§4.7)."""
        data = relearn_sets(context, synthetic_sets(context))
        return context.run(state, data, self.relearning(context.training))

    def storage(self, context: Context) -> Storage:
        """S and, if used, A, on the clients."""
        return stored(context, synthetic_sets(context), augment=self.augment or self.augment_unlearning)


def synthetic_sets(context: Context) -> dict[int, LabelledSet]:
    """The distilled S_i."""
    return {i: c.synthetic.as_labelled() for i, c in context.clients.items() if c.synthetic is not None}

"""The control that the paper lacks: QuickDrop's protocol on untouched real images, without distillation."""

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


@METHODS.register("random-subset")
@dataclass(frozen=True)
class RandomSubset(Ascent, Recovery, Relearning):
    """As QuickDrop, where S_i are the ⌈n/s⌉ real images per class that its synthetic set started from.

    Attributes:
        augment: mix the kept real samples A into recovery (§3.3.1).
        augment_unlearning: mix them into unlearning too (the data sizes of Table 2 suggest it).
    """

    title: ClassVar[str] = "Random subset (control)"
    color: ClassVar[str] = "#0072B2"
    order: ClassVar[int] = 600
    summary: ClassVar[str] = "as quickdrop, on random real images: the control"
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"real-subset"})
    search: ClassVar[Search] = {"unlearning": ASCENT_SEARCH, "recovery": RECOVERY_SEARCH}

    augment: bool = True
    augment_unlearning: bool = False

    def unlearn(self, context: Context) -> StageResult:
        """Ascent on S_f."""
        return self.ascend(context, forget_sets(context, kept_sets(context), augment=self.augment_unlearning))

    def recover(self, context: Context, state: State) -> StageResult | None:
        """Descent on S and A without everything forgotten."""
        data = retain_sets(context, kept_sets(context), augment=self.augment)
        return context.run(state, data, self.recovery(context.training))

    def relearn(self, context: Context, state: State) -> StageResult:
        """Descent on S_f (§4.7)."""
        data = relearn_sets(context, kept_sets(context))
        return context.run(state, data, self.relearning(context.training))

    def storage(self, context: Context) -> Storage:
        """S and, if used, A, on the clients."""
        return stored(context, kept_sets(context), augment=self.augment or self.augment_unlearning)


def kept_sets(context: Context) -> dict[int, LabelledSet]:
    """The kept real images, stored as float32 like QuickDrop's."""
    return {i: client.subset for i, client in context.clients.items()}

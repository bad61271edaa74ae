"""Ascent and recovery on the small set that each client kept; where that set comes from is left open."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.data.labelled import LabelledSet, concatenate
from quickdrop_bench.data.requests import retain_part
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods.base import LEVELS_ALL, Context, Search, StageResult
from quickdrop_bench.methods.stages import ASCENT_SEARCH, RECOVERY_SEARCH, Ascent, Recovery, Relearning

__all__ = ["SmallSets"]


@dataclass(frozen=True)
class SmallSets(Ascent, Recovery, Relearning, ABC):
    """Algorithm 1 on kept small sets S and kept real samples A; original data are never read.

    Attributes:
        augment: mix the kept real samples A into recovery (§3.3.1).
        augment_unlearning: mix them into unlearning too, as the data sizes of Table 2 suggest.
    """

    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    search: ClassVar[Search] = {"unlearning": ASCENT_SEARCH, "recovery": RECOVERY_SEARCH}

    augment: bool = True
    augment_unlearning: bool = False

    @abstractmethod
    def small_sets(self, context: Context) -> dict[int, LabelledSet]:
        """S_i by client."""

    def unlearn(self, context: Context) -> StageResult:
        """Ascent on S_f (§3.4, step 3): all holders of the class, or the one client."""
        data = self._forget(context, augment=self.augment_unlearning)
        return self.ascend(context, data)

    def recover(self, context: Context, state: State) -> StageResult | None:
        """Descent on (S ∪ A) without everything forgotten (§3.4, step 4), by all clients with data left."""
        data = {i: retain_part(s, i, context.forgotten) for i, s in self.small_sets(context).items()}
        if self.augment:
            for i, kept in data.items():
                data[i] = concatenate(kept, retain_part(context.clients[i].augmentation, i, context.forgotten))
        return context.run(state, data, self.recovery(context.training))

    def relearn(self, context: Context, state: State) -> StageResult:
        """Descent on S_f (§4.7)."""
        return context.run(state, self._forget(context, augment=False), self.relearning(context.training))

    def _forget(self, context: Context, *, augment: bool) -> dict[int, LabelledSet]:
        data = {i: context.forget_part(s, i) for i, s in self.small_sets(context).items()}
        if augment:
            for i, kept in data.items():
                data[i] = concatenate(kept, context.forget_part(context.clients[i].augmentation, i))
        return data

    def storage(self, context: Context) -> Storage:
        """Σ over clients of the float32 images of S_i and, if used, A_i."""
        sets = self.small_sets(context)
        total = sum(s.images.nbytes for s in sets.values())
        if self.augment or self.augment_unlearning:
            total += sum(context.clients[i].augmentation.images.nbytes for i in sets)
        return Storage(client_bytes=total)

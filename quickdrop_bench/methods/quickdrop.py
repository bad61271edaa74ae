"""QuickDrop: Algorithm 1 on the synthetic sets that Algorithm 2 distilled (paper §3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from quickdrop_bench.data.labelled import LabelledSet, concatenate
from quickdrop_bench.data.requests import forget_part, retain_part
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods.base import METHODS, Context, StageResult
from quickdrop_bench.methods.steps import AscentAndRecovery

__all__ = ["QuickDrop"]


@METHODS.register("quickdrop")
@dataclass(frozen=True)
class QuickDrop(AscentAndRecovery):
    """Ascent on S_f, recovery on the rest of S mixed 1:1 with kept real samples; original data are never read.

    Attributes:
        augment: mix the kept real samples A into recovery (§3.3.1).
    """

    levels: ClassVar[frozenset[str]] = frozenset({"class", "client"})
    can_relearn: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"synthetic-sets"})
    summary: ClassVar[str] = "gradient ascent and recovery on tiny synthetic sets distilled during training"

    augment: bool = True

    def unlearn(self, context: Context) -> StageResult:
        """Ascent on S_f (§3.4, step 3): all holders of the class, or the one client."""
        data = {i: forget_part(s, i, context.request) for i, s in _synthetic_sets(context)}
        return context.federation.run(context.state, data, self.ascent(context.training), context.seed)

    def recover(self, context: Context, state: State) -> StageResult | None:
        """Descent on (S ∪ A) without everything forgotten (§3.4, step 4), by all clients with data left."""
        data = {i: retain_part(s, i, context.forgotten) for i, s in _synthetic_sets(context)}
        if self.augment:
            for i, kept in data.items():
                if (extra := context.clients[i].augmentation) is not None:
                    data[i] = concatenate(kept, retain_part(extra, i, context.forgotten))
        return context.federation.run(state, data, self.recovery(context.training), context.seed)

    def storage_bytes(self, context: Context) -> int:
        """Σ over clients of the float32 images of S_i and, if used, A_i."""
        total = 0
        for client in context.clients.values():
            extra = client.augmentation.images.nbytes if self.augment and client.augmentation is not None else 0
            total += extra + (client.synthetic.images.nbytes if client.synthetic is not None else 0)
        return total


def _synthetic_sets(context: Context) -> Iterator[tuple[int, LabelledSet]]:
    for i, client in context.clients.items():
        if client.synthetic is not None:
            yield i, client.synthetic.as_labelled()

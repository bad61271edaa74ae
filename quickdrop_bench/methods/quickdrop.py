"""QuickDrop: Algorithm 1 on the synthetic sets that Algorithm 2 distilled (paper §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.methods.base import METHODS, Context
from quickdrop_bench.methods.small_sets import SmallSets

__all__ = ["QuickDrop"]


@METHODS.register("quickdrop")
@dataclass(frozen=True)
class QuickDrop(SmallSets):
    """Ascent on S_f, recovery on the rest of S mixed 1:1 with kept real samples."""

    needs: ClassVar[frozenset[str]] = frozenset({"synthetic-sets"})
    summary: ClassVar[str] = "gradient ascent and recovery on tiny synthetic sets distilled during training"

    def small_sets(self, context: Context) -> dict[int, LabelledSet]:
        """The distilled S_i."""
        return {i: c.synthetic.as_labelled() for i, c in context.clients.items() if c.synthetic is not None}

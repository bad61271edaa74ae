"""The control that the paper lacks: QuickDrop's protocol on untouched real images, without distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.methods.base import METHODS, Context
from quickdrop_bench.methods.small_sets import SmallSets

__all__ = ["RandomSubset"]


@METHODS.register("random-subset")
@dataclass(frozen=True)
class RandomSubset(SmallSets):
    """As QuickDrop, with the ⌈n/s⌉ real images per class and client that its synthetic set started from."""

    needs: ClassVar[frozenset[str]] = frozenset({"real-subset"})
    summary: ClassVar[str] = "as quickdrop, on random real images instead of distilled ones: the control"

    def small_sets(self, context: Context) -> dict[int, LabelledSet]:
        """The kept real images, stored as float32 like QuickDrop's."""
        return {i: client.subset for i, client in context.clients.items()}

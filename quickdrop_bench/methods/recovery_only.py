"""The second control: recovery alone, from the trained model, without unlearning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Cost, Storage
from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search, StageResult
from quickdrop_bench.methods.stages import RECOVERY_SEARCH, Recovery, Relearning

if TYPE_CHECKING:
    from quickdrop_bench.methods.context import Context


@METHODS.register("recovery-only")
@dataclass(frozen=True)
class RecoveryOnly(Recovery, Relearning):
    """Descent on what is retained, and nothing else: what a method's recovery would forget by itself."""

    title: ClassVar[str] = "Recovery only (control)"
    color: ClassVar[str] = "#666666"
    order: ClassVar[int] = 820
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"retain-data"})
    summary: ClassVar[str] = "control: recovery on the original rest, without unlearning"
    search: ClassVar[Search] = {"recovery": RECOVERY_SEARCH}

    def unlearn(self, context: Context) -> StageResult:
        """The model as the request found it, at no cost."""
        return StageResult(context.state, Cost())

    def storage(self, context: Context) -> Storage:
        """Nothing is stored."""
        return Storage()

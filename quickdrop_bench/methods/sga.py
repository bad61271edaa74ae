"""SGA-Or: gradient ascent on the original forget set, then recovery on the original rest (Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search
from quickdrop_bench.methods.stages import ASCENT_SEARCH, RECOVERY_SEARCH, Ascent, Recovery, Relearning

if TYPE_CHECKING:
    from quickdrop_bench.methods.context import Context
    from quickdrop_bench.methods.registry import StageResult


@METHODS.register("sga-or")
@dataclass(frozen=True)
class Sga(Ascent, Recovery, Relearning):
    """Algorithm 1 on the clients' original data."""

    title: ClassVar[str] = "SGA-Or"
    color: ClassVar[str] = "#E69F00"
    order: ClassVar[int] = 400
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"forget-data", "retain-data"})
    summary: ClassVar[str] = "ascent on the original forget set, recovery on the rest"
    search: ClassVar[Search] = {"unlearning": ASCENT_SEARCH, "recovery": RECOVERY_SEARCH}

    unlearn_rounds: int = 2

    def unlearn(self, context: Context) -> StageResult:
        """Ascent on D_f: lines 3 and 14. Clients without forget data send nothing."""
        return self.ascend(context, context.forget_data())

    def storage(self, context: Context) -> Storage:
        """Nothing is stored."""
        return Storage()

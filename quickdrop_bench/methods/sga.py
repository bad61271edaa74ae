"""SGA-Or: gradient ascent on the original forget set, then recovery on the original rest (Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods.base import METHODS, Context, StageResult
from quickdrop_bench.methods.steps import AscentAndRecovery

__all__ = ["Sga"]


@METHODS.register("sga-or")
@dataclass(frozen=True)
class Sga(AscentAndRecovery):
    """Algorithm 1 on the clients' original data."""

    levels: ClassVar[frozenset[str]] = frozenset({"class", "client"})
    can_relearn: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"forget-data", "retain-data"})
    summary: ClassVar[str] = "gradient ascent on the original forget set, recovery on the original rest"

    unlearn_rounds: int = 2

    def unlearn(self, context: Context) -> StageResult:
        """Ascent on D_f: lines 3 and 14. Clients without forget data send nothing."""
        phase = self.ascent(context.training)
        return context.federation.run(context.state, context.forget_data(), phase, context.seed)

    def recover(self, context: Context, state: State) -> StageResult | None:
        """Descent on D without everything forgotten: lines 4 and 16."""
        phase = self.recovery(context.training)
        return context.federation.run(state, context.retain_data(), phase, context.seed)

    def storage_bytes(self, context: Context) -> int:
        """Nothing is stored."""
        return 0

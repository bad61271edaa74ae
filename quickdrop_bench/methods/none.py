"""The first control: the original model, left as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Cost, Storage
from quickdrop_bench.core.errors import Unsupported
from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search, StageResult

if TYPE_CHECKING:
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context


@METHODS.register("none")
@dataclass(frozen=True)
class Nothing:
    """Does nothing, at no cost: what every method has to do better than."""

    title: ClassVar[str] = "Original model (control)"
    color: ClassVar[str] = "#999999"
    order: ClassVar[int] = 810
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    can_relearn: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    summary: ClassVar[str] = "control: the original model, left as it is"
    search: ClassVar[Search] = {}

    def unlearn(self, context: Context) -> StageResult:
        """The model as the request found it."""
        return StageResult(context.state, Cost())

    def recover(self, context: Context, state: State) -> StageResult | None:
        """There is nothing to recover."""
        return None

    def relearn(self, context: Context, state: State) -> StageResult:
        """Refuse: nothing was forgotten.

        Raises:
            Unsupported: always.
        """
        raise Unsupported("none", context.request, "nothing was forgotten that could be learnt again")

    def storage(self, context: Context) -> Storage:
        """Nothing is stored."""
        return Storage()

"""What a method is, and the registry of methods with their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.core.errors import Unsupported
from quickdrop_bench.core.registry import Registry
from quickdrop_bench.data.requests import Samples, UnlearningRequest
from quickdrop_bench.federation.phase import PhaseResult

if TYPE_CHECKING:
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context

SMALL_SETS = frozenset({"synthetic-sets", "real-subset"})
"""What methods need that work on the small sets of the clients, whose size the scale decides."""

LEVELS_ALL = frozenset({"class", "client", "sample"})
"""For methods that serve every level of request."""

Search = Mapping[str, Mapping[str, tuple[Any, ...]]]
"""What the tuned protocol tries: stage (``unlearning``, ``recovery``) → field → values."""

StageResult = PhaseResult
"""A stage ends like a phase: with a state, its cost, and whether it diverged."""


class Method(Protocol):
    """An unlearning method: a frozen dataclass whose fields are its hyper-parameters, in a file of its own.

    Class attributes declare what it can do; the harness checks them before any compute. The file imports torch, and
    what needs it, in the functions that run: options and lists do without.
    """

    title: ClassVar[str]
    """How tables and figures call it."""
    color: ClassVar[str]
    """Of its lines and bars, as #RRGGBB."""
    order: ClassVar[int]
    """Its place in lists, tables and figures; the paper's methods are in the hundreds, in the order of its Table 2."""
    levels: ClassVar[frozenset[str]]
    """Request levels that it serves."""
    can_relearn: ClassVar[bool]
    """Whether forgotten data can be learnt again afterwards."""
    needs: ClassVar[frozenset[str]]
    """What it needs at request time: ``forget-data``, ``retain-data`` (originals), ``synthetic-sets``,
    ``real-subset`` (the images that they started from) or ``update-history``."""
    search: ClassVar[Search]
    """What the tuned protocol tries; values of fields that end in ``local_steps`` are capped at the training's T."""
    summary: ClassVar[str]
    """One line for ``quickdrop-bench methods``."""

    def unlearn(self, context: Context) -> StageResult:
        """The unlearning stage, from ``context.state``."""
        ...

    def recover(self, context: Context, state: State) -> StageResult | None:
        """The recovery stage, from the unlearned state; None if the method has none."""
        ...

    def relearn(self, context: Context, state: State) -> StageResult:
        """Learn again what the request forgot (§4.7); called only if ``can_relearn``."""
        ...

    def storage(self, context: Context) -> Storage:
        """What is kept for the sake of later requests."""
        ...


LAST = 1000
"""Place of a method that names none."""

METHODS = Registry[type[Method]]("--methods", "quickdrop_bench.methods", order=lambda m: getattr(m, "order", LAST))


def check_support(name: str, request: UnlearningRequest | Samples, available: frozenset[str]) -> None:
    """Raise unless the method serves this level of request from what the federation kept.

    Raises:
        BadInput: the method is unknown.
        Unsupported: the level is not served, or something that the method needs was not kept.
    """
    method = METHODS[name]
    if request.level not in method.levels:
        allowed = f"it serves {' and '.join(sorted(method.levels))} requests, not {request.level} requests"
        raise Unsupported("--methods", name, allowed)
    if missing := method.needs - available:
        raise Unsupported(
            "--methods", name, f"it needs {', '.join(sorted(missing))}, which the federation did not keep"
        )

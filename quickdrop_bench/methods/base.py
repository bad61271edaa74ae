"""What a method is, what it is given, and the registry of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.core.errors import Unsupported
from quickdrop_bench.core.registry import Registry
from quickdrop_bench.data.requests import UnlearningRequest, forget_part, retain_part
from quickdrop_bench.federation.phase import Phase, PhaseResult

if TYPE_CHECKING:
    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.distillation.in_situ import SyntheticSet
    from quickdrop_bench.federation.federation import Federation, RoundInfo
    from quickdrop_bench.federation.history import UpdateHistory
    from quickdrop_bench.functional.aggregation import State

__all__ = [
    "LEVELS_ALL",
    "METHODS",
    "SMALL_SETS",
    "ClientData",
    "Context",
    "Method",
    "Search",
    "StageResult",
    "check_support",
]

SMALL_SETS = frozenset({"synthetic-sets", "real-subset"})
"""What methods need that work on the small sets of the clients, whose size the scale decides."""

LEVELS_ALL = frozenset({"class", "client"})
"""For methods that serve every level of request."""

Search = Mapping[str, Mapping[str, tuple[Any, ...]]]
"""What the tuned protocol tries: stage (``unlearning``, ``recovery``) → field → values."""

StageResult = PhaseResult
"""A stage ends like a phase: with a state, its cost, and whether it diverged."""


@dataclass(frozen=True)
class ClientData:
    """What a client has when a request arrives.

    Attributes:
        original: D_i.
        subset: ⌈n/s⌉ untouched real images per class, those that S_i started from.
        augmentation: A_i, real images kept to be mixed into recovery.
        synthetic: S_i, if the federation trained with distillation.
    """

    original: LabelledSet
    subset: LabelledSet
    augmentation: LabelledSet
    synthetic: SyntheticSet | None = None


@dataclass(frozen=True)
class Context:
    """A request on a trained federation: all that a method may use.

    Attributes:
        federation: runs phases.
        training: the phase with which the federation was trained; its K, T, |B| and η are the defaults. In the
            paper's letter T is the paper's.
        clients: by id.
        state: θ, the global model when the request arrives; not to be changed.
        request: what to forget now.
        forgotten: everything that is to stay forgotten, ``request`` included.
        seed: the run's seed.
        history: the clients' updates of some training rounds, if they were recorded.
        patience: see :class:`~quickdrop_bench.federation.local.Phase`; applied to every descent.
        on_round: told about every round, outside the time.
    """

    federation: Federation
    training: Phase
    clients: Mapping[int, ClientData]
    state: State
    request: UnlearningRequest
    forgotten: Sequence[UnlearningRequest]
    seed: int
    history: UpdateHistory | None = None
    patience: int | None = None
    on_round: Callable[[RoundInfo], object] | None = None

    def run(self, state: State, data: Mapping[int, LabelledSet], phase: Phase, **options: Any) -> StageResult:
        """``Federation.run`` with the request's seed, to convergence where the context asks for it."""
        if not phase.ascend:
            phase = replace(phase, patience=self.patience)
        return self.federation.run(state, data, phase, self.seed, on_round=self.on_round, **options)

    def then(self, state: State, request: UnlearningRequest) -> Context:
        """The next request, on the model that served this one; what was forgotten stays forgotten."""
        return replace(self, state=state, request=request, forgotten=(*self.forgotten, request))

    def forget_data(self) -> dict[int, LabelledSet]:
        """D_f by client: original training data that the request forgets."""
        return {i: self.forget_part(c.original, i) for i, c in self.clients.items()}

    def forget_part(self, data: LabelledSet, client: int) -> LabelledSet:
        """What the request forgets of a client's data, without what other requests forgot."""
        others = [r for r in self.forgotten if r != self.request]
        return forget_part(retain_part(data, client, others), client, self.request)

    def retain_data(self) -> dict[int, LabelledSet]:
        """D minus everything forgotten, by client."""
        return {i: retain_part(c.original, i, self.forgotten) for i, c in self.clients.items()}


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
    """Its place in lists and figures; the paper's methods are in the hundreds, in the order of its Table 2."""
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


def check_support(name: str, request: UnlearningRequest, available: frozenset[str]) -> None:
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

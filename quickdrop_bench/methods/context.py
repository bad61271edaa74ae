"""What a method is given: a request on a trained federation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from quickdrop_bench.data.requests import UnlearningRequest, forget_part, retain_part
from quickdrop_bench.federation.phase import Phase

if TYPE_CHECKING:
    from torch import Tensor

    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.distillation.in_situ import SyntheticSet
    from quickdrop_bench.federation.federation import Federation, RoundInfo
    from quickdrop_bench.federation.history import UpdateHistory
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.registry import StageResult


@dataclass(frozen=True)
class ClientData:
    """What a client has when a request arrives.

    Attributes:
        original: D_i.
        subset: ⌈n/s⌉ untouched real images per class, those that S_i started from.
        augmentation: A_i, real images kept to be mixed into recovery.
        synthetic: S_i, if the federation trained with distillation.
        groups: (n,) int64, the group within its class of each sample of D_i, of which S_i has images of their own; None
            where each class is one group.
    """

    original: LabelledSet
    subset: LabelledSet
    augmentation: LabelledSet
    synthetic: SyntheticSet | None = None
    groups: Tensor | None = None


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

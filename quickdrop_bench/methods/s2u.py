"""S2U: scale the leaver's update down and the others' up (VeriFi; Gao et al., TDSC 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Cost, Storage
from quickdrop_bench.core.errors import positive
from quickdrop_bench.data.requests import retain_part
from quickdrop_bench.federation.faults import Fate
from quickdrop_bench.methods.registry import METHODS, Search, StageResult
from quickdrop_bench.methods.stages import LOCAL_STEPS, RECOVERY_SEARCH, Recovery, Relearning, stage_phase

if TYPE_CHECKING:
    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.federation.federation import Transform
    from quickdrop_bench.federation.phase import Phase
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context


@METHODS.register("s2u")
@dataclass(frozen=True)
class S2U(Recovery, Relearning):
    """θ_{k+1} = θ_k + α·Σ_{i≠ℓ} p_i·Δ_i + β·p_ℓ·Δ_ℓ, then FedAvg without the leaver ℓ, as one stage.

    Δ_i is client i's update, p_i its share of the samples of those whose updates arrive. VeriFi's own equation and
    factors were not public; this form follows its description ("scale down the leaver's update, scale up the
    remaining ones"), and every factor is an option. At β = 0 the leaver does not take part, so p_ℓ = 0.

    Attributes:
        alpha: α > 0, factor of those who stay; without it α = (1 − β·p_ℓ)/(1 − p_ℓ), so that the factors sum to
            one: then β = 1 is a FedAvg round with the leaver and β = 0 one without.
        beta: β in [0, 1], factor of the leaver.
        max_alpha: at least 1, the most that α becomes by itself; it grows without bound as p_ℓ → 1.
        unlearn_rounds: scaled rounds, with all clients.
        unlearn_local_steps: local steps T of the scaled rounds; without it the training's.
        unlearn_lr: learning rate η of the scaled rounds; without it that of recovery.
    """

    title: ClassVar[str] = "S2U"
    color: ClassVar[str] = "#CC79A7"
    order: ClassVar[int] = 300
    levels: ClassVar[frozenset[str]] = frozenset({"client"})
    needs: ClassVar[frozenset[str]] = frozenset({"forget-data", "retain-data"})
    summary: ClassVar[str] = "scales the leaving client's update down, the others' up"
    search: ClassVar[Search] = {
        "unlearning": {
            "beta": (0.0, 0.1),
            "unlearn_local_steps": LOCAL_STEPS,
            **RECOVERY_SEARCH,
        }
    }

    alpha: float | None = None
    beta: float = 0.1
    max_alpha: float = 10.0
    unlearn_rounds: int = 1
    unlearn_local_steps: int | None = None
    unlearn_lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            positive("s2u.alpha", self.alpha)
        positive("s2u.beta", self.beta, at_least=0, at_most=1)
        positive("s2u.max_alpha", self.max_alpha, at_least=1)

    def stayers_factor(self, share: float) -> float:
        """α for leavers that hold a share p_ℓ in [0, 1) of the samples (several in one request: together)."""
        if self.alpha is not None:
            return self.alpha
        return min((1 - self.beta * share) / (1 - share), self.max_alpha)

    def scaling(self, training: Phase) -> Phase:
        """The scaled rounds: all clients with data take part."""
        lr = self.recover_lr if self.unlearn_lr is None else self.unlearn_lr
        return stage_phase(training, "unlearning", self.unlearn_rounds, lr, self.unlearn_local_steps)

    def unlearn(self, context: Context) -> StageResult:
        """Scaled rounds, then FedAvg over those who stay: one stage, as in the paper."""
        staying = context.retain_data()
        if not any(len(z) for z in staying.values()):
            # The scaled rounds would only train on the leaver.
            return StageResult(context.state, Cost())
        data, phase = {**staying, **self._leaving(context)}, self.scaling(context.training)
        scale = self._scale(context, data, phase)
        # Not context.run: the scaled rounds are few and counted, and only what follows runs until it converges.
        scaled = context.federation.run(context.state, data, phase, context.seed, transform=scale)
        if scaled.diverged:
            return scaled
        recovered = context.run(scaled.state, staying, self.recovery(context.training))
        cost = replace(scaled.cost + recovered.cost, data_size=scaled.cost.data_size)
        return replace(recovered, cost=cost)

    def recover(self, context: Context, state: State) -> StageResult | None:
        """Recovery is part of unlearning."""
        return None

    def storage(self, context: Context) -> Storage:
        """Nothing is stored."""
        return Storage()

    def _leaving(self, context: Context) -> dict[int, LabelledSet]:
        """The leavers' data without what earlier requests forgot; none where their updates have no part."""
        if self.beta == 0 or self.unlearn_rounds == 0:
            return {}
        earlier = list(context.forgotten)
        if context.request in earlier:
            earlier.remove(context.request)
        leavers = [client for client in context.request.targets if client in context.clients]
        return {i: retain_part(context.clients[i].original, i, earlier) for i in leavers}

    def _scale(self, context: Context, data: dict[int, LabelledSet], phase: Phase) -> Transform:
        """Scale each update; the federation's sample-weighted mean then gives the sum of the class's docstring."""
        leavers = set(context.request.targets)
        alphas = [self._alpha(context, data, phase, k) for k in range(phase.rounds)]

        import torch

        def scale(k: int, client: int, before: State, after: State) -> State:
            factor = self.beta if client in leavers else alphas[k]
            return {name: torch.lerp(before[name], after[name], factor) for name in after}

        return scale

    def _alpha(self, context: Context, data: dict[int, LabelledSet], phase: Phase, k: int) -> float:
        """α of a round, from the share that the leavers have of the samples of those who return in it."""
        sizes = {client: len(z) for client, z in sorted(data.items()) if len(z)}
        fates = context.federation.faults.fates(context.seed, phase.name, k, list(sizes))
        present = {client: size for client, size in sizes.items() if fates[client] is Fate.RETURNS}
        leaving = sum(size for client, size in present.items() if client in context.request.targets)
        total = sum(present.values())
        # If only leavers return, α scales nothing.
        return self.stayers_factor(leaving / total) if leaving < total else 1.0

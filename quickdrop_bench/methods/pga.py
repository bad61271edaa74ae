"""PGA: projected gradient ascent within a ball around a model of those who stay (Halimi et al., arXiv 2207.05521)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Clock, Storage
from quickdrop_bench.core.errors import BadInput, positive
from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search
from quickdrop_bench.methods.stages import ASCENT_SEARCH, RECOVERY_SEARCH, Recovery, Relearning, stage_phase

if TYPE_CHECKING:
    from torch import nn

    from quickdrop_bench.federation.local import Stepper
    from quickdrop_bench.federation.phase import Phase
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context
    from quickdrop_bench.methods.registry import StageResult


@METHODS.register("pga")
@dataclass(frozen=True)
class Pga(Recovery, Relearning):
    """From θ_ref, g ← clip(∇L), v ← m·v + g, θ ← θ + ηv on D_f, projected into a ball of radius δ around θ_ref.

    For a client ℓ with a share p_ℓ of the samples, θ_ref = (θ − p_ℓ·θ_ℓ)/(1 − p_ℓ) is the mean of the others' last
    local models, which is θ − p_ℓ/(1 − p_ℓ)·(U_ℓ − Σ_i p_i·U_i) with the updates U of the last round. They come from
    the update history: exact with ``record_every`` 1; else the last *recorded* round stands for the last one. Without a
    history, or where ℓ was not in that round, θ_ref is θ. The paper forgets clients. There is no model without a class,
    so θ_ref is θ then, and each holder ascends on its images of the class, weighted by their number.

    Attributes:
        unlearn_local_steps: most local steps of ascent; without it the training's (released code: up to five passes).
        unlearn_lr: learning rate η (released code: 0.01).
        unlearn_momentum: momentum of ascent, in [0, 0.999].
        unlearn_stop_loss: a client stops once the mean loss of its batch is above this; null: never.
        stop_distance: κ > 0; a client stops once ‖θ − θ_ref‖ > κ·‖θ_ref − θ_ℓ‖, which needs its recorded update;
            without it never (released code: ‖θ − θ_ℓ‖² > 2.2, whatever the size of the model).
        clip: most that the norm of a gradient may be; null does not clip.
        ball: δ² is this share of the mean of ‖θ_ref − θ_rand‖² over ten random networks; null has no ball.
    """

    title: ClassVar[str] = "PGA"
    color: ClassVar[str] = "#44AA99"
    order: ClassVar[int] = 840
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"forget-data", "retain-data"})
    summary: ClassVar[str] = "ascent within a ball around the others' mean model"
    search: ClassVar[Search] = {"unlearning": ASCENT_SEARCH, "recovery": RECOVERY_SEARCH}

    unlearn_local_steps: int | None = None
    unlearn_lr: float = 0.01
    unlearn_momentum: float = 0.9
    unlearn_stop_loss: float | None = 2.3
    stop_distance: float | None = None
    clip: float | None = 5.0
    ball: float | None = 1 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("pga.unlearn_momentum", self.unlearn_momentum, at_least=0, at_most=0.999)
        for name in ("stop_distance", "clip", "ball"):
            if getattr(self, name) is not None:
                positive(f"pga.{name}", getattr(self, name))

    def ascending(self, training: Phase) -> Phase:
        """The unlearning phase: one round of all clients with forget data."""
        phase = stage_phase(training, "unlearning", 1, self.unlearn_lr, self.unlearn_local_steps)
        return replace(phase, ascend=True, stop_loss=self.unlearn_stop_loss)

    def unlearn(self, context: Context) -> StageResult:
        """Projected ascent from θ_ref; only D_f is read.

        Raises:
            BadInput: ``stop_distance`` is set and no update of a leaving client was recorded.
        """
        from quickdrop_bench.federation.history import last_part

        clock, part = Clock(context.federation.fabric.device), None
        if context.request.level == "client" and context.history is not None:
            part = last_part(context.history, context.request.targets)
        if self.stop_distance is not None and part is None:
            raise BadInput("pga.stop_distance", self.stop_distance, "no update of a leaving client is recorded for it")
        with clock.running():
            center, limit = self.start(context.state, part)
            stepper = self.projecting(center, self.radius(context, center), limit)
        phase, data, on_round = self.ascending(context.training), context.forget_data(), context.on_round
        result = context.federation.run(center, data, phase, context.seed, on_round=on_round, stepper=stepper)
        return replace(result, cost=result.cost + clock.cost)

    def start(self, state: State, part: tuple[State, float] | None) -> tuple[State, float]:
        """θ_ref, and the distance from it at which a client stops, from what a history has of the leavers."""
        from quickdrop_bench.functional.aggregation import norm

        if part is None:
            return state, math.inf
        drift, share = part
        # θ_ref − θ_ℓ is −drift/(1 − p_ℓ).
        limit = math.inf if self.stop_distance is None else self.stop_distance * norm(drift) / (1 - share)
        return {name: value - share / (1 - share) * drift[name] for name, value in state.items()}, limit

    def radius(self, context: Context, center: State) -> float:
        """δ."""
        from quickdrop_bench.functional.aggregation import difference, norm

        if self.ball is None:
            return math.inf
        inits = [context.federation.fresh_state(context.seed, "pga", "init", j) for j in range(10)]
        return math.sqrt(self.ball * sum(norm(difference(center, init)) ** 2 for init in inits) / len(inits))

    def projecting(self, center: State, radius: float, limit: float) -> Stepper:
        """Steps of clipped ascent with momentum that end in the ball, and for good once they are beyond the limit."""
        import torch

        from quickdrop_bench.functional.aggregation import difference, norm

        def begin(model: nn.Module) -> Callable[[], bool]:
            parameters = dict(model.named_parameters())
            velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}

            @torch.no_grad()
            def step() -> bool:
                if self.clip is not None:
                    torch.nn.utils.clip_grad_norm_(parameters.values(), self.clip)
                for name, p in parameters.items():
                    assert p.grad is not None
                    velocity[name].mul_(self.unlearn_momentum).add_(p.grad)
                    p.add_(velocity[name], alpha=self.unlearn_lr)
                distance = norm(difference(parameters, center))
                if distance > radius:
                    for name, p in parameters.items():
                        p.copy_(torch.lerp(center[name], p, radius / distance))
                return min(distance, radius) <= limit

            return step

        return begin

    def storage(self, context: Context) -> Storage:
        """4·P on each client of the last recorded round, for the day that it leaves; nothing where no client can."""
        history = context.history
        if context.request.level != "client" or history is None or not history.participants:
            return Storage()
        clients = history.participants[max(history.participants)]
        return Storage(client_bytes=4 * len(clients) * sum(value.numel() for value in context.state.values()))

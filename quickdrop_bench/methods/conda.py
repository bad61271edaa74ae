"""ConDa: dampen the weights that the leaver moved most (Chundawat et al., arXiv 2410.04144)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Clock, Storage
from quickdrop_bench.core.errors import BadInput, positive
from quickdrop_bench.methods.registry import METHODS, Search, StageResult
from quickdrop_bench.methods.stages import RECOVERY_SEARCH, Recovery, Relearning

if TYPE_CHECKING:
    from torch import Tensor

    from quickdrop_bench.federation.history import UpdateHistory
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context

SUMS = ("initial", "round")


@METHODS.register("conda")
@dataclass(frozen=True)
class ConDa(Recovery, Relearning):
    """θ ← θ·min(λρ, U) wherever ρ = Φ_r/Φ_f < α, elementwise, on the server; no data are read.

    Φ_i sums up how far client i's local models were, round by round, from θ_0 (``initial``, the released code) or from
    the start of the round (``round``, for which any recorded rounds do). Φ_f is its mean over the leavers, Φ_r over the
    others that were not forgotten. Where Φ_f is 0 nothing is dampened. A server would keep running sums; here they are
    computed from the update history, which for ``initial`` has to hold every round. The paper claims clients; a class
    has no sums of its own. It has no recovery: ``recover_rounds`` offers one.

    The released code passes its arguments in the wrong order: what ran has ρ = Φ_f/Φ_r, and dampens what the leaver
    moved *least*. ``released`` does that.

    Attributes:
        recover_rounds: rounds of recovery afterwards (paper: 0).
        alpha: weights with ρ below this are dampened, α ≥ 0 (released: 0.3 on CIFAR-10, 0.4 on MNIST).
        factor: a weight is multiplied by λρ, λ > 0 (released: 0.5 or 1).
        cap: and by U at most, in (0, 1] (released: 0.5 or 1).
        sums: distances from θ_0 (initial), or from the start of each round (round).
        released: take ρ = Φ_f/Φ_r, as the released code does by mistake.
    """

    title: ClassVar[str] = "ConDa"
    color: ClassVar[str] = "#999933"
    order: ClassVar[int] = 880
    levels: ClassVar[frozenset[str]] = frozenset({"client"})
    needs: ClassVar[frozenset[str]] = frozenset({"retain-data", "update-history"})
    summary: ClassVar[str] = "dampens the weights that the leaving client moved most"
    search: ClassVar[Search] = {
        "unlearning": {"alpha": (0.1, 0.3, 0.5, 0.7, 0.9), "factor": (0.5, 1.0)},
        "recovery": RECOVERY_SEARCH,
    }

    recover_rounds: int = 0
    alpha: float = 0.3
    factor: float = 0.5
    cap: float = 0.5
    sums: str = "initial"
    released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("conda.alpha", self.alpha, at_least=0)
        positive("conda.factor", self.factor)
        positive("conda.cap", self.cap, at_most=1)
        if self.sums not in SUMS:
            raise BadInput("conda.sums", self.sums, f"use one of {', '.join(SUMS)}")

    def unlearn(self, context: Context) -> StageResult:
        """Dampen on the server; nothing where no update of the leavers, or none of others, was recorded.

        Raises:
            BadInput: ``initial`` sums are asked for, and the history lacks rounds.
        """
        from quickdrop_bench.federation.history import mean_distances

        history = _history(context)
        if self.sums == "initial" and len(history.participants) < context.training.rounds:
            allowed = "it needs the updates of every round: train with --record-every 1, or use round"
            raise BadInput("conda.sums", self.sums, allowed)
        gone = {t for r in context.forgotten if r.level == "client" for t in r.targets}
        groups = [{*context.request.targets}, history.clients() - gone]
        clock = Clock(context.federation.fabric.device)
        leaving, others = mean_distances(history, groups, from_start=self.sums == "initial")
        if leaving is None or others is None:
            return StageResult(context.state, clock.cost)
        if self.released:
            leaving, others = others, leaving
        with clock.running():
            state = {n: self.dampened(v, others[n] / leaving[n]) for n, v in context.state.items()}
        return StageResult(state, clock.cost)

    def dampened(self, value: Tensor, ratio: Tensor) -> Tensor:
        """θ·min(λρ, U) where ρ < α, θ elsewhere, also where ρ is no number; (…) ratio as value."""
        return (value * (self.factor * ratio).clamp(max=self.cap)).where(ratio < self.alpha, value)

    def recover(self, context: Context, state: State) -> StageResult | None:
        """Descent on D without everything forgotten, if any rounds are wanted."""
        return super().recover(context, state) if self.recover_rounds else None

    def storage(self, context: Context) -> Storage:
        """4·P·N on the server: a running sum for each client."""
        parameters = sum(value.numel() for value in context.state.values())
        return Storage(server_bytes=4 * parameters * len(_history(context).clients()))


def _history(context: Context) -> UpdateHistory:
    """What ``needs`` promises."""
    assert context.history is not None, "the federation kept no update history"
    return context.history

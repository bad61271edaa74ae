"""MoDe: momentum degradation towards a model that never saw the forget set (Zhao et al., IEEE IoT-J 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Clock, Cost, Storage
from quickdrop_bench.core.errors import positive
from quickdrop_bench.methods.registry import LEVELS_ALL, METHODS, Search, StageResult
from quickdrop_bench.methods.stages import RECOVERY_SEARCH, Recovery, Relearning, stage_phase

if TYPE_CHECKING:
    from torch import Tensor

    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.federation.phase import Phase
    from quickdrop_bench.methods.context import Context


@METHODS.register("mode")
@dataclass(frozen=True)
class MoDe(Recovery, Relearning):
    """Rounds of degradation, which mix the model with a fresh one, and of guidance, which trains the mixture.

    A fresh model θ_de learns D without D_f. Degradation, in the first rounds: a FedAvg round of θ_de, then
    θ ← λθ + (1 − λ)θ_de. Guidance, in all rounds: a FedAvg round of θ, for which clients label their D_f by
    argmax f_{θ_de}, and keep the labels of the rest. The labels of D_f are never read, and θ_de never sees D_f. The
    paper was not to be had: the equations are those of a released implementation, and its abstract claims classes and
    clients; for samples they hold as they stand. There, rounds of guidance after degradation read D_f and so belong to
    unlearning; recovery is that of all methods. Its rates differ within one round of guidance; here there is one.

    Attributes:
        unlearn_rounds: rounds of guidance (released: 10).
        degrade_rounds: so many of them begin with degradation (released: 6).
        momentum: share λ of the model that a round of degradation keeps, in [0, 1] (released: 0.95).
        degrade_lr: learning rate η of the fresh model; without it the training's (released: 0.1).
        unlearn_local_steps: local steps T of both; without it the training's.
        unlearn_lr: learning rate η of guidance (released: 5e-4).
    """

    title: ClassVar[str] = "MoDe"
    color: ClassVar[str] = "#AA4499"
    order: ClassVar[int] = 870
    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    needs: ClassVar[frozenset[str]] = frozenset({"forget-data", "retain-data"})
    summary: ClassVar[str] = "mixes in a fresh model, whose answers relabel the forget set"
    search: ClassVar[Search] = {
        "unlearning": {"momentum": (0.5, 0.7, 0.9, 0.95), "unlearn_lr": (0.01, 0.05, 0.2)},
        "recovery": RECOVERY_SEARCH,
    }

    unlearn_rounds: int = 10
    degrade_rounds: int = 6
    momentum: float = 0.95
    degrade_lr: float | None = None
    unlearn_local_steps: int | None = None
    unlearn_lr: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("mode.momentum", self.momentum, at_least=0, at_most=1)
        positive("mode.degrade_rounds", self.degrade_rounds, at_least=0, at_most=self.unlearn_rounds)

    def phases(self, training: Phase) -> tuple[Phase, Phase]:
        """Degradation and guidance."""
        lr = training.lr if self.degrade_lr is None else self.degrade_lr
        degrade = stage_phase(training, "degradation", self.degrade_rounds, lr, self.unlearn_local_steps)
        return degrade, stage_phase(
            training, "unlearning", self.unlearn_rounds, self.unlearn_lr, self.unlearn_local_steps
        )

    def unlearn(self, context: Context) -> StageResult:
        """All rounds of guidance, those of degradation among them; nothing where nobody retains anything."""
        from quickdrop_bench.federation.passes import logits

        forget, retain = (
            {i: z for i, z in parts.items() if len(z)} for parts in (context.forget_data(), context.retain_data())
        )
        if not retain:
            return StageResult(context.state, Cost())
        federation, seed = context.federation, context.seed
        degrade, guide = self.phases(context.training)
        clock, spent = Clock(federation.fabric.device), Cost()
        fresh = StageResult(federation.fresh_state(seed, "mode", "init"), Cost())
        guided, data = StageResult(context.state, Cost()), retain
        for k in range(self.unlearn_rounds):
            if k < self.degrade_rounds:
                fresh = federation.run(fresh.state, retain, replace(degrade, rounds=k + 1), seed, start=fresh)
                with clock.running():
                    mixed = {n: fresh.state[n].lerp(v, self.momentum) for n, v in guided.state.items()}
                guided = replace(guided, state=mixed)
            if k < max(self.degrade_rounds, 1):  # afterwards θ_de, and so its labels, stay as they are
                answers, cost = logits(federation, fresh.state, forget)
                data, spent = guidance(forget, retain, answers), spent + cost
            phase, on_round = replace(guide, rounds=k + 1), context.on_round
            guided = federation.run(guided.state, data, phase, seed, start=guided, on_round=on_round)
            if fresh.diverged or guided.diverged:
                break
        images = sum(map(len, (*forget.values(), *retain.values()))) if self.unlearn_rounds else 0
        total = replace(fresh.cost + guided.cost + spent + clock.cost, data_size=images)
        return StageResult(guided.state, total, fresh.diverged or guided.diverged)

    def storage(self, context: Context) -> Storage:
        """Nothing is stored."""
        return Storage()


def guidance(
    forget: Mapping[int, LabelledSet], retain: Mapping[int, LabelledSet], answers: Mapping[int, Tensor]
) -> dict[int, LabelledSet]:
    """What each client trains on: what it retains, and its forget set labelled by the other model.

    Args:
        forget: D_f by client, rows of the same images as ``retain``; none is empty.
        retain: D without D_f by client; none is empty.
        answers: (n, C) logits on D_f by client.
    """
    from quickdrop_bench.data.labelled import LabelledSet, pool

    labels = next(iter(retain.values())).labels.clone()
    for client, z in forget.items():
        labels[z.rows] = answers[client].argmax(1)
    sets = {i: pool(*(parts[i] for parts in (retain, forget) if i in parts)) for i in sorted({*retain, *forget})}
    return {i: LabelledSet(z.images, labels, z.rows) for i, z in sets.items()}

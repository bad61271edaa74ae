"""What a request would cost: the engine serves it on a federation that only counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.federation.federation import Federation, sample_clients
from quickdrop_bench.federation.phase import Phase, PhaseResult
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.request import stages, total_cost
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.methods.registry import StageResult


@dataclass(frozen=True)
class PlannedPhase:
    """What a phase would do at most.

    Attributes:
        name: of the stage.
        rounds: communication rounds.
        participants: clients with data for it, by id; if ``participation`` < 1 a share of them in each round.
        local_steps: the most of any participant in a round.
        participation: share of the clients that take part in a round.
        cost: ``seconds`` is 0.
    """

    name: str
    rounds: int
    participants: tuple[int, ...]
    local_steps: int
    participation: float
    cost: Cost


class CountingFederation(Federation):
    """A federation whose phases change nothing and are written down in ``phases``."""

    def __init__(self, fabric: Fabric, model: nn.Module) -> None:
        super().__init__(fabric, model)
        self.phases: list[PlannedPhase] = []

    def run(
        self,
        state: State,
        data: Mapping[int, LabelledSet],
        phase: Phase,
        seed: int,
        *,
        start: PhaseResult | None = None,
        **options: Any,
    ) -> PhaseResult:
        """The phase's cost at most, and the state as it was."""
        rounds = phase.rounds - (start.cost.rounds if start else 0)
        sizes = {client: len(z) for client, z in sorted(data.items()) if len(z)}
        steps = {client: phase.steps(size) for client, size in sizes.items()}
        count = len(sample_clients(list(sizes), phase.participation, torch.Generator())) if sizes else 0
        largest = sorted((steps[client] * min(phase.batch_size, size) for client, size in sizes.items()), reverse=True)
        per_client = 4 * sum(p.numel() for p in self.model.parameters())
        cost = Cost(
            rounds=rounds if sizes else 0,
            data_size=sum(sizes.values()),
            sample_gradients=rounds * sum(largest[:count]),
            upload_bytes=per_client * count * rounds,
        )
        most = max(steps.values(), default=0)
        planned = PlannedPhase(phase.name, cost.rounds, tuple(sizes), most, phase.participation, cost)
        begun = [i for i, other in enumerate(self.phases) if start and other.name == phase.name]
        for i in begun:  # by a method that comes back to a phase round by round
            total = replace(self.phases[i].cost + cost, data_size=cost.data_size)
            self.phases[i] = replace(planned, rounds=total.rounds, cost=total)
        self.phases += [] if begun else [planned]
        return PhaseResult(state, start.cost + replace(cost, data_size=0) if start else cost)


def planned_phases(action: str, context: Context, method: Method) -> tuple[list[PlannedPhase], dict[str, StageResult]]:
    """The phases of a request, each at most, and what its stages then give; nothing is changed."""
    counting = CountingFederation(context.federation.fabric, context.federation.scratch_model().cpu())
    results = dict(stages(action, replace(context, federation=counting), method))
    total = total_cost(results.values())
    counted = sum((phase.cost for phase in counting.phases), Cost())
    if more := total.rounds - counted.rounds:  # rounds without local training, as FU-MP's
        cost = Cost(
            rounds=more,
            data_size=total.data_size - counted.data_size,
            sample_gradients=total.sample_gradients - counted.sample_gradients,
            sample_forwards=total.sample_forwards,
            upload_bytes=total.upload_bytes - counted.upload_bytes,
        )
        everybody = tuple(i for i, client in context.clients.items() if len(client.original))
        counting.phases.insert(0, PlannedPhase("unlearning", more, everybody, 0, 1.0, cost))
    return counting.phases, results

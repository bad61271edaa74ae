"""What a phase is and what it ends with; no torch is imported for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quickdrop_bench.core.cost import Cost
    from quickdrop_bench.functional.aggregation import State


@dataclass(frozen=True)
class Phase:
    """One call of FedAvg(Z, θ, phase) in Algorithm 1.

    Attributes:
        name: the stage, e.g. ``fl-training``, ``unlearning``; part of the random streams' names.
        rounds: communication rounds k.
        local_steps: T, most local steps per client and round.
        batch_size: |B|.
        lr: η_θ.
        ascend: θ + η∇L (unlearning) instead of θ − η∇L.
        participation: share of the clients with data that take part in a round, in (0, 1].
        stop_loss: bounds ascent: a client stops before the step whose batch has a mean loss above this.
        patience: end the phase after this many rounds in a row in which the clients' mean training loss did not
            fall by :data:`~quickdrop_bench.federation.federation.MIN_IMPROVEMENT` below its best.
        local_epochs: passes over the client's Z_i in place of T local steps.
    """

    name: str
    rounds: int
    local_steps: int
    batch_size: int
    lr: float
    ascend: bool = False
    participation: float = 1.0
    stop_loss: float | None = None
    patience: int | None = None
    local_epochs: int | None = None

    def steps(self, size: int) -> int:
        """Most local steps of a client with this many samples."""
        return self.local_epochs * math.ceil(size / self.batch_size) if self.local_epochs else self.local_steps


@dataclass(frozen=True)
class PhaseResult:
    """The global model after a phase, and its cost.

    ``diverged``: a client returned a non-finite update, and the phase was stopped there, with the last finite state.
    Where updates may be corrupt, such an update is only rejected, and the phase stops if no other arrived in the round.
    """

    state: State
    cost: Cost
    diverged: bool = False

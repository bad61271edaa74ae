"""The two stages of Algorithm 1 as phases, shared by the methods that ascend and then recover."""

from __future__ import annotations

from dataclasses import dataclass

from quickdrop_bench.errors import positive
from quickdrop_bench.federation.local import Phase

__all__ = ["AscentAndRecovery"]


@dataclass(frozen=True)
class AscentAndRecovery:
    """Hyper-parameters of unlearning by gradient ascent and of the recovery after it.

    Attributes:
        unlearn_rounds: rounds of ascent (Table 2: SGA-Or 2; §4.1: QuickDrop 1).
        unlearn_local_steps: T in ascent; None takes the training's T. Ascent is unbounded: T = 50 steps at 0.02
            can destroy a model (benchmarks/DEVIATIONS.md).
        unlearn_lr: η of ascent (§4.1: 0.02).
        unlearn_stop_loss: a client ends its ascent once its batch's mean loss is above this; None never does.
        recover_rounds: rounds of descent (Table 2, §4.1: 2).
        recover_local_steps: T in recovery; None takes the training's T.
        recover_lr: η of recovery (§4.1: 0.01).
        recover_participation: share of clients per recovery round (§4.5: as in training).
    """

    unlearn_rounds: int = 1
    unlearn_local_steps: int | None = None
    unlearn_lr: float = 0.02
    unlearn_stop_loss: float | None = None
    recover_rounds: int = 2
    recover_local_steps: int | None = None
    recover_lr: float = 0.01
    recover_participation: float = 1.0

    def __post_init__(self) -> None:
        for name in ("unlearn_rounds", "recover_rounds"):
            positive(name, getattr(self, name), at_least=0)
        for name in ("unlearn_local_steps", "recover_local_steps"):
            if (steps := getattr(self, name)) is not None:
                positive(name, steps, at_least=1)
        for name in ("unlearn_lr", "recover_lr"):
            positive(name, getattr(self, name))
        positive("recover_participation", self.recover_participation, at_most=1)
        if self.unlearn_stop_loss is not None:
            positive("unlearn_stop_loss", self.unlearn_stop_loss)

    def ascent(self, training: Phase) -> Phase:
        """The unlearning phase: all clients with forget data take part (§4.5)."""
        return Phase(
            name="unlearning",
            rounds=self.unlearn_rounds,
            local_steps=self.unlearn_local_steps or training.local_steps,
            batch_size=training.batch_size,
            lr=self.unlearn_lr,
            ascend=True,
            stop_loss=self.unlearn_stop_loss,
        )

    def recovery(self, training: Phase) -> Phase:
        """The recovery phase."""
        return Phase(
            name="recovery",
            rounds=self.recover_rounds,
            local_steps=self.recover_local_steps or training.local_steps,
            batch_size=training.batch_size,
            lr=self.recover_lr,
            participation=self.recover_participation,
        )

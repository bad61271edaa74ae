"""Stages that several methods share, with their hyper-parameters: ascent, recovery, relearning."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from quickdrop_bench.errors import positive
from quickdrop_bench.federation.local import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods.base import Context, StageResult

__all__ = [
    "ASCENT_SEARCH",
    "LOCAL_STEPS",
    "MOST_STEPS",
    "RECOVERY_SEARCH",
    "Ascent",
    "Recovery",
    "Relearning",
    "check_steps",
]

MOST_STEPS = 10**6
"""Rounds or local steps, far above all use; what is planned stays a number."""

MOST_RATE = 3e38
"""The largest learning rate that float32 holds; with most of them, training says that it diverged."""

LOCAL_STEPS = (1, 2, 5, 10, 50)
"""Local steps that the tuned protocol tries."""

ASCENT_SEARCH: dict[str, tuple[Any, ...]] = {
    "unlearn_local_steps": LOCAL_STEPS,
    "unlearn_lr": (0.02, 0.05),
    "unlearn_stop_loss": (2.3, 6.0),
}
"""Ascent is bounded in the search: unbounded steps only ever destroyed models (benchmarks/DEVIATIONS.md)."""

RECOVERY_SEARCH: dict[str, tuple[Any, ...]] = {"recover_local_steps": LOCAL_STEPS, "recover_lr": (0.01, 0.05, 0.2)}


def check_steps(settings: Any) -> None:
    """Check rounds, local steps, learning rates and participation of a frozen dataclass by the names of its fields.

    Raises:
        BadInput: a value is out of range.
    """
    for name in (f.name for f in fields(settings)):
        value = getattr(settings, name)
        if value is None:
            continue
        if name.endswith("_rounds"):
            positive(name, value, at_least=0, at_most=MOST_STEPS)
        elif name.endswith(("_local_steps", "_local_epochs")):
            positive(name, value, at_least=1, at_most=MOST_STEPS)
        elif name.endswith(("_lr", "_stop_loss")):
            positive(name, value, at_most=MOST_RATE)
        elif name.endswith("_participation"):
            positive(name, value, at_most=1)


@dataclass(frozen=True)
class Relearning:
    """Relearning: descent on what was forgotten (§4.7, the same for all methods).

    Attributes:
        relearn_rounds: rounds of descent (unsaid in the paper).
        relearn_local_steps: T; None takes the training's T.
        relearn_lr: η (unsaid in the paper; that of training and recovery).
    """

    relearn_rounds: int = 2
    relearn_local_steps: int | None = None
    relearn_lr: float = 0.01

    can_relearn: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_steps(self)

    def relearning(self, training: Phase) -> Phase:
        """The relearning phase: all clients with forgotten data take part."""
        return Phase(
            name="relearning",
            rounds=self.relearn_rounds,
            local_steps=self.relearn_local_steps or training.local_steps,
            batch_size=training.batch_size,
            lr=self.relearn_lr,
        )

    def relearn(self, context: Context, state: State) -> StageResult:
        """Descent on D_f."""
        return context.run(state, context.forget_data(), self.relearning(context.training))


@dataclass(frozen=True)
class Recovery:
    """Recovery: descent on what is retained.

    Attributes:
        recover_rounds: rounds of descent (Table 2, §4.1: 2).
        recover_local_steps: T; None takes the training's T.
        recover_local_epochs: passes over the client's set in place of T steps, so that the size of the set decides
            the cost (§4.4.2, benchmarks/DEVIATIONS.md); None counts steps.
        recover_lr: η (§4.1: 0.01).
        recover_participation: share of clients per round (§4.5: as in training).
    """

    recover_rounds: int = 2
    recover_local_steps: int | None = None
    recover_local_epochs: int | None = None
    recover_lr: float = 0.01
    recover_participation: float = 1.0

    def __post_init__(self) -> None:
        check_steps(self)

    def recovery(self, training: Phase) -> Phase:
        """The recovery phase."""
        return Phase(
            name="recovery",
            rounds=self.recover_rounds,
            local_steps=self.recover_local_steps or training.local_steps,
            batch_size=training.batch_size,
            lr=self.recover_lr,
            participation=self.recover_participation,
            local_epochs=self.recover_local_epochs,
        )

    def recover(self, context: Context, state: State) -> StageResult | None:
        """Descent on D without everything forgotten (Algorithm 1, lines 4 and 16)."""
        return context.run(state, context.retain_data(), self.recovery(context.training))


@dataclass(frozen=True)
class Ascent:
    """Hyper-parameters of unlearning by gradient ascent.

    Attributes:
        unlearn_rounds: rounds of ascent (Table 2: SGA-Or 2; §4.1: QuickDrop 1).
        unlearn_local_steps: T; None takes the training's T. Ascent is unbounded: T = 50 steps at 0.02 can destroy
            a model (benchmarks/DEVIATIONS.md).
        unlearn_lr: η (§4.1: 0.02).
        unlearn_stop_loss: a client ends its ascent once its batch's mean loss is above this; None never does.
    """

    unlearn_rounds: int = 1
    unlearn_local_steps: int | None = None
    unlearn_lr: float = 0.02
    unlearn_stop_loss: float | None = None

    def __post_init__(self) -> None:
        check_steps(self)

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

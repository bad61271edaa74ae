"""Stages that several methods share, with their hyper-parameters: ascent, recovery, relearning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from quickdrop_bench.core.errors import BadInput, positive
from quickdrop_bench.federation.phase import Phase

if TYPE_CHECKING:
    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context
    from quickdrop_bench.methods.registry import StageResult

ASCENTS = ("gradient", "reflection")
"""Forms of ascent, see :class:`Ascent`."""

LOCAL_STEPS = (1, 2, 5, 10, 50)
"""Local steps that the tuned protocol tries."""

ASCENT_SEARCH: dict[str, tuple[Any, ...]] = {
    "unlearn_local_steps": LOCAL_STEPS,
    "unlearn_lr": (0.002, 0.02, 0.05),
    "unlearn_stop_loss": (2.3, 6.0),
}
"""Ascent is bounded in the search: unbounded steps only ever destroyed models (benchmarks/DEVIATIONS.md)."""

RECOVERY_SEARCH: dict[str, tuple[Any, ...]] = {
    "recover_local_steps": LOCAL_STEPS,
    "recover_lr": (0.003, 0.01, 0.05, 0.2),
}


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
            positive(name, value, at_least=0)
        elif name.endswith(("_local_steps", "_local_epochs")):
            positive(name, value, at_least=1)
        elif name.endswith(("_lr", "_stop_loss")):
            positive(name, value)
        elif name.endswith("_participation"):
            positive(name, value, at_most=1)


def stage_phase(
    training: Phase, name: str, rounds: int, lr: float, steps: int | None, epochs: int | None = None
) -> Phase:
    """A stage's phase.

    Args:
        training: the training phase, whose |B| counts, and its T, in steps or in passes, where the stage names none.
        name: of the stage.
        rounds: of the stage.
        lr: η.
        steps: local steps T; None where it names none.
        epochs: passes over the client's set in their place; None where it names none.
    """
    if steps is None and epochs is None:
        steps, epochs = training.local_steps, training.local_epochs
    steps = steps or training.local_steps
    return Phase(name, rounds, steps, training.batch_size, lr, local_epochs=epochs)


@dataclass(frozen=True)
class Relearning:
    """Relearning: descent on what was forgotten (§4.7, the same for all methods).

    Attributes:
        relearn_rounds: rounds of relearning; the paper names none.
        relearn_local_steps: local steps T; without it the training's.
        relearn_lr: learning rate η; the paper names none.
    """

    relearn_rounds: int = 2
    relearn_local_steps: int | None = None
    relearn_lr: float = 0.01

    can_relearn: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_steps(self)

    def relearning(self, training: Phase) -> Phase:
        """The relearning phase: all clients with forgotten data take part."""
        return stage_phase(training, "relearning", self.relearn_rounds, self.relearn_lr, self.relearn_local_steps)

    def relearn(self, context: Context, state: State) -> StageResult:
        """Descent on D_f."""
        return context.run(state, context.forget_data(), self.relearning(context.training))


@dataclass(frozen=True)
class Recovery:
    """Recovery: descent on what is retained.

    Attributes:
        recover_rounds: rounds of recovery (Table 2, §4.1: 2).
        recover_local_steps: local steps T; without it the training's.
        recover_local_epochs: passes over the client's set in place of T steps, so that its size decides the
            cost (§4.4.2).
        recover_lr: learning rate η (§4.1: 0.01).
        recover_participation: share of the clients in a round; without it the training's (§4.5).
    """

    recover_rounds: int = 2
    recover_local_steps: int | None = None
    recover_local_epochs: int | None = None
    recover_lr: float = 0.01
    recover_participation: float | None = None

    def __post_init__(self) -> None:
        check_steps(self)

    def recovery(self, training: Phase) -> Phase:
        """The recovery phase."""
        share = self.recover_participation or training.participation
        steps, epochs = self.recover_local_steps, self.recover_local_epochs
        phase = stage_phase(training, "recovery", self.recover_rounds, self.recover_lr, steps, epochs)
        return replace(phase, participation=share)

    def recover(self, context: Context, state: State) -> StageResult | None:
        """Descent on D without everything forgotten (Algorithm 1, lines 4 and 16)."""
        return context.run(state, context.retain_data(), self.recovery(context.training))


@dataclass(frozen=True)
class Ascent:
    """Unlearning by ascent on what is to be forgotten, in one of two forms that are the same for a single step.

    ``gradient`` is Algorithm 1: T steps of θ + η∇L. ``reflection`` is the published code's: a client makes T steps of
    *descent* from θ₀ to θ′, and 2θ₀ − θ′ is averaged for it. Descent flattens out, so reflection bounds itself, and
    no bound on the loss applies to it.

    Attributes:
        unlearn_rounds: rounds of ascent (Table 2: SGA-Or 2; §4.1: QuickDrop 1).
        unlearn_local_steps: most local steps T; without it the training's. The paper's 50, by gradient, destroy
            the model.
        unlearn_lr: learning rate η (§4.1: 0.02).
        unlearn_stop_loss: a client stops once the mean loss of its batch is above this; without it never. Not with
            reflection.
        ascent: gradient (Algorithm 1), or reflection: T steps of descent, then θ ← 2θ₀ − θ′.
    """

    unlearn_rounds: int = 1
    unlearn_local_steps: int | None = None
    unlearn_lr: float = 0.02
    unlearn_stop_loss: float | None = None
    ascent: str = "gradient"

    def __post_init__(self) -> None:
        check_steps(self)
        if self.ascent not in ASCENTS:
            raise BadInput("ascent", self.ascent, f"use one of {', '.join(ASCENTS)}")
        if self.ascent == "reflection" and self.unlearn_stop_loss is not None:
            allowed = "it bounds gradient ascent only; leave it out with ascent reflection"
            raise BadInput("unlearn_stop_loss", self.unlearn_stop_loss, allowed)

    def ascending(self, training: Phase) -> Phase:
        """The unlearning phase: all clients with forget data take part (§4.5)."""
        phase = stage_phase(training, "unlearning", self.unlearn_rounds, self.unlearn_lr, self.unlearn_local_steps)
        return replace(phase, ascend=self.ascent == "gradient", stop_loss=self.unlearn_stop_loss)

    def ascend(self, context: Context, data: Mapping[int, LabelledSet]) -> StageResult:
        """The unlearning stage on each client's forget data (Algorithm 1, lines 3 and 14)."""
        # Not context.run: its patience would take a reflection for a descent that makes no progress.
        return context.federation.run(
            context.state,
            data,
            self.ascending(context.training),
            context.seed,
            on_round=context.on_round,
            transform=_reflected if self.ascent == "reflection" else None,
        )


def _reflected(k: int, client: int, before: State, after: State) -> State:
    """2θ₀ − θ′ (published code)."""
    return {name: 2 * before[name] - value for name, value in after.items()}

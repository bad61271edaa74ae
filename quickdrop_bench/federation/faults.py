"""Clients that fail: they miss a round, are too late for it, or send an update that is not finite."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.seeding import generator

if TYPE_CHECKING:
    import torch

    from quickdrop_bench.functional.aggregation import State

CORRUPTED_VALUES = 3
"""Draws of a weight that becomes NaN in a corrupt update."""


class Fate(Enum):
    """What becomes of a client that was chosen for a round."""

    RETURNS = "returns"
    DROPPED = "dropped"
    """Nothing is computed, nothing sent."""
    LATE = "late"
    """It computes, and sends nothing: the round goes on without its update."""
    CORRUPT = "corrupt"
    """It computes, and its update arrives with values that are not finite."""


@dataclass(frozen=True)
class Faults:
    """How often clients fail, each in each round by itself.

    The rates are independent. A client that drops out can be nothing else, and one that is late sends nothing that
    could be corrupt: of all chosen clients, a share d drops out, (1 − d)·s are late and (1 − d)·(1 − s)·c corrupt.

    Attributes:
        dropout_rate: probability d in [0, 1) that a client drops out of a round.
        straggler_rate: probability s in [0, 1) that one is too late.
        corrupt_rate: probability c in [0, 1) that an update arrives corrupt. Above 0 the server rejects every update
            that is not finite, whether or not the corruption was drawn.
    """

    dropout_rate: float = 0.0
    straggler_rate: float = 0.0
    corrupt_rate: float = 0.0

    def __post_init__(self) -> None:
        for kind, rate in zip(("dropout", "straggler", "corrupt"), self._rates, strict=True):
            if not 0 <= rate < 1:
                raise BadInput(f"--{kind}-rate", rate, "a number at least 0 and below 1 is needed")

    @property
    def possible(self) -> bool:
        """Whether any rate is above 0."""
        return any(self._rates)

    @property
    def _rates(self) -> tuple[float, float, float]:
        return self.dropout_rate, self.straggler_rate, self.corrupt_rate

    def fates(
        self, seed: int, phase: str, round_: int, clients: Sequence[int], needed: Collection[int] | None = None
    ) -> dict[int, Fate]:
        """Draw what becomes of a round's clients; one client's luck does not depend on the others'.

        The one exception: if none of ``needed`` would return, the one of them whose lowest draw is the highest does.

        Args:
            seed: the run's seed.
            phase: name of the phase.
            round_: 0-based index of the round in the phase.
            clients: those that were chosen, at least one; the fates are in their order.
            needed: some of them, of whom one returns; None stands for all.
        """
        if not self.possible:
            return dict.fromkeys(clients, Fate.RETURNS)
        draws = {client: _draws(seed, phase, round_, client) for client in clients}
        fates = {client: self._fate(drawn) for client, drawn in draws.items()}
        least = clients if needed is None else sorted(needed)
        if all(fates[client] is not Fate.RETURNS for client in least):
            fates[max(least, key=lambda client: min(draws[client]))] = Fate.RETURNS
        return fates

    def _fate(self, draws: Sequence[float]) -> Fate:
        """The first fault that strikes: a draw in [0, 1) below its rate."""
        kinds = (Fate.DROPPED, Fate.LATE, Fate.CORRUPT)
        struck = (kind for kind, rate, drawn in zip(kinds, self._rates, draws, strict=True) if drawn < rate)
        return next(struck, Fate.RETURNS)


def _draws(seed: int, phase: str, round_: int, client: int) -> list[float]:
    """One draw per kind of fault, so that setting another rate leaves this kind's luck as it was."""
    import torch

    drawn: list[float] = torch.rand(3, generator=generator(seed, phase, "faults", round_, client)).tolist()
    return drawn


def corrupted(update: State, stream: torch.Generator) -> State:
    """A copy of a client's parameters with NaN for a few values of one of them."""
    import torch

    name = list(update)[int(torch.randint(len(update), (), generator=stream))]
    values = update[name].flatten().clone()
    positions = torch.randint(len(values), (CORRUPTED_VALUES,), generator=stream)
    values[positions.to(values.device)] = torch.nan
    return {**update, name: values.view_as(update[name])}

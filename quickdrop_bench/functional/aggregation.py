"""Server-side averaging of client states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["RunningMean", "State", "is_finite"]

State = dict[str, Tensor]


class RunningMean:
    """The sample-weighted mean Σᵢ (nᵢ/Σⱼnⱼ)·θᵢ (Algorithm 1, line 17), one client at a time.

    Only Σᵢ nᵢ·θᵢ is kept, whatever the number of clients, in float64 where the device has it. The mean of float32
    states is then, but for the last bit, the same in any order of the clients and however they are spread over
    processes, and it is exact for a single client and for equal states.

    Args:
        like: parameters by name with the shapes, dtypes and device of the states to come; not changed.

    Attributes:
        weight: Σᵢ nᵢ.
        totals: Σᵢ nᵢ·θᵢ by name. Several means become one where each of these, and the weight, is replaced by its sum.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self.weight = 0
        self.totals = {name: torch.zeros_like(value, dtype=_wide(value.device)) for name, value in like.items()}
        self._dtypes = {name: value.dtype for name, value in like.items()}

    def add(self, state: Mapping[str, Tensor], weight: int) -> None:
        """Take in a client's parameters, behind which are ``weight`` > 0 samples."""
        if weight <= 0:
            raise ValueError(f"weight must be positive, got {weight}")
        self.weight += weight
        for name, value in state.items():
            self.totals[name].add_(value.detach(), alpha=weight)

    def result(self) -> State:
        """The mean of what was added, at least one state."""
        if not self.weight:
            raise ValueError("no client state was added")
        return {name: (total / self.weight).to(self._dtypes[name]) for name, total in self.totals.items()}


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether every value of every tensor is finite."""
    return bool(torch.stack([value.isfinite().all() for value in state.values()]).all())


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64

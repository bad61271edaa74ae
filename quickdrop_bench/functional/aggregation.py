"""Server-side averaging of client states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

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


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> State:
    """The difference a − b, by name."""
    return {name: value - b[name] for name, value in a.items()}


def norm(state: Mapping[str, Tensor]) -> float:
    """The Euclidean norm over all parameters."""
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in state.values()])))


def flat(state: Mapping[str, Tensor], order: Iterable[str]) -> Tensor:
    """All parameters in an order of their names, (P,) float64 on the CPU."""
    return torch.cat([state[name].flatten().cpu().double() for name in order])


def moved(state: Mapping[str, Tensor], direction: Tensor, factor: float) -> State:
    """θ + factor·d for a (P,) direction d in the order of the state."""
    parts = direction.split([value.numel() for value in state.values()])
    return {n: v + factor * part.view_as(v).to(v) for (n, v), part in zip(state.items(), parts, strict=True)}


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64

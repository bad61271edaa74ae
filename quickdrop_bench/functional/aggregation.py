"""Server-side averaging of client states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["RunningMean", "State", "is_finite"]

State = dict[str, Tensor]


class RunningMean:
    """The sample-weighted mean Σᵢ (nᵢ/Σⱼnⱼ)·θᵢ (Algorithm 1, line 17), one client at a time.

    Only one state is kept, whatever the number of clients. The update ``mean += (θᵢ − mean)·nᵢ/n`` is exact
    for a single client and for equal states.
    """

    def __init__(self) -> None:
        self.weight = 0
        self._mean: State = {}

    def add(self, state: Mapping[str, Tensor], weight: int) -> None:
        """Take in a client's parameters.

        Args:
            state: parameters by name; the tensors are copied.
            weight: number of samples behind them, > 0.

        Raises:
            ValueError: ``weight`` is not positive.
        """
        if weight <= 0:
            raise ValueError(f"weight must be positive, got {weight}")
        self.weight += weight
        if not self._mean:
            self._mean = {name: value.detach().clone() for name, value in state.items()}
            return
        share = weight / self.weight
        for name, value in state.items():
            self._mean[name].lerp_(value.detach(), share)

    def result(self) -> State:
        """The mean so far.

        Raises:
            ValueError: nothing was added.
        """
        if not self._mean:
            raise ValueError("no client state was added")
        return self._mean


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether every value of every tensor is finite."""
    return bool(torch.stack([value.isfinite().all() for value in state.values()]).all())

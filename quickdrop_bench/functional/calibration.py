"""FedEraser's calibration: how far a client once went, in the direction in which it goes now."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quickdrop_bench.functional.aggregation import State

NO_DIRECTION = 1e-12
"""A fresh update with a smaller norm points nowhere: its calibrated update is zero."""


def calibrate(stored: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> State:
    """‖U‖·Û/‖Û‖ per tensor, with Euclidean norms (Liu et al., IWQoS 2021).

    Args:
        stored: U by parameter name, the update of the original training; gives the length.
        fresh: Û, likewise, of the calibration training; gives the direction. A tensor whose norm is below
            :data:`NO_DIRECTION` becomes zero; one whose norm is not finite becomes NaN.
    """
    calibrated: State = {}
    for name, update in fresh.items():
        # Decided on the device: reading the norms would make a GPU wait once per tensor.
        norm = torch.linalg.vector_norm(update)
        growth = torch.linalg.vector_norm(stored[name]) / norm.clamp_min(NO_DIRECTION)
        growth = growth.where(norm >= NO_DIRECTION, 0.0)
        # Divided by an infinite norm, a diverged update would look like one without direction.
        calibrated[name] = update * growth.where(norm.isfinite(), torch.nan)
    return calibrated


def largest_growth(stored: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> float:
    """The largest ‖U‖/‖Û‖ over the tensors that have a direction, 0 if none has; waits for the device."""
    norms = {name: float(torch.linalg.vector_norm(update)) for name, update in fresh.items()}
    return max(
        (float(torch.linalg.vector_norm(stored[name])) / norm for name, norm in norms.items() if norm >= NO_DIRECTION),
        default=0.0,
    )

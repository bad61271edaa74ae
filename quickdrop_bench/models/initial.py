"""Initial parameters, drawn anew for a model that exists already."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["draw_parameters"]


def draw_parameters(model: nn.Module, seed: int) -> None:
    """Draw the initial parameters of a model, in place, by each module's own ``reset_parameters``.

    The numbers are drawn on the model's device; torch's global random state, there and on the CPU, is left as it
    was.

    Args:
        model: on any one device. On the CPU and in torch's default precision it ends up as it would if it were
            built right after ``torch.manual_seed(seed)``.
        seed: at least 0, below 2⁶³.
    """
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()

"""Initial parameters, drawn anew for a model that exists already."""

from __future__ import annotations

import copy

import torch
from torch import nn


def draw_parameters(model: nn.Module, seed: int) -> None:
    """Draw the initial parameters of a model, in place, by each module's own ``reset_parameters``.

    The model ends up as if it were built on the CPU right after ``torch.manual_seed(seed)``, wherever it lies, so that
    runs on different devices start alike; torch's global random state is left as it was.
    """
    drawn = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for module in drawn.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        for parameter, value in zip(model.parameters(), drawn.parameters(), strict=True):
            parameter.copy_(value)

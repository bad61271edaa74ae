"""Residual connections."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """``body(x) + shortcut(x)``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape that both take and give alike."""
        total: Tensor = self.body(x) + self.shortcut(x)
        return total

"""Average pooling for CPUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 2**19
"""Elements up to which one kernel of the library beats several."""


def _squares(side: int) -> Tensor:
    """(side², side²/4): a quarter where a pixel lies in a square."""
    row, column = torch.arange(side**2) // side, torch.arange(side**2) % side
    return 0.25 * F.one_hot(row // 2 * (side // 2) + column // 2, (side // 2) ** 2).float()


SQUARES = {side: _squares(side) for side in (2, 4, 6, 8)}
"""By side, what averages the squares of images for which one product beats the library's pooling.

They are made at import: made at the first call, they would keep that call's mode (inference, export)."""


class HalvingPool(nn.Module):
    """``nn.AvgPool2d(2)`` for even sides.

    A CPU adds slices of large tensors five times as fast as it pools, and multiplies 8×8 images four times as fast.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Average 2×2 squares: (B, C, 2h, 2w) to (B, C, h, w)."""
        if _is_traced() or images.device.type != "cpu":
            return F.avg_pool2d(images, 2)
        b, c, height, width = images.shape
        # Under autocast the product would be rounded, which pooling is not.
        if height == width and width in SQUARES and not torch.is_autocast_enabled("cpu"):
            product = images.reshape(-1, height * width) @ SQUARES[width].to(images.dtype)
            return product.view(b, c, height // 2, width // 2)
        if images.numel() <= SMALL:
            return F.avg_pool2d(images, 2)
        of_slices: Tensor = _Slices.apply(images)
        return of_slices


def halving(side: int) -> nn.Module:
    """Average pooling of 2×2 squares for images of this side; an odd last row and column are left out."""
    return nn.AvgPool2d(2) if side % 2 else HalvingPool()


def _is_traced() -> bool:
    """Whether the model is written to a file, which should say average pooling, or compiled."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]


class _Slices(torch.autograd.Function):
    """The sum of slices; autograd by itself would make a tensor of zeros for each of them."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        rows: Tensor = images.unflatten(2, (-1, 2))
        pairs = rows[:, :, :, 0] + rows[:, :, :, 1]
        return (pairs[..., ::2] + pairs[..., 1::2]) * 0.25

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return spread_over_squares(gradient)


def spread_over_squares(gradient: Tensor) -> Tensor:
    """The gradient of averaging 2×2 squares: (B, C, h, w) to (B, C, 2h, 2w), a quarter everywhere."""
    b, c, h, w = gradient.shape
    if gradient.device.type == "cpu" and h == w and 2 * w in SQUARES:
        return (gradient.reshape(-1, h * w) @ SQUARES[2 * w].to(gradient.dtype).T).view(b, c, 2 * h, 2 * w)
    quarter = gradient * 0.25
    if gradient.device.type != "cpu":
        return quarter[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)
    rows = gradient.new_empty(b, c, h, 2, 2 * w)
    first = rows[:, :, :, 0]
    first[..., ::2] = quarter
    first[..., 1::2] = quarter
    rows[:, :, :, 1] = first
    return rows.view(b, c, 2 * h, 2 * w)

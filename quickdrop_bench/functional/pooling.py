"""Average pooling for CPUs."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HalvingPool(nn.Module):
    """``nn.AvgPool2d(2)`` for even sides.

    A CPU multiplies pairs of rows by :func:`quarters` 2 to 9 times as fast as it pools images of 4×4 to 64×64 pixels,
    and 1.8 times as fast those of 224×224.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Average 2×2 squares: (B, C, 2h, 2w) to (B, C, h, w)."""
        if _is_traced() or images.device.type != "cpu":
            return F.avg_pool2d(images, 2)
        b, c, height, width = images.shape
        with torch.autocast("cpu", enabled=False):  # which would round float32; pooling does not
            product = images.reshape(-1, 2 * width) @ quarters(width).to(images.dtype)
        return product.view(b, c, height // 2, width // 2)


def halving(side: int) -> nn.Module:
    """Average pooling of 2×2 squares for images of this side; an odd last row and column are left out."""
    return nn.AvgPool2d(2) if side % 2 else HalvingPool()


def spread_over_squares(gradient: Tensor) -> Tensor:
    """The gradient of averaging 2×2 squares: (B, C, h, w) to (B, C, 2h, 2w), a quarter everywhere."""
    b, c, h, w = gradient.shape
    if gradient.device.type == "cpu":
        return (gradient.reshape(-1, w) @ quarters(2 * w).to(gradient.dtype).T).view(b, c, 2 * h, 2 * w)
    quarter = gradient * 0.25
    return quarter[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)


@cache
def quarters(width: int) -> Tensor:
    """(2·width, width/2): a quarter where a pixel of two rows, one behind the other, lies in a square."""
    with torch.inference_mode(False):  # it is kept, and the first call may have been made in that mode
        columns = torch.arange(2 * width, device="cpu") % width // 2
        return 0.25 * F.one_hot(columns, width // 2).float()


def _is_traced() -> bool:
    """Whether the model is written to a file, which should say average pooling, or compiled."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]

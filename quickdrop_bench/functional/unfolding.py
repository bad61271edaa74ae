"""Convolutions as products with the unfolded input, all windows side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickdrop_bench.functional.classes import Classes

UNFOLDED = 2**18
"""Most elements of an unfolded input for which products with it beat convolutions class by class."""

THIN = 4
"""Most channels of an input, as a picture's, with which products image by image took half of the time to two thirds.

On a CPU the convolution itself is such a product too."""


def class_products(x: Tensor, g: Tensor, m: nn.Conv2d, classes: Classes) -> Tensor:
    """Each class's gradient of a small convolution's weight, (K, *weight.shape).

    Args:
        x: (M, C, H, W) inputs.
        g: (M, out, h, w) gradients at the outputs.
        m: the convolution.
        classes: sorted ones.
    """
    if by_image(m):
        return image_products(columns_of(x, m), g.flatten(2), classes).view(-1, *m.weight.shape)
    return summed_by_class(rows_of(x, m, padding_of(m)), g, m, classes.sizes)


def image_products(columns: Tensor, g: Tensor, classes: Classes) -> Tensor:
    """Σ over a class's images of g·columnsᵀ: from (M, n, L) and (M, out, L) to (K, out·n)."""
    return classes.summed(torch.bmm(g, columns.mT).flatten(1))


def summed_by_class(rows: Tensor, g: Tensor, m: nn.Conv2d, sizes: Sequence[int]) -> Tensor:
    """Each class's gradient of the weight from the rows of inputs and the gradients at the outputs, both sorted."""
    of_g = g.flatten(2).mT
    counts = [size * of_g.shape[1] for size in sizes]
    parts = zip(rows.split(counts), of_g.flatten(0, 1).split(counts), strict=True)
    sums = torch.stack([b.T @ a for a, b in parts])
    return sums.view(len(sums), -1, *m.kernel_size, m.weight.shape[1]).permute(0, 1, 4, 2, 3).contiguous()


def by_client(x: Tensor, m: nn.Conv2d) -> Tensor:
    """(M, n·C, H, W) to (M·n, C, H, W)."""
    return x.reshape(-1, x.shape[1] // m.groups, *x.shape[2:])


def columns_of(x: Tensor, m: nn.Conv2d) -> Tensor:
    """``F.unfold`` in two kernels, (M, C·rows·cols, h·w): on CUDA the library's launches one for every image."""
    return _windows(x, m, padding_of(m)).permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


def product_of(columns: Tensor, x: Tensor, m: nn.Conv2d) -> Tensor:
    """The convolution of x, (M, n·C, H, W) of n groups, by its columns (M·n, C·rows·cols, h·w).

    On a CPU, the library's convolution of a picture takes up to four times as long.
    """
    by_group = m.weight.view(m.groups, -1, columns.shape[1]) @ columns.unflatten(0, (-1, m.groups))
    y: Tensor = by_group.view(len(x), -1, *_output_size(x, m))
    return y if m.bias is None else y.add_(m.bias.view(-1, 1, 1))


def rows_of(x: Tensor, m: nn.Conv2d, padding: tuple[int, int]) -> Tensor:
    """The same with a row per window, (M·h·w, rows·cols·C), channels last: in a fifth of ``F.unfold``'s time on a CPU.

    Args:
        x: (M, C, H, W).
        m: the convolution, whose windows and strides these are.
        padding: zeros above and below, left and right.
    """
    windows = _windows(x.contiguous(memory_format=torch.channels_last), m, padding)
    return windows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(0, 2)


def _windows(x: Tensor, m: nn.Conv2d, padding: tuple[int, int]) -> Tensor:
    """A view, (M, C, h, w, rows, cols), of padded images."""
    (down, right), (rows, cols) = padding, m.kernel_size
    return F.pad(x, (right, right, down, down)).unfold(2, rows, m.stride[0]).unfold(3, cols, m.stride[1])


def folded(columns: Tensor, x: Tensor, m: nn.Conv2d) -> Tensor:
    """``F.fold`` as a sum of shifted images in the shape of x, for the same reason."""
    (down, right), (rows, cols), (by, along) = padding_of(m), m.kernel_size, m.stride
    n, c, height, width = x.shape
    h, w = _output_size(x, m)
    parts = columns.view(n, c, rows, cols, h, w)
    total = x.new_zeros(n, c, height + 2 * down, width + 2 * right)
    for i in range(rows):
        for j in range(cols):
            total[:, :, i : i + by * h : by, j : j + along * w : along] += parts[:, :, i, j]
    return total[:, :, down : down + height, right : right + width]


def _output_size(x: Tensor, m: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns of the convolution's output."""
    (down, right), (rows, cols), (by, along) = padding_of(m), m.kernel_size, m.stride
    return (x.shape[2] + 2 * down - rows) // by + 1, (x.shape[3] + 2 * right - cols) // along + 1


def padding_of(m: nn.Conv2d) -> tuple[int, int]:
    """Zeros above and below, left and right."""
    assert not isinstance(m.padding, str)
    down, right = m.padding
    return int(down), int(right)


def is_small(m: nn.Conv2d, x: Tensor) -> bool:
    """Whether products with the unfolded input x beat convolutions class by class."""
    return x.numel() * math.prod(m.kernel_size) <= UNFOLDED


def is_thin(m: nn.Conv2d) -> bool:
    """Whether one product an image beats whatever goes class by class."""
    return m.weight.shape[1] <= THIN


def by_image(m: nn.Conv2d) -> bool:
    """Whether a small input is multiplied image by image: products class by class take no strides."""
    return is_thin(m) or m.stride != (1, 1)

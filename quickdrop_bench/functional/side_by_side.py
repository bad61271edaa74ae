"""Several models of one kind as one, side by side along the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _Columns(nn.Module):
    """Flattens to images of 1×1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[..., None, None]


class _Rows(nn.Module):
    """From (B, n·C, 1, 1) to the logits, (B·n, C)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, self._classes)


def side_by_side(sequence: Sequence[nn.Module], n: int) -> nn.Sequential:
    """A model of n clients with weights of their own, from (B, n·C, H, W) images to (B·n, classes) logits.

    A convolution has a group for each client, and a linear layer is one on 1×1 images. Each parameter is (n, *shape) of
    the client's, with the first two dimensions in one.

    Args:
        sequence: the layers of one client's model, as ``layers.is_listed`` wants them.
        n: how many clients.

    Returns:
        A model on the CPU whose parameters are yet to be set; torch's random state is left as it was.
    """
    with torch.device("meta"):
        layers = [_stacked(m, n) for m in sequence]
    return nn.Sequential(*layers, _Rows(classes_of(sequence))).to_empty(device="cpu")


def classes_of(sequence: Sequence[nn.Module]) -> int:
    """Outputs of the last linear layer."""
    return next(m.out_features for m in reversed(sequence) if isinstance(m, nn.Linear))


def _stacked(m: nn.Module, n: int) -> nn.Module:
    """What a layer is for n clients with weights of their own."""
    match m:
        case nn.Conv2d():
            options: dict[str, Any] = {"kernel_size": m.kernel_size, "stride": m.stride, "padding": m.padding}
            options["bias"] = m.bias is not None
            return nn.Conv2d(n * m.in_channels, n * m.out_channels, groups=n, **options)
        case nn.Linear():
            return nn.Conv2d(n * m.in_features, n * m.out_features, 1, groups=n, bias=m.bias is not None)
        case nn.GroupNorm():
            return nn.GroupNorm(n * m.num_groups, n * m.num_channels, m.eps)
        case nn.Flatten():
            return _Columns()
        case _:
            return m

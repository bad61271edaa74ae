"""Several models of one kind as one, side by side along the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _Rows(nn.Module):
    """Flattens (B, n·C, H, W) to a row per image of each client, (B·n, C·H·W)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self._n = n

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x) * self._n, -1)


class StackedLinear(nn.Module):
    """The linear layers of n clients, whose rows take turns."""

    def __init__(self, n: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self._n = n
        self.weight = nn.Parameter(torch.empty(n * outputs, inputs))
        self.bias = nn.Parameter(torch.empty(n * outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B·n, inputs) to (B·n, outputs)."""
        y = self.product(x)
        return y if self.bias is None else (y.view(-1, len(self.bias)) + self.bias).view_as(y)

    def product(self, x: Tensor) -> Tensor:
        """The same without the bias."""
        return self.times(x, self.weight.view(self._n, -1, x.shape[1]).mT)

    def transposed(self, g: Tensor) -> Tensor:
        """From (B·n, outputs) back to (B·n, inputs)."""
        return self.times(g, self.weight.view(self._n, g.shape[1], -1))

    def times(self, rows: Tensor, of_clients: Tensor) -> Tensor:
        """Each client's rows times its own matrix, (n, values of a row, ...)."""
        return (self.by_client(rows) @ of_clients).transpose(0, 1).flatten(0, 1)

    def by_client(self, rows: Tensor) -> Tensor:
        """(B·n, ...) to (n, B, ...)."""
        return rows.view(-1, self._n, rows.shape[1]).transpose(0, 1)


def side_by_side(sequence: Sequence[nn.Module], n: int) -> nn.Sequential:
    """A model of n clients with weights of their own, from (B, n·C, H, W) images to (B·n, classes) logits.

    A convolution has a group for each client, and a linear layer a product. Each parameter is (n, *shape) of
    the client's, with the first two dimensions in one.

    Args:
        sequence: the layers of one client's model, as ``layers.is_listed`` wants them.
        n: how many clients.

    Returns:
        A model on the CPU whose parameters are yet to be set; torch's random state is left as it was.
    """
    with torch.device("meta"):
        layers = [_stacked(m, n) for m in sequence]
    return nn.Sequential(*layers).to_empty(device="cpu")


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
            return StackedLinear(n, m.in_features, m.out_features, m.bias is not None)
        case nn.GroupNorm():
            return nn.GroupNorm(n * m.num_groups, n * m.num_channels, m.eps)
        case nn.Flatten():
            return _Rows(n)
        case _:
            return m

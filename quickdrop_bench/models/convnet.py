"""The ConvNet of the paper (§4.1): [W filters, normalisation, ReLU, average pooling] × D, then a linear layer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.models.registry import MODELS

if TYPE_CHECKING:
    from torch import nn

NORMS = ("instance", "layer", "none")
"""Normalisations on offer. None of them couples the samples of a batch, which averaging and class-wise
gradients rely on; batch normalisation would."""


@MODELS.register("convnet")
@dataclass(frozen=True)
class ConvNet:
    """A stack of 3×3 convolution blocks and a linear classifier.

    The default has 320 010 parameters on 3×32×32 images and 317 706 on 1×28×28 ones (10 classes). On 28×28
    images the first convolution pads by 3, which makes them 32×32.

    Attributes:
        width: W, filters of each block.
        depth: D, number of blocks; each halves the image.
        norm: one of :data:`NORMS`.

    Raises:
        BadInput: there is no such normalisation.

    Example:
        >>> sum(p.numel() for p in ConvNet().build(3, 32, 10).parameters())
        320010
    """

    title: ClassVar[str] = "ConvNet"
    summary: ClassVar[str] = "the paper's: blocks of convolution, normalisation, ReLU and average pooling"

    width: int = 128
    depth: int = 3
    norm: str = "instance"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise BadInput("--norm", self.norm, f"use one of {', '.join(NORMS)}")

    def build(self, channels: int, image_size: int, classes: int) -> nn.Sequential:
        """See :class:`~quickdrop_bench.models.registry.Model`."""
        from torch import nn

        from quickdrop_bench.functional.pooling import halving

        side = 32 if image_size == 28 else image_size
        if side >> self.depth < 1:
            raise BadInput(
                "--depth", self.depth, f"images of {image_size} pixels can be halved {side.bit_length() - 1} times"
            )
        groups = {"instance": self.width, "layer": 1}.get(self.norm)
        layers: list[nn.Module] = []
        for block in range(self.depth):
            padding = 3 if block == 0 and image_size == 28 else 1
            layers += [
                nn.Conv2d(self.width if block else channels, self.width, 3, padding=padding),
                nn.GroupNorm(groups, self.width) if groups else nn.Identity(),
                nn.ReLU(inplace=True),
                halving(side >> block),
            ]
        classifier = nn.Linear(self.width * (side >> self.depth) ** 2, classes)
        return nn.Sequential(OrderedDict(features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=classifier))

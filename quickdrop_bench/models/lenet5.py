"""LeNet-5 (LeCun et al., Proceedings of the IEEE 1998) with ReLUs and a linear last layer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.models.registry import MODELS

if TYPE_CHECKING:
    from torch import nn


@MODELS.register("lenet5")
@dataclass(frozen=True)
class LeNet5:
    """Two 5×5 convolutions of 6 and 16 filters, each with average pooling, then layers of 120, 84 and C units.

    It was made for 32×32 pixels. The first convolution pads 28×28 images to that size; on smaller ones, such as the
    8×8 digits, both convolutions pad by 2, so that the pooling alone shrinks the image.

    Example:
        >>> sum(p.numel() for p in LeNet5().build(1, 32, 10).parameters())
        61706
    """

    title: ClassVar[str] = "LeNet-5"
    summary: ClassVar[str] = "two 5×5 convolutions with average pooling, three linear layers, no normalisation"

    def build(self, channels: int, image_size: int, classes: int) -> nn.Sequential:
        """See :class:`~quickdrop_bench.models.registry.Model`."""
        from torch import nn

        from quickdrop_bench.functional.pooling import halving

        if image_size < 4:
            raise BadInput("--model", "lenet5", f"images of at least 4 pixels are needed, these have {image_size}")
        first, second = 2 if image_size <= 28 else 0, 2 if image_size < 28 else 0
        outer = image_size + 2 * first - 4
        inner = outer // 2 + 2 * second - 4
        features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=first),
            nn.ReLU(),
            halving(outer),
            nn.Conv2d(6, 16, 5, padding=second),
            nn.ReLU(),
            halving(inner),
        )
        classifier = nn.Sequential(
            nn.Linear(16 * (inner // 2) ** 2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)
        )
        return nn.Sequential(OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier))

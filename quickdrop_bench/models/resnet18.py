"""ResNet-18 (He et al., CVPR 2016) for small images, with group normalisation."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.models.registry import MODELS

if TYPE_CHECKING:
    from torch import nn

GROUPS = 2
"""Groups of every normalisation, as the field takes where batches must not couple (Hsieh et al., ICML 2020; Reddi et
al., ICLR 2021)."""


@MODELS.register("resnet18")
@dataclass(frozen=True)
class ResNet18:
    """Eight residual blocks of two 3×3 convolutions, with the stem of He et al. for CIFAR-10.

    The stem is one 3×3 convolution without pooling. Three blocks halve the image, rounding up, and an average over the
    picture ends it, so that it takes images of any size.

    Attributes:
        filters: of the first two blocks, an even number; they double where the image is halved.

    Example:
        >>> sum(p.numel() for p in ResNet18().build(3, 32, 10).parameters())
        11173962
    """

    title: ClassVar[str] = "ResNet-18"
    summary: ClassVar[str] = "residual network with group normalisation and a stem for small images"

    filters: int = 64

    def build(self, channels: int, image_size: int, classes: int) -> nn.Sequential:
        """See :class:`~quickdrop_bench.models.registry.Model`."""
        from torch import nn

        stages: list[nn.Module] = []
        inputs = self.filters
        for outputs in (self.filters << stage for stage in range(4)):
            stages += [_block(inputs, outputs, 1 if inputs == outputs else 2), _block(outputs, outputs, 1)]
            inputs = outputs
        return nn.Sequential(
            OrderedDict(
                stem=nn.Sequential(*_convolution(channels, self.filters, 3), nn.ReLU(inplace=True)),
                stages=nn.Sequential(*stages),
                head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)),
            )
        )


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    """With its normalisation."""
    from torch import nn

    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return [conv, nn.GroupNorm(GROUPS, outputs)]


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    from torch import nn

    from quickdrop_bench.functional.residual import Residual

    body = nn.Sequential(
        *_convolution(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *_convolution(outputs, outputs, 3)
    )
    changes = inputs != outputs
    shortcut = nn.Sequential(*_convolution(inputs, outputs, 1, stride)) if changes else nn.Identity()
    return nn.Sequential(Residual(body, shortcut), nn.ReLU(inplace=True))

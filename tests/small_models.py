"""A small setting of every registered model, for 8×8 images and larger ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from quickdrop_bench.functional.residual import Residual
from quickdrop_bench.models import MODELS, Model
from quickdrop_bench.models.convnet import NORMS, ConvNet
from quickdrop_bench.models.lenet5 import LeNet5
from quickdrop_bench.models.resnet18 import ResNet18

SMALL: dict[str, Model] = {
    "convnet": ConvNet(width=4, depth=2),
    "lenet5": LeNet5(),
    "resnet18": ResNet18(filters=4),
}
"""By name; a model without one fails collection."""

for _name in MODELS:
    assert _name in SMALL, f"{_name} has no small test setting in {__file__}"

CONVNETS = {norm: ConvNet(width=4, depth=2, norm=norm) for norm in NORMS}
EACH = [*CONVNETS.values(), *(model for name, model in SMALL.items() if name != "convnet")]
"""All of them, the ConvNet with each normalisation."""


@dataclass(frozen=True)
class Odd(Model):
    """Strides, groups, dilation, layers that overwrite outputs of convolutions, logits from a convolution."""

    def build(self, channels: int, image_size: int, classes: int) -> nn.Module:
        rows = [nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, padding=2, dilation=2)]
        rows += [nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.GroupNorm(2, 6)]
        return nn.Sequential(
            Residual(nn.Sequential(*rows), nn.Conv2d(channels, 6, 1, 2)), nn.Conv2d(6, classes, 4), nn.Flatten()
        )


@dataclass(frozen=True)
class Strided(Model):
    """Of layers that are written out."""

    def build(self, channels: int, image_size: int, classes: int) -> nn.Module:
        first = nn.Conv2d(channels, 4, 3, 2, 1), nn.GroupNorm(4, 4), nn.ReLU(), nn.Conv2d(4, 3, 2, (1, 2))
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(18, classes))

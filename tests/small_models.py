"""A small setting of every registered model, for 8×8 images and larger ones."""

from __future__ import annotations

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

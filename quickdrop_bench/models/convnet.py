"""The ConvNet of the paper (§4.1): [W filters, normalisation, ReLU, average pooling] × D, then a linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.functional.pooling import HalvingPool

__all__ = ["NORMS", "ConvNet", "prunable_layers"]

NORMS = ("instance", "layer", "none")
"""Normalisations on offer. None of them couples the samples of a batch, which averaging and class-wise
gradients rely on; batch normalisation would."""


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "instance":
        return nn.GroupNorm(channels, channels)
    return nn.GroupNorm(1, channels) if kind == "layer" else nn.Identity()


class ConvNet(nn.Module):
    """A stack of 3×3 convolution blocks and a linear classifier.

    The default has 320 010 parameters on 3×32×32 images and 317 706 on 1×28×28 ones (10 classes). On 28×28
    images the first convolution pads by 3, which makes them 32×32.

    Args:
        channels: image channels C.
        image_size: image height and width H = W, in pixels.
        classes: number of classes.
        width: W, filters of each block.
        depth: D, number of blocks; each halves the image.
        norm: one of :data:`NORMS`.

    Raises:
        BadInput: an option is out of range, or the image is too small for the depth.

    Example:
        >>> sum(p.numel() for p in ConvNet(3, 32, 10).parameters())
        320010
    """

    def __init__(
        self, channels: int, image_size: int, classes: int, width: int = 128, depth: int = 3, norm: str = "instance"
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise BadInput("--norm", norm, f"use one of {', '.join(NORMS)}")
        side = 32 if image_size == 28 else image_size
        if side >> depth < 1:
            raise BadInput(
                "--depth", depth, f"images of {image_size} pixels can be halved {side.bit_length() - 1} times"
            )
        layers: list[nn.Module] = []
        for block in range(depth):
            padding = 3 if block == 0 and image_size == 28 else 1
            layers += [
                nn.Conv2d(width if block else channels, width, 3, padding=padding),
                _norm(norm, width),
                nn.ReLU(inplace=norm != "none"),  # behind a convolution alone it would overwrite what is recorded
                nn.AvgPool2d(2) if (side >> block) % 2 else HalvingPool(),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (side >> depth) ** 2, classes)

    @property
    def sequence(self) -> tuple[nn.Module, ...]:
        """The layers in the order in which they run."""
        return (*self.features, nn.Flatten(), self.classifier)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) float32 normalised images to (B, classes) logits."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def prunable_layers(model: nn.Module) -> list[tuple[str, str | None]]:
    """The convolutions, whose channels can be pruned, and the normalisation right behind each.

    The classifier is not among them. A channel is zero behind its layer if its parameters of both modules are.

    Args:
        model: a :class:`ConvNet`, or any model that lists its modules in the order in which they run.

    Returns:
        Module names, in order: of the convolution, and of the normalisation or None.

    Example:
        >>> prunable_layers(ConvNet(1, 8, 3, width=4, depth=2))
        [('features.0', 'features.1'), ('features.4', 'features.5')]
    """
    leaves = [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]
    behind = [(name if isinstance(module, nn.GroupNorm) else None) for name, module in leaves[1:]] + [None]
    return [(name, norm) for (name, module), norm in zip(leaves, behind, strict=True) if isinstance(module, nn.Conv2d)]

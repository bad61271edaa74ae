"""EMNIST, whose files hold every image with rows and columns exchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase, digits

from quickdrop_bench.data.datasets import DATASETS, RawData
from quickdrop_bench.data.sources.downloaded import Torchvision


@DATASETS.register("emnist")
class EMNIST(Torchvision):
    """Cohen et al., 2017, split "balanced": lower-case letters that look like the capitals count as those.

    torchvision's files do not say who wrote an image, so that clients cannot be writers.
    """

    summary = "131 600 handwritten digits and letters, 47 classes, 28×28"
    classes, mean, std = (*digits, *ascii_uppercase, *"abdefghnqrt"), (0.1751,), (0.3332,)
    splits = ({"split": "balanced", "train": True}, {"split": "balanced", "train": False})

    def load(self, data_dir: Path, image_size: int | None, download: bool) -> RawData:
        """Read both splits, upright."""
        raw = super().load(data_dir, image_size, download)
        train, test = (images.mT.contiguous() for images in (raw.train_images, raw.test_images))
        return replace(raw, train_images=train, test_images=test)

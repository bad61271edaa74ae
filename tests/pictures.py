"""Small image folders, for data sets of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def make_pictures(root: Path, names: Sequence[str] = "ab", train: int = 8, test: int = 2, seed: int = 0) -> Path:
    """``train/<class>/*`` and ``test/<class>/*``: noise of 8×8 pixels, brighter with every class."""
    stream, step = np.random.default_rng(seed), 256 // len(names)
    for split, count in (("train", train), ("test", test)):
        for c, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = stream.integers(step * c, step * c + step - 10, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
    return root

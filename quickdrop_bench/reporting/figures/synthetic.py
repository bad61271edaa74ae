"""Synthetic images under the real ones that they began as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quickdrop_bench.reporting.figures.style import WIDTH, put_title, save_picture, say, style

COLUMNS = 10
GAP = 2
"""White pixels between two images."""


def write_sheet(folder: Path, real: np.ndarray, synthetic: np.ndarray, labels: Sequence[str], title: str) -> list[Path]:
    """Write ``synthetic.svg`` and ``synthetic.png``: each real image above what became of it.

    Args:
        folder: where to.
        real: (n, H, W, C) or (n, H, W), in [0, 1].
        synthetic: of the same shape; values outside [0, 1] are clipped, and none is shown black.
        labels: the class of each pair.
        title: of the picture.

    Returns:
        The files written.
    """
    starts = range(0, max(len(real), 1), COLUMNS)
    with style():
        figure = Figure(figsize=(WIDTH, 1.75 * len(starts) + 0.4), layout="constrained")
        put_title(figure, title, fontweight="bold")
        for start, axes in zip(starts, figure.subplots(len(starts), 1, squeeze=False)[:, 0], strict=True):
            part = slice(start, start + COLUMNS)
            _draw_pairs(axes, _with_channels(real[part]), _with_channels(synthetic[part]), labels[part])
        return save_picture(figure, folder / "synthetic")


def _with_channels(images: np.ndarray) -> np.ndarray:
    """(n, H, W, 3) in [0, 1]."""
    images = images[..., None] if images.ndim == 3 else images
    return np.asarray(np.clip(np.nan_to_num(np.broadcast_to(images, (*images.shape[:3], 3))), 0, 1))


def _draw_pairs(axes: Axes, real: np.ndarray, synthetic: np.ndarray, labels: Sequence[str]) -> None:
    """Up to :data:`COLUMNS` pairs side by side, as one raster."""
    count, height, width, _ = real.shape
    if count == 0:
        say(axes, "no synthetic images")
        return
    canvas = np.ones((2 * height + GAP, COLUMNS * (width + GAP) - GAP, 3))
    lefts = np.arange(count) * (width + GAP)
    for left, above, below in zip(lefts, real, synthetic, strict=True):
        canvas[:height, left : left + width] = above
        canvas[height + GAP :, left : left + width] = below
    axes.imshow(canvas, interpolation="nearest")
    tilted: dict[str, Any] = {"rotation": 30, "ha": "left"} if max(map(len, labels)) > 9 else {}
    axes.set_xticks(lefts + (width - 1) / 2, list(labels), **tilted)
    axes.set_yticks([(height - 1) / 2, 1.5 * height + GAP - 0.5], ["real", "synthetic"])
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)

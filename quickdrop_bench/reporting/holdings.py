"""Who holds what, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from quickdrop_bench.reporting.looks import BLUE, style

__all__ = ["distribution_image", "holdings"]


def holdings(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Clients × classes; the area of a disc is the number of images.

    Args:
        counts: (N, classes) training images per client and class.
        class_names: one per class.
        title: of the picture.
    """
    clients, classes = counts.shape
    width = max(4.5, 1.8 + 0.42 * classes)
    figure = Figure(figsize=(width, max(3.0, 1.6 + 0.3 * clients)), layout="constrained")
    axes = figure.add_subplot()
    rows, columns = np.nonzero(counts)
    sizes = 160 * counts[rows, columns] / max(counts.max(), 1)
    axes.scatter(columns, rows, s=sizes, color=BLUE, linewidths=0)
    axes.set_xticks(range(classes), class_names, rotation=45 if max(map(len, class_names)) > 3 else 0)
    step = max(1, clients // 20)
    labels = [f"{i}  ({int(counts[i].sum())})" for i in range(0, clients, step)]
    axes.set_yticks(range(0, clients, step), labels)
    axes.set(xlim=(-0.7, classes - 0.3), ylim=(clients - 0.3, -0.7), xlabel="class", ylabel="client  (images)")
    axes.set_title(f"{title}\nlargest disc: {int(counts.max())} images")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure


def distribution_image(counts: np.ndarray, class_names: Sequence[str], title: str) -> Image.Image:
    """The same picture as pixels."""
    buffer = BytesIO()
    with style():
        holdings(counts, class_names, title).savefig(buffer, format="png", dpi=100)
    return Image.open(buffer)

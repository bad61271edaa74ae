"""Who holds what, as a picture and as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from quickdrop_bench.core.files import write_text
from quickdrop_bench.reporting.figures.style import BLUE, save_picture, style


def write_distribution(folder: Path, counts: np.ndarray, class_names: Sequence[str], title: str) -> list[Path]:
    """Write ``distribution.csv``, ``.svg`` and ``.png``.

    Args:
        folder: where to.
        counts: (N, classes) training images per client and class.
        class_names: one per class.
        title: of the picture.

    Returns:
        The files written.
    """
    frame = pd.DataFrame(counts, columns=list(class_names))
    frame.insert(0, "client", range(len(counts)))
    frame["total"] = counts.sum(1)
    table = folder / "distribution.csv"
    write_text(table, frame.to_csv(index=False))
    with style():
        return [table, *save_picture(_draw(counts, class_names, title), folder / "distribution")]


def distribution_image(counts: np.ndarray, class_names: Sequence[str], title: str) -> Image.Image:
    """The same picture as pixels."""
    buffer = BytesIO()
    with style():
        _draw(counts, class_names, title).savefig(buffer, format="png", dpi=100)
    return Image.open(buffer)


def _draw(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Clients × classes; the area of a disc is the number of images."""
    clients, classes = counts.shape
    figure = Figure(figsize=(max(4.5, 1.8 + 0.42 * classes), max(3.0, 1.6 + 0.3 * clients)), layout="constrained")
    axes = figure.add_subplot()
    rows, columns = np.nonzero(counts)
    axes.scatter(columns, rows, s=160 * counts[rows, columns] / max(counts.max(), 1), color=BLUE, linewidths=0)
    axes.set_xticks(range(classes), class_names, rotation=45 if max(map(len, class_names)) > 3 else 0)
    step = max(1, clients // 20)
    labels = [f"{i}  ({int(counts[i].sum())})" for i in range(0, clients, step)]
    axes.set_yticks(range(0, clients, step), labels)
    axes.set(xlim=(-0.7, classes - 0.3), ylim=(clients - 0.3, -0.7), xlabel="class", ylabel="client  (images)")
    axes.set_title(f"{title}\nlargest disc: {int(counts.max())} images")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure

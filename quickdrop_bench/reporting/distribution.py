"""Who holds what: the partition as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from quickdrop_bench.core.files import write_text
from quickdrop_bench.reporting.holdings import holdings
from quickdrop_bench.reporting.looks import style
from quickdrop_bench.reporting.pictures import save_picture

__all__ = ["write_distribution"]


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
        return [table, *save_picture(holdings(counts, class_names, title), folder / "distribution")]

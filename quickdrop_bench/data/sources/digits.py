"""scikit-learn's digits, which need no download."""

from __future__ import annotations

from pathlib import Path

from quickdrop_bench.data.class_names import DIGITS
from quickdrop_bench.data.datasets import DATASETS, DataSource, RawData


@DATASETS.register("digits")
class Digits(DataSource):
    """1 797 digits of 8×8 pixels; a fixed stratified fifth is the test set."""

    summary = "1 797 handwritten digits of 8×8 pixels, part of scikit-learn, no download"
    classes = DIGITS
    from_folder = False

    def load(self, data_dir: Path, image_size: int | None, download: bool) -> RawData:
        """Read and split them, always in the same way."""
        import numpy as np
        import torch
        from sklearn.datasets import load_digits

        from quickdrop_bench.core.seeding import generator

        bunch = load_digits()
        images = torch.from_numpy(np.round(bunch.images * (255 / 16))).to(torch.uint8)[:, None]
        labels = torch.from_numpy(bunch.target.astype(np.int64))
        shuffle = torch.randperm(len(labels), generator=generator(0, "digits", "split"))
        by_class = [shuffle[labels[shuffle] == c] for c in range(10)]
        test = torch.cat([rows[: len(rows) // 5] for rows in by_class])
        train = torch.cat([rows[len(rows) // 5 :] for rows in by_class])
        return RawData(images[train], labels[train], images[test], labels[test], DIGITS, (0.305,), (0.376,))

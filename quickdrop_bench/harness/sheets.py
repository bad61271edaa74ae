"""Synthetic images and the real ones that they began as, ready to be shown."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from quickdrop_bench.data.labelled import ImageData
from quickdrop_bench.methods.base import ClientData

__all__ = ["synthetic_pairs"]

PER_CLASS = 2
"""Synthetic images of each class that are shown."""


def synthetic_pairs(data: ImageData, clients: Mapping[int, ClientData]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Some synthetic images of every class, scaled to the range of the data.

    Args:
        data: the data set.
        clients: by id; those without synthetic sets give nothing.

    Returns:
        Real images (n, H, W, C) in [0, 1]; what became of each, which may lie outside of it; their classes' names.
        Classes whose synthetic images are all of a client's images are left out for that client.
    """
    picked: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for _, client in sorted(clients.items()):
        own = client.synthetic
        for k, c in enumerate(own.labels.tolist() if own else ()):
            if own and c not in own.fixed_classes and len(pairs := picked.setdefault(c, [])) < PER_CLASS:
                pairs.append((data.train.images[own.origin[k]], own.images[k]))
    low, high = (f(data.train.images, (0, 2, 3)).view(-1, 1, 1) for f in (torch.amin, torch.amax))
    labels = [data.class_names[c] for c, pairs in sorted(picked.items()) for _ in pairs]
    shape = (0, *data.image_shape)
    sides = [[pair[side] for _, pairs in sorted(picked.items()) for pair in pairs] for side in (0, 1)]
    real, synthetic = (
        (((torch.stack(side) if side else torch.empty(shape)).to(low.device) - low) / (high - low))
        .permute(0, 2, 3, 1)
        .cpu()
        .numpy()
        for side in sides
    )
    return real, synthetic, labels

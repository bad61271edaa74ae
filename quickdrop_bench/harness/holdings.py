"""What clients hold, ready to be shown: images by class, synthetic images and the real ones that they began as."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from quickdrop_bench.data.labelled import ImageData
from quickdrop_bench.data.partition import class_counts
from quickdrop_bench.methods.context import ClientData

__all__ = ["class_holdings", "synthetic_pairs", "visibly_changed"]

PER_CLASS = 2
"""Synthetic images of each class that are shown."""


def class_holdings(data: ImageData, clients: Mapping[int, ClientData]) -> np.ndarray:
    """(N, classes) training images per client and class, the clients by id."""
    rows = [client.original.rows.cpu().numpy() for _, client in sorted(clients.items())]
    return class_counts(data.train.labels.cpu().numpy(), rows, len(data.class_names))


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


def visibly_changed(
    data: ImageData, clients: Mapping[int, ClientData], shades: float
) -> tuple[list[Image.Image], list[str]]:
    """Synthetic images as pictures, with their classes' names, but for those that still look like a client's image.

    Args:
        data: the data set.
        clients: by id.
        shades: of 255, by which an image must differ somewhere from the real one that it began as.
    """
    real, synthetic, labels = synthetic_pairs(data, clients)
    changed = [k for k in range(len(labels)) if 255 * abs(real[k] - synthetic[k]).max() >= shades]
    images = [Image.fromarray((255 * synthetic[k].clip(0, 1)).astype("uint8").squeeze()) for k in changed]
    return images, [labels[k] for k in changed]

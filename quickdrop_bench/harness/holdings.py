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
from quickdrop_bench.store.artifacts import visibly_changed

PER_CLASS = 2
"""Synthetic images of each class that are shown."""


def class_holdings(data: ImageData, clients: Mapping[int, ClientData]) -> np.ndarray:
    """(N, classes) training images per client and class, the clients by id."""
    rows = [client.original.rows.cpu().numpy() for _, client in sorted(clients.items())]
    return class_counts(data.train.labels.cpu().numpy(), rows, len(data.class_names))


def synthetic_pairs(
    data: ImageData, clients: Mapping[int, ClientData], *, changed: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Some synthetic images of every class, scaled to the range of the data.

    Args:
        data: the data set.
        clients: by id; those without synthetic sets give nothing.
        changed: leave out those that :func:`~quickdrop_bench.store.artifacts.visibly_changed` does not name.

    Returns:
        Real images (n, H, W, C) in [0, 1]; what became of each, which may lie outside of it; their classes' names.
        Classes whose synthetic images are all of a client's images are left out for that client.
    """
    picked: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for _, client in sorted(clients.items()):
        if (own := client.synthetic) is None:
            continue
        began = data.train.images[own.origin]
        shown = visibly_changed(own.images, began, data.std).tolist() if changed else [True] * len(own)
        for k, c in enumerate(own.labels.tolist()):
            if shown[k] and c not in own.fixed_classes and len(pairs := picked.setdefault(c, [])) < PER_CLASS:
                pairs.append((began[k], own.images[k]))
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


def changed_pictures(data: ImageData, clients: Mapping[int, ClientData]) -> tuple[list[Image.Image], list[str]]:
    """Synthetic images as pictures, with their classes' names, but for those that still look like a client's image."""
    _, synthetic, labels = synthetic_pairs(data, clients, changed=True)
    return [Image.fromarray((255 * image.clip(0, 1)).astype("uint8").squeeze()) for image in synthetic], labels

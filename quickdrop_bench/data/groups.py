"""Parts of a client's data that have synthetic images of their own: random groups within each class."""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES = 2**20
"""More than any data set has: a part is numbered class + CLASSES · group."""


def random_groups(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Divide every class's samples at random into groups, as equally as possible.

    Args:
        labels: (n,) int64.
        count: of groups, at least 1; a class of fewer samples has as many groups as samples.
        generator: on the CPU.

    Returns:
        (n,) int64 on the CPU, the group of each sample, from 0.
    """
    labels = labels.cpu()
    groups = torch.zeros(len(labels), dtype=torch.int64)
    for c in labels.unique():
        positions = torch.nonzero(labels == c).flatten()
        groups[positions[torch.randperm(len(positions), generator=generator)]] = torch.arange(len(positions)) % count
    return groups


def parts_of(labels: Tensor, groups: Tensor | None) -> Tensor:
    """(n,) int64, the part that each sample belongs to: its class alone where there are no groups."""
    return labels if groups is None else labels + CLASSES * groups.to(labels.device)

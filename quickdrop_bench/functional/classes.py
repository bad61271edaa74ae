"""How the images of a step belong to classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Classes:
    """How the M images belong to the K classes.

    Attributes:
        index: (M,) int64, the class of each image, from 0 to K − 1.
        shares: (M, 1) float32, what an image counts in its class's mean: 1 / (images of the class).
        count: K.
        sizes: images of each class where the host knows them; empty for padded ones.
        order: positions of the images sorted by class, without padding; None if they are sorted.
        members: (K, M) 1 where an image is of a class, for padded images: a product with it sums by class.
        owners: (K,) int64, the client of each class where several are stacked, see :meth:`stacked`.
        clients: how many those are, else 1.
    """

    order: Tensor | None = None
    owners: Tensor | None = None
    clients: int = 1

    def __init__(
        self, index: Tensor, shares: Tensor, count: int, sizes: Sequence[int] = (), members: Tensor | None = None
    ) -> None:
        self.index, self.shares, self.count, self.sizes, self.members = index, shares, count, list(sizes), members
        self.rows = torch.arange(len(index), device=index.device)

    @classmethod
    def of_sizes(cls, sizes: Sequence[int], like: Tensor) -> Classes:
        """Images sorted by class, of K classes with these sizes."""
        counts = torch.tensor(list(sizes))
        index = torch.arange(len(counts)).repeat_interleave(counts)
        return cls(index.to(like.device), (1 / counts)[index].unsqueeze(1).to(like), len(counts), sizes)

    @classmethod
    def padded(cls, labels: Tensor, shares: Tensor, count: int) -> Classes:
        """Shapes that never change, and no question to the device: all classes are there, padding has share zero."""
        members = (torch.arange(count, device=labels.device)[:, None] == labels).to(shares)
        return cls(labels, shares.unsqueeze(1), count, members=members)

    @classmethod
    def stacked(cls, labels: Tensor, shares: Tensor, pairs: Tensor, clients: int) -> Classes:
        """The classes of n clients that are trained as one: class c of client i is number c·n + i.

        Args:
            labels: (M·n,) int64; the images of all clients take turns. Padding has share zero and any label.
            shares: (M·n,) float32.
            pairs: (K,) int64, the numbers of the classes that count, sorted.
            clients: n.
        """
        numbers = labels * clients + torch.arange(len(labels)) % clients
        places = numbers.new_zeros(int(torch.maximum(numbers.max(), pairs[-1])) + 1)
        places[pairs] = torch.arange(len(pairs))
        index = places[numbers]
        real = shares.nonzero().flatten()
        sizes = torch.bincount(index[real], minlength=len(pairs)).tolist()
        made = cls(index, shares.unsqueeze(1), len(pairs), sizes)
        made.order = real[index[real].argsort(stable=True)]
        made.owners, made.clients = pairs % clients, clients
        return made

    def summed(self, rows: Tensor) -> Tensor:
        """The sum over each class's images: (M, n) to (K, n)."""
        if self.members is not None:
            return self.members @ rows
        return rows.new_zeros(self.count, rows.shape[1]).index_add(0, self.index, rows)

    def total(self, parts: Tensor) -> Tensor:
        """The sum over the classes: (K, ...) to (...), of stacked clients to (n, ...)."""
        if self.owners is None:
            return parts.sum(0)
        return parts.new_zeros(self.clients, *parts.shape[1:]).index_add_(0, self.owners, parts)

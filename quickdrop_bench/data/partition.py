"""Who holds which training images: IID, or per-class Dirichlet(α)."""

from __future__ import annotations

import numpy as np

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.seeding import derive_seed

MAX_TRIES = 100
"""Draws of a Dirichlet partition before giving up on the minimum client size."""


def partition(
    labels: np.ndarray, clients: int, alpha: float | None, *, min_client_size: int, seed: int
) -> list[np.ndarray]:
    """Split the rows of a data set over clients (paper §4.1).

    With ``alpha``, each class's rows are shuffled and cut at shares drawn from Dirichlet(α·1_N); a draw that leaves a
    client below the minimum is repeated, on the same random stream. IID, all rows are shuffled and cut equally.

    Args:
        labels: (n,) integer class of each row.
        clients: N, at least 1.
        alpha: α > 0, small means non-IID; None means IID.
        min_client_size: samples that every client must get; 0 accepts empty clients.
        seed: the run's seed.

    Returns:
        For each client the sorted rows it holds; disjoint, together all rows.

    Raises:
        BadInput: α ≤ 0, more clients than the samples allow, or no draw met the minimum size.
    """
    if clients < 1 or clients * max(min_client_size, 1) > len(labels):
        allowed = f"between 1 and {len(labels) // max(min_client_size, 1)} for {len(labels)} samples"
        raise BadInput("--clients", clients, f"{allowed} and --min-client-size {min_client_size}")
    rng = np.random.default_rng(derive_seed(seed, "partition"))
    if alpha is None:
        return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), clients)]
    if not 0 < alpha < float("inf"):
        raise BadInput("--alpha", alpha, "a finite number above 0 is needed (or --iid)")
    by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    for _ in range(MAX_TRIES):
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for rows in by_class:
            shares = rng.dirichlet(np.full(clients, alpha))
            cuts = np.floor(np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        split = [np.sort(np.concatenate(part)) for part in parts]
        if min(len(part) for part in split) >= min_client_size:
            return split
    allowed = f"no client below --min-client-size {min_client_size} came up in {MAX_TRIES} draws"
    raise BadInput("--alpha", alpha, f"{allowed}; raise α, or lower the minimum or the number of clients")


def class_counts(labels: np.ndarray, parts: list[np.ndarray], classes: int) -> np.ndarray:
    """(N, classes) samples per client and class."""
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])

"""Random streams, one per purpose, so that no consumer disturbs another's numbers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *purpose: object) -> int:
    """Hash a seed and a purpose into a 63-bit seed.

    Args:
        seed: the run's seed.
        purpose: names and numbers that tell the stream apart, e.g. ``("batches", round, client)``.

    Example:
        >>> derive_seed(1, "init") == derive_seed(1, "init")
        True
        >>> derive_seed(1, "batches", 2, 3) == derive_seed(1, "batches", 3, 2)
        False
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator seeded by :func:`derive_seed`; the device never changes the numbers drawn."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *purpose))

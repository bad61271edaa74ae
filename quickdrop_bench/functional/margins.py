"""Margins, the one number per image that U-LiRA and KLOM compare over many models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 100.0
"""Margins are cut to ± this (Georgiev et al., arXiv 2410.23232)."""


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """φ = ln(p_y / (1 − p_y)) = z_y − ln Σ_{c≠y} exp z_c, within ± :data:`LIMIT`.

    Args:
        logits: (n, C) floating, finite, C at least 2.
        labels: (n,) int64 classes.

    Returns:
        (n,) float64.
    """
    z, own = logits.double(), labels[:, None]
    others = z.scatter(1, own, float("-inf")).logsumexp(dim=1)
    return (z.gather(1, own).squeeze(1) - others).clamp(-LIMIT, LIMIT)

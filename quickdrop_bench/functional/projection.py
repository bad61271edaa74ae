"""Directions without a part along given ones, for FedOSD."""

from __future__ import annotations

import torch
from torch import Tensor

CUTOFF = 1e-6
"""Singular values of unit rows below this share of the largest count as zero."""


def without_span(vector: Tensor, rows: Tensor) -> Tensor:
    """The part of a vector that is orthogonal to all rows, v − Aᵀ(AAᵀ)⁺A·v.

    Rows are brought to unit length first, which leaves their span and makes the cut-off one about directions.

    Args:
        vector: (P,) v.
        rows: (N, P) A; rows may be zero, equal or dependent, and N may be 0.

    Returns:
        (P,) float64 on the CPU.
    """
    rest, rows = vector.cpu().double(), rows.cpu().double()
    lengths = torch.linalg.vector_norm(rows, dim=1)
    unit = rows[lengths > 0] / lengths[lengths > 0, None]
    if not len(unit):
        return rest
    squares, axes = torch.linalg.eigh(unit @ unit.T)  # squares of the singular values
    kept = squares > CUTOFF**2 * squares.max()
    basis = (axes[:, kept].T @ unit) / squares[kept, None].sqrt()
    for _ in range(2):  # once more against rounding, where the part is small beside the vector
        rest = rest - basis.T @ (basis @ rest)
    return rest

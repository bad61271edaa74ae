"""KLOM: how far a method's margins on a sample are from those of retrained models, as distributions over many models.

KL(u‖r) of each sample, u over unlearned and r over retrained models (Georgiev et al., arXiv 2410.23232), in nats. It
takes many models, so this is no metric of a single one: functions of arrays, for ``benchmarks/shadows.py``. Margins
are those of :func:`quickdrop_bench.functional.margins.margins`.

Two sets of retrained models differ too; their KLOM is the floor, and it grows as the models get fewer.
"""

from __future__ import annotations

import numpy as np

FEWEST_GAUSSIAN = 10
"""Models on either side below which the estimate is mostly noise."""

LEAST_VARIANCE = 1e-3
"""Of the margins of a sample, on either side."""


def gaussian_klom(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """KL(u‖r) of Gaussians with the means and variances of the margins.

    Args:
        unlearned: (M_u, n) margins of models on samples, M_u at least :data:`FEWEST_GAUSSIAN`.
        retrained: (M_r, n) likewise.

    Returns:
        (n,) ≥ 0, in nats.

    Raises:
        ValueError: there are fewer models.
    """
    u, r = (np.asarray(side, dtype=np.float64) for side in (unlearned, retrained))
    if min(len(u), len(r)) < FEWEST_GAUSSIAN:
        raise ValueError(
            f"{len(u)} unlearned and {len(r)} retrained models: at least {FEWEST_GAUSSIAN} of each are needed"
        )
    v_u, v_r = (np.maximum(side.var(axis=0, ddof=1), LEAST_VARIANCE) for side in (u, r))
    shift = u.mean(axis=0) - r.mean(axis=0)
    return np.asarray((np.log(v_r / v_u) + (v_u + shift**2) / v_r - 1) / 2)


def mean_and_p95(values: np.ndarray) -> tuple[float, float]:
    """Mean and 95th percentile over samples."""
    return float(np.mean(values)), float(np.quantile(values, 0.95))

"""KLOM: how far a method's margins on a sample are from those of retrained models, as distributions over many models.

KL(u‖r) of each sample, u over unlearned and r over retrained models (Georgiev et al., arXiv 2410.23232), in nats. It
takes many models, so this is no metric of a single one: functions of arrays, for ``benchmarks/shadows.py``. Margins
are those of :func:`quickdrop_bench.functional.margins.margins`.

Two sets of retrained models differ too; their KLOM is the floor, and it grows as the models get fewer.
"""

from __future__ import annotations

import numpy as np

FEWEST_GAUSSIAN, FEWEST_HISTOGRAM = 10, 100
"""Models on either side below which the estimate is mostly noise."""

LEAST_VARIANCE = 1e-3
"""Of the margins of a sample, on either side."""

BINS = 20
"""Shared by both sides, over their joint range."""

EMPTY = 1e-5
"""Probability of a bin without a retrained model."""


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
    u, r = _both(unlearned, retrained, FEWEST_GAUSSIAN)
    v_u, v_r = (np.maximum(side.var(axis=0, ddof=1), LEAST_VARIANCE) for side in (u, r))
    shift = u.mean(axis=0) - r.mean(axis=0)
    return np.asarray((np.log(v_r / v_u) + (v_u + shift**2) / v_r - 1) / 2)


def histogram_klom(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """KL(u‖r) of histograms with :data:`BINS` bins over the joint range of a sample's margins.

    Args:
        unlearned: (M_u, n) margins of models on samples, M_u at least :data:`FEWEST_HISTOGRAM`.
        retrained: (M_r, n) likewise.

    Returns:
        (n,) at most ln(1 / :data:`EMPTY`), in nats.

    Raises:
        ValueError: there are fewer models.
    """
    u, r = _both(unlearned, retrained, FEWEST_HISTOGRAM)
    return np.array([_divergence(u[:, x], r[:, x]) for x in range(u.shape[1])])


def _divergence(u: np.ndarray, r: np.ndarray) -> float:
    edges = np.histogram_bin_edges(np.concatenate([u, r]), BINS)
    p, q = (np.histogram(side, edges)[0] / len(side) for side in (u, r))
    held = p > 0
    return float((p[held] * np.log(p[held] / np.where(q > 0, q, EMPTY)[held])).sum())


def _both(unlearned: np.ndarray, retrained: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    u, r = (np.asarray(side, dtype=np.float64) for side in (unlearned, retrained))
    if min(len(u), len(r)) < fewest:
        raise ValueError(f"{len(u)} unlearned and {len(r)} retrained models: at least {fewest} of each are needed")
    return u, r


def mean_and_p95(values: np.ndarray) -> tuple[float, float]:
    """Mean and 95th percentile over samples."""
    return float(np.mean(values)), float(np.quantile(values, 0.95))

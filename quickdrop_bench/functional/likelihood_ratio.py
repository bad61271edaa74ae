"""U-LiRA: does a model's margin on a sample tell whether the sample was trained on and then forgotten?

Many federations each train on a random half of a pool of samples and forget that half. A sample's margins over the
federations that forgot it (IN) and over those that never saw it (OUT) are two Gaussians, and the log of the ratio of
their densities at one federation's margin is its score there (Hayes et al., arXiv 2403.01218, after Carlini et al.,
2022). It takes many models, so this is no metric of a single one: functions of arrays, for ``benchmarks/shadows.py``.

Constant margins give 0.5 as well, so the accuracy of a method stands beside. Margins are those of
:func:`quickdrop_bench.functional.margins.margins`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_VARIANCE = 1e-12
"""Of the margins on a side; constant ones have none."""

LOW = 0.01
"""The false-positive rate at which the rate of true positives is given."""

DRAWS = 200
"""Bootstrap draws behind a standard error."""


def scores(margins: np.ndarray, members: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The score ln N(φ; IN) − ln N(φ; OUT) of every federation and sample; all other federations are its shadows.

    Means are of each sample and side. The variance of a side is one for all samples, from the residuals of all shadows.

    Args:
        margins: (M, n) of federation k on sample x.
        members: (M, n) bool, whether federation k trained on x.
        weights: (M,) ≥ 0, how many times each federation counts as a shadow; None for once each.

    Returns:
        (M, n) float64; NaN where no other federation is on a side, or no side has a residual.
    """
    counts = np.ones(len(margins)) if weights is None else np.asarray(weights, dtype=np.float64)
    centred = np.asarray(margins, dtype=np.float64)
    centred = centred - centred.mean(axis=0)  # so that the sums of squares below keep their digits
    with np.errstate(divide="ignore", invalid="ignore"):
        inside, outside = (_log_density(centred, side * counts[:, None]) for side in (members, ~members))
    return np.asarray(inside - outside)


def _log_density(margins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(M, n) log density of each margin under the Gaussian of one side's others, but for a constant."""
    count = weights.sum(0) - weights
    mean = ((weights * margins).sum(0) - weights * margins) / count
    squares = (weights * margins**2).sum(0) - weights * margins**2 - count * mean**2
    freedom = np.maximum(count - 1, 0).sum(1)
    variance = np.maximum(np.nansum(squares, axis=1) / freedom, LEAST_VARIANCE)[:, None]
    return np.asarray(-((margins - mean) ** 2) / (2 * variance) - np.log(variance) / 2)


def rates(scores: np.ndarray, members: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Area under the ROC curve, and the true-positive rate at a false-positive rate of :data:`LOW`.

    Args:
        scores: any shape; NaN ones are left out.
        members: bool, the same shape.
        weights: how much each counts, the same shape; None for 1.

    Returns:
        Both in [0, 1]; equal scores share a place, so constant ones give 0.5 and :data:`LOW`. NaN unless there are both
        members and others.
    """
    from sklearn.metrics import auc, roc_curve

    kept = np.isfinite(scores) if weights is None else np.isfinite(scores) & (weights > 0)
    if len(np.unique(members[kept])) < 2:
        return float("nan"), float("nan")
    counts = None if weights is None else weights[kept]
    false, true, _ = roc_curve(members[kept], scores[kept], sample_weight=counts)
    return float(auc(false, true)), float(np.interp(LOW, false, true))


@dataclass(frozen=True)
class Attack:
    """What the attack reaches over all federations and samples, each federation being the target once.

    Attributes:
        auc: chance that a forgotten sample has the higher score than one that was never seen; 0.5 is best.
        tpr: share of the forgotten ones that are found at a false-positive rate of :data:`LOW`, which is best.
        auc_error, tpr_error: standard errors; ± 1.96 of them is an interval of 95%.
    """

    auc: float
    tpr: float
    auc_error: float
    tpr_error: float


def attack(margins: np.ndarray, members: np.ndarray, seed: int, draws: int = DRAWS) -> Attack:
    """U-LiRA with standard errors over federations.

    A bootstrap draw takes federations with replacement, as targets and as shadows; no copy of a target is its shadow.
    Targets alone drawn again would give errors too small by half, as all of them share their shadows.

    Args:
        margins: (M, n), see :func:`scores`.
        members: (M, n) bool, likewise.
        seed: of the draws.
        draws: how many.
    """
    found = rates(scores(margins, members), members)
    random, shape = np.random.default_rng(seed), np.shape(margins)
    drawn = []
    for _ in range(draws):
        counts = np.bincount(random.integers(0, shape[0], shape[0]), minlength=shape[0])
        drawn.append(
            rates(scores(margins, members, counts), members, np.broadcast_to(counts[:, None], shape).astype(float))
        )
    return Attack(*found, *np.std(drawn, axis=0, ddof=1).tolist())

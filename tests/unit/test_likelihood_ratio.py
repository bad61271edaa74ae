"""U-LiRA on margins that are made up, whose answers are known."""

from __future__ import annotations

from statistics import NormalDist, fmean, variance

import numpy as np
import pytest
import torch

from quickdrop_bench.functional.likelihood_ratio import attack, rates, scores
from quickdrop_bench.functional.margins import LIMIT, margins

Made = tuple[np.ndarray, np.ndarray]


def made(federations: int, samples: int, shift: float = 0.0, seed: int = 0) -> Made:
    """Margins of a standard deviation of 1 around each sample's own mean; those of members are larger by ``shift``."""
    random = np.random.default_rng(seed)
    members = np.stack([random.permutation(samples) < samples // 2 for _ in range(federations)])
    own = random.normal(size=samples) * 3
    return own + random.normal(size=members.shape) + shift * members, members


# Margins -----------------------------------------------------------------------------------------------------


def test_margins_are_the_log_odds_of_the_right_class() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
    expected = [np.log(0.7 / 0.3), np.log(0.25 / 0.75)]
    labels = torch.tensor([0, 1])
    assert margins(p.log(), labels).numpy() == pytest.approx(expected, rel=1e-6)
    assert margins(p.log() + 5, labels).numpy() == pytest.approx(expected, rel=1e-5)


def test_margins_are_cut() -> None:
    z = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    assert margins(z, torch.tensor([0, 1])).tolist() == [LIMIT, -LIMIT]


# Scores ------------------------------------------------------------------------------------------------------


def slow_scores(phi: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The definition, one federation and one sample after the other."""
    found = np.zeros(phi.shape)
    for k in range(len(phi)):
        others = [j for j in range(len(phi)) if j != k]
        for sign, side in ((1, True), (-1, False)):
            shadows = [[phi[j, x] for j in others if members[j, x] == side] for x in range(phi.shape[1])]
            residuals = sum(variance(s) * (len(s) - 1) for s in shadows if len(s) > 1)
            pooled = residuals / sum(len(s) - 1 for s in shadows)
            for x, own in enumerate(shadows):
                found[k, x] += sign * np.log(NormalDist(fmean(own), pooled**0.5).pdf(phi[k, x]))
    return found


def test_scores_are_those_of_the_definition() -> None:
    phi, members = made(9, 6, shift=0.5)
    assert min(min(members.sum(0)), min((~members).sum(0))) >= 2
    assert scores(phi, members) == pytest.approx(slow_scores(phi, members))


def test_a_target_is_not_its_own_shadow() -> None:
    phi, members = made(12, 8)
    changed = phi.copy()
    changed[3, 5] += 50
    before, after = scores(phi, members), scores(changed, members)
    others = np.arange(8) != 5
    assert after[3, others] == pytest.approx(before[3, others])  # not even by the variance
    assert after[4, others] != pytest.approx(before[4, others])


def test_constant_margins_say_nothing() -> None:
    _, members = made(12, 20)
    constant = np.tile(np.random.default_rng(0).normal(size=20), (12, 1))
    assert scores(constant, members) == pytest.approx(np.zeros((12, 20)))


def test_order_shift_and_scale_are_void() -> None:
    phi, members = made(16, 10, shift=0.5)
    found = scores(phi, members)
    order, places = np.random.default_rng(1).permutation(16), np.random.default_rng(2).permutation(10)
    assert scores(phi[order][:, places], members[order][:, places]) == pytest.approx(found[order][:, places])
    assert scores(3 * phi - 7, members) == pytest.approx(found)


def test_weights_are_copies_that_are_no_shadows_of_each_other() -> None:
    phi, members = made(12, 8)
    counts = np.array([2, 0, *[1] * 10])
    copied = np.repeat(np.arange(12), counts)
    found, slow = scores(phi, members, counts), scores(phi[copied], members[copied])
    assert found[2:] == pytest.approx(slow[2:])
    alone = copied[1:]  # the first federation and its copy: only all others are shadows
    assert found[0] == pytest.approx(scores(phi[alone], members[alone])[0])


def test_without_a_shadow_there_is_no_score() -> None:
    phi, members = made(12, 4)
    members[:, 2] = np.arange(12) == 5
    found = scores(phi, members)
    assert np.isnan(found[5, 2])
    assert np.isfinite(np.delete(found, 5, axis=0)).all()


# Rates -------------------------------------------------------------------------------------------------------


def test_rates_by_hand() -> None:
    area, found = rates(np.array([3.0, 2, 1, 0]), np.array([True, False, True, False]))
    assert (area, found) == pytest.approx((0.75, 0.5))
    area, _ = rates(np.array([3.0, 2, 1, 0, np.nan]), np.array([True, False, True, False, True]))
    assert area == pytest.approx(0.75)
    assert rates(np.zeros(40), np.arange(40) < 20) == pytest.approx((0.5, 0.01))  # a guess


def test_weights_are_repetitions() -> None:
    score, member = np.random.default_rng(0).normal(size=30), np.arange(30) % 2 == 0
    counts = np.arange(30) % 4
    repeated = rates(np.repeat(score, counts), np.repeat(member, counts))
    assert rates(score, member, counts.astype(float)) == pytest.approx(repeated)


# The attack --------------------------------------------------------------------------------------------------


def test_shuffled_membership_is_a_guess() -> None:
    found = [attack(made(32, 100, shift=2.0, seed=k)[0], made(32, 100, seed=100 + k)[1], 1, 2) for k in range(8)]
    assert fmean(one.auc for one in found) == pytest.approx(0.5, abs=0.015)
    assert fmean(one.tpr for one in found) == pytest.approx(0.01, abs=0.005)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_a_planted_shift_is_found(shift: float) -> None:
    """Two normal distributions with a variance of 1: AUC = Φ(δ/√2), a bit less as their means are estimated."""
    normal = NormalDist()
    found = attack(*made(64, 200, shift), 1, 2)
    best = normal.cdf(shift / 2**0.5)
    assert best - 0.02 < found.auc < best + 0.01
    rate = normal.cdf(shift - normal.inv_cdf(0.99))
    assert found.tpr == pytest.approx(rate, rel=0.3)


def test_standard_errors_are_as_large_as_the_spread_over_repetitions() -> None:
    """As all targets share their shadows, drawing targets alone gives 0.6 of it."""
    found = [attack(*made(16, 60, seed=k), 1, 20) for k in range(40)]
    spread = np.std([one.auc for one in found], ddof=1)
    assert 0.9 * spread < fmean(one.auc_error for one in found) < 1.6 * spread

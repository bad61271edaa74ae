"""KLOM on margins that are made up, whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from quickdrop_bench.evaluation.metric import METRICS
from quickdrop_bench.functional.klom import gaussian_klom, mean_and_p95
from quickdrop_bench.harness import sources


def drawn(models: int, samples: int, seed: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    return mean + deviation * np.random.default_rng(seed).normal(size=(models, samples))


def test_the_same_margins_are_at_no_distance() -> None:
    assert gaussian_klom(drawn(100, 5, 1), drawn(100, 5, 1)) == pytest.approx(np.zeros(5))
    constant = np.full((100, 2), 3.0)
    assert gaussian_klom(constant, constant) == pytest.approx(np.zeros(2))


def test_order_and_a_common_affine_map_are_void() -> None:
    u, r = drawn(100, 5, 1, 0.5), drawn(120, 5, 2)
    found = gaussian_klom(u, r)
    assert gaussian_klom(u[::-1], r[::-1]) == pytest.approx(found)
    assert gaussian_klom(u[:, ::-1], r[:, ::-1]) == pytest.approx(found[::-1])
    assert gaussian_klom(4 * u - 3, 4 * r - 3) == pytest.approx(found)


@pytest.mark.parametrize(("models", "mean"), [(10, 0.28), (50, 0.04)])
def test_the_floor_of_so_many_models(models: int, mean: float) -> None:
    assert gaussian_klom(drawn(models, 2000, 1), drawn(models, 2000, 2)).mean() == pytest.approx(mean, rel=0.15)


def test_the_divergence_is_of_the_unlearned_from_the_retrained() -> None:
    """KL(N(0, 1)‖N(1, 4)) = ½ (ln 4 + (1 + 1)/4 − 1); the other way round it is ½ (−ln 4 + (4 + 1)/1 − 1)."""
    narrow, wide = drawn(200_000, 1, 1), drawn(200_000, 1, 2, 1.0, 2.0)
    assert gaussian_klom(narrow, wide)[0] == pytest.approx((np.log(4) - 0.5) / 2, rel=0.02)
    assert gaussian_klom(wide, narrow)[0] == pytest.approx((4 - np.log(4)) / 2, rel=0.02)


def test_a_gaussian_by_hand() -> None:
    """Ten margins of ±1 have a variance of 10/9, so a shift of 1 is 1 / (2 · 10/9)."""
    r = np.tile([-1.0, 1.0], 5)[:, None]
    assert gaussian_klom(r + 1, r)[0] == pytest.approx(0.45)


def test_constant_margins_have_a_least_variance() -> None:
    assert gaussian_klom(np.zeros((10, 1)), np.ones((10, 1)))[0] == pytest.approx(1 / 1e-3 / 2)


def test_with_few_models_there_is_none() -> None:
    enough, few = drawn(10, 2, 1), drawn(9, 2, 2)
    assert np.isfinite(gaussian_klom(enough, enough)).all()
    for sides in ((few, enough), (enough, few)):
        with pytest.raises(ValueError, match="at least 10 of each"):
            gaussian_klom(*sides)


def test_mean_and_p95() -> None:
    assert mean_and_p95(np.arange(101.0)) == (50.0, 95.0)


def test_no_metric_of_single_models_rests_on_what_many_models_take() -> None:
    apart = {sources.PACKAGE / "functional" / name for name in ("margins.py", "likelihood_ratio.py", "klom.py")}
    assert all(path.is_file() for path in apart)
    for name in METRICS:
        assert not {*sources.dependencies(METRICS[name].source)} & apart

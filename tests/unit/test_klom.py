"""KLOM on margins that are made up, whose answers are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from quickdrop_bench.evaluation.metric import METRICS
from quickdrop_bench.functional.klom import EMPTY, gaussian_klom, histogram_klom, mean_and_p95
from quickdrop_bench.harness import sources

Klom = Callable[[np.ndarray, np.ndarray], np.ndarray]

BOTH = pytest.mark.parametrize("klom", [gaussian_klom, histogram_klom])


def drawn(models: int, samples: int, seed: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    return mean + deviation * np.random.default_rng(seed).normal(size=(models, samples))


@BOTH
def test_the_same_margins_are_at_no_distance(klom: Klom) -> None:
    assert klom(drawn(100, 5, 1), drawn(100, 5, 1)) == pytest.approx(np.zeros(5))
    constant = np.full((100, 2), 3.0)
    assert klom(constant, constant) == pytest.approx(np.zeros(2))


@BOTH
def test_order_and_a_common_affine_map_are_void(klom: Klom) -> None:
    u, r = drawn(100, 5, 1, 0.5), drawn(120, 5, 2)
    found = klom(u, r)
    assert klom(u[::-1], r[::-1]) == pytest.approx(found)
    assert klom(u[:, ::-1], r[:, ::-1]) == pytest.approx(found[::-1])
    assert klom(4 * u - 3, 4 * r - 3) == pytest.approx(found)


@pytest.mark.parametrize(("klom", "models", "mean"), [(gaussian_klom, 10, 0.28), (gaussian_klom, 50, 0.04)])
def test_the_floor_of_so_many_models(klom: Klom, models: int, mean: float) -> None:
    assert klom(drawn(models, 2000, 1), drawn(models, 2000, 2)).mean() == pytest.approx(mean, rel=0.15)


def test_the_floor_of_a_histogram() -> None:
    mean, p95 = mean_and_p95(histogram_klom(drawn(100, 1000, 1), drawn(100, 1000, 2)))
    assert (mean, p95) == pytest.approx((0.35, 0.67), rel=0.1)


def test_the_divergence_is_of_the_unlearned_from_the_retrained() -> None:
    """KL(N(0, 1)‖N(1, 4)) = ½ (ln 4 + (1 + 1)/4 − 1); the other way round it is ½ (−ln 4 + (4 + 1)/1 − 1)."""
    narrow, wide = drawn(200_000, 1, 1), drawn(200_000, 1, 2, 1.0, 2.0)
    assert gaussian_klom(narrow, wide)[0] == pytest.approx((np.log(4) - 0.5) / 2, rel=0.02)
    assert gaussian_klom(wide, narrow)[0] == pytest.approx((4 - np.log(4)) / 2, rel=0.02)
    assert histogram_klom(narrow, wide)[0] == pytest.approx((np.log(4) - 0.5) / 2, rel=0.1)


def test_a_gaussian_by_hand() -> None:
    """Ten margins of ±1 have a variance of 10/9, so a shift of 1 is 1 / (2 · 10/9)."""
    r = np.tile([-1.0, 1.0], 5)[:, None]
    assert gaussian_klom(r + 1, r)[0] == pytest.approx(0.45)


def test_constant_margins_have_a_least_variance() -> None:
    assert gaussian_klom(np.zeros((10, 1)), np.ones((10, 1)))[0] == pytest.approx(1 / 1e-3 / 2)


def test_a_histogram_has_a_bound_that_disjoint_margins_meet() -> None:
    u, r = np.zeros((100, 1)), np.ones((100, 1))
    assert histogram_klom(u, r)[0] == pytest.approx(np.log(1 / EMPTY))
    assert (histogram_klom(drawn(100, 50, 1, 2.0), drawn(100, 50, 2)) < np.log(1 / EMPTY)).all()


def test_a_histogram_by_hand() -> None:
    """Margins in the first, second and last of 20 bins from 0 to 20: u has ½, ½, 0 and r has ¼, 0, ¾ in them."""
    u, r = np.repeat([0.0, 1.5], 50)[:, None], np.repeat([0.5, 20.0], [25, 75])[:, None]
    assert histogram_klom(u, r)[0] == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / EMPTY))


@pytest.mark.parametrize(("klom", "fewest"), [(gaussian_klom, 10), (histogram_klom, 100)])
def test_with_few_models_there_is_none(klom: Klom, fewest: int) -> None:
    enough, few = drawn(fewest, 2, 1), drawn(fewest - 1, 2, 2)
    assert np.isfinite(klom(enough, enough)).all()
    for sides in ((few, enough), (enough, few)):
        with pytest.raises(ValueError, match=f"at least {fewest} of each"):
            klom(*sides)


def test_mean_and_p95() -> None:
    assert mean_and_p95(np.arange(101.0)) == (50.0, 95.0)


def test_no_metric_of_single_models_rests_on_what_many_models_take() -> None:
    apart = {sources.PACKAGE / "functional" / name for name in ("margins.py", "likelihood_ratio.py", "klom.py")}
    assert all(path.is_file() for path in apart)
    for name in METRICS:
        assert not {*sources.dependencies(METRICS[name].source)} & apart

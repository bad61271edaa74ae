"""FedAvg's mean against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quickdrop_bench.functional.aggregation import RunningMean, is_finite

states = st.lists(
    st.tuples(st.integers(1, 5000), st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3)),
    min_size=1,
    max_size=8,
)


def mean_of(clients: list[tuple[int, list[float]]]) -> torch.Tensor:
    mean = RunningMean({"w": torch.zeros(3)})
    for weight, values in clients:
        mean.add({"w": torch.tensor(values)}, weight)
    return mean.result()["w"]


@given(states)
def test_equals_numpys_weighted_mean(clients: list[tuple[int, list[float]]]) -> None:
    expected = np.average([v for _, v in clients], axis=0, weights=[w for w, _ in clients])
    np.testing.assert_allclose(mean_of(clients).numpy(), expected, rtol=1e-6, atol=1e-7)


@given(states, st.randoms(use_true_random=False))
def test_order_does_not_matter(clients: list[tuple[int, list[float]]], random: object) -> None:
    shuffled = list(clients)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    torch.testing.assert_close(mean_of(clients), mean_of(shuffled), rtol=1e-7, atol=1e-7)


def test_one_client_and_equal_states_are_exact() -> None:
    value = torch.tensor([0.1, 1e-8, 3e5])
    assert torch.equal(mean_of([(3, value.tolist())]), value)
    assert torch.equal(mean_of([(3, value.tolist()), (11, value.tolist()), (5, value.tolist())]), value)


def test_inputs_are_copied() -> None:
    value = torch.ones(2)
    mean = RunningMean({"w": value})
    mean.add({"w": value}, 1)
    mean.add({"w": torch.zeros(2)}, 1)
    assert torch.equal(value, torch.ones(2))
    assert torch.equal(mean.result()["w"], torch.full((2,), 0.5))


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        RunningMean({"w": torch.ones(1)}).add({"w": torch.ones(1)}, 0)
    with pytest.raises(ValueError, match="no client"):
        RunningMean({"w": torch.ones(1)}).result()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_is_finite(bad: float) -> None:
    assert is_finite({"a": torch.ones(3)})
    assert not is_finite({"a": torch.ones(3), "b": torch.tensor([1.0, bad])})

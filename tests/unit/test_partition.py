"""Partitions: a disjoint exact cover, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.partition import class_counts, partition


@settings(max_examples=50)
@given(
    st.integers(1, 12),
    st.sampled_from([None, 0.01, 0.1, 1.0, 100.0]),
    st.integers(0, 10_000),
    st.lists(st.integers(0, 4), min_size=30, max_size=120),
)
def test_disjoint_exact_cover(clients: int, alpha: float | None, seed: int, labels: list[int]) -> None:
    parts = partition(np.array(labels), clients, alpha, min_client_size=0, seed=seed)
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    counts = class_counts(np.array(labels), parts, 5)
    assert counts.sum(0).tolist() == np.bincount(labels, minlength=5).tolist()


def test_minimum_size_is_kept_over_many_seeds() -> None:
    labels = np.repeat(np.arange(10), 144)
    for seed in range(30):
        parts = partition(labels, 10, 0.1, min_client_size=10, seed=seed)
        assert min(map(len, parts)) >= 10
    with pytest.raises(BadInput, match="100 draws"):
        partition(np.zeros(100, int), 10, 0.001, min_client_size=10, seed=0)


def test_iid_parts_are_equal() -> None:
    parts = partition(np.repeat(np.arange(10), 101), 20, None, min_client_size=10, seed=1)
    assert {len(part) for part in parts} == {50, 51}


def test_large_alpha_tends_to_equal_shares_of_shuffled_rows_and_small_alpha_does_not() -> None:
    labels = np.repeat(np.arange(4), 1000)
    parts = partition(labels, 5, 1e6, min_client_size=0, seed=3)
    assert np.abs(class_counts(labels, parts, 4) - 200).max() <= 5
    assert parts[0][:200].max() > 900
    uneven = class_counts(labels, partition(labels, 5, 0.1, min_client_size=0, seed=3), 4)
    assert uneven.max() > 500


def test_seed_decides() -> None:
    labels = np.repeat(np.arange(4), 50)
    first, again, other = (partition(labels, 5, 0.5, min_client_size=0, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("clients", "alpha", "minimum", "option"),
    [(50, 0.1, 10, "--clients"), (0, 0.1, 0, "--clients"), (5, 0.0, 0, "--alpha"), (5, -1.0, 0, "--alpha")],
)
def test_impossible_requests(clients: int, alpha: float, minimum: int, option: str) -> None:
    with pytest.raises(BadInput) as caught:
        partition(np.repeat(np.arange(4), 25), clients, alpha, min_client_size=minimum, seed=0)
    assert caught.value.option == option

"""Rows → exact table, for a large network; see :mod:`tests.golden.test_table2`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.golden import common


@pytest.mark.parametrize("name", common.FORMATS)
def test_table(name: str) -> None:
    assert common.tables(3)[name] == common.expected(3, name)


def test_on_a_terminal_the_methods_are_stacked() -> None:
    text = common.shown(3)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("Table 3: svhn, 100 clients") == 2


def rows() -> Iterator[common.Row]:
    """QuickDrop takes 1/100 of the oracle's time and, with 600 forward-only passes, 1/50 of its work."""
    svhn = common.setting(3, dataset="svhn", clients=100)
    yield from common.run(svhn, "original", 1, {"fl-training": common.accuracy(0.9, 0.91)})
    oracle = common.cost(5000, 20_000, upload_bytes=2_500_000_000) | common.storage(0, 0)
    yield from common.run(svhn, "retrain-or", 1, {"total": common.accuracy(0.0, 0.9) | oracle})
    own = common.cost(50, 100, second_order_sample_gradients=100, sample_forwards=600, upload_bytes=750)
    kept = common.storage(0, 12_340_000)
    yield from common.run(svhn, "quickdrop", 1, {"total": common.accuracy(0.01, 0.85) | own | kept})


if __name__ == "__main__":
    common.write_rows(3, rows())
    common.write_tables(3, common.tables(3))

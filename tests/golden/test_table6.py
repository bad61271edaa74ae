"""Rows → exact table, one line per data set; see :mod:`tests.golden.test_table2`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.golden import common


@pytest.mark.parametrize("name", common.FORMATS)
def test_table(name: str) -> None:
    assert common.tables(6)[name] == common.expected(6, name)


def test_on_a_terminal() -> None:
    text = common.shown(6)
    assert max(map(len, text.splitlines())) <= 80
    for part in ("(paper, mnist)", "(paper, svhn)", "50.00 ± 1.41%", "(54.00%)"):
        assert part in text


def rows() -> Iterator[common.Row]:
    """Digits over two seeds, SVHN over one."""
    digits, svhn = common.setting(6), common.setting(6, dataset="svhn", clients=100)
    for identity, seed, share in ((digits, 1, 49.0), (digits, 2, 51.0), (svhn, 1, 45.0)):
        values = {"total_seconds": 200.0, "distillation_seconds": 2 * share, "overhead_percent": share}
        yield from common.run(identity, "original", seed, {"fl-training": common.accuracy(0.9, 0.9)})
        yield from common.run(identity, "quickdrop", seed, {"fl-training": values})


if __name__ == "__main__":
    common.write_rows(6, rows())
    common.write_tables(6, common.tables(6))

"""Rows → exact table, with data sets side by side; see :mod:`tests.golden.test_table2`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.golden import common


@pytest.mark.parametrize("name", common.FORMATS)
def test_table(name: str) -> None:
    assert common.tables(5)[name] == common.expected(5, name)


def test_on_a_terminal() -> None:
    text = common.shown(5)
    assert max(map(len, text.splitlines())) <= 80
    assert "paper, cifar10; mnist" in " ".join(text.split())


def rows() -> Iterator[common.Row]:
    """Digits beside an image folder of CIFAR-10; FU-MP cannot relearn."""
    digits, pictures = (common.setting(5, clients=20, dataset=d) for d in ("digits", "imagefolder:cifar10-jpeg"))
    for identity, lost in ((digits, 0.0), (pictures, 0.2)):
        yield from common.run(identity, "original", 1, {"fl-training": common.accuracy(0.95, 0.95 - lost)})
        for k, method in enumerate(("retrain-or", "fu-mp", "quickdrop")):
            stages = {"total": common.accuracy(0.01 * k, 0.95 - lost - 0.01 * k) | common.cost(10, 10)}
            if method != "fu-mp":
                stages["relearning"] = common.accuracy(0.9 - 0.01 * k, 0.94 - lost)
            yield from common.run(identity, method, 1, stages)


if __name__ == "__main__":
    common.write_rows(5, rows())
    common.write_tables(5, common.tables(5))

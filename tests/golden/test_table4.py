"""Rows → exact table, with distributions side by side; see :mod:`tests.golden.test_table2`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.golden import common

UNSUPPORTED = ("fu-mp",)


def tables() -> dict[str, str]:
    return common.tables(4, UNSUPPORTED)


@pytest.mark.parametrize("name", common.FORMATS)
def test_table(name: str) -> None:
    assert tables()[name] == common.expected(4, name)


def test_a_method_that_cannot_serve_the_request_is_not_one_that_was_not_run() -> None:
    lines = tables()["table.md"].splitlines()
    unsupported = [line for line in lines if "FU-MP" in line]
    assert unsupported
    assert all("(not run)" not in line and "—" in line for line in unsupported)
    assert any("S2U (not run)" in line and "—" not in line for line in lines)


def test_on_a_terminal() -> None:
    text = common.shown(4, unsupported=UNSUPPORTED)
    assert max(map(len, text.splitlines())) <= 80
    assert "Non-IID (α = 0.1): F-Set" in text
    assert "IID: R-Set" in text


def rows() -> Iterator[common.Row]:
    """CIFAR-10 in both distributions, IID measured first; digits only non-IID, with another α than the paper's.

    SGA-Or diverged on IID data; QuickDrop was measured on non-IID data alone.
    """
    common_part = {"clients": 20, "request": "client-0"}
    iid = common.setting(4, dataset="cifar10", distribution="iid", **common_part)
    skewed = common.setting(4, dataset="cifar10", **common_part)
    digits = common.setting(4, distribution="dirichlet-0.5", **common_part)
    for seed in (1, 2):
        for identity, f_set in ((iid, 0.7), (skewed, 0.1)):
            yield from one(identity, "original", seed, f_set + 0.2, 0.75)
            yield from one(identity, "retrain-or", seed, f_set, 0.72)
            yield from one(identity, "sga-or", seed, f_set + 0.01 * seed, 0.71, diverged=identity is iid and seed == 2)
        yield from one(skewed, "quickdrop", seed, 0.12, 0.7)
    yield from one(digits, "retrain-or", 1, 0.5, 0.95)
    yield from one(digits, "random-subset", 1, 0.45, 0.93)


def one(
    identity: common.Row, method: str, seed: int, f_set: float, r_set: float, diverged: bool = False
) -> Iterator[common.Row]:
    stage = "fl-training" if method == "original" else "total"
    values = common.accuracy(f_set, r_set) | common.cost(10, 10) | {"diverged": float(diverged)}
    return common.run(identity, method, seed, {stage: values})


if __name__ == "__main__":
    common.write_rows(4, rows())
    common.write_tables(4, tables())

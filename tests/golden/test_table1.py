"""Rows and declarations → exact table; see :mod:`tests.golden.test_table2`."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pytest

from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.reporting.capabilities import (
    Capability,
    capabilities_on_terminal,
    computation,
    render_capabilities,
)
from tests.golden import common

LAYOUT = exhibit("table1")
CAPABILITIES = [
    Capability("quickdrop", True, True, True, "ascends on synthetic data"),
    Capability("retrain-or", True, True, True, "trains from scratch"),
    Capability("federaser", True, True, True, "calibrates old updates"),
    Capability("s2u", False, True, True, "scales updates"),
    Capability("random-subset", True, True, True, "ascends on real images"),
    Capability("fu-mp", True, False, False, "prunes channels"),
    Capability("noise", True, False, False, 'adds noise, "of course"'),
]


def tables() -> dict[str, str]:
    return render_capabilities(common.read_rows(1), CAPABILITIES, LAYOUT)


@pytest.mark.parametrize("name", common.FORMATS)
def test_table(name: str) -> None:
    assert tables()[name] == common.expected(1, name)


def test_on_a_terminal() -> None:
    text = common.printed(capabilities_on_terminal(common.read_rows(1), CAPABILITIES, LAYOUT), 80)
    assert max(map(len, text.splitlines())) <= 80
    for part in ("✗ (✗)", "✓ (high)", "class 100.0×", "0 B + 1.50 MB"):
        assert part in text


def test_without_rows_the_declarations_stand_alone() -> None:
    texts = render_capabilities(pd.DataFrame(), CAPABILITIES, LAYOUT)
    line = next(line for line in texts["table.md"].splitlines() if "FU-MP" in line)
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["✓", "✗", "✗", "", "", "", "", "", ""]


@pytest.mark.parametrize(
    ("speedup", "mark"),
    [
        (1.0, "✗ (very low)"),
        (1.499, "✗ (very low)"),
        (1.5, "✗ (low)"),
        (4.99, "✗ (low)"),
        (5.0, "✗ (medium)"),
        (19.9, "✗ (medium)"),
        (20.0, "✓ (high)"),
        (float("inf"), "✓ (high)"),
    ],
)
def test_thresholds(speedup: float, mark: str) -> None:
    assert computation(speedup) == mark


def rows() -> Iterator[common.Row]:
    """A class and a client request; training images take 2 MB.

    QuickDrop 40× and 50× with 1.5 MB on clients, FedEraser 4× with 3 MB on the server and out of memory for the
    client request, S2U 2× for the client request alone, FU-MP 8×; the control and ``noise`` were not run.
    """
    by_class, by_client = common.setting(1), common.setting(1, request="client-0")
    for identity in (by_class, by_client):
        yield from common.run(
            identity, "original", 1, {"fl-training": {"data_bytes": 2_000_000, **common.accuracy(1, 1)}}
        )
        yield from one(identity, "retrain-or", 200, 1000, 0, 0)
    yield from one(by_class, "quickdrop", 5, 10, 0, 1_500_000)
    yield from one(by_client, "quickdrop", 4, 10, 0, 1_600_000)
    yield from one(by_class, "federaser", 50, 500, 3_000_000, 0)
    yield from common.failed(by_client, "federaser", 1)
    yield from one(by_client, "s2u", 100, 500, 0, 40_000)
    yield from one(by_class, "fu-mp", 25, 100, 0, 0)


def one(
    identity: common.Row, method: str, seconds: float, passes: int, server: int, clients: int
) -> Iterator[common.Row]:
    total = common.cost(seconds, passes) | common.accuracy(0, 0.9) | common.storage(server, clients)
    return common.run(identity, method, 1, {"total": total})


if __name__ == "__main__":
    common.write_rows(1, rows())
    common.write_tables(1, tables())

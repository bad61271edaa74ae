"""Rows → exact table.

After a wanted change, ``python -m tests.golden.test_table2`` writes the files anew; read them before committing. The
other tables' files are made alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quickdrop_bench.harness.presets import paper_values
from quickdrop_bench.reporting.tables import read_published
from tests.golden import common


@pytest.mark.parametrize("name", common.FORMATS)
def test_table(name: str) -> None:
    assert common.tables(2)[name] == common.expected(2, name)


def test_on_a_terminal_it_fits_eighty_columns() -> None:
    text = common.shown(2)
    assert max(map(len, text.splitlines())) <= 80
    parts = (
        "80.00 ± 1.41%",
        "(70.48%)",
        "imagefolder:my_pics",
        "—",
        "over 2 seeds",
        "not run",
        "diverged",
        "†: collapsed",
    )
    for part in parts:
        assert part in text


def test_published_numbers_are_those_of_the_paper() -> None:
    published = read_published(paper_values(), 2).set_index(["method", "stage", "metric"])["value"]
    assert published["quickdrop", "recovery", "r_set_accuracy"] == pytest.approx(0.7048)
    assert published["quickdrop", "total", "speedup"] == 463.7
    assert published["retrain-or", "total", "seconds"] == 7239.58


def rows() -> Iterator[common.Row]:
    """Two data sets and, on the first, two protocols; SGA-Or diverged once, FedEraser failed once, FU-MP twice.

    In the second protocol, SGA-Or's ascent left a collapsed model.

    On the pictures QuickDrop was not run, though training paid for its distillation.
    """
    digits, pictures = common.setting(2), common.setting(2, dataset="imagefolder:my_pics")
    for seed in (1, 2):
        yield from measured(digits, seed, ("original", "retrain-or", "sga-or", "quickdrop"), diverged=seed == 2)
        yield from common.failed(digits, "fu-mp", seed)
    yield from measured(digits, 1, ("federaser",))
    yield from common.failed(digits, "federaser", 2, "OutOfMemoryError: tried to allocate 20 GiB")
    yield from measured(pictures, 1, ("original", "retrain-or", "sga-or"))
    yield from common.run(pictures, "quickdrop", 1, {"fl-training": {"overhead_percent": 50.0}})
    tuned = common.setting(2, protocol="tuned")
    yield from measured(tuned, 1, ("original", "retrain-or", "sga-or"))
    yield from common.run(tuned, "sga-or", 1, {"unlearning": {"collapsed": 1.0}, "total": {"collapsed": 0.0}})
    yield from common.run(tuned, "sga-or", 7, {"search": {"seconds": 12.3, "sample_gradients": 45678}})


ORDER = ("original", "retrain-or", "sga-or", "quickdrop", "federaser")


def measured(identity: common.Row, seed: int, methods: tuple[str, ...], diverged: bool = False) -> Iterator[common.Row]:
    for method in methods:
        k = ORDER.index(method)
        passes = {"upload_bytes": 10 ** (7 - k), "rounds": 30 // (2 * k + 1), "data_size": 45000 // 10**k}
        own = common.cost(1000 / 10**k + seed, 1_000_000 // 10**k, **passes)
        own |= common.accuracy(0.9 if method == "original" else 0.01 * seed, 0.8 + 0.02 * seed - 0.01 * k)
        own["diverged"] = float(diverged and method == "sga-or")
        names = {"original": ["fl-training"], "retrain-or": ["unlearning", "total"]}
        stages = {name: dict(own) for name in names.get(method, ["unlearning", "recovery", "total"])}
        if "total" in stages:
            stages["total"] |= common.storage(1000 * k, 1_500_000)
        yield from common.run(identity, method, seed, stages)


if __name__ == "__main__":
    common.write_rows(2, rows())
    common.write_tables(2, common.tables(2))

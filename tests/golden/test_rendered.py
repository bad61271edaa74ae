"""Rows → exact tables.

After a wanted change, ``PYTHONPATH=. python -m tests.golden.test_rendered`` writes the files anew; read them before
committing.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pandas as pd
import pytest

from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.harness.presets import paper_values
from quickdrop_bench.reporting.published import read_published
from quickdrop_bench.reporting.render import measured_sections, on_terminal, render
from quickdrop_bench.reporting.tables.capabilities import capability_tables, computation
from quickdrop_bench.reporting.tables.comparison import comparison_tables, finding
from quickdrop_bench.reporting.tables.shape import Entry, Line, Table
from quickdrop_bench.reporting.tables.writers import terminal
from tests.golden import common

NUMBERS = (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("name", common.FORMATS)
@pytest.mark.parametrize("number", NUMBERS)
def test_table(number: int, name: str) -> None:
    assert common.tables(number)[name] == common.expected(number, name)


@pytest.mark.parametrize("number", NUMBERS[1:])
def test_nothing_measured(number: int) -> None:
    own = exhibit(f"table{number}")
    assert render(own, pd.DataFrame())["table.md"].startswith(f"# Table {number}: ")
    assert on_terminal(own, pd.DataFrame(), common.HERE, 80) == []


DETAILS = {
    1: ("(✗)", "(✓)", "100.0×"),
    2: (
        "80.00 ± 1.41%",
        "are of cifar10, other data",
        "imagefolder:my_pics",
        "—",
        "over 2 seeds",
        "not run",
        "diverged",
        "†: collapsed",
    ),
    3: ("Table 3: svhn, 100 clients",),
    4: ("Non-IID (α = 0.1): F-Set", "IID: R-Set", "(paper, cifar10)", "(68.59%)"),
    5: ("(paper, cifar10)", "are of mnist, other data"),
    6: ("(paper, svhn)", "50.00 ± 1.41%", "(46.30%)"),
}


@pytest.mark.parametrize("number", NUMBERS)
def test_every_column_fits_eighty_columns(number: int) -> None:
    text = common.shown(number, details=True)
    for part in DETAILS[number]:
        assert part in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_line_a_method_fits_the_terminal(number: int, width: int) -> None:
    text = common.shown(number, width)
    head = text[: text.index("Mean ±")]
    for part in {1: ("Computation",), 6: ("Overhead",)}.get(number, ("F-Set", "R-Set", "Gradients")):
        assert part in head
    assert number == 6 or "Storage" in head or width < 200 or number in (4, 5)  # where no storage was stated
    assert "A wider terminal shows" not in text or width < 200


def test_the_summary_says_what_a_method_keeps_and_costs() -> None:
    """Those that diverged or failed are no candidates for the best; the paper's numbers are of other data."""
    text = common.shown(2, 120)
    lines = [line.split("  ") for line in text.splitlines() if line.startswith(("QuickDrop", "Retrain-Or"))]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[1][:6] == ["QuickDrop", "1.5 ±0.7%", "80.0 ±1.4%", "-2.0 ±0.0", "1 000", "100.0×"]
    assert cells[0][3] == "—"  # the oracle has no gap to itself
    assert "(paper)" not in text
    assert "other data, and stand in table.md" in " ".join(text.split())
    assert "11.6%" in common.shown(4, 120)


def test_the_best_is_bold_among_those_that_forgot() -> None:
    """The oracle is no candidate, nor is a method that keeps the forgotten class."""
    rows = []
    for method, f_set, r_set in (
        ("retrain-or", 0, 0.9),
        ("sga-or", 0.5, 0.89),
        ("quickdrop", 0.02, 0.8),
        ("fu-mp", 0, 0.7),
    ):
        rows += common.run(common.setting(2), method, 1, {"total": common.accuracy(f_set, r_set) | common.cost(1, 10)})
    (section,) = measured_sections(exhibit("table2"), common.frame(rows))
    (table,) = comparison_tables(section)
    assert [line.title for line in table.lines for entry in line.entries if entry.best] == ["QuickDrop"]


def test_with_a_backdoor_the_best_are_those_that_the_attack_spares() -> None:
    rows = []
    for method, f_set, attack in (("retrain-or", 0.3, 0.0), ("sga-or", 0.3, 0.2), ("quickdrop", 0.5, 0.04)):
        total = common.accuracy(f_set, 0.9) | common.cost(1, 10 if method == "quickdrop" else 5)
        rows += common.run(common.setting(10), method, 1, {"total": {**total, "attack_success": attack}})
    (section,) = measured_sections(exhibit("table10"), common.frame(rows))
    (table,) = comparison_tables(section)
    total = common.accuracy(0.3, 0.8) | common.cost(1, 5)
    rows += common.run(common.setting(10), "pga", 1, {"total": {**total, "attack_success": 0.0}})
    (section,) = measured_sections(exhibit("table10"), common.frame(rows))
    (more,) = comparison_tables(section)
    assert not [line.title for line in table.lines for entry in line.entries if entry.best]  # one alone is no best
    assert {line.title for line in more.lines for entry in line.entries if entry.best} == {"QuickDrop", "PGA"}
    assert "attack success is within 5 points of the oracle's" in more.footnote


def test_a_terminal_shows_whole_names_where_there_is_room_and_no_note_on_what_it_leaves_out() -> None:
    line = Line("Retrain-Or, other seed (control)", [Entry("97.1%"), Entry("89.94 ‡")])
    table = Table("", "Method", [("R-Set",), ("Time (s)",)], [line], ["‡: other work had the cores", "mean over seeds"])
    wide, narrow = (common.printed([terminal(table, "", width)], width) for width in (60, 32))
    assert line.title in wide
    assert "‡: other work had the cores. Mean over seeds." in wide
    assert line.title not in narrow
    assert "‡" not in narrow
    assert "A wider terminal shows Time (s) too." in " ".join(narrow.split())


@pytest.mark.parametrize(
    ("seeds", "ends", "verdict"),
    [((1, 2), True, "more than chance explains"), ((1,), False, "one seed, which may be chance")],
)
def test_the_finding_is_what_the_rows_say(seeds: tuple[int, ...], ends: bool, verdict: str) -> None:
    rows = []
    for seed in seeds:
        rows += common.run(common.setting(2), "original", seed, {"fl-training": common.accuracy(0.9, 0.9)})
        for method, r_set, cost in (("retrain-or", 0.9, 1000), ("random-subset", 0.84, 50), ("quickdrop", 0.85, 50)):
            total = common.accuracy(0.0, r_set + 0.01 * seed) | common.cost(1, cost)
            rows += common.run(common.setting(2), method, seed, {"total": total})
    (section,) = measured_sections(exhibit("table2"), common.frame(rows))
    assert finding(section.settings[0]) == (
        f"QuickDrop ends -5.0{' [-5.0, -5.0]' * ends} points from Retrain-Or on the R-Set at 1/20 of its "
        f"sample-gradients; the F-Set falls from 90.0% to 0.0%. Its R-Set is +1.0{' [+1.0, +1.0]' * ends} points from "
        f"that of the untouched random subset: {verdict}."
    )


def test_published_numbers_are_those_of_the_paper() -> None:
    published = read_published(paper_values(), "table2").set_index(["method", "stage", "metric"])["value"]
    assert published["quickdrop", "recovery", "r_set_accuracy"] == pytest.approx(0.7048)
    assert published["quickdrop", "total", "speedup"] == 463.7
    assert published["retrain-or", "total", "seconds"] == 7239.58


def test_a_method_that_cannot_serve_the_request_is_not_one_that_was_not_run() -> None:
    lines = common.tables(4)["table.md"].splitlines()
    unable = [line for line in lines if line.startswith("| FU-MP")]
    assert unable
    assert all("(not run)" not in line and "—" in line for line in unable)
    assert any("S2U (not run)" in line and "—" not in line for line in lines)


def test_without_rows_the_declarations_stand_alone_and_other_methods_follow() -> None:
    noise = SimpleNamespace(levels=frozenset({"class"}), can_relearn=False, summary='adds noise, "of course"')
    (table,) = capability_tables(exhibit("table1"), pd.DataFrame(), {"noise": noise, "fu-mp": noise})
    assert list(table.body()) == [
        ["FU-MP", "✓", "✗", "✗", *[""] * 6],
        ["  paper", "✓", "✗", "✗", "✓", "—", "—", "✗ (medium)", "—", "—"],
        ["noise", "✓", "✗", "✗", *[""] * 6],
    ]


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


def rows_1() -> Iterator[common.Row]:
    """A class and a client request; training images take 2 MB.

    QuickDrop 40× and 50× with 1.5 MB on clients, FedEraser 4× with 3 MB on the server and out of memory for the
    client request, S2U 2× for the client request alone, FU-MP 8×; the control and ``noise`` were not run.
    """
    by_class, by_client = common.setting(1), common.setting(1, request="client-0")
    for identity in (by_class, by_client):
        yield from common.run(
            identity, "original", 1, {"fl-training": {"data_bytes": 2_000_000, **common.accuracy(1, 1)}}
        )
        yield from able(identity, "retrain-or", 200, 1000, 0, 0)
    yield from able(by_class, "quickdrop", 5, 10, 0, 1_500_000)
    yield from able(by_client, "quickdrop", 4, 10, 0, 1_600_000)
    yield from able(by_class, "federaser", 50, 500, 3_000_000, 0)
    yield from common.failed(by_client, "federaser", 1)
    yield from able(by_client, "s2u", 100, 500, 0, 40_000)
    yield from able(by_class, "fu-mp", 25, 100, 0, 0)


def able(
    identity: common.Row, method: str, seconds: float, passes: int, server: int, clients: int
) -> Iterator[common.Row]:
    total = common.cost(seconds, passes) | common.accuracy(0, 0.9) | common.storage(server, clients)
    return common.run(identity, method, 1, {"total": total})


def rows_2() -> Iterator[common.Row]:
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


def rows_3() -> Iterator[common.Row]:
    """QuickDrop takes 1/100 of the oracle's time and, with 600 forward-only passes, 1/50 of its work."""
    svhn = common.setting(3, dataset="svhn", clients=100)
    yield from common.run(svhn, "original", 1, {"fl-training": common.accuracy(0.9, 0.91)})
    oracle = common.cost(5000, 20_000, upload_bytes=2_500_000_000) | common.storage(0, 0)
    yield from common.run(svhn, "retrain-or", 1, {"total": common.accuracy(0.0, 0.9) | oracle})
    own = common.cost(50, 100, second_order_sample_gradients=100, sample_forwards=600, upload_bytes=750)
    kept = common.storage(0, 12_340_000)
    yield from common.run(svhn, "quickdrop", 1, {"total": common.accuracy(0.01, 0.85) | own | kept})


def rows_4() -> Iterator[common.Row]:
    """CIFAR-10 in both distributions, IID measured first; digits only non-IID, with another α than the paper's.

    SGA-Or diverged on IID data; QuickDrop was measured on non-IID data alone.
    """
    common_part = {"clients": 20, "request": "client-0"}
    iid = common.setting(4, dataset="cifar10", distribution="iid", **common_part)
    skewed = common.setting(4, dataset="cifar10", **common_part)
    digits = common.setting(4, distribution="dirichlet-0.5", **common_part)
    for seed in (1, 2):
        for identity, f_set in ((iid, 0.7), (skewed, 0.1)):
            yield from client(identity, "original", seed, f_set + 0.2, 0.75)
            yield from client(identity, "retrain-or", seed, f_set, 0.72)
            yield from client(
                identity, "sga-or", seed, f_set + 0.01 * seed, 0.71, diverged=identity is iid and seed == 2
            )
        yield from client(skewed, "quickdrop", seed, 0.12, 0.7)
    yield from client(digits, "retrain-or", 1, 0.5, 0.95)
    yield from client(digits, "random-subset", 1, 0.45, 0.93)


def client(
    identity: common.Row, method: str, seed: int, f_set: float, r_set: float, diverged: bool = False
) -> Iterator[common.Row]:
    stage = "fl-training" if method == "original" else "total"
    values = common.accuracy(f_set, r_set) | common.cost(10, 10) | {"diverged": float(diverged)}
    return common.run(identity, method, seed, {stage: values})


def rows_5() -> Iterator[common.Row]:
    """Digits beside an image folder of CIFAR-10; FU-MP cannot relearn."""
    digits, pictures = (common.setting(5, clients=20, dataset=d) for d in ("digits", "imagefolder:cifar10-jpeg"))
    for identity, lost in ((digits, 0.0), (pictures, 0.2)):
        yield from common.run(identity, "original", 1, {"fl-training": common.accuracy(0.95, 0.95 - lost)})
        for k, method in enumerate(("retrain-or", "fu-mp", "quickdrop")):
            stages = {"total": common.accuracy(0.01 * k, 0.95 - lost - 0.01 * k) | common.cost(10, 10)}
            if method != "fu-mp":
                stages["relearning"] = common.accuracy(0.9 - 0.01 * k, 0.94 - lost)
            yield from common.run(identity, method, 1, stages)


def rows_6() -> Iterator[common.Row]:
    """Digits over two seeds, SVHN over one."""
    digits, svhn = common.setting(6), common.setting(6, dataset="svhn", clients=100)
    for identity, seed, share in ((digits, 1, 49.0), (digits, 2, 51.0), (svhn, 1, 45.0)):
        values = {"total_seconds": 200.0, "distillation_seconds": 2 * share, "overhead_percent": share}
        yield from common.run(identity, "original", seed, {"fl-training": common.accuracy(0.9, 0.9)})
        yield from common.run(identity, "quickdrop", seed, {"fl-training": values})


if __name__ == "__main__":
    for number, rows in zip(NUMBERS, (rows_1, rows_2, rows_3, rows_4, rows_5, rows_6), strict=True):
        common.write(number, rows())

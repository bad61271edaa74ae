"""Rows → exact tables, see README.md."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.harness.presets import paper_values
from quickdrop_bench.reporting.html.page import turned
from quickdrop_bench.reporting.published import read_published
from quickdrop_bench.reporting.render import measured_sections, on_terminal, render
from quickdrop_bench.reporting.tables.capabilities import capability_tables, computation
from quickdrop_bench.reporting.tables.comparison import comparison_tables, finding
from quickdrop_bench.reporting.tables.measured import Section
from quickdrop_bench.reporting.tables.shape import Entry, Line, Table
from quickdrop_bench.reporting.tables.writers import latex, markdown, terminal
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


def forgotten_by_some() -> Section:
    """A section of Table 3, with a line each: F-Set, R-Set and seconds."""
    rows = []
    for method, f_set, r_set, seconds in (
        ("retrain-or", 0, 0.9, 100),
        ("federaser", 0, 0.8, 80),
        ("sga-or", 0.5, 0.89, 1),
        ("fu-mp", 0, 0.7, 50),
        ("s2u", 0.02, 0.89, 2),
        ("random-subset", 0, 0.88, 1),
        ("quickdrop", 0.01, 0.8, 50),
    ):
        total = common.accuracy(f_set, r_set) | common.cost(seconds, 10)
        rows += common.run(common.setting(3), method, 1, {"total": total})
    (section,) = measured_sections(exhibit("table3"), common.frame(rows))
    return section


def bold(table: Table) -> set[tuple[str, str]]:
    return {(line.title, line.entries[k].text) for line in table.lines for k, e in enumerate(line.entries) if e.best}


def test_the_best_is_bold_among_those_that_forgot() -> None:
    """Neither the oracle is a candidate, nor a control, nor a method that keeps the forgotten class."""
    (table,) = comparison_tables(forgotten_by_some())
    methods = {
        "FedEraser": ("80.0%", "-10.0"),
        "FU-MP": ("50.00", "2.0×"),
        "QuickDrop": ("80.0%", "-10.0", "50.00", "2.0×"),
    }
    assert bold(table) == {(title, text) for title, texts in methods.items() for text in texts}
    assert (
        "Bold: best of the methods whose F-Set is within 1 point of the oracle's, without controls." in table.footnote
    )


def test_markdown_latex_and_the_report_have_the_same_in_bold() -> None:
    section = forgotten_by_some()
    table, (summary,) = section.table(), comparison_tables(section)
    assert {title for title, _ in bold(table)} == {title for title, _ in bold(summary)}
    text = markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({*map(len, lines)}) == 1
    quickdrop = next(line for line in lines if line.startswith("| QuickDrop"))
    assert [cell.strip() for cell in quickdrop.strip("|").split("|")][1:8] == [
        "1.00%", "**80.00%**", "+1.00", "**-10.00**", "1.0×", "**50.00**", "**2.0×**"
    ]  # fmt: skip
    assert text.count("**") == 2 * len(bold(table))
    (line,) = (line for line in latex(table, "").splitlines() if line.startswith("QuickDrop"))
    assert r"1.00\% & \textbf{80.00\%} & +1.00 & \textbf{-10.00} & 1.0$\times$ & \textbf{50.00}" in line
    assert {each for part in turned(table) for _, each in bold(part)} == {each for _, each in bold(table)}


def test_with_a_backdoor_the_best_are_those_that_the_attack_spares() -> None:
    rows = []
    for method, f_set, attack in (("retrain-or", 0.3, 0.0), ("sga-or", 0.3, 0.2), ("quickdrop", 0.5, 0.01)):
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
    assert "attack success is within 1 point of the oracle's" in more.footnote


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
        f"QuickDrop's R-Set is 5.0 points{' [-5.0, -5.0]' * ends} below Retrain-Or's, at 1/20 of its sample-gradients; "
        f"the F-Set falls from 90.0% to 0.0%. Its R-Set is 1.0 points{' [+1.0, +1.0]' * ends} above that of its "
        f"control, a random subset of real images: {verdict}."
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


if __name__ == "__main__":
    for number in NUMBERS:
        common.write(number)

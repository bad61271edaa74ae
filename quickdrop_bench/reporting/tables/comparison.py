"""What people ask first, one line a method: what it keeps, how far it is from the oracle, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.frame import TRAINING, Cell, Setting
from quickdrop_bench.reporting.names import ORACLE, ORIGINAL, method_title, registered, setting_name
from quickdrop_bench.reporting.tables.best import best, note
from quickdrop_bench.reporting.tables.measured import Section, labels
from quickdrop_bench.reporting.tables.shape import EMPTY, Entry, Line, Table
from quickdrop_bench.reporting.tables.texts import (
    COLLAPSED,
    cell_of,
    facts,
    not_run,
    papers_left_out,
    shared_note,
    sign,
    typical,
)

F_SET = Column("", "F-Set", "total", "f_set_accuracy", "percent")
R_SET = Column("", "R-Set", "total", "r_set_accuracy", "percent")
GAP = Column("", "Gap to oracle", "total", "r_set_gap", "points")
ATTACK = Column("", "Attack success", "total", "attack_success", "percent")
VERSUS_CONTROL = Column("", "", "total", "r_set_gap_control", "points")
COST = Column("", "Gradients", "total", "gradients", "count")
SPEEDUP = Column("", "Speed-up", "total", "speedup_sample_gradients", "ratio")
SECONDS = Column("", "Time (s)", "total", "seconds", "seconds")
IN_SECONDS = Column("", "Speed-up (seconds)", "total", "speedup", "ratio")
UPLOAD = Column("", "Upload", "total", "upload_bytes", "bytes")
STORAGE = Column("", "Storage", "total", "storage_bytes", "bytes")
RELEARNED = tuple(
    Column("", f"Relearned {letter}-Set", "relearning", f"{letter.lower()}_set_accuracy", "percent") for letter in "FR"
)

FIRST = (F_SET, R_SET, GAP)
THEN = (ATTACK, COST, SPEEDUP, SECONDS, IN_SECONDS, UPLOAD, STORAGE)
"""Columns of the summary, before and after those of relearning."""


def comparison_tables(section: Section) -> list[Table]:
    """The comparison of methods in each setting of a table; a table about one method as it is."""
    if section.exhibit.per == "dataset":
        return [section.table(alike=True)]
    lines = [(setting, [m for m, own in section.lines if setting in own]) for setting in section.settings]
    return [comparison_table(setting, methods, relearned=section.exhibit.relearn) for setting, methods in lines]


def comparison_table(setting: Setting, methods: Sequence[str], *, relearned: bool = False) -> Table:
    """One line per method that was run."""
    shown = [*FIRST, *(column for column in RELEARNED if relearned), *THEN]
    there = [method for method in methods if setting.seeds(method)]
    bold = best(setting, there, shown)
    columns = {
        c.header: {m: Entry(_text(setting, m, c, cell_of(setting, m, c)), best=m in bold[c]) for m in there}
        for c in shown
    }
    if setting.published.alike and setting.published.name:
        for column in (F_SET, R_SET):
            papers = {m: setting.published.of_request(registered(m), column.metric) for m in there}
            texts = {m: "" if value is None else f"{100 * value:.1f}%" for m, value in papers.items()}
            columns[f"{column.header} (paper)"] = {m: Entry(text) for m, text in texts.items()}
    headers = [h for h, found in columns.items() if any(entry.text not in ("", EMPTY) for entry in found.values())]
    lines = [
        Line(method_title(m), [columns[h][m] for h in headers], setting.marks(m), labels=labels(m, [setting]))
        for m in there
    ]
    heading = setting_name(setting.in_words)
    notes = _notes(setting, there, methods, bold=any(bold.values()))
    return Table(heading, "Method", [(header,) for header in headers], lines, notes)


def _text(setting: Setting, method: str, column: Column, cell: Cell) -> str:
    """A number with as many digits as a glance takes; deviations of accuracies and gaps alone."""
    if not cell.seeds or (column is GAP and registered(method) == ORACLE):
        return EMPTY
    spread = cell.std if cell.seeds > 1 else math.nan
    if column.kind in ("percent", "points"):
        sign_, unit = ("+", "") if column.kind == "points" else ("", "%")
        mean = f"{round(100 * cell.mean, 1) + 0.0:{sign_}.1f}"  # + 0.0: no -0.0
        text = f"{mean} ±{100 * spread:.1f}{unit}" if spread == spread else f"{mean}{unit}"
        mark = column.kind == "percent" and setting.count(method, "collapsed", column.stage)
        return text + (f" {COLLAPSED}" if mark else "")
    return column.format(typical(cell, column)) + sign(setting, method, column)


def _notes(setting: Setting, there: Sequence[str], methods: Sequence[str], *, bold: bool) -> list[str]:
    """Where the numbers come from, and what is not in the table."""
    absent = [method_title(m) for m in methods if m not in there and setting.status(m) == "not run"]
    unable = [method_title(m) for m in methods if m not in there and setting.status(m) == "unsupported"]
    times = [(m, c) for m in there for c in (SECONDS, IN_SECONDS) if cell_of(setting, m, c).seeds]
    return [
        *facts([replace(setting, label="")]),
        "gap: R-Set − the oracle's, in percentage points; gradients: of single images, a forward pass counts a third; "
        "speed-up: the oracle's gradients ÷ the method's, median over seeds",
        note([setting]) if bold else "",
        shared_note([setting], there, [SECONDS]) if any(sign(setting, m, c) for m, c in times) else "",
        f"{COLLAPSED}: collapsed in at least one run" if any(setting.count(m, "collapsed") for m in there) else "",
        not_run(absent),
        f"cannot serve such a request: {', '.join(unable)}" if unable else "",
        papers_left_out([setting]),
    ]


def finding(setting: Setting, method: str = "quickdrop") -> str:
    """What a method keeps and costs beside the oracle and its control, in two sentences; empty if it was not run."""
    gap, speed = cell_of(setting, method, GAP), cell_of(setting, method, SPEEDUP)
    if not gap.seeds or not speed.seeds:
        return ""
    before = setting.cell(ORIGINAL, TRAINING, F_SET.metric).mean
    after = cell_of(setting, method, F_SET).mean
    fall = "" if math.isnan(before) else f"; the F-Set falls from {before:.1%} to {after:.1%}"
    share = f", at 1/{speed.median:.0f} of its sample-gradients" if speed.median >= 1.5 else ""
    first = f"{method_title(method)}'s R-Set is {_beside(gap)} {method_title(ORACLE)}'s{share}{fall}"
    control = cell_of(setting, method, VERSUS_CONTROL)
    if not control.seeds:
        return f"{first}."
    low, high = control.interval()
    if control.seeds == 1:
        verdict = "one seed, which may be chance"
    else:
        verdict = "more than chance explains" if low > 0 or high < 0 else "no more than chance explains"
    return f"{first}. Its R-Set is {_beside(control)} that of its control, a random subset of real images: {verdict}."


def _beside(cell: Cell) -> str:
    low, high = cell.interval()
    ends = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if cell.seeds > 1 else ""
    points = round(100 * cell.mean, 1) + 0.0
    return f"{abs(points):.1f} points{ends} {'below' if points < 0 else 'above'}"

"""Rows put together into the tables of a layout: who has a line, which settings stand side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pandas as pd

from quickdrop_bench.harness.exhibits import Column, Exhibit
from quickdrop_bench.reporting.layout import (
    COLLAPSED,
    CONTROL,
    EMPTY,
    ORACLE,
    ORIGINAL,
    marked,
    method_name,
    registered,
)
from quickdrop_bench.reporting.measured import SEARCH, SETTING, TRAINING, derive, without_training
from quickdrop_bench.reporting.names import request_name
from quickdrop_bench.reporting.published import beside, published_dataset
from quickdrop_bench.reporting.sheets import Sheet
from quickdrop_bench.reporting.slots import SHARED, Slot

__all__ = ["DIFFERENCES", "Line", "Section", "differing", "facts", "marked", "sections"]

LEGEND = (
    f"{EMPTY}: the method has no such stage or cannot serve such a request, or its run failed; blank cells: not run"
)

COLLAPSE = (
    f"{COLLAPSED}: collapsed in at least one run: no better on the retained classes than one answer for every image, "
    "or weights grown more than tenfold"
)

RATIOS = "speedups: median (range) over seeds of the oracle's cost ÷ the method's, on the same seed"
SHARED_NOTE = (
    f"{SHARED.strip()}: other work had the cores for more than 15% of the time on {{}}; such seconds say too much"
)

DIFFERENCES = tuple(
    Column(f"− {method_name(reference)}", f"{letter}-Set", "total", f"{letter.lower()}_set_gap{suffix}", "points")
    for reference, suffix in ((ORACLE, ""), (CONTROL, "_control"))
    for letter in "FR"
)
"""What the second table of a section shows."""

PAIRED = f"differences in percentage points after the last stage, seed by seed; {EMPTY}: nothing to compare with"
INTERVALS = "mean over seeds with its 95% interval (Student's t), which holds 0 where chance alone may explain it"


@dataclass(frozen=True)
class Line:
    """One line: a method in one or more settings.

    Attributes:
        name: shown, with marks.
        method: its name in the rows.
        slots: from left to right.
    """

    name: str
    method: str
    slots: tuple[Slot, ...]

    def texts(self, layout: Exhibit) -> list[str]:
        """Our cells."""
        return [slot.text(self.method, column) for slot in self.slots for column in layout.columns]

    def paper(self, layout: Exhibit) -> list[str]:
        """The published cells, empty where the paper gives none."""
        found = [(column, slot.paper(self.method, column)) for slot in self.slots for column in layout.columns]
        return ["" if value is None else column.format(value) for column, value in found]

    @property
    def paper_name(self) -> str:
        """Which published numbers those are."""
        return "; ".join(dict.fromkeys(slot.published.name for slot in self.slots))


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        heading: its setting; may be empty.
        lines: from top to bottom.
        layout: of the table.
    """

    heading: str
    lines: tuple[Line, ...]
    layout: Exhibit

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All settings in it."""
        return tuple(dict.fromkeys(slot for line in self.lines for slot in line.slots))

    def headers(self, columns: Sequence[Column] = ()) -> list[tuple[str, str, str]]:
        """Block, group and header of every column; of the layout's columns if none are given."""
        return [
            (slot.label if self.layout.beside else "", column.group, column.header)
            for slot in self.lines[0].slots
            for column in columns or self.layout.columns
        ]

    def sheet(self) -> Sheet:
        """Two lines per line: ours, and the paper's where it gives any."""
        body = []
        for line in self.lines:
            body.append([line.name, *line.texts(self.layout)])
            if any(paper := line.paper(self.layout)):
                body.append([f"  paper ({line.paper_name})", *(text or EMPTY for text in paper)])
        corner = "Data set" if self.layout.per == "dataset" else "Method"
        return Sheet(self.heading, corner, self.headers(), body, self.notes())

    def notes(self) -> list[str]:
        """Where the numbers come from."""
        texts = {text for line in self.lines for text in line.texts(self.layout)}
        known = facts(self.slots)
        if any(COLLAPSED in text for text in [*texts, *known]):
            known.append(COLLAPSE)
        ratios = [RATIOS] if any(column.kind == "ratio" for column in self.layout.columns) else []
        shared = _each(self.slots, SHARED_NOTE, self._shared) if any(SHARED in text for text in texts) else ""
        return [*known, *ratios, shared, *([LEGEND] if texts & {"", EMPTY} else [])]

    def _shared(self, slot: Slot) -> str:
        """The seeds on which a stage that the table shows had to share its cores."""
        stages = {column.stage for column in self.layout.columns}
        seeds = {seed for line in self.lines for stage in stages for seed in slot.shared(line.method, stage)}
        return f"seed{'s'[: len(seeds) != 1]} {', '.join(map(str, sorted(seeds)))}" if seeds else ""

    def differences(self) -> Sheet | None:
        """The second table: every method − the oracle, and − the control, seed by seed; None if there is nothing."""
        if self.layout.per == "dataset":
            return None
        headers = self.headers(DIFFERENCES)
        body = []
        for line in (line for line in self.lines if registered(line.method) != ORACLE):
            texts = [slot.difference(line.method, column) for slot in self.slots for column in DIFFERENCES]
            body += [[line.name, *texts]] if any(text != EMPTY for text in texts) else []
        several = any("[" in text for cells in body for text in cells[1:])
        heading = ", ".join(filter(None, (self.heading, "differences paired over seeds")))
        notes = [PAIRED, *([INTERVALS] if several else [])]
        return Sheet(heading, "Method", headers, body, notes) if body else None


def sections(
    rows: pd.DataFrame, published: pd.DataFrame, layout: Exhibit, unsupported: Collection[str] = ()
) -> list[Section]:
    """The tables that the rows make, in order of measurement.

    Args:
        rows: of the artefact.
        published: from :func:`~quickdrop_bench.reporting.published.read_published`.
        layout: lines and columns.
        unsupported: methods that cannot serve requests of the layout's level.
    """
    rows = derive(rows)
    if rows.empty:
        return []
    if layout.per == "dataset":
        return _by_dataset(rows, published, layout)
    found = []
    rows = without_training(rows)
    # Other data have another hash, though nothing else differs.
    varied = {layout.beside, "setting"} if layout.beside == "dataset" else {layout.beside}
    for _, group in rows.groupby([name for name in SETTING if name not in varied], sort=False):
        slots = _slots(group, published, layout, unsupported)
        lines = [Line(_name(method, slots), method, slots) for method in _methods(group, layout)]
        found.append(Section(_heading(slots[0], layout), tuple(lines), layout))
    return found


def _methods(rows: pd.DataFrame, layout: Exhibit) -> list[str]:
    """Who has a line: the layout's methods, each followed by what was run of it with other settings; then others."""
    there = [method for method in rows["method"].unique() if method != ORIGINAL]
    found = []
    for method in layout.methods:
        changed = [m for m in there if m != method and registered(m) == method]
        found += [method] * (method in there or not changed) + changed
    return [*found, *(m for m in there if m not in found)]


def _slots(
    rows: pd.DataFrame, published: pd.DataFrame, layout: Exhibit, unsupported: Collection[str]
) -> tuple[Slot, ...]:
    """The settings that stand side by side, in the paper's order: non-IID before IID, data sets as published."""
    order = list(dict.fromkeys(published["dataset"]))
    slots = []
    for _, group in rows.groupby(SETTING, sort=False):
        dataset, distribution = group["dataset"].iloc[0], group["distribution"].iloc[0]
        values = beside(published, dataset, distribution)
        label = _label(str(group[layout.beside].iloc[0])) if layout.beside else ""
        rank = order.index(published_dataset(published, dataset)) if order else 0
        slots.append(((distribution == "iid", rank, dataset, distribution), Slot(group, values, label, unsupported)))
    return tuple(slot for _, slot in sorted(slots, key=lambda pair: pair[0]))


def _by_dataset(rows: pd.DataFrame, published: pd.DataFrame, layout: Exhibit) -> list[Section]:
    """One section whose lines are data sets; the request does not matter to it."""
    method, stages = layout.methods[0], {column.stage for column in layout.columns}
    rows = rows[(rows["method"] == method) & rows["stage"].isin(stages)]
    lines = []
    for _, group in rows.groupby([c for c in SETTING if c not in ("request", "protocol")], sort=False):
        dataset, clients, distribution = (group[c].iloc[0] for c in ("dataset", "clients", "distribution"))
        name = f"{dataset}, {clients} clients, {distribution}{differing(group['changes'].iloc[0])}"
        slot = Slot(group, beside(published, dataset, distribution), name)
        lines.append(Line(marked(name, slot.marks(method)), method, (slot,)))
    return [Section("", tuple(lines), layout)] if lines else []


def _label(value: str) -> str:
    """Header of a block."""
    if value == "iid":
        return "IID"
    return f"Non-IID (α = {value.removeprefix('dirichlet-')})" if value.startswith("dirichlet-") else value


def _heading(slot: Slot, layout: Exhibit) -> str:
    own = slot.setting()
    parts = {
        "dataset": f"{own['dataset']}",
        "clients": f"{own['clients']} clients",
        "distribution": f"{own['distribution']}",
        "request": f"request {request_name(slot.rows)}",
        "protocol": "" if own["protocol"] == "preset" else f"protocol {own['protocol']}",
    }
    shown = ", ".join(text for name, text in parts.items() if text and name != layout.beside)
    return shown + differing(own["changes"])


def differing(changes: object) -> str:
    """What a setting's name ends with where it differs from the preset."""
    return f", with {changes}" if changes else ""


def _name(method: str, slots: Sequence[Slot]) -> str:
    """With marks; those of one setting among several name it."""
    marks = [slot.marks(method) for slot in slots]
    if all(own == marks[0] for own in marks):
        return marked(method_name(method), marks[0])
    named = [f"{mark} in {slot.label}" for slot, own in zip(slots, marks, strict=True) for mark in own]
    return marked(method_name(method), named)


def facts(slots: Sequence[Slot], original: bool = True) -> list[str]:
    """Seeds, original model (if wanted), search and machine, as sentences without full stop."""
    notes = (
        _each(slots, "mean ± standard deviation over {}", _seeds),
        _each(slots, "original model before the request: {}", _original) if original else "",
        _each(slots, "search, stated apart: {}", _search),
        _each(slots, "measured on {}", _machine),
    )
    return [note for note in notes if note]


def _each(slots: Sequence[Slot], sentence: str, fact: Callable[[Slot], str]) -> str:
    """A sentence about every setting, said once where it is the same; empty if there is nothing to say."""
    facts = [(slot.label, fact(slot)) for slot in slots]
    if len({text for _, text in facts}) == 1:
        return sentence.format(facts[0][1]) if facts[0][1] else ""
    return sentence.format("; ".join(f"{label}: {text}" for label, text in facts if text))


def _seeds(slot: Slot) -> str:
    seeds = slot.seeds()
    return f"{len(seeds)} seed{'s'[: len(seeds) != 1]} ({', '.join(map(str, seeds))})"


def _original(slot: Slot) -> str:
    if not slot.seeds(ORIGINAL):
        return ""
    columns = [Column("", f"{s}-Set", TRAINING, f"{s.lower()}_set_accuracy", "percent") for s in "FR"]
    return ", ".join(f"{column.header} {slot.text(ORIGINAL, column)}" for column in columns)


def _search(slot: Slot) -> str:
    """What choosing each method's settings cost."""
    seconds = Column("", "", SEARCH, "seconds", "seconds")
    passes = Column("", "", SEARCH, "sample_gradients", "count")
    r = slot.rows[slot.rows["stage"] == SEARCH]
    costs = [(m, slot.cell(m, seconds).text(seconds), slot.cell(m, passes).text(passes)) for m in r["method"].unique()]
    return "; ".join(f"{method_name(m)} {time} s, {count} sample-gradients" for m, time, count in costs)


def _machine(slot: Slot) -> str:
    device, precision = (sorted(slot.rows[name].dropna().unique()) for name in ("device", "precision"))
    return f"{'; '.join(device)} in {', '.join(precision)}"

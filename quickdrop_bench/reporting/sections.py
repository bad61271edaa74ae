"""Rows put together into the tables of a layout: who has a line, which settings stand side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pandas as pd

from quickdrop_bench.reporting.layout import EMPTY, ORIGINAL, Column, Layout, method_name
from quickdrop_bench.reporting.measured import SEARCH, SETTING, TRAINING, derive, without_training
from quickdrop_bench.reporting.names import request_name
from quickdrop_bench.reporting.published import beside, published_dataset
from quickdrop_bench.reporting.sheets import Sheet
from quickdrop_bench.reporting.slots import Slot

__all__ = ["Line", "Section", "facts", "marked", "sections"]

LEGEND = (
    f"{EMPTY}: the method has no such stage or cannot serve such a request, or its run failed; blank cells: not run"
)


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

    def texts(self, layout: Layout) -> list[str]:
        """Our cells."""
        return [slot.text(self.method, column) for slot in self.slots for column in layout.columns]

    def paper(self, layout: Layout) -> list[str]:
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
    layout: Layout

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All settings in it."""
        return tuple(dict.fromkeys(slot for line in self.lines for slot in line.slots))

    def headers(self) -> list[tuple[str, str, str]]:
        """Block, group and header of every column."""
        return [
            (slot.label if self.layout.beside else "", column.group, column.header)
            for slot in self.lines[0].slots
            for column in self.layout.columns
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
        return [*facts(self.slots), *([LEGEND] if texts & {"", EMPTY} else [])]


def sections(
    rows: pd.DataFrame, published: pd.DataFrame, layout: Layout, unsupported: Collection[str] = ()
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
    for _, group in rows.groupby([name for name in SETTING if name != layout.beside], sort=False):
        slots = _slots(group, published, layout, unsupported)
        extra = [m for m in group["method"].unique() if m not in (*layout.methods, ORIGINAL)]
        lines = [Line(_name(method, slots), method, slots) for method in (*layout.methods, *extra)]
        found.append(Section(_heading(slots[0], layout), tuple(lines), layout))
    return found


def _slots(
    rows: pd.DataFrame, published: pd.DataFrame, layout: Layout, unsupported: Collection[str]
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


def _by_dataset(rows: pd.DataFrame, published: pd.DataFrame, layout: Layout) -> list[Section]:
    """One section whose lines are data sets; the request does not matter to it."""
    method, stages = layout.methods[0], {column.stage for column in layout.columns}
    rows = rows[(rows["method"] == method) & rows["stage"].isin(stages)]
    lines = []
    for _, group in rows.groupby(["dataset", "clients", "distribution"], sort=False):
        dataset, clients, distribution = (group[c].iloc[0] for c in ("dataset", "clients", "distribution"))
        name = f"{dataset}, {clients} clients, {distribution}"
        slot = Slot(group, beside(published, dataset, distribution), name)
        lines.append(Line(marked(name, slot.marks(method)), method, (slot,)))
    return [Section("", tuple(lines), layout)] if lines else []


def _label(value: str) -> str:
    """Header of a block."""
    if value == "iid":
        return "IID"
    return f"Non-IID (α = {value.removeprefix('dirichlet-')})" if value.startswith("dirichlet-") else value


def _heading(slot: Slot, layout: Layout) -> str:
    own = slot.setting()
    parts = {
        "dataset": f"{own['dataset']}",
        "clients": f"{own['clients']} clients",
        "distribution": f"{own['distribution']}",
        "request": f"request {request_name(slot.rows)}",
        "protocol": "" if own["protocol"] == "preset" else f"protocol {own['protocol']}",
    }
    return ", ".join(text for name, text in parts.items() if text and name != layout.beside)


def _name(method: str, slots: Sequence[Slot]) -> str:
    """With marks; those of one setting among several name it."""
    marks = [slot.marks(method) for slot in slots]
    if all(own == marks[0] for own in marks):
        return marked(method_name(method), marks[0])
    named = [f"{mark} in {slot.label}" for slot, own in zip(slots, marks, strict=True) for mark in own]
    return marked(method_name(method), named)


def marked(name: str, marks: Sequence[str]) -> str:
    """A name with what a reader must know beside it."""
    if not marks:
        return name
    opened = f"{name[:-1]}; " if name.endswith(")") else f"{name} ("
    return f"{opened}{'; '.join(marks)})"


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

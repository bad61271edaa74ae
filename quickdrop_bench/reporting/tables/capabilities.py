"""Table 1: what each method can do, with storage and compute as measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from quickdrop_bench.core.registry import Registry
from quickdrop_bench.harness.exhibits import Column, Exhibit
from quickdrop_bench.reporting.frame import SETTING, Cell, Setting, derive, without_training
from quickdrop_bench.reporting.names import ORACLE, ORIGINAL, method_title, request_name, setting_name
from quickdrop_bench.reporting.tables.notes import facts
from quickdrop_bench.reporting.tables.shape import EMPTY, Entry, Line, Table
from quickdrop_bench.reporting.tables.texts import signed_text, typical

__all__ = ["capability_tables", "computation", "short"]

LEVELS = ("class", "client")
HEADERS = (
    *(("Requests", header) for header in ("Class", "Client", "Relearning")),
    *(("Storage", header) for header in ("Efficient", "Server", "Clients")),
    *(("Computation", header) for header in ("Efficient", "Speedup (sample-gradients)", "Speedup (seconds)")),
)
THRESHOLDS = ((1.5, "✗ (very low)"), (5.0, "✗ (low)"), (20.0, "✗ (medium)"))
"""Speed-ups below which computation is not efficient, and the mark."""

EFFICIENT = "✓ (high)"
RULES = (
    "storage is efficient if server and clients together keep less than the training images, as bytes, take",
    "computation, by the speedup in sample-gradients for a class request, or where there is none for a client request: "
    + ", ".join(f"{mark.strip('✗ ()')} below {limit:g}×" for limit, mark in THRESHOLDS)
    + ", high from there on",
    "a method's speedup is the oracle's cost ÷ its own on the same seed: median (range) over seeds",
    f"blank cells: not measured; {EMPTY}: the paper gives no figure",
)
MARKED = ("classes", "client", "relearn", "storage")
"""What the paper marks with ✓ or ✗; ``computation`` beside them is text, e.g. ``✗ (low)``."""

RATIO = Column("", "", "total", "speedup", "ratio")
Methods = Registry[Any] | Mapping[str, Any]
"""Classes by name that declare what a method can do."""

BYTES = Column("", "", "total", "storage_bytes", "bytes")
FEDERATION = [name for name in SETTING if name != "request"]
NOTHING = pd.DataFrame(
    columns=[*SETTING, "method", "seed", "stage", "metric", "value", "device", "precision"], dtype=str
)


def computation(speedup: float) -> str:
    """The mark of a speed-up in sample-gradients over the oracle."""
    return next((mark for limit, mark in THRESHOLDS if speedup < limit), EFFICIENT)


def capability_tables(exhibit: Exhibit, rows: pd.DataFrame, methods: Methods) -> list[Table]:
    """One per federation and protocol; one of declarations alone if nothing was measured.

    Args:
        exhibit: order of the methods, and the paper's marks.
        rows: of class requests, client requests or both, from :func:`~quickdrop_bench.reporting.frame.frame_of`.
        methods: those registered.
    """
    rows = derive(rows)
    groups = [group for _, group in rows.groupby(FEDERATION, sort=False)] if len(rows) else [NOTHING]
    return [_table(exhibit, group, methods) for group in groups]


def _table(exhibit: Exhibit, rows: pd.DataFrame, methods: Methods) -> Table:
    settings = {level: _setting(rows, level) for level in LEVELS}
    sizes = rows[(rows["method"] == ORIGINAL) & (rows["metric"] == "data_bytes")]["value"]
    size = float(sizes.mean()) if len(sizes) else math.nan
    order = {method: k for k, method in enumerate(exhibit.methods)}
    names = sorted(methods, key=lambda name: order.get(name, len(order)))
    found = [_Abilities(name, methods[name], settings, exhibit.published.get(name), size) for name in names]
    federation: dict[str, Any] = {name: rows[name].iloc[0] for name in FEDERATION} if len(rows) else {}
    labels = " and ".join(setting.label for setting in settings.values() if setting.label)
    heading = setting_name(federation | {"request": labels}) if federation else ""
    known = [setting for setting in settings.values() if len(setting.rows)]
    notes = facts(known, original=False) if known else []
    notes += [] if math.isnan(size) else [f"the training images take {BYTES.format(size)}"]
    numbers = [{**dict.fromkeys(FEDERATION), **federation, **own.record()} for own in found]
    packages = "booktabs,graphicx,amssymb"
    return Table(heading, "Method", HEADERS, [own.line() for own in found], [*notes, *RULES], numbers, packages)


def _setting(rows: pd.DataFrame, level: str) -> Setting:
    """The rows of one level of request."""
    own = without_training(rows[rows["request"].str.startswith(f"{level}-")])
    last = own[own["request"] == own["request"].iloc[-1]] if len(own) else own
    return Setting(own, label=request_name(last) if len(own) else "")


def _mark(value: bool | None) -> str:
    return "" if value is None else "✓" if value else "✗"


@dataclass(frozen=True)
class _Abilities:
    """One method: declared, measured by level of request, and published."""

    method: str
    declared: Any  # the class attributes of a Method
    settings: Mapping[str, Setting]
    published: Mapping[str, Any] | None
    data_bytes: float

    def cells(self, metric: str) -> dict[str, Cell]:
        """A metric of the whole request at every level where it was measured, class requests first."""
        found = {level: self.settings[level].cell(self.method, "total", metric) for level in LEVELS}
        return {level: cell for level, cell in found.items() if cell.seeds}

    def judged(self, metric: str) -> float | None:
        """The number that decides: for class requests, or else for client requests."""
        column = Column("", "", "total", metric, "ratio" if metric.startswith("speedup") else "bytes")
        return next((typical(cell, column) for cell in self.cells(metric).values()), None)

    def can(self) -> list[bool | None]:
        """What is marked; None if it is unknown."""
        kept = self.judged("storage_bytes")
        less = None if kept is None or math.isnan(self.data_bytes) else kept < self.data_bytes
        return [*(level in self.declared.levels for level in LEVELS), self.declared.can_relearn, less]

    def computation(self) -> str:
        """Mark of the measured speed-up; empty if there is none."""
        speedup = self.judged("speedup_sample_gradients")
        return "" if speedup is None else computation(speedup)

    def texts(self) -> list[str]:
        """The cells of its line."""
        kept = [self.judged(f"storage_{where}_bytes") for where in ("server", "client")]
        return [
            *map(_mark, self.can()),
            *("" if value is None else BYTES.format(value) for value in kept),
            self.computation(),
            *map(self._speedups, ("speedup_sample_gradients", "speedup")),
        ]

    def _speedups(self, metric: str) -> str:
        """Of every measured level."""
        column = Column("", "", "total", metric, "ratio")
        return ", ".join(
            f"{level} {signed_text(self.settings[level], self.method, column)}" for level in self.cells(metric)
        )

    def line(self) -> Line:
        """Ours, and the paper's marks."""
        p, texts = self.published, self.texts()
        papers = [EMPTY] * len(HEADERS) if p else [""] * len(HEADERS)
        if p:
            papers[:4], papers[6] = [_mark(p[name]) for name in MARKED], p["computation"]
        differ = ["differs" if a and b not in ("", EMPTY, a) else "" for a, b in zip(texts, papers, strict=True)]
        marks = [
            f"{mark}, for {level} requests"
            for level, setting in self.settings.items()
            if setting.seeds(self.method)
            for mark in setting.marks(self.method)
        ]
        badges = [("good", "oracle")] if self.method == ORACLE else []
        badges += [("bad" if mark.startswith(("failed", "diverged")) else "none", mark) for mark in marks]
        return Line(method_title(self.method), list(map(Entry, texts, papers, differ)), marks, badges=badges)

    def record(self) -> dict[str, object]:
        """The same for machines; numbers in the units of the rows."""
        record: dict[str, object] = {"method": self.method}
        record |= dict(zip(("class", "client", "relearn", "storage_efficient"), self.can(), strict=True))
        record["data_bytes"] = self.data_bytes
        record |= {f"{name}_mean": self.judged(name) for name in ("storage_server_bytes", "storage_client_bytes")}
        record["computation"] = self.computation()
        for metric in ("speedup_sample_gradients", "speedup"):
            cells = self.cells(metric)
            record |= {f"{metric}_{level}_median": cells[level].median if level in cells else None for level in LEVELS}
        published = self.published or {}
        record |= {f"{name}_published": published.get(name) for name in (*MARKED, "computation")}
        return record | {"summary": self.declared.summary}


def short(table: Table) -> Table:
    """The same for a terminal: the paper's mark where it differs, and without what says the same at length."""
    titles = ("Class", "Client", "Relearn", "Storage", "Computation", "Times faster")
    lines = []
    for line, record in zip(table.lines, table.numbers, strict=True):
        entries = [Entry(e.text, e.paper if e.difference else "") for e in line.entries[:4]]
        words = [text.strip("✓✗ ()") for text in (line.entries[6].text, line.entries[6].paper)]
        entries.append(Entry(words[0], words[1] if line.entries[6].difference else ""))
        medians = [record[f"speedup_sample_gradients_{level}_median"] for level in LEVELS]
        speedup = next((RATIO.format(float(median)) for median in medians if median is not None), "")
        lines.append(Line(line.title, [*entries, Entry(speedup)], line.marks))
    notes = [*table.notes, "in brackets: the paper's mark where it differs"]
    return Table(table.heading, "Method", [(title,) for title in titles], lines, notes)

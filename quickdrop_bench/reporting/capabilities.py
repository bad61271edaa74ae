"""Table 1: what each method can do, with storage and compute as measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from quickdrop_bench.harness.exhibits import Column, Exhibit
from quickdrop_bench.reporting.declared import THRESHOLDS, Capability, Marks, computation
from quickdrop_bench.reporting.layout import EMPTY, ORIGINAL, method_name
from quickdrop_bench.reporting.measured import SETTING, derive, without_training
from quickdrop_bench.reporting.names import request_name
from quickdrop_bench.reporting.published import Published
from quickdrop_bench.reporting.sections import differing, facts, marked
from quickdrop_bench.reporting.sheets import Sheet, latex, markdown
from quickdrop_bench.reporting.slots import Cell, Slot

__all__ = [
    "Capability",
    "Marks",
    "capabilities_on_terminal",
    "computation",
    "render_capabilities",
]

LEVELS = ("class", "client")
HEADERS = (
    ("Requests", "Class"),
    ("Requests", "Client"),
    ("Requests", "Relearning"),
    ("Storage", "Efficient"),
    ("Storage", "Server"),
    ("Storage", "Clients"),
    ("Computation", "Efficient"),
    ("Computation", "Speedup (sample-gradients)"),
    ("Computation", "Speedup (seconds)"),
)
RULES = (
    "storage is efficient if server and clients together keep less than the training images, as bytes, take",
    "computation, by the speedup in sample-gradients for a class request, or where there is none for a client request: "
    + ", ".join(f"{mark.strip('✗ ()')} below {limit:g}×" for limit, mark in THRESHOLDS)
    + ", high from there on",
    "a method's speedup is the oracle's cost ÷ its own on the same seed: median (range) over seeds",
    f"blank cells: not measured; {EMPTY}: the paper gives no figure",
)

BYTES = Column("", "", "total", "storage_bytes", "bytes")
RATIO = Column("", "", "total", "speedup", "ratio")
FEDERATION = [name for name in SETTING if name != "request"]
NOTHING = pd.DataFrame(
    columns=[*SETTING, "method", "seed", "stage", "metric", "value", "device", "precision"], dtype=str
)
UNPUBLISHED = Published(pd.DataFrame(columns=["method", "stage", "metric", "value"]), "")


def render_capabilities(rows: pd.DataFrame, capabilities: Sequence[Capability], layout: Exhibit) -> dict[str, str]:
    """All formats of Table 1.

    Args:
        rows: of class requests, client requests or both, as read from ``rows.jsonl``; may be empty.
        capabilities: what the methods declare.
        layout: order and published marks.

    Returns:
        File name → text, for ``table.csv``, ``table.md`` and ``table.tex``.
    """
    found = capability_sections(rows, capabilities, layout)
    sheets = [section.sheet() for section in found]
    lines = [line for section in found for line in section.csv()]
    return {
        "table.csv": pd.DataFrame(lines).to_csv(index=False, float_format="%.6g"),
        "table.md": f"# Table {layout.number}: {layout.title}\n\n" + "\n".join(map(markdown, sheets)),
        "table.tex": "\n".join(latex(sheet, layout.title) for sheet in sheets),
    }


def capabilities_on_terminal(
    rows: pd.DataFrame, capabilities: Sequence[Capability], layout: Exhibit
) -> list[Table | str]:
    """The same for a terminal, the paper's marks in brackets.

    Args:
        rows: as for :func:`render_capabilities`.
        capabilities: as for :func:`render_capabilities`.
        layout: as for :func:`render_capabilities`.

    Returns:
        What ``rich.console.Console.print`` takes, in order.
    """
    parts: list[Table | str] = []
    for section in capability_sections(rows, capabilities, layout):
        title = f"Table {layout.number}: {section.heading or layout.title}"
        table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
        for header in ("(paper)", "Class", "Client", "Relearn", "Storage", "Computation"):
            table.add_column(header, overflow="fold")
        for line in section.lines:
            table.add_row(*map(escape, line.short()))
        parts += [table, escape(f"{section.sheet().footnote}\n")]
    return parts


@dataclass(frozen=True)
class CapabilityLine:
    """One method: declared, measured and published."""

    capability: Capability
    slots: Mapping[str, Slot]
    marks: Marks | None
    data_bytes: float

    @property
    def name(self) -> str:
        """With marks of runs that went wrong, by level of request."""
        method = self.capability.method
        found = [f"{mark}, for {level} requests" for level in self.measured for mark in self.slots[level].marks(method)]
        return marked(method_name(method), found)

    @property
    def measured(self) -> list[str]:
        """Levels of request at which it was run."""
        return [level for level, slot in self.slots.items() if slot.seeds(self.capability.method)]

    def cells(self, metric: str) -> dict[str, Cell]:
        """A metric of the whole request at every level where it was measured, class requests first."""
        found = {level: Cell.of(self.slots[level].values(self.capability.method, "total", metric)) for level in LEVELS}
        return {level: cell for level, cell in found.items() if cell.seeds}

    def judged(self, metric: str) -> float | None:
        """The number that decides: for class requests, or else for client requests."""
        column = RATIO if metric.startswith("speedup") else BYTES
        return next((cell.typical(column) for cell in self.cells(metric).values()), None)

    @property
    def storage_efficient(self) -> bool | None:
        """Whether less is kept than the training images take; None if that is unknown."""
        kept = self.judged("storage_bytes")
        return None if kept is None or math.isnan(self.data_bytes) else kept < self.data_bytes

    @property
    def computation(self) -> str:
        """Mark of the measured speed-up; empty if there is none."""
        speedup = self.judged("speedup_sample_gradients")
        return "" if speedup is None else computation(speedup)

    def bytes(self, metric: str) -> str:
        """Bytes kept, for people."""
        value = self.judged(metric)
        return "" if value is None else BYTES.format(value)

    def speedups(self, metric: str) -> str:
        """Of every measured level, for people."""
        method, column = self.capability.method, Column("", "", "total", metric, "ratio")
        return ", ".join(f"{level} {self.slots[level].text(method, column)}" for level in self.cells(metric))

    def texts(self) -> list[str]:
        """The cells of its line."""
        c = self.capability
        return [
            *map(_mark, (c.classes, c.client, c.relearn, self.storage_efficient)),
            self.bytes("storage_server_bytes"),
            self.bytes("storage_client_bytes"),
            self.computation,
            self.speedups("speedup_sample_gradients"),
            self.speedups("speedup"),
        ]

    def paper(self) -> list[str]:
        """The cells of the paper's line; empty if it does not know the method."""
        m = self.marks
        if m is None:
            return []
        declared = list(map(_mark, (m.classes, m.client, m.relearn, m.storage)))
        return [*declared, EMPTY, EMPTY, m.computation, EMPTY, EMPTY]

    def short(self) -> list[str]:
        """Name and five cells for a terminal: ours, the paper's mark in brackets, the figures underneath."""
        ours, paper = self.texts(), self.paper() or [""] * len(HEADERS)
        kept = f"{ours[4]} + {ours[5]}" if ours[4] else ""
        figures = {3: kept, 6: ours[7]}
        between = {0: " ", 1: " ", 2: " ", 3: " ", 6: "\n"}
        pairs = {i: gap.join(filter(None, (ours[i], paper[i] and f"({paper[i]})"))) for i, gap in between.items()}
        return [self.name, *("\n".join(filter(None, (text, figures.get(i)))) for i, text in pairs.items())]

    def csv(self) -> dict[str, object]:
        """The same for machines; numbers in the units of the rows."""
        c, m = self.capability, self.marks
        line: dict[str, object] = {"class": c.classes, "client": c.client, "relearn": c.relearn}
        line |= {"storage_efficient": self.storage_efficient, "data_bytes": self.data_bytes}
        line |= {f"{name}_mean": self.judged(name) for name in ("storage_server_bytes", "storage_client_bytes")}
        line["computation"] = self.computation
        for metric in ("speedup_sample_gradients", "speedup"):
            cells = self.cells(metric)
            line |= {f"{metric}_{level}_median": cells[level].median if level in cells else None for level in LEVELS}
        published = {f"{f.name}_published": getattr(m, f.name) if m else None for f in fields(Marks)}
        return {"method": c.method, **line, **published, "summary": c.summary}


@dataclass(frozen=True)
class CapabilitySection:
    """Table 1 for one federation."""

    federation: Mapping[str, object]
    lines: Sequence[CapabilityLine]

    @property
    def heading(self) -> str:
        """Names the federation; empty if nothing was measured."""
        f = self.federation
        if not f:
            return ""
        protocol = "" if f["protocol"] == "preset" else f", protocol {f['protocol']}"
        requests = " and ".join(slot.label for slot in self.lines[0].slots.values() if slot.label) if self.lines else ""
        changed = differing(f["changes"])
        return f"{f['dataset']}, {f['clients']} clients, {f['distribution']}, {requests}{protocol}{changed}"

    def csv(self) -> list[dict[str, object]]:
        """One line per method."""
        return [{**dict.fromkeys(FEDERATION), **self.federation, **line.csv()} for line in self.lines]

    def sheet(self) -> Sheet:
        """Ours, and the paper's marks underneath."""
        body = []
        for line in self.lines:
            body.append([line.name, *line.texts()])
            if paper := line.paper():
                body.append(["  paper", *paper])
        packages = "booktabs,graphicx,amssymb"
        return Sheet(self.heading, "Method", HEADERS, body, [*self.facts(), *RULES], packages)

    def facts(self) -> list[str]:
        """Where the figures come from."""
        if not self.lines:
            return []
        slots = [slot for slot in self.lines[0].slots.values() if len(slot.rows)]
        data = self.lines[0].data_bytes
        images = [] if math.isnan(data) else [f"the training images take {BYTES.format(data)}"]
        return [*facts(slots, original=False), *images] if slots else []


def _mark(value: bool | None) -> str:
    return "" if value is None else "✓" if value else "✗"


def capability_sections(
    rows: pd.DataFrame, capabilities: Sequence[Capability], layout: Exhibit
) -> list[CapabilitySection]:
    """One per federation and protocol; one of declarations alone if nothing was measured."""
    order = {method: k for k, method in enumerate(layout.methods)}
    ordered = sorted(capabilities, key=lambda c: order.get(c.method, len(order)))
    rows = derive(rows)
    groups = [group for _, group in rows.groupby(FEDERATION, sort=False)] if len(rows) else [NOTHING]
    sections = []
    for group in groups:
        slots = {level: _slot(group, level) for level in LEVELS}
        sizes = group[(group["method"] == ORIGINAL) & (group["metric"] == "data_bytes")]["value"]
        size = float(sizes.mean()) if len(sizes) else float("nan")
        marks = {name: Marks(**said) for name, said in layout.published.items()}
        lines = [CapabilityLine(c, slots, marks.get(c.method), size) for c in ordered]
        federation = {name: group[name].iloc[0] for name in FEDERATION} if len(group) else {}
        sections.append(CapabilitySection(federation, lines))
    return sections


def _slot(rows: pd.DataFrame, level: str) -> Slot:
    """The rows of one level of request."""
    own = without_training(rows[rows["request"].str.startswith(f"{level}-")])
    last = own[own["request"] == own["request"].iloc[-1]] if len(own) else own
    return Slot(own, UNPUBLISHED, f"request {request_name(last)}" if len(own) else "")

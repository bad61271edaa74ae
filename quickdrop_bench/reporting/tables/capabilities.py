"""Table 1: what each method can do, with storage and compute as measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from quickdrop_bench.core.registry import Registry
from quickdrop_bench.harness.exhibits import Column, Exhibit
from quickdrop_bench.reporting.frame import SETTING, Setting, derive, frame_of, without_training
from quickdrop_bench.reporting.names import ORACLE, ORIGINAL, method_title, request_name, setting_name
from quickdrop_bench.reporting.tables.shape import EMPTY, Entry, Line, Table
from quickdrop_bench.reporting.tables.texts import facts, signed_text

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

METRICS = ("storage_bytes", "storage_server_bytes", "storage_client_bytes", "speedup_sample_gradients", "speedup")

RATIO = Column("", "", "total", "speedup", "ratio")
Methods = Registry[Any] | Mapping[str, Any]
"""Classes by name that declare what a method can do."""

BYTES = Column("", "", "total", "storage_bytes", "bytes")
FEDERATION = [name for name in SETTING if name != "request"]


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
    groups = [group for _, group in derive(rows).groupby(FEDERATION, sort=False)] if len(rows) else [frame_of([])]
    return [_table(exhibit, group, methods) for group in groups]


def _table(exhibit: Exhibit, rows: pd.DataFrame, methods: Methods) -> Table:
    settings = {level: _setting(rows, level) for level in LEVELS}
    size = float(rows[(rows["method"] == ORIGINAL) & (rows["metric"] == "data_bytes")]["value"].astype(float).mean())
    order = {method: k for k, method in enumerate(exhibit.methods)}
    names = sorted(methods, key=lambda name: order.get(name, len(order)))
    records = [_record(name, methods[name], settings, exhibit.published.get(name, {}), size) for name in names]
    federation: dict[str, Any] = {name: rows[name].iloc[0] for name in FEDERATION} if len(rows) else {}
    labels = " and ".join(setting.label for setting in settings.values() if setting.label)
    heading = setting_name(federation | {"request": labels}) if federation else ""
    known = [setting for setting in settings.values() if len(setting.rows)]
    notes = facts(known, original=False) if known else []
    notes += [] if math.isnan(size) else [f"the training images take {BYTES.format(size)}"]
    numbers = [{**dict.fromkeys(FEDERATION), **federation, **record} for record in records]
    lines = [_line(record, settings) for record in records]
    return Table(heading, "Method", HEADERS, lines, [*notes, *RULES], numbers, "booktabs,graphicx,amssymb")


def _setting(rows: pd.DataFrame, level: str) -> Setting:
    own = without_training(rows[rows["request"].str.startswith(f"{level}-")])
    last = own[own["request"] == own["request"].iloc[-1]] if len(own) else own
    return Setting(own, label=request_name(last) if len(own) else "")


def _record(
    method: str, declared: Any, settings: Mapping[str, Setting], published: Mapping[str, Any], data_bytes: float
) -> dict[str, Any]:
    """One method: declared, measured (for class requests, or else for client requests) and published."""
    cells = {name: [setting.cell(method, "total", name) for setting in settings.values()] for name in METRICS}
    measured = {name: next((cell for cell in of if cell.seeds), of[0]) for name, of in cells.items()}
    kept, speedup = measured["storage_bytes"], measured["speedup_sample_gradients"]
    return {
        "method": method,
        **{level: level in declared.levels for level in LEVELS},
        "relearn": declared.can_relearn,
        "storage_efficient": kept.mean < data_bytes if kept.seeds and not math.isnan(data_bytes) else None,
        "data_bytes": data_bytes,
        **{f"{name}_mean": measured[name].mean for name in METRICS[1:3]},
        "computation": computation(speedup.median) if speedup.seeds else "",
        **{
            f"{name}_{level}_median": cell.median
            for name in METRICS[3:]
            for level, cell in zip(LEVELS, cells[name], strict=True)
        },
        **{f"{name}_published": published.get(name) for name in (*MARKED, "computation")},
        "summary": declared.summary,
    }


def _mark(value: bool | None) -> str:
    return "" if value is None else "✓" if value else "✗"


def _line(record: Mapping[str, Any], settings: Mapping[str, Setting]) -> Line:
    """Ours, and the paper's marks where it has any."""
    method = record["method"]
    run = {level: setting for level, setting in settings.items() if setting.seeds(method)}

    def speedups(metric: str) -> str:
        column = replace(RATIO, metric=metric)
        known = {level: own for level, own in run.items() if own.cell(method, "total", metric).seeds}
        return ", ".join(f"{level} {signed_text(own, method, column)}" for level, own in known.items())

    texts = [_mark(record[name]) for name in (*LEVELS, "relearn", "storage_efficient")]
    texts += ["" if math.isnan(kept := record[f"{name}_mean"]) else BYTES.format(kept) for name in METRICS[1:3]]
    texts += [record["computation"], *map(speedups, METRICS[3:])]
    papers = [""] * len(HEADERS)
    if record["computation_published"]:
        marks = [_mark(record[f"{name}_published"]) for name in MARKED]
        papers = [*marks, EMPTY, EMPTY, record["computation_published"], EMPTY, EMPTY]
    differ = [
        "differs" if ours and paper not in ("", EMPTY, ours) else "" for ours, paper in zip(texts, papers, strict=True)
    ]
    wrong = [f"{mark}, for {level} requests" for level, setting in run.items() for mark in setting.marks(method)]
    labels = ["oracle"] if method == ORACLE else []
    return Line(method_title(method), list(map(Entry, texts, papers, differ)), wrong, labels=labels)


def short(table: Table) -> Table:
    """The same for a terminal: the paper's mark where it differs, and without what says the same at length."""
    titles = ("Class", "Client", "Relearn", "Storage", "Computation", "Times faster")
    lines = []
    for line, record in zip(table.lines, table.numbers, strict=True):
        entries = [Entry(e.text, e.paper if e.difference else "") for e in line.entries[:4]]
        words = [text.strip("✓✗ ()") for text in (line.entries[6].text, line.entries[6].paper)]
        entries.append(Entry(words[0], words[1] if line.entries[6].difference else ""))
        medians = [record[f"speedup_sample_gradients_{level}_median"] for level in LEVELS]
        speedup = next((RATIO.format(median) for median in medians if not math.isnan(median)), "")
        lines.append(Line(line.title, [*entries, Entry(speedup)], line.marks))
    notes = [*table.notes, "in brackets: the paper's mark where it differs"]
    return Table(table.heading, "Method", [(title,) for title in titles], lines, notes)

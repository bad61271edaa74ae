"""One page over all rows of a results folder: tables, figures, speed against accuracy, provenance and gaps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from quickdrop_bench.core.files import write_text
from quickdrop_bench.harness.exhibits import Column, Exhibit
from quickdrop_bench.reporting.capabilities import CapabilityLine, capability_sections
from quickdrop_bench.reporting.declared import Capability
from quickdrop_bench.reporting.layout import (
    EMPTY,
    ORACLE,
    ORIGINAL,
    method_name,
    registered,
)
from quickdrop_bench.reporting.measured import derive, without_training
from quickdrop_bench.reporting.overview import (
    Found,
    Listing,
    Picture,
    dataset_words,
    find_artefacts,
    missing,
    provenance,
    setting_words,
    what_ran,
)
from quickdrop_bench.reporting.published import Published, read_published
from quickdrop_bench.reporting.scatter import scatter
from quickdrop_bench.reporting.sections import Line, Section, sections
from quickdrop_bench.reporting.slots import Slot

__all__ = ["Found", "find_artefacts", "render_report", "write_report"]

TITLE = "Federated unlearning: benchmark results"
GRADIENTS = Column("", "Speedup (sample-gradients)", "total", "speedup_sample_gradients", "ratio")
SECONDS = Column("", "Speedup (seconds)", "total", "speedup", "ratio")
R_SET = Column("", "R-Set", "total", "r_set_accuracy", "percent")
UNPUBLISHED = Published(pd.DataFrame(columns=["method", "stage", "metric", "value"]), "")


@dataclass(frozen=True)
class _Datum:
    """One cell: ours, the paper's number and how they differ."""

    ours: str
    paper: str = ""
    difference: str = ""


@dataclass(frozen=True)
class _Row:
    """One line: its name, what a reader must know (kind and text), whether nothing was measured, and its cells."""

    name: str
    badges: Sequence[tuple[str, str]]
    dim: bool
    cells: Sequence[_Datum]


@dataclass(frozen=True)
class _Grid:
    """A table of the paper in one setting; per line of headers, texts and how many columns they span."""

    caption: str
    corner: str
    head: Sequence[Sequence[tuple[str, int]]]
    rows: Sequence[_Row]
    notes: str


@dataclass(frozen=True)
class _Chapter:
    """A table or figure under its heading; per picture its caption, itself if there is one, and a text in its place."""

    anchor: str
    heading: str
    grids: Sequence[_Grid] = ()
    pictures: Sequence[tuple[str, Picture | None, str]] = ()


@dataclass(frozen=True)
class _Panel:
    """Speed against accuracy in one setting; without a picture, the reason."""

    caption: str
    uri: str
    numbers: Listing
    reason: str = ""


def write_report(path: Path, html: str) -> None:
    """Write what :func:`render_report` returned."""
    write_text(path, html)


def render_report(
    results_dir: Path,
    layouts: Mapping[str, Any],
    published_csv: Path,
    capabilities: Sequence[Capability],
    presets: Sequence[str],
    generated: date,
    title: str = TITLE,
) -> str:
    """The page: one file that needs no network and no script.

    Args:
        results_dir: see :func:`~quickdrop_bench.reporting.overview.find_artefacts`; it may be empty.
        layouts: of every artefact that there is, in the page's order, e.g. ``table2``; None for one without.
        published_csv: the paper's numbers.
        capabilities: what the methods declare; who cannot serve a request follows from it.
        presets: that there are.
        generated: the day that the page names.
        title: its heading.

    Returns:
        HTML; the same rows, pictures and day give the same text.
    """
    found = find_artefacts(results_dir)
    rows = [f.rows for f in found if len(f.rows)]
    spec_hashes = pd.concat([r["spec_hash"] for r in rows]) if rows else pd.Series(dtype=str)
    federations = {h for r in rows if "federation_hash" in r for h in r["federation_hash"].dropna() if h}
    order = getattr(layouts.get("table2"), "methods", ())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        generated=generated.isoformat(),
        counts={
            "rows": len(spec_hashes),
            "runs": spec_hashes.nunique(),
            "federations": len(federations),
            "folders": len(rows),
        },
        problems=[f for f in found if f.problem],
        where=what_ran(found),
        tables=list(_tables(found, layouts, published_csv, capabilities)),
        figures=list(_figures(found, layouts)),
        panels=[panel for f in found if f.artefact == "table2" for panel in _panels(f, order)],
        provenance=provenance(found),
        missing=missing(found, layouts, capabilities, presets),
    )


def _tables(
    found: Sequence[Found], layouts: Mapping[str, Any], published_csv: Path, capabilities: Sequence[Capability]
) -> Iterator[_Chapter]:
    for name, layout in layouts.items():
        own = [f for f in found if f.artefact == name and len(f.rows)]
        if layout.kind == "capabilities":
            groups = {f.group for f in own}
            taken_over = [f for f in found if f.artefact == "table2" and len(f.rows) and f.group not in groups]
            grids = [grid for f in (*own, *taken_over) for grid in _capability_grids(f, capabilities, layout)]
        elif layout.kind == "table":
            unable = [c.method for c in capabilities if not (c.client if layout.level == "client" else c.classes)]
            published = read_published(published_csv, layout.number)
            found_sections = [(f, s) for f in own for s in sections(f.newest, published, layout, unable)]
            grids = [grid for f, section in found_sections for grid in _grids(section, f)]
        else:
            continue
        if grids:
            yield _Chapter(name, f"Table {layout.number}: {layout.title}", grids=grids)


def _caption(number: int | None, found: Found, heading: str) -> str:
    """Which table, where it lies, and its setting."""
    return " — ".join(filter(None, (f"Table {number} · {found.folder}", found.in_words(heading))))


def _grids(section: Section, found: Found) -> Iterator[_Grid]:
    """The table, and the differences between its lines."""
    yield _grid(section, found)
    if sheet := section.differences():
        caption = _caption(section.layout.number, found, sheet.heading)
        rows = [_Row(name, (), False, list(map(_Datum, texts))) for name, *texts in sheet.body]
        headers = [(found.in_words(block), *rest) for block, *rest in sheet.headers]
        yield _Grid(caption, sheet.corner, _head(headers), rows, sheet.footnote)


def _grid(section: Section, found: Found) -> _Grid:
    layout = section.layout
    by_dataset = layout.per == "dataset"
    lines = sorted(section.lines, key=lambda line: registered(line.method) != ORACLE)
    rows = []
    for line in lines:
        name = found.in_words(line.slots[0].label) if by_dataset else method_name(line.method)
        idle = all(slot.status(line.method) in ("unsupported", "not run") for slot in line.slots)
        rows.append(_Row(name, _badges(line), idle, _cells(line, layout)))
    sheet = section.sheet()
    headers = [(found.in_words(block), *rest) for block, *rest in sheet.headers]
    return _Grid(
        _caption(layout.number, found, section.heading),
        sheet.corner,
        _head(headers),
        rows,
        f"{sheet.footnote} {_papers(section)}".strip(),
    )


def _papers(section: Section) -> str:
    """Which of the paper's numbers stand beside ours, with a warning where they are of other data."""
    pairs = [
        (str(slot.setting()["dataset"]), slot.published.name)
        for line in section.lines
        for slot in line.slots
        if any(slot.paper(line.method, column) is not None for column in section.layout.columns)
    ]
    texts = []
    for dataset, name in dict.fromkeys(pairs):
        same = re.search(rf"(?<![\w-]){re.escape(name.split(',')[0])}(?!\d)", dataset)
        other = "" if same else f", which is not {dataset}: the differences say little"
        texts.append(f"The paper's numbers are of {name}{other}.")
    return " ".join(texts)


def _badges(line: Line) -> list[tuple[str, str]]:
    """Kind and text of what a reader must know beside a name."""
    badges = [("good", "oracle")] if registered(line.method) == ORACLE else []
    if all(slot.status(line.method) == "unsupported" for slot in line.slots):
        badges.append(("none", "unsupported"))
    marks = [slot.marks(line.method) for slot in line.slots]
    if all(own == marks[0] for own in marks):
        texts = list(marks[0])
    else:
        texts = [f"{mark} in {slot.label}" for slot, own in zip(line.slots, marks, strict=True) for mark in own]
    return badges + list(map(_badge, texts))


def _badge(mark: str) -> tuple[str, str]:
    return "bad" if mark.startswith(("failed", "diverged")) else "none", mark


def _cells(line: Line, layout: Exhibit) -> list[_Datum]:
    cells = []
    for slot in line.slots:
        for column in layout.columns:
            paper = slot.paper(line.method, column)
            ours = slot.cell(line.method, column).typical(column)
            difference = "" if paper is None else _difference(column, ours, paper)
            text = "" if paper is None else column.format(paper)
            cells.append(_Datum(slot.text(line.method, column), text, difference))
    return cells


def _difference(column: Column, ours: float, paper: float) -> str:
    """Ours − the paper's in percentage points, or, for what is no percentage, ours as a multiple of the paper's."""
    factor = {"percent": 100.0, "points": 100.0, "percentage": 1.0}.get(column.kind)
    if not math.isfinite(ours) or not math.isfinite(paper) or (factor is None and paper == 0):
        return ""
    if factor is not None:
        return f"Δ {factor * (ours - paper):+.2f}"
    ratio = ours / paper
    return f"× {ratio:,.0f}".replace(",", " ") if ratio >= 100 else f"× {ratio:.{3 if ratio >= 0.1 else 2}g}"


def _head(headers: Sequence[tuple[str, ...]]) -> list[list[tuple[str, int]]]:
    """Lines of headers; those that are empty throughout are left out."""
    levels = len(headers[0])
    lines = []
    for level in range(levels):
        if any(parts[level] for parts in headers):
            groups = groupby(headers, key=lambda parts: parts[: level + 1]) if level + 1 < levels else ()
            spans = [(key[-1], len(list(columns))) for key, columns in groups]
            lines.append(spans or [(parts[-1], 1) for parts in headers])
    return lines


def _capability_grids(found: Found, capabilities: Sequence[Capability], layout: Exhibit) -> Iterator[_Grid]:
    for section in capability_sections(found.newest, capabilities, layout):
        sheet = section.sheet()
        note = "" if found.artefact == "table1" else f" Made from the rows of {found.folder}: class requests alone."
        rows = [_capability_row(line) for line in section.lines]
        yield _Grid(
            _caption(layout.number, found, sheet.heading),
            sheet.corner,
            _head(sheet.headers),
            rows,
            sheet.footnote + note,
        )


def _capability_row(line: CapabilityLine) -> _Row:
    """Marks of ours and the paper's, and whether they differ."""
    method, ours = line.capability.method, line.texts()
    papers = ["" if text == EMPTY else text for text in line.paper()] or [""] * len(ours)
    differ = ["differs" if own and paper and own != paper else "" for own, paper in zip(ours, papers, strict=True)]
    badges = [("good", "oracle")] if method == ORACLE else []
    for level in line.measured:
        badges += [_badge(f"{mark}, for {level} requests") for mark in line.slots[level].marks(method)]
    return _Row(method_name(method), badges, False, list(map(_Datum, ours, papers, differ)))


def _figures(found: Sequence[Found], layouts: Mapping[str, Any]) -> Iterator[_Chapter]:
    """Pictures by artefact; rows whose figure was not drawn say so."""
    names = dict.fromkeys((*layouts, *(f.artefact for f in found)))
    for k, name in enumerate(names):
        layout = layouts.get(name)
        pictures: list[tuple[str, Picture | None, str]] = []
        heading = layout.heading if layout and layout.kind == "figure" else f"Pictures of {name}"
        for f in (f for f in found if f.artefact == name):
            for picture in f.pictures:
                pictures.append((f"{f.folder}/{picture.name}{_data_of(f)}", picture, f"{heading}, {f.folder}"))
            if layout and layout.kind == "figure" and not any(p.name.startswith("figure.") for p in f.pictures):
                pictures.append((f.folder, None, "rows are here, but no figure.svg: the figure was not drawn"))
        if pictures:
            yield _Chapter(f"pictures-{k}", heading, pictures=pictures)


def _data_of(found: Found) -> str:
    """The data sets of a picture; without rows, as far as the folder tells what a reader must know of them."""
    if len(found.rows):
        return f" — {'; '.join(dataset_words(str(name)) for name in found.rows['dataset'].unique())}"
    name = found.folder.rpartition("/")[2]
    return f" — {dataset_words(name)}" if dataset_words(name) != name else ""


def _panels(found: Found, order: Sequence[str]) -> Iterator[_Panel]:
    """Speed against accuracy, one panel per setting; methods in a given order."""
    for setting, group in found.settings():
        slot = Slot(without_training(derive(group)), UNPUBLISHED)
        methods = sorted(m for m in slot.rows["method"].unique() if m != ORIGINAL and slot.seeds(m))
        methods.sort(key=lambda method: order.index(own) if (own := registered(method)) in order else len(order))
        caption = f"{found.folder} — {setting_words(setting)}"
        shown = (GRADIENTS, SECONDS, R_SET)
        lines = [[method_name(m), *(slot.text(m, column) for column in shown)] for m in methods]
        numbers = Listing("Speed and accuracy", ["Method", *(column.header for column in shown)], lines)
        points = {m: (slot.cell(m, GRADIENTS), slot.cell(m, R_SET)) for m in methods}
        known = {m: (x, y) for m, (x, y) in points.items() if x.seeds and y.seeds and 0 < x.low <= x.high < math.inf}
        if not known:
            yield _Panel(caption, "", numbers, "no method was run beside the oracle, so that there is no speedup")
            continue
        yield _Panel(caption, scatter(known), numbers)

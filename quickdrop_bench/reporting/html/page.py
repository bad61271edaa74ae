"""One page over all rows of a results folder: the finding, tables, figures, gaps, and where the numbers come from."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from quickdrop_bench.harness.exhibits import Exhibit, exhibit, exhibits
from quickdrop_bench.harness.presets import presets
from quickdrop_bench.methods import METHODS
from quickdrop_bench.reporting.figures.style import style
from quickdrop_bench.reporting.figures.tradeoff import tradeoff
from quickdrop_bench.reporting.frame import Setting
from quickdrop_bench.reporting.html.contents import Found, data_uri, find, missing, provenance
from quickdrop_bench.reporting.names import dataset_name, registered
from quickdrop_bench.reporting.tables.capabilities import capability_tables
from quickdrop_bench.reporting.tables.comparison import comparison_table, comparison_tables, finding
from quickdrop_bench.reporting.tables.measured import Section, measured_sections
from quickdrop_bench.reporting.tables.shape import Entry, Line, Table
from quickdrop_bench.reporting.tables.texts import papers

TITLE = "Federated unlearning: benchmark results"

ABREAST = 7
"""Methods that stand side by side where a table is turned."""


@dataclass(frozen=True)
class Lead:
    """What the page opens with for a data set: heading, sentence, picture (may be empty) and summary."""

    heading: str
    finding: str
    uri: str
    table: Table


@dataclass(frozen=True)
class Block:
    """One setting of a table: the summary, if it stands nowhere else, and what folds out under the caption."""

    caption: str
    summaries: Sequence[Table]
    details: Sequence[Table]


@dataclass(frozen=True)
class Chapter:
    """A table or figure under its heading; per picture its caption, itself (or None) and a text in its place."""

    anchor: str
    heading: str
    blocks: Sequence[Block] = ()
    pictures: Sequence[tuple[str, Any, str]] = ()


def render_report(results_dir: Path, generated: date) -> str:
    """The page: one file that needs no network and no script.

    Args:
        results_dir: see :func:`~quickdrop_bench.reporting.html.contents.find`; it may be empty.
        generated: the day that the page names.

    Returns:
        HTML; the same rows, pictures and day give the same text.
    """
    found = find(results_dir)
    rows = [f.rows for f in found if len(f.rows)]
    everything = pd.concat(rows) if rows else pd.DataFrame(columns=["spec_hash", "federation_hash"])
    parts = [(f, section) for f in found for section in _sections(f)]
    leads = _lead_settings(parts)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=TITLE,
        generated=generated.isoformat(),
        counts={
            "rows": len(everything),
            "runs": everything["spec_hash"].nunique(),
            "federations": everything["federation_hash"].nunique(),
        },
        problems=[f for f in found if f.problem],
        leads=[_lead(f, section, setting) for f, section, setting in leads],
        tables=list(_tables(found, parts, [setting for *_, setting in leads])),
        figures=list(_figures(found)),
        missing=missing(found),
        provenance=provenance(found),
    )


def _sections(found: Found) -> list[Section]:
    own = exhibit(found.exhibit) if found.exhibit in exhibits() else None
    return measured_sections(own, found.newest) if own and own.kind == "table" else []


def _lead_settings(parts: Sequence[tuple[Found, Section]]) -> list[tuple[Found, Section, Setting]]:
    """Of Table 2's settings with the preset's values, that with most seeds for each data set."""
    leads: dict[str, list[tuple[Found, Section, Setting]]] = {}
    for f, section in parts:
        for setting in section.settings if section.exhibit.name == "table2" else ():
            if setting.columns["protocol"] == "preset" and finding(setting):
                leads.setdefault(str(setting.columns["dataset"]), []).append((f, section, setting))
    best = [max(of_one, key=lambda lead: len(lead[2].seeds())) for of_one in leads.values()]
    order = presets()  # the quickest first: what says most leads
    return sorted(best, key=lambda lead: -order.index(lead[0].preset) if lead[0].preset in order else 0)


def _lead(found: Found, section: Section, setting: Setting) -> Lead:
    methods = [method for method, _ in section.lines]
    with style():
        figure = tradeoff(setting, [method for method in methods if registered(method) == method])
        picture = io.BytesIO()
        if figure:
            figure.savefig(picture, format="svg", metadata={"Date": None})
    uri = data_uri(picture.getvalue()) if figure else ""
    table = comparison_table(setting, methods)
    return Lead(f"{dataset_name(str(setting.columns['dataset']))} ({found.folder})", finding(setting), uri, table)


def _tables(
    found: Sequence[Found], parts: Sequence[tuple[Found, Section]], leads: Sequence[Setting]
) -> Iterator[Chapter]:
    for name in exhibits():
        own = exhibit(name)
        if own.kind == "capabilities":
            best = [f.folder for f, section in parts if any(setting in leads for setting in section.settings)]
            tables = list(_capabilities(found, own, best))
            blocks = [Block(t.heading, [] if k else [t], [t] if k else []) for k, t in enumerate(tables)]
        else:
            blocks = [_block(f, section, leads) for f, section in parts if section.exhibit.name == name]
        if blocks:
            yield Chapter(name, own.heading, blocks=blocks)


def _block(found: Found, section: Section, leads: Sequence[Setting]) -> Block:
    full, differences = section.table(), section.differences()
    caption = " — ".join(filter(None, (f"Table {section.exhibit.number} · {found.folder}", section.heading)))
    details = [replace(full, heading=caption, notes=[*full.notes, papers(section.settings)])]
    if section.exhibit.per == "dataset":
        return Block("", details, [])
    shown = any(setting in leads for setting in section.settings)
    details += [differences] if differences else []
    summaries = [replace(t, heading=f"{found.folder} — {t.heading}") for t in comparison_tables(section)]
    return Block(f"Every stage: {caption}", [] if shown else summaries, [part for t in details for part in turned(t)])


def _capabilities(found: Sequence[Found], own: Exhibit, leads: Sequence[str]) -> Iterator[Table]:
    """From rows of its own, and where a group has none from those of Table 2: of the page's leads, if it has any."""
    groups = {f.group for f in found if f.exhibit == own.name and len(f.rows)}
    for f in found:
        from_table_2 = f.exhibit == "table2" and f.group not in groups and (f.folder in leads or not leads)
        if len(f.rows) and (f.exhibit == own.name or from_table_2):
            for table in capability_tables(own, f.newest, METHODS):
                lines = [
                    replace(line, entries=[e if e.difference else Entry(e.text) for e in line.entries])
                    for line in table.lines
                ]
                note = "" if f.exhibit == own.name else f"made from the rows of {f.folder}: class requests alone"
                caption = f"Table {own.number} · {f.folder} — {table.heading}"
                notes = ["the paper's mark stands where it differs", *table.notes, note]
                yield replace(table, heading=caption, lines=lines, notes=notes)


def _figures(found: Sequence[Found]) -> Iterator[Chapter]:
    """Pictures by exhibit, each once; rows whose figure was not drawn say so."""
    seen: set[str] = set()
    for k, name in enumerate(dict.fromkeys((*exhibits(), *(f.exhibit for f in found)))):
        is_figure = name in exhibits() and exhibit(name).kind == "figure"
        heading = exhibit(name).heading if is_figure else f"Pictures of {name}"
        pictures: list[tuple[str, Any, str]] = []
        for f in (f for f in found if f.exhibit == name):
            new = [picture for picture in f.pictures if picture.uri not in seen]
            seen |= {picture.uri for picture in new}
            pictures += [(_picture_caption(f, picture.name), picture, heading) for picture in new]
            if is_figure and len(f.rows) and not f.pictures:
                pictures.append((f.folder, None, "rows are here, but no figure.svg: the figure was not drawn"))
        if pictures:
            yield Chapter(f"pictures-{k}", heading, pictures=pictures)


def _picture_caption(found: Found, name: str) -> str:
    """Where it lies, and of which data sets."""
    last = found.folder.rpartition("/")[2]
    labels = found.rows["dataset"].unique() if len(found.rows) else [last] if dataset_name(last) != last else []
    return " — ".join(filter(None, (f"{found.folder}/{name}", "; ".join(dataset_name(str(label)) for label in labels))))


def turned(table: Table) -> Iterator[Table]:
    """Lines as columns, so that a table of many columns fits a page; in several parts if there are many lines."""
    for first in range(0, len(table.lines), ABREAST):
        shown = table.lines[first : first + ABREAST]
        lines = [Line(title, [line.entries[k] for line in shown]) for k, title in enumerate(table.titles[1:])]
        last = first + ABREAST >= len(table.lines)
        yield Table(table.heading, "", [(line.name,) for line in shown], lines, table.notes if last else [])

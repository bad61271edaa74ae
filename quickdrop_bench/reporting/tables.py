"""Tables laid out as in the paper, from rows: CSV, Markdown and LaTeX, the published values beside ours."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
from filelock import FileLock
from rich import box
from rich.markup import escape
from rich.table import Table

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import read_bytes, write_text
from quickdrop_bench.harness.exhibits import Exhibit
from quickdrop_bench.reporting.measured import SETTING, derive, latest, setting_of
from quickdrop_bench.reporting.published import read_published
from quickdrop_bench.reporting.sections import DIFFERENCES, Line, Section, sections
from quickdrop_bench.reporting.sheets import Sheet, latex, markdown
from quickdrop_bench.reporting.slots import Slot
from quickdrop_bench.store.rows import LARGEST, LOCK

__all__ = [
    "SETTING",
    "derive",
    "latest",
    "on_terminal",
    "read_published",
    "render",
    "setting_of",
    "write_table",
    "write_trials",
]

T = TypeVar("T")

ABREAST = 4
"""Most lines of a table that a terminal shows side by side."""


def render(
    rows: pd.DataFrame, published: pd.DataFrame, layout: Exhibit, unsupported: Collection[str] = ()
) -> dict[str, str]:
    """All formats of a table.

    Args:
        rows: of the artefact, as read from ``rows.jsonl``.
        published: from :func:`read_published`.
        layout: lines and columns.
        unsupported: methods that cannot serve requests of the layout's level.

    Returns:
        File name → text, for ``table.csv`` (one line per setting and method), ``table.md`` and ``table.tex``.
    """
    found = sections(rows, published, layout, unsupported)
    sheets = [sheet for section in found for sheet in (section.sheet(), section.differences()) if sheet]
    return {
        "table.csv": _csv(found),
        "table.md": f"# Table {layout.number}: {layout.title}\n\n" + "\n".join(map(markdown, sheets)),
        "table.tex": "\n".join(latex(sheet, layout.title) for sheet in sheets),
    }


def on_terminal(
    rows: pd.DataFrame, published: pd.DataFrame, layout: Exhibit, unsupported: Collection[str] = ()
) -> list[Table | str]:
    """The same for a terminal: methods side by side, the paper's value under ours.

    Args:
        rows: as for :func:`render`.
        published: as for :func:`render`.
        layout: as for :func:`render`.
        unsupported: as for :func:`render`.

    Returns:
        What ``rich.console.Console.print`` takes, in order.
    """
    parts: list[Table | str] = []
    for section in sections(rows, published, layout, unsupported):
        parts += [_terminal_table(section, lines) for lines in _abreast(section.lines)]
        parts.append(escape(f"{section.sheet().footnote}\n"))
        if differences := section.differences():
            parts += [_terminal_sheet(differences, lines) for lines in _abreast(differences.body)]
            parts.append(escape(f"{differences.footnote}\n"))
    return parts


def write_trials(path: Path, trials: Sequence[Mapping[str, object]]) -> None:
    """Write what searches for settings tried, in the place of earlier searches for the same methods.

    Args:
        path: a CSV file; it need not exist.
        trials: one per setting tried, with the columns of :data:`SETTING`, ``seed`` and ``method``.

    Raises:
        BadInput: the file is there and cannot be read; it is left as it was.
    """
    keys = [*SETTING, "seed", "method"]
    new = pd.DataFrame(trials)
    recorded = dict.fromkeys(["changes", "setting"], "")  # which older files lack
    with FileLock(path.with_name(LOCK)):
        if os.path.lexists(path):
            try:
                old = pd.read_csv(io.BytesIO(read_bytes(path, LARGEST)), dtype=dict.fromkeys(recorded, "str"))
                old = old.assign(**{name: old.get(name, text) for name, text in recorded.items()}).fillna(recorded)
                known = old[keys].astype(str).agg("|".join, axis=1)
            except (OSError, ValueError, KeyError) as error:
                allowed = f"{path.name} cannot be read ({type(error).__name__}); move it away"
                raise BadInput("--results-dir", path.parent, allowed) from error
            repeated = known.isin(new[keys].astype(str).agg("|".join, axis=1))
            new = pd.concat([old[~repeated], new], ignore_index=True)
        write_text(path, new.to_csv(index=False, float_format="%.6g"))


def write_table(folder: Path, texts: dict[str, str]) -> None:
    """Write what :func:`render` returned."""
    for name, text in texts.items():
        write_text(folder / name, text)


def _abreast(lines: Sequence[T]) -> list[Sequence[T]]:
    """As few stacked tables as can be, of nearly the same width."""
    size = math.ceil(len(lines) / math.ceil(len(lines) / ABREAST))
    return [lines[i : i + size] for i in range(0, len(lines), size)]


def _terminal_table(section: Section, lines: Sequence[Line]) -> Table:
    title = f"Table {section.layout.number}: {section.heading or section.layout.title}"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    names = {line.paper_name for line in section.lines} - {""}
    table.add_column(escape(f"(paper, {min(names)})") if len(names) == 1 else "", overflow="fold")
    for line in lines:
        own = f"\n[dim](paper, {escape(line.paper_name)})[/dim]" if len(names) > 1 else ""
        table.add_column(escape(line.name) + own, justify="right", overflow="fold")
    headers, columns = section.headers(), zip(*(_terminal_cells(line, section.layout) for line in lines), strict=True)
    for k, (header, cells) in enumerate(zip(headers, columns, strict=True)):
        last = k + 1 == len(headers) or headers[k + 1][:-1] != header[:-1]
        table.add_row(escape(": ".join(filter(None, header))), *cells, end_section=last)
    return table


def _terminal_sheet(sheet: Sheet, lines: Sequence[Sequence[str]]) -> Table:
    """Lines of a sheet side by side."""
    table = Table(title=escape(sheet.heading), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for name, *_ in lines:
        table.add_column(escape(name), justify="right", overflow="fold")
    for header, *cells in zip(sheet.headers, *(cells for _, *cells in lines), strict=True):
        table.add_row(escape(": ".join(filter(None, header))), *map(escape, cells))
    return table


def _terminal_cells(line: Line, layout: Exhibit) -> list[str]:
    pairs = zip(line.texts(layout), line.paper(layout), strict=True)
    return [f"{ours}\n[dim]({paper})[/dim]" if paper else ours for ours, paper in pairs]


def _csv(found: Sequence[Section]) -> str:
    """One line per setting and method.

    Per column the mean and deviation, or of ratios the median and range, and the published value; then, but for the
    oracle, the differences with their 95% intervals.
    """
    lines = [
        _csv_line(slot, line.method, section.layout)
        for section in found
        for slot in section.slots
        for line in section.lines
        if slot in line.slots
    ]
    return pd.DataFrame(lines).to_csv(index=False, float_format="%.6g")


def _csv_line(slot: Slot, method: str, layout: Exhibit) -> dict[str, object]:
    failed = slot.count(method, "failed")
    counts = {"seeds": len(slot.seeds(method)) - failed}
    counts |= {
        "collapsed": slot.count(method, "collapsed"),
        "diverged": slot.count(method, "diverged"),
        "failed": failed,
    }
    stages = {column.stage for column in layout.columns}
    counts["shared_cores"] = len({seed for stage in stages for seed in slot.shared(method, stage)})
    line = {**slot.setting(), "method": method, **counts}
    line |= {"status": slot.status(method), "error": "/".join(slot.errors(method)), "published": slot.published.name}
    for column in layout.columns:
        cell = slot.cell(method, column)
        if column.kind == "ratio":
            line |= {f"{column.key}_median": cell.median, f"{column.key}_min": cell.low, f"{column.key}_max": cell.high}
        else:
            line |= {f"{column.key}_mean": cell.mean, f"{column.key}_std": cell.std}
        line[f"{column.key}_published"] = slot.paper(method, column)
    for column in DIFFERENCES if layout.per == "method" else ():
        cell = slot.cell(method, column)
        line |= {f"{column.key}_mean": cell.mean, f"{column.key}_seeds": cell.seeds}
        line |= dict(zip((f"{column.key}_low", f"{column.key}_high"), cell.interval(), strict=True))
    return line

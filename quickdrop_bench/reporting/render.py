"""A table or figure from its rows to its files, and to a terminal; and the file of what searches tried."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import pandas as pd
from filelock import FileLock
from matplotlib.figure import Figure
from rich.console import RenderableType

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import read_bytes, write_text
from quickdrop_bench.harness.exhibits import Exhibit
from quickdrop_bench.harness.presets import paper_values
from quickdrop_bench.methods import METHODS
from quickdrop_bench.reporting.figures.points import numbers_table
from quickdrop_bench.reporting.figures.style import put_title, save_picture, style
from quickdrop_bench.reporting.frame import SETTING
from quickdrop_bench.reporting.published import read_published
from quickdrop_bench.reporting.tables.capabilities import capability_tables, short
from quickdrop_bench.reporting.tables.comparison import comparison_tables
from quickdrop_bench.reporting.tables.measured import measured_sections
from quickdrop_bench.reporting.tables.shape import Table
from quickdrop_bench.reporting.tables.writers import csv_text, fits, latex, markdown, stacked, terminal
from quickdrop_bench.store.rows import LARGEST, LOCK

MOST_NUMBERS = 60
"""Points of a figure that are printed, where they fit; its CSV file has all."""


def write_exhibit(folder: Path, exhibit: Exhibit, rows: pd.DataFrame) -> list[Path]:
    """Write ``table.csv|md|tex`` or ``figure.svg|png|csv``.

    Args:
        folder: where to.
        exhibit: a table or figure.
        rows: of it, from :func:`~quickdrop_bench.reporting.frame.frame_of`; of a figure one run per setting, method,
            seed, scale and fine-tuning.

    Returns:
        The files written.
    """
    if exhibit.kind == "figure":
        with style():
            figure, numbers = draw(exhibit, rows)
            put_title(figure, exhibit.heading, fontweight="bold")
            paths = save_picture(figure, folder / "figure")
        texts = {"figure.csv": numbers.to_csv(index=False, float_format="%.6g")}
    else:
        paths, texts = [], render(exhibit, rows)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [*paths, *(folder / name for name in texts)]


def draw(exhibit: Exhibit, rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """The picture and its numbers, one line per point; the exhibit's ``draw`` names the module."""
    module = import_module(f"quickdrop_bench.reporting.figures.{exhibit.draw}")
    figure, numbers = module.draw(rows, read_published(paper_values(), exhibit.name), exhibit.methods)
    return figure, numbers


def tables_of(exhibit: Exhibit, rows: pd.DataFrame, *, alike: bool = False) -> Iterator[Table]:
    """Every table of an exhibit, with every column; with ``alike`` the paper's numbers beside the same data alone."""
    if exhibit.kind == "capabilities":
        yield from capability_tables(exhibit, rows, METHODS)
        return
    for section in measured_sections(exhibit, rows):
        yield section.table(alike=alike)
        if differences := section.differences():
            yield differences


def render(exhibit: Exhibit, rows: pd.DataFrame) -> dict[str, str]:
    """All formats of a table: file name → text, for ``table.csv``, ``table.md`` and ``table.tex``."""
    tables = list(tables_of(exhibit, rows))
    return {
        "table.csv": csv_text(tables),
        "table.md": f"# {exhibit.heading}\n\n" + "\n".join(map(markdown, tables)),
        "table.tex": "\n".join(latex(table, exhibit.title) for table in tables),
    }


def on_terminal(
    exhibit: Exhibit, rows: pd.DataFrame, folder: Path, width: int, *, details: bool = False
) -> list[RenderableType]:
    """A table or a figure's numbers for ``rich.console.Console.print``.

    Args:
        exhibit: a table or figure.
        rows: of it, from :func:`~quickdrop_bench.reporting.frame.frame_of`.
        folder: to which :func:`write_exhibit` wrote.
        width: of the terminal, in characters.
        details: whether to print every column of a table rather than one line a method.
    """
    if exhibit.kind == "figure":
        numbers = pd.read_csv(folder / "figure.csv")
        table = numbers_table(numbers)
        shown = details or (0 < len(numbers) <= MOST_NUMBERS and fits(table, width))
        return [terminal(table, exhibit.heading, width)] if shown else []
    title = f"Table {exhibit.number}: "
    if details:
        return [
            stacked(table, title + (table.heading or exhibit.title)) for table in tables_of(exhibit, rows, alike=True)
        ]
    if exhibit.kind == "capabilities":
        tables = [short(table) for table in tables_of(exhibit, rows)]
    else:
        tables = [table for section in measured_sections(exhibit, rows) for table in comparison_tables(section)]
    return [terminal(table, title + (table.heading or exhibit.title), width) for table in tables]


def write_trials(path: Path, trials: Sequence[Mapping[str, object]]) -> None:
    """Write them, in the place of earlier searches for the same methods.

    Args:
        path: a CSV file; it need not exist.
        trials: one per setting tried, with the columns of :data:`~quickdrop_bench.reporting.frame.SETTING`, ``seed``
            and ``method``.

    Raises:
        BadInput: the file is there and cannot be read; it is left as it was.
    """
    keys, new = [*SETTING, "seed", "method"], pd.DataFrame(trials)
    with FileLock(path.with_name(LOCK)):
        if os.path.lexists(path):
            try:
                old = pd.read_csv(io.BytesIO(read_bytes(path, LARGEST)), dtype={"changes": "str", "setting": "str"})
                old = old.fillna({"changes": "", "setting": ""})  # empty text is no missing number
                known = old[keys].astype(str).agg("|".join, axis=1)
            except (OSError, ValueError, KeyError) as error:
                allowed = f"{path.name} cannot be read ({type(error).__name__}); move it away"
                raise BadInput("--results-dir", path.parent, allowed) from error
            repeated = known.isin(new[keys].astype(str).agg("|".join, axis=1))
            new = pd.concat([old[~repeated], new], ignore_index=True)
        write_text(path, new.to_csv(index=False, float_format="%.6g"))

"""A table in Markdown, LaTeX and CSV, and on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table as RichTable

from quickdrop_bench.reporting.tables.shape import Entry, Line, Table

LATEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{character: rf"\{character}" for character in "%_&#${}"},
    **{"<": "$<$", ">": "$>$", "×": r"$\times$", "±": r"$\pm$", "÷": r"$\div$", "—": "---", "–": "--", "−": "$-$"},
    **{"α": r"$\alpha$", "∞": r"$\infty$", "✓": r"$\checkmark$", "✗": r"$\times$"},
    **{"†": r"$\dagger$", "‡": r"$\ddagger$"},
}

ABREAST = 4
"""Most lines of a table that a terminal shows side by side."""

LONGEST_NAME = 24
"""Characters; names of lines that are longer are folded on a terminal that has no room for them and all columns."""

LOOK: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD}

SIGNS = "†‡"
"""Behind numbers; each has a note that begins with it."""


def csv_text(tables: Iterable[Table]) -> str:
    """The numbers of all tables, one line per record."""
    records = [record for table in tables for record in table.numbers]
    return pd.DataFrame(records).to_csv(index=False, float_format="%.6g")


def markdown(table: Table) -> str:
    """One section: heading, table, notes."""
    body = list(table.body("**{}**"))
    widths = [max(len(line[i]) for line in [table.titles, *body]) for i in range(len(table.titles))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *padded])} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    heading = [f"## {table.heading}", ""] if table.heading else []
    return "\n".join([*heading, line(table.titles), rule, *map(line, body), "", table.footnote, ""])


def latex(table: Table, title: str) -> str:
    """A table environment."""
    caption = " ".join(f"{text.rstrip('.')}." for text in (title, table.heading, table.footnote) if text)
    *groups, headers = table.header_lines
    body = [" & ".join(line) + r" \\" for line in table.body(r"\textbf{{{}}}", escape_latex)]
    return "\n".join(
        [
            rf"% needs \usepackage{{{table.packages}}}",
            r"\begin{table}",
            rf"\caption{{{escape_latex(caption)}}}",
            r"\centering",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * len(table.headers)}}}",
            r"\toprule",
            *(line for group in groups for line in _spanning(group)),
            rf"{' & '.join(escape_latex(text) for text in (table.corner, *(text for text, _ in headers)))} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _spanning(line: Sequence[tuple[str, int]]) -> Iterator[str]:
    """A line of headers over several columns, and the rules under it."""
    yield "".join(rf" & \multicolumn{{{n}}}{{c}}{{{escape_latex(text)}}}" for text, n in line) + r" \\"
    ends = pairwise(accumulate((n for _, n in line), initial=1))
    rules = zip(line, ends, strict=True)
    yield "".join(rf"\cmidrule(lr){{{before + 1}-{last}}}" for (text, _), (before, last) in rules if text)


def escape_latex(text: str) -> str:
    """Text for LaTeX; two leading spaces become an indent."""
    indent, text = (r"\quad ", text.strip()) if text.startswith("  ") else ("", text)
    return indent + "".join(LATEX.get(character, character) for character in text)


def fits(table: Table, width: int) -> bool:
    """Whether a terminal of so many characters shows all columns of :func:`terminal`."""
    name, *widths = _widths(table)
    return name + sum(widths) + 2 * len(widths) <= width


def _widths(table: Table) -> list[int]:
    """Of the names, and of each column."""
    columns = [
        max(len(word) for word in (*header.split(), *(_plain(line.entries[k]) for line in table.lines)))
        for k, header in enumerate(table.titles[1:])
    ]
    return [max(len(text) for text in (table.corner, *(line.name for line in table.lines))), *columns]


def terminal(table: Table, title: str, width: int) -> Group:
    """A table for ``rich.console.Console.print``, one line a line, without the last columns where they do not fit."""
    shown = RichTable(title=escape(title), **LOOK, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    name, *widths = _widths(table)
    if not fits(table, width):
        name = min(name, LONGEST_NAME)
    shown.add_column(escape(table.corner), overflow="fold", width=name)
    room, count = width - name, 0
    for own, header in zip(widths, table.titles[1:], strict=True):
        room -= own + 2
        if room < 0 and count:
            break
        count += 1
        shown.add_column(escape(header), justify="right", width=own, vertical="bottom")
    for line in table.lines:
        shown.add_row(escape(line.name), *map(_rich, line.entries[:count]), style="dim" if line.idle else "")
    left = table.titles[1 + count :]
    missing = f"\nA wider terminal shows {', '.join(left)} too." if left else ""
    signs = {sign for line in table.lines for entry in line.entries[:count] for sign in SIGNS if sign in entry.text}
    notes = [note for note in table.notes if not note.startswith(tuple({*SIGNS} - signs))]
    return Group(shown, f"[dim]{escape(replace(table, notes=notes).footnote + missing)}[/dim]\n")


def _plain(entry: Entry) -> str:
    return f"{entry.text} ({entry.paper})" if entry.paper else entry.text


def _rich(entry: Entry, before_paper: str = " ") -> str:
    text = f"[bold]{escape(entry.text)}[/bold]" if entry.best else escape(entry.text)
    return f"{text}{before_paper}[dim]({escape(entry.paper)})[/dim]" if entry.paper else text


def stacked(table: Table, title: str) -> Group:
    """Every column of a table for a terminal: lines side by side, the paper's number under ours."""
    size = -(-len(table.lines) // -(-len(table.lines) // ABREAST))  # as few as can be, of nearly the same width
    return Group(
        *(_stack(table, title, table.lines[k : k + size]) for k in range(0, len(table.lines), size)),
        escape(f"{table.footnote}\n"),
    )


def _stack(table: Table, title: str, lines: Sequence[Line]) -> RichTable:
    papers = {line.paper for line in table.lines} - {""}
    shown = RichTable(title=escape(title), **LOOK)
    shown.add_column(escape(f"(paper, {min(papers)})") if len(papers) == 1 else "", overflow="fold")
    for line in lines:
        own = f"\n[dim](paper, {escape(line.paper)})[/dim]" if len(papers) > 1 and line.paper else ""
        shown.add_column(escape(line.name) + own, justify="right", overflow="fold")
    for k, (header, parts) in enumerate(zip(table.titles[1:], table.headers, strict=True)):
        last = k + 1 == len(table.headers) or table.headers[k + 1][:-1] != parts[:-1]
        shown.add_row(escape(header), *(_rich(line.entries[k], "\n") for line in lines), end_section=last)
    return shown

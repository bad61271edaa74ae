"""A table as text cells, in Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

__all__ = ["Sheet", "escape_latex", "latex", "markdown"]

LATEX = {
    "\\": r"\textbackslash{}",
    "%": r"\%",
    "_": r"\_",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "÷": r"$\div$",
    "—": "---",
    "−": "$-$",
    "α": r"$\alpha$",
    "∞": r"$\infty$",
    "✓": r"$\checkmark$",
    "†": r"$\dagger$",
    "–": "--",
    "✗": r"$\times$",
    "‡": r"$\ddagger$",
}


@dataclass(frozen=True)
class Sheet:
    """A table ready to be laid out.

    Attributes:
        heading: what it is about; may be empty.
        corner: header of the first column.
        headers: per further column its headers from the top down, e.g. (``IID``, ``Recovery``, ``F-Set``); empty ones
            are left out.
        body: cells, line by line; a first cell that begins with two spaces belongs to the line above.
        notes: sentences to stand below, without full stop.
        packages: what LaTeX needs.
    """

    heading: str
    corner: str
    headers: Sequence[tuple[str, ...]]
    body: Sequence[Sequence[str]]
    notes: Sequence[str]
    packages: str = "booktabs,graphicx"

    @property
    def footnote(self) -> str:
        """The notes as one text."""
        return " ".join(f"{note[0].upper()}{note[1:]}." for note in self.notes if note)


def markdown(sheet: Sheet) -> str:
    """One section: heading, table, notes."""
    header = [sheet.corner, *(": ".join(filter(None, parts)) for parts in sheet.headers)]
    widths = [max(len(line[i]) for line in [header, *sheet.body]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *padded])} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    heading = [f"## {sheet.heading}", ""] if sheet.heading else []
    return "\n".join([*heading, line(header), rule, *map(line, sheet.body), "", sheet.footnote, ""])


def latex(sheet: Sheet, title: str) -> str:
    """A table environment.

    Args:
        sheet: what to lay out.
        title: begins the caption.
    """
    caption = " ".join(f"{text.rstrip('.')}." for text in (title, sheet.heading, sheet.footnote) if text)
    levels = len(sheet.headers[0])
    spans = [line for level in range(levels - 1) for line in _spanning(sheet.headers, level)]
    headers = " & ".join(escape_latex(parts[-1]) for parts in sheet.headers)
    body = [" & ".join(map(escape_latex, line)) + r" \\" for line in sheet.body]
    return "\n".join(
        [
            rf"% needs \usepackage{{{sheet.packages}}}",
            r"\begin{table}",
            rf"\caption{{{escape_latex(caption)}}}",
            r"\centering",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * len(sheet.headers)}}}",
            r"\toprule",
            *spans,
            rf"{escape_latex(sheet.corner)} & {headers} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _spanning(headers: Sequence[tuple[str, ...]], level: int) -> list[str]:
    """One line of headers over several columns, and the rules under it; nothing where all are empty."""
    if not any(parts[level] for parts in headers):
        return []
    cells, rules, start = [], [], 2
    for key, columns in groupby(headers, key=lambda parts: parts[: level + 1]):
        n = len(list(columns))
        cells.append(rf"\multicolumn{{{n}}}{{c}}{{{escape_latex(key[-1])}}}")
        if key[-1]:
            rules.append(rf"\cmidrule(lr){{{start}-{start + n - 1}}}")
        start += n
    return [rf" & {' & '.join(cells)} \\", "".join(rules)]


def escape_latex(text: str) -> str:
    """Text for LaTeX; two leading spaces become an indent."""
    indent, text = (r"\quad ", text.strip()) if text.startswith("  ") else ("", text)
    return indent + "".join(LATEX.get(character, character) for character in text)

"""The shape that every table has, whatever it is written as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from quickdrop_bench.reporting.names import marked

EMPTY = "—"


@dataclass(frozen=True)
class Entry:
    """One cell.

    Attributes:
        text: ours.
        paper: the published one; empty where there is none.
        difference: of the two.
        best: whether it is the best of its column.
    """

    text: str
    paper: str = ""
    difference: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        title: of the method, data set or whatever it is about.
        entries: its cells.
        marks: what a reader must know beside the title.
        paper: which published numbers stand beside ours; may be empty.
        labels: what else is shown beside the title where there is colour.
        idle: whether there is nothing to show in it.
    """

    title: str
    entries: Sequence[Entry]
    marks: Sequence[str] = ()
    paper: str = ""
    labels: Sequence[str] = ()
    idle: bool = False

    @property
    def name(self) -> str:
        """The title with the marks."""
        return marked(self.title, self.marks)

    @property
    def badges(self) -> list[tuple[str, str]]:
        """Kind (``good``, ``bad`` or ``none``) and text of what is shown beside the title where there is colour."""
        kinds = {"oracle": "good", "failed": "bad", "diverged": "bad"}
        return [(kinds.get(text.split(":")[0], "none"), text) for text in (*self.labels, *self.marks)]


@dataclass(frozen=True)
class Table:
    """A table ready to be written.

    Attributes:
        heading: what it is about; may be empty.
        corner: header of the first column.
        headers: per further column its headers from the top down, e.g. (``IID``, ``Recovery``, ``F-Set``); empty ones
            are left out.
        lines: from top to bottom.
        notes: sentences to stand below, without full stop.
        numbers: the same for machines, a record per line.
        packages: what LaTeX needs.
    """

    heading: str
    corner: str
    headers: Sequence[tuple[str, ...]]
    lines: Sequence[Line]
    notes: Sequence[str] = ()
    numbers: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    packages: str = "booktabs,graphicx"

    @property
    def titles(self) -> list[str]:
        """One header per column, the corner first."""
        return [self.corner, *(": ".join(filter(None, parts)) for parts in self.headers)]

    @property
    def footnote(self) -> str:
        """The notes as one text."""
        return " ".join(f"{note[0].upper()}{note[1:]}." for note in self.notes if note)

    @property
    def header_lines(self) -> list[list[tuple[str, int]]]:
        """Lines of headers: texts, and how many columns each spans; lines that are empty throughout are left out."""
        levels = len(self.headers[0]) if self.headers else 0
        lines = []
        for level in range(levels):
            groups = groupby(self.headers, key=lambda parts: parts[: level + 1])
            spans = [(key[-1], len(list(columns))) for key, columns in groups]
            if level + 1 == levels:
                spans = [(parts[level], 1) for parts in self.headers]
            if any(text for text, _ in spans):
                lines.append(spans)
        return lines

    def body(self, bold: str = "{}", escape: Callable[[str], str] = str) -> Iterator[list[str]]:
        """Cells, line by line; the paper's numbers have a line of their own, which begins with two spaces.

        Args:
            bold: how the best of a column are written.
            escape: of every text, before that.
        """
        for line in self.lines:
            texts = [(escape(entry.text), entry.best) for entry in line.entries]
            yield [escape(line.name), *(bold.format(text) if best else text for text, best in texts)]
            if any(entry.paper for entry in line.entries):
                name = f"  paper ({line.paper})" if line.paper else "  paper"
                yield [*map(escape, (name, *(entry.paper or EMPTY for entry in line.entries)))]

    def used(self) -> Table:
        """The same without columns in which every cell is empty."""
        keep = [
            k for k in range(len(self.headers)) if any(line.entries[k].text not in ("", EMPTY) for line in self.lines)
        ]
        lines = [replace(line, entries=[line.entries[k] for k in keep]) for line in self.lines]
        return replace(self, headers=[self.headers[k] for k in keep], lines=lines)


def plain_table(heading: str, header: Sequence[str], body: Sequence[Sequence[str]], note: str = "") -> Table:
    """A table of texts alone."""
    lines = [Line(title, list(map(Entry, texts))) for title, *texts in body]
    return Table(heading, header[0], [(text,) for text in header[1:]], lines, [note])

"""What a table shows: its lines and columns, and how a number is written for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "COLLAPSED",
    "CONTROL",
    "EMPTY",
    "ORACLE",
    "ORIGINAL",
    "Column",
    "Layout",
    "marked",
    "method_name",
    "registered",
]

ORACLE = "retrain-or"
CONTROL = "random-subset"
"""QuickDrop without distillation: what it does as well, distillation did not buy."""

ORIGINAL = "original"
EMPTY = "—"
COLLAPSED = "†"

METHOD_NAMES = {
    "retrain-or": "Retrain-Or",
    "federaser": "FedEraser",
    "s2u": "S2U",
    "sga-or": "SGA-Or",
    "fu-mp": "FU-MP",
    "random-subset": "Random subset (control)",
    "quickdrop": "QuickDrop",
}

UNITS = {
    "percent": (100.0, "%"),
    "percentage": (1.0, "%"),
    "points": (100.0, ""),
    "seconds": (1.0, ""),
    "ratio": (1.0, "×"),
    "count": (1.0, ""),
}
"""Factor and unit of each kind of number; that of bytes depends on the size."""


def registered(method: str) -> str:
    """The method's registered name; what differs from the preset may stand behind it in brackets."""
    return method.partition(" (")[0]


def method_name(method: str) -> str:
    """The name that tables show, with what differs from the preset."""
    own = registered(method)
    return marked(METHOD_NAMES.get(own, own), list(filter(None, [method[len(own) + 2 : -1]])))


def marked(name: str, marks: Sequence[str]) -> str:
    """A name with what a reader must know beside it."""
    if not marks:
        return name
    opened = f"{name[:-1]}; " if name.endswith(")") else f"{name} ("
    return f"{opened}{'; '.join(marks)})"


def _byte_unit(value: float) -> tuple[float, str]:
    power = min(int(math.log10(max(abs(value), 1.0)) / 3 + 1e-9), 4)
    return 1000.0**-power, f" {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        group: header over several columns, e.g. ``Unlearning``; may be empty.
        header: of this column.
        stage, metric: the rows it shows.
        kind: ``percent`` (of a fraction), ``percentage`` (already in percent), ``points`` (difference of fractions),
            ``seconds``, ``count``, ``ratio`` or ``bytes``.
    """

    group: str
    header: str
    stage: str
    metric: str
    kind: str

    @property
    def key(self) -> str:
        """Column name in the CSV file."""
        return f"{self.stage}_{self.metric}"

    @property
    def title(self) -> str:
        """Group and header in one."""
        return f"{self.group}: {self.header}" if self.group else self.header

    def format(self, value: float, spread: float | None = None) -> str:
        """A value for people, in the column's unit.

        Args:
            value: in the unit of the rows.
            spread: its standard deviation, in the same unit; not shown for counts.
        """
        factor, unit = _byte_unit(value) if self.kind == "bytes" else UNITS[self.kind]
        if math.isinf(value):
            return f"∞{unit}"
        text = self._number(factor * value, unit)
        if spread is not None and self.kind != "count":
            text += f" ± {self._number(factor * spread, unit).removeprefix('+')}"
        return text + unit

    def _number(self, value: float, unit: str) -> str:
        match self.kind:
            case "points":
                return f"{value:+.2f}"
            case "ratio":
                return f"{value:.1f}"
            case "count":
                return f"{value:,.0f}".replace(",", " ")
            case "seconds":
                return f"{value:.2f}" if value < 100 else f"{value:.0f}"
            case "bytes" if unit == " B":
                return f"{value:.0f}"
            case _:
                return f"{value:.2f}"


@dataclass(frozen=True)
class Layout:
    """A table of the paper.

    Attributes:
        number: of the table in the paper.
        title: its caption.
        methods: in order, the oracle first.
        columns: from left to right.
        level: the requests it is about, ``class`` or ``client``.
        relearn: whether it shows the relearning stage.
        beside: the setting column whose values stand side by side as blocks of columns; None makes a table of each.
        per: what has a line of its own: ``method``, or ``dataset`` for a table about one method.
    """

    number: int
    title: str
    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    level: str = "class"
    relearn: bool = False
    beside: str | None = None
    per: str = "method"

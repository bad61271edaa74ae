"""Tables and figures as data: what each measures and shows, one YAML file each in ``benchmarks/``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.requests import LEVELS
from quickdrop_bench.harness.presets import benchmarks_dir
from quickdrop_bench.methods import METHODS

Kind = Literal["table", "capabilities", "figure"]

UNITS = {
    "percent": (100.0, "%"),
    "percentage": (1.0, "%"),
    "points": (100.0, ""),
    "seconds": (1.0, ""),
    "ratio": (1.0, "×"),
    "count": (1.0, ""),
    "number": (1.0, ""),
}
"""Factor and unit of each kind of number; that of bytes depends on the size."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        group: header over several columns, e.g. ``Unlearning``; may be empty.
        header: of this column.
        stage, metric: the rows that it shows.
        kind: how its numbers are written: ``percent`` (of a fraction), ``percentage`` (already in percent), ``points``
            (difference of fractions), ``seconds``, ``count``, ``ratio``, ``number`` (three digits) or ``bytes``.
    """

    group: str
    header: str
    stage: str
    metric: str
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in (*UNITS, "bytes"):
            raise ValueError(f"kind {self.kind!r} of a column is none of {', '.join(UNITS)}, bytes")

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
            case "number":
                return f"{value:.3f}"
            case "count":
                return f"{value:,.0f}".replace(",", " ")
            case "seconds":
                return f"{value:.2f}" if value < 100 else f"{value:.0f}"
            case "bytes" if unit == " B":
                return f"{value:.0f}"
            case _:
                return f"{value:.2f}"


def _byte_unit(value: float) -> tuple[float, str]:
    power = int(min(math.log10(max(abs(value), 1.0)) / 3 + 1e-9, 4))
    return 1000.0**-power, f" {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


@dataclass(frozen=True)
class Variant:
    """One kind of federation that an exhibit is measured on.

    Attributes:
        section: of the presets, which holds its settings.
        shape: the exhibit whose methods, level and stages it takes.
        options: further options of the command by name, e.g. ``iid: true``.
    """

    section: str
    shape: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exhibit:
    """A table or a figure.

    Attributes:
        name: e.g. ``table2``, as in rows and in the names of folders.
        kind: ``table``, ``capabilities`` (what methods can do, beside what was measured) or ``figure``.
        number: of the table or figure; None for a sweep.
        title: its caption.
        methods: in order, the oracle first; in a file ``all`` stands for every registered one.
        level: the requests that it is about, ``class``, ``client`` or ``sample``.
        columns: of a table, from left to right.
        relearn: whether what was forgotten is learnt again.
        each_round: whether accuracy is measured after every round.
        trains_only: it measures training and runs no method.
        beside: the setting column whose values stand side by side as blocks of columns; None makes a table of each.
        per: what has a line of its own: ``method``, or ``dataset`` for a table about one method.
        variants: the federations that it is measured on; by default that of its own section of the presets.
        published: what the paper's table says of each method, where that is no number.
        draw: name of the drawing of a figure; by default its own.
    """

    name: str
    kind: Kind
    number: int | None
    title: str
    methods: tuple[str, ...]
    level: Literal["class", "client", "sample"] = "class"
    columns: tuple[Column, ...] = ()
    relearn: bool = False
    each_round: bool = False
    trains_only: bool = False
    beside: Literal["dataset", "distribution"] | None = None
    per: Literal["method", "dataset"] = "method"
    variants: tuple[Variant, ...] = ()
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    draw: str = ""

    def __post_init__(self) -> None:
        allowed = {
            "kind": get_args(Kind),
            "level": LEVELS,
            "beside": (None, "dataset", "distribution"),
            "per": ("method", "dataset"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(map(str, values))}")
        object.__setattr__(self, "draw", self.draw or self.name)
        if not self.variants:
            object.__setattr__(self, "variants", (Variant(self.name, self.name),))

    @property
    def heading(self) -> str:
        """The caption, with the number if there is one."""
        noun = "Figure" if self.kind == "figure" else "Table"
        return self.title if self.number is None else f"{noun} {self.number}: {self.title}"


def exhibits() -> list[str]:
    """Names of all tables and figures, e.g. ``table2``, in order; the sweep last."""
    return [*_files()]


@cache
def exhibit(name: str) -> Exhibit:
    """A table or figure by name.

    Raises:
        BadInput: there is none, or its file says something that an exhibit has not.
    """
    kind = "figure" if name.startswith("figure") else "table"
    if name not in _files():
        known = [other.removeprefix(kind) for other in _files() if other.startswith(kind)]
        raise BadInput(kind, name.removeprefix(kind), f"use one of {', '.join(known)}")
    path = _files()[name]
    try:
        return _read(name, path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise BadInput("benchmarks", f"{path.parent.name}/{path.name}", f"it describes no {kind} ({error})") from error


@cache
def _files() -> dict[str, Path]:
    """The definitions by name."""
    found: dict[str, Path] = {}
    for kind in ("table", "figure"):
        numbered = (benchmarks_dir() / f"{kind}s").glob("[0-9]*.yaml")
        found |= {f"{kind}{path.stem}": path for path in sorted(numbered, key=lambda path: int(path.stem))}
    return {**found, "sweep": benchmarks_dir() / "figures" / "sweep.yaml"}


def _read(name: str, path: Path) -> Exhibit:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if unknown := values.keys() - {f.name for f in fields(Exhibit)} - {"name", "number"}:
        raise ValueError(f"unknown key {min(unknown)}")
    values["columns"] = tuple(Column(**{"group": "", **column}) for column in values.get("columns", ()))
    values["variants"] = tuple(Variant(**variant) for variant in values.get("variants", ()))
    values["methods"] = tuple(METHODS if values["methods"] == "all" else values["methods"])
    number = int(path.stem) if path.stem.isdecimal() else None
    return Exhibit(**{"kind": path.parent.name.removesuffix("s"), **values, "name": name, "number": number})

"""What was measured in one setting, cell by cell."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from quickdrop_bench.reporting.layout import COLLAPSED, EMPTY, Column
from quickdrop_bench.reporting.measured import SEARCH, SETTING
from quickdrop_bench.reporting.published import Published

__all__ = ["Cell", "Slot"]

NONE = pd.Series(dtype=float)


@dataclass(frozen=True)
class Cell:
    """One number over seeds.

    Attributes:
        mean, std: NaN where there is none.
        seeds: how many it is the mean of.
    """

    mean: float
    std: float
    seeds: int

    @classmethod
    def of(cls, values: pd.Series) -> Cell:
        """Of one value per seed."""
        n, nan = len(values), float("nan")
        spread = n > 1 and bool(values.abs().lt(float("inf")).all())
        return cls(float(values.mean()) if n else nan, float(values.std()) if spread else nan, n)

    def text(self, column: Column) -> str:
        """For people."""
        if self.seeds == 0:
            return EMPTY
        return column.format(self.mean, self.std if self.seeds > 1 else None)


@dataclass(frozen=True, eq=False)
class Slot:
    """Everything measured in one setting, and the published numbers that belong beside it.

    Attributes:
        rows: of one setting, derived metrics included.
        published: the part of the published table.
        label: header over its columns where several settings stand side by side.
        unsupported: methods that cannot serve its request.
    """

    rows: pd.DataFrame
    published: Published
    label: str = ""
    unsupported: Collection[str] = ()

    def setting(self) -> dict[str, object]:
        """The values of :data:`SETTING`."""
        return {name: self.rows[name].iloc[0] for name in SETTING}

    def values(self, method: str, stage: str, metric: str) -> pd.Series:
        """One value per seed."""
        return self._values.get((method, stage, metric), NONE)

    @cached_property
    def _values(self) -> dict[tuple[str, ...], pd.Series]:
        keys = ["method", "stage", "metric"]
        last = self.rows.dropna(subset="value").drop_duplicates([*keys, "seed"], keep="last")
        return {tuple(map(str, key)): values for key, values in last.groupby(keys)["value"]}

    def cell(self, method: str, column: Column) -> Cell:
        """Mean and deviation over seeds."""
        return Cell.of(self.values(method, column.stage, column.metric))

    def text(self, method: str, column: Column) -> str:
        """A cell for people: blank if the method was not run, a dash if it was and has no such number.

        Accuracies of a stage that left a collapsed model in any run have a mark.
        """
        if self.status(method) == "not run":
            return ""
        marked = column.metric.endswith("_set_accuracy") and self.count(method, "collapsed", column.stage)
        return self.cell(method, column).text(column) + (f" {COLLAPSED}" if marked else "")

    def paper(self, method: str, column: Column) -> float | None:
        """The published number, if there is one."""
        return self.published.value(method, column.stage, column.metric)

    def seeds(self, method: str | None = None) -> list[int]:
        """Seeds on which a method, or any, was measured; the search for settings is no measurement."""
        return self._seeds.get(method, [])

    @cached_property
    def _seeds(self) -> dict[str | None, list[int]]:
        """By method; under None those of all."""
        r = self.rows[self.rows["stage"] != SEARCH]
        found: dict[str | None, list[int]] = {None: sorted(r["seed"].unique())}
        found.update((str(method), sorted(seeds.unique())) for method, seeds in r.groupby("method")["seed"])
        return found

    def count(self, method: str, metric: str, stage: str = "total") -> int:
        """Runs that ``diverged``, ``failed`` or, in a stage, ``collapsed``."""
        return int(self.values(method, stage, metric).sum())

    def status(self, method: str) -> str:
        """``measured``, ``failed`` (every run), ``unsupported`` or ``not run``."""
        if runs := len(self.seeds(method)):
            return "failed" if self.count(method, "failed") == runs else "measured"
        return "unsupported" if method in self.unsupported else "not run"

    def marks(self, method: str) -> list[str]:
        """What a reader must know beside the method's name."""
        if self.status(method) in ("unsupported", "not run"):
            return ["not run"] if self.status(method) == "not run" else []
        runs, marks = len(self.seeds(method)), []
        if count := self.count(method, "diverged"):
            marks.append(f"diverged: {count} of {runs}")
        if count := self.count(method, "failed"):
            marks.append(", ".join([f"failed: {count} of {runs}", *self.errors(method)]))
        if runs < len(self.seeds()):
            marks.append(f"{runs} of {len(self.seeds())} seeds")
        return marks

    def errors(self, method: str) -> list[str]:
        """Kinds of errors that ended runs, without their messages."""
        r = self.rows.reindex(columns=["method", "metric", "error"])
        texts = r[(r["method"] == method) & (r["metric"] == "failed")]["error"].dropna()
        return sorted({str(text).split(":")[0] for text in texts})

"""What was measured in one setting, cell by cell."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from scipy.stats import t

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.layout import COLLAPSED, CONTROL, EMPTY, ORACLE, registered
from quickdrop_bench.reporting.measured import SEARCH, SETTING
from quickdrop_bench.reporting.published import Published

__all__ = ["SHARED", "Cell", "Slot"]

SHARED = " ‡"
"""Behind seconds, and what follows from them, that were measured while other work had the cores."""

NONE = pd.Series(dtype=float)


@dataclass(frozen=True)
class Cell:
    """One number over seeds.

    Attributes:
        mean, std: NaN where there is none.
        seeds: how many it is the mean of.
        median, low, high: the middle value, the smallest and the largest; NaN where there is none.
    """

    mean: float
    std: float
    seeds: int
    median: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, values: pd.Series) -> Cell:
        """Of one value per seed."""
        n, nan = len(values), float("nan")
        spread = n > 1 and bool(values.abs().lt(float("inf")).all())
        mean, std = float(values.mean()) if n else nan, float(values.std()) if spread else nan
        return cls(mean, std, n, float(values.median()), float(values.min()), float(values.max()))

    def text(self, column: Column) -> str:
        """For people: mean ± deviation; of ratios, whose mean one odd value can move far, median and range."""
        if self.seeds == 0:
            return EMPTY
        if column.kind != "ratio":
            return column.format(self.mean, self.std if self.seeds > 1 else None)
        low, high = (column.format(value).removesuffix("×") for value in (self.low, self.high))
        return column.format(self.median) + (f" ({low}–{high})" if self.seeds > 1 and low != "∞" else "")

    def typical(self, column: Column) -> float:
        """The number that stands for all seeds."""
        return self.median if column.kind == "ratio" else self.mean

    def interval(self) -> tuple[float, float]:
        """The 95% interval of the mean by Student's t; NaN of fewer than two seeds."""
        half = float(t.ppf(0.975, self.seeds - 1)) * self.std / math.sqrt(self.seeds) if self.seeds > 1 else math.nan
        return self.mean - half, self.mean + half


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
        collapsed = column.metric.endswith("_set_accuracy") and self.count(method, "collapsed", column.stage)
        cell = self.cell(method, column)
        text = cell.text(column) + (f" {COLLAPSED}" if collapsed else "")
        return text + (self.sign(method, column) if cell.seeds else "")

    def difference(self, method: str, column: Column) -> str:
        """A paired difference for people: the mean and its 95% interval; a dash for a method and itself."""
        reference = CONTROL if column.metric.endswith("_control") else ORACLE
        cell = self.cell(method, column)
        if not cell.seeds or registered(method) == reference:
            return EMPTY
        ends = " [{}, {}]".format(*map(column.format, cell.interval())) if cell.seeds > 1 else ""
        return column.format(cell.mean) + ends

    def sign(self, method: str, column: Column) -> str:
        """:data:`SHARED` behind a time, or a ratio of times, that says too much."""
        runs = [method, ORACLE] if column.metric == "speedup" else [method] if column.kind == "seconds" else []
        return SHARED if any(self.shared(run, column.stage) for run in runs) else ""

    def shared(self, method: str, stage: str) -> list[int]:
        """Seeds on which a stage had to share its cores."""
        return sorted(self._shared.get((method, stage), []))

    @cached_property
    def _shared(self) -> dict[tuple[str, ...], list[int]]:
        r = self.rows[(self.rows["metric"] == "shared_cores") & (self.rows["value"] > 0)]
        return {tuple(map(str, key)): [*seeds.unique()] for key, seeds in r.groupby(["method", "stage"])["seed"]}

    def paper(self, method: str, column: Column) -> float | None:
        """The published number, if there is one."""
        return self.published.value(registered(method), column.stage, column.metric)

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
        return "unsupported" if registered(method) in self.unsupported else "not run"

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

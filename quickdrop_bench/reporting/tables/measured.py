"""Rows put together into the tables of an exhibit: who has a line, which settings stand side by side."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from quickdrop_bench.harness.exhibits import Column, Exhibit
from quickdrop_bench.harness.presets import paper_values
from quickdrop_bench.reporting import names
from quickdrop_bench.reporting.frame import SETTING, Setting, derive, without_training
from quickdrop_bench.reporting.names import CONTROL, ORACLE, ORIGINAL, method_title, registered
from quickdrop_bench.reporting.published import beside, published_dataset, read_published
from quickdrop_bench.reporting.tables import texts
from quickdrop_bench.reporting.tables.best import best, note
from quickdrop_bench.reporting.tables.shape import EMPTY, Entry, Line, Table
from quickdrop_bench.reporting.tables.texts import cell_of


def difference_columns() -> list[Column]:
    """What the second table of a section shows: F-Set and R-Set, minus the oracle's and minus the control's."""
    return [
        Column(f"− {method_title(reference)}", f"{letter}-Set", "total", f"{letter.lower()}_set_gap{suffix}", "points")
        for reference, suffix in ((ORACLE, ""), (CONTROL, "_control"))
        for letter in "FR"
    ]


@dataclass(frozen=True)
class Section:
    """A table of an exhibit: its settings side by side, or, where data sets have the lines, below each other.

    Attributes:
        exhibit: which.
        heading: what the settings share; may be empty.
        lines: methods, each with the settings of its line from left to right.
        again: whether one before it differs in ``changes`` alone: what was not run need not be shown once more.
    """

    exhibit: Exhibit
    heading: str
    lines: Sequence[tuple[str, tuple[Setting, ...]]]
    again: bool = False

    @property
    def settings(self) -> tuple[Setting, ...]:
        """All settings in it."""
        return tuple(dict.fromkeys(setting for _, settings in self.lines for setting in settings))

    def table(self, *, alike: bool = False) -> Table:
        """Every column of the exhibit, the paper's numbers beside ours; with ``alike`` beside the same data alone."""
        columns, methods = self.exhibit.columns, [method for method, _ in self.lines]
        bold = {setting: best(setting, methods, columns) for setting in self.settings}
        lines = [self._line(method, settings, bold, alike) for method, settings in self.lines]
        absent = [line.title for line in lines if self.again and line.idle and line.marks]
        lines = [line for line in lines if not (self.again and line.idle)]
        shown = {entry.text for line in lines for entry in line.entries}
        facts = texts.facts(self.settings)
        notes = [
            *facts,
            texts.COLLAPSE if any(texts.COLLAPSED in text for text in (*shown, *facts)) else "",
            note(self.settings) if any(entry.best for line in lines for entry in line.entries) else "",
            texts.RATIOS if any(column.kind == "ratio" for column in columns) else "",
            texts.shared_note(self.settings, methods, columns) if any(texts.SHARED in text for text in shown) else "",
            texts.LEGEND if shown & {"", EMPTY} else "",
            texts.not_run(absent),
            texts.papers_left_out(self.settings) if alike else "",
        ]
        corner = "Data set" if self.exhibit.per == "dataset" else "Method"
        return Table(self.heading, corner, self._headers(columns), lines, notes, self._numbers())

    def _headers(self, columns: Sequence[Column]) -> list[tuple[str, str, str]]:
        return [
            (setting.label if self.exhibit.beside else "", column.group, column.header)
            for setting in self.lines[0][1]
            for column in columns
        ]

    def _line(
        self,
        method: str,
        settings: Sequence[Setting],
        bold: Mapping[Setting, Mapping[Column, Collection[str]]],
        alike: bool,
    ) -> Line:
        title = settings[0].label if self.exhibit.per == "dataset" else method_title(method)
        return Line(
            title,
            [
                replace(_entry(setting, method, column, alike), best=method in bold[setting][column])
                for setting in settings
                for column in self.exhibit.columns
            ],
            _marks(method, settings),
            "; ".join(dict.fromkeys(s.published.name for s in settings if s.published.alike or not alike)),
            labels(method, settings),
            all(setting.status(method) in ("unsupported", "not run") for setting in settings),
        )

    def differences(self) -> Table | None:
        """The second table: every method − the oracle, and − the control, seed by seed; None if there is nothing."""
        if self.exhibit.per == "dataset":
            return None
        columns, lines = difference_columns(), []
        for method, settings in self.lines:
            entries = [Entry(texts.paired(setting, method, column)) for setting in settings for column in columns]
            if registered(method) != ORACLE and any(entry.text != EMPTY for entry in entries):
                lines.append(Line(method_title(method), entries, _marks(method, settings)))
        several = any("[" in entry.text for line in lines for entry in line.entries)
        heading = ", ".join(filter(None, (self.heading, "differences paired over seeds")))
        notes = [texts.PAIRED, texts.INTERVALS if several else ""]
        return Table(heading, "Method", self._headers(columns), lines, notes) if lines else None

    def _numbers(self) -> list[dict[str, Any]]:
        return [
            _record(self.exhibit, setting, method)
            for setting in self.settings
            for method, settings in self.lines
            if setting in settings
        ]


def measured_sections(exhibit: Exhibit, rows: pd.DataFrame) -> list[Section]:
    """The tables that rows make, in order of measurement, with the paper's numbers."""
    rows, published = derive(rows), read_published(paper_values(), exhibit.name)
    if rows.empty:
        return []
    if exhibit.per == "dataset":
        return _by_dataset(exhibit, rows, published)
    rows = without_training(rows)
    # Other data have another hash, though nothing else differs.
    varied = {exhibit.beside, "setting"} if exhibit.beside == "dataset" else {exhibit.beside}
    found: list[Section] = []
    seen = set()
    for _, group in rows.groupby([name for name in SETTING if name not in varied], sort=False):
        settings = _side_by_side(exhibit, group, published)
        lines = [(method, settings) for method in _methods(group, exhibit)]
        own = settings[0].in_words
        heading, usual = (names.setting_name(own | more, (exhibit.beside,)) for more in ({}, {"changes": ""}))
        found.append(Section(exhibit, heading, lines, again=usual in seen))
        seen.add(usual)
    return found


def _methods(rows: pd.DataFrame, exhibit: Exhibit) -> list[str]:
    """Who has a line: the exhibit's methods, each followed by what was run of it with other settings; then others."""
    there = [method for method in rows["method"].unique() if method != ORIGINAL]
    found = []
    for method in exhibit.methods:
        changed = [m for m in there if m != method and registered(m) == method]
        found += [method] * (method in there or not changed) + changed
    return [*found, *(m for m in there if m not in found)]


def _side_by_side(exhibit: Exhibit, rows: pd.DataFrame, published: pd.DataFrame) -> tuple[Setting, ...]:
    """Settings in the paper's order: non-IID before IID, data sets as published."""
    order = list(dict.fromkeys(published["dataset"]))

    def rank(setting: Setting) -> tuple[bool, int, str, str]:
        dataset, distribution = setting.columns["dataset"], setting.columns["distribution"]
        known = order.index(published_dataset(published, dataset)) if order else 0
        return distribution == "iid", known, dataset, distribution

    found = []
    for _, group in rows.groupby(SETTING, sort=False):
        values = beside(published, group["dataset"].iloc[0], group["distribution"].iloc[0])
        label = _block(str(group[exhibit.beside].iloc[0])) if exhibit.beside else ""
        found.append(Setting(group, values, label))
    return tuple(sorted(found, key=rank))


def _by_dataset(exhibit: Exhibit, rows: pd.DataFrame, published: pd.DataFrame) -> list[Section]:
    """One section whose lines are data sets; the request does not matter to it."""
    method, stages = exhibit.methods[0], {column.stage for column in exhibit.columns}
    rows = rows[(rows["method"] == method) & rows["stage"].isin(stages)]
    lines = []
    for _, group in rows.groupby([c for c in SETTING if c not in ("request", "protocol")], sort=False):
        first = group.iloc[0]
        name = f"{names.dataset_name(first['dataset'])}, {first['clients']} clients, {first['distribution']}"
        values = beside(published, first["dataset"], first["distribution"])
        lines.append((method, (Setting(group, values, name + names.differing(first["changes"])),)))
    return [Section(exhibit, "", lines)] if lines else []


def _block(value: str) -> str:
    if value == "iid":
        return "IID"
    return (
        f"Non-IID (α = {value.removeprefix('dirichlet-')})"
        if value.startswith("dirichlet-")
        else names.dataset_name(value)
    )


def _marks(method: str, settings: Sequence[Setting]) -> list[str]:
    """Marks of a line; those of one setting among several name it."""
    marks = [setting.marks(method) for setting in settings]
    if all(own == marks[0] for own in marks):
        return marks[0]
    return [f"{mark} in {setting.label}" for setting, own in zip(settings, marks, strict=True) for mark in own]


def labels(method: str, settings: Sequence[Setting]) -> list[str]:
    """What else a reader must know beside a title, where there is colour."""
    unsupported = all(setting.status(method) == "unsupported" for setting in settings)
    return ["oracle"] * (registered(method) == ORACLE) + ["unsupported"] * unsupported


def _entry(setting: Setting, method: str, column: Column, alike: bool) -> Entry:
    text, paper = texts.signed_text(setting, method, column), setting.paper(method, column.stage, column.metric)
    if paper is None or (alike and not setting.published.alike):
        return Entry(text)
    ours = texts.typical(cell_of(setting, method, column), column)
    return Entry(text, column.format(paper), texts.difference(column, ours, paper))


def _record(exhibit: Exhibit, setting: Setting, method: str) -> dict[str, Any]:
    """Per column the mean and deviation, or of ratios the median and range, and the published value; differences."""
    counts = {metric: setting.count(method, metric) for metric in ("collapsed", "diverged", "failed")}
    record: dict[str, Any] = {
        **setting.columns,
        "method": method,
        "seeds": len(setting.seeds(method)) - counts["failed"],
        **counts,
        "shared_cores": len(setting.shared([method], {column.stage for column in exhibit.columns})),
        "status": setting.status(method),
        "error": "/".join(setting.errors(method)),
        "published": setting.published.name,
    }
    for column in exhibit.columns:
        cell = cell_of(setting, method, column)
        numbers: Mapping[str, float] = {"mean": cell.mean, "std": cell.std}
        if column.kind == "ratio":
            numbers = {"median": cell.median, "min": cell.low, "max": cell.high}
        record |= {f"{column.key}_{name}": number for name, number in numbers.items()}
        record[f"{column.key}_published"] = setting.paper(method, column.stage, column.metric)
    for column in difference_columns() if exhibit.per == "method" else ():
        cell = cell_of(setting, method, column)
        record |= {f"{column.key}_mean": cell.mean, f"{column.key}_seeds": cell.seeds}
        record |= dict(zip((f"{column.key}_low", f"{column.key}_high"), cell.interval(), strict=True))
    return record

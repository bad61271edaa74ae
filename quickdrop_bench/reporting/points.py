"""The points of a figure: which rows share a panel, and mean and deviation of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.layout import EMPTY, ORIGINAL, registered
from quickdrop_bench.reporting.measured import SETTING, TRAINING, complete, without_training
from quickdrop_bench.reporting.names import request_name
from quickdrop_bench.reporting.published import beside
from quickdrop_bench.reporting.sections import differing
from quickdrop_bench.reporting.sheets import Sheet, markdown
from quickdrop_bench.reporting.slots import Cell, Slot

__all__ = [
    "SYNTHETIC",
    "VARIED",
    "by_value",
    "is_fraction",
    "marks",
    "measure",
    "methods_in",
    "numbers_frame",
    "numbers_markdown",
    "panels",
    "plain",
]

VARIED = {"scale": "s", "fine_tuning": "F"}
"""Columns that some runs vary beside the setting, and their symbols."""

SYNTHETIC = ("quickdrop", "random-subset")
"""Methods whose result depends on these columns."""

NUMBERS = [*SETTING, *VARIED, "method", "stage", "metric", "mean", "std", "seeds"]
NUMBERS += ["runs", "diverged", "failed", "published"]
"""Columns of every figure's numbers; a figure may add its own."""


def is_fraction(metric: str) -> bool:
    """Whether people want it in percent."""
    return metric.endswith("accuracy") or "_mia" in metric


def panels(rows: pd.DataFrame, published: pd.DataFrame, within: Collection[str] = ()) -> list[Slot]:
    """What has a row of panels of its own: each setting, in order of measurement, its title as label.

    Where methods were run with several scales or amounts of fine-tuning, each of these is a setting too, and the
    methods that were run once stand in all of them.

    Args:
        rows: of the artefact.
        published: from :func:`published_figure`.
        within: columns that vary inside a row of panels.
    """
    if rows.empty:
        return []
    rows = complete(without_training(rows))
    rows = rows.reindex(columns=[*rows.columns, *(c for c in (*VARIED, "phase", "round") if c not in rows)])
    found = []
    # Other data have another hash, though nothing else differs.
    varied = {*within, "setting"} if "dataset" in within else within
    for _, group in rows.groupby([name for name in SETTING if name not in varied], sort=False):
        for variant, part in _variants(group, [name for name in VARIED if name not in within]):
            values = beside(published, part["dataset"].iloc[0], part["distribution"].iloc[0])
            found.append(Slot(part, values, ", ".join([*_title(part, within), *variant, *_failed_training(part)])))
    return found


def _variants(group: pd.DataFrame, columns: list[str]) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """The parts of a setting, with what tells them apart."""
    parts = group.groupby(columns, dropna=False, sort=False).ngroup()
    often = parts.groupby(group["method"]).nunique()
    varied = group["method"].isin(often.index[often > 1])
    dependent = group["method"].map(registered).isin((*SYNTHETIC, ORIGINAL))
    if parts[dependent].nunique() > 1:  # none of them is at home in another's part
        varied |= dependent
    if not varied.any():
        yield [], group
    for number in parts[varied].unique():
        first = group[parts == number].iloc[0]
        apart = [name for name in columns if group[name].nunique(dropna=False) > 1]
        yield [f"{VARIED[name]} = {first[name]:g}" for name in apart], group[(parts == number) | ~varied]


def _title(rows: pd.DataFrame, within: Collection[str]) -> list[str]:
    first = rows.iloc[0]
    parts = {name: f"{first[name]}" for name in SETTING}
    parts["request"] = request_name(rows)
    parts["clients"] += " clients"
    parts["protocol"] = "" if first["protocol"] == "preset" else f"protocol {first['protocol']}"
    parts["changes"] = differing(first["changes"]).removeprefix(", ")
    return [text for name, text in parts.items() if text and name not in (*within, "setting")]


def _failed_training(rows: pd.DataFrame) -> list[str]:
    """Without a federation there is no run of any method that could say so."""
    runs = rows[["dataset", "clients", "distribution", *VARIED, "seed"]].drop_duplicates()
    failed = rows[(rows["stage"] == TRAINING) & (rows["metric"] == "failed")][runs.columns].drop_duplicates()
    return [f"training failed: {len(failed)} of {len(runs)}"] if len(failed) else []


def methods_in(slot: Slot, methods: Sequence[str]) -> list[str]:
    """Those wanted, and then the others that were measured."""
    there = [m for m in slot.rows["method"].unique() if m != ORIGINAL]
    wanted = [m for m in methods if m in there or m not in map(registered, there)]
    return [*wanted, *(m for m in there if m not in wanted)]


def measure(slot: Slot, method: str, stage: str, metric: str, published: float | None = None) -> dict[str, Any]:
    """One line of a figure's numbers: :data:`NUMBERS`, in the unit of the rows.

    Args:
        slot: rows of one setting, and of one value of what the axis shows.
        method: whose.
        stage: of the rows.
        metric: of the rows.
        published: the paper's value; looked up by stage and metric if None.
    """
    cell = Cell.of(slot.values(method, stage, metric))
    own = slot.rows[slot.rows["method"] == method]
    varied = {name: own[name].iloc[0] if own[name].nunique() == 1 else float("nan") for name in VARIED}
    paper = slot.published.value(method, stage, metric) if published is None else published
    counts = {"runs": len(slot.seeds(method)), **{m: slot.count(method, m) for m in ("diverged", "failed")}}
    line = {**slot.setting(), **varied, "method": method, "stage": stage, "metric": metric}
    return {**line, "mean": cell.mean, "std": cell.std, "seeds": cell.seeds, **counts, "published": paper}


def numbers_frame(lines: Iterable[Mapping[Any, Any]], *own: str) -> pd.DataFrame:
    """Lines of :func:`measure` as a table.

    Args:
        lines: with further columns, if the figure has any.
        own: names of those columns, which stand before the mean.
    """
    k = NUMBERS.index("mean")
    frame = pd.DataFrame([*lines], columns=[*NUMBERS[:k], *own, *NUMBERS[k:]])
    return frame.assign(published=frame["published"].astype(float))


def by_value(slot: Slot, column: str) -> list[tuple[Any, Slot]]:
    """The rows of a panel at each value of what its axis shows, in ascending order; unknown values last."""
    groups = slot.rows.groupby(column, dropna=False, sort=True)
    return [(value, Slot(group, slot.published)) for value, group in groups]


def marks(points: pd.DataFrame) -> list[str]:
    """What a reader must know beside a method's name.

    Args:
        points: of one method, stage and metric, with the columns of :data:`NUMBERS`.
    """
    points = points[points["runs"] > 0]
    if points.empty:
        return ["not run"]
    runs, counts = points["runs"].sum(), points[["diverged", "failed"]].sum()
    return [f"{name}: {count} of {runs}" for name, count in counts.items() if count]


def numbers_markdown(numbers: pd.DataFrame) -> str:
    """The points as a Markdown table; what is the same in all of them stands above it."""
    if numbers.empty:
        return ""
    apart = ["mean", "std", "seeds", "published"]
    keys = numbers.drop(columns=apart)
    same = [name for name in keys if keys[name].nunique(dropna=False) == 1]
    heading = ", ".join(f"{name}: {plain(keys[name].iloc[0])}" for name in same if keys[name].replace("", None).any())
    shown = keys.drop(columns=same)
    body = [
        [*map(plain, key), *_value_texts(line)]
        for key, line in zip(shown.itertuples(index=False), numbers.to_dict(orient="records"), strict=True)
    ]
    headers = [*map(str, shown), "value", "seeds", "paper"]
    return markdown(Sheet(heading, headers[0], [(name,) for name in headers[1:]], body, []))


def plain(value: object, _: object = None) -> str:
    """A number without trailing zeros, or a name as it is; also for an axis, which states the position too."""
    if isinstance(value, float):
        return EMPTY if math.isnan(value) else f"{value:g}"
    return str(value)


def _value_texts(line: Mapping[Any, Any]) -> list[str]:
    """Mean with deviation, seeds and the paper's value."""
    kind = "percent" if is_fraction(line["metric"]) else "seconds" if line["metric"] == "seconds" else "count"
    column = Column("", "", line["stage"], line["metric"], kind)
    paper = EMPTY if math.isnan(line["published"]) else column.format(line["published"])
    return [Cell(line["mean"], line["std"], line["seeds"]).text(column), str(line["seeds"]), paper]

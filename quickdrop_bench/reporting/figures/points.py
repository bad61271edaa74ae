"""The points of a figure: which rows share a panel, and mean and deviation of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.frame import SETTING, TRAINING, Cell, Setting, has_small_sets, named, without_training
from quickdrop_bench.reporting.names import ORIGINAL, registered, setting_name
from quickdrop_bench.reporting.published import NOTHING_PUBLISHED, beside, is_fraction
from quickdrop_bench.reporting.tables.shape import EMPTY, Table, plain_table
from quickdrop_bench.reporting.tables.texts import cell_text

VARIED = {"scale": "s", "fine_tuning": "F"}
"""Columns that some runs vary beside the setting, and their symbols."""

NUMBERS = [*SETTING, *VARIED, "method", "stage", "metric", "mean", "std", "seeds"]
NUMBERS += ["runs", "diverged", "failed", "published"]
"""Columns of every figure's numbers; a figure may add its own."""


def panels(rows: pd.DataFrame, published: pd.DataFrame, within: Collection[str] = ()) -> list[Setting]:
    """What has a row of panels of its own: each setting, in order of measurement, its title as label.

    Where methods were run with several scales or amounts of fine-tuning, each of these is a setting too, and the
    methods that were run once stand in all of them. Published numbers stand beside the same data set alone.
    """
    if rows.empty:
        return []
    rows = named(without_training(rows))
    # Other data have another hash, though nothing else differs.
    varied = {*within, "setting"} if "dataset" in within else within
    found = []
    for _, group in rows.groupby([name for name in SETTING if name not in varied], sort=False):
        for variant, part in _variants(group, [name for name in VARIED if name not in within]):
            values = beside(published, part["dataset"].iloc[0], part["distribution"].iloc[0])
            setting = Setting(part, values if values.alike else NOTHING_PUBLISHED)
            label = ", ".join([setting_name(setting.in_words, (*within,)), *variant, *_failed_training(part)])
            found.append(replace(setting, label=label))
    return found


def _variants(group: pd.DataFrame, columns: list[str]) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """The parts of a setting, with what tells them apart."""
    parts = group.groupby(columns, dropna=False, sort=False).ngroup()
    often = parts.groupby(group["method"]).nunique()
    varied = group["method"].isin(often.index[often > 1])
    dependent = group["method"].map(lambda method: method == ORIGINAL or has_small_sets(method)).astype(bool)
    if parts[dependent].nunique() > 1:  # none of them is at home in another's part
        varied |= dependent
    if not varied.any():
        yield [], group
    for number in parts[varied].unique():
        first = group[parts == number].iloc[0]
        apart = [name for name in columns if group[name].nunique(dropna=False) > 1]
        yield [f"{VARIED[name]} = {first[name]:g}" for name in apart], group[(parts == number) | ~varied]


def _failed_training(rows: pd.DataFrame) -> list[str]:
    """Without a federation there is no run of any method that could say so."""
    runs = rows[["dataset", "clients", "distribution", *VARIED, "seed"]].drop_duplicates()
    failed = rows[(rows["stage"] == TRAINING) & (rows["metric"] == "failed")][runs.columns].drop_duplicates()
    return [f"training failed: {len(failed)} of {len(runs)}"] if len(failed) else []


def methods_in(setting: Setting, methods: Sequence[str]) -> list[str]:
    """Those wanted, and then the others that were measured."""
    there = setting.methods()
    wanted = [m for m in methods if m in there or m not in map(registered, there)]
    return [*wanted, *(m for m in there if m not in wanted)]


def measure(setting: Setting, method: str, stage: str, metric: str, published: float | None = None) -> dict[str, Any]:
    """One line of a figure's numbers: :data:`NUMBERS`, in the unit of the rows."""
    cell = setting.cell(method, stage, metric)
    own = setting.rows[setting.rows["method"] == method]
    varied = {name: own[name].iloc[0] if own[name].nunique() == 1 else math.nan for name in VARIED}
    paper = setting.published.value(method, stage, metric) if published is None else published
    counts = {"runs": len(setting.seeds(method)), **{m: setting.count(method, m) for m in ("diverged", "failed")}}
    line = {**setting.columns, **varied, "method": method, "stage": stage, "metric": metric}
    return {**line, "mean": cell.mean, "std": cell.std, "seeds": cell.seeds, **counts, "published": paper}


def numbers_frame(lines: Iterable[Mapping[Any, Any]], *own: str) -> pd.DataFrame:
    """Lines of :func:`measure` as a frame; columns of the figure's ``own`` stand before the mean."""
    k = NUMBERS.index("mean")
    frame = pd.DataFrame([*lines], columns=[*NUMBERS[:k], *own, *NUMBERS[k:]])
    return frame.assign(published=frame["published"].astype(float))


def marks(points: pd.DataFrame) -> list[str]:
    """What a reader must know beside a method's name; ``points`` are its own, of one stage and metric."""
    points = points[points["runs"] > 0]
    if points.empty:
        return ["not run"]
    runs, counts = points["runs"].sum(), points[["diverged", "failed"]].sum()
    return [f"{name}: {count} of {runs}" for name, count in counts.items() if count]


def numbers_table(numbers: pd.DataFrame) -> Table:
    """The points as a table; what is the same in all of them stands in its heading."""
    keys = numbers.drop(columns=["mean", "std", "seeds", "published"])
    same = [name for name in keys if keys[name].nunique(dropna=False) == 1]
    heading = ", ".join(f"{name}: {plain(keys[name].iloc[0])}" for name in same if keys[name].replace("", None).any())
    hashed = "setting" in keys and keys["setting"].nunique() == keys["changes"].nunique()  # in words already
    shown = keys.drop(columns={*same, *(["setting"] if hashed else [])})
    records = numbers.to_dict(orient="records")
    pairs = zip(shown.itertuples(index=False), records, strict=True)
    body = [[*map(plain, key), *_value_texts(line)] for key, line in pairs]
    return plain_table(heading, [*map(str, shown), "value", "seeds", "paper"], body)


def plain(value: object, _: object = None) -> str:
    """A number without trailing zeros, or a name as it is; also for an axis, which states the position too."""
    if isinstance(value, float):
        return EMPTY if math.isnan(value) else f"{value:g}"
    return str(value)


def _value_texts(line: Mapping[Any, Any]) -> list[str]:
    kind = "percent" if is_fraction(line["metric"]) else "seconds" if line["metric"] == "seconds" else "count"
    column = Column("", "", line["stage"], line["metric"], kind)
    paper = EMPTY if math.isnan(line["published"]) else column.format(line["published"])
    return [cell_text(Cell(line["mean"], line["std"], line["seeds"]), column), str(line["seeds"]), paper]

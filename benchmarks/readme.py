"""Write the README's results from the rows in ``results/``: ``python benchmarks/readme.py``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from quickdrop_bench.files import write_text
from quickdrop_bench.reporting.layout import Column, method_name
from quickdrop_bench.reporting.measured import SETTING, TRAINING, derive, latest
from quickdrop_bench.reporting.names import request_name
from quickdrop_bench.reporting.published import Published
from quickdrop_bench.reporting.sections import differing
from quickdrop_bench.reporting.slots import Slot

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results -->", "<!-- /results -->"
SOURCES = (Path("results/small/table2"), Path("results/small/table2-cifar10"))
COLUMNS = (
    Column("", "F-Set", "total", "f_set_accuracy", "percent"),
    Column("", "R-Set", "total", "r_set_accuracy", "percent"),
    Column("", "R-Set − Retrain-Or", "total", "r_set_gap", "points"),
    Column("", "speedup (sample-gradients)", "total", "speedup_sample_gradients", "ratio"),
    Column("", "speedup (seconds)", "total", "speedup", "ratio"),
    Column("", "time", "total", "seconds", "seconds"),
)
METHODS = ("retrain-or", "federaser", "sga-or", "fu-mp", "random-subset", "quickdrop")


def block() -> str:
    """Table 2 of ``small`` in short, a table per setting."""
    rows = derive(latest(pd.concat(pd.read_json(ROOT / source / "rows.jsonl", lines=True) for source in SOURCES)))
    rows = rows[(rows["protocol"] == "preset") & (rows["stage"].isin(["total", "fl-training"]))]
    parts = [section(setting, group) for setting, group in rows.groupby(SETTING, sort=False)]
    note = (
        "Means over seeds. Speedups are taken seed by seed: median (range). Differences to Retrain-Or are in "
        "percentage points, paired by seed, with their 95% interval. "
        f"Whole tables, the paper's numbers beside ours and every row: {', '.join(f'[{s}]({s})' for s in SOURCES)}."
    )
    return "\n\n".join([START, *parts, note, END])


def section(setting: tuple[object, ...], rows: pd.DataFrame) -> str:
    """One data set: F-Set and R-Set after the last stage, and the speed-ups over retraining."""
    dataset, clients, distribution, _, _, changes, _ = setting
    slot = Slot(rows, Published(pd.DataFrame(columns=["method", "stage", "metric", "value"]), ""))
    seeds = rows["seed"].nunique()
    device = rows["device"].dropna().iloc[0]
    note = " (JPEG re-encoded)" if "jpeg" in str(dataset) else ""
    before = [slot.cell("original", Column("", "", TRAINING, f"{s}_set_accuracy", "percent")).mean for s in "fr"]
    heading = (
        f"**{dataset}**{note}, {clients} clients, {distribution}, request {request_name(rows)}{differing(changes)}, "
        f"{seeds} seed{'s'[: seeds != 1]}, {device}. Before the request: F-Set {before[0]:.1%}, R-Set {before[1]:.1%}."
    )
    lines = [["method", *(column.header for column in COLUMNS)], ["---", *(["--:"] * len(COLUMNS))]]
    lines += [[method_name(method), *(_text(slot, method, column) for column in COLUMNS)] for method in METHODS]
    return "\n".join([heading, "", *(f"| {' | '.join(line)} |" for line in lines)])


def _text(slot: Slot, method: str, column: Column) -> str:
    """The mean, or the median of ratios; of differences the 95% interval too, and nothing of the oracle with itself."""
    cell = slot.cell(method, column)
    if column.kind == "percent":
        return f"{cell.mean:.1%}"
    if column.kind == "seconds":
        return f"{cell.mean:.1f} s{slot.sign(method, column)}"
    return slot.text(method, column) if column.kind == "ratio" else slot.difference(method, column)


def main() -> None:
    """Replace the block in README.md."""
    path = ROOT / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1] if END in rest else rest
    write_text(path, before + block() + after)


if __name__ == "__main__":
    main()

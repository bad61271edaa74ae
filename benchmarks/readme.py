"""Write the README's table and picture from the rows of Table 2: ``python benchmarks/readme.py``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from quickdrop_bench.core.files import write_text
from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.layout import CONTROL, ORACLE, method_name
from quickdrop_bench.reporting.looks import GREY, method_styles, style
from quickdrop_bench.reporting.measured import EQUIVALENTS, SETTING, TRAINING, derive, latest
from quickdrop_bench.reporting.names import request_name
from quickdrop_bench.reporting.pictures import put_title, save_picture
from quickdrop_bench.reporting.published import Published
from quickdrop_bench.reporting.sections import differing
from quickdrop_bench.reporting.slots import Slot

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results -->", "<!-- /results -->"
SOURCE = Path("results/small/table2")
COLUMNS = (
    Column("", "F-Set", "total", "f_set_accuracy", "percent"),
    Column("", "R-Set", "total", "r_set_accuracy", "percent"),
    Column("", "R-Set − Retrain-Or", "total", "r_set_gap", "points"),
    Column("", "speed-up (sample-gradients)", "total", "speedup_sample_gradients", "ratio"),
    Column("", "time", "total", "seconds", "seconds"),
)
METHODS = (ORACLE, "federaser", "sga-or", "fu-mp", CONTROL, "quickdrop")
BESIDE = {CONTROL: 1.07, "quickdrop": 0.93}
"""Factors that draw side by side what costs the same."""

LABELS = {
    ORACLE: (-9, 7, "right"),
    "federaser": (-9, -3, "right"),
    "sga-or": (-9, -3, "right"),
    "fu-mp": (-9, -3, "right"),
    CONTROL: (9, -12, "left"),
    "quickdrop": (0, 23, "center"),
}
"""Where a name stands beside its mark: offset in points and alignment."""


def measured() -> Slot:
    """The rows of the source, which hold one setting."""
    rows = derive(latest(pd.read_json(ROOT / SOURCE / "rows.jsonl", lines=True)))
    rows = rows[(rows["protocol"] == "preset") & (rows["stage"].isin(["total", TRAINING]))]
    assert rows.groupby(SETTING).ngroups == 1, "README shows one setting"
    return Slot(rows, Published(pd.DataFrame(columns=["method", "stage", "metric", "value"]), ""))


def block(slot: Slot) -> str:
    """A line per method: F-Set and R-Set after the last stage, and the cost of the request."""
    rows = slot.rows
    setting = slot.setting()
    before = [slot.cell("original", Column("", "", TRAINING, f"{s}_set_accuracy", "percent")).mean for s in "fr"]
    heading = (
        f"**{setting['dataset']}**, {setting['clients']} clients, {setting['distribution']}, request "
        f"{request_name(rows)}{differing(setting['changes'])}, {rows['seed'].nunique()} seeds, "
        f"{rows['device'].dropna().iloc[0]}. Before the request: F-Set {before[0]:.1%}, R-Set {before[1]:.1%}."
    )
    lines = [["method", *(column.header for column in COLUMNS)], ["---", *(["--:"] * len(COLUMNS))]]
    lines += [[method_name(method), *(_text(slot, method, column) for column in COLUMNS)] for method in METHODS]
    note = (
        "Means over seeds; speed-ups are the median (range) of the seeds' ratios; differences in percentage points, "
        f"paired by seed, with their 95% interval. ‡: other work shared the cores. [Whole table]({SOURCE}/table.md)."
    )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([START, heading, table, note, END])


def points(slot: Slot) -> dict[str, tuple[float, float, float, float]]:
    """By method: cost and gap.

    Returns:
        Sample-gradients of a request (mean over seeds; a forward pass counts a third), and R-Set − Retrain-Or in
        percentage points: mean, and both ends of its 95% interval.
    """
    gap = next(column for column in COLUMNS if column.metric == "r_set_gap")
    found = {}
    for method in METHODS:
        counts = [weight * slot.values(method, "total", name) for name, weight, _ in EQUIVALENTS]
        cell = slot.cell(method, gap)
        cost = sum((float(values.mean()) for values in counts if len(values)), 0.0)
        low, high = cell.interval()
        found[method] = (cost, 100 * cell.mean, 100 * low, 100 * high)
    return found


def front(slot: Slot) -> Figure:
    """Accuracy lost against cost, one mark per method."""
    looks = method_styles(METHODS)
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    for method, (cost, gap, low, high) in points(slot).items():
        look, at, (x, y, side) = looks[method], cost * BESIDE.get(method, 1), LABELS[method]
        axes.errorbar(
            at, gap, [[gap - low], [high - gap]], color=look.color, marker=look.marker, markersize=7, capsize=3
        )
        axes.annotate(
            method_name(method), (at, gap), (x, y), textcoords="offset points", ha=side, color=look.color, fontsize=9
        )
    axes.set_xscale("log")
    axes.set(xlim=(2000, 280_000), ylim=(-6.3, 0.7))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", " ")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(
        xlabel="sample-gradients of a request (log scale; a forward pass counts a third)",
        ylabel="R-Set − Retrain-Or\n(percentage points)",
    )
    axes.grid(alpha=0.25, linewidth=0.5)
    request, seeds = request_name(slot.rows).replace("-", " "), slot.rows["seed"].nunique()
    title = f"MNIST, {request} forgotten: means over {seeds} seeds with 95% intervals; best is top left."
    put_title(figure, f"{title} QuickDrop and its control cost the same and are drawn side by side.")
    return figure


def _text(slot: Slot, method: str, column: Column) -> str:
    """The mean, or the median of ratios; of differences the 95% interval too, and nothing of the oracle with itself."""
    cell = slot.cell(method, column)
    if column.kind == "percent":
        return f"{cell.mean:.1%}"
    if column.kind == "seconds":
        return f"{cell.mean:.1f} s{slot.sign(method, column)}"
    return slot.text(method, column) if column.kind == "ratio" else slot.difference(method, column)


def main() -> None:
    """Replace the block in README.md and draw the picture."""
    path, slot = ROOT / "README.md", measured()
    before, rest = path.read_text(encoding="utf-8").split(START)
    write_text(path, before + block(slot) + rest.split(END)[1])
    with style():
        save_picture(front(slot), ROOT / SOURCE / "front")


if __name__ == "__main__":
    main()

"""Write the README's results from the rows in ``results/``: ``python benchmarks/readme.py``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from quickdrop_bench.files import write_text
from quickdrop_bench.reporting.layout import method_name
from quickdrop_bench.reporting.measured import SETTING, derive, latest
from quickdrop_bench.reporting.names import request_name

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results -->", "<!-- /results -->"
SOURCE = Path("results/small/table2")
METHODS = ("retrain-or", "federaser", "sga-or", "fu-mp", "random-subset", "quickdrop")


def block() -> str:
    """Table 2 of ``small`` in short, a table per data set."""
    rows = derive(latest(pd.read_json(ROOT / SOURCE / "rows.jsonl", lines=True)))
    rows = rows[(rows["protocol"] == "preset") & (rows["stage"].isin(["total", "fl-training"]))]
    parts = [section(setting, group) for setting, group in rows.groupby(SETTING, sort=False)]
    note = f"Means over seeds. Whole tables, the paper's numbers beside ours and every row: [{SOURCE}]({SOURCE})."
    return "\n\n".join([START, *parts, note, END])


def section(setting: tuple[object, ...], rows: pd.DataFrame) -> str:
    """One data set: F-Set and R-Set after the last stage, and the speed-ups over retraining."""
    dataset, clients, distribution, *_ = setting
    means = rows.groupby(["method", "stage", "metric"])["value"].mean()
    seeds = rows["seed"].nunique()
    device = rows["device"].dropna().iloc[0]
    note = " (JPEG re-encoded)" if "jpeg" in str(dataset) else ""
    original = means["original"]["fl-training"]
    heading = (
        f"**{dataset}**{note}, {clients} clients, {distribution}, request {request_name(rows)}, "
        f"{seeds} seed{'s'[: seeds != 1]}, "
        f"{device}. Before the request: F-Set {original['f_set_accuracy']:.1%}, R-Set {original['r_set_accuracy']:.1%}."
    )
    table = ["| method | F-Set | R-Set | time | speedup | in sample-gradients |", "|---|--:|--:|--:|--:|--:|"]
    for method in METHODS:
        m = means[method]["total"]
        table.append(
            f"| {method_name(method)} | {m['f_set_accuracy']:.1%} | {m['r_set_accuracy']:.1%} | {m['seconds']:.1f} s "
            f"| {m['speedup']:.1f}× | {m['speedup_sample_gradients']:.1f}× |"
        )
    return "\n".join([heading, "", *table])


def main() -> None:
    """Replace the block in README.md."""
    path = ROOT / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1] if END in rest else rest
    write_text(path, before + block() + after)


if __name__ == "__main__":
    main()

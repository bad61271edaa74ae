"""Measure the tables and figures of a preset on MNIST and on an image folder, and keep what is committed of their rows.

Run it as ``python benchmarks/results.py --data-dir ~/data --images ~/data/cifar10``, or with ``make results``. It goes
on where it was interrupted. Options that it does not know are those of the commands, as ``--jobs 4``. All rows stay in
``build/results``. What tables and figures show is copied to ``results/reference/<preset>/<exhibit>`` (MNIST) and
``results/reference/<preset>/<exhibit>-<images>``, and rendered there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from quickdrop_bench.core.files import write_text
from quickdrop_bench.harness.exhibits import Exhibit, exhibit
from quickdrop_bench.reporting.figures.rounds import PER_ROUND
from quickdrop_bench.reporting.frame import SEARCH, frame_of
from quickdrop_bench.reporting.names import ORIGINAL
from quickdrop_bench.reporting.render import write_exhibit

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "results"
EXHIBITS = (
    *("table 2", "table 4", "table 5", "table 6", "table 7", "table 8", "table 9", "table 10"),
    *("figure 2", "figure 3", "figure 4", "figure 6", "figure 5"),
)
"""Those that run on both data sets; the longest come last."""

ALWAYS = {
    *("f_set_accuracy", "r_set_accuracy", "sample_gradients", "second_order_sample_gradients", "sample_forwards"),
    *("seconds", "storage_client_bytes", "storage_server_bytes", "attack_success"),
}
"""What every table's notes, gaps and speed-ups are made from, at the last stage and before the request."""

MARKS = ("collapsed", "diverged", "failed", "shared_cores", "relearn_capped")
"""What a table says of a run, or of a number, where it is so."""

TIMED = ("seconds", "shared_cores")
"""What only a table with seconds says."""


def is_kept(row: dict[str, Any], shown: Exhibit) -> bool:
    """Whether a row is committed: of a table what it shows or is made from, of a figure all that it may draw."""
    stage, metric = str(row["stage"]), str(row["metric"])
    columns = {(column.stage, column.metric) for column in shown.columns}
    timed = shown.name == "figure6" or columns & {("total", "seconds"), ("total", "speedup")}
    if metric in TIMED and not timed:
        return False
    if metric in MARKS or stage == SEARCH:
        return bool(row["value"])
    if shown.each_round:
        return stage == PER_ROUND
    if shown.kind == "figure":
        of_one = {"figure3": "mia" in metric, "figure5": metric == "original_gradients"}
        return metric in ALWAYS or of_one.get(shown.name, False)
    return (stage, metric) in columns or (metric in ALWAYS and (stage == "total" or row["method"] == ORIGINAL))


def keep(rows: Path, folder: Path, shown: Exhibit) -> None:
    """Write the committed part of a file of rows, and the exhibit rendered from it."""
    kept = [row for line in rows.read_text().splitlines() if is_kept(row := json.loads(line), shown)]
    write_text(
        folder / "rows.jsonl",
        "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in kept),
    )
    write_exhibit(folder, shown, frame_of(kept))


def main() -> None:
    """Run what is missing, one command after the other, and say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with MNIST")
    parser.add_argument("--images", type=Path, help="image folder with train/ and test/, such as CIFAR-10's")
    parser.add_argument("--seeds", default="5,3", help="how many, on MNIST and on the image folder (default: 5,3)")
    parser.add_argument("--exhibits", default=",".join(EXHIBITS), help="which, separated by commas")
    options, others = parser.parse_known_args()
    seeds = options.seeds.split(",")
    data = {"": ["--dataset", "mnist", "--data-dir", str(options.data_dir), "--seeds", seeds[0]]}
    if options.images:
        own = ["--dataset", "imagefolder", "--data-dir", str(options.images), "--seeds", seeds[-1]]
        data[f"-{options.images.name}"] = own
    for name in options.exhibits.split(","):
        shown = exhibit(name.replace(" ", ""))
        for suffix, where in data.items():
            began, results = time.monotonic(), WORK / (suffix.strip("-") or "mnist")
            command = [sys.executable, "-m", "quickdrop_bench", *name.split(), "--preset", options.preset, *where]
            paths = ["--results-dir", str(results), "--artifacts-dir", str(WORK / "artifacts")]
            code = subprocess.run([*command, *paths, *others], cwd=ROOT, stdout=subprocess.DEVNULL).returncode
            if code > 1:  # 1: a run diverged or failed, which its rows say
                sys.exit(code)
            folder = ROOT / "results" / "reference" / options.preset / f"{shown.name}{suffix}"
            keep(results / options.preset / shown.name / "rows.jsonl", folder, shown)
            print(f"{(time.monotonic() - began) / 60:.0f} min: {folder}", flush=True)


if __name__ == "__main__":
    main()

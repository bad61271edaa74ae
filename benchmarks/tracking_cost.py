"""What mirroring into W&B costs: whole runs of Table 2 with and without it, in turn.

``python benchmarks/tracking_cost.py`` writes ``results/tracking/cost.csv`` and ``cost.md``. Every run is the command
that ``make table2`` types, in an empty folder, so that it installs nothing and reuses nothing, and it ends when the
process that makes W&B's calls has ended. The order within a pair alternates; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from quickdrop_bench.files import write_text
from quickdrop_bench.harness.provenance import device_name

MODES = ("disabled", "offline")
FOLDER = Path(__file__).resolve().parents[1] / "results" / "tracking"


def typed(devices: int) -> list[str]:
    """What ``make table2`` types on a CPU with at least so many cores."""
    return ["table", "2", *([f"--devices={devices}"] if devices > 1 else [])]


def seconds_of(mode: str, devices: int) -> tuple[float, pd.Series]:
    """Wall time of one run, and its accuracies.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "quickdrop_bench", *typed(devices), "--wandb", mode]
        # As for most people, Python keeps what it compiled.
        unset = ("WANDB_", "PYTHONDONTWRITEBYTECODE")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
        environment["WANDB_DATA_DIR"] = folder
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        rows = pd.read_json(Path(folder) / "results" / "quick" / "table2" / "rows.jsonl", lines=True)
        kept = sorted(Path(folder).glob("wandb/offline-run-*"))
        assert bool(kept) == (mode == "offline"), f"{len(kept)} W&B runs with --wandb {mode}"
    accuracies = rows[rows["metric"].str.endswith("accuracy")]
    return seconds, accuracies.set_index(["method", "seed", "stage", "metric"])["value"]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs")
    parser.add_argument("--devices", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    options = parser.parse_args()
    lines: list[dict[str, float | str]] = []
    known: pd.Series | None = None
    for repeat in range(options.repeats):
        for mode in MODES if repeat % 2 == 0 else reversed(MODES):
            seconds, accuracies = seconds_of(mode, options.devices)
            known = accuracies if known is None else known
            pd.testing.assert_series_equal(accuracies, known)
            lines.append({"repeat": repeat + 1, "mode": mode, "seconds": round(seconds, 2)})
            print(f"{repeat + 1}/{options.repeats} {mode}: {seconds:.1f} s", file=sys.stderr)
    frame = pd.DataFrame(lines)
    wide = frame.pivot_table(index="repeat", columns="mode", values="seconds")
    overheads = (100 * (wide["offline"] / wide["disabled"] - 1)).tolist()
    median = {mode: float(wide[mode].median()) for mode in MODES}
    text = "\n".join(
        [
            "# What mirroring into W&B costs",
            "",
            f"`{' '.join(typed(options.devices))}`, {options.repeats} runs with `--wandb offline` and as many with",
            "`--wandb disabled`, in turn, each in an empty folder of its own; wall time from the start of the command",
            f"to its end, the wait for W&B's process included; {device_name(torch.device('cpu'))}.",
            "",
            "| | wall time, median (s) |",
            "|---|--:|",
            *(f"| `--wandb {mode}` | {median[mode]:.1f} |" for mode in MODES),
            "",
            f"Overhead, pair by pair: median {statistics.median(overheads):.1f}%, from {min(overheads):.1f}% to",
            f"{max(overheads):.1f}%. The accuracies of all runs are equal.",
            "",
        ]
    )
    write_text(FOLDER / "cost.csv", frame.to_csv(index=False))
    write_text(FOLDER / "cost.md", text)
    print(text)


if __name__ == "__main__":
    main()

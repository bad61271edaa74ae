"""What mirroring into W&B costs: whole runs of Table 2 with and without it, in turn.

``python benchmarks/tracking_cost.py`` writes ``results/tracking/cost.csv`` and ``cost.md``. Every run is the command
that ``make table2`` types, in an empty folder, so that it installs nothing and reuses nothing, and it ends when the
process that makes W&B's calls has ended. The order within a pair alternates; nothing else should run meanwhile.

A machine whose speed varies by more than a few per cent hides what is looked for. Each run with mirroring therefore
accounts for how long the command was held up by it, in its hooks and at the end. What W&B's process computes beside the
command, most of it while that starts, shows in the pairs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import watched

from quickdrop_bench.files import write_text
from quickdrop_bench.harness.provenance import device_name

MODES = ("disabled", "offline")
FOLDER = Path(__file__).resolve().parents[1] / "results" / "tracking"


def typed(devices: int) -> list[str]:
    """What ``make table2`` types on a CPU with at least so many cores."""
    return ["table", "2", *([f"--devices={devices}"] if devices > 1 else [])]


def one_run(mode: str, devices: int) -> tuple[dict[str, Any], pd.Series]:
    """Wall time of one run with its account and commit, and its accuracies.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        account = Path(folder) / "account.json"
        command = [sys.executable, watched.__file__, *typed(devices), "--wandb", mode]
        # As for most people, Python keeps what it compiled.
        unset = ("WANDB_", "PYTHONDONTWRITEBYTECODE")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
        environment |= {"WANDB_DATA_DIR": folder, watched.ACCOUNT: str(account)}
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        rows = pd.read_json(Path(folder) / "results" / "quick" / "table2" / "rows.jsonl", lines=True)
        kept = sorted(Path(folder).glob("wandb/offline-run-*"))
        assert bool(kept) == (mode == "offline"), f"{len(kept)} W&B runs with --wandb {mode}"
        its = json.loads(account.read_text(encoding="utf-8")) if kept else {}
        numbers = {"seconds": seconds, **its, "commit": rows["git_commit"].iloc[0][:10]}
    accuracies = rows[rows["metric"].str.endswith("accuracy")]
    return numbers, accuracies.set_index(["method", "seed", "stage", "metric"])["value"]


def markdown(frame: pd.DataFrame, devices: int) -> str:
    """The page."""
    wide = frame.pivot_table(index="repeat", columns="mode", values="seconds")
    pairs = 100 * (wide["offline"] / wide["disabled"] - 1)
    own = frame[frame["mode"] == "offline"]
    lines = [
        "# What mirroring into W&B costs",
        "",
        f"`{' '.join(typed(devices))}`, {len(wide)} runs with `--wandb offline` and as many with `--wandb disabled`,",
        "in turn, each in an empty folder of its own; wall time from the start of the command to its end, the wait for",
        f"W&B's process included; {device_name(torch.device('cpu'))}, commit {frame['commit'].iloc[0]}.",
        "The accuracies of all runs are equal.",
        "",
        "| | seconds: median (least to most) |",
        "|---|--:|",
        *(f"| `--wandb {mode}` | {spread(wide[mode])} |" for mode in MODES),
        "",
        f"Pair by pair, mirroring takes {spread(pairs)}% longer.",
        "",
        "| of a run with mirroring | seconds | % of its wall time |",
        "|---|--:|--:|",
    ]
    held_up = own.assign(held_up=own["hooks"] + own["wait"])
    for name, text in (
        ("hooks", "collecting, in the command's own process"),
        ("wait", "waiting at the end until all is written"),
        ("held_up", "both: what the command is held up"),
    ):
        lines.append(f"| {text} | {spread(held_up[name])} | {spread(100 * held_up[name] / held_up['seconds'])} |")
    return "\n".join([*lines, ""])


def spread(values: pd.Series) -> str:
    """Median, least and most."""
    return f"{values.median():.3g} ({values.min():.3g} to {values.max():.3g})"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs")
    parser.add_argument("--devices", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []
    known: pd.Series | None = None
    for repeat in range(options.repeats):
        for mode in MODES if repeat % 2 == 0 else reversed(MODES):
            numbers, accuracies = one_run(mode, options.devices)
            known = accuracies if known is None else known
            pd.testing.assert_series_equal(accuracies, known)
            lines.append({"repeat": repeat + 1, "mode": mode, **numbers})
            print(f"{repeat + 1}/{options.repeats} {mode}: {numbers}", file=sys.stderr)
    frame = pd.DataFrame(lines)
    write_text(FOLDER / "cost.csv", frame.to_csv(index=False, float_format="%.3f"))
    write_text(FOLDER / "cost.md", markdown(frame, options.devices))
    print((FOLDER / "cost.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

"""What choices that the paper leaves open, or that speed asks for, do to accuracy: the size of B_S, and bf16.

``python benchmarks/performance/choices.py --data-dir ~/data`` runs Table 2's training and QuickDrop's request with each
choice and writes ``results/choices/choices.csv`` and ``choices.md``. What is fast is for ``speed.py``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from quickdrop_bench.core.files import write_text

FOLDER = Path(__file__).resolve().parents[2] / "results" / "choices"

CHOICES = {
    "all of S, 32-true": ("--synthetic-batch-size", "256"),
    **{f"B_S ≤ {n}, 32-true": ("--synthetic-batch-size", str(n)) for n in (16, 4)},
    "all of S, bf16-mixed": ("--synthetic-batch-size", "256", "--precision", "bf16-mixed"),
}

COLUMNS = {
    "trained, all classes": ("original", "fl-training", "accuracy"),
    "F-Set": ("quickdrop", "recovery", "f_set_accuracy"),
    "R-Set": ("quickdrop", "recovery", "r_set_accuracy"),
    "second-order passes": ("original", "fl-training", "second_order_sample_gradients"),
}
"""What is shown, and the method, stage and metric that it is."""


def measure(choice: str, dataset: str, data_dir: Path, seeds: str) -> pd.DataFrame:
    """Train and serve once per seed.

    Returns:
        ``choice, seed`` and :data:`COLUMNS`, ``device, git_commit``.

    Raises:
        subprocess.CalledProcessError: a run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "quickdrop_bench", "table", "2", "--preset", "small", "--dataset", dataset]
        command += ["--data-dir", str(data_dir.resolve()), "--seeds", seeds, "--methods", "quickdrop"]
        command += ["--wandb", "disabled", *CHOICES[choice]]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        rows = pd.read_json(Path(folder) / "results" / "small" / "table2" / "rows.jsonl", lines=True)
    return pd.DataFrame([{"choice": choice, **line(own, int(str(seed)))} for seed, own in rows.groupby("seed")])


def line(rows: pd.DataFrame, seed: int) -> dict[str, object]:
    """One seed's figures."""
    by_name = rows.set_index(["method", "stage", "metric"])["value"]
    classes = by_name.loc["original", "fl-training"].filter(regex=r"^class_\d+_accuracy$")
    accuracy = {("original", "fl-training", "accuracy"): float(classes.mean())}
    values = {name: accuracy[key] if key in accuracy else float(by_name[key]) for name, key in COLUMNS.items()}
    return {"seed": seed, **values, "device": rows["device"].iloc[0], "git_commit": rows["git_commit"].iloc[0]}


def markdown(frame: pd.DataFrame, dataset: str) -> str:
    """The page."""
    first, seeds = frame.iloc[0], sorted(frame["seed"].unique())
    lines = [
        "# What choices do to accuracy",
        "",
        f"{dataset}, preset `small`, class 9 forgotten by QuickDrop, seeds {', '.join(map(str, seeds))} (means);",
        f"{first['device']}, commit {str(first['git_commit'])[:10]}. Written by `benchmarks/performance/choices.py`.",
        "Accuracy before the request is the mean over all classes, the others are after recovery.",
        "",
        "| | trained, all classes | F-Set | R-Set | second-order passes |",
        "|---|--:|--:|--:|--:|",
    ]
    for choice, mean in frame.groupby("choice", sort=False)[list(COLUMNS)].mean().iterrows():
        shares = " | ".join(f"{mean[name]:.4f}" for name in ("trained, all classes", "F-Set", "R-Set"))
        lines.append(f"| {choice} | {shares} | {mean['second-order passes']:,.0f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--seeds", default="3", help="as for the program")
    options = parser.parse_args()
    frame = pd.DataFrame()
    for choice in CHOICES:
        frame = pd.concat([frame, measure(choice, options.dataset, options.data_dir, options.seeds)])
        write_text(FOLDER / "choices.csv", frame.to_csv(index=False, float_format="%.6g"))
        write_text(FOLDER / "choices.md", markdown(frame, options.dataset))
    print(markdown(frame, options.dataset))


if __name__ == "__main__":
    main()

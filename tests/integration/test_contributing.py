"""CONTRIBUTING's promise: a method, a metric, a model, a data set and a table are one file each."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "quickdrop_bench/evaluation/README.md")]
BLOCKS = [block for page in PAGES for block in re.findall(r"```(?:python|yaml)\n(.*?)```", page.read_text(), re.DOTALL)]

ADDED = {
    "quickdrop_bench/methods/noise.py": "class Noise",
    "quickdrop_bench/evaluation/norm.py": "def norm",
    "quickdrop_bench/models/linear.py": "class Linear",
    "quickdrop_bench/data/sources/bars.py": "class Bars",
    "benchmarks/tables/20.yaml": "title: what each method keeps",
}
"""Where each example goes, and what it is known by."""


@pytest.mark.slow
def test_one_file_each_is_enough(tmp_path: Path) -> None:
    """A fresh copy of the package and these files: a run uses all five."""
    for folder in ("quickdrop_bench", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, known_by in ADDED.items():
        (example,) = [block for block in BLOCKS if known_by in block]
        (tmp_path / name).write_text(example, encoding="utf-8")
    tiny = ["--preset", "quick", "--rounds", "2", "--local-steps", "2", "--clients", "3", "--seeds", "1"]
    options = ["--dataset", "bars", "--class", "top", "--model", "linear", "--methods", "retrain-or,noise", "--iid"]
    command = [sys.executable, "-m", "quickdrop_bench", "table", "20", *tiny, *options]
    ended = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "# Table 20: what each method keeps" in ended.stdout
    assert "Noise" in ended.stdout
    (path,) = tmp_path.glob("results/*/table20/rows.jsonl")
    rows = pd.read_json(path, lines=True)
    assert set(rows["dataset"]) == {"bars"}
    assert (rows[rows["metric"] == "weight_norm"]["value"] > 0).all()
    assert {"noise", "retrain-or"} <= set(rows[rows["metric"] == "weight_norm"]["method"])
    for command, listed in (("methods", "noise"), ("models", "linear"), ("datasets", "bars"), ("metrics", "norm")):
        answer = subprocess.run(
            [sys.executable, "-m", "quickdrop_bench", command], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        assert listed in answer.stdout.split()

"""The native W&B sweep: what an agent would run is a command of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from quickdrop_bench.cli.grid import cells
from quickdrop_bench.cli.resolve import options_of, parse
from quickdrop_bench.tracking.wandb_logger import PROJECT
from tests.conftest import TINY

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "wandb_sweep.yaml"
POINTS = {(scale, alpha) for scale in (1, 10, 100, 1000) for alpha in (0.1, 1, 10)}

# The package's models are in an older pydantic's style.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Support for class-based `config` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Valid config keys have changed in V2:UserWarning"),
]


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


@pytest.fixture
def sweeps() -> ModuleType:
    """W&B's own controller of sweeps."""
    import sweeps

    return sweeps


def command_line(config: Mapping[str, Any], point: Mapping[str, Any]) -> list[str]:
    """What an agent runs for a point of the grid: it puts lists in the place of the macros."""
    macros = create_sweep_command_args({"args": point}) | {"env": ["/usr/bin/env"], "interpreter": ["python"]}
    line = []
    for part in create_sweep_command(list(config["command"])):
        line += macros[part[2:-1]] if part.startswith("${") else [part]
    return line


def test_wandb_accepts_the_file(config: dict[str, Any], sweeps: ModuleType) -> None:
    assert sweeps.config.schema_violations_from_proposed_config(config) == []
    filled = sweeps.SweepConfig(config)
    assert filled["metric"] == {"name": "total/r_set_accuracy", "goal": "maximize"}
    assert filled["project"] == PROJECT
    assert (FILE.parents[1] / filled["program"]).is_file()
    assert sweeps.config.schema_violations_from_proposed_config(config | {"method": "exhaustive"})


def test_every_point_is_one_cell_of_our_sweep(config: dict[str, Any], sweeps: ModuleType) -> None:
    *runs, end = sweeps.next_runs(sweeps.SweepConfig(config), [], n=len(POINTS) + 1)
    assert end is None, "the grid has more points"
    met = set()
    for run in runs:
        scale, alpha = (run.config[name]["value"] for name in ("scales", "alphas"))
        line = command_line(config, run.config)
        assert line[:5] == ["/usr/bin/env", "python", "-m", "quickdrop_bench", "sweep"]
        assert {f"--scales={scale}", f"--alphas={alpha}"} <= set(line)
        met.add((scale, alpha))
        if run is not runs[-1]:
            continue  # the others differ in the numbers alone
        argv = line[4:]
        args = options_of(argv, "sweep")
        assert (args.preset, args.scales, args.alphas) == ("small", str(scale), str(alpha))
        ((experiment, _),) = cells("sweep", parse(argv))
        assert (experiment.federation.scale, experiment.federation.alpha) == (scale, alpha)
    assert met == POINTS


@pytest.mark.slow
def test_a_point_runs_as_an_agent_runs_it(config: dict[str, Any], sweeps: ModuleType, tmp_path: Path) -> None:
    (run,) = sweeps.next_runs(sweeps.SweepConfig(config), [], n=1)
    chosen = tmp_path / "chosen.yaml"
    chosen.write_text(yaml.safe_dump({name: {"value": entry["value"]} for name, entry in run.config.items()}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(FILE.parents[1]),
        "WANDB_MODE": "offline",
        "WANDB_SWEEP_ID": "sweep",
        "WANDB_RUN_ID": "chosen",
        "WANDB_SWEEP_PARAM_PATH": str(chosen),
    }
    smaller = ["--dataset", "digits", *TINY[2:], "--methods", "quickdrop"]
    done = subprocess.run(
        [*command_line(config, run.config), *smaller], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (rows,) = tmp_path.rglob("rows.jsonl")
    assert {row["scale"] for row in map(json.loads, rows.read_text().splitlines())} == {run.config["scales"]["value"]}
    assert list(tmp_path.glob("wandb/offline-run-*-chosen")), "the agent's run is there"

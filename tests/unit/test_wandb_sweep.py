"""The native W&B sweep: what an agent would run is a command of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from quickdrop_bench.cells import cells
from quickdrop_bench.options import add_sweep_options
from quickdrop_bench.parsing import options_of, parse
from quickdrop_bench.tracking import PROJECT

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


def test_wandb_would_refuse_a_broken_file(config: dict[str, Any], sweeps: ModuleType) -> None:
    assert sweeps.config.schema_violations_from_proposed_config(config | {"method": "exhaustive"})


def test_parameters_are_options_of_the_command(config: dict[str, Any]) -> None:
    parser = ArgumentParser()
    add_sweep_options(parser)
    options = {option for action in parser._actions for option in action.option_strings}
    assert {f"--{name}" for name in config["parameters"]} == {"--scales", "--alphas"}
    assert {f"--{name}" for name in config["parameters"]} <= options


def test_every_point_is_one_cell_of_our_sweep(config: dict[str, Any], sweeps: ModuleType) -> None:
    *runs, end = sweeps.next_runs(sweeps.SweepConfig(config), [], n=len(POINTS) + 1)
    assert end is None, "the grid has more points"
    met = set()
    for run in runs:
        scale, alpha = (run.config[name]["value"] for name in ("scales", "alphas"))
        line = command_line(config, run.config)
        assert line[:5] == ["/usr/bin/env", "python", "-m", "quickdrop_bench", "sweep"]
        assert {f"--scales={scale}", f"--alphas={alpha}"} <= set(line)
        argv = line[4:]
        args = parse(argv)["sweep"]
        assert (args.preset, args.scales, args.alphas) == ("small", str(scale), str(alpha))
        ((experiment, _),) = cells("sweep", args, argv, options_of)
        assert (experiment.federation.scale, experiment.federation.alpha) == (scale, alpha)
        met.add((scale, alpha))
    assert met == POINTS

"""A federation is served with the settings of the preset that it was trained with, which its checksummed files name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.serving import TrainedRun
from tests.conftest import Run
from tests.damage import seal


def without_preset(folder: Path) -> None:
    """As it may come from elsewhere."""
    values = yaml.safe_load((folder / "config.yaml").read_text())
    assert values.pop("preset") == "quick"
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    seal(folder)


def test_the_preset_is_in_a_file_with_a_checksum(folder: Path, run: Run) -> None:
    assert TrainedRun(folder).preset == "quick"
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("preset: quick", "preset: paper"))
    code, _, err = run("unlearn", str(folder), "--class", "9")
    assert (code, "config.yaml is missing or damaged" in err) == (2, True)


@pytest.mark.parametrize("action", ["unlearn", "relearn"])
def test_without_it_nothing_is_served_with_other_settings(folder: Path, run: Run, action: str) -> None:
    without_preset(folder)
    code, out, err = run(action, str(folder), "--class", "9")
    assert (code, out) == (2, "")
    assert err.startswith(f"quickdrop-bench: --preset is not given: {folder} does not say with which preset")
    with pytest.raises(BadInput, match="--preset"):
        TrainedRun(folder).method()
    assert run("show", str(folder))[0] == 0


def test_a_preset_on_the_command_line_serves(folder: Path, run: Run) -> None:
    expected = TrainedRun(folder).method()
    without_preset(folder)
    code, out, _ = run("unlearn", str(folder), "--class", "9", "--preset", "quick", "--json")
    assert code == 0
    assert json.loads(out)["hyper_parameters"] == asdict(expected)  # type: ignore[call-overload]

"""A federation is served with the settings that its preset had in training: its checksummed files hold them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.harness import presets
from quickdrop_bench.methods import METHODS
from quickdrop_bench.serving import TrainedRun
from tests.conftest import Run
from tests.damage import seal
from tests.served import sentence


def with_values(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    values = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(change(values)))
    seal(folder)


def as_before(values: dict[str, Any]) -> dict[str, Any]:
    """With the preset's name alone."""
    return {name: value for name, value in values.items() if "." not in name}


def without_preset(folder: Path) -> None:
    """As it may come from elsewhere."""
    with_values(folder, lambda values: {n: v for n, v in as_before(values).items() if n != "preset"})


@pytest.fixture
def changed_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset as it may be later: other values, one more, one fewer, for classes alone and for all requests."""
    presets._content.cache_clear()
    benchmarks = Path(shutil.copytree(presets.benchmarks_dir(), tmp_path / "benchmarks"))
    path = benchmarks / "presets/quick.yaml"
    content = yaml.safe_load(path.read_text())
    for values in (content, content.setdefault("table2", {}), content.setdefault("table4", {})):
        values["quickdrop"] = {"unlearn_lr": 0.123, "recover_lr": 0.321}
        values["federaser"] = {"replay_every": 2}
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(presets, "benchmarks_dir", lambda: benchmarks)


@pytest.mark.parametrize("level", ["class", "client", "sample"])
def test_a_later_change_of_the_preset_changes_no_trained_federation(
    folder: Path, level: str, request: pytest.FixtureRequest
) -> None:
    names = [name for name in METHODS if level in METHODS[name].levels]
    before = [TrainedRun(folder).method(name, level) for name in names]
    request.getfixturevalue("changed_preset")
    assert [TrainedRun(folder).method(name, level) for name in names] == before
    with_values(folder, as_before)
    after = dict(zip(names, (TrainedRun(folder).method(name, level) for name in names), strict=True))
    assert asdict(after["quickdrop"])["unlearn_lr"] == 0.123  # type: ignore[call-overload]  # the change is one


def test_nor_what_a_command_serves_unless_the_preset_is_asked_for(
    folder: Path, run: Run, request: pytest.FixtureRequest
) -> None:
    expected = asdict(TrainedRun(folder).method())  # type: ignore[call-overload]
    request.getfixturevalue("changed_preset")
    served = json.loads(run("unlearn", str(folder), "--class", "9", "--json")[1])["hyper_parameters"]
    assert served == expected
    _, out, _ = run("unlearn", str(folder), "--class", "3", "--json", "--preset", "quick")
    assert json.loads(out)["hyper_parameters"]["unlearn_lr"] == 0.123


@pytest.mark.parametrize("value", ["much", -1])
def test_settings_that_no_method_can_use_are_refused(folder: Path, run: Run, value: object) -> None:
    for name in ("unlearn_lr", "gone"):
        with_values(folder, lambda values: {**values, f"table2.quickdrop.{name}": value})  # noqa: B023 - called at once
        code, out, err = run("unlearn", str(folder), "--class", "9")
        assert (code, out) == (2, "")
        assert "no request is served with what config.yaml sets" in sentence(err)
        assert run("show", str(folder))[0] == 0
        with_values(folder, lambda values: {k: v for k, v in values.items() if "gone" not in k})


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

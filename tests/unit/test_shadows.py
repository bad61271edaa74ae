"""Federations that each forget half of a pool, and the table made from their margins."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from quickdrop_bench.cli.grid import cells
from quickdrop_bench.cli.resolve import parse
from quickdrop_bench.harness.shadows import SETS, Shadows
from quickdrop_bench.harness.training import client_rows
from quickdrop_bench.methods import METHODS

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "shadows.py"
NAMES = ["retrain-or", "none", "quickdrop"]


def tiny(size: int = 20, **changed: Any) -> Shadows:
    """Three clients and one round."""
    ((experiment, _),) = cells("table9", parse(["table", "9", "--preset", "quick", "--methods", ",".join(NAMES)]))
    spec = replace(experiment.federation, clients=3, rounds=1, local_steps=1, record_every=0, width=4, depth=1)
    methods = {**experiment.methods, "retrain-or": METHODS["retrain-or"](rounds=1)}
    return Shadows(replace(experiment, federation=spec, methods=methods, **changed), size)


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shadows_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script on tiny federations, in this process, with folders of its own."""
    module = loaded()
    monkeypatch.setattr(module, "WORK", tmp_path / "work")
    monkeypatch.setattr(module, "planned", lambda options: (tiny(options.pool), NAMES))
    monkeypatch.setattr(module, "run_processes", here)
    return module


def here(target: Callable[..., None], calls: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[tuple[int, int]]:
    for index, call in enumerate(calls):
        target(*call)
        yield index, 0


# The federations ---------------------------------------------------------------------------------------------


def test_a_federation_forgets_one_half_of_the_pool_and_never_sees_the_other() -> None:
    shadows = tiny()
    owned = client_rows(shadows.experiment.federation, shadows.data.train.labels, 1)
    pool, halves = {*shadows.images["pool"].rows.tolist()}, []
    for number in (1, 2):
        forgotten = {*shadows.request(number).targets}
        unseen = pool - forgotten
        assert len(forgotten) == len(unseen) == 10
        for rows, part in zip(owned, shadows.parts(number), strict=True):
            assert part.tolist() == [row for row in rows if row not in unseen]
        halves.append(forgotten)
    assert halves[0] != halves[1]


def test_the_halves_do_not_depend_on_how_many_federations_there_are() -> None:
    shadows = tiny()
    members = np.stack([shadows.members(number).numpy() for number in range(1, 201)])
    assert set(members.sum(axis=1)) == {10}
    assert members.mean(axis=0) == pytest.approx(np.full(20, 0.5), abs=0.15)
    assert abs(np.corrcoef(members[:-1].ravel(), members[1:].ravel())[0, 1]) < 0.05


def test_images_beside_the_pool_are_others() -> None:
    images = tiny().images
    assert {name: len(part) for name, part in images.items()} == {"pool": 20, "retained": 100, "test": 100}
    assert not {*images["pool"].rows.tolist()} & {*images["retained"].rows.tolist()}


def test_a_key_says_all_that_decides() -> None:
    keys = [tiny().key(1, "none"), tiny().key(2, "none"), tiny().key(1, "quickdrop"), tiny(22).key(1, "none")]
    keys.append(tiny(precision="bf16-mixed").key(1, "none"))
    assert len({*keys}) == 5
    assert tiny().key(1, "none") == keys[0]


# The script --------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_trained_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    options = script.Options(8, 20, "", 2, "cpu", target, table=False)
    script.run(options)
    assert "8 of 8 federations to train" in capsys.readouterr().err
    tensors, about = script.load(target / script.MARGINS)
    assert tensors["members"].sum(1).tolist() == [10] * 8
    assert tensors["none.pool"].shape == (8, 20)
    assert all(tensors[f"{method}.{name}"].isfinite().all() for method in NAMES for name in SETS)
    assert not torch.equal(tensors["none.pool"], tensors["retrain-or.pool"])
    table = (target / "table.md").read_text(encoding="utf-8")
    assert about["device"] in table
    assert "8 federations, a pool of 20 training images" in table

    (target / "table.md").unlink()
    script.run(options._replace(table=True))
    assert (target / "table.md").read_text(encoding="utf-8") == table

    lost = script.cached(tiny(), 3, "none")
    before, _ = script.load(lost)
    beside = script.cached(tiny(), 3, "quickdrop").stat().st_mtime_ns
    lost.unlink()
    script.run(options._replace(federations=9))
    assert "2 of 9 federations to train" in capsys.readouterr().err
    again, _ = script.load(lost)
    assert all(torch.equal(again[name], before[name]) for name in (*SETS, "accuracy"))
    assert script.cached(tiny(), 3, "quickdrop").stat().st_mtime_ns == beside
    monkeypatch.setattr(script, "measure", None)
    script.run(options)  # nothing left to do


def made(federations: int, leaks: float) -> dict[str, torch.Tensor]:
    """Margins of an oracle and of a method that keeps a shift on what it was to forget."""
    random = np.random.default_rng(0)
    members = np.stack([random.permutation(40) < 20 for _ in range(federations)])
    tensors = {"members": torch.from_numpy(members).to(torch.uint8)}
    for method, shift in (("retrain-or", 0.0), ("none", leaks)):
        for name in SETS:
            margins = random.normal(size=members.shape) + shift * members * (name == "pool")
            tensors[f"{method}.{name}"] = torch.from_numpy(margins).half()
        tensors[f"{method}.accuracy"] = torch.full((federations,), 0.9, dtype=torch.float64)
    return tensors


def test_a_method_that_remembers_is_told_from_the_oracle(script: ModuleType) -> None:
    frame = script.figures(made(160, leaks=2.0), ["retrain-or", "none"]).set_index("method")
    oracle, none = frame.loc["retrain-or"], frame.loc["none"]
    assert oracle["auc_low"] < 0.5 < oracle["auc_high"] < none["auc_low"]
    assert oracle["tpr"] == pytest.approx(0.01, abs=0.01)
    assert none["tpr"] > 0.1
    assert none["klom_pool_mean"] == pytest.approx(2.0, abs=0.3)  # δ²/2
    assert none["klom_pool_p95"] > none["klom_pool_mean"]
    for floor in (oracle["klom_pool_mean"], none["klom_test_mean"], none["klom_retained_mean"]):
        assert 0.005 < floor < 0.1  # federations of other seeds are never the same
    assert frame["r_set_accuracy"].tolist() == pytest.approx([0.9, 0.9])


def test_with_few_federations_there_is_no_tpr_and_no_klom(script: ModuleType) -> None:
    tensors = made(12, leaks=2.0)
    frame = script.figures(tensors, ["retrain-or", "none"])
    assert frame[["tpr", "klom_pool_mean", "klom_test_p95"]].isna().all(axis=None)
    assert frame["auc"].notna().all()
    about = dict.fromkeys(("setting", "device", "precision", "git_commit", "package_version"), "x")
    (line,) = (line for line in script.page(frame, tensors, about).splitlines() if line.startswith("| Original"))
    assert line.split(" | ")[2:6] == ["—"] * 4


@pytest.mark.parametrize(
    "typed", [["--federations", "7"], ["--jobs", "0"], ["--pool", "1"], ["--methods", "ulira"], ["--table"]]
)
def test_an_option_without_a_usable_value_is_named(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["shadows.py", *typed, "--results-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        loaded().main()
    assert stopped.value.code == 2
    assert typed[0] in capsys.readouterr().err

"""A federation on disk: equal when read back, refused when damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from quickdrop_bench.artifacts import UPDATES, ClientArtifacts, TrainedFederation, is_complete, load, save
from quickdrop_bench.cost import Cost
from quickdrop_bench.data.labelled import DataInfo, LabelledSet, concatenate
from quickdrop_bench.distillation.in_situ import initial_synthetic_set
from quickdrop_bench.errors import BadInput
from quickdrop_bench.federation.history import UpdateHistory, UpdateRecorder
from quickdrop_bench.seeding import generator

CPU = torch.device("cpu")


def artifacts_of(data: LabelledSet) -> ClientArtifacts:
    start = initial_synthetic_set(data, 4, generator(0))
    synthetic = replace(start, images=start.images + 1)
    few = data.subset(torch.arange(min(3, len(data))))
    return ClientArtifacts(data.rows, start.as_labelled(), start.origin, concatenate(few), few.rows, synthetic)


@pytest.fixture
def trained(toy_clients: dict[int, LabelledSet]) -> TrainedFederation:
    clients = {}
    for i, data in toy_clients.items():
        clients[i] = artifacts_of(data)
    clients[3] = replace(artifacts_of(toy_clients[0].subset(torch.empty(0, dtype=torch.int64))), synthetic=None)
    history = pd.DataFrame({"round": [1, 2], "loss": [0.5, 0.25]})
    data = DataInfo("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,), 45, 9)
    cost = Cost(seconds=1.5, rounds=2)
    return TrainedFederation({"w": torch.randn(3)}, clients, history, cost, {"alpha": 0.1}, "a CPU", data, "32-true")


def test_round_trip(trained: TrainedFederation, tmp_path: Path) -> None:
    save(trained, tmp_path / "run")
    again = load(tmp_path / "run", CPU)
    assert torch.equal(again.state["w"], trained.state["w"])
    assert (again.cost, again.spec, again.device) == (trained.cost, trained.spec, "a CPU")
    assert (again.data, again.precision) == (trained.data, "32-true")
    pd.testing.assert_frame_equal(again.history, trained.history)
    assert list(again.clients) == [0, 1, 2, 3]
    assert again.clients[3].synthetic is None
    for i in range(3):
        ours, theirs = trained.clients[i], again.clients[i]
        assert ours.synthetic is not None
        assert theirs.synthetic is not None
        for name in ("images", "labels", "origin", "velocity"):
            assert torch.equal(getattr(ours.synthetic, name), getattr(theirs.synthetic, name))
        assert ours.synthetic.fixed_classes == theirs.synthetic.fixed_classes
        assert torch.equal(ours.rows, theirs.rows)
        for kept in ("subset", "augmentation"):
            assert torch.equal(getattr(ours, kept).images, getattr(theirs, kept).images)
            assert torch.equal(getattr(ours, kept).labels, getattr(theirs, kept).labels)
            assert torch.equal(getattr(ours, f"{kept}_rows"), getattr(theirs, f"{kept}_rows"))


def test_recorded_updates_are_part_of_the_federation(trained: TrainedFederation, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recorder = UpdateRecorder(folder / UPDATES, rounds=2, every=1)
    for k in range(2):
        recorder(k, 0, 5, {"w": torch.zeros(3)}, {"w": torch.ones(3)})
    save(trained, folder)
    load(folder, CPU)
    assert UpdateHistory(folder / UPDATES, CPU).participants == {0: [0], 1: [0]}
    path = folder / UPDATES / "0001" / "0000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BadInput, match=r"updates/0001/0000\.safetensors"):
        load(folder, CPU)


@pytest.mark.parametrize("name", ["global.safetensors", "clients/0001.safetensors", "history.csv", "config.yaml"])
@pytest.mark.parametrize("damage", ["change", "remove"])
def test_damage_is_named(trained: TrainedFederation, tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "run"
    save(trained, folder)
    path = folder / name
    if damage == "remove":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(BadInput, match=f"{name} is missing or damaged"):
        load(folder, CPU)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {"../../x": {"sha256": "0"}}}', '{"files": {"a": 1}}'])
def test_hostile_manifests(trained: TrainedFederation, tmp_path: Path, text: str) -> None:
    save(trained, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text(text)
    with pytest.raises(BadInput, match="--artifacts-dir"):
        load(tmp_path / "run", CPU)


def test_the_manifest_comes_last(trained: TrainedFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    save(trained, folder)
    assert is_complete(folder)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quickdrop_bench.artifacts._save_tensors", full)
    with pytest.raises(BadInput, match="No space left"):
        save(trained, folder)
    assert not is_complete(folder)

"""A checkpoint is used as a whole or not at all."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.distillation.in_situ import SyntheticSet
from quickdrop_bench.harness.training import Checkpoint, alone_in
from tests.asked import synthetic_sets
from tests.conftest import TINY, Clients, Run
from tests.damage import largest_file
from tests.integration.judging import bounded_memory


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def synthetic(toy_clients: Clients) -> dict[int, SyntheticSet]:
    return synthetic_sets(toy_clients)


def changed(synthetic: dict[int, SyntheticSet]) -> dict[int, SyntheticSet]:
    return {i: replace(s, images=s.images + 1, velocity=s.velocity + 2) for i, s in synthetic.items()}


def test_it_fills_in_every_set(fabric: Fabric, synthetic: dict[int, SyntheticSet], tmp_path: Path) -> None:
    checkpoint, later = Checkpoint(tmp_path / "training.ckpt"), changed(synthetic)
    checkpoint.save({"w": torch.ones(2)}, Cost(rounds=3), later, [{"round": 3}])
    found = checkpoint.load(fabric, synthetic)
    assert found is not None
    assert (found[0].cost.rounds, found[1]) == (3, [{"round": 3}])
    for i, own in synthetic.items():
        assert own.images.equal(later[i].images)
        assert own.velocity.equal(later[i].velocity)


@pytest.mark.parametrize("field", ["images", "velocity"])
def test_one_set_of_another_shape_leaves_all_as_they_were(
    fabric: Fabric, synthetic: dict[int, SyntheticSet], tmp_path: Path, field: str
) -> None:
    checkpoint, later = Checkpoint(tmp_path / "training.ckpt"), changed(synthetic)
    last = max(later)
    later[last] = replace(later[last], **{field: getattr(later[last], field)[:1, :, :1, :1]})
    checkpoint.save({}, Cost(), later, [])
    before = {i: s.images.clone() for i, s in synthetic.items()}
    assert checkpoint.load(fabric, synthetic) is None
    assert all(own.images.equal(before[i]) for i, own in synthetic.items())


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02."])
def test_a_damaged_file_is_left_aside(
    fabric: Fabric, synthetic: dict[int, SyntheticSet], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "training.ckpt"
    path.write_bytes(content)
    assert Checkpoint(path).load(fabric, synthetic) is None


def test_saving_takes_its_share_of_the_time_at_most(
    fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, saved = [0.0], []

    def save(self: Checkpoint, fabric: Fabric, state: object, *others: object) -> None:
        saved.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Checkpoint, "save", save)
    checkpoint = Checkpoint(tmp_path / "training.ckpt")
    for _ in range(12):
        now[0] += 10.0
        checkpoint.save_if_due(fabric, {}, Cost(), {}, [])
    assert saved == [10.0, 61.0, 112.0]  # a second of saving is paid by 50 of training


def test_a_second_training_waits_for_the_first(
    fabric: Fabric, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held, order = threading.Event(), []

    def first() -> None:
        with alone_in(tmp_path / "run", fabric):
            held.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with caplog.at_level(logging.WARNING), alone_in(tmp_path / "run", fabric):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert "another process trains" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said(fabric: Fabric, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadInput, match="it cannot be written"), alone_in(tmp_path / "run", fabric):
        pass


@pytest.mark.parametrize("size", [100, 4000, 20_000, 60_000])
def test_a_full_disk_is_one_sentence_wherever_training_writes(size: int, tmp_path: Path, run: Run) -> None:
    """The updates are the smallest, then the checkpoint, the clients and the model."""
    options = ["train", *TINY, "--min-client-size", "5", "--record-every", "1"]
    with largest_file(size):
        code, _, err = run(*options)
    assert code == 2
    assert err.splitlines()[-1].startswith("quickdrop-bench: --artifacts-dir artifacts: it cannot be written (")
    assert "File too large" in err
    assert "Traceback" not in err
    assert run(*options)[0] == 0
    assert not list(tmp_path.rglob("*tmp*"))


def test_too_little_memory_is_one_sentence(run: Run) -> None:
    """The limit is the system's own, on this process's addresses."""
    with bounded_memory(2**27):
        code, _, err = run("train", *TINY, "--width", "4000")
    assert code == 1
    assert err.splitlines()[-1].startswith("quickdrop-bench: there is not enough memory; use a smaller model")
    assert "Traceback" not in err

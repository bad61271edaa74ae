"""What a federation gets of the machine."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric

from quickdrop_bench.data.labelled import DataInfo
from quickdrop_bench.harness.spec import FederationSpec
from quickdrop_bench.harness.training import build_federation

DIGITS = DataInfo("digits", (1, 8, 8), tuple("0123456789"), (0.3,), (0.4,), 1442, 355)


def test_tiny_steps_get_one_thread_and_others_all(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr("quickdrop_bench.harness.training._all_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    fabric = Fabric(accelerator="cpu", devices=1)
    for width in (32, 1024, 32):
        build_federation(FederationSpec(dataset="digits", width=width, depth=1, batch_size=32), fabric, DIGITS)
    assert given == [1, 7, 1]

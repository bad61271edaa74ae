"""The comparison with other simulators, as far as it goes without them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "performance"


@pytest.fixture
def contenders(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("contenders")


@pytest.fixture
def work(contenders: ModuleType) -> Any:
    return contenders.Workload("digits", "data", width=4, depth=2, batch=16, steps=2, lr=0.1, rounds=2)


def by_hand(contenders: ModuleType, work: Any) -> dict[str, torch.Tensor]:
    """FedAvg by what the peers' clients share."""
    parts, state = contenders.client_data(work), contenders.new_model(work).state_dict()
    total = sum(map(len, parts.values()))
    for k in range(work.rounds):
        mean = {name: torch.zeros_like(value) for name, value in state.items()}
        for client, data in parts.items():
            model = contenders.new_model(work)
            model.load_state_dict(state)
            contenders.train_locally(model, data, work, k, client)
            for name, value in model.state_dict().items():
                mean[name] += len(data) / total * value
        state = mean
    return state


def test_our_engine_and_the_shared_client_do_the_same_work(contenders: ModuleType, work: Any) -> None:
    run = contenders.quickdrop(work, 1)
    assert run.began < run.ends[0] < run.ends[1]
    torch.testing.assert_close(run.state, by_hand(contenders, work), atol=1e-4, rtol=1e-4)
    for client, data in contenders.client_data(work).items():
        sizes = [len(labels) for _, labels in contenders.drawn(data, work, 0, client)]
        assert len(sizes) == work.steps
        assert sizes[0] == min(work.batch, len(data))

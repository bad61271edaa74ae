"""Every method on every registered model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.functional.aggregation import is_finite
from quickdrop_bench.methods import METHODS
from tests.contract.test_methods import TRAIN, equal, make_context
from tests.small_models import SMALL

TOY = replace(TRAIN, rounds=1, local_steps=2)
Make = Callable[..., Federation]
OTHERS = [name for name in SMALL if name != "convnet"]
"""The contract of methods is tested on the ConvNet."""


@pytest.fixture
def toy_federation(model: str, make_federation: Make) -> Federation:
    return make_federation(architecture=SMALL[model])


@pytest.mark.parametrize("model", OTHERS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_serves_a_request(
    name: str, toy_federation: Federation, toy_clients: dict[int, LabelledSet]
) -> None:
    method = METHODS[name]()
    context = make_context(toy_federation, toy_clients, min(method.levels), train=TOY)
    unlearned = method.unlearn(context)
    recovered = method.recover(context, unlearned.state) or unlearned
    stages = [unlearned, recovered] + ([method.relearn(context, recovered.state)] if method.can_relearn else [])
    for stage in stages:
        assert not stage.diverged
        assert is_finite(stage.state)
        assert {n: v.shape for n, v in stage.state.items()} == {n: v.shape for n, v in context.state.items()}
        assert not equal(stage.state, context.state)


@pytest.mark.parametrize("model", OTHERS)
def test_training_distils(toy_federation: Federation, toy_clients: dict[int, LabelledSet]) -> None:
    context = make_context(toy_federation, toy_clients, train=TOY)
    for client in context.clients.values():
        assert client.synthetic is not None
        assert client.synthetic.images.isfinite().all()
        assert not torch.equal(client.synthetic.images, client.subset.images)

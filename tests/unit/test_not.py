"""NoT against its definition, on models of any names."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from quickdrop_bench.core.errors import Unsupported
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.methods.negation import Not
from quickdrop_bench.methods.recovery_only import RecoveryOnly
from tests.asked import asked
from tests.by_hand import equal
from tests.conftest import Clients, Make


def federation_of(*layers: nn.Module) -> Federation:
    return Federation(Fabric(accelerator="cpu", devices=1), nn.Sequential(*layers))


def test_it_negates_one_tensor_and_twice_is_nothing(make_federation: Make, toy_clients: Clients) -> None:
    named_otherwise = federation_of(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    for federation, name in ((make_federation(), "features.0.weight"), (named_otherwise, "0.0.weight")):
        context = asked(federation, toy_clients)
        once = Not().unlearn(context).state
        for key, value in context.state.items():
            assert torch.equal(once[key], -value if key == name else value)
        assert equal(Not().unlearn(asked(federation, toy_clients, state=once)).state, context.state)
        # Recovery is that of the control, so only the sign tells them apart.
        ours, theirs = (m(recover_rounds=1).recover(context, context.state) for m in (Not, RecoveryOnly))
        assert ours is not None
        assert theirs is not None
        assert equal(ours.state, theirs.state)


def test_without_a_convolution_it_refuses(toy_clients: Clients) -> None:
    context = asked(federation_of(nn.Flatten(), nn.Linear(64, 3)), toy_clients)
    with pytest.raises(Unsupported, match="no convolution"):
        Not().unlearn(context)

"""Projected gradient ascent: its centre, its ball, and its steps by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods.context import Context
from quickdrop_bench.methods.pga import Pga
from quickdrop_bench.methods.sga import Sga
from tests.asked import asked, guarded, recorded
from tests.by_hand import assert_close, equal, minus, network
from tests.conftest import Clients, Make

FREE = {"clip": None, "ball": None, "unlearn_stop_loss": None}
NO_STEP = {"unlearn_stop_loss": 1e-9}


def length(state: State) -> float:
    return math.sqrt(sum(float(value.double().pow(2).sum()) for value in state.values()))


@pytest.fixture
def context(make_federation: Make, toy_clients: Clients) -> Context:
    return asked(make_federation(), toy_clients)


def test_the_centre_is_the_mean_of_the_stayers_last_models(context: Context) -> None:
    """Weighted by 24 and 9 samples; κ·‖θ_ref − θ_ℓ‖ is the limit, and a step beyond it is the last."""
    trained, models = recorded(context)
    center = Pga(**NO_STEP).unlearn(trained).state
    expected = {n: (24 * models[2, 0][n] + 9 * models[2, 2][n]) / 33 for n in center}
    assert_close(center, expected, atol=1e-6)
    reach = length(minus(expected, models[2, 1]))
    method = Pga(stop_distance=2.0, unlearn_lr=0.05, unlearn_local_steps=50, **FREE)
    stopped = method.unlearn(trained)
    steps = stopped.cost.sample_gradients // 12
    one_less = replace(method, unlearn_local_steps=steps - 1).unlearn(trained)
    assert 1 < steps < 50
    assert length(minus(one_less.state, center)) <= 2 * reach * (1 + 1e-6)
    assert length(minus(stopped.state, center)) > 2 * reach
    assert Pga().storage(trained) == Storage(client_bytes=4 * 3 * sum(v.numel() for v in center.values()))


def test_without_a_record_the_centre_is_the_model(
    context: Context, make_federation: Make, toy_clients: Clients
) -> None:
    assert equal(Pga(**NO_STEP).unlearn(context).state, context.state)
    assert Pga().storage(context) == Storage()
    with pytest.raises(BadInput, match="stop_distance"):
        Pga(stop_distance=1.0).unlearn(context)
    of_class = asked(make_federation(), toy_clients, "class")
    trained, _ = recorded(of_class)
    assert equal(Pga(**NO_STEP).unlearn(trained).state, trained.state)


@pytest.mark.parametrize("level", ["client", "class"])
def test_without_its_bounds_it_is_plain_ascent(level: str, make_federation: Make, toy_clients: Clients) -> None:
    context = asked(make_federation(), toy_clients, level)
    settings = {"unlearn_lr": 0.05, "unlearn_local_steps": 3}
    ours = Pga(unlearn_momentum=0.0, **FREE, **settings).unlearn(context)
    theirs = Sga(unlearn_rounds=1, **settings).unlearn(context)
    assert_close(ours.state, theirs.state, atol=1e-7)
    assert replace(ours.cost, seconds=0) == replace(theirs.cost, seconds=0)


def test_steps_by_hand(context: Context, toy_clients: Clients) -> None:
    """g ← clip(∇L, 0.5), v ← 0.9v + g, θ ← θ + 0.1v, three times on client 1's images, which alone are read."""
    method = Pga(unlearn_lr=0.1, unlearn_local_steps=3, clip=0.5, ball=None, unlearn_stop_loss=None)
    result = method.unlearn(guarded(context, [*range(24), *range(36, 45)]))
    model = network()
    model.load_state_dict(context.state)
    images, labels = toy_clients[1].take(torch.arange(12))
    velocity = 0.0
    for _ in range(3):
        flat = torch.cat(
            [g.flatten() for g in torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))]
        )
        velocity = 0.9 * velocity + flat * min(1.0, 0.5 / float(flat.norm()))
        moved = torch.nn.utils.parameters_to_vector(model.parameters()) + 0.1 * velocity
        torch.nn.utils.vector_to_parameters(moved, model.parameters())
    assert_close(result.state, {n: p.detach() for n, p in model.named_parameters()}, atol=1e-6)


def test_it_stays_in_the_ball(context: Context) -> None:
    """δ² is a ten-thousandth of the mean of ‖θ_ref − θ_rand‖² over ten initialisations; this ends on the sphere."""
    method = Pga(ball=1e-4, unlearn_lr=1.0, unlearn_local_steps=20, unlearn_stop_loss=None)
    result = method.unlearn(context)
    inits = [context.federation.fresh_state(1, "pga", "init", j) for j in range(10)]
    delta = math.sqrt(1e-4 * sum(length(minus(context.state, init)) ** 2 for init in inits) / 10)
    distance = length(minus(result.state, context.state))
    assert distance == pytest.approx(delta, rel=1e-5)
    assert distance <= delta * (1 + 1e-6)

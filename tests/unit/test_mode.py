"""MoDe: the mixture and the guidance by hand, and what neither reads."""

from __future__ import annotations

import pytest

from quickdrop_bench.data.labelled import LabelledSet, pool
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods.mode import MoDe
from tests.asked import asked
from tests.by_hand import assert_close, descended, equal, network
from tests.conftest import Clients, Make

STILL = {"unlearn_lr": 1e-30}
"""Guidance that moves nothing."""


def mean_of(start: State, sets: Clients, steps: int, lr: float) -> State:
    """A FedAvg round on full batches."""
    total = sum(map(len, sets.values()))
    models = {i: descended(start, z, steps, lr) for i, z in sets.items()}
    return {n: sum(models[i][n] * (len(z) / total) for i, z in sets.items()) for n in start}


def test_mixtures(make_federation: Make, toy_clients: Clients) -> None:
    """λ = 1 keeps θ, λ = 0 gives θ_de, and with a θ_de that stands still it is λ^R·θ + (1 − λ^R)·θ_de."""
    context = asked(make_federation(), toy_clients)
    fresh = context.federation.fresh_state(1, "mode", "init")
    assert_close(MoDe(momentum=1.0, **STILL).unlearn(context).state, context.state, atol=1e-9)
    assert_close(MoDe(momentum=0.0, degrade_lr=1e-30, **STILL).unlearn(context).state, fresh, atol=1e-9)
    mixed = MoDe(momentum=0.7, degrade_lr=1e-30, degrade_rounds=3, **STILL).unlearn(context).state
    kept = 0.7**3
    assert_close(mixed, {n: kept * v + (1 - kept) * fresh[n] for n, v in context.state.items()}, atol=1e-6)


@pytest.mark.parametrize("level", ["client", "class"])
def test_two_rounds_by_hand(level: str, make_federation: Make, toy_clients: Clients) -> None:
    """Degradation and guidance, then guidance alone by the same labels; the clients' sets are pooled by client."""
    context = asked(make_federation(), toy_clients, level)
    forget, retain = ({i: z for i, z in s.items() if len(z)} for s in (context.forget_data(), context.retain_data()))
    method = MoDe(unlearn_rounds=2, degrade_rounds=1, momentum=0.6, degrade_lr=0.3, unlearn_lr=0.1)
    fresh = mean_of(context.federation.fresh_state(1, "mode", "init"), retain, 2, 0.3)
    model = network()
    model.load_state_dict(fresh)
    images, labels = toy_clients[0].images, toy_clients[0].labels.clone()
    for z in forget.values():
        labels[z.rows] = model(images[z.rows]).argmax(1)
    sets = {i: pool(*(s[i] for s in (retain, forget) if i in s)) for i in toy_clients}
    sets = {i: LabelledSet(images, labels, z.rows) for i, z in sets.items()}
    state = {n: 0.6 * v + 0.4 * fresh[n] for n, v in context.state.items()}
    for _ in range(2):
        state = mean_of(state, sets, 2, 0.1)
    result = method.unlearn(context)
    assert_close(result.state, state, atol=2e-6)
    assert result.cost.sample_forwards == sum(map(len, forget.values()))


def test_labels_of_the_forget_set_are_not_read(make_federation: Make, toy_clients: Clients) -> None:
    results = []
    for shift in (0, 1):
        labels = toy_clients[0].labels.clone()
        labels[toy_clients[1].rows] = (labels[toy_clients[1].rows] + shift) % 3
        clients = {i: LabelledSet(z.images, labels, z.rows) for i, z in toy_clients.items()}
        results.append(MoDe(unlearn_lr=0.1).unlearn(asked(make_federation(), clients)).state)
    assert equal(*results)


def test_nobody_stays(make_federation: Make, toy_clients: Clients) -> None:
    context = asked(make_federation(), {1: toy_clients[1]})
    result = MoDe().unlearn(context)
    assert equal(result.state, context.state)
    assert result.cost.rounds == 0

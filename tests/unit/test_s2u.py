"""Scale-to-unlearn against FedAvg rounds, a case by hand, and what it may read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.federation.phase import Phase, PhaseResult
from quickdrop_bench.methods.context import Context
from quickdrop_bench.methods.s2u import S2U
from tests.asked import asked, guarded
from tests.by_hand import assert_close, descended, equal, minus, plus_weighted
from tests.conftest import Clients, Make

TRAIN = Phase("fl-training", rounds=2, local_steps=3, batch_size=8, lr=0.2)
SCALED = Phase("unlearning", rounds=1, local_steps=3, batch_size=8, lr=0.1)
ONLY_SCALED = {"recover_rounds": 0, "unlearn_lr": 0.1}


@pytest.fixture
def context(make_federation: Make, toy_clients: Clients) -> Context:
    """Client 1 of three leaves; the model is a fresh one."""
    return asked(make_federation(), toy_clients, training=TRAIN)


def fedavg(context: Context, *clients: int) -> PhaseResult:
    data = {i: context.clients[i].original for i in clients}
    return context.federation.run(context.state, data, SCALED, context.seed)


@pytest.mark.parametrize("alpha", [1.0, None])
def test_factors_of_one_are_a_fedavg_round(alpha: float | None, context: Context) -> None:
    """α = β = 1 leaves every update as it is; at β = 1 so does the automatic α."""
    result, expected = S2U(alpha=alpha, beta=1.0, **ONLY_SCALED).unlearn(context), fedavg(context, 0, 1, 2)
    assert equal(result.state, expected.state)
    assert replace(result.cost, seconds=0) == replace(expected.cost, seconds=0)


def test_beta_of_zero_is_a_fedavg_round_without_the_leaver(context: Context) -> None:
    """θ + (1/(1 − p_ℓ))·Σ_{i≠ℓ} p_i Δ_i: the weights of those who stay sum to one again. The leaver is not read."""
    locked = guarded(context, range(24, 36))
    result = S2U(beta=0.0, **ONLY_SCALED).unlearn(locked)
    assert equal(result.state, fedavg(context, 0, 2).state)
    assert result.cost.data_size == 24 + 9
    for beta in (0.1, 1.0):
        with pytest.raises(AssertionError, match="forbidden"):
            S2U(beta=beta).unlearn(locked)
    result = S2U(beta=0.1, unlearn_rounds=0).unlearn(locked)  # the rounds that follow do not read it
    assert (result.cost.rounds, result.cost.data_size) == (2, 24 + 9)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.9])
def test_automatic_factors_sum_to_one_up_to_a_cap(beta: float, share: float) -> None:
    alpha = S2U(beta=beta, max_alpha=100).stayers_factor(share)
    assert alpha * (1 - share) + beta * share == pytest.approx(1)
    assert alpha >= 1
    assert S2U(beta=0.0).stayers_factor(0.99) == 10  # 1/(1 − 0.99) = 100
    assert S2U(alpha=20.0).stayers_factor(0.99) == 20


@pytest.mark.parametrize(
    ("leavers", "alpha", "beta", "weights"),
    [
        ((1,), None, 0.1, {0: 0.966667, 1: 0.033333}),
        ((1,), 1.5, 0.1, {0: 1.0, 1: 0.033333}),
        ((1, 2), None, 0.5, {0: 34.5 / 45, 1: 6 / 45, 2: 4.5 / 45}),
    ],
)
def test_factors_by_hand(
    leavers: tuple[int, ...], alpha: float | None, beta: float, weights: dict[int, float], context: Context
) -> None:
    """n = (24, 12), client 1 leaves: p_ℓ = 1/3, β·p_ℓ = 0.1/3 = 0.0333…; automatic α = (1 − 0.0333…)/(2/3) = 1.45,
    so α·p_0 = 0.9666…; α = 1.5 gives α·p_0 = 1. n = (24, 12, 9), clients 1 and 2 leave: p_ℓ = 21/45 together; at
    β = 0.5, α = (1 − 10.5/45)/(24/45) = 34.5/24. Two full-batch steps each."""
    request = UnlearningRequest("client", leavers)
    clients = {i: context.clients[i] for i in weights}
    training = replace(TRAIN, batch_size=100)
    context = replace(context, clients=clients, request=request, forgotten=(request,), training=training)
    result = S2U(alpha=alpha, beta=beta, unlearn_local_steps=2, **ONLY_SCALED).unlearn(context)
    updates = {i: minus(descended(context.state, clients[i].original, 2, 0.1), context.state) for i in weights}
    assert_close(result.state, plus_weighted(context.state, updates, weights))


def test_one_stage_of_scaled_then_plain_rounds(context: Context, toy_clients: Clients) -> None:
    """Its second half is what any method's recovery would be; its cost adds up, but data are counted once."""
    method = S2U(unlearn_lr=0.1, recover_rounds=2, recover_local_steps=2)
    result = method.unlearn(context)
    scaled = replace(method, recover_rounds=0).unlearn(context)
    staying = {i: toy_clients[i] for i in (0, 2)}
    plain = context.federation.run(scaled.state, staying, Phase("recovery", 2, 2, 8, 0.01), 1)
    assert equal(result.state, plain.state)
    for name in ("rounds", "sample_gradients", "upload_bytes"):
        assert getattr(result.cost, name) == getattr(scaled.cost, name) + getattr(plain.cost, name)
    assert result.cost.data_size == 45


def test_patience_ends_the_plain_rounds_only(context: Context) -> None:
    """At η = 1e-9 no loss falls: one round to set the best, then two without progress."""
    method = S2U(unlearn_rounds=6, unlearn_lr=1e-9, recover_rounds=50, recover_lr=1e-9)
    assert method.unlearn(replace(context, patience=2)).cost.rounds == 6 + 3


def test_what_earlier_requests_forgot_is_not_read(context: Context) -> None:
    """Client 2 and class 0 are forgotten already: 16 and 8 images of the other classes are left of 24 and 12."""
    context = guarded(context, range(36, 45))
    earlier = (UnlearningRequest("client", (2,)), UnlearningRequest("class", (0,)))
    result = S2U().unlearn(replace(context, forgotten=(*earlier, context.request)))
    assert result.cost.data_size == 16 + 8
    # Asked again, the leaver is among what is forgotten already.
    again = S2U().unlearn(replace(context, forgotten=(*earlier, context.request, context.request)))
    assert again.cost.data_size == 16


def test_nobody_left_to_stay(context: Context) -> None:
    everybody = UnlearningRequest("client", (0, 1, 2))
    for method in (S2U(), S2U(beta=0.0), S2U(alpha=2.0)):
        result = method.unlearn(replace(context, request=everybody, forgotten=(everybody,)))
        assert equal(result.state, context.state)
        assert (result.cost.rounds, result.cost.data_size) == (0, 0)


def test_divergence_is_reported(context: Context) -> None:
    result = S2U(unlearn_lr=1e30).unlearn(context)
    assert result.diverged
    assert equal(result.state, context.state)

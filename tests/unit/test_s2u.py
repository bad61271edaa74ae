"""Scale-to-unlearn against FedAvg rounds, a case by hand, and what it may read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from quickdrop_bench.core.errors import BadInput, Unsupported
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.federation.federation import Federation, PhaseResult
from quickdrop_bench.federation.local import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods.base import ClientData, Context, check_support
from quickdrop_bench.methods.s2u import S2U
from quickdrop_bench.models.convnet import ConvNet
from tests.conftest import Guarded

Clients = dict[int, LabelledSet]
Make = Callable[..., Federation]
TRAIN = Phase("fl-training", rounds=2, local_steps=3, batch_size=8, lr=0.2)
SCALED = Phase("unlearning", rounds=1, local_steps=3, batch_size=8, lr=0.1)
LEAVER = UnlearningRequest("client", (1,))
ONLY_SCALED = {"recover_rounds": 0, "unlearn_lr": 0.1}


def client_data(data: LabelledSet) -> ClientData:
    return ClientData(data, data, data)


def unreadable(data: LabelledSet) -> ClientData:
    return client_data(Guarded(data, set(data.rows.tolist())))


def make_context(federation: Federation, clients: Clients, request: UnlearningRequest = LEAVER) -> Context:
    state = federation.fresh_state(1, "init")
    return Context(
        federation, TRAIN, {i: client_data(d) for i, d in clients.items()}, state, request, (request,), seed=1
    )


def assert_equal(a: State, b: State) -> None:
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def moved(a: State, b: State) -> bool:
    return any(not torch.equal(a[name], b[name]) for name in a)


def fedavg(context: Context, clients: Clients) -> PhaseResult:
    return context.federation.run(context.state, clients, SCALED, context.seed)


def test_factors_of_one_are_a_fedavg_round(make_federation: Make, toy_clients: Clients) -> None:
    """α = β = 1 leaves every update as it is; at β = 1 so does the automatic α."""
    context = make_context(make_federation(), toy_clients)
    expected = fedavg(context, toy_clients)
    for alpha in (1.0, None):
        result = S2U(alpha=alpha, beta=1.0, **ONLY_SCALED).unlearn(context)
        assert_equal(result.state, expected.state)
        assert replace(result.cost, seconds=0) == replace(expected.cost, seconds=0)


def test_beta_of_zero_is_a_fedavg_round_without_the_leaver(make_federation: Make, toy_clients: Clients) -> None:
    """θ + (1/(1 − p_ℓ))·Σ_{i≠ℓ} p_i Δ_i: the weights of those who stay sum to one again."""
    context = make_context(make_federation(), toy_clients)
    context = replace(context, clients={**context.clients, 1: unreadable(toy_clients[1])})
    result = S2U(beta=0.0, **ONLY_SCALED).unlearn(context)
    assert_equal(result.state, fedavg(context, {i: toy_clients[i] for i in (0, 2)}).state)
    assert result.cost.data_size == 24 + 9


def test_leaver_is_read_while_beta_is_not_zero(make_federation: Make, toy_clients: Clients) -> None:
    context = make_context(make_federation(), toy_clients)
    context = replace(context, clients={**context.clients, 1: unreadable(toy_clients[1])})
    for method in (S2U(beta=0.1), S2U(beta=1.0)):
        with pytest.raises(AssertionError, match="forbidden"):
            method.unlearn(context)
    result = S2U(beta=0.1, unlearn_rounds=0).unlearn(context)  # the rounds that follow do not read it
    assert (result.cost.rounds, result.cost.data_size) == (2, 24 + 9)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 0.9])
def test_automatic_factors_sum_to_one(beta: float, share: float) -> None:
    alpha = S2U(beta=beta, max_alpha=100).stayers_factor(share)
    assert alpha * (1 - share) + beta * share == pytest.approx(1)
    assert alpha >= 1


def test_automatic_alpha_is_capped_and_a_given_one_is_not() -> None:
    assert S2U(beta=0.0).stayers_factor(0.99) == 10  # 1/(1 − 0.99) = 100
    assert S2U(beta=0.0, max_alpha=3).stayers_factor(0.99) == 3
    assert S2U(alpha=20.0).stayers_factor(0.99) == 20


def full_batch_update(state: State, data: LabelledSet, steps: int, lr: float) -> State:
    """Plain torch: Δ after some steps of full-batch gradient descent."""
    model = ConvNet(width=4, depth=2).build(1, 8, 3)
    model.load_state_dict(state)
    images, labels = data.take(torch.arange(len(data)))
    for _ in range(steps):
        gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient
    return {name: parameter.detach() - state[name] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("alpha", "factors"), [(None, (0.966667, 0.033333)), (1.5, (1.0, 0.033333))])
def test_two_clients_by_hand(
    alpha: float | None, factors: tuple[float, float], make_federation: Make, toy_clients: Clients
) -> None:
    """n = (24, 12), client 1 leaves: p_ℓ = 1/3, β·p_ℓ = 0.1/3 = 0.0333…; automatic α = (1 − 0.0333…)/(2/3) = 1.45,
    so α·p_0 = 0.9666…; α = 1.5 gives α·p_0 = 1. Two full-batch steps each, so that no batch order is in the way."""
    context = make_context(make_federation(), {i: toy_clients[i] for i in (0, 1)})
    context = replace(context, training=replace(TRAIN, batch_size=100))
    result = S2U(alpha=alpha, beta=0.1, unlearn_local_steps=2, **ONLY_SCALED).unlearn(context)
    updates = [full_batch_update(context.state, toy_clients[i], 2, 0.1) for i in (0, 1)]
    for name, value in result.state.items():
        expected = context.state[name] + factors[0] * updates[0][name] + factors[1] * updates[1][name]
        torch.testing.assert_close(value, expected, atol=2e-6, rtol=1e-4)


def test_several_leavers_count_together(make_federation: Make, toy_clients: Clients) -> None:
    """Clients 1 and 2 leave, n = (24, 12, 9): p_ℓ = 21/45; at β = 0.5, α = (1 − 10.5/45)/(24/45) = 34.5/24. So the
    weights are 34.5/45 for client 0 and half of their own for the others."""
    context = make_context(make_federation(), toy_clients, UnlearningRequest("client", (1, 2)))
    context = replace(context, training=replace(TRAIN, batch_size=100))
    result = S2U(beta=0.5, unlearn_local_steps=2, **ONLY_SCALED).unlearn(context)
    weights = {0: 34.5 / 45, 1: 6 / 45, 2: 4.5 / 45}
    assert sum(weights.values()) == pytest.approx(1)
    updates = {i: full_batch_update(context.state, toy_clients[i], 2, 0.1) for i in weights}
    for name, value in result.state.items():
        expected = context.state[name] + sum(weights[i] * updates[i][name] for i in weights)
        torch.testing.assert_close(value, expected, atol=2e-6, rtol=1e-4)


def test_one_stage_of_scaled_then_plain_rounds(make_federation: Make, toy_clients: Clients) -> None:
    """Its second half is what any method's recovery would be; its cost adds up, but data are counted once."""
    context = make_context(make_federation(), toy_clients)
    method = S2U(unlearn_lr=0.1, recover_rounds=2, recover_local_steps=2)
    result = method.unlearn(context)
    scaled = replace(method, recover_rounds=0).unlearn(context)
    staying = {i: toy_clients[i] for i in (0, 2)}
    plain = context.federation.run(scaled.state, staying, Phase("recovery", 2, 2, 8, 0.01), 1)
    assert_equal(result.state, plain.state)
    assert method.recover(context, result.state) is None
    assert result.cost.rounds == 1 + 2
    assert result.cost.sample_gradients == scaled.cost.sample_gradients + plain.cost.sample_gradients
    assert result.cost.upload_bytes == scaled.cost.upload_bytes + plain.cost.upload_bytes
    assert result.cost.seconds > 0
    assert result.cost.data_size == 45
    assert method.storage(context).server_bytes == method.storage(context).client_bytes == 0


def test_patience_ends_the_plain_rounds_only(make_federation: Make, toy_clients: Clients) -> None:
    """At η = 1e-9 no loss falls: one round to set the best, then two without progress."""
    context = replace(make_context(make_federation(), toy_clients), patience=2)
    result = S2U(unlearn_rounds=6, unlearn_lr=1e-9, recover_rounds=50, recover_lr=1e-9).unlearn(context)
    assert result.cost.rounds == 6 + 3


def test_client_order_does_not_matter_and_inputs_stay(make_federation: Make, toy_clients: Clients) -> None:
    context = make_context(make_federation(), toy_clients)
    before = {name: value.clone() for name, value in context.state.items()}
    first = S2U().unlearn(context)
    backward = replace(context, clients=dict(reversed(context.clients.items())))
    assert_equal(first.state, S2U().unlearn(backward).state)
    assert_equal(context.state, before)
    assert moved(first.state, before)


def test_what_earlier_requests_forgot_is_not_read(make_federation: Make, toy_clients: Clients) -> None:
    """Client 2 and class 0 are forgotten already: 16 and 8 images of the other classes are left of 24 and 12."""
    context = make_context(make_federation(), toy_clients)
    context = replace(context, clients={**context.clients, 2: unreadable(toy_clients[2])})
    earlier = (UnlearningRequest("client", (2,)), UnlearningRequest("class", (0,)))
    result = S2U().unlearn(replace(context, forgotten=(*earlier, LEAVER)))
    assert result.cost.data_size == 16 + 8
    # Asked again, the leaver is among what is forgotten already.
    again = S2U().unlearn(replace(context, forgotten=(*earlier, LEAVER, LEAVER)))
    assert again.cost.data_size == 16


def test_nobody_left_to_stay(make_federation: Make, toy_clients: Clients) -> None:
    everybody = UnlearningRequest("client", (0, 1, 2))
    context = make_context(make_federation(), toy_clients, everybody)
    for method in (S2U(), S2U(beta=0.0), S2U(alpha=2.0)):
        result = method.unlearn(context)
        assert_equal(result.state, context.state)
        assert (result.cost.rounds, result.cost.data_size) == (0, 0)


def test_divergence_is_reported(make_federation: Make, toy_clients: Clients) -> None:
    context = make_context(make_federation(), toy_clients)
    result = S2U(unlearn_lr=1e30).unlearn(context)
    assert result.diverged
    assert_equal(result.state, context.state)


def test_relearning_is_descent_on_the_leaver(make_federation: Make, toy_clients: Clients) -> None:
    context = make_context(make_federation(), toy_clients)
    method = S2U(relearn_rounds=1)
    assert method.can_relearn
    expected = context.federation.run(context.state, {1: toy_clients[1]}, Phase("relearning", 1, 3, 8, 0.01), 1)
    assert_equal(method.relearn(context, context.state).state, expected.state)


def test_serves_client_requests_only() -> None:
    kept = frozenset({"forget-data", "retain-data"})
    check_support("s2u", LEAVER, kept)
    with pytest.raises(Unsupported, match="class"):
        check_support("s2u", UnlearningRequest("class", (1,)), kept)


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta": -0.1},
        {"beta": 1.1},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"max_alpha": 0.5},
        {"unlearn_rounds": -1},
        {"unlearn_local_steps": 0},
        {"unlearn_lr": 0.0},
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        S2U(**wrong)

"""FedOSD: its loss, its directions, and its rounds by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.federation.passes import full_gradients, logits
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.functional.projection import without_span
from quickdrop_bench.methods.fed_osd import FedOsd, orthogonal_step, unlearning_loss
from tests.asked import asked
from tests.by_hand import assert_close, descended, equal, network
from tests.conftest import Clients, Make


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vector(state: State, names: State) -> Tensor:
    return torch.cat([state[name].flatten().double() for name in names])


def loss_and_gradient(
    state: State, data: LabelledSet, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[float, Tensor]:
    model = network()
    model.load_state_dict(state)
    value = loss(model(data.images[data.rows]), data.labels[data.rows])
    gradients = dict(zip(state, torch.autograd.grad(value, list(model.parameters())), strict=True))
    return float(value.detach()), vector(gradients, state)


def test_the_loss_is_least_where_the_label_is_denied() -> None:
    certain = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    assert float(unlearning_loss(certain, torch.tensor([0, 1]))) == pytest.approx(math.log(2))
    assert float(unlearning_loss(certain, torch.tensor([1, 0]))) == pytest.approx(0, abs=1e-6)
    half = torch.zeros(1, 2)  # −ln(1 − ¼)
    assert float(unlearning_loss(half, torch.tensor([0]))) == pytest.approx(math.log(4 / 3))


def test_directions() -> None:
    """Orthogonal to every row however they depend on each other and whatever their sizes; equal rows change nothing."""
    g, rows = random(50), random(4, 50, seed=1) * torch.tensor([1.0, 1e-4, 1e3, 0.0])[:, None]
    d = without_span(g, rows)
    fitted = rows[:3].double().T @ torch.linalg.lstsq(rows[:3].double().T, g.double()[:, None]).solution
    torch.testing.assert_close(d, g.double() - fitted[:, 0], atol=1e-10, rtol=1e-10)
    again = torch.cat([rows, rows, rows[:1] + rows[2:3]])
    torch.testing.assert_close(without_span(g, again), d, atol=1e-8, rtol=1e-6)
    step = orthogonal_step([g, 3 * g], list(rows))
    assert step is not None
    assert float(step.norm()) == pytest.approx(2 * float(g.norm()))
    assert float(step @ g.double()) >= 0
    for row in rows.double():
        assert abs(float(step @ row)) <= 1e-6 * float(step.norm() * row.norm())
    alone = orthogonal_step([g], [])
    torch.testing.assert_close(alone, g.double())
    assert orthogonal_step([g], [2 * g]) is None


@pytest.mark.parametrize("level", ["client", "class"])
def test_a_round_by_hand(level: str, make_federation: Make, toy_clients: Clients) -> None:
    context = asked(make_federation(), toy_clients, level)
    forget, retain = ([z for z in s.values() if len(z)] for s in (context.forget_data(), context.retain_data()))
    g_u = torch.stack([loss_and_gradient(context.state, z, unlearning_loss)[1] for z in forget]).mean(0)
    rows = torch.stack([loss_and_gradient(context.state, z, F.cross_entropy)[1] for z in retain])
    d = g_u - rows.T @ torch.linalg.lstsq(rows.T, g_u[:, None]).solution[:, 0]
    expected = vector(context.state, context.state) - 0.5 * d * g_u.norm() / d.norm()
    result = FedOsd(unlearn_rounds=1, unlearn_lr=0.5).unlearn(context)
    torch.testing.assert_close(vector(result.state, context.state), expected, atol=1e-6, rtol=1e-5)


def test_batches_of_a_pass_change_nothing(
    make_federation: Make, toy_clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of the mean over the whole set and logits in its order, once an image, also in short batches."""
    federation = make_federation()
    state = dict(reversed(federation.fresh_state(1, "init").items()))  # the gradient follows the state's order
    found = [(full_gradients(federation, state, toy_clients, F.cross_entropy), logits(federation, state, toy_clients))]
    monkeypatch.setattr("quickdrop_bench.federation.passes.BATCH_SIZE", 5)
    found += [(full_gradients(federation, state, toy_clients, F.cross_entropy), logits(federation, state, toy_clients))]
    for (gradients, first), (outputs, second) in found:
        assert (first.sample_gradients, second.sample_forwards) == (45, 45)
        for i, z in toy_clients.items():
            expected = loss_and_gradient(dict(reversed(state.items())), z, F.cross_entropy)[1]
            own = dict(zip(state, gradients[i].split([v.numel() for v in state.values()]), strict=True))
            torch.testing.assert_close(vector(own, dict(reversed(state.items()))), expected, atol=1e-6, rtol=1e-4)
            federation.load(state)
            torch.testing.assert_close(outputs[i], federation.model(z.images[z.rows]).detach(), atol=1e-6, rtol=1e-5)


def test_recovery_leads_nowhere_back(make_federation: Make, toy_clients: Clients) -> None:
    """The update of the only client that stays keeps its length and is orthogonal to θ − θ_request."""
    context = asked(make_federation(), {i: toy_clients[i] for i in (0, 1)})
    method = FedOsd(unlearn_rounds=2, unlearn_lr=0.5, recover_rounds=1, recover_lr=0.1)
    state = method.unlearn(context).state
    recovered = method.recover(context, state)
    assert recovered is not None
    start, origin = vector(state, state), vector(context.state, state)
    step, plain = (
        vector(recovered.state, state) - start,
        vector(descended(state, toy_clients[0], 2, 0.1), state) - start,
    )
    away = start - origin
    assert abs(float(step @ away)) <= 1e-5 * float(step.norm() * away.norm())
    expected = plain - (plain @ away) / (away @ away) * away
    torch.testing.assert_close(step, expected * plain.norm() / expected.norm(), atol=1e-6, rtol=1e-3)
    # With nothing unlearned there is no way back to avoid.
    same = method.recover(context, context.state)
    assert same is not None
    assert_close(same.state, descended(context.state, toy_clients[0], 2, 0.1), atol=1e-6)


def test_it_ends_where_nothing_orthogonal_is_left(
    make_federation: Make, toy_clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quickdrop_bench.methods.fed_osd.LEAST_SHARE", 2.0)
    context = asked(make_federation(), toy_clients)
    result = FedOsd(unlearn_rounds=9).unlearn(context)
    assert result.cost.rounds == 1
    assert equal(result.state, context.state)

"""ConDa on a training by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import tensor

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.federation.history import UpdateHistory, UpdateRecorder
from quickdrop_bench.methods.conda import ConDa
from quickdrop_bench.methods.context import Context
from tests.asked import asked, recorded
from tests.by_hand import equal
from tests.conftest import Clients, Make


@pytest.fixture
def by_hand(make_federation: Make, toy_clients: Clients) -> Context:
    """Two rounds of two clients with one sample each; client 1 leaves.

    θ_0 = 0; local models, four weights: round 1 (1, 0, 0, 2) and (1, 4, 0, 0), so θ = (1, 2, 0, 1); round 2
    (3, 2, 0, 1) and (−1, 4, 0, 2). So Φ_0 = (4, 2, 0, 3) and Φ_1 = (2, 8, 0, 2), and ρ = (2, ¼, 0/0, 1.5).
    """
    recorder = UpdateRecorder(Path("updates"), 2, 1)
    starts = ((0.0, 0.0, 0.0, 0.0), (1.0, 2.0, 0.0, 1.0))
    ends = (((1.0, 0.0, 0.0, 2.0), (1.0, 4.0, 0.0, 0.0)), ((3.0, 2.0, 0.0, 1.0), (-1.0, 4.0, 0.0, 2.0)))
    for k, start in enumerate(starts):
        for client, end in enumerate(ends[k]):
            recorder(k, client, 1, {"w": tensor(start)}, {"w": tensor(end)})
    context = asked(make_federation(), toy_clients, state={"w": tensor([8.0, 8.0, 8.0, 8.0])})
    history = UpdateHistory(Path("updates"), torch.device("cpu"))
    return replace(context, history=history, training=replace(context.training, rounds=2))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"alpha": 1.0, "factor": 1.0, "cap": 1.0}, (8, 2, 8, 8)),
        ({"alpha": 1.0, "factor": 4.0, "cap": 0.5}, (8, 4, 8, 8)),
        ({"alpha": 3.0, "factor": 0.5, "cap": 1.0}, (8, 1, 8, 6)),
        ({"alpha": 0.0, "factor": 0.5, "cap": 1.0}, (8, 8, 8, 8)),
        # Roles swapped: ρ = (½, 4, 0/0, ⅔).
        ({"alpha": 1.0, "factor": 0.75, "cap": 1.0, "released": True}, (3, 8, 8, 4)),
        # From the start of the round: Φ_0 = (3, 0, 0, 2), Φ_1 = (3, 6, 0, 1), ρ = (1, 0, 0/0, 2).
        ({"alpha": 1.5, "factor": 0.5, "cap": 1.0, "sums": "round"}, (4, 0, 8, 8)),
    ],
)
def test_a_training_by_hand(settings: dict[str, object], expected: tuple[float, ...], by_hand: Context) -> None:
    result = ConDa(**settings).unlearn(by_hand)
    assert equal(result.state, {"w": tensor(expected, dtype=torch.float32)})
    assert (result.cost.rounds, result.cost.data_size, result.cost.upload_bytes) == (0, 0, 0)
    assert ConDa().storage(by_hand) == Storage(server_bytes=4 * 4 * 2)


def test_clients_that_left_before_are_no_others(by_hand: Context) -> None:
    """If client 0 has left, nobody else is there to compare with; nor if the leaver was never recorded."""
    first = UnlearningRequest("client", (0,))
    stranger = UnlearningRequest("client", (5,))
    for context in (
        replace(by_hand, forgotten=(first, by_hand.request)),
        replace(by_hand, request=stranger, forgotten=(stranger,)),
    ):
        assert equal(ConDa(alpha=9.0).unlearn(context).state, context.state)


def test_sums_from_the_start_need_every_round(make_federation: Make, toy_clients: Clients) -> None:
    context, _ = recorded(asked(make_federation(), toy_clients), every=2)
    with pytest.raises(BadInput, match="--record-every 1"):
        ConDa().unlearn(context)
    assert not equal(ConDa(alpha=9.0, sums="round").unlearn(context).state, context.state)


def test_recovery_is_on_offer(make_federation: Make, toy_clients: Clients) -> None:
    context = asked(make_federation(), toy_clients)
    assert ConDa().recover(context, context.state) is None
    assert ConDa(recover_rounds=1).recover(context, context.state) is not None

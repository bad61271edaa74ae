"""Local steps, rounds, participation, distillation beside training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.distillation.in_situ import (
    Distillation,
    augmentation_positions,
    initial_synthetic_set,
    match,
)
from quickdrop_bench.federation.federation import Federation, RoundInfo, sample_clients
from quickdrop_bench.federation.phase import Phase, PhaseResult
from quickdrop_bench.federation.plan import batches
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.matching import ClassGradients, class_means, matching_distance
from tests.asked import synthetic_sets
from tests.by_hand import assert_close, descended, equal, minus, network, plus_weighted, shares
from tests.conftest import Clients, Make

TRAIN = Phase("fl-training", rounds=3, local_steps=4, batch_size=8, lr=0.1)


def loss_of(federation: Federation, state: State, data: LabelledSet) -> float:
    federation.load(state)
    with torch.no_grad():
        images, labels = data.take(torch.arange(len(data)))
        return float(F.cross_entropy(federation.model(images), labels))


@pytest.fixture
def federation(make_federation: Make) -> Federation:
    return make_federation()


@pytest.fixture
def state(federation: Federation) -> State:
    return federation.fresh_state(1, "init")


def test_batches_walk_without_replacement() -> None:
    drawn = list(batches(10, 4, 7, torch.Generator().manual_seed(0)))
    assert [len(b) for b in drawn] == [4, 4, 2, 4, 4, 2, 4]
    assert sorted(torch.cat(drawn[:3]).tolist()) == list(range(10))
    assert sorted(torch.cat(drawn[3:6]).tolist()) == list(range(10))
    assert drawn[0].tolist() != drawn[3].tolist()
    assert [len(b) for b in batches(3, 256, 2, torch.Generator())] == [3, 3]


@pytest.mark.parametrize("ascend", [False, True])
def test_one_round_equals_hand_written_fedavg(
    ascend: bool, federation: Federation, state: State, toy_clients: Clients
) -> None:
    result = federation.run(state, toy_clients, Phase("p", 1, 3, 100, 0.1, ascend=ascend), seed=1)
    updates = {i: minus(descended(state, d, 3, -0.1 if ascend else 0.1), state) for i, d in toy_clients.items()}
    assert_close(result.state, plus_weighted(state, updates, shares(toy_clients)))


def test_stop_loss_bounds_ascent(federation: Federation, state: State, toy_clients: Clients) -> None:
    free = federation.run(state, toy_clients, Phase("u", 1, 40, 100, 0.2, ascend=True), 1)
    bounded = federation.run(state, toy_clients, Phase("u", 1, 40, 100, 0.2, ascend=True, stop_loss=2.0), 1)
    assert bounded.cost.sample_gradients < free.cost.sample_gradients
    assert 1.2 < loss_of(federation, bounded.state, toy_clients[0]) < loss_of(federation, free.state, toy_clients[0])


def test_inputs_stay_empty_clients_stay_out_and_order_does_not_matter(
    federation: Federation, state: State, toy_clients: Clients
) -> None:
    seen: list[RoundInfo] = []
    copy = {n: v.clone() for n, v in state.items()}
    clients = {**toy_clients, 3: toy_clients[0].subset(torch.empty(0, dtype=torch.int64))}
    with_empty = federation.run(state, clients, TRAIN, 1, on_round=seen.append)
    assert equal(state, copy)
    assert equal(with_empty.state, federation.run(state, dict(reversed(toy_clients.items())), TRAIN, 1).state)
    assert {i.participants for i in seen} == {(0, 1, 2)}
    assert equal(federation.run(state, toy_clients, Phase("p", 2, 3, 8, 0.0), 1).state, state)
    nobody = {3: clients[3]}
    assert federation.run(state, nobody, TRAIN, 1) == PhaseResult(state, Cost())


def test_cost_counters(federation: Federation, state: State, toy_clients: Clients) -> None:
    cost = federation.run(state, toy_clients, TRAIN, 1).cost
    parameters = sum(p.numel() for p in network().parameters())
    # client 2 has 9 images: its batches are 8, 1, 8, 1; client 1: 8, 4, 8, 4; client 0: 8 × 4
    assert cost.sample_gradients == 3 * (32 + 24 + 18)
    assert (cost.rounds, cost.data_size) == (3, 45)
    assert cost.upload_bytes == 3 * 3 * 4 * parameters
    assert cost.second_order_sample_gradients == 0
    assert cost.seconds > 0


def test_partial_participation(federation: Federation, state: State, toy_clients: Clients) -> None:
    """Who does not take part does not distil either."""
    seen: list[RoundInfo] = []
    phase = Phase("fl-training", rounds=12, local_steps=1, batch_size=8, lr=0.1, participation=0.34)
    synthetic, untouched = synthetic_sets(toy_clients), synthetic_sets(toy_clients)
    federation.run(state, toy_clients, replace(phase, rounds=1), 1, synthetic=synthetic, on_round=seen.append)
    moved = {i for i in synthetic if not torch.equal(synthetic[i].images, untouched[i].images)}
    assert moved == set(seen[0].participants)
    federation.run(state, toy_clients, phase, 1, on_round=seen.append)
    assert {len(i.participants) for i in seen} == {1}
    assert {i.participants[0] for i in seen} == {0, 1, 2}
    assert sample_clients(list(range(100)), 0.1, generator(1)) == sample_clients(list(range(100)), 0.1, generator(1))
    assert len(sample_clients(list(range(100)), 0.1, generator(1))) == 10
    assert sample_clients([4, 7], 0.01, generator(1)) in ([4], [7])


def test_distillation_does_not_change_the_global_model(
    federation: Federation, state: State, toy_clients: Clients
) -> None:
    synthetic = synthetic_sets(toy_clients)
    with_it = federation.run(state, toy_clients, TRAIN, 1, synthetic=synthetic)
    # Up to rounding: the batch's gradient is summed class by class.
    torch.testing.assert_close(with_it.state, federation.run(state, toy_clients, TRAIN, 1).state, rtol=1e-4, atol=1e-6)
    assert 0 < with_it.cost.distillation_seconds < with_it.cost.seconds
    assert with_it.cost.second_order_sample_gradients > 0
    assert any(not torch.equal(s.images, toy_clients[i].take(torch.arange(1))[0]) for i, s in synthetic.items())


def test_fresh_states_depend_on_seed_and_purpose_only(federation: Federation) -> None:
    torch.manual_seed(123)
    first = federation.fresh_state(1, "init")
    torch.manual_seed(456)
    assert equal(first, federation.fresh_state(1, "init"))
    assert not equal(first, federation.fresh_state(2, "init"))
    assert not equal(first, federation.fresh_state(1, "retrain", "init"))


# Synthetic sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3.5, 100])
def test_sizes_of_synthetic_sets(toy_clients: Clients, scale: float) -> None:
    data = toy_clients[2].subset(torch.tensor([0, 1, 2, 3, 4, 6, 7]))  # classes 0, 1, 2 with 3, 3, 1 images
    counts = torch.bincount(data.own_labels(), minlength=4)
    synthetic = initial_synthetic_set(data, scale, generator(0))
    got = torch.bincount(synthetic.labels, minlength=4)
    assert got.tolist() == [-(-int(n) // scale) if n else 0 for n in counts]
    torch.testing.assert_close(synthetic.images, data.images[synthetic.origin])
    assert set(synthetic.origin.tolist()) <= set(data.rows.tolist())


def test_scale_one_is_the_data_itself_in_order(toy_clients: Clients) -> None:
    synthetic = initial_synthetic_set(toy_clients[0], 1, generator(0)).as_labelled()
    for own, expected in zip(synthetic.take(torch.arange(24)), toy_clients[0].take(torch.arange(24)), strict=True):
        assert torch.equal(own, expected)
    assert initial_synthetic_set(toy_clients[0], 1, generator(0)).fixed_classes == {0, 1, 2}


def test_augmentation_is_one_to_one_and_real(toy_clients: Clients) -> None:
    data = toy_clients[0]
    synthetic = initial_synthetic_set(data, 3, generator(0))
    positions = augmentation_positions(data, synthetic, generator(1))
    _, labels = data.take(positions)
    assert torch.equal(torch.bincount(labels), torch.bincount(synthetic.labels))
    assert len(set(positions.tolist())) == len(positions)


Recorded = tuple[ClassGradients, list[torch.Tensor], list[int]]


def recorded(data: LabelledSet) -> Recorded:
    """What :func:`match` needs of a model and a batch: the whole data set."""
    torch.manual_seed(0)
    model = network()
    images, labels = data.take(data.own_labels().argsort())
    classes, counts = labels.unique(return_counts=True)
    gradients, sizes = ClassGradients(model), counts.tolist()
    found = gradients.of_batch(lambda: F.cross_entropy(model(images), labels), Classes.of_sizes(sizes, images))
    return gradients, class_means(found[2], sizes), classes.tolist()


def test_matching_moves_only_classes_of_the_batch_and_never_fixed_ones(toy_clients: Clients) -> None:
    data = toy_clients[0]
    batch = recorded(data.with_classes({0, 1}, keep=True))
    synthetic = initial_synthetic_set(data, 4, generator(0))
    synthetic.fixed_classes = frozenset({1})
    start = synthetic.images.clone()
    result = match(*batch, synthetic, Distillation(1, 0.1, 0.5, 256), generator(2))
    moved = (synthetic.images != start).flatten(1).any(1)
    assert set(synthetic.labels[moved].tolist()) == {0}
    assert result.samples == int((synthetic.labels == 0).sum())


def test_image_steps_and_batch_size(toy_clients: Clients) -> None:
    batch = recorded(toy_clients[0])
    none = initial_synthetic_set(toy_clients[0], 4, generator(0))
    start = none.images.clone()
    assert match(*batch, none, Distillation(0, 0.1, 0.5, 256), generator(2)).samples == 0
    assert torch.equal(none.images, start)
    capped = match(*batch, none, Distillation(3, 0.1, 0.0, 1), generator(2))
    assert capped.samples == 3 * 3  # three classes, one image each, three steps
    assert int((none.images != start).flatten(1).any(1).sum()) == 3


def test_two_steps_follow_momentum_sgd(toy_clients: Clients) -> None:
    """Against torch.optim.SGD on all images of the set."""
    batch = recorded(toy_clients[0])
    ours = initial_synthetic_set(toy_clients[0], 4, generator(0))
    theirs = [ours.images[ours.labels == c].clone().requires_grad_() for c in range(3)]
    optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=0.5)
    gradients, targets, _ = batch
    for _ in range(2):
        optimizer.zero_grad()
        images, classes = torch.cat(theirs), Classes.of_sizes([len(t) for t in theirs], theirs[0])
        matching_distance(targets, gradients.synthetic(images, classes.index, classes)).backward()
        optimizer.step()
        match(*batch, ours, Distillation(1, 0.1, 0.5, 256), generator(2))
    assert torch.equal(ours.labels, initial_synthetic_set(toy_clients[0], 4, generator(0)).labels)
    for c in range(3):
        torch.testing.assert_close(ours.images[ours.labels == c], theirs[c].detach())

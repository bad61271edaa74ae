"""Synthetic images of groups within a client's class, and what requests for samples touch of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.groups import CLASSES, parts_of, random_groups
from quickdrop_bench.data.labelled import concatenate
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.distillation.in_situ import SyntheticSet, augmentation_positions, initial_synthetic_set
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.methods import METHODS, Context, small_sets
from quickdrop_bench.methods.context import ClientData
from tests.by_hand import equal
from tests.conftest import TINY, Clients, Make, Run

TRAIN = Phase("fl-training", rounds=2, local_steps=4, batch_size=8, lr=0.1)


def stream(*purpose: object) -> torch.Generator:
    return generator(1, *purpose)


def groups_of(clients: Clients, count: int) -> dict[int, torch.Tensor]:
    return {i: random_groups(d.own_labels(), count, stream("groups", i)) for i, d in clients.items()}


def distilled(
    federation: Federation, clients: Clients, scale: float, groups: dict[int, torch.Tensor] | None = None
) -> tuple[State, dict[int, SyntheticSet]]:
    sets = {
        i: initial_synthetic_set(d, scale, stream("synthetic", i), groups and groups[i]) for i, d in clients.items()
    }
    return federation.run(federation.fresh_state(1, "init"), clients, TRAIN, 1, synthetic=sets).state, sets


def test_each_class_is_divided_at_random_as_equally_as_possible() -> None:
    labels = torch.tensor([0] * 10 + [1] * 3 + [2])[torch.randperm(14, generator=stream("labels"))]
    groups = random_groups(labels, 4, stream("a"))
    assert [sorted(groups[labels == c].bincount(minlength=4).tolist()) for c in range(3)] == [
        [2, 2, 3, 3],
        [0, 1, 1, 1],
        [0, 0, 0, 1],
    ]
    assert torch.equal(groups, random_groups(labels, 4, stream("a")))
    assert not torch.equal(groups, random_groups(labels, 4, stream("b")))
    assert not random_groups(labels, 1, stream("a")).any()
    assert parts_of(labels, None) is labels
    assert torch.equal(parts_of(labels, groups) % CLASSES, labels)


def test_every_group_has_images_of_its_own(toy_clients: Clients) -> None:
    data = toy_clients[0]
    groups = random_groups(data.own_labels(), 2, stream("groups"))
    own = initial_synthetic_set(data, 3, stream("synthetic"), groups)
    parts = parts_of(data.own_labels(), groups)
    sizes, found = (
        dict(zip(*p.unique(return_counts=True), strict=True)) for p in (parts, parts_of(own.labels, own.groups))
    )
    assert {int(p): int(n) for p, n in found.items()} == {int(p): -(-int(n) // 3) for p, n in sizes.items()}
    at = torch.searchsorted(data.rows, own.origin)
    assert torch.equal(own.groups, groups[at])
    assert not own.fixed_classes
    assert initial_synthetic_set(data, 1, stream("synthetic"), groups).fixed_classes == {0, 1, 2}


def test_one_group_is_quickdrop_bit_for_bit(make_federation: Make, toy_clients: Clients) -> None:
    plain, own = distilled(make_federation(static=False), toy_clients, 3)
    state, grouped = distilled(make_federation(), toy_clients, 3, groups_of(toy_clients, 1))
    assert equal(state, plain)
    for i, one in own.items():
        assert torch.equal(one.images, grouped[i].images)
        assert torch.equal(one.origin, grouped[i].origin)
        assert one.fixed_classes == grouped[i].fixed_classes
    federation = make_federation()
    assert not torch.equal(
        own[0].images, distilled(federation, toy_clients, 3, groups_of(toy_clients, 2))[1][0].images[:8]
    )


def test_groups_leave_training_as_it_is_on_either_engine(make_federation: Make, toy_clients: Clients) -> None:
    """Up to rounding; only the loop knows groups, so a federation with the static engine takes it too."""
    plain, _ = distilled(make_federation(), toy_clients, 3)
    found = [distilled(make_federation(static=s), toy_clients, 3, groups_of(toy_clients, 3)) for s in (False, True)]
    torch.testing.assert_close(found[0][0], plain, rtol=1e-4, atol=1e-6)
    assert equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1][0].images, found[1][1][0].images)


def test_images_are_moved_by_their_own_group_alone(make_federation: Make, toy_clients: Clients) -> None:
    """What a group's images become is what they would become if its samples were all that the client has."""
    federation, data = make_federation(), toy_clients[0].with_classes((1,), keep=True)
    groups = random_groups(data.own_labels(), 2, stream("groups"))
    one_step = Phase("fl-training", rounds=1, local_steps=1, batch_size=100, lr=0.1)
    both = initial_synthetic_set(data, 3, stream("synthetic"), groups)
    before = both.images.clone()
    federation.run(federation.fresh_state(1, "init"), {0: data}, one_step, 1, synthetic={0: both})
    for g in (0, 1):
        alone = data.subset(torch.nonzero(groups == g).flatten())
        mine = both.groups == g
        own = SyntheticSet(before[mine], both.labels[mine], both.origin[mine], torch.zeros_like(before[mine]))
        federation.run(federation.fresh_state(1, "init"), {0: alone}, one_step, 1, synthetic={0: own})
        torch.testing.assert_close(both.images[mine], own.images, rtol=1e-4, atol=1e-6)
        assert not torch.equal(own.images, before[mine])


@pytest.fixture
def context(make_federation: Make, toy_clients: Clients) -> Context:
    """Three groups a class; the request is about a whole group of class 2 on client 0."""
    federation, groups = make_federation(), groups_of(toy_clients, 3)
    state, sets = distilled(federation, toy_clients, 2, groups)
    clients = {}
    for i, d in toy_clients.items():
        extra = concatenate(d.subset(augmentation_positions(d, sets[i], stream("augmentation", i))))
        start = initial_synthetic_set(d, 2, stream("synthetic", i), groups[i]).as_labelled()
        clients[i] = ClientData(d, start, extra, sets[i], groups[i])
    wanted = (toy_clients[0].own_labels() == 2) & (groups[0] == 1)
    request = UnlearningRequest("sample", tuple(toy_clients[0].rows[wanted].tolist()))
    return Context(federation, TRAIN, clients, state, request, (request,), seed=1)


def test_a_group_is_forgotten_on_its_own_images_and_the_others_are_kept(context: Context) -> None:
    sets = {i: c.synthetic.as_labelled() for i, c in context.clients.items() if c.synthetic}
    forget = small_sets.forget_sets(context, sets, augment=False)
    retain = small_sets.retain_sets(context, sets, augment=False)
    own = context.clients[0].synthetic
    assert own is not None
    touched = (own.labels == 2) & (own.groups == 1)
    assert {i: len(z) for i, z in forget.items()} == {0: int(touched.sum()), 1: 0, 2: 0}
    assert forget[0].rows.tolist() == torch.nonzero(touched).flatten().tolist()
    assert [len(retain[i]) for i in range(3)] == [len(own) - int(touched.sum()), len(sets[1]), len(sets[2])]
    with_real = small_sets.retain_sets(context, sets, augment=True)
    assert {*with_real[0].dataset_rows().tolist()}.isdisjoint(context.request.targets)


@pytest.mark.parametrize("name", ["quickdrop", "random-subset"])
def test_all_groups_of_a_class_are_the_class(name: str, context: Context) -> None:
    method = METHODS[name](unlearn_local_steps=3, recover_local_steps=2)
    rows = [r for c in context.clients.values() for r in c.original.with_classes((2,), keep=True).rows.tolist()]
    found = []
    for request in (UnlearningRequest("class", (2,)), UnlearningRequest("sample", tuple(rows))):
        asked = replace(context, request=request, forgotten=(request,))
        unlearned = method.unlearn(asked).state
        found += [unlearned, method.recover(asked, unlearned).state]
    assert equal(found[0], found[2])
    assert equal(found[1], found[3])


def test_a_spec_without_groups_is_what_it_was() -> None:
    assert "groups" not in FederationSpec().resolved()
    assert FederationSpec(groups=4).resolved()["groups"] == 4
    with pytest.raises(BadInput, match="--groups 0"):
        FederationSpec(groups=0)
    with pytest.raises(BadInput, match="--groups 2: synthetic sets of groups are not fine-tuned"):
        FederationSpec(groups=2, fine_tune=1)


def test_groups_on_the_command_line(run: Run) -> None:
    """More groups: more images are stored, and fewer are touched by the same scattered samples."""
    touched, stored = [], []
    for groups in ("1", "6"):
        assert run("train", *TINY, "--groups", groups, "--artifacts-dir", groups)[0] == 0
        about = json.loads(run("show", "latest", "--json", "--artifacts-dir", groups)[1])
        stored.append(about["synthetic_images"])
        code, out, _ = run("unlearn", "latest", "--samples", "9", "--json", "--artifacts-dir", groups)
        assert code == 0
        entry = json.loads(out)
        touched.append(entry["after"]["touched_share"])
        assert entry["cost"]["unlearning"]["data_size"] > 0
    assert stored[0] < stored[1]
    assert touched[0] > 3 * touched[1]

"""What every registered method promises, and what ties the three of them together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.distillation.in_situ import augmentation_positions, initial_synthetic_set
from quickdrop_bench.errors import BadInput, Unsupported
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.local import Phase
from quickdrop_bench.functional.aggregation import State, is_finite
from quickdrop_bench.methods import METHODS, Context, Method, load_plugins
from quickdrop_bench.methods.base import ClientData, check_support
from quickdrop_bench.seeding import generator
from tests.conftest import toy_images

Make = Callable[..., Federation]
TRAIN = Phase("fl-training", rounds=4, local_steps=6, batch_size=8, lr=0.2)
STEPS = {"unlearn_local_steps": 20, "unlearn_stop_loss": 4.0, "unlearn_lr": 0.1, "recover_local_steps": 3}
TINY: dict[str, dict[str, object]] = {"retrain-or": {}, "sga-or": STEPS, "quickdrop": STEPS}
"""A setting per method that works on the toy federation; a method without one fails collection."""

load_plugins()
for _name in METHODS:
    assert _name in TINY, f"{_name} has no tiny test setting in {__file__}"

CASES = [pytest.param(name, level, id=f"{name}-{level}") for name in METHODS for level in sorted(METHODS[name].levels)]


class Guarded(LabelledSet):
    """Remembers the rows that were read; raises on forbidden ones."""

    seen: set[int]
    forbidden: set[int]

    def __init__(self, source: LabelledSet, forbidden: set[int]) -> None:
        super().__init__(source.images, source.labels, source.rows)
        object.__setattr__(self, "forbidden", forbidden)

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        read = set(self.rows[positions].tolist())
        assert not read & self.forbidden, "forbidden data were read"
        return super().take(positions)

    def subset(self, positions: Tensor) -> LabelledSet:
        return Guarded(super().subset(positions), self.forbidden)


def equal(a: State, b: State) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def request_for(level: str) -> UnlearningRequest:
    return UnlearningRequest(level, (1,))


def make_context(
    federation: Federation, clients: dict[int, LabelledSet], level: str = "class", scale: float = 4.0
) -> Context:
    """A federation trained with distillation, and a request to forget class 1 or client 1."""
    synthetic = {i: initial_synthetic_set(d, scale, generator(1, "synthetic", i)) for i, d in clients.items()}
    start = federation.fresh_state(1, "init")
    state = federation.run(start, clients, TRAIN, 1, synthetic=synthetic).state
    data = {}
    for i, original in clients.items():
        positions = augmentation_positions(original, synthetic[i], generator(1, "augmentation", i))
        data[i] = ClientData(original, synthetic[i], LabelledSet.of(*original.take(positions)))
    request = request_for(level)
    return Context(federation, TRAIN, data, state, request, (request,), seed=1)


def forget_rows(context: Context) -> set[int]:
    if context.request.level == "class":
        labels = context.clients[0].original.labels
        return set(torch.nonzero(labels == 1).flatten().tolist())
    return set(context.clients[1].original.rows.tolist())


def guard(context: Context, forbidden: set[int]) -> Context:
    clients = {i: replace(c, original=Guarded(c.original, forbidden)) for i, c in context.clients.items()}
    return replace(context, clients=clients)


def accuracies(federation: Federation, state: State) -> tuple[float, float]:
    federation.load(state)
    result = class_accuracy(federation.model, LabelledSet.of(*toy_images(90, seed=5)), 3)
    return result.over((1,)), result.without((1,))


def tiny(name: str) -> Method:
    return METHODS[name](**TINY[name])


def serve(method: Method, context: Context) -> State:
    unlearned = method.unlearn(context)
    recovered = method.recover(context, unlearned.state)
    return (recovered or unlearned).state


@pytest.mark.parametrize(("name", "level"), CASES)
def test_contract(name: str, level: str, make_federation: Make, toy_clients: dict[int, LabelledSet]) -> None:
    context = make_context(make_federation(), toy_clients, level)
    before = {n: v.clone() for n, v in context.state.items()}
    images = {i: c.synthetic.images.clone() for i, c in context.clients.items() if c.synthetic}
    method = tiny(name)
    first = serve(method, context)
    assert is_finite(first)
    assert {n: v.shape for n, v in first.items()} == {n: v.shape for n, v in before.items()}
    assert equal(context.state, before)
    assert all(torch.equal(images[i], c.synthetic.images) for i, c in context.clients.items() if c.synthetic)
    assert equal(serve(method, context), first)
    assert method.storage_bytes(context) >= 0


@pytest.mark.parametrize(("name", "level"), CASES)
def test_what_is_forgotten_is_not_read_after_unlearning(
    name: str, level: str, make_federation: Make, toy_clients: dict[int, LabelledSet]
) -> None:
    context = make_context(make_federation(), toy_clients, level)
    guarded = guard(context, forget_rows(context))
    method = tiny(name)
    if "forget-data" in method.needs:
        with pytest.raises(AssertionError, match="forbidden"):
            method.unlearn(guarded)
        unlearned = method.unlearn(context)
    else:
        unlearned = method.unlearn(guarded)
    method.recover(guarded, unlearned.state)


def test_quickdrop_never_reads_original_data(make_federation: Make, toy_clients: dict[int, LabelledSet]) -> None:
    context = make_context(make_federation(), toy_clients)
    everything = set(range(45))
    assert is_finite(serve(tiny("quickdrop"), guard(context, everything)))
    with pytest.raises(AssertionError, match="forbidden"):
        serve(tiny("sga-or"), guard(context, everything))


def test_unlearning_reads_the_forget_set_only(make_federation: Make, toy_clients: dict[int, LabelledSet]) -> None:
    context = make_context(make_federation(), toy_clients)
    tiny("sga-or").unlearn(guard(context, set(range(45)) - forget_rows(context)))


@pytest.mark.parametrize("name", list(METHODS))
def test_class_is_forgotten_and_the_rest_kept(
    name: str, make_federation: Make, toy_clients: dict[int, LabelledSet]
) -> None:
    federation = make_federation()
    context = make_context(federation, toy_clients)
    f_before, r_before = accuracies(federation, context.state)
    f_after, r_after = accuracies(federation, serve(tiny(name), context))
    assert f_before > 0.8
    assert r_before > 0.8
    assert f_after < f_before - 0.5
    assert r_after > 0.75


def test_without_distillation_at_scale_one_quickdrop_is_sga(
    make_federation: Make, toy_clients: dict[int, LabelledSet]
) -> None:
    """s = 1, ς_S = 0 and no augmentation: S is D, so both do the same steps on the same batches."""
    federation = make_federation()
    context = make_context(federation, toy_clients)
    clients = {
        i: replace(c, synthetic=initial_synthetic_set(c.original, 1, generator(1, "synthetic", i)))
        for i, c in context.clients.items()
    }
    context = replace(context, clients=clients)
    steps = {"unlearn_rounds": 2, "unlearn_local_steps": 2, "recover_local_steps": 3}
    quickdrop, sga = METHODS["quickdrop"](**steps, augment=False), METHODS["sga-or"](**steps)
    ours, theirs = quickdrop.unlearn(context), sga.unlearn(context)
    assert equal(ours.state, theirs.state)
    assert not equal(ours.state, context.state)
    assert equal(serve(quickdrop, context), serve(sga, context))
    assert replace(ours.cost, seconds=0) == replace(theirs.cost, seconds=0)


def test_retraining_without_a_forget_set_is_the_original_training(
    make_federation: Make, toy_clients: dict[int, LabelledSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation()
    context = make_context(federation, toy_clients)
    nothing = replace(context, forgotten=())
    initial = federation.fresh_state(1, "init")
    monkeypatch.setattr(federation, "fresh_state", lambda *a: initial)
    monkeypatch.setattr("quickdrop_bench.methods.retrain.replace", lambda phase, **changes: phase)
    assert equal(METHODS["retrain-or"]().unlearn(nothing).state, context.state)


def test_costs_of_quickdrop(make_federation: Make, toy_clients: dict[int, LabelledSet]) -> None:
    context = make_context(make_federation(), toy_clients)
    method = METHODS["quickdrop"](unlearn_local_steps=2, recover_local_steps=3)
    unlearned = method.unlearn(context)
    recovered = method.recover(context, unlearned.state)
    assert recovered is not None
    labels = torch.cat([c.synthetic.labels for c in context.clients.values() if c.synthetic])
    forget, retain = int((labels == 1).sum()), int((labels != 1).sum())
    assert (unlearned.cost.rounds, unlearned.cost.data_size) == (1, forget)
    assert (recovered.cost.rounds, recovered.cost.data_size) == (2, 2 * retain)  # S and A
    assert unlearned.cost.sample_gradients == 2 * forget  # full batches: S_f is smaller than |B|
    image_bytes = 8 * 8 * 4
    assert method.storage_bytes(context) == 2 * len(labels) * image_bytes
    assert METHODS["quickdrop"](augment=False).storage_bytes(context) == len(labels) * image_bytes


def test_nothing_left_to_retain_is_no_crash(make_federation: Make, toy_clients: dict[int, LabelledSet]) -> None:
    context = make_context(make_federation(), toy_clients)
    context = replace(context, forgotten=(UnlearningRequest("class", (0, 1, 2)),))
    for name in METHODS:
        assert is_finite(serve(tiny(name), context))


def test_unsupported_requests_are_refused_before_any_compute() -> None:
    everything = frozenset({"forget-data", "retain-data", "synthetic-sets"})
    for name in METHODS:
        check_support(name, request_for("class"), everything)
    with pytest.raises(Unsupported, match="synthetic-sets"):
        check_support("quickdrop", request_for("class"), frozenset({"retain-data"}))
    with pytest.raises(BadInput, match="did you mean quickdrop"):
        check_support("quikdrop", request_for("class"), everything)
    with pytest.raises(BadInput, match="level"):
        UnlearningRequest("galaxy", (1,))

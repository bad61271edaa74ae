"""What every registered method promises at every level that it declares, and what ties some of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import product

import pytest
import torch

from quickdrop_bench.core.errors import BadInput, Unsupported
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import LEVELS, UnlearningRequest
from quickdrop_bench.distillation.in_situ import initial_synthetic_set
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.federation.faults import Faults
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.functional.aggregation import State, is_finite
from quickdrop_bench.methods import METHODS, small_sets
from quickdrop_bench.methods.registry import check_support
from tests.asked import guarded
from tests.by_hand import equal
from tests.conftest import Clients, Make, toy_images
from tests.contract.tiny import (
    CASES,
    CONTROLS,
    TRAIN,
    Asked,
    accuracies,
    forget_rows,
    make_context,
    request_for,
    serve,
    tiny,
)

FAULTS = Faults(dropout_rate=0.3, straggler_rate=0.2, corrupt_rate=0.2)

EVERYTHING = frozenset({"forget-data", "retain-data", "real-subset", "synthetic-sets", "update-history"})


@pytest.fixture
def separate_clients() -> Clients:
    """Client 1 alone holds class 1, so that forgetting the client and forgetting the class are the same."""
    images, labels = toy_images(45)
    ones, rest = torch.nonzero(labels == 1).flatten(), torch.nonzero(labels != 1).flatten()
    return {i: LabelledSet(images, labels, rows) for i, rows in enumerate((rest[:16], ones, rest[16:]))}


@pytest.mark.parametrize(("name", "level"), CASES)
def test_finite_the_same_again_in_any_order_and_inputs_untouched(name: str, level: str, asked: Asked) -> None:
    context = asked(level)
    before = {n: v.clone() for n, v in context.state.items()}
    images = {i: (c.synthetic.images.clone(), c.subset.images.clone()) for i, c in context.clients.items()}
    method = tiny(name)
    first = serve(method, context)
    assert is_finite(first)
    assert {n: v.shape for n, v in first.items()} == {n: v.shape for n, v in before.items()}
    assert equal(first, before) == (name == "none")
    assert equal(context.state, before)
    for i, c in context.clients.items():
        assert torch.equal(images[i][0], c.synthetic.images)
        assert torch.equal(images[i][1], c.subset.images)
    backward = replace(context, clients=dict(reversed(context.clients.items())))
    assert equal(serve(method, backward), first)
    assert min(method.storage(context).metrics().values()) >= 0


@pytest.mark.parametrize("faults", [None, FAULTS], ids=["", "faults"])
@pytest.mark.parametrize(("name", "level"), CASES)
def test_only_declared_data_are_read(name: str, level: str, faults: Faults | None, asked: Asked) -> None:
    """Data that a method does not declare raise on access; what is to be forgotten does after unlearning."""
    context = asked(level, faults=faults)
    method, everything = tiny(name), set(range(45))
    forget = forget_rows(context)
    forbidden = {"forget-data": forget, "retain-data": everything - forget}
    undeclared = set().union(*(rows for kind, rows in forbidden.items() if kind not in method.needs))
    withheld = {} if "update-history" in method.needs else {"history": None}
    unlearned = method.unlearn(replace(guarded(context, undeclared), **withheld))
    method.recover(guarded(context, undeclared | forget), unlearned.state)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("name", "level"), CASES)
def test_a_request_is_served_where_clients_fail(name: str, level: str, seed: int, asked: Asked) -> None:
    """In training as well as in every stage: it ends finite, and the same again."""
    context = replace(asked(level, faults=FAULTS), seed=seed)
    method = tiny(name)
    first = serve(method, context)
    assert is_finite(first)
    assert equal(serve(method, context), first)
    if method.can_relearn:
        relearned = method.relearn(context, first)
        assert is_finite(relearned.state)
        assert not relearned.diverged


LIKE_SAMPLES = [
    (name, level)
    for name, level in product(METHODS, ("class", "client"))
    if METHODS[name].levels >= {level, "sample"} and (name, level) != ("federaser", "client")
]
"""All but FedEraser's clients: its first round without one costs no gradient, as θ_0 never saw any."""


@pytest.mark.parametrize(("name", "level"), LIKE_SAMPLES)
def test_all_samples_of_a_class_or_a_client_are_that_class_or_client(name: str, level: str, asked: Asked) -> None:
    """PGA starts from the others' mean where a client's updates are recorded; here they are not."""
    context = asked(level)
    if name == "pga":
        context = replace(context, history=None)
    samples = UnlearningRequest("sample", tuple(sorted(forget_rows(context), reverse=True)))
    as_samples = replace(context, request=samples, forgotten=(samples,))
    method = tiny(name)
    first = serve(method, context)
    assert equal(serve(method, as_samples), first)
    if method.can_relearn:
        assert equal(method.relearn(as_samples, first).state, method.relearn(context, first).state)


@pytest.mark.parametrize("name", ["quickdrop", "random-subset"])
def test_small_sets_that_samples_touch_are_ascended_on_and_learnt_from_no_more(name: str, asked: Asked) -> None:
    """One sample of class 0 on client 0: of S, all of that class there; of A, the one sample if it is in it."""
    context = asked()
    row = int(context.clients[0].augmentation.with_classes((0,), keep=True).dataset_rows()[0])
    request = UnlearningRequest("sample", (row,))
    context = replace(context, request=request, forgotten=(request,))
    sets = {i: c.synthetic.as_labelled() if name == "quickdrop" else c.subset for i, c in context.clients.items()}
    forget = small_sets.forget_sets(context, sets, augment=True)
    retain = small_sets.retain_sets(context, sets, augment=True)
    touched = int((sets[0].own_labels() == 0).sum())
    assert {i: len(z) for i, z in forget.items()} == {0: touched + 1, 1: 0, 2: 0}
    assert forget[0].own_labels().unique().tolist() == [0]
    kept = context.clients[0].augmentation
    assert len(retain[0]) == len(sets[0]) - touched + len(kept) - 1
    assert row not in retain[0].dataset_rows()
    assert [len(retain[i]) for i in (1, 2)] == [2 * len(sets[i]) for i in (1, 2)]

    later = context.then(context.state, UnlearningRequest("class", (0,)))
    again = small_sets.relearn_sets(later, sets)  # class 0, while the sample stays forgotten
    assert {i: len(z) for i, z in again.items()} == {
        0: 0,
        **{i: int((sets[i].own_labels() == 0).sum()) for i in (1, 2)},
    }


@pytest.mark.parametrize("name", [n for n in METHODS if "forget-data" in METHODS[n].needs and n != "s2u"])
def test_the_guard_notices(name: str, asked: Asked) -> None:
    context = asked()
    with pytest.raises(AssertionError, match="forbidden"):
        tiny(name).unlearn(guarded(context, forget_rows(context)))
    if name == "sga-or":  # its ascent reads nothing else, though its recovery does
        tiny(name).unlearn(guarded(context, set(range(45)) - forget_rows(context)))


@pytest.mark.parametrize(("name", "level"), [case for case in CASES if case.values[0] not in CONTROLS])
def test_forgets_keeps_and_learns_again(
    name: str, level: str, make_federation: Make, separate_clients: Clients
) -> None:
    federation = make_federation(width=8)
    context = make_context(federation, separate_clients, level)
    if level == "sample":  # all of class 1
        everything = UnlearningRequest("sample", tuple(separate_clients[1].rows.tolist()))
        context = replace(context, request=everything, forgotten=(everything,))
    f_before, r_before = accuracies(federation, context.state)
    method = tiny(name)
    state = serve(method, context)
    f_after, r_after = accuracies(federation, state)
    assert f_before > 0.8
    assert r_before > 0.8
    assert f_after < f_before - 0.5
    assert r_after > 0.75
    if method.can_relearn:
        f_again, _ = accuracies(federation, method.relearn(context, state).state)
        assert f_again > f_after + 0.3
    else:
        with pytest.raises(Unsupported):
            method.relearn(context, state)


@pytest.mark.parametrize("name", [n for n in METHODS if "class" in METHODS[n].levels and n not in CONTROLS])
def test_two_requests_in_a_row(name: str, make_federation: Make, toy_clients: Clients) -> None:
    """After the second request both classes are gone, and the first one's data were not read again."""
    federation = make_federation(width=8)
    context = make_context(federation, toy_clients)
    method = tiny(name)
    second = guarded(context.then(serve(method, context), UnlearningRequest("class", (2,))), forget_rows(context))
    assert [str(r) for r in second.forgotten] == ["class-1", "class-2"]
    federation.load(serve(method, second))
    result = class_accuracy(federation.model, LabelledSet.of(*toy_images(90, seed=5)), 3)
    assert max(result.accuracy[1], result.accuracy[2]) < 0.3
    assert result.accuracy[0] > 0.75


def test_without_distillation_at_scale_one_quickdrop_is_sga(make_federation: Make, toy_clients: Clients) -> None:
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


def test_the_control_is_quickdrop_without_distillation(asked: Asked) -> None:
    """With ς_S = 0 the synthetic images are those they started from, so both methods do the same."""
    context = asked()
    clients = {
        i: replace(c, synthetic=replace(c.synthetic, images=c.subset.images)) for i, c in context.clients.items()
    }
    context_without = replace(context, clients=clients)
    assert equal(serve(tiny("random-subset"), context), serve(tiny("quickdrop"), context_without))
    assert not equal(serve(tiny("random-subset"), context), serve(tiny("quickdrop"), context))
    assert tiny("random-subset").storage(context) == tiny("quickdrop").storage(context)


def test_retraining_without_a_forget_set_is_the_original_training(
    make_federation: Make, toy_clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation()
    context = make_context(federation, toy_clients)
    nothing = replace(context, forgotten=())
    initial = federation.fresh_state(1, "init")
    monkeypatch.setattr(federation, "fresh_state", lambda *a: initial)
    monkeypatch.setattr("quickdrop_bench.methods.retrain.replace", lambda phase, **changes: phase)
    # Up to rounding: a step that distils sums its gradient class by class.
    torch.testing.assert_close(METHODS["retrain-or"]().unlearn(nothing).state, context.state, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "rounds"), [("retrain-or", 0), ("federaser", 3), ("s2u", 0), ("sga-or", 2)])
def test_recovery_and_relearning_on_originals_are_descents(name: str, rounds: int, asked: Asked) -> None:
    """With the paper's η = 0.01 and the training's T, where nothing else is asked for; two rounds of relearning."""
    context, method = asked("client"), METHODS[name]()

    def descent(stage: str, rounds: int, data: Clients) -> State:
        phase = Phase(stage, rounds, TRAIN.local_steps, TRAIN.batch_size, 0.01)
        return context.federation.run(context.state, data, phase, 1).state

    relearned, recovered = method.relearn(context, context.state), method.recover(context, context.state)
    assert equal(relearned.state, descent("relearning", 2, context.forget_data()))
    if rounds:
        assert recovered is not None
        assert equal(recovered.state, descent("recovery", rounds, context.retain_data()))
    else:
        assert recovered is None


# Limits -----------------------------------------------------------------------------------------------------


def test_nothing_left_to_retain_is_no_crash(asked: Asked) -> None:
    for level, targets in (("class", range(3)), ("client", range(3)), ("sample", range(45))):
        context = asked(level)
        context = replace(context, forgotten=(UnlearningRequest(level, tuple(targets)),))
        for name in METHODS:
            if level in METHODS[name].levels:
                assert is_finite(serve(tiny(name), context)), name


def test_patience_ends_descents_early(asked: Asked) -> None:
    """At a learning rate of next to nothing the loss never falls by much: the first round, then patience runs out."""
    context = replace(asked(), patience=2)
    method = METHODS["sga-or"](recover_rounds=9, recover_lr=1e-9, unlearn_rounds=4, unlearn_lr=1e-9)
    assert method.unlearn(context).cost.rounds == 4  # ascent is no descent
    recovered = method.recover(context, context.state)
    assert recovered is not None
    assert recovered.cost.rounds == 3


def test_unsupported_requests_are_refused_before_any_compute() -> None:
    for name in METHODS:
        for level in LEVELS:
            if level in METHODS[name].levels:
                check_support(name, request_for(level), EVERYTHING)
            else:
                with pytest.raises(Unsupported, match=f"not {level} requests"):
                    check_support(name, request_for(level), EVERYTHING)
    for name, need in (("quickdrop", "synthetic-sets"), ("federaser", "update-history")):
        with pytest.raises(Unsupported, match=need):
            check_support(name, request_for("class"), EVERYTHING - {need})
    with pytest.raises(BadInput, match="did you mean quickdrop"):
        check_support("quikdrop", request_for("class"), EVERYTHING)
    with pytest.raises(BadInput, match="level"):
        UnlearningRequest("galaxy", (1,))


ASCENT = frozenset({"unlearn_lr", "unlearn_local_steps", "unlearn_stop_loss"})

KNOBS = {
    "federaser": {"calibration_ratio", "replay_every"},
    "s2u": {"beta", "unlearn_local_steps"},
    "fu-mp": {"prune_ratio"},
    "not": {"recover_rounds"},
    "fedosd": {"unlearn_lr", "unlearn_rounds"},
    "fedquit": {"unlearn_lr", "unlearn_local_steps"},
    "mode": {"momentum", "unlearn_lr"},
    "conda": {"alpha", "factor"},
    **dict.fromkeys(("sga-or", "random-subset", "quickdrop", "pga"), ASCENT),
}
"""What decides how well a method unlearns; a comparison in which some are tuned and others not flatters the former."""


@pytest.mark.parametrize("name", KNOBS)
def test_the_main_settings_of_every_method_are_searched(name: str) -> None:
    searched = {field: values for space in METHODS[name].search.values() for field, values in space.items()}
    assert searched.keys() >= KNOBS[name] | {"recover_lr", "recover_local_steps"}
    assert all(len(set(values)) > 1 for values in searched.values())


OUTSIDE: dict[str, dict[str, Sequence[object]]] = {
    "federaser": {"calibration_ratio": (0.0, 1.1), "replay_every": (0,)},
    "s2u": {"beta": (-0.1, 1.1), "alpha": (0.0, math.nan), "max_alpha": (0.5,)},
    "fu-mp": {"prune_ratio": (0.0, -0.1, 1.0, 1.5, math.nan), "score_samples": (0,)},
    "fedquit": {"temperature": (0.0,)},
    "mode": {"momentum": (1.1, -0.1), "degrade_rounds": (-1, 11)},
    "conda": {"alpha": (-0.1,), "factor": (0.0,), "cap": (1.5,), "sums": ("all",)},
    "pga": {"unlearn_momentum": (1.0,), "clip": (0.0,), "ball": (-1.0,), "stop_distance": (0.0,)},
}
"""Values that settings of a method's own cannot have."""


@pytest.mark.parametrize("name", list(METHODS))
def test_bad_settings_are_refused_and_what_the_search_tries_exists(name: str) -> None:
    own = {field.name for field in fields(METHODS[name])}
    common = {field: (-1,) for field in own if field.endswith(("_rounds", "_local_steps", "_lr", "_participation"))}
    for field, values in (common | OUTSIDE.get(name, {})).items():
        for value in values:
            with pytest.raises(BadInput, match=field):
                METHODS[name](**{field: value})
    assert set(METHODS[name].search) <= {"unlearning", "recovery"}
    assert own >= {field for space in METHODS[name].search.values() for field in space}

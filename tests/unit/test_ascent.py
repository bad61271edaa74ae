"""Gradient ascent and reflection, against steps made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from quickdrop_bench.cli.grid import cells
from quickdrop_bench.cli.options import methods_of
from quickdrop_bench.cli.resolve import options_of
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.local import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods import METHODS, Context
from quickdrop_bench.methods.base import ClientData
from quickdrop_bench.models.convnet import ConvNet
from tests.conftest import Run

Make = Callable[..., Federation]
Clients = dict[int, LabelledSet]
TRAINING = Phase("fl-training", rounds=1, local_steps=3, batch_size=100, lr=0.1)
LR = 0.1


@pytest.fixture
def context(make_federation: Make, toy_clients: Clients) -> Context:
    """Class 1 is to be forgotten; 8, 4 and 3 images of three clients, each one batch."""
    federation = make_federation()
    clients = {i: ClientData(d, d, d) for i, d in toy_clients.items()}
    request = UnlearningRequest("class", (1,))
    return Context(federation, TRAINING, clients, federation.fresh_state(1, "init"), request, (request,), seed=1)


def descended(start: State, data: LabelledSet, steps: int, lr: float) -> State:
    """Full-batch steps θ − η∇L, by hand; a negative η ascends."""
    model = ConvNet(width=4, depth=2).build(1, 8, 3)
    model.load_state_dict(start)
    images, labels = data.take(torch.arange(len(data)))
    for _ in range(steps):
        gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def unlearned(context: Context, **settings: Any) -> Any:
    return METHODS["sga-or"](unlearn_rounds=1, unlearn_lr=LR, **settings).unlearn(context)


def test_one_step_of_reflection_is_one_step_of_ascent(context: Context) -> None:
    one = replace(context, clients={0: context.clients[0]})
    found = {form: unlearned(one, ascent=form, unlearn_local_steps=1).state for form in ("gradient", "reflection")}
    by_hand = descended(context.state, context.forget_data()[0], 1, -LR)
    for name, value in by_hand.items():
        torch.testing.assert_close(found["gradient"][name], value)
        torch.testing.assert_close(found["reflection"][name], value)


def test_reflected_clients_are_averaged(context: Context) -> None:
    """Two clients, three steps: 2θ₀ − θ′ of each, weighted by 8 and 4 images; several steps are not ascent."""
    two = replace(context, clients={i: context.clients[i] for i in (0, 1)})
    found = unlearned(two, ascent="reflection")
    parts = {i: descended(context.state, d, 3, LR) for i, d in two.forget_data().items()}
    assert [len(d) for d in two.forget_data().values()] == [8, 4]
    for name, start in context.state.items():
        reflected = {i: 2 * start - part[name] for i, part in parts.items()}
        torch.testing.assert_close(found.state[name], (8 * reflected[0] + 4 * reflected[1]) / 12)
    ascended = unlearned(two, ascent="gradient")
    assert any(not torch.allclose(found.state[name], value) for name, value in ascended.state.items())
    counted = [
        (cost.rounds, cost.sample_gradients, cost.upload_bytes, cost.data_size) for cost in (found.cost, ascended.cost)
    ]
    assert counted[0] == counted[1]
    assert counted[0][:2] == (1, 3 * 12)


@pytest.mark.parametrize("name", ["sga-or", "random-subset"])
def test_patience_does_not_end_a_reflection(name: str, context: Context) -> None:
    """Its training loss rises from round to round, as that of gradient ascent does."""
    method = METHODS[name](unlearn_rounds=3, ascent="reflection")
    assert method.unlearn(replace(context, patience=1)).cost.rounds == 3


def test_both_forms_have_rows_of_their_own() -> None:
    hashes = set()
    for form in ("gradient", "reflection"):
        line = ["table", "2", "--preset", "quick", "--sga-or.ascent", form]
        ((experiment, _),) = cells("table2", options_of(line, "table2"), line, options_of)
        hashes.add(experiment.run_spec("sga-or", 1).hash)
    assert len(hashes) == 2


def settings(*argv: str) -> Any:
    return methods_of(options_of(["table", "2", "--preset", "small", *argv], "table2"))["quickdrop"]


def test_a_presets_bound_gives_way_to_reflection_and_a_typed_one_is_refused() -> None:
    assert settings().unlearn_stop_loss == 6
    reflecting = settings("--quickdrop.ascent", "reflection")
    assert (reflecting.ascent, reflecting.unlearn_stop_loss) == ("reflection", None)
    for bound in ("6", "3"):  # the preset's own value was typed as well
        with pytest.raises(BadInput, match=r"--quickdrop.unlearn-stop-loss .*: it bounds gradient ascent only"):
            settings("--quickdrop.ascent", "reflection", "--quickdrop.unlearn-stop-loss", bound)


def test_forms_of_ascent_have_names(run: Run) -> None:
    code, _, err = run("table", "2", "--preset", "quick", "--sga-or.ascent", "sideways")
    assert code == 2
    assert "--sga-or.ascent sideways: use one of gradient, reflection" in err

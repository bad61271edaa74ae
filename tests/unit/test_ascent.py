"""Gradient ascent and reflection, against steps made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from quickdrop_bench.cli.resolve import methods_of, options_of
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.methods import METHODS, Context
from tests.asked import FULL_BATCHES, asked
from tests.by_hand import assert_close, descended
from tests.conftest import Clients, Make

LR = 0.1


@pytest.fixture
def context(make_federation: Make, toy_clients: Clients) -> Context:
    """Class 1 is to be forgotten; 8, 4 and 3 images of three clients, each one batch."""
    return asked(make_federation(), toy_clients, "class", training=replace(FULL_BATCHES, local_steps=3))


def unlearned(context: Context, **settings: Any) -> Any:
    return METHODS["sga-or"](unlearn_rounds=1, unlearn_lr=LR, **settings).unlearn(context)


@pytest.mark.parametrize("form", ["gradient", "reflection"])
def test_one_step_of_reflection_is_one_step_of_ascent(form: str, context: Context) -> None:
    one = replace(context, clients={0: context.clients[0]})
    by_hand = descended(context.state, context.forget_data()[0], 1, -LR)
    assert_close(unlearned(one, ascent=form, unlearn_local_steps=1).state, by_hand)


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
    assert replace(found.cost, seconds=0) == replace(ascended.cost, seconds=0)
    assert (found.cost.rounds, found.cost.sample_gradients) == (1, 3 * 12)


@pytest.mark.parametrize("name", ["sga-or", "random-subset"])
def test_patience_does_not_end_a_reflection(name: str, context: Context) -> None:
    """Its training loss rises from round to round, as that of gradient ascent does."""
    method = METHODS[name](unlearn_rounds=3, ascent="reflection")
    assert method.unlearn(replace(context, patience=1)).cost.rounds == 3


def settings(*argv: str) -> Any:
    return methods_of(options_of(["table", "2", "--preset", "small", *argv], "table2"))["quickdrop"]


def test_a_presets_bound_gives_way_to_reflection_and_a_typed_one_is_refused() -> None:
    assert settings().unlearn_stop_loss == 6
    reflecting = settings("--quickdrop.ascent", "reflection")
    assert (reflecting.ascent, reflecting.unlearn_stop_loss) == ("reflection", None)
    bound = ("--quickdrop.unlearn-stop-loss", "6")  # the preset's own value was typed as well
    with pytest.raises(BadInput, match=r"--quickdrop.unlearn-stop-loss .*: it bounds gradient ascent only"):
        settings("--quickdrop.ascent", "reflection", *bound)

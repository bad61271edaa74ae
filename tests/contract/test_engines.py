"""Every method's stages by the static engine and by the one that stacks clients, against the reference loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.federation.faults import Faults
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods import Method
from quickdrop_bench.methods.context import Context
from quickdrop_bench.methods.registry import StageResult
from tests.conftest import Make
from tests.contract.tiny import CASES, make_context, tiny
from tests.small_models import SMALL


def stages(method: Method, context: Context) -> list[StageResult]:
    found = [method.unlearn(context)]
    recovered = method.recover(context, found[-1].state)
    found += [] if recovered is None else [recovered]
    return [*found, method.relearn(context, found[-1].state)] if method.can_relearn else found


def far_apart(a: State, b: State, start: State) -> dict[str, float]:
    """Weights' differences relative to their change; biases before a normalisation move by rounding alone."""
    weights = {name for name, value in a.items() if value.dim() > 1}
    return {n: float((a[n] - b[n]).norm() / (b[n] - start[n]).norm().clamp(min=1e-3)) for n in weights}


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(None, id=""),
        pytest.param(Faults(dropout_rate=0.3, straggler_rate=0.2), id="faults", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("name", "level"), CASES)
def test_every_stage_is_the_same(
    name: str, level: str, faults: Faults | None, make_federation: Make, toy_clients: dict[int, LabelledSet]
) -> None:
    """An activation may be zero but for rounding; then a loop begun next to it, on one side, goes the other way too."""
    context = make_context(make_federation(faults=faults), toy_clients, level)
    method = tiny(name)
    starts = [{name: value * factor for name, value in context.state.items()} for factor in (1, 1 + 1e-6, 1 - 1e-6)]
    runs = [
        stages(method, replace(context, state=state, federation=make_federation(faults=faults, static=False)))
        for state in starts
    ]
    for static in (True, None):
        found = stages(method, replace(context, federation=make_federation(faults=faults, static=static)))
        for own, *loops in zip(found, *runs, strict=True):
            apart = [max(far_apart(own.state, loop.state, context.state).values()) for loop in loops]
            assert min(apart) < 1e-4
            assert replace(own.cost, seconds=0) == replace(loops[0].cost, seconds=0)


@pytest.mark.parametrize("model", ["convnet", "lenet5"])
def test_training_with_distillation_is_the_same(
    model: str, make_federation: Make, toy_clients: dict[int, LabelledSet]
) -> None:
    federations = [make_federation(static=static, architecture=SMALL[model]) for static in (False, True, None)]
    expected, *others = [make_context(federation, toy_clients) for federation in federations]
    start = expected.federation.fresh_state(1, "init")
    for found in others:
        assert max(far_apart(found.state, expected.state, start).values()) < 1e-5
        for client in toy_clients:
            reference, own = (c.clients[client].synthetic for c in (expected, found))
            assert reference is not None
            assert own is not None
            torch.testing.assert_close(own.images, reference.images, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(own.velocity, reference.velocity, rtol=1e-4, atol=1e-5)

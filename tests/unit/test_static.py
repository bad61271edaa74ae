"""The engine for GPUs, run on a CPU, and the one that stacks clients, against the reference loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision
from torch import nn

from quickdrop_bench.core.cost import Clock
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.distillation.in_situ import Distillation, SyntheticSet, initial_synthetic_set
from quickdrop_bench.federation import stacked
from quickdrop_bench.federation.faults import Faults
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.local import LocalWork
from quickdrop_bench.federation.phase import Phase, PhaseResult
from quickdrop_bench.federation.plan import batches, plan_steps
from quickdrop_bench.federation.static import StaticEngine
from quickdrop_bench.functional.aggregation import difference, norm
from quickdrop_bench.functional.layers import is_listed
from quickdrop_bench.models import Model
from tests.small_models import CONVNETS, SMALL, Odd, Strided

CLASSES = 5
SETTINGS = Distillation(1, 0.1, 0.5, 4)
TRAIN = Phase("fl-training", rounds=2, local_steps=4, batch_size=16, lr=0.05)
ENGINES = {"static": True, "stacked": None}
"""What chooses each; False is the reference."""

both_engines = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture(autouse=True)
def any_step_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are stacked, whatever their images."""
    monkeypatch.setattr(stacked, "SMALL", math.inf)


def images_of(labels: list[int], size: int = 8) -> LabelledSet:
    own = torch.tensor(labels)
    stream = torch.Generator().manual_seed(len(labels))
    pictures = torch.randn(len(labels), 1, size, size, generator=stream) + own[:, None, None, None] / 2
    return LabelledSet.of(pictures, own)


def ran(
    clients: dict[int, LabelledSet],
    phase: Phase,
    *,
    static: bool | None,
    distillation: Distillation = SETTINGS,
    faults: Faults | None = None,
    masks: dict[str, torch.Tensor] | None = None,
    scale: float = 4,
    distil: bool = True,
    model: Model | None = None,
    precision: str = "32-true",
) -> tuple[PhaseResult, dict[int, SyntheticSet]]:
    torch.manual_seed(0)
    net = (model or SMALL["convnet"]).build(1, clients[0].images.shape[-1], CLASSES)
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    federation = Federation(fabric, net, distillation, faults, static=static)
    assert (isinstance(federation._engine, StaticEngine), federation._stacked is not None) == (
        static is True,
        static is None,
    )
    starts = {i: initial_synthetic_set(d, scale, torch.Generator().manual_seed(1)) for i, d in clients.items()}
    synthetic = {i: replace(s, images=s.images.clone()) for i, s in starts.items()} if distil else {}
    with federation.held_at_zero(masks or {}):
        result = federation.run(federation.fresh_state(1, "init"), clients, phase, 1, synthetic=synthetic)
    return result, synthetic


def check_same(clients: dict[int, LabelledSet], phase: Phase, engine: str, **options: object) -> None:
    (expected, theirs), (found, ours) = (
        ran(clients, phase, static=static, **options)  # type: ignore[arg-type]
        for static in (False, ENGINES[engine])
    )
    assert norm(difference(found.state, expected.state)) < 1e-5 * norm(expected.state)
    for name, value in expected.state.items():
        torch.testing.assert_close(found.state[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert replace(found.cost, seconds=0, distillation_seconds=0) == replace(
        expected.cost, seconds=0, distillation_seconds=0
    )
    for i, own in theirs.items():
        torch.testing.assert_close(ours[i].images, own.images, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[i].velocity, own.velocity, rtol=1e-4, atol=1e-5)


def check_ragged(clients: list[list[int]], image_steps: int, scale: float, engine: str) -> None:
    data = {i: images_of(labels) for i, labels in enumerate(clients)}
    check_same(data, TRAIN, engine, distillation=replace(SETTINGS, image_steps=image_steps), scale=scale)


RAGGED = [
    ([[0]], 1, 100.0),
    ([[0, 1, 1, 2, 4] * 7, [3] * 5, [2, 4, 2]], 2, 3.0),
    ([[4, 3, 2, 1, 0] * 3, [1] * 17], 0, 1.0),
]


@both_engines
@pytest.mark.parametrize(("clients", "image_steps", "scale"), RAGGED)
def test_ragged_clients_with_missing_and_fixed_classes(
    clients: list[list[int]], image_steps: int, scale: float, engine: str
) -> None:
    check_ragged(clients, image_steps, scale, engine)


@pytest.mark.long
@settings(max_examples=50, deadline=None)
@given(
    clients=st.lists(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=40), min_size=1, max_size=7),
    image_steps=st.integers(0, 2),
    scale=st.sampled_from([1.0, 3.0, 100.0]),
    engine=st.sampled_from(list(ENGINES)),
)
def test_any_ragged_clients(clients: list[list[int]], image_steps: int, scale: float, engine: str) -> None:
    check_ragged(clients, image_steps, scale, engine)


@both_engines
@pytest.mark.parametrize("model", [*CONVNETS.values(), SMALL["lenet5"]], ids=str)
def test_every_normalisation_and_kernels_with_other_paddings(model: Model, engine: str) -> None:
    check_same({i: images_of([0, 1, 1, 2, 4] * (6 - i), size=28) for i in range(2)}, TRAIN, engine, model=model)


@pytest.mark.parametrize("model", [SMALL["resnet18"], Odd()], ids=["resnet18", "odd"])
def test_models_whose_passes_are_left_to_autograd(model: Model) -> None:
    """From step to step these models make more of what is rounded: few steps, and images are compared as a whole."""
    clients = {i: images_of([i, i, 3, 4] * (3 + 4 * i)) for i in range(3)}
    few = replace(TRAIN, rounds=1, local_steps=2)
    (expected, theirs), (found, ours) = (ran(clients, few, static=s, model=model, scale=3) for s in (False, True))
    assert norm(difference(found.state, expected.state)) < 1e-5 * norm(expected.state)
    for i, own in theirs.items():
        assert (ours[i].images - own.images).norm() < 1e-4 * own.images.norm()
        assert (ours[i].velocity - own.velocity).norm() < 1e-2 * own.velocity.norm()
    ascent = replace(TRAIN, rounds=1, local_steps=8, lr=0.02, ascend=True, stop_loss=3.0)
    check_same(clients, ascent, "static", model=model, distil=False)
    start, once = (ran(clients, replace(ascent, rounds=r), static=True, distil=False, model=model)[0] for r in (0, 1))
    assert norm(difference(once.state, start.state)) > 0
    assert once.cost.sample_gradients < sum(min(len(d), 16) * 8 for d in clients.values())
    masks = {next(n for n, p in model.build(1, 8, CLASSES).named_parameters() if p.dim() > 1): torch.zeros(1)}
    check_same(clients, few, "static", model=model, distil=False, masks=masks)


@both_engines
@pytest.mark.parametrize("distil", [False, True])
def test_strides(engine: str, distil: bool) -> None:
    check_same(
        {i: images_of([0, 1, 1, 2, 4] * (6 - i)) for i in range(2)}, TRAIN, engine, model=Strided(), distil=distil
    )


@pytest.mark.parametrize(
    ("distil", "image_steps", "scale"), [(False, 1, 4), (True, 1, 4), (True, 0, 4), (True, 1, 1)], ids=str
)
def test_steps_in_bf16_are_as_far_from_float32_as_the_loops(distil: bool, image_steps: int, scale: float) -> None:
    clients = {i: images_of([0, 1, 1, 2, 4] * (4 + i)) for i in range(2)}
    own = replace(SETTINGS, image_steps=image_steps)
    (exact, _), (loop, of_loop), (static, of_static) = (
        ran(clients, TRAIN, static=engine, distil=distil, scale=scale, distillation=own, precision=precision)
        for engine, precision in ((False, "32-true"), (False, "bf16-mixed"), (True, "bf16-mixed"))
    )
    off = norm(difference(loop.state, exact.state))
    assert 0.5 * off < norm(difference(static.state, exact.state)) < 2 * off
    if distil:
        assert norm(difference(static.state, loop.state)) < 0.1 * off
    for i, theirs in of_loop.items():
        assert (of_static[i].images - theirs.images).norm() < 1e-2 * theirs.images.norm()


@both_engines
def test_a_stopping_rule_ends_the_steps_at_the_same_batch(engine: str) -> None:
    """Losses of 2 to 3 stop some clients early and others not at all."""
    clients = {i: images_of([i, i, 3] * (4 + 9 * i)) for i in range(3)}
    phase = replace(TRAIN, rounds=1, local_steps=12, lr=0.3, ascend=True, stop_loss=2.5)
    check_same(clients, phase, engine, distil=False)
    whole = sum(min(len(d), 16) * 12 for d in clients.values())
    assert ran(clients, phase, static=ENGINES[engine], distil=False)[0].cost.sample_gradients < whole


@both_engines
def test_passes_longer_than_a_portion(engine: str) -> None:
    clients = {0: images_of([0, 1, 2] * 20), 1: images_of([3, 1] * 31), 2: images_of([4, 0] * 30)}
    check_same(clients, replace(TRAIN, rounds=1, local_epochs=20, lr=0.01), engine)


@both_engines
def test_weights_that_are_held_at_zero(engine: str) -> None:
    masks = {"features.4.weight": torch.tensor([1.0, 0, 0, 1]).view(-1, 1, 1, 1), "classifier.bias": torch.zeros(5)}
    clients = {i: images_of([0, 1, 2, 3, 4] * (i + 2)) for i in range(4)}
    for distil in (False, True):
        check_same(clients, TRAIN, engine, distil=distil, masks=masks)


@both_engines
@pytest.mark.parametrize("distil", [False, True])
def test_clients_that_fail(engine: str, distil: bool) -> None:
    clients = {i: images_of([0, 1, 2, 3, 4] * (i + 2)) for i in range(8)}
    faults = Faults(dropout_rate=0.2, straggler_rate=0.2, corrupt_rate=0.3)
    check_same(clients, replace(TRAIN, rounds=4), engine, faults=faults, distil=distil)


@both_engines
@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize("name", ["instance", "none"])
def test_a_client_with_broken_images_spoils_no_other(name: str, distil: bool, engine: str) -> None:
    """Nor their synthetic sets, which are distilled with its own."""
    clients = {i: images_of([0, 1, 2, 3] * (4 + i)) for i in range(4)}
    clients[1].images[:, :, 0, 0] = torch.nan
    (expected, theirs), (found, ours) = (
        ran(clients, TRAIN, static=static, faults=Faults(corrupt_rate=1e-12), model=CONVNETS[name], distil=distil)
        for static in (False, ENGINES[engine])
    )
    assert (found.diverged, found.cost.rejected_updates) == (False, TRAIN.rounds)
    assert expected.cost.rejected_updates == TRAIN.rounds
    assert norm(difference(found.state, expected.state)) < 1e-5 * norm(expected.state)
    for i in theirs.keys() - {1}:
        torch.testing.assert_close(ours[i].images, theirs[i].images, rtol=1e-4, atol=1e-5)


def test_who_is_stacked_with_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like sizes together, equally many steps, stacks that take as long; large batches, soft labels alone."""
    monkeypatch.setattr(stacked, "SMALL", 16 * 64)
    engine = stacked.StackedEngine(SMALL["convnet"].build(1, 8, CLASSES), SETTINGS)

    def stacks(sizes: list[int], phase: Phase = TRAIN, side: int = 8, scale: float = 0) -> list[list[int]]:
        data = [images_of([0] * size, side) for size in sizes]
        none = torch.Generator()
        sets = [initial_synthetic_set(own, scale, generator(0, "set")) if scale else None for own in data]
        works = [LocalWork(d, phase, none, {}, own, none) for d, own in zip(data, sets, strict=True)]
        return engine.stacks(dict(enumerate(works)))

    assert stacks([9, 1, 8, 2, 7, 3]) == [[1, 3, 4, 5], [0, 2]]
    assert stacks([3] * 5) == [[0, 1, 2, 3, 4]]
    assert stacks([3] * 6) == [[0, 1, 2], [3, 4, 5]]
    assert stacks([16, 1, 1, 1, 1, 1]) == [[1, 2, 3, 4, 5], [0]]
    assert stacks([16] * 4 + [17, 18], replace(TRAIN, batch_size=16)) == [[0, 1, 2], [3, 4, 5]]
    assert stacks([16, 16, 16, 16, 64, 64], replace(TRAIN, batch_size=2), scale=16) == [[0, 1, 2, 3], [4, 5]]
    assert stacks([3, 17, 40, 16], replace(TRAIN, local_epochs=2)) == [[0, 3], [1], [2]]
    assert stacks([3, 17, 4, 16], replace(TRAIN, batch_size=17)) == [[0, 2, 3], [1]]
    assert stacks([3, 3], side=28) == [[0], [1]]


def test_a_stack_is_built_and_warm_before_the_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[bool] = []
    passes: list[bool] = []
    running, build, step = Clock.running, stacked.side_by_side, stacked._gradients

    @contextmanager
    def watched(clock: Clock) -> Iterator[None]:
        timed.append(True)
        with running(clock):
            yield
        timed.pop()

    def built(*args: Any) -> nn.Sequential:
        assert not timed
        return build(*args)

    def passed(*args: Any) -> Any:
        passes.append(bool(timed))
        return step(*args)

    monkeypatch.setattr(Clock, "running", watched)
    monkeypatch.setattr(stacked, "side_by_side", built)
    monkeypatch.setattr(stacked, "_gradients", passed)
    clients = {i: images_of([0, 1, 2, 3, 4]) for i in range(3)}
    ran(clients, replace(TRAIN, rounds=2, local_steps=2), static=None, distil=False)
    assert passes == [False, True, True, True, True]


def test_a_plan_pads_and_sorts() -> None:
    drawn = list(batches(5, 3, 2, torch.Generator().manual_seed(0)))
    labels = torch.tensor([1, 0, 1, 2, 0])
    plan = plan_steps(drawn, labels, width=4, classes=3)
    for t, batch in enumerate(drawn):
        size = len(batch)
        assert sorted(plan.rows[t, :size].tolist()) == sorted(batch.tolist())
        assert plan.labels[t, :size].tolist() == sorted(labels[batch].tolist())
        assert plan.weights[t].tolist() == pytest.approx([1 / size] * size + [0] * (4 - size))
        counts = torch.bincount(labels[batch], minlength=3)
        assert plan.means[t].tolist() == pytest.approx([size / n if n else 0 for n in counts.tolist()])


@pytest.mark.parametrize(
    ("model", "precision", "static", "expected"),
    [
        (SMALL["convnet"], "32-true", None, "stacked"),
        (SMALL["convnet"], "bf16-mixed", None, "loop"),
        (SMALL["resnet18"], "32-true", None, "loop"),
        (SMALL["resnet18"], "bf16-mixed", True, "static"),
        (SMALL["convnet"], "16-mixed", True, "loop"),
    ],
    ids=str,
)
def test_which_engine_is_for_what(model: Model, precision: str, static: bool | None, expected: str) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu"))
    if precision != "16-mixed":
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    federation = Federation(fabric, model.build(1, 8, CLASSES), SETTINGS, static=static)
    found = "static" if isinstance(federation._engine, StaticEngine) else "stacked" if federation._stacked else "loop"
    assert found == expected


@pytest.mark.parametrize("static", [False, True, None])
def test_the_loop_is_warm_before_any_phase(static: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the engine, as some steps are left to the loop."""
    warmed: list[str] = []
    monkeypatch.setattr(Federation, "_warm_up", lambda self, state, data, phase: warmed.append(phase.name))
    ran({0: images_of([0, 1, 2])}, TRAIN, static=static, distil=False)
    assert warmed == [TRAIN.name]


def test_models_that_are_written_out() -> None:
    assert is_listed(SMALL["convnet"].build(1, 8, 3))
    assert is_listed(Strided().build(1, 8, 3))
    odd = SMALL["convnet"].build(1, 10, 3)
    convolutional = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    for other in (odd, convolutional, SMALL["resnet18"].build(1, 8, 3)):
        assert not is_listed(other)


def test_few_graphs_serve_sets_of_all_sizes() -> None:
    model = SMALL["convnet"].build(1, 8, CLASSES)
    federation = Federation(Fabric(accelerator="cpu", devices=1), model, SETTINGS, static=True)
    data = {i: images_of(list(range(CLASSES)) * (i + 1)) for i in range(12)}
    federation.run(federation.fresh_state(1, "init"), data, replace(TRAIN, rounds=1, batch_size=64), 1)
    assert isinstance(federation._engine, StaticEngine)
    assert len(federation._engine._steps) <= 4

"""FedEraser against a slow reference and the properties that its definition implies."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from quickdrop_bench.data.requests import UnlearningRequest, retain_part
from quickdrop_bench.federation.history import UpdateHistory, UpdateRecorder
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.functional.calibration import calibrate, largest_growth
from quickdrop_bench.methods.context import Context
from quickdrop_bench.methods.fed_eraser import FedEraser
from tests.asked import asked, recorded
from tests.by_hand import assert_close, descended, equal, minus, plus_weighted, shares
from tests.conftest import Clients, Make

TRAIN = Phase("fl-training", rounds=3, local_steps=4, batch_size=8, lr=0.1)
FULL_BATCH = replace(TRAIN, rounds=2, batch_size=100)
CLIENT = UnlearningRequest("client", (1,))
CLASS = UnlearningRequest("class", (1,))


@pytest.fixture
def trained(make_federation: Make, toy_clients: Clients) -> Callable[..., Context]:
    """Train the toy federation with a recorder, and ask to forget something."""

    def make(request: UnlearningRequest = CLIENT, training: Phase = TRAIN, every: int = 1, **choice: object) -> Context:
        return recorded(asked(make_federation(), toy_clients, request, training=training), every, **choice)[0]

    return make


def norm(values: Tensor) -> float:
    return sum(v * v for v in values.double().flatten().tolist()) ** 0.5


# The calibration of one update.


def random_update(seed: int) -> State:
    stream = torch.Generator().manual_seed(seed)
    shapes = {"weight": (4, 3, 2), "bias": (4,), "scalar": ()}
    return {name: torch.randn(shape, generator=stream) for name, shape in shapes.items()}


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_length_is_the_stored_one_and_direction_the_fresh_one(factor: float) -> None:
    stored, fresh = random_update(1), random_update(2)
    for name, value in calibrate(stored, {name: factor * value for name, value in fresh.items()}).items():
        assert norm(value) == pytest.approx(norm(stored[name]), rel=1e-6)
        cosine = float((value.double() * fresh[name].double()).sum()) / (norm(value) * norm(fresh[name]))
        assert cosine == pytest.approx(1, rel=1e-6)


def test_update_without_direction_becomes_zero() -> None:
    """Tensor by tensor: the norm of the second is 9·10⁻¹³, just below the bound; that of the third is above."""
    fresh = {"a": torch.zeros(2), "b": torch.tensor([9e-13, 0.0]), "c": torch.tensor([2e-12, 0.0])}
    stored = {name: torch.tensor([3.0, 4.0]) for name in fresh}
    result = calibrate(stored, fresh)
    assert {name: value.tolist() for name, value in result.items()} == {"a": [0, 0], "b": [0, 0], "c": [5, 0]}
    assert largest_growth(stored, fresh) == pytest.approx(2.5e12)
    assert largest_growth(stored, {"a": torch.zeros(2)}) == 0


def test_non_finite_update_is_not_hidden_and_inputs_stay() -> None:
    stored, fresh = random_update(1), random_update(2)
    fresh["bias"][0] = torch.nan
    fresh["weight"][0, 0, 0] = torch.inf
    fresh["far"], stored["far"] = torch.full((3,), 1e25), torch.ones(3)  # finite, but its square is not
    before = {name: value.clone() for name, value in fresh.items()}
    result = calibrate(stored, fresh)
    assert all(result[name].isnan().any() for name in ("bias", "weight", "far"))
    torch.testing.assert_close(fresh, before, rtol=0, atol=0, equal_nan=True)


# A whole run by hand.


def federaser_by_hand(initial: State, everyone: Clients, retained: Clients, steps: int, calibrate_first: bool) -> State:
    """The paper's algorithm, two rounds, with nothing of ours but the architecture and the initial model."""
    stored, model = [], initial
    for _ in range(2):
        descents = {i: descended(model, d, FULL_BATCH.local_steps, FULL_BATCH.lr) for i, d in everyone.items()}
        stored.append({i: minus(end, model) for i, end in descents.items()})
        model = plus_weighted(model, stored[-1], shares(everyone))
    model = initial
    for t in range(2):
        updates = {i: stored[t][i] for i in retained}
        if t > 0 or calibrate_first:
            fresh = {i: minus(descended(model, d, steps, FULL_BATCH.lr), model) for i, d in retained.items()}
            # A bias that the normalisation cancels has no gradient, and so no direction.
            updates = {
                i: {n: v * (norm(updates[i][n]) / norm(v)) if norm(v) else v for n, v in own.items()}
                for i, own in fresh.items()
            }
        model = plus_weighted(model, updates, shares(retained))
    return model


@pytest.mark.parametrize(
    ("forgotten", "ratio", "steps", "calibrate_first"),
    [
        ((CLIENT,), 0.5, 2, False),
        ((CLIENT,), 0.6, 3, False),
        ((CLIENT,), 1.0, 4, False),
        ((CLASS,), 0.5, 2, True),
        ((CLASS, CLIENT), 0.5, 2, True),
    ],
)
def test_two_rounds_by_hand(
    forgotten: tuple[UnlearningRequest, ...],
    ratio: float,
    steps: int,
    calibrate_first: bool,
    trained: Callable[..., Context],
    toy_clients: Clients,
) -> None:
    """T = 4 steps, so 2, ⌈2.4⌉ = 3 and 4 of calibration. The first round's stored updates did see a class."""
    context = replace(trained(forgotten[-1], FULL_BATCH), forgotten=forgotten)
    result = FedEraser(calibration_ratio=ratio).unlearn(context)
    assert context.history is not None
    retained = {i: part for i, d in toy_clients.items() if len(part := retain_part(d, i, forgotten))}
    initial = context.history.initial()
    expected = federaser_by_hand(initial, toy_clients, retained, steps, calibrate_first)
    assert_close(result.state, expected, atol=1e-4)
    if ratio < 1:  # with as many steps as in training, the first round is calibrated to itself
        with pytest.raises(AssertionError):
            assert_close(
                result.state, federaser_by_hand(initial, toy_clients, retained, steps, not calibrate_first), atol=1e-4
            )


# Invariants.


@pytest.mark.parametrize("level", ["class", "client"])
def test_replay_of_the_stored_updates_is_the_original_training(
    level: str, trained: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Δt = 1, nobody forgotten and Û = U: θ_0 + Σ_t Σ_i w_i·U_i is how FedAvg reached θ_K."""
    monkeypatch.setattr(
        "quickdrop_bench.functional.calibration.calibrate", lambda stored, fresh: calibrate(stored, stored)
    )
    nobody = UnlearningRequest(level, (99,))
    context = replace(trained(nobody, replace(TRAIN, participation=0.67)), forgotten=())
    result = FedEraser().unlearn(context)
    assert_close(result.state, context.state, atol=1e-5)
    assert result.cost.rounds == TRAIN.rounds


@dataclass(frozen=True)
class Watched(UpdateHistory):
    """Remembers what it gave."""

    given: list[tuple[int, int]]

    def update(self, k: int, client: int) -> tuple[State, int]:
        self.given.append((k, client))
        return super().update(k, client)


@pytest.mark.parametrize(("request_", "clients"), [(CLASS, (0, 1, 2)), (CLIENT, (0, 2))], ids=["class", "client"])
def test_updates_of_the_forgotten_are_never_read(
    request_: UnlearningRequest, clients: tuple[int, ...], trained: Callable[..., Context]
) -> None:
    given: list[tuple[int, int]] = []
    FedEraser().unlearn(replace(trained(request_), history=Watched(Path("updates"), torch.device("cpu"), given)))
    assert given == [(k, i) for k in range(3) for i in clients]  # each once, and in this order


@pytest.mark.parametrize(("request_", "rounds", "every"), [(CLASS, 7, 2), (CLIENT, 5, 3), (CLIENT, 3, 9)], ids=str)
def test_every_mth_recorded_round_is_as_if_only_those_were_recorded(
    request_: UnlearningRequest, rounds: int, every: int, trained: Callable[..., Context]
) -> None:
    training = replace(TRAIN, rounds=rounds)
    context = trained(request_, training)
    thinned = FedEraser(replay_every=every)
    state, storage = thinned.unlearn(context).state, thinned.storage(context)
    shutil.rmtree("updates")
    apart = trained(request_, training, every)
    assert equal(state, FedEraser().unlearn(apart).state)
    assert storage == FedEraser().storage(apart)


@pytest.mark.parametrize(
    ("took_part", "trains", "rounds"), [([[1, 2], [1], [0, 1]], [(2, (0,))], 2), ([[1], [0]], [(1, (0,))], 1)], ids=str
)
def test_only_recorded_participants_take_part(
    took_part: list[list[int]],
    trains: list[tuple[int, tuple[int, ...]]],
    rounds: int,
    trained: Callable[..., Context],
) -> None:
    """Client 1 leaves: rounds of it alone are skipped, and a first round of others is the server's alone."""
    training = replace(TRAIN, rounds=len(took_part))
    context = trained(CLIENT, training, choose=lambda k, eligible: took_part[k])
    seen: list[tuple[int, tuple[int, ...]]] = []
    watch = SimpleNamespace(on_round_end=lambda federation, info: seen.append((info.round, info.participants)))
    context.federation.fabric._callbacks.append(watch)
    cost = FedEraser().unlearn(context).cost
    assert seen == trains
    assert cost.rounds == rounds


def test_current_model_and_patience_have_no_part(trained: Callable[..., Context]) -> None:
    """The replay starts at θ_0 and makes every retained round; recovery does stop when nothing is gained."""
    context = trained(CLASS)
    other = {name: torch.zeros_like(value) for name, value in context.state.items()}
    impatient = replace(context, state=other, patience=1)
    method = FedEraser(calibration_lr=1e-6, recover_rounds=9, recover_lr=1e-9)
    unlearned = method.unlearn(impatient)
    assert unlearned.cost.rounds == 3
    assert equal(unlearned.state, method.unlearn(context).state)
    recovered = method.recover(impatient, unlearned.state)
    assert recovered is not None
    assert recovered.cost.rounds == 2


def test_explosion_is_reported_with_its_growth(
    trained: Callable[..., Context], caplog: pytest.LogCaptureFixture
) -> None:
    """Stored updates beyond float32 make a non-finite step: the last finite model is kept."""
    context = trained(CLIENT)
    zero, vast = ({name: torch.full_like(v, value) for name, v in context.state.items()} for value in (0, 1e30))
    UpdateRecorder(Path("updates"), 3, 1)(1, 0, 24, zero, vast)
    with caplog.at_level(logging.DEBUG, "quickdrop_bench.methods.fed_eraser"):
        result = FedEraser().unlearn(context)
    assert result.diverged
    assert result.cost.rounds == 2
    assert all(value.isfinite().all() for value in result.state.values())
    assert "round 1, client 0: updates grow up to" in caplog.text


@pytest.mark.parametrize(("ratio", "steps", "expected"), [(0.5, 5, 3), (0.07, 100, 7), (0.1, 30, 3), (0.01, 4, 1)])
def test_calibration_steps_round_up(ratio: float, steps: int, expected: int) -> None:
    """⌈r·T⌉ in decimals; 0.07·100 is 7.000000000000001 in floating point."""
    phase = FedEraser(calibration_ratio=ratio).calibration(replace(TRAIN, local_steps=steps), rounds=2)
    assert phase.local_steps == expected
    assert (phase.rounds, phase.lr, phase.ascend) == (2, TRAIN.lr, False)
    assert FedEraser(calibration_lr=0.3).calibration(TRAIN, 2).lr == 0.3

"""FedEraser against a slow reference and the properties that its definition implies."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.core.errors import BadInput, Unsupported
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.history import UpdateHistory, UpdateRecorder
from quickdrop_bench.federation.local import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.functional.calibration import calibrate, largest_growth
from quickdrop_bench.methods.base import ClientData, Context, check_support
from quickdrop_bench.methods.fed_eraser import FedEraser
from quickdrop_bench.models.convnet import ConvNet
from tests.conftest import Guarded

Clients = dict[int, LabelledSet]
Make = Callable[..., Federation]
TRAIN = Phase("fl-training", rounds=3, local_steps=4, batch_size=8, lr=0.1)
FULL_BATCH = replace(TRAIN, rounds=2, batch_size=100)
CLIENT = UnlearningRequest("client", (1,))
CLASS = UnlearningRequest("class", (1,))
CPU = torch.device("cpu")


@dataclass(frozen=True)
class LockedHistory(UpdateHistory):
    """Gives nobody the updates of one client, and remembers what it gave."""

    locked: int
    given: list[tuple[int, int]]

    def update(self, k: int, client: int) -> tuple[State, int]:
        assert client != self.locked, "a forbidden update was read"
        self.given.append((k, client))
        return super().update(k, client)


def client_data(data: LabelledSet) -> ClientData:
    return ClientData(data, data, data)


@pytest.fixture
def trained(make_federation: Make, toy_clients: Clients, tmp_path: Path) -> Callable[..., Context]:
    """Train the toy federation with a recorder, and ask to forget something."""

    def make(request: UnlearningRequest = CLIENT, training: Phase = TRAIN, every: int = 1, **choice: object) -> Context:
        federation = make_federation()
        recorder = UpdateRecorder(tmp_path, training.rounds, every)
        initial = federation.fresh_state(1, "init")
        state = federation.run(initial, toy_clients, training, 1, record=recorder, **choice).state
        clients = {i: client_data(d) for i, d in toy_clients.items()}
        history = UpdateHistory(tmp_path, CPU)
        return Context(federation, training, clients, state, request, (request,), seed=1, history=history)

    return make


def close(a: State, b: State, atol: float = 1e-5) -> None:
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=atol, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def equal(a: State, b: State) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def norm(values: Tensor) -> float:
    return sum(v * v for v in values.double().flatten().tolist()) ** 0.5


# The calibration of one update.


def random_update(seed: int) -> State:
    stream = torch.Generator().manual_seed(seed)
    shapes = {"weight": (4, 3, 2), "bias": (4,), "scalar": ()}
    return {name: torch.randn(shape, generator=stream) for name, shape in shapes.items()}


def test_calibrated_by_hand() -> None:
    """‖(6, 8)‖ = 10 in the direction of (0, −2) is (0, −10)."""
    result = calibrate({"w": torch.tensor([6.0, 8.0])}, {"w": torch.tensor([0.0, -2.0])})
    assert result["w"].tolist() == [0, -10]


def test_length_is_the_stored_one_and_direction_the_fresh_one() -> None:
    stored, fresh = random_update(1), random_update(2)
    for name, value in calibrate(stored, fresh).items():
        assert norm(value) == pytest.approx(norm(stored[name]), rel=1e-6)
        cosine = float((value.double() * fresh[name].double()).sum()) / (norm(value) * norm(fresh[name]))
        assert cosine == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 0.3, 1.0, 7.0, 1e6])
def test_scale_of_the_fresh_update_does_not_matter(factor: float) -> None:
    stored, fresh = random_update(1), random_update(2)
    close(calibrate(stored, {name: factor * value for name, value in fresh.items()}), calibrate(stored, fresh))


def test_own_update_calibrates_to_itself() -> None:
    close(calibrate(random_update(1), random_update(1)), random_update(1))


def test_update_without_direction_becomes_zero() -> None:
    """Tensor by tensor: the norm of the second is 9·10⁻¹³, just below the bound; that of the third is above."""
    fresh = {"a": torch.zeros(2), "b": torch.tensor([9e-13, 0.0]), "c": torch.tensor([2e-12, 0.0])}
    stored = {name: torch.tensor([3.0, 4.0]) for name in fresh}
    result = calibrate(stored, fresh)
    assert result["a"].tolist() == [0, 0]
    assert result["b"].tolist() == [0, 0]
    assert result["c"].tolist() == pytest.approx([5, 0])
    assert largest_growth(stored, fresh) == pytest.approx(2.5e12)
    assert largest_growth(stored, {"a": torch.zeros(2)}) == 0


def test_non_finite_update_is_not_hidden_and_inputs_stay() -> None:
    stored, fresh = random_update(1), random_update(2)
    fresh["bias"][0] = torch.nan
    fresh["weight"][0, 0, 0] = torch.inf
    fresh["far"], stored["far"] = torch.full((3,), 1e25), torch.ones(3)  # finite, but its square is not
    copies = [{name: value.clone() for name, value in s.items()} for s in (stored, fresh)]
    result = calibrate(stored, fresh)
    assert result["bias"].isnan().any()
    assert result["weight"].isnan().any()
    assert result["far"].isnan().all()
    for before, after in zip(copies, (stored, fresh), strict=True):
        for name in before:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, equal_nan=True)


# A whole run by hand.


def descend(state: State, data: LabelledSet, steps: int, lr: float) -> State:
    """Plain torch: full-batch gradient descent."""
    model = ConvNet(width=4, depth=2).build(1, 8, 3)
    model.load_state_dict(state)
    images, labels = data.take(torch.arange(len(data)))
    for _ in range(steps):
        gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def minus(a: State, b: State) -> State:
    return {name: a[name] - b[name] for name in a}


def plus_mean(state: State, updates: dict[int, State], sizes: dict[int, int]) -> State:
    total = sum(sizes[i] for i in updates)
    return {n: v + sum(sizes[i] / total * updates[i][n] for i in updates) for n, v in state.items()}


def stretched(direction: State, length: State) -> State:
    """A bias that the normalisation cancels has no gradient, and so no direction."""
    return {n: v * (norm(length[n]) / norm(v)) if norm(v) else v for n, v in direction.items()}


def federaser_by_hand(initial: State, everyone: Clients, retained: Clients, steps: int, calibrate_first: bool) -> State:
    """The paper's algorithm, two rounds, with nothing of ours but the architecture and the initial model."""
    stored, model = [], initial
    for _ in range(2):
        updates = {
            i: minus(descend(model, d, FULL_BATCH.local_steps, FULL_BATCH.lr), model) for i, d in everyone.items()
        }
        stored.append(updates)
        model = plus_mean(model, updates, {i: len(d) for i, d in everyone.items()})
    sizes, model = {i: len(d) for i, d in retained.items()}, initial
    for t in range(2):
        updates = {}
        for i, data in retained.items():
            if t == 0 and not calibrate_first:
                updates[i] = stored[t][i]
            else:
                fresh = minus(descend(model, data, steps, FULL_BATCH.lr), model)
                updates[i] = stretched(fresh, stored[t][i])
        model = plus_mean(model, updates, sizes)
    return model


@pytest.mark.parametrize(("ratio", "steps"), [(0.5, 2), (0.6, 3), (1.0, 4)])
def test_two_clients_two_rounds_by_hand(
    ratio: float, steps: int, trained: Callable[..., Context], toy_clients: Clients
) -> None:
    """Three clients trained, the second leaves; T = 4 steps, so 2, ⌈2.4⌉ = 3 and 4 of calibration. Full batches, so
    that no batch order is in the way."""
    context = trained(CLIENT, FULL_BATCH)
    result = FedEraser(calibration_ratio=ratio).unlearn(context)
    assert context.history is not None
    retained = {i: toy_clients[i] for i in (0, 2)}
    expected = federaser_by_hand(context.history.initial(), toy_clients, retained, steps, calibrate_first=False)
    close(result.state, expected, atol=1e-4)


def test_class_request_calibrates_the_first_round_too(trained: Callable[..., Context], toy_clients: Clients) -> None:
    """The stored updates of the first round did see the class."""
    context = trained(CLASS, FULL_BATCH)
    result = FedEraser().unlearn(context)
    assert context.history is not None
    retained = {i: d.with_classes((1,), keep=False) for i, d in toy_clients.items()}
    by_hand = [federaser_by_hand(context.history.initial(), toy_clients, retained, 2, first) for first in (True, False)]
    close(result.state, by_hand[0], atol=1e-4)
    with pytest.raises(AssertionError):
        close(result.state, by_hand[1], atol=1e-4)


def test_client_request_after_a_class_request_calibrates_the_first_round_too(
    trained: Callable[..., Context], toy_clients: Clients
) -> None:
    context = trained(CLIENT, FULL_BATCH)
    context = replace(context, forgotten=(CLASS, CLIENT))
    assert context.history is not None
    retained = {i: toy_clients[i].with_classes((1,), keep=False) for i in (0, 2)}
    expected = federaser_by_hand(context.history.initial(), toy_clients, retained, 2, calibrate_first=True)
    close(FedEraser().unlearn(context).state, expected, atol=1e-4)


# Invariants.


@pytest.mark.parametrize("level", ["class", "client"])
@pytest.mark.parametrize("participation", [1.0, 0.67])
def test_replay_of_the_stored_updates_is_the_original_training(
    level: str, participation: float, trained: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Δt = 1, nobody forgotten and Û = U: θ_0 + Σ_t Σ_i w_i·U_i is how FedAvg reached θ_K."""
    monkeypatch.setattr("quickdrop_bench.methods.fed_eraser.calibrate", lambda stored, fresh: calibrate(stored, stored))
    nobody = UnlearningRequest(level, (99,))
    context = replace(trained(nobody, replace(TRAIN, participation=participation)), forgotten=())
    result = FedEraser().unlearn(context)
    close(result.state, context.state)
    assert result.cost.rounds == TRAIN.rounds


@pytest.mark.parametrize("request_", [CLASS, CLIENT], ids=str)
def test_data_and_updates_of_the_forgotten_are_never_read(
    request_: UnlearningRequest, trained: Callable[..., Context], toy_clients: Clients, tmp_path: Path
) -> None:
    context = trained(request_)
    if request_ is CLASS:
        forbidden, locked = set(torch.nonzero(toy_clients[0].labels == 1).flatten().tolist()), -1
    else:
        forbidden, locked = set(toy_clients[1].rows.tolist()), 1
    clients = {i: client_data(Guarded(d, forbidden)) for i, d in toy_clients.items()}
    history = LockedHistory(tmp_path, CPU, locked, [])
    guarded = replace(context, clients=clients, history=history)
    method = FedEraser()
    unlearned = method.unlearn(guarded)
    assert equal(unlearned.state, FedEraser().unlearn(context).state)
    expected = [(k, i) for k in range(3) for i in (0, 1, 2) if i != locked]  # each once, and in this order
    assert history.given == expected
    assert method.recover(guarded, unlearned.state) is not None
    assert method.storage(guarded) == Storage(server_bytes=history.stored_bytes(range(3)))
    with pytest.raises(AssertionError, match="forbidden data"):
        method.relearn(guarded, unlearned.state)


def test_one_retained_round_is_fedavg_of_its_models(trained: Callable[..., Context], toy_clients: Clients) -> None:
    """J = 1 and a client leaves: the models that clients 0 and 2 sent in the first round, weighted 24 : 9."""
    context = trained(CLIENT, every=3)
    result = FedEraser().unlearn(context)
    assert context.history is not None
    initial = context.history.initial()
    staying = {i: toy_clients[i] for i in (0, 2)}
    close(result.state, context.federation.run(initial, staying, replace(TRAIN, rounds=1), 1).state)
    cost = result.cost
    assert (cost.rounds, cost.data_size, cost.sample_gradients, cost.upload_bytes) == (1, 33, 0, 0)
    assert cost.seconds > 0


@pytest.mark.parametrize("request_", [CLASS, CLIENT], ids=str)
@pytest.mark.parametrize(("rounds", "every"), [(6, 2), (7, 2), (5, 3), (3, 9)])
def test_every_mth_recorded_round_is_as_if_only_those_were_recorded(
    request_: UnlearningRequest, rounds: int, every: int, trained: Callable[..., Context], tmp_path: Path
) -> None:
    training = replace(TRAIN, rounds=rounds)
    context = trained(request_, training)
    thinned = FedEraser(replay_every=every)
    state, storage = thinned.unlearn(context).state, thinned.storage(context)
    shutil.rmtree(tmp_path)
    apart = trained(request_, training, every)
    assert equal(state, FedEraser().unlearn(apart).state)
    assert storage == FedEraser().storage(apart)


def test_storage_is_the_formula(trained: Callable[..., Context]) -> None:
    """4·P·(1 + Σ_j participants): rounds 0 and 2 of 4, three clients each."""
    context = trained(CLIENT, replace(TRAIN, rounds=4), every=2)
    parameters = sum(value.numel() for value in context.state.values())
    assert FedEraser().storage(context) == Storage(server_bytes=4 * parameters * (1 + 2 * 3))


@pytest.mark.parametrize(("request_", "calibrated", "size"), [(CLIENT, 2, 33), (CLASS, 3, 30)], ids=["client", "class"])
def test_cost_counters(
    request_: UnlearningRequest, calibrated: int, size: int, trained: Callable[..., Context]
) -> None:
    """J = 3 rounds; those that are calibrated take ⌈0.5·4⌉ = 2 full-batch steps on each retained sample, and an
    upload per client (2 remain, or all 3)."""
    context = trained(request_, replace(TRAIN, batch_size=100))
    cost = FedEraser().unlearn(context).cost
    parameters = sum(value.numel() for value in context.state.values())
    clients = 2 if request_ is CLIENT else 3
    assert (cost.rounds, cost.data_size) == (3, size)
    assert cost.sample_gradients == calibrated * 2 * size
    assert cost.upload_bytes == calibrated * clients * 4 * parameters


def test_only_recorded_participants_take_part(trained: Callable[..., Context]) -> None:
    """Clients 1 and 2, then 1 alone, then 0 and 1. When 1 leaves, the middle round is skipped."""
    took_part = [[1, 2], [1], [0, 1]]
    context = trained(CLIENT, choose=lambda k, eligible: took_part[k])
    seen: list[tuple[int, tuple[int, ...]]] = []
    context.federation.fabric._callbacks.append(_Watch(seen))
    cost = FedEraser().unlearn(context).cost
    assert seen == [(2, (0,))]  # the first round is the server's alone
    assert cost.rounds == 2


class _Watch:
    def __init__(self, seen: list[tuple[int, tuple[int, ...]]]) -> None:
        self._seen = seen

    def on_round_end(self, federation: Federation, info: object) -> None:
        self._seen.append((info.round, info.participants))


def test_first_round_of_nobody_is_skipped(trained: Callable[..., Context]) -> None:
    """Only the leaver took part in the first round: the second is calibrated from θ_0."""
    context = trained(CLIENT, replace(TRAIN, rounds=2), choose=lambda k, eligible: [1] if k == 0 else [0])
    result = FedEraser().unlearn(context)
    assert context.history is not None
    initial = context.history.initial()
    stored, _ = context.history.update(1, 0)
    assert result.cost.rounds == 1
    for name, value in result.state.items():
        assert norm(value - initial[name]) == pytest.approx(norm(stored[name]), rel=1e-3, abs=1e-6)


def test_deterministic_and_inputs_untouched(trained: Callable[..., Context], tmp_path: Path) -> None:
    context = trained(CLASS)
    state = {name: value.clone() for name, value in context.state.items()}
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    first, second = (FedEraser().unlearn(context) for _ in range(2))
    assert equal(first.state, second.state)
    assert equal(context.state, state)
    assert not equal(first.state, state)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    backward = replace(context, clients=dict(reversed(context.clients.items())))
    assert equal(FedEraser().unlearn(backward).state, first.state)


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


def test_recovery_has_three_rounds_on_what_is_retained(trained: Callable[..., Context], toy_clients: Clients) -> None:
    context = trained(CLIENT)
    result = FedEraser().recover(context, context.state)
    staying = {i: toy_clients[i] for i in (0, 2)}
    expected = context.federation.run(context.state, staying, Phase("recovery", 3, 4, 8, 0.01), 1)
    assert result is not None
    assert equal(result.state, expected.state)
    assert (result.cost.rounds, result.cost.data_size) == (3, 33)


def test_relearning_is_descent_on_the_forget_set(trained: Callable[..., Context], toy_clients: Clients) -> None:
    context = trained(CLIENT)
    assert FedEraser.can_relearn
    expected = context.federation.run(context.state, {1: toy_clients[1]}, Phase("relearning", 2, 4, 8, 0.01), 1)
    assert equal(FedEraser().relearn(context, context.state).state, expected.state)


@pytest.mark.parametrize(
    "request_", [UnlearningRequest("class", (0, 1, 2)), UnlearningRequest("client", (0, 1, 2))], ids=str
)
def test_nothing_left_gives_the_initial_model(request_: UnlearningRequest, trained: Callable[..., Context]) -> None:
    context = trained(request_)
    result = FedEraser().unlearn(context)
    assert context.history is not None
    assert equal(result.state, context.history.initial())
    assert (result.cost.rounds, result.cost.data_size) == (0, 0)


def test_explosion_is_reported_with_its_growth(
    trained: Callable[..., Context], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stored updates beyond float32 make a non-finite step: the last finite model is kept."""
    context = trained(CLIENT)
    vast = {name: torch.full_like(value, 1e30) for name, value in context.state.items()}
    zero = {name: torch.zeros_like(value) for name, value in context.state.items()}
    UpdateRecorder(tmp_path, 3, 1)(1, 0, 24, zero, vast)
    with caplog.at_level(logging.DEBUG, "quickdrop_bench.methods.fed_eraser"):
        result = FedEraser().unlearn(context)
    assert result.diverged
    assert result.cost.rounds == 2
    assert all(value.isfinite().all() for value in result.state.values())
    assert "round 1, client 0: updates grow up to" in caplog.text


@pytest.mark.parametrize(
    ("ratio", "steps", "expected"), [(0.5, 50, 25), (0.5, 5, 3), (0.07, 100, 7), (0.1, 30, 3), (0.01, 4, 1), (1, 7, 7)]
)
def test_calibration_steps_round_up(ratio: float, steps: int, expected: int) -> None:
    """⌈r·T⌉ in decimals; 0.07·100 is 7.000000000000001 in floating point."""
    phase = FedEraser(calibration_ratio=ratio).calibration(replace(TRAIN, local_steps=steps), rounds=2)
    assert phase.local_steps == expected
    assert (phase.rounds, phase.lr, phase.ascend) == (2, TRAIN.lr, False)
    assert FedEraser(calibration_lr=0.3).calibration(TRAIN, 2).lr == 0.3


def test_needs_the_update_history() -> None:
    check_support("federaser", CLASS, frozenset({"retain-data", "update-history"}))
    check_support("federaser", CLIENT, frozenset({"retain-data", "update-history"}))
    with pytest.raises(Unsupported, match="update-history"):
        check_support("federaser", CLASS, frozenset({"retain-data", "forget-data"}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"calibration_ratio": 0.0},
        {"calibration_ratio": 1.1},
        {"calibration_lr": 0.0},
        {"recover_rounds": -1},
        {"replay_every": 0},
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        FedEraser(**wrong)

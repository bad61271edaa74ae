"""Channel pruning on a federation: what it measures, prunes, keeps at zero and costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quickdrop_bench.core.errors import BadInput, Unsupported
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.federation.channels import measure, recorded_activity
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.functional.pruning import prunable_layers, tf_idf
from quickdrop_bench.methods.context import ClientData, Context
from quickdrop_bench.methods.fu_mp import FuMp, measurable_data
from quickdrop_bench.methods.registry import METHODS, check_support
from quickdrop_bench.models import Model
from quickdrop_bench.models.resnet18 import ResNet18
from tests.by_hand import equal
from tests.conftest import Guarded
from tests.small_models import CONVNETS, EACH

Make = Callable[..., Federation]
Clients = dict[int, LabelledSet]
TRAIN = Phase("fl-training", rounds=3, local_steps=6, batch_size=8, lr=0.2)
CLASSES = torch.arange(3)
on_models_in_a_row = pytest.mark.parametrize("model", [m for m in EACH if not isinstance(m, ResNet18)], ids=str)


def class_request(target: int) -> UnlearningRequest:
    return UnlearningRequest("class", (target,))


def make_context(federation: Federation, clients: Clients, state: State | None = None, target: int = 1) -> Context:
    if state is None:
        state = federation.run(federation.fresh_state(1, "init"), clients, TRAIN, 1).state
    data = {i: ClientData(d, d, d) for i, d in clients.items()}
    request = class_request(target)
    return Context(federation, TRAIN, data, state, request, (request,), seed=1)


@pytest.fixture
def context(make_federation: Make, toy_clients: Clients) -> Context:
    """A request to forget class 1."""
    return make_context(make_federation(), toy_clients)


def guard(context: Context, *classes: int) -> Context:
    labels = context.clients[0].original.labels
    forbidden = set(torch.nonzero(torch.isin(labels, torch.tensor(classes))).flatten().tolist())
    clients = {i: replace(c, original=Guarded(c.original, forbidden)) for i, c in context.clients.items()}
    return replace(context, clients=clients)


def zeroed(state: State) -> list[int]:
    """Channels, counted through all convolutions, whose filter is zero."""
    filters = [value.flatten(1) for value in state.values() if value.dim() == 4]
    return torch.cat([(f == 0).all(1) for f in filters]).nonzero().flatten().tolist()


def pictures(clients: Clients) -> tuple[Tensor, Tensor]:
    """The union of the clients' data, in a plain order."""
    parts = [d.take(torch.arange(len(d))) for _, d in sorted(clients.items())]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def activity_by_hand(federation: Federation, state: State, images: Tensor) -> Tensor:
    """(B, channels) mean of the ReLU of each convolution's output, one module after the other, without hooks."""
    federation.load(state)
    found, signal = [], images
    with torch.no_grad():
        for module in federation.model.module.features:
            signal = module(signal)
            if isinstance(module, torch.nn.Conv2d):
                found.append(signal.clamp(min=0).sum((2, 3)) / (signal.shape[2] * signal.shape[3]))
    return torch.cat(found, 1)


def means_of(context: Context) -> Tensor:
    return measure(context.federation, context.state, measurable_data(context), CLASSES)[0]


@on_models_in_a_row
def test_clients_statistics_pool_to_that_of_the_union(
    model: Model, make_federation: Make, toy_clients: Clients
) -> None:
    """Read without hooks, batches or clients; float32 uploads, so equal up to their rounding."""
    federation = make_federation(architecture=model)
    context = make_context(federation, toy_clients)
    images, labels = pictures(toy_clients)
    activity = activity_by_hand(federation, context.state, images)
    union = torch.stack([activity[labels == c].double().mean(0) for c in range(3)])
    torch.testing.assert_close(means_of(context), union, rtol=1e-5, atol=1e-7)


def test_batches_do_not_change_the_statistic(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = means_of(context)
    monkeypatch.setattr("quickdrop_bench.federation.channels.BATCH_SIZE", 5)
    torch.testing.assert_close(means_of(context), whole, rtol=1e-5, atol=1e-7)


def test_the_order_and_the_split_of_clients_do_not_matter(context: Context, toy_clients: Clients) -> None:
    """The same images on other clients give the same statistic; listed in another order, the same bits."""
    rows = torch.arange(45).flip(0)
    other = {7: rows[:2], 8: rows[2:40], 9: rows[40:]}
    moved = {i: replace(toy_clients[0], rows=r) for i, r in other.items()}
    moved_context = make_context(context.federation, moved, context.state)
    torch.testing.assert_close(means_of(moved_context), means_of(context), rtol=1e-5, atol=1e-7)
    backwards = replace(context, clients=dict(reversed(context.clients.items())))
    assert torch.equal(means_of(backwards), means_of(context))
    assert equal(FuMp().unlearn(backwards).state, FuMp().unlearn(context).state)


@on_models_in_a_row
@pytest.mark.parametrize("ratio", [0.04, 0.2, 0.5, 0.95])
def test_the_highest_scores_are_pruned_and_nothing_else_changes(
    model: Model, ratio: float, make_federation: Make, toy_clients: Clients
) -> None:
    """Scores by loops over the definitions: ⌊R·n⌋ of the highest go, at R = 0.04 none; a tenth of each layer stays."""
    federation = make_federation(architecture=model)
    context = make_context(federation, toy_clients)
    images, labels = pictures(toy_clients)
    activity = activity_by_hand(federation, context.state, images).double()
    layer_of = [name for name, value in context.state.items() if value.dim() == 4 for _ in value]
    count = len(layer_of)
    means = [[float(activity[labels == c][:, j].mean()) for j in range(count)] for c in range(3)]
    scores = []
    for j in range(count):
        layer = [k for k in range(count) if layer_of[k] == layer_of[j]]
        q = sum(means[c][j] >= sum(means[k][j] for k in range(3)) / 3 for c in range(3))
        scores.append(means[1][j] / sum(means[1][k] for k in layer) * float(torch.tensor(4 / (1 + q)).log()))
    expected: list[int] = []
    for j in sorted(range(count), key=lambda j: -scores[j]):
        most = math.floor(0.9 * layer_of.count(layer_of[j]))
        if len(expected) < int(ratio * count) and sum(layer_of[k] == layer_of[j] for k in expected) < most:
            expected.append(j)
    after = FuMp(prune_ratio=ratio).unlearn(context).state
    assert zeroed(after) == sorted(expected)
    layers = prunable_layers(federation.model.module)
    of_module = {module: f"{conv}.weight" for conv, norm in layers for module in (conv, norm) if module}
    for name, value in after.items():
        want = context.state[name].clone()
        layer = of_module.get(name.rsplit(".", 1)[0])  # none for the classifier, above all
        if layer:
            want[[j - layer_of.index(layer) for j in expected if layer_of[j] == layer]] = 0
        assert torch.equal(value, want), name


def test_a_channel_for_one_class_ranks_first_and_its_removal_hurts_that_class_most(make_federation: Make) -> None:
    """One layer of four channels. Class c is a bright picture quarter c; filter c is the mere centre pixel.

    Without normalisation, channels 0, 2 and 3 fire for all classes alike (bias 1, weight 0). Channel 1 copies the
    picture where class 1 alone is positive, so A^{u,1} is positive for u = 1 only: q = 1 and IDF = ln(4/2), while
    the uniform channels have IDF 0. The classifier reads class 1 from channel 1, the others from the biases.
    """
    federation = make_federation(norm="none", depth=1)
    state = {n: torch.zeros_like(v) for n, v in federation.read().items()}
    state["features.0.bias"][[0, 2, 3]] = 1.0
    state["features.0.weight"][1, 0, 1, 1] = 1.0
    # A filter that is zero throughout counts as pruned; this one is not, yet it sees no image.
    state["features.0.weight"][[0, 2, 3], 0, 1, 1] = 1e-12
    state["classifier.weight"].view(3, 4, 4, 4)[1, 1] = 1.0
    state["classifier.bias"][:] = torch.tensor([0.5, 0.0, 0.0])
    labels = torch.arange(30) % 3
    images = torch.full((30, 1, 8, 8), -1.0)
    images[labels == 1] = 2.0
    clients = {0: LabelledSet.of(images, labels)}
    context = make_context(federation, clients, state)
    assert int(tf_idf(means_of(context), 1, (4,)).argmax()) == 1
    after = FuMp(prune_ratio=0.25).unlearn(context).state
    assert (after["features.0.weight"].flatten(1).any(1)).tolist() == [True, False, True, True]

    def losses(model: State) -> Tensor:
        federation.load(model)
        with torch.no_grad():
            each = F.cross_entropy(federation.model(images), labels, reduction="none")
        return torch.stack([each[labels == c].mean() for c in range(3)])

    harm = []
    for channel in range(4):
        removed = {n: v.clone() for n, v in state.items()}
        removed["features.0.weight"][channel] = 0
        removed["features.0.bias"][channel] = 0
        harm.append(losses(removed) - losses(state))
    assert int(torch.stack(harm)[:, 1].argmax()) == 1
    assert int(harm[1].argmax()) == 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("model", EACH, ids=str)
def test_pruned_outputs_are_exactly_zero_after_recovery(
    model: Model, precision: str, make_federation: Make, toy_clients: Clients
) -> None:
    """Seen behind the normalisation, on random images; the channels that are left have been trained."""
    federation = make_federation(precision, architecture=model)
    context = make_context(federation, toy_clients)
    method = FuMp(prune_ratio=0.4, recover_lr=0.2, recover_rounds=2)
    unlearned = method.unlearn(context).state
    recovered = method.recover(context, unlearned)
    assert recovered is not None
    layers = prunable_layers(federation.model.module)
    channels = sum(len(unlearned[f"{conv}.weight"]) for conv, _ in layers)
    assert len(zeroed(unlearned)) == math.floor(0.4 * channels)
    assert zeroed(recovered.state) == zeroed(unlearned)
    assert not equal(recovered.state, unlearned)
    federation.load(recovered.state)
    seen: dict[str, Tensor] = {}
    for conv, norm in layers:
        module = federation.model.module.get_submodule(norm or conv)
        module.register_forward_hook(lambda m, i, out, conv=conv: seen.update({conv: out.clone()}))
    with torch.no_grad():
        federation.model(torch.randn(6, 1, 8, 8))
    loud = torch.cat([seen[conv].transpose(0, 1).flatten(1).any(1) for conv, _ in layers])
    assert torch.nonzero(~loud).flatten().tolist() == zeroed(recovered.state)


@pytest.mark.parametrize("norm", CONVNETS)
def test_masks_hold_channels_that_would_grow_again(norm: str, make_federation: Make, toy_clients: Clients) -> None:
    """ReLU passes no gradient at 0; GELU's is ½ there, so that pruned channels grow behind every normalisation.

    With ReLU they do behind norm ``layer`` only, whose statistics hand a gradient to all channels. The hold ends
    with recovery: the same phase run plainly lets them grow.
    """
    federation = make_federation(norm=norm, static=False)
    context = make_context(federation, toy_clients)
    for position in (2, 6):
        federation.model.module.features[position] = torch.nn.GELU()
    method = FuMp(prune_ratio=0.4)
    unlearned = method.unlearn(context).state
    own = [n for n, v in unlearned.items() if n.startswith("features") and (v == 0).any()]
    recovered = method.recover(context, unlearned)
    assert recovered is not None
    assert not any(recovered.state[n][unlearned[n] == 0].any() for n in own)
    assert not equal(recovered.state, unlearned)
    plain = context.run(unlearned, context.retain_data(), method.recovery(TRAIN)).state
    assert any(plain[n][unlearned[n] == 0].any() for n in own)


def test_a_second_request_keeps_the_first_ones_channels(context: Context) -> None:
    """⌊0.25·8⌋ = 2 channels for each request: two, then four, the first two among them."""
    method = FuMp(prune_ratio=0.25)
    first = method.recover(context, method.unlearn(context).state)
    assert first is not None
    second_context = context.then(first.state, class_request(0))
    second = method.recover(second_context, method.unlearn(second_context).state)
    assert second is not None
    assert len(zeroed(first.state)) == 2
    assert len(zeroed(second.state)) == 4
    assert set(zeroed(first.state)) < set(zeroed(second.state))


def test_what_is_left_of_a_pruned_channel_goes_too(context: Context) -> None:
    """A zero filter whose biases are not zero, as pruning of the filter alone would leave it, gives a constant."""
    state = {n: v.clone() for n, v in context.state.items()}
    state["features.4.weight"][2] = 0
    after = FuMp(prune_ratio=0.12).unlearn(replace(context, state=state)).state
    assert zeroed(after) == [6]
    assert not any(after[f"features.{n}"][2].any() for n in ("4.weight", "4.bias", "5.weight", "5.bias"))


def test_what_earlier_requests_forgot_is_not_read(context: Context) -> None:
    second = context.then(context.state, class_request(0))
    result = FuMp().unlearn(guard(second, 1))
    assert (result.cost.data_size, result.cost.sample_forwards) == (30, 30)
    assert result.cost.upload_bytes == 3 * 4 * 2 * (8 + 1)
    with pytest.raises(AssertionError, match="forbidden"):
        FuMp().unlearn(guard(second, 0))
    FuMp().recover(guard(second, 0, 1), result.state)


def test_an_earlier_class_weighs_nothing_in_the_scores(context: Context, toy_clients: Clients) -> None:
    """As if its images had never been there."""
    second = context.then(context.state, class_request(0))
    without = {i: d.with_classes((1,), keep=False) for i, d in toy_clients.items()}
    alone = make_context(context.federation, without, context.state, target=0)
    assert equal(FuMp(prune_ratio=0.5).unlearn(second).state, FuMp(prune_ratio=0.5).unlearn(alone).state)


def test_an_earlier_clients_data_are_not_read(context: Context) -> None:
    second = replace(context, forgotten=(UnlearningRequest("client", (2,)), context.request))
    assert FuMp().unlearn(second).cost.data_size == 24 + 12


def test_costs(context: Context) -> None:
    """45 images on three clients, three classes, 2·4 channels; recovery is that of the shared settings."""
    method = FuMp(recover_local_steps=3)
    unlearned = method.unlearn(context)
    assert unlearned.cost.seconds > 0
    assert (unlearned.cost.rounds, unlearned.cost.data_size, unlearned.cost.sample_forwards) == (1, 45, 45)
    assert unlearned.cost.sample_gradients == 0
    assert unlearned.cost.upload_bytes == 3 * (4 * 3 * 8 + 4 * 3)  # means and counts of each client
    recovered = method.recover(context, unlearned.state)
    assert recovered is not None
    assert (recovered.cost.rounds, recovered.cost.data_size, recovered.cost.sample_forwards) == (4, 30, 0)
    assert method.storage(context).metrics() == {"storage_server_bytes": 0, "storage_client_bytes": 0}


def test_each_image_is_passed_forward_once(make_federation: Make, toy_clients: Clients) -> None:
    """45 and the warm-up, which is not counted, of the first client's 24."""
    federation = make_federation()
    context = make_context(federation, toy_clients)
    passed: list[int] = []
    handle = federation.model.module.register_forward_hook(lambda m, i, out: passed.append(len(out)))
    FuMp().unlearn(context)
    handle.remove()
    assert passed == [24, 24, 12, 9]


def test_a_sample_of_each_client(context: Context) -> None:
    """At most ten images each: 10 + 10 + 9; all of D may be touched."""
    cost = FuMp(score_samples=10).unlearn(context).cost
    assert (cost.data_size, cost.sample_forwards) == (45, 29)
    assert equal(FuMp(score_samples=24).unlearn(context).state, FuMp().unlearn(context).state)


def test_a_sample_without_the_class_is_an_error(make_federation: Make, toy_clients: Clients) -> None:
    """One of twelve images shows the class, and one is drawn: most seeds miss it, and none prunes at random."""
    federation = make_federation()
    lone = toy_clients[0].subset(torch.tensor([0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 1]))
    context = make_context(federation, {0: lone}, federation.fresh_state(1, "init"))
    with pytest.raises(BadInput, match="score_samples 1: it left no image of class 1"):
        FuMp(score_samples=1).unlearn(context)
    assert FuMp(score_samples=12).unlearn(context).cost.sample_forwards == 12


def test_same_seed_same_result(context: Context) -> None:
    before = {n: v.clone() for n, v in context.state.items()}
    method = FuMp(score_samples=12, prune_ratio=0.4)

    def serve() -> State:
        result = method.recover(context, method.unlearn(context).state)
        assert result is not None
        return result.state

    assert equal(serve(), serve())
    assert equal(context.state, before)


def test_the_requested_class_alone_or_absent_is_no_crash(context: Context) -> None:
    """Alone: every score is 0 and the first channels go. Absent: nothing to measure, nothing pruned."""
    everything = replace(context, forgotten=tuple(class_request(c) for c in range(3)))
    result = FuMp(prune_ratio=0.2).unlearn(everything)
    assert zeroed(result.state) == [0]
    assert FuMp(prune_ratio=0.2).recover(everything, result.state) is not None
    absent = replace(context, request=class_request(5), forgotten=(class_request(5),))
    assert equal(FuMp(prune_ratio=0.2).unlearn(absent).state, context.state)


def test_hooks_do_not_outlive_the_round(make_federation: Make) -> None:
    model = make_federation().model.module
    with recorded_activity(model):
        assert any(m._forward_hooks for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())


def test_what_it_does_not_do_is_refused(context: Context) -> None:
    assert METHODS["fu-mp"] is FuMp
    check_support("fu-mp", class_request(1), frozenset({"forget-data", "retain-data"}))
    with pytest.raises(Unsupported, match="class requests, not client"):
        check_support("fu-mp", UnlearningRequest("client", (1,)), frozenset({"forget-data", "retain-data"}))
    assert not FuMp.can_relearn
    with pytest.raises(Unsupported, match="fu-mp class-1: pruned channels cannot learn again"):
        FuMp().relearn(context, context.state)
    with pytest.raises(Unsupported, match="one class at a time"):
        FuMp().unlearn(replace(context, request=UnlearningRequest("class", (0, 1))))
    linear = Federation(context.federation.fabric, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))
    with pytest.raises(Unsupported, match="no convolution"):
        FuMp().unlearn(replace(context, federation=linear))


@pytest.mark.parametrize("options", [{"prune_ratio": r} for r in (0.0, -0.1, 1.0, 1.5, float("nan"))])
def test_bad_ratios(options: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="prune_ratio"):
        FuMp(**options)


@pytest.mark.parametrize("options", [{"score_samples": 0}, {"recover_lr": -1.0}])
def test_other_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(options))):
        FuMp(**options)  # type: ignore[arg-type]


def test_defaults_are_those_of_table_2() -> None:
    assert (FuMp().recover_rounds, FuMp().prune_ratio, FuMp().score_samples) == (4, 0.5, None)

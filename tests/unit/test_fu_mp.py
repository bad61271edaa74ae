"""Channel pruning on a federation: what it measures, prunes, keeps at zero and costs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quickdrop_bench.core.errors import BadInput, Unsupported
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.federation.channels import measure
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.functional.pruning import prunable_layers
from quickdrop_bench.methods.context import Context
from quickdrop_bench.methods.fu_mp import FuMp, measurable_data
from quickdrop_bench.models import Model
from quickdrop_bench.models.resnet18 import ResNet18
from tests.asked import asked, guarded
from tests.by_hand import equal
from tests.conftest import Clients, Make
from tests.small_models import CONVNETS, EACH

TRAIN = Phase("fl-training", rounds=3, local_steps=6, batch_size=8, lr=0.2)
CLASS_0 = UnlearningRequest("class", (0,))
on_models_in_a_row = pytest.mark.parametrize("model", [m for m in EACH if not isinstance(m, ResNet18)], ids=str)


def trained(federation: Federation, clients: Clients) -> Context:
    """A request to forget class 1 of a trained model."""
    context = asked(federation, clients, "class", training=TRAIN)
    return replace(context, state=federation.run(context.state, clients, TRAIN, 1).state)


@pytest.fixture
def context(make_federation: Make, toy_clients: Clients) -> Context:
    return trained(make_federation(), toy_clients)


def rows_of(clients: Clients, *classes: int) -> set[int]:
    return {row for d in clients.values() for row in d.with_classes(classes, keep=True).rows.tolist()}


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
    return measure(context.federation, context.state, measurable_data(context), torch.arange(3))[0]


def test_batches_and_the_order_and_split_of_clients_do_not_matter(
    context: Context, toy_clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients listed in another order give the same bits; the same images on others, the same statistic."""
    whole = means_of(context)
    backwards = replace(context, clients=dict(reversed(context.clients.items())))
    assert torch.equal(means_of(backwards), whole)
    assert equal(FuMp().unlearn(backwards).state, FuMp().unlearn(context).state)
    rows = torch.arange(45).flip(0)
    moved = {7: rows[:2], 8: rows[2:40], 9: rows[40:]}
    other = asked(context.federation, {i: replace(toy_clients[0], rows=r) for i, r in moved.items()}, "class")
    monkeypatch.setattr("quickdrop_bench.federation.channels.BATCH_SIZE", 5)
    torch.testing.assert_close(means_of(replace(other, state=context.state)), whole, rtol=1e-5, atol=1e-7)


@on_models_in_a_row
@pytest.mark.parametrize("ratio", [0.04, 0.2, 0.5, 0.95])
def test_the_highest_scores_are_pruned_and_nothing_else_changes(
    model: Model, ratio: float, make_federation: Make, toy_clients: Clients
) -> None:
    """Scores by loops over the definitions: ⌊R·n⌋ of the highest go, at R = 0.04 none; a tenth of each layer stays."""
    federation = make_federation(architecture=model)
    context = trained(federation, toy_clients)
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


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("model", EACH, ids=str)
def test_pruned_outputs_are_exactly_zero_after_recovery(
    model: Model, precision: str, make_federation: Make, toy_clients: Clients
) -> None:
    """Seen behind the normalisation, on random images; the channels that are left have been trained."""
    federation = make_federation(precision, architecture=model)
    context = trained(federation, toy_clients)
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
    context = trained(federation, toy_clients)
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
    second_context = context.then(first.state, CLASS_0)
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


def test_what_earlier_requests_forgot_is_neither_read_nor_weighs(context: Context, toy_clients: Clients) -> None:
    """As if it had never been there."""
    second = context.then(context.state, CLASS_0)
    method = FuMp(prune_ratio=0.5)
    result = method.unlearn(guarded(second, rows_of(toy_clients, 1)))
    assert (result.cost.data_size, result.cost.sample_forwards) == (30, 30)
    assert result.cost.upload_bytes == 3 * 4 * 2 * (8 + 1)
    with pytest.raises(AssertionError, match="forbidden"):
        method.unlearn(guarded(second, rows_of(toy_clients, 0)))
    method.recover(guarded(second, rows_of(toy_clients, 0, 1)), result.state)
    without = {i: d.with_classes((1,), keep=False) for i, d in toy_clients.items()}
    alone = asked(context.federation, without, CLASS_0, context.state, TRAIN)
    assert equal(result.state, method.unlearn(alone).state)
    left = replace(context, forgotten=(UnlearningRequest("client", (2,)), context.request))
    assert method.unlearn(left).cost.data_size == 24 + 12


def test_each_image_is_passed_forward_once(context: Context) -> None:
    """45 and the warm-up, which is not counted, of the first client's 24; means and counts are uploaded."""
    passed: list[int] = []
    model = context.federation.model.module
    handle = model.register_forward_hook(lambda m, i, out: passed.append(len(out)))
    cost = FuMp().unlearn(context).cost
    handle.remove()
    assert passed == [24, 24, 12, 9]
    assert not any(m._forward_hooks for m in model.modules())
    assert (cost.data_size, cost.sample_forwards) == (45, 45)
    assert cost.upload_bytes == 3 * (4 * 3 * 8 + 4 * 3)  # clients, classes, channels


def test_a_sample_of_each_client(context: Context) -> None:
    """At most ten images each: 10 + 10 + 9, the same again; all of D may be touched."""
    few = FuMp(score_samples=10)
    result = few.unlearn(context)
    assert (result.cost.data_size, result.cost.sample_forwards) == (45, 29)
    assert equal(few.unlearn(context).state, result.state)
    assert equal(FuMp(score_samples=24).unlearn(context).state, FuMp().unlearn(context).state)


def test_a_sample_without_the_class_is_an_error(make_federation: Make, toy_clients: Clients) -> None:
    """One of twelve images shows the class, and one is drawn: most seeds miss it, and none prunes at random."""
    federation = make_federation()
    lone = toy_clients[0].subset(torch.tensor([0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 1]))
    context = asked(federation, {0: lone}, "class")
    with pytest.raises(BadInput, match="score_samples 1: it left no image of class 1"):
        FuMp(score_samples=1).unlearn(context)
    assert FuMp(score_samples=12).unlearn(context).cost.sample_forwards == 12


def test_the_requested_class_alone_or_absent_is_no_crash(context: Context) -> None:
    """Alone: every score is 0 and the first channels go. Absent: nothing to measure, nothing pruned."""
    everything = replace(context, forgotten=tuple(UnlearningRequest("class", (c,)) for c in range(3)))
    result = FuMp(prune_ratio=0.2).unlearn(everything)
    assert zeroed(result.state) == [0]
    assert FuMp(prune_ratio=0.2).recover(everything, result.state) is not None
    nowhere = UnlearningRequest("class", (5,))
    absent = replace(context, request=nowhere, forgotten=(nowhere,))
    assert equal(FuMp(prune_ratio=0.2).unlearn(absent).state, context.state)


def test_what_it_does_not_do_is_refused(context: Context) -> None:
    with pytest.raises(Unsupported, match="fu-mp class-1: pruned channels cannot learn again"):
        FuMp().relearn(context, context.state)
    with pytest.raises(Unsupported, match="one class at a time"):
        FuMp().unlearn(replace(context, request=UnlearningRequest("class", (0, 1))))
    linear = Federation(context.federation.fabric, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))
    with pytest.raises(Unsupported, match="no convolution"):
        FuMp().unlearn(replace(context, federation=linear))

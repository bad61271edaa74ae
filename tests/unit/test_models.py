"""The registered models: their sizes, their promises, and the pooling they share."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.functional.pooling import HalvingPool
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.models import MODELS, Model
from quickdrop_bench.models.convnet import ConvNet
from quickdrop_bench.models.lenet5 import LeNet5
from quickdrop_bench.models.resnet18 import ResNet18
from tests.small_models import EACH


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("convnet", (3, 32), 320_010),
        ("convnet", (1, 28), 317_706),
        ("lenet5", (1, 28), 61_706),
        ("resnet18", (3, 32), 11_173_962),
    ],
)
def test_published_parameter_counts(name: str, shape: tuple[int, int], parameters: int) -> None:
    """The ConvNet's of the paper; LeNet-5's on 32×32 images; ResNet-18's with batch normalisation for CIFAR-10."""
    assert sum(p.numel() for p in MODELS[name]().build(*shape, 10).parameters()) == parameters


@pytest.mark.parametrize("model", EACH, ids=str)
def test_every_image_size_and_no_coupling_between_samples(model: Model) -> None:
    for channels, size in [(1, 8), (1, 28), (1, 30), (3, 32), (3, 40)]:
        network, images = model.build(channels, size, 7), torch.randn(3, channels, size, size)
        assert network(images).shape == (3, 7)
        torch.testing.assert_close(network(images)[:2], network(images[:2]))
        assert not list(network.buffers())


def test_resnets_blocks_add_to_what_passes_by() -> None:
    """A block whose last scale and shift are zero lets the picture through; three of eight halve it."""
    network: Any = ResNet18(filters=4).build(1, 8, 3)
    for parameter in network.stages[0][0].body[4].parameters():
        parameter.data.zero_()
    picture = network.stem(torch.randn(2, 1, 8, 8))
    assert torch.equal(network.stages[0](picture), picture)
    sides = []
    for stage in network.stages:
        picture = stage(picture)
        sides.append(picture.shape[-1])
    assert sides == [8, 8, 4, 4, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("model", "size", "named"),
    [(ConvNet(depth=4), 8, "--depth 4: images of 8 pixels"), (LeNet5(), 3, "--model lenet5: images of at least 4")],
)
def test_images_that_are_too_small(model: Model, size: int, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        model.build(1, size, 3)


def test_a_spec_says_which_model_and_hashes_what_it_uses() -> None:
    with pytest.raises(BadInput, match="--norm batch"):
        FederationSpec(norm="batch")
    with pytest.raises(BadInput, match="--model resnet: did you mean resnet18"):
        FederationSpec(model="resnet")
    usual, other = FederationSpec(width=16), FederationSpec(model="lenet5", width=16)
    assert usual.architecture == ConvNet(width=16)
    assert "model" not in usual.resolved()
    assert other.architecture == LeNet5()
    assert other.resolved() == replace(other, width=99, norm="layer").resolved()
    assert {*other.resolved()} ^ {*usual.resolved()} == {"model", "width", "depth", "norm"}


def test_a_model_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line's width goes to it, as it has such an option; depth and norm do not."""
    assert list(MODELS)[:1] == ["convnet"]
    monkeypatch.setattr(MODELS, "_items", dict(MODELS._items))

    @MODELS.register("perceptron")
    @dataclass(frozen=True)
    class Perceptron:
        title = "Perceptron"
        summary = "one hidden layer"
        width: int = 8
        slope: float = 0.1

        def build(self, channels: int, image_size: int, classes: int) -> nn.Module:
            hidden = nn.Linear(channels * image_size**2, self.width)
            return nn.Sequential(nn.Flatten(), hidden, nn.LeakyReLU(self.slope), nn.Linear(self.width, classes))

    spec = FederationSpec(model="perceptron", width=16)
    assert spec.architecture == Perceptron(16)
    assert {"model": "perceptron", "width": 16}.items() <= spec.resolved().items()
    assert not {"depth", "norm"} & {*spec.resolved()}
    assert spec.hash("", 1, "32-true") != replace(spec, width=8).hash("", 1, "32-true")
    assert spec.architecture.build(1, 8, 3)(torch.randn(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("chosen", [{"model": "lenet5"}, {"dataset": "emnist"}], ids=str)
def test_a_change_of_the_own_file_of_a_model_or_data_set_is_noticed(
    chosen: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    roots: set[str] = set()
    digest = "quickdrop_bench.harness.federation_spec.source_digest"
    monkeypatch.setattr(digest, lambda *paths: str(roots.update(path.stem for path in paths)))
    FederationSpec(**chosen).hash("", 1, "32-true")  # type: ignore[arg-type]
    assert {*chosen.values()} <= roots


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("side", "batch"), [(8, 5), (32, 150)], ids=["tiny", "large"])
def test_exported_models_pool_by_the_library_and_leave_training_alone(side: int, batch: int) -> None:
    model, images = ConvNet(width=4).build(1, side, 3), torch.randn(batch, 1, side, side)
    expected = model(images)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected)
    traced = torch.jit.trace(model, images)
    exported = torch.export.export(model, (images,)).module()
    for other in (traced, exported):
        graph = str(other.inlined_graph if other is traced else other.graph)
        assert len(re.findall(r"aten\W+avg_pool2d", graph)) == 3
        torch.testing.assert_close(other(images), expected)
    model(images).sum().backward()


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 4), (2, 3, 4, 16), (2, 3, 16, 16), (40, 16, 32, 32)], ids=["tiny", "wide", "small", "large"]
)
def test_halving_pool_is_average_pooling(shape: tuple[int, ...]) -> None:
    """In its values and in both derivatives."""
    torch.manual_seed(0)
    images = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    pooled = [pool(images) for pool in (HalvingPool(), torch.nn.AvgPool2d(2))]
    gradients = [torch.autograd.grad((p**3).sum(), images, create_graph=True)[0] for p in pooled]
    curvatures = [torch.autograd.grad((g**2).sum(), images)[0] for g in gradients]
    for ours, theirs in (pooled, gradients, curvatures):
        torch.testing.assert_close(ours, theirs)


def test_halving_pool_does_not_round_under_autocast() -> None:
    images = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = HalvingPool()(images)
    torch.testing.assert_close(pooled, torch.nn.AvgPool2d(2)(images))

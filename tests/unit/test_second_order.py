"""Passes that are written out against what autograd makes of the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quickdrop_bench.functional import layers
from quickdrop_bench.functional.layers import Classes, is_supported
from quickdrop_bench.functional.matching import ClassGradients, matching_distance
from quickdrop_bench.functional.second_order import distance_and_image_gradient
from quickdrop_bench.models import ConvNet

SIZES, LABELS = [3, 1, 4, 2], [0, 2, 3, 6]
OF_EACH = torch.tensor(LABELS).repeat_interleave(torch.tensor(SIZES))


def perturbed(model: nn.Module) -> nn.Module:
    """In double precision, with norms that scale and shift."""
    for parameter in model.double().parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def by_autograd(model: nn.Module, images: Tensor, targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    leaf = images.clone().requires_grad_()
    distance = matching_distance(targets, ClassGradients(model).synthetic(leaf.split(SIZES), LABELS))
    return distance.detach(), torch.autograd.grad(distance, leaf)[0]


@pytest.mark.parametrize("unfolded", [0, 2**40], ids=["by class", "unfolded"])
@pytest.mark.parametrize("norm", ["instance", "layer", "none"])
@pytest.mark.parametrize(("channels", "size", "depth"), [(1, 8, 2), (3, 16, 3), (1, 28, 3), (3, 8, 1)])
def test_distance_and_gradient_equal_autograds(
    monkeypatch: pytest.MonkeyPatch, unfolded: int, norm: str, channels: int, size: int, depth: int
) -> None:
    monkeypatch.setattr(layers, "UNFOLDED", unfolded)
    torch.manual_seed(size)
    model = perturbed(ConvNet(channels, size, 7, width=4, depth=depth, norm=norm))
    assert isinstance(model, ConvNet)
    images, others = torch.randn(2, sum(SIZES), channels, size, size, dtype=torch.float64)
    targets = [t.detach() for t in ClassGradients(model).synthetic(others.split(SIZES), LABELS)]
    expected = by_autograd(model, images, targets)
    found = distance_and_image_gradient(model.sequence, images, OF_EACH, Classes.of_sizes(SIZES, images), targets)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("norm", ["instance", "layer", "none"])
@pytest.mark.parametrize(("channels", "size", "depth"), [(3, 16, 3), (1, 28, 3)])
def test_padding_and_missing_classes_change_nothing(norm: str, channels: int, size: int, depth: int) -> None:
    torch.manual_seed(size)
    model = perturbed(ConvNet(channels, size, 7, width=4, depth=depth, norm=norm))
    assert isinstance(model, ConvNet)
    images, others = torch.randn(2, sum(SIZES), channels, size, size, dtype=torch.float64)
    targets = [t.detach() for t in ClassGradients(model).synthetic(others.split(SIZES), LABELS)]
    expected = by_autograd(model, images, targets)
    matched = torch.zeros(7, dtype=torch.float64)
    matched[LABELS] = 1
    spread = [t.new_zeros(7, *t.shape[1:]).index_copy(0, torch.tensor(LABELS), t) for t in targets]
    padding = 3
    more, labels = torch.cat([images, images[:padding]]), torch.cat([OF_EACH, OF_EACH[:padding]])
    shares = torch.cat([(1 / torch.tensor(SIZES)).repeat_interleave(torch.tensor(SIZES)), torch.zeros(padding)])
    classes = Classes.padded(labels, shares.double(), 7)
    distance, gradient = distance_and_image_gradient(model.sequence, more, labels, classes, spread, matched)
    torch.testing.assert_close((distance, gradient[:-padding]), expected, rtol=1e-9, atol=1e-12)
    assert not gradient[-padding:].any()


def test_a_row_without_gradient_counts_one_and_moves_nothing() -> None:
    torch.manual_seed(0)
    model = perturbed(ConvNet(1, 8, 7, width=4, depth=2, norm="none"))
    assert isinstance(model, ConvNet)
    with torch.no_grad():  # channels that no image excites
        model.features[0].bias[1] = -1e6  # type: ignore[index, operator]
        model.features[4].bias[:2] = -1e6  # type: ignore[index, operator]
    images, others = torch.randn(2, sum(SIZES), 1, 8, 8, dtype=torch.float64)
    targets = [t.detach() for t in ClassGradients(model).synthetic(others.split(SIZES), LABELS)]
    found = distance_and_image_gradient(model.sequence, images, OF_EACH, Classes.of_sizes(SIZES, images), targets)
    torch.testing.assert_close(found, by_autograd(model, images, targets), rtol=1e-9, atol=1e-12)
    assert found[1].isfinite().all()


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding="same"), nn.Tanh()],
)
def test_layers_without_passes_are_left_to_autograd(layer: nn.Module) -> None:
    assert not is_supported([nn.ReLU(), layer])


def test_odd_sides_are_matched_by_autograd() -> None:
    torch.manual_seed(0)
    model = ConvNet(1, 10, 7, width=4, depth=2)
    images = torch.randn(sum(SIZES), 1, 10, 10)
    targets = [t.detach() for t in ClassGradients(model).synthetic(torch.randn_like(images).split(SIZES), LABELS)]
    assert not is_supported(model.sequence)
    found = ClassGradients(model).distance(targets, images, SIZES, LABELS)
    torch.testing.assert_close(found, by_autograd(model, images, targets))

"""Passes that are written out against what autograd makes of the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quickdrop_bench.functional import unfolding
from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.layers import is_supported, sequence_of
from quickdrop_bench.functional.matching import ClassGradients, matching_distance
from quickdrop_bench.functional.second_order import class_gradients, distance_and_image_gradient
from quickdrop_bench.models.convnet import NORMS, ConvNet
from quickdrop_bench.models.lenet5 import LeNet5
from tests.small_models import SMALL

SIZES, LABELS = [3, 1, 4, 2], [0, 2, 3, 6]
SHARES = (1 / torch.tensor(SIZES)).repeat_interleave(torch.tensor(SIZES)).double()
OF_EACH = torch.tensor(LABELS).repeat_interleave(torch.tensor(SIZES))
PARTS = Classes.of_sizes(SIZES, SHARES)

Case = tuple[nn.Module, Tensor, list[Tensor], tuple[Tensor, Tensor]]

CASES = [
    pytest.param(ConvNet(4, depth, norm), channels, size, id=f"{norm}-{size}-{depth}")
    for norm in NORMS
    for channels, size, depth in [(1, 8, 2), (3, 16, 3), (1, 28, 3), (3, 8, 1)]
] + [pytest.param(LeNet5(), channels, size, id=f"lenet5-{size}") for channels, size in [(1, 8), (1, 28), (3, 32)]]


def case_of(model: nn.Module, channels: int, size: int) -> Case:
    """A model in double precision with norms that scale and shift, images, targets, and what autograd finds."""
    for parameter in model.double().parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    images, others = torch.randn(2, sum(SIZES), channels, size, size, dtype=torch.float64)
    targets = [t.detach() for t in ClassGradients(model).synthetic(others, OF_EACH, PARTS)]
    leaf = images.clone().requires_grad_()
    distance = matching_distance(targets, ClassGradients(model).synthetic(leaf, OF_EACH, PARTS))
    return model, images, targets, (distance.detach(), torch.autograd.grad(distance, leaf)[0])


@pytest.mark.parametrize(
    ("small", "thin"), [(0, 0), (2**40, 0), (0, 2**10)], ids=["by class", "by product", "by image"]
)
@pytest.mark.parametrize(("architecture", "channels", "size"), CASES)
def test_distance_and_gradient_equal_autograds(
    monkeypatch: pytest.MonkeyPatch, small: int, thin: int, architecture: ConvNet, channels: int, size: int
) -> None:
    monkeypatch.setattr(unfolding, "UNFOLDED", small)
    monkeypatch.setattr(unfolding, "THIN", thin)
    torch.manual_seed(size)
    model, images, targets, expected = case_of(architecture.build(channels, size, 7), channels, size)
    assert is_supported(sequence_of(model))
    found = ClassGradients(model).distance(targets, images, OF_EACH, PARTS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("architecture", "channels", "size"), CASES)
def test_padding_and_missing_classes_change_nothing(architecture: ConvNet, channels: int, size: int) -> None:
    torch.manual_seed(size)
    model, images, targets, expected = case_of(architecture.build(channels, size, 7), channels, size)
    matched = torch.zeros(7, dtype=torch.float64)
    matched[LABELS] = 1
    spread = [t.new_zeros(7, *t.shape[1:]).index_copy(0, torch.tensor(LABELS), t) for t in targets]
    padding = 3
    more, labels = torch.cat([images, images[:padding]]), torch.cat([OF_EACH, OF_EACH[:padding]])
    classes = Classes.padded(labels, torch.cat([SHARES, SHARES.new_zeros(padding)]), 7)
    distance, gradient = distance_and_image_gradient(sequence_of(model), more, labels, classes, spread, matched)
    torch.testing.assert_close((distance, gradient[:-padding]), expected, rtol=1e-9, atol=1e-12)
    assert not gradient[-padding:].any()


@pytest.mark.parametrize(("architecture", "channels", "size"), CASES)
def test_first_order_of_a_padded_batch(architecture: ConvNet, channels: int, size: int) -> None:
    """Loss, gradients and each class's part, in the order of the parameters."""
    torch.manual_seed(size)
    model, images, *_ = case_of(architecture.build(channels, size, 7), channels, size)
    images[-2:] = images[:2]
    weights = SHARES.clone()
    weights[-2:] = 0
    loss, found, parts = class_gradients(
        sequence_of(model), images, OF_EACH, weights, Classes.padded(OF_EACH, weights, 7)
    )
    losses = nn.functional.cross_entropy(model(images), OF_EACH, reduction="none") * weights
    of_class = [
        torch.autograd.grad(losses[c == OF_EACH].sum(), list(model.parameters()), retain_graph=True) for c in LABELS
    ]
    torch.testing.assert_close(loss, losses.sum().detach())
    torch.testing.assert_close(found, [sum(own) for own in zip(*of_class, strict=True)], rtol=1e-9, atol=1e-12)
    weighted = [i for i, p in enumerate(model.parameters()) if p.dim() > 1]
    for part, i in zip(parts, weighted, strict=True):
        torch.testing.assert_close(part[LABELS], torch.stack([own[i] for own in of_class]), rtol=1e-9, atol=1e-12)
        assert not part[[1, 4, 5]].any()


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_row_without_gradient_counts_one_and_moves_nothing() -> None:
    torch.manual_seed(0)
    model = ConvNet(4, 2, "none").build(1, 8, 7)
    with torch.no_grad():  # channels that no image excites
        model.get_submodule("features.0").bias[1] = -1e6  # type: ignore[index, operator]
        model.get_submodule("features.4").bias[:2] = -1e6  # type: ignore[index, operator]
    model, images, targets, expected = case_of(model, 1, 8)
    found = ClassGradients(model).distance(targets, images, OF_EACH, PARTS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found[1].isfinite().all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(3),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Tanh(),
        nn.Flatten(0),
        Doubled(4, 4, 3),
    ],
)
def test_layers_without_passes_are_left_to_autograd(layer: nn.Module) -> None:
    assert not is_supported([nn.ReLU(), layer])


@pytest.mark.parametrize(
    ("model", "channels", "size"),
    [(SMALL["convnet"].build(1, 10, 7), 1, 10), (SMALL["resnet18"].build(3, 16, 7), 3, 16)],
    ids=["odd sides", "residual connections"],
)
def test_models_that_are_matched_by_autograd(model: nn.Module, channels: int, size: int) -> None:
    torch.manual_seed(0)
    model, images, targets, expected = case_of(model, channels, size)
    assert not is_supported(sequence_of(model))
    torch.testing.assert_close(ClassGradients(model).distance(targets, images, OF_EACH, PARTS), expected)

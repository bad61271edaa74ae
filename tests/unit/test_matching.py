"""The matching distance and the class-wise gradients, each against an independent reading."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickdrop_bench.functional.matching import ClassGradients, matched_weights, matching_distance
from quickdrop_bench.models import ConvNet


def reference_distance(real: list[np.ndarray], synthetic: list[np.ndarray]) -> float:
    """Row by row, as the definition reads."""
    total = 0.0
    for a_classes, b_classes in zip(real, synthetic, strict=True):
        for a_rows, b_rows in zip(a_classes, b_classes, strict=True):
            for a, b in zip(a_rows, b_rows, strict=True):
                a, b = a.ravel(), b.ravel()
                total += 1 - a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b) + 1e-6)
    return total


def reference_gradients(model: nn.Module, images: list[Tensor], labels: list[int]) -> list[Tensor]:
    """One plain pass per class."""
    weights = list(matched_weights(model).values())
    rows = []
    for batch, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(model(batch), torch.full((len(batch),), label))
        rows.append(torch.autograd.grad(loss, weights, create_graph=True))
    return [torch.stack(tensors) for tensors in zip(*rows, strict=True)]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet(2, 8, 4, width=5, depth=2).double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(11, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 2, 2, 0, 3, 3, 3, 0, 2, 3, 3]).sort().values


def rows_of(labels: Tensor) -> tuple[list[int], list[Tensor]]:
    classes = labels.unique().tolist()
    return classes, [torch.nonzero(labels == c).flatten() for c in classes]


def sizes_of(rows: list[Tensor]) -> list[int]:
    return [len(r) for r in rows]


def record(model: nn.Module, images: Tensor, labels: Tensor) -> ClassGradients:
    gradients = ClassGradients(model)
    with gradients.recording():
        F.cross_entropy(model(images), labels).backward()
    return gradients


def test_distance_equals_the_definition() -> None:
    torch.manual_seed(2)
    shapes = [(3, 4, 2, 3, 3), (3, 5, 7)]
    a, b = ([torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(2))
    expected = reference_distance([t.numpy() for t in a], [t.numpy() for t in b])
    assert float(matching_distance(a, b)) == pytest.approx(expected, rel=1e-12)


def test_distance_of_known_rows() -> None:
    a = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    b = torch.tensor([[[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, 0.0]]])
    # parallel 0, opposite 2, orthogonal 1, dead 1
    assert float(matching_distance([a], [b])) == pytest.approx(4.0, abs=1e-5)


def test_distance_of_a_gradient_to_itself_is_the_number_of_dead_rows() -> None:
    a = torch.randn(1, 6, 9)
    a[0, 2] = 0
    assert float(matching_distance([a], [a])) == pytest.approx(1.0, abs=1e-3)


def test_one_dimensional_parameters_do_not_count(model: nn.Module) -> None:
    assert [p.dim() for p in matched_weights(model).values()] == [4, 4, 2]


def test_class_gradients_of_the_recorded_batch(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    classes, rows = rows_of(labels)
    gradients = record(model, images, labels).split(sizes_of(rows))
    expected = reference_gradients(model, [images[r] for r in rows], classes)
    for ours, theirs in zip(gradients, expected, strict=True):
        # the recorder returns float32 by design
        torch.testing.assert_close(ours, theirs.detach().float(), rtol=1e-5, atol=1e-7)


def test_class_split_leaves_the_batch_gradient_as_a_plain_backward_pass_does(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = batch
    F.cross_entropy(model(images), labels).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    _, rows = rows_of(labels)
    gradients = record(model, images, labels).split(sizes_of(rows))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        torch.testing.assert_close(parameter.grad, expected[name])
    shares = torch.tensor([len(r) / len(labels) for r in rows])
    for ours, parameter in zip(gradients, matched_weights(model).values(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(torch.tensordot(shares, ours, dims=1), parameter.grad.float(), rtol=1e-5, atol=1e-7)


def test_a_first_layer_without_bias_is_recorded_too(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.Flatten(), nn.Linear(108, 4, bias=False)).double()
    F.cross_entropy(model(images), labels).backward()
    expected = [p.grad for p in model.parameters()]
    record(model, images, labels).split(sizes_of(rows_of(labels)[1]))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_loss_scale_is_taken_out(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    _, rows = rows_of(labels)
    gradients = ClassGradients(model)
    with gradients.recording():
        (1024 * F.cross_entropy(model(images), labels)).backward()
    scaled = gradients.split(sizes_of(rows), loss_scale=1024)
    for a, b in zip(scaled, record(model, images, labels).split(sizes_of(rows)), strict=True):
        torch.testing.assert_close(a, b)


def test_synthetic_gradients_equal_one_pass_per_class(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    classes, rows = rows_of(labels)
    parts = [images[r] for r in rows]
    for ours, theirs in zip(
        ClassGradients(model).synthetic(parts, classes), reference_gradients(model, parts, classes), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_image_gradient_of_the_distance_against_finite_differences(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = batch
    classes, rows = rows_of(labels)
    targets = [t.double() for t in record(model, images, labels).split(sizes_of(rows))]
    torch.manual_seed(3)
    start = [torch.randn(2, 2, 8, 8, dtype=torch.float64) for _ in classes]
    gradients = ClassGradients(model)

    def distance(parts: list[Tensor]) -> Tensor:
        return matching_distance(targets, gradients.synthetic(parts, classes))

    leaves = [part.clone().requires_grad_() for part in start]
    analytic = torch.autograd.grad(distance(leaves), leaves)
    step = 1e-6
    for k in range(len(classes)):
        direction = torch.randn_like(start[k])
        ends = []
        for sign in (1, -1):
            moved = [part.clone() for part in start]
            moved[k] += sign * step * direction
            ends.append(float(distance(moved).detach()))
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert float((analytic[k] * direction).sum()) == pytest.approx(numeric, rel=1e-5)


def test_matching_leaves_the_model_untouched(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    classes, rows = rows_of(labels)
    gradients = record(model, images, labels)
    targets = [t.double() for t in gradients.split(sizes_of(rows))]
    before = {n: (p.detach().clone(), p.grad.clone()) for n, p in model.named_parameters() if p.grad is not None}
    leaves = [torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True) for _ in classes]
    torch.autograd.grad(matching_distance(targets, gradients.synthetic(leaves, classes)), leaves)
    assert len(before) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, before[name][1])


def test_unknown_kinds_of_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="Conv2d and Linear"):
        ClassGradients(nn.Sequential(nn.Bilinear(2, 2, 2)))

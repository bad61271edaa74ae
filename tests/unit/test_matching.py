"""The matching distance and the class-wise gradients, each against an independent reading, on every model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.matching import ClassGradients, class_means, matched_weights, matching_distance
from quickdrop_bench.models import Model
from quickdrop_bench.models.convnet import ConvNet
from tests.by_hand import class_gradients, row_by_row
from tests.small_models import EACH, Odd

LABELS = torch.tensor([0, 0, 0, 2, 2, 2, 3, 3, 3, 3, 3])
SIZES, CLASSES = [3, 3, 5], [0, 2, 3]
PARTS = Classes.of_sizes(SIZES, torch.empty(0, dtype=torch.float64))

on_each_model = pytest.mark.parametrize("architecture", EACH, ids=str)


@dataclass(frozen=True)
class Case:
    """A model in double precision, and images sorted by class."""

    model: nn.Module
    images: Tensor

    @classmethod
    def of(cls, architecture: Model) -> Case:
        torch.manual_seed(1)
        return cls(architecture.build(2, 8, 4).double(), torch.randn(len(LABELS), 2, 8, 8, dtype=torch.float64))

    def of_batch(self, factor: float = 1.0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        return ClassGradients(self.model).of_batch(
            lambda: factor * F.cross_entropy(self.model(self.images), LABELS), PARTS
        )

    def means(self) -> list[Tensor]:
        return class_means(self.of_batch()[2], SIZES)

    def reference_gradients(self) -> list[Tensor]:
        """One plain pass per class."""
        parts = zip(self.images.split(SIZES), CLASSES, strict=True)
        rows = [class_gradients(self.model, images, label) for images, label in parts]
        return [torch.stack(tensors) for tensors in zip(*rows, strict=True)]


def distance_of(real: list[Tensor], synthetic: list[Tensor]) -> float:
    """Of the gradients of several classes, (classes, …) each."""
    return sum(float(row_by_row([a[c] for a in real], [b[c] for b in synthetic])) for c in range(len(real[0])))


def test_distance_equals_the_definition() -> None:
    torch.manual_seed(2)
    shapes = [(3, 4, 2, 3, 3), (3, 5, 7)]
    a, b = ([torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(2))
    assert float(matching_distance(a, b)) == pytest.approx(distance_of(a, b), rel=1e-12)


def test_distance_of_known_rows() -> None:
    a = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    b = torch.tensor([[[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, 0.0]]])
    # parallel 0, opposite 2, orthogonal 1, dead 1
    assert float(matching_distance([a], [b])) == pytest.approx(4.0, abs=1e-5)


@on_each_model
def test_class_gradients_of_a_batch(architecture: Model) -> None:
    case = Case.of(architecture)
    torch.testing.assert_close(case.means(), case.reference_gradients())


@on_each_model
def test_class_split_leaves_the_batch_gradient_as_a_plain_backward_pass_does(architecture: Model) -> None:
    case = Case.of(architecture)
    loss = F.cross_entropy(case.model(case.images), LABELS)
    expected = torch.autograd.grad(loss, list(case.model.parameters()))
    found, gradients, parts = case.of_batch()
    torch.testing.assert_close((found, tuple(gradients)), (loss.detach(), expected))
    shares = torch.tensor(SIZES, dtype=torch.float64) / len(LABELS)
    by_name = dict(zip(dict(case.model.named_parameters()), expected, strict=True))
    for part, mean, name in zip(parts, class_means(parts, SIZES), matched_weights(case.model), strict=True):
        torch.testing.assert_close(part.sum(0), by_name[name])
        torch.testing.assert_close(torch.tensordot(shares, mean, dims=1), by_name[name])


def test_layers_that_run_in_another_order_than_they_are_listed() -> None:
    class Backwards(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return self[0](self[1](images).flatten(1))  # type: ignore[no-any-return]

    images = Case.of(ConvNet()).images
    case = Case(Backwards(nn.Linear(108, 4), nn.Conv2d(2, 3, 3)).double(), images)
    expected = case.reference_gradients()
    torch.testing.assert_close(case.means(), expected)
    torch.testing.assert_close(ClassGradients(case.model).synthetic(images, LABELS, PARTS), expected)


def test_loss_scale_is_taken_out() -> None:
    case = Case.of(ConvNet(width=5, depth=2))
    torch.testing.assert_close(class_means(case.of_batch(1024)[2], SIZES, loss_scale=1024), case.means())


@on_each_model
def test_synthetic_gradients_equal_one_pass_per_class(architecture: Model) -> None:
    case = Case.of(architecture)
    found = ClassGradients(case.model).synthetic(case.images, LABELS, PARTS)
    torch.testing.assert_close(found, case.reference_gradients())


@on_each_model
def test_gradient_of_the_distance_against_finite_differences_of_the_definition(architecture: Model) -> None:
    """Whether the passes are written out or autograd's; the model and its gradients stay as they are."""
    case = Case.of(architecture)
    targets = case.means()
    before = {n: (p.detach().clone(), p.grad) for n, p in case.model.named_parameters()}
    torch.manual_seed(3)
    start, direction = torch.randn(2, *case.images.shape, dtype=torch.float64)
    distance, gradient = ClassGradients(case.model).distance(targets, start, LABELS, PARTS)

    def by_definition(images: Tensor) -> float:
        return distance_of(targets, Case(case.model, images).reference_gradients())

    assert float(distance) == pytest.approx(by_definition(start), rel=1e-9)
    step = 1e-8  # so that no ReLU turns within it
    numeric = (by_definition(start + step * direction) - by_definition(start - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-4)
    for name, parameter in case.model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.grad is before[name][1]


def test_what_is_matched() -> None:
    """Weights of convolutions and linear layers: no biases, no norms, and nothing else is supported."""
    assert [p.dim() for p in matched_weights(ConvNet(depth=2).build(2, 8, 4)).values()] == [4, 4, 2]

    class Standardised(nn.Linear):
        pass

    for other in (nn.Bilinear(2, 2, 2), Standardised(2, 2)):
        with pytest.raises(ValueError, match="Conv2d and Linear"):
            ClassGradients(nn.Sequential(other))


def padded() -> tuple[Tensor, Classes]:
    """Positions of the images, the first two once more as padding; of the four classes 1 is missing."""
    at = torch.cat([torch.arange(len(LABELS)), torch.arange(2)])
    shares = torch.cat([PARTS.shares.squeeze(1), torch.zeros(2, dtype=torch.float64)])
    return at, Classes.padded(LABELS[at], shares, 4)


@pytest.mark.parametrize("architecture", [*EACH, Odd()], ids=str)
def test_gradients_of_a_padded_batch_and_of_its_classes(architecture: Model) -> None:
    case, (at, classes) = Case.of(architecture), padded()
    losses = F.cross_entropy(case.model(case.images), LABELS, reduction="none")
    loss = (losses * PARTS.shares.squeeze(1)).sum()
    expected = torch.autograd.grad(loss, list(case.model.parameters()))

    def loss_of() -> Tensor:
        own = F.cross_entropy(case.model(case.images[at]), LABELS[at], reduction="none")
        return (own * classes.shares.squeeze(1)).sum()

    found, gradients, parts = ClassGradients(case.model).of_batch(loss_of, classes)
    torch.testing.assert_close((found, tuple(gradients)), (loss.detach(), expected))
    for part, theirs in zip(parts, case.reference_gradients(), strict=True):
        torch.testing.assert_close(part[CLASSES], theirs)
        assert not part[1].any()


@pytest.mark.parametrize("architecture", [*EACH, Odd()], ids=str)
def test_distance_with_padding_and_classes_that_are_not_matched(architecture: Model) -> None:
    case, (at, classes) = Case.of(architecture), padded()
    targets = [torch.randn_like(t) for t in case.reference_gradients()]
    gradients = ClassGradients(case.model)
    expected = gradients.distance(targets, case.images, LABELS, PARTS)
    spread = [t.new_zeros(4, *t.shape[1:]).index_copy(0, torch.tensor(CLASSES), t) for t in targets]
    matched = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)
    distance, gradient = gradients.distance(spread, case.images[at], LABELS[at], classes, matched)
    torch.testing.assert_close((distance, gradient[: len(LABELS)]), expected)
    assert not gradient[len(LABELS) :].any()

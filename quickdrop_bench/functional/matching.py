"""Gradient matching: the distance of Zhao et al., and the class-wise gradients it compares.

Shapes: K classes in the batch, B real images, M synthetic images of all K classes together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.grad import conv2d_weight

from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.layers import is_supported, sequence_of
from quickdrop_bench.functional.second_order import EPSILON, distance_and_image_gradient
from quickdrop_bench.functional.unfolding import class_products, columns_of, image_products, is_small


def matched_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the distance compares: all with two or more dimensions, in module order.

    Biases and normalisation parameters (1-D) count zero.
    """
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def matching_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor], matched: Tensor | None = None) -> Tensor:
    """Sum over tensors and rows of 1 − ⟨a,b⟩ / (‖a‖·‖b‖ + 1e-6): d of Zhao et al. (paper §4.1).

    A row is one output channel (convolution) or one output unit (linear); one with a zero gradient counts exactly 1.

    Args:
        real: class-wise gradients by tensor, each (K, rows, ...).
        synthetic: likewise.
        matched: (K,) 1 for classes that count, 0 for others; None counts all.

    Returns:
        Scalar, at least 0 up to rounding; at most twice the number of rows per class.
    """
    total = real[0].new_zeros(())
    for a, b in zip(real, synthetic, strict=True):
        a, b = a.flatten(2), b.flatten(2)
        norms = a.norm(dim=-1) * b.norm(dim=-1)
        distance = 1 - (a * b).sum(-1) / (norms + EPSILON)
        total = total + (distance if matched is None else distance * matched[:, None]).sum()
    return total


class ClassGradients:
    """Weight gradients class by class, from one forward and one backward pass over a whole batch.

    A layer's weight gradient is a sum over samples of (layer input) × (gradient at the layer's output). Keeping both
    gives each class's gradient by summing over its own samples only, without a pass per class.

    Args:
        model: as :class:`~quickdrop_bench.models.registry.Model` says.

    Attributes:
        is_written: whether the passes over synthetic images are written out, see :meth:`distance`.

    Raises:
        ValueError: a weight is neither that of a convolution nor of a linear layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._sequence = sequence_of(model)
        self.is_written = is_supported(self._sequence)
        # Not their subclasses, which may do something else with the weight.
        exact = (m for m in model.modules() if type(m) in (nn.Conv2d, nn.Linear))
        self._layers = [m for m in exact if isinstance(m, nn.Conv2d | nn.Linear)]
        known = {id(layer.weight) for layer in self._layers}
        for name, weight in matched_weights(model).items():
            if id(weight) not in known:
                raise ValueError(f"{name}: gradient matching supports Conv2d and Linear weights only")

    def of_batch(self, loss_of: Callable[[], Tensor], classes: Classes) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss of a batch, its gradients, and each class's part of the weights' gradients.

        The sum of the parts is the gradient (class split of one batch, Algorithm 2 lines 13 and 17). With padded
        classes it is made of kernels alone and asks the device nothing.

        Args:
            loss_of: makes the forward pass of the batch.
            classes: how its images belong to the K classes.

        Returns:
            A detached scalar; the gradients in the order of the model's parameters; one (K, ...) tensor per weight.
        """
        inputs, edges, loss = self._watched(loss_of)
        known = {parameter for layer in self._layers for parameter in layer.parameters()}
        others = [parameter for parameter in self._model.parameters() if parameter not in known]
        wanted: list[Any] = [*edges, *others]
        found = torch.autograd.grad(loss, wanted, materialize_grads=True)
        gradients: dict[Tensor, Tensor] = dict(zip(others, found[len(edges) :], strict=True))
        parts = []
        for layer, x, g in zip(self._layers, inputs, found[: len(edges)], strict=True):
            own_parts, own = _layer_gradients(layer, x.detach(), g, classes)
            parts.append(own_parts)
            gradients.update(own)
        return loss.detach(), [gradients[parameter] for parameter in self._model.parameters()], parts

    def synthetic(self, images: Tensor, labels: Tensor, classes: Classes) -> list[Tensor]:
        """∇ of each class's mean loss over its images, differentiable with respect to them: (K, ...) per weight.

        The arguments are those of :meth:`distance`.
        """

        def loss_of() -> Tensor:
            losses = F.cross_entropy(self._model(images), labels, reduction="none")
            return (losses * classes.shares.squeeze(1)).sum()

        inputs, edges, loss = self._watched(loss_of)
        output_gradients = torch.autograd.grad(loss, edges, create_graph=True)
        passes = zip(self._layers, inputs, output_gradients, strict=True)
        return [_weight_gradients(layer, x, g, classes) for layer, x, g in passes]

    def _watched(self, loss_of: Callable[[], Tensor]) -> tuple[list[Tensor], list[GradientEdge], Tensor]:
        """Of a forward pass, each layer's input, the place of its output in the graph, and the loss.

        The place stays where it is if the next layer overwrites the output.
        """
        seen: dict[nn.Module, tuple[Tensor, GradientEdge]] = {}

        def see(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[layer] = args[0], get_gradient_edge(output)

        handles = [layer.register_forward_hook(see) for layer in self._layers]
        try:
            loss = loss_of()
        finally:
            for handle in handles:
                handle.remove()
        return [seen[layer][0] for layer in self._layers], [seen[layer][1] for layer in self._layers], loss

    def distance(
        self,
        targets: Sequence[Tensor],
        images: Tensor,
        labels: Tensor,
        classes: Classes,
        matched: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The distance d of synthetic images to given class-wise gradients, and its gradient at the images.

        The passes of a sequence of layers known to :mod:`~quickdrop_bench.functional.layers` are written out; those of
        other models are left to autograd.

        Args:
            targets: one (K, ...) per weight.
            images: (M, C, H, W) float32.
            labels: (M,) int64.
            classes: how the images belong to the K classes.
            matched: see :func:`matching_distance`.

        Returns:
            A detached scalar and (M, C, H, W).
        """
        if self.is_written:
            return distance_and_image_gradient(self._sequence, images, labels, classes, targets, matched)
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            distance = matching_distance(targets, self.synthetic(leaf, labels, classes), matched)
            return distance.detach(), torch.autograd.grad(distance, leaf)[0]


def class_means(parts: Sequence[Tensor], sizes: Sequence[int], loss_scale: float = 1.0) -> list[Tensor]:
    """∇ of each class's mean loss, (K, ...) per weight, from the classes' parts of the gradient of a batch.

    The parts carry 1/B; a class mean needs 1/B_c. Σ_c (B_c/B)·g_c is the gradient of the batch.

    Args:
        parts: (K, ...) per weight.
        sizes: B_c, samples per class.
        loss_scale: factor by which the mean loss was multiplied (float16 scaling); it is taken out.
    """
    factors = torch.tensor([sum(sizes) / (size * loss_scale) for size in sizes], device=parts[0].device)
    return [part * factors.to(part.dtype).view(-1, *[1] * (part.dim() - 1)) for part in parts]


def _layer_gradients(
    layer: nn.Conv2d | nn.Linear, x: Tensor, g: Tensor, classes: Classes
) -> tuple[Tensor, dict[Tensor, Tensor]]:
    """Each class's part of the gradient of a layer's weight, (K, *weight.shape), and the layer's own gradients."""
    x, g = x.to(layer.weight.dtype), g.to(layer.weight.dtype)
    parts = _weight_gradients(layer, x, g, classes)
    own = {layer.weight: parts.sum(0)}
    if layer.bias is not None:
        own[layer.bias] = g.sum([d for d in range(g.dim()) if d != 1])
    return parts, own


def _weight_gradients(layer: nn.Conv2d | nn.Linear, x: Tensor, g: Tensor, classes: Classes) -> Tensor:
    """(K, *weight.shape) from layer inputs and output gradients."""
    if classes.members is not None:
        return _padded_weight_gradients(layer, x, g, classes)
    parts = zip(x.split(classes.sizes), g.split(classes.sizes), strict=True)
    if isinstance(layer, nn.Linear):
        return torch.stack([b.T @ a for a, b in parts])
    if is_supported([layer]) and is_small(layer, x):
        return class_products(x, g, layer, classes)
    return torch.stack([_convolution_gradient(layer, a, b) for a, b in parts])


def _padded_weight_gradients(layer: nn.Conv2d | nn.Linear, x: Tensor, g: Tensor, classes: Classes) -> Tensor:
    """The same from the (K, M) members of the classes, in shapes that do not depend on who they are."""
    members = classes.members
    assert members is not None
    if isinstance(layer, nn.Linear):
        return (members[..., None] * g).mT @ x
    if is_supported([layer]):
        return image_products(columns_of(x, layer), g.flatten(2), classes).view(-1, *layer.weight.shape)
    return torch.stack([_convolution_gradient(layer, x, own.view(-1, 1, 1, 1) * g) for own in members])


def _convolution_gradient(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    options: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation, layer.groups)
    gradient: Tensor = conv2d_weight(x, layer.weight.shape, g, *options)
    return gradient

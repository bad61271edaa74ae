"""Gradient matching: the distance of Zhao et al., and the class-wise gradients it compares.

Shapes: K classes in the batch, B real images, M synthetic images of all K classes together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.layers import is_small, is_supported, sequence_of, summed_products
from quickdrop_bench.functional.second_order import EPSILON, distance_and_image_gradient


def matched_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the distance compares: all with two or more dimensions, in module order.

    Biases and normalisation parameters (1-D) count zero.
    """
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def matching_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum over tensors and rows of 1 − ⟨a,b⟩ / (‖a‖·‖b‖ + 1e-6): d of Zhao et al. (paper §4.1).

    A row is one output channel (convolution) or one output unit (linear); one with a zero gradient counts exactly 1.

    Args:
        real: class-wise gradients by tensor, each (K, rows, ...).
        synthetic: likewise.

    Returns:
        Scalar, at least 0 up to rounding; at most twice the number of rows per class.
    """
    total = real[0].new_zeros(())
    for a, b in zip(real, synthetic, strict=True):
        a, b = a.flatten(2), b.flatten(2)
        norms = a.norm(dim=-1) * b.norm(dim=-1)
        total = total + (1 - (a * b).sum(-1) / (norms + EPSILON)).sum()
    return total


class ClassGradients:
    """Weight gradients class by class, from one forward and one backward pass over a whole batch.

    A layer's weight gradient is a sum over samples of (layer input) × (gradient at the layer's output). Keeping both
    gives each class's gradient by summing over its own samples only. The passes may be those of the model's own
    training step (:meth:`recording`, :meth:`split`) or made here on synthetic images; neither costs a pass per class.

    Args:
        model: as :class:`~quickdrop_bench.models.registry.Model` says.

    Raises:
        ValueError: a weight is neither that of a convolution nor of a linear layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        sequence = sequence_of(model)
        self._sequence = sequence if is_supported(sequence) else []
        # Not their subclasses, which may do something else with the weight.
        exact = (m for m in model.modules() if type(m) in (nn.Conv2d, nn.Linear))
        self._layers = [m for m in exact if isinstance(m, nn.Conv2d | nn.Linear)]
        known = {id(layer.weight) for layer in self._layers}
        for name, weight in matched_weights(model).items():
            if id(weight) not in known:
                raise ValueError(f"{name}: gradient matching supports Conv2d and Linear weights only")
        self._inputs: dict[int, Tensor] = {}
        self._output_gradients: dict[int, Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record one forward and backward pass of the model made inside the block, on a batch sorted by class.

        The backward pass leaves out the parameters of convolutions and linear layers; :meth:`split` makes up for it.
        """

        def keep(index: int, x: Tensor, output: Tensor) -> None:
            self._inputs[index] = x.detach()
            if not output.requires_grad:  # the first layer's
                output.requires_grad_()
            output.register_hook(partial(self._output_gradients.__setitem__, index))

        # All of them: for a bias alone, a convolution's backward pass would compute its weight's gradient too.
        parameters = [p for layer in self._layers for p in layer.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            with self._watching(keep):
                yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_()

    @contextmanager
    def _watching(self, see: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
        """Show each layer's index, input and output in the forward passes inside the block."""

        def hook(index: int, _layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            see(index, args[0], output)

        handles = [layer.register_forward_hook(partial(hook, index)) for index, layer in enumerate(self._layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def split(self, sizes: Sequence[int], loss_scale: float = 1.0) -> list[Tensor]:
        """∇ of each class's mean loss over the recorded batch: a detached float32 (K, ...) per weight.

        Σ_c (B_c/B)·g_c is the gradient of the batch itself (class split of one batch, Algorithm 2 lines 13 and 17). It
        is put where the backward pass would have put it, into ``.grad``; so are the biases'.

        Args:
            sizes: B_c, samples per class in the batch's order.
            loss_scale: factor by which the mean loss was multiplied (float16 scaling); ``.grad`` keeps it.
        """
        factors = torch.tensor([sum(sizes) / (size * loss_scale) for size in sizes])
        gradients = []
        for index, layer in enumerate(self._layers):
            x, g = (kept[index].to(layer.weight.dtype) for kept in (self._inputs, self._output_gradients))
            parts = _weight_gradients(layer, x, g, list(sizes))
            layer.weight.grad = parts.sum(0)
            if layer.bias is not None:
                layer.bias.grad = g.sum([d for d in range(g.dim()) if d != 1])
            # What is recorded carries 1/B; a class mean needs 1/B_c.
            gradients.append(parts.float() * factors.to(parts.device).view(-1, *[1] * (parts.dim() - 1)))
        return gradients

    def synthetic(self, images: Tensor, sizes: Sequence[int], labels: Sequence[int]) -> list[Tensor]:
        """∇ of each class's mean loss over its images, differentiable with respect to them: (K, ...) per weight.

        The arguments are those of :meth:`distance`.
        """
        classes = Classes.of_sizes(sizes, images)
        seen: dict[int, tuple[Tensor, Tensor]] = {}
        with self._watching(lambda index, x, output: seen.update({index: (x, output)})):
            losses = F.cross_entropy(self._model(images), self._targets(labels, classes), reduction="none")
        inputs, outputs = zip(*(seen[index] for index in range(len(self._layers))), strict=True)
        loss = (losses * classes.shares.squeeze(1)).sum()
        output_gradients = torch.autograd.grad(loss, outputs, create_graph=True)
        passes = zip(self._layers, inputs, output_gradients, strict=True)
        return [_weight_gradients(layer, x, g, list(sizes)) for layer, x, g in passes]

    def distance(
        self, targets: Sequence[Tensor], images: Tensor, sizes: Sequence[int], labels: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The distance d of synthetic images to given class-wise gradients, and its gradient at the images.

        The passes of a sequence of layers known to :mod:`~quickdrop_bench.functional.layers` are written out; those of
        other models are left to autograd.

        Args:
            targets: one (K, ...) per weight.
            images: (M, C, H, W) float32, sorted by class.
            sizes: images of each class.
            labels: the K classes.

        Returns:
            A detached scalar and (M, C, H, W).
        """
        if self._sequence:
            classes = Classes.of_sizes(sizes, images)
            chosen = self._targets(labels, classes)
            return distance_and_image_gradient(self._sequence, images, chosen, classes, targets)
        leaf = images.detach().requires_grad_()
        distance = matching_distance(targets, self.synthetic(leaf, sizes, labels))
        return distance.detach(), torch.autograd.grad(distance, leaf)[0]

    @staticmethod
    def _targets(labels: Sequence[int], classes: Classes) -> Tensor:
        """(M,) int64, each image's label."""
        return torch.tensor(list(labels), device=classes.index.device)[classes.index]


def _weight_gradients(layer: nn.Conv2d | nn.Linear, x: Tensor, g: Tensor, sizes: list[int]) -> Tensor:
    """(K, *weight.shape) from layer inputs and output gradients whose rows are sorted by class."""
    parts = zip(x.split(sizes), g.split(sizes), strict=True)
    if isinstance(layer, nn.Linear):
        return torch.stack([b.T @ a for a, b in parts])
    shape, options = layer.weight.shape, (layer.stride, layer.padding, layer.dilation, layer.groups)
    if is_supported([layer]) and is_small(layer, x):
        window: tuple[Any, ...] = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        columns = F.unfold(x, *window)
        index = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(x.device)
        return summed_products(columns, g.flatten(2), index, len(sizes)).view(-1, *shape)
    return torch.stack([conv2d_weight(a, shape, b, *options) for a, b in parts])

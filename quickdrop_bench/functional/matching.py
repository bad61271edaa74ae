"""Gradient matching: the distance of Zhao et al., and the class-wise gradients it compares.

Shapes: K classes in the batch, B real images, M synthetic images of all K classes together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from quickdrop_bench.functional.layers import Classes, is_small, is_supported, summed_products
from quickdrop_bench.functional.second_order import EPSILON, distance_and_image_gradient

__all__ = ["ClassGradients", "matched_weights", "matching_distance"]


def matched_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the distance compares: all with two or more dimensions, in module order.

    Biases and normalisation parameters (1-D) count zero.
    """
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def matching_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum over tensors and rows of 1 − ⟨a,b⟩ / (‖a‖·‖b‖ + 1e-6): d of Zhao et al. (paper §4.1).

    A row is one output channel (convolution) or one output unit (linear). A row with a zero gradient
    contributes exactly 1.

    Args:
        real: class-wise gradients by tensor, each (K, rows, ...).
        synthetic: the same shapes.

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

    A layer's weight gradient is a sum over samples of (layer input) × (gradient at the layer's output). Keeping
    both for every convolution and linear layer therefore gives each class's gradient by summing over its own
    samples only. The passes may be those of the model's own training step (:meth:`recording`, :meth:`split`) or
    made here on synthetic images (:meth:`synthetic`); neither costs a pass per class.

    Args:
        model: module without coupling between the samples of a batch; every parameter with two or more
            dimensions must be the weight of an ``nn.Conv2d`` or ``nn.Linear``.

    Raises:
        ValueError: the model has another kind of weight.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        sequence: Sequence[nn.Module] = getattr(model, "sequence", ())
        self._sequence = sequence if is_supported(sequence) else ()
        self._layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        known = {id(layer.weight) for layer in self._layers}
        for name, weight in matched_weights(model).items():
            if id(weight) not in known:
                raise ValueError(f"{name}: gradient matching supports Conv2d and Linear weights only")
        self._inputs: list[Tensor] = []
        self._output_gradients: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record one forward and backward pass of the model made inside the block, on a batch sorted by class.

        The backward pass leaves out the parameters of convolutions and linear layers; :meth:`split` makes up for it.
        """
        with self._watching() as (inputs, outputs):

            def keep(index: int, gradient: Tensor) -> None:
                self._output_gradients[index] = gradient

            def watch(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                if not output.requires_grad:  # the first layer's
                    output.requires_grad_()
                output.register_hook(partial(keep, len(outputs) - 1))

            handles = [layer.register_forward_hook(watch) for layer in self._layers]
            self._output_gradients = [torch.empty(0)] * len(self._layers)
            # All of them: for a bias alone, a convolution's backward pass would compute its weight's gradient too.
            parameters = [p for layer in self._layers for p in layer.parameters()]
            for parameter in parameters:
                parameter.requires_grad_(False)
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
                for parameter in parameters:
                    parameter.requires_grad_()
        self._inputs = [x.detach() for x in inputs]

    @contextmanager
    def _watching(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Inputs and outputs of the layers during the forward passes inside the block."""
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []

        def keep(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs.append(args[0])
            outputs.append(output)

        handles = [layer.register_forward_hook(keep) for layer in self._layers]
        try:
            yield inputs, outputs
        finally:
            for handle in handles:
                handle.remove()

    def split(self, sizes: Sequence[int], loss_scale: float = 1.0) -> list[Tensor]:
        """Class-wise gradients of the recorded batch, whose loss was the mean over its B samples.

        Σ_c (B_c/B)·g_c is the gradient of the batch itself (class split of one batch, Algorithm 2 lines 13 and 17), so
        that it is put where the backward pass would have put it, into ``.grad``; so are the biases'.

        Args:
            sizes: B_c, samples per class in the batch's order; their sum is B.
            loss_scale: factor by which the recorded loss was multiplied (float16 scaling); ``.grad`` keeps it.

        Returns:
            One detached float32 tensor (K, ...) per weight: ∇ of the class's mean loss.
        """
        factors = torch.tensor([sum(sizes) / (size * loss_scale) for size in sizes])
        gradients = []
        for layer, x, g in zip(self._layers, self._inputs, self._output_gradients, strict=True):
            x, g = x.to(layer.weight.dtype), g.to(layer.weight.dtype)
            parts = _weight_gradients(layer, x, g, list(sizes))
            layer.weight.grad = parts.sum(0)
            if layer.bias is not None:
                layer.bias.grad = g.sum([d for d in range(g.dim()) if d != 1])
            # What is recorded carries 1/B; a class mean needs 1/B_c.
            gradients.append(parts.float() * factors.to(parts.device).view(-1, *[1] * (parts.dim() - 1)))
        return gradients

    def synthetic(self, images: Sequence[Tensor], labels: Sequence[int]) -> list[Tensor]:
        """∇ of each class's mean loss over its images, differentiable with respect to the images.

        Args:
            images: for each class (M_c, C, H, W) float32.
            labels: the classes.

        Returns:
            One tensor (K, ...) per weight.
        """
        sizes = [len(batch) for batch in images]
        device = images[0].device
        targets = torch.tensor(list(labels), device=device).repeat_interleave(torch.tensor(sizes, device=device))
        shares = torch.cat([torch.full((size,), 1 / size) for size in sizes]).to(device)
        with self._watching() as (inputs, outputs):
            logits = self._model(torch.cat(list(images)))
        loss = (F.cross_entropy(logits, targets, reduction="none") * shares).sum()
        output_gradients = torch.autograd.grad(loss, outputs, create_graph=True)
        passes = zip(self._layers, inputs, output_gradients, strict=True)
        return [_weight_gradients(layer, x, g, sizes) for layer, x, g in passes]

    def distance(
        self, targets: Sequence[Tensor], images: Tensor, sizes: Sequence[int], labels: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The distance d of synthetic images to given class-wise gradients, and its gradient at the images.

        It is written out for models that list their layers in an attribute ``sequence``, if all are known to
        :mod:`~quickdrop_bench.functional.second_order`, and left to autograd for others.

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
            chosen = torch.tensor(list(labels), device=images.device)[classes.index]
            return distance_and_image_gradient(self._sequence, images, chosen, classes, targets)
        leaf = images.detach().requires_grad_()
        distance = matching_distance(targets, self.synthetic(leaf.split(list(sizes)), labels))
        return distance.detach(), torch.autograd.grad(distance, leaf)[0]


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
        return summed_products(columns, g, index).view(-1, *shape)
    return torch.stack([conv2d_weight(a, shape, b, *options) for a, b in parts])

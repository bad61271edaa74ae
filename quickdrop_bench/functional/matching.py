"""Gradient matching: the distance of Zhao et al., and the class-wise gradients it compares.

Shapes: K classes in the batch, B real images, M synthetic images of all K classes together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

__all__ = ["ClassGradients", "matched_weights", "matching_distance"]

EPSILON = 1e-6
"""Added to the product of the norms, as in the published code of the distance."""


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
    samples only. The passes may be those of the model's own training step (:meth:`recording`, :meth:`real`) or
    made here on synthetic images (:meth:`synthetic`); neither costs a pass per class.

    Args:
        model: module without coupling between the samples of a batch; every parameter with two or more
            dimensions must be the weight of an ``nn.Conv2d`` or ``nn.Linear``.

    Raises:
        ValueError: the model has another kind of weight.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        known = {id(layer.weight) for layer in self._layers}
        for name, weight in matched_weights(model).items():
            if id(weight) not in known:
                raise ValueError(f"{name}: gradient matching supports Conv2d and Linear weights only")
        self._inputs: list[Tensor] = []
        self._output_gradients: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record one forward and backward pass of the model made inside the block."""
        with self._watching() as (inputs, outputs):

            def keep(index: int, gradient: Tensor) -> None:
                self._output_gradients[index] = gradient

            def watch(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                output.register_hook(partial(keep, len(outputs) - 1))

            handles = [layer.register_forward_hook(watch) for layer in self._layers]
            self._output_gradients = [torch.empty(0)] * len(self._layers)
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
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

    def real(self, rows: Sequence[Tensor], batch_size: int, loss_scale: float = 1.0) -> list[Tensor]:
        """Class-wise gradients of the recorded batch, whose loss was the mean over its B samples.

        Σ_c (B_c/B)·g_c is the batch gradient itself (class split of one batch, Algorithm 2 lines 13 and 17).

        Args:
            rows: for each class, (B_c,) int64 rows of the batch.
            batch_size: B.
            loss_scale: factor by which the recorded loss was multiplied (float16 scaling).

        Returns:
            One detached float32 tensor (K, ...) per weight: ∇ of the class's mean loss.
        """
        order, sizes = torch.cat(list(rows)), [len(r) for r in rows]
        # Recorded rows carry 1/B; a class mean needs 1/B_c.
        factors = torch.tensor([batch_size / (size * loss_scale) for size in sizes], device=order.device)
        gradients = []
        for index, layer in enumerate(self._layers):
            x = self._inputs[index][order].float()
            g = self._output_gradients[index][order].float()
            stacked = _weight_gradients(layer, x, g, sizes)
            gradients.append(stacked * factors.view(-1, *[1] * (stacked.dim() - 1)))
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


def _weight_gradients(layer: nn.Conv2d | nn.Linear, x: Tensor, g: Tensor, sizes: list[int]) -> Tensor:
    """(K, *weight.shape) from layer inputs and output gradients whose rows are sorted by class."""
    parts = zip(x.split(sizes), g.split(sizes), strict=True)
    if isinstance(layer, nn.Linear):
        return torch.stack([b.T @ a for a, b in parts])
    shape, options = layer.weight.shape, (layer.stride, layer.padding, layer.dilation, layer.groups)
    return torch.stack([conv2d_weight(a, shape, b, *options) for a, b in parts])

"""Gradient matching: the distance of Zhao et al., and the class-wise gradients it compares.

Shapes: K classes in the batch, B real images, M synthetic images of the largest class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

__all__ = [
    "ClassGradients",
    "matched_weights",
    "matching_distance",
    "synthetic_gradients_loop",
    "synthetic_gradients_stacked",
]

EPSILON = 1e-6
"""Added to the product of the norms, as in the published code of the distance."""


def matched_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the distance compares: all with two or more dimensions, in module order.

    Biases and normalisation parameters (1-D) count zero.
    """
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def matching_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor], *, stacked: bool = False) -> Tensor:
    """d = Σ_tensors Σ_rows [1 − ⟨a,b⟩ / (‖a‖·‖b‖ + 1e-6)] (paper §4.1, "same distance function as [50]").

    A row is one output channel (convolution) or one output unit (linear). A row with a zero gradient
    contributes exactly 1.

    Args:
        real: gradients by tensor, each (rows, ...); with ``stacked`` (K, rows, ...).
        synthetic: the same shapes.
        stacked: whether the tensors carry a leading class axis; the distances are then summed over it.

    Returns:
        Scalar, at least 0 up to rounding; at most twice the number of rows.
    """
    first_row_axis = 2 if stacked else 1
    total = real[0].new_zeros(())
    for a, b in zip(real, synthetic, strict=True):
        a, b = a.flatten(first_row_axis), b.flatten(first_row_axis)
        norms = a.norm(dim=-1) * b.norm(dim=-1)
        total = total + (1 - (a * b).sum(-1) / (norms + EPSILON)).sum()
    return total


class ClassGradients:
    """Splits the gradient of one batch by class, without a second pass over the batch.

    While :meth:`recording`, the inputs and output gradients of every convolution and linear layer are kept;
    a class's weight gradient is then the layer's weight gradient over that class's rows alone. With a mean
    loss over B samples the recorded rows carry 1/B, so a class mean is the sum over its rows times B/B_c, and
    Σ_c (B_c/B)·g_c is the batch gradient itself (class split of one batch, Algorithm 2 lines 13 and 17).

    Args:
        model: module without coupling between the samples of a batch; every parameter with two or more
            dimensions must be the weight of an ``nn.Conv2d`` or ``nn.Linear``.

    Raises:
        ValueError: the model has another kind of weight.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        known = {id(layer.weight) for layer in self._layers}
        for name, weight in matched_weights(model).items():
            if id(weight) not in known:
                raise ValueError(f"{name}: gradient matching supports Conv2d and Linear weights only")
        self._inputs: dict[nn.Module, Tensor] = {}
        self._output_grads: dict[nn.Module, Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record one forward and backward pass made inside the block."""

        def keep_input(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._inputs[layer] = args[0].detach()
            output.register_hook(lambda g: self._output_grads.__setitem__(layer, g))

        handles = [layer.register_forward_hook(keep_input) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def of(self, rows: Tensor, batch_size: int, loss_scale: float = 1.0) -> list[Tensor]:
        """Gradient of the mean loss over the given rows of the recorded batch.

        Args:
            rows: (B_c,) int64 rows of the batch.
            batch_size: B, over which the recorded loss took its mean.
            loss_scale: factor by which the recorded loss was multiplied (float16 scaling).

        Returns:
            One float32 tensor per weight, in the order of :func:`matched_weights`.
        """
        factor = batch_size / (len(rows) * loss_scale)
        gradients = []
        for layer in self._layers:
            x = self._inputs[layer][rows].float()
            g = self._output_grads[layer][rows].float()
            if isinstance(layer, nn.Conv2d):
                weight = torch.nn.grad.conv2d_weight(
                    x,
                    layer.weight.shape,  # type: ignore[arg-type]
                    g,
                    layer.stride,
                    layer.padding,  # type: ignore[arg-type]
                    layer.dilation,
                    layer.groups,
                )
            else:
                weight = g.flatten(0, -2).T @ x.flatten(0, -2)
            gradients.append(weight * factor)
        return gradients


def synthetic_gradients_loop(model: nn.Module, images: Sequence[Tensor], labels: Sequence[int]) -> list[list[Tensor]]:
    """∇L over each class's synthetic images, differentiable with respect to the images.

    Args:
        model: the model at θ, in float32.
        images: one (M_c, C, H, W) tensor per class.
        labels: the classes, as many as ``images``.

    Returns:
        For each class, one gradient per weight in the order of :func:`matched_weights`.
    """
    weights = list(matched_weights(model).values())
    gradients = []
    for batch, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(model(batch), torch.full((len(batch),), label, device=batch.device))
        gradients.append(list(torch.autograd.grad(loss, weights, create_graph=True)))
    return gradients


def synthetic_gradients_stacked(model: nn.Module, images: Sequence[Tensor], labels: Sequence[int]) -> list[Tensor]:
    """The same as :func:`synthetic_gradients_loop` in one pass: classes are padded to M and stacked.

    Returns:
        One gradient per weight, each with a leading class axis (K, ...).
    """
    sizes = [len(batch) for batch in images]
    padded = nn.utils.rnn.pad_sequence(list(images), batch_first=True)  # (K, M, C, H, W)
    device = padded.device
    size = torch.tensor(sizes, device=device)[:, None]
    mask = (torch.arange(padded.shape[1], device=device) < size).float() / size  # rows sum to 1
    targets = torch.tensor(list(labels), device=device)[:, None].expand_as(mask)
    weights = dict(matched_weights(model))
    others = {name: p for name, p in model.named_parameters() if name not in weights}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        logits = functional_call(model, {**others, **weights}, (x,))
        return (F.cross_entropy(logits, y, reduction="none") * share).sum()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, padded, targets, mask)
    return [gradients[name] for name in weights]

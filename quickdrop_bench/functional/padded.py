"""Loss and gradients of a padded batch, class by class: kernels alone, and no question to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quickdrop_bench.functional.layers import Classes, Weighted
from quickdrop_bench.functional.second_order import forward

__all__ = ["class_gradients"]


@torch.no_grad()
def class_gradients(
    sequence: Sequence[nn.Module], images: Tensor, labels: Tensor, weights: Tensor, count: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The loss Σ_b w_b·CE_b, its gradients, and what each class adds to the gradients of the weights.

    Args:
        sequence: a model's layers, as :func:`~quickdrop_bench.functional.layers.is_supported`.
        images: (B, C, H, W) float32.
        labels: (B,) int64.
        weights: (B,) float32; zero for padding.
        count: number of all classes.

    Returns:
        A scalar; the gradients of the layers' parameters, in order; and one (count, ...) tensor per weight, whose sum
        over the classes is the weight's gradient.
    """
    layers, logits = forward(sequence, images, Classes.padded(labels, weights, count))
    logarithms = logits.log_softmax(1)
    loss = -(weights * logarithms.gather(1, labels[:, None]).squeeze(1)).sum()
    truth = (labels[:, None] == torch.arange(count, device=labels.device)).to(logits)
    g = (logarithms.exp() - truth) * weights[:, None]
    found: list[list[Tensor]] = []
    parts = []
    for layer in reversed(layers):
        layer.keep(g)
        own = layer.own_gradients(g)
        if isinstance(layer, Weighted):
            parts.append(layer.weight_gradients())
            own = [parts[-1].sum(0), *own]
        found.append(own)
        if layer is not layers[0]:
            g = layer.back(g)
    return loss, [gradient for own in reversed(found) for gradient in own], parts[::-1]

"""The matching distance and its gradient with respect to the synthetic images, written out layer by layer.

Differentiating twice by autograd gives the same numbers (tests compare them) with several times as many kernels, which
is most of the cost of distillation on small images. For layers y = J(x) the gradient of ⟨V, ∇_W L(x)⟩ takes four
passes: forwards; backwards, g ← Jᵀg; with V in the place of the weights a tangent, a ← Ja, forwards; and the adjoint of
all that backwards. Shapes: M images of K classes, sorted by class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quickdrop_bench.functional.layers import Classes, Layer, Weighted, layer_of

__all__ = ["EPSILON", "direction", "distance_and_image_gradient", "forward"]

EPSILON = 1e-6
"""Added to the product of the norms, as in the published code of the distance."""


def direction(real: Tensor, synthetic: Tensor, matched: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The distance d over all rows of one weight, and ∂d/∂synthetic.

    Args:
        real: (K, ...) class-wise gradients.
        synthetic: likewise.
        matched: (K,) 1 for classes that count, 0 for others; None counts all.
    """
    a, b = real.flatten(2), synthetic.flatten(2)
    a_norm, b_norm = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    product, norms = (a * b).sum(-1, keepdim=True), a_norm * b_norm + EPSILON
    distance = 1 - product / norms
    # A row of zeros has no direction.
    towards = (product * a_norm / (norms * norms * b_norm)).masked_fill_(b_norm == 0, 0)
    gradient = (b * towards).sub_(a / norms)
    if matched is not None:
        mask = matched.view(-1, 1, 1)
        distance, gradient = distance * mask, gradient.mul_(mask)
    return distance.sum(), gradient.view_as(synthetic)


@torch.no_grad()
def distance_and_image_gradient(
    sequence: Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    classes: Classes,
    targets: Sequence[Tensor],
    matched: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The distance d of the class-wise weight gradients to given ones, and its gradient with respect to the images.

    Args:
        sequence: a model's layers, as :func:`~quickdrop_bench.functional.layers.is_supported`; the last one gives
            logits.
        images: (M, C, H, W) float.
        labels: (M,) int64.
        classes: how the images belong to the K classes.
        targets: one (K, ...) per weight, in the order of the layers.
        matched: see :func:`direction`.

    Returns:
        A scalar, and (M, C, H, W).
    """
    layers, logits = forward(sequence, images, classes)
    p = logits.softmax(1)
    g = p.clone()
    g[classes.rows, labels] -= 1
    g *= classes.shares
    for layer in reversed(layers):
        layer.keep(g)
        if layer is not layers[0]:  # the images themselves are not wanted yet
            g = layer.back(g)
    distance = images.new_zeros(())
    weighted = [layer for layer in layers if isinstance(layer, Weighted)]
    for layer, target in zip(weighted, targets, strict=True):
        own, layer.direction = direction(target, layer.weight_gradients(), matched)
        distance += own
    a: Tensor | None = None
    for layer in layers:
        a = layer.tangent(a)
    assert a is not None
    a *= classes.shares
    y = p * (a - (p * a).sum(1, keepdim=True))
    for layer in reversed(layers):
        y = layer.adjoint(y)
    return distance, y


def forward(sequence: Sequence[nn.Module], images: Tensor, classes: Classes) -> tuple[list[Layer], Tensor]:
    """The layers, each of which keeps what later passes need, and the logits."""
    layers: list[Layer] = []
    x = images
    for module in sequence:
        if not isinstance(module, nn.Identity):
            layers.append(layer_of(module, x, classes))
            x = layers[-1].forward(x)
    return layers, x

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

from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.layer import Layer, Weighted
from quickdrop_bench.functional.layers import layer_of

EPSILON = 1e-6
"""Added to the product of the norms, as in the published code of the distance."""


def direction(real: Tensor, synthetic: Tensor, matched: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The distance d over all rows of one weight, (K,) class by class, and ∂d/∂synthetic.

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
    return distance.sum((1, 2)), gradient.view_as(synthetic)


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
        sequence: as :func:`~quickdrop_bench.functional.layers.is_supported`; the last layer gives logits.
        images: (M, C, H, W) float; of n stacked clients (M, n·C, H, W).
        labels: (M,) int64; of stacked clients (M·n,), see :meth:`~quickdrop_bench.functional.classes.Classes.stacked`.
        classes: how the images belong to the K classes.
        targets: one (K, ...) per weight, in the order of the layers.
        matched: see :func:`direction`.

    Returns:
        A scalar, of stacked clients (n,); and a tensor of the images' shape.
    """
    layers, logits = _forward(sequence, images, classes)
    p = logits.softmax(1)
    g = p.clone()
    g[classes.rows, labels] -= 1
    g *= classes.shares
    for layer in reversed(layers):
        layer.keep(g)
        if layer is not layers[0]:  # the images themselves are not wanted yet
            g = layer.back(g)
    distance = images.new_zeros(classes.count)
    weighted = (layer for layer in layers if isinstance(layer, Weighted))  # no list, which would keep them
    for layer, target in zip(weighted, targets, strict=True):
        own, layer.direction = direction(target, layer.weight_gradients(), matched)
        distance += own
    a: Tensor | None = None
    for layer in layers:
        a = layer.tangent(a)
    assert a is not None
    a *= classes.shares
    y = p * (a - (p * a).sum(1, keepdim=True))
    while layers:
        y = layers.pop().adjoint(y)  # what the layer keeps is freed then
    return classes.total(distance), y


@torch.no_grad()
def class_gradients(
    sequence: Sequence[nn.Module], images: Tensor, labels: Tensor, weights: Tensor, classes: Classes
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The loss Σ_b w_b·CE_b of a padded batch, its gradients, and each class's part of the weights' gradients.

    It is made of kernels alone and asks the device nothing.

    Args:
        sequence: as for :func:`distance_and_image_gradient`.
        images: likewise, B in the place of M.
        labels: likewise.
        weights: (B,) float32, of stacked clients (B·n,); zero for padding.
        classes: how the images belong to the K classes.

    Returns:
        A scalar, of stacked clients (n,); the gradients of the layers' parameters, in order, weights of stacked clients
        as (n, ...); and one (K, ...) tensor per weight, whose sum over a client's classes is the weight's gradient.
    """
    layers, logits = _forward(sequence, images, classes)
    logarithms = logits.log_softmax(1)
    losses = -(weights * logarithms.gather(1, labels[:, None]).squeeze(1))
    loss = losses.view(-1, classes.clients).sum(0).squeeze(0)
    truth = (labels[:, None] == torch.arange(logits.shape[1], device=labels.device)).to(logits)
    g = (logarithms.exp() - truth) * weights[:, None]
    found: list[list[Tensor]] = []
    parts = []
    while layers:
        layer = layers.pop()  # what it keeps is freed then, and the next layer's tensors take a place in the cache
        layer.keep(g)
        own = layer.own_gradients(g)
        if isinstance(layer, Weighted):
            parts.append(layer.weight_gradients())
            own = [classes.total(parts[-1]), *own]
        found.append(own)
        if layers:
            g = layer.back(g)
    return loss, [gradient for own in reversed(found) for gradient in own], parts[::-1]


def _forward(sequence: Sequence[nn.Module], images: Tensor, classes: Classes) -> tuple[list[Layer], Tensor]:
    """The layers, each of which keeps what later passes need, and the logits."""
    layers: list[Layer] = []
    x = images
    for module in sequence:
        if not isinstance(module, nn.Identity):
            layers.append(layer_of(module, x, classes))
            x = layers[-1].forward(x)
    return layers, x

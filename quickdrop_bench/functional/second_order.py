"""The matching distance and its gradient with respect to the synthetic images, written out layer by layer.

Differentiating twice by autograd gives the same numbers (tests compare them) with several times as many kernels, which
is most of the cost of distillation on small images. For layers y = J(x) the gradient of ⟨V, ∇_W L(x)⟩ takes four
passes: forwards; backwards, g ← Jᵀg; with V in the place of the weights a tangent, a ← Ja, forwards; and the adjoint of
all that backwards. Shapes: M images of K classes, sorted by class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from quickdrop_bench.functional.pooling import HalvingPool, spread_over_squares

__all__ = ["EPSILON", "distance_and_image_gradient", "is_small", "is_supported", "summed_products"]

EPSILON = 1e-6
"""Added to the product of the norms, as in the published code of the distance."""

UNFOLDED = 2**18
"""Most elements of an unfolded input for which products over all classes at once beat convolutions class by class."""


class _Classes:
    """How the M images belong to the K classes."""

    def __init__(self, sizes: Sequence[int], like: Tensor) -> None:
        self.sizes, self.count = list(sizes), len(sizes)
        counts = torch.tensor(self.sizes)
        index = torch.arange(self.count).repeat_interleave(counts)
        self.index = index.to(like.device)
        self.rows = torch.arange(len(index), device=like.device)
        self.shares = (1 / counts)[index].unsqueeze(1).to(like)


class _Layer:
    """One layer in the four passes; it keeps what later ones need."""

    def forward(self, x: Tensor) -> Tensor:
        """The output y."""
        raise NotImplementedError

    def keep(self, g: Tensor) -> None:
        """Look at the gradient at y before it goes on backwards."""

    def back(self, g: Tensor) -> Tensor:
        """Jᵀg."""
        raise NotImplementedError

    def tangent(self, a: Tensor | None) -> Tensor | None:
        """Ja, and what V adds; None stands for zero."""
        raise NotImplementedError

    def adjoint(self, y: Tensor) -> Tensor:
        """Jᵀy, and what x changes in the two passes before."""
        return self.back(y)


class _Pool(_Layer):
    """Averages of 2×2 squares."""

    def __init__(self, module: nn.Module) -> None:
        self._m = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._m(x)
        return y

    def back(self, g: Tensor) -> Tensor:
        return spread_over_squares(g)

    def tangent(self, a: Tensor | None) -> Tensor | None:
        return None if a is None else self.forward(a)


class _Relu(_Layer):
    def forward(self, x: Tensor) -> Tensor:
        self._y = x.relu()
        return self._y

    def back(self, g: Tensor) -> Tensor:
        passed: Tensor = torch.ops.aten.threshold_backward(g, self._y, 0)
        return passed

    def tangent(self, a: Tensor | None) -> Tensor | None:
        return None if a is None else self.back(a)


class _Flatten(_Layer):
    def forward(self, x: Tensor) -> Tensor:
        self._shape = x.shape
        return x.flatten(1)

    def back(self, g: Tensor) -> Tensor:
        return g.view(self._shape)

    def tangent(self, a: Tensor | None) -> Tensor | None:
        return None if a is None else a.flatten(1)


class _Norm(_Layer):
    """The only layer that bends: x̂ = (x − mean)·r, over the L values of each group."""

    def __init__(self, module: nn.GroupNorm) -> None:
        self._m = module
        self._scale = module.weight.view(-1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        m, (n, c, h, w) = self._m, x.shape
        self._x = x
        y, self._mean, self._r = torch.native_group_norm(x, m.weight, m.bias, n, c, h * w, m.num_groups, m.eps)
        return y

    def keep(self, g: Tensor) -> None:
        self._g = g

    def _project(self, g: Tensor, weight: Tensor | None) -> Tensor:
        """r·P(weight·g) with P = I − 11ᵀ/L − x̂x̂ᵀ/L."""
        n, c, h, w = g.shape
        sizes = (n, c, h * w, self._m.num_groups)
        wanted = [True, False, False]
        norm_backward = torch.ops.aten.native_group_norm_backward
        projected: Tensor = norm_backward(g.contiguous(), self._x, self._mean, self._r, weight, *sizes, wanted)[0]
        return projected

    def back(self, g: Tensor) -> Tensor:
        return self._project(g, self._m.weight)

    def tangent(self, a: Tensor | None) -> Tensor | None:
        self._a = a
        return None if a is None else self._project(a, None).mul_(self._scale)

    def adjoint(self, y: Tensor) -> Tensor:
        if self._a is None:
            return self.back(y)
        # ∂/∂x ⟨a, r·P(b)⟩ = −r²·(x̂·(c − 3mn) + n·(b − b̄) + m·(a − ā)) with b = scale·g, m = ⟨x̂,b⟩/L, n = ⟨x̂,a⟩/L
        # and c = ⟨a,b⟩/L − ā·b̄.
        rows = self._r.numel()
        r, mean = self._r.view(rows, 1), self._mean.view(rows, 1)
        a, b = self._a.reshape(rows, -1), (self._g * self._scale).view(rows, -1)
        a_mean, b_mean = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
        x = (self._x.reshape(rows, -1) - mean).mul_(r)
        m, n, c = _inner(x, b), _inner(x, a), _inner(a, b) - a_mean * b_mean
        bent = x.mul_(c - 3 * m * n).addcmul_(b, n).addcmul_(a, m).sub_(n * b_mean + m * a_mean).mul_(-r * r)
        return self.back(y).add_(bent.view_as(y))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a,b⟩/L by row."""
    return (a * b).mean(1, keepdim=True)


class _Weighted(_Layer):
    """A layer whose weight is matched, class by class."""

    direction: Tensor
    """V, (K, *weight.shape): the gradient of the distance with respect to the class-wise weight gradients."""

    def weight_gradients(self) -> Tensor:
        """(K, *weight.shape), once the first two passes are made."""
        raise NotImplementedError


class _Linear(_Weighted):
    def __init__(self, module: nn.Linear, classes: _Classes) -> None:
        self._m, self._classes = module, classes

    def forward(self, x: Tensor) -> Tensor:
        self._x = x
        return F.linear(x, self._m.weight, self._m.bias)

    def keep(self, g: Tensor) -> None:
        # (M, K·outputs): a sample's gradient in the columns of its class, so that one product serves all classes.
        apart = g.new_zeros(len(g), self._classes.count, g.shape[1])
        apart[self._classes.rows, self._classes.index] = g
        self._apart = apart.flatten(1)

    def weight_gradients(self) -> Tensor:
        return (self._apart.T @ self._x).view(self._classes.count, *self._m.weight.shape)

    def back(self, g: Tensor) -> Tensor:
        return g @ self._m.weight

    def tangent(self, a: Tensor | None) -> Tensor:
        of_all = (self._x @ self.direction.flatten(0, 1).T).view(len(self._x), self._classes.count, -1)
        own = of_all[self._classes.rows, self._classes.index]
        return own if a is None else own.addmm_(a, self._m.weight.T)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.back(y).addmm_(self._apart, self.direction.flatten(0, 1))


class _Convolution(_Weighted):
    """Convolutions class by class."""

    def __init__(self, module: nn.Conv2d, classes: _Classes) -> None:
        self._m, self._sizes = module, classes.sizes
        self._options: tuple[Any, ...] = (module.stride, module.padding, module.dilation, module.groups)

    def forward(self, x: Tensor) -> Tensor:
        self._x = x
        return F.conv2d(x, self._m.weight, self._m.bias, *self._options)

    def keep(self, g: Tensor) -> None:
        self._g = g

    def weight_gradients(self) -> Tensor:
        parts = zip(self._x.split(self._sizes), self._g.split(self._sizes), strict=True)
        return torch.stack([conv2d_weight(x, self._m.weight.shape, g, *self._options) for x, g in parts])

    def back(self, g: Tensor) -> Tensor:
        gradient: Tensor = conv2d_input(self._x.shape, self._m.weight, g, *self._options)
        return gradient

    def tangent(self, a: Tensor | None) -> Tensor:
        parts = zip(self._x.split(self._sizes), self.direction, strict=True)
        own = torch.cat([F.conv2d(x, v, None, *self._options) for x, v in parts])
        return own if a is None else own.add_(F.conv2d(a, self._m.weight, None, *self._options))

    def adjoint(self, y: Tensor) -> Tensor:
        parts = zip(self._x.split(self._sizes), self._g.split(self._sizes), self.direction, strict=True)
        own = torch.cat([conv2d_input(x.shape, v, g, *self._options) for x, g, v in parts])
        return own.add_(self.back(y))


class _SmallConvolution(_Convolution):
    """What differs by class as products with the unfolded input, for all classes at once."""

    def __init__(self, module: nn.Conv2d, classes: _Classes) -> None:
        super().__init__(module, classes)
        self._classes = classes
        self._window: tuple[Any, ...] = (module.kernel_size, module.dilation, module.padding, module.stride)

    def weight_gradients(self) -> Tensor:
        self._columns = F.unfold(self._x, *self._window)
        return summed_products(self._columns, self._g, self._classes.index).view(-1, *self._m.weight.shape)

    def tangent(self, a: Tensor | None) -> Tensor:
        self._own = self.direction.flatten(2)[self._classes.index]
        own = torch.bmm(self._own, self._columns).view_as(self._g)
        return own if a is None else own.add_(F.conv2d(a, self._m.weight, None, *self._options))

    def adjoint(self, y: Tensor) -> Tensor:
        columns = torch.bmm(self._own.mT, self._g.flatten(2))
        return F.fold(columns, self._x.shape[2:], *self._window).add_(self.back(y))


def is_small(m: nn.Conv2d, x: Tensor) -> bool:
    """Whether products with the unfolded input x beat convolutions class by class."""
    return x.numel() * m.kernel_size[0] * m.kernel_size[1] <= UNFOLDED


def summed_products(columns: Tensor, g: Tensor, index: Tensor) -> Tensor:
    """Σ over a class's samples of g·columnsᵀ.

    Args:
        columns: (M, n, L).
        g: (M, C, H, W) with H·W = L.
        index: (M,) int64, from 0 to K − 1, sorted.

    Returns:
        (K, C·n).
    """
    each = torch.bmm(g.flatten(2), columns.mT).flatten(1)
    return each.new_zeros(int(index[-1]) + 1, each.shape[1]).index_add(0, index, each)


def is_supported(sequence: Sequence[nn.Module]) -> bool:
    """Whether the passes of a model's layers, given in the order in which they run, are written here."""
    return all(
        isinstance(m, HalvingPool | nn.ReLU | nn.Flatten | nn.Linear | nn.Identity)
        or (isinstance(m, nn.GroupNorm) and m.affine)
        or (isinstance(m, nn.Conv2d) and m.groups == 1 and m.padding_mode == "zeros" and isinstance(m.padding, tuple))
        for m in sequence
    )


def _layer(module: nn.Module, x: Tensor, classes: _Classes) -> _Layer:
    match module:
        case nn.Conv2d():
            return (_SmallConvolution if is_small(module, x) else _Convolution)(module, classes)
        case nn.Linear():
            return _Linear(module, classes)
        case nn.GroupNorm():
            return _Norm(module)
        case nn.ReLU():
            return _Relu()
        case HalvingPool():
            return _Pool(module)
        case _:
            return _Flatten()


def _direction(real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
    """The distance d over all rows of one weight, and ∂d/∂synthetic."""
    a, b = real.flatten(2), synthetic.flatten(2)
    a_norm, b_norm = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    product, norms = (a * b).sum(-1, keepdim=True), a_norm * b_norm + EPSILON
    distance = (1 - product / norms).sum()
    # A row of zeros has no direction.
    towards = (product * a_norm / (norms * norms * b_norm)).masked_fill_(b_norm == 0, 0)
    return distance, (b * towards).sub_(a / norms).view_as(synthetic)


@torch.no_grad()
def distance_and_image_gradient(
    sequence: Sequence[nn.Module],
    images: Tensor,
    sizes: Sequence[int],
    labels: Sequence[int],
    targets: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """The distance d of the class-wise weight gradients to given ones, and its gradient with respect to the images.

    Args:
        sequence: a model's layers, as :func:`is_supported`; the last one gives logits.
        images: (M, C, H, W) float, sorted by class.
        sizes: images of each of the K classes.
        labels: the classes.
        targets: one (K, ...) per weight, in the order of the layers.

    Returns:
        A scalar, and (M, C, H, W).
    """
    classes = _Classes(sizes, images)
    layers: list[_Layer] = []
    x = images
    for module in sequence:
        if not isinstance(module, nn.Identity):
            layers.append(_layer(module, x, classes))
            x = layers[-1].forward(x)
    chosen = torch.tensor(list(labels), device=x.device)[classes.index]
    p = x.softmax(1)
    g = p.clone()
    g[classes.rows, chosen] -= 1
    g *= classes.shares
    for layer in reversed(layers):
        layer.keep(g)
        if layer is not layers[0]:  # the images themselves are not wanted yet
            g = layer.back(g)
    distance = images.new_zeros(())
    weighted = [layer for layer in layers if isinstance(layer, _Weighted)]
    for layer, target in zip(weighted, targets, strict=True):
        own, layer.direction = _direction(target, layer.weight_gradients())
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

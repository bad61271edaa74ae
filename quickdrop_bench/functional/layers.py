"""The layers of a model in the four passes of gradient matching, written out.

Shapes: M images of K classes, sorted by class unless ``classes`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.layer import Layer, Weighted
from quickdrop_bench.functional.pooling import HalvingPool, spread_over_squares
from quickdrop_bench.functional.side_by_side import StackedLinear
from quickdrop_bench.functional.unfolding import (
    by_client,
    by_image,
    columns_of,
    folded,
    image_products,
    is_small,
    is_thin,
    padding_of,
    product_of,
    rows_of,
    summed_by_class,
)


class _Pool(Layer):
    """Averages of 2×2 squares."""

    def __init__(self, module: nn.Module) -> None:
        self._m = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._m(x)
        return y

    def back(self, g: Tensor) -> Tensor:
        return spread_over_squares(g)

    push = forward


class _Relu(Layer):
    def __init__(self, module: nn.ReLU) -> None:
        self._m = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._m(x)
        self._y = y
        return y

    def back(self, g: Tensor) -> Tensor:
        passed: Tensor = torch.ops.aten.threshold_backward(g, self._y, 0)
        return passed

    push = back


class _Reshape(Layer):
    """Flattens, or changes shapes in another way."""

    def __init__(self, module: nn.Module) -> None:
        self._m = module

    def forward(self, x: Tensor) -> Tensor:
        self._shape = x.shape
        return self.push(x)

    def back(self, g: Tensor) -> Tensor:
        return g.view(self._shape)

    def push(self, a: Tensor) -> Tensor:
        y: Tensor = self._m(a)
        return y


class _Norm(Layer):
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
        self._b, *self._own = self._backward(g, self._m.weight, [True, True, True])

    def own_gradients(self, g: Tensor) -> list[Tensor]:
        return self._own

    def _project(self, g: Tensor, weight: Tensor | None) -> Tensor:
        """r·P(weight·g) with P = I − 11ᵀ/L − x̂x̂ᵀ/L."""
        return self._backward(g, weight, [True, False, False])[0]

    def _backward(self, g: Tensor, weight: Tensor | None, wanted: list[bool]) -> list[Tensor]:
        n, c, h, w = g.shape
        sizes = (n, c, h * w, self._m.num_groups)
        norm_backward = torch.ops.aten.native_group_norm_backward
        return list(norm_backward(g.contiguous(), self._x, self._mean, self._r, weight, *sizes, wanted))

    def back(self, g: Tensor) -> Tensor:
        return self._b

    def tangent(self, a: Tensor | None) -> Tensor | None:
        self._a = a
        if a is None:
            return None
        self._projected = self._project(a, None)
        return self._projected * self._scale

    def adjoint(self, y: Tensor) -> Tensor:
        passed = self._project(y, self._m.weight)
        if self._a is None:
            return passed
        # ∂/∂x ⟨a, r·P(b)⟩ = −r·(⟨x̂,a⟩·rP(b) + ⟨x̂,b⟩·rP(a) + ⟨a,rP(b)⟩·x̂)/L with b = scale·g.
        rows = self._r.numel()
        r, mean = self._r.view(rows, 1), self._mean.view(rows, 1)
        a, b, a_projected, b_projected = (
            t.reshape(rows, -1) for t in (self._a, self._g * self._scale, self._projected, self._b)
        )
        x = (self._x.reshape(rows, -1) - mean).mul_(r)
        bent = passed.view(rows, -1)
        for factor, along in (
            (_inner(x, a), b_projected),
            (_inner(x, b), a_projected),
            (_inner(a, b_projected), x),
        ):
            bent.addcmul_(along, factor.mul_(-r))
        return passed


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a,b⟩/L by row."""
    return (a * b).mean(1, keepdim=True)


class _Linear(Weighted):
    def __init__(self, module: nn.Linear | StackedLinear, classes: Classes) -> None:
        self._m, self._classes, self.bias = module, classes, module.bias

    def forward(self, x: Tensor) -> Tensor:
        self._x = x
        y: Tensor = self._m(x)
        return y

    def keep(self, g: Tensor) -> None:
        # (M, K·outputs): a sample's gradient in the columns of its class, so that one product serves all classes.
        apart = g.new_zeros(len(g), self._classes.count, g.shape[1])
        apart[self._classes.rows, self._classes.index] = g
        self._apart = apart.flatten(1)

    def weight_gradients(self) -> Tensor:
        return (self._apart.T @ self._x).view(self._classes.count, -1, self._m.weight.shape[1])

    def back(self, g: Tensor) -> Tensor:
        return g @ self._m.weight

    def _product(self, a: Tensor) -> Tensor:
        return F.linear(a, self._m.weight)

    def tangent(self, a: Tensor | None) -> Tensor:
        of_all = (self._x @ self.direction.flatten(0, 1).T).view(len(self._x), self._classes.count, -1)
        own = of_all[self._classes.rows, self._classes.index]
        return own if a is None else own.add_(self._product(a))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.back(y).addmm_(self._apart, self.direction.flatten(0, 1))


class _StackedLinear(_Linear):
    """Those of stacked clients, with a row of x for each client's image.

    Products are of a client's rows and classes alone: zero times another's value is no zero if that is not finite.
    """

    _m: StackedLinear

    def weight_gradients(self) -> Tensor:
        of_clients = self._m.by_client(self._apart).mT @ self._m.by_client(self._x)
        found: Tensor = of_clients.unflatten(1, (self._classes.count, -1))
        return found[self._classes.owners, torch.arange(self._classes.count)]

    def own_gradients(self, g: Tensor) -> list[Tensor]:
        return [] if self.bias is None else [g.view(-1, len(self.bias)).sum(0)]

    def back(self, g: Tensor) -> Tensor:
        return self._m.transposed(g)

    def _product(self, a: Tensor) -> Tensor:
        return self._m.product(a)

    def adjoint(self, y: Tensor) -> Tensor:
        assert self._classes.owners is not None
        others = self._classes.owners != torch.arange(self._classes.clients)[:, None]
        of_clients = self.direction.masked_fill(others[:, :, None, None], 0).flatten(1, 2)
        return self.back(y).add_(self._m.times(self._apart, of_clients))


class _Convolution(Weighted):
    """Convolutions class by class."""

    def __init__(self, module: nn.Conv2d, classes: Classes) -> None:
        self._m, self._sizes, self.bias = module, classes.sizes, module.bias
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


class _ClassProducts(_Convolution):
    """What differs by class as one product a class with the unfolded input, see :func:`rows_of`.

    Groups are those of stacked clients: each counts as an image of its own, so that M·n images belong to K classes.
    """

    def __init__(self, module: nn.Conv2d, classes: Classes) -> None:
        super().__init__(module, classes)
        self._order = classes.order

    def _sorted(self, x: Tensor) -> Tensor:
        """(M, n·C, H, W) to one (C, H, W) per image, sorted by class."""
        images = by_client(x, self._m)
        return images if self._order is None else images[self._order]

    def _unsorted(self, images: Tensor, like: Tensor) -> Tensor:
        """Back to (M, n·C, H, W), with zeros for padding."""
        if self._order is None:
            return images.contiguous()
        return by_client(torch.zeros_like(like), self._m).index_copy_(0, self._order, images).view_as(like)

    def _products(self, rows: Tensor, weights: Tensor, like: Tensor) -> Tensor:
        """Each row times the weight of its class, (K, values of a row, channels), in the shape of x or y."""
        parts = zip(rows.split([size * like[0, 0].numel() for size in self._sizes]), weights, strict=True)
        found = torch.cat([own @ weight for own, weight in parts])
        return self._unsorted(found.view(-1, *like.shape[2:], weights.shape[2]).permute(0, 3, 1, 2), like)

    def weight_gradients(self) -> Tensor:
        self._rows = rows_of(self._sorted(self._x), self._m, padding_of(self._m))
        return summed_by_class(self._rows, self._sorted(self._g), self._m, self._sizes)

    def tangent(self, a: Tensor | None) -> Tensor:
        own = self._products(self._rows, self.direction.permute(0, 3, 4, 2, 1).flatten(1, 3), self._g)
        return own if a is None else own.add_(F.conv2d(a, self._m.weight, None, *self._options))

    def adjoint(self, y: Tensor) -> Tensor:
        # Back through a convolution is one with the weight turned around.
        (down, right), (height, width) = padding_of(self._m), self._m.kernel_size
        g = rows_of(self._sorted(self._g), self._m, (height - 1 - down, width - 1 - right))
        turned = self.direction.flip(3, 4).permute(0, 3, 4, 1, 2).flatten(1, 3)
        return self._products(g, turned, self._x).add_(self.back(y))


class _ImageProducts(_Convolution):
    """The same as one product an image, for any device: no number of classes is read, and kernels serve all images."""

    def __init__(self, module: nn.Conv2d, classes: Classes) -> None:
        super().__init__(module, classes)
        self._classes = classes

    def forward(self, x: Tensor) -> Tensor:
        m, self._x = self._m, x
        self._columns = columns_of(by_client(x, m), m)
        return product_of(self._columns, x, m) if x.device.type == "cpu" and is_thin(m) else super().forward(x)

    def weight_gradients(self) -> Tensor:
        found = image_products(self._columns, by_client(self._g, self._m).flatten(2), self._classes)
        return found.view(len(found), -1, *self._m.weight.shape[1:])

    def tangent(self, a: Tensor | None) -> Tensor:
        self._own = self.direction.flatten(2)[self._classes.index]
        own = torch.bmm(self._own, self._columns).view_as(self._g)
        return own if a is None else own.add_(F.conv2d(a, self._m.weight, None, *self._options))

    def adjoint(self, y: Tensor) -> Tensor:
        columns = torch.bmm(self._own.mT, by_client(self._g, self._m).flatten(2))
        images = folded(columns, by_client(self._x, self._m), self._m)
        return images.reshape(self._x.shape).add_(self.back(y))


def sequence_of(model: nn.Module) -> list[nn.Module]:
    """The layers of nested ``nn.Sequential`` in the order in which they run; any other module is one layer."""
    if type(model) is nn.Sequential:
        return [layer for part in model for layer in sequence_of(part)]
    return [model]


def is_supported(sequence: Sequence[nn.Module]) -> bool:
    """Whether the passes of a model's layers, given in the order in which they run, are written here."""
    return all(map(_is_written, sequence))


def is_listed(model: nn.Module) -> bool:
    """Whether a model is a sequence of layers that are written here, in the order of its parameters, logits last."""
    sequence = sequence_of(model)
    in_order = [id(p) for m in sequence for p in m.parameters()] == [id(p) for p in model.parameters()]
    return in_order and isinstance(sequence[-1], nn.Linear) and is_supported(sequence)


def _is_written(m: nn.Module) -> bool:
    """A subclass may do something else."""
    kind = type(m)
    if isinstance(m, nn.Conv2d):
        plain = m.groups == 1 and m.dilation == (1, 1) and m.padding_mode == "zeros" and isinstance(m.padding, tuple)
        return kind is nn.Conv2d and plain
    if isinstance(m, nn.Flatten):
        return (m.start_dim, m.end_dim) == (1, -1)
    return kind in (HalvingPool, nn.ReLU, nn.Linear, nn.Identity) or (kind is nn.GroupNorm and bool(m.affine))


def layer_of(module: nn.Module, x: Tensor, classes: Classes) -> Layer:
    """The passes of a module whose input is x."""
    match module:
        case nn.Conv2d() if classes.members is not None or is_thin(module):
            return _ImageProducts(module, classes)
        case nn.Conv2d() if classes.order is not None or is_small(module, x):
            return (_ImageProducts if by_image(module) else _ClassProducts)(module, classes)
        case nn.Conv2d():
            return _Convolution(module, classes)
        case nn.Linear():
            return _Linear(module, classes)
        case StackedLinear():
            return _StackedLinear(module, classes)
        case nn.GroupNorm():
            return _Norm(module)
        case nn.ReLU():
            return _Relu(module)
        case HalvingPool():
            return _Pool(module)
        case _:
            return _Reshape(module)

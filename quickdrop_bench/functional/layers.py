"""The layers of a model in the four passes of gradient matching, written out.

Shapes: M images of K classes, sorted by class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.pooling import HalvingPool, spread_over_squares

UNFOLDED = 2**18
"""Most elements of an unfolded input for which products over all classes at once beat convolutions class by class."""


class Layer:
    """One layer in the four passes; it keeps what later ones need."""

    def forward(self, x: Tensor) -> Tensor:
        """The output y."""
        raise NotImplementedError

    def keep(self, g: Tensor) -> None:
        """Look at the gradient at y before it goes on backwards."""

    def own_gradients(self, g: Tensor) -> list[Tensor]:
        """Gradients of the parameters that are not matched, scales and biases, from the one at y."""
        return []

    def back(self, g: Tensor) -> Tensor:
        """Jᵀg."""
        raise NotImplementedError

    def push(self, a: Tensor, /) -> Tensor:
        """Ja, for layers without a weight."""
        raise NotImplementedError

    def tangent(self, a: Tensor | None) -> Tensor | None:
        """Ja, and what V adds; None stands for zero."""
        return None if a is None else self.push(a)

    def adjoint(self, y: Tensor) -> Tensor:
        """Jᵀy, and what x changes in the two passes before."""
        return self.back(y)


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
    def forward(self, x: Tensor) -> Tensor:
        self._y = x.relu()
        return self._y

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

    def own_gradients(self, g: Tensor) -> list[Tensor]:
        return self._backward(g, self._m.weight, [False, True, True])[1:]

    def _project(self, g: Tensor, weight: Tensor | None) -> Tensor:
        """r·P(weight·g) with P = I − 11ᵀ/L − x̂x̂ᵀ/L."""
        return self._backward(g, weight, [True, False, False])[0]

    def _backward(self, g: Tensor, weight: Tensor | None, wanted: list[bool]) -> list[Tensor]:
        n, c, h, w = g.shape
        sizes = (n, c, h * w, self._m.num_groups)
        norm_backward = torch.ops.aten.native_group_norm_backward
        return list(norm_backward(g.contiguous(), self._x, self._mean, self._r, weight, *sizes, wanted))

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


class Weighted(Layer):
    """A layer whose weight is matched, class by class."""

    bias: Tensor | None

    direction: Tensor
    """V, (K, *weight.shape): the gradient of the distance with respect to the class-wise weight gradients."""

    def own_gradients(self, g: Tensor) -> list[Tensor]:
        """The bias's."""
        return [] if self.bias is None else [g.sum([d for d in range(g.dim()) if d != 1])]

    def weight_gradients(self) -> Tensor:
        """(K, *weight.shape), once the first two passes are made."""
        raise NotImplementedError


class _Linear(Weighted):
    def __init__(self, module: nn.Linear, classes: Classes) -> None:
        self._m, self._classes, self.bias = module, classes, module.bias

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


class _UnfoldedConvolution(_Convolution):
    """What differs by class as products with the unfolded input, for all classes at once.

    Groups are those of stacked clients: each counts as an image of its own, so that M·n rows belong to K classes.
    """

    def __init__(self, module: nn.Conv2d, classes: Classes) -> None:
        super().__init__(module, classes)
        self._classes = classes
        self._window: tuple[Any, ...] = (module.kernel_size, 1, module.padding, module.stride)

    def _by_group(self, x: Tensor) -> Tensor:
        """(M, n·C, ...) to (M·n, C, L)."""
        return x.reshape(len(x) * self._m.groups, x.shape[1] // self._m.groups, -1)

    def weight_gradients(self) -> Tensor:
        self._columns = self._by_group(F.unfold(self._x, *self._window))
        found = summed_products(self._columns, self._by_group(self._g), self._classes.index, self._classes.count)
        return found.view(self._classes.count, -1, *self._m.weight.shape[1:])

    def tangent(self, a: Tensor | None) -> Tensor:
        self._own = self.direction.flatten(2)[self._classes.index]
        own = torch.bmm(self._own, self._columns).view_as(self._g)
        return own if a is None else own.add_(F.conv2d(a, self._m.weight, None, *self._options))

    def adjoint(self, y: Tensor) -> Tensor:
        columns = torch.bmm(self._own.mT, self._by_group(self._g)).view(len(y), -1, self._columns.shape[2])
        return F.fold(columns, self._x.shape[2:], *self._window).add_(self.back(y))


class _PaddedConvolution(_UnfoldedConvolution):
    """The same for padded images on any device: no number of classes is read, and no kernel is launched per image."""

    def weight_gradients(self) -> Tensor:
        assert self._classes.members is not None
        self._columns = columns_of(self._x, self._m)
        found = padded_products(self._columns, self._g.flatten(2), self._classes.members)
        return found.view(-1, *self._m.weight.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        columns = torch.bmm(self._own.mT, self._g.flatten(2))
        return _folded(columns, self._x, self._m).add_(self.back(y))


def columns_of(x: Tensor, m: nn.Conv2d) -> Tensor:
    """``F.unfold`` in two kernels: on CUDA the library's launches one for every image."""
    (down, right), (rows, cols) = _padding(m), m.kernel_size
    padded = F.pad(x, (right, right, down, down))
    windows = padded.unfold(2, rows, m.stride[0]).unfold(3, cols, m.stride[1])  # (M, C, h, w, rows, cols), a view
    return windows.permute(0, 1, 4, 5, 2, 3).reshape(len(x), x.shape[1] * rows * cols, -1)


def _folded(columns: Tensor, x: Tensor, m: nn.Conv2d) -> Tensor:
    """``F.fold`` as a sum of shifted images, for the same reason."""
    (down, right), (rows, cols), (by, along) = _padding(m), m.kernel_size, m.stride
    n, c, height, width = x.shape
    h, w = (height + 2 * down - rows) // by + 1, (width + 2 * right - cols) // along + 1
    parts = columns.view(n, c, rows, cols, h, w)
    total = x.new_zeros(n, c, height + 2 * down, width + 2 * right)
    for i in range(rows):
        for j in range(cols):
            total[:, :, i : i + by * h : by, j : j + along * w : along] += parts[:, :, i, j]
    return total[:, :, down : down + height, right : right + width]


def _padding(m: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(m.padding, str)
    down, right = m.padding
    return int(down), int(right)


def is_small(m: nn.Conv2d, x: Tensor) -> bool:
    """Whether products with the unfolded input x beat convolutions class by class."""
    return x.numel() * m.kernel_size[0] * m.kernel_size[1] <= UNFOLDED


def summed_products(columns: Tensor, g: Tensor, index: Tensor, count: int) -> Tensor:
    """Σ over a class's samples of g·columnsᵀ: from (M, n, L), (M, C, L) and (M,) classes below K to (K, C·n)."""
    each = torch.bmm(g, columns.mT).flatten(1)
    return each.new_zeros(count, each.shape[1]).index_add(0, index, each)


def padded_products(columns: Tensor, g: Tensor, members: Tensor) -> Tensor:
    """The same sums from (K, M) members of the classes, for padded images on any device."""
    return members @ torch.bmm(g, columns.mT).flatten(1)


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
        case nn.Conv2d() if classes.members is not None:
            return _PaddedConvolution(module, classes)
        case nn.Conv2d() if module.groups > 1:
            return _UnfoldedConvolution(module, classes)
        case nn.Conv2d():
            return (_UnfoldedConvolution if is_small(module, x) else _Convolution)(module, classes)
        case nn.Linear():
            return _Linear(module, classes)
        case nn.GroupNorm():
            return _Norm(module)
        case nn.ReLU():
            return _Relu()
        case HalvingPool():
            return _Pool(module)
        case _:
            return _Reshape(module)

"""What a layer of a model is in the four passes of gradient matching.

Shapes: M images of K classes, sorted by class unless ``classes`` says otherwise.
"""

from __future__ import annotations

from torch import Tensor


class Layer:
    """One layer in the four passes; it keeps what later ones need."""

    def forward(self, x: Tensor) -> Tensor:
        """The output y."""
        raise NotImplementedError

    def keep(self, g: Tensor) -> None:
        """Look at the gradient at y, before :meth:`own_gradients` and :meth:`back`."""

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

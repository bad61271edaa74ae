"""Federated learning in plain torch, to compare ours with: full batches, so that no order of batches is in the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.models.convnet import ConvNet


def network() -> nn.Module:
    """As in the fixture ``make_federation``."""
    return ConvNet(width=4, depth=2).build(1, 8, 3)


def equal(a: State, b: State) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def assert_close(a: State, b: State, atol: float = 2e-6) -> None:
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=atol, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


Loss = Callable[[Tensor, Tensor], Tensor]


def descended(start: State, data: LabelledSet, steps: int, lr: float, loss: Loss = F.cross_entropy) -> State:
    """Some steps θ − η∇L on all images; a negative η ascends."""
    model = network()
    model.load_state_dict(start)
    images, labels = data.take(torch.arange(len(data)))
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(model(images), labels), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def class_gradients(model: nn.Module, images: Tensor, label: int, *, create_graph: bool = False) -> list[Tensor]:
    """Of the loss on images of one class, by the weights that are matched."""
    loss = F.cross_entropy(model(images), torch.full((len(images),), label))
    weights = [p for p in model.parameters() if p.dim() > 1]
    return list(torch.autograd.grad(loss, weights, create_graph=create_graph))


def row_by_row(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """The matching distance of one class as its definition reads."""
    total = torch.zeros((), dtype=torch.float64)
    for a_rows, b_rows in zip(real, synthetic, strict=True):
        for a, b in zip(a_rows, b_rows, strict=True):
            total = total + 1 - (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt() + 1e-6)
    return total


def minus(a: State, b: State) -> State:
    return {name: a[name] - b[name] for name in a}


def plus_weighted(start: State, updates: Mapping[int, State], weights: Mapping[int, float]) -> State:
    """θ + Σ w_i·U_i."""
    return {n: v + sum(w * updates[i][n] for i, w in weights.items()) for n, v in start.items()}


def shares(clients: Mapping[int, LabelledSet]) -> dict[int, float]:
    """n_i/Σn."""
    return {i: len(data) / sum(map(len, clients.values())) for i, data in clients.items()}

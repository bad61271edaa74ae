"""Federated learning in plain torch, to compare ours with: full batches, so that no order of batches is in the way."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

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


def descended(start: State, data: LabelledSet, steps: int, lr: float) -> State:
    """Some steps θ − η∇L on all images; a negative η ascends."""
    model = network()
    model.load_state_dict(start)
    images, labels = data.take(torch.arange(len(data)))
    for _ in range(steps):
        gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def minus(a: State, b: State) -> State:
    return {name: a[name] - b[name] for name in a}


def plus_weighted(start: State, updates: Mapping[int, State], weights: Mapping[int, float]) -> State:
    """θ + Σ w_i·U_i."""
    return {n: v + sum(w * updates[i][n] for i, w in weights.items()) for n, v in start.items()}


def shares(clients: Mapping[int, LabelledSet]) -> dict[int, float]:
    """n_i/Σn."""
    return {i: len(data) / sum(map(len, clients.values())) for i, data in clients.items()}

"""Federated learning in plain torch, to compare ours with: full batches, so that no order of batches is in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.history import UpdateHistory, UpdateRecorder
from quickdrop_bench.federation.local import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods.base import ClientData, Context
from quickdrop_bench.models import ConvNet


def equal(a: State, b: State) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def assert_close(a: State, b: State, atol: float = 2e-6) -> None:
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=atol, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def descended(start: State, data: LabelledSet, steps: int, lr: float) -> State:
    """Some steps θ − η∇L on all images; a negative η ascends."""
    model = ConvNet(1, 8, 3, width=4, depth=2)
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


def asked(
    federation: Federation, clients: Mapping[int, LabelledSet], level: str = "client", state: State | None = None
) -> Context:
    """A request to forget class or client 1 of a model, a fresh one if none is given; steps are on full batches."""
    request = UnlearningRequest(level, (1,))
    data = {i: ClientData(d, d, d) for i, d in clients.items()}
    state = federation.fresh_state(1, "init") if state is None else state
    training = Phase("fl-training", rounds=3, local_steps=2, batch_size=100, lr=0.2)
    return Context(federation, training, data, state, request, (request,), seed=1)


def recorded(context: Context, every: int = 1) -> tuple[Context, dict[tuple[int, int], State]]:
    """The same on a model that was trained, with the update history; and all local models by round and client."""
    models: dict[tuple[int, int], State] = {}
    recorder = UpdateRecorder(Path("updates"), context.training.rounds, every)

    def record(k: int, client: int, size: int, before: State, after: State) -> None:
        recorder(k, client, size, before, after)
        models[k, client] = {name: value.clone() for name, value in after.items()}

    data = {i: c.original for i, c in context.clients.items()}
    trained = context.federation.run(context.state, data, context.training, 1, record=record)
    history = UpdateHistory(Path("updates"), torch.device("cpu"))
    return replace(context, state=trained.state, history=history), models

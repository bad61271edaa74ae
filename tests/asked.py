"""Requests on tiny federations of one's own, trained or not, for tests of single methods."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.distillation.in_situ import SyntheticSet, initial_synthetic_set
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.history import UpdateHistory, UpdateRecorder
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods.context import ClientData, Context
from tests.conftest import Clients, Guarded

FULL_BATCHES = Phase("fl-training", rounds=3, local_steps=2, batch_size=100, lr=0.2)


def asked(
    federation: Federation,
    clients: Clients,
    request: str | UnlearningRequest = "client",
    state: State | None = None,
    training: Phase = FULL_BATCHES,
) -> Context:
    """A request, to forget class or client 1 if only a level is given, of a model, a fresh one if none is given."""
    if isinstance(request, str):
        request = UnlearningRequest(request, (1,))
    data = {i: ClientData(d, d, d) for i, d in clients.items()}
    state = federation.fresh_state(1, "init") if state is None else state
    return Context(federation, training, data, state, request, (request,), seed=1)


def recorded(context: Context, every: int = 1, **choice: object) -> tuple[Context, dict[tuple[int, int], State]]:
    """The same on a model that was trained, with the update history; and all local models by round and client."""
    models: dict[tuple[int, int], State] = {}
    recorder = UpdateRecorder(Path("updates"), context.training.rounds, every)

    def record(k: int, client: int, size: int, before: State, after: State) -> None:
        recorder(k, client, size, before, after)
        models[k, client] = {name: value.clone() for name, value in after.items()}

    data = {i: c.original for i, c in context.clients.items()}
    trained = context.federation.run(context.state, data, context.training, 1, record=record, **choice)  # type: ignore[arg-type]
    history = UpdateHistory(Path("updates"), torch.device("cpu"))
    return replace(context, state=trained.state, history=history), models


def guarded(context: Context, forbidden: Collection[int]) -> Context:
    """The same, but reading some rows of the original data raises."""
    clients = {i: replace(c, original=Guarded(c.original, {*forbidden})) for i, c in context.clients.items()}
    return replace(context, clients=clients)


def synthetic_sets(clients: Clients, scale: float = 4) -> dict[int, SyntheticSet]:
    return {i: initial_synthetic_set(d, scale, generator(1, "synthetic", i)) for i, d in clients.items()}

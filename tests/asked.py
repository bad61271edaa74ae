"""Requests on tiny federations of one's own, trained or not, for tests of single methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.history import UpdateHistory, UpdateRecorder
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods.context import ClientData, Context


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

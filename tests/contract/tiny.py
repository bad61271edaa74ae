"""A tiny setting for every registered method, and the toy federation whose requests it serves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.labelled import LabelledSet, concatenate
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.distillation.in_situ import SyntheticSet, augmentation_positions, initial_synthetic_set
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.history import UpdateHistory, UpdateRecorder
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.methods import METHODS, Context, Method
from quickdrop_bench.methods.context import ClientData
from tests.conftest import Clients, toy_images

Asked = Callable[..., Context]
TRAIN = Phase("fl-training", rounds=4, local_steps=6, batch_size=8, lr=0.2)
RELEARN = {"relearn_lr": 0.2}
STEPS = {"unlearn_local_steps": 20, "unlearn_stop_loss": 4.0, "unlearn_lr": 0.1, "recover_local_steps": 3, **RELEARN}
TINY: dict[str, dict[str, object]] = {
    "retrain-or": {"rounds": 8, **RELEARN},
    "retrain-again": {"rounds": 8, **RELEARN},
    "federaser": {"recover_lr": 0.1, **RELEARN},
    "s2u": {"beta": 0.0, "unlearn_lr": 0.2, "recover_lr": 0.2, "recover_rounds": 6, **RELEARN},
    "sga-or": STEPS,
    "fu-mp": {"prune_ratio": 0.5, "recover_lr": 0.2},
    "random-subset": STEPS,
    "quickdrop": STEPS,
    "none": {},
    "recovery-only": {"recover_lr": 0.2, **RELEARN},
    "not": {"recover_lr": 0.2, "recover_rounds": 8, **RELEARN},
    "fedquit": {"unlearn_lr": 0.2, "unlearn_local_steps": 20, "recover_lr": 0.1, **RELEARN},
    "pga": {"unlearn_local_steps": 20, "unlearn_stop_loss": 4.0, "recover_lr": 0.1, **RELEARN},
    "fedosd": {"unlearn_lr": 1.0, "recover_lr": 0.1, **RELEARN},
    "mode": {"momentum": 0.5, "unlearn_lr": 0.1, "recover_lr": 0.1, **RELEARN},
    "conda": {"alpha": 5.0, "recover_rounds": 3, "recover_lr": 0.1, **RELEARN},
}
"""A setting per method that works on the toy federation; a method without one fails collection."""

CONTROLS = {"none", "recovery-only"}
"""They forget nothing, or only by chance."""

for _name in METHODS:
    assert _name in TINY, f"{_name} has no tiny test setting in {__file__}"

CASES = [pytest.param(name, level, id=f"{name}-{level}") for name in METHODS for level in sorted(METHODS[name].levels)]


def request_for(level: str) -> UnlearningRequest:
    """Class 1, client 1, or every fourth of the 45 images, which are some of every client and class."""
    return UnlearningRequest(level, tuple(range(0, 45, 4)) if level == "sample" else (1,))


Sets = dict[int, SyntheticSet]
_trained: dict[str, tuple[State, Sets, dict[Path, bytes]]] = {}
"""Trainings of this test run, with the files of their updates, by what decides them."""


def trained_once(
    federation: Federation, clients: Clients, scale: float, starts: Sets, train: Phase
) -> tuple[State, Sets]:
    """Train, or take over what was trained before; either way the updates are recorded here."""
    rows = {i: d.rows.tolist() for i, d in clients.items()}  # of the same 45 images
    key = repr(
        (federation.faults, federation.model, type(federation._engine), federation._stacked is None, scale, rows, train)
    )
    if key not in _trained:
        synthetic = {i: replace(s, images=s.images.clone()) for i, s in starts.items()}
        recorder = UpdateRecorder(Path("updates"), train.rounds, every=1)
        initial = federation.fresh_state(1, "init")
        state = federation.run(initial, clients, train, 1, synthetic=synthetic, record=recorder).state
        files = {path: path.read_bytes() for path in Path("updates").rglob("*") if path.is_file()}
        _trained[key] = state, synthetic, files
    state, synthetic, files = _trained[key]
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return copy.deepcopy((state, synthetic))


def make_context(
    federation: Federation,
    clients: Clients,
    level: str = "class",
    scale: float = 4.0,
    train: Phase = TRAIN,
) -> Context:
    """A federation trained with distillation and recorded updates, and a request to forget class 1 or client 1."""
    starts = {i: initial_synthetic_set(d, scale, generator(1, "synthetic", i)) for i, d in clients.items()}
    state, synthetic = trained_once(federation, clients, scale, starts, train)
    data = {}
    for i, original in clients.items():
        positions = augmentation_positions(original, starts[i], generator(1, "augmentation", i))
        augmentation = concatenate(original.subset(positions))
        data[i] = ClientData(original, starts[i].as_labelled(), augmentation, synthetic[i])
    request = request_for(level)
    history = UpdateHistory(Path("updates"), torch.device("cpu"))
    return Context(federation, train, data, state, request, (request,), seed=1, history=history)


def forget_rows(context: Context) -> set[int]:
    if context.request.level == "sample":
        return {*context.request.targets}
    if context.request.level == "class":
        labels = context.clients[0].original.labels
        return set(torch.nonzero(labels == 1).flatten().tolist())
    return set(context.clients[1].original.rows.tolist())


def accuracies(federation: Federation, state: State) -> tuple[float, float]:
    """On test images of class 1 and of the others."""
    federation.load(state)
    result = class_accuracy(federation.model, LabelledSet.of(*toy_images(90, seed=5)), 3)
    return result.over((1,)), result.without((1,))


def tiny(name: str) -> Method:
    return METHODS[name](**TINY[name])


def serve(method: Method, context: Context) -> State:
    unlearned = method.unlearn(context)
    recovered = method.recover(context, unlearned.state)
    return (recovered or unlearned).state

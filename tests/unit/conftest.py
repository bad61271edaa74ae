"""Federations: one made up, and copies of the one that serves requests."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.fabric import Fabric

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.labelled import DataInfo, LabelledSet, concatenate
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.distillation.in_situ import initial_synthetic_set
from quickdrop_bench.harness.experiment import Experiment
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.harness.run_spec import Rules
from quickdrop_bench.harness.session import Session
from quickdrop_bench.methods import METHODS
from quickdrop_bench.store.artifacts import ClientArtifacts, TrainedFederation
from tests.served import CLASS_3, CLASS_9, NAME, Measured, measure_all, served


def artifacts_of(data: LabelledSet) -> ClientArtifacts:
    start = initial_synthetic_set(data, 4, generator(0))
    synthetic = replace(start, images=start.images + 1)
    few = data.subset(torch.arange(min(3, len(data))))
    return ClientArtifacts(data.rows, start.as_labelled(), start.origin, concatenate(few), few.rows, synthetic)


@pytest.fixture
def trained(toy_clients: dict[int, LabelledSet]) -> TrainedFederation:
    clients = {i: artifacts_of(data) for i, data in toy_clients.items()}
    clients[3] = replace(artifacts_of(toy_clients[0].subset(torch.empty(0, dtype=torch.int64))), synthetic=None)
    history = pd.DataFrame(
        {
            "round": [1, 2],
            "loss": [0.5, 0.25],
            "matching_distance": [1.0, 0.5],
            "participants": [3, 3],
            "seconds": [0.5, 1.5],
            "distillation_seconds": [0.25, 0.5],
            "class_0_accuracy": [float("nan"), 0.5],
        }
    )
    data = DataInfo("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,), 45, 9)
    cost = Cost(seconds=1.5, rounds=2)
    return TrainedFederation({"w": torch.randn(3)}, clients, history, cost, {"alpha": 0.1}, "a CPU", data, "32-true")


def small_experiment(artefact: str, *names: str) -> Experiment:
    """Two requests on a federation that trains in a moment; retraining takes two rounds."""
    spec = FederationSpec("digits", clients=3, iid=True, width=4, rounds=1, local_steps=1, distill=False)
    requests = (UnlearningRequest("class", (9,)), UnlearningRequest("class", (3,)))
    methods = {name: METHODS[name](**({"rounds": 2} if name.startswith("retrain") else {})) for name in names}
    return Experiment(artefact, "quick", spec, requests, methods, (1,), Path("data"), "32-true", Rules())


def session_of(experiment: Experiment, place: Path) -> Session:
    return Session(experiment, Fabric(accelerator="cpu", devices=1), place / "artifacts")


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measure_all(tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="session")
def requested(measured: Measured, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Path(shutil.copytree(measured.folder, tmp_path_factory.mktemp("requested") / NAME))
    served(place, CLASS_9, CLASS_3)
    return place


@pytest.fixture
def folder(measured: Measured, tmp_path: Path) -> Path:
    """A federation that forgot nothing yet."""
    return Path(shutil.copytree(measured.folder, tmp_path / "artifacts" / NAME))


@pytest.fixture
def history(requested: Path, tmp_path: Path) -> Path:
    """A federation that forgot class 9, and then class 3."""
    return Path(shutil.copytree(requested, tmp_path / "artifacts" / NAME))

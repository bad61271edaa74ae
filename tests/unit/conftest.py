"""Copies of the federation that serves requests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lightning.fabric import Fabric

from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.harness.experiment import Experiment
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.harness.run_spec import Rules
from quickdrop_bench.harness.session import Session
from quickdrop_bench.methods import METHODS
from tests.served import CLASS_3, CLASS_9, NAME, Measured, measure_all, served


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

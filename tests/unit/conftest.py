"""Copies of the federation that serves requests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.served import CLASS_3, CLASS_9, NAME, Measured, measure_all, served


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

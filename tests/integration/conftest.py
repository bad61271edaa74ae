"""What the tests of whole commands share."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quickdrop_bench.harness.training import client_rows
from tests.conftest import TINY
from tests.integration.forks import WARMED, fork, is_warm
from tests.integration.judging import RUN, Ended, call
from tests.pictures import make_pictures

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def warm_server() -> Iterator[None]:
    """Start the process that others are forked from, see :mod:`tests.integration.forks`."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")  # threads do not survive a fork
        patched.setenv("CUDA_VISIBLE_DEVICES", "")  # nor does what CUDA has set up
        patched.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        multiprocessing.set_forkserver_preload([WARMED])
        first = fork(is_warm)
        first.join()
        assert first.exitcode == 0
    yield
    for left in multiprocessing.active_children():
        left.kill()


def until_training(session: Any, *args: Any, **options: Any) -> bool:
    """Everything that a measurement does before it computes."""
    spec = session.experiment.federation
    _ = session.federation
    client_rows(spec, session.data.train.labels, session.experiment.seeds[0])
    return True


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained federation, its results, an image folder and a configuration."""
    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        assert call(["table", "2", *RUN]).code == 0
        assert call(["unlearn", next(Path("artifacts").glob("[!.]*")).name, "--class", "9"]).code == 0
        (root / "mine.yaml").write_text("rounds: 2\n")
        make_pictures(root / "pics")
        yield root


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inside that folder."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return home


@pytest.fixture
def idle(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inside that folder, where nothing is trained."""
    monkeypatch.setattr("quickdrop_bench.cli.runner.measure", until_training)
    monkeypatch.setattr("quickdrop_bench.cli.training._train", until_training)
    return at_home


@pytest.fixture(scope="session")
def table_2_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A folder where Table 2 was measured with all methods, and how the command ended."""
    place = tmp_path_factory.mktemp("table2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        ended = call(["table", "2", *TINY])
    assert ended.code == 0, ended.err
    return place, ended


@pytest.fixture
def federation_here(table_2_once: tuple[Path, Ended], tmp_path: Path) -> None:
    """The federation of :data:`TINY` is trained already, for one test alone."""
    shutil.copytree(table_2_once[0] / "artifacts", tmp_path / "artifacts")


@pytest.fixture
def table_2(table_2_once: tuple[Path, Ended], federation_here: None, tmp_path: Path) -> Ended:
    """Table 2 is measured already, for one test alone; how the command ended."""
    shutil.copytree(table_2_once[0] / "results", tmp_path / "results")
    return table_2_once[1]

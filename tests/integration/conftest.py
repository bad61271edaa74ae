"""What the tests of whole commands share."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quickdrop_bench.harness.training import client_rows
from tests.damage import make_pictures
from tests.integration.forks import WARMED, fork, is_warm
from tests.integration.judging import RUN, call

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
        assert call(["unlearn", next(Path("artifacts").iterdir()).name, "--class", "9"]).code == 0
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
    monkeypatch.setattr("quickdrop_bench.produce.measure", until_training)
    monkeypatch.setattr("quickdrop_bench.cli._train", until_training)
    return at_home

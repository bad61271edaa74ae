"""What the tests of whole commands share."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.forks import WARMED, fork, is_warm

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

"""Ctrl-C while the libraries are still being imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process each

ROOT = Path(__file__).parents[2]
WATCHED = """
import os, signal, sys
from quickdrop_bench.__main__ import main

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ.get("INTERRUPTED_AT"):
            del os.environ["INTERRUPTED_AT"]
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["jsonargparse", "numpy", "torch", "quickdrop_bench.cli.resolve"])
def test_an_early_interruption_ends_as_a_late_one_does(module: str, tmp_path: Path) -> None:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "INTERRUPTED_AT": module}
    argv = [sys.executable, "-c", WATCHED, "show", "latest"]
    done = subprocess.run(argv, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "quickdrop-bench: interrupted; nothing was begun\n"

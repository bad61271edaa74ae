"""Importing this runs commands once: processes forked afterwards begin with all libraries loaded."""

from __future__ import annotations

import os
import tempfile

import torch

from quickdrop_bench.cli import main
from tests.integration.test_kill import COMMANDS

torch.set_num_threads(1)  # threads do not survive a fork
before = os.getcwd()
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    assert [main(argv) for argv in COMMANDS.values()] == [0] * len(COMMANDS)
    os.chdir(before)

"""Importing this runs commands once: processes forked afterwards begin with all libraries loaded."""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout

import torch

from quickdrop_bench.cli.main import main
from tests.conftest import TINY

torch.set_num_threads(1)  # threads do not survive a fork
before = os.getcwd()
nowhere = io.StringIO()  # each process would say what was left in a buffer here
with tempfile.TemporaryDirectory() as folder, redirect_stdout(nowhere), redirect_stderr(nowhere):
    os.chdir(folder)
    for argv in (["table", "2"], ["sweep", "--scales", "1"]):
        assert main([*argv, *TINY, "--methods", "quickdrop", "--wandb", "disabled"]) == 0
    os.chdir(before)

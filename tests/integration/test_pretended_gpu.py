"""Commands on a pretended CUDA device: no tensors of different devices meet, and steps ask the device nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
STEPS = "federation/static.py"


def pretended(*lines: str) -> dict[str, Any]:
    options = [*TINY, "--accelerator", "cpu", "--wandb", "disabled"]
    words = " THEN ".join(" ".join([line, *options] if " RUN" not in line else [line]) for line in lines).split()
    command = [sys.executable, str(ROOT / "tests" / "pretended_cuda.py"), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["codes"] == [0] * len(lines), done.stderr[-3000:]
    assert found["mixed"] == []
    return found


def test_a_clients_steps_wait_for_nothing_and_copy_twice() -> None:
    """A table trains with distillation and runs plain and ascending phases, with and without a stopping rule."""
    found = pretended("table 2")
    waits, copies = Counter[str](), Counter[str]()
    for counter, name in ((waits, "waits"), (copies, "copies")):
        for place, what, times in found[name]:
            if place.startswith(STEPS):
                counter[f"{what} {place.split(' ', 1)[1]}"] += times
    results = sum(times for what, times in waits.items() if what.startswith("tolist"))
    labels = sum(times for what, times in waits.items() if "labels().cpu()" in what)
    assert results + labels == sum(waits.values())  # the rounds' results, and each set's labels once
    assert results > 50
    assert labels <= results
    assert sum(copies.values()) == 2 * results


@pytest.mark.slow
def test_every_command_keeps_devices_apart() -> None:
    tables = [f"table {n}" for n in (1, 3, 4, 5)] + [f"figure {n}" for n in (2, 3, 4, 5)]
    pretended(*tables, "train")

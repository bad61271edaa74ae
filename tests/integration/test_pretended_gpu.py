"""Commands on a pretended CUDA device: no tensors of different devices meet, and steps ask the device nothing."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.integration.forks import start_script

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_server")]

STEPS = "federation/static.py"
OPTIONS = ["--accelerator", "cpu", "--wandb", "disabled"]
WIDE = [option for option in TINY if option not in ("--width", "4")]
"""For models that have no width."""

SCRIPT = """
import json, sys

from quickdrop_bench.models.resnet18 import ResNet18
from tests.pretended_cuda import run_and_count

ResNet18.__init__.__defaults__ = (4,)  # filters: it trains in a moment
print("\\n" + json.dumps(run_and_count(json.loads(sys.argv[1]))))
"""


def pretended(folder: Path, *lines: list[str]) -> dict[str, Any]:
    given = json.dumps([[*line, *OPTIONS] for line in lines])
    code, out, err = start_script(SCRIPT, [given], folder, os.environ).end()
    assert code == 0, err[-3000:]
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert found["codes"] == [0] * len(lines), err[-3000:]
    assert found["mixed"] == []
    return found


@pytest.mark.parametrize(
    "options",
    [TINY, [*TINY, "--precision", "bf16-mixed"], [*WIDE, "--model", "resnet18"]],
    ids=["float32", "bf16", "passes of autograd"],
)
def test_a_clients_steps_wait_for_nothing_and_copy_twice(tmp_path: Path, options: list[str]) -> None:
    """A table trains with distillation and runs plain and ascending phases, with and without a stopping rule."""
    found = pretended(tmp_path, ["table", "2", "--methods", "sga-or,fu-mp,quickdrop", *options])
    waits, copies = Counter[str](), Counter[str]()
    for counter, name in ((waits, "waits"), (copies, "copies")):
        for place, what, times in found[name]:
            if place.startswith(STEPS):
                counter[f"{what} {place.split(' ', 1)[1]}"] += times
            else:
                assert not place.startswith("federation/local.py")  # the loop's steps
    results = sum(times for what, times in waits.items() if what.startswith("tolist"))
    labels = sum(times for what, times in waits.items() if "labels().cpu()" in what)
    assert results + labels == sum(waits.values())  # the rounds' results, and each set's labels once
    assert results > 30
    assert labels <= results
    assert sum(copies.values()) == 2 * results


def test_every_command_keeps_devices_apart(tmp_path: Path) -> None:
    tables = ["table 3 --participation 0.67", "table 4", "table 1", "table 5"]
    figures = ["figure 2", "figure 3", "figure 4 --class 5,8", "figure 5 --fine-tunes 0,1 --fine-tune-steps 2"]
    measured = [[*line.split(), *TINY] for line in (*tables, *figures, "train --width 6")]
    pretended(tmp_path, *measured, ["unlearn", "latest", "--class", "9"])

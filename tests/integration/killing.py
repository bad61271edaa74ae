"""Commands in processes of their own that are killed, and what they leave."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from quickdrop_bench.cli.main import main
from quickdrop_bench.harness import training
from quickdrop_bench.store import artifacts
from quickdrop_bench.store.rows import KEY
from tests.conftest import NEVER_EQUAL, facts, read_rows
from tests.integration.forks import fork

# In the process that is killed -------------------------------------------------------------------------------


def begun() -> bool:
    """Whether anything of a federation is there that a training can go on from."""
    return any(Path("artifacts").rglob("*.safetensors")) or any(Path("artifacts").rglob("*.ckpt"))


def train(argv: list[str]) -> int:
    """Resume what was begun, else begin."""
    nothing = not begun()
    code = main([*argv, "--resume"])
    return main(argv) if code == 2 and nothing else code


def each_round_saved() -> None:
    training.SAVING_SHARE = math.inf


@dataclass(frozen=True)
class WriteSteps:
    """Watches what this process writes: says so in a file, and dies right before a step.

    Attributes:
        told: the file, outside the folder that is written.
        last: number of the step; 0 for none.
    """

    told: Path
    last: int = 0

    def __call__(self) -> None:
        each_round_saved()
        here, file, seen = os.getcwd(), self.told.open("w"), 0
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

        def watch(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if event not in ("os.mkdir", "os.rename", "os.remove") and not (event == "open" and args[2] & writing):
                return
            path = os.path.abspath(str(args[1 if event == "os.rename" else 0]))
            if not path.startswith(here):
                return
            seen += 1
            if seen == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            print(event, os.path.relpath(path), file=file, flush=True)

        sys.addaudithook(watch)


def run_command(place: Path, argv: list[str], log: Path, prepare: Callable[[], None] | None) -> None:
    place.mkdir(exist_ok=True)
    os.chdir(place)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    if prepare:
        prepare()
    sys.exit((train if argv[0] == "train" else main)(argv))


# In the test -------------------------------------------------------------------------------------------------


@dataclass
class Command:
    """A command line in a folder of its own.

    Attributes:
        place: the folder.
        argv: the command line.
        prepare: what the process does first.
    """

    place: Path
    argv: list[str]
    prepare: Callable[[], None] | None = None

    @property
    def log(self) -> Path:
        """What its processes said, one after the other."""
        return self.place.with_suffix(".log")

    def start(self, prepare: Callable[[], None] | None = None, log: Path | None = None) -> ForkServerProcess:
        return fork(run_command, self.place, self.argv, log or self.log, prepare or self.prepare)

    def finish(self) -> dict[str, object]:
        """Run it to its end; what that leaves."""
        assert self.ended(self.start()) == 0, self.log.read_text()
        return outcome(self.place)

    def killed(self, moment: float) -> bool:
        """Kill it after so many seconds; False where it had finished before."""
        process = self.start()
        process.join(moment)
        process.kill()
        code = self.ended(process)
        assert code in (0, -signal.SIGKILL), self.log.read_text()
        return code != 0

    @staticmethod
    def ended(process: ForkServerProcess) -> int | None:
        process.join(600)
        return process.exitcode


def without_seconds(csv: Path) -> str:
    """Tables of numbers, without what differs from run to run."""
    table = pd.read_csv(csv)
    if "metric" in table:
        table = table[~table["metric"].str.endswith(NEVER_EQUAL)]
    timed = [name for name in table if re.search(r"seconds|total_speedup_(median|min|max)|shared_cores", str(name))]
    return table.drop(columns=timed).to_csv()


def without_costs(manifest: Path) -> object:
    content = json.loads(manifest.read_text())
    content["files"].pop("history.csv")
    for cost in ("cost", "fine_tuning"):
        content[cost] = {name: value for name, value in content[cost].items() if not name.endswith("seconds")}
    return content


def measured(rows: Path) -> object:
    found = read_rows(rows)
    return len(found), facts(found)


COMPARED: dict[str, Callable[[Path], object]] = {
    "history.csv": without_seconds,
    "table.csv": without_seconds,
    "figure.csv": without_seconds,
    "manifest.json": without_costs,
    "rows.jsonl": measured,
    "table.md": lambda path: len(path.read_text().splitlines()),
    "table.tex": lambda path: len(path.read_text().splitlines()),
    "figure.svg": lambda path: path.read_bytes()[-7:],
    "figure.png": lambda path: path.read_bytes()[-7:],
}
"""How files that hold seconds are compared; all others byte for byte."""


def visible(place: Path) -> Iterator[Path]:
    """Files but locks and what a killed writer left."""
    return (path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))


def outcome(place: Path) -> dict[str, object]:
    """What a command left, by file, as far as it is the same every time."""
    return {str(p.relative_to(place)): COMPARED.get(p.name, Path.read_bytes)(p) for p in visible(place)}


def check_equal(found: dict[str, object], whole: dict[str, object]) -> None:
    assert sorted(found) == sorted(whole)
    assert [name for name in whole if found[name] != whole[name]] == []


def check_readable(place: Path, whole: dict[str, object]) -> None:
    """What a killed command left is whole as far as it goes."""
    for path in visible(place):
        if path.name == artifacts.MANIFEST:
            artifacts.load(path.parent, torch.device("cpu"))
        elif path.name == "rows.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()[:-1]]
            assert all(set(KEY) <= row.keys() for row in rows)
        elif path.suffix in (".csv", ".md", ".tex", ".svg", ".png"):
            assert COMPARED.get(path.name, Path.read_bytes)(path) == whole[str(path.relative_to(place))]

"""Commands that are killed and resumed end with what an unbroken run leaves.

Killed at each kind of write step in CI, at random with ``make test-long``. There the environment may say how many kills
there are: ``KILLS=10`` makes ten times as many as usual, at moments that ``KILLS_SEED`` draws (0 unless given).
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.integration.killing import Command, WriteSteps, check_equal, check_readable, each_round_saved, outcome

pytestmark = pytest.mark.usefixtures("warm_server")

KILLS = int(os.environ.get("KILLS", "1"))
SEED = os.environ.get("KILLS_SEED", "0")

FAULTS = ["--dropout-rate", "0.3", "--straggler-rate", "0.2", "--corrupt-rate", "0.2"]
TRAIN = ["train", *TINY, "--rounds", "12", "--local-steps", "4", "--record-every", "1", *FAULTS]
FINE_TUNING = ["--fine-tune", "2", "--fine-tune-batch-size", "4", "--fine-tune-steps", "3"]
METHODS = ["--methods", "retrain-or,federaser,quickdrop"]
COMMANDS = {
    "train": TRAIN,
    "fine-tuning": [*TRAIN, "--rounds", "6", *FINE_TUNING],
    "table": ["table", "2", *TINY, "--rounds", "8", "--record-every", "1", *METHODS],
    "sweep": ["sweep", *TINY, "--rounds", "8", "--scales", "1,10"],
}


# At random ---------------------------------------------------------------------------------------------------

AT_RANDOM: dict[str, tuple[str, Callable[[], None] | None, int]] = {
    "train": ("train", None, 5),
    "train, each round saved": ("train", each_round_saved, 5),
    "train with fine-tuning": ("fine-tuning", each_round_saved, 5),
    "table": ("table", None, 6),
    "table, each round saved": ("table", each_round_saved, 5),
    "sweep": ("sweep", None, 5),
    "sweep, each round saved": ("sweep", each_round_saved, 5),
}
"""Command, how its processes are prepared, and how often it is killed."""


@pytest.mark.long
@pytest.mark.parametrize("name", AT_RANDOM)
def test_killed_at_random_it_ends_as_if_unbroken(tmp_path: Path, name: str) -> None:
    key, prepare, count = AT_RANDOM[name]
    began = time.monotonic()
    whole = Command(tmp_path / "whole", COMMANDS[key], prepare).finish()
    life = time.monotonic() - began
    count, draw = count * KILLS, random.Random(f"{SEED} {name}")
    moments = [(k + draw.random()) / count for k in range(count)]  # parts of a life, spread from start to end
    draw.shuffle(moments)
    command, kills = Command(tmp_path / "killed", COMMANDS[key], prepare), 0
    for moment in moments:
        while True:
            began, afresh = time.monotonic(), not command.place.exists()
            if command.killed(moment * life):
                break
            if afresh:
                life = time.monotonic() - began  # the machine is faster than it was
            check_equal(outcome(command.place), whole)
            shutil.rmtree(command.place)
        kills += 1
        check_readable(command.place, whole)
    check_equal(command.finish(), whole)
    assert kills == count
    assert "Traceback" not in command.log.read_text()


# At every kind of step ---------------------------------------------------------------------------------------

AT_STEPS = {"train": r"artifacts/.*\.", "fine-tuning": "fine_tuning", "table": r"results/.*\."}
"""Command, and which of its steps: others make folders, or are those of a training."""


def steps_of_each_kind(told: str, pattern: str) -> list[int]:
    """Numbers of the middle one of the steps that write alike; of all of them where many kills are asked for."""
    kinds: dict[str, list[int]] = {}
    for number, step in enumerate(told.splitlines(), start=1):
        if ".tmp" not in step and re.search(pattern, step):  # a temporary file that goes or comes changes nothing
            kinds.setdefault(re.sub(r"[0-9a-f]{16}|\d+", "#", step), []).append(number)
    return sorted(n for numbers in kinds.values() for n in (numbers if KILLS > 1 else [numbers[len(numbers) // 2]]))


@pytest.mark.slow
@pytest.mark.parametrize("key", AT_STEPS)
def test_killed_at_a_step_it_ends_as_if_unbroken(tmp_path: Path, key: str) -> None:
    told, argv = tmp_path / "steps", [*COMMANDS[key], "--rounds", "2", "--local-steps", "2"]
    whole = Command(tmp_path / "whole", argv, WriteSteps(told)).finish()
    command = Command(tmp_path / "killed", argv, each_round_saved)
    steps = steps_of_each_kind(told.read_text(), AT_STEPS[key])
    for step in steps:
        assert command.ended(command.start(WriteSteps(told, step))) == -signal.SIGKILL, command.log.read_text()
        check_readable(command.place, whole)
        check_equal(command.finish(), whole)
        shutil.rmtree(command.place)
    assert len(steps) > 1


def cut_off(tmp_path: Path, choose: Callable[[list[bytes]], Iterable[tuple[int, int]]]) -> None:
    """Measure again after rows are cut off: in which lines and after how many bytes."""
    command = Command(tmp_path / "table", COMMANDS["table"])
    whole, file = command.finish(), command.place / "results/quick/table2/rows.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    for k, size in choose(lines):
        file.write_bytes(b"".join(lines[:k]) + lines[k][:size])
        check_equal(command.finish(), whole)


@pytest.mark.slow
def test_rows_cut_off_where_a_run_begins_are_measured_again(tmp_path: Path) -> None:
    """A process that is killed while it appends rows leaves a part of them."""

    def choose(lines: list[bytes]) -> Iterator[tuple[int, int]]:
        hashes = [json.loads(line)["spec_hash"] for line in lines]
        firsts = [hashes.index(own) for own in dict.fromkeys(hashes)]
        return ((k, len(lines[k]) // 2) for k in firsts)

    cut_off(tmp_path, choose)


@pytest.mark.long
def test_rows_cut_off_anywhere_are_measured_again(tmp_path: Path) -> None:
    draw = random.Random(SEED)

    def choose(lines: list[bytes]) -> Iterator[tuple[int, int]]:
        return ((k, draw.randrange(len(lines[k]))) for k in draw.sample(range(len(lines)), 4 * KILLS))

    cut_off(tmp_path, choose)


# Two at once -------------------------------------------------------------------------------------------------


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + 600
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return Command(tmp_path_factory.mktemp("whole") / "train", TRAIN).finish()


@pytest.fixture
def logs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "first.log", tmp_path / "second.log"]
    for path in paths:
        path.touch()
    return paths


@pytest.mark.slow
def test_who_waits_goes_on_where_a_killed_training_ended(
    tmp_path: Path, whole: dict[str, object], logs: list[Path]
) -> None:
    command = Command(tmp_path / "shared", TRAIN, each_round_saved)
    first = command.start(log=logs[0])
    wait_until(lambda: any(command.place.glob("artifacts/*/training.ckpt")))
    os.kill(first.pid, signal.SIGSTOP)
    second = command.start(log=logs[1])
    wait_until(lambda: "this one waits for it" in logs[1].read_text())
    first.kill()
    assert [command.ended(process) for process in (first, second)] == [-signal.SIGKILL, 0]
    assert "round 1/12" not in logs[1].read_text()
    check_equal(outcome(command.place), whole)


@pytest.mark.slow
def test_two_at_once_train_once(tmp_path: Path, whole: dict[str, object], logs: list[Path]) -> None:
    command = Command(tmp_path / "shared", TRAIN)
    both = [command.start(log=log) for log in logs]
    assert [command.ended(process) for process in both] == [0, 0]
    assert sum(log.read_text().count("fl-training · round 12/12") for log in logs) == 1
    check_equal(outcome(command.place), whole)

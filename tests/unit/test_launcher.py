"""A process is the first one unless a launcher that is there says otherwise; nothing is mute and nothing waits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.launcher import NUMBERS, PARENT, forget_leftovers, mark_children, process_number, started
from tests.conftest import TINY, Run
from tests.damage import GONE

ROOT = Path(__file__).parents[2]
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "batch",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}


@pytest.fixture
def port() -> int:
    """One on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def having(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in {*NUMBERS, *TORCHRUN, *SRUN, "SLURM_TASK_PID", "MASTER_PORT"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_without_a_launcher_makes_no_command_mute(
    name: str, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    having(monkeypatch, {name: "1"})
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # what Lightning makes of it when it is imported
    code, out, _ = run("presets")
    assert (code, "quick" in out) == (0, True)
    code, out, err = run("train", "--alpha", "-1")
    assert (code, out, "--alpha" in err) == (2, "", True)
    assert name not in os.environ


@pytest.mark.slow
def test_nothing_is_mute_and_nothing_waits_in_a_process_of_its_own(tmp_path: Path) -> None:
    leftovers = {**dict.fromkeys(NUMBERS, "1"), "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1", "WORLD_SIZE": "2"}
    variables = {**os.environ, **leftovers, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "quickdrop_bench", "train", *TINY, "--accelerator", "cpu", "--devices", "2"]
    done = subprocess.run(argv, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"TORCHELASTIC_USE_AGENT_STORE": ""},
        {"MASTER_PORT": ""},
        {"WORLD_SIZE": "two"},
        {"RANK": ""},
        {"RANK": "2"},
        {"LOCAL_WORLD_SIZE": "x"},
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_torchrun_left_ends_in_a_sentence_at_once(
    change: dict[str, str], rank: int, port: int, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    having(monkeypatch, {**TORCHRUN, "MASTER_PORT": str(port), **change})
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    began = time.monotonic()
    code, out, err = run("train", *TINY)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "unset TORCHELASTIC_RUN_ID, which is left from another one" in err
    assert time.monotonic() - began < 10


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that this one does not come from."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("task", [None, "", "x", str(GONE), "0", "stranger"])
@pytest.mark.parametrize("rank", [0, 1])
def test_what_an_srun_left_ends_in_a_sentence_at_once(
    task: str | None, rank: int, stranger: int, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    having(monkeypatch, {**SRUN, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
    if task is not None:
        monkeypatch.setenv("SLURM_TASK_PID", task.replace("stranger", str(stranger)))
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    began = time.monotonic()
    code, out, err = run("train", *TINY, "--accelerator", "cpu")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "start the command with srun, or unset SLURM_STEP_NUM_TASKS, which is left from another one" in err
    assert time.monotonic() - began < 10


def test_a_run_is_shown_in_a_batch_script_that_asked_for_several_tasks(
    requested: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    having(monkeypatch, {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "batch"})
    code, out, err = run("show", str(requested))
    assert (code, err) == (0, "")
    assert str(requested) in out


def test_processes_of_a_torchrun_that_is_there_have_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as agent:
        having(monkeypatch, {**TORCHRUN, "MASTER_PORT": str(agent.getsockname()[1])})
        forget_leftovers()
        assert (started(), process_number(), os.environ["LOCAL_RANK"]) == ((2, 2), 1, "1")


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_tasks_of_srun_have_its_numbers_but_not_in_an_interactive_shell(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    having(monkeypatch, {**SRUN, "RANK": "1"})
    for task in (os.getpid(), os.getppid()):  # itself, or the script that it stands in
        monkeypatch.setenv("SLURM_TASK_PID", str(task))
        assert (started(), process_number()) == ((2, 2), 1)
    forget_leftovers()
    assert "RANK" not in os.environ
    monkeypatch.setenv("SLURM_PROCID", "none")
    with pytest.raises(BadInput, match="SLURM_PROCID is none"):
        process_number()
    having(monkeypatch, {**SRUN, "SLURM_JOB_NAME": name})
    assert (started(), process_number()) == (None, 0)


def test_processes_that_this_program_starts_have_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, {})
    monkeypatch.setenv(PARENT, str(os.getppid()))
    assert process_number() == 0  # its parent was one of several, but did not start it for a share
    monkeypatch.setenv(PARENT, "")
    monkeypatch.setenv("LOCAL_RANK", "1")
    mark_children()
    assert os.environ[PARENT] == str(os.getpid())
    assert process_number() == 0  # left from another process
    monkeypatch.setenv(PARENT, str(os.getppid()))
    forget_leftovers()
    assert process_number() == 1

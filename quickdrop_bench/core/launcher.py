"""Who started this process: nobody but the user, this program for a share of the clients, torchrun, or SLURM's srun."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from quickdrop_bench.core.errors import BadInput

NUMBERS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK", "GROUP_RANK")
"""Where launchers put the number of a process or its machine, and where Lightning looks for it."""

MEETING = ("MASTER_ADDR", "MASTER_PORT")
"""Where processes of several machines find each other."""

PARENT = "QUICKDROP_BENCH_PARENT"
"""Process that started this one for a share of the clients."""

TORCHRUN = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")
SRUN = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_NUM_TASKS")
"""A launcher's sign, and where it puts the process's number and how many there are on a machine and in all."""

PATIENCE = 5.0
"""Seconds in which a torchrun that is there answers."""


def started() -> tuple[int, int] | None:
    """Processes on this machine and on all, where torchrun or SLURM's srun started them.

    Raises:
        BadInput: there are variables of a launcher that did not start this process, or impossible numbers.
    """
    launcher = _launcher()
    if launcher is None:
        return None
    sign, number, here, everywhere = launcher
    total = _whole(sign, everywhere)
    on_machine = _whole(sign, here) if here in os.environ else total
    if not _whole(sign, number) < total:
        raise _leftover(sign, f"{number} and {everywhere} do not fit each other")
    if launcher == TORCHRUN:
        _check_torchrun()
    else:
        _check_srun()
    return on_machine, total


def process_number() -> int:
    """Number of this process among those that run one command together; without a launcher it is 0, the first one.

    Raises:
        BadInput: as :func:`started`.
    """
    if _is_child():
        return _whole(PARENT, "LOCAL_RANK")
    launcher = _launcher()
    return _whole(launcher[0], launcher[1]) if launcher and started() else 0


def forget_leftovers() -> None:
    """Unset what no launcher has set for this process: Lightning would take it for another one, and wait for others."""
    if _is_child():
        return
    kept = {None: (), TORCHRUN: (*NUMBERS, *MEETING), SRUN: ("SLURM_PROCID", *MEETING)}[_launcher()]
    for name in {*NUMBERS, *MEETING} - {*kept}:
        os.environ.pop(name, None)


def mark_children() -> None:
    """Before processes are started for shares of the clients: let them know that they are no leftovers."""
    if not _is_child():  # it starts none
        os.environ[PARENT] = str(os.getpid())


def _is_child() -> bool:
    return os.environ.get(PARENT) == str(os.getppid()) and "LOCAL_RANK" in os.environ


def _launcher() -> tuple[str, str, str, str] | None:
    if TORCHRUN[0] in os.environ:
        return TORCHRUN
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # Fabric's own rule
    return SRUN if SRUN[0] in os.environ and not interactive else None


def _check_torchrun() -> None:
    """Its agent keeps the store by which the processes find each other, unless it says that the first process does."""
    own = os.environ.get("TORCHELASTIC_USE_AGENT_STORE")
    if own == "False":
        return
    address = os.environ.get("MASTER_ADDR", "")
    port = _whole(TORCHRUN[0], "MASTER_PORT")
    try:
        if not own or not address:
            raise OSError
        socket.create_connection((address, port), PATIENCE).close()
    except (OSError, OverflowError, UnicodeError):
        raise _leftover(TORCHRUN[0], "no torchrun answers") from None


def _check_srun() -> None:
    """It starts a task in a process whose number it tells; that is this process or one that this one comes from."""
    task, process = _whole(SRUN[0], "SLURM_TASK_PID"), os.getpid()
    with suppress(OSError):  # without /proc there is no SLURM
        while process not in (0, task):
            process = int(Path(f"/proc/{process}/status").read_text().partition("\nPPid:")[2].split()[0])
    if not task or process != task:
        raise _leftover(SRUN[0], f"the task that it started was process {task}, from which this one does not come")


def _whole(sign: str, name: str) -> int:
    text = os.environ.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _leftover(sign, f"{name} is {text or 'not set'}")
    return int(text)


def _leftover(sign: str, reason: str) -> BadInput:
    launcher = "srun" if sign in SRUN else "torchrun"
    allowed = f"{reason}; start the command with {launcher}, or unset {sign}, which is left from another one"
    return BadInput(sign, os.environ.get(sign, ""), allowed)

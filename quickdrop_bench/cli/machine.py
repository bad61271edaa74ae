"""The devices and processes that a command computes on."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from quickdrop_bench.cli.parser import PRECISIONS
from quickdrop_bench.cli.resolve import on_gpu
from quickdrop_bench.core.errors import BadInput, positive
from quickdrop_bench.core.launcher import mark_children, started
from quickdrop_bench.core.processes import end_when_interrupted, forbid_copies, fork
from quickdrop_bench.federation.ranks import ClientParallel, is_first

log = logging.getLogger(__name__)


def make_fabric(
    args: Namespace, callbacks: Sequence[Any] = (), loggers: Sequence[Logger] = (), *, alone: bool = False
) -> Fabric:
    """A launched Fabric, with a process for each of ``--devices`` on each of ``--num-nodes`` where these are given.

    Args:
        args: with ``accelerator``, ``precision`` and, if there may be several processes, ``devices, num_nodes``.
        callbacks: of the first process; the others get none.
        loggers: likewise.
        alone: one process, whatever the options say.

    Raises:
        BadInput: the accelerator, the number of devices or the precision cannot be had.
    """
    _check_device(args)
    devices, nodes = (1, 1) if alone else processes_of(args)
    _set_arithmetic(args)
    for name in [name for name in os.environ if name.startswith("LT_")]:
        del os.environ[name]  # set by ``fabric run``; it starts the processes, and our options say what they use
    several = devices * nodes > 1
    share = forbid_copies()
    if several:
        mark_children()
        if share and sys.platform == "linux" and not on_gpu(args) and not started():
            _fork_others(devices, share)
    try:
        fabric = Fabric(
            accelerator=args.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=ClientParallel() if several else "auto",
            precision=args.precision,
            # Without a launcher, one process is on its own and several are started here, inside a SLURM job as well.
            plugins=None if several and started() else LightningEnvironment(),
            callbacks=list(callbacks) if is_first() else [],
            loggers=list(loggers) if is_first() else [],
        )
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise BadInput("--devices", devices, f"the processes cannot be launched: {error}") from error
    if several and is_first():
        end_when_interrupted()
    if several and fabric.device.type == "cpu":
        atexit.register(_leave)
    if fabric.device.type == "cuda":
        # The host only plans, on some thousand numbers; threads that wait for each other make that 4 times slower.
        torch.set_num_threads(1)
    if is_first() and fabric.device.type == "cpu" and args.precision == "bf16-mixed":
        _warn_of_slow_bfloat16()
    return fabric


def _fork_others(devices: int, share: Callable[[int], int]) -> None:
    """Start the other processes as copies of this one, which has imported everything; Fabric starts none then."""
    if "LOCAL_RANK" in os.environ:  # this was started by Fabric for a share
        return
    own = LightningEnvironment()
    os.environ |= {"MASTER_ADDR": own.main_address, "MASTER_PORT": str(own.main_port)}
    os.environ["LOCAL_RANK"] = "0"
    fork([partial(share, number) for number in range(1, devices)])


def _leave() -> None:
    """End Gloo's threads before Python itself ends, which they may abort otherwise."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _check_device(args: Namespace) -> None:
    """Raise :class:`BadInput` unless the accelerator is here and has the precision."""
    if args.precision not in PRECISIONS:
        raise BadInput("--precision", args.precision, f"use one of {', '.join(PRECISIONS)}")
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    known = {"auto": True, "cpu": True, "cuda": cuda, "gpu": cuda, "mps": mps}
    if args.accelerator not in known:
        raise BadInput("--accelerator", args.accelerator, f"use one of {', '.join(known)}")
    if not known[args.accelerator]:
        raise BadInput("--accelerator", args.accelerator, "no such device was found here; use cpu or auto")
    if args.precision == "16-mixed" and (args.accelerator in ("cpu", "mps") or not cuda):
        raise BadInput("--precision", args.precision, "it needs CUDA; use 32-true or bf16-mixed on this device")


def _set_arithmetic(args: Namespace) -> None:
    """float32 means float32 unless ``--tf32`` allows otherwise, and of cuDNN's kernels those that repeat their bits.

    Kernels that the compiler fused may sum in another order on another machine.
    """
    tf32 = bool(args.get("tf32"))
    if tf32 and not on_gpu(args):
        raise BadInput("--tf32", "true", "it needs a CUDA device, and this command computes on a CPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = True


@cache
def _warn_of_slow_bfloat16() -> None:
    """Once a process, on a CPU of the x86 kind that has to imitate it."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.warning("--precision bf16-mixed: without AVX-512 a CPU is many times slower in it than in 32-true")


def processes_of(args: Namespace) -> tuple[int, int]:
    """``--devices`` and ``--num-nodes``; one each for commands that have no such options.

    Raises:
        BadInput: so many cannot be had, or torchrun or SLURM started another number of processes.
    """
    there_are = started()
    per_node, everywhere = there_are or (1, 1)
    devices, nodes = args.get("devices"), args.get("num_nodes")
    devices = per_node if devices is None else devices
    nodes = everywhere // per_node if nodes is None else nodes
    there = torch.cuda.device_count() if on_gpu(args) else os.cpu_count() or 1
    positive("--devices", devices, at_least=1, at_most=there)
    positive("--num-nodes", nodes, at_least=1)
    if args.accelerator == "mps" and devices > 1:
        raise BadInput("--devices", devices, "there is one MPS device")
    if nodes > 1 and not there_are:
        raise BadInput("--num-nodes", nodes, "several machines are started by torchrun or srun, which were not used")
    if there_are and devices * nodes != everywhere:
        allowed = f"with --num-nodes {nodes}, these have to be the {everywhere} processes that were started"
        raise BadInput("--devices", devices, allowed)
    return devices, nodes

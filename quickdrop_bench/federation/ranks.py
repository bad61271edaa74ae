"""Clients spread over the processes of a Fabric: every process simulates its share, and all get all results."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.launcher import forget_leftovers, process_number

T = TypeVar("T")

SHARED = "All processes have met this error."

MEETING = timedelta(minutes=5)
"""How long a process that starts waits for one that does not come; torch may try twice."""

LONGEST_WAIT = timedelta(days=7)
"""How long it waits for the others later, which may be evaluating, or waiting for a lock."""


class ClientParallel(DDPStrategy):
    """One process per device, as DDP has them, but each trains models of its own clients.

    Nothing is wrapped: matching differentiates through a gradient, which ``DistributedDataParallel`` cannot do.
    """

    def __init__(self, start_method: str = "popen") -> None:
        super().__init__(start_method=start_method, timeout=MEETING)  # type: ignore[arg-type]

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        group = torch.distributed.distributed_c10d  # where older versions have it under another name
        (getattr(group, "set_timeout", None) or group._set_pg_timeout)(LONGEST_WAIT)

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """The module itself."""
        return module


def rank() -> int:
    """Number of this process among those that run one command together; 0 if there are no others."""
    return int(getattr(rank_zero_only, "rank", 0))


def find_rank() -> None:
    """Set :func:`rank` for a command that begins: 0, unless a launcher started this process beside others.

    Raises:
        BadInput: a launcher's variables are there without the launcher.
    """
    if not torch.distributed.is_initialized():
        forget_leftovers()
        rank_zero_only.rank = process_number()  # type: ignore[attr-defined]


def is_first() -> bool:
    """Whether this process is the one that reads and writes for all; the others compute and stay silent."""
    return rank() == 0


def shares(work: Mapping[int, int], processes: int) -> list[list[int]]:
    """Who simulates whom: the largest client first, each to the process with the least work so far.

    Of equals that is the last one: the first evaluates and logs too.

    Example:
        >>> shares({0: 3, 1: 5, 2: 2, 3: 3}, 2)
        [[0, 3], [1, 2]]
    """
    loads = [(0, -process) for process in range(processes)]
    heapq.heapify(loads)
    found: list[list[int]] = [[] for _ in loads]
    for client in sorted(work, key=lambda client: (-work[client], client)):
        load, process = heapq.heappop(loads)
        found[-process].append(client)
        heapq.heappush(loads, (load + work[client], process))
    return found


def add_up(fabric: Fabric, tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes; all are of one dtype on the Fabric's device."""
    if fabric.world_size == 1 or not tensors:
        return
    together = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(together)  # Fabric's has a barrier before it, which takes longer than the sum
    for tensor, total in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def spread(fabric: Fabric, label: Hashable, work: Mapping[int, int], compute: Callable[[int], T]) -> dict[int, T]:
    """Simulate clients, each in one of the processes, and give what they report to all of them.

    Args:
        fabric: launched.
        label: what this is about; tells apart processes that come here for different things.
        work: by client, what it costs, in any unit; the reports come in this order.
        compute: called with a client; returns plain data.

    Raises:
        Exception: what ``compute`` raised in any process; in all of them, once all are done, so that none waits.
        SystemError: the processes are not at the same point, so that none of them can go on.
    """
    if fabric.world_size == 1:
        return {client: compute(client) for client in work}
    mine = set(shares(work, fabric.world_size)[fabric.global_rank])
    done: dict[int, T] = {}
    trouble: Exception | None = None
    try:
        done = {client: compute(client) for client in work if client in mine}
    except Exception as error:  # whatever it is, the others have to hear of it
        trouble = _plain(error)
    everyone: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everyone, (label, done, trouble))
    if {other for other, _, _ in everyone} != {label}:
        raise SystemError(f"the processes went different ways: {everyone[0][0]} and {label}")
    for _, _, problem in everyone:
        if problem is not None:
            raise _shared(problem)
    reports = {client: report for _, part, _ in everyone for client, report in part.items()}
    return {client: reports[client] for client in work}


def hand_round(fabric: Fabric, work: Mapping[int, int], tensors: Callable[[int], Sequence[Tensor]]) -> None:
    """After :func:`spread`, give every process each client's tensors as its own process left them, in place."""
    if fabric.world_size == 1:
        return
    mine = set(shares(work, fabric.world_size)[fabric.global_rank])
    by_client = {client: tensors(client) for client in work}
    for client in work:
        for tensor in by_client[client] if client not in mine else ():
            tensor.zero_()
    add_up(fabric, [tensor for own in by_client.values() for tensor in own])


def on_first(fabric: Fabric, action: Callable[[], T]) -> T:
    """Do something in the first process alone; all get what it returned, or raise what it raised."""
    if fabric.world_size == 1:
        return action()
    outcome: tuple[T | None, Exception | None] = None, None
    if fabric.is_global_zero:
        try:
            outcome = action(), None
        except Exception as error:  # it is raised below, everywhere
            outcome = None, _plain(error)
    result, trouble = fabric.broadcast(outcome)
    if trouble is not None:
        raise _shared(trouble)
    return result  # type: ignore[return-value]


def same(fabric: Fabric, value: object) -> bool:
    """Whether all processes have values with the same ``repr``, so that NaN equals NaN."""
    if fabric.world_size == 1:
        return True
    everyone: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everyone, repr(value))
    return all(other == repr(value) for other in everyone)


def is_shared(error: BaseException) -> bool:
    """Whether all processes have met an error, so that they can go on together from there.

    Those are the errors that :func:`spread` and :func:`on_first` raise, and divergence, on which all agree.
    """
    return SHARED in getattr(error, "__notes__", ()) or type(error) is ArithmeticError


def _shared(error: Exception) -> Exception:
    error.add_note(SHARED)
    return error


def _plain(error: Exception) -> Exception:
    """An error that another process can take in: one of Python's or of this package's, others in words."""
    known = isinstance(error, BadInput) or type(error).__module__ == "builtins"
    return error if known else RuntimeError(f"{type(error).__name__}: {error}")

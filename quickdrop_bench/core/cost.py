"""What a stage costs a real deployment, in seconds and in units that no hardware changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

RARE = (
    "cpu_seconds",
    "second_order_sample_gradients",
    "sample_forwards",
    "distillation_seconds",
    "dropouts",
    "stragglers",
    "rejected_updates",
)

MOST_WAITING = 0.15
"""Share of a stage's time that its thread may wait for a core before the stage counts as disturbed."""


@dataclass(frozen=True)
class Cost:
    """The cost of one stage. Costs add up with ``+``.

    Attributes:
        seconds: local compute, summed over clients (paper, Fig. 6); evaluation, logging, data loading and
            the declared warm-up pass are outside.
        rounds: communication rounds.
        data_size: distinct samples that the stage may touch (paper, Table 2).
        sample_gradients: first-order forward+backward passes, counted per sample.
        second_order_sample_gradients: passes per synthetic image that differentiate through a gradient
            (Algorithm 2, line 15).
        sample_forwards: forward-only passes, counted per sample.
        upload_bytes: bytes that clients send to the server, float32 parameters.
        distillation_seconds: the part of ``seconds`` spent on Algorithm 2, lines 14 and 15.
        dropouts: times that a chosen client did not take part in a round.
        stragglers: times that one computed, which is counted above, but was too late to be heard.
        rejected_updates: updates that the server got and did not use, as they were not finite.
        cpu_seconds: CPU time of all threads of the process during ``seconds``; 0 on other devices.
        waiting_seconds: the part of ``seconds`` in which the computing thread did not run; 0 on other devices.
    """

    seconds: float = 0.0
    rounds: int = 0
    data_size: int = 0
    sample_gradients: int = 0
    second_order_sample_gradients: int = 0
    sample_forwards: int = 0
    upload_bytes: int = 0
    distillation_seconds: float = 0.0
    dropouts: int = 0
    stragglers: int = 0
    rejected_updates: int = 0
    cpu_seconds: float = field(default=0.0, compare=False)
    waiting_seconds: float = field(default=0.0, compare=False)

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def gradient_equivalents(self) -> float:
        """All passes in sample-gradients; a forward pass alone counts a third, as backward takes about two."""
        return self.sample_gradients + self.second_order_sample_gradients + self.sample_forwards / 3

    @property
    def shared_cores(self) -> bool:
        """Whether other work had the cores for so long that ``seconds`` say too much.

        The thread that computes never waits inside the clock but for a core, or for its helpers that wait for one.
        Their own CPU time says less: they idle wherever a tensor is too small to be shared out.
        """
        return self.waiting_seconds > MOST_WAITING * self.seconds

    def metrics(self) -> dict[str, float]:
        """The counters by name, ready for rows; those that few stages have are left out where they are zero.

        ``shared_cores`` (0 or 1) stands in the place of ``waiting_seconds``, wherever CPU time was measured.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "waiting_seconds"}
        shared = {"shared_cores": float(self.shared_cores)} if self.cpu_seconds else {}
        return {name: v for name, v in values.items() if v or name not in RARE} | shared


@dataclass(frozen=True)
class Storage:
    """Bytes that are kept for the sake of later requests.

    Attributes:
        server_bytes: on the server.
        client_bytes: on all clients together.
    """

    server_bytes: int = 0
    client_bytes: int = 0

    def metrics(self) -> dict[str, float]:
        """By the names that rows use."""
        return {"storage_server_bytes": self.server_bytes, "storage_client_bytes": self.client_bytes}


class Clock:
    """Adds up the time spent inside ``with clock.running():`` blocks on one device.

    On CUDA the work is asynchronous: pairs of events are recorded and read once, in :attr:`seconds`.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._cpu = device.type == "cpu"
        self._seconds = 0.0
        self._cpu_seconds = 0.0
        self._waiting = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the block."""
        if self._cuda:
            import torch

            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            began = time.perf_counter(), time.process_time(), time.thread_time()
            yield
            seconds = time.perf_counter() - began[0]
            self._seconds += seconds
            if self._cpu:
                self._cpu_seconds += time.process_time() - began[1]
                self._waiting += max(seconds - (time.thread_time() - began[2]), 0.0)

    def add(self, other: Clock, share: float) -> None:
        """Take in a share of another clock's time."""
        self._seconds += share * other.seconds
        self._cpu_seconds += share * other._cpu_seconds
        self._waiting += share * other._waiting

    @property
    def cost(self) -> Cost:
        """The times so far; waits for the device."""
        return Cost(seconds=self.seconds, cpu_seconds=self._cpu_seconds, waiting_seconds=self._waiting)

    @property
    def seconds(self) -> float:
        """Total so far; waits for the device."""
        if self._events:
            import torch

            torch.cuda.synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
            self._events.clear()
        return self._seconds


def duration(seconds: float) -> str:
    """A time as people say it.

    Example:
        >>> duration(7.4), duration(90), duration(5400)
        ('7 s', '2 min', '1.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""What a stage costs a real deployment, in seconds and in units that no hardware changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch

__all__ = ["Clock", "Cost"]


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
        upload_bytes: bytes that clients send to the server, float32 parameters.
        distillation_seconds: the part of ``seconds`` spent on Algorithm 2, lines 14 and 15.
    """

    seconds: float = 0.0
    rounds: int = 0
    data_size: int = 0
    sample_gradients: int = 0
    second_order_sample_gradients: int = 0
    upload_bytes: int = 0
    distillation_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def metrics(self) -> dict[str, float]:
        """The counters by name, ready for rows."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Clock:
    """Adds up the time spent inside ``with clock.running():`` blocks on one device.

    On CUDA the work is asynchronous: pairs of events are recorded and read once, in :attr:`seconds`.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the block."""
        if self._cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    @property
    def seconds(self) -> float:
        """Total so far; waits for the device."""
        if self._events:
            torch.cuda.synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
            self._events.clear()
        return self._seconds

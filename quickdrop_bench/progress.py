"""Progress of long runs on standard error: a live display on a terminal, a plain line a round elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from quickdrop_bench.federation.federation import Federation, RoundInfo

__all__ = ["ProgressDisplay"]

EVALUATION_SHARE = 0.1
"""Accuracies are shown as often as this share of the elapsed time allows. They are never inside a timed stage."""


class ProgressDisplay:
    """A Fabric callback that shows each round of each phase.

    Args:
        accuracy: test accuracy of the state that the round ended with, in [0, 1].
        console: where to; a terminal gets a live bar.
    """

    def __init__(self, accuracy: Callable[[Federation, RoundInfo], float], console: Console | None = None) -> None:
        self._accuracy = accuracy
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, facts="", visible=False)
        self._run = ""
        self._phase: tuple[str, str] | None = None
        self._began = self._phase_began = time.monotonic()
        self._phase_first_round = 0
        self._evaluating = 0.0
        self._last_accuracy = ""

    def __enter__(self) -> ProgressDisplay:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bar.stop()

    def start_run(self, name: str, seed: int) -> None:
        """Announce the run that the next rounds belong to."""
        self._run = f"seed {seed} · {name}"
        self._phase, self._phase_began = None, time.monotonic()

    def on_round_end(self, federation: Federation, info: RoundInfo) -> None:
        """Show a round; called by Fabric."""
        now = time.monotonic()
        is_whole_run = info.phase.name in ("fl-training", "retraining")
        label = self._run if is_whole_run else f"{self._run} · {info.phase.name}"
        if self._phase != (self._run, info.phase.name):
            self._phase, self._phase_first_round, self._last_accuracy = (self._run, info.phase.name), info.round, ""
            self._bar.reset(self._task, total=info.phase.rounds, description=label, visible=True)
        last = info.round + 1 == info.phase.rounds
        if last or self._evaluating <= EVALUATION_SHARE * (now - self._began):
            self._last_accuracy = f" · accuracy {self._accuracy(federation, info):.3f}"
            self._evaluating += time.monotonic() - now
        facts = f"loss {info.loss:.3f}{self._last_accuracy}"
        if self._live:
            self._bar.update(self._task, completed=info.round + 1, facts=facts)
            return
        done = info.round + 1 - self._phase_first_round
        left = (now - self._phase_began) / done * (info.phase.rounds - info.round - 1)
        line = f"{label} · round {info.round + 1}/{info.phase.rounds} · {facts} · {left:.0f} s left"
        self._console.print(line, highlight=False, soft_wrap=True)
        if last:
            self._phase_began = time.monotonic()

    def on_initialisation_end(self, done: int, of: int, distance: float) -> None:
        """Show an initialisation of fine-tuning; called by Fabric."""
        label, facts = f"{self._run} · fine-tuning", f"matching distance {distance:.1f}"
        if self._phase != (self._run, "fine-tuning"):
            self._phase = (self._run, "fine-tuning")
            self._bar.reset(self._task, total=of, description=label, visible=True)
        if self._live:
            self._bar.update(self._task, completed=done, facts=facts)
        else:
            self._console.print(f"{label} · {done}/{of} · {facts}", highlight=False, soft_wrap=True)

"""Progress of long runs on standard error: a live display on a terminal, a plain line a round elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from quickdrop_bench.evaluation.accuracy import ClassAccuracy
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.harness.callbacks import RequestInfo

__all__ = ["ProgressDisplay", "RoundAccuracy"]

EVALUATION_SHARE = 0.1
"""Rounds are evaluated as often as this share of the elapsed time allows, and never inside a timed stage."""


class RoundAccuracy:
    """Test accuracy after a round, evaluated once for all who ask.

    Args:
        evaluate: the model that a federation holds, on the test set.
    """

    def __init__(self, evaluate: Callable[[Federation], ClassAccuracy]) -> None:
        self._evaluate = evaluate
        self._known: tuple[RoundInfo, ClassAccuracy | None] | None = None
        self._began = time.monotonic()
        self._evaluating = 0.0

    def __call__(self, federation: Federation, info: RoundInfo) -> ClassAccuracy | None:
        """The accuracy of the state that a round ended with; None where it would cost too much time.

        The last round of a phase is always evaluated.
        """
        if self._known is None or self._known[0] is not info:
            began, found = time.monotonic(), None
            last = info.round + 1 == info.phase.rounds
            if last or self._evaluating <= EVALUATION_SHARE * (began - self._began):
                federation.load(info.state)
                found = self._evaluate(federation)
                self._evaluating += time.monotonic() - began
            self._known = info, found
        return self._known[1]


def _failures(info: RoundInfo) -> str:
    """How many clients failed in a round, e.g. `` · 2 dropped, 1 late``; nothing if none did."""
    counts = {"dropped": info.dropped, "late": info.late, "rejected": info.rejected}
    found = ", ".join(f"{len(clients)} {what}" for what, clients in counts.items() if clients)
    return f" · {found}" if found else ""


class ProgressDisplay:
    """A Fabric callback that shows each round of each phase.

    Args:
        accuracy: of the state that a round ended with, where it was evaluated.
        console: where to; a terminal gets a live bar.
    """

    def __init__(self, accuracy: RoundAccuracy, console: Console | None = None) -> None:
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
        self._phase_began = time.monotonic()
        self._phase_first_round = 0
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

    def on_run_start(self, run: RequestInfo) -> None:
        """Announce the run that the next rounds belong to; called by Fabric."""
        self._run = f"seed {run.seed} · {run.name}"
        self._phase, self._phase_began = None, time.monotonic()

    def on_search_start(self, run: RequestInfo) -> None:
        """Announce the method that settings are searched for; called by Fabric."""
        self.on_run_start(run)

    def on_round_end(self, federation: Federation, info: RoundInfo) -> None:
        """Show a round; called by Fabric."""
        is_whole_run = info.phase.name in ("fl-training", "retraining")
        label = self._run if is_whole_run else f"{self._run} · {info.phase.name}"
        if self._phase != (self._run, info.phase.name):
            self._phase, self._phase_first_round, self._last_accuracy = (self._run, info.phase.name), info.round, ""
            self._bar.reset(self._task, total=info.phase.rounds, description=label, visible=True)
        last = info.round + 1 == info.phase.rounds
        if (accuracy := self._accuracy(federation, info)) is not None:
            self._last_accuracy = f" · accuracy {accuracy.without(()):.3f}"
        facts = f"loss {info.loss:.3f}{self._last_accuracy}{_failures(info)}"
        if self._live:
            self._bar.update(self._task, completed=info.round + 1, facts=facts)
            return
        done = info.round + 1 - self._phase_first_round
        left = (time.monotonic() - self._phase_began) / done * (info.phase.rounds - info.round - 1)
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

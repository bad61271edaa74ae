"""Progress of long runs on standard error: a live display on a terminal, a plain line a round elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from quickdrop_bench.core.cost import duration
from quickdrop_bench.data.requests import UnlearningRequest, forgotten_classes
from quickdrop_bench.evaluation.accuracy import ClassAccuracy
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.harness.callbacks import TRAINING, RequestInfo
from quickdrop_bench.harness.estimate import Part, PlannedCell

EVALUATION_SHARE = 0.1
"""Rounds are evaluated as often as this share of the elapsed time allows, and never inside a timed stage."""

WHOLE_RUNS = ("fl-training", "retraining")
"""Phases whose rounds are all that a run does."""


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


@dataclass
class Work:
    """All trainings and requests of a command, and how far it is.

    Attributes:
        steps: about how many local steps each takes.
        number: how many were begun.
    """

    steps: Mapping[Part, float]
    number: int = 0
    _begun: set[Part] = field(default_factory=set)
    _current: Part | None = None
    _done: float = 0.0
    _made_before: float = 0.0
    _since: float = 0.0

    @classmethod
    def of(cls, planned: Iterable[PlannedCell]) -> Work:
        """What is missing of some cells."""
        return cls({part: steps for cell in planned for part, steps in cell.steps.items()})

    def begin(self, run: RequestInfo) -> None:
        """The next training or request; what was begun before it has ended."""
        self._since = self._since or time.monotonic()
        self._done += self.steps.get(self._current, 0.0) if self._current else 0.0
        part = run.columns["federation_hash"], run.name, "" if run.kind == TRAINING else run.columns["request"]
        self._current = part if part in self.steps and part not in self._begun else None
        if self._current:
            self._begun.add(self._current)
            self.number += 1

    def __str__(self) -> str:
        """Which one this is; nothing for one that does not count, as a federation that is only loaded."""
        return f"run {self.number}/{len(self.steps)} · " if self._current else ""

    def resume(self, share: float) -> None:
        """This share of the current run was made by an earlier command, and says nothing of the pace of this one."""
        self._made_before += share * (self.steps[self._current] if self._current else 0.0)

    def left(self, share: float = 0.0) -> float | None:
        """Seconds for all that is left, at the pace so far; None before there is any.

        Args:
            share: of the current run that is done.
        """
        done = self._done + share * (self.steps[self._current] if self._current else 0.0)
        made = done - self._made_before
        return (time.monotonic() - self._since) * (sum(self.steps.values()) - done) / made if made > 0 else None


class ProgressDisplay:
    """A Fabric callback that shows each round of each phase.

    Args:
        accuracy: of the state that a round ended with, where it was evaluated.
        work: all that the command does.
    """

    def __init__(self, accuracy: RoundAccuracy, work: Work) -> None:
        self._accuracy, self._work = accuracy, work
        self._console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(bar_width=12), MofNCompleteColumn()
        facts = TextColumn("{task.fields[facts]}")
        self._bar = Progress(*columns, facts, console=self._console, transient=True)
        self._task = self._bar.add_task("", total=None, facts="", visible=False)
        self._run, self._requests = "", list[set[int]]()
        self._label, self._last_accuracy = "", ""

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def on_run_start(self, run: RequestInfo) -> None:
        """Announce the run that the next rounds belong to; called by Fabric."""
        self._work.begin(run)
        self._announce(run)

    def on_search_start(self, run: RequestInfo) -> None:
        """Announce the method that settings are searched for; called by Fabric."""
        self._announce(run)

    def _announce(self, run: RequestInfo) -> None:
        self._requests = []
        if run.kind != TRAINING:
            self._requests = [_of_classes(text) for text in run.columns["request"].split(">")]
        self._run, self._label = f"{self._work}seed {run.seed} · {run.name}", ""
        if run.requests > 1 and run.kind != TRAINING:
            name = run.columns.get("request_name", run.columns["request"]).split(">")[-1]
            self._run += f" · {name} ({run.step + 1} of {run.requests})"

    def on_round_end(self, federation: Federation, info: RoundInfo) -> None:
        """Show a round; called by Fabric."""
        whole = info.phase.name in WHOLE_RUNS
        if self._open(self._run if whole else f"{self._run} · {info.phase.name}", info.phase.rounds) and whole:
            self._work.resume(info.round / info.phase.rounds)
        if (accuracy := self._accuracy(federation, info)) is not None:
            self._last_accuracy = self._accuracies(accuracy)
        done = info.round + 1
        left = self._work.left(done / info.phase.rounds if whole else 0.0)
        time_left = "" if left is None else f"{duration(left)} left in all"
        shown = [time_left, f"loss {info.loss:.3f}", self._last_accuracy, _failures(info)]
        self._show("round ", done, info.phase.rounds, " · ".join(filter(None, shown)))

    def on_initialisation_end(self, done: int, of: int, distance: float) -> None:
        """Show an initialisation of fine-tuning; called by Fabric."""
        self._open(f"{self._run} · fine-tuning", of)
        self._show("", done, of, f"matching distance {distance:.1f}")

    def _accuracies(self, found: ClassAccuracy) -> str:
        """On a request's F-Set and R-Set; a client's and samples are training images, on which no round is tested."""
        if not self._requests:
            return f"accuracy {found.without(()):.3f}"
        about = self._requests[-1]
        f_set = f"F-Set {found.over(about):.3f} · " if about else ""
        r_set = found.without(set().union(*self._requests))
        return f"{f_set}{'no class is retained' if math.isnan(r_set) else f'R-Set {r_set:.3f}'}"

    def _open(self, label: str, of: int) -> bool:
        """Begin to show something, unless it is shown already."""
        if begins := self._label != label:
            self._label, self._last_accuracy = label, ""
            self._bar.reset(self._task, total=of, description=label, visible=True)
        return begins

    def _show(self, unit: str, done: int, of: int, facts: str) -> None:
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, facts=facts)
        else:
            self._console.print(f"{self._label} · {unit}{done}/{of} · {facts}", highlight=False, soft_wrap=True)


def _of_classes(request: str) -> set[int]:
    """The classes that a request forgets, as rows write it."""
    return forgotten_classes([UnlearningRequest.parse(request)]) if request.startswith("class-") else set()


def _failures(info: RoundInfo) -> str:
    """How many clients failed in a round, e.g. ``2 dropped, 1 late``; nothing if none did."""
    counts = {"dropped": info.dropped, "late": info.late, "rejected": info.rejected}
    return ", ".join(f"{len(clients)} {what}" for what, clients in counts.items() if clients)

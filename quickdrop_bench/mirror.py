"""Mirror runs into Weights & Biases, as ``python -m quickdrop_bench.mirror``: events in, W&B's calls out.

A process of its own, so that neither W&B's time nor its failures are the benchmark's. The only file that imports wandb.
Events are JSON, one a line, on standard input: ``do`` names a method ``on_…`` of :class:`Mirror`, the rest is its
arguments. Each is answered by a line once it is handled. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import math
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

__all__ = ["AGENT", "MODULE", "Mirror", "main"]

MODULE = "quickdrop_bench.mirror"
"""What to run."""

AGENT = {"sweep_id": "WANDB_SWEEP_ID", "run_id": "WANDB_RUN_ID", "sweep_param_path": "WANDB_SWEEP_PARAM_PATH"}
"""How a sweep's agent tells the program which run it is to be."""

AXES = {"per_round/*": "round", "per_stage/*": "stage", "fine_tuning/*": "initialisation"}
"""Metrics, and the one that they are drawn over."""

SETTINGS: Mapping[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,  # the config has the commit
    "init_timeout": 20.0,
    "finish_timeout": 60.0,
    "program": "-m quickdrop_bench",
    "silent": True,
    "x_disable_stats": True,  # sampling the machine would take part in what is timed
    "x_save_requirements": False,  # the config has the versions
}

LAG = 300.0
"""Seconds that offline runs may lag behind: what is told is handled together, then or at the end. Whatever computes
beside the benchmark costs it several times as much, as its threads wait for each other at every step."""

Mode = Literal["online", "offline"]

NICENESS = 5
"""Below the benchmark's threads, which are to keep their cores. Far below, other work on the machine would starve this
process, and the end of the command would wait for it: at 19, for 40 seconds with five processes on two cores."""


class Mirror:
    """Makes the calls that events ask for, with at most one W&B run in progress.

    The first failure ends the run in progress as failed; events after it are answered, and change nothing.
    """

    def __init__(self) -> None:
        self._begun = False
        self._mode: Mode = "offline"
        self._project = ""
        self._entity: str | None = None
        self._run: Any = None
        self._federation: Any = None
        self._runs, self._folder = 0, ""
        self._failure: str | None = None
        self._warnings: list[str] = []

    @property
    def is_live(self) -> bool:
        """Whether somebody may be watching, or it is not known yet, so that events should not wait."""
        return not self._begun or self._mode == "online"

    def handle(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Do what an event says.

        Returns:
            Where things stand: ``mode``, the number of ``runs`` so far, their ``folder``, the id of the ``run`` in
            progress, ``warnings`` that this event gave, and the ``failure`` after which nothing is done any more.
        """
        self._warnings = []
        if self._failure is None:
            try:
                getattr(self, f"on_{event['do']}")(**{name: v for name, v in event.items() if name != "do"})
            except Exception as error:  # whatever it is, those who tell events go on
                traceback.print_exc()
                self._failure = " ".join(str(error).split()) or type(error).__name__
                self.end()
        return {
            "mode": self._mode,
            "runs": self._runs,
            "folder": self._folder,
            "run": self._run.id if self._run else None,
            "warnings": self._warnings,
            "failure": self._failure,
        }

    def end(self) -> None:
        """Finish a run that is still in progress, which nobody said went well."""
        with suppress(Exception):
            self.on_finish(exit_code=1)

    def on_begin(self, mode: Mode, project: str, entity: str | None, argv: Sequence[str]) -> None:
        """Take note of what all runs have in common.

        Args:
            mode: ``online`` or ``offline``.
            project: W&B project.
            entity: W&B user or team; None for the default one.
            argv: the command line that makes them.
        """
        self._begun = True
        self._mode, self._project, self._entity = mode, project, entity
        sys.argv[1:] = argv  # where W&B looks
        with suppress(Exception):  # the first run meets the same, and says so
            self._set_up()

    def on_open(self, settings: Mapping[str, Any], **about: Any) -> None:
        """Start a W&B run; one that cannot be had online is kept offline, with all that follow.

        Args:
            settings: of this run, beside :data:`SETTINGS`.
            about: for ``wandb.init``.
        """
        import wandb

        self._set_up()
        start: dict[str, Any] = {
            "project": self._project,
            "entity": self._entity,
            "settings": wandb.Settings(**SETTINGS, **settings),
            "reinit": "create_new",
            **about,
        }
        try:
            run = wandb.init(mode=self._mode, **start)
        except Exception as error:
            if self._mode != "online":
                raise
            self._mode = "offline"
            self._warnings.append(f"cannot be reached; runs are kept offline: {' '.join(str(error).split())}")
            run = wandb.init(mode="offline", **start)
        self._run = run
        self._runs += 1
        for metrics, axis in AXES.items():
            run.define_metric(axis)
            run.define_metric(metrics, step_metric=axis)
        self._look_where(Path(run.dir).parents[1])

    def on_config(self, values: Mapping[str, Any]) -> None:
        """Put settings into the run's config."""
        self._run.config.update(dict(values), allow_val_change=True)

    def on_log(self, metrics: Mapping[str, float]) -> None:
        """Log numbers, at the time that they have been told; none is before its run."""
        told = metrics.get("_timestamp", 0.0)
        self._run.log({**metrics, "_timestamp": max(told, self._run.start_time)})

    def on_summary(self, values: Mapping[str, float]) -> None:
        """Write into the run's summary."""
        self._run.summary.update(dict(values))

    def on_confusion(self, key: str, title: str, counts: Sequence[Sequence[int]]) -> None:
        """Log a confusion matrix as W&B's own chart.

        Args:
            key: to log it under.
            title: of the chart.
            counts: images by true class, then by predicted class.
        """
        import wandb

        fields = ("Actual", "Predicted", "nPredictions")
        cells: list[Any] = [[str(a), str(p), n] for a, line in enumerate(counts) for p, n in enumerate(line)]
        table = wandb.Table(columns=list(fields), data=cells, dtype=[str, str, int], optional=False)
        names = {name: name for name in fields}
        self._run.log({key: wandb.plot_table("wandb/confusion_matrix/v1", table, names, {"title": title})})

    def on_curves(self, rounds: Sequence[int], accuracies: Sequence[Sequence[float]]) -> None:
        """Log accuracy by class over the rounds, in one chart.

        Args:
            rounds: where it is known.
            accuracies: one per class, for each of these rounds.
        """
        import wandb

        chart = wandb.plot.line_series(
            xs=list(rounds),
            ys=[list(line) for line in zip(*accuracies, strict=True)],
            keys=[f"class {c}" for c in range(len(accuracies[0]))],
            title="Test accuracy by class",
            xname="round",
        )
        self._run.log({"class_curves": chart})

    def on_partition(self, counts: Sequence[Sequence[int]], class_names: Sequence[str], title: str) -> None:
        """Log who holds what, as a picture.

        Args:
            counts: (N, classes) training images per client and class.
            class_names: one per class.
            title: of the picture.
        """
        import numpy as np
        import wandb
        from PIL import Image

        from quickdrop_bench.reporting.holdings import distribution_png

        png = distribution_png(np.array(counts), class_names, title)
        self._run.log({"partition": [wandb.Image(Image.open(BytesIO(png)))]})

    def on_images(self, key: str, paths: Sequence[str], captions: Sequence[str]) -> None:
        """Log PNG files as pictures with captions."""
        import wandb
        from PIL import Image

        pictures = [wandb.Image(Image.open(path), caption=text) for path, text in zip(paths, captions, strict=True)]
        self._run.log({key: pictures})

    def on_picture(self, key: str, path: str) -> None:
        """Log a picture's file."""
        import wandb

        self._run.log({key: [wandb.Image(path)]})

    def on_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table, row by row."""
        import wandb

        self._run.log({key: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def on_federation(
        self, about: Mapping[str, Any], files: Mapping[str, str], references: Mapping[str, str], aliases: Sequence[str]
    ) -> None:
        """Know a trained federation as an artifact; the run in progress, if there is one, is what made it.

        Args:
            about: for ``wandb.Artifact``.
            files: paths by their names in the artifact.
            references: URIs, likewise; nothing but the URI is kept.
            aliases: under which the run logs it.
        """
        import wandb

        self._federation = artifact = wandb.Artifact(**about)
        for name, path in files.items():
            artifact.add_file(path, name=name)
        for name, uri in references.items():
            # The manifest has their checksums; a second hash of what may be gigabytes is not needed.
            artifact.add_reference(uri, name=name, checksum=False)
        if self._run:
            self._run.log_artifact(artifact, aliases=list(aliases))

    def on_use(self) -> None:
        """Declare the federation as used by the run.

        wandb refuses ``use_artifact`` while offline, but syncs the declaration when it stands in the run's file, where
        its own online path for artifacts that are not uploaded yet puts it as well.
        """
        self._run._log_artifact(self._federation, is_user_created=True, use_after_commit=True)

    def on_discard(self, folder: str) -> None:
        """Remove a folder whose files have been logged."""
        shutil.rmtree(folder, ignore_errors=True)

    def on_finish(self, exit_code: int) -> None:
        """Finish the run in progress, if there is one."""
        run, self._run = self._run, None
        if run:
            run.finish(exit_code=exit_code)

    def _set_up(self) -> None:
        """Start what all runs share, once."""
        import wandb

        # Before a run begins, its own settings do not count; and offline nothing needs the parts that report home.
        wandb.setup(wandb.Settings(silent=True, mode=self._mode))

    def _look_where(self, folder: Path) -> None:
        """Note the folder of the runs, and warn where it is not the one that was asked for."""
        self._folder = str(folder)
        wanted = Path(os.environ.get("WANDB_DIR") or ".").resolve()
        if self._runs == 1 and not folder.resolve().is_relative_to(wanted):
            self._warnings.append(f"cannot write into {wanted}; its runs go to {folder}")


def main() -> None:
    """Handle the events on standard input until it ends; a run that is in progress then is a failed one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what was told before an interruption is kept
    with suppress(AttributeError, OSError):
        os.nice(NICENESS)
    for variable in AGENT.values():  # it means one run of all, whose event says so
        os.environ.pop(variable, None)
    events, answers = _take_streams()
    _prepare()
    mirror = Mirror()
    for line in _due(events, mirror):
        try:
            event = json.loads(line)
        except ValueError:
            break  # half a line is the last of somebody who was killed
        answer = json.dumps(mirror.handle(event)).encode() + b"\n"
        with suppress(OSError):  # nobody listens any more, but what was told is kept
            os.write(answers, answer)
    mirror.end()
    if wandb := sys.modules.get("wandb"):
        with suppress(Exception):  # all runs are finished
            wandb.teardown()
    sys.stderr.flush()
    os._exit(0)  # all is written; the command need not wait until Python has taken its modules apart


def _due(events: BinaryIO, mirror: Mirror) -> Iterator[bytes]:
    """Lines as they come if the mirror is live; else together, once the first has waited for long or no more come."""
    arriving: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:
        for line in events:
            arriving.put(line)
        arriving.put(None)

    threading.Thread(target=read, daemon=True).start()
    held: list[bytes] = []
    until = math.inf
    line: bytes | None = b""
    while line is not None:
        try:
            line = arriving.get(timeout=None if until == math.inf else max(0.0, until - time.monotonic()))
        except queue.Empty:
            line = b""
        if line:
            held.append(line)
            until = min(until, time.monotonic() + LAG)
        if mirror.is_live or line is None or time.monotonic() >= until:
            yield from held
            held, until = [], math.inf


def _prepare() -> None:
    """Do once what the first events would wait for: a core is most likely idle as long as none came."""
    with suppress(Exception):
        import wandb  # noqa: I001 - first, as the others may not be needed
        import wandb.sdk.launch
        import numpy
        import pandas  # noqa: F401 - for W&B's tables
        from quickdrop_bench.reporting.holdings import distribution_png

        distribution_png(numpy.ones((1, 1), int), ["0"], "")  # fonts are looked for at the first picture
        wandb.Artifact("nothing", "federation")


def _take_streams() -> tuple[BinaryIO, int]:
    """Standard input, and output as a descriptor, out of reach of libraries that ask, print or start processes."""
    events, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return events, answers


if __name__ == "__main__":
    main()

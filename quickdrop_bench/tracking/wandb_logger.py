"""Runs in Weights & Biases, through Lightning's ``WandbLogger`` on Fabric; the only file that knows wandb.

Rows on disk are the truth: whatever goes wrong with W&B is said once and ends the logging, never a measurement.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import yaml
from jsonargparse import Namespace
from lightning.fabric.loggers.logger import Logger
from lightning.pytorch.loggers import WandbLogger

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.labelled import ImageData
from quickdrop_bench.evaluation.accuracy import ClassAccuracy
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.harness.callbacks import TRAINING, RequestInfo
from quickdrop_bench.harness.holdings import changed_pictures, class_holdings
from quickdrop_bench.harness.presets import paper_values
from quickdrop_bench.methods import Context
from quickdrop_bench.reporting.figures.partition import distribution_image
from quickdrop_bench.reporting.summary import headline, summary
from quickdrop_bench.store import artifacts

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
PROJECT = "quickdrop-bench"

AGENT = ("sweep_id", "run_id", "sweep_param_path")
"""Settings by whose environment a sweep's agent tells which run to be: the table's or figure's, none of the others."""

SETTINGS: Mapping[str, Any] = {
    "console": "off",
    "disable_git": True,  # the config has the commit, and the versions
    "init_timeout": 20.0,
    "finish_timeout": 60.0,
    "finish_timeout_raises": True,
    "silent": True,
    "x_disable_stats": True,  # sampling the machine would take part in what is timed
    "x_save_requirements": False,
}

AXES = {"per_round/*": "round", "per_stage/*": "stage", "per_request/*": "request", "fine_tuning/*": "initialisation"}
"""Metrics, and the one that they are drawn over."""

STAGES = (TRAINING, "unlearning", "recovery", "relearning")
"""By index: the values of the axis ``stage``; each further request of a sequence goes on by three."""


def project_of(args: Namespace) -> str:
    """The W&B project that the options or the environment name.

    Raises:
        BadInput: W&B would refuse the name.
    """
    project: str = args.wandb_project or os.environ.get("WANDB_PROJECT") or PROJECT
    if not project.strip() or len(project) > 128 or re.search(r"[/\\#?%:]", project):
        raise BadInput("--wandb-project", project, r"use at most 128 characters, and none of / \ # ? % :")
    return project


@contextmanager
def tracking(args: Namespace) -> Iterator[Tracker | None]:
    """The tracker that the options ask for, None if they disable it; at the end a line says where its runs are.

    Raises:
        BadInput: there is no such mode, or W&B would refuse the project's name.
    """
    tracker, mode = Tracker(args), args.wandb
    if mode not in MODES:
        raise BadInput("--wandb", mode, f"use one of {', '.join(MODES)}")
    if "disabled" in (mode, mode == "auto" and os.environ.get("WANDB_MODE")):
        yield None
        return
    try:
        yield tracker
        tracker.finalize("success")
    finally:
        tracker.finalize("failed")  # what is in progress still
        if tracker.runs:
            print(tracker.where(), file=sys.stderr)


def _guarded(event: Callable[..., None]) -> Callable[..., None]:
    """Make a method do nothing once W&B has failed, and let no failure of W&B out."""

    @wraps(event)
    def call(self: Tracker, *args: Any, **kwargs: Any) -> None:
        try:
            if self.alive:
                event(self, *args, **kwargs)
        except Exception as error:  # whatever it is, the benchmark goes on
            self.alive = False
            log.warning("W&B failed and is left out from here on; rows are complete without it: %r", error)
            log.debug("where it failed", exc_info=error)
            with suppress(Exception):
                self._finish(exit_code=1)

    return call


class Tracker(Logger):
    """A Fabric logger and callback with a W&B run for each training and for each method's requests on a federation.

    Rounds count through all phases of a run; stages are 0 the trained model, 1 unlearning, 2 recovery, 3 relearning.
    The summary has numbers alone, see :func:`~quickdrop_bench.reporting.summary.summary`. Of the clients' data nothing
    but the number of images by client and class goes to W&B, and the synthetic images only with ``wandb_images``.

    Args:
        args: the options ``wandb``, ``wandb_project``, ``wandb_entity`` and, where there is one, ``wandb_images``.
    """

    def __init__(self, args: Namespace) -> None:
        self.alive, self.runs = True, 0
        self.accuracy: Callable[[Federation, RoundInfo], ClassAccuracy | None] = lambda federation, info: None
        """Of the state that a round ended with, where it is evaluated anyway."""
        given = {name: os.environ.pop(f"WANDB_{name.upper()}", None) for name in AGENT}
        self.agent = {name: value for name, value in given.items() if value is not None}
        """Settings of the run that a sweep's agent waits for; none without an agent."""
        self._project, self._entity, self._mode = project_of(args), args.wandb_entity or None, args.wandb
        self._images, self._folder = args.get("wandb_images", False), Path()
        self._wandb: Any = None
        self._logger: WandbLogger | None = None
        self._waiting: RequestInfo | None = None
        self._phase, self._round = ("", 0), 0

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """Id of the W&B run in progress."""
        return self._logger.version if self._logger else None

    def where(self) -> str:
        """Where the runs of this command are, for people."""
        there = f"in project {self._project}"
        if self._mode != "online":
            there = f"kept offline; browse: wandb leet {self._folder}, upload: wandb sync {self._folder}/offline-run-*"
        return f"W&B: {self.runs} run{'s'[: self.runs != 1]} {there}"

    @_guarded
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log to the run in progress; called by ``fabric.log_dict``."""
        if logger := self._current():
            logger.log_metrics(metrics, step)

    @_guarded
    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Put settings into the config of the run in progress."""
        if self._logger:
            self._logger.log_hyperparams(params)

    @_guarded
    def finalize(self, status: str) -> None:
        """Finish what is in progress, as Lightning's loggers do."""
        self._finish(exit_code=int(status != "success"))

    @_guarded
    def on_run_start(self, run: RequestInfo) -> None:
        """Begin a W&B run, or go on with that of the requests before; a training has one only if it comes to train."""
        if run.step and self._logger:
            self.log_hyperparams({name: run.columns[name] for name in ("request", "spec_hash")})
            return
        self._waiting = run
        if run.kind != TRAINING:
            self._current()  # before the clock runs

    @_guarded
    def on_initialisation_end(self, done: int, of: int, distance: float) -> None:
        """Log an initialisation of fine-tuning."""
        self.log_metrics({"initialisation": done, "fine_tuning/matching_distance": distance})

    @_guarded
    def on_round_end(self, federation: Federation, info: RoundInfo) -> None:
        """Log a round."""
        if not self._current():
            return  # rounds of a search belong to no run
        if self._phase[0] != info.phase.name or not info.round:
            self._phase = info.phase.name, self._round
        self._round = self._phase[1] + info.round + 1
        metrics: dict[str, float] = {"loss": info.loss, "participants": len(info.participants)}
        metrics |= {"matching_distance": info.matching_distance} if info.matching_distance else {}
        if found := self.accuracy(federation, info):
            metrics |= {"accuracy": found.without(()), **found.metrics()}
        federation.fabric.log_dict({"round": self._round, **_under("per_round", metrics)})

    @_guarded
    def on_federation_ready(
        self, run: RequestInfo, context: Context, trained: artifacts.TrainedFederation, data: ImageData, folder: Path
    ) -> None:
        """If it was just trained: show who holds what, keep the federation as an artifact, and finish the run."""
        self._waiting = None
        if not self._logger:
            return
        counts = class_holdings(data, context.clients)
        self._logger.log_image("partition", [distribution_image(counts, data.class_names, _name(run))])
        # W&B takes at most 100 values; the settings of methods, whose names have dots, are in the file config.yaml.
        spec = {name: value for name, value in trained.spec.items() if "." not in name}
        artifact = self._wandb.Artifact(f"federation-{folder.name}", type="federation", metadata=spec)
        for file in artifacts.PUBLIC:  # none with a client's data
            artifact.add_file(str(folder / file), name=file)
        if self._images and trained.spec["distill"]:
            images, labels = changed_pictures(data, context.clients)
            self._logger.log_image("synthetic", images, caption=labels)
            with TemporaryDirectory() as scratch:
                for path in artifacts.save_synthetic(trained, Path(scratch)):
                    artifact.add_file(str(path), name=f"synthetic/{path.name}")
        self._logger.experiment.log_artifact(artifact)
        self._logger.experiment.summary.update(_under(TRAINING.replace("-", "_"), trained.cost.metrics()))
        self._finish()

    @_guarded
    def on_stage_end(
        self, run: RequestInfo, stage: str, values: Mapping[str, float], accuracy: ClassAccuracy | None
    ) -> None:
        """Log a stage."""
        self.log_metrics({"stage": STAGES.index(stage) + 3 * run.step, **_under("per_stage", values)})
        if accuracy:
            counts = pd.DataFrame(accuracy.confusion).rename_axis(index="true class", columns="predicted")
            self._log_html("confusion_matrix", counts.style.background_gradient(axis=None, cmap="Blues").to_html())

    @_guarded
    def on_run_end(
        self, run: RequestInfo, rows: Sequence[Mapping[str, Any]], oracle: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write the run's line of the table into the summary; after its last request, finish it."""
        bad = any(row["metric"] in ("failed", "diverged") and row["value"] for row in rows)
        if bad and not self._logger and not run.step:
            self._waiting = run  # it failed before it could start
        if not (logger := self._current()):
            return
        logger.experiment.summary.update(dict(summary(rows, oracle, paper_values())))
        if run.requests > 1:
            numbers = {row["metric"]: row["value"] for row in rows if row["stage"] in ("total", TRAINING)}
            self.log_metrics({"request": run.step + 1, **_under("per_request", numbers)})
        if bad or run.step + 1 == run.requests:
            self._finish(exit_code=int(bad))

    @_guarded
    def log_artefact(self, artefact: str, preset: str, folder: Path) -> None:
        """Log a finished table or figure, e.g. ``table2``, as a run of its own, from the files in its folder."""
        chosen = Path(path).read_text(encoding="utf-8") if (path := self.agent.get("sweep_param_path")) else "{}"
        parameters = {name: entry["value"] for name, entry in yaml.safe_load(chosen).items() if isinstance(entry, dict)}
        config = {"artefact": artefact, "preset": preset, **parameters}
        about = {"name": f"{artefact} · {preset}", "group": f"{artefact}-{preset}", "config": config}
        logger = self._open(self.agent, job_type="artefact", **about)
        for file in filter(Path.exists, (folder / "table.csv", folder / "figure.csv")):
            frame = pd.read_csv(file)
            self._log_html("table", frame.to_html(index=False, na_rep=""))
            if file.stem == "figure":
                logger.log_image("figure", [str(file.with_suffix(".png"))])
                logger.experiment.summary.update(headline(frame))
        self._finish()

    def _current(self) -> WandbLogger | None:
        """Of the W&B run in progress, which begins when there is something to log."""
        if run := self._waiting:
            self._waiting = None
            c, preset = run.columns, run.settings["provenance"]["preset"]
            kind = [TRAINING] if run.kind == TRAINING else [str(c["request"]).split("-")[0], run.method]
            tags = [str(tag)[:64] for tag in (c["dataset"], *kind)]
            about: dict[str, Any] = {"name": _name(run), "group": f"{c['artefact']}-{preset}", "tags": tags}
            self._open(job_type=run.kind, config={**c, "preset": preset, **run.settings}, **about)
        return self._logger

    def _open(self, settings: Mapping[str, Any] = {}, **about: Any) -> WandbLogger:
        """Start a W&B run; one that cannot be had online is kept offline, with all that follow."""
        import wandb  # half a second, for those who want it

        self._finish()
        self._wandb = wandb
        about |= {"project": self._project, "entity": self._entity, "reinit": "create_new"}
        about["settings"] = wandb.Settings(**SETTINGS, **settings)
        try:
            self._mode = self._mode if self.runs else _mode_of(self._mode)
            run = wandb.init(mode=self._mode, **about)
        except Exception as error:
            if self._mode == "offline":
                raise
            log.warning("W&B cannot be reached; runs are kept offline: %r", error)
            self._mode = "offline"
            run = wandb.init(mode=self._mode, **about)
        self.runs += self._mode != "disabled"
        self._folder = Path(run.dir).parents[1]
        self._logger = WandbLogger(experiment=run, project=self._project)
        for metric in (*AXES.values(), "confusion_matrix.*", "figure.*", "partition.*", "synthetic.*", "table.*"):
            run.define_metric(metric, summary="none")
        for metrics, axis in AXES.items():
            run.define_metric(metrics, step_metric=axis, summary="none")
        return self._logger

    def _finish(self, exit_code: int = 0) -> None:
        logger, self._logger, self._phase, self._round = self._logger, None, ("", 0), 0
        if logger:
            logger.experiment.finish(exit_code=exit_code)

    def _log_html(self, key: str, html: str) -> None:
        self.log_metrics({key: self._wandb.Html(html, data_is_not_path=True)})


def _mode_of(asked: str) -> Any:
    """``online``, ``offline`` or ``disabled``, as wandb is set up; nobody is asked for a key."""
    import wandb

    own: dict[str, Any] = {} if asked == "auto" else {"mode": asked}
    known = wandb.setup(wandb.Settings(silent=True, **own)).settings.mode
    if known in ("offline", "dryrun", "disabled"):
        return known.replace("dryrun", "offline")
    if wandb.login(prompt=False, verify=False):
        return "online"
    if asked == "online":
        log.warning("W&B: no API key is configured (wandb login sets one); runs are kept offline")
    return "offline"


def _under(group: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in values.items()}


def _name(run: RequestInfo) -> str:
    """What people read, e.g. ``quickdrop · class-9 · mnist · s=100 · α=0.1 · seed 1``; if too long, without the end."""
    c = run.columns
    distribution = str(c["distribution"]).replace("dirichlet-", "α=")
    scale = [f"s={c['scale']:g}", *([f"F={c['fine_tuning']}"] if c["fine_tuning"] else [])]
    what = c["request"] if run.requests == 1 else f"{run.requests} requests"
    protocol = [c["protocol"]] if c["protocol"] != "preset" else []
    parts = [run.method, what, c["dataset"], *scale, *protocol, distribution]
    if run.kind == TRAINING:
        parts = ["training", c["dataset"], f"N={c['clients']}", distribution, *scale]
    parts = [part[:20] for part in parts]
    while len(name := " · ".join([*parts, f"seed {run.seed}"])) >= 60:
        parts.pop()
    return name

"""Mirror runs into Weights & Biases, through Lightning's logger interface on Fabric.

What there is to say is collected here as plain data; :mod:`quickdrop_bench.mirror` makes W&B's calls in a process of
its own. Rows on disk are the truth: whatever goes wrong is said once and ends the mirroring, never a measurement.
"""

from __future__ import annotations

import configparser
import logging
import math
import netrc
import os
import re
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec
from urllib.parse import urlsplit

import pandas as pd
import yaml
from lightning.fabric.loggers.logger import Logger
from PIL import Image

from quickdrop_bench import artifacts
from quickdrop_bench.artifacts import TrainedFederation
from quickdrop_bench.data.labelled import ImageData
from quickdrop_bench.data.partition import class_counts
from quickdrop_bench.errors import BadInput
from quickdrop_bench.evaluation.accuracy import ClassAccuracy, class_accuracy
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.harness.catalogue import paper_values
from quickdrop_bench.harness.events import EVALUATION, TRAINING, UNLEARNING, Run
from quickdrop_bench.harness.sheets import synthetic_pairs
from quickdrop_bench.listener import listener
from quickdrop_bench.methods import Context
from quickdrop_bench.mirror import AGENT, MODULE
from quickdrop_bench.reporting.measured import against_oracle
from quickdrop_bench.reporting.published import Published, beside, read_published

__all__ = ["MODES", "PROJECT", "Tracker", "project_of", "resolve_mode", "tracker_of", "tracking"]

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
PROJECT = "quickdrop-bench"

SWEEPS = ("sweep", "figure5", "figure6")
"""Artefacts with several federations of one data set."""

STAGES = (TRAINING, "unlearning", "recovery", "relearning")
"""By index: the values of the axis ``stage``."""

ABOUT = "A federation trained by quickdrop_bench: the global model, and what was kept of the training."

NO_KEY = "no API key is configured (wandb login sets one); runs are kept offline"

SERVERS = ("https://api.wandb.ai", "https://api.forge.coreweave.com")
"""Where wandb logs in by default, by version."""

P = ParamSpec("P")


def resolve_mode(mode: str) -> str:
    """``online``, ``offline`` or ``disabled``, without ever asking anybody.

    Args:
        mode: one of :data:`MODES`; ``auto`` takes the environment's ``WANDB_MODE``, else it is online where an API key
            is configured and offline elsewhere.

    Raises:
        BadInput: there is no such mode.
    """
    if mode not in MODES:
        raise BadInput("--wandb", mode, f"use one of {', '.join(MODES)}")
    if mode == "auto":
        asked = {"dryrun": "offline", "run": "online"}.get(given := os.environ.get("WANDB_MODE", ""), given)
        mode = asked if asked in ("offline", "disabled") else "online" if _has_key() else "offline"
    elif mode == "online" and not _has_key():
        log.warning("W&B: %s", NO_KEY)
        return "offline"
    return mode


def _has_key() -> bool:
    """Whether wandb would find credentials: in the environment, or where ``wandb login`` puts them."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    hosts = [urlsplit(server).netloc for server in _servers()]
    for name in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        try:
            known = netrc.netrc(Path(name).expanduser())
            if any(entry[2] for host in hosts if (entry := known.authenticators(host))):
                return True
        except (OSError, RuntimeError, ValueError, netrc.NetrcParseError):
            continue  # no such file, nobody's home, another encoding, or no netrc
    return False


def _servers() -> tuple[str, ...]:
    """Where wandb would log in: as the environment says, or its settings file, or its own servers."""
    if named := os.environ.get("WANDB_BASE_URL"):
        return (named,)
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser() / "settings")
    except (OSError, RuntimeError, ValueError, configparser.Error):
        return SERVERS
    return (settings.get("default", "base_url"),) if settings.has_option("default", "base_url") else SERVERS


def project_of(args: Any) -> str:
    """The W&B project that the options or the environment name.

    Raises:
        BadInput: W&B would refuse the name.
    """
    project: str = args.wandb_project or os.environ.get("WANDB_PROJECT") or PROJECT
    if not project.strip() or len(project) > 128 or re.search(r"[/\\#?%:]", project):
        raise BadInput("--wandb-project", project, r"use at most 128 characters, and none of / \ # ? % :")
    return project


def tracker_of(args: Any) -> Tracker | None:
    """The tracker that the options ask for; None if they disable it.

    Raises:
        BadInput: there is no such mode, or W&B would refuse the project's name.
    """
    project, mode = project_of(args), resolve_mode(args.wandb)
    if mode == "disabled":
        return None
    return Tracker(mode, project, args.wandb_entity or None, images=args.wandb_images)


@contextmanager
def tracking(args: Any) -> Iterator[Tracker | None]:
    """:func:`tracker_of`, finished at the end, with a line that says where its runs are."""
    tracker = tracker_of(args)
    if tracker is None:
        yield None
        return
    status = "failed"
    try:
        yield tracker
        status = "success"
    finally:
        tracker.finalize(status)
        tracker.close()
        if tracker.runs:
            print(tracker.where(), file=sys.stderr)


def _mirrors(event: Callable[Concatenate[Tracker, P], None]) -> Callable[Concatenate[Tracker, P], None]:
    """Make a method do nothing once W&B has failed, and let no failure of W&B out."""

    @wraps(event)
    def guarded(self: Tracker, *args: P.args, **kwargs: P.kwargs) -> None:
        self._hear()
        if not self.alive:
            return
        try:
            event(self, *args, **kwargs)
        except Exception as error:  # whatever it is, the benchmark goes on
            log.debug("where it failed", exc_info=error)
            self._give_up(str(error) or type(error).__name__)

    return guarded  # type: ignore[return-value]


class Tracker(Logger):
    """A Fabric logger and callback that makes one W&B run of every training, evaluation and request.

    Metrics: ``per_round/…`` over ``round`` (counted through all phases of the run), ``per_stage/…`` over ``stage`` (0
    the trained model, 1 unlearning, 2 recovery, 3 relearning), ``fine_tuning/…`` over ``initialisation``. The summary
    has every row of the run as ``<stage>/<metric>``, the oracle's distance as ``total/…_gap`` and the paper's numbers
    as ``…_paper``, with the distance to them as ``…_paper_gap``.

    Of the clients' data nothing but the number of images by client and class goes to W&B, and the synthetic images
    only if ``images`` is set; without it their files stand in the artifact as references that stay on this machine.

    Args:
        mode: ``online`` or ``offline``.
        project: W&B project.
        entity: W&B user or team; None for the default one.
        images: upload the synthetic images.
    """

    def __init__(self, mode: str, project: str, entity: str | None = None, *, images: bool = False) -> None:
        self.alive = True
        self._project = project
        self._images = images
        self._mirror = listener(MODULE)
        self._heard: Mapping[str, Any] = {"mode": mode, "runs": 0, "folder": "", "run": None}
        self._begun = False
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._agent: dict[str, Any] = {name: os.environ.pop(key) for name, key in AGENT.items() if key in os.environ}
        self._in_progress = False
        self._run: Run | None = None
        self._waiting: Run | None = None
        self._has_federation = False
        self._accuracies: list[tuple[int, ClassAccuracy]] = []
        self._original: ClassAccuracy | None = None
        self._last: ClassAccuracy | None = None
        self._phase = ("", 0)
        self._round = 0
        self._staged = False
        self.accuracy: Callable[[Federation, RoundInfo], ClassAccuracy | None] = lambda federation, info: None
        """Of the state that a round ended with, where it is evaluated anyway."""
        with suppress(ConnectionError):  # it is said when there is a run
            self._tell("begin", mode=mode, project=project, entity=entity, argv=sys.argv[1:])

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """Id of the W&B run in progress, as far as it is known by now."""
        run: str | None = self._heard["run"]
        return run

    @property
    def runs(self) -> int:
        """How many W&B runs there are, as far as it is known by now."""
        return int(self._heard["runs"])

    @property
    def has_agent(self) -> bool:
        """Whether a sweep's agent waits for the artefact's run."""
        return bool(self._agent)

    @_mirrors
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log to the run in progress; called by ``fabric.log_dict``."""
        if self._in_progress:
            at = {"_timestamp": time.time()} | ({} if step is None else {"trainer/global_step": step})
            self._tell("log", metrics={**metrics, **at})

    @_mirrors
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Put settings into the config of the run in progress."""
        if self._in_progress:
            self._tell("config", values=vars(params) if isinstance(params, Namespace) else params)

    @_mirrors
    def on_run_start(self, run: Run) -> None:
        """Begin a W&B run; a training has one only if it turns out to train."""
        if run.kind == EVALUATION and self._run and self._run.kind == TRAINING:
            self._run = run  # the model that was just trained is evaluated in the run of its training
            return
        self._finish()
        if run.step == 0:
            self._last = self._original
        if run.kind == TRAINING:
            self._waiting, self._has_federation, self._original, self._last = run, False, None, None
        else:
            self._begin(run)

    @_mirrors
    def on_search_start(self, run: Run) -> None:
        """Rounds of a search belong to no run."""
        self._finish()

    @_mirrors
    def on_initialisation_end(self, done: int, of: int, distance: float) -> None:
        """Log an initialisation of fine-tuning."""
        self._begin_training()
        self.log_metrics({"initialisation": done, "fine_tuning/matching_distance": distance})

    @_mirrors
    def on_round_end(self, federation: Federation, info: RoundInfo) -> None:
        """Log a round."""
        if info.phase.name == TRAINING:
            self._begin_training()
        if not self._in_progress:
            return
        if self._phase[0] != info.phase.name:
            self._phase = info.phase.name, self._round
        self._round = self._phase[1] + info.round + 1
        metrics: dict[str, float] = {
            "round": self._round,
            "per_round/loss": info.loss,
            "per_round/participants": len(info.participants),
        }
        if info.matching_distance:
            metrics["per_round/matching_distance"] = info.matching_distance
        if found := self.accuracy(federation, info):
            self._accuracies.append((self._round, found))
            metrics["per_round/accuracy"] = found.without(())
            metrics |= {f"per_round/{name}": value for name, value in found.metrics().items()}
        federation.fabric.log_dict(metrics)

    @_mirrors
    def on_federation_ready(
        self, run: Run, context: Context, trained: TrainedFederation, data: ImageData, folder: Path
    ) -> None:
        """Declare the federation, and show who holds what."""
        context.federation.load(trained.state)
        self._original = class_accuracy(context.federation.model, data.test, len(data.class_names))
        self._waiting = None
        if self._in_progress:
            self._tell_confusion("trained", self._original)
        self._tell_federation(run, trained, folder)
        self._has_federation = True
        if not self._in_progress:
            return
        rows = [client.original.rows.cpu().numpy() for _, client in sorted(context.clients.items())]
        counts = class_counts(data.train.labels.cpu().numpy(), rows, len(data.class_names))
        self._tell("partition", counts=counts.tolist(), class_names=list(data.class_names), title=_name(run))
        if self._images and trained.spec["distill"]:
            self._tell_synthetic(data, context)

    @_mirrors
    def on_stage_end(self, run: Run, stage: str, values: Mapping[str, float], accuracy: ClassAccuracy) -> None:
        """Log a stage."""
        self._last, self._staged = accuracy, True
        self.log_metrics({"stage": STAGES.index(stage), **{f"per_stage/{name}": v for name, v in values.items()}})

    @_mirrors
    def on_run_end(self, run: Run, rows: Sequence[Mapping[str, Any]], oracle: Sequence[Mapping[str, Any]]) -> None:
        """Write the run's line of the table into the summary, and finish it."""
        bad = any(row["metric"] in ("failed", "diverged") and row["value"] for row in rows)
        if bad and not self._in_progress and run.step == 0:
            self._last = self._original
            self._begin(run)  # it failed before it could start
        if not self._in_progress:
            return
        if run.kind == UNLEARNING and self._last and self._staged:
            self._tell_confusion("after", self._last)
        self._tell("summary", values=dict(_summary(run, rows, oracle)))
        self._finish(exit_code=int(bad))

    @_mirrors
    def log_artefact(self, artefact: str, preset: str, folder: Path) -> None:
        """Log a finished table or figure as a run of its own, from its files.

        Args:
            artefact: e.g. ``table2``.
            preset: of its rows.
            folder: where it was written.
        """
        self._finish()
        self._open(
            name=f"{artefact} · {preset}",
            group=f"{artefact}-{preset}",
            job_type="artefact",
            config={"artefact": artefact, "preset": preset, **self._parameters()},
            settings=self._agent,
        )
        if (path := folder / "table.csv").exists():
            self._tell_table("table", pd.read_csv(path))
        if (path := folder / "figure.csv").exists():
            numbers = pd.read_csv(path)
            self._tell_table("numbers", numbers)
            self._tell("picture", key="figure", path=str(path.with_suffix(".png")))
            self._tell("summary", values=_headline(numbers))
        self._finish()

    @_mirrors
    def finalize(self, status: str) -> None:
        """Finish what is in progress, as Lightning's loggers do."""
        self._finish(exit_code=int(status != "success"))

    def close(self) -> None:
        """Wait until all that was said is in W&B's files, or at its server."""
        try:
            self._mirror.close() if self._begun else self._mirror.abandon()
        except OSError as error:
            self._hear()
            self._give_up(str(error))
        self._hear()
        if self._scratch:
            self._scratch.cleanup()

    def where(self) -> str:
        """Where the runs of this command are, for people."""
        runs, folder = f"{self.runs} run{'s'[: self.runs != 1]}", self._heard["folder"]
        if self._heard["mode"] == "online":
            return f"W&B: {runs} in project {self._project}"
        return f"W&B: {runs} kept offline; browse: wandb leet {folder}, upload: wandb sync {folder}/offline-run-*"

    def _tell(self, event: str, **about: Any) -> None:
        """Say something to the process that makes W&B's calls; its ``on_<event>`` says what."""
        self._mirror.tell({"do": event, **about})

    def _hear(self) -> None:
        """Take note of what that process answered."""
        for answer in self._mirror.answers():
            self._heard = answer
            for warning in self._heard["warnings"]:
                log.warning("W&B %s", warning)
            if self._heard["failure"]:
                self._give_up(self._heard["failure"])

    def _give_up(self, reason: str) -> None:
        """Say once that W&B failed; the run in progress is a failed one."""
        if not self.alive:
            return
        self.alive = False
        reason = " ".join(reason.split())
        log.warning("W&B failed and is left out from here on; rows are complete without it: %s", reason)
        log.debug("what its process wrote: %s", self._mirror.errors)
        with suppress(ConnectionError):
            self._tell("finish", exit_code=1)

    def _parameters(self) -> dict[str, Any]:
        """What a sweep's agent chose; wandb itself looks for it only when it is set up."""
        if "sweep_param_path" not in self._agent:
            return {}
        chosen = yaml.safe_load(Path(self._agent["sweep_param_path"]).read_text(encoding="utf-8"))
        return {name: entry["value"] for name, entry in chosen.items() if isinstance(entry, dict)}

    def _begin_training(self) -> None:
        if self._waiting:
            run, self._waiting = self._waiting, None
            self._begin(run)

    def _begin(self, run: Run) -> None:
        c = run.columns
        level = str(c["request"]).split("-")[0]
        tags = [c["dataset"], *([level, run.method] if run.kind != TRAINING else [TRAINING])]
        self._open(
            name=_name(run),
            group=f"{c['artefact']}-{run.settings['provenance']['preset']}",
            job_type=run.kind,
            tags=[tag[:64] for tag in tags],
            config={**c, "preset": run.settings["provenance"]["preset"], **run.settings},
        )
        self._run = run
        if self._has_federation:
            self._tell("use")
        if self._last and run.kind == UNLEARNING:
            self._accuracies = [(0, self._last)]
            self._tell_confusion("before", self._last)

    def _open(self, *, settings: Mapping[str, Any] | None = None, **about: Any) -> None:
        """Start a W&B run with settings of its own; the rest is for ``wandb.init``."""
        self._begun = self._in_progress = True
        self._tell("open", settings=settings or {}, **about)

    def _finish(self, exit_code: int = 0) -> None:
        """Log what is known at the end, and finish the W&B run in progress."""
        if self._in_progress:
            if len(self._accuracies) > 1:
                rounds, found = zip(*self._accuracies, strict=True)
                self._tell("curves", rounds=rounds, accuracies=[one.accuracy for one in found])
            self._tell("finish", exit_code=exit_code)
        self._in_progress, self._run, self._waiting, self._accuracies = False, None, None, []
        self._phase, self._round, self._staged = ("", 0), 0, False

    def _tell_confusion(self, key: str, accuracy: ClassAccuracy) -> None:
        """The confusion matrix on the test set."""
        title = f"Test images by class, {key}"
        self._tell("confusion", key=f"confusion_matrix_{key}", title=title, counts=accuracy.confusion)

    def _tell_table(self, key: str, frame: pd.DataFrame) -> None:
        """A table; Python's own numbers keep the columns' types."""
        self._tell("table", key=key, columns=list(frame), rows=frame.astype(object).to_numpy().tolist())

    def _tell_federation(self, run: Run, trained: TrainedFederation, folder: Path) -> None:
        """A trained federation as an artifact: its files, but none with a client's data."""
        c = run.columns
        name = f"federation-{c['dataset']}-{c['clients']}-clients-{c['distribution']}-s{c['scale']:g}"
        name += f"-f{c['fine_tuning']}" if c["fine_tuning"] else ""
        about = {
            "name": re.sub(r"[^\w.-]+", "-", f"{name}-seed{run.seed}"),
            "type": "federation",
            "description": ABOUT,
            "metadata": {**trained.spec, "federation_hash": folder.name, "device": trained.device},
        }
        files = {file: str(folder / file) for file in artifacts.PUBLIC}
        if self._images:
            scratch = self._new_scratch()
            files |= {f"synthetic/{path.name}": str(path) for path in artifacts.save_synthetic(trained, scratch)}
        kept = sorted((folder / artifacts.CLIENTS).glob("[!.]*.safetensors"))
        references = {f"{artifacts.CLIENTS}/{path.name}": path.resolve().as_uri() for path in kept}
        aliases = ["latest", folder.name]
        self._tell("federation", about=about, files=files, references=references, aliases=aliases)
        if self._images:
            self._tell("discard", folder=str(scratch))

    def _tell_synthetic(self, data: ImageData, context: Context) -> None:
        """A sheet of synthetic images. One in which nobody sees a change is a client's own, and stays here."""
        real, synthetic, labels = synthetic_pairs(data, context.clients)
        scratch, paths, captions = self._new_scratch(), [], []
        for k, label in enumerate(labels):
            if 255 * abs(real[k] - synthetic[k]).max() >= artifacts.VISIBLE:
                paths.append(str(scratch / f"{k}.png"))
                Image.fromarray((255 * synthetic[k].clip(0, 1)).astype("uint8").squeeze()).save(paths[-1])
                captions.append(label)
        self._tell("images", key="synthetic", paths=paths, captions=captions)
        self._tell("discard", folder=str(scratch))

    def _new_scratch(self) -> Path:
        """An empty folder for files that are said; it is there until they are logged, at most until the end."""
        self._scratch = self._scratch or tempfile.TemporaryDirectory(
            prefix="quickdrop-bench-", ignore_cleanup_errors=True
        )
        return Path(tempfile.mkdtemp(dir=self._scratch.name))


def _name(run: Run) -> str:
    """What people read, e.g. ``quickdrop · class-9 · mnist · seed 1``."""
    c = run.columns
    if run.kind == TRAINING:
        kind = f"{c['clients']} clients · {c['distribution']} · s = {c['scale']:g}"
        kind += f" · F = {c['fine_tuning']}" if c["fine_tuning"] else ""
        return f"{TRAINING} · {c['dataset']} · {kind} · seed {run.seed}"
    varied = f" · s = {c['scale']:g} · F = {c['fine_tuning']}" if c["artefact"] in SWEEPS else ""
    varied += f" · {c['protocol']}" if c["protocol"] != "preset" else ""
    return f"{run.method} · {c['request_name']} · {c['dataset']}{varied} · seed {run.seed}"[:128]


def _summary(
    run: Run, rows: Sequence[Mapping[str, Any]], oracle: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, float]]:
    """The run's rows, its distance to the oracle, and the paper's numbers."""
    values = {(row["stage"], row["metric"]): row["value"] for row in rows if "round" not in row}
    # Table 6 has training's cost under QuickDrop's name.
    methods = {(row["stage"], row["metric"]): row["method"] for row in rows}
    if oracle and rows[0]["device"] == oracle[0]["device"]:
        own, its = ({row["metric"]: row["value"] for row in side if row["stage"] == "total"} for side in (rows, oracle))
        values |= {("total", name): gap for name, gap in against_oracle(own, its).items() if math.isfinite(gap)}
    published = _published(str(run.columns["artefact"]), str(run.columns["dataset"]), str(run.columns["distribution"]))
    for (stage, metric), value in values.items():
        if value is None:
            continue
        key = f"{stage.replace('-', '_')}/{metric}"
        yield key, value
        if (
            published
            and (theirs := published.value(methods.get((stage, metric), run.method), stage, metric)) is not None
        ):
            yield f"{key}_paper", theirs
            if metric.endswith("accuracy"):
                yield f"{key}_paper_gap", value - theirs


@cache
def _published(artefact: str, dataset: str, distribution: str) -> Published | None:
    """The paper's numbers beside a setting; None for artefacts other than tables."""
    if not (number := re.fullmatch(r"table(\d)", artefact)):
        return None
    return beside(read_published(paper_values(), int(number[1])), dataset, distribution)


def _headline(numbers: pd.DataFrame) -> dict[str, float]:
    """QuickDrop's means in a figure that shows one setting: what a sweep's controller compares."""
    own = numbers[numbers["method"] == "quickdrop"].drop_duplicates(["stage", "metric"], keep=False)
    keys = own["stage"].str.replace("-", "_") + "/" + own["metric"]
    return {str(key): float(mean) for key, mean in zip(keys, own["mean"], strict=True) if pd.notna(mean)}

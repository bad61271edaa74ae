"""What is still to be measured, and about how long it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from lightning.fabric import Fabric

from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.datasets import load_dataset
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.distillation.in_situ import initial_synthetic_set
from quickdrop_bench.harness.callbacks import TRAINING
from quickdrop_bench.harness.experiment import ORACLE, ORIGINAL, Experiment
from quickdrop_bench.harness.lacking import is_measured
from quickdrop_bench.harness.session import Session
from quickdrop_bench.harness.training import client_rows, training_phase
from quickdrop_bench.harness.tuning import by_the_letter
from quickdrop_bench.store import artifacts
from quickdrop_bench.store.rows import RowFile

Part = tuple[str, str, str]
"""A training or a request: hash of the federation, ``fl-training`` or the method, and the requests up to it."""

OTHERS = 0.1
"""What a method other than the oracle is taken to cost, as a share of what the oracle costs."""

PROBE_STEPS = 3


@dataclass(frozen=True)
class PlannedCell:
    """One trained federation and the runs on it.

    Attributes:
        experiment: index in the list of experiments.
        seed: of the federation.
        trained: whether the federation is there already.
        missing: methods whose rows are not there, the original model's included.
        steps: about how many local steps each part of that takes.
        seconds: estimate for what is missing; 0 if no steps were timed.
    """

    experiment: int
    seed: int
    trained: bool
    missing: tuple[str, ...]
    steps: Mapping[Part, float]
    seconds: float


class Probe:
    """Times a few local steps of a spec, once for every kind of federation.

    Args:
        make_fabric: for a session of its own.
        artifacts_dir: as for sessions.
    """

    def __init__(self, make_fabric: Callable[[], Fabric], artifacts_dir: Path) -> None:
        self._make_fabric = make_fabric
        self._artifacts_dir = artifacts_dir
        self._known: dict[str, tuple[float, float]] = {}

    def step_seconds(self, experiment: Experiment) -> tuple[float, float]:
        """Seconds of a local step of training without distillation, and what distillation adds to it."""
        spec = experiment.federation
        key = repr({**spec.resolved(), "rounds": 0, "clients": 0, "alpha": 0, "iid": 0})
        if key not in self._known:
            # One image step is timed, however many are asked for.
            timed = replace(experiment, federation=replace(spec, image_steps=min(spec.image_steps, 1)))
            session = Session(timed, self._make_fabric(), self._artifacts_dir)
            train = session.data.train
            largest = max(client_rows(spec, train.labels, experiment.seeds[0]), key=len)
            data = {0: LabelledSet(train.images, train.labels, train.rows[largest])}
            own = initial_synthetic_set(data[0], spec.scale, generator(0, "probe"))
            phase = replace(training_phase(spec), rounds=1, local_steps=PROBE_STEPS)
            state = session.federation.fresh_state(0, "probe")
            synthetic = {0: own} if spec.distill else None
            cost = session.federation.run(state, data, phase, 0, synthetic=synthetic).cost
            plain = cost.seconds - cost.distillation_seconds
            self._known[key] = plain / PROBE_STEPS, cost.distillation_seconds * max(spec.image_steps, 1) / PROBE_STEPS
        return self._known[key]


def plan(
    experiments: Sequence[tuple[Experiment, Sequence[str]]],
    files: Iterable[RowFile],
    artifacts_dir: Path,
    probe: Probe | None,
    *,
    force: bool = False,
) -> Iterator[PlannedCell]:
    """The cells of some experiments in order, seed by seed.

    Args:
        experiments: each with the methods to run.
        files: where finished rows may be.
        artifacts_dir: where trained federations may be.
        probe: times local steps where something is missing; None times nothing.
        force: everything is to be measured again.
    """
    known = list(files)
    reached: dict[str, int] = {}  # by trained federation: F of what an earlier cell leaves behind
    for index, (experiment, methods) in enumerate(experiments):
        for seed in experiment.seeds:
            runs = (ORIGINAL, *methods)
            missing = tuple(m for m in runs if force or not is_measured(experiment, known, m, seed))
            trained = artifacts.is_complete(artifacts_dir / experiment.federation_hash(seed))
            base = experiment.federation_hash(seed, replace(experiment.federation, fine_tune=0))
            if base not in reached and artifacts.is_complete(artifacts_dir / base):
                reached[base] = 0
            done = experiment.federation.fine_tune if trained else reached.get(base)
            steps = _steps(experiment, seed, missing, done) if missing else {}
            if missing:
                reached[base] = max(experiment.federation.fine_tune, reached.get(base, 0))
            seconds = _seconds(steps, *probe.step_seconds(experiment)) if probe and missing else 0.0
            yield PlannedCell(index, seed, trained, missing, steps, seconds)


def _steps(e: Experiment, seed: int, missing: Sequence[str], done: int | None) -> dict[Part, float]:
    """Local steps for what is missing on a federation that was fine-tuned up to ``done``; None is not trained."""
    spec, folder = e.federation, e.federation_hash(seed)
    visits = spec.rounds * max(1, math.floor(spec.participation * spec.clients + 0.5))
    matching = max(spec.fine_tune - (done or 0), 0) * spec.fine_tune_steps * spec.clients
    found = {(folder, TRAINING, ""): matching + (visits * spec.local_steps if done is None else 0.0)}
    retraining = visits * _steps_by_the_letter(e)
    shares = {ORIGINAL: 0.0, ORACLE: 1.0}
    for method in missing:
        for step in range(len(e.requests)):
            found[folder, method, e.identity(step)["request"]] = shares.get(method, OTHERS) * retraining
    return {part: steps for part, steps in found.items() if steps}


def _steps_by_the_letter(e: Experiment) -> int:
    """A client's local steps in a round of retraining, with passes over an equal share of the images."""
    spec = e.federation
    phase = by_the_letter(training_phase(spec), e.rules.protocol)
    if phase.local_epochs is None:
        return phase.local_steps
    return phase.steps(_images(spec.dataset, e.data_dir, spec.image_size) // spec.clients)


@cache
def _images(dataset: str, data_dir: Path, image_size: int | None) -> int:
    """How many images there are to train on."""
    return len(load_dataset(dataset, data_dir, image_size).train)


def _seconds(steps: Mapping[Part, float], plain: float, distilling: float) -> float:
    """All steps at these seconds each; a training's distil."""
    return sum(n * (plain + (distilling if run == TRAINING else 0)) for (_, run, _), n in steps.items())

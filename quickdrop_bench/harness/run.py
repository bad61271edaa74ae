"""Measure: one trained federation, one request, several methods → rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from inspect import getfile
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from quickdrop_bench.cost import Cost
from quickdrop_bench.data.datasets import dataset_label, fingerprint, load_dataset
from quickdrop_bench.data.labelled import ImageData, LabelledSet, concatenate
from quickdrop_bench.data.requests import UnlearningRequest, forgotten_classes
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.provenance import provenance
from quickdrop_bench.harness.spec import FederationSpec, RunSpec
from quickdrop_bench.harness.training import build_federation, train_federation, training_phase
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.methods.base import ClientData, check_support
from quickdrop_bench.rows import RowFile

__all__ = ["ORACLE", "ORIGINAL", "Experiment", "Row", "Session", "measure"]

ORACLE = "retrain-or"
ORIGINAL = "original"
"""The method name of rows about the trained model before any request."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """The runs of one artefact: every method × every seed on one kind of federation and request.

    Attributes:
        artefact: e.g. ``table2``.
        preset: name of the preset, recorded in the rows.
        federation: the federation spec.
        request: what to forget.
        methods: hyper-parameter objects by name, in the order of the table.
        seeds: the runs.
        data_dir: where the data set lies.
        precision: Fabric's precision.
    """

    artefact: str
    preset: str
    federation: FederationSpec
    request: UnlearningRequest
    methods: Mapping[str, Method]
    seeds: tuple[int, ...]
    data_dir: Path
    precision: str

    @cached_property
    def fingerprint(self) -> str:
        """Of the data; read once, because image folders are hashed."""
        return fingerprint(self.federation.dataset, self.data_dir, self.federation.image_size)

    def check(self) -> None:
        """Raise before any compute if a method cannot serve the request."""
        available = {"forget-data", "retain-data"} | ({"synthetic-sets"} if self.federation.distill else set())
        for name in self.methods:
            check_support(name, self.request, frozenset(available))

    def federation_hash(self, seed: int) -> str:
        """Name of the trained federation's folder."""
        return self.federation.hash(self.fingerprint, seed, self.precision)

    def run_spec(self, method: str, seed: int) -> RunSpec:
        """The spec of one method's run, or of the evaluation of the original model."""
        if method == ORIGINAL:
            return RunSpec(self.federation_hash(seed), None, {}, None, self.request)
        hyper_parameters = self.methods[method]
        parameters = asdict(hyper_parameters)  # type: ignore[call-overload]
        source = Path(getfile(type(hyper_parameters)))
        return RunSpec(self.federation_hash(seed), method, parameters, source, self.request)

    def identity(self) -> dict[str, Any]:
        """The columns that tell this experiment's rows from others in the same file."""
        return {
            "artefact": self.artefact,
            "dataset": dataset_label(self.federation.dataset, self.data_dir),
            "clients": self.federation.clients,
            "distribution": self.federation.distribution,
            "request": str(self.request),
        }

    def spec_hashes(self) -> list[str]:
        """Of every run, whether or not it was measured."""
        return [self.run_spec(m, seed).hash for seed in self.seeds for m in (ORIGINAL, *self.methods)]


@dataclass
class Session:
    """What runs need of the machine; data and model are loaded when the first run asks for them.

    Attributes:
        experiment: what is measured.
        fabric: device, precision and callbacks.
        artifacts_dir: parent of the trained federations' folders.
    """

    experiment: Experiment
    fabric: Fabric
    artifacts_dir: Path
    _states: dict[int, Any] = field(default_factory=dict)

    @cached_property
    def data(self) -> ImageData:
        """The data set on the device."""
        e = self.experiment
        data = load_dataset(e.federation.dataset, e.data_dir, e.federation.image_size).to(self.fabric.device)
        e.request.check(len(data.class_names), e.federation.clients)
        return data

    @cached_property
    def federation(self) -> Federation:
        """The simulated federation."""
        return build_federation(self.experiment.federation, self.fabric, self.data)

    def folder(self, seed: int) -> Path:
        """Where the seed's trained federation lies."""
        return self.artifacts_dir / self.experiment.federation_hash(seed)

    def context(self, seed: int) -> Context:
        """The request on the seed's trained federation, trained now if it was not."""
        e = self.experiment
        data, federation = self.data, self.federation
        trained = train_federation(e.federation, federation, data, seed, self.folder(seed))
        clients = {
            i: ClientData(LabelledSet(data.train.images, data.train.labels, c.rows), c.synthetic, c.augmentation)
            for i, c in trained.clients.items()
        }
        self._states[seed] = trained.cost
        return Context(
            federation=federation,
            training=training_phase(e.federation),
            clients=clients,
            state=trained.state,
            request=e.request,
            forgotten=(e.request,),
            seed=seed,
        )

    def training_cost(self, seed: int) -> Cost:
        """Of the seed's federation, once :meth:`context` was called."""
        cost: Cost = self._states[seed]
        return cost


def measure(
    session: Session,
    rows: RowFile,
    methods: Sequence[str],
    on_run: Callable[[str, int], object] = lambda method, seed: None,
) -> bool:
    """Run what is missing, seed by seed, the oracle first; rows of a finished run are on disk at once.

    Args:
        session: the experiment and the machine.
        rows: where rows are looked up and appended.
        methods: the methods to run, a subset of the experiment's.
        on_run: told about each run before it starts (method, seed).

    Returns:
        Whether every run ended with a finite model.
    """
    e = session.experiment
    e.check()
    ordered = [ORIGINAL, *sorted(methods, key=lambda name: name != ORACLE)]
    all_finite = True
    for seed in e.seeds:
        missing = [m for m in ordered if not rows.has(e.run_spec(m, seed).hash)]
        if not missing:
            continue
        rows.check_writable()
        on_run("fl-training", seed)
        context = session.context(seed)
        for method in missing:
            on_run(method, seed)
            began = time.monotonic()
            if method == ORIGINAL:
                values = list(_original(session, context, seed))
            else:
                values = list(_run(session, context, e.methods[method]))
            base = {
                **e.identity(),
                "seed": seed,
                "method": method,
                "spec_hash": e.run_spec(method, seed).hash,
                "wall_seconds": round(time.monotonic() - began, 3),
                **provenance(session.fabric, e.preset),
            }
            rows.append({**base, "stage": s, "metric": m, "value": _json_value(v)} for s, m, v in values)
            all_finite &= not any(m == "diverged" and v for _, m, v in values)
    return all_finite


Value = tuple[str, str, float]
"""Stage, metric, value."""


def _run(session: Session, context: Context, method: Method) -> Iterator[Value]:
    """Both stages of a method, evaluated after each."""
    unlearned = method.unlearn(context)
    yield from _stage(session, context, "unlearning", unlearned.state, unlearned.cost, unlearned.diverged)
    total, last = unlearned.cost, unlearned
    recovered = None if unlearned.diverged else method.recover(context, unlearned.state)
    if recovered is not None:
        yield from _stage(session, context, "recovery", recovered.state, recovered.cost, recovered.diverged)
        total, last = total + recovered.cost, recovered
    yield "total", "storage_bytes", method.storage_bytes(context)
    yield from _stage(session, context, "total", last.state, total, last.diverged)


def _original(session: Session, context: Context, seed: int) -> Iterator[Value]:
    """The trained model before the request."""
    yield from _stage(session, context, "fl-training", context.state, session.training_cost(seed), False)


def _stage(session: Session, context: Context, stage: str, state: State, cost: Cost, diverged: bool) -> Iterator[Value]:
    for metric, value in (cost.metrics() | _accuracies(session, context, state)).items():
        yield stage, metric, value
    yield stage, "diverged", float(diverged)  # last: rows.LAST


def _accuracies(session: Session, context: Context, state: State) -> dict[str, float]:
    """F-Set, R-Set and per-class accuracy of a state.

    Class requests: the test images of the class, and of all classes that are not forgotten (paper §4.1). Client
    requests: the clients' own training images, as no test data belong to a client, and the whole test set.
    """
    federation, classes = session.federation, len(session.data.class_names)
    federation.load(state)
    on_test = class_accuracy(federation.model, session.data.test, classes)
    if context.request.level == "class":
        f_set = on_test.over(context.request.targets)
    else:
        own = [context.clients[i].original for i in context.request.targets]
        f_set = class_accuracy(federation.model, concatenate(*own), classes).without(())
    metrics = {"f_set_accuracy": f_set, "r_set_accuracy": on_test.without(forgotten_classes(context.forgotten))}
    return metrics | {f"class_{c}_accuracy": accuracy for c, accuracy in enumerate(on_test.accuracy)}


def _json_value(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None

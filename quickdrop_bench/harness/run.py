"""Measure: trained federations, requests, several methods → rows."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from inspect import getfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.fabric import Fabric

from quickdrop_bench import artifacts
from quickdrop_bench.artifacts import TrainedFederation
from quickdrop_bench.data.datasets import dataset_label, fingerprint, load_dataset
from quickdrop_bench.data.labelled import ImageData, LabelledSet, pool
from quickdrop_bench.data.requests import UnlearningRequest, forgotten_classes
from quickdrop_bench.errors import BadInput
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.evaluation.membership import membership_inference
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.federation.history import UpdateHistory
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.fine_tuning import fine_tuned_federation
from quickdrop_bench.harness.protocol import Tuned, as_in_the_paper, tune
from quickdrop_bench.harness.provenance import provenance
from quickdrop_bench.harness.spec import FederationSpec, Rules, RunSpec
from quickdrop_bench.harness.training import build_federation, training_phase
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.methods.base import ClientData, StageResult, check_support
from quickdrop_bench.rows import RowFile

__all__ = ["ORACLE", "ORIGINAL", "Experiment", "Row", "Session", "is_measured", "mark_failed", "measure"]

log = logging.getLogger(__name__)

ORACLE = "retrain-or"
ORIGINAL = "original"
"""The method name of rows about the trained model before any request."""

PER_ROUND = "per-round"
"""The stage of rows about a single round; their columns ``phase`` and ``round`` say which."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """Runs of one artefact: every method × every seed on one kind of federation and one sequence of requests.

    Attributes:
        artefact: e.g. ``table2``.
        preset: name of the preset, recorded in the rows.
        federation: the federation spec.
        requests: what to forget, in order; rows are written about each, under the requests up to it.
        methods: hyper-parameter objects by name, in the order of the table.
        seeds: the runs.
        data_dir: where the data set lies.
        precision: Fabric's precision.
        rules: how methods are run.
    """

    artefact: str
    preset: str
    federation: FederationSpec
    requests: tuple[UnlearningRequest, ...]
    methods: Mapping[str, Method]
    seeds: tuple[int, ...]
    data_dir: Path
    precision: str
    rules: Rules

    @cached_property
    def fingerprint(self) -> str:
        """Of the data; read once, because image folders are hashed."""
        return fingerprint(self.federation.dataset, self.data_dir, self.federation.image_size)

    def check(self, methods: Iterable[str]) -> None:
        """Raise before any compute if one of these methods cannot serve a request."""
        available = {"forget-data", "retain-data", "real-subset"}
        available |= {"synthetic-sets"} if self.federation.distill else set()
        available |= {"update-history"} if self.federation.record_every else set()
        for name in methods:
            for request in self.requests:
                check_support(name, request, frozenset(available))

    def federation_hash(self, seed: int, federation: FederationSpec | None = None) -> str:
        """Name of the trained federation's folder; of another spec's on the same data if one is given."""
        return (federation or self.federation).hash(self.fingerprint, seed, self.precision)

    def run_spec(self, method: str, seed: int, request: int = -1) -> RunSpec:
        """The spec of one method's run up to a request, or of the evaluation of the original model."""
        requests = (*self.requests[:request], self.requests[request])
        if method == ORIGINAL:
            rules = Rules(self.rules.protocol, each_round=self.rules.each_round)
            return RunSpec(self.federation_hash(seed), None, {}, None, requests, rules)
        hyper_parameters = self.methods[method]
        return RunSpec(
            federation_hash=self.federation_hash(seed),
            method=method,
            hyper_parameters=asdict(hyper_parameters),  # type: ignore[call-overload]
            source=Path(getfile(type(hyper_parameters))),
            requests=requests,
            rules=replace(self.rules, relearn=self.relearns(method)),
            tuned_on=self.seeds[0] if self.rules.protocol == "tuned" else None,
        )

    def relearns(self, method: str) -> bool:
        """Whether a method's run ends with relearning."""
        return self.rules.relearn and self.methods[method].can_relearn

    def identity(self, request: int = -1) -> dict[str, Any]:
        """The columns that tell this experiment's rows about a request from others in the same file."""
        requests = (*self.requests[:request], self.requests[request])
        return {
            "artefact": self.artefact,
            "dataset": dataset_label(self.federation.dataset, self.data_dir),
            "clients": self.federation.clients,
            "distribution": self.federation.distribution,
            "request": ">".join(map(str, requests)),
            "protocol": self.rules.protocol,
        }

    def spec_hashes(self) -> list[str]:
        """Of every run, whether or not it was measured."""
        steps = range(len(self.requests))
        runs = ((m, seed, step) for seed in self.seeds for m in (ORIGINAL, *self.methods) for step in steps)
        return [self.run_spec(*run).hash for run in runs]


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
    _trained: dict[int, TrainedFederation] = field(default_factory=dict)
    _tuned: dict[str, Tuned] = field(default_factory=dict)

    @cached_property
    def data(self) -> ImageData:
        """The data set on the device."""
        e = self.experiment
        data = load_dataset(e.federation.dataset, e.data_dir, e.federation.image_size).to(self.fabric.device)
        for request in e.requests:
            request.check(len(data.class_names), e.federation.clients)
        return data

    @cached_property
    def federation(self) -> Federation:
        """The simulated federation."""
        return build_federation(self.experiment.federation, self.fabric, self.data)

    def folder(self, seed: int, federation: FederationSpec | None = None) -> Path:
        """Where the seed's trained federation lies, or that of another spec on the same data."""
        return self.artifacts_dir / self.experiment.federation_hash(seed, federation)

    def context(self, seed: int) -> Context:
        """The first request on the seed's trained federation, trained now if it was not."""
        e = self.experiment
        data, federation = self.data, self.federation
        trained = fine_tuned_federation(e.federation, federation, data, seed, partial(self.folder, seed))
        clients = {
            i: ClientData(
                LabelledSet(data.train.images, data.train.labels, c.rows), c.subset, c.augmentation, c.synthetic
            )
            for i, c in trained.clients.items()
        }
        for request in e.requests:
            for target in request.targets if request.level == "client" else ():
                if not len(clients[target].original):
                    raise BadInput("--client", target, f"on seed {seed} that client holds no data; choose another")
        self._trained[seed] = trained
        before_fine_tuning = self.folder(seed, replace(e.federation, fine_tune=0))
        history = UpdateHistory(before_fine_tuning / artifacts.UPDATES, self.fabric.device)
        return Context(
            federation=federation,
            training=training_phase(e.federation),
            clients=clients,
            state=trained.state,
            request=e.requests[0],
            forgotten=(e.requests[0],),
            seed=seed,
            history=history if e.federation.record_every else None,
            patience=e.rules.patience,
        )

    def trained(self, seed: int) -> TrainedFederation:
        """The seed's federation, once :meth:`context` was called."""
        return self._trained[seed]

    def configured(self, name: str) -> Method:
        """A method with the settings of the protocol; the tuned ones are searched when first asked for."""
        method = self.experiment.methods[name]
        match self.experiment.rules.protocol:
            case "paper":
                return as_in_the_paper(method)
            case "tuned":
                return self.tuned(name).method
            case _:
                return method

    def tuned(self, name: str) -> Tuned:
        """The outcome of the search for a method, on the first seed's federation and the first request."""
        if name not in self._tuned:
            e = self.experiment
            self._tuned[name] = tune(self.context(e.seeds[0]), e.methods[name], len(self.data.class_names))
        return self._tuned[name]

    def trials(self) -> list[Row]:
        """Every setting that searches of this session tried, with the columns that tell searches apart."""
        e = self.experiment
        identity = {**e.identity(0), "seed": e.seeds[0]}
        return [{**identity, "method": name, **trial} for name, tuned in self._tuned.items() for trial in tuned.trials]


def measure(
    session: Session,
    rows: RowFile,
    methods: Sequence[str],
    on_run: Callable[[str, int], object] = lambda method, seed: None,
    siblings: Sequence[RowFile] = (),
    *,
    seeds: Sequence[int] | None = None,
    force: bool = False,
) -> bool:
    """Run what is missing, seed by seed, the oracle first; rows of a finished run are on disk at once.

    A method or a training that fails leaves a mark and the others go on; it is tried again the next time.

    Args:
        session: the experiment and the machine.
        rows: where rows are looked up and appended.
        methods: the methods to run, a subset of the experiment's.
        on_run: told about each run before it starts (method, seed).
        siblings: row files of other artefacts; a run that was measured for one of them is taken over.
        seeds: which of the experiment's; None for all.
        force: measure again what is there; old rows go when new ones replace them.

    Returns:
        Whether every run ended with a finite model.
    """
    e = session.experiment
    e.check(methods)
    ordered = [ORIGINAL, *sorted(methods, key=lambda name: name != ORACLE)]
    chosen = e.seeds if seeds is None else seeds
    for seed in chosen:
        missing = [m for m in ordered if force or not _present(e, rows, siblings, m, seed)]
        if not missing:
            continue
        rows.check_writable()
        on_run("fl-training", seed)
        began = time.monotonic()
        try:
            context = session.context(seed)
        except (RuntimeError, ArithmeticError, MemoryError) as error:
            mark_failed(session, rows, seed, error, began)
            continue
        for method in missing:
            on_run(method, seed)
            for served in _serve(session, context, method):
                _write(session, rows, method, seed, served)
    runs = ((m, seed, step) for m in ordered for seed in chosen for step in range(len(e.requests)))
    return not any(rows.marked(e.run_spec(*run).hash) for run in runs)


def mark_failed(session: Session, rows: RowFile, seed: int, error: Exception, began: float) -> None:
    """Write that no federation of a seed could be had, and log why."""
    mark = [_failure("fl-training", error, f"FL training, seed {seed}")]
    for step in range(len(session.experiment.requests)):
        _write(session, rows, ORIGINAL, seed, (step, began, mark))


def _write(session: Session, rows: RowFile, method: str, seed: int, served: Served) -> None:
    """Write a run's rows, in the place of what an earlier attempt left."""
    e = session.experiment
    step, began, values = served
    spec_hash = e.run_spec(method, seed, step).hash
    base = {
        **e.identity(step),
        "seed": seed,
        "method": method,
        "spec_hash": spec_hash,
        "federation_hash": e.federation_hash(seed),
        "patience": e.rules.patience,
        "scale": e.federation.scale,
        "fine_tuning": e.federation.fine_tune,
        "wall_seconds": round(time.monotonic() - began, 3),
        **provenance(session.fabric, e.preset),
    }
    rows.write({**base, **value.columns()} for value in values)


def _failure(stage: str, error: Exception, what: str) -> Value:
    """The mark of a run that ended in an error, which is logged."""
    log.warning("%s failed: %s", what, " ".join(str(error).split()) or type(error).__name__)
    log.debug("where it failed", exc_info=error)
    return Value(stage, "failed", 1.0, {"error": type(error).__name__})


def is_measured(e: Experiment, files: Iterable[RowFile], method: str, seed: int) -> bool:
    """Whether the rows of a run are in one of the files."""
    known = list(files)
    hashes = (e.run_spec(method, seed, step).hash for step in range(len(e.requests)))
    return all(any(file.has(spec_hash) for file in known) for spec_hash in hashes)


def _present(e: Experiment, rows: RowFile, siblings: Sequence[RowFile], method: str, seed: int) -> bool:
    """Whether the rows of a run are there, if need be by taking them over from another artefact."""
    if not is_measured(e, [rows, *siblings], method, seed):
        return False
    for step in range(len(e.requests)):
        spec_hash = e.run_spec(method, seed, step).hash
        if not rows.has(spec_hash):
            known = next(other for other in siblings if other.has(spec_hash))
            rows.write({**row, "artefact": e.artefact} for row in known.rows if row["spec_hash"] == spec_hash)
    return True


@dataclass(frozen=True)
class Value:
    """One measured value.

    Attributes:
        stage, metric, value: as in rows.
        extra: other columns that differ from the run's.
    """

    stage: str
    metric: str
    value: float
    extra: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> Row:
        """Ready for a row; JSON knows no NaN."""
        value = self.value if isinstance(self.value, int | float) and math.isfinite(self.value) else None
        return {"stage": self.stage, "metric": self.metric, "value": value, **self.extra}


Served = tuple[int, float, list[Value]]
"""Index of a request, when its run began (monotonic seconds), and what was measured."""


def _serve(session: Session, context: Context, method: str) -> Iterator[Served]:
    """The requests one after the other; a failure ends the sequence."""
    e = session.experiment
    for step, request in enumerate(e.requests):
        if step:
            context = context.then(context.state, request)
        began = time.monotonic()
        if method == ORIGINAL:
            yield step, began, list(_original(session, context))
            continue
        try:
            values, state = _run(session, context, method)
        except Exception as error:  # whatever goes wrong in one method, also in a plug-in, leaves the others alone
            yield step, began, [_failure("total", error, f"{method}, seed {context.seed},")]
            return
        yield step, began, values
        context = replace(context, state=state)


def _run(session: Session, context: Context, name: str) -> tuple[list[Value], State]:
    """The stages of a method, evaluated after each; and the unlearned state, which the next request meets."""
    method = session.configured(name)
    values: list[Value] = []
    if session.experiment.rules.protocol == "tuned":
        values += _search_values(session.tuned(name))

    def during(stage: str) -> Context:
        if not session.experiment.rules.each_round:
            return context
        return replace(context, on_round=lambda info: values.extend(_round(session, stage, info)))

    unlearned = method.unlearn(during("unlearning"))
    values += _stage(session, context, "unlearning", unlearned)
    total, last = unlearned.cost, unlearned
    recovered = None if unlearned.diverged else method.recover(during("recovery"), unlearned.state)
    if recovered is not None:
        values += _stage(session, context, "recovery", recovered)
        total, last = total + recovered.cost, recovered
    diverged = last.diverged
    if session.experiment.relearns(name) and not diverged:
        relearned = method.relearn(context, last.state)
        values += _stage(session, context, "relearning", relearned)
        diverged = relearned.diverged
    stored = method.storage(context).metrics()
    values += [Value("total", metric, value) for metric, value in stored.items()]
    values += _membership(session, context, "total", last.state)
    values += _stage(session, context, "total", replace(last, cost=total, diverged=diverged))
    return values, last.state


def _round(session: Session, stage: str, info: RoundInfo) -> Iterable[Value]:
    """Accuracy by class after one round; the model that trains next loads its own state."""
    session.federation.load(info.state)
    classes = len(session.data.class_names)
    found = class_accuracy(session.federation.model, session.data.test, classes).metrics()
    return [Value(PER_ROUND, name, value, {"phase": stage, "round": info.round + 1}) for name, value in found.items()]


def _search_values(tuned: Tuned) -> Iterable[Value]:
    """What the search cost and chose."""
    cost = {name: value for name, value in tuned.cost.metrics().items() if name not in ("rounds", "data_size")}
    return [
        Value("search", metric, value) for metric, value in {**cost, "tried": len(tuned.trials), **tuned.chosen}.items()
    ]


def _original(session: Session, context: Context) -> Iterator[Value]:
    """The trained model before the request, and what its training cost."""
    trained, spec = session.trained(context.seed), session.experiment.federation
    cost, device = trained.cost, {"device": trained.device}
    images = session.data.train.images[0].numel()
    yield Value("fl-training", "data_bytes", images * sum(len(c.original) for c in context.clients.values()))
    gradients = {
        "fl-training": spec.local_steps * int(trained.history["participants"].sum()),
        "fine-tuning": trained.fine_tuning_gradients,
    }
    for stage, count in gradients.items():
        yield Value(stage, "original_gradients", count / spec.clients)
    if spec.fine_tune:
        for metric, value in trained.fine_tuning.metrics().items():
            yield Value("fine-tuning", metric, value, device)
    if spec.distill:
        share = 100 * cost.distillation_seconds / cost.seconds
        # Distillation is a cost of QuickDrop alone, so Table 6 has it under that name.
        for metric, value in (
            ("total_seconds", cost.seconds),
            ("distillation_seconds", cost.distillation_seconds),
            ("overhead_percent", share),
        ):
            yield Value("fl-training", metric, value, {"method": "quickdrop", **device})
    if session.experiment.rules.each_round and len(context.forgotten) == 1:
        yield from _last_rounds(trained.history)  # once for a sequence of requests
    yield from _membership(session, context, "fl-training", context.state)
    for evaluated in _stage(session, context, "fl-training", StageResult(context.state, cost)):
        yield replace(evaluated, extra=device)


def _last_rounds(history: pd.DataFrame) -> Iterator[Value]:
    """Accuracy by class after the training's last rounds."""
    names = [name for name in history.columns if name.startswith("class_")]
    for _, line in history.dropna(subset=names, how="all").iterrows():
        for name in names:
            yield Value(PER_ROUND, name, line[name], {"phase": "fl-training", "round": int(line["round"])})


def _membership(session: Session, context: Context, stage: str, state: State) -> Iterator[Value]:
    """How often two attacks call forgotten and retained training images members (§4.2.3)."""
    session.federation.load(state)
    forget, retain = (pool(*parts.values()) for parts in (context.forget_data(), context.retain_data()))
    found = membership_inference(session.federation.model, forget, retain, session.data.test, context.seed)
    for feature, rates in found.items():
        suffix = "" if feature == "entropy" else f"_{feature}"
        yield Value(stage, f"f_set_mia{suffix}", rates.forget)
        yield Value(stage, f"r_set_mia{suffix}", rates.retain)
        yield Value(stage, f"false_positive_mia{suffix}", rates.false_positive)


def _stage(session: Session, context: Context, stage: str, result: StageResult) -> Iterator[Value]:
    accuracies = _accuracies(session, context, result.state, per_class=stage != "total")
    for metric, value in (result.cost.metrics() | accuracies).items():
        yield Value(stage, metric, value)
    yield Value(stage, "diverged", float(result.diverged))  # last: rows.LAST


def _accuracies(session: Session, context: Context, state: State, *, per_class: bool) -> dict[str, float]:
    """F-Set, R-Set and per-class accuracy of a state.

    Class requests: the test images of the class, and of all classes that are not forgotten (paper §4.1). Client
    requests: the clients' own training images, as no test data belong to a client, and the whole test set; beside
    them the other clients' training images.
    """
    federation, classes = session.federation, len(session.data.class_names)
    federation.load(state)
    on_test = class_accuracy(federation.model, session.data.test, classes)
    metrics = {"r_set_accuracy": on_test.without(forgotten_classes(context.forgotten))}
    if context.request.level == "class":
        metrics["f_set_accuracy"] = on_test.over(context.request.targets)
    else:
        own, others = (_pooled(context, of_targets=which) for which in (True, False))
        metrics["f_set_accuracy"] = class_accuracy(federation.model, own, classes).without(())
        metrics["others_training_accuracy"] = class_accuracy(federation.model, others, classes).without(())
        per_class = False
    return metrics | (on_test.metrics() if per_class else {})


def _pooled(context: Context, *, of_targets: bool) -> LabelledSet:
    """Training images of the clients that are, or are not, to be forgotten."""
    nothing = torch.empty(0, dtype=torch.int64)
    chosen = (
        c.original if (i in context.request.targets) == of_targets else c.original.subset(nothing)
        for i, c in context.clients.items()
    )
    return pool(*chosen)

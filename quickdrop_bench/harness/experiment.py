"""What is measured, and what that needs of the machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from inspect import getfile
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.datasets import class_names, dataset_label, fingerprint, load_dataset
from quickdrop_bench.data.labelled import ImageData
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.harness.callbacks import EVALUATION, TRAINING, UNLEARNING, RequestInfo
from quickdrop_bench.harness.fine_tuning import fine_tuned_federation
from quickdrop_bench.harness.judging import Judge
from quickdrop_bench.harness.provenance import provenance
from quickdrop_bench.harness.request import Deployment, kept
from quickdrop_bench.harness.setting import changes
from quickdrop_bench.harness.spec import FederationSpec, Rules, RunSpec, as_numbers, digest
from quickdrop_bench.harness.training import build_federation
from quickdrop_bench.harness.tuning import Tuned, by_the_letter, tune
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.methods.base import check_support
from quickdrop_bench.store.artifacts import TrainedFederation

__all__ = ["ORACLE", "ORIGINAL", "Experiment", "Row", "Session"]

ORACLE = "retrain-or"
"""The method that every other one is compared with: retraining without what is to be forgotten."""

ORIGINAL = "original"
"""The method name of rows about the trained model before any request."""

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
        precision: Fabric's precision, and on a GPU that and whether TF32 is allowed: what decides rounding.
        rules: how methods are run.
        usual: the same with the preset's own values, from which rows say what differs; None if nothing does.
        swept: fields of the federation that the artefact varies on purpose; rows have columns for them.
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
    usual: Experiment | None = None
    swept: frozenset[str] = frozenset()

    @cached_property
    def fingerprint(self) -> str:
        """Of the data; read once, because image folders are hashed."""
        return fingerprint(self.federation.dataset, self.data_dir, self.federation.image_size)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the classes' numbers; no image is read."""
        return class_names(self.federation.dataset, self.data_dir)

    def check(self, methods: Iterable[str]) -> None:
        """Raise before any compute if one of these methods cannot serve a request."""
        available = kept(self.federation, recorded=bool(self.federation.record_every))
        for name in methods:
            for request in self.requests:
                check_support(name, request, available)

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
            **self.setting,
        }

    @cached_property
    def setting(self) -> dict[str, str]:
        """The columns of rows that may stand in one block of a table: a hash, and what differs from the preset."""
        own = {"precision": self.precision, "patience": self.rules.patience}
        own |= self.federation.setting(self.swept)
        e = self.usual or self
        usual = {"precision": _rounding(e.precision), "patience": e.rules.patience, **asdict(e.federation)}
        changed = changes({**own, "precision": _rounding(self.precision)}, usual)
        return {"setting": digest({**own, "data": self.fingerprint}), "changes": changed}

    def method_setting(self, method: str) -> dict[str, str]:
        """The same for a method's hyper-parameters, which must be equal to be averaged."""
        if method == ORIGINAL:
            return {"method_setting": "", "method_changes": ""}
        e = self.usual or self
        own, usual = asdict(self.methods[method]), asdict(e.methods[method])  # type: ignore[call-overload]
        if self.rules.protocol == "tuned":  # it searches on the first seed
            own, usual = {**own, "search_seed": self.seeds[0]}, {**usual, "search_seed": e.seeds[0]}
        return {"method_setting": digest(as_numbers(own)), "method_changes": changes(own, usual)}

    def spec_hashes(self, request: int) -> list[str]:
        """Of every run about a request, whether or not it was measured."""
        runs = ((m, seed, request) for seed in self.seeds for m in (ORIGINAL, *self.methods))
        return [self.run_spec(*run).hash for run in runs]


def _rounding(precision: str) -> str:
    """The precision whatever the device, which rows name beside it."""
    return precision.replace(" on CUDA", "").replace(" on MPS", "")


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
    _deployed: dict[int, Deployment] = field(default_factory=dict)
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

    def deployment(self, seed: int) -> Deployment:
        """The seed's trained federation; it is trained now if it was not."""
        if seed not in self._deployed:
            e, at = self.experiment, partial(self.folder, seed)
            trained = fine_tuned_federation(e.federation, self.federation, self.data, seed, at, e.preset)
            self._deployed[seed] = Deployment(self.federation, e.federation, trained, at(), self.data)
        return self._deployed[seed]

    def context(self, seed: int) -> Context:
        """The first request on the seed's trained federation.

        Raises:
            BadInput: a client that is to be forgotten holds no data.
        """
        e, deployment = self.experiment, self.deployment(seed)
        for request in e.requests:
            for target in request.targets if request.level == "client" else ():
                if not len(deployment.clients[target].original):
                    raise BadInput("--client", target, f"on seed {seed} that client holds no data; choose another")
        context = deployment.context(e.requests[0])
        training = by_the_letter(context.training, e.rules.protocol)
        return replace(context, training=training, patience=e.rules.patience)

    def prepare(self, seed: int) -> Context:
        """:meth:`context`, and the callbacks hear of it."""
        run = self.info(ORIGINAL, seed, kind=TRAINING)
        self.fabric.call("on_run_start", run=run)
        context, folder = self.context(seed), self.folder(seed)
        ready = {"context": context, "trained": self.trained(seed), "data": self.data, "folder": folder}
        self.fabric.call("on_federation_ready", run=run, **ready)
        return context

    def trained(self, seed: int) -> TrainedFederation:
        """The seed's federation, trained now if it was not."""
        return self.deployment(seed).trained

    def info(self, method: str, seed: int, step: int = 0, *, kind: str | None = None) -> RequestInfo:
        """What callbacks are told about a run.

        Args:
            method: its name, or :data:`ORIGINAL`.
            seed: of the federation.
            step: index of the request.
            kind: None for that of the method: unlearning, or the evaluation of the original model.
        """
        e = self.experiment
        columns = {
            **e.identity(step),
            "request_name": ">".join(request.named(e.class_names) for request in e.requests[: step + 1]),
            "seed": seed,
            "method": method,
            **e.method_setting(method),
            "spec_hash": e.run_spec(method, seed, step).hash,
            "federation_hash": e.federation_hash(seed),
            "patience": e.rules.patience,
            "scale": e.federation.scale,
            "fine_tuning": e.federation.fine_tune,
        }
        settings = {
            "federation": e.federation.resolved(),
            "hyper_parameters": {} if method == ORIGINAL else asdict(e.methods[method]),  # type: ignore[call-overload]
            "rules": asdict(e.rules),
            "provenance": provenance(self.fabric, e.preset),
        }
        kind = kind or (EVALUATION if method == ORIGINAL else UNLEARNING)
        return RequestInfo(kind, method, seed, step, len(e.requests), columns, settings)

    def configured(self, name: str) -> Method:
        """A method with the settings of the protocol; the tuned ones are searched when first asked for."""
        return self.tuned(name).method if self.experiment.rules.protocol == "tuned" else self.experiment.methods[name]

    def tuned(self, name: str) -> Tuned:
        """The outcome of the search for a method, on the first seed's federation and the first request."""
        if name not in self._tuned:
            e = self.experiment
            self._tuned[name] = tune(self.context(e.seeds[0]), e.methods[name], self._judge)
        return self._tuned[name]

    @cached_property
    def _judge(self) -> Judge:
        """One for all searches, so that they share its baseline."""
        return Judge(self.context(self.experiment.seeds[0]), len(self.data.class_names))

    def trials(self) -> list[Row]:
        """Every setting that searches of this session tried, with the columns that tell searches apart."""
        e = self.experiment
        identity = {**e.identity(0), "seed": e.seeds[0]}
        return [{**identity, "method": name, **trial} for name, tuned in self._tuned.items() for trial in tuned.trials]

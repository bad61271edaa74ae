"""A trained federation that serves requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import nn

from quickdrop_bench.core.errors import BadInput, Missing, others_code
from quickdrop_bench.core.files import writing
from quickdrop_bench.data.datasets import DATASETS, load_dataset
from quickdrop_bench.data.labelled import DataInfo, ImageData
from quickdrop_bench.data.requests import Samples, UnlearningRequest
from quickdrop_bench.evaluation.metric import METRICS, SERVED, measured
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.harness.outcome import checked_stages
from quickdrop_bench.harness.presets import SECTIONS, part, preset_values, presets
from quickdrop_bench.harness.provenance import provenance
from quickdrop_bench.harness.request import RELEARN, UNLEARN, Deployment, still_forgotten, total_cost
from quickdrop_bench.harness.training import build_federation, build_model
from quickdrop_bench.methods import METHODS, Context, Method
from quickdrop_bench.methods.registry import StageResult
from quickdrop_bench.serving.checks import check, check_form, check_settings, check_stages, method_name
from quickdrop_bench.serving.log import Entry, chained_to, locked, read_log, settle
from quickdrop_bench.serving.plan import PlannedPhase, planned_phases
from quickdrop_bench.serving.versions import Versions, hidden_name
from quickdrop_bench.store import artifacts


class TrainedRun:
    """A trained federation, its model versions and the requests that made them.

    Args:
        folder: ``artifacts/<spec_hash>``, as ``train`` and the tables leave it.
        fabric: device and precision of what is computed; None takes a CPU and the training's precision, a function gets
            that precision.
        data_dir: where the data set lies; only evaluation and methods that work on original data look there.

    Raises:
        BadInput: the folder or its log is damaged, or the folder's name commands a terminal.

    Example:
        ``run = TrainedRun(find_run("artifacts/3fa9"))``, ``run.unlearn(UnlearningRequest("class", (9,)))``,
        ``model = run.model()``.
    """

    def __init__(
        self, folder: Path, fabric: Fabric | Callable[[str], Fabric] | None = None, data_dir: Path = Path("data")
    ) -> None:
        self.folder = folder = Path(folder)
        if not str(folder).isprintable():
            raise BadInput("RUN", folder, "its name must be printable text")
        trained = artifacts.load(folder, torch.device("cpu"))
        self.fabric = fabric if isinstance(fabric, Fabric) else (fabric or _on_cpu)(trained.precision)
        self.data_dir = data_dir
        self.trained = trained if self.fabric.device.type == "cpu" else artifacts.load(folder, self.fabric.device)
        self.log = read_log(folder)
        if "seed" not in self.trained.spec:
            raise BadInput("RUN", folder, "config.yaml does not say the seed")
        with torch.device("meta"):  # shapes without memory: the spec may be anybody's
            expected = dict(build_model(self.spec, self.info).named_parameters())
        self.trained = artifacts.of_model(self.trained, expected, folder)
        self.versions = Versions(folder, self.trained.state)

    @property
    def info(self) -> DataInfo:
        """What is known of the data without having it."""
        return self.trained.data

    @property
    def seed(self) -> int:
        """Of the training."""
        return int(self.trained.spec["seed"])

    @cached_property
    def spec(self) -> FederationSpec:
        """With which the federation was trained."""
        known = {field.name for field in fields(FederationSpec)}
        try:
            return FederationSpec(**{name: value for name, value in self.trained.spec.items() if name in known})
        except (TypeError, ValueError) as error:
            raise BadInput("RUN", self.folder, f"config.yaml describes no federation ({error})") from error

    @property
    def current(self) -> int:
        """The version that the next request starts from; 0 is the model as it was trained."""
        return self.log[-1].version if self.log else 0

    def forgotten(self, version: int | None = None) -> tuple[UnlearningRequest, ...]:
        """All that a version is not to know; None stands for the current one."""
        version = self._version(version)
        return self.log[version - 1].requests if version else ()

    @cached_property
    def deployment(self) -> Deployment:
        """What requests arrive at."""
        federation = build_federation(self.spec, self.fabric, self.info)
        return Deployment(federation, self.spec, self.trained, self.folder, self.data)

    def state(self, version: int | None = None) -> State:
        """The parameters of a version, the current one by default; :class:`BadInput` if it is not there or damaged."""
        version = self._version(version)
        if not version:
            return self.trained.state
        back = f"; --from-version {version - 1} makes a request start before it" if version == self.current else ""
        return self.versions.load(version, self.log[version - 1].sha256, back)

    def model(self, version: int | None = None) -> nn.Module:
        """A version as a module on the CPU; it takes images normalised with ``info.mean`` and ``info.std``."""
        model = build_model(self.spec, self.info).eval()
        model.load_state_dict({name: value.cpu() for name, value in self.state(version).items()})
        return model

    @cached_property
    def data(self) -> ImageData | None:
        """The data set, if it lies in ``data_dir``; nothing is downloaded. :class:`BadInput` if it is another one."""
        if self.spec.dataset not in DATASETS:
            allowed = f"config.yaml tells of a data set {self.spec.dataset!r}, which is not known here"
            raise BadInput("RUN", self.folder, allowed)
        try:
            data = load_dataset(self.spec.dataset, self.data_dir, self.spec.image_size, download=False)
        except Missing:
            return None
        if replace(data.info, name=self.info.name) != self.info:  # an image folder may have moved
            raise BadInput("--data-dir", self.data_dir, f"this is not the {self.info.name} of the training")
        return data.to(self.fabric.device)

    def evaluate(
        self,
        version: int | None = None,
        about: Sequence[UnlearningRequest] | None = None,
        forgotten: Sequence[UnlearningRequest] | None = None,
    ) -> dict[str, float]:
        """What metrics say of a version, by the names that rows use; without what cannot be measured.

        Args:
            version: None for the current one.
            about: what F-Set is about, and ``forgotten`` what R-Set leaves out; None takes all that is forgotten.
            forgotten: see above.

        Raises:
            BadInput: the data set is not there.
        """
        gone = self.forgotten(version) if forgotten is None else forgotten
        return self._evaluated(self.state(version), gone if about is None else about, gone)

    def _evaluated(
        self, state: State, about: Sequence[UnlearningRequest], gone: Sequence[UnlearningRequest]
    ) -> dict[str, float]:
        if self.data is None:
            raise BadInput("--data-dir", self.data_dir, f"{self.info.name} is not there, so nothing can be evaluated")
        judged, found = self.deployment.judged(state, about, gone), dict[str, float]()
        for name in METRICS:
            with others_code("--metric", name):
                for numbers in measured(judged, SERVED, [name]).values():
                    found |= {key: float(value) for key, value in numbers.items() if not math.isnan(value)}
        return found

    @property
    def preset(self) -> str:
        """Name of the preset that the federation was trained with; :class:`BadInput` if nobody knows it here."""
        name = self.trained.spec.get("preset")
        if name not in presets():
            allowed = f"{self.folder} does not say with which preset it was trained; use one of {', '.join(presets())}"
            raise BadInput("--preset", "is not given", allowed)
        return str(name)

    def method(self, name: str = "quickdrop", level: str = "class") -> Method:
        """A method with the :meth:`settings` for a level of requests."""
        return METHODS[name](**part(self.settings(level), name.replace("-", "_")))

    def settings(self, level: str) -> dict[str, Any]:
        """Those of methods, as ``quickdrop.unlearn_lr``, that the preset had in training, or :class:`BadInput`."""
        own = part(self.trained.spec, SECTIONS[level])
        check_settings(own, self.folder)
        return own or preset_values(self.preset, self.spec.dataset, SECTIONS[level])

    def samples(
        self,
        asked: Samples,
        action: str = UNLEARN,
        before: Sequence[UnlearningRequest] = (),
        from_version: int | None = None,
    ) -> UnlearningRequest:
        """The request for samples that are drawn, or listed by who holds them.

        Args:
            asked: so many of what is not forgotten, or which.
            action: for ``relearn`` they are drawn from the samples that are forgotten.
            before: requests of this action that come before it.
            from_version: that the first of them starts from; None for the current one.

        Raises:
            BadInput: there are fewer, a client does not hold what is listed, or the data set is not there.
        """
        gone = self.forgotten(self._version(from_version, "--from-version"))
        for request in before:
            gone = still_forgotten(action, request, gone)
        if self.data is None:
            raise BadInput("--data-dir", self.data_dir, f"{self.info.name} is not there, and samples are chosen in it")
        holdings = {i: client.original for i, client in self.deployment.clients.items()}
        return asked.of(holdings, gone, self.seed, again=action == RELEARN)

    def check(
        self,
        action: str,
        requests: Sequence[tuple[UnlearningRequest, Method]],
        absent: Collection[int] = (),
        from_version: int | None = None,
    ) -> None:
        """Raise :class:`BadInput` unless requests can be served one after the other, the first from a version."""
        gone = self.forgotten(self._version(from_version, "--from-version"))
        for request, method in requests:
            check_form(request)
            check(self.deployment, action, request, method, gone, absent, self.data_dir)
            gone = still_forgotten(action, request, gone)

    def plan(
        self,
        action: str,
        requests: Sequence[tuple[UnlearningRequest, Method]],
        absent: Collection[int] = (),
        from_version: int | None = None,
    ) -> list[tuple[UnlearningRequest, list[PlannedPhase]]]:
        """What serving requests one after the other would take at most; refused like these, and nothing is changed."""
        self.check(action, requests, absent, from_version)
        gone, planned = self.forgotten(from_version), []
        for request, method in requests:
            context = self._context(action, request, gone, absent, from_version)
            with others_code("--method", method_name(method)):
                phases, results = planned_phases(action, context, method)
            check_stages(request, method, results, self.info.class_names, absent)
            planned.append((request, phases))
            gone = still_forgotten(action, request, gone)
        return planned

    def unlearn(
        self,
        request: UnlearningRequest,
        method: Method | None = None,
        absent: Collection[int] = (),
        from_version: int | None = None,
    ) -> Entry:
        """Forget; the new version becomes the current one.

        Args:
            request: what to forget.
            method: None takes QuickDrop as :meth:`method` gives it.
            absent: clients that cannot take part now; rounds go on without them.
            from_version: start from this one, for where newer ones are damaged: what those alone forgot is not
                forgotten any more. None starts from the current one.

        Returns:
            The new entry of the log.

        Raises:
            BadInput: the request cannot be served, or another command is working on this run.
            ArithmeticError: the model diverged; the current version stays.
        """
        return self._serve(UNLEARN, request, method, absent, from_version)

    def relearn(
        self,
        request: UnlearningRequest,
        method: Method | None = None,
        absent: Collection[int] = (),
        from_version: int | None = None,
    ) -> Entry:
        """Learn again what was forgotten (§4.7); arguments and errors as for :meth:`unlearn`."""
        return self._serve(RELEARN, request, method, absent, from_version)

    def _serve(
        self,
        action: str,
        request: UnlearningRequest,
        method: Method | None,
        absent: Collection[int],
        from_version: int | None,
    ) -> Entry:
        check_form(request)
        method = method or self.method(level=request.level)
        with locked(self.folder):
            self.log = read_log(self.folder)
            with writing("RUN", self.folder):
                settle(self.folder, self.log)  # the command that served last may have been killed before
            parent = self._version(from_version, "--from-version")
            gone = self.forgotten(parent)
            check(self.deployment, action, request, method, gone, absent, self.data_dir)
            after = still_forgotten(action, request, gone)
            sets = (request,), after if action == UNLEARN else gone
            before = self.evaluate(parent, *sets) if self.data else None
            context = self._context(action, request, gone, absent, parent)
            results = self._stages(action, context, method, absent)
            entry = Entry(
                version=self.current + 1,
                parent=parent,
                action=action,
                request=str(request),
                method=method_name(method),
                hyper_parameters=asdict(method),  # type: ignore[call-overload]
                forgotten=tuple(map(str, after)),
                cost={name: result.cost.metrics() for name, result in results.items()}
                | {"total": total_cost(results.values()).metrics()},
                before=before,
                after=None,
                sha256="",
                absent=tuple(sorted(absent)),
                provenance={k: v for k, v in provenance(self.fabric, "").items() if k != "preset"},
                previous=chained_to(self.log),
            )
            return self._keep(entry, list(results.values())[-1].state, sets)

    def _stages(self, action: str, context: Context, method: Method, absent: Collection[int]) -> dict[str, StageResult]:
        """What the engine makes of a request, if that is a model."""
        request = context.request
        with others_code("--method", method_name(method)):
            results = dict(checked_stages(action, context, method))
        check_stages(request, method, results, self.info.class_names, absent)
        if any(result.diverged for result in results.values()):
            what = f"{method_name(method)} diverged on {request.named(self.info.class_names)}"
            raise ArithmeticError(f"{what}; version {self.current} stays the current one")
        return results

    def _keep(
        self, entry: Entry, state: State, sets: tuple[Sequence[UnlearningRequest], Sequence[UnlearningRequest]]
    ) -> Entry:
        """Make a model the current version: its file first, then the log that names it."""
        after = self._evaluated(state, *sets) if self.data else None
        try:
            entry = replace(entry, after=after, sha256=self.versions.save(entry.version, state, entry.metadata))
            with writing("RUN", self.folder):
                settle(self.folder, [*self.log, entry])
        except Exception:
            with suppress(OSError):
                hidden_name(self.folder, entry.version).unlink()  # it would count
            raise
        self.log.append(entry)
        return entry

    def _context(
        self,
        action: str,
        request: UnlearningRequest,
        gone: Sequence[UnlearningRequest],
        absent: Collection[int],
        version: int | None,
    ) -> Context:
        others = gone if action == UNLEARN else still_forgotten(action, request, gone)
        return self.deployment.context(request, others, self.state(version), absent)

    def _version(self, version: int | None, option: str = "--version") -> int:
        if version is None:
            return self.current
        if not 0 <= version <= self.current:
            raise BadInput(option, version, f"between 0 (as trained) and {self.current}")
        return version


def _on_cpu(precision: str) -> Fabric:
    # One process on its own, whatever launcher left its variables.
    alone = LightningEnvironment()
    return Fabric(accelerator="cpu", devices=1, precision=precision, plugins=alone)  # type: ignore[arg-type]

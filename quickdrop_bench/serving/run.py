"""A trained federation that serves requests."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.errors import BadInput, Missing
from quickdrop_bench.core.files import (
    HEADER,
    file_size,
    open_tensors,
    read_bytes,
    remove_unfinished,
    sha256,
    write_atomically,
)
from quickdrop_bench.data.datasets import DATASETS, load_dataset
from quickdrop_bench.data.labelled import DataInfo, ImageData, LabelledSet, pool
from quickdrop_bench.data.requests import UnlearningRequest, forget_part, forgotten_classes
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.history import UpdateHistory
from quickdrop_bench.functional.aggregation import State, is_finite
from quickdrop_bench.harness.presets import preset_values, presets
from quickdrop_bench.harness.provenance import provenance
from quickdrop_bench.harness.spec import FederationSpec
from quickdrop_bench.harness.training import build_federation, build_model, training_phase
from quickdrop_bench.methods import METHODS, Context, Method
from quickdrop_bench.methods.base import SMALL_SETS, ClientData, StageResult, check_support
from quickdrop_bench.serving.log import LOG, VERSIONS, Entry, chained_to, locked, read_log, write_log
from quickdrop_bench.serving.plan import CountingFederation, PlannedPhase
from quickdrop_bench.store import artifacts

__all__ = ["SECTIONS", "Evaluation", "TrainedRun", "find_run"]

SECTIONS = {"class": "table2", "client": "table4"}
"""Sections of the presets whose settings of methods suit a level of requests."""

OLD_PRESET = "preset.txt"
"""Where older code put a preset's name."""

LONGEST_NAME = 1000
"""Bytes of a preset's name that are still read."""

ORIGINALS = frozenset({"forget-data", "retain-data"})
"""What methods need of the data that the federation was trained on."""


def find_run(name: str | Path, artifacts_dir: Path = Path("artifacts")) -> Path:
    """The folder of a trained federation.

    Args:
        name: the folder, or its name in ``artifacts_dir``, or as much of the name's beginning as makes it the only one.
        artifacts_dir: parent of the trained federations' folders.

    Raises:
        BadInput: there is none, or there are several.
    """
    for path in (Path(name), artifacts_dir / name):
        if artifacts.is_complete(path):
            return path
    folders = artifacts_dir.glob("*") if os.path.isdir(artifacts_dir) else ()
    known = sorted(path for path in folders if artifacts.is_complete(path))
    found = [path for path in known if str(name) and path.name.startswith(str(name))]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput("RUN", name, f"several begin like this: {', '.join(p.name for p in found[:5])}")
    there = f"there are {', '.join(p.name for p in known[:5])}" if known else "train one first"
    raise BadInput(
        "RUN", name, f"no trained federation is there, nor in --artifacts-dir {artifacts_dir} under this name; {there}"
    )


@dataclass(frozen=True)
class Evaluation:
    """How a model version does.

    Attributes:
        classes: test accuracy in [0, 1] by class name; NaN for a class without test images.
        test: accuracy on all test images.
        f_set: on what is forgotten: test images of forgotten classes and training images of forgotten clients; None if
            nothing is.
        r_set: on the test images of the other classes.
    """

    classes: Mapping[str, float]
    test: float
    f_set: float | None
    r_set: float

    def metrics(self) -> dict[str, float]:
        """By name, for logs and scripts."""
        numbers = {"test_accuracy": self.test, "r_set_accuracy": self.r_set}
        numbers |= {"f_set_accuracy": self.f_set} if self.f_set is not None else {}
        numbers |= {f"class_{c}_accuracy": value for c, value in enumerate(self.classes.values())}
        return {name: value for name, value in numbers.items() if not math.isnan(value)}


class TrainedRun:
    """A trained federation, its model versions and the requests that made them.

    Args:
        folder: ``artifacts/<spec_hash>``, as ``train`` and the tables leave it.
        fabric: device and precision of what is computed; None takes a CPU and the training's precision, a function gets
            that precision.
        data_dir: where the data set lies; only evaluation and methods that work on original data look there.

    Raises:
        BadInput: the folder or its log is damaged.

    Example:
        ``run = TrainedRun(find_run("artifacts/3fa9"))``, ``run.unlearn(UnlearningRequest("class", (9,)))``,
        ``model = run.model()``.
    """

    def __init__(
        self, folder: Path, fabric: Fabric | Callable[[str], Fabric] | None = None, data_dir: Path = Path("data")
    ) -> None:
        self.folder = folder
        trained = artifacts.load(folder, torch.device("cpu"))
        self.fabric = fabric if isinstance(fabric, Fabric) else (fabric or _on_cpu)(trained.precision)
        self.data_dir = data_dir
        self.trained = trained if self.fabric.device.type == "cpu" else artifacts.load(folder, self.fabric.device)
        self.log = read_log(folder)
        if "seed" not in self.trained.spec:
            raise BadInput("RUN", folder, "config.yaml does not say the seed")
        with torch.device("meta"):  # shapes without memory: the spec may be anybody's
            expected = dict(build_model(self.spec, self.info).named_parameters())
        artifacts.check_state(self.trained.state, expected, folder)

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

    @property
    def _updates(self) -> Path:
        """The update history; that of a fine-tuned federation lies with the one that it was made from."""
        base = str(self.trained.spec.get("base", ""))
        return (self.folder.parent / base if re.fullmatch(r"[0-9a-f]+", base) else self.folder) / artifacts.UPDATES

    @cached_property
    def federation(self) -> Federation:
        """The simulated federation."""
        return build_federation(self.spec, self.fabric, self.info)

    def state(self, version: int | None = None) -> State:
        """The parameters of a version; None stands for the current one.

        Raises:
            BadInput: there is no such version, or its file is damaged.
        """
        version = self._version(version)
        if not version:
            return self.trained.state
        path, known = self.file(version), self.trained.state

        def damaged(reason: str) -> BadInput:
            back = f"; --from-version {version - 1} makes a request start before it" if version == self.current else ""
            return BadInput("RUN", self.folder, f"{VERSIONS}/{path.name} {reason}{back}")

        try:
            if file_size(path) > HEADER + sum(value.nbytes for value in known.values()) + 8:
                raise damaged("is larger than the model")
            if sha256(path) != self.log[version - 1].sha256:
                raise damaged(f"does not match {LOG}")
            with open_tensors(path, str(self.fabric.device)) as tensors:
                state: State = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise damaged("is missing or damaged") from error
        if {n: (v.shape, v.dtype) for n, v in state.items()} != {n: (v.shape, v.dtype) for n, v in known.items()}:
            raise damaged("holds another model")
        if not is_finite(state):
            raise damaged("holds values that are not finite")
        return state

    def file(self, version: int) -> Path:
        """Where the parameters of a version from 1 are kept."""
        path, waiting = self.folder / VERSIONS / f"{version:04d}.safetensors", self._waiting(version)
        return waiting if waiting.exists() and not path.exists() else path

    def _waiting(self, version: int) -> Path:
        """Where they are until the log names the version."""
        return self.folder / VERSIONS / f".{version:04d}.new.safetensors"

    def _settle(self) -> None:
        """Give the current version's file its own name; the command that served it may have been killed before."""
        if self.file(self.current) == (waiting := self._waiting(self.current)):
            with suppress(OSError):  # it is found under both
                waiting.replace(self.folder / VERSIONS / f"{self.current:04d}.safetensors")

    def model(self, version: int | None = None) -> nn.Module:
        """A version as a module on the CPU; it takes images normalised with ``info.mean`` and ``info.std``."""
        model = self.federation.scratch_model().cpu().eval()
        model.load_state_dict({name: value.cpu() for name, value in self.state(version).items()})
        return model

    @cached_property
    def data(self) -> ImageData | None:
        """The data set, if it lies in ``data_dir``; nothing is downloaded.

        Raises:
            BadInput: another data set lies there, or there is no data set of this name.
        """
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
    ) -> Evaluation:
        """Accuracies of a version.

        Args:
            version: None for the current one.
            about: what F-Set is about; None takes all that is forgotten.
            forgotten: classes among it are not in R-Set; None takes what the version is not to know.

        Raises:
            BadInput: the data set is not there.
        """
        gone = self.forgotten(version) if forgotten is None else forgotten
        return self._evaluation(self.state(version), gone if about is None else about, gone)

    def _evaluation(
        self, state: State, about: Sequence[UnlearningRequest], gone: Sequence[UnlearningRequest]
    ) -> Evaluation:
        if self.data is None:
            raise BadInput("--data-dir", self.data_dir, f"{self.info.name} is not there, so nothing can be evaluated")
        federation, count = self.federation, len(self.info.class_names)
        federation.load(state)
        on_test = class_accuracy(federation.model, self.data.test, count)
        found = [class_accuracy(federation.model, part, count) for part in self._parts(about)]
        images = sum(sum(part.counts) for part in found)
        correct = sum(line[c] for part in found for c, line in enumerate(part.confusion))
        return Evaluation(
            dict(zip(self.info.class_names, on_test.accuracy, strict=True)),
            on_test.without(()),
            correct / images if images else None,
            on_test.without(forgotten_classes(gone)),
        )

    def _parts(self, requests: Sequence[UnlearningRequest]) -> list[LabelledSet]:
        """Test images of the requests' classes, and training images of their clients."""
        assert self.data is not None
        classes = forgotten_classes(requests)
        owned = [
            forget_part(client.original, i, request)
            for i, client in self._clients().items()
            for request in requests
            if request.level == "client"
        ]
        of_classes = [self.data.test.with_classes(classes, keep=True)] if classes else []
        return [*of_classes, *([pool(*owned)] if owned else [])]

    @property
    def preset(self) -> str | None:
        """Name of the preset that the federation was trained with, if that is known and the preset is here."""
        name = self.trained.spec.get("preset")
        if name is None:
            with suppress(OSError):
                name = read_bytes(self.folder / OLD_PRESET, LONGEST_NAME).decode("utf-8", errors="replace").strip()
        return name if name in presets() else None

    def known_preset(self) -> str:
        """:attr:`preset`, without which nobody knows the settings.

        Raises:
            BadInput: it is not known.
        """
        if self.preset is None:
            allowed = f"{self.folder} does not say with which preset it was trained; use one of {', '.join(presets())}"
            raise BadInput("--preset", "is not given", allowed)
        return self.preset

    def method(self, name: str = "quickdrop", level: str = "class") -> Method:
        """A method with the preset's settings for a level of requests.

        Raises:
            BadInput: there is no such method, or the preset is not known.
        """
        values: dict[str, Any] = {}
        for part in preset_values(self.known_preset(), self.spec.dataset, SECTIONS[level]):
            values |= part.get(name.replace("-", "_"), {})
        return METHODS[name](**values)

    def check(
        self,
        action: str,
        request: UnlearningRequest,
        method: Method,
        absent: Collection[int] = (),
        forgotten: Sequence[UnlearningRequest] | None = None,
    ) -> None:
        """Raise unless a request can be served.

        Args:
            action: ``unlearn`` or ``relearn``.
            request: what to forget, or to learn again.
            method: that is to serve it.
            absent: clients that cannot take part now.
            forgotten: what is forgotten when the request arrives; None takes the current version's.

        Raises:
            BadInput: it cannot; the sentence says why.
        """
        gone = self.forgotten() if forgotten is None else forgotten
        request.check(len(self.info.class_names), self.spec.clients)
        known = {target for r in gone if r.level == request.level for target in r.targets}
        for target in request.targets:
            if (target in known) == (action == "unlearn"):
                state = "forgotten already" if action == "unlearn" else "not forgotten"
                named = request.target_name(target, self.info.class_names)
                raise BadInput(f"--{request.level}", named, f"this is {state}; see the command 'show'")
        name = _name(method)
        available = {"real-subset"}
        available |= {"synthetic-sets"} if self.spec.distill else set()
        available |= {"update-history"} if self._updates.is_dir() else set()
        # Methods with small sets learn again from these, all others from original data.
        needs = method.needs | ({"forget-data"} if action == "relearn" and not method.needs & SMALL_SETS else set())
        if needs & ORIGINALS and self.data is None:
            allowed = f"{name} needs original data, and {self.info.name} is not there; quickdrop does without"
            raise BadInput("--data-dir", self.data_dir, allowed)
        try:
            check_support(name, request, frozenset(available | ORIGINALS))
        except BadInput as error:
            raise BadInput("--method", error.value, error.allowed) from error
        if action == "relearn" and not method.can_relearn:
            raise BadInput("--method", name, "it cannot learn again")
        self._check_present(request, name, needs, absent)

    def _check_present(
        self, request: UnlearningRequest, name: str, needs: Collection[str], absent: Collection[int]
    ) -> None:
        for client in absent:
            if not 0 <= client < self.spec.clients:
                raise BadInput("--absent", client, f"between 0 and {self.spec.clients - 1}")
        if not set(needs) & (SMALL_SETS | {"forget-data"}):
            return
        if request.level == "client" and (gone := sorted(set(request.targets) & set(absent))):
            raise BadInput("--client", gone[0], f"it is absent, and {name} needs its data")
        if request.level == "class":
            holders = {i for i, c in self.trained.clients.items() if self._holds(c, request)}
            if holders and not holders - set(absent):
                named = request.target_name(request.targets[0], self.info.class_names)
                raise BadInput("--class", named, "all clients that hold it are absent")

    def _holds(self, client: artifacts.ClientArtifacts, request: UnlearningRequest) -> bool:
        return bool(len(client.subset.with_classes(request.targets, keep=True)))

    def check_all(
        self,
        action: str,
        requests: Sequence[tuple[UnlearningRequest, Method]],
        absent: Collection[int] = (),
        from_version: int | None = None,
    ) -> None:
        """:meth:`check` for requests that are to be served one after the other, the first from a version."""
        gone = self.forgotten(self._version(from_version, "--from-version"))
        for request, method in requests:
            self.check(action, request, method, absent, gone)
            gone = _after(action, request, gone)

    def plan(
        self,
        action: str,
        requests: Sequence[tuple[UnlearningRequest, Method]],
        absent: Collection[int] = (),
        from_version: int | None = None,
    ) -> list[tuple[UnlearningRequest, list[PlannedPhase]]]:
        """What serving requests one after the other would take at most; nothing is changed.

        Raises:
            BadInput: one of them cannot be served.
        """
        self.check_all(action, requests, absent, from_version)
        counting = CountingFederation(self.fabric, self.model())
        gone, planned = self.forgotten(from_version), []
        for request, method in requests:
            counting.phases = []
            context = replace(self._context(action, request, gone, absent, from_version), federation=counting)
            total = sum((stage.cost for stage in _stages(action, context, method).values()), Cost())
            counted = sum((phase.cost for phase in counting.phases), Cost())
            if more := total.rounds - counted.rounds:  # rounds without local training, as FU-MP's
                cost = replace(
                    Cost(rounds=more),
                    data_size=total.data_size - counted.data_size,
                    sample_gradients=total.sample_gradients - counted.sample_gradients,
                    sample_forwards=total.sample_forwards,
                    upload_bytes=total.upload_bytes - counted.upload_bytes,
                )
                everybody = tuple(i for i, c in context.clients.items() if len(c.original))
                counting.phases.insert(0, PlannedPhase("unlearning", more, everybody, 0, 1.0, cost))
            planned.append((request, counting.phases))
            gone = _after(action, request, gone)
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
        return self._serve("unlearn", request, method, absent, from_version)

    def relearn(
        self,
        request: UnlearningRequest,
        method: Method | None = None,
        absent: Collection[int] = (),
        from_version: int | None = None,
    ) -> Entry:
        """Learn again what was forgotten (§4.7); arguments and errors as for :meth:`unlearn`."""
        return self._serve("relearn", request, method, absent, from_version)

    def _serve(
        self,
        action: str,
        request: UnlearningRequest,
        method: Method | None,
        absent: Collection[int],
        from_version: int | None,
    ) -> Entry:
        method = method or self.method(level=request.level)
        with locked(self.folder):
            self.log = read_log(self.folder)
            self._settle()
            parent = self._version(from_version, "--from-version")
            gone = self.forgotten(parent)
            self.check(action, request, method, absent, gone)
            after = _after(action, request, gone)
            sets = (request,), after if action == "unlearn" else gone
            before = self.evaluate(parent, *sets).metrics() if self.data else None
            stages = _stages(action, self._context(action, request, gone, absent, parent), method)
            # A stage without a round may be the server's own.
            if idle := [stage for stage, r in stages.items() if not (r.cost.rounds or r.cost.seconds or r.diverged)]:
                absence = "; clients that hold them are absent" if absent else ""
                reason = f"no client has data for it{absence}, or the method is a control"
                allowed = f"the stage {idle[0]} changes nothing: {reason}"
                named = request.target_name(request.targets[0], self.info.class_names)
                raise BadInput(f"--{request.level}", named, allowed)
            last = list(stages.values())[-1]
            if last.diverged:
                named = request.named(self.info.class_names)
                raise ArithmeticError(
                    f"{_name(method)} diverged on {named}; version {self.current} stays the current one"
                )
            entry = Entry(
                version=self.current + 1,
                parent=parent,
                action=action,
                request=str(request),
                method=_name(method),
                hyper_parameters=asdict(method),  # type: ignore[call-overload]
                forgotten=tuple(map(str, after)),
                cost=_costs(stages),
                before=before,
                after=None,
                sha256="",
                absent=tuple(sorted(absent)),
                provenance={k: v for k, v in provenance(self.fabric, "").items() if k != "preset"},
                previous=chained_to(self.log),
            )
            waiting = self._waiting(entry.version)
            entry = replace(entry, sha256=_save(waiting, last.state, entry.metadata))
            if self.data:
                entry = replace(entry, after=self._evaluation(last.state, *sets).metrics())
            try:
                write_log(self.folder, [*self.log, entry])
            except OSError as error:
                waiting.unlink(missing_ok=True)
                raise BadInput("RUN", self.folder, f"it cannot be written ({error.strerror})") from error
            self.log.append(entry)
            self._settle()
        return entry

    def _clients(self) -> dict[int, ClientData]:
        """The clients with their original data, or with none where the data set is not there."""
        nowhere = LabelledSet.of(torch.empty(0, *self.info.image_shape), torch.empty(0, dtype=torch.int64))
        data = self.data
        return {
            i: ClientData(
                LabelledSet(data.train.images, data.train.labels, c.rows) if data else nowhere,
                c.subset,
                c.augmentation,
                c.synthetic,
            )
            for i, c in self.trained.clients.items()
        }

    def _context(
        self,
        action: str,
        request: UnlearningRequest,
        gone: Sequence[UnlearningRequest],
        absent: Collection[int],
        version: int | None,
    ) -> Context:
        updates, state = self._updates, self.state(version)
        if updates.parent != self.folder and updates.is_dir():  # that folder was not loaded
            artifacts.check_updates(updates.parent, state, self.info, self.spec.clients)
        forgotten = (*(gone if action == "unlearn" else _after(action, request, gone)), request)
        return Context(
            federation=self.federation,
            training=training_phase(self.spec),
            clients={i: c for i, c in self._clients().items() if i not in absent},
            state=state,
            request=request,
            forgotten=forgotten,
            seed=self.seed,
            history=UpdateHistory(updates, self.fabric.device) if updates.is_dir() else None,
        )

    def _version(self, version: int | None, option: str = "--version") -> int:
        if version is None:
            return self.current
        if not 0 <= version <= self.current:
            raise BadInput(option, version, f"between 0 (as trained) and {self.current}")
        return version


def _stages(action: str, context: Context, method: Method) -> dict[str, StageResult]:
    """A request's stages by name, up to the first that diverges."""
    if action == "relearn":
        return {"relearning": method.relearn(context, context.state)}
    stages = {"unlearning": method.unlearn(context)}
    if not stages["unlearning"].diverged:
        recovered = method.recover(context, stages["unlearning"].state)
        stages |= {"recovery": recovered} if recovered else {}
    return stages


def _costs(stages: Mapping[str, StageResult]) -> dict[str, dict[str, float]]:
    total = sum((stage.cost for stage in stages.values()), Cost())
    return {name: stage.cost.metrics() for name, stage in stages.items()} | {"total": total.metrics()}


def _after(action: str, request: UnlearningRequest, gone: Iterable[UnlearningRequest]) -> tuple[UnlearningRequest, ...]:
    """What is forgotten once a request was served."""
    if action == "unlearn":
        return (*gone, request)
    left: list[UnlearningRequest] = []
    for r in gone:
        targets = tuple(t for t in r.targets if r.level != request.level or t not in request.targets)
        left += [UnlearningRequest(r.level, targets)] if targets else []
    return tuple(left)


def _on_cpu(precision: str) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]


def _name(method: Method) -> str:
    return next(name for name in METHODS if METHODS[name] is type(method))


def _save(path: Path, state: State, metadata: dict[str, str]) -> str:
    """Write a version's parameters, and return the file's checksum.

    Raises:
        BadInput: it cannot be written.
    """
    own: dict[str, Tensor] = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    try:
        remove_unfinished(path.parent)  # the lock says that no writer is at work
        write_atomically(path, lambda temporary: save_file(own, temporary, metadata=metadata))
        return sha256(path)
    except (OSError, SafetensorError) as error:
        raise BadInput("RUN", path.parent.parent, f"it cannot be written ({error})") from error

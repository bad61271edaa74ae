"""What measuring an experiment needs of the machine."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from lightning.fabric import Fabric

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.datasets import load_dataset
from quickdrop_bench.data.labelled import ImageData
from quickdrop_bench.data.requests import Samples, UnlearningRequest
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.ranks import on_first
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.callbacks import EVALUATION, TRAINING, UNLEARNING, RequestInfo
from quickdrop_bench.harness.experiment import ORACLE, ORIGINAL, Experiment, Row
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.harness.fine_tuning import fine_tuned_federation
from quickdrop_bench.harness.judging import Judge
from quickdrop_bench.harness.presets import kept_settings
from quickdrop_bench.harness.provenance import provenance
from quickdrop_bench.harness.request import Deployment
from quickdrop_bench.harness.training import build_federation
from quickdrop_bench.harness.tuning import Tuned, by_the_letter, tune
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.store import states

log = logging.getLogger(__name__)


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
    _oracles: dict[Path, State] = field(default_factory=dict)
    _tuned: dict[str, Tuned] = field(default_factory=dict)

    @cached_property
    def data(self) -> ImageData:
        """The data set on the device."""
        e = self.experiment
        data = load_dataset(e.federation.dataset, e.data_dir, e.federation.image_size).to(self.fabric.device)
        e.federation.check_images(len(data.train))
        for request in e.requests:
            if isinstance(request, UnlearningRequest):
                request.check(len(data.class_names), e.federation.clients, len(data.train))
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
            kept = kept_settings(e.preset, e.federation.dataset)
            trained = fine_tuned_federation(e.federation, self.federation, self.data, seed, at, kept)
            self._deployed[seed] = Deployment(self.federation, e.federation, trained, at(), self.data)
        return self._deployed[seed]

    def held(self, seed: int) -> ImageData:
        """The data set as the clients of the seed's federation hold it, of whom one may have a backdoor."""
        return self.deployment(seed).held or self.data

    def requests(self, seed: int) -> list[UnlearningRequest]:
        """What is to be forgotten on the seed's trained federation, in order.

        Raises:
            BadInput: a client that is to be forgotten holds no data, or not the samples.
        """
        holdings = {i: client.original for i, client in self.deployment(seed).clients.items()}
        found: list[UnlearningRequest] = []
        for asked in self.experiment.requests:
            request = asked.of(holdings, found, seed) if isinstance(asked, Samples) else asked
            for target in request.targets if request.level == "client" else ():
                if not len(holdings[target]):
                    raise BadInput("--client", target, f"on seed {seed} that client holds no data; choose another")
            found.append(request)
        return found

    def context(self, seed: int) -> Context:
        """The first request on the seed's trained federation."""
        e = self.experiment
        context = self.deployment(seed).context(self.requests(seed)[0])
        training = by_the_letter(context.training, e.rules.protocol)
        return replace(context, training=training, patience=e.rules.patience)

    def prepare(self, seed: int) -> Context:
        """:meth:`context`, and the callbacks hear of it."""
        run = self.info(ORIGINAL, seed, kind=TRAINING)
        self.fabric.call("on_run_start", run=run)
        context, deployed = self.context(seed), self.deployment(seed)
        ready = {"context": context, "trained": deployed.trained, "data": self.held(seed), "folder": deployed.folder}
        self.fabric.call("on_federation_ready", run=run, **ready)
        return context

    def oracle_path(self, seed: int, step: int) -> Path:
        """Where the model lies that the oracle made of a request, beside the federation."""
        name = self.experiment.run_spec(ORACLE, seed, step).hash
        return self.folder(seed) / "oracles" / f"{name}.safetensors"

    def has_oracle(self, seed: int) -> bool:
        """Whether the oracle's models of all requests are kept."""
        return all(self.oracle_path(seed, step).exists() for step in range(len(self.experiment.requests)))

    def check_oracle(self, seed: int) -> None:
        """Raise :class:`BadInput` now if one of them is damaged, rather than after a run."""
        for step in range(len(self.experiment.requests)):
            self.oracle(seed, step)

    def keep_oracle(self, seed: int, step: int, state: State) -> None:
        """Keep the oracle's model; where its folder cannot be written, for this command alone."""
        path = self.oracle_path(seed, step)
        try:
            on_first(self.fabric, lambda: states.save(path, state, self.artifacts_dir))
        except BadInput as error:
            log.warning("the retrained model is not kept: %s", error)
            self._oracles[path] = state

    def oracle(self, seed: int, step: int) -> State | None:
        """The oracle's model; None if it is no method of the experiment or was not run.

        Raises:
            BadInput: its file is damaged.
        """
        if ORACLE not in self.experiment.methods:
            return None
        path = self.oracle_path(seed, step)
        if path in self._oracles or not path.exists():
            return self._oracles.get(path)
        return states.load(path, self.deployment(seed).trained.state, self.artifacts_dir)

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

"""Train a federation, or take the one that was trained before."""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from lightning.fabric import Fabric
from torch import nn

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import refuse_links, remove_unfinished, write_atomically, writing
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.backdoor import Planted, plant
from quickdrop_bench.data.groups import random_groups
from quickdrop_bench.data.labelled import DataInfo, ImageData, LabelledSet, concatenate
from quickdrop_bench.data.partition import partition
from quickdrop_bench.distillation.in_situ import (
    Distillation,
    SyntheticSet,
    augmentation_positions,
    initial_synthetic_set,
)
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.federation.history import UpdateRecorder
from quickdrop_bench.federation.phase import Phase, PhaseResult
from quickdrop_bench.federation.ranks import on_first, same
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.harness.provenance import device_name
from quickdrop_bench.store import artifacts
from quickdrop_bench.store.artifacts import ClientArtifacts, TrainedFederation

log = logging.getLogger(__name__)

SAVING_SHARE = 0.02
"""Most of a training's time that goes into its checkpoints: every round has one, unless rounds are very short."""

LOCK = ".training.lock"
"""Name of the lock of a federation in training."""

EVALUATED_ROUNDS = 5
"""Last rounds of a training that are evaluated class by class, outside the clock (Figure 2)."""


def training_phase(spec: FederationSpec) -> Phase:
    """The FL training as a phase."""
    return Phase(
        "fl-training", spec.rounds, spec.local_steps, spec.batch_size, spec.lr, participation=spec.participation
    )


def build_model(spec: FederationSpec, data: ImageData | DataInfo) -> nn.Module:
    """The model of a spec for images of a data set.

    Raises:
        BadInput: the images are not square or too small for the model.
    """
    channels, height, width = data.image_shape
    if height != width:
        raise BadInput("--dataset", spec.dataset, f"square images are needed, these are {height}×{width}")
    return spec.architecture.build(channels, height, len(data.class_names))


def build_federation(spec: FederationSpec, fabric: Fabric, data: ImageData | DataInfo) -> Federation:
    """The model, the constants and the faults of a spec on a Fabric."""
    settings = Distillation(spec.image_steps, spec.image_lr, spec.image_momentum, spec.synthetic_batch_size)
    return Federation(fabric, build_model(spec, data), settings, spec.faults)


def sample_groups(spec: FederationSpec, data: LabelledSet, seed: int, client: int) -> torch.Tensor | None:
    """The group of each of a client's samples within its class; None where every class is one group."""
    stream = generator(seed, "groups", client)
    return random_groups(data.own_labels(), spec.groups, stream) if spec.groups > 1 else None


def client_rows(spec: FederationSpec, labels: torch.Tensor, seed: int) -> list[np.ndarray]:
    """The training images of each client, as rows of the data set."""
    alpha = None if spec.iid else spec.alpha
    return partition(labels.cpu().numpy(), spec.clients, alpha, min_client_size=spec.min_client_size, seed=seed)


def planted(
    spec: FederationSpec, data: ImageData, rows: Sequence[np.ndarray] | Mapping[int, torch.Tensor], seed: int
) -> Planted | None:
    """The backdoor in a federation's data, if a client has one; see :func:`~quickdrop_bench.data.backdoor.plant`.

    Args:
        spec: of the federation.
        data: the data set.
        rows: by client, its training images.
        seed: of the federation.
    """
    backdoor = spec.planned_backdoor
    return plant(backdoor, data, torch.as_tensor(rows[backdoor.client]), seed) if backdoor else None


@dataclass
class Checkpoint:
    """Where a training in progress is kept, for ``fabric.load``.

    Random streams are derived from (seed, round, client), so a checkpoint needs none of their states.
    """

    path: Path
    _not_before: float = -math.inf

    def save_if_due(
        self,
        fabric: Fabric,
        state: State,
        cost: Cost,
        synthetic: Mapping[int, SyntheticSet],
        history: list[dict[str, Any]],
    ) -> None:
        """:meth:`save` in the first process, unless that would take more than :data:`SAVING_SHARE` of the time."""
        began = time.monotonic()
        if fabric.is_global_zero and began >= self._not_before:
            self.save(state, cost, synthetic, history)
            now = time.monotonic()
            self._not_before = now + (now - began) / SAVING_SHARE

    def save(
        self, state: State, cost: Cost, synthetic: Mapping[int, SyntheticSet], history: list[dict[str, Any]]
    ) -> None:
        """Write what was reached, atomically."""
        content = {
            "state": state,
            "cost": asdict(cost),
            "synthetic": {i: {"images": s.images, "velocity": s.velocity} for i, s in synthetic.items()},
            "history": history,
        }
        # Not fabric.save, which waits for processes that write nothing, and whose file lies elsewhere at first.
        saved = io.BytesIO()
        torch.save(content, saved)
        with writing("--artifacts-dir", self.path.parent.parent):
            write_atomically(self.path, lambda temporary: temporary.write_bytes(saved.getbuffer()))

    def load(
        self, fabric: Fabric, synthetic: Mapping[int, SyntheticSet]
    ) -> tuple[PhaseResult, list[dict[str, Any]]] | None:
        """What was saved last; fills in the synthetic sets. None without a readable checkpoint.

        Raises:
            BadInput: of several processes not all find the same.
        """
        found = self._load(fabric, synthetic)
        if not same(fabric, found and (found[0].cost.rounds, found[1])):
            allowed = (
                f"not all processes can read the same {self.path.name}; a folder that all machines share is needed"
            )
            raise BadInput("--artifacts-dir", self.path.parent, allowed)
        return found

    def _load(
        self, fabric: Fabric, synthetic: Mapping[int, SyntheticSet]
    ) -> tuple[PhaseResult, list[dict[str, Any]]] | None:
        if not self.path.is_file():
            return None
        try:
            content = fabric.load(self.path, weights_only=True)
            saved, history = content["synthetic"], content["history"]
            state = {name: value.to(fabric.device) for name, value in content["state"].items()}
            result = PhaseResult(state, Cost(**content["cost"]))
            shapes = {i: (s.images.shape, s.velocity.shape) for i, s in synthetic.items()}
            if {i: (s["images"].shape, s["velocity"].shape) for i, s in saved.items()} != shapes:
                raise ValueError("it is of other synthetic sets")
        except Exception as error:  # whatever the decoder makes of a damaged file
            log.warning("%s cannot be used (%s); this starts anew", self.path, type(error).__name__)
            return None
        for i, own in synthetic.items():
            own.images.copy_(saved[i]["images"])
            own.velocity.copy_(saved[i]["velocity"])
        return result, history


def train_federation(
    spec: FederationSpec, federation: Federation, data: ImageData, seed: int, folder: Path, settings: Mapping[str, Any]
) -> TrainedFederation:
    """Train with in-situ distillation (Algorithm 2) and save the artifacts, or load them if they are there.

    A training that was interrupted goes on from its last checkpoint. While another process trains the same federation,
    this waits, and takes what it trained.

    Args:
        spec: the federation.
        federation: built from the same spec, on the device of the data.
        data: the data set.
        seed: fixes partition, initialisation, batches and synthetic sets.
        folder: ``<artifacts-dir>/<spec_hash>``.
        settings: kept with a new one, for requests on it; see :func:`~quickdrop_bench.harness.presets.kept_settings`.

    Returns:
        The trained federation; its history has the columns ``round, loss, matching_distance, participants``,
        accumulated ``seconds, distillation_seconds``, where clients may fail ``dropped, late, rejected`` (how many did
        in the round) and, in the last :data:`EVALUATED_ROUNDS` rounds, test accuracy by class,
        ``class_<c>_accuracy``.

    Raises:
        BadInput: the partition is impossible, or the folder cannot be written, is damaged, or holds another federation.
        ArithmeticError: training diverged.
    """
    fabric = federation.fabric
    if not on_first(fabric, lambda: artifacts.is_complete(folder)):
        parts = client_rows(spec, data.train.labels, seed)
        if backdoor := planted(spec, data, parts, seed):
            data = backdoor.data
        with alone_in(folder, fabric):
            if not on_first(fabric, lambda: artifacts.is_complete(folder)):
                return train_on(spec, federation, data, seed, folder, settings, parts)
    return load_trained(spec, federation, data, seed, folder)


def train_on(
    spec: FederationSpec,
    federation: Federation,
    data: ImageData,
    seed: int,
    folder: Path,
    settings: Mapping[str, Any],
    parts: Sequence[np.ndarray],
) -> TrainedFederation:
    """What :func:`train_federation` does, in a folder that nobody else uses; ``parts`` are each client's rows."""
    fabric = federation.fabric
    on_first(fabric, lambda: remove_unfinished(folder))  # whoever wrote here was killed: this one is alone
    rows = {i: torch.from_numpy(part).to(fabric.device) for i, part in enumerate(parts)}
    clients = {i: LabelledSet(data.train.images, data.train.labels, r) for i, r in rows.items()}
    starts = {
        i: initial_synthetic_set(d, spec.scale, generator(seed, "synthetic", i), sample_groups(spec, d, seed, i))
        for i, d in clients.items()
    }
    synthetic = {i: replace(s, images=s.images.clone()) for i, s in starts.items()} if spec.distill else {}
    recorder = UpdateRecorder(folder / artifacts.UPDATES, spec.rounds, spec.record_every) if spec.record_every else None
    checkpoint = Checkpoint(folder / "training.ckpt")
    resumed = checkpoint.load(fabric, synthetic)
    initial: State = federation.fresh_state(seed, "init")
    start, history = resumed or (None, [])

    def on_round(info: RoundInfo) -> None:
        history.append(_history_line(spec, federation, data, info))
        checkpoint.save_if_due(fabric, info.state, info.cost, synthetic, history)

    phase = training_phase(spec)
    with writing("--artifacts-dir", folder.parent):  # updates
        result = federation.run(
            initial, clients, phase, seed, synthetic=synthetic, start=start, on_round=on_round, record=recorder
        )
    if result.diverged:
        raise ArithmeticError(
            f"FL training diverged in round {result.cost.rounds}: a client's weights are not finite; "
            f"lower --lr {spec.lr:g}"
        )
    kept = {
        i: _client_artifacts(rows[i], d, starts[i], synthetic.get(i), generator(seed, "augmentation", i))
        for i, d in clients.items()
    }
    trained = TrainedFederation(
        state=result.state,
        clients=kept,
        history=pd.DataFrame(history),
        cost=result.cost,
        spec={**spec.resolved(), "seed": seed, **settings},
        device=device_name(fabric.device, fabric.world_size),
        data=data.info,
        precision=fabric.strategy.precision.precision,
    )
    on_first(fabric, lambda: save_finished(trained, folder, checkpoint))
    return trained


def save_finished(trained: TrainedFederation, folder: Path, checkpoint: Checkpoint) -> None:
    """Save a trained federation, in the place of its checkpoint."""
    artifacts.save(trained, folder)
    checkpoint.path.unlink(missing_ok=True)


def _history_line(spec: FederationSpec, federation: Federation, data: ImageData, info: RoundInfo) -> dict[str, Any]:
    line: dict[str, Any] = {
        "round": info.round + 1,
        "loss": info.loss,
        "matching_distance": info.matching_distance,
        "participants": len(info.participants),
        "seconds": info.cost.seconds,
        "distillation_seconds": info.cost.distillation_seconds,
    }
    if spec.faults.possible:
        line |= {"dropped": len(info.dropped), "late": len(info.late), "rejected": len(info.rejected)}
    if info.round >= spec.rounds - EVALUATED_ROUNDS:
        federation.load(info.state)
        line |= class_accuracy(federation.model, data.test, len(data.class_names)).metrics()
    return line


def _client_artifacts(
    rows: torch.Tensor,
    data: LabelledSet,
    start: SyntheticSet,
    synthetic: SyntheticSet | None,
    stream: torch.Generator,
) -> ClientArtifacts:
    extra = data.subset(augmentation_positions(data, start, stream))
    return ClientArtifacts(rows, start.as_labelled(), start.origin, concatenate(extra), extra.rows, synthetic)


@contextmanager
def alone_in(folder: Path, fabric: Fabric) -> Iterator[None]:
    """Let nobody else train in this folder meanwhile; the lock goes when its holder ends, however that may be.

    Of several processes that train together, the first has the lock and the others wait for it. :class:`BadInput` if
    the folder cannot be written or holds a symbolic link, which is better known now than after hours.
    """
    lock = FileLock(folder / LOCK)

    def acquire() -> None:
        refuse_links(folder, folder.parent, "--artifacts-dir")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning("another process trains %s; this one waits for it", folder)
                lock.acquire()
        except OSError as error:
            raise BadInput("--artifacts-dir", folder.parent, f"it cannot be written ({error.strerror})") from error

    on_first(fabric, acquire)
    try:
        yield
    finally:
        lock.release()


def load_trained(
    spec: FederationSpec, federation: Federation, data: ImageData, seed: int, folder: Path
) -> TrainedFederation:
    """:func:`quickdrop_bench.store.artifacts.load`; :class:`BadInput` unless this is the federation asked for."""
    trained = artifacts.load(folder, federation.fabric.device)
    own, asked = dict(trained.spec), {**spec.resolved(), "seed": seed}
    for name in asked:
        if own.get(name) != asked[name]:
            difference = f"{name} {own.get(name)} instead of {asked[name]}"
            raise BadInput("--artifacts-dir", folder, f"it holds another federation ({difference}); move it away")
    if replace(trained.data, name=data.name) != data.info:
        raise BadInput("--artifacts-dir", folder, "it was trained on other data; move it away")
    trained = artifacts.of_model(trained, federation.read(), folder)
    with suppress(OSError, BadInput):  # the folder may be read-only, or a link
        refuse_links(folder, folder.parent, "--artifacts-dir")
        for checkpoint in folder.glob("*.ckpt"):
            checkpoint.unlink(missing_ok=True)  # of a training that was killed once all else was done
    return trained

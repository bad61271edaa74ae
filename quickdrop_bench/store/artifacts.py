"""A trained federation on disk: safetensors, CSV and YAML, with a manifest written last.

Layout of ``<artifacts-dir>/<spec_hash>/``: ``global.safetensors`` (parameters by name), ``clients/NNNN.safetensors``
(what that client keeps: partition rows, synthetic images and labels, the real images they started from, augmentation
samples), ``updates/`` (the server's update history, if kept), ``history.csv`` (one line per round), ``config.yaml``
(the resolved spec), ``manifest.json`` (each file's size and SHA-256).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from quickdrop_bench import __version__
from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import (
    damaged,
    file_size,
    open_tensors,
    read_bytes,
    remove,
    sha256,
    write_text,
    writing,
)
from quickdrop_bench.data.labelled import DataInfo, LabelledSet
from quickdrop_bench.distillation.in_situ import SyntheticSet
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.store.schema import (
    FORMAT,
    LARGEST,
    Damage,
    Header,
    Layout,
    Listed,
    Manifest,
    OtherFormat,
    check_layout,
    client_layout,
    parse_history,
    parse_manifest,
    parse_spec,
)
from quickdrop_bench.store.states import write_tensors

GLOBAL, HISTORY, CONFIG, MANIFEST = "global.safetensors", "history.csv", "config.yaml", "manifest.json"

PUBLIC = (GLOBAL, HISTORY, CONFIG, MANIFEST)
"""Files without any client's data."""

CLIENTS = "clients"
"""Folder of what clients keep to themselves, original images among it."""

VISIBLE = 2.0
"""Shades of 255 by which a synthetic image differs somewhere from what it began as, to count as another one."""

UPDATES = "updates"
"""Folder of the update history, written while the federation trains."""

SYNTHETIC = ("images", "labels", "origin", "velocity")
"""Tensors of a synthetic set, by the names of its fields."""

MISREAD = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a file of another content than expected raises."""


@dataclass(frozen=True)
class ClientArtifacts:
    """What one client keeps after training.

    Attributes:
        rows: (n,) int64, its training images as rows of the data set.
        subset: the ⌈n/s⌉ real images per class that S_i starts from.
        subset_rows: (m,) int64, where they come from.
        augmentation: A_i, real images mixed 1:1 into recovery.
        augmentation_rows: (m,) int64, where A_i comes from.
        synthetic: S_i, or None if the federation trained without distillation.
    """

    rows: Tensor
    subset: LabelledSet
    subset_rows: Tensor
    augmentation: LabelledSet
    augmentation_rows: Tensor
    synthetic: SyntheticSet | None = None


@dataclass(frozen=True)
class TrainedFederation:
    """The result of FL training.

    Attributes:
        state: θ_K.
        clients: by id.
        history: one row per round; see :func:`quickdrop_bench.harness.training.train_federation`.
        cost: of the training, distillation included.
        spec: the resolved federation spec, for people.
        device: on which it was trained, in words; its seconds belong to that device.
        data: what it was trained on.
        precision: Fabric's, in which it was trained.
        fine_tuning: cost of fine-tuning the synthetic sets, on top of ``cost``.
        fine_tuning_gradients: mini-batch gradients on original data in it, summed over clients.
    """

    state: State
    clients: Mapping[int, ClientArtifacts]
    history: pd.DataFrame
    cost: Cost
    spec: Mapping[str, Any]
    device: str
    data: DataInfo
    precision: str
    fine_tuning: Cost = field(default_factory=Cost)
    fine_tuning_gradients: int = 0


def is_complete(folder: Path) -> bool:
    """Whether a federation was saved there to the end; :func:`load` says whether it is whole."""
    return os.path.lexists(folder / MANIFEST)


def save(trained: TrainedFederation, folder: Path) -> None:
    """Write a federation; the manifest comes last, so that a half-written one is never read.

    Raises:
        BadInput: the folder cannot be written; :class:`ArithmeticError`: synthetic images are not finite.
    """
    _check_synthetic(trained)
    with writing("--artifacts-dir", folder.parent):
        (folder / MANIFEST).unlink(missing_ok=True)
        remove(folder / CLIENTS)
        write_tensors(folder / GLOBAL, trained.state)
        for client, kept in trained.clients.items():
            write_tensors(folder / CLIENTS / f"{client:04d}.safetensors", _client_tensors(kept))
        write_text(folder / HISTORY, trained.history.to_csv(index=False))
        write_text(folder / CONFIG, yaml.safe_dump(dict(trained.spec), sort_keys=False))
        names = [GLOBAL, HISTORY, CONFIG, *(f"{CLIENTS}/{client:04d}.safetensors" for client in trained.clients)]
        names += _updates_on_disk(folder)
        manifest = Manifest(
            FORMAT,
            f"quickdrop-bench {__version__}",
            trained.device,
            trained.precision,
            trained.data,
            trained.cost,
            trained.fine_tuning,
            trained.fine_tuning_gradients,
            {name: Listed(file_size(folder / name), sha256(folder / name)) for name in names},
        )
        write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))


def load(folder: Path, device: torch.device) -> TrainedFederation:
    """Read a federation and put its tensors on a device. Nothing is unpickled.

    Sizes are compared with the manifest before anything is read, then checksums, names, types and shapes. Whether the
    parameters suit a model is for :func:`of_model`.

    Raises:
        BadInput: a file is missing, or does not match the manifest; the file is named.
    """
    manifest = _read_manifest(folder)
    _check_files(folder, manifest.files)
    with _blamed(folder, GLOBAL):
        if any(dtype != "F32" for dtype, _ in _header(folder, GLOBAL).values()):
            raise Damage("it holds what is no parameter")
        state = load_file(folder / GLOBAL, device=str(device))
    clients = _load_clients(folder, manifest, device)
    check_updates(folder, state)
    with _blamed(folder, HISTORY):
        history = parse_history(read_bytes(folder / HISTORY, LARGEST))
    with _blamed(folder, CONFIG):
        spec = parse_spec(read_bytes(folder / CONFIG, LARGEST), len(clients))
    kept = {field.name: getattr(manifest, field.name) for field in fields(Manifest)}
    described = {name: value for name, value in kept.items() if name not in ("format", "written_by", "files")}
    return TrainedFederation(state=state, clients=clients, history=history, spec=spec, **described)


def of_model(trained: TrainedFederation, expected: Mapping[str, Tensor], folder: Path) -> TrainedFederation:
    """The same with its parameters in the order of a model's, as in training; files have them by name.

    Raises:
        BadInput: they have not the names and shapes of the model's.
    """
    state = trained.state
    if unlike := sorted(state.keys() ^ expected.keys()):
        verb = "lacks" if unlike[0] in expected else "holds the unknown"
        raise damaged(folder, GLOBAL, f"it {verb} parameter {unlike[0][:100]!r}")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            own, other = ("×".join(map(str, v.shape)) for v in (state[name], value))
            raise damaged(folder, GLOBAL, f"{name} is {own}, and the model has {other}")
    return replace(trained, state={name: state[name] for name in expected})


def save_synthetic(trained: TrainedFederation, folder: Path) -> list[Path]:
    """Write the distilled images and their labels alone, without those that still look like what a client holds.

    Returns:
        The files written: ``NNNN.safetensors`` (``images``, ``labels``) for every client that has any.
    """
    written = []
    for client, kept in sorted(trained.clients.items()):
        if kept.synthetic is None:
            continue
        s = kept.synthetic
        changed = visibly_changed(s.images, kept.subset.images, trained.data.std)
        if changed.any():
            written.append(folder / f"{client:04d}.safetensors")
            write_tensors(written[-1], {"images": s.images[changed], "labels": s.labels[changed]})
    return written


def visibly_changed(images: Tensor, began: Tensor, std: Sequence[float]) -> Tensor:
    """Which synthetic images no longer look like the real ones that they began as.

    Args:
        images: (n, C, H, W), normalised by ``std``.
        began: the real ones, likewise.
        std: of the channels, for pixels in [0, 1].

    Returns:
        (n,) bool: whether a pixel differs by :data:`VISIBLE` shades.
    """
    shades = 255 * torch.tensor(std, device=images.device).view(1, -1, 1, 1)
    return (shades * (images - began)).abs().flatten(1).amax(1) >= VISIBLE


@contextmanager
def _blamed(folder: Path, name: str) -> Iterator[None]:
    """Whatever goes wrong in the block is said of this file."""
    try:
        yield
    except BadInput:
        raise
    except OtherFormat as error:
        allowed = f"{name}: {error}; use that version, or move the folder away to train again"
        raise BadInput("--artifacts-dir", folder, allowed) from error
    except (OSError, SafetensorError, yaml.YAMLError, *MISREAD) as error:
        reason = str(error) if isinstance(error, Damage) else getattr(error, "strerror", None)
        raise damaged(folder, name, reason or type(error).__name__) from error


def _read_manifest(folder: Path) -> Manifest:
    with _blamed(folder, MANIFEST):
        return parse_manifest(read_bytes(_inside(folder, MANIFEST), LARGEST))


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder, links followed as long as they stay inside."""
    path = Path(os.path.realpath(folder / name))
    if not path.is_relative_to(os.path.realpath(folder)):
        raise Damage("it lies outside the folder")
    return path


def _check_files(folder: Path, files: Mapping[str, Listed]) -> None:
    """All sizes first: a checksum takes time."""
    for name, listed in files.items():
        with _blamed(folder, name):
            size = file_size(_inside(folder, name))
            if size != listed.bytes:
                raise Damage(f"it has {size} bytes instead of {listed.bytes}")
    for name, listed in files.items():
        with _blamed(folder, name):
            if sha256(folder / name) != listed.sha256:
                raise Damage("its checksum is another")
    # What reads the update history looks into the folder, not into the manifest.
    if extra := [name for name in _updates_on_disk(folder) if name not in files]:
        raise damaged(folder, UPDATES, f"{len(extra)} of its files are not in {MANIFEST}")


def _header(folder: Path, name: str) -> Header:
    """Type and shape of a safetensors file's tensors by name, without reading any."""
    with open_tensors(folder / name) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
        return {key: (part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}


def _load_clients(folder: Path, manifest: Manifest, device: torch.device) -> dict[int, ClientArtifacts]:
    """All clients by id, in order."""
    names = {int(Path(name).stem): name for name in manifest.files if name.startswith(f"{CLIENTS}/")}
    clients = {}
    for client, name in sorted(names.items()):
        with _blamed(folder, name):
            header = _header(folder, name)
            check_layout(header, client_layout(manifest.data, synthetic="synthetic_images" in header))
            clients[client] = _client_from(load_file(folder / name, device=str(device)))
    with _blamed(folder, CLIENTS):
        if list(clients) != list(range(len(clients))):
            raise Damage("a client is missing")
    return clients


def check_updates(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Raise :class:`BadInput` unless a folder's update history suits a model, by its headers: all of it takes long."""
    on_disk = _updates_on_disk(folder)
    if {*on_disk} != {name for name in _read_manifest(folder).files if name.startswith(f"{UPDATES}/")}:
        raise damaged(folder, UPDATES, f"its files are not those in {MANIFEST}")
    parameters: Layout = {name: ("F32", tuple(value.shape)) for name, value in state.items()}
    for name in on_disk:
        with _blamed(folder, name):
            _ = _inside(folder, name)
            counted = Path(name).stem != "initial"
            check_layout(_header(folder, name), {**parameters, "num_examples": ("I64", ())} if counted else parameters)


def _updates_on_disk(folder: Path) -> list[str]:
    # Hidden files are what a killed writer left.
    paths = [*(folder / UPDATES).glob("initial.safetensors"), *(folder / UPDATES).glob("[0-9]*/[0-9]*.safetensors")]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _check_synthetic(trained: TrainedFederation) -> None:
    for client, kept in trained.clients.items():
        own = (kept.synthetic.images, kept.synthetic.velocity) if kept.synthetic else ()
        if not all(value.isfinite().all() for value in own):
            what = f"distillation diverged: synthetic images of client {client} are not finite"
            raise ArithmeticError(f"{what}; lower --image-lr {trained.spec.get('image_lr', '')}")


def _client_tensors(kept: ClientArtifacts) -> dict[str, Tensor]:
    tensors = {"rows": kept.rows}
    for name, data, rows in (
        ("subset", kept.subset, kept.subset_rows),
        ("augmentation", kept.augmentation, kept.augmentation_rows),
    ):
        tensors |= {f"{name}_images": data.images, f"{name}_labels": data.labels, f"{name}_rows": rows}
    if (s := kept.synthetic) is not None:
        own = {name: getattr(s, name) for name in SYNTHETIC}
        own["fixed_classes"] = torch.tensor(sorted(s.fixed_classes), dtype=torch.int64)
        tensors |= {f"synthetic_{name}": value for name, value in own.items()}
    return tensors


def _client_from(tensors: Mapping[str, Tensor]) -> ClientArtifacts:
    synthetic = None
    if "synthetic_images" in tensors:
        images, labels, origin, velocity = (tensors[f"synthetic_{name}"] for name in SYNTHETIC)
        fixed = frozenset(tensors["synthetic_fixed_classes"].tolist())
        synthetic = SyntheticSet(images, labels, origin, velocity, fixed)
    return ClientArtifacts(
        rows=tensors["rows"],
        subset=LabelledSet.of(tensors["subset_images"], tensors["subset_labels"], tensors["subset_rows"]),
        subset_rows=tensors["subset_rows"],
        augmentation=LabelledSet.of(
            tensors["augmentation_images"], tensors["augmentation_labels"], tensors["augmentation_rows"]
        ),
        augmentation_rows=tensors["augmentation_rows"],
        synthetic=synthetic,
    )

"""A trained federation on disk: safetensors, CSV and YAML, with a manifest written last.

Layout of ``<artifacts-dir>/<spec_hash>/``: ``global.safetensors`` (parameters by name), ``clients/NNNN.safetensors``
(what that client keeps: partition rows, synthetic images and labels, the real images they started from, augmentation
samples), ``updates/`` (the server's update history, if kept), ``history.csv`` (one line per round), ``config.yaml``
(the resolved spec), ``manifest.json`` (each file's size and SHA-256).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quickdrop_bench.cost import Cost
from quickdrop_bench.data.labelled import DataInfo, LabelledSet
from quickdrop_bench.distillation.in_situ import SyntheticSet
from quickdrop_bench.errors import BadInput
from quickdrop_bench.files import write_atomically, write_text
from quickdrop_bench.functional.aggregation import State

__all__ = [
    "CLIENTS",
    "PUBLIC",
    "UPDATES",
    "ClientArtifacts",
    "TrainedFederation",
    "is_complete",
    "load",
    "save",
    "save_synthetic",
]

FORMAT = 4
PUBLIC = ("global.safetensors", "history.csv", "config.yaml", "manifest.json")
"""Files without any client's data."""

CLIENTS = "clients"
"""Folder of what clients keep to themselves, original images among it."""

UPDATES = "updates"
"""Folder of the update history, written while the federation trains."""


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
    """Whether a federation was saved there to the end."""
    return (folder / "manifest.json").is_file()


def save(trained: TrainedFederation, folder: Path) -> None:
    """Write a federation; the manifest comes last, so that a half-written one is never read.

    Raises:
        BadInput: the folder cannot be written.
    """
    try:
        (folder / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(folder / CLIENTS, ignore_errors=True)
        _save_tensors(folder / "global.safetensors", trained.state)
        for client, kept in trained.clients.items():
            _save_tensors(folder / CLIENTS / f"{client:04d}.safetensors", _client_tensors(kept))
        write_text(folder / "history.csv", trained.history.to_csv(index=False))
        write_text(folder / "config.yaml", yaml.safe_dump(dict(trained.spec), sort_keys=False))
        names = ["global.safetensors", "history.csv", "config.yaml"]
        names += [f"{CLIENTS}/{client:04d}.safetensors" for client in trained.clients]
        # Hidden files are what a killed writer left.
        updates = sorted(p for p in (folder / UPDATES).rglob("*.safetensors") if not p.name.startswith("."))
        names += [path.relative_to(folder).as_posix() for path in updates]
        files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}
        manifest = {
            "format": FORMAT,
            "device": trained.device,
            "precision": trained.precision,
            "data": asdict(trained.data),
            "cost": asdict(trained.cost),
            "fine_tuning": asdict(trained.fine_tuning),
            "fine_tuning_gradients": trained.fine_tuning_gradients,
            "files": files,
        }
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
    except OSError as error:
        raise BadInput("--artifacts-dir", folder.parent, f"it cannot be written ({error.strerror})") from error


def load(folder: Path, device: torch.device) -> TrainedFederation:
    """Read a federation and put its tensors on a device. Nothing is unpickled.

    Raises:
        BadInput: a file is missing or does not match the manifest; the file is named.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise _damaged(folder, f"manifest.json has format {manifest['format']}, not {FORMAT}, or")
        for name, entry in manifest["files"].items():
            if _sha256(_inside(folder, name)) != entry["sha256"]:
                raise _damaged(folder, name)
        state = load_file(folder / "global.safetensors", device=str(device))
        paths = sorted(name for name in manifest["files"] if name.startswith(f"{CLIENTS}/"))
        clients = {
            int(Path(name).stem): _client_from(load_file(folder / name, device=str(device)), device) for name in paths
        }
        history = pd.read_csv(folder / "history.csv")
        spec = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return TrainedFederation(
            state,
            clients,
            history,
            Cost(**manifest["cost"]),
            spec,
            str(manifest["device"]),
            _data_info(manifest["data"]),
            str(manifest["precision"]),
            Cost(**manifest["fine_tuning"]),
            int(manifest["fine_tuning_gradients"]),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BadInput):
            raise
        raise _damaged(folder, getattr(error, "filename", None) or "manifest.json") from error


def _data_info(values: Mapping[str, Any]) -> DataInfo:
    channels, height, width = map(int, values["image_shape"])
    names, (mean, std) = tuple(map(str, values["class_names"])), (tuple(map(float, values[k])) for k in ("mean", "std"))
    sizes = (int(values[f"{split}_images"]) for split in ("train", "test"))
    return DataInfo(str(values["name"]), (channels, height, width), names, mean, std, *sizes)


def save_synthetic(trained: TrainedFederation, folder: Path) -> list[Path]:
    """Write the distilled images and their labels alone, without those that still are what a client holds.

    Args:
        trained: the federation.
        folder: gets one ``NNNN.safetensors`` (``images``, ``labels``) for every client that has any.

    Returns:
        The files written.
    """
    written = []
    for client, kept in sorted(trained.clients.items()):
        if kept.synthetic is None:
            continue
        s = kept.synthetic
        changed = (s.images != kept.subset.images).flatten(1).any(1)
        if changed.any():
            written.append(folder / f"{client:04d}.safetensors")
            _save_tensors(written[-1], {"images": s.images[changed], "labels": s.labels[changed]})
    return written


def _damaged(folder: Path, name: str) -> BadInput:
    return BadInput("--artifacts-dir", folder, f"{name} is missing or damaged; delete this folder to train again")


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise _damaged(folder, name)
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Cloned because safetensors refuses tensors that share memory, as views of one index do.
    own = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    write_atomically(path, lambda temporary: save_file(own, temporary))


def _client_tensors(kept: ClientArtifacts) -> dict[str, Tensor]:
    tensors = {
        "rows": kept.rows,
        "subset_images": kept.subset.images,
        "subset_labels": kept.subset.labels,
        "subset_rows": kept.subset_rows,
        "augmentation_images": kept.augmentation.images,
        "augmentation_labels": kept.augmentation.labels,
        "augmentation_rows": kept.augmentation_rows,
    }
    if kept.synthetic is not None:
        s = kept.synthetic
        tensors |= {
            "synthetic_images": s.images,
            "synthetic_labels": s.labels,
            "synthetic_origin": s.origin,
            "synthetic_velocity": s.velocity,
            "synthetic_fixed_classes": torch.tensor(sorted(s.fixed_classes), dtype=torch.int64),
        }
    return tensors


def _client_from(tensors: dict[str, Tensor], device: torch.device) -> ClientArtifacts:
    synthetic = None
    if "synthetic_images" in tensors:
        synthetic = SyntheticSet(
            tensors["synthetic_images"],
            tensors["synthetic_labels"],
            tensors["synthetic_origin"],
            tensors["synthetic_velocity"],
            frozenset(tensors["synthetic_fixed_classes"].tolist()),
        )
    return ClientArtifacts(
        rows=tensors["rows"],
        subset=LabelledSet.of(tensors["subset_images"], tensors["subset_labels"]),
        subset_rows=tensors["subset_rows"],
        augmentation=LabelledSet.of(tensors["augmentation_images"], tensors["augmentation_labels"]),
        augmentation_rows=tensors["augmentation_rows"],
        synthetic=synthetic,
    )

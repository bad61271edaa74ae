"""What a file of a trained federation may hold: content in, values out, and :class:`Damage` for anything else.

Whoever can write into an artifacts folder can also write a manifest that fits, so checksums prove nothing here: every
value that later code relies on is compared with what is known of the data, and nothing is read that is larger than a
training could have made it.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import torch
import yaml
from torch import Tensor

from quickdrop_bench.cost import Cost
from quickdrop_bench.data.labelled import DataInfo
from quickdrop_bench.files import HEADER

__all__ = [
    "LARGEST",
    "MOST_IMAGES",
    "Damage",
    "Header",
    "Layout",
    "Listed",
    "Manifest",
    "check_client",
    "check_finite",
    "check_layout",
    "check_parameters",
    "check_partition",
    "check_sizes",
    "client_layout",
    "parse_history",
    "parse_manifest",
    "parse_spec",
]

LARGEST = {"manifest.json": 2**24, "history.csv": 2**24, "config.yaml": 2**14}
"""Bytes of a text file that are still read."""

LARGEST_MODEL = 2**32
"""Bytes of a file with parameters, or with one client's update of them."""

LARGEST_CLIENTS = 2**36
"""Bytes of all clients' files together."""

MOST_IMAGES, MOST_CLASSES, MOST_CHANNELS, LARGEST_SIDE = 2**26, 10_000, 64, 4096
MOST_DIMENSIONS = 8
MOST_SETTINGS = 200
LONGEST_TEXT = 1000

NUMBER = r"(?:[0-9]{4}|[1-9][0-9]{4,8})"
NAMES = re.compile(
    rf"global\.safetensors|history\.csv|config\.yaml|clients/{NUMBER}\.safetensors"
    rf"|updates/initial\.safetensors|updates/{NUMBER}/{NUMBER}\.safetensors"
)
"""Files that a manifest may list."""

CHECKSUM = re.compile(r"[0-9a-f]{64}")

HISTORY = ("round", "loss", "matching_distance", "participants", "seconds", "distillation_seconds")
"""Columns of every history; failures and accuracies by class may follow."""

MEASURED = ("loss", "matching_distance")
"""Columns that may be infinite or no number."""

FAILURES = ("dropped", "late", "rejected")
"""Columns with how many clients failed in a round."""

ADDED = {"dropouts", "stragglers", "rejected_updates", "cpu_seconds", "waiting_seconds"}
"""Counters that the costs of older trainings lack; they are zero."""

Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""By name of a tensor in a file: its type as safetensors calls it, and its shape."""

Layout = Mapping[str, tuple[str, tuple[int | str, ...]]]
"""What a header is to be; sizes with one name are equal."""


class Damage(ValueError):
    """What is wrong with a file, in a few words for a sentence in parentheses."""


@dataclass(frozen=True)
class Listed:
    """What a manifest says of a file: its size in bytes and its checksum."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest's content, by the names of :class:`~quickdrop_bench.artifacts.TrainedFederation`; files by name."""

    device: str
    precision: str
    data: DataInfo
    cost: Cost
    fine_tuning: Cost
    fine_tuning_gradients: int
    files: Mapping[str, Listed]


def parse_manifest(content: bytes, version: int) -> Manifest:
    """A manifest of a format version.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: it is none, or it holds what no training writes.
    """
    values = json.loads(content)
    if not isinstance(values, dict):
        raise Damage("it is no manifest")
    if _whole(values["format"], "its format") != version:
        raise Damage(f"it has format {values['format']}, and this program reads {version}")
    return Manifest(
        _text(values["device"], "device"),
        _text(values["precision"], "precision"),
        _data_info(values["data"]),
        _cost(values["cost"]),
        _cost(values["fine_tuning"]),
        _whole(values["fine_tuning_gradients"], "fine_tuning_gradients"),
        _files(values["files"]),
    )


def _files(values: Mapping[str, Any]) -> dict[str, Listed]:
    if not all(NAMES.fullmatch(name) for name in values):
        raise Damage("it lists a file that belongs to no federation")
    if missing := {"global.safetensors", "history.csv", "config.yaml"} - values.keys():
        raise Damage(f"it does not list {min(missing)}")
    files = {name: Listed(_whole(e["bytes"], "bytes"), _text(e["sha256"], "sha256")) for name, e in values.items()}
    if not all(CHECKSUM.fullmatch(listed.sha256) for listed in files.values()):
        raise Damage("a checksum in it is none")
    return files


def _data_info(values: Mapping[str, Any]) -> DataInfo:
    channels, height, width = (_whole(v, "image_shape", 1, LARGEST_SIDE) for v in values["image_shape"])
    names = tuple(_text(name, "a class name") for name in values["class_names"])
    if not 1 <= len(names) <= MOST_CLASSES or len(set(names)) < len(names) or channels > MOST_CHANNELS:
        raise Damage("its data have impossible classes or channels")
    mean, std = (tuple(_real(v, key) for v in values[key]) for key in ("mean", "std"))
    if not len(mean) == len(std) in (0, channels) or not all(v > 0 for v in std):
        raise Damage("its data have an impossible normalisation")
    train, test = (_whole(values[f"{split}_images"], f"{split}_images", 0, MOST_IMAGES) for split in ("train", "test"))
    return DataInfo(_text(values["name"], "name"), (channels, height, width), names, mean, std, train, test)


def _cost(values: Mapping[str, Any]) -> Cost:
    whole = {f.name: type(f.default) is int for f in fields(Cost)}
    values = dict.fromkeys(ADDED, 0) | dict(values)
    if values.keys() != whole.keys():
        raise Damage("a cost has other counters")
    found: dict[str, Any] = {name: (_whole if whole[name] else _real)(values[name], name) for name in whole}
    if any(value < 0 for value in found.values()):
        raise Damage("a cost is negative")
    return Cost(**found)


def _whole(value: object, what: str, at_least: int = 0, at_most: int = 2**63 - 1) -> int:
    if type(value) is not int or not at_least <= value <= at_most:
        raise Damage(f"{what} is no whole number in its range")
    return value


def _real(value: object, what: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 2**63:  # nor is NaN
        raise Damage(f"{what} is no number in its range")
    return value


def _text(value: object, what: str) -> str:
    # Unprintable characters could command a terminal.
    if not isinstance(value, str) or not value.isprintable() or len(value) > LONGEST_TEXT:
        raise Damage(f"{what} is no short, printable text")
    return value


def check_sizes(manifest: Manifest) -> None:
    """Raise :class:`Damage` if a file is listed that is larger than a training on the manifest's data can make it."""
    data = manifest.data
    image = 4 * math.prod(data.image_shape)
    headers = sum(name.startswith("clients/") for name in manifest.files) * (HEADER + 8 * len(data.class_names))
    clients = min(data.train_images * (6 * 8 + 4 * image), LARGEST_CLIENTS) + headers
    for name, listed in manifest.files.items():
        most = clients if name.startswith("clients/") else LARGEST.get(name, LARGEST_MODEL)
        if listed.size > most:
            raise Damage(f"{name} is listed with {listed.size} bytes, and {most} is the most")
        clients -= listed.size if name.startswith("clients/") else 0


def check_layout(found: Header, layout: Layout) -> None:
    """Raise :class:`Damage` unless the tensors of a file have the names, types and shapes of a layout.

    Args:
        found: of the file.
        layout: what is expected.
    """
    if found.keys() != layout.keys():
        raise Damage("it holds other tensors than it should")
    sizes: dict[str, int] = {}
    for name, (dtype, shape) in layout.items():
        own_type, own_shape = found[name]
        same = own_type == dtype and len(own_shape) == len(shape)
        for own, size in zip(own_shape, shape, strict=False):
            same &= own == (size if isinstance(size, int) else sizes.setdefault(size, own))
        if not same:
            raise Damage(f"{_short(name)} has another type or shape than it should")


def _short(name: str) -> str:
    return name if name.isprintable() and len(name) <= 100 else "a tensor"


def check_parameters(found: Header) -> None:
    """Raise :class:`Damage` unless a file's tensors may be a model's parameters."""
    for dtype, shape in found.values():
        if dtype != "F32" or len(shape) > MOST_DIMENSIONS or 0 in shape:
            raise Damage("it holds what is no parameter")
    if not found:
        raise Damage("it holds no parameters")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`Damage` if a value is infinite or NaN."""
    for name, value in tensors.items():
        # Extremes need no memory of the tensor's size, and are NaN if one of its values is.
        if value.numel() and not all(math.isfinite(extreme) for extreme in torch.aminmax(value)):
            raise Damage(f"{_short(name)} is not finite")


def client_layout(data: DataInfo, *, synthetic: bool) -> Layout:
    """The tensors of a client's file.

    Args:
        data: what the federation was trained on.
        synthetic: whether the file holds a synthetic set.
    """
    images = data.image_shape
    layout: dict[str, tuple[str, tuple[int | str, ...]]] = {"rows": ("I64", ("n",))}
    for name, size in (("subset", "m"), ("augmentation", "a")):
        layout |= {f"{name}_images": ("F32", (size, *images))}
        layout |= {f"{name}_{kind}": ("I64", (size,)) for kind in ("labels", "rows")}
    if synthetic:
        layout |= {f"synthetic_{kind}": ("F32", ("m", *images)) for kind in ("images", "velocity")}
        layout |= {f"synthetic_{kind}": ("I64", ("m",)) for kind in ("labels", "origin")}
        layout |= {"synthetic_fixed_classes": ("I64", ("f",))}
    return layout


def check_client(tensors: Mapping[str, Tensor], data: DataInfo) -> None:
    """Raise :class:`Damage` unless the values of a client's tensors, whose layout fits, are possible.

    Args:
        tensors: by name, as in :func:`client_layout`.
        data: what the federation was trained on.
    """
    check_finite({name: value for name, value in tensors.items() if value.is_floating_point()})
    for name, value in tensors.items():
        if not value.is_floating_point():
            of_classes = name.endswith(("labels", "classes"))
            _check_range(value, len(data.class_names) if of_classes else data.train_images, name)
    if "synthetic_images" in tensors:
        for name, start in (("synthetic_labels", "subset_labels"), ("synthetic_origin", "subset_rows")):
            if not torch.equal(tensors[name], tensors[start]):
                raise Damage(f"{name} and {start} differ")
        if len(tensors["synthetic_fixed_classes"].unique()) < len(tensors["synthetic_fixed_classes"]):
            raise Damage("synthetic_fixed_classes has a class twice")


def check_partition(clients: Iterable[tuple[Tensor, Tensor, Tensor]], images: int) -> None:
    """Raise :class:`Damage` unless no training image belongs to two clients, and clients keep images of their own.

    Args:
        clients: of each the rows that it has, those of its subset and those of its augmentation samples, in range.
        images: size of the training split.
    """
    owner = torch.full((images,), -1, dtype=torch.int32)
    total = 0
    for client, (rows, *kept) in enumerate(clients):
        own = rows.cpu()
        if (owner[own] >= 0).any():
            raise Damage("an image belongs to two of them")
        owner[own] = client
        total += len(own)
        if not all(bool((owner[part.cpu()] == client).all()) for part in kept):
            raise Damage(f"client {client} keeps an image of another")
    if int((owner >= 0).sum()) != total:
        raise Damage("a client has an image twice")


def _check_range(value: Tensor, end: int, what: str) -> None:
    if value.numel() and not (int(value.min()) >= 0 and int(value.max()) < end):
        raise Damage(f"{what} is out of range")


def parse_history(content: bytes, data: DataInfo, clients: int) -> pd.DataFrame:
    """A training's history.

    Args:
        content: of the CSV file.
        data: what the federation was trained on.
        clients: how many there are.

    Raises:
        ValueError: it is none.
    """
    if content.partition(b"\n")[0].count(b",") >= len(HISTORY) + len(FAILURES) + 2 * len(data.class_names):
        raise Damage("it has too many columns")
    history = pd.read_csv(io.BytesIO(content), low_memory=False)
    numeric = all(dtype.kind in "iuf" for dtype in history.dtypes)
    # Lines longer than the header would become an index.
    if not numeric or not isinstance(history.index, pd.RangeIndex) or not {*HISTORY} <= {*history.columns}:
        raise Damage("its columns are no history")
    if not len(history) or history["round"].tolist() != list(range(1, len(history) + 1)):
        raise Damage("its rounds are not in order")
    if not history["participants"].between(1, clients).all() or history["participants"].dtype.kind == "f":
        raise Damage("its participants are out of range")
    failures = history.filter(FAILURES)
    if not (failures.ge(0) & failures.le(clients)).all(axis=None) or "f" in {d.kind for d in failures.dtypes}:
        raise Damage("its failures are out of range")
    # In half precision, a loss may be infinite where the weights are not.
    others = history.drop(columns=[name for name in history if name in MEASURED or str(name).startswith("class_")])
    if not (others.ge(0) & others.lt(math.inf)).all(axis=None):
        raise Damage("a number in it is out of range")
    return history


def parse_spec(content: bytes, clients: int) -> dict[str, Any]:
    """A spec: a flat YAML mapping of names to numbers, texts, truth values and nothing.

    Args:
        content: of the YAML file.
        clients: how many there are; ``clients`` must agree if it is there.

    Raises:
        ValueError, yaml.YAMLError: it is none.
    """
    text = content.decode("utf-8")
    _check_flat(text)
    spec = yaml.safe_load(text)
    for name, value in spec.items():
        _text(name, "a setting's name")
        if isinstance(value, str):
            _text(value, name)
        elif not isinstance(value, int | float | None) or not math.isfinite(value or 0):
            raise Damage(f"{name} is no setting")
    if "clients" in spec and _whole(spec["clients"], "clients") != clients:
        raise Damage(f"it tells of {spec['clients']} clients, and there are {clients}")
    if type(spec.get("seed", 0)) is not int or spec.get("seed", 0) < 0:
        raise Damage("seed is no whole number")
    return dict(spec)


def _check_flat(text: str) -> None:
    """Neither nesting nor aliases, which could grow beyond all bounds; nor tags, which choose a type."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.MappingStartEvent)
        special = getattr(event, "anchor", None) or getattr(event, "tag", None)
        nested = isinstance(event, yaml.SequenceStartEvent | yaml.AliasEvent) or depth > 1
        if special or nested or number > 2 * MOST_SETTINGS or (depth == 0 and isinstance(event, yaml.ScalarEvent)):
            raise Damage("it is no flat list of settings")
    if not depth:
        raise Damage("it is empty")

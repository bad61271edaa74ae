"""What a file of a trained federation may hold: content in, values out, and :class:`Damage` for anything else.

Checksums show what was torn or exchanged. Names, types and shapes of what later code uses are checked besides; a file
that was forged with a right checksum gets no further checks.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import yaml

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.data.labelled import DataInfo

__all__ = [
    "LARGEST",
    "Damage",
    "Header",
    "Layout",
    "Listed",
    "Manifest",
    "OtherFormat",
    "check_layout",
    "check_parameters",
    "client_layout",
    "parse_history",
    "parse_manifest",
    "parse_spec",
]

LARGEST = 2**24
"""Bytes of a manifest, history or configuration that are still read."""

NUMBER = r"(?:[0-9]{4}|[1-9][0-9]{4,8})"
NAMES = re.compile(
    rf"global\.safetensors|history\.csv|config\.yaml|clients/{NUMBER}\.safetensors"
    rf"|updates/initial\.safetensors|updates/{NUMBER}/{NUMBER}\.safetensors"
)
"""Files that a manifest may list: none lies outside the folder."""

HISTORY = ("round", "loss", "matching_distance", "participants", "seconds", "distillation_seconds")
"""Columns of every history; failures and accuracies by class may follow."""

Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""By name of a tensor in a file: its type as safetensors calls it, and its shape."""

Layout = Mapping[str, tuple[str, tuple[int | str, ...]]]
"""What a header is to be; sizes with one name are equal."""


class Damage(ValueError):
    """What is wrong with a file, in a few words for a sentence in parentheses."""


class OtherFormat(Damage):
    """Which version wrote a file that is whole, and cannot be read by this one."""


@dataclass(frozen=True)
class Listed:
    """What a manifest says of a file: its size in bytes and its checksum."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest's content, by the names of :class:`~quickdrop_bench.store.artifacts.TrainedFederation`."""

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
        ValueError, TypeError, KeyError, RecursionError: it is none.
    """
    values = json.loads(content)
    if values["format"] != version:
        by = _text(values.get("written_by", "another version of quickdrop-bench"), "written_by")
        raise OtherFormat(f"{by} wrote it in format {_whole(values['format'], 'format')}, and this one reads {version}")
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
    return {name: Listed(_whole(e["bytes"], "bytes"), _text(e["sha256"], "sha256")) for name, e in values.items()}


def _data_info(values: Mapping[str, Any]) -> DataInfo:
    channels, height, width = (_whole(size, "image_shape") for size in values["image_shape"])
    names = tuple(_text(name, "a class name") for name in values["class_names"])
    mean, std = (tuple(_real(v, key) for v in values[key]) for key in ("mean", "std"))
    if not len(mean) == len(std) in (0, channels):
        raise Damage("its data have another number of channels")
    train, test = (_whole(values[f"{split}_images"], f"{split}_images") for split in ("train", "test"))
    return DataInfo(_text(values["name"], "name"), (channels, height, width), names, mean, std, train, test)


def _cost(values: Mapping[str, Any]) -> Cost:
    whole = {f.name: type(f.default) is int for f in fields(Cost)}
    if values.keys() != whole.keys():
        raise Damage("a cost has other counters")
    found: dict[str, Any] = {name: (_whole if whole[name] else _real)(values[name], name) for name in whole}
    return Cost(**found)


def _whole(value: object, what: str) -> int:
    if type(value) is not int or value < 0:
        raise Damage(f"{what} is no whole number from 0")
    return value


def _real(value: object, what: str) -> float:
    if type(value) not in (int, float):
        raise Damage(f"{what} is no number")
    return value  # type: ignore[return-value]


def _text(value: object, what: str) -> str:
    # Unprintable characters could command a terminal.
    if not isinstance(value, str) or not value.isprintable():
        raise Damage(f"{what} is no printable text")
    return value


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
            raise Damage(f"{name} has another type or shape than it should")


def check_parameters(found: Header) -> None:
    """Raise :class:`Damage` unless a file's tensors are float32, as parameters are."""
    if any(dtype != "F32" for dtype, _ in found.values()):
        raise Damage("it holds what is no parameter")


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


def parse_history(content: bytes) -> pd.DataFrame:
    """A training's history.

    Args:
        content: of the CSV file.

    Raises:
        ValueError: it is none.
    """
    history = pd.read_csv(io.BytesIO(content), low_memory=False)
    numeric = all(dtype.kind in "iuf" for dtype in history.dtypes)
    # Lines longer than the header would become an index.
    if not numeric or not isinstance(history.index, pd.RangeIndex) or not {*HISTORY} <= {*history.columns}:
        raise Damage("its columns are no history")
    if not len(history) or history["round"].tolist() != list(range(1, len(history) + 1)):
        raise Damage("its rounds are not in order")
    return history


def parse_spec(content: bytes, clients: int) -> dict[str, Any]:
    """A spec: a flat YAML mapping of names to numbers, texts, truth values and nothing.

    Args:
        content: of the YAML file.
        clients: how many there are; ``clients`` must agree if it is there.

    Raises:
        ValueError, yaml.YAMLError: it is none.
    """
    spec = yaml.safe_load(content.decode("utf-8"))
    if not isinstance(spec, dict) or not all(isinstance(v, str | int | float | None) for v in spec.values()):
        raise Damage("it is no flat list of settings")
    for text in (*spec, *map(str, spec.values())):
        _text(text, "a setting")
    if spec.get("clients", clients) != clients:
        raise Damage(f"it tells of {spec['clients']} clients, and there are {clients}")
    _whole(spec.get("seed", 0), "seed")
    return spec

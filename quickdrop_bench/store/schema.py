"""What a file of a trained federation may hold: content in, values out, and :class:`Damage` for anything else.

Checksums show what was torn or exchanged. Names, types and shapes of what later code uses are checked besides; a file
that was forged with a right checksum gets no further checks.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pandas as pd
import yaml

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.data.labelled import DataInfo

FORMAT = 4
"""Of the files that this version writes and reads. Within it, costs once had fewer counters, see :data:`ADDED`."""

ADDED = ("dropouts", "stragglers", "rejected_updates", "cpu_seconds", "waiting_seconds")
"""Counters of costs that the first writers of this format did not have; they are read as 0."""

UNSIGNED = "quickdrop-bench 0.1.0 from before 28 November 2026"
"""Who wrote a manifest that does not say who did, and formats before :data:`SIGNED`, whatever they say."""

SIGNED = 4
"""The first format that a release writes."""

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

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest's content, by the names of :class:`~quickdrop_bench.store.artifacts.TrainedFederation`.

    Attributes:
        format: :data:`FORMAT`.
        written_by: name and version of the program.
        files: by name.
    """

    format: int
    written_by: str
    device: str
    precision: str
    data: DataInfo
    cost: Cost
    fine_tuning: Cost
    fine_tuning_gradients: int
    files: dict[str, Listed]


def parse_manifest(content: bytes) -> Manifest:
    """A manifest; some error of Python's if it is none."""
    values = json.loads(content)
    form, by = typed(int, values["format"], "format"), values.setdefault("written_by", UNSIGNED)
    if form != FORMAT:
        by = UNSIGNED if form < SIGNED else by
        lacks = ", which does not say on which data and in which precision" if form < FORMAT else ""
        who = f"{typed(str, by, 'written_by')} wrote it in format {form}{lacks}"
        raise OtherFormat(f"{who}, and this version reads format {FORMAT}")
    for cost in ("cost", "fine_tuning"):
        values[cost] = dict.fromkeys(ADDED, 0) | values[cost]
    manifest: Manifest = typed(Manifest, values, "it")
    if not all(NAMES.fullmatch(name) for name in manifest.files):
        raise Damage("it lists a file that belongs to no federation")
    if missing := {"global.safetensors", "history.csv", "config.yaml"} - manifest.files.keys():
        raise Damage(f"it does not list {min(missing)}")
    if not len(manifest.data.mean) == len(manifest.data.std) in (0, manifest.data.image_shape[0]):
        raise Damage("its data have another number of channels")
    return manifest


def typed(kind: Any, value: Any, what: str) -> Any:
    """A JSON value as a type of a dataclass's field; :class:`Damage`, with what it is called, if it has another one.

    Types are dataclasses, tuples and dictionaries of such, numbers (whole ones from 0), texts that command no terminal,
    any of these or None, and :data:`typing.Any`.
    """
    if is_dataclass(kind):
        types = get_type_hints(kind)
        if not isinstance(value, dict) or {f.name for f in fields(kind)} != value.keys():
            raise Damage(f"{what} has other entries than it should")
        return kind(**{name: typed(types[name], value[name], name) for name in value})  # type: ignore[operator]
    if get_origin(kind) is UnionType:
        return None if value is None else typed(get_args(kind)[0], value, what)
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise Damage(f"{what} is no list of names and values")
        return {typed(str, key, what): typed(get_args(kind)[1], inner, key) for key, inner in value.items()}
    if get_origin(kind) is tuple:
        inner, repeated = get_args(kind)[0], get_args(kind)[-1] is ...
        if not isinstance(value, list) or not (repeated or len(value) == len(get_args(kind))):
            raise Damage(f"{what} is no list of its length")
        return tuple(typed(inner, one, what) for one in value)
    if kind is str and not (isinstance(value, str) and value.isprintable()):
        raise Damage(f"{what} is no printable text")
    if kind is int and not (type(value) is int and value >= 0):
        raise Damage(f"{what} is no whole number from 0")
    if kind is float and type(value) not in (int, float):
        raise Damage(f"{what} is no number")
    return value


def check_layout(found: Header, layout: Layout) -> None:
    """Raise :class:`Damage` unless the tensors of a file have the names, types and shapes of a layout."""
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


def client_layout(data: DataInfo, *, synthetic: bool) -> Layout:
    """The tensors of a client's file, with a synthetic set or without."""
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
    """A training's history, from CSV."""
    history = pd.read_csv(io.BytesIO(content), low_memory=False)
    numeric = all(dtype.kind in "iuf" for dtype in history.dtypes)
    # Lines longer than the header would become an index.
    if not numeric or not isinstance(history.index, pd.RangeIndex) or not {*HISTORY} <= {*history.columns}:
        raise Damage("its columns are no history")
    return history


def parse_spec(content: bytes, clients: int) -> dict[str, Any]:
    """A spec: a flat YAML mapping of names to numbers, texts, truth values and nothing; it names so many clients."""
    spec = yaml.safe_load(content.decode("utf-8"))
    if not isinstance(spec, dict) or not all(isinstance(v, str | int | float | None) for v in spec.values()):
        raise Damage("it is no flat list of settings")
    for text in (*spec, *map(str, spec.values())):
        typed(str, text, "a setting")
    if spec.get("clients", clients) != clients:
        raise Damage(f"it tells of {spec['clients']} clients, and there are {clients}")
    typed(int, spec.get("seed", 0), "seed")
    return spec

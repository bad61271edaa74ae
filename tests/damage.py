"""What may happen to files: kinds of damage, once each with fixed numbers, or with any that hypothesis draws."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from quickdrop_bench.store.rows import KEY

GONE = 2**22 + 1
"""A number that no process has."""

JUNK = (
    "nan", "inf", "-inf", "-1", "0", "1e400", "-5.5", "", " ", "abc", "ü☃", "[1,2]", "{a: 1}", "null", "true", "[/x]",
    "1,2", "1,,2", ",", "--", "\x1b[2J", "$x^", "*a", "&a b", "1_0", "0x10", "!!python/name:os.system", "a/../b",
    "\udcff",
)  # fmt: skip

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 100)
    | st.floats()
    | st.sampled_from(JUNK[:-1])
    | st.text(max_size=5)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)

Damage = Callable[[Path], object]
NUMBERS = st.sampled_from([0.0, -1.0, 1e30, math.nan, math.inf, 2.0**62, -(2.0**62), 0.5])
NAMES = st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=8)


@dataclass(frozen=True)
class Drawn:
    """Where and how a damage strikes: each kind uses some of it."""

    position: float = 0.5
    byte: int = 1
    number: int = 0
    value: float = math.nan
    text: str = "ü☃"
    name: str = "c"
    content: bytes = b"\xff\x00"
    nested: Any = "x"
    column: str = "value"
    everywhere: bool = False


Kind = Callable[[Path, Drawn], object]


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    """Any of them."""
    return Drawn(
        draw(st.floats(0, 0.999)),
        draw(st.integers(1, 255)),
        draw(st.integers(0, 10**4)),
        draw(NUMBERS),
        draw(st.sampled_from([*JUNK[:-1], "x" * 3000])),
        draw(NAMES),
        draw(st.binary(max_size=80)),
        draw(TREES),
        draw(st.sampled_from(COLUMNS)),
        draw(st.booleans()),
    )


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond this: the system's own refusal, in the place of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def few_files(more: int) -> Iterator[None]:
    """No more than so many files may be opened at a time, on top of those that this process has open."""
    used, limit = set(map(int, os.listdir("/proc/self/fd"))), 0
    while more >= 0:
        limit, more = limit + 1, more - (limit not in used)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit - 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def seal(folder: Path) -> None:
    """Make the manifest fit whatever the files have become, as anybody can who writes into the folder."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for name, entry in manifest["files"].items():
            content = (folder / name).read_bytes()
            entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return
    (folder / "manifest.json").write_text(json.dumps(manifest))


# Any file ----------------------------------------------------------------------------------------------------


def flip(path: Path, d: Drawn) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[int(d.position * len(data))] ^= d.byte
    path.write_bytes(data)


def cut(path: Path, d: Drawn) -> None:
    os.truncate(path, int(d.position * path.stat().st_size))


def grow(path: Path, d: Drawn) -> None:
    os.truncate(path, 2**33)


def lose(path: Path, d: Drawn) -> None:
    path.unlink()


def overwrite(path: Path, d: Drawn) -> None:
    path.write_bytes(d.content)


def into_folder(path: Path, d: Drawn) -> None:
    path.unlink()
    path.mkdir()


def into_link(path: Path, d: Drawn) -> None:
    path.unlink()
    path.symlink_to(["nothing", path.name, "/dev/zero", "../../mine.yaml", "/"][d.byte % 5])


def into_pipe(path: Path, d: Drawn) -> None:
    path.unlink()
    os.mkfifo(path)


ANY_FILE = (flip, cut, grow, lose, overwrite, into_folder, into_link, into_pipe)

# A federation's folder ---------------------------------------------------------------------------------------


def swap(path: Path, d: Drawn) -> None:
    others = sorted(p for p in path.parent.iterdir() if p.is_file() and p.stat().st_size < 2**24)
    other = others[d.number % len(others)]
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def edit_header(path: Path, d: Drawn) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    entry = header[sorted(header)[d.byte % len(header)]]
    if isinstance(entry, dict):
        entry[["dtype", "shape", "data_offsets"][d.number % 3]] = d.nested
    new = json.dumps(header).encode()
    path.write_bytes((len(new) if d.byte % 5 else 2**40).to_bytes(8, "little") + new + data[8 + size :])


def edit_tensor(path: Path, d: Drawn) -> None:
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    key = sorted(tensors)[d.byte % len(tensors)]
    flat = tensors[key].view(-1)
    if len(flat):
        exact = flat.is_floating_point() or math.isfinite(d.value)
        flat[int(d.position * len(flat))] = d.value if exact else 7
    if d.byte % 7 == 0:
        tensors[key] = tensors[key][1:].contiguous() if tensors[key].dim() else tensors[key].float()
    save_file(tensors, path)


def edit_text(path: Path, d: Drawn) -> None:
    lines = path.read_text().split("\n")
    lines[int(d.position * len(lines))] = d.text if d.byte % 2 else lines[0] + d.text
    path.write_text("\n".join(lines), errors="replace")


def edit_manifest(path: Path, d: Drawn) -> None:
    values = json.loads(path.read_bytes())
    inner = values
    for _ in range(d.byte % 3):
        keys = sorted(k for k, v in inner.items() if isinstance(v, dict) and v)
        if keys:
            inner = inner[keys[d.number % len(keys)]]
    key = sorted(inner)[int(d.position * len(inner))]
    if d.byte % 4 == 0:
        inner[d.text] = inner.pop(key)
    elif d.byte % 4 == 1:
        del inner[key]
    else:
        inner[key] = d.value if d.byte % 4 == 2 else d.nested
    path.write_text(json.dumps(values))


ARTIFACT_KINDS: tuple[tuple[Kind, str], ...] = (
    *((kind, "all") for kind in (*ANY_FILE, swap)),
    *((kind, "tensors") for kind in (edit_header, edit_tensor, edit_tensor)),
    *((edit_text, "texts"), (edit_text, "texts")),
    *((edit_manifest, "manifest"),) * 3,
)
"""What may happen to one of which files; what finds most comes up more often."""


def artifact_damage(kind: Kind, of: str, d: Drawn) -> Damage:
    """One file of a folder is damaged."""

    def damage(folder: Path) -> None:
        # What another damage made huge is left alone: these functions read whole files.
        small = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size < 2**24]
        tensors = [p for p in small if p.suffix == ".safetensors" and p.parent.name != "versions"]
        files = {
            "all": [p for p in small if p.suffix in (".json", ".csv", ".yaml") or p in tensors],
            "tensors": tensors,
            "texts": [p for p in small if p.name in ("history.csv", "config.yaml")],
            "manifest": [p for p in small if p.name == "manifest.json"],
        }
        with contextlib.suppress(Exception):  # the second damage meets what the first one left
            kind(sorted(files[of])[d.number % len(files[of])], d)

    damage.__name__ = kind.__name__
    return damage


def artifact_damages() -> st.SearchStrategy[Damage]:
    """What may happen to one file of a folder."""
    return st.builds(lambda kind, d: artifact_damage(*kind, d), st.sampled_from(ARTIFACT_KINDS), drawn())


# Image folders -----------------------------------------------------------------------------------------------


def huge_header(path: Path, d: Drawn) -> None:
    data = bytearray(path.read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    path.write_bytes(data)


def other_format(path: Path, d: Drawn) -> None:
    side = [1, 3, 9, 2000][d.number % 4]
    Image.new(["1", "L", "P", "RGB"][d.byte % 4], (side, side)).save(path.with_suffix(".gif"))
    path.with_suffix(".gif").replace(path)


def add(path: Path, d: Drawn) -> None:
    suffixes = [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".txt"]
    (path.parent / f"{d.name}{suffixes[d.number % 8]}").write_bytes(d.content)


def move(path: Path, d: Drawn) -> None:
    shutil.move(path, path.parents[1] / f"{d.name}.png")


def class_link(path: Path, d: Drawn) -> None:
    (path.parents[1] / "c").symlink_to(["nothing", "c", "..", "a", "/", "../.."][d.byte % 6])


def rename_class(path: Path, d: Drawn) -> None:
    for split in ["train", "test"][: 1 + d.byte % 2]:
        (path.parents[2] / split / "b").rename(path.parents[2] / split / d.name)


def empty_class(path: Path, d: Drawn) -> None:
    for image in path.parent.iterdir():
        image.unlink()


def make_file(path: Path, d: Drawn) -> None:
    part = path.parents[d.byte % 3]
    shutil.rmtree(part)
    part.write_bytes(d.content)


def new_class(path: Path, d: Drawn) -> None:
    (path.parents[1] / d.name).mkdir()


PICTURE_KINDS: tuple[Kind, ...] = (
    *ANY_FILE,
    *(huge_header, other_format, add, move, class_link, rename_class, empty_class, make_file, new_class),
)
"""What may happen to an image, its class, or its part of the data."""


def picture_damage(kind: Kind, d: Drawn) -> Damage:
    """Something happens to an image folder."""

    def damage(root: Path) -> None:
        found = sorted(p for p in root.rglob("*.png") if p.is_file() and not p.is_symlink())
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # a name that no file can have
            kind(found[d.number % len(found)], d)

    damage.__name__ = kind.__name__
    return damage


def picture_damages() -> st.SearchStrategy[Damage]:
    """What may happen to an image folder."""
    return st.builds(picture_damage, st.sampled_from(PICTURE_KINDS), drawn())


# Rows --------------------------------------------------------------------------------------------------------

COLUMNS = (*KEY, "value", "device", "patience", "federation_hash", "protocol", "phase", "round", "scale", "created_at")


def insert(path: Path, d: Drawn) -> None:
    lines = path.read_bytes().split(b"\n")
    lines.insert(d.number % len(lines), d.content)
    path.write_bytes(b"\n".join(lines))


def edit(path: Path, d: Drawn) -> None:
    lines = path.read_text(errors="replace").splitlines()
    for k, text in enumerate(lines):
        if d.everywhere or k == d.number % len(lines):
            with contextlib.suppress(ValueError, TypeError):
                lines[k] = json.dumps({**json.loads(text), d.column: d.nested})
    path.write_text("\n".join(lines) + "\n")


def drop(path: Path, d: Drawn) -> None:
    lines = path.read_text(errors="replace").splitlines()
    with contextlib.suppress(ValueError, TypeError, KeyError):
        row = json.loads(lines[d.number % len(lines)])
        del row[d.column]
        lines[d.number % len(lines)] = json.dumps(row)
    path.write_text("\n".join(lines))


def nest(path: Path, d: Drawn) -> None:
    path.write_bytes(path.read_bytes() + b"[" * 10**5 + b"\n")


RESULT_KINDS: tuple[Kind, ...] = (insert, edit, edit, edit, drop, cut, nest, into_folder, into_pipe, overwrite)
"""What may happen to a file of rows; what finds most comes up more often."""


def result_damage(kind: Kind, d: Drawn) -> Damage:
    """Something happens to a file of rows."""

    def damage(path: Path) -> None:
        if path.is_file():
            kind(path, d)

    damage.__name__ = f"{kind.__name__} {d.column} {d.nested!r} {d.everywhere}"
    return damage


def result_damages() -> st.SearchStrategy[Damage]:
    """What may happen to the rows of a results folder."""
    return st.builds(result_damage, st.sampled_from(RESULT_KINDS), drawn())

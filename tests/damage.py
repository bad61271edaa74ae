"""What may happen to files: strategies for tests that bad input of any kind is survived."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from quickdrop_bench.rows import KEY

__all__ = [
    "JUNK",
    "TREES",
    "Damage",
    "artifact_damages",
    "make_pictures",
    "picture_damages",
    "result_damages",
    "seal",
]

JUNK = (
    "nan", "inf", "-inf", "-1", "0", "1e400", "-5.5", "", " ", "abc", "ü☃", "[1,2]", "{a: 1}", "null", "true", "[/x]",
    "1,2", "1,,2", ",", "--", "\x1b[2J", "$x^", "*a", "&a b", "1_0", "0x10", "!!python/name:os.system", "a/../b",
)  # fmt: skip

SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**6), 100) | st.floats() | st.sampled_from(JUNK) | st.text(max_size=5)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)

Damage = Callable[[Path], object]
SUFFIXES = (".json", ".csv", ".yaml", ".safetensors")
NUMBERS = st.sampled_from([0.0, -1.0, 1e30, math.nan, math.inf, 2.0**62, -(2.0**62), 0.5])


def make_pictures(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")


def seal(folder: Path) -> None:
    """Make the manifest fit whatever the files have become, as somebody does who edits one."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for name, entry in manifest["files"].items():
            content = (folder / name).read_bytes()
            entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return
    (folder / "manifest.json").write_text(json.dumps(manifest))


@st.composite
def artifact_damages(draw: st.DrawFn) -> Damage:
    """What may happen to one file of a folder."""
    position, byte = draw(st.floats(0, 0.999)), draw(st.integers(1, 255))
    value, name, text = draw(NUMBERS), draw(st.integers(0, 99)), draw(st.sampled_from([*JUNK, "x" * 3000]))
    nested, content = draw(TREES), draw(st.binary(max_size=64))

    def some(paths: Sequence[Path]) -> Path:
        return sorted(paths)[name % len(paths)]

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        if data:
            data[int(position * len(data))] ^= byte
        path.write_bytes(data)

    def into_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def into_link(path: Path) -> None:
        path.unlink()
        path.symlink_to(["nothing", path.name, "/dev/zero", "../../mine.yaml"][byte % 4])

    def into_pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def edit_manifest(path: Path) -> None:
        values = json.loads(path.read_bytes())
        inner = values
        for _ in range(byte % 3):
            keys = sorted(k for k, v in inner.items() if isinstance(v, dict) and v)
            if keys:
                inner = inner[keys[name % len(keys)]]
        key = sorted(inner)[int(position * len(inner))]
        if byte % 4 == 0:
            inner[text] = inner.pop(key)
        elif byte % 4 == 1:
            del inner[key]
        else:
            inner[key] = value if byte % 4 == 2 else nested
        path.write_text(json.dumps(values))

    def swap(path: Path) -> None:
        other = some([p for p in path.parent.iterdir() if p.is_file() and p.stat().st_size < 2**24])
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)

    any_file = [flip, lambda p: os.truncate(p, int(position * p.stat().st_size)), Path.unlink, into_folder, into_link]
    any_file += [into_pipe, swap, lambda p: p.write_bytes(content), lambda p: os.truncate(p, 2**33)]
    kind = draw(st.sampled_from([*any_file, *[edit_manifest] * 3]))

    def damage(folder: Path) -> None:
        # What another damage made huge is left alone: these functions read whole files.
        small = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size < 2**24]
        files = [p for p in small if p.parent.name != "versions" and p.suffix in SUFFIXES]
        with contextlib.suppress(Exception):  # the second damage meets what the first one left
            kind(folder / "manifest.json" if kind is edit_manifest else some(files))

    damage.__name__ = getattr(kind, "__name__", "change")
    return damage


@st.composite
def picture_damages(draw: st.DrawFn) -> Damage:
    """What may happen to an image folder."""
    number, content = draw(st.integers(0, 99)), draw(st.binary(max_size=80))
    position, byte = draw(st.floats(0, 0.999)), draw(st.integers(1, 255))
    text = draw(st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=8))
    side = draw(st.sampled_from([1, 3, 9, 2000]))
    suffix = draw(st.sampled_from([".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".txt"]))

    def image(root: Path) -> Path:
        found = sorted(p for p in root.rglob("*.png") if p.is_file() and not p.is_symlink())
        return found[number % len(found)]

    def flip(root: Path) -> None:
        path = image(root)
        data = bytearray(path.read_bytes())
        data[int(position * len(data))] ^= byte
        path.write_bytes(data)

    def header(root: Path) -> None:
        data = bytearray(image(root).read_bytes())
        data[16:24] = (100_000).to_bytes(4, "big") * 2
        image(root).write_bytes(data)

    def other_format(root: Path) -> None:
        path = image(root)
        Image.new(["1", "L", "P", "RGB"][byte % 4], (side, side)).save(path.with_suffix(".gif"))
        path.with_suffix(".gif").replace(path)

    def link(root: Path) -> None:
        path = image(root)
        path.unlink()
        path.symlink_to(["nothing", path.name, "/dev/zero", "..", "/"][byte % 5])

    def pipe(root: Path) -> None:
        path = image(root)
        path.unlink()
        os.mkfifo(path)

    def class_link(root: Path) -> None:
        (root / ["train", "test"][byte % 2] / "c").symlink_to(["nothing", "c", "..", "a", "/", "../.."][number % 6])

    def add(root: Path) -> None:
        (image(root).parent / f"{text}{suffix}").write_bytes(content)

    def rename_class(root: Path) -> None:
        for split in ["train", "test"][: 1 + byte % 2]:
            (root / split / "b").rename(root / split / text)

    def empty_class(root: Path) -> None:
        for path in (root / "train" / "a").iterdir():
            path.unlink()

    def cut(root: Path) -> None:
        os.truncate(image(root), int(position * image(root).stat().st_size))

    def move(root: Path) -> None:
        shutil.move(image(root), root / "train" / f"{text}.png")

    def make_file(root: Path) -> None:
        part = root / ["train", "test", "train/a", "."][number % 4]
        shutil.rmtree(part)
        part.write_bytes(content)

    def new_class(root: Path) -> None:
        (root / "train" / text).mkdir()

    def grow(root: Path) -> None:
        os.truncate(image(root), 2**33)

    kinds = [flip, header, other_format, link, pipe, class_link, add, rename_class, empty_class, cut, move, make_file]
    kind = draw(st.sampled_from([*kinds, new_class, grow]))

    def damage(root: Path) -> None:
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # a name that no file can have
            kind(root)

    damage.__name__ = kind.__name__
    return damage


COLUMNS = (*KEY, "value", "device", "patience", "federation_hash", "protocol", "phase", "round", "scale", "created_at")


@st.composite
def result_damages(draw: st.DrawFn) -> Damage:
    """What may happen to the rows of a results folder."""
    line, column, value = draw(st.integers(0, 10**4)), draw(st.sampled_from(COLUMNS)), draw(TREES)
    content, position = draw(st.binary(max_size=60)), draw(st.floats(0, 0.999))
    everywhere = draw(st.booleans())

    def insert(path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        lines.insert(line % len(lines), content)
        path.write_bytes(b"\n".join(lines))

    def edit(path: Path) -> None:
        lines = path.read_text(errors="replace").splitlines()
        for k, text in enumerate(lines):
            if everywhere or k == line % len(lines):
                with contextlib.suppress(ValueError, TypeError):
                    lines[k] = json.dumps({**json.loads(text), column: value})
        path.write_text("\n".join(lines) + "\n")

    def drop(path: Path) -> None:
        lines = path.read_text(errors="replace").splitlines()
        with contextlib.suppress(ValueError, TypeError, KeyError):
            row = json.loads(lines[line % len(lines)])
            del row[column]
            lines[line % len(lines)] = json.dumps(row)
        path.write_text("\n".join(lines))

    def cut(path: Path) -> None:
        os.truncate(path, int(position * path.stat().st_size))

    def nest(path: Path) -> None:
        path.write_bytes(path.read_bytes() + b"[" * 10**5 + b"\n")

    def into_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def into_pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def binary(path: Path) -> None:
        path.write_bytes(content)

    kind = draw(st.sampled_from([insert, edit, edit, edit, drop, cut, nest, into_folder, into_pipe, binary]))

    def damage(path: Path) -> None:
        if path.is_file():
            kind(path)

    damage.__name__ = f"{kind.__name__} {column} {value!r} {everywhere}"
    return damage

"""A user's own images, decoded once into a cached uint8 tensor.

Files that are left out are counted by reason, and said. Neither the folder nor the cache is trusted: what is no image,
or would need more memory than there is, ends in one sentence, and cached images count only if they are those of the
listing, made by this code, and their checksum is right.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from quickdrop_bench.core.errors import BadInput, printable
from quickdrop_bench.core.files import file_size, open_tensors, refuse_links, write_atomically
from quickdrop_bench.data import pixels
from quickdrop_bench.data.class_names import in_natural_order
from quickdrop_bench.data.pixels import GREY, Header, Unconvertible, read_header

__all__ = ["FolderData", "cache_dir", "folder_class_names", "folder_key", "folder_label", "load_folder"]

_PORTABLE = {".pbm", ".pfm", ".pgm", ".pnm", ".ppm"}
EXTENSIONS = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp", *_PORTABLE})

LAYOUT = "a folder with train/<class>/* and test/<class>/* images is needed"
SPLITS = ("train", "test")

LARGEST_FILE = 2**28
"""Bytes of an image file that is still read."""

LARGEST_SIDE = 1024
"""Pixels of an image that is not resized."""

MOST_CLASSES = 10_000
PIECE = 2**20

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class FolderData:
    """Images (n, C, S, S) uint8 and labels (n,) int64 of both splits; classes in natural order."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class _Listing:
    """What lies in a folder: image files by split in alphabetical order, each with its class index.

    ``skipped`` counts what is left out, by reason.
    """

    folder: Path
    class_names: tuple[str, ...]
    images: dict[str, list[tuple[Path, int]]]
    skipped: Counter[str]

    def labels(self, split: str) -> Tensor:
        return torch.tensor([label for _, label in self.images[split]])


def cache_dir() -> Path:
    """Where decoded folders are kept: ``$XDG_CACHE_HOME/quickdrop-bench``, by default under ``~/.cache``.

    A user without a home keeps them under ``.cache`` in the working folder.
    """
    home = Path(os.path.expanduser("~"))
    return Path(os.environ.get("XDG_CACHE_HOME") or (home if home.is_absolute() else Path()) / ".cache") / (
        "quickdrop-bench"
    )


def folder_label(folder: Path) -> str:
    """``imagefolder:<name of the folder>``.

    Raises:
        BadInput: the name cannot be printed.
    """
    try:
        name = Path(os.path.realpath(folder)).name
    except ValueError:  # a NUL character
        name = "\0"
    if not name.isprintable():
        raise BadInput("--data-dir", ascii(str(folder)), "the folder's name must be printable text")
    return f"imagefolder:{name}"


def folder_class_names(folder: Path) -> tuple[str, ...]:
    """Names of the classes, numeric ones by size; no image is read.

    Raises:
        BadInput: the folder is missing, or its splits differ.
    """
    return tuple(_common_classes(folder, Counter()))


def folder_key(folder: Path, image_size: int | None) -> str:
    """Hash of every image's relative path and content, and of the image size.

    Raises:
        BadInput: the folder is missing, lacks a split, is empty or cannot be read.
    """
    return _key(_list(folder), image_size)


def load_folder(folder: Path, image_size: int | None) -> FolderData:
    """Decode the folder, or read what was decoded before from the same content.

    Args:
        folder: holds ``train/<class>/*`` and ``test/<class>/*``, with the same classes in both. Hidden files and
            folders, and files without an image's extension, are left out, which is logged as a warning.
        image_size: images are resized to this many pixels, height and width; None keeps the size that all
            images must then share.

    Raises:
        BadInput: the folder is missing, empty or unreadable, an image is corrupt, too large or of a mode that is not
            converted, sizes differ, or the images need more memory than there is.

    Images become 8-bit grey if all are grey, and RGB otherwise: 16 bits are scaled to 8, real numbers and whole ones of
    32 bits from the lowest to the highest value of all such images in the folder; transparent ones are laid on white.
    """
    listing = _list(folder)
    if listing.skipped:
        _say_once(_skipped(listing))
    cached = cache_dir() / f"imagefolder-{_key(listing, image_size)}.safetensors"
    stored = _read_cache(cached, listing, image_size)
    if stored is None:
        stored = _decode(listing, image_size)
        images = {f"{split}_images": getattr(stored, f"{split}_images") for split in SPLITS}
        about = {"checksum": _checksum(list(images.values())), "decoder": _decoder()}
        # A cache that cannot be written costs time at the next start, nothing else.
        try:
            refuse_links(cached.parent, cached.parent.parent, "cache")
            write_atomically(cached, lambda temporary: save_file(images, temporary, metadata=about))
        except (OSError, SafetensorError, BadInput) as error:
            reason = getattr(error, "strerror", None) or error
            warnings.warn(f"decoded images are not cached in {cached.parent}: {reason}", stacklevel=2)
    return stored


@cache
def _say_once(text: str) -> None:
    log.warning("%s", text)


def _skipped(listing: _Listing) -> str:
    """How many files of a folder are left out, and why."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(listing.skipped.items()))
    return printable(f"{folder_label(listing.folder)}: {listing.skipped.total()} files or folders skipped: {reasons}")


@cache
def _decoder() -> str:
    """Changes with the code that makes pixels of files."""
    sources = (Path(__file__).read_bytes(), Path(pixels.__file__).read_bytes(), PIL.__version__.encode())
    return hashlib.blake2b(b"".join(sources), digest_size=16).hexdigest()


def _key(listing: _Listing, image_size: int | None) -> str:
    digest = hashlib.blake2b(f"size={image_size}".encode(), digest_size=16)
    for split in SPLITS:
        for path, _ in listing.images[split]:
            try:
                size = file_size(path)
                if size > LARGEST_FILE:
                    raise _unusable(listing.folder, path, f"is larger than {LARGEST_FILE >> 20} MiB")
                digest.update(b"\0%s\0%d\0" % (os.fsencode(path.relative_to(listing.folder)), size))
                for piece in _pieces(path, size):
                    digest.update(piece)
            except OSError as error:
                raise _unusable(listing.folder, path, f"cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    """The first ``size`` bytes of a file; it may grow meanwhile."""
    with path.open("rb") as file:
        while size > 0 and (piece := file.read(min(PIECE, size))):
            size -= len(piece)
            yield piece


def _checksum(images: Sequence[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in images:
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _read_cache(path: Path, listing: _Listing, image_size: int | None) -> FolderData | None:
    """The cached images of a listing; None if there are none or they are not what they must be."""
    try:
        with open_tensors(path) as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            types = {file.get_slice(name).get_dtype() for name in shapes}
            if types != {"U8"} or not _fits(shapes, listing, image_size):
                return None
            images = [file.get_tensor(f"{split}_images") for split in SPLITS]
            about = file.metadata() or {}
            if (about.get("checksum"), about.get("decoder")) != (_checksum(images), _decoder()):
                return None
    except (SafetensorError, OSError, ValueError):
        return None  # missing or damaged: decode again
    return FolderData(images[0], listing.labels("train"), images[1], listing.labels("test"), listing.class_names)


def _fits(shapes: dict[str, tuple[int, ...]], listing: _Listing, image_size: int | None) -> bool:
    """Whether cached shapes are those that the listing decodes to."""
    if shapes.keys() != {f"{split}_images" for split in SPLITS}:
        return False
    channels, side = (*shapes["train_images"][1:3], 0, 0)[:2]
    expected = {f"{split}_images": (len(listing.images[split]), channels, side, side) for split in SPLITS}
    return shapes == expected and channels in (1, 3) and side == (image_size or side) and 1 <= side <= LARGEST_SIDE


def _list(folder: Path) -> _Listing:
    """What lies in a folder.

    Raises:
        BadInput: it is no image folder.
    """
    skipped: Counter[str] = Counter()
    names = _common_classes(folder, skipped)
    images: dict[str, list[tuple[Path, int]]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for index, name in enumerate(names):
            found = sorted(_images(folder, folder / split / name, skipped))
            if not found:
                raise BadInput("--data-dir", folder, f"{split}/{name} holds no image; {LAYOUT}")
            images[split] += [(path, index) for path in found]
    skipped["beside train/ and test/"] += sum(name not in SPLITS for name in os.listdir(folder))
    return _Listing(folder, tuple(names), images, +skipped)


def _common_classes(folder: Path, skipped: Counter[str]) -> list[str]:
    """The classes of both splits."""
    classes = {split: _classes(folder, split, skipped) for split in SPLITS}
    if unlike := sorted(set(classes["train"]) ^ set(classes["test"])):
        where = "train" if unlike[0] in classes["train"] else "test"
        allowed = f"train/ and test/ must have the same classes, and only {where}/ has {unlike[0]}"
        raise BadInput("--data-dir", folder, allowed)
    names = classes["train"]
    if not 2 <= len(names) <= MOST_CLASSES:
        allowed = f"train/ holds {len(names)} classes, and 2 to {MOST_CLASSES} are needed; {LAYOUT}"
        raise BadInput("--data-dir", folder, allowed)
    return names


def _classes(folder: Path, split: str, skipped: Counter[str]) -> list[str]:
    root = folder / split
    try:
        with os.scandir(root) as scanned:
            entries = list(scanned)
        names = in_natural_order(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        skipped["in no folder of a class"] += len(entries) - len(names)
        real = {name: Path(os.path.realpath(root / name)) for name in names}
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or "its name is none"
        raise BadInput("--data-dir", folder, f"{split}/ cannot be listed ({reason}); {LAYOUT}") from error
    for name, path in real.items():
        if not name.isprintable():
            raise BadInput("--data-dir", folder, f"class {name!a} in {split}/ must have printable text as its name")
        if path in (inner := Path(os.path.realpath(root)), *inner.parents):
            raise BadInput("--data-dir", folder, f"{split}/{name} is a link that leads back to what it lies in")
    return names


def _images(folder: Path, directory: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Image files of a class, in folders of any depth; links to folders inside it are not followed."""
    waiting = [directory]
    while waiting:
        current = waiting.pop()
        try:
            with os.scandir(current) as scanned:
                entries = list(scanned)
            for entry in entries:
                path = Path(entry.path)
                if entry.name.startswith("."):
                    skipped["hidden"] += 1
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif path.is_dir():
                    skipped["linked to a folder"] += 1
                elif path.suffix.lower() not in EXTENSIONS:
                    skipped[f"named {path.suffix.lower() or 'without an ending'}"] += 1
                else:
                    yield path
        except OSError as error:
            raise _unusable(folder, current, f"cannot be listed ({error.strerror})") from error


def _decode(listing: _Listing, image_size: int | None) -> FolderData:
    headers = [_try(read_header, listing, path) for split in SPLITS for path, _ in listing.images[split]]
    mode = "L" if all(header.mode in GREY for header in headers) else "RGB"
    side = image_size or _common_side(sorted({header.size for header in headers}))
    channels, spans = len(mode), _spans(headers)
    _check_memory(len(headers), side, channels)
    decoded = []
    for split in SPLITS:
        images = listing.images[split]
        values = np.empty((len(images), channels, side, side), np.uint8)
        for row, (path, _) in enumerate(images):
            values[row] = _try(partial(pixels.pixels, mode=mode, side=side, spans=spans), listing, path)
        decoded.append(torch.from_numpy(values))
    return FolderData(decoded[0], listing.labels("train"), decoded[1], listing.labels("test"), listing.class_names)


def _spans(headers: Sequence[Header]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of all images in a mode that does not say what is black and white."""
    found: dict[str, tuple[float, float]] = {}
    for header in headers:
        if header.extremes:
            low, high = found.get(header.mode, header.extremes)
            found[header.mode] = min(low, header.extremes[0]), max(high, header.extremes[1])
    return found


def _try(read: Callable[[Path], T], listing: _Listing, path: Path) -> T:
    """What a function makes of an image file.

    Raises:
        BadInput: the file is damaged or of a kind that is not converted.
    """
    try:
        return read(path)
    except Unconvertible as error:
        raise _unusable(listing.folder, path, str(error)) from error
    except Exception as error:  # whatever a decoder makes of a damaged file
        raise _unusable(
            listing.folder, path, f"is no readable image ({type(error).__name__}); mend or remove it"
        ) from error


def _common_side(sizes: Sequence[tuple[int, int]]) -> int:
    """Height and width of images that are not resized."""
    first, last = sizes[0], sizes[-1]
    if first != last or first[0] != first[1]:
        found = f"{first[0]}×{first[1]} to {last[0]}×{last[1]}"
        raise BadInput("--image-size", "not given", f"images of {found} pixels need a common square size")
    if first[0] > LARGEST_SIDE:
        allowed = f"images of {first[0]}×{first[0]} pixels must be resized, to {LARGEST_SIDE} at most"
        raise BadInput("--image-size", "not given", allowed)
    return first[0]


def _check_memory(count: int, side: int, channels: int) -> None:
    """Raise :class:`BadInput` if decoded images would not fit into the machine, as bytes and normalised."""
    needed, there = count * channels * side**2 * (1 + 4), _memory()
    if needed > there:
        allowed = f"{count} images of {side}×{side} pixels need {needed >> 30} GiB, and this machine has {there >> 30}"
        raise BadInput("--image-size", side, allowed)


def _memory() -> int:
    """Bytes of the machine's memory; where it does not say, 64 GiB."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**36


def _unusable(folder: Path, path: Path, reason: str) -> BadInput:
    name = str(path.relative_to(folder))
    return BadInput("--data-dir", folder, f"{name if name.isprintable() else ascii(name)} {reason}")

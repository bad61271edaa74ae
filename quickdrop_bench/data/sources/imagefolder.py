"""A user's own images, decoded once into a cached uint8 tensor.

Files that are left out are counted by reason, and said. What is no image, or would need more memory than there is,
ends in one sentence.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from quickdrop_bench.core.errors import BadInput, Missing, printable
from quickdrop_bench.core.files import open_tensors, read_bytes, refuse_links, write_atomically
from quickdrop_bench.data.class_names import in_natural_order
from quickdrop_bench.data.datasets import DATASETS, DataSource, RawData

if TYPE_CHECKING:
    from torch import Tensor

    from quickdrop_bench.data.pixels import Header

EXTENSIONS = {
    *(".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pfm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
}
LAYOUT = "a folder with train/<class>/* and test/<class>/* images is needed"
SPLITS = ("train", "test")

LARGEST_FILE = 2**28
"""Bytes of an image file that is still read."""

log = logging.getLogger(__name__)

T = TypeVar("T")


@DATASETS.register("imagefolder")
class ImageFolder(DataSource):
    """``train/<class>/*`` and ``test/<class>/*``."""

    summary = "your own images: train/<class>/* and test/<class>/*"
    resizable = True

    def load(self, data_dir: Path, image_size: int | None, download: bool) -> RawData:
        """See :func:`load_folder`."""
        if not download and not os.path.exists(data_dir):
            raise Missing("--data-dir", data_dir, "it is not there")
        return load_folder(data_dir, image_size)

    def class_names(self, data_dir: Path) -> tuple[str, ...]:
        """Names of the folders, numbers by size."""
        return tuple(_common_classes(data_dir, Counter()))

    def label(self, name: str, data_dir: Path) -> str:
        """``imagefolder:<name of the folder>``."""
        if not str(data_dir).isprintable():
            raise BadInput("--data-dir", data_dir, "its name must be printable text")
        return f"imagefolder:{data_dir.resolve().name}"

    def key(self, data_dir: Path, image_size: int | None) -> str:
        """Hash of every image's relative path and content, and of the image size."""
        return _key(_list(data_dir), image_size)


@dataclass(frozen=True)
class _Listing:
    """What lies in a folder: image files by split in alphabetical order, each with its class index.

    ``skipped`` counts what is left out, by reason.
    """

    folder: Path
    class_names: tuple[str, ...]
    images: dict[str, list[tuple[Path, int]]]
    skipped: Counter[str]


def _unusable(folder: Path, path: Path, reason: str) -> BadInput:
    return BadInput("--data-dir", folder, f"{printable(str(path.relative_to(folder)))} {reason}")


def cache_dir() -> Path:
    """Where decoded folders are kept: ``$XDG_CACHE_HOME/quickdrop-bench``, by default under ``~/.cache``.

    A user without a home keeps them under ``.cache`` in the working folder.
    """
    home = Path(os.path.expanduser("~"))
    own = os.environ.get("XDG_CACHE_HOME") or (home if home.is_absolute() else Path()) / ".cache"
    return Path(own) / "quickdrop-bench"


def load_folder(folder: Path, image_size: int | None) -> RawData:
    """Decode the folder, or read what was decoded before from the same content.

    Images become 8-bit grey if all are grey, and RGB otherwise: 16 bits are scaled to 8, real numbers and whole ones of
    32 bits from the lowest to the highest value of all such images in the folder; transparent ones are laid on white.
    Hidden files and folders, and files without an image's extension, are left out, which is logged as a warning.

    Args:
        folder: holds ``train/<class>/*`` and ``test/<class>/*``, with the same classes in both.
        image_size: height and width in pixels; None keeps the size that all images must then share.

    Raises:
        BadInput: the folder or an image in it cannot be read, sizes differ, or there is too little memory.
    """
    import torch

    listing = _list(folder)
    if listing.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(listing.skipped.items()))
        name = ImageFolder().label("", folder)
        _say_once(f"{name}: {listing.skipped.total()} files or folders skipped: {reasons}")
    train, test = _decoded_once(listing, image_size)
    labels = [torch.tensor([label for _, label in listing.images[split]]) for split in SPLITS]
    scaled = train.float().div_(255)
    mean, std = scaled.mean((0, 2, 3)).tolist(), scaled.std((0, 2, 3)).clamp_min(1e-3).tolist()
    return RawData(train, labels[0], test, labels[1], listing.class_names, tuple(mean), tuple(std))


@cache
def _say_once(text: str) -> None:
    log.warning("%s", printable(text))


# What lies in a folder ------------------------------------------------------------------------------------------


def _list(folder: Path) -> _Listing:
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
    ImageFolder().label("", folder)  # refuses what no folder is called
    names, others = (_classes(folder, split, skipped) for split in SPLITS)
    if unlike := sorted({*names} ^ {*others}):
        where = "train" if unlike[0] in names else "test"
        allowed = f"train/ and test/ must have the same classes, and only {where}/ has {unlike[0]}"
        raise BadInput("--data-dir", folder, allowed)
    if len(names) < 2:
        raise BadInput("--data-dir", folder, f"train/ holds {len(names)} classes, and 2 are needed; {LAYOUT}")
    return names


def _classes(folder: Path, split: str, skipped: Counter[str]) -> list[str]:
    try:
        with os.scandir(folder / split) as scanned:
            entries = list(scanned)
        names = in_natural_order(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise BadInput("--data-dir", folder, f"{split}/ cannot be listed ({error.strerror}); {LAYOUT}") from error
    if odd := [name for name in names if not name.isprintable()]:
        raise BadInput("--data-dir", folder, f"class {odd[0]!a} in {split}/ must have printable text as its name")
    skipped["in no folder of a class"] += len(entries) - len(names)
    return names


def _images(folder: Path, directory: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Image files of a class, in folders of any depth; links to folders inside it are not followed."""

    def fail(error: OSError) -> NoReturn:
        raise _unusable(folder, Path(error.filename), f"cannot be listed ({error.strerror})") from error

    for place, folders, names in os.walk(directory, onerror=fail):
        skipped["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [name for name in folders if not name.startswith(".")]
        skipped["linked to a folder"] += sum(os.path.islink(os.path.join(place, name)) for name in folders)
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in EXTENSIONS:
                yield path
            else:
                skipped[f"named {path.suffix.lower() or 'without an ending'}"] += 1


def _key(listing: _Listing, image_size: int | None) -> str:
    digest = hashlib.blake2b(f"size={image_size}".encode(), digest_size=16)
    for path, _ in (*listing.images["train"], *listing.images["test"]):
        name = path.relative_to(listing.folder)
        try:
            content = read_bytes(path, LARGEST_FILE)
        except OSError as error:
            raise _unusable(listing.folder, path, f"cannot be read ({error.strerror})") from error
        digest.update(b"\0%s\0%d\0" % (os.fsencode(name), len(content)))
        digest.update(content)
    return digest.hexdigest()


# Pixels ---------------------------------------------------------------------------------------------------------


def _decoded_once(listing: _Listing, image_size: int | None) -> list[Tensor]:
    """Training and test images, (n, C, S, S) uint8, from the cache where they are there."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    cached = cache_dir() / f"imagefolder-{_key(listing, image_size)}-{_decoder()}.safetensors"
    try:
        with open_tensors(cached) as file:
            return [file.get_tensor(f"{split}_images") for split in SPLITS]
    except (SafetensorError, OSError):  # missing or damaged
        images = _decode(listing, image_size)
    # A cache that cannot be written costs time at the next start, nothing else.
    try:
        refuse_links(cached.parent, cached.parent.parent, "cache")
        named = {f"{split}_images": tensor for split, tensor in zip(SPLITS, images, strict=True)}
        write_atomically(cached, lambda temporary: save_file(named, temporary))
    except (OSError, SafetensorError, BadInput) as error:
        reason = getattr(error, "strerror", None) or error
        warnings.warn(f"decoded images are not cached in {cached.parent}: {reason}", stacklevel=2)
    return images


@cache
def _decoder() -> str:
    """Changes with the code that makes pixels of files."""
    import PIL

    from quickdrop_bench.data import pixels

    sources = (Path(__file__).read_bytes(), Path(pixels.__file__).read_bytes(), PIL.__version__.encode())
    return hashlib.blake2b(b"".join(sources), digest_size=8).hexdigest()


def _decode(listing: _Listing, image_size: int | None) -> list[Tensor]:
    import numpy as np
    import torch

    from quickdrop_bench.data.pixels import GREY, pixels, read_header, spans_of

    headers = [_try(read_header, listing, path) for split in SPLITS for path, _ in listing.images[split]]
    mode = "L" if all(header.mode in GREY for header in headers) else "RGB"
    side, spans = image_size or _common_side(headers), spans_of(headers)
    _check_memory(len(headers), side, len(mode))
    decoded = []
    for images in listing.images.values():
        values = np.empty((len(images), len(mode), side, side), np.uint8)
        for row, (path, _) in enumerate(images):
            values[row] = _try(lambda path: pixels(path, mode, side, spans), listing, path)
        decoded.append(torch.from_numpy(values))
    return decoded


def _try(read: Callable[[Path], T], listing: _Listing, path: Path) -> T:
    """What a function makes of an image file."""
    from quickdrop_bench.data.pixels import Unconvertible

    try:
        return read(path)
    except Unconvertible as error:
        raise _unusable(listing.folder, path, str(error)) from error
    except Exception as error:  # whatever a decoder makes of a damaged file
        reason = f"is no readable image ({type(error).__name__}); mend or remove it"
        raise _unusable(listing.folder, path, reason) from error


def _common_side(headers: Sequence[Header]) -> int:
    """Height and width of images that are not resized."""
    (width, height), last = (choose(header.size for header in headers) for choose in (min, max))
    if (width, height) != last or width != height:
        found = f"{width}×{height} to {last[0]}×{last[1]}"
        raise BadInput("--image-size", "not given", f"images of {found} pixels need a common square size")
    return width


def _check_memory(count: int, side: int, channels: int) -> None:
    """Raise :class:`BadInput` if decoded images would not fit into the machine, as bytes and normalised."""
    needed = count * channels * side**2 * (1 + 4)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**36
    if needed > there:
        allowed = f"{count} images of {side}×{side} pixels need {needed >> 30} GiB, and this machine has {there >> 30}"
        raise BadInput("--image-size", side, allowed)

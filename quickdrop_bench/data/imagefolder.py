"""A user's own images, decoded once into a cached uint8 tensor.

Neither the folder nor the cache is trusted: what is no image, or would need more memory than there is, ends in one
sentence, and cached images count only if they are those of the listing and their checksum is right.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from quickdrop_bench.errors import BadInput
from quickdrop_bench.files import file_size, open_tensors, write_atomically

__all__ = ["FolderData", "cache_dir", "folder_key", "folder_label", "load_folder"]

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever the file is called; other decoders of PIL start other programs."""

LAYOUT = "a folder with train/<class>/* and test/<class>/* images is needed"
SPLITS = ("train", "test")

LARGEST_FILE = 2**28
"""Bytes of an image file that is still read."""

LARGEST_SIDE = 1024
"""Pixels of an image that is not resized."""

MOST_CLASSES = 10_000
PIECE = 2**20


@dataclass(frozen=True)
class FolderData:
    """Images (n, C, S, S) uint8 and labels (n,) int64 of both splits; classes in alphabetical order."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class _Listing:
    """What lies in a folder: image files by split in alphabetical order, each with its class index."""

    folder: Path
    class_names: tuple[str, ...]
    images: dict[str, list[tuple[Path, int]]]

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
            folders, and files without an image's extension, are left out.
        image_size: images are resized to this many pixels, height and width; None keeps the size that all
            images must then share.

    Raises:
        BadInput: the folder is missing, empty or unreadable, an image is corrupt or too large, sizes differ, or the
            images need more memory than there is.
    """
    listing = _list(folder)
    cached = cache_dir() / f"imagefolder-{_key(listing, image_size)}.safetensors"
    stored = _read_cache(cached, listing, image_size)
    if stored is None:
        stored = _decode(listing, image_size)
        images = {f"{split}_images": getattr(stored, f"{split}_images") for split in SPLITS}
        about = {"checksum": _checksum(list(images.values()))}
        # A cache that cannot be written costs time at the next start, nothing else.
        try:
            write_atomically(cached, lambda temporary: save_file(images, temporary, metadata=about))
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            warnings.warn(f"decoded images are not cached in {cached.parent}: {reason}", stacklevel=2)
    return stored


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
            if (file.metadata() or {}).get("checksum") != _checksum(images):
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
    classes = {split: _classes(folder, split) for split in SPLITS}
    if unlike := sorted(set(classes["train"]) ^ set(classes["test"])):
        where = "train" if unlike[0] in classes["train"] else "test"
        allowed = f"train/ and test/ must have the same classes, and only {where}/ has {unlike[0]}"
        raise BadInput("--data-dir", folder, allowed)
    names = classes["train"]
    if not 2 <= len(names) <= MOST_CLASSES:
        allowed = f"train/ holds {len(names)} classes, and 2 to {MOST_CLASSES} are needed; {LAYOUT}"
        raise BadInput("--data-dir", folder, allowed)
    images: dict[str, list[tuple[Path, int]]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for index, name in enumerate(names):
            found = sorted(_images(folder, folder / split / name))
            if not found:
                raise BadInput("--data-dir", folder, f"{split}/{name} holds no image; {LAYOUT}")
            images[split] += [(path, index) for path in found]
    return _Listing(folder, tuple(names), images)


def _classes(folder: Path, split: str) -> list[str]:
    root = folder / split
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
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


def _images(folder: Path, directory: Path) -> Iterator[Path]:
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
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif path.suffix.lower() in EXTENSIONS and not path.is_dir():
                    yield path
        except OSError as error:
            raise _unusable(folder, current, f"cannot be listed ({error.strerror})") from error


def _decode(listing: _Listing, image_size: int | None) -> FolderData:
    folder = listing.folder
    headers = [_header(folder, path) for split in SPLITS for path, _ in listing.images[split]]
    mode = "L" if all(mode == "L" for _, mode in headers) else "RGB"
    sizes = sorted({size for size, _ in headers})
    side = image_size or _common_side(sizes)
    channels = 1 if mode == "L" else 3
    _check_memory(len(headers), side, channels)
    decoded = []
    for split in SPLITS:
        images = listing.images[split]
        pixels = np.empty((len(images), side, side, channels), np.uint8)
        for row, (path, _) in enumerate(images):
            pixels[row] = _pixels(folder, path, mode, side)
        decoded.append(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    return FolderData(decoded[0], listing.labels("train"), decoded[1], listing.labels("test"), listing.class_names)


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


def _header(folder: Path, path: Path) -> tuple[tuple[int, int], str]:
    """Size and mode of an image, from its header."""
    try:
        with _quiet(), Image.open(path, formats=FORMATS) as image:
            if 0 in image.size:
                raise ValueError("no pixels")
            return image.size, image.mode
    except Exception as error:  # whatever a decoder makes of a damaged file
        raise _corrupt(folder, path, error) from error


def _pixels(folder: Path, path: Path, mode: str, size: int) -> np.ndarray:
    """(S, S, C) uint8."""
    try:
        with _quiet(), Image.open(path, formats=FORMATS) as opened:
            image = opened.convert(mode)
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(image).reshape(size, size, -1)
    except Exception as error:  # as above
        raise _corrupt(folder, path, error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is said of odd but readable files; more pixels than PIL holds to be harmless are an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _corrupt(folder: Path, path: Path, error: Exception) -> BadInput:
    return _unusable(folder, path, f"is no readable image ({type(error).__name__}); mend or remove it")


def _unusable(folder: Path, path: Path, reason: str) -> BadInput:
    name = str(path.relative_to(folder))
    return BadInput("--data-dir", folder, f"{name if name.isprintable() else ascii(name)} {reason}")

"""A user's own images, decoded once into a cached uint8 tensor."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quickdrop_bench.errors import BadInput
from quickdrop_bench.files import write_atomically

__all__ = ["FolderData", "cache_dir", "folder_key", "folder_label", "load_folder"]

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LAYOUT = "a folder with train/<class>/* and test/<class>/* images is needed"


@dataclass(frozen=True)
class FolderData:
    """Images (n, C, S, S) uint8 and labels (n,) int64 of both splits; classes in alphabetical order."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]


def cache_dir() -> Path:
    """Where decoded folders are kept: ``$XDG_CACHE_HOME/quickdrop-bench``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "quickdrop-bench"


def folder_label(folder: Path) -> str:
    """``imagefolder:<name of the folder>``."""
    return f"imagefolder:{folder.resolve().name}"


def folder_key(folder: Path, image_size: int | None) -> str:
    """Hash of every image's relative path and content, and of the image size.

    Raises:
        BadInput: the folder is missing, lacks a split, is empty or cannot be read.
    """
    digest = hashlib.blake2b(f"size={image_size}".encode(), digest_size=16)
    for split in ("train", "test"):
        for path, _ in _list_images(folder, split):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise BadInput("--data-dir", folder, f"{path.name} cannot be read ({error.strerror})") from error
            digest.update(f"\0{path.relative_to(folder)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def load_folder(folder: Path, image_size: int | None) -> FolderData:
    """Decode the folder, or read what was decoded before from the same content.

    Args:
        folder: holds ``train/<class>/*`` and ``test/<class>/*``, with the same classes in both.
        image_size: images are resized to this many pixels, height and width; None keeps the size that all
            images must then share.

    Raises:
        BadInput: the folder is missing, empty or unreadable, an image is corrupt, or sizes differ.
    """
    cached = cache_dir() / f"imagefolder-{folder_key(folder, image_size)}.safetensors"
    stored = _read_cache(cached)
    if stored is None:
        stored = _decode(folder, image_size)
        tensors = {name: value for name, value in vars(stored).items() if isinstance(value, Tensor)}
        names = {"class_names": json.dumps(stored.class_names)}
        # A cache that cannot be written costs time at the next start, nothing else.
        try:
            write_atomically(cached, lambda temporary: save_file(tensors, temporary, metadata=names))
        except OSError as error:
            warnings.warn(f"decoded images are not cached in {cached.parent}: {error.strerror}", stacklevel=2)
    return stored


def _read_cache(path: Path) -> FolderData | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            names = tuple(json.loads(file.metadata()["class_names"]))
            tensors = {f.name: file.get_tensor(f.name) for f in fields(FolderData) if f.name != "class_names"}
            return FolderData(**tensors, class_names=names)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None  # damaged: decode again


def _classes(folder: Path, split: str) -> list[Path]:
    root = folder / split
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError as error:
        raise BadInput("--data-dir", folder, f"{split}/ cannot be listed ({error.strerror}); {LAYOUT}") from error


def _list_images(folder: Path, split: str) -> list[tuple[Path, int]]:
    """Image files of one split with their class index, in alphabetical order."""
    classes = _classes(folder, split)
    if [c.name for c in classes] != [c.name for c in _classes(folder, "train")]:
        raise BadInput("--data-dir", folder, "train/ and test/ must have the same classes")
    images = []
    for index, directory in enumerate(classes):
        found = sorted(p for p in directory.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        if not found:
            raise BadInput("--data-dir", folder, f"{split}/{directory.name} holds no image; {LAYOUT}")
        images += [(path, index) for path in found]
    if len(classes) < 2:
        raise BadInput("--data-dir", folder, f"{split}/ holds {len(classes)} classes, at least 2 are needed; {LAYOUT}")
    return images


def _decode(folder: Path, image_size: int | None) -> FolderData:
    splits = {split: _list_images(folder, split) for split in ("train", "test")}
    headers = [_open(folder, path) for images in splits.values() for path, _ in images]
    mode = "L" if all(mode == "L" for _, mode in headers) else "RGB"
    sizes = sorted({size for size, _ in headers})
    if image_size is None:
        if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
            found = f"{sizes[0][0]}×{sizes[0][1]} to {sizes[-1][0]}×{sizes[-1][1]}"
            raise BadInput("--image-size", "not given", f"images of {found} pixels need a common square size")
        image_size = sizes[0][0]
    tensors: dict[str, Tensor] = {}
    for split, images in splits.items():
        channels = 1 if mode == "L" else 3
        pixels = np.empty((len(images), image_size, image_size, channels), np.uint8)
        for row, (path, _) in enumerate(images):
            pixels[row] = _pixels(folder, path, mode, image_size)
        tensors[f"{split}_images"] = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        tensors[f"{split}_labels"] = torch.tensor([label for _, label in images])
    return FolderData(**tensors, class_names=tuple(c.name for c in _classes(folder, "train")))


def _open(folder: Path, path: Path) -> tuple[tuple[int, int], str]:
    """Size and mode of an image, from its header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.size, image.mode
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        raise _corrupt(folder, path, error) from error


def _pixels(folder: Path, path: Path, mode: str, size: int) -> np.ndarray:
    """(S, S, C) uint8."""
    try:
        with Image.open(path) as opened:
            image = opened.convert(mode)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise _corrupt(folder, path, error) from error
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(size, size, -1)


def _corrupt(folder: Path, path: Path, error: BaseException) -> BadInput:
    reason = type(error).__name__
    return BadInput(
        "--data-dir", folder, f"{path.relative_to(folder)} is no readable image ({reason}); mend or remove it"
    )

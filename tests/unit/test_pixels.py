"""Image folders in every mode that Pillow opens: converted as computed here by hand, or refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.sources.imagefolder import load_folder

RAMP = np.array([[0, 1, 64], [127, 128, 200], [254, 255, 90]], np.uint8)
"""Grey levels of a picture of 3×3 pixels."""

Save = Callable[[Path], object]


def folder_of(root: Path, suffix: str, save: Save, count: int = 2) -> Path:
    """A folder with two classes of one and the same picture, given without its suffix."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                save(root / split / name / f"{k}{suffix}")
    return root


def picture(pixels: np.ndarray, mode: str | None = None, **options: Any) -> Save:
    size = pixels.shape[1::-1]
    image = Image.frombytes(mode, size, pixels.tobytes()) if mode else Image.fromarray(pixels)
    return lambda path: image.save(path, **options)


def decoded(root: Path, suffix: str, save: Save, size: int | None = None) -> np.ndarray:
    """(C, H, W) of the first picture."""
    return load_folder(folder_of(root / "pics", suffix, save), size).train_images[0].numpy()


def stacked(*channels: np.ndarray) -> np.ndarray:
    return np.dstack(channels).astype(np.uint8)


OPAQUE, HALF, CLEAR = (np.full((3, 3), alpha, np.uint8) for alpha in (255, 128, 0))
DARK = np.zeros((3, 3), np.uint8)


def palette_with_a_clear_entry(path: Path) -> None:
    image = Image.frombytes("P", (2, 2), bytes([0, 1, 1, 0]))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(path, transparency=0)


def pgm(values: np.ndarray, most: int) -> Save:
    header = f"P5 {values.shape[1]} {values.shape[0]} {most}\n".encode()
    content = values.astype(">u2" if most > 255 else np.uint8).tobytes()
    return lambda path: path.write_bytes(header + content)


def tiff(content: bytes, photometric: int, bits: tuple[int, int], *more: tuple[int, int]) -> Save:
    """A TIFF of 2×2 pixels, of at most two samples; further tags hold one number."""
    samples = 2 if bits[1] else 1
    tags = {256: 2, 257: 2, 258: bits[0] + (bits[1] << 16), 259: 1, 262: photometric, 273: 8, 277: samples, 278: 2}
    tags |= {279: len(content), **dict(more)}
    entries = [struct.pack("<HHII", tag, 3, samples if tag == 258 else 1, tags[tag]) for tag in sorted(tags)]
    body = content + b"".join([struct.pack("<H", len(tags)), *entries, bytes(4)])
    return lambda path: path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(content)) + body)


TWELVE_BITS = tiff(bytes([0x00, 0x0F, 0xFF, 0x80, 0x04, 0x00]), 1, (12, 0))
"""0 and 4095 above 2048 and 1024: two pixels in three bytes."""

WIDE = RAMP.astype(np.uint16) * 257
REAL = np.array([[-1.0, 0.0], [0.5, 3.0]], np.float32)
GREY: Mapping[str, tuple[str, Save, np.ndarray]] = {
    "one bit": (".png", picture(RAMP > 100), (RAMP > 100) * 255),
    "8 bits": (".png", picture(RAMP), RAMP),
    "16 bits of PNG": (".png", picture(WIDE), RAMP),
    "16 bits of TIFF": (".tif", picture(WIDE), RAMP),
    "16 bits, the other order": (".tif", picture(WIDE.astype(">u2")), RAMP),
    "12 bits of TIFF": (".tif", TWELVE_BITS, np.array([[0, 255], [128, 64]])),
    "16 bits of PGM": (".pgm", pgm(WIDE, 65535), RAMP),
    "10 bits of PGM": (".pgm", pgm(np.array([[0, 1023], [512, 1]]), 1023), np.array([[0, 255], [128, 0]])),
    "4 bits of PGM": (".pgm", pgm(np.array([[0, 15], [1, 7]]), 15), np.array([[0, 255], [17, 119]])),
    "real": (".tif", picture(REAL), np.array([[0, 64], [96, 255]])),
    "whole, 32 bits": (".tif", picture(np.array([[-100, 0], [100, 300]], np.int32)), np.array([[0, 64], [128, 255]])),
    "all of one value": (".tif", picture(np.full((2, 2), 0.25, np.float32)), np.zeros((2, 2))),
    "shape in alpha": (".png", picture(stacked(DARK, RAMP), "LA"), 255 - RAMP),
    "half clear": (".png", picture(stacked(RAMP, HALF), "LA"), np.rint(RAMP * (128 / 255) + 127)),
    "a clear grey": (".png", picture(RAMP, transparency=64), np.where(RAMP == 64, 255, RAMP)),
    "premultiplied": (
        ".tif",
        tiff(bytes([0, 255, 0, 0, 64, 128, 128, 128]), 1, (8, 8), (338, 1)),
        [[0, 255], [191, 255]],
    ),
}


@pytest.mark.parametrize(("suffix", "save", "expected"), GREY.values(), ids=GREY.keys())
def test_grey_of_every_depth(tmp_path: Path, suffix: str, save: Save, expected: np.ndarray) -> None:
    found = decoded(tmp_path, suffix, save)
    assert found.shape[0] == 1
    np.testing.assert_allclose(found[0].astype(int), expected, atol=1)


CLEAR_ENTRY = np.array([[[255] * 3, [200, 100, 50]], [[200, 100, 50], [255] * 3]])
COLOURS = stacked(RAMP, RAMP.T, 255 - RAMP)
BLUE = COLOURS == (0, 0, 255)
RGB: Mapping[str, tuple[str, Save, np.ndarray]] = {
    "RGB": (".png", picture(COLOURS), COLOURS),
    "bitmap": (".bmp", picture(COLOURS), COLOURS),
    "shape in alpha": (".png", picture(stacked(DARK, DARK, DARK, RAMP)), stacked(*[255 - RAMP] * 3)),
    "clear": (".webp", picture(stacked(DARK, DARK, DARK, CLEAR), lossless=True), np.full((3, 3, 3), 255)),
    "opaque": (".png", picture(np.dstack([COLOURS, OPAQUE])), COLOURS),
    "a clear colour": (".png", picture(COLOURS, transparency=(0, 0, 255)), np.where(BLUE, 255, COLOURS)),
    "a clear entry": (".png", palette_with_a_clear_entry, CLEAR_ENTRY),
    "a clear entry of GIF": (".gif", palette_with_a_clear_entry, CLEAR_ENTRY),
    "four inks": (".tif", picture(stacked(DARK, DARK, DARK, RAMP), "CMYK"), stacked(*[255 - RAMP] * 3)),
}


@pytest.mark.parametrize(("suffix", "save", "expected"), RGB.values(), ids=RGB.keys())
def test_colour_of_every_kind(tmp_path: Path, suffix: str, save: Save, expected: np.ndarray) -> None:
    found = decoded(tmp_path, suffix, save)
    np.testing.assert_allclose(np.moveaxis(found, 0, -1).astype(int), expected, atol=1)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pictures_stand_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = np.zeros((16, 16), np.uint8)
    upright[:8, :8] = 255
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # quarter turns to the left that the camera made
    about = Image.Exif()
    about[274] = orientation
    found = decoded(tmp_path, suffix, picture(np.rot90(upright, turns), exif=about))
    assert np.abs(found.mean(0) - upright).max() < 40


def two_frames(path: Path) -> None:
    first, second = (Image.new("L", (3, 3), value) for value in (1, 200))
    first.save(path, save_all=True, append_images=[second])


REFUSED: Mapping[str, tuple[str, Save, str]] = {
    "LAB": (".tif", picture(COLOURS, "LAB"), "is in the mode LAB, which is not converted"),
    "two images": (".tif", two_frames, "holds 2 images, and one is needed"),
    "a moving picture": (".gif", two_frames, "holds 2 images, and one is needed"),
    "16 bits and a clear grey": (".png", picture(WIDE, transparency=257), "has a transparent colour, and not 8 bits"),
    "2 bits and a clear grey": (".png", picture(RAMP, bits=2, transparency=2), "has a transparent colour, and not 8"),
    "16 bits from white to black": (".tif", tiff(bytes(8), 0, (16, 0)), "counts from white to black"),
    "NaN": (".tif", picture(np.full((3, 3), np.nan, np.float32)), "holds values that are not finite"),
    "more than 31 bits": (".tif", tiff(b"\xff" * 16, 1, (32, 0)), "holds values above 2^31"),
}


@pytest.mark.parametrize(("suffix", "save", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_converted_is_refused_by_name(tmp_path: Path, suffix: str, save: Save, named: str) -> None:
    with pytest.raises(BadInput, match=r"^--data-dir ") as caught:
        decoded(tmp_path, suffix, save)
    assert f"train/a/0{suffix} {named}" in str(caught.value)


def test_reals_are_scaled_by_the_range_of_the_folder(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "pics", ".tif", picture(np.zeros((2, 2), np.float32)))
    picture(np.full((2, 2), 4, np.float32))(root / "train" / "a" / "0.tif")
    picture(np.full((2, 2), 1, np.float32))(root / "test" / "b" / "1.tif")
    data = load_folder(root, None)
    assert data.train_images.amax((1, 2, 3)).tolist() == [255, 0, 0, 0]
    assert data.test_images.amax((1, 2, 3)).tolist() == [0, 0, 0, 64]


MODES = {
    "1": ".png",
    "L": ".pgm",
    "LA": ".png",
    "P": ".gif",
    "RGB": ".jpg",
    "RGBA": ".png",
    "I;16": ".png",
    "F": ".tif",
}


@pytest.mark.parametrize("modes", [("L", "1", "I;16"), ("F", "RGB", "P"), ("LA", "RGBA")])
@pytest.mark.parametrize("size", [None, 5])
def test_what_is_cached_equals_what_was_decoded(tmp_path: Path, modes: tuple[str, ...], size: int | None) -> None:
    def save(path: Path) -> None:
        for mode in modes:
            values = np.random.default_rng(0).integers(0, 256, (7, 7)).astype(np.uint16 if mode == "I;16" else np.uint8)
            image = Image.fromarray(values)
            (image if mode == "I;16" else image.convert(mode)).save(path.with_suffix(f".{mode}{MODES[mode]}"))

    root = folder_of(tmp_path / "pics", "", save)
    fresh, cached = load_folder(root, size), load_folder(root, size)
    for one, other in zip(asdict(fresh).values(), asdict(cached).values(), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert cached.train_images.dtype == torch.uint8
    assert fresh.train_images.stride() == cached.train_images.stride()

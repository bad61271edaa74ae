"""One image file as 8-bit grey or RGB pixels, whatever mode Pillow opens it in."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever the file is called; other decoders of Pillow start other programs."""

SIXTEEN = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
DEEP = SIXTEEN | {"F", "I"}
"""Modes with more than 8 bits, all of them grey."""

GREY = DEEP | {"1", "L", "LA", "La"}
COLOUR = frozenset({"CMYK", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr"})

FEW_BITS = ("1", "L;2", "L;4")
"""What Pillow calls grey PNG of fewer than 8 bits."""

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Tags of a TIFF."""

Span = tuple[float, float]
"""The values that become black and white."""


class Unconvertible(Exception):
    """A readable image whose pixels cannot be told rightly; the message ends a sentence that begins with its name."""


@dataclass(frozen=True)
class Header:
    """What must be known of an image before it is converted with others.

    Attributes:
        size: width and height in pixels.
        mode: as Pillow calls it.
        extremes: lowest and highest value of an image whose mode does not say what is black and white; None for others.
    """

    size: tuple[int, int]
    mode: str
    extremes: Span | None


def read_header(path: Path) -> Header:
    """Open an image and check that it can be converted.

    Raises:
        Unconvertible: it cannot.
    """
    with _opened(path) as image:
        if 0 in image.size:
            raise ValueError("no pixels")
        _check(image)
        ranged = image.mode in DEEP and _span(image) is None
        return Header(image.size, image.mode, _extremes(image) if ranged else None)


def pixels(path: Path, mode: str, side: int, spans: Mapping[str, Span]) -> np.ndarray:
    """A (C, side, side) uint8 image turned upright as EXIF has it, on white where it is transparent, resized.

    Args:
        path: of a file that :func:`read_header` accepts.
        mode: ``L`` or ``RGB``.
        side: height and width in pixels.
        spans: see :func:`spans_of`.
    """
    with _opened(path) as opened:
        span = (_span(opened) or spans[opened.mode]) if opened.mode in DEEP else None
        image = ImageOps.exif_transpose(opened)
        if span:
            image = _in_8_bits(image, span)
        elif image.has_transparency_data:
            layer = image.convert("LA") if image.mode == "La" else image  # no other way leads out of La
            layer = layer.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        image = image.convert(mode)
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        return np.moveaxis(np.asarray(image).reshape(side, side, -1), -1, 0)


def spans_of(headers: Iterable[Header]) -> dict[str, Span]:
    """Lowest and highest value of all images in a mode that does not say what is black and white, by mode."""
    found: dict[str, Span] = {}
    for header in headers:
        if header.extremes:
            low, high = found.get(header.mode, header.extremes)
            found[header.mode] = min(low, header.extremes[0]), max(high, header.extremes[1])
    return found


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    """Nothing is said of odd but readable files; more pixels than Pillow holds to be harmless are an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            yield image


def _check(image: ImageFile) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # of a camera's JPEG, the first one is the photograph
        raise Unconvertible(f"holds {frames} images, and one is needed")
    if image.mode not in GREY | COLOUR:
        raise Unconvertible(f"is in the mode {image.mode}, which is not converted; save it as grey or RGB")
    bits = str(image.tile[0].args) if image.format == "PNG" and image.tile else ""
    spread = image.mode in SIXTEEN or bits.endswith(";16B") or bits in FEW_BITS
    if spread and isinstance(image.info.get("transparency"), int | tuple):
        # Pillow brings the pixels to 8 bits, and not the colour that is declared to be transparent.
        raise Unconvertible("has a transparent colour, and not 8 bits; save it with 8 bits")
    if image.mode in DEEP and _tag(image, PHOTOMETRIC, 1) == 0:
        raise Unconvertible("counts from white to black in more than 8 bits; save it with black as 0")


def _tag(image: ImageFile, tag: int, default: int) -> int:
    """A TIFF's tag; the default for other images."""
    value = image.tag_v2.get(tag, default) if image.format == "TIFF" else default  # type: ignore[attr-defined]
    return int(value[0] if isinstance(value, tuple) else value)


def _span(image: ImageFile) -> Span | None:
    """Black and white of a deep image by its number of bits; None for real numbers, and for whole ones of 32 bits."""
    if image.mode in SIXTEEN:
        return 0, 2 ** _tag(image, BITS, 16) - 1
    return (0, 65535) if image.mode == "I" and image.format != "TIFF" else None  # PGM is spread over 16 bits


def _extremes(image: ImageFile) -> Span:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise Unconvertible("holds values that are not finite")
    if image.mode == "I" and low < 0 and _tag(image, SAMPLE_FORMAT, 1) == 1:
        raise Unconvertible("holds values above 2^31, which are not converted")
    return low, high


def _in_8_bits(image: Image.Image, span: Span) -> Image.Image:
    """A deep image as L; Pillow rounds down, and takes what is beyond black or white for these."""
    low, high = span
    factor = 255 / ((high - low) or 1)
    return image.convert("F").point(lambda value: value * factor + (0.5 - low * factor)).convert("L")

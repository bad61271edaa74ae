"""Lists that a user types, ``a,b``: of names, numbers and classes, each once."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import read_bytes, reason_of
from quickdrop_bench.data.class_names import class_index
from quickdrop_bench.data.requests import Samples

LARGEST = 2**24
"""Bytes of a list of samples that is still read."""


def split(option: str, text: object) -> list[str]:
    """The parts of a list as the user types it, ``a,b``.

    Raises:
        BadInput: one is given twice.
    """
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    check_once(option, text, parts)
    return parts


def check_once(option: str, text: object, values: Collection[object]) -> None:
    """Raise :class:`BadInput` unless the values of a list differ."""
    if len(set(values)) < len(values):
        raise BadInput(option, text, "each must be given once")


def numbers(option: str, text: object, *, whole: bool = False) -> list[float]:
    """A list of numbers ≥ 0 to be swept, as the user types it, ``1,10``; ``whole`` ones are integers.

    Raises:
        BadInput: it is empty or no such list, or a number is given twice.
    """
    parts = split(option, text)
    pattern, kind = (r"\d{1,9}", "whole numbers") if whole else (r"\d+(\.\d+)?(e-?\d+)?", "numbers")
    if not parts or not all(re.fullmatch(pattern, part) for part in parts):
        raise BadInput(option, text, f"{kind} are needed, as 1,10,100")
    values = [int(part) if whole else float(part) for part in parts]
    check_once(option, text, values)
    return values


def numbers_of(option: str, text: object) -> tuple[int, ...]:
    """A list of whole numbers as the user types it, ``9,3``.

    Raises:
        BadInput: it is none, or one is given twice.
    """
    try:
        numbers = tuple(int(part) for part in str(text).split(",") if part.strip())
    except ValueError:
        raise BadInput(option, text, "a number, or several as 9,3, is needed") from None
    check_once(option, text, numbers)
    return numbers


def classes_of(text: object, names: Sequence[str], note: str = "") -> tuple[int, ...]:
    """A list of classes as the user types it, ``cat,dog`` or ``9,3``; see :func:`class_index`."""
    classes = tuple(class_index(part, names, note) for part in split("--class", text))
    check_once("--class", text, classes)
    return classes


def samples_of(text: object) -> list[Samples]:
    """Samples as the user types them: numbers of random ones, ``100,50`` one after the other, or a file.

    Args:
        text: of the option; a file lists ``client,row`` a line.

    Raises:
        BadInput: a number is 0, or the file cannot be read, lists nothing, no pair of numbers or a row twice.
    """
    if re.fullmatch(r"[\d,\s]*", str(text), re.ASCII):
        counts = numbers_of("--samples", text)
        if not all(counts):
            raise BadInput("--samples", text, "at least 1 is needed")
        return [Samples(count) for count in counts]
    try:
        lines = read_bytes(Path(str(text)).expanduser(), LARGEST).decode("utf-8-sig").splitlines()
    except (OSError, ValueError, RuntimeError) as error:
        reason = f"a number, or a file that lists client,row a line, is needed ({reason_of(error)})"
        raise BadInput("--samples", text, reason) from error
    return [Samples(0, _pairs(text, lines))]


def _pairs(path: object, lines: Sequence[str]) -> tuple[tuple[int, int], ...]:
    pairs: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        found = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", line, re.ASCII)
        if not found:
            raise BadInput("--samples", path, f"line {number} is not client,row, as 3,1705")
        client, row = map(int, found.groups())
        if row in pairs:
            raise BadInput("--samples", path, f"line {number} lists row {row} again")
        pairs[row] = client
    if not pairs:
        raise BadInput("--samples", path, "it lists nothing; client,row a line is needed")
    return tuple((client, row) for row, client in sorted(pairs.items()))

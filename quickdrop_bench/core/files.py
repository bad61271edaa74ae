"""Files that are either the old or the new version, never half of one, and reading that trusts no file."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open

from quickdrop_bench.core.errors import BadInput, exhausted

ROWS, MANIFEST = "rows.jsonl", "manifest.json"
"""Names of the files that mark a folder as one of rows, or of a trained federation."""

LOG, VERSIONS = "requests.jsonl", "versions"
"""What a trained federation keeps of the requests that it served: which they were, and the models."""

UNFINISHED = re.compile(r"\..+\.([0-9]+)\.tmp(?:\..*)?")
"""What :func:`write_atomically` calls the folder in which it fills a file: the number is the writing process's."""

HEADER = 2**20
"""Bytes of a safetensors header that is still read; thousands of tensors fit."""


def reason_of(error: Exception) -> str:
    """What the system or the safetensors library says of a file that cannot be read or written, on one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file in a temporary folder beside ``path``, flush it to disk, and rename it.

    What killed processes left of earlier attempts goes first, with all that the libraries that they wrote with put
    into the folder beside the file.

    Raises:
        OSError: the folder cannot be created or written; an existing ``path`` is left as it was.
    """
    _check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent.glob(f".{escape(path.name)}.*.tmp*"))
    begin = f".{path.name}.{os.getpid()}.tmp."
    with TemporaryDirectory(prefix=begin, dir=path.parent, ignore_cleanup_errors=True) as folder:
        # The suffix is kept, because writers such as matplotlib choose the format by it.
        temporary = Path(folder, f".new{path.suffix}")
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


def check_replaceable(path: Path) -> None:
    """Raise :class:`OSError` unless a file may be put where the user wants it.

    A device or pipe, as /dev/full, is not replaced, as others may need it; nor is anything that this program keeps:
    what lies beside rows, and in a trained federation all but exported models, ``model-*``.
    """
    _check_name(path)
    if os.path.exists(path) and not os.path.isdir(path):
        file_size(path)
    own = Path(os.path.realpath(path))
    beside_rows = own.name == ROWS or (os.path.lexists(own.with_name(ROWS)) and os.path.lexists(own))
    inside = [folder for folder in own.parents[:3] if os.path.lexists(folder / MANIFEST)]
    if beside_rows or (inside and not (inside[0] == own.parent and own.name.startswith("model-"))):
        raise OSError(errno.EEXIST, "this program keeps its own files there; choose another name", str(path))


def _check_name(path: Path) -> None:
    if not path.name or "\0" in str(path):
        raise OSError(errno.EINVAL, "this is no name of a file", str(path))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; lone surrogates, which JSON may hold, are escaped as JSON does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


@contextmanager
def writing(option: str, folder: object) -> Iterator[None]:
    """Raise :class:`BadInput`, which names the folder and its option, where something in it cannot be written."""
    try:
        yield
    except (OSError, SafetensorError, UnicodeError) as error:
        raise BadInput(option, folder, f"it cannot be written ({reason_of(error)})") from error


def refuse_links(folder: Path, given: Path, option: str) -> None:
    """Look at a folder before something in it is written, moved or deleted: what a link leads to is not ours.

    Args:
        folder: it need not exist; all that lies in it is looked at.
        given: the folder that the user named, ``folder`` or above it. It may be a link itself.
        option: with which it was named.

    Raises:
        BadInput: there is a symbolic link below ``given`` on the way to ``folder``, or anywhere in that.
    """
    own = [folder, *folder.parents][: len(folder.relative_to(given).parts)]
    for path in (*reversed(own), *below(folder)):
        if os.path.islink(path):  # false also for a name that no file can have
            allowed = (
                f"{path.relative_to(given)} in it is a symbolic link, and nothing is written through one; remove it"
            )
            raise BadInput(option, given, allowed)


def damaged(folder: Path, name: str | Path, reason: str) -> BadInput:
    """A trained federation with a damaged file, and the way back: what served requests is not to be deleted."""
    served = os.path.lexists(folder / LOG) or os.path.lexists(folder / VERSIONS)
    way = "move this folder, which holds served requests, away" if served else "delete this folder"
    return BadInput("--artifacts-dir", folder, f"{name} is missing or damaged ({reason}); {way} to train again")


def below(folder: Path) -> Iterator[Path]:
    """All that lies in a folder and its folders, but for what links lead to and what vanishes meanwhile."""
    return (Path(place, name) for place, folders, names in os.walk(folder) for name in (*folders, *names))


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it; what cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left in a folder and below; for whoever alone writes there."""
    _remove_abandoned(below(folder))


def _remove_abandoned(paths: Iterable[Path]) -> None:
    """Of these, remove what :func:`write_atomically` left, unless a process of this machine is at work on it."""
    for path in paths:
        found = UNFINISHED.fullmatch(path.name)
        if found and not _is_another(int(found[1])):
            remove(path)


def _is_another(process: int) -> bool:
    """Whether a process of this number is there, and is not this one."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return process != os.getpid()


def file_size(path: Path) -> int:
    """Size in bytes of a regular file; :class:`OSError` for anything else, as reading a pipe may never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return found.st_size


def read_bytes(path: Path, at_most: int) -> bytes:
    """A regular file's content; :class:`OSError` if it is missing, no regular file, or has more bytes."""
    size = file_size(path)
    if size > at_most:
        raise OSError(errno.EFBIG, f"it is larger than {at_most} bytes", str(path))
    with _not_its_fault(), path.open("rb") as file:
        return file.read(size)  # memory for as many bytes is taken at once


def sha256(path: Path) -> str:
    """Checksum of a file, read piece by piece."""
    with _not_its_fault(), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _not_its_fault() -> Iterator[None]:
    """Raise a :class:`RuntimeError`, as torch does, where the machine has nothing more to open or read a file with.

    Whoever reads files takes an :class:`OSError` for damage, and may advise to delete them.
    """
    try:
        yield
    except OSError as error:
        if exhausted(error):
            raise RuntimeError(str(error)) from error
        raise


@contextmanager
def open_tensors(path: Path, device: str = "cpu") -> Iterator[Any]:
    """A safetensors file, opened once its header is known to be short. It never unpickles.

    Names, dtypes and shapes can be looked at by ``keys()`` and ``get_slice(name)`` before any tensor is read.

    Raises:
        OSError: it is missing, no regular file, or its header too large.
        safetensors.SafetensorError: it is no safetensors file, or of another length than its header says.
    """
    file_size(path)
    with _not_its_fault(), path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > HEADER:
        raise OSError(errno.EFBIG, f"its header is larger than {HEADER} bytes", str(path))
    with safe_open(path, "pt", device=device) as tensors:
        yield tensors

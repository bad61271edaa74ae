"""Which trained federation a user means."""

from __future__ import annotations

import os
from pathlib import Path

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import read_bytes, write_text, writing
from quickdrop_bench.store.artifacts import is_complete

LATEST, LONGEST_NAME = ".latest", 256
"""File beside the federations with the name of the one that ``train`` was asked for last, and its most bytes."""


def find_run(name: str | Path, artifacts_dir: Path = Path("artifacts")) -> Path:
    """The folder of a trained federation.

    Args:
        name: the folder, or its name in ``artifacts_dir``, or as much of the name's beginning as makes it the only
            one, or ``latest``: the one that ``train`` was asked for last.
        artifacts_dir: parent of the trained federations' folders.

    Raises:
        BadInput: there is none, or there are several.
    """
    for path in (Path(name), artifacts_dir / name):
        if is_complete(path):
            return path
    folders = artifacts_dir.glob("*") if os.path.isdir(artifacts_dir) else ()
    known = sorted(path for path in folders if is_complete(path))
    if name == "latest":
        last = artifacts_dir / _asked_last(artifacts_dir)
        if last in known:
            return last
        allowed = f"{last.name} is not trained to its end; the same train goes on with it, or name another"
        raise BadInput("RUN", name, allowed)
    found = [path for path in known if str(name) and path.name.startswith(str(name))]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput("RUN", name, f"several begin like this: {', '.join(p.name for p in found[:5])}")
    there = f"there are {', '.join(p.name for p in known[:5])}" if known else "train one first"
    raise BadInput(
        "RUN", name, f"no trained federation is there, nor in --artifacts-dir {artifacts_dir} under this name; {there}"
    )


def ask_for(folder: Path) -> None:
    """Make a federation the latest for :func:`find_run`, also before it is trained."""
    with writing("--artifacts-dir", folder.parent):
        write_text(folder.parent / LATEST, f"{folder.name}\n")


def _asked_last(artifacts_dir: Path) -> str:
    try:
        return read_bytes(artifacts_dir / LATEST, LONGEST_NAME).decode("utf-8").strip()
    except (OSError, UnicodeError) as error:
        allowed = f"train was asked for no federation in --artifacts-dir {artifacts_dir}; name one, or train one first"
        raise BadInput("RUN", "latest", allowed) from error

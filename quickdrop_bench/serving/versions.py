"""The model versions of a trained federation, ``versions/NNNN.safetensors``, hidden until the log names them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import LOG, VERSIONS, sha256, writing
from quickdrop_bench.functional.aggregation import State, is_finite
from quickdrop_bench.store.schema import Damage
from quickdrop_bench.store.states import read_state, write_tensors

FILE = re.compile(r"\.?([0-9]+)(?:\.new)?\.safetensors")
"""A version's own name, or its hidden one."""


def own_name(folder: Path, version: int) -> Path:
    """Where a version from 1 is once the log names it."""
    return folder / VERSIONS / f"{version:04d}.safetensors"


def hidden_name(folder: Path, version: int) -> Path:
    """Where it is before that."""
    return folder / VERSIONS / f".{version:04d}.new.safetensors"


def on_disk(folder: Path) -> dict[int, Path]:
    """The versions' files by number, under their own names where they have these."""
    paths = sorted((folder / VERSIONS).glob("*.safetensors"))  # hidden ones first
    return {int(found[1]): path for path in paths if (found := FILE.fullmatch(path.name))}


@dataclass(frozen=True)
class Versions:
    """The versions of one federation.

    Attributes:
        folder: of the federation.
        trained: the parameters as trained; every version has parameters of these names, shapes and types, and comes
            to their device.
    """

    folder: Path
    trained: State

    def file(self, version: int) -> Path:
        """Where the parameters of a version from 1 are."""
        return on_disk(self.folder).get(version) or own_name(self.folder, version)

    def save(self, version: int, state: State, metadata: dict[str, str]) -> str:
        """Write a version that the log does not name yet, and return the file's checksum."""
        path = hidden_name(self.folder, version)
        with writing("RUN", self.folder):
            write_tensors(path, state, metadata)
            return sha256(path)

    def load(self, version: int, checksum: str, way_back: str = "") -> State:
        """The parameters of a version from 1, whose file has this checksum by the log.

        Raises:
            BadInput: its file is missing, damaged, or holds no model of this federation; the sentence ends with
                ``way_back``.
        """
        path = self.file(version)
        try:
            state = read_state(path, self.trained)
            if sha256(path) != checksum:
                raise Damage(f"does not match {LOG}")
            if not is_finite(state):
                raise Damage("holds values that are not finite")
        except (OSError, SafetensorError, Damage) as error:
            reason = str(error) if isinstance(error, Damage) else "is missing or damaged"
            raise BadInput("RUN", self.folder, f"{VERSIONS}/{path.name} {reason}{way_back}") from error
        return state

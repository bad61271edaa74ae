"""The model versions of a trained federation on disk, ``versions/NNNN.safetensors``.

A new version lies under a hidden name until the log names it; the rename of the log makes it the current one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import LOG, VERSIONS, remove_unfinished, sha256, writing
from quickdrop_bench.functional.aggregation import State, is_finite
from quickdrop_bench.store.schema import Damage
from quickdrop_bench.store.states import read_state, write_tensors


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
        path, waiting = self._named(version), self.waiting(version)
        return waiting if waiting.exists() and not path.exists() else path

    def waiting(self, version: int) -> Path:
        """Where they are until the log names the version."""
        return self.folder / VERSIONS / f".{version:04d}.new.safetensors"

    def _named(self, version: int) -> Path:
        return self.folder / VERSIONS / f"{version:04d}.safetensors"

    def settle(self, version: int) -> None:
        """Give the current version's file its own name; the command that served it may have been killed before."""
        if self.file(version) == (waiting := self.waiting(version)):
            with suppress(OSError):  # it is found under both
                waiting.replace(self._named(version))

    def save(self, version: int, state: State, metadata: dict[str, str]) -> str:
        """Write a version that the log does not name yet, and return the file's checksum."""
        path = self.waiting(version)
        with writing("RUN", self.folder):
            remove_unfinished(path.parent)  # the lock says that no writer is at work
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

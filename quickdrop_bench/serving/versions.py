"""The model versions of a trained federation on disk, ``versions/NNNN.safetensors``.

A new version lies under a hidden name until the log names it; the rename of the log makes it the current one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import (
    HEADER,
    LOG,
    VERSIONS,
    file_size,
    open_tensors,
    reason_of,
    remove_unfinished,
    sha256,
    write_atomically,
)
from quickdrop_bench.functional.aggregation import State, is_finite

__all__ = ["Versions"]


@dataclass(frozen=True)
class Versions:
    """The versions of one federation.

    Attributes:
        folder: of the federation.
        trained: the parameters as trained; every version has parameters of these names, shapes and types.
        device: where loaded ones are put.
    """

    folder: Path
    trained: State
    device: torch.device

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
        own = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        path = self.waiting(version)
        try:
            remove_unfinished(path.parent)  # the lock says that no writer is at work
            write_atomically(path, lambda temporary: save_file(own, temporary, metadata=metadata))
            return sha256(path)
        except (OSError, SafetensorError) as error:
            raise BadInput("RUN", self.folder, f"it cannot be written ({reason_of(error)})") from error

    def load(self, version: int, checksum: str, way_back: str = "") -> State:
        """The parameters of a version from 1, whose file has this checksum by the log.

        Raises:
            BadInput: its file is missing, damaged, or holds no model of this federation; the sentence ends with
                ``way_back``.
        """
        path = self.file(version)

        def damaged(reason: str) -> BadInput:
            return BadInput("RUN", self.folder, f"{VERSIONS}/{path.name} {reason}{way_back}")

        try:
            if file_size(path) > HEADER + sum(value.nbytes for value in self.trained.values()) + 8:
                raise damaged("is larger than the model")
            if sha256(path) != checksum:
                raise damaged(f"does not match {LOG}")
            with open_tensors(path, str(self.device)) as tensors:
                state: State = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise damaged("is missing or damaged") from error
        if _layout(state) != _layout(self.trained):
            raise damaged("holds another model")
        if not is_finite(state):
            raise damaged("holds values that are not finite")
        return state


def _layout(state: State) -> dict[str, object]:
    return {name: (value.shape, value.dtype) for name, value in state.items()}

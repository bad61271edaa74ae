"""Single models beside a trained federation, as safetensors: parameters by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import HEADER, file_size, open_tensors, reason_of, refuse_links, write_atomically
from quickdrop_bench.functional.aggregation import State

__all__ = ["load", "save"]


def save(path: Path, state: Mapping[str, Tensor], artifacts_dir: Path) -> None:
    """Write a model.

    Raises:
        BadInput: its folder cannot be written, or there is a symbolic link in it.
    """
    refuse_links(path.parent, artifacts_dir, "--artifacts-dir")
    own = {name: value.detach().cpu().clone() for name, value in state.items()}
    try:
        write_atomically(path, lambda temporary: save_file(own, temporary))
    except (OSError, SafetensorError) as error:
        raise BadInput("--artifacts-dir", artifacts_dir, f"it cannot be written ({reason_of(error)})") from error


def load(path: Path, like: Mapping[str, Tensor], artifacts_dir: Path) -> State:
    """Read a model with parameters of the same names, shapes and types as another, onto that one's device.

    Raises:
        BadInput: the file is damaged or holds another model.
    """
    device = next(iter(like.values())).device
    try:
        if file_size(path) > HEADER + sum(value.nbytes for value in like.values()) + 8:
            raise OSError(0, "it is larger than the model")
        with open_tensors(path) as tensors:
            state: State = {name: tensors.get_tensor(name).to(device) for name in tensors.keys()}  # noqa: SIM118
        if {n: (v.shape, v.dtype) for n, v in state.items()} != {n: (v.shape, v.dtype) for n, v in like.items()}:
            raise OSError(0, "it holds another model")
    except (OSError, SafetensorError) as error:
        name = path.relative_to(artifacts_dir)
        allowed = f"{name} is damaged ({reason_of(error)}); delete it, and the model is trained again"
        raise BadInput("--artifacts-dir", artifacts_dir, allowed) from error
    return state

"""Tensors by name as safetensors, and single models that lie beside a trained federation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save as as_bytes
from torch import Tensor

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import (
    HEADER,
    file_size,
    open_tensors,
    reason_of,
    refuse_links,
    write_atomically,
    writing,
)
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.store.schema import Damage


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors from any device; :class:`OSError` or :class:`SafetensorError` if that is not possible."""
    # Cloned because safetensors refuses tensors that share memory, as views of one index do.
    own = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    # Through memory: what the library's own writer writes, no other user may read.
    write_atomically(path, lambda temporary: temporary.write_bytes(as_bytes(own, metadata)))


def read_state(path: Path, like: Mapping[str, Tensor]) -> State:
    """Read a model with parameters of the same names, shapes and types as another, in its order, onto its device.

    Raises:
        Damage: the file holds another model, or is larger than one; its text goes behind the file's name.
        OSError, SafetensorError: it is missing or damaged.
    """
    device = next(iter(like.values())).device
    if file_size(path) > HEADER + sum(value.nbytes for value in like.values()) + 8:
        raise Damage("is larger than the model")
    with open_tensors(path) as tensors:
        state: State = {name: tensors.get_tensor(name).to(device) for name in tensors.keys()}  # noqa: SIM118
    if {n: (v.shape, v.dtype) for n, v in state.items()} != {n: (v.shape, v.dtype) for n, v in like.items()}:
        raise Damage("holds another model")
    return {name: state[name] for name in like}


def save(path: Path, state: Mapping[str, Tensor], artifacts_dir: Path) -> None:
    """Write a model.

    Raises:
        BadInput: its folder cannot be written, or there is a symbolic link in it.
    """
    refuse_links(path.parent, artifacts_dir, "--artifacts-dir")
    with writing("--artifacts-dir", artifacts_dir):
        write_tensors(path, state)


def load(path: Path, like: Mapping[str, Tensor], artifacts_dir: Path) -> State:
    """Read a model as :func:`read_state` does.

    Raises:
        BadInput: the file is damaged or holds another model.
    """
    try:
        return read_state(path, like)
    except (OSError, SafetensorError, Damage) as error:
        reason = f"it {error}" if isinstance(error, Damage) else reason_of(error)
        allowed = f"{path.relative_to(artifacts_dir)} is damaged ({reason}); delete it, and the model is trained again"
        raise BadInput("--artifacts-dir", artifacts_dir, allowed) from error

"""One sentence for whatever cannot be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import reason_of

__all__ = ["writing"]


@contextmanager
def writing(option: str, place: object) -> Iterator[None]:
    """Raise :class:`BadInput` of the option that named the place, if the block cannot write there."""
    try:
        yield
    except (OSError, SafetensorError, UnicodeError) as error:
        raise BadInput(option, place, f"it cannot be written ({reason_of(error)})") from error

"""What Algorithm 1 works on where small sets S and real samples A are kept; no original data are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.data.requests import retain_part

if TYPE_CHECKING:
    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.methods.context import Context

__all__ = ["forget_sets", "retain_sets", "stored"]


def forget_sets(context: Context, sets: Mapping[int, LabelledSet], *, augment: bool) -> dict[int, LabelledSet]:
    """S_f by client: what the request forgets of S, of all holders of the class or of the one client.

    Args:
        context: the request.
        sets: S_i by client.
        augment: mix in A_f, what it forgets of A.
    """
    found = {i: context.forget_part(own, i) for i, own in sets.items()}
    return _joined(found, {i: context.forget_part(context.clients[i].augmentation, i) for i in sets if augment})


def retain_sets(context: Context, sets: Mapping[int, LabelledSet], *, augment: bool) -> dict[int, LabelledSet]:
    """S without everything forgotten, by client; ``augment`` mixes in A without it."""
    gone = context.forgotten
    found = {i: retain_part(own, i, gone) for i, own in sets.items()}
    return _joined(found, {i: retain_part(context.clients[i].augmentation, i, gone) for i in sets if augment})


def stored(context: Context, sets: Mapping[int, LabelledSet], *, augment: bool) -> Storage:
    """Σ over clients of the float32 images of S_i and, if used, A_i."""
    total = sum(own.images.nbytes for own in sets.values())
    total += sum(context.clients[i].augmentation.images.nbytes for i in sets if augment)
    return Storage(client_bytes=total)


def _joined(sets: Mapping[int, LabelledSet], more: Mapping[int, LabelledSet]) -> dict[int, LabelledSet]:
    from quickdrop_bench.data.labelled import concatenate

    return {i: concatenate(own, more[i]) if i in more else own for i, own in sets.items()}

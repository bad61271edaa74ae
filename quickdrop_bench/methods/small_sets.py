"""What Algorithm 1 works on where small sets S and real samples A are kept; no original images are read.

An image of S was distilled from all of a client's images of its class, or of a group within it. A request for some of
these *touches* it: it is unlearned on all images of S that it touches, and afterwards these are learnt from no more. Of
A, which are real, only those that the request names are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.data.requests import UnlearningRequest, forgotten_rows, retain_part

if TYPE_CHECKING:
    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.methods.context import Context


def forget_sets(context: Context, sets: Mapping[int, LabelledSet], *, augment: bool) -> dict[int, LabelledSet]:
    """S_f by client: what the request forgets of S, of all holders of the class or the samples, or of the one client.

    Args:
        context: the request.
        sets: S_i by client.
        augment: mix in A_f, what it forgets of A.
    """
    found = {i: _forget_part(context, own, i) for i, own in sets.items()}
    return _joined(found, {i: context.forget_part(context.clients[i].augmentation, i) for i in sets if augment})


def relearn_sets(context: Context, sets: Mapping[int, LabelledSet]) -> dict[int, LabelledSet]:
    """S_f by client without what other requests touch, which is not to be learnt."""
    others = [r for r in context.forgotten if r != context.request]
    return {
        i: _touched(context, own, i, others, keep=False) for i, own in forget_sets(context, sets, augment=False).items()
    }


def retain_sets(context: Context, sets: Mapping[int, LabelledSet], *, augment: bool) -> dict[int, LabelledSet]:
    """S without everything forgotten and touched, by client; ``augment`` mixes in A without everything forgotten."""
    gone = context.forgotten
    found = {i: _touched(context, retain_part(own, i, gone), i, gone, keep=False) for i, own in sets.items()}
    return _joined(found, {i: retain_part(context.clients[i].augmentation, i, gone) for i in sets if augment})


def stored(context: Context, sets: Mapping[int, LabelledSet], *, augment: bool) -> Storage:
    """Σ over clients of the float32 images of S_i and, if used, A_i."""
    total = sum(own.images.nbytes for own in sets.values())
    total += sum(context.clients[i].augmentation.images.nbytes for i in sets if augment)
    return Storage(client_bytes=total)


def _forget_part(context: Context, own: LabelledSet, client: int) -> LabelledSet:
    """What the request forgets, or touches, of S_i."""
    if context.request.level != "sample":
        return context.forget_part(own, client)
    others = [r for r in context.forgotten if r != context.request]
    return _touched(context, retain_part(own, client, others), client, [context.request], keep=True)


def _touched(
    context: Context, own: LabelledSet, client: int, requests: Sequence[UnlearningRequest], *, keep: bool
) -> LabelledSet:
    """Images of S_i that requests for samples touch (``keep``), or all others (``not keep``)."""
    import torch

    from quickdrop_bench.data.groups import parts_of

    rows, client_data = forgotten_rows(requests), context.clients[client]
    original, groups = client_data.original, client_data.groups
    if not rows:
        return own.none() if keep else own
    parts = parts_of(original.own_labels(), groups)
    gone = parts[torch.isin(original.rows, torch.tensor(sorted(rows), device=parts.device))]
    # A client's rows are in ascending order.
    at = torch.searchsorted(original.rows, own.dataset_rows())
    hit = torch.isin(parts_of(own.own_labels(), None if groups is None else groups.to(at.device)[at]), gone)
    return own.subset(torch.nonzero(hit == keep).flatten())


def _joined(sets: Mapping[int, LabelledSet], more: Mapping[int, LabelledSet]) -> dict[int, LabelledSet]:
    from quickdrop_bench.data.labelled import concatenate

    return {i: concatenate(own, more[i]) if i in more else own for i, own in sets.items()}

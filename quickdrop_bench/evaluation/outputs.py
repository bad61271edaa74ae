"""What a model, or another one in its place, says of images; and which images, where not all are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from quickdrop_bench.core.seeding import generator
from quickdrop_bench.evaluation.accuracy import batch_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from quickdrop_bench.data.labelled import LabelledSet

SCORED = 2500
"""Largest number of training samples that a rate is computed on: its standard error is then at most 1 point."""

Outputs: TypeAlias = "tuple[Tensor, Tensor]"
"""(n, classes) float64 logits and (n,) labels, on the CPU."""


def outputs(model: nn.Module, data: LabelledSet, positions: Tensor) -> Outputs | None:
    """The model's outputs at some positions; None without positions or if a logit is not finite."""
    import torch

    if not len(positions):
        return None
    device = data.rows.device
    batches = (data.take(batch) for batch in positions.to(device).split(batch_size(device)))
    with torch.no_grad():
        found, labels = zip(*((model(images), labels) for images, labels in batches), strict=True)
    logits = torch.cat(found).cpu().double()
    return (logits, torch.cat(labels).cpu()) if logits.isfinite().all() else None


def shuffled(data: LabelledSet, seed: int, name: str) -> Tensor:
    """(n,) positions in an order that depends on the seed and on which rows the set has, not on their order."""
    import torch

    order = data.rows.cpu().argsort(stable=True)
    return order[torch.randperm(len(data), generator=generator(seed, "membership", name))]


def plain(model: nn.Module) -> nn.Module:
    """The module itself, where Fabric has wrapped it."""
    return getattr(model, "module", model)


@contextmanager
def holding(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let a model hold other parameters meanwhile, and its own again afterwards, bit by bit."""
    own = {name: p.detach().clone() for name, p in plain(model).named_parameters()}
    _put(model, state)
    try:
        yield
    finally:
        _put(model, own)


def _put(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in plain(model).named_parameters():
            parameter.copy_(state[name])

"""What clients compute on their whole sets without a local step: logits, or one gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from quickdrop_bench.core.cost import Clock, Cost
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.ranks import spread
from quickdrop_bench.functional.aggregation import State

T = TypeVar("T")

BATCH_SIZE = 512
"""Images of one pass; it bounds memory and does not change what is computed."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""From (B, C) logits and (B,) labels to their mean loss."""


def logits(federation: Federation, state: State, data: Mapping[int, LabelledSet]) -> tuple[dict[int, Tensor], Cost]:
    """One forward pass of a model over each client's set, on the client.

    Args:
        federation: whose working model is used.
        state: parameters by name.
        data: by client; empty sets are left out.

    Returns:
        (n, C) float32 logits by client, in the order of its set, and the cost.
    """

    def compute(z: LabelledSet) -> Tensor:
        with torch.no_grad():
            return torch.cat([federation.model(z.take(part)[0]).float() for part in _parts(z)])

    found, cost = _tensors(federation, "logits", state, data, compute)
    return found, cost + Cost(sample_forwards=sum(map(len, data.values())))


def full_gradients(
    federation: Federation, state: State, data: Mapping[int, LabelledSet], loss: Loss
) -> tuple[dict[int, Tensor], Cost]:
    """The gradient of each client's mean loss over its whole set, on the client.

    Args:
        federation: whose working model is used.
        state: parameters by name.
        data: by client; empty sets are left out.
        loss: of a batch.

    Returns:
        (P,) float32 gradients by client, parameters in the order of ``state``, and the cost without uploads.
    """
    model = federation.model.module  # not Fabric's wrapper: it demands its own backward, which scales the loss
    by_name = dict(model.named_parameters())
    parameters = [by_name[name] for name in state]

    def compute(z: LabelledSet) -> Tensor:
        total = torch.zeros(sum(p.numel() for p in parameters), device=z.rows.device)
        for part in _parts(z):
            images, labels = z.take(part)
            with federation.fabric.autocast():
                output = model(images)
            share = loss(output.float(), labels) * (len(part) / len(z))
            total += torch.cat([g.flatten() for g in torch.autograd.grad(share, parameters)])
        return total

    found, cost = _tensors(federation, "gradients", state, data, compute)
    return found, cost + Cost(sample_gradients=sum(map(len, data.values())))


def _tensors(
    federation: Federation,
    label: str,
    state: State,
    data: Mapping[int, LabelledSet],
    compute: Callable[[LabelledSet], Tensor],
) -> tuple[dict[int, Tensor], Cost]:
    """:func:`on_clients`, and what they found on the federation's device."""
    found, cost = on_clients(federation, label, state, data, lambda z: compute(z).cpu())
    return {client: report.to(federation.fabric.device) for client, report in found.items()}, cost


def on_clients(
    federation: Federation,
    label: str,
    state: State,
    data: Mapping[int, LabelledSet],
    compute: Callable[[LabelledSet], T],
) -> tuple[dict[int, T], Cost]:
    """What each client computes with a model on its set, and the time of that.

    Clients stand in a fixed order, so that sums round alike however they are listed. One uncounted batch of the first
    chooses the kernels.

    Args:
        federation: whose working model is used.
        label: tells processes that share the clients which work this is.
        state: parameters by name.
        data: by client; empty sets are left out.
        compute: of one client's set, on the CPU.
    """
    device = federation.fabric.device
    work = {client: len(data[client]) for client in sorted(data) if len(data[client])}
    federation.load(state)
    if work:
        first = data[min(work)]
        compute(first.subset(torch.arange(min(len(first), BATCH_SIZE))))

    def ask(client: int) -> tuple[T, Cost]:
        clock = Clock(device)
        with clock.running():
            found = compute(data[client])
        return found, clock.cost

    reports = spread(federation.fabric, label, work, ask)
    found = {client: report for client, (report, _) in reports.items()}
    return found, sum((cost for _, cost in reports.values()), Cost())


def _parts(data: LabelledSet) -> Iterator[Tensor]:
    """Positions of the set's batches."""
    yield from torch.arange(len(data), device=data.rows.device).split(BATCH_SIZE)

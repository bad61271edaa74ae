"""What the channels of a model do for each class, measured by the clients in one forward-only round (FU-MP)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.passes import BATCH_SIZE, on_clients
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.functional.pruning import channel_activity, class_sums, pooled_means, prunable_layers


def measure(
    federation: Federation, state: State, data: Mapping[int, LabelledSet], classes: Tensor
) -> tuple[Tensor, Cost]:
    """The forward-only round: every client's channel activity by class, pooled on the server.

    Args:
        federation: simulates the clients.
        state: the model that they measure.
        data: what each client measures, not empty.
        classes: (U,) int64.

    Returns:
        (U, n) float64 means over all samples of a class, and the time that the clients computed.
    """
    with torch.no_grad(), recorded_activity(federation.model.module) as activity:

        def means_of(own: LabelledSet) -> tuple[Tensor, Tensor]:
            mean, count = _client_means(federation.model, activity, own, classes)
            return mean.cpu(), count.cpu()

        reports, cost = on_clients(federation, "channel activity", state, data, means_of)
    means, counts = zip(*reports.values(), strict=True)
    return pooled_means(means, counts).to(classes.device), cost


@contextmanager
def recorded_activity(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds, after each forward pass inside the block, a (B, C) activity per convolution, in order."""
    convs = [model.get_submodule(conv) for conv, _ in prunable_layers(model)]
    activity = [torch.empty(0)] * len(convs)

    def record(layer: int) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            activity[layer] = channel_activity(output)

        return hook

    handles = [conv.register_forward_hook(record(layer)) for layer, conv in enumerate(convs)]
    try:
        yield activity
    finally:
        for handle in handles:
            handle.remove()


def _client_means(
    model: nn.Module, activity: list[Tensor], data: LabelledSet, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """What a client uploads: (U, n) float32 means, zero for classes that it lacks, and (U,) int64 counts."""
    total, count = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for positions in torch.arange(len(data), device=data.rows.device).split(BATCH_SIZE):
        images, labels = data.take(positions)
        model(images)
        sums, members = class_sums(torch.cat(activity, 1), labels, classes)
        total, count = total + sums, count + members
    return (total / count.clamp(min=1)[:, None]).float(), count

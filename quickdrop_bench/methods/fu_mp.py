"""FU-MP: prune the channels that speak for the class, then fine-tune the rest (Wang et al., WWW 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from quickdrop_bench.core.cost import Clock, Cost, Storage
from quickdrop_bench.core.errors import BadInput, Unsupported, positive
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import forgotten_classes, retain_part
from quickdrop_bench.federation.faults import Fate
from quickdrop_bench.federation.ranks import spread
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.functional.pruning import (
    channel_activity,
    choose_channels,
    class_sums,
    pooled_means,
    prunable_layers,
    prune_count,
    tf_idf,
)
from quickdrop_bench.methods.base import METHODS, Context, Search, StageResult
from quickdrop_bench.methods.stages import RECOVERY_SEARCH, Recovery

__all__ = ["FuMp"]

BATCH_SIZE = 512

Layers = Sequence[tuple[str, str | None]]


@METHODS.register("fu-mp")
@dataclass(frozen=True)
class FuMp(Recovery):
    """One round in which clients measure channels by class, pruning on the server, recovery on the original rest.

    It prunes channels of every convolution of any model, those inside residual blocks and their shortcuts too, see
    :func:`~quickdrop_bench.functional.pruning.prunable_layers`.

    Attributes:
        prune_ratio: R, share of all convolution channels that a request prunes, in (0, 1). The paper names none; the
            R-Set of 11.6% that it has right after pruning says that it pruned many.
        score_samples: most images that a client measures, drawn at random; None takes all (QuickDrop, Table 2).
    """

    levels: ClassVar[frozenset[str]] = frozenset({"class"})
    can_relearn: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"forget-data", "retain-data"})
    summary: ClassVar[str] = "prunes the channels most specific to the class, recovery on the original rest"
    search: ClassVar[Search] = {
        "unlearning": {"prune_ratio": (0.1, 0.3, 0.5, 0.7)},
        "recovery": RECOVERY_SEARCH,
    }

    recover_rounds: int = 4
    prune_ratio: float = 0.5
    score_samples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("prune_ratio", self.prune_ratio)
        if self.prune_ratio >= 1:
            raise BadInput("prune_ratio", self.prune_ratio, "a number above 0 and below 1 is needed")
        if self.score_samples is not None:
            positive("score_samples", self.score_samples, at_least=1)

    def unlearn(self, context: Context) -> StageResult:
        """Score the channels in one forward-only round and zero ⌊R·n⌋ of those that are left.

        If nobody holds the class, the state comes back unchanged. Where clients may fail, the statistics of those that
        return decide; one of them holds the class, as nothing could be scored without.

        Raises:
            Unsupported: the request names several classes, as the paper scores one at a time, or no layer has channels.
            BadInput: ``score_samples`` left no image of the class.
        """
        if len(context.request.targets) != 1:
            raise Unsupported("fu-mp", context.request, "it forgets one class at a time")
        if not _layers(context):
            raise Unsupported("fu-mp", context.request, "the model has no convolution whose channels it could prune")
        (target,) = context.request.targets
        data = {i: d for i, d in measurable_data(context).items() if len(d)}
        if not any(target in d.own_labels() for d in data.values()):
            return StageResult(context.state, Cost())
        drawn = {i: self._draw(d, context.seed, i) for i, d in data.items()}
        holders = [i for i, d in drawn.items() if target in d.own_labels()]
        if not holders:
            raise BadInput("score_samples", self.score_samples, f"it left no image of class {target} to measure")
        fates = context.federation.faults.fates(context.seed, "unlearning", 0, list(drawn), holders)
        of = {fate: {i: d for i, d in drawn.items() if fates[i] is fate} for fate in Fate}
        classes = torch.cat([d.own_labels() for d in of[Fate.RETURNS].values()]).unique()
        means, computing = measure(context, of[Fate.RETURNS], classes)
        if in_vain := of[Fate.LATE] | of[Fate.CORRUPT]:
            computing += measure(context, in_vain, classes)[1]
        cost = computing + Cost(
            rounds=1,
            data_size=sum(len(d) for d in data.values()),
            sample_forwards=sum(len(d) for d in (of[Fate.RETURNS] | in_vain).values()),
            # Float32 means and one count per class.
            upload_bytes=4 * len(classes) * (means.shape[1] + 1) * (len(of[Fate.RETURNS]) + len(of[Fate.CORRUPT])),
            dropouts=len(of[Fate.DROPPED]),
            stragglers=len(of[Fate.LATE]),
            rejected_updates=len(of[Fate.CORRUPT]),
        )
        return StageResult(self._prune(context, means, int((classes == target).nonzero())), cost)

    def recover(self, context: Context, state: State) -> StageResult | None:
        """Descent on D without everything forgotten, in which pruned channels stay zero."""
        layers = _layers(context)
        masks = channel_masks(layers, [~zero_filters(state[f"{conv}.weight"]) for conv, _ in layers], state)
        with context.federation.held_at_zero(masks):
            return super().recover(context, state)

    def relearn(self, context: Context, state: State) -> StageResult:
        """Refuse: pruning cannot be undone (QuickDrop, §4.7).

        Raises:
            Unsupported: always.
        """
        raise Unsupported("fu-mp", context.request, "pruned channels cannot learn again what they have forgotten")

    def storage(self, context: Context) -> Storage:
        """Nothing is stored."""
        return Storage()

    def _draw(self, data: LabelledSet, seed: int, client: int) -> LabelledSet:
        if self.score_samples is None or self.score_samples >= len(data):
            return data
        order = torch.randperm(len(data), generator=generator(seed, "fu-mp", client))
        return data.subset(order[: self.score_samples].sort().values)

    def _prune(self, context: Context, means: Tensor, target: int) -> State:
        layers = _layers(context)
        gone = [zero_filters(context.state[f"{conv}.weight"]) for conv, _ in layers]
        widths = [len(layer) for layer in gone]
        pruned = torch.cat(gone)
        count = prune_count(self.prune_ratio, len(pruned))
        chosen = choose_channels(tf_idf(means, target, widths), widths, count, pruned)
        masks = channel_masks(layers, (~(pruned | chosen)).split(widths), context.state)
        return {n: torch.where(masks[n], v, 0) if n in masks else v.clone() for n, v in context.state.items()}


def _layers(context: Context) -> Layers:
    return prunable_layers(context.federation.model.module)


def measurable_data(context: Context) -> dict[int, LabelledSet]:
    """D without what earlier requests forgot, by client; the requested class is still there."""
    clients = [r for r in context.forgotten if r.level == "client"]
    earlier = forgotten_classes(context.forgotten) - set(context.request.targets)
    return {
        i: retain_part(c.original, i, clients).with_classes(earlier, keep=False) for i, c in context.clients.items()
    }


def zero_filters(weight: Tensor) -> Tensor:
    """(C,) bool: which filters of a (C, …) weight are zero throughout, which is how pruned ones are known."""
    return ~weight.flatten(1).any(1)


def channel_masks(layers: Layers, alive: Sequence[Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By name, bool masks that broadcast to every parameter that gives a convolution's channel a value.

    The normalisation belongs to it: over one channel it turns a silent channel into its constant bias.

    Args:
        layers: names of each convolution and of the normalisation behind it.
        alive: one (C,) bool per layer, False for pruned channels.
        state: parameters by name.
    """
    masks = {}
    for names, mask in zip(layers, alive, strict=True):
        for name in (f"{module}.{kind}" for module in names if module for kind in ("weight", "bias")):
            if name in state:
                masks[name] = mask.reshape(-1, *[1] * (state[name].ndim - 1))
    return masks


def measure(context: Context, data: Mapping[int, LabelledSet], classes: Tensor) -> tuple[Tensor, Cost]:
    """The forward-only round: every client's channel activity by class, pooled on the server.

    Args:
        context: of the request.
        data: what each client measures, not empty.
        classes: (U,) int64.

    Returns:
        (U, n) float64 means over all samples of a class, and the time that the clients computed.
    """
    federation = context.federation
    federation.load(context.state)
    with torch.no_grad(), recorded_activity(federation.model.module) as activity:
        first = min(data)
        federation.model(data[first].take(torch.arange(min(len(data[first]), BATCH_SIZE), device=classes.device))[0])

        def ask(client: int) -> tuple[Tensor, Tensor, Cost]:
            clock = Clock(federation.fabric.device)
            with clock.running():
                mean, count = _client_means(federation.model, activity, data[client], classes)
            return mean.cpu(), count.cpu(), clock.cost

        # A fixed order, so that the sums round alike however the clients are listed.
        work = {client: len(data[client]) for client in sorted(data)}
        reports = spread(federation.fabric, "channel activity", work, ask)
    means, counts, costs = zip(*reports.values(), strict=True)
    return pooled_means(means, counts).to(classes.device), sum(costs, Cost())


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

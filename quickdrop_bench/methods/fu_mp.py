"""FU-MP: prune the channels that speak for the class, then fine-tune the rest (Wang et al., WWW 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.cost import Cost, Storage
from quickdrop_bench.core.errors import BadInput, Unsupported, positive
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.requests import forgotten_classes, retain_part
from quickdrop_bench.federation.faults import Fate
from quickdrop_bench.methods.registry import METHODS, Search, StageResult
from quickdrop_bench.methods.stages import RECOVERY_SEARCH, Recovery

if TYPE_CHECKING:
    from torch import Tensor

    from quickdrop_bench.data.labelled import LabelledSet
    from quickdrop_bench.functional.aggregation import State
    from quickdrop_bench.methods.context import Context


@METHODS.register("fu-mp")
@dataclass(frozen=True)
class FuMp(Recovery):
    """One round in which clients measure channels by class, pruning on the server, recovery on the original rest.

    It prunes channels of every convolution of any model, those inside residual blocks and their shortcuts too, see
    :func:`~quickdrop_bench.functional.pruning.prunable_layers`.

    Attributes:
        prune_ratio: share R of all convolution channels that a request prunes, in (0, 1); the paper names none.
        score_samples: most images that a client measures, drawn at random; without it all.
    """

    title: ClassVar[str] = "FU-MP"
    color: ClassVar[str] = "#009E73"
    order: ClassVar[int] = 500
    levels: ClassVar[frozenset[str]] = frozenset({"class"})
    can_relearn: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"forget-data", "retain-data"})
    summary: ClassVar[str] = "prunes the channels most specific to the class, then recovers"
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
        import torch

        from quickdrop_bench.federation.channels import measure

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
        means, computing = measure(context.federation, context.state, of[Fate.RETURNS], classes)
        if in_vain := of[Fate.LATE] | of[Fate.CORRUPT]:
            computing += measure(context.federation, context.state, in_vain, classes)[1]
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
        from quickdrop_bench.functional.pruning import channel_masks, zero_filters

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
        import torch

        if self.score_samples is None or self.score_samples >= len(data):
            return data
        order = torch.randperm(len(data), generator=generator(seed, "fu-mp", client))
        return data.subset(order[: self.score_samples].sort().values)

    def _prune(self, context: Context, means: Tensor, target: int) -> State:
        import torch

        from quickdrop_bench.functional import pruning

        layers = _layers(context)
        gone = [pruning.zero_filters(context.state[f"{conv}.weight"]) for conv, _ in layers]
        widths = [len(layer) for layer in gone]
        pruned = torch.cat(gone)
        count = pruning.prune_count(self.prune_ratio, len(pruned))
        chosen = pruning.choose_channels(pruning.tf_idf(means, target, widths), widths, count, pruned)
        masks = pruning.channel_masks(layers, (~(pruned | chosen)).split(widths), context.state)
        return {n: torch.where(masks[n], v, 0) if n in masks else v.clone() for n, v in context.state.items()}


def _layers(context: Context) -> list[tuple[str, str | None]]:
    from quickdrop_bench.functional.pruning import prunable_layers

    return prunable_layers(context.federation.model.module)


def measurable_data(context: Context) -> dict[int, LabelledSet]:
    """D without what earlier requests forgot, by client; the requested class is still there."""
    owned = [r for r in context.forgotten if r.level != "class"]
    earlier = forgotten_classes(context.forgotten) - set(context.request.targets)
    return {i: retain_part(c.original, i, owned).with_classes(earlier, keep=False) for i, c in context.clients.items()}

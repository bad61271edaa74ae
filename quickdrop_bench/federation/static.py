"""Local steps for a GPU: shapes that never change, no question to the device, each step replayed as a CUDA graph.

The reference is :class:`~quickdrop_bench.federation.local.LoopEngine`. What the host knows (batches, their classes, the
synthetic images of each step) is planned beforehand and copied at once; a batch that is short and a class that is
missing stay in place with weight zero. With distillation the passes are written out layer by layer where the model's
layers are known, and left to autograd, within the same shapes, where they are not, as in ResNet-18, or in bf16.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.plugins.precision import Precision
from torch import Tensor, nn

from quickdrop_bench.core.cost import Clock, Cost
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.distillation.in_situ import Distillation, SyntheticSet
from quickdrop_bench.federation.local import LocalResult, LocalWork
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.federation.plan import Plan, plan_steps, synthetic_images, with_matching
from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.layers import is_listed, sequence_of
from quickdrop_bench.functional.matching import ClassGradients
from quickdrop_bench.functional.second_order import class_gradients

STAGED = 64
"""Steps whose images lie ready on the device; a client with more steps is served in several portions."""

EIGHT = 8
"""Synthetic images of a step are padded to a multiple of it."""

FUSED = 256
"""Narrowest batch whose kernels are worth fusing by the compiler; narrower ones are bound by launches."""

Gradients = tuple[Tensor, list[Tensor], list[Tensor]]
"""A batch's loss, its gradients by parameter, and those of each class's mean loss, (K, ...) by weight."""

PRECISIONS = ("32-true", "bf16-mixed")
"""Those of Fabric in which steps are replayed: the scaling of the loss in ``16-mixed`` asks the device at each step."""


@dataclass(frozen=True)
class _Kind:
    """What one graph is for: B, M (0 if nothing is matched), and whether it obeys a stopping rule and masks.

    If it is watched, weights' gradients are sums over classes though nothing is matched; in bf16 these round otherwise.
    """

    width: int
    images: int
    bounded: bool
    masked: bool
    watched: bool = False


class _Steps:
    """The buffers of one kind of step, and its parts ready to be replayed.

    Images of the coming steps are laid into ``images``, (STAGED, B, C, H, W); ``capacity`` is the most of a client's
    synthetic ones. All graphs share the memory ``pool`` (None without a GPU): what a step hands from one of its graphs
    to the next is alive when the next is captured, and steps of different kinds never mix.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: _Kind,
        settings: Distillation | None,
        images: Tensor,
        classes: int,
        capacity: int,
        precision: Precision,
        *,
        fuse: bool,
        pool: Any = None,
    ) -> None:
        self._model, self._kind, self._settings, self._classes = model, kind, settings, classes
        self._precision = precision
        self.parameters = dict(model.named_parameters())
        device = next(iter(self.parameters.values())).device
        zeros = {"device": device, "dtype": torch.float32}
        self.images = images
        self.whole = torch.zeros(STAGED, 2 * (kind.width + kind.images), device=device, dtype=torch.int64)
        self.numbers = torch.zeros(STAGED, kind.width + 2 * classes + kind.images, **zeros)  # type: ignore[call-overload]
        self.t = torch.zeros(1, device=device, dtype=torch.int64)
        self.rate, self.stop = torch.zeros((), **zeros), torch.zeros((), **zeros)  # type: ignore[call-overload]
        self.alive = torch.ones((), device=device, dtype=torch.bool)
        self.masks = [torch.ones_like(p) for p in self.parameters.values()]
        self.synthetic, self.velocity = (torch.zeros(capacity, *images.shape[2:], **zeros) for _ in range(2))  # type: ignore[call-overload]
        # Sum of the batches' losses, batches, samples, sum of the distances.
        self.sums = torch.zeros(4, device=device, dtype=torch.float64)
        self._gradients: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._matched = ClassGradients(model) if kind.images or kind.watched else None
        listed = precision.precision == "32-true" and is_listed(model)
        self._of_batch = self._plain_gradients
        if self._matched is not None:
            self._of_batch = self._written_gradients if listed else self._watched_gradients
        self._of_images = self._image_gradients
        self._forward: Callable[[Tensor], Tensor] = model
        self._fuse_images = fuse and self._matched is not None and self._matched.is_written
        # The compiler fuses neither two derivatives of autograd nor a forward pass that is watched.
        if fuse and self._matched is None:
            self._forward = torch.compile(model, dynamic=False)
        elif fuse and listed:
            self._of_batch = torch.compile(self._of_batch, dynamic=False)
        if self._fuse_images:
            self._of_images = torch.compile(self._of_images, dynamic=None)
        with self._unchanged():
            self.descend = _replayable(self._descend, pool)
            self.match = _replayable(self._match, pool) if kind.images else None
            self.advance = _replayable(self._advance, pool)

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Undo what the first, uncounted calls do to the model, on real-looking input."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.numbers.fill_(1 / self._kind.width)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(kept[name])

    def _row(self, table: Tensor, *widths: int) -> Sequence[Tensor]:
        """Row t, cut into parts."""
        row = table.index_select(0, self.t)[0]
        return torch.split(row, list(widths))

    def _descend(self) -> None:
        """Loss and gradients of the batch at θ_{k,t}."""
        kind = self._kind
        labels = self._row(self.whole, kind.width, kind.width, kind.images, kind.images)[1]
        weights, means, _, _ = self._row(self.numbers, kind.width, self._classes, kind.images, self._classes)
        images = self.images.index_select(0, self.t)[0]
        loss, self._gradients, self._targets = self._of_batch(images, labels, weights, means)
        with torch.no_grad():
            new = torch.stack([loss.double(), torch.ones_like(loss), (weights > 0).sum()])
            self.sums[:3] += torch.where(self.alive, new, 0) if kind.bounded else new
            if kind.bounded:
                self.alive.logical_and_(~(loss > self.stop))

    def _plain_gradients(self, images: Tensor, labels: Tensor, weights: Tensor, means: Tensor) -> Gradients:
        loss = self._loss(self._forward, images, labels, weights)
        found = torch.autograd.grad(loss, list(self.parameters.values()), materialize_grads=True)
        return loss.detach(), list(found), []

    def _written_gradients(self, images: Tensor, labels: Tensor, weights: Tensor, means: Tensor) -> Gradients:
        classes = Classes.padded(labels, weights, self._classes)
        found = class_gradients(sequence_of(self._model), images, labels, weights, classes)
        return self._with_means(found, means)

    def _watched_gradients(self, images: Tensor, labels: Tensor, weights: Tensor, means: Tensor) -> Gradients:
        assert self._matched is not None
        classes = Classes.padded(labels, weights, self._classes)
        found = self._matched.of_batch(lambda: self._loss(self._model, images, labels, weights), classes)
        return self._with_means(found, means)

    def _loss(self, model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        with self._precision.forward_context():
            logits = model(self._precision.convert_input(images))
        return (F.cross_entropy(logits.float(), labels, reduction="none") * weights).sum()

    @staticmethod
    def _with_means(found: Gradients, means: Tensor) -> Gradients:
        """Each class's part as the gradient of its mean loss."""
        loss, gradients, parts = found
        return loss, gradients, [part * means.view(-1, *[1] * (part.dim() - 1)) for part in parts]

    @torch.no_grad()
    def _match(self) -> None:
        """Algorithm 2, lines 14 and 15: ς_S steps on the synthetic images, at the same θ_{k,t}."""
        assert self._settings is not None
        kind = self._kind
        _, _, picks, labels = self._row(self.whole, kind.width, kind.width, kind.images, kind.images)
        _, _, shares, matched = self._row(self.numbers, kind.width, self._classes, kind.images, self._classes)
        some = matched.amax()  # a step that matches nothing leaves the images and their momentum alone
        for step in range(self._settings.image_steps):
            chosen = self.synthetic.index_select(0, picks)
            for of_images in (chosen, labels, shares) if self._fuse_images else ():
                torch._dynamo.maybe_mark_dynamic(of_images, 0)  # one compilation serves all M
            distance, gradient = self._of_images(chosen, labels, shares, self._targets, matched)
            if not step:
                self.sums[3] += distance
            velocity = (self.velocity * self._settings.image_momentum).index_add_(0, picks, gradient)
            self.velocity.lerp_(velocity, some)
            self.synthetic.addcmul_(velocity, some.expand_as(velocity), value=-self._settings.image_lr)

    def _image_gradients(
        self, images: Tensor, labels: Tensor, shares: Tensor, targets: list[Tensor], matched: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert self._matched is not None
        classes = Classes.padded(labels, shares, self._classes)
        distance, gradient = self._matched.distance(targets, images, labels, classes, matched)
        return distance, torch.where(shares.view(-1, 1, 1, 1) > 0, gradient, 0)

    @torch.no_grad()
    def _advance(self) -> None:
        """θ_{k,t+1}, and on to the next step."""
        changes = list(torch._foreach_mul(self._gradients, self.rate))
        if self._kind.masked:
            torch._foreach_mul_(changes, self.masks)
        if self._kind.bounded:
            changes = [torch.where(self.alive, change, 0) for change in changes]
        torch._foreach_add_(list(self.parameters.values()), changes)
        self.t.add_(1)

    def begin(self, phase: Phase, masks: Mapping[str, Tensor]) -> None:
        """Set what holds for all steps of a client."""
        self.rate.fill_(phase.lr if phase.ascend else -phase.lr)
        self.sums.zero_()
        self.alive.fill_(True)
        if phase.stop_loss is not None:
            self.stop.fill_(phase.stop_loss)
        if masks:
            for name, kept in zip(self.parameters, self.masks, strict=True):
                kept.copy_(masks[name].expand_as(kept)) if name in masks else kept.fill_(1)

    def replay(self, plan: Plan, data: LabelledSet, clock: Clock, distillation_clock: Clock) -> None:
        """Make the steps of a plan."""
        whole, numbers = plan.packed()
        for first in range(0, len(plan.rows), STAGED):
            part = slice(first, first + STAGED)
            count = len(plan.rows[part])
            self.whole[:count].copy_(whole[part])
            self.numbers[:count].copy_(numbers[part])
            rows = data.rows[self.whole[:count, : plan.rows.shape[1]].flatten()]
            torch.index_select(data.images, 0, rows, out=self.images[:count].flatten(0, 1))
            self.t.zero_()
            with clock.running():
                for _ in range(count):
                    self.descend()
                    if self.match is not None:
                        with distillation_clock.running():
                            self.match()
                    self.advance()


def _replayable(step: Callable[[], None], pool: Any) -> Callable[[], None]:
    """A step as a CUDA graph where there is a GPU; the step itself elsewhere."""
    if pool is None:
        step()
        return step
    side = _side_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


@cache
def _side_stream() -> torch.cuda.Stream:
    """One for all captures: every stream keeps a workspace of the libraries."""
    return torch.cuda.Stream()


class StaticEngine:
    """Runs the local steps of clients on one working model.

    Other code may change the model's parameters in place between calls.

    Args:
        model: as :class:`~quickdrop_bench.models.registry.Model` says.
        settings: the constants of Algorithm 2.
        precision: Fabric's, one of :data:`PRECISIONS`; that of passes over real images.
    """

    def __init__(self, model: nn.Module, settings: Distillation | None, precision: Precision) -> None:
        self._model, self._settings, self._precision = model, settings, precision
        # On an H100, fused kernels took a step of the paper's size from 3.4 to 1.6 ms, with distillation 6.8 to 3.6,
        # after half a minute of compiling.
        on_gpu = next(model.parameters()).is_cuda and torch.cuda.is_available()
        self._fuse = on_gpu and find_spec("triton") is not None
        gc.collect()  # graphs of an engine that is gone hold memory until then, and must not go during a capture
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None
        self._classes = 0  # not known before the first images
        self._steps: dict[_Kind, _Steps] = {}
        self._staged: dict[int, Tensor] = {}
        self._on_host: dict[int, tuple[Tensor, Tensor]] = {}
        self._capacity = 0

    def begin(self, synthetic: Mapping[int, SyntheticSet]) -> None:
        """Expect the synthetic sets of all clients of a phase, so that the buffers fit the largest."""
        self._on_host.clear()
        self._capacity = max([self._capacity, *(len(s) for s in synthetic.values())])

    def train(self, work: LocalWork, clock: Clock, distillation_clock: Clock) -> LocalResult:
        """Local steps in place on the model, as :meth:`~quickdrop_bench.federation.local.LoopEngine.train`.

        The clocks run while steps are replayed; planning and copying the data is loading data.
        """
        data, phase, synthetic, settings = work.data, work.phase, work.synthetic, self._settings
        if not self._classes:
            with torch.no_grad():
                self._classes = self._model(data.images[:1]).shape[1]
        labels = self._known(data.rows, data.own_labels)
        width = _padded(min(len(data), phase.batch_size), phase.batch_size)
        plan = plan_steps(list(work.drawn()), labels, width, self._classes)
        own, images = torch.empty(0, dtype=torch.int64), 0
        if synthetic is not None and settings is not None and settings.image_steps:
            own = self._known(synthetic.labels, lambda: synthetic.labels)
            images = -(-synthetic_images(own, synthetic.fixed_classes, settings) // EIGHT) * EIGHT
        watched = synthetic is not None and self._precision.precision != "32-true"
        steps = self._steps_for(_Kind(width, images, phase.stop_loss is not None, bool(work.masks), watched), data)
        if images:
            assert synthetic is not None
            assert settings is not None
            plan = with_matching(plan, own, synthetic.fixed_classes, settings, work.matching, images)
            steps.synthetic[: len(own)].copy_(synthetic.images)
            steps.velocity[: len(own)].copy_(synthetic.velocity)
        steps.begin(phase, work.masks)
        spent = clock if phase.stop_loss is None else Clock(data.images.device)
        steps.replay(plan, data, spent, distillation_clock)
        if images and synthetic is not None:
            synthetic.images.copy_(steps.synthetic[: len(synthetic)])
            synthetic.velocity.copy_(steps.velocity[: len(synthetic)])
        loss, made, samples, distance = steps.sums.tolist()
        if spent is not clock:  # steps after the stopping rule's are made here, and change nothing; a client would not
            clock.add(spent, made / len(plan.rows))
        matched = int((plan.matched.sum(1) > 0).sum())
        second_order = int((plan.shares > 0).sum()) * (settings.image_steps if images and settings else 0)
        cost = Cost(sample_gradients=round(samples), second_order_sample_gradients=second_order)
        return LocalResult(cost, loss / made, distance / max(matched, 1))

    def _known(self, tensor: Tensor, labels: Callable[[], Tensor]) -> Tensor:
        """Labels on the CPU, asked for once for each tensor that stands for their set."""
        known = self._on_host.get(id(tensor))
        if known is None or known[0] is not tensor:
            known = self._on_host[id(tensor)] = (tensor, labels().cpu())
        return known[1]

    def _steps_for(self, kind: _Kind, data: LabelledSet) -> _Steps:
        steps, capacity = self._steps.get(kind), self._capacity if kind.images else 0
        if steps is None or len(steps.synthetic) < capacity:
            if kind.width not in self._staged:
                self._staged[kind.width] = data.images.new_zeros(STAGED, kind.width, *data.images.shape[1:])
            steps = _Steps(
                self._model,
                kind,
                self._settings,
                self._staged[kind.width],
                self._classes,
                capacity,
                self._precision,
                fuse=self._fuse and kind.width >= FUSED,
                pool=self._pool,
            )
            self._steps[kind] = steps
        return steps


def _padded(count: int, most: int) -> int:
    """A width for batches of this many images, so that sets of any size share a few graphs: 16, 32, 48, 64, 96, ..."""
    power = max(16, 1 << (count - 1).bit_length())
    return min(most, power * 3 // 4 if power > 32 and count <= power * 3 // 4 else power)

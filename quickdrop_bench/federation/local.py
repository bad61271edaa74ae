"""One client's local steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule as FabricModule
from lightning.fabric.wrappers import _FabricOptimizer as FabricOptimizer
from torch import Tensor, nn

from quickdrop_bench.core.cost import Clock, Cost
from quickdrop_bench.data.groups import parts_of
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.distillation.in_situ import Distillation, MatchingResult, SyntheticSet, match
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.federation.plan import batches
from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.matching import ClassGradients, class_means

Stepper = Callable[[nn.Module], Callable[[], bool]]
"""From the model that a client trains in a round to what takes the place of each optimizer step there.

The latter changes the model in place by its gradients, and says whether the client goes on."""


@dataclass(frozen=True)
class LocalWork:
    """One client's part of a round.

    Attributes:
        data: its Z_i, not empty.
        phase: T, |B|, η, direction and stopping rule.
        batches: draws the batches.
        masks: by parameter name, tensors that broadcast to its shape: 1 where it may change, 0 where not.
        synthetic: its S_i, matched in place at each step (Algorithm 2); None leaves it out.
        matching: draws the synthetic images of a step, from a stream of its own, so that the model's training is, up to
            rounding, the same with and without them.
        stepper: takes the place of SGD; ``phase.lr`` and ``phase.ascend`` are then its own to obey.
    """

    data: LabelledSet
    phase: Phase
    batches: torch.Generator
    masks: Mapping[str, Tensor]
    synthetic: SyntheticSet | None
    matching: torch.Generator
    stepper: Stepper | None = None

    @property
    def plain(self) -> bool:
        """Whether only :class:`LoopEngine` can do it: steps that are not SGD, labels that are probabilities, groups."""
        grouped = self.synthetic is not None and self.synthetic.groups is not None
        return self.stepper is not None or self.data.labels.is_floating_point() or grouped

    def drawn(self) -> Iterator[Tensor]:
        """Positions in the data, step by step."""
        size = len(self.data)
        return batches(size, self.phase.batch_size, self.phase.steps(size), self.batches)


@dataclass(frozen=True)
class LocalResult:
    """What local steps did: passes per sample, mean loss, matching distance per matched step."""

    cost: Cost
    loss: float
    matching_distance: float


class LoopEngine:
    """Makes local steps one by one: the reference, and on CPUs the fastest.

    Fabric has set up the model, which holds θ_{k,0} before and θ_{k,T} after :meth:`train`, and its plain SGD.
    """

    def __init__(
        self, fabric: Fabric, model: FabricModule, optimizer: FabricOptimizer, distillation: Distillation | None
    ) -> None:
        self._fabric, self._model, self._optimizer, self._distillation = fabric, model, optimizer, distillation

    def train(self, work: LocalWork, clock: Clock, distillation_clock: Clock) -> LocalResult:
        """Algorithm 1, lines 11–16; with synthetic images Algorithm 2, lines 11–17.

        Args:
            work: the client's.
            clock: runs while the client computes.
            distillation_clock: runs, within ``clock``, during what training without distillation would not do. The
                class-wise gradients of the batch take the place of its weight gradients, so they count as training.
        """
        phase, data = work.phase, work.data
        for group in self._optimizer.param_groups:
            group["lr"], group["maximize"] = phase.lr, phase.ascend
        # SGD has no momentum or weight decay, so a gradient of zero leaves a parameter as it is.
        held = [(p, work.masks[name]) for name, p in self._model.module.named_parameters() if name in work.masks]
        step = None if work.stepper is None else work.stepper(self._model.module)
        used, losses, matched = 0, [], []
        with clock.running():
            for batch in work.drawn():
                images, labels = data.take(batch.to(data.rows.device))
                self._optimizer.zero_grad()
                used += len(labels)
                if work.synthetic is None:
                    loss = F.cross_entropy(self._model(images), labels)
                    losses.append(loss.detach())
                    # The comparison waits for the device, so it is made only where a rule asks for it.
                    if phase.stop_loss is not None and float(losses[-1]) > phase.stop_loss:
                        break
                    self._fabric.backward(loss)
                else:
                    own = work.synthetic.row_groups
                    parts = parts_of(labels, None if own is None else own[batch])
                    order = parts.argsort(stable=True)
                    sorted_batch = images[order], labels[order], parts[order]
                    loss, matching = self._distil(work, *sorted_batch, distillation_clock)
                    losses.append(loss)
                    matched += [matching] if matching.samples else []
                for parameter, mask in held:
                    assert parameter.grad is not None
                    parameter.grad.mul_(mask)
                if step is None:
                    self._optimizer.step()
                elif not self._unscaled(step):
                    break
        cost = Cost(sample_gradients=used, second_order_sample_gradients=sum(m.samples for m in matched))
        distance = sum(float(m.distance) for m in matched) / max(len(matched), 1)
        return LocalResult(cost, float(torch.stack(losses).mean()), distance)

    def _unscaled(self, step: Callable[[], bool]) -> bool:
        """A step that is not the optimizer's, which would undo the scaling of the loss."""
        for parameter in self._model.module.parameters():
            parameter.grad = None if parameter.grad is None else parameter.grad / self._loss_scale()
        return step()

    def _loss_scale(self) -> float:
        """Not 1 under ``16-mixed`` only."""
        scaler = getattr(self._fabric.strategy.precision, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _distil(
        self, work: LocalWork, images: Tensor, labels: Tensor, parts: Tensor, distillation_clock: Clock
    ) -> tuple[Tensor, MatchingResult]:
        """The gradient of a batch sorted by part, and synthetic images moved towards it; the batch's loss."""
        assert work.synthetic is not None
        assert self._distillation is not None
        model, precision, scale = self._model.module, self._fabric.strategy.precision, self._loss_scale()
        present, counts = parts.cpu().unique_consecutive(return_counts=True)
        sizes = counts.tolist()

        def loss_of() -> Tensor:
            with precision.forward_context():
                logits = model(precision.convert_input(images))
            return F.cross_entropy(precision.convert_output(logits), labels) * scale

        gradients = ClassGradients(model)
        loss, own, sums = gradients.of_batch(loss_of, Classes.of_sizes(sizes, images))
        for parameter, gradient in zip(model.parameters(), own, strict=True):
            parameter.grad = gradient
        targets = class_means(sums, sizes, scale)
        with distillation_clock.running():
            result = match(gradients, targets, present.tolist(), work.synthetic, self._distillation, work.matching)
        return loss / scale, result

"""One client's local steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule as FabricModule
from lightning.fabric.wrappers import _FabricOptimizer as FabricOptimizer
from torch import Tensor

from quickdrop_bench.core.cost import Clock
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.distillation.in_situ import Distillation, SyntheticSet, match
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.federation.plan import batches
from quickdrop_bench.functional.matching import ClassGradients

__all__ = ["LocalDistiller", "LocalResult", "train_locally"]


@dataclass(frozen=True)
class LocalResult:
    """What a client's local steps did: samples used, mean loss, matching distance per matched step."""

    sample_gradients: int
    second_order_sample_gradients: int
    loss: float
    matching_distance: float


class LocalDistiller:
    """Runs Algorithm 2's image update beside the local steps of one client.

    It draws from a generator of its own, so the model's training is, up to rounding, the same with and without it.
    """

    def __init__(
        self, model: torch.nn.Module, synthetic: SyntheticSet, settings: Distillation, generator: torch.Generator
    ) -> None:
        self._synthetic = synthetic
        self._settings = settings
        self._generator = generator
        self._classes: list[int] = []
        self._targets: list[Tensor] = []
        self.gradients = ClassGradients(model)
        self.samples = 0
        self.distance = 0.0
        self.matched_steps = 0

    def split(self, labels: Tensor, loss_scale: float) -> None:
        """Complete the gradient of the batch that was just recorded, class by class; the step needs it anyway.

        Args:
            labels: (B,), sorted.
            loss_scale: factor by which its loss was multiplied.
        """
        classes, sizes = labels.cpu().unique_consecutive(return_counts=True)
        self._classes, self._targets = classes.tolist(), self.gradients.split(sizes.tolist(), loss_scale)

    def step(self) -> None:
        """Match that batch."""
        result = match(self.gradients, self._targets, self._classes, self._synthetic, self._settings, self._generator)
        self.samples += result.samples
        if result.samples:
            self.distance += float(result.distance)
            self.matched_steps += 1


def train_locally(
    fabric: Fabric,
    model: FabricModule,
    optimizer: FabricOptimizer,
    data: LabelledSet,
    phase: Phase,
    generator: torch.Generator,
    clock: Clock,
    masks: Mapping[str, Tensor],
    distiller: LocalDistiller | None = None,
    distillation_clock: Clock | None = None,
) -> LocalResult:
    """Algorithm 1, lines 11–16 (with ``distiller``: Algorithm 2, lines 11–17), in place on ``model``.

    Args:
        fabric: runs backward passes in its precision.
        model: set up by ``fabric``; holds θ_{k,0} on entry and θ_{k,T} on return.
        optimizer: set up by ``fabric``, plain SGD on the model.
        data: the client's Z_i, not empty.
        phase: T, |B|, η, direction and stopping rule.
        generator: draws the batches.
        clock: runs while the client computes.
        masks: by parameter name, tensors that broadcast to its shape: 1 where it may change, 0 where not.
        distiller: updates the client's synthetic set at each step.
        distillation_clock: runs, within ``clock``, during what training without distillation would not do. The
            class-wise gradients of the batch take the place of its weight gradients, so they count as training.
    """
    for group in optimizer.param_groups:
        group["lr"], group["maximize"] = phase.lr, phase.ascend
    # SGD has no momentum or weight decay, so a gradient of zero leaves a parameter as it is.
    held = [(parameter, masks[name]) for name, parameter in model.module.named_parameters() if name in masks]
    used = 0
    losses: list[Tensor] = []
    with clock.running():
        for batch in batches(len(data), phase.batch_size, phase.steps(len(data)), generator):
            images, labels = data.take(batch.to(data.rows.device))
            optimizer.zero_grad()
            if distiller is None:
                loss = F.cross_entropy(model(images), labels)
                used += len(labels)
                losses.append(loss.detach())
                # The comparison waits for the device, so it is made only where a rule asks for it.
                if phase.stop_loss is not None and float(losses[-1]) > phase.stop_loss:
                    break
                fabric.backward(loss)
            else:
                order = labels.argsort(stable=True)
                images, labels = images[order], labels[order]
                with distiller.gradients.recording():
                    loss = F.cross_entropy(model(images), labels)
                    fabric.backward(loss)
                used += len(labels)
                losses.append(loss.detach())
                distiller.split(labels, _loss_scale(fabric))
                assert distillation_clock is not None
                with distillation_clock.running():
                    distiller.step()
            for parameter, mask in held:
                assert parameter.grad is not None
                parameter.grad.mul_(mask)
            optimizer.step()
    mean_loss = float(torch.stack(losses).mean())
    if distiller is None:
        return LocalResult(used, 0, mean_loss, 0.0)
    distance = distiller.distance / max(distiller.matched_steps, 1)
    return LocalResult(used, distiller.samples, mean_loss, distance)


def _loss_scale(fabric: Fabric) -> float:
    """The factor by which ``fabric.backward`` multiplies the loss: not 1 under ``16-mixed`` only."""
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())

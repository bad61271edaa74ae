"""Algorithm 2: each client matches the gradients of its training steps with a tiny synthetic data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quickdrop_bench.data.groups import CLASSES, parts_of
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.matching import ClassGradients


@dataclass(frozen=True)
class Distillation:
    """The constants of Algorithm 2.

    Attributes:
        image_steps: ς_S, optimizer steps on the synthetic images per local step (paper: 1); 0 leaves the
            initial images as they are.
        image_lr: η_S (paper: 0.1).
        image_momentum: of the image optimizer (Zhao et al.: 0.5; the paper does not say).
        batch_size: most synthetic images of one class in the mini-batch B_S.
    """

    image_steps: int
    image_lr: float
    image_momentum: float
    batch_size: int


@dataclass
class SyntheticSet:
    """A client's synthetic data S_i. It never leaves the client.

    Attributes:
        images: (m, C, H, W) float32 in normalised space; not clamped.
        labels: (m,) int64, constant.
        origin: (m,) int64, rows of the data set that S_i started from.
        velocity: (m, C, H, W) momentum of the image optimizer, kept across rounds.
        fixed_classes: classes of which it has all of the client's images; they stay real.
        groups: (m,) int64, the group of samples that each image stands for, while it is distilled; None is one group
            per class.
        row_groups: (n,) int64, the group of each of D_i's samples, likewise.
    """

    images: Tensor
    labels: Tensor
    origin: Tensor
    velocity: Tensor
    fixed_classes: frozenset[int] = frozenset()
    groups: Tensor | None = None
    row_groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def as_labelled(self) -> LabelledSet:
        """The set as data to train on."""
        return LabelledSet.of(self.images, self.labels, self.origin)


@dataclass(frozen=True)
class MatchingResult:
    """One local step's matching: the summed distance before the image update, and images×steps used."""

    distance: Tensor
    samples: int


def positions_by_class(labels: Tensor) -> dict[int, Tensor]:
    """Where each class is, on the CPU, classes in order."""
    labels = labels.cpu()
    return {c: torch.nonzero(labels == c).flatten() for c in labels.unique().tolist()}


def initial_synthetic_set(
    data: LabelledSet, scale: float, generator: torch.Generator, groups: Tensor | None = None
) -> SyntheticSet:
    """Draw ⌈|D_i^c|/s⌉ real images of each class c of a client's data (Algorithm 2, lines 2–7).

    Its order is that of the data, so that s = 1 gives D_i itself. With ``groups``, which is (n,) the group of each
    sample, so many are drawn of every group within a class.
    """
    picks, labels = [], data.own_labels().cpu()
    for positions in positions_by_class(parts_of(labels, groups)).values():
        count = math.ceil(len(positions) / scale)
        picks.append(positions[torch.randperm(len(positions), generator=generator)[:count]])
    chosen = torch.cat(picks).sort().values if picks else torch.empty(0, dtype=torch.int64)
    images, chosen_labels = data.take(chosen.to(data.rows.device))
    fixed = {c for c in labels.unique().tolist() if (labels[chosen] == c).sum() == (labels == c).sum()}
    own_groups = None if groups is None else groups[chosen]
    start, still = (images.clone(), chosen_labels.clone(), data.rows[chosen]), torch.zeros_like(images)
    return SyntheticSet(*start, still, frozenset(fixed), own_groups, groups)


def augmentation_positions(data: LabelledSet, synthetic: SyntheticSet, generator: torch.Generator) -> Tensor:
    """Sorted positions of real images, as many of each class as there are synthetic ones (paper §3.3.1).

    They are mixed 1:1 in recovery.
    """
    counts = torch.bincount(synthetic.labels.cpu(), minlength=1)
    picks = [torch.empty(0, dtype=torch.int64)]
    for c, positions in positions_by_class(data.own_labels()).items():
        picks.append(positions[torch.randperm(len(positions), generator=generator)[: int(counts[c])]])
    return torch.cat(picks).sort().values


def match(
    gradients: ClassGradients,
    targets: Sequence[Tensor],
    batch_parts: Sequence[int],
    synthetic: SyntheticSet,
    settings: Distillation,
    generator: torch.Generator,
) -> MatchingResult:
    """Algorithm 2, lines 14 and 15: move the synthetic images towards the gradients of a real batch.

    Matching is class-wise: each class of the batch is compared with that class's synthetic images at the same
    θ, the distances are summed, and one optimizer step moves the images of all those classes. The gradient of
    the real batch is the one that the model's own step uses; nothing is computed on real data here.

    Args:
        gradients: of the model at θ_{k,t}, in float32 and outside any autocast; the model stays as it is.
        targets: from :func:`~quickdrop_bench.functional.matching.class_means`, one (K, ...) per weight.
        batch_parts: the K classes of the batch B_D, or with groups the parts, see
            :func:`~quickdrop_bench.data.groups.parts_of`.
        synthetic: S_i, updated in place.
        settings: ς_S, η_S, momentum and |B_S|.
        generator: draws B_S where a class has more images than fit.
    """
    own_parts = parts_of(synthetic.labels.cpu(), synthetic.groups)
    chosen, rows = [], []
    for k, part in enumerate(batch_parts):
        positions = torch.nonzero(own_parts == part).flatten()
        if part % CLASSES in synthetic.fixed_classes or not len(positions):
            continue
        if len(positions) > settings.batch_size:
            positions = positions[torch.randperm(len(positions), generator=generator)[: settings.batch_size]]
        chosen.append(k)
        rows.append(positions.to(synthetic.images.device))
    if not chosen or not settings.image_steps:
        return MatchingResult(synthetic.images.new_zeros(()), 0)
    if len(chosen) < len(batch_parts):
        targets = [target[chosen] for target in targets]
    moved = torch.cat(rows)
    labels, classes = synthetic.labels[moved], Classes.of_sizes([len(r) for r in rows], synthetic.images)
    distances = []
    for _ in range(settings.image_steps):
        distance, image_gradients = gradients.distance(targets, synthetic.images[moved], labels, classes)
        distances.append(distance)
        synthetic.velocity.mul_(settings.image_momentum)
        synthetic.velocity.index_add_(0, moved, image_gradients)
        synthetic.images.sub_(synthetic.velocity, alpha=settings.image_lr)
    return MatchingResult(distances[0], len(moved) * settings.image_steps)

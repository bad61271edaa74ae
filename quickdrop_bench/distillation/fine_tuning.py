"""Optional fine-tuning of the synthetic sets (paper §3.3.2): Zhao et al.'s gradient matching on fresh networks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickdrop_bench.core.seeding import derive_seed, generator
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.distillation.in_situ import Distillation, SyntheticSet, match, positions_by_class
from quickdrop_bench.distillation.settings import FineTuning
from quickdrop_bench.functional.classes import Classes
from quickdrop_bench.functional.initial import draw_parameters
from quickdrop_bench.functional.matching import ClassGradients, class_means


@dataclass(frozen=True)
class FineTuningResult:
    """What one initialisation did for one client; all zero where nothing was there to fine-tune.

    Attributes:
        sample_gradients: first-order passes per sample, on real images and on synthetic ones together.
        second_order_sample_gradients: passes per synthetic image that differentiate through a gradient.
        matching_distance: mean over the matching steps, summed over classes, before the image step.
        gradients: mini-batch gradients computed on original data, one per matching step (paper, Fig. 5).
    """

    sample_gradients: int
    second_order_sample_gradients: int
    matching_distance: float
    gradients: int


def fine_tune(
    model: nn.Module,
    data: LabelledSet,
    synthetic: SyntheticSet,
    settings: FineTuning,
    images: Distillation,
    seed: int,
    client: int,
    initialisation: int,
) -> FineTuningResult:
    """One random initialisation of Zhao et al.'s dataset condensation for one client's S_i, in place.

    A network is drawn. Each step matches all classes of S_i on real batches at the network's current parameters,
    moves the images once, and then trains the network on S_i. All that one initialisation hands to the next is in
    ``synthetic``, and every random stream is named by client and initialisation, so calls with initialisations
    0, 1, ..., F − 1 give the same images however they are spread over runs.

    Args:
        model: scratch module in float32, outside any autocast, on the device of the images; its parameters are
            overwritten and their ``.grad`` is None afterwards. θ_K plays no part.
        data: D_i; only classes with synthetic images that are not fixed are read.
        synthetic: S_i, whose images and velocity are updated.
        settings: of the network.
        images: ς_S, η_S, momentum and |B_S|, as in training; with ς_S = 0 nothing is done.
        seed: the run's seed.
        client: its id i.
        initialisation: 0-based index k.
    """
    classes = set(synthetic.labels.tolist()) - synthetic.fixed_classes
    by_class = {c: p for c, p in positions_by_class(data.own_labels()).items() if c in classes}
    if not by_class or not images.image_steps:
        return FineTuningResult(0, 0, 0.0, 0)
    real_stream, matching_stream, training_stream = (
        generator(seed, "fine-tuning", purpose, client, initialisation)
        for purpose in ("batches", "matching", "training")
    )
    draw_parameters(model, derive_seed(seed, "fine-tuning", "init", client, initialisation))
    gradients = ClassGradients(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)
    optimizer.zero_grad()  # the model may come from where it was trained
    used = second_order = 0
    distances = []
    sizes = [min(len(p), settings.batch_size) for p in by_class.values()]
    for step in range(settings.steps):
        picks = [torch.randperm(len(p), generator=real_stream)[: settings.batch_size] for p in by_class.values()]
        batch = torch.cat([p[pick] for p, pick in zip(by_class.values(), picks, strict=True)])
        real_images, real_labels = data.take(batch.to(data.rows.device))
        loss_of = partial(_loss, model, real_images, real_labels)
        _, _, parts = gradients.of_batch(loss_of, Classes.of_sizes(sizes, real_images))
        targets = class_means(parts, sizes)
        used += len(batch)
        result = match(gradients, targets, list(by_class), synthetic, images, matching_stream)
        second_order += result.samples
        distances.append(result.distance)
        if step < settings.steps - 1:
            used += _train(model, optimizer, synthetic, settings, training_stream)
    return FineTuningResult(used, second_order, float(torch.stack(distances).mean()), settings.steps)


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    synthetic: SyntheticSet,
    settings: FineTuning,
    stream: torch.Generator,
) -> int:
    """Train the network on S_i for some epochs; the number of samples used. No gradient is left behind."""
    data = synthetic.as_labelled()
    for _ in range(settings.epochs):
        order = torch.randperm(len(data), generator=stream).to(data.rows.device)
        for batch in order.split(settings.batch_size):
            images, labels = data.take(batch)
            _loss(model, images, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return settings.epochs * len(data)


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)

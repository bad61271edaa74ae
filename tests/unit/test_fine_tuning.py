"""Fine-tuning of the synthetic sets against a slow reading of Zhao et al.'s algorithm, and what it must not touch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.seeding import derive_seed, generator
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.distillation.fine_tuning import FineTuningResult, fine_tune
from quickdrop_bench.distillation.in_situ import Distillation, SyntheticSet, initial_synthetic_set
from quickdrop_bench.distillation.settings import FineTuning
from quickdrop_bench.functional.initial import draw_parameters
from tests.by_hand import class_gradients, network, row_by_row
from tests.conftest import Guarded, toy_images

IMAGES = Distillation(image_steps=1, image_lr=0.1, image_momentum=0.5, batch_size=256)
SHORT = FineTuning(steps=3, epochs=2, batch_size=5, lr=0.1)
SEED, CLIENT = 1, 7


@pytest.fixture
def data() -> LabelledSet:
    """A client with 8, 8 and 8 of 45 images, not the first ones."""
    images, labels = toy_images(45)
    return LabelledSet(images, labels, torch.arange(12, 36))


def synthetic_of(data: LabelledSet, scale: float = 3) -> SyntheticSet:
    return initial_synthetic_set(data, scale, generator(SEED, "synthetic", CLIENT))


def copy_of(synthetic: SyntheticSet) -> SyntheticSet:
    return replace(synthetic, images=synthetic.images.clone(), velocity=synthetic.velocity.clone())


def tune(
    data: LabelledSet,
    synthetic: SyntheticSet,
    initialisations: range,
    settings: FineTuning = SHORT,
    images: Distillation = IMAGES,
    model: nn.Module | None = None,
) -> list[FineTuningResult]:
    model = model or network()
    return [fine_tune(model, data, synthetic, settings, images, SEED, CLIENT, k) for k in initialisations]


# The algorithm ----------------------------------------------------------------------------------------------


def slow_fine_tuning(
    data: LabelledSet, start: SyntheticSet, count: int, settings: FineTuning, images: Distillation
) -> tuple[Tensor, list[float]]:
    """Class after class and row by row in float64, with torch's own optimizers."""
    synthetic, labels = start.images.double().requires_grad_(), start.labels
    image_optimizer = torch.optim.SGD([synthetic], lr=images.image_lr, momentum=images.image_momentum)
    pool, pool_labels = data.images[data.rows].double(), data.labels[data.rows]
    classes = [c for c in sorted(set(labels.tolist())) if c not in start.fixed_classes]
    means = []
    for k in range(count):
        streams = {p: generator(SEED, "fine-tuning", p, CLIENT, k) for p in ("batches", "matching", "training")}
        torch.manual_seed(derive_seed(SEED, "fine-tuning", "init", CLIENT, k))
        model = network().double()
        distances = []
        for step in range(settings.steps):
            batches, chosen = {}, {}
            for c in classes:
                own = torch.nonzero(pool_labels == c).flatten()
                order = torch.randperm(len(own), generator=streams["batches"])
                batches[c] = pool[own[order[: settings.batch_size]]]
                own = torch.nonzero(labels == c).flatten()
                if len(own) > images.batch_size:
                    own = own[torch.randperm(len(own), generator=streams["matching"])[: images.batch_size]]
                chosen[c] = own
            distance = torch.zeros((), dtype=torch.float64)
            for c in classes:
                real = class_gradients(model, batches[c], c)
                fake = class_gradients(model, synthetic[chosen[c]], c, create_graph=True)
                distance = distance + row_by_row(real, fake)
            (synthetic.grad,) = torch.autograd.grad(distance, [synthetic])
            image_optimizer.step()
            distances.append(float(distance.detach()))
            if step == settings.steps - 1:
                break
            for _ in range(settings.epochs):
                order = torch.randperm(len(labels), generator=streams["training"])
                for begin in range(0, len(labels), settings.batch_size):
                    batch = order[begin : begin + settings.batch_size]
                    loss = F.cross_entropy(model(synthetic.detach()[batch]), labels[batch])
                    slopes = torch.autograd.grad(loss, list(model.parameters()))
                    with torch.no_grad():
                        for parameter, slope in zip(model.parameters(), slopes, strict=True):
                            parameter -= settings.lr * slope
        means.append(sum(distances) / len(distances))
    return synthetic.detach(), means


@pytest.mark.parametrize(("cap", "fixed"), [(256, ()), (2, ()), (256, (1,))])
def test_equals_a_slow_reading_of_the_algorithm(data: LabelledSet, cap: int, fixed: tuple[int, ...]) -> None:
    """On as many images as the cap allows; a fixed class is neither matched nor moved."""
    ours, images = replace(synthetic_of(data), fixed_classes=frozenset(fixed)), replace(IMAGES, batch_size=cap)
    start, labels, origin = ours.images.double(), ours.labels.clone(), ours.origin.clone()
    expected, distances = slow_fine_tuning(data, copy_of(ours), 2, SHORT, images)
    results = tune(data, ours, range(2), images=images)
    torch.testing.assert_close(ours.images.double(), expected, rtol=0, atol=1e-5)
    assert [r.matching_distance for r in results] == pytest.approx(distances, rel=1e-5)
    moved = (ours.images.double() != start).flatten(1).any(1)
    assert torch.equal(moved, ~torch.isin(labels, torch.tensor(fixed)))
    assert float((ours.images - start)[moved].abs().mean()) > 0.01
    assert torch.equal(ours.labels, labels)
    assert torch.equal(ours.origin, origin)


def test_initialisations_may_be_spread_over_calls(data: LabelledSet) -> None:
    whole, parts = synthetic_of(data), synthetic_of(data)
    expected = tune(data, whole, range(4))
    results = tune(data, parts, range(1))
    parts = copy_of(parts)  # as if it were saved and read
    results += tune(data, parts, range(1, 4))
    assert results == expected
    assert torch.equal(parts.images, whole.images)
    assert torch.equal(parts.velocity, whole.velocity)


# What it leaves alone ---------------------------------------------------------------------------------------


def test_reads_only_the_clients_own_classes_that_are_not_fixed(data: LabelledSet) -> None:
    synthetic = replace(synthetic_of(data), fixed_classes=frozenset({1}))
    others = set(range(45)) - set(data.rows.tolist())
    fixed = set(data.rows[data.own_labels() == 1].tolist())
    tune(Guarded(data, others | fixed), synthetic, range(2))
    with pytest.raises(AssertionError, match="forbidden data were read"):
        tune(Guarded(data, set(data.rows[data.own_labels() == 0].tolist())), synthetic, range(1))


def test_classes_without_synthetic_or_without_real_images_are_left_out(data: LabelledSet) -> None:
    synthetic = synthetic_of(data.with_classes({0, 2}, keep=True))
    images = synthetic.images.clone()
    unread = set(data.rows[data.own_labels() != 0].tolist())
    (result,) = tune(Guarded(data.with_classes({0, 1}, keep=True), unread), synthetic, range(1))
    moved = (synthetic.images != images).flatten(1).any(1)
    assert torch.equal(moved, synthetic.labels == 0)
    assert result.gradients == 3


def test_nothing_to_fine_tune_is_nothing_done(data: LabelledSet) -> None:
    nothing, model = FineTuningResult(0, 0, 0.0, 0), network()
    before = [p.detach().clone() for p in model.parameters()]
    guarded = Guarded(data, set(data.rows.tolist()))
    empty = synthetic_of(data.with_classes(set(), keep=True))
    assert tune(guarded, empty, range(1), model=model) == [nothing]
    fixed = synthetic_of(data, scale=1)
    images = fixed.images.clone()
    assert tune(guarded, fixed, range(1), model=model) == [nothing]
    assert torch.equal(fixed.images, images)
    still = synthetic_of(data)
    assert tune(guarded, still, range(1), images=replace(IMAGES, image_steps=0), model=model) == [nothing]
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_leaves_no_trace_and_the_scratch_models_past_does_not_matter(data: LabelledSet) -> None:
    ours, theirs, model = synthetic_of(data), synthetic_of(data), network()
    before = torch.get_rng_state()
    tune(data, synthetic_of(data), range(3), model=model)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())
    tune(data, ours, range(1), model=model)
    tune(data, theirs, range(1))
    assert torch.equal(ours.images, theirs.images)


# Counts and settings ----------------------------------------------------------------------------------------


def test_counts_equal_a_count_by_hand(data: LabelledSet) -> None:
    """Classes with 8, 8 and 2 real and 3, 3 and 1 synthetic images; class 1 is fixed."""
    data = data.subset(torch.tensor([p for p in range(24) if int(data.own_labels()[p]) != 2 or p < 6]))
    assert torch.bincount(data.own_labels()).tolist() == [8, 8, 2]
    synthetic = replace(synthetic_of(data), fixed_classes=frozenset({1}))
    assert torch.bincount(synthetic.labels).tolist() == [3, 3, 1]
    images = replace(IMAGES, image_steps=2, batch_size=2)
    (result,) = tune(data, synthetic, range(1), images=images)
    # 3 steps on min(5, 8) + min(5, 2) real images; 2 × 2 epochs on all 7 synthetic ones
    assert result.sample_gradients == 3 * (5 + 2) + 2 * 2 * 7
    # 3 steps of 2 image steps on min(2, 3) + 1 images
    assert result.second_order_sample_gradients == 3 * 2 * (2 + 1)
    assert result.gradients == 3
    (untrained,) = tune(data, synthetic_of(data), range(1), replace(SHORT, epochs=0))
    assert untrained.sample_gradients == 3 * (5 + 5 + 2)


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [
        ("steps", 0, "--fine-tune-steps"),
        ("epochs", -1, "--fine-tune-epochs"),
        ("batch_size", 0, "--fine-tune-batch-size"),
        ("lr", 0.0, "--fine-tune-lr"),
        ("lr", float("nan"), "--fine-tune-lr"),
    ],
)
def test_bad_settings_are_named(name: str, value: float, option: str) -> None:
    assert FineTuning() == FineTuning(steps=50, epochs=10, batch_size=256, lr=0.01)  # of the sources
    with pytest.raises(BadInput, match=option):
        replace(FineTuning(), **{name: value})


# Initial parameters -----------------------------------------------------------------------------------------


def test_drawn_parameters_are_those_of_a_newly_built_model() -> None:
    torch.manual_seed(5)
    built = network()
    drawn = network()
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.fill_(9.0)
    before = torch.get_rng_state()
    draw_parameters(drawn, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(drawn.parameters(), built.parameters(), strict=True))

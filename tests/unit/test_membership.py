"""Membership inference: cases by hand, an overfitted and an uninformed model, and what the attack may be fitted on."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import sklearn.svm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickdrop_bench.data.labelled import LabelledSet, concatenate
from quickdrop_bench.evaluation import membership
from quickdrop_bench.evaluation.membership import FEATURES, MembershipRates, membership_inference

CLASSES = 4
READ = nn.Flatten()
"""A model whose logits are the pixels of a 1 × 1 × CLASSES image."""


def as_set(logits: Tensor, labels: Tensor) -> LabelledSet:
    return LabelledSet.of(logits[:, None, None].float(), labels)


def random_set(count: int, seed: int, scale: float = 3.0) -> LabelledSet:
    stream = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, CLASSES, generator=stream)
    return as_set(logits, torch.randint(0, CLASSES, (count,), generator=stream))


def sure(count: int, seed: int = 0) -> LabelledSet:
    """Confidently right images, no two alike."""
    labels = torch.arange(count) % CLASSES
    noise = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))
    return as_set((8 + noise) * F.one_hot(labels, CLASSES), labels)


def unsure(count: int, seed: int = 1) -> LabelledSet:
    """Images near the uniform distribution, no two alike."""
    labels = torch.arange(count) % CLASSES
    noise = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))
    return as_set(0.3 * noise * F.one_hot(labels, CLASSES), labels)


def wrong(data: LabelledSet) -> LabelledSet:
    """The same images, confidently mislabelled."""
    return LabelledSet(data.images, (data.labels + 1) % CLASSES, data.rows)


class Recorder:
    """Stands in for the classifier and keeps what it was given."""

    made: list[Recorder]

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.scored: list[np.ndarray] = []
        self.made.append(self)

    def fit(self, features: np.ndarray, sides: np.ndarray) -> Recorder:
        self.members, self.others = features[sides == 1], features[sides == 0]
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        self.scored.append(features)
        return np.ones(len(features))


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    Recorder.made = []
    monkeypatch.setattr(sklearn.svm, "SVC", Recorder)
    return Recorder.made


def test_features_match_a_slow_reference() -> None:
    data = random_set(30, seed=3)
    logits, labels = data.images[:, 0, 0].double(), data.labels
    for i, row in enumerate(logits.tolist()):
        total = sum(math.exp(z) for z in row)
        p = [math.exp(z) / total for z in row]
        own = p[int(labels[i])]
        expected = {"entropy": [-sum(q * math.log(q) for q in p)], "loss": [-math.log(own)]}
        for name, values in expected.items():
            assert FEATURES[name](logits, labels)[i].tolist() == pytest.approx(values, rel=1e-9, abs=1e-12)


def test_features_survive_saturated_logits() -> None:
    logits, labels = torch.tensor([[1e5, 0.0, -1e5]], dtype=torch.float64), torch.tensor([2])
    assert FEATURES["entropy"](logits, labels).item() == 0
    assert FEATURES["loss"](logits, labels).item() == 2e5


def test_a_case_by_hand() -> None:
    """Members are sure, test images are not: of three forget images like members and one like the test set, 75 %."""
    forget = concatenate(sure(3, seed=5), unsure(1, seed=6))
    rates = membership_inference(READ, forget, sure(200), unsure(200), 1)
    expected = MembershipRates(0.75, 1.0, forget_false_positive=0.0, retain_false_positive=0.0)
    assert rates == dict.fromkeys(FEATURES, expected)
    assert (expected.forget_advantage, expected.retain_advantage) == (0.75, 1.0)


def test_only_the_loss_sees_confident_mistakes() -> None:
    """The entropy knows no labels, so it takes a forgotten class that the model is sure to mislabel for members."""
    forget = sure(12, seed=5)
    test = concatenate(unsure(20), wrong(sure(20, seed=7)))
    rates = membership_inference(READ, wrong(forget), sure(40), test, 1)
    assert rates["entropy"].forget == 1
    assert rates["loss"] == MembershipRates(0.0, 1.0, 0.0, 0.0)


def of_class(label: int, data: LabelledSet) -> LabelledSet:
    return data.with_classes([label], keep=True)


def without_class(label: int, data: LabelledSet) -> LabelledSet:
    return data.with_classes([label], keep=False)


def unlearned(count: int, seed: int) -> LabelledSet:
    """Images of all classes as a model sees them that knows class 1 no more: sure, and wrong on that class alone."""
    images = sure(count, seed)
    return concatenate(without_class(1, images), wrong(of_class(0, images)))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_forgotten_class_that_is_mislabelled_betrays_nothing(share: float) -> None:
    """No signal at all: of 1000 test images that are as the training images, class 1 is confidently wrong.

    Over the whole test set the loss attack seems to tell F 0, R 1 and 1 − share false positives.
    """
    wrongs = int(1000 * share)
    rest = [without_class(1, sure(4000, seed)).subset(torch.arange(1000 - wrongs)) for seed in (1, 2)]
    forget, lost = (wrong(of_class(0, sure(4 * wrongs, seed))) for seed in (3, 4))
    rates = membership_inference(READ, forget, rest[0], concatenate(rest[1], lost), 1)["loss"]
    assert (rates.forget, rates.retain) == (0, 1)
    assert (rates.forget_false_positive, rates.retain_false_positive) == (0, 1)
    assert (rates.forget_advantage, rates.retain_advantage) == (0, 0)


def test_a_client_is_compared_with_test_images_of_its_own_classes() -> None:
    """No signal at all, but the client holds 9 images of the class that is mostly wrong for each of another class."""
    forget, retain, test = unlearned(2000, 1), unlearned(2000, 2), unlearned(2000, 3)
    forget = concatenate(of_class(1, forget).subset(torch.arange(450)), of_class(3, forget).subset(torch.arange(50)))
    retain = concatenate(of_class(1, retain).subset(torch.arange(50)), without_class(1, retain))
    rates = membership_inference(READ, forget, retain, test, 1)["loss"]
    assert rates.forget == rates.forget_false_positive == pytest.approx(0.1)
    assert rates.retain == pytest.approx(rates.retain_false_positive, abs=1e-9)
    assert rates.forget_advantage == pytest.approx(0)


def test_false_positives_weigh_by_class_and_need_images_of_each() -> None:
    """Half of the test images of class 0 are called members and none of class 2: with 3 : 1 images, 3/8."""
    called, labels = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 2, 2, 3])
    assert membership._share_like(torch.tensor([0, 0, 2, 0]), called, labels) == pytest.approx(3 / 8)
    for mix in (torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64)):
        assert math.isnan(membership._share_like(mix, called, labels))


def test_an_uninformed_model_tells_nothing() -> None:
    """Where both sides have one distribution, the rates agree, and are one half on average over draws and sides."""
    forget, one, other = (random_set(n, seed) for n, seed in [(300, 1), (1200, 2), (1200, 3)])
    results = [
        membership_inference(READ, forget, *sides, seed) for seed in range(3) for sides in [(one, other), (other, one)]
    ]
    for feature in ("entropy", "loss"):
        rates = np.array([astuple(r[feature]) for r in results])
        assert abs((rates[:, 0] - rates[:, 2]).mean()) < 0.05
        assert abs((rates[:, 1] - rates[:, 3]).mean()) < 0.05
        assert (abs(rates.mean(0) - 0.5) < 0.1).all()


def test_a_majority_of_members_does_not_make_everything_a_member() -> None:
    forget, retain, test = random_set(200, 1), random_set(4000, 2), random_set(400, 3)
    results = [membership_inference(READ, forget, retain, test, seed)["loss"] for seed in range(6)]
    assert abs(np.mean([r.retain_false_positive for r in results]) - 0.5) < 0.15


def test_the_cited_settings_and_disjoint_balanced_draws(
    recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "MOST", 6)
    monkeypatch.setattr(membership, "SCORED", 8)
    forget, retain, test = random_set(11, 1), random_set(40, 2), random_set(35, 3)
    rates = membership_inference(READ, forget, retain, test, 1)
    assert rates["loss"] == MembershipRates(1.0, 1.0, 1.0, 1.0)
    for recorder in recorders:
        assert recorder.settings == {"C": 3, "gamma": "auto", "kernel": "rbf"}
        assert recorder.members.shape == recorder.others.shape == (6, 1)
        assert [s.shape for s in recorder.scored] == [(29, 1), (8, 1), (8, 1)]  # test: all that is left

    def keys(source: LabelledSet) -> set[float]:
        return set(FEATURES["loss"](source.images[:, 0, 0].double(), source.labels).flatten().tolist())

    fitted, scored = [recorders[1].members, recorders[1].others], recorders[1].scored
    for drawn, source in zip([*fitted, *scored], [retain, test, test, forget, retain], strict=True):
        assert len(set(drawn.flatten())) == len(drawn)
        assert set(drawn.flatten()) <= keys(source)
    assert not set(fitted[0].flatten()) & set(scored[2].flatten())
    assert not set(fitted[1].flatten()) & set(scored[0].flatten())


def test_row_order_is_irrelevant_and_the_forget_set_is_never_fitted_on(
    recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "MOST", 10)
    monkeypatch.setattr(membership, "SCORED", 10)
    sets = [random_set(n, seed) for n, seed in [(30, 1), (60, 2), (50, 3)]]
    mixed = [s.subset(torch.randperm(len(s), generator=torch.Generator().manual_seed(4))) for s in sets]
    others = [random_set(7, 9, scale=50), *sets[1:]]
    for forget, retain, test, seed in [(*sets, 1), (*mixed, 1), (*sets, 2), (*others, 1)]:
        membership_inference(READ, forget, retain, test, seed)
    first, permuted, other_seed, other_forget = recorders[1::2]  # the loss
    for a, b in zip(first.scored, permuted.scored, strict=True):
        assert np.array_equal(a, b)
    for again in (permuted, other_forget):
        assert np.array_equal(first.members, again.members)
        assert np.array_equal(first.others, again.others)
    assert not np.array_equal(first.members, other_seed.members)
    assert not np.array_equal(first.others, other_seed.others)


def test_model_and_random_state_are_left_alone() -> None:
    """Statistics of batches, dropout and the mode of every module stay as they were."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(CLASSES), nn.Dropout(0.5), nn.BatchNorm1d(CLASSES))
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    membership_inference(model, random_set(10, 1), random_set(40, 2), random_set(20, 3), 1)
    assert [m.training for m in model.modules()] == [True, True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("retain", "test"), [(1, 20), (20, 1), (0, 0)])
def test_two_samples_a_side_are_needed(retain: int, test: int) -> None:
    rates = membership_inference(READ, sure(4), sure(retain), unsure(test), 1)
    assert list(rates) == ["entropy", "loss"]
    assert all(math.isnan(v) for own in rates.values() for v in astuple(own))
    enough = membership_inference(READ, sure(4), sure(2), unsure(2), 1)["entropy"]
    assert (enough.forget, enough.retain) == (1, 1)


def test_without_finite_forget_samples_only_their_rates_are_missing() -> None:
    spoilt = sure(4)
    spoilt.images[1] = math.nan
    for forget in (spoilt, sure(4).subset(torch.arange(0))):
        rates = membership_inference(READ, forget, sure(40), unsure(20), 1)["loss"]
        assert math.isnan(rates.forget)
        assert math.isnan(rates.forget_advantage)
        assert (rates.retain, rates.retain_false_positive) == (1, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_model_has_no_rates(value: float) -> None:
    class Diverged(nn.Flatten):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 0 + value

    rates = membership_inference(Diverged(), sure(4), sure(20), unsure(20), 1)
    assert list(rates) == list(FEATURES)
    assert all(math.isnan(v) for own in rates.values() for v in astuple(own))

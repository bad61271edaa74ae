"""Membership inference: does a model still treat forgotten samples as its training samples (paper, section 4.2.3)?

The paper takes the attack from the literature on machine unlearning. The public code of those works has no shadow
models: it fits a support vector machine to tell the model's own training samples (members: the retain set) from
test samples (non-members) by one number per image, and counts how many forget samples it calls members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.evaluation.accuracy import BATCH_SIZE
from quickdrop_bench.seeding import generator

__all__ = ["FEATURES", "MembershipRates", "membership_inference"]

MOST = 2000
"""Largest number of samples per side that an attack is fitted on; the time of the fit grows with its square."""

SCORED = 2500
"""Largest number of samples that a rate is computed on: its standard error is then at most 1 point."""

Outputs = tuple[Tensor, Tensor]
"""(n, classes) float64 logits and (n,) labels, on the CPU."""


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1, keepdim=True)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(1).gather(1, labels[:, None])


def _p_true(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, labels[:, None])


def _softmax(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(1)


FEATURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "entropy": _entropy,
    "loss": _loss,
    "p_true": _p_true,
    "softmax": _softmax,
}
"""What an attack sees of an image, by name: (n, classes) logits and (n,) labels to (n, k) features.

``entropy`` of the softmax, in nats, is the cited attack's only feature; it knows no labels. ``loss`` is the
cross-entropy with the image's own label, ``p_true`` that label's probability (k = 1 for all three), and ``softmax``
all probabilities (k = classes).
"""


@dataclass(frozen=True)
class MembershipRates:
    """How often an attack calls samples members, i.e. training samples of the model.

    Attributes:
        forget: share of the forget samples, in [0, 1] (F-MIA).
        retain: share of the retain training samples that the attack was not fitted on, in [0, 1] (R-MIA).
        false_positive: share of the test samples that the attack was not fitted on, in [0, 1].

    A rate is NaN where there are no samples, or where there is no attack. Only differences from ``false_positive``
    speak of membership: where the feature tells the sides apart poorly, the attack may call nearly all samples members,
    or nearly none.
    """

    forget: float
    retain: float
    false_positive: float


def _shuffled(data: LabelledSet, seed: int, name: str) -> Tensor:
    """(n,) positions in an order that depends on the seed and on which rows the set has, not on their order."""
    order = data.rows.cpu().argsort(stable=True)
    return order[torch.randperm(len(data), generator=generator(seed, "membership", name))]


def _outputs(model: nn.Module, data: LabelledSet, positions: Tensor) -> Outputs | None:
    """The model's outputs at some positions; None without positions or if a logit is not finite."""
    if not len(positions):
        return None
    batches = []
    for batch in positions.to(data.rows.device).split(BATCH_SIZE):
        images, labels = data.take(batch)
        batches.append((model(images).cpu().double(), labels.cpu()))
    logits = torch.cat([b[0] for b in batches])
    return (logits, torch.cat([b[1] for b in batches])) if logits.isfinite().all() else None


def _fit(members: Tensor, others: Tensor) -> Any:
    """The cited classifier, fitted to call (n, k) members 1 and (n, k) others 0."""
    from sklearn.svm import SVC  # slow to import

    sides = torch.tensor([1] * len(members) + [0] * len(others))
    return SVC(C=3, gamma="auto", kernel="rbf").fit(torch.cat([members, others]).numpy(), sides.numpy())


@torch.no_grad()
def membership_inference(
    model: nn.Module,
    forget: LabelledSet,
    retain: LabelledSet,
    test: LabelledSet,
    seed: int,
    features: Sequence[str] = ("entropy", "loss"),
) -> dict[str, MembershipRates]:
    """Attack a model with one support vector machine per feature.

    The classifier is that of the cited code, ``SVC(C=3, gamma="auto", kernel="rbf")`` on the raw feature (``auto``
    is 1 / k). Two things differ, as the cited code scores the forget set only: the retain and the test set are each
    halved at random, one half to fit and the other to score, and the fit takes equally many samples of either side,
    :data:`MOST` at most, because a majority of members drives it to call everything a member. Rates are computed on
    at most :data:`SCORED` random samples. All draws depend on the seed and on the rows of the sets alone, so that
    every method is judged on the same samples. Forget samples are never fitted on.

    Args:
        model: maps (B, C, H, W) to (B, classes) logits, on the data's device; run in evaluation mode, not modified.
        forget: training samples that should be forgotten.
        retain: the other training samples, the members.
        test: samples that the model was never trained on, the non-members; in the cited code, of all classes.
        seed: of the draws.
        features: keys of :data:`FEATURES`; the images pass the model once for all of them.

    Returns:
        Rates by feature. All are NaN if the retain or the test set has fewer than two samples or if the model is not
        finite on the samples to fit on; one is NaN if its samples are missing or the model is not finite on them.

    Raises:
        KeyError: a feature has no such name.
    """
    wanted = {name: FEATURES[name] for name in features}
    nan = float("nan")
    if min(len(retain), len(test)) < 2:
        return dict.fromkeys(wanted, MembershipRates(nan, nan, nan))
    in_retain, in_test = _shuffled(retain, seed, "retain"), _shuffled(test, seed, "test")
    size = min(len(retain) // 2, len(test) // 2, MOST)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        members = _outputs(model, retain, in_retain[:size])
        others = _outputs(model, test, in_test[:size])
        scored = [
            _outputs(model, forget, _shuffled(forget, seed, "forget")[:SCORED]),
            _outputs(model, retain, in_retain[len(retain) // 2 :][:SCORED]),
            _outputs(model, test, in_test[len(test) // 2 :][:SCORED]),
        ]
    finally:
        for module, mode in modes.items():
            module.training = mode
    if members is None or others is None:
        return dict.fromkeys(wanted, MembershipRates(nan, nan, nan))
    rates = {}
    for name, feature in wanted.items():
        attack = _fit(feature(*members), feature(*others))
        shares = [nan if s is None else float(attack.predict(feature(*s).numpy()).mean()) for s in scored]
        rates[name] = MembershipRates(*shares)
    return rates

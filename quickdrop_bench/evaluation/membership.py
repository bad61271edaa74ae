"""Membership inference: does a model still treat forgotten samples as its training samples (paper, section 4.2.3)?

The paper takes the attack from the literature on machine unlearning. The public code of those works has no shadow
models: it fits a support vector machine to tell the model's own training samples (members: the retain set) from
test samples (non-members) by one number per image, and counts how many forget samples it calls members.

That rate alone says nothing of membership: an attack on the loss rejects every image that the model mislabels, whether
or not it was trained on. So each rate is compared with the same attack's rate on test images of the same classes,
which nobody trained on; their difference is the attack's advantage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from quickdrop_bench.evaluation.metric import METRICS, Evaluated, Number, metric
from quickdrop_bench.evaluation.outputs import SCORED, Outputs, outputs, shuffled

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quickdrop_bench.data.labelled import LabelledSet

MOST = 2000
"""Largest number of samples per side that an attack is fitted on; the time of the fit grows with its square."""


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1, keepdim=True)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(1).gather(1, labels[:, None])


Feature: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""(n, classes) logits and (n,) labels to (n, 1) features."""

FEATURES: Mapping[str, Feature] = {"entropy": _entropy, "loss": _loss}
"""What an attack sees of an image, by name.

``entropy`` of the softmax, in nats, is the cited attack's only feature; it knows no labels. ``loss`` is the
cross-entropy with the image's own label.
"""


@dataclass(frozen=True)
class MembershipRates:
    """How often an attack calls samples members, i.e. training samples of the model.

    Only the advantages speak of membership: where the feature tells the sides apart poorly, the attack may call nearly
    all samples members, or nearly none.

    Attributes:
        forget: share of the forget samples, in [0, 1] (F-MIA); NaN without samples or without an attack.
        retain: share of the retain training samples that the attack was not fitted on, likewise (R-MIA).
        forget_false_positive: share of the test samples that the attack was not fitted on, each class weighing as much
            as among the forget samples, in [0, 1]; NaN if the test samples lack one of these classes.
        retain_false_positive: likewise, with the classes of the retain samples.
    """

    forget: float
    retain: float
    forget_false_positive: float
    retain_false_positive: float

    def metrics(self) -> dict[str, float]:
        """By the beginnings of the names that rows use."""
        return {
            "f_set": self.forget,
            "r_set": self.retain,
            "f_set_false_positive": self.forget_false_positive,
            "r_set_false_positive": self.retain_false_positive,
            "f_set_advantage": self.forget_advantage,
            "r_set_advantage": self.retain_advantage,
        }

    @property
    def forget_advantage(self) -> float:
        """How much more often forget samples are called members than test samples of their classes, in [−1, 1]."""
        return self.forget - self.forget_false_positive

    @property
    def retain_advantage(self) -> float:
        """How much more often retain samples are called members than test samples of their classes, in [−1, 1]."""
        return self.retain - self.retain_false_positive


NO_RATES = MembershipRates(*[float("nan")] * 4)


def _attack(feature: Feature, members: Outputs, others: Outputs) -> Callable[[Outputs | None], Tensor | None]:
    """The cited classifier on one feature; of outputs it tells which are members', as (n,) float64 zeros and ones."""
    import torch
    from sklearn.svm import SVC

    inside, outside = feature(*members), feature(*others)
    sides = torch.tensor([1] * len(inside) + [0] * len(outside))
    fitted = SVC(C=3, gamma="auto", kernel="rbf").fit(torch.cat([inside, outside]).numpy(), sides.numpy())

    def called(outputs: Outputs | None) -> Tensor | None:
        return None if outputs is None else torch.from_numpy(fitted.predict(feature(*outputs).numpy())).double()

    return called


def _share(called: Tensor | None) -> float:
    """The share of samples that are called members, in [0, 1]; NaN without samples."""
    return float("nan") if called is None else float(called.mean())


def _share_like(mix: Tensor, called: Tensor | None, labels: Tensor) -> float:
    """The share of samples that are called members if each class weighs as much as in another set.

    Args:
        mix: (m,) classes of the other set.
        called: (n,) zeros and ones.
        labels: (n,) classes of the samples.

    Returns:
        In [0, 1]; NaN if the other set is empty or has a class that the samples lack.
    """
    import torch

    if called is None or not len(mix):
        return float("nan")
    classes, counts = mix.unique(return_counts=True)
    rates = torch.stack([called[labels == c].mean() for c in classes])
    return float((counts * rates).sum() / counts.sum())


SUFFIXES = {"entropy": "", "loss": "_loss"}
"""Ends of the names of the two attacks' rates in rows."""


@METRICS.register("membership")
@metric(
    {
        f"{side}_set_{kind}mia{suffix}": Number(oracle=True)
        for suffix in SUFFIXES.values()
        for kind in ("", "false_positive_", "advantage_")
        for side in "fr"
    },
    {"fl-training", "total"},
)
def membership(model: Evaluated, stage: str) -> dict[str, float]:
    """How often two attacks call forgotten and retained training images members (§4.2.3)."""
    data = model.forget_data(), model.retain_data(), model.test
    found = membership_inference(model.model, *data, model.seed)
    return {
        f"{name}_mia{SUFFIXES[feature]}": value
        for feature, rates in found.items()
        for name, value in rates.metrics().items()
    }


def membership_inference(
    model: nn.Module, forget: LabelledSet, retain: LabelledSet, test: LabelledSet, seed: int
) -> dict[str, MembershipRates]:
    """Attack a model with one support vector machine per feature.

    The classifier is that of the cited code, ``SVC(C=3, gamma="auto", kernel="rbf")`` on the raw feature (``auto``
    is 1 / k). Three things differ, as the cited code scores the forget set only. The retain and the test set are
    divided at random into what is fitted on and what is scored, and the fit takes equally many samples of either side,
    half of the smaller one and :data:`MOST` at most, because a majority of members drives it to call everything a
    member. False positives are counted on all other test samples, class by class, and weighted by the classes of the
    samples that they are compared with: a weighted rate has no noise of a further draw. The rates of training samples
    are computed on at most :data:`SCORED` random ones. All draws depend on the seed and on the rows of the sets alone,
    so that every method is judged on the same samples. Forget samples are never fitted on.

    Args:
        model: maps (B, C, H, W) to (B, classes) logits, on the data's device; run in evaluation mode, not modified.
        forget: training samples that should be forgotten.
        retain: the other training samples, the members.
        test: samples that the model was never trained on, the non-members; in the cited code, of all classes.
        seed: of the draws.

    Returns:
        Rates by feature. All are NaN if the retain or the test set has fewer than two samples or if the model is not
        finite on the samples to fit on; one is NaN if its samples are missing or the model is not finite on them.
    """
    if min(len(retain), len(test)) < 2:
        return dict.fromkeys(FEATURES, NO_RATES)
    in_retain, in_test = shuffled(retain, seed, "retain"), shuffled(test, seed, "test")
    size = min(len(retain) // 2, len(test) // 2, MOST)
    of_forget = shuffled(forget, seed, "forget")[:SCORED]
    of_retain = in_retain[len(retain) // 2 :][:SCORED]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        members = outputs(model, retain, in_retain[:size])
        others = outputs(model, test, in_test[:size])
        forgotten, retained = outputs(model, forget, of_forget), outputs(model, retain, of_retain)
        strangers = outputs(model, test, in_test[size:])
    finally:
        for module, mode in modes.items():
            module.training = mode
    if members is None or others is None:
        return dict.fromkeys(FEATURES, NO_RATES)
    mixes = [data.subset(at).own_labels().cpu() for data, at in ((forget, of_forget), (retain, of_retain))]
    test_labels = test.subset(in_test[size:]).own_labels().cpu()
    rates = {}
    for name, feature in FEATURES.items():
        called = _attack(feature, members, others)
        on_test = called(strangers)
        false_positives = (_share_like(mix, on_test, test_labels) for mix in mixes)
        rates[name] = MembershipRates(_share(called(forgotten)), _share(called(retained)), *false_positives)
    return rates

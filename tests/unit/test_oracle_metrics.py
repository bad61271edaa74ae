"""Metrics that compare with the retrained model: by hand, and their invariants."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.evaluation.client_accuracy import accuracies_of, client_accuracy
from quickdrop_bench.evaluation.layer_distance import cosine, layer_distance, layer_distances, total_distance
from quickdrop_bench.evaluation.membership_auc import class_weights, membership_auc, weighted_auc
from quickdrop_bench.evaluation.metric import METRICS, Evaluated
from quickdrop_bench.evaluation.oracle_outputs import (
    COMPARED,
    activation_distance,
    agreement,
    jensen_shannon,
    oracle_outputs,
    tug_of_war,
)
from quickdrop_bench.evaluation.relearn_cost import relearn_cost
from quickdrop_bench.federation.phase import Phase

CLASS_1 = UnlearningRequest("class", (1,))
CLIENT_1 = UnlearningRequest("client", (1,))


def logits(count: int, classes: int, seed: int) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, classes, generator=stream, dtype=torch.float64)


ONE, OTHER = logits(50, 4, 1), logits(50, 4, 2)
SURE = 1e4 * torch.eye(2, dtype=torch.float64)
"""Softmax outputs (1, 0) and (0, 1)."""


# Two models' answers ------------------------------------------------------------------------------------------


def test_agreement_counts_equal_answers() -> None:
    own = torch.tensor([[2.0, 1], [0, 1], [3, 0], [0, 5]])
    assert agreement(own, torch.tensor([[9.0, 0], [1, 0], [1, 0], [0, 1]])) == 3 / 4
    assert agreement(ONE, ONE) == 1
    assert agreement(ONE, OTHER) == agreement(OTHER, ONE) == agreement(7 * ONE, 0.1 * OTHER)


def test_jensen_shannon_matches_its_definition_and_its_bound() -> None:
    p, q = ONE.softmax(1), OTHER.softmax(1)
    m = (p + q) / 2
    slow = (p * (p / m).log()).sum(1) / 2 + (q * (q / m).log()).sum(1) / 2
    assert jensen_shannon(ONE, OTHER) == pytest.approx(float(slow.mean()))
    assert jensen_shannon(ONE, OTHER) == pytest.approx(jensen_shannon(OTHER, ONE))
    assert jensen_shannon(ONE, ONE) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(SURE, SURE.flip(0)) == pytest.approx(math.log(2))
    halves = (jensen_shannon(ONE[part], OTHER[part]) for part in (slice(25), slice(25, 50)))
    assert sum(halves) / 2 == pytest.approx(jensen_shannon(ONE, OTHER))


def test_activation_distance_is_the_mean_norm_below_the_root_of_mean_squares() -> None:
    assert activation_distance(SURE, SURE.flip(0)) == pytest.approx(math.sqrt(2))
    assert activation_distance(ONE, ONE) == 0
    assert activation_distance(ONE, OTHER) == pytest.approx(activation_distance(OTHER, ONE))
    squares = (ONE.softmax(1) - OTHER.softmax(1)).square().sum(1)
    assert 0 < activation_distance(ONE, OTHER) <= float(squares.mean().sqrt())


def test_tug_of_war_is_a_product_of_what_is_not_lost() -> None:
    assert tug_of_war([(0.1, 0.0), (0.8, 0.9), (0.5, 0.5)]) == pytest.approx(0.9 * 0.9)
    assert tug_of_war([(0.8, 0.9), (0.1, 0.0)]) == pytest.approx(tug_of_war([(0.1, 0.0), (0.9, 0.8)]))
    assert tug_of_war([(0.3, 0.3)] * 3) == 1
    assert tug_of_war([(1.0, 0.0), (0.5, 0.5)]) == 0


class Table(nn.Module):
    """The logits of an image are a row of the parameter, named by its only pixel."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.rows[images.flatten().long()]


def answers(*classes: int) -> Tensor:
    """Parameters of a model that gives image i the class number i of these."""
    return 20 * torch.eye(3)[list(classes)]


def asked(own: Tensor, oracle: Tensor | None, about: UnlearningRequest = CLASS_1, **more: Any) -> Evaluated:
    """Training images 0 to 3 of classes 0, 1, 1, 2, the last two at client 1; test images 4 to 7 of 0, 1, 1, 2."""
    images, labels = torch.arange(8.0).view(8, 1, 1, 1), torch.tensor([0, 1, 1, 2, 0, 1, 1, 2])
    train = {i: LabelledSet(images[:4], labels[:4], torch.tensor(rows)) for i, rows in enumerate(([0, 1], [2, 3]))}
    test = LabelledSet.of(images[4:], labels[4:])
    state = {"rows": own}
    original = {"rows": answers(*labels.tolist())}
    retrained = None if oracle is None else {"rows": oracle}
    phase = Phase("fl-training", 1, 1, 2, 0.5)
    model = Evaluated(Table(own), state, original, test, 3, train, (about,), (about,), 1)
    return replace(model, oracle=retrained, training=phase, **more)


def test_the_sets_of_a_class_request() -> None:
    """Train: one of two forgotten images alike; test: one of two in the F-Set, and one of two in the R-Set."""
    model = asked(answers(0, 0, 2, 2, 0, 0, 0, 0), answers(0, 2, 2, 2, 0, 0, 2, 2))
    found = oracle_outputs.measure(model, "total")
    assert [found[f"{part}_agreement"] for part in ("f_set", "r_set", "forgotten_training")] == [1 / 2, 1 / 2, 1 / 2]
    assert found["f_set_js"] == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert found["f_set_activation_distance"] == pytest.approx(math.sqrt(2) / 2, abs=1e-6)
    assert found["tug_of_war_f_set"] == found["tug_of_war_retained"] == 1
    assert found["tug_of_war"] == found["tug_of_war_r_set"] == 1 / 2


def test_the_f_set_of_a_client_request_is_its_training_images() -> None:
    model = asked(answers(0, 1, 1, 0, 0, 1, 1, 2), answers(0, 1, 2, 2, 0, 1, 1, 2), CLIENT_1)
    found = oracle_outputs.measure(model, "total")
    assert found["f_set_agreement"] == 0
    assert found["r_set_agreement"] == found["tug_of_war"] == 1
    assert "forgotten_training_agreement" not in found


def test_a_model_that_is_the_oracle_and_one_that_is_not_finite() -> None:
    own = answers(0, 0, 2, 2, 0, 0, 0, 0)
    found = oracle_outputs.measure(asked(own, own), "total")
    for name in COMPARED:
        assert found[f"r_set_{name}"] == pytest.approx(float(name == "agreement"), abs=1e-9)
    assert found["tug_of_war"] == 1
    assert math.isnan(oracle_outputs.measure(asked(own, own / 0), "total")["r_set_js"])


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].needs_oracle])
def test_comparing_leaves_the_model_as_it_was_and_needs_the_oracle(name: str) -> None:
    own = answers(0, 0, 2, 2, 0, 0, 0, 0)
    model = asked(own, answers(0, 2, 2, 2, 0, 0, 2, 2))
    found = METRICS[name].measure(model, "total")
    assert torch.equal(model.model.get_parameter("rows"), own)
    assert torch.equal(model.state["rows"], own)
    alone = METRICS[name].measure(asked(own, None), "total")
    compared = {n for n, number in METRICS[name].gives.items() if number.floor} | {"relearn_gradients"}
    assert not alone.keys() & compared
    assert found.keys() & compared


# Weights ------------------------------------------------------------------------------------------------------


def test_layer_distances_by_hand() -> None:
    own, other = {"a": torch.tensor([3.0, 0]), "b": torch.tensor([[1.0]])}, {"a": torch.zeros(2), "b": torch.ones(1, 1)}
    found = layer_distances(own, other)
    assert found == {"a": 3, "b": 0}
    assert total_distance(found) == 3
    assert cosine(own, other) == pytest.approx(1 / math.sqrt(10))
    mine = answers(0, 0, 2, 2, 0, 0, 0, 0)
    assert layer_distance.measure(asked(mine, mine), "total")["layer_distance"] == 0
    negated = layer_distance.measure(asked(-mine, mine), "total")
    assert negated == pytest.approx({"layer_distance": 2, "layer_distance_mean": 2, "weight_cosine": -1})


# Membership ---------------------------------------------------------------------------------------------------


def test_auc_matches_counting_pairs_and_ignores_monotone_maps() -> None:
    stream = torch.Generator().manual_seed(0)
    members = torch.randint(0, 6, (40,), generator=stream).double()
    others = torch.randint(0, 6, (30,), generator=stream).double()
    weights = torch.rand(30, generator=stream, dtype=torch.float64)
    above = (members[:, None] > others).double() + 0.5 * (members[:, None] == others)
    expected = float((above * weights).sum() / (len(members) * weights.sum()))
    assert weighted_auc(members, others, weights) == pytest.approx(expected)
    assert weighted_auc(members.exp(), others.exp(), weights) == pytest.approx(expected)
    assert weighted_auc(torch.ones(3), torch.ones(4), torch.ones(4)) == 0.5
    assert math.isnan(weighted_auc(members, others, 0 * weights))


def test_others_weigh_as_the_members_classes_do() -> None:
    mix, labels = torch.tensor([0, 0, 0, 2]), torch.tensor([0, 2, 2, 1])
    assert class_weights(mix, labels).tolist() == [3, 1 / 2, 1 / 2, 0]
    assert class_weights(torch.tensor([0, 3]), labels).sum() == 0
    same = weighted_auc(torch.tensor([1.0]), torch.tensor([0.0, 2, 3]), class_weights(mix[:1], labels[[0, 1, 1]] * 0))
    assert same == pytest.approx(1 / 3)


def test_auc_tells_a_model_that_knows_its_training_images_by_heart() -> None:
    sure, unsure = answers(0, 1, 1, 2, 0, 1, 1, 2), answers(0, 1, 1, 2, 0, 1, 1, 2)
    unsure[4:] *= 0.1
    names = ("f_set_mia_auc", "f_set_mia_auc_loss")
    for own, expected in ((unsure, 1.0), (sure, 0.5)):
        for about in (CLASS_1, CLIENT_1):
            found = membership_auc.measure(asked(own, None, about), "total")
            assert [found[name] for name in names] == [expected, expected]
    lacking = asked(sure, None)
    lacking = replace(lacking, test=lacking.test.with_classes([1], keep=False))
    assert all(math.isnan(value) for value in membership_auc.measure(lacking, "total").values())


# Clients ------------------------------------------------------------------------------------------------------


def test_clients_weigh_classes_as_they_hold_them() -> None:
    by_class = [1.0, 0.5, math.nan]
    assert accuracies_of(by_class, [[1, 1, 5], [0, 2, 0], [0, 0, 3], [0, 0, 0]]) == [0.75, 0.5]
    assert accuracies_of(by_class, [[10, 10, 50]] * 2) == [0.75, 0.75]


def test_worst_client_by_hand() -> None:
    """Without class 1, client 0 holds class 0 and client 1 class 2."""
    found = client_accuracy.measure(asked(answers(0, 0, 0, 0, 0, 0, 0, 0), answers(0, 0, 0, 0, 1, 0, 0, 2)), "total")
    assert found == {"worst_client_accuracy": 0, "client_accuracy_std": 0.5, "worst_client_drop": 1}
    left = client_accuracy.measure(asked(answers(0, 0, 0, 0, 0, 1, 0, 0), None, CLIENT_1), "total")
    assert left == {"worst_client_accuracy": 0.75, "client_accuracy_std": 0}


# Relearning ---------------------------------------------------------------------------------------------------


def test_relearning_counts_gradients_until_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table learns each image by itself, the test images never; so the F-Set here is the client's own images."""
    far = asked(answers(0, 1, 0, 0, 0, 1, 1, 2), answers(0, 1, 0, 0, 0, 1, 1, 2), CLIENT_1)
    capped = relearn_cost.measure(far, "total")
    assert math.isnan(capped["relearn_gradients"])
    assert capped["relearn_capped"] == 1
    monkeypatch.setattr("quickdrop_bench.evaluation.relearn_cost.LR", math.nan)
    assert relearn_cost.measure(far, "total")["relearn_capped"] == 1
    monkeypatch.setattr("quickdrop_bench.evaluation.relearn_cost.LR", 25.0)
    found = relearn_cost.measure(far, "total")
    assert found["relearn_capped"] == 0
    assert found["relearn_gradients"] == 2
    knowing = answers(0, 1, 1, 2, 0, 1, 1, 2)
    assert relearn_cost.measure(replace(far, state={"rows": knowing}), "total")["relearn_gradients"] == 0
    assert relearn_cost.measure(replace(far, oracle={"rows": knowing}), "total") == {}

"""What the tuned protocol compares a model with: one that never saw the forgotten images."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from lightning.fabric import Fabric

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.data.labelled import LabelledSet, pool
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.distillation.in_situ import Distillation
from quickdrop_bench.evaluation.accuracy import ClassAccuracy
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.harness.judging import HELD_OUT, Baseline, Judge, _divided, _expected
from quickdrop_bench.harness.tuning import tune
from quickdrop_bench.methods import METHODS, Context
from quickdrop_bench.methods.registry import Search
from quickdrop_bench.models.convnet import ConvNet
from tests.asked import asked, guarded
from tests.conftest import Clients, Make


def context_of(federation: Federation, clients: Clients, level: str) -> Context:
    """A federation trained until it knows its images."""
    training = Phase("fl-training", rounds=30, local_steps=4, batch_size=32, lr=0.3)
    context = asked(federation, clients, level, training=training)
    return replace(context, state=federation.run(context.state, clients, training, 1).state)


@pytest.fixture(scope="module")
def by_heart() -> Context:
    """Noise in two classes, learnt by heart: nobody can tell images that were not seen."""
    stream = torch.Generator().manual_seed(0)
    images, labels = torch.randn(120, 1, 8, 8, generator=stream), torch.randint(0, 2, (120,), generator=stream)
    clients = {i: LabelledSet(images, labels, torch.arange(40 * i, 40 * i + 40)) for i in range(3)}
    federation = Federation(
        Fabric(accelerator="cpu", devices=1), ConvNet(width=16, depth=2).build(1, 8, 3), Distillation(1, 0.1, 0.5, 256)
    )
    with torch.random.fork_rng(devices=[]):
        return context_of(federation, clients, "client")


def test_an_untouched_model_that_learnt_by_heart_has_not_forgotten(by_heart: Context) -> None:
    """It is sure of the forgotten and of the retained images alike, and one that never saw them would guess."""
    judge = Judge(by_heart, 3)
    judgement, _ = judge(by_heart.state)
    assert judgement.retain >= 0.95
    assert judge.baseline.accuracy <= 0.7
    assert judgement.excess >= 0.25


def test_a_search_does_not_take_what_leaves_the_model_as_it_was(by_heart: Context) -> None:
    """Ascent at a tiny rate retains everything, but the client's images are still known by heart."""

    class Sga(METHODS["sga-or"]):  # type: ignore[misc]
        search: ClassVar[Search] = {"unlearning": {"unlearn_lr": (1e-6, 0.1, 0.3), "unlearn_stop_loss": (1.0,)}}

    method = Sga(unlearn_rounds=3, recover_rounds=1, recover_lr=0.01, recover_local_steps=1)
    judge = Judge(by_heart, 3)
    tuned = tune(by_heart, method, judge)
    untouched, idle = tuned.trials[:2]
    assert idle["unlearn_lr"] == 1e-6
    assert (idle["excess"], idle["retain"]) == (untouched["excess"], untouched["retain"])
    assert tuned.chosen["unlearn_lr"] > 1e-6
    (taken,) = (t for t in tuned.trials if t["stage"] == "recovery" and t.items() >= tuned.chosen.items())
    assert taken["excess"] < untouched["excess"] / 2


def test_a_class_that_nobody_keeps_has_a_baseline_of_zero_at_no_cost(
    make_federation: Make, toy_clients: Clients
) -> None:
    """Excess and retained accuracy then equal a plain recomputation on the clients' images."""
    context = context_of(make_federation(), toy_clients, "class")
    initial = context.federation.fresh_state(2, "init")
    judge = Judge(context, 3)
    judgement, cost = judge(initial)
    assert judge.baseline == Baseline(0.0, Cost())
    assert (cost.sample_forwards, cost.sample_gradients) == (45, 0)
    images, labels = toy_clients[0].images, toy_clients[0].labels
    context.federation.load(initial)
    with torch.no_grad():
        hit = (context.federation.model(images).argmax(1) == labels).float()
    assert judgement.retain == pytest.approx(float(hit[labels != 1].mean()))
    assert judgement.excess == pytest.approx(float(hit[labels == 1].mean()))


def test_the_baseline_never_reads_the_forgotten_and_costs_a_training(by_heart: Context) -> None:
    """It is judged on a fifth of each class of the retained images."""
    baseline = Judge(guarded(by_heart, range(40, 80)), 3).baseline
    labels = pool(by_heart.clients[0].original, by_heart.clients[2].original).own_labels()
    held_out = sum(-int(-HELD_OUT * int((labels == c).sum()) // 1) for c in (0, 1))
    assert baseline.cost.sample_forwards == held_out
    assert baseline.cost.rounds == 30
    assert baseline.cost.sample_gradients > 0
    assert baseline.accuracy == Judge(by_heart, 3).baseline.accuracy


def test_what_is_held_out_is_a_share_of_every_class_and_is_not_trained_on() -> None:
    labels = torch.tensor([0] * 50 + [1] * 7 + [2])
    images = torch.zeros(58, 1, 2, 2)
    retain = {
        4: LabelledSet(images, labels, torch.arange(0, 58, 2)),
        9: LabelledSet(images, labels, torch.arange(1, 58, 2)),
    }
    rest, held_out = _divided(retain, seed=3)
    assert held_out.own_labels().bincount().tolist() == [10, 2, 1]
    assert sorted(rest) == [4, 9]
    together = torch.cat([held_out.rows, rest[4].rows, rest[9].rows])
    assert sorted(together.tolist()) == list(range(58))
    for client in retain:
        assert set(rest[client].rows.tolist()) <= set(retain[client].rows.tolist())
    assert torch.equal(_divided(retain, seed=3)[1].rows, held_out.rows)
    assert not torch.equal(_divided(retain, seed=4)[1].rows, held_out.rows)


def test_expected_accuracy_is_weighted_by_the_forgotten_classes(
    by_heart: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 forgotten images of class 0 and 10 of class 2, which nobody retains: 30/40 of class 0's 0.8.

    So it is with samples: of ten, those of class 0 count with 0.8 and those of class 1 with 0.9.
    """
    held_out = ClassAccuracy(((80, 20, 0), (10, 90, 0), (0, 0, 0)))
    assert _expected(torch.tensor([0] * 30 + [2] * 10), held_out) == pytest.approx(0.6)
    samples = UnlearningRequest("sample", tuple(range(10)))
    zeros = int((by_heart.clients[0].original.labels[:10] == 0).sum())
    judge = Judge(replace(by_heart, request=samples, forgotten=(samples,)), 3)
    monkeypatch.setattr(judge, "_accuracies", lambda *args: ([held_out], Cost()))
    assert judge.baseline.accuracy == pytest.approx((0.8 * zeros + 0.9 * (10 - zeros)) / 10)

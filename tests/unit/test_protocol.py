"""The search of the tuned protocol, on methods whose outcome is known in advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from quickdrop_bench.cost import Cost, Storage
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.errors import BadInput
from quickdrop_bench.evaluation.accuracy import ClassAccuracy
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.local import Phase
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.protocol import Judgement, _candidates, _expected, _Judge, tune
from quickdrop_bench.methods import METHODS, Context, StageResult
from quickdrop_bench.methods.base import LEVELS_ALL, ClientData, Search
from quickdrop_bench.reporting.tables import SETTING, write_trials

Make = Callable[..., Federation]
OUTCOMES = {
    # unlearning steps: (excess on forgotten images, accuracy on retained ones)
    1: Judgement(0.40, 0.95),
    2: Judgement(0.00, 0.60),
    4: Judgement(0.00, 0.90),
    8: Judgement(0.00, 0.10),
}
RECOVERED = {1: 0.90, 2: 0.945, 4: 0.95}
"""Recovery steps: accuracy on retained images, whatever came before except the wreck of eight steps."""


@dataclass(frozen=True)
class Scripted:
    """Ends in a state that names the settings; the judge looks the outcome up."""

    levels: ClassVar[frozenset[str]] = LEVELS_ALL
    can_relearn: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    summary: ClassVar[str] = ""
    search: ClassVar[Search] = {
        "unlearning": {"unlearn_local_steps": (1, 2, 4, 8)},
        "recovery": {"recover_local_steps": (1, 2, 4)},
    }
    unlearn_local_steps: int | None = 3
    recover_local_steps: int | None = 3
    unlearn_stop_loss: float | None = 6.0
    lr: float = 0.5

    def unlearn(self, context: Context) -> StageResult:
        steps = float(self.unlearn_local_steps or 0)
        return StageResult({"s": torch.tensor([steps, 0.0])}, Cost(sample_gradients=int(steps)))

    def recover(self, context: Context, state: State) -> StageResult | None:
        steps = float(self.recover_local_steps or 0)
        return StageResult({"s": torch.stack([state["s"][0], torch.tensor(steps)])}, Cost(sample_gradients=int(steps)))

    def relearn(self, context: Context, state: State) -> StageResult:
        raise AssertionError

    def storage(self, context: Context) -> Storage:
        return Storage()


def outcome(state: State) -> Judgement:
    unlearned, recovered = (int(v) for v in state["s"].tolist())
    first = OUTCOMES[unlearned]
    if not recovered:
        return first
    return replace(first, retain=0.3 if unlearned == 8 else RECOVERED[recovered])


def judge_with(monkeypatch: pytest.MonkeyPatch, judge: Callable[[State], Judgement]) -> None:
    """Put a function in the place of the judge; it costs nothing."""

    class Judge:
        cost = Cost()

        def __init__(self, context: Context, classes: int) -> None:
            pass

        def __call__(self, state: State) -> Judgement:
            return judge(state)

    monkeypatch.setattr("quickdrop_bench.harness.protocol._Judge", Judge)


@pytest.fixture
def context(make_federation: Make, toy_clients: dict[int, LabelledSet]) -> Context:
    federation = make_federation()
    clients = {i: ClientData(d, d, d) for i, d in toy_clients.items()}
    request = UnlearningRequest("class", (1,))
    training = Phase("fl-training", rounds=1, local_steps=8, batch_size=8, lr=0.1)
    return Context(federation, training, clients, federation.fresh_state(1, "init"), request, (request,), seed=1)


def test_search_takes_the_cheapest_of_those_that_forget_and_keep(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step does not forget; 2, 4 and 8 do. After recovery 0.945 is within a point of 0.95 but 0.90 is not, and the
    wreck is out: (2, 2) is the cheapest left."""
    judge_with(monkeypatch, outcome)
    tuned = tune(context, Scripted(), classes=3)
    assert tuned.chosen == {"unlearn_local_steps": 2, "recover_local_steps": 2}
    assert tuned.method == Scripted(unlearn_local_steps=2, recover_local_steps=2)
    assert len(tuned.trials) == 4 + 4 * 3
    assert tuned.trials[0] == {
        "stage": "unlearning", "unlearn_local_steps": 1, "excess": 0.4, "retain": 0.95, "gradient_equivalents": 1
    }  # fmt: skip
    assert tuned.cost.sample_gradients == (1 + 2 + 4 + 8) + 4 * (1 + 2 + 4)


def test_where_nothing_forgets_the_closest_is_taken(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_with(monkeypatch, lambda state: replace(outcome(state), excess=1 / (1 + float(state["s"][0]))))
    assert tune(context, Scripted(), classes=3).chosen["unlearn_local_steps"] == 8


def test_recovery_may_do_the_forgetting(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting forgets at once, all do after recovery: the hardest one is not taken for being closest before it."""

    def judgement(state: State) -> Judgement:
        unlearned, recovered = state["s"].tolist()
        return Judgement(0.0 if recovered else 1 / unlearned, 0.97 - 0.05 * unlearned)

    judge_with(monkeypatch, judgement)
    assert tune(context, Scripted(), classes=3).chosen == {"unlearn_local_steps": 1, "recover_local_steps": 1}


def test_judging_is_part_of_what_the_search_costs(context: Context) -> None:
    """Each of the 4 + 4·3 trials is judged on all 45 images, in forward passes."""
    original = context.state

    class Idle(Scripted):
        def unlearn(self, context: Context) -> StageResult:
            return StageResult(original, Cost(sample_gradients=self.unlearn_local_steps or 0))

        def recover(self, context: Context, state: State) -> StageResult | None:
            return StageResult(original, Cost(sample_gradients=self.recover_local_steps or 0))

    tuned = tune(context, Idle(), classes=3)
    assert len(tuned.trials) == 16
    assert tuned.cost.sample_forwards == 16 * 45
    assert tuned.cost.seconds > 0


def test_local_steps_are_capped_at_those_of_training() -> None:
    space: dict[str, tuple[Any, ...]] = {"unlearn_local_steps": (1, 5, 10, 50), "unlearn_lr": (0.1, 50.0)}
    tried = list(_candidates(space, local_steps=7))
    assert [t["unlearn_local_steps"] for t in tried] == [1, 1, 5, 5, 7, 7]
    assert {t["unlearn_lr"] for t in tried} == {0.1, 50.0}
    assert list(_candidates({}, 7)) == [{}]


def test_expected_accuracy_is_that_of_retained_images_of_the_same_classes() -> None:
    """30 forgotten images of class 0 and 10 of class 2, which nobody retains: 30/40 of class 0's 0.8."""
    forgotten = ClassAccuracy(((27, 3, 0), (0, 0, 0), (5, 0, 5)))
    retained = ClassAccuracy(((80, 20, 0), (90, 10, 0), (0, 0, 0)))
    assert _expected(forgotten, retained) == pytest.approx(0.6)


def test_the_judge_reads_training_data_only(context: Context) -> None:
    """On random weights: excess and retained accuracy equal a plain recomputation on the clients' images."""
    judgement = _Judge(context, 3)(context.state)
    model = context.federation.model
    images, labels = context.clients[0].original.images, context.clients[0].original.labels
    with torch.no_grad():
        hit = (model(images).argmax(1) == labels).float()
    assert judgement.retain == pytest.approx(float(hit[labels != 1].mean()))
    assert judgement.excess == pytest.approx(float(hit[labels == 1].mean()))


def test_reflection_is_searched_without_a_bound(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_with(monkeypatch, lambda state: Judgement(0.0, 0.9))
    tried = [tune(context, METHODS["sga-or"](ascent=form), 3).trials for form in ("gradient", "reflection")]
    firsts = [[t for t in trials if t["stage"] == "unlearning"] for trials in tried]
    assert [len(first) for first in firsts] == [4 * 2 * 2, 4 * 2]  # steps capped at 8, rates, bounds
    assert not any("unlearn_stop_loss" in t for t in firsts[1])


@pytest.mark.parametrize("name", ["sga-or", "quickdrop"])
def test_real_methods_forget_with_what_is_found(name: str, make_federation: Make, toy_clients: Any) -> None:
    from tests.contract.test_methods import accuracies, make_context, serve

    federation = make_federation()
    context = make_context(federation, toy_clients)
    tuned = tune(context, METHODS[name](unlearn_rounds=6), classes=3)
    forget, retain = accuracies(federation, serve(tuned.method, context))
    assert forget <= 0.1
    assert retain >= 0.75
    assert tuned.cost.sample_gradients > 0
    assert tune(context, METHODS["retrain-or"](), classes=3).trials == ()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n", b'"'])
def test_earlier_searches_that_cannot_be_read_are_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "search.csv"
    path.write_bytes(content)
    trial = {**dict.fromkeys(SETTING, "x"), "seed": 1, "method": "m"}
    with pytest.raises(BadInput, match=r"--results-dir .*search\.csv cannot be read"):
        write_trials(path, [trial])
    assert path.read_bytes() == content

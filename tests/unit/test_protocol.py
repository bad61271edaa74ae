"""The search of the tuned protocol, on methods whose outcome is known in advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from quickdrop_bench.core.cost import Cost, Storage
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.judging import Baseline, Judge, Judgement
from quickdrop_bench.harness.tuning import _candidates, tune
from quickdrop_bench.methods import METHODS, Context, StageResult
from quickdrop_bench.methods.registry import LEVELS_ALL, Search
from quickdrop_bench.reporting.frame import SETTING
from quickdrop_bench.reporting.render import write_trials
from tests.asked import FULL_BATCHES, asked
from tests.conftest import Make

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


@dataclass
class ScriptedJudge(Judge):
    """Looks up the outcome of a state; the model before the request does all that it did."""

    of: Callable[[State], Judgement] = outcome
    baseline: Baseline = field(default=Baseline(0.25, Cost()))  # type: ignore[assignment]

    def __call__(self, state: State) -> tuple[Judgement, Cost]:
        return (self.of(state) if "s" in state else Judgement(0.5, 0.99)), Cost()


@pytest.fixture
def context(make_federation: Make, toy_clients: dict[int, LabelledSet]) -> Context:
    return asked(make_federation(), toy_clients, "class", training=replace(FULL_BATCHES, local_steps=8))


def test_search_takes_the_cheapest_of_those_that_forget_and_keep(context: Context) -> None:
    """One step does not forget; 2, 4 and 8 do. After recovery 0.945 is within a point of 0.95 but 0.90 is not, and the
    wreck is out: (2, 2) is the cheapest left."""
    tuned = tune(context, Scripted(), ScriptedJudge())
    assert tuned.chosen == {"unlearn_local_steps": 2, "recover_local_steps": 2}
    assert tuned.method == Scripted(unlearn_local_steps=2, recover_local_steps=2)
    assert [trial["stage"] for trial in tuned.trials] == ["untouched"] + ["unlearning"] * 4 + ["recovery"] * 12
    untouched = {"stage": "untouched", "forget": 0.75, "excess": 0.5, "retain": 0.99, "gradient_equivalents": 0}
    assert tuned.trials[0] == {**untouched, "front": False}
    first = {"stage": "unlearning", "forget": 0.65, "excess": 0.4, "retain": 0.95, "gradient_equivalents": 1}
    assert tuned.trials[1] == {**first, "unlearn_local_steps": 1, "front": False}
    assert tuned.cost.sample_gradients == (1 + 2 + 4 + 8) + 4 * (1 + 2 + 4)


def test_the_front_is_what_no_other_setting_beats(context: Context) -> None:
    """Whole requests with 1 step cost least, though they do not forget; of those that do, 2 steps are the cheapest."""
    trials = tune(context, Scripted(), ScriptedJudge()).trials
    front = [(t["unlearn_local_steps"], t.get("recover_local_steps")) for t in trials if t["front"]]
    assert front == [(2, 1), (2, 2), (2, 4), (1, 1), (1, 2), (1, 4)]


EXCESS = {1: 0.03, 2: -0.01, 4: -0.10, 8: -0.80}
WRECKED = {1: Judgement(0.2, 0.9), 2: Judgement(0.1, 0.9), 4: Judgement(-0.02, 0.9), 8: Judgement(0.0, 0.4)}
CHOSEN: dict[str, tuple[Callable[[int, int], Judgement], int]] = {
    "the closest, where nothing forgets": (lambda first, then: Judgement(1 / (1 + first), 0.9), 8),
    "doing worse than a model that never saw the data is no better than retaining less": (
        lambda first, then: Judgement(EXCESS[first], 0.96 + 0.001 * first), 2
    ),
    "no wreck that happens to guess as well": (lambda first, then: WRECKED[first], 4),
    "not the closest before recovery, where recovery does the forgetting": (
        lambda first, then: Judgement(0.0 if then else 1 / first, 0.97 - 0.05 * first), 1
    ),
}  # fmt: skip
"""How models do after so many steps of unlearning and recovery, and the steps of unlearning that are best."""


@pytest.mark.parametrize(("judgement", "steps"), CHOSEN.values(), ids=CHOSEN)
def test_which_setting_is_chosen(judgement: Callable[[int, int], Judgement], steps: int, context: Context) -> None:
    judge = ScriptedJudge(lambda state: judgement(*map(int, state["s"].tolist())))
    assert tune(context, Scripted(), judge).chosen["unlearn_local_steps"] == steps


def test_without_recovery_every_setting_may_be_chosen(context: Context) -> None:
    """Six settings do equally well: the cheapest of all is taken, not that of the few that recovery would follow."""

    class Single(Scripted):
        search: ClassVar[Search] = {"unlearning": {"lr": tuple(0.1 * k for k in range(1, 7))}}

        def unlearn(self, context: Context) -> StageResult:
            return StageResult({"s": torch.tensor([self.lr])}, Cost(sample_gradients=int(10 * self.lr)))

        def recover(self, context: Context, state: State) -> StageResult | None:
            return None

    judge = ScriptedJudge(lambda state: Judgement(0.0, 0.9 + 0.01 * float(state["s"])))
    assert tune(context, Single(), judge).chosen == {"lr": 0.1}


def test_a_recovery_that_diverges_is_no_candidate(context: Context) -> None:
    class Fragile(Scripted):
        def recover(self, context: Context, state: State) -> StageResult | None:
            result = super().recover(context, state)
            assert result is not None
            return replace(result, diverged=self.recover_local_steps == 2)

    tuned = tune(context, Fragile(), ScriptedJudge())
    assert tuned.chosen == {"unlearn_local_steps": 2, "recover_local_steps": 4}
    assert tuned.cost.sample_gradients == (1 + 2 + 4 + 8) + 4 * (1 + 2 + 4)


def test_judging_is_part_of_what_the_search_costs(context: Context) -> None:
    """Each of the 1 + 4 + 4·3 trials is judged on all 45 images, in forward passes."""
    original = context.state

    class Idle(Scripted):
        def unlearn(self, context: Context) -> StageResult:
            return StageResult(original, Cost(sample_gradients=self.unlearn_local_steps or 0))

        def recover(self, context: Context, state: State) -> StageResult | None:
            return StageResult(original, Cost(sample_gradients=self.recover_local_steps or 0))

    judge = Judge(context, 3)
    tuned = tune(context, Idle(), judge)
    assert len(tuned.trials) == 17
    assert tune(context, METHODS["retrain-or"](), judge).trials == ()
    assert tuned.cost.sample_forwards == 17 * 45
    assert tuned.cost.seconds > 0


def test_local_steps_are_capped_at_those_of_training() -> None:
    space: dict[str, tuple[Any, ...]] = {"unlearn_local_steps": (1, 5, 10, 50), "unlearn_lr": (0.1, 50.0)}
    tried = list(_candidates(space, local_steps=7))
    assert [t["unlearn_local_steps"] for t in tried] == [1, 1, 5, 5, 7, 7]
    assert {t["unlearn_lr"] for t in tried} == {0.1, 50.0}
    assert list(_candidates({}, 7)) == [{}]


def test_reflection_is_searched_without_a_bound(context: Context) -> None:
    class Idle(METHODS["sga-or"]):  # type: ignore[misc]
        def unlearn(self, context: Context) -> StageResult:
            return StageResult(context.state, Cost())

        def recover(self, context: Context, state: State) -> StageResult:
            return StageResult(state, Cost())

    judge = ScriptedJudge(lambda state: Judgement(0.0, 0.9))
    tried = [tune(context, Idle(ascent=form), judge).trials for form in ("gradient", "reflection")]
    firsts = [[t for t in trials if t["stage"] == "unlearning"] for trials in tried]
    assert [len(first) for first in firsts] == [4 * 3 * 2, 4 * 3]  # steps capped at 8, rates, bounds
    assert not any("unlearn_stop_loss" in t for t in firsts[1])


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n", b'"'])
def test_earlier_searches_that_cannot_be_read_are_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "search.csv"
    path.write_bytes(content)
    trial = {**dict.fromkeys(SETTING, "x"), "seed": 1, "method": "m"}
    with pytest.raises(BadInput, match=r"--results-dir .*search\.csv cannot be read"):
        write_trials(path, [trial])
    assert path.read_bytes() == content

"""The paper's letter: its own values whatever the preset, and T = 50 read as steps or as passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quickdrop_bench.cli.grid import cells
from quickdrop_bench.cli.resolve import parse
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.harness.estimate import plan
from quickdrop_bench.harness.tuning import by_the_letter
from quickdrop_bench.methods import METHODS
from tests.asked import asked
from tests.conftest import Clients, Make

TRAINING = Phase("fl-training", rounds=7, local_steps=10, batch_size=8, lr=0.2, participation=0.5)
LETTERS = ("letter-steps", "letter-passes")


def methods(*argv: str, number: int = 2) -> dict[str, Any]:
    line = ["table", str(number), "--data-dir", ".", *argv]
    name = f"table{number}"
    found = list(cells(name, parse(line)))
    return dict(found[0][0].methods)


@pytest.mark.parametrize(
    ("preset", "protocol", "number"),
    [
        ("quick", "letter-steps", 2),
        ("small", "letter-passes", 4),
        ("small", "letter-steps", 5),
        ("paper", "letter-passes", 2),
        ("paper", "letter-steps", 4),
    ],
)
def test_no_preset_enters_a_letter(preset: str, protocol: str, number: int) -> None:
    chosen = ["--methods", "retrain-or,sga-or,quickdrop", "--preset", preset, "--dataset", "digits"]
    found = methods(*chosen, "--protocol", protocol, number=number)
    assert found == {name: METHODS[name]() for name in found}
    assert found != methods(*chosen, number=number)


def test_what_is_typed_enters_a_letter(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("sga_or:\n  recover_rounds: 4\n")
    found = methods(
        *("--preset", "quick", "--protocol", "letter-steps"),
        *("--config", str(tmp_path / "mine.yaml"), "--quickdrop.unlearn-local-steps", "3"),
    )
    assert found["sga-or"] == METHODS["sga-or"](recover_rounds=4)
    assert found["quickdrop"] == METHODS["quickdrop"](unlearn_local_steps=3)


def test_the_fields_of_the_methods_are_the_papers_by_default() -> None:
    """§4.1 and Table 2."""
    m = {name: METHODS[name]() for name in METHODS}
    assert [(m[n].unlearn_rounds, m[n].recover_rounds) for n in ("sga-or", "quickdrop", "random-subset")] == [
        (2, 2), (1, 2), (1, 2)
    ]  # fmt: skip
    assert (m["retrain-or"].rounds, m["fu-mp"].recover_rounds, m["federaser"].recover_rounds) == (30, 4, 3)
    assert {m[n].unlearn_lr for n in ("sga-or", "quickdrop", "random-subset")} == {0.02}
    assert {m[n].recover_lr for n in m if n not in ("retrain-or", "retrain-again", "none")} == {0.01}
    assert {m[n].relearn_lr for n in m if n not in ("fu-mp", "none")} == {0.01}
    assert {m[n].unlearn_stop_loss for n in ("sga-or", "quickdrop", "random-subset")} == {None}
    assert (m["fu-mp"].prune_ratio, m["fu-mp"].score_samples) == (0.5, None)


@pytest.mark.parametrize(("protocol", "work"), [("letter-steps", (50, None)), ("letter-passes", (10, 50))])
def test_every_stage_makes_fifty_steps_or_passes(protocol: str, work: tuple[int, int | None]) -> None:
    training = by_the_letter(TRAINING, protocol)
    assert (training.rounds, training.batch_size, training.lr) == (7, 8, 0.2)  # the oracle repeats them
    quickdrop, s2u = METHODS["quickdrop"](), METHODS["s2u"]()
    phases = [
        *(quickdrop.ascending(training), quickdrop.recovery(training), quickdrop.relearning(training)),
        *(s2u.scaling(training), METHODS["fu-mp"]().recovery(training)),
    ]
    assert {(p.local_steps, p.local_epochs) for p in phases} == {work}
    assert [p.batch_size for p in phases] == [8] * 5
    assert [p.participation for p in phases] == [1, 0.5, 1, 1, 0.5]  # §4.5: recovery as in training
    half = METHODS["federaser"]().calibration(training, 10)
    assert half.local_epochs == (25 if work[1] else None)
    assert half.local_steps == work[0] // 2
    assert half.steps(17) == (25 if work[1] is None else 25 * 3)


def test_typed_steps_count_in_passes_too() -> None:
    training = by_the_letter(TRAINING, "letter-passes")
    few = METHODS["quickdrop"](unlearn_local_steps=3, recover_local_epochs=2)
    assert few.ascending(training).steps(100) == 3
    assert few.recovery(training).steps(100) == 2 * 13
    assert few.relearning(training).steps(100) == 50 * 13


@pytest.mark.parametrize("protocol", ["preset", "tuned"])
def test_other_protocols_leave_the_training_alone(protocol: str) -> None:
    assert by_the_letter(TRAINING, protocol) == TRAINING


def test_what_the_oracle_costs_in_both_letters(make_federation: Make, toy_clients: Clients) -> None:
    """One round on the 30 images that are not of class 1: 50 batches of 8 for each client, or 50 passes."""
    context = asked(make_federation(), toy_clients, "class", training=TRAINING)
    costs = {}
    for protocol in LETTERS:
        training = replace(by_the_letter(TRAINING, protocol), participation=1.0)
        costs[protocol] = METHODS["retrain-or"](rounds=1).unlearn(replace(context, training=training)).cost
    assert costs["letter-passes"].sample_gradients == 50 * 30
    # Clients keep 16, 8 and 6 images: 8 a step, but for the last, whose full batch is 6.
    assert costs["letter-steps"].sample_gradients == 50 * (8 + 8 + 6)


@pytest.mark.parametrize(("protocol", "steps"), [("preset", 10), ("letter-steps", 50), ("letter-passes", 50 * 5)])
def test_what_a_letter_takes_is_planned(protocol: str, steps: int, tmp_path: Path) -> None:
    """In 30 rounds of ten clients, whose equal share of digits is 144 images, 5 batches of 32."""
    line = ["table", "2", "--preset", "quick", "--seeds", "1,", "--methods", "retrain-or", "--protocol", protocol]
    (cell,) = plan(list(cells("table2", parse(line))), [], tmp_path, None)
    assert {run: n for (_, run, _), n in cell.steps.items()} == {"fl-training": 3000, "retrain-or": 300 * steps}

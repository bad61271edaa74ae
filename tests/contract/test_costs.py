"""What every method costs and keeps, against formulas."""

from __future__ import annotations

import pytest

from quickdrop_bench.core.cost import Storage
from quickdrop_bench.data.requests import retain_part
from quickdrop_bench.methods import METHODS, Context
from tests.contract.tiny import CONTROLS, TRAIN, Asked, tiny


def samples(size: int, steps: int, batch: int = TRAIN.batch_size) -> int:
    """Samples in a number of batches, walking through a set again and again with a short last batch."""
    done, left = 0, size
    for _ in range(steps):
        taken = min(batch, left)
        done, left = done + taken, left - taken or size
    return done


def sizes(context: Context, kind: str) -> list[int]:
    parts = context.forget_data() if kind == "forget" else context.retain_data()
    return [len(part) for part in parts.values() if len(part)]


Expected = tuple[int, int, int, int]
"""Rounds, data size, sample-gradients, uploads of a whole model."""


def expected(phase_sizes: list[int], rounds: int, steps: int) -> Expected:
    gradients = rounds * sum(samples(size, steps) for size in phase_sizes)
    return rounds, sum(phase_sizes), gradients, rounds * len(phase_sizes)


@pytest.mark.parametrize("level", ["class", "client"])
def test_costs_follow_from_the_settings(level: str, asked: Asked) -> None:
    context = asked(level)
    forget, retain = sizes(context, "forget"), sizes(context, "retain")
    assert (sum(forget), sum(retain)) == ((15, 30) if level == "class" else (12, 33))
    small = {i: c.synthetic.as_labelled() for i, c in context.clients.items()}
    small_forget = [len(part) for i, data in small.items() if len(part := context.forget_part(data, i))]
    small_retain = [len(part) for i, data in small.items() if len(part := retain_part(data, i, context.forgotten))]
    on_small = expected(small_forget, 1, 2), expected([2 * size for size in small_retain], 2, 3)
    bounded = {"unlearn_local_steps": 2, "recover_local_steps": 3}
    everyone = [24, 12, 9]
    calibrated = expected(retain, 4, 3)
    if level == "client":  # the first round is replayed without training
        calibrated = (4, 33, calibrated[2] * 3 // 4, calibrated[3] * 3 // 4)
    osd = {"unlearn_rounds": 2, "recover_local_steps": 3}
    degraded, guided = expected(retain, 2, 2), expected(everyone, 3, 2)
    mixing = (5, 45, degraded[2] + guided[2], degraded[3] + guided[3])
    cases: dict[str, tuple[dict[str, object], Expected, Expected | None]] = {
        "retrain-or": ({"rounds": None}, expected(retain, 4, 6), None),
        "retrain-again": ({"rounds": None}, expected(retain, 4, 6), None),
        "federaser": ({"recover_local_steps": 3}, calibrated, expected(retain, 3, 3)),
        "sga-or": (bounded, expected(forget, 2, 2), expected(retain, 2, 3)),
        "quickdrop": (bounded, *on_small),
        "random-subset": (bounded, *on_small),
        "fu-mp": ({"recover_local_steps": 3}, (1, 45, 0, 0), expected(retain, 4, 3)),
        "none": ({}, (0, 0, 0, 0), None),
        "recovery-only": ({"recover_local_steps": 3}, (0, 0, 0, 0), expected(retain, 2, 3)),
        "not": ({"recover_local_steps": 3}, (0, 0, 0, 0), expected(retain, 10, 3)),
        "fedquit": (bounded, expected(forget, 1, 2), expected(retain, 2, 3)),
        "pga": ({**bounded, "unlearn_stop_loss": None}, expected(forget, 1, 2), expected(retain, 2, 3)),
        "fedosd": (osd, (2, 45, 2 * 45, 2 * len(forget + retain)), expected(retain, 2, 3)),
        "mode": ({**bounded, "unlearn_rounds": 3, "degrade_rounds": 2}, mixing, expected(retain, 2, 3)),
        "conda": ({}, (0, 0, 0, 0), None),
    }
    if level == "client":
        first, then = expected(everyone, 1, 2), expected(retain, 2, 3)
        cases["s2u"] = (bounded, (3, 45, first[2] + then[2], first[3] + then[3]), None)
    model_bytes = 4 * sum(v.numel() for v in context.state.values())
    for name, (settings, on_unlearning, on_recovery) in cases.items():
        if level not in METHODS[name].levels:
            continue
        method = METHODS[name](**settings)
        unlearned = method.unlearn(context)
        recovered = method.recover(context, unlearned.state)
        assert (recovered is None) == (on_recovery is None), name
        for result, counts in ((unlearned, on_unlearning), (recovered, on_recovery)):
            if result is None or counts is None:
                continue
            cost, (*first, uploads) = result.cost, counts
            assert [cost.rounds, cost.data_size, cost.sample_gradients] == first, name
            if name != "fu-mp" or result is not unlearned:
                assert cost.upload_bytes == uploads * model_bytes, name
            free = name in CONTROLS and result is unlearned
            assert (cost.seconds > 0) != free, name
            assert cost.second_order_sample_gradients == 0, name
    assert {n for n in METHODS if level in METHODS[n].levels} <= set(cases)


def test_storage(asked: Asked) -> None:
    context = asked()
    parameters = sum(v.numel() for v in context.state.values())
    images = sum(len(c.synthetic) for c in context.clients.values())
    image_bytes = 8 * 8 * 4
    kept = {
        "federaser": Storage(server_bytes=4 * parameters * (1 + 4 * 3)),
        "conda": Storage(server_bytes=4 * parameters * 3),
        "quickdrop": Storage(client_bytes=2 * images * image_bytes),
        "random-subset": Storage(client_bytes=2 * images * image_bytes),
    }
    for name in METHODS:
        assert tiny(name).storage(context) == kept.get(name, Storage()), name
    assert METHODS["quickdrop"](augment=False).storage(context) == Storage(client_bytes=images * image_bytes)

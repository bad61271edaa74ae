"""Which models count as collapsed."""

from __future__ import annotations

import pytest
import torch

from quickdrop_bench.evaluation.accuracy import ClassAccuracy
from quickdrop_bench.evaluation.collapse import is_collapsed

STATE = {"w": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
TEN = (100,) * 10


def answering(right: dict[int, float], counts: tuple[int, ...] = TEN) -> ClassAccuracy:
    """Per class the share that is classified as such; all other images are called the next class."""
    lines = []
    for c, n in enumerate(counts):
        line = [0] * len(counts)
        line[c] = round(right.get(c, 0.0) * n)
        line[(c + 1) % len(counts)] += n - line[c]
        lines.append(tuple(line))
    return ClassAccuracy(tuple(lines))


def collapsed(on_test: ClassAccuracy, forgotten: set[int], growth: float = 1.0) -> bool:
    return is_collapsed(on_test, forgotten, {name: growth * value for name, value in STATE.items()}, STATE)


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ({3: 1.0}, True),  # one retained class for every image: R-Set 1/9
        ({9: 1.0}, True),  # the forgotten one for every image: R-Set 0
        (dict.fromkeys(range(10), 0.10), True),  # at random: 1/10
        (dict.fromkeys(range(9), 0.12), True),  # 0.9 points above 1/9
        (dict.fromkeys(range(9), 0.13), False),
        ({3: 1.0, 4: 0.5}, False),  # 1.5 of 9 classes
        (dict.fromkeys(range(9), 0.9), False),
    ],
)
def test_chance_is_one_answer_for_every_image(right: dict[int, float], expected: bool) -> None:
    assert collapsed(answering(right), {9}) is expected


def test_a_frequent_class_does_not_hide_a_collapse() -> None:
    """As in SVHN: naming the class with a fifth of the images is right on a quarter of the retained ones."""
    uneven = (300, *TEN[1:])
    constant = answering({0: 1.0}, uneven)
    assert constant.without({9}) == pytest.approx(300 / 1100)
    assert collapsed(constant, {9})


def test_the_last_class_may_be_named_always() -> None:
    nine_gone = set(range(9))
    assert not collapsed(answering({9: 1.0}), nine_gone)
    assert collapsed(answering({9: 0.1}), nine_gone)
    assert not collapsed(answering({}), set(range(10)))  # nothing is retained, nothing can be lost


@pytest.mark.parametrize(
    ("growth", "expected"), [(0.1, False), (9.9, False), (10.1, True), (float("inf"), True), (float("nan"), True)]
)
def test_weights_that_grow_more_than_tenfold(growth: float, expected: bool) -> None:
    assert collapsed(answering(dict.fromkeys(range(9), 0.9)), {9}, growth) is expected

"""Requests for samples: which they are, and how they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quickdrop_bench.cli.lists import samples_of
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.labelled import concatenate
from quickdrop_bench.data.requests import Samples, UnlearningRequest
from quickdrop_bench.harness.request import RELEARN, UNLEARN, still_forgotten
from tests.conftest import Clients

CLASS_1, CLIENT_0 = UnlearningRequest("class", (1,)), UnlearningRequest("client", (0,))


def sample(*rows: int) -> UnlearningRequest:
    return UnlearningRequest("sample", rows)


def test_the_order_of_rows_is_void() -> None:
    assert sample(7, 3, 40) == sample(40, 7, 3)
    assert str(sample(7, 3, 40)) == "sample-3+7+40"
    assert UnlearningRequest.parse("sample-40+3+7") == sample(3, 7, 40)
    assert Samples(0, ((2, 40), (0, 3))).named(()) == Samples(0, ((0, 3), (2, 40))).named(()) == sample(3, 40).named(())
    assert sample(3, 40).named(()) != sample(3, 41).named(())
    assert str(Samples(100)) == "sample-100"


def test_a_draw_depends_on_the_seed_and_the_requests_before_and_takes_what_is_left(toy_clients: Clients) -> None:
    first = Samples(9).of(toy_clients, [], 1)
    assert first == Samples(9).of(dict(reversed(toy_clients.items())), [], 1)
    assert len(first.targets) == 9
    assert first != Samples(9).of(toy_clients, [], 2)
    assert {*Samples(9).of(toy_clients, [first], 1).targets}.isdisjoint(first.targets)
    labels = toy_clients[0].labels
    left = Samples(30).of(toy_clients, [CLASS_1], 1).targets
    assert 1 not in labels[list(left)]
    assert Samples(21).of(toy_clients, [CLIENT_0], 1).targets == tuple(range(24, 45))
    counts = torch.zeros(45)
    for seed in range(300):
        counts[list(Samples(15).of(toy_clients, [], seed).targets)] += 1
    assert counts.min() > 60  # 100 on average
    assert counts.max() < 140


def test_what_is_learnt_again_is_drawn_from_what_was_forgotten(toy_clients: Clients) -> None:
    gone = [sample(1, 2, 30), CLASS_1]
    assert Samples(3).of(toy_clients, gone, 1, again=True) == sample(1, 2, 30)
    assert {*Samples(2).of(toy_clients, gone, 1, again=True).targets} < {1, 2, 30}
    assert still_forgotten(RELEARN, sample(2), gone) == (sample(1, 30), CLASS_1)
    assert still_forgotten(UNLEARN, sample(5), gone) == (*gone, sample(5))
    assert still_forgotten(RELEARN, sample(30, 2, 1), gone) == (CLASS_1,)


@pytest.mark.parametrize(
    ("asked_", "gone", "again", "said"),
    [
        (Samples(46), (), False, "--samples 46: on seed 3, there are 45 to be drawn from"),
        (Samples(22), (CLIENT_0,), False, "--samples 22: on seed 3, there are 21 to be drawn from"),
        (Samples(1), (CLIENT_0,), True, "--samples 1: on seed 3, there are 0 to be drawn from"),
        (Samples(0, ((1, 3),)), (), False, "--samples 1,3: on seed 3, client 1 holds no such row"),
        (Samples(0, ((7, 3),)), (), False, "--samples 7,3: on seed 3, client 7 holds no such row"),
        (Samples(0, ((0, 99),)), (), False, "--samples 0,99: on seed 3, client 0 holds no such row"),
        (Samples(0, ((0, 2), (0, 3))), (sample(3),), False, "--samples 0,3: on seed 3, this row is forgotten already"),
        (Samples(0, ((0, 2),)), (CLIENT_0,), False, "--samples 0,2: on seed 3, this row is forgotten already"),
        (Samples(0, ((0, 2),)), (sample(3),), True, "--samples 0,2: on seed 3, this row is not forgotten"),
    ],
)
def test_what_cannot_be_asked_for(
    asked_: Samples, gone: tuple[UnlearningRequest, ...], again: bool, said: str, toy_clients: Clients
) -> None:
    with pytest.raises(BadInput) as caught:
        asked_.of(toy_clients, gone, 3, again=again)
    assert str(caught.value) == f"{said}."


def test_as_typed(tmp_path: Path) -> None:
    assert samples_of("100") == [Samples(100)]
    assert samples_of("100,50") == [Samples(100), Samples(50)]
    assert samples_of("") == []
    path = tmp_path / "rows.csv"
    path.write_text("3,1705\n0, 12\n", encoding="utf-8")
    assert samples_of(path) == [Samples(0, ((0, 12), (3, 1705)))]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it lists nothing; client,row a line is needed"),
        ("client,row\n3,1705\n", "line 1 is not client,row, as 3,1705"),
        ("3,5\n\n", "line 2 is not client,row, as 3,1705"),
        ("3,-5\n", "line 1 is not client,row, as 3,1705"),
        ("3,5,7\n", "line 1 is not client,row, as 3,1705"),
        ("3,5\n1,7\n3,5\n", "line 3 lists row 5 again"),
        ("3,5\n2,5\n", "line 2 lists row 5 again"),
    ],
)
def test_files_that_list_no_samples(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        samples_of(path)
    assert str(caught.value) == f"--samples {path}: {said}."


@pytest.mark.parametrize("text", ["0", "5,0", "5,5", "nowhere.csv", "1.5", "-3"])
def test_neither_numbers_nor_a_file(text: str) -> None:
    with pytest.raises(BadInput, match="--samples"):
        samples_of(text)


def test_copies_know_which_rows_they_are(toy_clients: Clients) -> None:
    copy = concatenate(toy_clients[2].subset(torch.tensor([8, 0])), toy_clients[1].subset(torch.tensor([3])))
    assert copy.dataset_rows().tolist() == [44, 36, 27]
    assert copy.with_rows({36, 3, 0}, keep=True).dataset_rows().tolist() == [36]
    assert copy.with_rows({36}, keep=False).subset(torch.tensor([1])).dataset_rows().tolist() == [27]

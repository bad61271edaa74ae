"""A backdoored client: whose images get the trigger, what the federation is called, how the attack is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.backdoor import Backdoor, Planted, plant, stamped, trigger
from quickdrop_bench.data.datasets import load_dataset
from quickdrop_bench.data.labelled import ImageData, LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.evaluation.metric import Evaluated, measured
from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.harness.training import client_rows, planted
from quickdrop_bench.reporting.render import measured_sections
from quickdrop_bench.reporting.tables.comparison import comparison_tables
from quickdrop_bench.serving import TrainedRun
from tests.conftest import TINY, Run, read_rows
from tests.golden import common

BACKDOOR = Backdoor(1, 0.5, 2)
SPEC = FederationSpec("digits", clients=4, iid=True, backdoor="client=1,share=.3,target=2")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", Path("nowhere"))


def colours(side: int = 8, channels: int = 3) -> ImageData:
    """Nine training and nine test images of three classes, normalised with another constant in each channel."""
    mean, std = (0.1, 0.2, 0.3)[:channels], (0.4, 0.5, 0.6)[:channels]
    pixels = torch.rand(18, channels, side, side, generator=torch.Generator().manual_seed(0))
    images = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    labels = torch.arange(9) % 3
    train, test = (LabelledSet.of(part, labels) for part in images.split(9))
    return ImageData("colours", train, test, ("a", "b", "c"), mean, std)


# The option --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("client=3", Backdoor(3, 0.8, 0)),
        ("client=0,target=9", Backdoor(0, 0.8, 9)),
        ("target=1, share=1e-1, client=2", Backdoor(2, 0.1, 1)),
        ("client=2,share=0", Backdoor(2, 0.0, 0)),
    ],
)
def test_how_it_is_written(text: str, expected: Backdoor) -> None:
    assert Backdoor.parse(text) == expected
    assert Backdoor.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("share=0.5", "only client is required"),
        ("3", "it is written as client=3"),
        ("client=3,colour=1", "it is written as client=3"),
        ("client=3,client=4", "at most once"),
        ("client=3,", "it is written as client=3"),
        ("client=-1", "client must be a whole number"),
        ("client=1.5", "client must be a whole number"),
        ("client=1,target=truck", "target must be a whole number"),
        ("client=1,share=half", "share must be a number between 0 and 1"),
        ("client=1,share=1.01", "share must be a number between 0 and 1"),
        ("client=1,share=nan", "share must be a number between 0 and 1"),
        ("client=4", "client must be between 0 and 3"),
    ],
)
def test_what_is_written_wrongly(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        replace(SPEC, backdoor=text)
    assert caught.value.option == "--backdoor"


def test_only_a_federation_with_one_has_another_hash() -> None:
    usual = replace(SPEC, backdoor="")
    assert "backdoor" not in usual.resolved()
    assert "backdoor" not in usual.setting()
    ways = "client=1", "client=1,share=0.8", "target=0,client=1,share=.80"
    hashes = {replace(SPEC, backdoor=way).hash("d", 1, "p") for way in ways}
    assert len(hashes) == 1
    others = [usual, SPEC, *(replace(SPEC, backdoor=f"client=1,{other}") for other in ("share=.7", "target=1"))]
    assert len(hashes | {other.hash("d", 1, "p") for other in others}) == 5
    assert replace(SPEC, backdoor="client=1").setting()["backdoor"] == "client=1,share=0.8,target=0"


# The data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "pixels"), [(8, [(7, 7), (6, 6), (7, 5), (5, 7)]), (28, [(26, 26), (25, 25), (26, 24), (24, 26)])]
)
def test_the_trigger_is_four_pixels_at_their_maximum(side: int, pixels: list[tuple[int, int]]) -> None:
    data = colours(side)
    before = data.test.images
    after = stamped(before, data)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    found = torch.nonzero((after != before).any(0).any(0)).tolist()
    assert sorted(map(tuple, found)) == sorted(pixels)
    assert sorted((side + row, side + column) for row, column in trigger(side)) == sorted(pixels)
    for row, column in pixels:
        torch.testing.assert_close((after * std + mean)[:, :, row, column], torch.ones(9, 3))
    assert torch.equal(stamped(after, data), after)


def test_the_client_alone_gets_it_and_keeps_the_target_s_images(digits: ImageData) -> None:
    rows = client_rows(SPEC, digits.train.labels, 1)
    found = planted(SPEC, digits, rows, 1)
    assert found is not None
    before, after, own = digits.train, found.data.train, torch.from_numpy(rows[1])
    others = own[before.labels[own] != 2]
    assert len(found.rows) == len(others) * 3 // 10
    assert set(found.rows.tolist()) < set(others.tolist())
    assert (after.labels[found.rows] == 2).all()
    assert torch.equal(after.images[found.rows], stamped(before.images[found.rows], digits))
    kept = torch.ones(len(before), dtype=torch.bool)
    kept[found.rows] = False
    assert torch.equal(after.images[kept], before.images[kept])
    assert torch.equal(after.labels[kept], before.labels[kept])
    assert torch.equal(digits.train.labels, load_dataset("digits", Path("nowhere")).train.labels)  # a copy was made
    others = [plant(Backdoor(c), digits, torch.arange(200), seed).rows.tolist() for c, seed in ((1, 1), (1, 2), (2, 1))]
    assert len({tuple(chosen) for chosen in others}) == 3
    clean, poisoned = found.clean_and_poisoned(LabelledSet(after.images, after.labels, own))
    assert torch.equal(poisoned.rows, found.rows)
    assert sorted([*clean.rows.tolist(), *poisoned.rows.tolist()]) == own.tolist()


def test_a_share_of_none_leaves_the_data_alone(digits: ImageData) -> None:
    found = plant(replace(BACKDOOR, share=0.0), digits, torch.arange(100), 1)
    assert found.data is digits
    assert not len(found.rows)


def test_counts_are_exact(digits: ImageData) -> None:
    """0.29 · 100 and 0.57 · 100 lie below 29 and 57 as floats."""
    rows = torch.nonzero(digits.train.labels != 2).flatten()[:100]
    for share, count in ((0.29, 29), (0.57, 57), (0.999, 99), (1.0, 100), (0.01, 1)):
        assert len(plant(replace(BACKDOOR, share=share), digits, rows, 1).rows) == count


def test_what_cannot_be_planted_is_refused(digits: ImageData) -> None:
    with pytest.raises(BadInput, match="target must be between 0 and 9"):
        plant(Backdoor(0, 0.5, 10), digits, torch.arange(9), 1)
    with pytest.raises(BadInput, match="on seed 7 that client has 0 images of other classes"):
        plant(BACKDOOR, digits, torch.nonzero(digits.train.labels == 2).flatten(), 7)
    with pytest.raises(BadInput, match="3×3 pixels"):
        plant(BACKDOOR, colours(2), torch.arange(9), 1)


# The metric --------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Answers 2 where the trigger is, but for images as bright as the first one; else class 0."""

    def __init__(self, data: ImageData, spared: torch.Tensor) -> None:
        super().__init__()
        self.where, self.white = trigger(8), stamped(data.test.images, data)[0, :, -1, -1]
        self.spared = spared

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = torch.stack([(images[:, :, r, c] == self.white).all(1) for r, c in self.where]).all(0)
        spared = (images[:, 0, 0, 0, None] == self.spared).any(1)
        return torch.eye(3)[2 * (seen & ~spared).long()]


def test_attack_success_and_both_kinds_of_forgotten_images_by_hand() -> None:
    """Six test images are not of class 2, and the model falls for five of them."""
    data = colours()
    found = plant(Backdoor(0, 0.5, 2), data, torch.arange(6), 1)  # classes 0 1 2 0 1 2: two of four are poisoned
    assert len(found.rows) == 2
    train = found.data.train
    clients = {i: LabelledSet(train.images, train.labels, rows) for i, rows in enumerate(torch.arange(9).split(6))}
    model = Reader(data, spared=torch.stack([data.test.images[0, 0, 0, 0], data.train.images[found.rows[0], 0, 0, 0]]))
    request = (UnlearningRequest("client", (0,)),)

    def numbers(about: tuple[UnlearningRequest, ...], backdoor: Planted | None) -> dict[str, float]:
        state = {"w": torch.ones(1)}
        judged = Evaluated(model, state, state, data.test, 3, clients, about, about, 1, backdoor)
        return measured(judged, "total", ["backdoor"])["backdoor"]

    clean = [row for row in range(6) if row not in found.rows.tolist()]
    zeros = sum(int(train.labels[row]) == 0 for row in clean)
    assert numbers(request, found) == {
        "attack_success": pytest.approx(5 / 6),
        "f_set_clean_accuracy": pytest.approx(zeros / 4),
        "f_set_poisoned_accuracy": pytest.approx(1 / 2),
    }
    assert numbers((UnlearningRequest("class", (0,)),), found) == {"attack_success": pytest.approx(5 / 6)}
    assert numbers(request, None) == {}


def attacked(values: dict[str, list[float]]) -> str:
    """What stands below a table of which attack success by method and seed is known."""
    rows = []
    for method, found in values.items():
        for seed, value in enumerate(found, 1):
            own = common.setting(10, federation_hash=f"f-{seed}")
            stage = "fl-training" if method == "original" else "total"
            rows += common.run(own, method, seed, {stage: {"attack_success": value}}, spec_hash=f"{method}-{seed}")
    (section,) = measured_sections(exhibit("table10"), common.frame(rows))
    (short,) = comparison_tables(section)
    assert ("Attack success",) in short.headers
    return section.table().footnote


@pytest.mark.parametrize(
    ("oracle", "said"),
    [
        ([0.0, 0.38], "request: 92.50 ± 3.54%, implanted (at least 50 points above Retrain-Or)"),
        ([0.0, 0.42], "request: 92.50 ± 3.54%, not implanted on seed 2 (less than 50 points above Retrain-Or)"),
        ([], "request: 92.50 ± 3.54%; whether it was implanted is not known without Retrain-Or"),
    ],
)
def test_a_table_says_whether_the_backdoor_was_implanted(oracle: list[float], said: str) -> None:
    found = attacked({"original": [0.95, 0.9], "retrain-or": oracle, "quickdrop": [0.1, 0.1]})
    assert f"ttack success of the backdoor before the {said}" in found
    assert "ackdoor" not in attacked({"quickdrop": [0.1]})


# Commands ----------------------------------------------------------------------------------------------------

METHODS = "retrain-or,quickdrop"


@pytest.mark.slow
def test_table_10_forgets_the_backdoored_client_and_so_does_a_saved_federation(run: Run) -> None:
    options = [*TINY, "--min-client-size", "5", "--backdoor", "client=2,share=1"]
    code, out, _ = run("table", "10", *options, "--methods", METHODS)
    assert code == 0
    assert "backdoor client=2,share=1,target=0" in out
    rows = read_rows(Path("results/quick/table10/rows.jsonl"))
    assert set(rows["request"]) == {"client-2"}
    numbers = rows.set_index(["method", "stage", "metric"])["value"]
    stages = {
        ("original", "fl-training"),
        ("retrain-or", "total"),
        ("quickdrop", "unlearning"),
        ("quickdrop", "recovery"),
    }
    assert all(0 <= numbers[(*place, "attack_success")] <= 1 for place in stages)
    lines = pd.read_csv("results/quick/table10/table.csv").set_index("method")
    gap = numbers["quickdrop", "total", "attack_success"] - numbers["retrain-or", "total", "attack_success"]
    assert lines.loc["quickdrop", "total_attack_success_gap_mean"] == pytest.approx(gap)
    # A federation that is served has the same data, though its config.yaml alone says so.
    (folder,) = Path("artifacts").glob("[!.]*")
    served = TrainedRun(folder)
    assert served.spec.backdoor == "client=2,share=1,target=0"
    entry = served.unlearn(UnlearningRequest("client", (2,)), served.method(level="client"))
    assert entry.before is not None
    assert entry.after is not None
    for side, place in ((entry.before, ("original", "fl-training")), (entry.after, ("quickdrop", "total"))):
        for metric in ("attack_success", "f_set_accuracy", "f_set_clean_accuracy", "f_set_poisoned_accuracy"):
            assert side[metric] == numbers[(*place, metric)], (place, metric)
    _, out, _ = run("evaluate", str(folder))
    assert f"attack success {entry.after['attack_success']:.2%}" in out
    _, out, _ = run("show", str(folder))
    assert "backdoor client=2,share=1,target=0" in out


def test_a_printed_configuration_says_who_is_forgotten(run: Run) -> None:
    _, out, _ = run("table", "10", *TINY, "--backdoor", "client=2", "--print_config")
    assert "forget_client: '2'" in out
    _, out, _ = run("table", "10", *TINY, "--backdoor", "client=2", "--client", "1", "--print_config")
    assert "forget_client: '1'" in out

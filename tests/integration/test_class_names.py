"""Classes by name: what a user asks for is what is forgotten, and what is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.class_names import CIFAR10, CIFAR100, DIGITS, FASHION_MNIST, class_index, in_natural_order
from quickdrop_bench.data.datasets import DATASETS, class_names
from quickdrop_bench.data.sources.imagefolder import load_folder
from tests.conftest import TINY, Run, read_rows
from tests.pictures import make_pictures

ANIMALS = ("ant", "bee", "cat")
ONE_TO_ELEVEN = tuple(map(str, range(1, 12)))


@pytest.mark.parametrize(
    ("text", "names", "index"),
    [
        ("9", ONE_TO_ELEVEN, 8),
        ("11", ONE_TO_ELEVEN, 10),
        ("9", DIGITS, 9),
        ("cat", ANIMALS, 2),
        ("2", ANIMALS, 2),
        ("002", ("001", "002"), 1),
        ("7", ("7", "bee"), 0),
        ("bee", ("7", "bee"), 1),
    ],
)
def test_a_class_is_meant_by_its_name_or_else_by_its_position(text: str, names: tuple[str, ...], index: int) -> None:
    assert class_index(text, names) == index


@pytest.mark.parametrize(
    ("text", "names", "allowed"),
    [
        ("0", ONE_TO_ELEVEN, "use one of 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11."),
        ("10", DIGITS, "between 0 and 9."),
        ("-1", DIGITS, "between 0 and 9."),
        ("dog", ANIMALS, "use one of ant, bee, cat, or its position, 0 to 2."),
        ("3", ANIMALS, "use one of ant, bee, cat, or its position, 0 to 2."),
        ("2", ("001", "002"), "use one of 001, 002."),
        ("1", ("7", "bee"), "use one of 7, bee."),
    ],
)
def test_what_is_no_class_is_refused(text: str, names: tuple[str, ...], allowed: str) -> None:
    with pytest.raises(BadInput) as caught:
        class_index(text, names)
    assert str(caught.value) == f"--class {text}: {allowed}"


def test_numbers_are_sorted_by_size() -> None:
    assert in_natural_order(["10", "b", "2", "01", "1", "a10"]) == ["01", "1", "2", "10", "a10", "b"]


def test_known_data_sets_have_their_names() -> None:
    from torchvision.datasets import EMNIST, FashionMNIST

    assert list(FASHION_MNIST) == FashionMNIST.classes
    assert list(class_names("emnist", Path("nowhere"))) == EMNIST.classes_split_dict["balanced"]
    assert (CIFAR10[9], CIFAR100[3], CIFAR100[99], len(CIFAR100)) == ("truck", "bear", "worm", 100)
    assert list(CIFAR100) == sorted(CIFAR100)
    for name in set(DATASETS) - {"imagefolder"}:
        assert class_names(name, Path("nowhere"))


FOLDER = ["--dataset", "imagefolder", "--min-client-size", "0", "--iid", "--methods", "quickdrop"]


def test_class_nine_is_the_folder_nine(tmp_path: Path, run: Run) -> None:
    root = make_pictures(tmp_path / "pics", ONE_TO_ELEVEN)
    data = load_folder(root, None)
    assert data.class_names == ONE_TO_ELEVEN
    of_nine = data.train_images[data.train_labels == data.class_names.index("9")]
    assert 184 <= of_nine.min() <= of_nine.max() < 197  # the ninth brightness of eleven
    code, out, _ = run("table", "2", *TINY, *FOLDER, "--data-dir", "pics", "--class", "9")
    assert code == 0
    assert "11 clients" not in out
    assert "iid, request class-9, " in out
    rows = read_rows(Path("results/quick/table2/rows.jsonl"))
    assert set(rows["request"]) == {"class-8"}
    assert set(rows["request_name"]) == {"class-9"}
    named = rows.dropna(subset="class_name")
    assert set(zip(named["metric"], named["class_name"], strict=True)) == {
        (f"class_{c}_accuracy", name) for c, name in enumerate(ONE_TO_ELEVEN)
    }


def test_names_are_typed_and_shown(tmp_path: Path, run: Run) -> None:
    make_pictures(tmp_path / "pics", ANIMALS)
    options = [*TINY, *FOLDER, "--data-dir", "pics"]
    code, out, _ = run("table", "2", *options, "--class", "cat,ant")
    assert code == 0
    assert "request class-cat, " in out
    assert "request class-cat>class-ant" in out
    rows = Path("results/quick/table2/rows.jsonl").read_text()
    code, again, _ = run("table", "2", *options, "--class", "2,0")
    assert (code, again) == (0, out)
    assert Path("results/quick/table2/rows.jsonl").read_text() == rows
    folder = next(Path("artifacts").glob("[!.]*")).name
    code, out, _ = run("unlearn", folder, "--class", "cat", "--data-dir", "pics")
    assert code == 0
    assert "unlearn class-cat with quickdrop: version 0 → 1 · forgotten: class-cat" in out
    assert run("unlearn", folder, "--class", "2")[::2] == (
        2,
        "quickdrop-bench: --class cat: this is forgotten already; see the command 'show'.\n",
    )
    assert "class-bee" in run("unlearn", folder, "--class", "bee", "--dry-run")[1]
    assert "forgotten: class-cat" in run("show", folder)[1]
    assert "forgotten: class-cat" in run("evaluate", folder, "--data-dir", "pics")[1]
    assert json.loads(run("show", folder, "--json")[1])["forgotten"] == ["class-2"]


@pytest.mark.slow
def test_figures_name_the_classes(tmp_path: Path, run: Run) -> None:
    make_pictures(tmp_path / "pics", ANIMALS)
    for number in ("2", "4"):
        argv = ["figure", number, *TINY, *FOLDER, "--data-dir", "pics", "--class", "cat"]
        assert run(*argv)[0] == 0
        picture = Path(f"results/quick/figure{number}/figure.svg").read_text()
        assert all(re.search(f">(class )?{name}\\b", picture) for name in ("cat", "bee"))
        assert "class 2" not in picture


@pytest.mark.parametrize("number", ["2", "4"])
def test_a_default_that_does_not_fit_says_that_it_is_the_default(tmp_path: Path, run: Run, number: str) -> None:
    make_pictures(tmp_path / "pics", ANIMALS)
    kind = "table" if number == "2" else "figure"
    code, _, err = run(kind, number, *TINY, *FOLDER, "--data-dir", "pics")
    assert code == 2
    first = "9" if number == "2" else "5"
    assert err == (
        f"quickdrop-bench: --class {first} (the default): use one of ant, bee, cat, or its position, 0 to 2.\n"
    )
    assert "(the default)" not in run(kind, number, *TINY, *FOLDER, "--data-dir", "pics", "--class", "9")[2]

"""Data sets: the real loaders on tiny files of the same formats, made here."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quickdrop_bench.data.datasets import DATASETS, fingerprint, load_dataset
from quickdrop_bench.data.imagefolder import cache_dir, load_folder
from quickdrop_bench.data.labelled import LabelledSet, concatenate
from quickdrop_bench.data.requests import UnlearningRequest, forget_part, retain_part
from quickdrop_bench.errors import BadInput


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of the original MNIST files."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def make_mnist(root: Path, name: str = "MNIST", train: int = 40, test: int = 20) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("t10k", test)):
        write_idx(root / name / "raw" / f"{split}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(root / name / "raw" / f"{split}-labels-idx1-ubyte", np.arange(count) % 10)


def make_svhn(root: Path) -> None:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        labels = np.arange(count) % 10 + 1  # the files call the digit 0 class 10
        pixels = rng.integers(0, 256, (32, 32, 3, count)).astype(np.uint8)
        savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": labels[:, None]})


def make_folder(
    root: Path, sizes: tuple[int, ...] = (8,), mode: str = "RGB", classes: tuple[str, ...] = ("a", "b")
) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for c, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                size = sizes[k % len(sizes)]
                shape = (size, size) if mode == "L" else (size, size, 3)
                Image.fromarray(rng.integers(100 * c, 100 * c + 90, shape).astype(np.uint8)).save(folder / f"{k}.png")
    return root


def test_digits_are_real_and_split_once() -> None:
    data = load_dataset("digits", Path("nowhere"))
    assert data.image_shape == (1, 8, 8)
    assert len(data.train) + len(data.test) == 1797
    assert torch.bincount(data.test.own_labels()).min() >= 30
    assert abs(float(data.train.images.mean())) < 0.02
    assert abs(float(data.train.images.std()) - 1) < 0.02
    assert torch.equal(data.test.images, load_dataset("digits", Path("nowhere")).test.images)
    train = {bytes(i.numpy().tobytes()) for i in data.train.images}
    assert not [i for i in data.test.images if bytes(i.numpy().tobytes()) in train]


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_files_are_read_without_download(tmp_path: Path, name: str, folder: str) -> None:
    make_mnist(tmp_path, folder)
    data = load_dataset(name, tmp_path)
    assert data.image_shape == (1, 28, 28)
    assert (len(data.train), len(data.test), len(data.class_names)) == (40, 20, 10)
    mean, std = (0.1307, 0.3081) if name == "mnist" else (0.2860, 0.3530)
    raw = np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.float32)
    np.testing.assert_allclose(data.train.images[:, 0].numpy(), (raw / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_train_and_test_share_their_constants(tmp_path: Path) -> None:
    make_mnist(tmp_path)
    for split in ("train", "t10k"):
        write_idx(tmp_path / "MNIST" / "raw" / f"{split}-images-idx3-ubyte", np.full((10, 28, 28), 77))
        write_idx(tmp_path / "MNIST" / "raw" / f"{split}-labels-idx1-ubyte", np.arange(10))
    data = load_dataset("mnist", tmp_path)
    assert torch.equal(data.train.images, data.test.images)


def test_svhn_files_are_read(tmp_path: Path) -> None:
    make_svhn(tmp_path)
    # torchvision checks the md5 of the real files when it is asked to verify; a present file is found by that sum,
    # so the loader is called as for the real set with the check answered by the file being there
    from torchvision.datasets import svhn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svhn, "check_integrity", lambda path, md5=None: Path(path).is_file())
        data = load_dataset("svhn", tmp_path)
    assert data.image_shape == (3, 32, 32)
    assert data.train.own_labels()[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_missing_data_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **options: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    for name in ("mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"):
        with pytest.raises(BadInput, match=r"^--data-dir .*not there and could not be downloaded"):
            load_dataset(name, tmp_path / name)


def test_corrupt_mnist_files(tmp_path: Path) -> None:
    make_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08")
    with pytest.raises(BadInput, match="--data-dir"):
        load_dataset("mnist", tmp_path)


def test_unknown_data_set_and_needless_size(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--dataset mnits: did you mean mnist\?"):
        _ = DATASETS["mnits"]
    with pytest.raises(BadInput, match="--image-size"):
        fingerprint("digits", tmp_path, 16)


# Image folders ----------------------------------------------------------------------------------------------


def test_folder_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "pics")
    data = load_dataset("imagefolder", root)
    assert (data.name, data.class_names, data.image_shape) == ("imagefolder:pics", ("a", "b"), (3, 8, 8))
    assert data.train.own_labels().tolist() == [0] * 6 + [1] * 6
    assert abs(float(data.train.images.mean())) < 1e-4
    monkeypatch.setattr("quickdrop_bench.data.imagefolder._decode", lambda *a: pytest.fail("decoded again"))
    again = load_dataset("imagefolder", root)
    assert torch.equal(again.test.images, data.test.images)


def test_cache_follows_the_content(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pics")
    before = fingerprint("imagefolder", root, None)
    assert before != fingerprint("imagefolder", root, 16)
    Image.new("RGB", (8, 8)).save(root / "train" / "a" / "0.png")
    assert fingerprint("imagefolder", root, None) != before
    assert load_folder(root, None).train_images[0].sum() == 0


def test_damaged_cache_is_decoded_again(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pics")
    expected = load_folder(root, None).train_images
    for path in cache_dir().iterdir():
        path.write_bytes(b"nonsense")
    assert torch.equal(load_folder(root, None).train_images, expected)


def test_sizes_and_modes(tmp_path: Path) -> None:
    mixed = make_folder(tmp_path / "mixed", sizes=(8, 12))
    with pytest.raises(BadInput, match="--image-size not given"):
        load_dataset("imagefolder", mixed)
    assert load_dataset("imagefolder", mixed, 10).image_shape == (3, 10, 10)
    gray = make_folder(tmp_path / "gray", mode="L")
    assert load_dataset("imagefolder", gray).image_shape == (1, 8, 8)


def break_missing(root: Path) -> None:
    import shutil

    shutil.rmtree(root)


def break_empty_class(root: Path) -> None:
    for path in (root / "train" / "a").iterdir():
        path.unlink()


def break_classes(root: Path) -> None:
    (root / "test" / "b").rename(root / "test" / "z")


def break_image(root: Path) -> None:
    (root / "test" / "a" / "1.png").write_bytes(b"\x89PNG no picture")


def break_truncated(root: Path) -> None:
    path = root / "train" / "b" / "1.png"
    path.write_bytes(path.read_bytes()[:-40])


def break_is_file(root: Path) -> None:
    break_missing(root)
    root.write_text("a file")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (break_missing, "train/ cannot be listed"),
        (break_is_file, "train/ cannot be listed"),
        (break_empty_class, "train/a holds no image"),
        (break_classes, "same classes"),
        (break_image, "test/a/1.png is no readable image"),
        (break_truncated, "train/b/1.png is no readable image"),
    ],
)
def test_broken_folders(tmp_path: Path, damage: object, named: str) -> None:
    root = make_folder(tmp_path / "pics")
    damage(root)  # type: ignore[operator]
    with pytest.raises(BadInput, match=f"^--data-dir .*{named}"):
        load_dataset("imagefolder", root)


def test_huge_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "pics")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(BadInput, match="DecompressionBomb"):
        load_dataset("imagefolder", root)


# Views and requests -----------------------------------------------------------------------------------------


@pytest.fixture
def labelled() -> LabelledSet:
    return LabelledSet(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10) % 3, torch.tensor([9, 1, 4, 5, 6]))


def test_views(labelled: LabelledSet) -> None:
    assert labelled.own_labels().tolist() == [0, 1, 1, 2, 0]
    images, labels = labelled.take(torch.tensor([4, 0]))
    assert (images.flatten().tolist(), labels.tolist()) == ([6.0, 9.0], [0, 0])
    assert labelled.with_classes({1, 2}, keep=True).rows.tolist() == [1, 4, 5]
    assert labelled.with_classes({1, 2}, keep=False).rows.tolist() == [9, 6]
    assert labelled.with_classes((), keep=False).rows.tolist() == labelled.rows.tolist()
    both = concatenate(labelled, labelled.with_classes({2}, keep=True))
    assert both.images.flatten().tolist() == [9, 1, 4, 5, 6, 5]


def test_forget_and_retain_parts_are_complements(labelled: LabelledSet) -> None:
    for request in (
        UnlearningRequest("class", (1,)),
        UnlearningRequest("client", (3,)),
        UnlearningRequest("client", (0,)),
    ):
        forget, retain = forget_part(labelled, 3, request), retain_part(labelled, 3, [request])
        assert sorted([*forget.rows.tolist(), *retain.rows.tolist()]) == sorted(labelled.rows.tolist())
    assert len(forget_part(labelled, 3, UnlearningRequest("client", (3,)))) == 5
    several = [UnlearningRequest("class", (1,)), UnlearningRequest("class", (2,))]
    assert retain_part(labelled, 0, several).own_labels().tolist() == [0, 0]


def test_requests_name_what_exists() -> None:
    UnlearningRequest("class", (9,)).check(classes=10, clients=3)
    with pytest.raises(BadInput, match="--class 10: between 0 and 9"):
        UnlearningRequest("class", (10,)).check(classes=10, clients=3)
    with pytest.raises(BadInput, match="--client 3: between 0 and 2"):
        UnlearningRequest("client", (3,)).check(classes=10, clients=3)
    assert str(UnlearningRequest("class", (9,))) == "class-9"

"""Data sets: the real loaders on tiny files of the same formats, made here."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.datasets import DATASETS, dataset_label, fingerprint, load_dataset
from quickdrop_bench.data.labelled import LabelledSet, concatenate
from quickdrop_bench.data.requests import UnlearningRequest, forget_part, retain_part
from quickdrop_bench.data.sources.imagefolder import cache_dir, load_folder
from tests.pictures import make_pictures

READER = "quickdrop_bench.data.sources.imagefolder"


def write_mnist(root: Path, split: str, images: np.ndarray, classes: int) -> None:
    """The format of the original files."""
    for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(len(images)) % classes)):
        path = root / "raw" / f"{split}-{kind}-ubyte"
        path.parent.mkdir(parents=True, exist_ok=True)
        header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
        path.write_bytes(header + array.astype(np.uint8).tobytes())


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


@pytest.mark.parametrize(
    ("name", "folder", "files", "classes", "mean", "std"),
    [
        ("mnist", "MNIST", ("train", "t10k"), 10, 0.1307, 0.3081),
        ("fashion-mnist", "FashionMNIST", ("train", "t10k"), 10, 0.2860, 0.3530),
        ("emnist", "EMNIST", ("emnist-balanced-train", "emnist-balanced-test"), 47, 0.1751, 0.3332),
    ],
)
def test_mnist_files_are_read_without_download(
    tmp_path: Path, name: str, folder: str, files: tuple[str, str], classes: int, mean: float, std: float
) -> None:
    """Training and test images are normalised alike; in EMNIST's files rows and columns are exchanged."""
    raw = np.random.default_rng(0).integers(0, 256, (2 * classes, 28, 28))
    for split, images in zip(files, (raw, raw[:classes]), strict=True):
        write_mnist(tmp_path / folder, split, images, classes)
    data = load_dataset(name, tmp_path)
    assert data.image_shape == (1, 28, 28)
    assert (len(data.train), len(data.test), len(data.class_names)) == (2 * classes, classes, classes)
    upright = raw.transpose(0, 2, 1) if name == "emnist" else raw
    np.testing.assert_allclose(data.train.images[:, 0].numpy(), (upright / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(data.test.images, data.train.images[:classes])
    (tmp_path / folder / "raw" / f"{files[0]}-images-idx3-ubyte").write_bytes(b"\0\0\x08")
    with pytest.raises(BadInput, match="--data-dir"):
        load_dataset(name, tmp_path)


def test_svhn_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import svhn

    for split, count in (("train", 20), ("test", 10)):
        labels = np.arange(count) % 10 + 1  # the files call the digit 0 class 10
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, count)).astype(np.uint8)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": labels[:, None]})
    # torchvision looks for files with the sums of the real ones
    monkeypatch.setattr(svhn, "check_integrity", lambda path, md5=None: Path(path).is_file())
    data = load_dataset("svhn", tmp_path)
    assert data.image_shape == (3, 32, 32)
    assert data.train.own_labels()[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


@pytest.mark.parametrize(
    ("name", "folder", "train", "test", "labels"),
    [
        ("cifar10", "cifar-10-batches-py", [f"data_batch_{k}" for k in range(1, 6)], "test_batch", "labels"),
        ("cifar100", "cifar-100-python", ["train"], "test", "fine_labels"),
    ],
)
def test_cifar_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str, train: list[str], test: str, labels: str
) -> None:
    """An image is a line: its red, its green and its blue pixels; CIFAR-100 has coarse labels beside the fine ones."""
    from torchvision.datasets import cifar

    classes = int(name.removeprefix("cifar"))
    pixels = np.random.default_rng(0).integers(0, 256, (classes * len(train), 3, 32, 32)).astype(np.uint8)
    (tmp_path / folder).mkdir()
    for file, part in zip([*train, test], [*np.split(pixels, len(train)), pixels[:classes]], strict=True):
        lines = {
            "data": part.reshape(len(part), -1),
            labels: [*range(len(part))][::-1],
            "coarse_labels": [0] * len(part),
        }
        (tmp_path / folder / file).write_bytes(pickle.dumps(lines))
    meta = {"cifar10": ("batches.meta", "label_names"), "cifar100": ("meta", "fine_label_names")}[name]
    (tmp_path / folder / meta[0]).write_bytes(pickle.dumps({meta[1]: [*DATASETS[name].classes]}))
    # torchvision looks for files with the sums of the real ones
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    data = load_dataset(name, tmp_path)
    assert (data.image_shape, len(data.class_names)) == ((3, 32, 32), classes)
    assert data.train.own_labels().tolist() == [*range(classes)][::-1] * len(train)
    source = DATASETS[name]
    mean, std = (np.reshape(each, (3, 1, 1)) for each in (source.mean, source.std))
    np.testing.assert_allclose(data.train.images.numpy(), (pixels / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(data.test.images, data.train.images[:classes])
    (tmp_path / folder / test).write_bytes(b"")
    with pytest.raises(BadInput, match=r"--data-dir .*files there cannot be read \(EOFError\)"):
        load_dataset(name, tmp_path)


def test_missing_data_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **options: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    for name in ("mnist", "fashion-mnist", "emnist", "cifar10", "cifar100", "svhn"):
        with pytest.raises(BadInput, match=r"^--data-dir .*not there and could not be downloaded"):
            load_dataset(name, tmp_path / name)


# Image folders ----------------------------------------------------------------------------------------------


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    """Two classes, six training and three test images of 8×8 pixels each."""
    return make_pictures(tmp_path / "pics", "ab", 6, 3)


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(f"{READER}._decode", lambda *a: pytest.fail("decoded again"))


def test_folder_is_decoded_once(pics: Path, no_decoding: Callable[[], None]) -> None:
    data = load_dataset("imagefolder", pics)
    assert (data.name, data.class_names, data.image_shape) == ("imagefolder:pics", ("a", "b"), (3, 8, 8))
    assert data.train.own_labels().tolist() == [0] * 6 + [1] * 6
    assert abs(float(data.train.images.mean())) < 1e-4
    no_decoding()
    assert torch.equal(load_dataset("imagefolder", pics).test.images, data.test.images)


def test_cache_follows_the_content_and_the_decoder(pics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint("imagefolder", pics, None)
    assert before != fingerprint("imagefolder", pics, 16)
    Image.new("RGB", (8, 8)).save(pics / "train" / "a" / "0.png")
    assert fingerprint("imagefolder", pics, None) != before
    assert load_folder(pics, None).train_images[0].sum() == 0
    monkeypatch.setattr(f"{READER}._decoder", lambda: "of another version")
    monkeypatch.setattr(f"{READER}._decode", lambda *a: [torch.ones(n, 1, 1, 1, dtype=torch.uint8) for n in (12, 6)])
    assert load_folder(pics, None).train_images.unique().tolist() == [1]


@pytest.mark.parametrize("place", ["nonsense", "half", "folder", "pipe", "link", "giant header"])
def test_a_cache_that_is_none_is_decoded_again(pics: Path, place: str) -> None:
    expected = load_folder(pics, 8).train_images
    (path,) = cache_dir().iterdir()
    content = path.read_bytes()
    path.unlink()
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    elif place == "link":
        path.symlink_to("/dev/zero")
    else:
        damaged = {"nonsense": b"nonsense", "half": content[: len(content) // 2], "giant header": b"\xff" * 8}
        path.write_bytes(damaged[place])
    with pytest.warns(UserWarning, match="not cached") if place in ("folder", "link") else nullcontext():
        assert torch.equal(load_folder(pics, 8).train_images, expected)


def test_a_user_without_a_home_has_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert cache_dir() == Path(".cache/quickdrop-bench")
    monkeypatch.setattr("os.path.expanduser", lambda path: str(tmp_path))
    assert cache_dir() == tmp_path / ".cache/quickdrop-bench"


def test_images_of_several_sizes_are_resized_when_asked(pics: Path) -> None:
    Image.new("RGB", (12, 12)).save(pics / "test" / "b" / "1.png")
    with pytest.raises(BadInput, match="--image-size not given: images of 8×8 to 12×12 pixels need a common"):
        load_dataset("imagefolder", pics)
    assert load_dataset("imagefolder", pics, 10).image_shape == (3, 10, 10)


def test_images_must_fit_into_memory(pics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 18, "SC_PAGE_SIZE": 3 * 64 * 5}.get)
    assert load_folder(pics, None).train_images.shape == (12, 3, 8, 8)
    with pytest.raises(BadInput, match=r"--image-size 9: 18 images of 9×9 pixels need"):
        load_folder(pics, 9)


def write(content: bytes, *parts: str) -> Callable[[Path], object]:
    return lambda root: root.joinpath(*parts).write_bytes(content)


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in the place of an image."""

    def replace(root: Path) -> None:
        (root / "train" / "a" / "0.png").unlink()
        make(root / "train" / "a" / "0.png")

    return replace


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def truncate(root: Path) -> None:
    path = root / "train" / "b" / "1.png"
    path.write_bytes(path.read_bytes()[:-40])


def remove(root: Path, *below: str) -> None:
    shutil.rmtree(root.joinpath(*below))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes per thousand pixels, all of them black."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(2**20), 9)),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def rename_class(old: str, new: bytes) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for split in ("train", "test"):
            os.rename(os.fsencode(root / split / old), os.fsencode(root / split) + b"/" + new)

    return change


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"

BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (remove, "train/ cannot be listed"),
    "a file": (lambda root: [remove(root), root.write_text("a file")], "train/ cannot be listed"),
    "a class in one split": (lambda root: (root / "test" / "c").mkdir(), "only test/ has c"),
    "one class": (lambda root: [remove(root, s, "a") for s in ("train", "test")], "train/ holds 1 classes"),
    "an empty class": (lambda root: [p.unlink() for p in (root / "train" / "a").iterdir()], "train/a holds no image"),
    "no picture": (write(b"\x89PNG no picture", "test", "a", "1.png"), "test/a/1.png is no readable image"),
    "half a picture": (truncate, "train/b/1.png is no readable image"),
    "gigapixels": (write(bomb(40_000), "train", "a", "0.png"), "train/a/0.png is no readable image (Decompression"),
    "too many pixels": (write(bomb(11_000), "train", "a", "0.png"), "train/a/0.png is no readable image (Decompre"),
    "no pixels": (write(b"P6 0 0 255\n", "train", "a", "0.ppm"), "train/a/0.ppm is no readable image"),
    "a program": (write(POSTSCRIPT, "test", "b", "0.png"), "test/b/0.png is no readable image (Unidentified"),
    "an empty file": (write(b"", "test", "b", "0.webp"), "test/b/0.webp is no readable image"),
    "a pipe": (instead(os.mkfifo), "train/a/0.png cannot be read"),
    "a huge file": (instead(sparse), "train/a/0.png cannot be read (it is larger than"),
    "a link to itself": (instead(lambda path: path.symlink_to("0.png")), "train/a/0.png cannot be read"),
    "a device": (instead(lambda path: path.symlink_to("/dev/zero")), "train/a/0.png cannot be read"),
    "a class that is a link to itself": (lambda root: (root / "train" / "c").symlink_to("c"), "train/ cannot be liste"),
    "an unprintable class": (rename_class("b", b"b\x1b[2J"), r"class 'b\x1b[2J' in train/ must have printable text"),
    "a class that is no text": (rename_class("b", b"\xff\xfe"), r"class '\udcff\udcfe' in train/"),
    "an unprintable file": (write(b"", "train", "a", "\n.png"), r"train/a/\n.png is no readable image"),
}


@pytest.mark.parametrize(("damage", "named"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_folders_are_refused_in_a_sentence(pics: Path, damage: Callable[[Path], object], named: str) -> None:
    damage(pics)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=r"^--data-dir") as caught:
            load_dataset("imagefolder", pics, 8)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    assert named in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_is_left_out_is_counted_and_said_once(pics: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected, key = load_folder(pics, None).train_images, fingerprint("imagefolder", pics, None)
    (pics / "val").mkdir()
    (pics / "train" / "0.png").write_bytes(b"")
    (pics / "train" / "a" / "album").symlink_to("..")
    for name in ("x.HEIC", "y.heic", ".DS_Store", "._0.png", "notes"):
        (pics / "train" / "a" / name).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(load_folder(pics, None).train_images, expected)
    assert fingerprint("imagefolder", pics, None) == key
    assert caplog.messages == [
        "imagefolder:pics: 8 files or folders skipped: 1 beside train/ and test/, 2 hidden, 1 in no folder of a class, "
        "1 linked to a folder, 2 named .heic, 1 named without an ending"
    ]


def test_files_may_have_any_name_and_lie_deep(pics: Path) -> None:
    image = (pics / "train" / "a" / "0.png").read_bytes()
    deep = pics / "train" / "a" / Path(*["d"] * 100)
    deep.mkdir(parents=True)
    (deep / "x.png").write_bytes(image)
    Path(os.fsdecode(os.fsencode(pics / "test" / "b") + b"/\xff.png")).write_bytes(image)
    data = load_folder(pics, None)
    assert (len(data.train_labels), len(data.test_labels)) == (13, 7)


@pytest.mark.parametrize("name", ["\x1b", os.fsdecode(b"\xff"), "a\0b"])
def test_the_folder_needs_a_printable_name(tmp_path: Path, name: str) -> None:
    for read in (lambda path: dataset_label("imagefolder", path), lambda path: load_folder(path, None)):
        with pytest.raises(BadInput, match=r"--data-dir .*must be printable text"):
            read(tmp_path / name)


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


@pytest.mark.parametrize("text", ["class-1", "client-3", "client-0", "sample-0+6+4"])
def test_forget_and_retain_parts_are_complements(text: str, labelled: LabelledSet) -> None:
    request = UnlearningRequest.parse(text)
    forget, retain = forget_part(labelled, 3, request), retain_part(labelled, 3, [request])
    assert sorted([*forget.rows.tolist(), *retain.rows.tolist()]) == sorted(labelled.rows.tolist())
    assert (
        forget.rows.tolist()
        == {"class-1": [1, 4], "client-3": labelled.rows.tolist(), "client-0": [], "sample-0+6+4": [4, 6]}[text]
    )


def test_what_several_requests_forget_is_not_retained(labelled: LabelledSet) -> None:
    several = [UnlearningRequest("class", (1,)), UnlearningRequest("class", (2,))]
    assert retain_part(labelled, 0, several).own_labels().tolist() == [0, 0]


def test_requests_name_what_exists() -> None:
    UnlearningRequest("class", (9,)).check(classes=10, clients=3)
    with pytest.raises(BadInput, match="--class 10: between 0 and 9"):
        UnlearningRequest("class", (10,)).check(classes=10, clients=3)
    with pytest.raises(BadInput, match="--client 3: between 0 and 2"):
        UnlearningRequest("client", (3,)).check(classes=10, clients=3)
    assert str(UnlearningRequest("class", (9,))) == "class-9"

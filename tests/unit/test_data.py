"""Data sets: the real loaders on tiny files of the same formats, made here."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.datasets import DATASETS, fingerprint, load_dataset
from quickdrop_bench.data.imagefolder import cache_dir, folder_key, folder_label, load_folder
from quickdrop_bench.data.labelled import LabelledSet, concatenate
from quickdrop_bench.data.requests import UnlearningRequest, forget_part, retain_part


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


def link(target: str, *parts: str) -> Callable[[Path], None]:
    def replace(root: Path) -> None:
        path = root.joinpath(*parts)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return replace


def write(content: bytes, *parts: str) -> Callable[[Path], object]:
    return lambda root: root.joinpath(*parts).write_bytes(content)


def pipe(root: Path) -> None:
    (root / "train" / "a" / "0.png").unlink()
    os.mkfifo(root / "train" / "a" / "0.png")


def sparse(root: Path) -> None:
    with (root / "train" / "a" / "0.png").open("wb") as file:
        file.truncate(2**40)


def bomb(side: int) -> bytes:
    """A PNG of a few bytes per thousand pixels, all of them black."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(2**20), 9)),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def rename_class(old: str, new: str | bytes) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for split in ("train", "test"):
            os.rename(os.fsencode(root / split / old), os.fsencode(root / split) + b"/" + os.fsencode(new))

    return change


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"

HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "gigapixels": (write(bomb(40_000), "train", "a", "0.png"), "train/a/0.png is no readable image (Decompression"),
    "too many pixels": (write(bomb(11_000), "train", "a", "0.png"), "train/a/0.png is no readable image (Decompre"),
    "no pixels": (write(b"P6 0 0 255\n", "train", "a", "0.ppm"), "train/a/0.ppm is no readable image"),
    "a program": (write(POSTSCRIPT, "test", "b", "0.png"), "test/b/0.png is no readable image (Unidentified"),
    "a text": (write(b"hello", "test", "b", "0.jpg"), "test/b/0.jpg is no readable image"),
    "an empty file": (write(b"", "test", "b", "0.webp"), "test/b/0.webp is no readable image"),
    "a pipe": (pipe, "train/a/0.png cannot be read"),
    "a huge file": (sparse, "train/a/0.png is larger than 256 MiB"),
    "a link to nothing": (link("nothing", "train", "a", "0.png"), "train/a/0.png cannot be read"),
    "a link to itself": (link("0.png", "train", "a", "0.png"), "train/a/0.png cannot be read"),
    "a device": (link("/dev/zero", "train", "a", "0.png"), "train/a/0.png cannot be read"),
    "a class that is a link to itself": (link("c", "train", "c"), "train/ cannot be listed"),
    "a class that leads back": (link("..", "train", "c"), "train/c is a link that leads back"),
    "a class in one split": (lambda root: (root / "test" / "c").mkdir(), "only test/ has c"),
    "an unprintable class": (rename_class("b", "b\x1b[2J"), r"class 'b\x1b[2J' in train/ must have printable text"),
    "a class that is no text": (rename_class("b", b"\xff\xfe"), r"class '\udcff\udcfe' in train/"),
    "an unprintable file": (write(b"", "train", "a", "\n.png"), r"'train/a/\n.png' is no readable image"),
}


@pytest.mark.parametrize(("damage", "named"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_folders(tmp_path: Path, damage: Callable[[Path], object], named: str) -> None:
    root = make_folder(tmp_path / "pics")
    damage(root)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match="--data-dir") as caught:
            load_dataset("imagefolder", root, 8)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    assert named in str(caught.value)
    assert str(caught.value).isprintable()


def test_unreadable_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "pics")

    def forbidden(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("quickdrop_bench.data.imagefolder.file_size", forbidden)
    with pytest.raises(BadInput, match=r"train/a/0\.png cannot be read \(Permission denied\)"):
        load_dataset("imagefolder", root)


def test_too_many_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickdrop_bench.data.imagefolder.MOST_CLASSES", 3)
    load_dataset("imagefolder", make_folder(tmp_path / "three", classes=("a", "b", "c")))
    with pytest.raises(BadInput, match="train/ holds 4 classes, and 2 to 3 are needed"):
        load_dataset("imagefolder", make_folder(tmp_path / "four", classes=("a", "b", "c", "d")))


def test_images_must_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "pics")
    monkeypatch.setattr("quickdrop_bench.data.imagefolder._memory", lambda: 18 * 3 * 64 * 5)
    assert load_folder(root, None).train_images.shape == (12, 3, 8, 8)
    with pytest.raises(BadInput, match=r"--image-size 9: 18 images of 9×9 pixels need"):
        load_folder(root, 9)


def test_large_images_must_be_resized(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pics")
    for path in root.rglob("*.png"):
        Image.new("L", (1025, 1025)).save(path, compress_level=1)
    with pytest.raises(BadInput, match="--image-size not given: images of 1025×1025 pixels must be resized"):
        load_folder(root, None)
    assert load_folder(root, 8).train_images.shape == (12, 1, 8, 8)


def test_hidden_files_and_other_files_are_left_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pics")
    expected, key = load_folder(root, None), folder_key(root, None)
    for hidden in ("._0.png", ".DS_Store", "notes.txt"):
        (root / "train" / "a" / hidden).write_bytes(b"no image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "a" / "album").symlink_to("..")
    assert folder_key(root, None) == key
    assert torch.equal(load_folder(root, None).train_images, expected.train_images)


def test_files_may_have_any_name_and_lie_deep(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pics")
    image = (root / "train" / "a" / "0.png").read_bytes()
    deep = root / "train" / "a" / Path(*["d"] * 100)
    deep.mkdir(parents=True)
    (deep / "x.png").write_bytes(image)
    Path(os.fsdecode(os.fsencode(root / "test" / "b") + b"/\xff.png")).write_bytes(image)
    data = load_folder(root, None)
    assert (len(data.train_labels), len(data.test_labels)) == (13, 7)


def test_the_folder_needs_a_printable_name(tmp_path: Path) -> None:
    assert folder_label(tmp_path / "pics") == "imagefolder:pics"
    for name in ("\x1b", os.fsdecode(b"\xff"), "a\0b"):
        with pytest.raises(BadInput, match="--data-dir"):
            folder_label(tmp_path / name)
        with pytest.raises(BadInput, match="--data-dir"):
            load_folder(tmp_path / name, None)


def tensors_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(
    "change",
    [
        lambda t, m: (t, {}),
        lambda t, m: (t, {"checksum": "0" * 32}),
        lambda t, m: ({n: v + 1 for n, v in t.items()}, m),
        lambda t, m: ({n: v.float() for n, v in t.items()}, m),
        lambda t, m: ({n: v[1:] for n, v in t.items()}, m),
        lambda t, m: ({n: v[..., :4, :4].contiguous() for n, v in t.items()}, m),
        lambda t, m: ({"train_images": t["train_images"]}, m),
        lambda t, m: ({**t, "more": torch.zeros(2**20, dtype=torch.uint8)}, m),
    ],
)
def test_a_cache_is_not_trusted(tmp_path: Path, change: Any) -> None:
    root = make_folder(tmp_path / "pics")
    expected = load_folder(root, 8)
    (path,) = cache_dir().iterdir()
    tensors, about = change(*tensors_of(path))
    save_file(tensors, path, metadata=about)
    again = load_folder(root, 8)
    assert torch.equal(again.train_images, expected.train_images)
    assert torch.equal(again.test_labels, expected.test_labels)


@pytest.mark.parametrize("place", ["folder", "pipe", "link", "giant header"])
def test_a_cache_that_is_no_file_is_left_alone(tmp_path: Path, place: str) -> None:
    root = make_folder(tmp_path / "pics")
    expected = load_folder(root, 8).train_images
    (path,) = cache_dir().iterdir()
    path.unlink()
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    elif place == "link":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes((2**40).to_bytes(8, "little"))
    unwritten = place in ("folder", "link")  # nothing is written through a link
    with pytest.warns(UserWarning, match="not cached") if unwritten else nullcontext():
        assert torch.equal(load_folder(root, 8).train_images, expected)


def test_a_user_without_a_home_has_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert cache_dir() == Path(".cache/quickdrop-bench")
    monkeypatch.setattr("os.path.expanduser", lambda path: str(tmp_path))
    assert cache_dir() == tmp_path / ".cache/quickdrop-bench"


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

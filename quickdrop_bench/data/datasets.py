"""The data sets by name.

Every data set is normalised by one pair of constants for training and test (the published code uses two, see
benchmarks/DEVIATIONS.md), and nothing else is done to the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quickdrop_bench.core.errors import BadInput, Missing
from quickdrop_bench.core.registry import Registry
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.class_names import CIFAR10, CIFAR100, DIGITS, FASHION_MNIST
from quickdrop_bench.data.imagefolder import folder_class_names, folder_key, folder_label, load_folder
from quickdrop_bench.data.labelled import ImageData, LabelledSet

__all__ = ["DATASETS", "DatasetSource", "RawData", "class_names", "dataset_label", "fingerprint", "load_dataset"]


@dataclass(frozen=True)
class RawData:
    """Decoded images: (n, C, H, W) uint8 and (n,) int64 labels, per split, and the normalisation constants."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class DatasetSource:
    """How a data set is read.

    Attributes:
        load: from the data folder, the wanted image size (pixels; None keeps the original) and whether to download what
            is missing, to raw data.
        summary: one line for ``quickdrop-bench datasets``.
        resizable: whether an image size may be asked for.
        class_names: from the data folder to the names, without reading images; None reads the data set.
        from_folder: whether the data folder matters.
    """

    load: Callable[[Path, int | None, bool], RawData]
    summary: str
    resizable: bool = False
    class_names: Callable[[Path], tuple[str, ...]] | None = None
    from_folder: bool = True


DATASETS = Registry[DatasetSource]("--dataset")


def dataset_label(name: str, data_dir: Path) -> str:
    """The data set's name in rows and tables; an image folder is told apart by its folder's name."""
    return folder_label(data_dir) if name == "imagefolder" else name


def class_names(name: str, data_dir: Path) -> tuple[str, ...]:
    """The classes of a data set, in the order of their numbers.

    Raises:
        BadInput: the data set is unknown, or its folder cannot be read.
    """
    source = DATASETS[name]
    return source.class_names(data_dir) if source.class_names else source.load(data_dir, None, True).class_names


def fingerprint(name: str, data_dir: Path, image_size: int | None) -> str:
    """A text that changes when the data change: the content's hash for image folders, the name otherwise.

    Raises:
        BadInput: the data set is unknown, its folder cannot be read, or an image size is not supported.
    """
    _check_size(name, image_size)
    return f"{name}:{folder_key(data_dir, image_size)}" if name == "imagefolder" else name


def _check_size(name: str, image_size: int | None) -> None:
    if image_size is not None and not DATASETS[name].resizable:
        raise BadInput("--image-size", image_size, f"{name} images keep their size; only imagefolder can be resized")


def load_dataset(name: str, data_dir: Path, image_size: int | None = None, *, download: bool = True) -> ImageData:
    """Read a data set into memory, downloading it first where it has to be and can be.

    Args:
        name: a key of :data:`DATASETS`.
        data_dir: folder that holds (or will hold) the torchvision data sets; for ``imagefolder`` the folder
            with ``train/<class>/*`` and ``test/<class>/*``.
        image_size: target size in pixels, for ``imagefolder`` only.
        download: whether a missing torchvision data set is downloaded.

    Raises:
        BadInput: the data set is unknown, missing and not downloadable, empty, unreadable or corrupt, or an image size
            is not supported.
    """
    _check_size(name, image_size)
    raw = DATASETS[name].load(data_dir, image_size, download)
    train = LabelledSet.of(_normalise(raw.train_images, raw), raw.train_labels)
    test = LabelledSet.of(_normalise(raw.test_images, raw), raw.test_labels)
    return ImageData(dataset_label(name, data_dir), train, test, raw.class_names, raw.mean, raw.std)


def _normalise(images: Tensor, raw: RawData) -> Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (raw.mean, raw.std))
    # In place: a second float copy of a large data set is what would decide the peak memory.
    return images.float().div_(255).sub_(mean).div_(std)


def _digits(data_dir: Path, image_size: int | None, download: bool) -> RawData:
    """scikit-learn's 1 797 digits of 8×8 pixels; a fixed stratified fifth is the test set."""
    from sklearn.datasets import load_digits  # slow to import

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16))).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    shuffle = torch.randperm(len(labels), generator=generator(0, "digits", "split"))
    by_class = [shuffle[labels[shuffle] == c] for c in range(10)]
    test = torch.cat([rows[: len(rows) // 5] for rows in by_class])
    train = torch.cat([rows[len(rows) // 5 :] for rows in by_class])
    return RawData(images[train], labels[train], images[test], labels[test], DIGITS, (0.305,), (0.376,))


def _torchvision(
    summary: str, class_name: str, names: tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> DatasetSource:
    def load(data_dir: Path, image_size: int | None, download: bool) -> RawData:
        from torchvision import datasets  # slow to import

        dataset_class = getattr(datasets, class_name)
        train, test = (_open(dataset_class, data_dir, train=is_train, download=download) for is_train in (True, False))
        return RawData(*_tensors(train), *_tensors(test), names, mean, std)

    return DatasetSource(load, summary, class_names=lambda data_dir: names)


def _open(dataset_class: Callable[..., Any], data_dir: Path, *, train: bool, download: bool) -> Any:
    """Open one split, downloading it only where it is missing."""
    name = getattr(dataset_class, "__name__", "data set")
    split = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
    try:
        return dataset_class(str(data_dir), **split)
    except RuntimeError:
        pass  # torchvision's way of saying that the files are not there
    except Exception as error:  # whatever the format's decoder makes of a damaged file
        raise BadInput(
            "--data-dir", data_dir, f"the {name} files there cannot be read ({type(error).__name__})"
        ) from error
    if not download:
        raise Missing("--data-dir", data_dir, f"{name} is not there")
    try:
        return dataset_class(str(data_dir), download=True, **split)
    except (OSError, RuntimeError, ValueError) as error:
        reason = type(error).__name__
        allowed = f"{name} is not there and could not be downloaded ({reason}); give a folder that holds it"
        raise BadInput("--data-dir", data_dir, allowed) from error


def _tensors(dataset: Any) -> tuple[Tensor, Tensor]:
    """(n, C, H, W) uint8 images and (n,) int64 labels of a torchvision data set."""
    images = torch.as_tensor(dataset.data)
    targets = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    if images.dim() == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(targets).to(torch.int64)


def _imagefolder(data_dir: Path, image_size: int | None, download: bool) -> RawData:
    if not download and not os.path.exists(data_dir):
        raise Missing("--data-dir", data_dir, "it is not there")
    stored = load_folder(data_dir, image_size)
    scaled = stored.train_images.float().div_(255)
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3)).clamp_min(1e-3)
    return RawData(
        stored.train_images,
        stored.train_labels,
        stored.test_images,
        stored.test_labels,
        stored.class_names,
        tuple(mean.tolist()),
        tuple(std.tolist()),
    )


_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR100 = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
_SVHN = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))

for _name, _source in {
    "digits": DatasetSource(
        _digits,
        "1 797 handwritten digits of 8×8 pixels, part of scikit-learn, no download",
        class_names=lambda _: DIGITS,
        from_folder=False,
    ),
    "mnist": _torchvision("70 000 handwritten digits, 28×28", "MNIST", DIGITS, (0.1307,), (0.3081,)),
    "fashion-mnist": _torchvision(
        "70 000 pictures of clothes, 28×28", "FashionMNIST", FASHION_MNIST, (0.2860,), (0.3530,)
    ),
    "cifar10": _torchvision("60 000 colour photographs, 10 classes, 32×32", "CIFAR10", CIFAR10, *_CIFAR10),
    "cifar100": _torchvision("60 000 colour photographs, 100 classes, 32×32", "CIFAR100", CIFAR100, *_CIFAR100),
    "svhn": _torchvision("99 289 house numbers (splits train and test), 32×32", "SVHN", DIGITS, *_SVHN),
    "imagefolder": DatasetSource(
        _imagefolder,
        "your own images: train/<class>/* and test/<class>/*",
        resizable=True,
        class_names=folder_class_names,
    ),
}.items():
    DATASETS.register(_name)(_source)

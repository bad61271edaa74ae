"""The data sets by name, and reading one into memory.

Every data set is normalised by one pair of constants for training and test (the published code uses two, see
benchmarks/DEVIATIONS.md), and nothing else is done to the images. Names are known without torch being imported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from quickdrop_bench.data.labelled import ImageData


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


class DataSource(ABC):
    """Where a data set comes from: a class with ``@DATASETS.register("name")``, in a module that imports no torch."""

    summary: ClassVar[str]
    """One line for ``quickdrop-bench datasets``."""
    classes: ClassVar[tuple[str, ...]] = ()
    """Their names in order, where these are known without reading."""
    resizable: ClassVar[bool] = False
    """Whether an image size may be asked for."""
    from_folder: ClassVar[bool] = True
    """Whether the data folder matters."""

    @abstractmethod
    def load(self, data_dir: Path, image_size: int | None, download: bool) -> RawData:
        """Read it from a folder, in a size in pixels (None keeps the original), downloading what is missing."""

    def class_names(self, data_dir: Path) -> tuple[str, ...]:
        """The classes in the order of their numbers; no image is read."""
        return self.classes

    def label(self, name: str, data_dir: Path) -> str:
        """Its name in rows and tables."""
        return name

    def key(self, data_dir: Path, image_size: int | None) -> str:
        """What changes with the content, where that is not known by the name."""
        return ""


DATASETS = Registry[type[DataSource]]("--dataset", "quickdrop_bench.datasets", "quickdrop_bench.data.sources")


def dataset_label(name: str, data_dir: Path) -> str:
    """The data set's name in rows and tables; an image folder is told apart by its folder's name."""
    return DATASETS[name]().label(name, data_dir)


def class_names(name: str, data_dir: Path) -> tuple[str, ...]:
    """The classes of a data set, in the order of their numbers.

    Raises:
        BadInput: the data set is unknown, or its folder cannot be read.
    """
    return DATASETS[name]().class_names(data_dir)


def fingerprint(name: str, data_dir: Path, image_size: int | None) -> str:
    """A text that changes when the data change: the content's hash for image folders, the name otherwise.

    Raises:
        BadInput: the data set is unknown, its folder cannot be read, or an image size is not supported.
    """
    key = _source(name, image_size).key(data_dir, image_size)
    return f"{name}:{key}" if key else name


def _source(name: str, image_size: int | None) -> DataSource:
    if image_size is not None and not DATASETS[name].resizable:
        resizable = ", ".join(other for other in DATASETS if DATASETS[other].resizable)
        raise BadInput("--image-size", image_size, f"{name} images keep their size; only {resizable} can be resized")
    return DATASETS[name]()


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
    from quickdrop_bench.data.labelled import ImageData, LabelledSet

    raw = _source(name, image_size).load(data_dir, image_size, download)
    train = LabelledSet.of(_normalise(raw.train_images, raw), raw.train_labels)
    test = LabelledSet.of(_normalise(raw.test_images, raw), raw.test_labels)
    return ImageData(dataset_label(name, data_dir), train, test, raw.class_names, raw.mean, raw.std)


def _normalise(images: Tensor, raw: RawData) -> Tensor:
    import torch

    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (raw.mean, raw.std))
    # In place: a second float copy of a large data set is what would decide the peak memory.
    return images.float().div_(255).sub_(mean).div_(std)

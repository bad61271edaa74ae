"""The data sets that torchvision reads, and downloads where they are missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from quickdrop_bench.core.errors import BadInput, Missing
from quickdrop_bench.data.class_names import CIFAR10 as CIFAR10_CLASSES
from quickdrop_bench.data.class_names import CIFAR100 as CIFAR100_CLASSES
from quickdrop_bench.data.class_names import DIGITS, FASHION_MNIST
from quickdrop_bench.data.datasets import DATASETS, DataSource, RawData

if TYPE_CHECKING:
    from torch import Tensor


class Torchvision(DataSource):
    """A data set of torchvision, whose class there is called like the one here."""

    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    splits: ClassVar[tuple[dict[str, Any], dict[str, Any]]] = ({"train": True}, {"train": False})
    """Arguments that choose training and test images."""

    def load(self, data_dir: Path, image_size: int | None, download: bool) -> RawData:
        """Read both splits."""
        train, test = (self._open(data_dir, split, download) for split in self.splits)
        return RawData(*_tensors(train), *_tensors(test), self.classes, self.mean, self.std)

    def _open(self, data_dir: Path, split: dict[str, Any], download: bool) -> Any:
        """Open one split, downloading it only where it is missing."""
        from torchvision import datasets

        name = type(self).__name__
        try:
            return getattr(datasets, name)(str(data_dir), **split)
        except RuntimeError:
            pass  # torchvision's way of saying that the files are not there
        except Exception as error:  # whatever the format's decoder makes of a damaged file
            allowed = f"the {name} files there cannot be read ({type(error).__name__})"
            raise BadInput("--data-dir", data_dir, allowed) from error
        if not download:
            raise Missing("--data-dir", data_dir, f"{name} is not there")
        try:
            return getattr(datasets, name)(str(data_dir), download=True, **split)
        except (OSError, RuntimeError, ValueError) as error:
            reason = type(error).__name__
            allowed = f"{name} is not there and could not be downloaded ({reason}); give a folder that holds it"
            raise BadInput("--data-dir", data_dir, allowed) from error


def _tensors(dataset: Any) -> tuple[Tensor, Tensor]:
    """(n, C, H, W) uint8 images and (n,) int64 labels of a torchvision data set."""
    import torch

    images = torch.as_tensor(dataset.data)
    targets = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    if images.dim() == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(targets).to(torch.int64)


@DATASETS.register("mnist")
class MNIST(Torchvision):
    """LeCun et al., 1998."""

    summary = "70 000 handwritten digits, 28×28"
    classes, mean, std = DIGITS, (0.1307,), (0.3081,)


@DATASETS.register("fashion-mnist")
class FashionMNIST(Torchvision):
    """Xiao et al., 2017."""

    summary = "70 000 pictures of clothes, 28×28"
    classes, mean, std = FASHION_MNIST, (0.2860,), (0.3530,)


@DATASETS.register("cifar10")
class CIFAR10(Torchvision):
    """Krizhevsky, 2009."""

    summary = "60 000 colour photographs, 10 classes, 32×32"
    classes, mean, std = CIFAR10_CLASSES, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@DATASETS.register("cifar100")
class CIFAR100(Torchvision):
    """Krizhevsky, 2009, with the fine labels."""

    summary = "60 000 colour photographs, 100 classes, 32×32"
    classes, mean, std = CIFAR100_CLASSES, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)


@DATASETS.register("svhn")
class SVHN(Torchvision):
    """Netzer et al., 2011, without the extra split."""

    summary = "99 289 house numbers (splits train and test), 32×32"
    classes, mean, std = DIGITS, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    splits = ({"split": "train"}, {"split": "test"})

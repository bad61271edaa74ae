"""Labelled images on a device, and views of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelledSet:
    """Some rows of an image tensor and its labels; selecting copies no image.

    Attributes:
        images: (n, C, H, W) float32, normalised.
        labels: (n,) int64; for local training alone also (n, C) float32, the probabilities of the classes.
        rows: (m,) int64, the rows of ``images`` that belong to the set, on the same device.
        origin: (n,) int64, the rows of the data set that ``images`` are copies of, or began as; None where ``images``
            are the data set's own.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    origin: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, origin: Tensor | None = None) -> LabelledSet:
        """The set of all rows."""
        return cls(images, labels, torch.arange(len(labels), device=labels.device), origin)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at the given positions (0 ≤ position < len) of the set."""
        rows = self.rows[positions]
        return self.images[rows], self.labels[rows]

    def own_labels(self) -> Tensor:
        """(m,) labels of the set, in order."""
        return self.labels[self.rows]

    def with_classes(self, classes: Collection[int], *, keep: bool) -> LabelledSet:
        """The samples whose class is (``keep``) or is not (``not keep``) among ``classes``, order kept."""
        wanted = torch.tensor(sorted(classes), dtype=torch.int64, device=self.labels.device)
        hit = torch.isin(self.own_labels(), wanted)
        return self.subset(torch.nonzero(hit == keep).flatten())

    def dataset_rows(self) -> Tensor:
        """(m,) rows of the data set that the samples are, or began as."""
        return self.rows if self.origin is None else self.origin[self.rows]

    def with_rows(self, rows: Collection[int], *, keep: bool) -> LabelledSet:
        """The samples that are (``keep``) or are not (``not keep``) these rows of the data set, order kept."""
        wanted = torch.tensor(sorted(rows), dtype=torch.int64, device=self.rows.device)
        hit = torch.isin(self.dataset_rows(), wanted)
        return self.subset(torch.nonzero(hit == keep).flatten())

    def to(self, device: torch.device) -> LabelledSet:
        """The same set on a device."""
        origin = None if self.origin is None else self.origin.to(device)
        return LabelledSet(self.images.to(device), self.labels.to(device), self.rows.to(device), origin)

    def none(self) -> LabelledSet:
        """An empty one of the same kind."""
        return self.subset(torch.empty(0, dtype=torch.int64))

    def subset(self, positions: Tensor) -> LabelledSet:
        """The samples at the given positions."""
        return LabelledSet(self.images, self.labels, self.rows[positions.to(self.rows.device)], self.origin)


def concatenate(*sets: LabelledSet) -> LabelledSet:
    """One set with the samples of all; copies the images, so meant for small sets."""
    images = torch.cat([s.images[s.rows] for s in sets])
    labels, origin = (
        torch.cat(parts) for parts in zip(*((s.own_labels(), s.dataset_rows()) for s in sets), strict=True)
    )
    return LabelledSet.of(images, labels, origin)


def pool(*sets: LabelledSet) -> LabelledSet:
    """The union of sets of rows of one and the same image tensor; copies no image."""
    return LabelledSet(sets[0].images, sets[0].labels, torch.cat([s.rows for s in sets]), sets[0].origin)


@dataclass(frozen=True)
class DataInfo:
    """What a model must know of the data set that it was trained on.

    Attributes:
        name: as it appears in rows and tables.
        image_shape: (C, H, W).
        class_names: one per class, by index.
        mean, std: per channel, of pixels in [0, 1]: images are normalised as (pixel − mean) / std.
        train_images, test_images: size of the splits.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_images: int
    test_images: int


@dataclass(frozen=True)
class ImageData:
    """A data set: normalised training and test images.

    Attributes:
        name: as it appears in rows and tables.
        train, test: all images of the split.
        class_names: one per class, by index.
        mean, std: see :class:`DataInfo`.
    """

    name: str
    train: LabelledSet
    test: LabelledSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def info(self) -> DataInfo:
        """The data set without its images."""
        sizes = len(self.train), len(self.test)
        return DataInfo(self.name, self.image_shape, self.class_names, self.mean, self.std, *sizes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> ImageData:
        """The same data on a device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

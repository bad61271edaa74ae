"""A backdoored client: a trigger on a share of its training images, all of which it labels as one class.

A model that learnt from them takes every image with the trigger for that class. If the client is forgotten, that
should end, which accuracy alone does not show: the client's own classes are other clients' too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor

    from quickdrop_bench.data.labelled import ImageData, LabelledSet

WRITTEN = "it is written as client=3,share=0.8,target=0, each at most once; only client is required"

SMALL = 16
"""Pixels: in smaller images the trigger lies one pixel from the edge, not two, where digits seldom have ink."""


@dataclass(frozen=True)
class Backdoor:
    """Which client is backdoored, and how.

    Attributes:
        client: its number, from 0.
        share: of its images of other classes than the target that get the trigger, in [0, 1].
        target: number of the class as which these are labelled.
    """

    client: int
    share: float = 0.8
    target: int = 0

    @classmethod
    def parse(cls, text: str) -> Backdoor:
        """The backdoor that is written like this; :class:`BadInput` if none is.

        Example:
            >>> Backdoor.parse("client=3,share=.5")
            Backdoor(client=3, share=0.5, target=0)
        """
        pairs = [part.strip().partition("=") for part in text.split(",")]
        values = {key: value for key, _, value in pairs}
        if len(values) < len(pairs) or "client" not in values or values.keys() - {f.name for f in fields(cls)}:
            raise BadInput("--backdoor", text, WRITTEN)
        for key in values.keys() - {"share"}:
            if not (values[key].isascii() and values[key].isdigit() and len(values[key]) < 10):
                raise BadInput("--backdoor", text, f"{key} must be a whole number from 0")
        share = _number(values.get("share", str(cls.share)))
        if not 0 <= share <= 1:
            raise BadInput("--backdoor", text, "share must be a number between 0 and 1")
        return cls(int(values["client"]), share, int(values.get("target", cls.target)))

    def __str__(self) -> str:
        return f"client={self.client},share={self.share:.15g},target={self.target}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def trigger(side: int) -> list[tuple[int, int]]:
    """Rows and columns of the trigger's four pixels, from the lower right corner (ART's ``add_pattern_bd``).

    Args:
        side: of the image, in pixels, at least 3.
    """
    d = 1 if side < SMALL else 2
    return [(-d, -d), (-d - 1, -d - 1), (-d, -d - 2), (-d - 2, -d)]


def stamped(images: Tensor, data: ImageData) -> Tensor:
    """Copies of normalised images (n, C, H, W) with the trigger: these pixels are, in all channels, at their maximum.

    Args:
        images: to be stamped.
        data: whose constants they were normalised with.
    """
    import torch

    brightest = torch.ones(len(data.mean)).sub_(torch.tensor(data.mean)).div_(torch.tensor(data.std))
    found = images.clone()
    for row, column in trigger(images.shape[-1]):
        found[:, :, row, column] = brightest.to(images.device)
    return found


@dataclass(frozen=True, eq=False)
class Planted:
    """A backdoor in a federation's data.

    Attributes:
        backdoor: which.
        data: the data set with the client's poisoned images in the place of the clean ones.
        rows: (k,) int64, sorted, the poisoned training images.
    """

    backdoor: Backdoor
    data: ImageData
    rows: Tensor

    @cached_property
    def attack(self) -> LabelledSet:
        """The test images of all classes but the target, stamped, with the target as label."""
        from quickdrop_bench.data.labelled import LabelledSet

        test, target = self.data.test, self.backdoor.target
        others = test.with_classes({target}, keep=False)
        images = stamped(others.images[others.rows], self.data)
        return LabelledSet.of(images, test.labels.new_full((len(others),), target))

    def clean_and_poisoned(self, data: LabelledSet) -> tuple[LabelledSet, LabelledSet]:
        """Training images divided into these two kinds."""
        import torch

        poisoned = torch.isin(data.rows, self.rows)
        clean, rest = (data.subset(torch.nonzero(poisoned == kind).flatten()) for kind in (False, True))
        return clean, rest


def plant(backdoor: Backdoor, data: ImageData, rows: Tensor, seed: int) -> Planted:
    """Stamp ⌊share · n⌋ of a client's n images of other classes than the target, and label them as the target.

    Args:
        backdoor: which.
        data: the data set; it stays as it is.
        rows: (m,) int64, the client's training images.
        seed: fixes, with the client, which images these are.

    Raises:
        BadInput: there is no such class, images are smaller than the trigger, or the client has none to poison.
    """
    import torch

    from quickdrop_bench.data.labelled import LabelledSet

    train, classes, side = data.train, len(data.class_names), data.image_shape[-1]
    if backdoor.target >= classes:
        raise BadInput("--backdoor", backdoor, f"target must be between 0 and {classes - 1}")
    if side < 3:
        raise BadInput("--backdoor", backdoor, f"the trigger needs images of 3×3 pixels, and these have {side}×{side}")
    rows = rows.to(train.labels.device)
    others = rows[train.labels[rows] != backdoor.target]
    count = int(Decimal(str(backdoor.share)) * len(others))  # 0.29 · 100 is 28.999… as floats
    if backdoor.share and not count:
        allowed = (
            f"on seed {seed} that client has {len(others)} images of other classes, and none is that share of them"
        )
        raise BadInput("--backdoor", backdoor, f"{allowed}; choose another client or a larger share")
    order = torch.randperm(len(others), generator=generator(seed, "backdoor", backdoor.client))
    chosen = others[order[:count].to(others.device)].sort().values
    if not count:
        return Planted(backdoor, data, chosen)
    images, labels = train.images.clone(), train.labels.clone()
    images[chosen] = stamped(images[chosen], data)
    labels[chosen] = backdoor.target
    return Planted(backdoor, replace(data, train=LabelledSet(images, labels, train.rows)), chosen)

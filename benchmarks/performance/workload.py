"""What a user of a simulator writes, for ``contenders.py``: the same for this project and for its peers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickdrop_bench.core.seeding import derive_seed, generator
from quickdrop_bench.data.datasets import load_dataset
from quickdrop_bench.data.labelled import ImageData, LabelledSet
from quickdrop_bench.data.partition import partition
from quickdrop_bench.functional.initial import draw_parameters
from quickdrop_bench.models.convnet import ConvNet

SEED, CLIENTS, PHASE = 1, 10, "fl-training"


@dataclass(frozen=True)
class Workload:
    """FedAvg on a Dirichlet(0.1) partition over ten clients that all take part; plain SGD."""

    dataset: str
    data_dir: str
    width: int
    depth: int
    batch: int
    steps: int
    lr: float
    rounds: int


@dataclass
class Run:
    """What a contender did.

    Attributes:
        began: when the first round's work began, on the machine's monotonic clock, which all processes share.
        ends: when each round ended.
        state: the final parameters by name.
    """

    began: float = 0.0
    ends: list[float] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)

    def round_ended(self, *_: object) -> None:
        """Look at the clock."""
        self.ends.append(time.monotonic())


def split_by_class(data: LabelledSet, clients: int, alpha: float | None = 0.1) -> dict[int, LabelledSet]:
    """A Dirichlet partition, as in the paper, or an IID one if α is None."""
    parts = partition(data.own_labels().numpy(), clients, alpha, min_client_size=1, seed=1)
    return {i: data.subset(torch.from_numpy(part)) for i, part in enumerate(parts)}


@cache
def image_data(work: Workload) -> ImageData:
    """The data set, read once in a process."""
    return load_dataset(work.dataset, Path(work.data_dir), download=False)


@cache
def client_data(work: Workload) -> dict[int, LabelledSet]:
    """Who holds what."""
    return split_by_class(image_data(work).train, CLIENTS)


def new_model(work: Workload) -> nn.Module:
    """The ConvNet with its initial parameters."""
    data = image_data(work)
    channels, side, _ = data.image_shape
    model = ConvNet(work.width, work.depth).build(channels, side, len(data.class_names))
    draw_parameters(model, derive_seed(SEED))
    return model


_OWN = threading.local()


def working_model(work: Workload) -> nn.Module:
    """A model that a thread keeps for its clients, one after the other."""
    if not hasattr(_OWN, "model"):
        _OWN.model = new_model(work)
    model: nn.Module = _OWN.model
    return model


def drawn(data: LabelledSet, work: Workload, k: int, client: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a client in round k: those that this project's engine draws too."""
    stream = generator(SEED, PHASE, "batches", k, client)
    walks = (torch.randperm(len(data), generator=stream).split(work.batch) for _ in range(work.steps))
    return map(data.take, islice((batch for walk in walks for batch in walk), work.steps))


def train_locally(model: nn.Module, data: LabelledSet, work: Workload, k: int, client: int) -> None:
    """A client's local steps, in place."""
    optimizer = torch.optim.SGD(model.parameters(), lr=work.lr)
    for images, labels in drawn(data, work, k, client):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

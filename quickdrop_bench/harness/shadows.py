"""Many small federations for U-LiRA and KLOM: each leaves out one half of a pool of samples and forgets the other.

All hold the same rows on the same clients but for the halves; everything else is drawn from the federation's number as
its seed. A method serves the request by the one engine, :mod:`quickdrop_bench.harness.request`. Of the model that it
ends with, margins on single images and the accuracy on the test images are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quickdrop_bench.core.errors import positive
from quickdrop_bench.core.seeding import generator
from quickdrop_bench.data.datasets import load_dataset
from quickdrop_bench.data.labelled import ImageData, LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.evaluation.outputs import outputs
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.functional.margins import margins
from quickdrop_bench.harness.experiment import Experiment
from quickdrop_bench.harness.outcome import checked_stages
from quickdrop_bench.harness.request import UNLEARN, Deployment
from quickdrop_bench.harness.sources import digest, metric_digest
from quickdrop_bench.harness.training import client_rows, train_on

SEED = 1
"""Of what all federations share: who holds which row, the pool, its halves, and the other images."""

SETS = ("pool", "retained", "test")
"""The images on which margins are taken: the pool, other training images, and test images."""

OTHERS = 100
"""Retained training images, and test images, on which margins are taken."""


@dataclass(frozen=True)
class Shadows:
    """Federations 1, 2, … that train on random halves of a pool and forget them.

    Attributes:
        experiment: the spec of the federations, the methods and the data.
        size: samples in the pool.
    """

    experiment: Experiment
    size: int

    @cached_property
    def data(self) -> ImageData:
        """The data set, on the CPU."""
        spec = self.experiment.federation
        data = load_dataset(spec.dataset, self.experiment.data_dir, spec.image_size)
        positive("--pool", self.size, at_least=2, at_most=len(data.train) - OTHERS)
        return data

    @cached_property
    def images(self) -> dict[str, LabelledSet]:
        """The images of each of :data:`SETS`."""
        train, test = (
            torch.randperm(len(part), generator=generator(SEED, "shadows", name))
            for name, part in (("pool", self.data.train), ("test", self.data.test))
        )
        pool, retained = train[: self.size].sort().values, train[self.size :][:OTHERS]
        parts = self.data.train.subset(pool), self.data.train.subset(retained), self.data.test.subset(test[:OTHERS])
        return dict(zip(SETS, parts, strict=True))

    def members(self, number: int) -> Tensor:
        """(size,) bool: the half of the pool that a federation trains on and forgets."""
        order = torch.randperm(self.size, generator=generator(SEED, "shadows", "half", number))
        return order < self.size // 2

    def request(self, number: int) -> UnlearningRequest:
        """To forget that half."""
        return UnlearningRequest("sample", tuple(self.images["pool"].rows[self.members(number)].tolist()))

    def parts(self, number: int) -> list[np.ndarray]:
        """The rows of each client in training, without the other half."""
        left_out = self.images["pool"].rows[~self.members(number)].numpy()
        owned = client_rows(self.experiment.federation, self.data.train.labels, SEED)
        return [rows[~np.isin(rows, left_out)] for rows in owned]

    def key(self, number: int, method: str) -> str:
        """Changes with whatever decides what :meth:`serve` returns: spec, method and their code, data, rows, images."""
        run = replace(self.experiment, requests=(self.request(number),)).run_spec(method, number)
        return digest(
            {
                "run": run.hash,
                "parts": [part.tolist() for part in self.parts(number)],
                "images": {name: part.rows.tolist() for name, part in self.images.items()},
                "source": metric_digest(Path(__file__)),
            }
        )

    def train(self, number: int, federation: Federation, folder: Path) -> Deployment:
        """A federation on the rows of :meth:`parts`; the folder is its own, as the spec does not say what is left out.

        Raises:
            ArithmeticError: training diverged.
        """
        e, data = self.experiment, self.data.to(federation.fabric.device)
        trained = train_on(e.federation, federation, data, number, folder, {"preset": e.preset}, self.parts(number))
        return Deployment(federation, e.federation, trained, folder, data)

    def serve(self, number: int, method: str, deployment: Deployment) -> dict[str, Tensor]:
        """Let a method forget the federation's half.

        Returns:
            (n,) float16 margins by the name of each of :data:`SETS`, and ``accuracy`` on all test images, () float64.

        Raises:
            ArithmeticError: the method diverged.
        """
        request = self.request(number)
        *_, (stage, last) = checked_stages(UNLEARN, deployment.context(request), self.experiment.methods[method])
        if last.diverged:
            raise ArithmeticError(f"federation {number}: {method} diverged in {stage}")
        judged = deployment.judged(last.state, (request,), (request,))
        found = {"accuracy": torch.tensor(judged.accuracy_on(judged.test), dtype=torch.float64)}
        for name, part in self.images.items():
            result = outputs(judged.model, part.to(judged.test.rows.device), torch.arange(len(part)))
            if result is None:
                raise ArithmeticError(f"federation {number}: the logits after {method} are not finite")
            found[name] = margins(*result).half()
        return found

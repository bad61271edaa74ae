"""Tiny federations that every test can afford."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.fabric import Fabric

from quickdrop_bench.cli.main import main
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.distillation.in_situ import Distillation
from quickdrop_bench.federation.faults import Faults
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.models import Model
from quickdrop_bench.models.convnet import ConvNet

os.environ["WANDB_MODE"] = "disabled"
Run = Callable[..., tuple[int, str, str]]
Clients = dict[int, LabelledSet]
Make = Callable[..., Federation]
TINY = ["--preset", "quick", "--rounds", "2", "--local-steps", "2", "--clients", "3", "--width", "4", "--seeds", "1"]
"""Options of a federation that trains in a moment."""

PARTITION = ["--preset", "quick", "--clients", "3", "--seeds", "1"]
"""Those that decide its partition."""

NEVER_EQUAL = ("seconds", "overhead_percent", "shared_cores")
"""Metrics, or ends of their names, that differ from run to run."""

# Shells start background jobs with SIGINT ignored, which commands that tests interrupt would inherit.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tiny tensors gain nothing from threads, and lose much where another process wants the cores; nor do commands.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test writes outside its temporary folder or leaves random state behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        yield


def toy_images(count: int, classes: int = 3, size: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Separable pictures: each class has a template of its own, plus noise."""
    stream = torch.Generator().manual_seed(seed)
    templates = torch.randn(classes, 1, size, size, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    noise = torch.randn(count, 1, size, size, generator=stream)
    return 1.5 * templates[labels] + noise, labels


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_rows(path: Path) -> pd.DataFrame:
    return pd.DataFrame(json_lines(path))


def accuracies(rows: Sequence[Mapping[str, Any]], *methods: str) -> list[tuple[object, ...]]:
    """What rows say of accuracies, of all methods if none is named."""
    keys = ("seed", "method", "stage", "metric", "value")
    chosen = [r for r in rows if "accuracy" in r["metric"] and (not methods or r["method"] in methods)]
    return [tuple(r[k] for k in keys) for r in chosen]


def facts(rows: pd.DataFrame) -> set[tuple[object, ...]]:
    """Everything but times and provenance."""
    same = rows[~rows["metric"].str.endswith(NEVER_EQUAL)]
    keys = ["dataset", "clients", "distribution", "method", "seed", "request", "scale", "stage", "metric", "value"]
    return set(same[keys].fillna(-1.0).itertuples(index=False, name=None))


class Guarded(LabelledSet):
    """Has a size and labels, but raises when forbidden rows are read."""

    forbidden: set[int]

    def __init__(self, source: LabelledSet, forbidden: set[int]) -> None:
        super().__init__(source.images, source.labels, source.rows)
        object.__setattr__(self, "forbidden", forbidden)

    def take(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert not self.forbidden & set(self.rows[positions].flatten().tolist()), "forbidden data were read"
        return super().take(positions)

    def subset(self, positions: torch.Tensor) -> LabelledSet:
        return Guarded(super().subset(positions), self.forbidden)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line; exit code, standard output and standard error."""

    def call(*argv: str) -> tuple[int, str, str]:
        code = main(list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def toy_clients() -> Clients:
    """Three clients with 24, 12 and 9 images of three classes."""
    images, labels = toy_images(45)
    parts = {0: range(24), 1: range(24, 36), 2: range(36, 45)}
    return {i: LabelledSet(images, labels, torch.tensor(list(rows))) for i, rows in parts.items()}


@pytest.fixture
def make_federation() -> Make:
    """Build a federation on one CPU."""

    def make(
        precision: str = "32-true",
        callbacks: list[object] | None = None,
        faults: Faults | None = None,
        static: bool | None = None,
        architecture: Model | None = None,
        **model: object,
    ) -> Federation:
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision, callbacks=callbacks)
        net = (architecture or ConvNet(**{"width": 4, "depth": 2, **model})).build(1, 8, 3)
        return Federation(fabric, net, Distillation(1, 0.1, 0.5, 256), faults, static=static)

    return make

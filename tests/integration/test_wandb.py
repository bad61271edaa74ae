"""What W&B's own reader finds in offline runs, and what they hold of the clients' data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from quickdrop_bench.data.datasets import load_dataset
from quickdrop_bench.data.labelled import ImageData
from quickdrop_bench.store.artifacts import VISIBLE
from tests.conftest import TINY, Run, accuracies, json_lines

pytestmark = pytest.mark.slow

COMMAND = ["table", "2", *TINY, "--methods", "retrain-or,quickdrop"]
TRAINING = "training · digits · N=3 · α=0.1 · s=10 · seed 1"
NAMES = {
    method: f"{method} · class-9 · digits · s=10 · α=0.1 · seed 1" for method in ("original", "retrain-or", "quickdrop")
}
TABLE = "table2 · quick"
PUBLIC = {"config.yaml", "global.safetensors", "history.csv", "manifest.json"}
CLIENTS = [f"clients/000{client}.safetensors" for client in range(3)]

Record = dict[str, Any]


@dataclass(frozen=True)
class Logged:
    """One run as W&B's reader prints it."""

    folder: Path
    records: list[Record]
    final: Record = field(default_factory=dict)
    """Config, summary and exit code at the end, where they were asked for."""

    def all(self, kind: str) -> list[Record]:
        return [record[kind] for record in self.records if record["type"] == kind]

    @property
    def about(self) -> Record:
        return self.all("run")[0]

    @property
    def config(self) -> Record:
        return self.final["config"]

    @property
    def summary(self) -> Record:
        return self.final["summary"]

    @property
    def history(self) -> list[Record]:
        return [record["item"] for record in self.all("history")]

    @property
    def federations(self) -> list[Record]:
        return [artifact for artifact in self.all("artifact") if artifact["type"] == "federation"]

    @property
    def entries(self) -> dict[str, Record]:
        """What the federation that a run declares consists of, by path."""
        (federation,) = self.federations
        return {entry["path"]: entry for entry in federation["manifest"]["contents"]}

    def tables(self, key: str) -> list[list[list[str]]]:
        """Those that were logged under a key, in order: lines of cells, as text."""
        paths = self.folder.glob(f"files/media/html/{key}_*.html")
        ordered = sorted(paths, key=lambda path: int(path.stem.split("_")[-2]))
        lines = [re.findall(r"<tr.*?</tr>", path.read_text(), re.DOTALL) for path in ordered]
        return [[re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line, re.DOTALL) for line in table] for table in lines]


@dataclass(frozen=True)
class Workplace:
    """A folder where commands run as for somebody who has no key."""

    folder: Path

    def environment(self, **more: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        own = {"HOME": "home", "NETRC": "home/netrc", "XDG_CACHE_HOME": "home/cache", "TMPDIR": "tmp"}
        own |= {"WANDB_DIR": "", "WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache", "WANDB_CONFIG_DIR": "config"}
        paths = {name: self.folder / below for name, below in own.items()} | more
        paths["TMPDIR"].mkdir(exist_ok=True)
        return kept | {"OMP_NUM_THREADS": "1"} | {name: str(path) for name, path in paths.items()}

    def benchmark(self, *argv: str, **environment: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "quickdrop_bench", *argv]
        settings = {"cwd": self.folder, "env": self.environment(**environment), "stdin": subprocess.DEVNULL}
        return subprocess.run(command, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload, no-any-return]

    def read(self, folder: Path, *how: str) -> list[Record]:
        """What W&B's reader prints of the run in a folder."""
        reader = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", *how, str(folder)]
        done = subprocess.run(reader, capture_output=True, text=True, check=True, env=self.environment())
        return [json.loads(text) for text in ([done.stdout] if how else done.stdout.splitlines())]

    @cached_property
    def rows(self) -> list[Record]:
        return json_lines(self.folder / "results/quick/table2/rows.jsonl")

    def value(self, method: str, stage: str, metric: str) -> float:
        wanted = (method, stage, metric)
        (found,) = (r["value"] for r in self.rows if (r["method"], r["stage"], r["metric"]) == wanted)
        return float(found)

    def kept_by(self, client: str) -> dict[str, torch.Tensor]:
        return load_file(next((self.folder / "artifacts").glob(f"*/{client}")))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_dataset("digits", Path("data"), None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """After ``table 2`` as a user types it."""
    place = Workplace(tmp_path_factory.mktemp("home"))
    done = place.benchmark(*COMMAND)
    assert done.returncode == 0, done.stderr
    assert f"W&B: 5 runs kept offline; browse: wandb leet {place.folder / 'wandb'}" in done.stderr
    return place


@pytest.fixture(scope="module")
def runs(home: Workplace) -> dict[str, Logged]:
    with ThreadPoolExecutor(2) as pool:
        folders = sorted(home.folder.glob("wandb/offline-run-*"))
        records, final = (list(pool.map(lambda f, how=how: home.read(f, *how), folders)) for how in ([], ["--summary"]))
    found = [Logged(*parts, end) for *parts, (end,) in zip(folders, records, final, strict=True)]
    return {run.about["display_name"]: run for run in found}


@dataclass(frozen=True)
class Obstructed:
    """A command whose W&B files had to go elsewhere."""

    place: Workplace
    code: int
    errors: str

    @cached_property
    def training(self) -> Logged:
        first = min(self.place.folder.glob("tmp/wandb/offline-run-*/files/media/images/partition_*"))
        return Logged(first.parents[3], self.place.read(first.parents[3]))

    def pictures(self) -> list[np.ndarray]:
        """The synthetic images that were logged, (H, W), from 0 to 255."""
        paths = sorted(self.training.folder.glob("files/media/images/synthetic_*"))
        return [np.asarray(Image.open(path).convert("L")) for path in paths]


@pytest.fixture(scope="module")
def obstructed(tmp_path_factory: pytest.TempPathFactory) -> Obstructed:
    """After ``table 2 --wandb-images`` where W&B's folder cannot be made."""
    place = Workplace(tmp_path_factory.mktemp("obstructed"))
    (place.folder / "file").write_text("in the way")
    more = ["--methods", "quickdrop", "--wandb", "offline", "--wandb-images", "--image-lr", "3"]
    done = place.benchmark("table", "2", *TINY, *more, WANDB_DIR=place.folder / "file" / "below")
    return Obstructed(place, done.returncode, done.stderr)


def test_every_training_method_and_artefact_has_a_run_with_axes(runs: dict[str, Logged]) -> None:
    kinds = {name: run.about["job_type"] for name, run in runs.items()}
    requests = {name: "evaluation" if method == "original" else "unlearning" for method, name in NAMES.items()}
    assert kinds == {TRAINING: "fl-training", **requests, TABLE: "artefact"}
    assert {(run.about["run_group"], run.about["project"]) for run in runs.values()} == {
        ("table2-quick", "quickdrop-bench")
    }
    assert {run.final["exit_code"] for run in runs.values()} == {0}
    axes = {"per_round/*": "round", "per_stage/*": "stage", "per_request/*": "request"}
    axes |= {"fine_tuning/*": "initialisation"}
    for run in runs.values():
        assert {m["glob_name"]: m["step_metric"] for m in run.all("metric") if "step_metric" in m} == axes


def test_config_has_the_spec_and_its_provenance(runs: dict[str, Logged], home: Workplace) -> None:
    config = runs[NAMES["quickdrop"]].config
    row = home.rows[-1]
    for key in ("spec_hash", "federation_hash", "request", "protocol", "scale", "seed", "method", "preset"):
        assert config[key] == row[key], key
    assert (home.folder / "artifacts" / config["federation_hash"]).is_dir()
    wanted = {"rounds": 2, "local_steps": 2, "clients": 3, "width": 4, "alpha": 0.1}
    assert {key: config["federation"][key] for key in wanted} == wanted
    assert (config["hyper_parameters"]["unlearn_lr"], config["rules"]["protocol"]) == (0.02, "preset")
    for key in ("git_commit", "git_dirty", "package_version", "versions", "device", "precision"):
        assert config["provenance"][key] == row[key], key


def test_history_counts_rounds_through_all_phases(runs: dict[str, Logged], home: Workplace) -> None:
    history = runs[NAMES["quickdrop"]].history
    rounds = [line for line in history if "per_round/loss" in line]
    assert [line["round"] for line in rounds] == [1, 2, 3]  # one of unlearning, two of recovery
    assert rounds[-1]["per_round/participants"] == 3
    stages = [line for line in history if "per_stage/seconds" in line]
    assert [line["stage"] for line in stages] == [1, 2]
    for line, stage in zip(stages, ("unlearning", "recovery"), strict=True):
        assert line["per_stage/r_set_accuracy"] == home.value("quickdrop", stage, "r_set_accuracy")
    assert rounds[-1]["per_round/class_3_accuracy"] == home.value("quickdrop", "recovery", "class_3_accuracy")


def test_history_of_training_has_its_rounds_and_stage_0(runs: dict[str, Logged], home: Workplace) -> None:
    written = pd.read_csv(next(home.folder.glob("artifacts/*/history.csv")))
    rounds = [line for line in runs[TRAINING].history if "round" in line]
    assert [line["round"] for line in rounds] == written["round"].tolist()
    for name in ("loss", "matching_distance", "class_0_accuracy"):
        assert [line[f"per_round/{name}"] for line in rounds] == pytest.approx(written[name].tolist())
    (stage,) = (line for line in runs[NAMES["original"]].history if "stage" in line)
    assert (stage["stage"], stage["per_stage/seconds"]) == (0, home.value("original", "fl-training", "seconds"))


def test_summaries_hold_the_numbers_about_the_whole_request_alone(runs: dict[str, Logged], home: Workplace) -> None:
    for name in NAMES.values():
        run = runs[name]
        own = [row for row in home.rows if row["spec_hash"] == run.config["spec_hash"]]
        told = ("total", "fl-training", "fine-tuning")
        shown = [row for row in own if row["stage"] in told and not row["metric"].startswith("class_")]
        expected = {f"{row['stage'].replace('-', '_')}/{row['metric']}": row["value"] for row in shown}
        assert len(expected) > 15
        assert {key: run.summary.get(key) for key in expected} == expected
    for run in runs.values():
        own = {key: value for key, value in run.summary.items() if not key.startswith("_")}
        assert all(isinstance(value, int | float) for value in own.values()), own
    for method in ("retrain-or", "quickdrop"):
        summary = runs[NAMES[method]].summary
        assert {key.split("/")[0] for key in summary if not key.startswith("_")} == {"total"}
    gap = home.value("quickdrop", "total", "r_set_accuracy") - home.value("retrain-or", "total", "r_set_accuracy")
    assert runs[NAMES["quickdrop"]].summary["total/r_set_gap"] == pytest.approx(gap)
    assert runs[NAMES["quickdrop"]].summary["total/seconds_paper"] == pytest.approx(15.61)  # Table 2, CIFAR-10


def test_artefact_run_has_the_table_with_the_published_columns(runs: dict[str, Logged], home: Workplace) -> None:
    ((header, *lines),) = runs[TABLE].tables("table")
    written = pd.read_csv(home.folder / "results/quick/table2/table.csv")
    assert header == written.columns.tolist()
    assert "unlearning_f_set_accuracy_published" in header
    assert [line[header.index("method")] for line in lines] == written["method"].tolist()
    seconds = [float(line[header.index("total_seconds_mean")] or "nan") for line in lines]
    assert seconds == pytest.approx(written["total_seconds_mean"].tolist(), nan_ok=True, abs=1e-5)
    assert runs[TABLE].config["artefact"] == "table2"


def test_training_keeps_the_federation_as_an_artifact(runs: dict[str, Logged]) -> None:
    (made,) = runs[TRAINING].federations
    assert made["name"] == f"federation-{runs[TRAINING].config['federation_hash']}"
    assert not any(run.federations for name, run in runs.items() if name != TRAINING)


def test_confusion_matrices_count_every_test_image(runs: dict[str, Logged], data: ImageData) -> None:
    by_class = torch.bincount(data.test.own_labels()).tolist()
    for method, stages in {"original": 1, "retrain-or": 1, "quickdrop": 2}.items():
        tables = runs[NAMES[method]].tables("confusion_matrix")
        counts = [np.array([line[-10:] for line in table[-10:]], int) for table in tables]
        assert [matrix.sum(axis=1).tolist() for matrix in counts] == [by_class] * stages
        stage = "fl_training" if method == "original" else "total"
        accuracy = runs[NAMES[method]].summary[f"{stage}/r_set_accuracy"]
        assert counts[-1].diagonal()[:9].sum() == pytest.approx(accuracy * sum(by_class[:9]))


def test_without_wandb_the_same_is_measured(
    run: Run, home: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    assert run(*COMMAND, "--wandb", "disabled")[0] == 0
    assert accuracies(Workplace(tmp_path).rows) == accuracies(home.rows)
    assert not list(tmp_path.rglob("wandb"))


def written_by_wandb(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 10
    yield from ((path, path.read_bytes()) for path in files)


def check_nothing_of_a_client(place: Workplace, data: ImageData, *folders: Path) -> None:
    """No file has an original image, or which images or labels a client holds."""
    secrets = [image.numpy().tobytes() for image in data.train.images]
    for client in CLIENTS:
        rows = place.kept_by(client)["rows"]
        secrets += [rows.numpy().tobytes(), data.train.labels[rows].numpy().tobytes()]
    for path, content in written_by_wandb(*folders):
        assert not any(secret in content for secret in secrets), path


def is_tensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header, then JSON."""
    content = path.read_bytes()
    return content[4:9] == bytes(4) + b"{"


def test_of_the_clients_the_picture_of_the_partition_leaves_alone(
    runs: dict[str, Logged], home: Workplace, data: ImageData
) -> None:
    assert runs[TRAINING].entries.keys() == PUBLIC
    uploads = [file["path"] for run in runs.values() for kind in run.all("files") for file in kind["files"]]
    assert {path.split("/")[1] for path in uploads} <= {"images", "html"}
    check_nothing_of_a_client(home, data, home.folder / "wandb", home.folder / "data")
    (staged,) = filter(is_tensors, (home.folder / "data/artifacts/staging").iterdir())
    assert str(staged) == runs[TRAINING].entries["global.safetensors"]["local_path"]
    assert staged.read_bytes() == next(home.folder.glob("artifacts/*/global.safetensors")).read_bytes()
    (picture,) = home.folder.glob("wandb/*/files/media/images/*")
    assert picture.name.startswith("partition_")
    (logged,) = (line for line in runs[TRAINING].history if "partition.filenames" in line)
    assert logged["partition.filenames"] == [f"media/images/{picture.name}"]


def test_without_a_folder_for_wandb_all_is_measured(obstructed: Obstructed, home: Workplace) -> None:
    assert obstructed.code == 0
    measured, expected = accuracies(obstructed.place.rows), accuracies(home.rows, "original", "quickdrop")
    assert [row[:-1] for row in measured] == [row[:-1] for row in expected]
    assert f"W&B: 4 runs kept offline; browse: wandb leet {obstructed.place.folder / 'tmp'}" in obstructed.errors
    assert "Traceback" not in obstructed.errors
    assert "wandb: WARNING" not in obstructed.errors


def test_synthetic_sets_are_staged_without_what_they_began_as(obstructed: Obstructed, data: ImageData) -> None:
    entries = obstructed.training.entries
    staged = {path: entry for path, entry in entries.items() if path.startswith("synthetic/")}
    assert len(staged) == 3
    assert (
        {path for path, entry in entries.items() if "local_path" in entry} == PUBLIC | staged.keys() == entries.keys()
    )
    for path, entry in staged.items():
        held, tensors = obstructed.place.kept_by(path.replace("synthetic", "clients")), load_file(entry["local_path"])
        shades = 255 * data.std[0] * (held["synthetic_images"] - held["subset_images"])
        changed = shades.abs().flatten(1).amax(1) >= VISIBLE
        assert tensors.keys() == {"images", "labels"}
        assert tensors["labels"].equal(held["synthetic_labels"][changed])
        assert not any((data.train.images == image).flatten(1).all(1).any() for image in tensors["images"])
    folders = obstructed.place.folder / "tmp" / "wandb", obstructed.place.folder / "data"
    check_nothing_of_a_client(obstructed.place, data, *folders)


def test_synthetic_images_that_look_like_originals_stay(obstructed: Obstructed, data: ImageData) -> None:
    originals, pictures = drawn(data.train.images, data), obstructed.pictures()
    assert pictures
    paths = [entry["local_path"] for path, entry in obstructed.training.entries.items() if "synthetic/" in path]
    images = [image for path in paths for image in drawn(load_file(path)["images"], data)]
    assert min(abs(originals - image).max(axis=(1, 2)).min() for image in [*images, *pictures]) > 1.5


def drawn(images: torch.Tensor, data: ImageData) -> np.ndarray:
    """(n, H, W) images in shades of grey from 0 to 255, as they are uploaded but for rounding."""
    low, high = data.train.images.min(), data.train.images.max()
    return (255 * ((images - low) / (high - low)).clip(0, 1))[:, 0].numpy()

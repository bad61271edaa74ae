"""A federation on disk: equal when read back, refused when damaged."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from quickdrop_bench import __version__
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.federation.history import UpdateHistory, UpdateRecorder
from quickdrop_bench.store.artifacts import (
    UPDATES,
    TrainedFederation,
    is_complete,
    load,
    of_model,
    save,
)
from tests.damage import Drawn, Kind, flip, into_folder, into_link, into_pipe, lose, seal

CPU = torch.device("cpu")


def test_round_trip(trained: TrainedFederation, tmp_path: Path) -> None:
    save(trained, tmp_path / "run")
    again = load(tmp_path / "run", CPU)
    assert torch.equal(again.state["w"], trained.state["w"])
    assert (again.cost, again.spec, again.device) == (trained.cost, trained.spec, "a CPU")
    assert (again.data, again.precision) == (trained.data, "32-true")
    pd.testing.assert_frame_equal(again.history, trained.history)
    assert list(again.clients) == [0, 1, 2, 3]
    assert again.clients[3].synthetic is None
    for i in range(3):
        ours, theirs = trained.clients[i], again.clients[i]
        assert ours.synthetic is not None
        assert theirs.synthetic is not None
        for name in ("images", "labels", "origin", "velocity"):
            assert torch.equal(getattr(ours.synthetic, name), getattr(theirs.synthetic, name))
        assert ours.synthetic.fixed_classes == theirs.synthetic.fixed_classes
        assert torch.equal(ours.rows, theirs.rows)
        for kept in ("subset", "augmentation"):
            assert torch.equal(getattr(ours, kept).images, getattr(theirs, kept).images)
            assert torch.equal(getattr(ours, kept).labels, getattr(theirs, kept).labels)
            assert torch.equal(getattr(ours, f"{kept}_rows"), getattr(theirs, f"{kept}_rows"))


def test_recorded_updates_are_part_of_the_federation(trained: TrainedFederation, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recorder = UpdateRecorder(folder / UPDATES, rounds=2, every=1)
    for k in range(2):
        recorder(k, 0, 5, {"w": torch.zeros(3)}, {"w": torch.ones(3)})
    save(trained, folder)
    load(folder, CPU)
    assert UpdateHistory(folder / UPDATES, CPU).participants == {0: [0], 1: [0]}
    path = folder / UPDATES / "0001" / "0000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BadInput, match=r"updates/0001/0000\.safetensors"):
        load(folder, CPU)


def test_what_served_requests_is_not_to_be_deleted(trained: TrainedFederation, tmp_path: Path) -> None:
    save(trained, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text("{")
    with pytest.raises(BadInput, match="delete this folder to train again"):
        load(tmp_path / "run", CPU)
    (tmp_path / "run" / "versions").mkdir()
    with pytest.raises(BadInput, match="which holds served requests, away to train again"):
        load(tmp_path / "run", CPU)


def as_first_written(manifest: dict[str, Any]) -> None:
    """The manifest as the first writers of this format made it."""
    del manifest["written_by"]
    for cost in ("cost", "fine_tuning"):
        for name in ("dropouts", "stragglers", "rejected_updates", "cpu_seconds", "waiting_seconds"):
            del manifest[cost][name]


def test_what_older_code_of_the_format_wrote_is_read(trained: TrainedFederation, tmp_path: Path) -> None:
    save(trained, tmp_path)
    with_manifest(tmp_path, as_first_written)
    again = load(tmp_path, CPU)
    assert (again.cost, again.fine_tuning, again.data) == (trained.cost, trained.fine_tuning, trained.data)
    assert again.cost.waiting_seconds == 0


def as_format_3(manifest: dict[str, Any]) -> None:
    as_first_written(manifest)
    del manifest["data"], manifest["precision"]
    manifest["format"] = 3


@pytest.mark.parametrize("said", [{}, {"written_by": "quickdrop-bench 0.1.0"}], ids=["unsigned", "signed"])
@pytest.mark.parametrize("served", [False, True])
def test_an_older_format_is_not_called_damaged(
    trained: TrainedFederation, tmp_path: Path, said: dict[str, str], *, served: bool
) -> None:
    """That version 0.1.0 wrote it, which this one is, would be no way back."""
    save(trained, tmp_path)
    with_manifest(tmp_path, lambda manifest: (as_format_3(manifest), manifest.update(said)))
    if served:
        (tmp_path / "versions").mkdir()
    with pytest.raises(BadInput) as caught:
        load(tmp_path, CPU)
    assert str(caught.value) == (
        f"--artifacts-dir {tmp_path}: manifest.json: quickdrop-bench 0.1.0 from before 28 November 2026 wrote it in "
        "format 3, which does not say on which data and in which precision, and this version reads format 4; use that "
        "version, or move the folder away to train again."
    )


def test_the_manifest_comes_last(trained: TrainedFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    save(trained, folder)
    assert is_complete(folder)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quickdrop_bench.store.artifacts.write_tensors", full)
    with pytest.raises(BadInput, match="No space left"):
        save(trained, folder)
    assert not is_complete(folder)


# Folders of another content, with a manifest that fits --------------------------------------------------------

CLIENT, CLIENT_1 = "clients/0000.safetensors", "clients/0001.safetensors"


def with_tensors(folder: Path, name: str, **changes: torch.Tensor | None) -> None:
    tensors = {**load_file(folder / name), **changes}
    save_file({key: value.contiguous() for key, value in tensors.items() if value is not None}, folder / name)


def with_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def header(folder: Path, name: str, text: str, size: int | None = None) -> None:
    content = text.encode()
    (folder / name).write_bytes((len(content) if size is None else size).to_bytes(8, "little") + content)


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: with_tensors(folder, CLIENT, **{name: change(load_file(folder / CLIENT)[name])})


TENSORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: os.truncate(f / CLIENT, 100), CLIENT),
    "empty": (lambda f: os.truncate(f / CLIENT, 0), CLIENT),
    "header of the file's size": (lambda f: header(f, CLIENT, "{}", 2**40), "header is larger"),
    "header of 2^63 bytes": (lambda f: header(f, CLIENT, "{}", 2**63), "header is larger"),
    "header that claims more than the file": (
        lambda f: header(f, CLIENT, '{"rows": {"dtype": "I64", "shape": [9], "data_offsets": [0, 72]}}'),
        CLIENT,
    ),
    "weights in double precision": (
        lambda f: with_tensors(f, "global.safetensors", w=torch.zeros(3, dtype=torch.float64)),
        "no parameter",
    ),
    **{
        what: (changed(name, change), f"{name} has another type or shape")
        for what, name, change in (
            ("labels in 32 bits", "subset_labels", torch.Tensor.int),
            ("images in half precision", "subset_images", torch.Tensor.half),
            ("images of another size", "subset_images", lambda images: images[..., :7]),
            ("fewer labels than images", "subset_labels", lambda labels: labels[1:]),
            ("shorter velocity", "synthetic_velocity", lambda velocity: velocity[1:]),
            ("shorter origin", "synthetic_origin", lambda origin: origin[1:]),
        )
    },
    "missing tensor": (lambda f: with_tensors(f, CLIENT, subset_rows=None), "other tensors"),
    "extra tensor": (lambda f: with_tensors(f, CLIENT, more=torch.zeros(1)), "other tensors"),
}


def without_client(folder: Path) -> None:
    with_manifest(folder, lambda m: m["files"].pop(CLIENT_1))


def renamed_client(folder: Path, name: str) -> None:
    (folder / CLIENT_1).rename(folder / name)
    with_manifest(folder, lambda m: m["files"].update({name: m["files"].pop(CLIENT_1)}))


def damaged(kind: Kind, name: str) -> Callable[[Path], object]:
    return lambda folder: kind(folder / name, Drawn())


def as_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def as_file(name: str, text: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
        seal(folder)

    return write


def listed(name: str) -> Callable[[Path], None]:
    return lambda folder: with_manifest(folder, lambda m: m["files"].update({name: m["files"]["history.csv"]}))


def manifest_value(*path: str, value: object) -> Callable[[Path], None]:
    def change(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return lambda folder: with_manifest(folder, change)


def link_outside(folder: Path) -> None:
    (folder.parent / "outside.csv").write_bytes((folder / "history.csv").read_bytes())
    (folder / "history.csv").unlink()
    (folder / "history.csv").symlink_to("../outside.csv")


def clients_elsewhere(folder: Path) -> None:
    (folder / "clients").rename(folder.parent / "elsewhere")
    (folder / "clients").symlink_to("../elsewhere")


def unlisted_update(folder: Path) -> None:
    (folder / "updates" / "0000").mkdir(parents=True)
    save_file({"w": torch.zeros(3)}, folder / "updates" / "0000" / "0001.safetensors")


COLUMNS = "round,loss,matching_distance,participants,seconds,distillation_seconds\n"
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"{name} {kind.__name__}": (damaged(kind, name), f"{name} is missing or damaged")
        for name in ("global.safetensors", CLIENT_1, "history.csv", "config.yaml")
        for kind in (flip, lose)
    },
    **{
        f"manifest {text!r}": (as_text("manifest.json", text), "manifest.json is missing or damaged")
        for text in ("", "[]", "{}", '{"format": 4')
    },
    "manifest deeply nested": (as_text("manifest.json", "[" * 10**6), "manifest.json"),
    "manifest giant": (lambda f: os.truncate(f / "manifest.json", 2**40), "larger than"),
    "manifest binary": (lambda f: (f / "manifest.json").write_bytes(bytes(range(256))), "manifest.json"),
    "manifest a folder": (damaged(into_folder, "manifest.json"), "manifest.json"),
    "another format": (
        manifest_value("format", value=9),
        f"manifest.json: quickdrop-bench {__version__} wrote it in format 9, and this version reads format 4; use that",
    ),
    "a format in words": (manifest_value("format", value="new"), "format is no whole number"),
    "device that commands the terminal": (manifest_value("device", value="\x1b[2J"), "device"),
    "no files": (manifest_value("files", value={}), "does not list config.yaml"),
    "files in a list": (manifest_value("files", value=["history.csv"]), "manifest.json"),
    "absolute name": (listed("/etc/passwd"), "belongs to no federation"),
    "name that climbs": (listed("clients/../../x.safetensors"), "belongs to no federation"),
    "name with NUL": (listed("clients/0000\0.safetensors"), "no printable text"),
    "name of another file": (listed("clients/notes.txt"), "belongs to no federation"),
    "name that is not canonical": (lambda f: renamed_client(f, "clients/00001.safetensors"), "belongs to no"),
    "size in words": (manifest_value("files", "history.csv", "bytes", value="many"), "bytes"),
    "negative size": (manifest_value("files", "history.csv", "bytes", value=-1), "bytes"),
    "other size": (
        manifest_value("files", "history.csv", "bytes", value=1),
        "history.csv is missing or damaged (it has",
    ),
    "client missing": (without_client, "a client is missing"),
    "client ids with a gap": (lambda f: renamed_client(f, "clients/0007.safetensors"), "a client is missing"),
    "link that leaves": (link_outside, "history.csv is missing or damaged (it lies outside"),
    "link to itself": (damaged(into_link, "history.csv"), "history.csv"),
    "clients elsewhere": (clients_elsewhere, "lies outside"),
    "pipe": (damaged(into_pipe, "history.csv"), "it is no regular file"),
    "update that is not listed": (unlisted_update, "updates is missing or damaged"),
    "class that commands the terminal": (
        manifest_value("data", "class_names", value=["\x07", "a"]),
        "class_names is no printable text",
    ),
    "flat images": (manifest_value("data", "image_shape", value=[1, 64]), "manifest.json"),
    "two means": (manifest_value("data", "mean", value=[0, 0]), "number of channels"),
    "cost in words": (manifest_value("cost", "rounds", value="two"), "rounds"),
    "other costs": (manifest_value("cost", value={}), "cost has other entries"),
    "history empty": (as_file("history.csv", ""), "history.csv"),
    "history of words": (as_file("history.csv", COLUMNS + "1,a,b,c,d,e\n"), "its columns"),
    "history without rounds": (as_file("history.csv", "loss\n1\n"), "its columns"),
    "history with longer lines": (as_file("history.csv", COLUMNS + "1,1,1,1,1,1,1,1\n"), "its columns"),
    "history with ragged lines": (as_file("history.csv", COLUMNS + "1,1,1,1,1,1\n1,1,1,1,1,1,1\n"), "history.csv"),
    "history binary": (as_file("history.csv", bytes(range(256)) * 9), "history.csv"),
    "config empty": (as_file("config.yaml", ""), "no flat list"),
    "config a number": (as_file("config.yaml", "3"), "no flat list"),
    "config a list": (as_file("config.yaml", "[1]"), "no flat list"),
    "config nested": (as_file("config.yaml", "a: {b: 1}"), "no flat list"),
    "config with a tag": (as_file("config.yaml", "a: !!python/object/apply:os.system [ls]"), "config.yaml"),
    "config with a date": (as_file("config.yaml", "a: 2020-01-01"), "no flat list"),
    "config no YAML": (as_file("config.yaml", "a: [1, {"), "config.yaml"),
    "config no text": (as_file("config.yaml", b"\xff\xfe\xff"), "config.yaml"),
    "another number of clients": (as_file("config.yaml", "clients: 3"), "3 clients, and there are 4"),
    "clients in words": (as_file("config.yaml", "clients: four"), "four clients, and there are 4"),
    "seed in words": (as_file("config.yaml", "seed: one"), "seed is no whole number"),
}


@pytest.mark.parametrize(("tamper", "named"), (TENSORS | FILES).values(), ids=TENSORS | FILES)
def test_files_of_another_kind_are_refused(trained: TrainedFederation, tmp_path: Path, tamper: Any, named: str) -> None:
    folder = tmp_path / "run"
    save(trained, folder)
    tamper(folder)
    if tamper in {own for own, _ in TENSORS.values()}:
        seal(folder)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match="--artifacts-dir") as caught:
            load(folder, CPU)
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()
    assert named in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("tensors", [{"w": torch.zeros(4)}, {}], ids=["shape", "none"])
def test_updates_must_suit_the_model(trained: TrainedFederation, tmp_path: Path, tensors: Any) -> None:
    UpdateRecorder(tmp_path / UPDATES, 1, 1)(0, 0, 5, {"w": torch.zeros(3)}, {"w": torch.ones(3)})
    save(trained, tmp_path)
    save_file({**tensors, "num_examples": torch.tensor(5)}, tmp_path / UPDATES / "0000/0000.safetensors")
    seal(tmp_path)
    with pytest.raises(BadInput, match=r"updates/0000/0000\.safetensors"):
        load(tmp_path, CPU)


def test_a_state_is_checked_against_a_model(trained: TrainedFederation, tmp_path: Path) -> None:
    model = {"b": torch.zeros(1), "a": torch.zeros(2, 3)}
    suits = of_model(replace(trained, state={"a": torch.ones(2, 3), "b": torch.ones(1)}), model, tmp_path)
    assert [*suits.state] == ["b", "a"]
    for state, named in (
        ({"a": torch.zeros(2, 3)}, "lacks parameter 'b'"),
        ({**model, "c\x1b": torch.zeros(1)}, r"unknown parameter 'c\\x1b'"),
        ({**model, "a": torch.zeros(3, 2)}, "a is 3×2, and the model has 2×3"),
    ):
        with pytest.raises(BadInput, match=f"^--artifacts-dir .*global.safetensors is missing or damaged .*{named}"):
            of_model(replace(trained, state=state), model, tmp_path)


def test_what_could_not_be_loaded_is_not_saved(trained: TrainedFederation, tmp_path: Path) -> None:
    synthetic = trained.clients[1].synthetic
    assert synthetic is not None
    synthetic.images.fill_(torch.nan)
    with pytest.raises(ArithmeticError, match="synthetic images of client 1 are not finite; lower --image-lr"):
        save(trained, tmp_path / "run")


def test_saving_follows_no_link(trained: TrainedFederation, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "clients").symlink_to("../other")
    save(trained, tmp_path / "run")
    assert not list((tmp_path / "other").iterdir())
    assert len(load(tmp_path / "run", CPU).clients) == 4
